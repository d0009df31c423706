"""What a calibration found, as a skip list and as a record; built from plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

from gmskip_ros.calibration.baseline import list_baselines
from gmskip_ros.calibration.settings import CalibrationSettings
from gmskip_ros.calibration.trajectory import ChosenSets, Round, round_record, warn_of_ties
from gmskip_ros.machine import describe_run, software
from gmskip_ros.skipping import OPERATING_POINTS, Prompt, Removal, SkipList
from gmskip_ros.tasks import jaccard

if TYPE_CHECKING:
    from gmskip_ros.calibration.guidance import Guidance

FORMAT = 'gmskip/calibration/1'


@dataclass(frozen=True)
class Facts:
    """What the skip list and the record state besides settings and sets.

    `dataset` is the record's entry; `options` are those that determined the search.
    """

    model: str
    text_model_type: str
    num_blocks: int
    device: str
    dtype: str
    quantization: str
    image_fit: str
    max_image_tokens: int
    dataset: Mapping[str, Any]
    unreadable: tuple[str, ...]
    metrics: tuple[str, ...]
    labels: Sequence[str]
    prompt: Prompt
    method: str
    phases: tuple[str, ...]
    options: Mapping[str, Any]
    created: str
    near_tie_margin: float | None = None


@dataclass(frozen=True)
class Calibration:
    """The skip list, and the figures of format 'gmskip/calibration/1' as JSON values."""

    skip_list: SkipList
    result: dict[str, Any]


def stability(calibrations: Sequence[Calibration]) -> dict[str, Any]:
    """Return how alike the lists of several seeds are.

    Per operating point: their sets (ascending) and the mean Jaccard index |A & B| / |A | B| over
    all pairs, 1 for two empty sets.
    """
    points: dict[str, Any] = {}
    for name in OPERATING_POINTS:
        sets = [sorted(found.skip_list.blocks_at(name)) for found in calibrations]
        pairs = [jaccard(set(map(str, a)), set(map(str, b))) for a, b in combinations(sets, 2)]
        points[name] = {'jaccard': sum(pairs) / len(pairs), 'sets': sets}
    seeds = [found.result['dataset']['calibration']['seed'] for found in calibrations]
    return {'seeds': seeds, 'points': points}


def make_calibration(
    facts: Facts,
    settings: CalibrationSettings,
    chosen: ChosenSets,
    tests: Sequence[Mapping[str, Any] | None],
    rounds: Sequence[Round],
    guidance: Sequence[Guidance],
    forced: str | None = None,
    baselines: Mapping[str, Any] | None = None,
    test_baselines: Mapping[str, Any] | None = None,
) -> Calibration:
    """Return the skip list and the record. `tests`: each chosen set's figures on test images.

    `forced`: of guidance.refuse. The baselines are those of calibration.baseline, on calibration
    and on test images.
    """
    warnings = [*chosen.warnings, *tie_warnings(rounds)]
    skip_list = _make_skip_list(facts, settings, chosen, warnings, forced, baselines)
    result = {
        'format': FORMAT,
        'command': settings.command,
        'created': facts.created,
        **describe_run(
            facts.model,
            facts.device,
            facts.dtype,
            facts.quantization,
            facts.num_blocks,
            facts.image_fit,
        ),
        'max_image_tokens': facts.max_image_tokens,
        'text_model_type': facts.text_model_type,
        'task': settings.task,
        'target': settings.target,
        'metric': skip_list.metric,
        'match': skip_list.match,
        'labels': list(facts.labels),
        'prompt': skip_list.prompt.text,
        'rendered_prompt': skip_list.prompt.rendered,
        'method': skip_list.method,
        'nested': skip_list.nested,
        'phases': list(settings.search.phases),
        'kv': settings.search.kv,
        'protect': list(settings.search.protect),
        'sparsities': list(settings.search.sparsities),
        'options': dict(facts.options),
        'min_score_ratio': settings.search.min_score_ratio,
        'max_sparsity': settings.search.max_sparsity,
        'stopped_by': chosen.stopped_by,
        'near_tie_margin': facts.near_tie_margin,
        'forced': skip_list.forced,
        'warnings': list(skip_list.cautions),
        'ranking': None
        if chosen.ranking is None
        else [{'block': block, 'value': value} for block, value in chosen.ranking],
        'objective': None if chosen.objective is None else dict(chosen.objective),
        'dataset': dict(facts.dataset),
        'unreadable': list(facts.unreadable),
        'full_score': skip_list.full_score,
        'guidance': [part.to_json() for part in guidance],
        'baselines': None if baselines is None else dict(baselines),
        'test_baselines': None if test_baselines is None else dict(test_baselines),
        'rounds': [round_record(number, done) for number, done in enumerate(rounds, start=1)],
        'operating_points': dict(skip_list.operating_points or {}),
        'prefixes': [
            {
                'blocks': list(scored.blocks),
                'calibration_score': scored.score,
                'length': len(scored.blocks),
                'sparsity': len(scored.blocks) / facts.num_blocks,
                'test': test,
            }
            for scored, test in zip(chosen.sets, tests, strict=True)
        ],
        'stability': None,
    }
    return Calibration(skip_list, result)


def tie_warnings(rounds: Sequence[Round]) -> list[str]:
    """Return a line if there are rounds in which every candidate scored the same.

    It also names rounds in which candidates were pruned that could have scored the same as the best
    one: how they would have scored is unknown.
    """
    tied: list[int] = []
    pruned: list[int] = []
    for number, done in enumerate(rounds, start=1):
        if len(done.cells) > 1 and len({cell.score for cell in done.cells}) == 1:
            is_known = all(cell.is_exact for cell in done.cells)
            (tied if is_known else pruned).append(number)
    return warn_of_ties(tied, pruned)


def _make_skip_list(
    facts: Facts,
    settings: CalibrationSettings,
    chosen: ChosenSets,
    warnings: Sequence[str],
    forced: str | None,
    baselines: Mapping[str, Any] | None,
) -> SkipList:
    search = settings.search
    full, *others = chosen.sets
    blocks: dict[str, Any]  # the operating points follow from the scores
    if chosen.nested:
        blocks = {'removed': tuple(Removal(scored.blocks[-1], scored.score) for scored in others)}
    else:
        blocks = {
            'nested': False,
            'sets': {len(scored.blocks): scored.blocks for scored in others},
            'set_scores': {len(scored.blocks): scored.score for scored in others},
        }
    return SkipList(
        model=facts.model,
        text_model_type=facts.text_model_type,
        num_blocks=facts.num_blocks,
        task=settings.task,
        target=settings.target,
        method=facts.method,
        phases=facts.phases,
        metric=', '.join(facts.metrics),
        prompt=facts.prompt,
        dtype=facts.dtype,
        quantization=facts.quantization,
        image_fit=facts.image_fit,
        max_image_tokens=facts.max_image_tokens,
        match=settings.used_match,
        kv=search.kv if search.phases == ('prefill',) else None,
        protect=search.protect if any(search.protect) else None,
        min_score_ratio=search.min_score_ratio,
        full_score=full.score,
        calibration={
            'dataset': facts.dataset['name'],
            **{name: facts.dataset['calibration'][name] for name in ('images', 'sha256', 'seed')},
        },
        created=facts.created,
        software=software(),
        near_tie_margin=facts.near_tie_margin,
        forced=forced,
        baselines=list_baselines(baselines),
        warnings=tuple(warnings),
        provenance=settings.command or 'gmskip_ros.calibration.run.calibrate',
        **blocks,
    )
