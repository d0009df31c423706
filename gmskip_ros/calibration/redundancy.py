"""Why blocks can be skipped: what each one does to the states, and what predicts its worth.

Cheap measures, from one pass of the full model: the cosine, the angle and the ratio of norms
between what enters and what leaves a block, by kind of token, and how much attention the answer
pays to the image. Beside them what skipping really does, one block at a time: the KL divergence of
the next token, and the change of the task's score (GM-Skip's first round). Their rank correlations
say which cheap measure predicts skippability, in the spirit of "Skip-It? Theoretical Conditions for
Layer Skipping in Vision-Language Models".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gmskip_ros.calibration import run
from gmskip_ros.calibration.answering import Answerer
from gmskip_ros.calibration.baseline import baselines
from gmskip_ros.calibration.checkpoint import CheckpointFile
from gmskip_ros.calibration.data import (
    choose_calibration_samples_in_view,
    load_data,
    record_header,
)
from gmskip_ros.calibration.distributed import Ranks
from gmskip_ros.calibration.errors import CalibrationError
from gmskip_ros.calibration.likelihood import divergences_of
from gmskip_ros.calibration.methods.registry import get_method
from gmskip_ros.calibration.objective import choose_metrics, make_objective
from gmskip_ros.calibration.probing import (
    Sample,
    angular_distance,
    cosine_distance,
    values_per_sample,
)
from gmskip_ros.calibration.run import (
    fingerprint,
    load_checkpoint,
    report_guidance,
    resumed_scorer,
    set_near_tie,
)
from gmskip_ros.calibration.scoring import Scorer, chunks
from gmskip_ros.calibration.settings import CalibrationSettings, Listener
from gmskip_ros.datasets import Dataset
from gmskip_ros.skipping import JOINT, SkipSet
from gmskip_ros.vlm import CalibrationEngine

if TYPE_CHECKING:
    from torch import Tensor

    from gmskip_ros.vlm import BlockStates

FORMAT = 'gmskip/redundancy/1'
# Kinds of tokens: image and text tokens of the prompt (prefill), tokens of the answer (decode).
TOKENS = ('image', 'text', 'decode')
STATE_MEASURES = tuple(
    f'{name}_{tokens}' for name in ('cosine', 'angle', 'norm_ratio') for tokens in TOKENS
)
CHEAP_MEASURES = (*STATE_MEASURES, 'visual_attention', 'depth')
# What skipping a block really does, and to what.
TARGETS = {
    'kl': ('next-token KL', 'next token'),
    'score_change': ("change of the task's score", "task's score"),
}
DRAWS = 1000  # bootstrap resamples, and permutations
MOST_CONSTANT = 0.05  # no interval where more of the draws have only equal values
SIGNIFICANT = 0.05  # p, corrected for the number of measures, up to which the summary claims
LEAST_CHANGING = 5  # blocks that must change a target before the summary says what predicts it
LEAST_KL = 1e-9  # nats; below it, rounding
SAME_TOKENS = 0.99  # of the answers, where image tokens no longer matter


@dataclass(frozen=True)
class _Table:
    """Figures of every sample: per measure an array (samples, blocks); NaN where there is no token.

    kl_frozen and kl_unseen, (samples, blocks + 1): from each block on, image tokens are left as
    they are, and are unseen as well; same_*: the share of the answer's tokens that stay the same.
    """

    blocks: Mapping[str, np.ndarray]
    image: Mapping[str, np.ndarray]


def check(dataset: Dataset, settings: CalibrationSettings) -> None:
    """Raise what `measure_redundancy` raises for settings and a dataset that do not go together.

    This needs no model and little time.
    """
    if settings.task == JOINT:
        raise CalibrationError(
            'redundancy is measured for one task at a time: give a single --task, not joint'
        )
    run.check(dataset, settings)


def measure_redundancy(
    vlm: CalibrationEngine,
    dataset: Dataset,
    settings: CalibrationSettings,
    folder: Path,
    *,
    ranks: Ranks | None = None,
    listener: Listener | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Return the figures of every block as JSON values, in the form of redundancy.json.

    The state is kept in `folder`/checkpoint.json, from which the same call resumes. With several
    ranks every process makes the same call. Raises Stopped, CalibrationError, DatasetError,
    TaskError, VlmError; the state is saved.
    """
    ranks, listener = ranks or Ranks(), listener or Listener()
    if ranks.rank == 0:
        check(dataset, settings)
    chosen = choose_calibration_samples_in_view(vlm, dataset, settings, ranks, listener)
    dataset = chosen.dataset
    data = load_data(vlm, chosen, settings, ranks, listener, should_stop)
    metrics = choose_metrics([task.name for task in settings.tasks()], settings.metric)
    objective = make_objective(data.questions, metrics, data.images.index_of, settings.seed)
    answerer = Answerer(
        vlm,
        data.images,
        ranks,
        batch_size=settings.batch_size,
        memory_bytes=settings.memory_bytes,
        should_stop=should_stop,
    )
    file = CheckpointFile(folder)
    method = get_method(settings.search.method)
    of_run = fingerprint(vlm, dataset.name, settings, method, data, metrics)
    checkpoint = load_checkpoint(file, {**of_run, 'command': 'redundancy'}, ranks)

    scorer = resumed_scorer(objective, answerer, settings.search, checkpoint, file, listener)
    try:
        set_near_tie(answerer, checkpoint, data)
        scorer.score_full()
        known = baselines(data.questions, metrics, scorer.full_scores)
        guidance = report_guidance(scorer, known, listener)
        score_warnings = [reason for part in guidance for reason in part.reasons]
        if ranks.rank == 0:
            for line in score_warnings:
                listener.note(f'warning: {line}')
        changes = _score_changes(scorer)
        table = _table(scorer)
    except Exception:  # not KeyboardInterrupt, which may come between two changes of the state
        scorer.on_save(scorer.state, True)
        raise
    record = _figures(table, changes, settings.seed)
    return {
        **record_header(FORMAT, vlm, settings, metrics, data.questions),
        'dataset': {
            'name': dataset.name,
            'chosen': chosen.line,
            'notes': list(dataset.notes),
            'warnings': list(dataset.warnings),
            'images': data.questions[0].num_images,
            **(chosen.counts.as_record() if chosen.counts else {}),
            'sha256': data.sha256,
            'seed': settings.seed,
        },
        'unreadable': list(data.unreadable),
        'full_score': float(scorer.full_score),
        'score_warnings': score_warnings,
        'baselines': known,
        **record,
    }


