"""Why blocks can be skipped: what each one does to the states, and what predicts its worth.

Cheap measures, from one pass of the full model: the cosine, the angle and the ratio of norms
between what enters and what leaves a block, by kind of token, and how much attention the answer
pays to the image. Beside them what skipping really does, one block at a time: the KL divergence of
the next token, and the change of the task's score (GM-Skip's first round). Their rank correlations
say which cheap measure predicts skippability, in the spirit of "Skip-It? Theoretical Conditions for
Layer Skipping in Vision-Language Models".
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gmskip_ros.calibration.answering import Answerer
from gmskip_ros.calibration.checkpoint import CheckpointFile
from gmskip_ros.calibration.data import choose_calibration_samples, in_view, load_data
from gmskip_ros.calibration.distributed import Ranks
from gmskip_ros.calibration.errors import CalibrationError
from gmskip_ros.calibration.methods.registry import get_method
from gmskip_ros.calibration.objective import choose_metrics, make_objective
from gmskip_ros.calibration.probing import Sample, angular_distance, values_per_sample
from gmskip_ros.calibration.run import fingerprint, load_checkpoint, resumed_scorer
from gmskip_ros.calibration.scoring import Scorer, chunks
from gmskip_ros.calibration.settings import CalibrationSettings, Listener
from gmskip_ros.datasets import Dataset
from gmskip_ros.machine import describe_run
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
TARGETS = ('kl', 'score_change')  # what skipping a block really does
BOOTSTRAP = 1000  # resamples of the images
SAME_TOKENS = 0.99  # of the answers, where image tokens no longer matter


@dataclass(frozen=True)
class _Table:
    """Figures of every sample: per measure an array (samples, blocks); NaN where there is no token.

    kl_frozen and kl_unseen, (samples, blocks + 1): from each block on, image tokens are left as
    they are, and are unseen as well; same_*: the share of the answer's tokens that stay the same.
    """

    blocks: Mapping[str, np.ndarray]
    image: Mapping[str, np.ndarray]


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
    if settings.task == JOINT:
        raise CalibrationError(
            'redundancy is measured for one task at a time: give a single --task'
        )
    dataset = in_view(vlm, dataset, ranks, listener)
    samples, _ = choose_calibration_samples(dataset, settings, None)
    data = load_data(vlm, dataset, settings, samples, [], ranks, listener, should_stop)
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
        scorer.score_full()
        changes = _score_changes(scorer)
        table = _table(scorer, listener)
    except Exception:  # not KeyboardInterrupt, which may come between two changes of the state
        scorer.on_save(scorer.state, True)
        raise
    record = _figures(table, changes, settings.seed)
    now = datetime.datetime.now(datetime.timezone.utc)
    return {
        'format': FORMAT,
        'command': settings.command,
        'created': now.strftime('%Y-%m-%dT%H:%M:%SZ'),
        **describe_run(vlm.name, vlm.device, vlm.dtype, vlm.num_blocks, vlm.image_fit),
        'max_image_tokens': vlm.max_image_tokens,
        'text_model_type': vlm.text_model_type,
        'task': settings.task,
        'target': settings.target,
        'metric': ', '.join(metrics),
        'match': settings.used_match,
        'dataset': {
            'name': dataset.name,
            'notes': list(dataset.notes),
            'warnings': list(dataset.warnings),
            'images': data.questions[0].num_scored,
            'sha256': data.sha256,
            'seed': settings.seed,
        },
        'unreadable': list(data.unreadable),
        'full_score': float(scorer.full_score),
        **record,
    }


def _score_changes(scorer: Scorer) -> np.ndarray:
    """Return what skipping each block adds to the score, per item: (items, blocks)."""
    blocks = range(scorer.num_blocks)
    for chunk in chunks(range(scorer.num_items)):
        scorer.answer_items(blocks, chunk, lambda: scorer.report(blocks, None, None))
    full = np.array([float(answer.contribution) for answer in scorer.state.full])
    without = np.array(
        [[float(answer.contribution) for answer in scorer.answers_of(block)] for block in blocks]
    )
    per_item = scorer.num_items / scorer.objective.parts[0].denominator
    return (without - full).T * per_item


def _table(scorer: Scorer, listener: Listener) -> _Table:
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
    alone = [SkipSet.of([block]) for block in range(num_blocks)]
    figures += [_divergence(full, _log_probabilities(sample, skip)) for skip in alone]
    for image_kv in ('input', 'none'):
        found = [
            _log_probabilities(sample, SkipSet(image=range(first, num_blocks), image_kv=image_kv))
            for first in range(num_blocks + 1)
        ]
        figures += [_divergence(full, each) for each in found]
        figures += [_same_tokens(full, each) for each in found]
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
        cosines.append(_mean(torch.cosine_similarity(one, other, dim=-1)))
        angles.append(_mean(angular_distance(one, other)))
        ratios.append(_mean(other.norm(dim=-1) / one.norm(dim=-1).clamp(min=1e-30)))
    attention = states.image_attention
    assert attention is not None
    return [*cosines, *angles, *ratios, _mean(attention)]


def _mean(values: Tensor) -> float:
    """Return the mean in double precision; NaN of nothing."""
    return float(values.double().mean())


def _log_probabilities(sample: Sample, skip: SkipSet) -> Tensor:
    """Return log P of the next token before each token of the full answer: (tokens, V)."""
    answerer = sample.answerer
    (logits,) = answerer.vlm.continuation_logits(
        [sample.features],
        [sample.prompt],
        [sample.token_ids],
        skip,
        should_stop=answerer.should_stop,
    )
    return logits.log_softmax(dim=-1)


def _divergence(full: Tensor, other: Tensor) -> float:
    """Return the mean KL(full || other) in nats over the answer's tokens; NaN for no token."""
    return _mean((full.exp() * (full - other)).sum(dim=-1))


