"""`gmskip evaluate`: what skip sets do on a dataset, beside the full model."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gmskip_ros.calibration.evaluate import INTERVALS, evaluate_all, without_calibration_pictures
from gmskip_ros.cli.options import (
    add_dataset_options,
    add_model_options,
    add_task_options,
    load_model,
    make_folder,
    split_list,
    split_numbers,
    task_options,
)
from gmskip_ros.errors import UserError
from gmskip_ros.tasks import TASK_NAMES

if TYPE_CHECKING:
    from gmskip_ros.skipping import SkipList

OPERATING_POINTS = 'high_performance,high_sparsity'


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
    from gmskip_ros.cli.progress import ProgressBars
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