def _score_changes(scorer: Scorer) -> np.ndarray:
    """Return what skipping each block adds to the score, per question: (questions, blocks).

    The mean over the questions is the change of the score. Questions come in their order, so the
    first ones are the samples; a score may also count images without the target.
    """
    blocks = range(scorer.num_blocks)
    for chunk in chunks(range(scorer.num_items)):
        scorer.answer_items(blocks, chunk, lambda: scorer.report(blocks, None, None))
    (part,) = scorer.objective.parts
    num_questions = 1 + max(item.question for item in part.items)
    changes = np.zeros((num_questions, scorer.num_blocks))
    for block in blocks:
        for item, full, without in zip(
            part.items, scorer.state.full, scorer.answers_of(block), strict=True
        ):
            changes[item.question, block] += float(without.contribution - full.contribution)
    return changes * num_questions / part.denominator


def _table(scorer: Scorer) -> _Table:
    num_blocks = scorer.num_blocks
    rows = values_per_sample(scorer, 'redundancy', lambda sample: _measure(sample, num_blocks))
    values = np.array(rows, dtype=float)  # (samples, columns)
    names = [*STATE_MEASURES, 'visual_attention', 'kl']
    blocks = {
        name: values[:, index * num_blocks : (index + 1) * num_blocks]
        for index, name in enumerate(names)
    }
    start, width = len(names) * num_blocks, num_blocks + 1
    image = {
        name: values[:, start + index * width : start + (index + 1) * width]
        for index, name in enumerate(('kl_frozen', 'same_frozen', 'kl_unseen', 'same_unseen'))
    }
    return _Table(blocks, image)


