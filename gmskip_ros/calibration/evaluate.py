"""Skip sets side by side on held-out images: the table that `gmskip evaluate` prints."""

from __future__ import annotations

import argparse
import datetime
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gmskip_ros.errors import UserError

if TYPE_CHECKING:
    from gmskip_ros.calibration.distributed import Ranks
    from gmskip_ros.calibration.questions import Questions, TaskSettings
    from gmskip_ros.calibration.settings import Listener
    from gmskip_ros.datasets import Dataset, Sample
    from gmskip_ros.skipping import SkipList
    from gmskip_ros.vlm import Vlm

FORMAT = 'gmskip/evaluation/1'
INTERVALS = (3, 4, 6, 7, 10)  # the paper's, for 32 blocks
METHOD_NAMES = {'gm-skip': 'GM-Skip'}
CIDER_NOTE = (
    'CIDEr: document frequencies are those of the references of these {images} images; do not '
    'compare it with CIDEr on another number of images.'
)


@dataclass(frozen=True)
class NamedSet:
    """A row of the table: a skip set and what it is called."""

    name: str
    blocks: tuple[int, ...]
    source: str | None = None  # the skip list's name or file


def without_calibration_pictures(
    dataset: Dataset, skip_lists: dict[str, SkipList], options: dict[str, Any], tell: Any
) -> Dataset:
    """Return the dataset without the pictures that a skip list was calibrated on.

    A list records its dataset's name, seed, number of pictures and their hash. The pictures that
    this gives with the task options in use are left out if their hash is the list's; if it is
    not, or if another dataset may share pictures with this one, that is told.
    """
    from gmskip_ros.datasets import may_share_pictures

    left_out: set[Path] = set()
    for name, skip_list in skip_lists.items():
        calibration = skip_list.calibration or {}
        calibrated_on = str(calibration.get('dataset'))
        if not may_share_pictures(calibrated_on, dataset.name):
            continue
        is_same = calibrated_on == dataset.name
        samples = calibration_samples(dataset, skip_list, options) if is_same else None
        if samples is None:
            tell(
                f'warning: {name} was calibrated on pictures of {calibrated_on}, and which ones '
                'cannot be told from these files and options: some of those evaluated may be '
                'among them'
            )
            continue
        paths = {sample.image_path for sample in samples}
        tell(f'{len(paths)} pictures that {name} was calibrated on are left out')
        left_out |= paths
    kept = tuple(sample for sample in dataset.samples if sample.image_path not in left_out)
    if not kept:
        raise UserError(
            f'{dataset.name}: every picture was calibrated on: evaluate on another split, or '
            'calibrate on fewer --images'
        )
    return replace(dataset, samples=kept)


def calibration_samples(
    dataset: Dataset, skip_list: SkipList, options: dict[str, Any]
) -> list[Sample] | None:
    """Return what a list was calibrated on, if its hash says so; None if it cannot be told."""
    from gmskip_ros.calibration.errors import CalibrationError
    from gmskip_ros.calibration.questions import choose_question_samples, task_settings
    from gmskip_ros.datasets import DatasetError, sample_hash
    from gmskip_ros.tasks import TaskError

    calibration = skip_list.calibration or {}
    images, seed = calibration.get('images'), calibration.get('seed')
    if not isinstance(images, int) or not isinstance(seed, int):
        return None
    try:
        settings = task_settings(skip_list.task, target=skip_list.target, **options)
        samples, _ = choose_question_samples(dataset, settings, images, 0, seed)
        is_same = sample_hash(samples) == calibration.get('sha256')
    except (CalibrationError, DatasetError, TaskError):
        return None
    return samples if is_same else None


def choose_sets(
    vlm: Vlm,
    skip_lists: dict[str, SkipList],
    points: Sequence[str],
    intervals: Sequence[int] | None,
) -> list[NamedSet]:
    """Return the rows of the table: full, fixed intervals, skip lists; equal sets are one row."""
    from gmskip_ros.calibration.methods.fixed import fixed_interval

    if intervals is None:
        intervals = [interval for interval in INTERVALS if interval < vlm.num_blocks - 1]
    named = [NamedSet('Full', ())]
    for interval in intervals:
        blocks = fixed_interval(vlm.num_blocks, interval)
        named.append(NamedSet(f'Fixed interval {interval}', blocks))
    for name, skip_list in skip_lists.items():
        method = skip_list.method
        method = METHOD_NAMES.get(method, method[:1].upper() + method[1:])
        of_file = f' ({Path(name).name})' if len(skip_lists) > 1 else ''
        for point in points:
            what = point.replace('_', ' ')
            if point.isdecimal():
                what = f'{point} block{"" if int(point) == 1 else "s"}'
            named.append(NamedSet(f'{method} {what}{of_file}', skip_list.blocks_at(point), name))
    rows: dict[frozenset[int], NamedSet] = {}
    for one in named:
        key = frozenset(one.blocks)
        if key in rows:
            first = rows[key]
            one = NamedSet(f'{first.name}, {one.name}', first.blocks, first.source or one.source)
        rows[key] = one
    return list(rows.values())


