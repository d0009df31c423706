"""`gmskip benchmark`: what an optimisation is worth on this machine.

`calibration`: the search of `gmskip calibrate` against the plain way to the same result.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gmskip_ros.benchmarks.calibration import EXHAUSTIVE, WHOLE, measure
from gmskip_ros.cli.options import add_model_options, split_list
from gmskip_ros.errors import UserError
from gmskip_ros.tasks import TASK_NAMES

if TYPE_CHECKING:
    pass


def add_parser(subparsers: Any) -> None:
    """Add the command and its options to `gmskip`."""
    parser = subparsers.add_parser('benchmark', help='measure speed on this machine')
    kinds = parser.add_subparsers(dest='kind', required=True, metavar='what')
    calibration = kinds.add_parser(
        'calibration', help='the search of `calibrate` against the plain way to the same result'
    )
    calibration.add_argument(
        '--tasks',
        default=','.join(TASK_NAMES),
        metavar='captioning,...',
        help='default: all three',
    )
    calibration.add_argument(
        '--metric',
        help="the score (default: each task's first, as calibrate's); several: with commas between",
    )
    calibration.add_argument(
        '--dataset', metavar='DIR', help='as for calibrate (default: rendered driving scenes)'
    )
    calibration.add_argument('--split', help='of the dataset, where it has several')
    calibration.add_argument(
        '--images', type=int, default=12, metavar='N', help='pictures (default: 12)'
    )
    calibration.add_argument(
        '--seed', type=int, default=0, metavar='S', help='chooses the pictures (default: 0)'
    )
    calibration.add_argument(
        '--max-sparsity',
        type=float,
        default=0.9,
        metavar='S',
        help='stop at this share of the blocks, whatever the score (default: 0.9)',
    )
    calibration.add_argument('--rounds', type=int, metavar='N', help='stop after N removals')
    calibration.add_argument(
        '--threads', type=int, metavar='N', help="of the CPU, for one answer (default: torch's)"
    )
    calibration.add_argument('--json', metavar='FILE', help='write all figures here')
    add_model_options(calibration)
    calibration.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Measure, print a table per task; 0, or 1 if a search did not find what it has to."""
    from gmskip_ros.calibration.errors import CalibrationError
    from gmskip_ros.datasets import DatasetError

    tasks = split_list('--tasks', args.tasks)
    for name in tasks:
        if name not in TASK_NAMES:
            raise UserError(f'--tasks: {name!r} is unknown; use some of {",".join(TASK_NAMES)}')
    for option in ('images', 'batch_size', 'threads'):
        value = getattr(args, option)
        if value is not None and value < 1:
            raise UserError(f'--{option.replace("_", "-")} {value} must be at least 1')
    if not 0 < args.memory_gib < float('inf'):
        raise UserError(f'--memory-gib {args.memory_gib:g} must be above 0')
    if args.split is not None and args.dataset is None:
        raise UserError('--split is of a --dataset: leave it out without one')
    if args.json is not None and not Path(args.json).expanduser().parent.is_dir():
        raise UserError(f'--json {args.json}: its folder is not there: make it first')
    try:
        report = measure(args, tasks)
    except (CalibrationError, DatasetError) as error:
        raise UserError(str(error)) from error
    print_report(report)
    if args.json is not None:
        write_json(report, args.json)
    errors = [error for one in report['tasks'] for error in one['errors']]
    for line in errors:
        print(f'gmskip: wrong: {line}', file=sys.stderr)
    return 1 if errors else 0


def write_json(report: Mapping[str, Any], path: str) -> None:
    """Write the figures to a file, as a whole."""
    from gmskip_ros.files import write_atomically

    content = json.dumps(report, indent=1, ensure_ascii=False) + '\n'
    try:
        write_atomically(path, content.encode('utf-8', 'backslashreplace'))
    except OSError as error:
        raise UserError(
            f'--json {path}: cannot be written ({error.strerror}): give another file'
        ) from error


def print_report(report: Mapping[str, Any]) -> None:
    """Print a table per task, for people."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    device = report['device']
    if device == 'cpu':
        device = f'{report["machine"]["cpu"]}, {report["threads"]} threads'
    console.print(
        f'{report["model"]}, {report["num_blocks"]} blocks, {report["dtype"]} on {device}; '
        f'{report["dataset"]["images"]} pictures of {report["dataset"]["name"]}',
        markup=False,
        highlight=False,
    )
    for one in report['tasks']:
        title = f'{one["task"]}, {len(one["methods"][EXHAUSTIVE]["rounds"])} rounds'
        table = Table(title=title, title_justify='left')
        table.add_column('method', no_wrap=True)
        for name in ('seconds', 'times less', 'token-blocks', 'share'):
            table.add_column(name, justify='right')
        for name, figures in one['methods'].items():
            table.add_row(
                name,
                f'{figures["seconds"]:.1f}',
                f'{figures["times_less"]:.2f}',
                f'{figures["token_blocks"]:,}',
                f'{figures["share"]:.3f}',
            )
        console.print(table)
        lines = [
            f'{one["metric"]} of the full model: {one["full_score"]:.4f}, '
            f'{one["full_share"]:.2f} of the best score that any answers could have'
        ]
        lines += one['notes']
        if one['goals'] is None:
            lines.append(f'goals: not judged, as they are for all rounds up to sparsity {WHOLE:g}')
        for goal in one['goals'] or ():
            verdict = 'yes' if goal['is_reached'] else 'NO'
            kind = (
                'at least {:g} times less time'
                if goal['figure'] == 'times_less'
                else ('at most {:g} of the token-blocks')
            )
            lines.append(f'{goal["method"]}, {kind.format(goal["goal"])}: {verdict}')
        for line in lines:
            console.print(line, markup=False, highlight=False, soft_wrap=True)