def _measure(sample: Sample, num_blocks: int) -> list[float]:
    """Return one sample's figures, measure by measure, each for every block."""
    of_blocks = [_of_block(sample, states) for states in sample.block_states(attention=True)]
    figures = [value for column in zip(*of_blocks, strict=True) for value in column]
    full = _log_probabilities(sample, SkipSet())
    for block in range(num_blocks):
        figures.append(_divergence(full, _log_probabilities(sample, SkipSet.of([block]))))
    for image_kv in ('input', 'none'):
        divergences, same = [], []
        for first in range(num_blocks + 1):
            skip = SkipSet(image=range(first, num_blocks), image_kv=image_kv)
            found = _log_probabilities(sample, skip)
            divergences.append(_divergence(full, found))
            same.append(_same_tokens(full, found))
        figures += [*divergences, *same]
    return figures


def _of_block(sample: Sample, states: BlockStates) -> list[float]:
    """Return the figures of STATE_MEASURES and the visual attention of one block."""
    import torch

    positions = torch.arange(len(states.is_image), device=states.is_image.device)
    is_prompt = positions < states.prompt_length
    is_decoded = ~is_prompt & (positions < states.prompt_length + sample.num_decoded)
    kinds = (is_prompt & states.is_image, is_prompt & ~states.is_image, is_decoded)
    cosines, angles, ratios = [], [], []
    for chosen in kinds:
        one, other = states.entering[chosen].float(), states.leaving[chosen].float()
        cosines.append(1 - _mean(cosine_distance(one, other)))
        angles.append(_mean(angular_distance(one, other)))
        ratios.append(_mean(other.norm(dim=-1) / one.norm(dim=-1).clamp(min=1e-30)))
    attention = states.image_attention
    assert attention is not None
    return [*cosines, *angles, *ratios, _mean(attention)]


def _mean(values: Tensor) -> float:
    """Return the mean in double precision; NaN of nothing."""
    return float(values.double().mean())


def _log_probabilities(sample: Sample, skip: SkipSet) -> Tensor:
    """Return log P of the next token at each step of the full answer: (steps, V).

    The steps are those before its tokens and, if it is complete, the one that ends it.
    """
    answerer, token_ids = sample.answerer, sample.token_ids
    if sample.num_decoded == len(token_ids):  # complete; which token ends it does not matter here
        token_ids = (*token_ids, 0)
    (logits,) = answerer.vlm.continuation_logits(
        [sample.features],
        [sample.prompt],
        [token_ids],
        skip,
        should_stop=answerer.should_stop,
    )
    return logits.double().log_softmax(dim=-1)  # a divergence is second order in their rounding


def _divergence(full: Tensor, other: Tensor) -> float:
    """Return the mean KL(full || other) in nats over the answer's steps."""
    return _mean(divergences_of(full, other))


def _same_tokens(full: Tensor, other: Tensor) -> float:
    """Return the share of the answer's steps whose likeliest token is the same."""
    return _mean((full.argmax(dim=-1) == other.argmax(dim=-1)).float())


