"""`gmskip evaluate`: what skip sets do on a dataset, beside the full model."""

from __future__ import annotations

import argparse
import datetime
import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gmskip_ros.cli.calibrate import split_list, split_numbers
from gmskip_ros.cli.dataset_options import (
    add_dataset_options,
    add_model_options,
    add_task_options,
    load_model,
    make_folder,
    task_options,
)
from gmskip_ros.errors import UserError
from gmskip_ros.tasks import TASK_NAMES

if TYPE_CHECKING:
    from gmskip_ros.calibration.distributed import Ranks
    from gmskip_ros.calibration.questions import Questions, TaskSettings
    from gmskip_ros.cli.calibrate_progress import ProgressBars
    from gmskip_ros.datasets import Dataset, Sample
    from gmskip_ros.skipping import SkipList
    from gmskip_ros.vlm import Vlm

FORMAT = 'gmskip/evaluation/1'
OPERATING_POINTS = 'high_performance,high_sparsity'
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


def add_parser(subparsers: Any) -> None:
    """Add the command and its options to `gmskip`."""
    parser = subparsers.add_parser(
        'evaluate', help='measure skip lists on a dataset, beside the full model'
    )
    add_task_options(parser)
    parser.add_argument(
        '--target',
        metavar='person',
        help='for single_object: pictures that show it, and as many that do not',
    )
    add_dataset_options(parser)
    parser.add_argument(
        '--skip-list',
        action='append',
        metavar='FILE',
        help="a file or a shipped name; may be repeated (default: the task's for demo, else none)",
    )
    parser.add_argument(
        '--operating-point',
        metavar='POINT',
        default=OPERATING_POINTS,
        help='of each skip list: high_performance, high_sparsity or a number of blocks, with '
        'commas between (default: the first two)',
    )
    parser.add_argument(
        '--interval',
        metavar='3,4',
        help="Skip-MLLM's fixed intervals to compare with, or none (default: "
        f'{",".join(map(str, INTERVALS))}, where the model has so many blocks)',
    )
    add_model_options(parser)
    parser.add_argument(
        '--latency-images',
        type=int,
        default=8,
        metavar='N',
        help='questions that are also answered alone and timed (default: 8; 0: not measured)',
    )
    parser.add_argument('--json', action='store_true', help='print one JSON object, no table')
    parser.add_argument(
        '--out', metavar='DIR', help='folder for evaluation.json, evaluation.csv and report.html'
    )
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Evaluate, print tables or JSON, write what was asked for, and return 0."""
    options = task_options(args)
    if args.latency_images < 0:
        raise UserError(f'--latency-images {args.latency_images} must be at least 0')
    intervals: Sequence[int] | None = None
    if args.interval is not None:
        is_none = args.interval.strip() == 'none'
        intervals = [] if is_none else split_numbers('--interval', args.interval)
    points = split_list('--operating-point', args.operating_point)
    skip_lists = load_skip_lists(args)
    folder = None if args.out is None else make_folder(Path(args.out).expanduser())

    from gmskip_ros.calibration.distributed import Ranks
    from gmskip_ros.calibration.questions import task_settings
    from gmskip_ros.cli.calibrate_progress import ProgressBars
    from gmskip_ros.datasets import open_dataset

    ranks = Ranks()
    settings = task_settings(args.task, target=args.target, **options)
    dataset = open_dataset(args.dataset, split=args.split, captions=args.captions)
    with ProgressBars(is_shown=ranks.rank == 0 and not args.no_progress) as bars:

        def tell(line: str) -> None:
            if ranks.rank == 0:
                bars.print(f'gmskip: {line}')

        for line in (*dataset.warnings, *dataset.notes):
            tell(f'{dataset.name}: {line}')
        kept = without_calibration_pictures(dataset, skip_lists, options, tell)
        vlm = load_model(args, ranks, bars.status)
        result = evaluate_all(
            args, vlm, kept, settings, skip_lists, points, intervals, ranks, bars, tell
        )
        ranks.disconnect()
    if ranks.rank == 0:
        write_and_print(args, result, folder)
    return 0


def load_skip_lists(args: argparse.Namespace) -> dict[str, SkipList]:
    """Return the skip lists asked for, or the demo model's own for the task, by name."""
    from gmskip_ros.skipping import load_skip_list

    names = args.skip_list
    if names is None:
        names = [f'demo_{args.task}'] if args.model == 'demo' and args.task in TASK_NAMES else []
    skip_lists = {}
    for name in names:
        skip_list = load_skip_list(name)
        if len(skip_list.phases) == 1:
            raise UserError(
                f'--skip-list {name}: leaves blocks out in {skip_list.phases[0]} only: gmskip '
                'evaluate measures lists for both phases'
            )
        skip_lists[name] = skip_list
    return skip_lists


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
    from gmskip_ros.calibration.search import fixed_interval

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
    bars: ProgressBars,
    tell: Any,
) -> dict[str, Any]:
    """Return the figures of every row as JSON values, in the form of evaluation.json."""
    from gmskip_ros.calibration.answering import GIB, Answerer, Pictures
    from gmskip_ros.calibration.errors import CalibrationError
    from gmskip_ros.calibration.evaluation import Evaluator
    from gmskip_ros.calibration.questions import choose_question_samples, make_questions
    from gmskip_ros.calibration.run import choose_metrics
    from gmskip_ros.datasets import sample_hash
    from gmskip_ros.machine import machine, software

    sets = choose_sets(vlm, skip_lists, points, intervals)
    metrics = choose_metrics([one.name for one in settings], args.metric)
    _, samples = choose_question_samples(dataset, settings, 0, args.images, args.seed)
    paths = list(dict.fromkeys(sample.image_path for sample in samples))
    pictures = Pictures(vlm, paths, int(args.memory_gib * GIB), ranks)
    broken = pictures.encode_all(lambda done: bars.pictures(done, len(paths)))
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
        bars.evaluations(done, len(sets))
        rows.append(
            {
                'name': one.name,
                'source': one.source,
                'blocks': list(one.blocks),
                'sparsity': len(one.blocks) / vlm.num_blocks,
                'evaluation': evaluator.evaluate(one.blocks),
            }
        )
    bars.evaluations(len(sets), len(sets))
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


def write_and_print(args: argparse.Namespace, result: dict[str, Any], folder: Path | None) -> None:
    """Write the files of --out, then print JSON or tables."""
    from rich.console import Console

    from gmskip_ros.files import write_atomically
    from gmskip_ros.report.evaluation_report import evaluation_tables, write_evaluation_report

    text = json.dumps(result, indent=1, ensure_ascii=False)
    if folder is not None:
        try:
            content = f'{text}\n'.encode('utf-8', 'backslashreplace')
            write_atomically(folder / 'evaluation.json', content)
            write_evaluation_report(result, folder)
        except OSError as error:
            raise UserError(
                f'{folder}: the report cannot be written ({error.strerror}): make room, or give '
                'another --out'
            ) from error
    if args.json:
        print(json.dumps(result, indent=1))
        return
    console = Console()
    for table in evaluation_tables(result):
        console.print(table)
        console.print()
    if folder is not None:
        print(f'report: {folder / "report.html"}')
