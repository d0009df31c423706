"""What a calibration found, as a skip list and as a record."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

from gmskip_ros.calibration.checkpoint import Checkpoint
from gmskip_ros.calibration.questions import Questions
from gmskip_ros.calibration.settings import CalibrationSettings
from gmskip_ros.datasets import Dataset
from gmskip_ros.machine import software
from gmskip_ros.skipping import OPERATING_POINTS, Prompt, Removal, SkipList, derive_operating_points
from gmskip_ros.tasks import jaccard

if TYPE_CHECKING:
    from gmskip_ros.vlm import Vlm

FORMAT = 'gmskip/calibration/1'


@dataclass(frozen=True)
class Calibration:
    """What came out: the skip list, and the figures of contract 'gmskip/calibration/1' as JSON."""

    skip_list: SkipList
    result: dict[str, Any]


def stability(found: Sequence[Calibration]) -> dict[str, Any]:
    """Return how alike the lists of several seeds are: per operating point their sets (ascending)
    and the mean Jaccard index |A & B| / |A | B| over all pairs, 1 for two empty sets."""
    points: dict[str, Any] = {}
    for name in OPERATING_POINTS:
        sets = [sorted(one.skip_list.blocks_at(name)) for one in found]
        pairs = [jaccard(set(map(str, a)), set(map(str, b))) for a, b in combinations(sets, 2)]
        points[name] = {'jaccard': sum(pairs) / len(pairs), 'sets': sets}
    seeds = [one.result['dataset']['calibration']['seed'] for one in found]
    return {'seeds': seeds, 'points': points}


def _fingerprint(
    vlm: Vlm,
    dataset: Dataset,
    settings: CalibrationSettings,
    questions: Sequence[Questions],
    metrics: Sequence[str],
    hashes: tuple[str, str],
) -> dict[str, Any]:
    """Return all that a result follows from; not the devices, processes, batches, the progress."""
    prompts = sorted({prompt for asked in questions for prompt in asked.prompts})
    return {
        'model': vlm.name,
        'weights (sha256)': vlm.weights_sha256(),  # a folder may hold a newer model by now
        'num_blocks': vlm.num_blocks,
        'template_sha256': vlm.template_sha256,
        'dtype': vlm.dtype,
        'dataset': dataset.name,
        'calibration pictures (sha256)': hashes[0],
        'test pictures (sha256)': hashes[1],
        'task': settings.task,
        'target': settings.target,
        'metric': list(metrics),
        'prompts': prompts if len(prompts) < 4 else _sha256('\n'.join(prompts)),
        'labels': [list(asked.task.labels) if asked.task else None for asked in questions],
        'synonyms': settings.synonyms,
        'max_new_tokens': [asked.max_new_tokens for asked in questions],
        'seed': settings.seed,
        **{f'search {name}': value for name, value in asdict(settings.search).items()},
        'intervals': list(settings.intervals),
        'exhaustive': settings.exhaustive,
        'latency_images': settings.latency_images,
        'software': software(),
    }


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()


def _options(settings: CalibrationSettings) -> dict[str, Any]:
    """Return the options that say how the search went about it, for the report."""
    search = settings.search
    options: dict[str, Any] = {'exhaustive': settings.exhaustive}
    if settings.intervals:
        return {'intervals': list(settings.intervals)}
    if search.method in ('gm-skip', 'one-shot'):
        options['tie_order'] = search.tie_order
    if search.method == 'gm-skip':
        options['abandon'] = search.abandon
    if search.method == 'positional':
        options['start'] = search.start
    if search.method == 'random':
        options['seed'] = search.seed
    if search.rounds is not None:
        options['rounds'] = search.rounds
    return options


def _key(blocks: Sequence[int]) -> str:
    return ','.join(map(str, blocks)) or 'nothing'


def _make_skip_list(
    vlm: Vlm,
    dataset: Dataset,
    settings: CalibrationSettings,
    questions: Sequence[Questions],
    metrics: Sequence[str],
    checkpoint: Checkpoint,
    prefixes: Sequence[Mapping[str, Any]],
    hashes: tuple[str, str],
) -> SkipList:
    search = settings.search
    scores = [prefix['calibration_score'] for prefix in prefixes]
    points = derive_operating_points(scores[0], scores[1:], search.min_score_ratio)
    if settings.intervals:
        blocks: dict[str, Any] = {
            'nested': False,
            'sets': {len(prefix['blocks']): tuple(prefix['blocks']) for prefix in prefixes[1:]},
            'operating_points': {
                name: len(prefixes[index]['blocks']) for name, index in points.items()
            },
        }
    else:
        order = prefixes[-1]['blocks']
        removed = (Removal(*pair) for pair in zip(order, scores[1:], strict=True))
        blocks = {'removed': tuple(removed), 'operating_points': points}
    asked = questions[0] if len(questions) == 1 else None
    prompt = asked.prompts[0] if asked and len(set(asked.prompts)) == 1 else None
    return SkipList(
        model=vlm.name,
        text_model_type=vlm.text_model_type,
        num_blocks=vlm.num_blocks,
        task=settings.task,
        target=settings.target,
        method=method_name(settings),
        metric=', '.join(metrics),
        prompt=Prompt(prompt, vlm.template_sha256, asked.max_new_tokens if asked else None),
        dtype=vlm.dtype,
        min_score_ratio=search.min_score_ratio,
        full_score=scores[0],
        calibration={
            'dataset': dataset.name,
            'images': questions[0].num_scored,
            'sha256': hashes[0],
            'seed': settings.seed,
        },
        created=checkpoint.created,
        software=software(),
        provenance=settings.command or 'gmskip_ros.calibration.run.calibrate',
        **blocks,
    )


def method_name(settings: CalibrationSettings) -> str:
    """Return what the skip list says of how it was found."""
    search = settings.search
    if settings.intervals:
        return 'fixed-interval'
    if search.method == 'positional':
        return f'positional-from-{search.start}'
    if search.method == 'random':
        return f'random-{search.seed}'
    return search.method if search.tie_order == 'backward' else f'{search.method}-forward-ties'