def _figures(table: _Table, changes: np.ndarray, seed: int) -> dict[str, Any]:
    """Return the means per block, the rank correlations, and what follows from them."""
    num_blocks = changes.shape[1]
    means = {name: _column_means(values) for name, values in table.blocks.items()}
    means['score_change'] = changes.mean(axis=0)
    image = {name: _column_means(values) for name, values in table.image.items()}
    correlations = rank_correlations(table.blocks, changes, seed)
    no_matter = {
        policy: _first_block_without(image[f'same_{policy}']) for policy in ('frozen', 'unseen')
    }
    num_changing = {
        'kl': int(np.count_nonzero(np.abs(means['kl']) > LEAST_KL)),
        'score_change': int(np.count_nonzero(changes.any(axis=0))),
    }
    return {
        'blocks': [
            {'block': block, **{name: _plain(values[block]) for name, values in means.items()}}
            for block in range(num_blocks)
        ],
        'image_tokens': [
            {'from_block': first, **{name: _plain(values[first]) for name, values in image.items()}}
            for first in range(num_blocks + 1)
        ],
        'correlations': correlations,
        'image_tokens_no_longer_matter_from': no_matter,
        'blocks_that_change': num_changing,
        'summary': summary(correlations, no_matter, num_changing, num_blocks),
    }


def rank_correlations(
    measured: Mapping[str, np.ndarray], changes: np.ndarray, seed: int = 0
) -> list[dict[str, Any]]:
    """Return Spearman's rank correlation of every cheap measure with every target, over blocks.

    measured: (samples, blocks) of each measure but depth, and of the KL divergence; NaN where there
    is no token. changes: of the score, (questions, blocks), the samples first.

    All are turned so that more means more skippable: 1 = the measure names the same order.
    interval (95 %): percentiles over resampled images and blocks; None where more than
    MOST_CONSTANT of the draws have nothing to order. p: how often the best of all measures
    correlates as well with a permuted target (Westfall and Young's maxT).
    """
    num_samples, num_blocks = len(measured['kl']), changes.shape[1]
    num_questions = len(changes)
    rng = np.random.default_rng(seed)
    draws = rng.multinomial(num_questions, [1 / num_questions] * num_questions, size=DRAWS)
    # Row 0 is the images as they are; a draw of them needs at least one sample.
    weights = np.vstack([np.ones(num_questions), draws[draws[:, :num_samples].any(axis=1)]])
    ranked = {
        name: _skippability(name, _weighted_means(weights[:, :num_samples], values))
        for name, values in measured.items()
    }
    ranked['depth'] = np.tile(np.arange(num_blocks, dtype=float), (len(weights), 1))
    ranked['score_change'] = _weighted_means(weights, changes)
    chosen = rng.integers(num_blocks, size=(len(weights), num_blocks))
    resampled = {
        name: np.take_along_axis(values, chosen, axis=1)[1:] for name, values in ranked.items()
    }
    orders = rng.permuted(np.tile(np.arange(num_blocks), (DRAWS, 1)), axis=1)
    found = []
    for target in TARGETS:
        observed = {
            measure: _spearman(ranked[measure][:1], ranked[target][:1])[0]
            for measure in CHEAP_MEASURES
        }
        permuted = np.vstack(
            [
                _spearman(np.tile(ranked[measure][0], (DRAWS, 1)), ranked[target][0][orders])
                for measure in CHEAP_MEASURES
            ]
        )
        best = np.nanmax(np.where(np.isfinite(permuted), permuted, -1.0), axis=0)
        for measure in CHEAP_MEASURES:
            value = observed[measure]
            p = None
            if np.isfinite(value):
                p = float((1 + np.count_nonzero(best >= value - 1e-12)) / (1 + DRAWS))
            found.append(
                {
                    'measure': measure,
                    'target': target,
                    'spearman': _plain(value),
                    'interval': _interval(_spearman(resampled[measure], resampled[target])),
                    'p': p,
                }
            )
    return found


def _interval(values: np.ndarray) -> list[float] | None:
    known = values[np.isfinite(values)]
    if not len(values) or len(known) < (1 - MOST_CONSTANT) * len(values):
        return None
    return [float(value) for value in np.percentile(known, [2.5, 97.5])]


def _skippability(measure: str, means: np.ndarray) -> np.ndarray:
    """Return means turned so that more is more skippable."""
    if measure.startswith('cosine'):
        return means
    if measure.startswith('norm_ratio'):
        return -np.abs(means - 1)
    return -means  # angle, visual_attention, kl