def evaluate_all(
    args: argparse.Namespace,
    vlm: Vlm,
    dataset: Dataset,
    settings: Sequence[TaskSettings],
    skip_lists: dict[str, SkipList],
    points: Sequence[str],
    intervals: Sequence[int] | None,
    ranks: Ranks,
    listener: Listener,
    tell: Any,
) -> dict[str, Any]:
    """Return the figures of every row as JSON values, in the form of evaluation.json."""
    from gmskip_ros.calibration.answering import Answerer
    from gmskip_ros.calibration.errors import CalibrationError
    from gmskip_ros.calibration.images import GIB, Pictures
    from gmskip_ros.calibration.measuring import Evaluator
    from gmskip_ros.calibration.questions import choose_question_samples, make_questions
    from gmskip_ros.calibration.run import choose_metrics
    from gmskip_ros.datasets import sample_hash
    from gmskip_ros.machine import machine, software

    sets = choose_sets(vlm, skip_lists, points, intervals)
    metrics = choose_metrics([one.name for one in settings], args.metric)
    _, samples = choose_question_samples(dataset, settings, 0, args.images, args.seed)
    paths = list(dict.fromkeys(sample.image_path for sample in samples))
    pictures = Pictures(vlm, paths, int(args.memory_gib * GIB), ranks)
    broken = pictures.encode_all(lambda done: listener.pictures(done, len(paths)))
    for reason in broken.values():
        tell(f'unreadable, left out: {reason}')
    unreadable = {paths[index] for index in broken}
    samples = [sample for sample in samples if sample.image_path not in unreadable]
    questions = [make_questions(samples, one, one.make_task(dataset)) for one in settings]
    if not min(asked.num_scored for asked in questions):
        raise CalibrationError(
            f'none of the pictures to be scored, of {len(paths)} chosen from {dataset.name}, can '
            'be read: put the pictures back'
        )
    for name, skip_list in skip_lists.items():
        for warning in list_warnings(vlm, skip_list, args, questions):
            tell(f'warning: {name}: {warning}')
    evaluator = Evaluator(
        questions,
        metrics,
        Answerer(vlm, pictures, ranks, batch_size=args.batch_size, memory_gib=args.memory_gib),
        {path: index for index, path in enumerate(paths)},
        args.seed,
        args.latency_images,
    )
    rows: list[dict[str, Any]] = []
    for done, one in enumerate(sets):
        listener.evaluations(done, len(sets))
        rows.append(
            {
                'name': one.name,
                'source': one.source,
                'blocks': list(one.blocks),
                'sparsity': len(one.blocks) / vlm.num_blocks,
                'evaluation': evaluator.evaluate(one.blocks),
            }
        )
    listener.evaluations(len(sets), len(sets))
    if not (rows[0]['evaluation']['score'] or 0) > 0:
        tell(
            'warning: the full model scores 0: is this the right task, label set or dataset for '
            'the model?'
        )
    now = datetime.datetime.now(datetime.timezone.utc)
    prompts = {prompt for asked in questions for prompt in asked.prompts}
    return {
        'format': FORMAT,
        'command': 'gmskip ' + shlex.join(args.arguments),
        'created': now.strftime('%Y-%m-%dT%H:%M:%SZ'),
        'model': vlm.name,
        'text_model_type': vlm.text_model_type,
        'num_blocks': vlm.num_blocks,
        'device': vlm.device,
        'dtype': vlm.dtype,
        'task': args.task,
        'target': args.target,
        'metric': ', '.join(metrics),
        'prompt': prompts.pop() if len(prompts) == 1 else None,
        'dataset': {
            'name': dataset.name,
            'notes': list(dataset.notes),
            'warnings': list(dataset.warnings),
            'test': {
                'images': len({sample.image_path for sample in samples}),
                'sha256': sample_hash(samples),
                'seed': args.seed,
            },
        },
        'unreadable': [str(path) for path in sorted(unreadable)],
        'score_note': CIDER_NOTE.format(images=rows[0]['evaluation']['images'])
        if any(name.endswith('cider') for name in rows[0]['evaluation']['scores'])
        else None,
        'rows': rows,
        'machine': machine(vlm.device),
        'software': software(),
    }


def list_warnings(
    vlm: Vlm, skip_list: SkipList, args: argparse.Namespace, questions: Sequence[Questions]
) -> list[str]:
    """Return one line for each way in which a list was calibrated for something else."""
    stated = skip_list.prompt
    prompts = {prompt for asked in questions for prompt in asked.prompts}
    lengths = {asked.max_new_tokens for asked in questions}
    warnings = skip_list.warnings_for(
        num_blocks=vlm.num_blocks,
        text_model_type=vlm.text_model_type,
        # Of several questions there is no one to compare: then as the list has it.
        prompt=prompts.pop() if len(prompts) == 1 else stated.text or '',
        template_sha256=vlm.template_sha256,
        dtype=vlm.dtype,
        max_new_tokens=lengths.pop() if len(lengths) == 1 else stated.max_new_tokens or 0,
        task=args.task,
        model=vlm.name,
    )
    if skip_list.target is not None and skip_list.target != args.target:
        used = 'no target' if args.target is None else f'target {args.target!r}'
        warnings.append(f'calibrated for target {skip_list.target!r}, evaluated with {used}')
    return warnings
