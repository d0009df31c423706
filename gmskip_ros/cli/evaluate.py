"""`gmskip evaluate`: compare skip sets with the full model on a dataset."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gmskip_ros.calibration.methods.fixed_interval import INTERVALS_TEXT, parse_intervals
from gmskip_ros.calibration.settings import GENERIC, EvaluationSettings
from gmskip_ros.cli.options import (
    add_dataset_options,
    add_model_options,
    add_task_options,
    load_model,
    lock_folder,
    make_folder,
    open_dataset_of,
    shared_settings,
    split_list,
)
from gmskip_ros.errors import UserError
from gmskip_ros.files import FolderLock
from gmskip_ros.skipping import OPERATING_POINTS
from gmskip_ros.tasks import TASK_NAMES

if TYPE_CHECKING:
    from gmskip_ros.skipping import SkipList


def add_parser(subparsers: Any) -> None:
    """Add the command and its options to `gmskip`."""
    parser = subparsers.add_parser(
        'evaluate', help='compare skip lists with the full model on a dataset'
    )
    add_task_options(parser)
    parser.add_argument(
        '--target',
        metavar='person',
        help='for single_object and presence: use images that show it, and as many that do not',
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
        default=','.join(OPERATING_POINTS),
        help='of each skip list: high_performance, high_sparsity or a number of blocks, separated '
        'by commas (default: the first two)',
    )
    parser.add_argument(
        '--interval',
        metavar='3,4',
        help=f"Skip-MLLM's fixed intervals to compare with, or none (default: {INTERVALS_TEXT}, "
        'as far as the model has enough blocks)',
    )
    add_model_options(parser)
    parser.add_argument(
        '--latency-images',
        type=int,
        default=8,
        metavar='N',
        help='questions that are also answered alone and timed (default: 8; 0: not measured)',
    )
    parser.add_argument(
        '--json', action='store_true', help='print one JSON object instead of a table'
    )
    parser.add_argument(
        '--out',
        metavar='DIR',
        help='folder for evaluation.json, evaluation.csv, answers.jsonl and report.html',
    )
    parser.add_argument(
        '--answers',
        metavar='DIR',
        help="folder for every row's answers, as CODA-LM's and LLaVA's judges read them",
    )
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Evaluate, print tables or JSON, write the files of --out, and return 0."""
    settings = make_settings(args)
    skip_lists = load_skip_lists(args)
    folder = None if args.out is None else make_folder(Path(args.out).expanduser())

    from gmskip_ros.calibration.answer_files import AnswerFiles
    from gmskip_ros.calibration.answer_log import AnswerLog
    from gmskip_ros.calibration.choosing import in_view, value_of_first
    from gmskip_ros.calibration.distributed import Ranks
    from gmskip_ros.calibration.evaluate import (
        answer_all,
        evaluate_all,
        without_calibration_images,
    )
    from gmskip_ros.cli.progress import ProgressBars

    ranks = Ranks()
    is_shown = ranks.rank == 0 and not args.no_progress
    with FolderLock() as lock, ProgressBars(is_shown) as bars:
        if folder is not None and ranks.rank == 0:
            lock_folder(folder, lock)
        dataset = open_dataset_of(args, ranks)

        def print_line(line: str) -> None:
            if ranks.rank == 0:
                bars.print(f'gmskip: {line}')

        for line in (*dataset.warnings, *dataset.notes):
            print_line(f'{dataset.name}: {line}')
        vlm = load_model(args, ranks, bars.status)
        for warning in vlm.warnings:
            print_line(f'warning: {warning}')
        if ranks.rank == 0:
            # What a list was calibrated on is known by the labels in view as well.
            dataset = in_view(vlm, dataset, ranks, bars)
            dataset = without_calibration_images(dataset, skip_lists, settings, print_line)
        files = None
        if args.answers is not None:
            stem = Path(args.dataset).expanduser().absolute().stem
            files = AnswerFiles(Path(args.answers).expanduser(), stem, vlm.name)
        common = (vlm, dataset, settings, skip_lists, ranks, bars, print_line)
        is_scored = args.task != GENERIC or value_of_first(
            ranks, lambda: any(sample.references for sample in dataset.samples)
        )
        result = None
        if is_scored or files is None:
            log = None if folder is None else AnswerLog(folder, resumes=False)
            result = evaluate_all(*common, files, log)
        else:
            answer_all(*common, files)
        ranks.disconnect()
        bars.stop()
        if ranks.rank == 0:
            if result is not None:
                write_and_print(args, result, folder)
            elif args.json or folder is not None:
                print_line('nothing can be scored: no question has an answer to compare with')
            for path in files.written if files else ():
                print(f'answers: {path}', file=sys.stderr if args.json else sys.stdout)
    return 0


def make_settings(args: argparse.Namespace) -> EvaluationSettings:
    """Return the settings. Raises UserError for options that cannot be used."""
    shared = shared_settings(args)
    if args.latency_images < 0:
        raise UserError(f'--latency-images {args.latency_images} must be at least 0')
    intervals: tuple[int, ...] | None = None
    if args.interval is not None:
        intervals = () if args.interval.strip() == 'none' else parse_intervals(args.interval)
    return EvaluationSettings(
        **shared,
        target=args.target,
        latency_images=args.latency_images,
        operating_points=tuple(split_list('--operating-point', args.operating_point)),
        intervals=intervals,
    )


def load_skip_lists(args: argparse.Namespace) -> dict[str, SkipList]:
    """Return the skip lists asked for, or the demo model's own for the task, by name."""
    from gmskip_ros.skipping import load_skip_list

    names = args.skip_list
    if names is None:
        names = [f'demo_{args.task}'] if args.model == 'demo' and args.task in TASK_NAMES else []
    return {name: load_skip_list(name) for name in names}


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
                f'{folder}: the report cannot be written ({error.strerror}): free some space, or '
                'give a different --out'
            ) from error
    if args.json:
        print(json.dumps(result, indent=1))
        return
    console = Console()
    print(result['dataset']['chosen'])
    for table in evaluation_tables(result):
        console.print(table)
        console.print()
    if folder is not None:
        print(f'report: {folder / "report.html"}')