def _same_tokens(full: Tensor, other: Tensor) -> float:
    """Return the share of positions whose likeliest token is the same; NaN for no token."""
    return _mean((full.argmax(dim=-1) == other.argmax(dim=-1)).float())


def _figures(table: _Table, changes: np.ndarray, seed: int) -> dict[str, Any]:
    """Return the means per block, the rank correlations, and what follows from them."""
    num_blocks = changes.shape[1]
    means = {name: _column_means(values) for name, values in table.blocks.items()}
    means['score_change'] = changes.mean(axis=0)
    image = {name: _column_means(values) for name, values in table.image.items()}
    correlations = _correlations(table, changes, seed)
    no_matter = {
        policy: _first_block_without(image[f'same_{policy}']) for policy in ('frozen', 'unseen')
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
        'summary': summary(correlations, no_matter, num_blocks),
    }


def _correlations(table: _Table, changes: np.ndarray, seed: int) -> list[dict[str, Any]]:
    """Return Spearman's rank correlation of every cheap measure with every target, over blocks.

    All are turned so that more means more skippable: 1 = the measure names the same order. The
    intervals (95 %) are percentiles over resampled images.
    """
    num_samples, num_blocks = len(table.blocks['kl']), changes.shape[1]
    rng = np.random.default_rng(seed)
    draws = rng.multinomial(num_samples, [1 / num_samples] * num_samples, size=BOOTSTRAP)
    # Row 0 is the samples as they are.
    weights = np.vstack([np.ones(num_samples), draws])
    ranked = {
        name: _skippability(name, _weighted_means(weights, values))
        for name, values in table.blocks.items()
    }
    ranked['depth'] = np.tile(np.arange(num_blocks, dtype=float), (len(weights), 1))
    # A score may have items of several weights per question; its first ones are the questions.
    ranked['score_change'] = _weighted_means(_item_weights(weights, len(changes)), changes)
    found = []
    for measure in CHEAP_MEASURES:
        for target in TARGETS:
            values = _spearman(ranked[measure], ranked[target])
            known = values[1:][np.isfinite(values[1:])]
            low, high = np.percentile(known, [2.5, 97.5]) if len(known) else (np.nan, np.nan)
            found.append(
                {
                    'measure': measure,
                    'target': target,
                    'spearman': _plain(values[0]),
                    'interval': None if not len(known) else [float(low), float(high)],
                }
            )
    return found


def _item_weights(weights: np.ndarray, num_items: int) -> np.ndarray:
    """Return the weights of items, which repeat the samples: (B, items)."""
    return np.tile(weights, (1, -(-num_items // weights.shape[1])))[:, :num_items]


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

    That is: nearly all tokens of the answers stay the same from there, and from each later block.
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
    num_blocks: int,
) -> list[str]:
    """Return what the figures say, a plain sentence each."""
    lines = []
    for target, what in (('kl', 'next-token KL'), ('score_change', "change of the task's score")):
        known = [
            each
            for each in correlations
            if each['target'] == target and each['spearman'] is not None
        ]
        if not known:
            lines.append(f'The {what} of the blocks does not differ, so nothing predicts it.')
            continue
        best = max(known, key=lambda each: each['spearman'])
        low, high = best['interval'] or (None, None)
        name = best['measure'].replace('_', ' ')
        if low is None or low <= 0:
            lines.append(
                f'No cheap measure reliably predicts the {what} when one block is skipped: the '
                f'best, {name}, has a rank correlation of {best["spearman"]:.2f}, and its interval '
                'includes 0.'
            )
        else:
            lines.append(
                f'The {what} when one block is skipped is best predicted by {name}: rank '
                f'correlation {best["spearman"]:.2f} (95 % interval {low:.2f} to {high:.2f}).'
            )
    for policy, what in (
        ('frozen', 'no longer need to be processed'),
        ('unseen', 'no longer need to be seen'),
    ):
        first = no_matter[policy]
        if first is None:
            lines.append(f'There is no block from which on image tokens {what}.')
        else:
            lines.append(
                f'From block {first} of {num_blocks} on, image tokens {what}: at least '
                f'{100 * SAME_TOKENS:g} % of the tokens of the answers stay the same.'
            )
    return lines


def _plain(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None