def _weighted_means(weights: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return the means over samples (B, blocks) by weights (B, samples), without NaN entries."""
    known = np.isfinite(values)
    totals = weights @ np.where(known, values, 0.0)
    counts = weights @ known
    return np.divide(totals, counts, out=np.full_like(totals, np.nan), where=counts > 0)


def _column_means(values: np.ndarray) -> np.ndarray:
    return _weighted_means(np.ones((1, len(values))), values)[0]


def _spearman(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return Spearman's rank correlation of pairs of rows (B, blocks): (B,), NaN if constant."""
    from scipy.stats import rankdata

    ranks, other_ranks = (rankdata(rows, axis=1) for rows in (one, other))
    ranks = ranks - ranks.mean(axis=1, keepdims=True)
    other_ranks = other_ranks - other_ranks.mean(axis=1, keepdims=True)
    scale = np.sqrt((ranks**2).sum(axis=1) * (other_ranks**2).sum(axis=1))
    products = (ranks * other_ranks).sum(axis=1)
    found = np.divide(products, scale, out=np.full(len(one), np.nan), where=scale > 0)
    found[~(np.isfinite(one).all(axis=1) & np.isfinite(other).all(axis=1))] = np.nan
    return found


def _first_block_without(same: np.ndarray) -> int | None:
    """Return the first block from which on image tokens no longer matter; None if they always do.

    That is: given the full answer so far, nearly all next tokens stay the likeliest from there,
    and from each later block.
    """
    if not np.isfinite(same).all():
        return None
    first = len(same) - 1  # no block at all
    while first > 0 and same[first - 1] >= SAME_TOKENS:
        first -= 1
    return int(first) if first < len(same) - 1 else None


def summary(
    correlations: Sequence[Mapping[str, Any]],
    no_matter: Mapping[str, int | None],
    num_changing: Mapping[str, int],
    num_blocks: int,
) -> list[str]:
    """Return what the figures say, a plain sentence each.

    num_changing: how many blocks, skipped alone, change each of the TARGETS.
    """
    lines = [
        _prediction(
            what,
            to_what,
            [each for each in correlations if each['target'] == target],
            num_changing[target],
            num_blocks,
        )
        for target, (what, to_what) in TARGETS.items()
    ]
    for policy, what in (
        ('frozen', 'no longer need to be processed'),
        ('unseen', 'no longer need to be seen'),
    ):
        first = no_matter[policy]
        if first is None:
            lines.append(f'There is no block from which on image tokens {what}.')
        else:
            lines.append(
                f'From block {first} of {num_blocks} on, image tokens {what}: given the full '
                f"model's answer so far, its next token stays the likeliest in at least "
                f'{100 * SAME_TOKENS:g} % of the steps.'
            )
    return lines


def _prediction(
    what: str,
    to_what: str,
    of_target: Sequence[Mapping[str, Any]],
    num_changing: int,
    num_blocks: int,
) -> str:
    """Return a sentence on what predicts a target; no claim that chance could explain."""
    known = [each for each in of_target if each['spearman'] is not None]
    if num_changing < LEAST_CHANGING or not known:
        return (
            f'Skipped alone, {num_changing} of {num_blocks} blocks make a difference to the '
            f'{to_what} on these images: too few to say what predicts it.'
        )
    best = max(known, key=lambda each: each['spearman'])
    value = best['spearman']
    names = ' and '.join(
        each['measure'].replace('_', ' ')
        for each in known
        if round(each['spearman'], 2) == round(value, 2)
    )
    if best['p'] > SIGNIFICANT:
        return (
            f'No cheap measure reliably predicts the {what} when one block is skipped: the best, '
            f'{names}, has a rank correlation of {value:.2f}, which chance explains (p = '
            f'{best["p"]:.2f}, corrected for {len(known)} measures).'
        )
    return (
        f'The {what} when one block is skipped is best predicted by {names}: rank correlation '
        f'{value:.2f} (p = {best["p"]:.3f}, corrected for {len(known)} measures).'
    )


def _plain(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None
