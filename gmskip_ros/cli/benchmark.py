"""`gmskip benchmark`: how much an optimisation gains on this machine.

`calibration`: the search of `gmskip calibrate` against exhaustive search. `latency`: answers beside
Hugging Face's and beside the least time that the machine allows.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gmskip_ros.cli import benchmark_latency
from gmskip_ros.cli.options import add_model_options, load_options, share, split_list
from gmskip_ros.errors import UserError
from gmskip_ros.numbers import numbers_in
from gmskip_ros.tasks import TASK_NAMES

if TYPE_CHECKING:  # it loads torch, which `gmskip --help` can do without
    from gmskip_ros.benchmarks.calibration import BenchmarkSettings


def add_parser(subparsers: Any) -> None:
    """Add the command and its options to `gmskip`."""
    parser = subparsers.add_parser('benchmark', help='measure speed on this machine')
    kinds = parser.add_subparsers(dest='kind', required=True, metavar='what')
    calibration = kinds.add_parser(
        'calibration', help='the search of `calibrate` against exhaustive search'
    )
    calibration.add_argument(
        '--tasks',
        default=','.join(TASK_NAMES),
        metavar='captioning,...',
        help='default: all three',
    )
    calibration.add_argument(
        '--metric',
        help="the score (default: each task's first, as in calibrate); several separated by commas",
    )
    calibration.add_argument(
        '--dataset', metavar='DIR', help='as in calibrate (default: rendered driving scenes)'
    )
    calibration.add_argument('--split', help='split of the dataset, if it has several')
    calibration.add_argument(
        '--images', type=int, default=12, metavar='N', help='number of images (default: 12)'
    )
    calibration.add_argument(
        '--seed',
        type=int,
        default=0,
        metavar='S',
        help='determines the choice of images (default: 0)',
    )
    calibration.add_argument(
        '--max-sparsity',
        type=share,
        default=0.9,
        metavar='S',
        help='stop at this sparsity, whatever the score (default: 0.9)',
    )
    calibration.add_argument('--rounds', type=int, metavar='N', help='stop after N removals')
    calibration.add_argument('--json', metavar='FILE', help='write all figures to this file')
    add_model_options(calibration)
    calibration.set_defaults(func=run)
    benchmark_latency.add_parser(kinds)


def run(args: argparse.Namespace) -> int:
    """Measure, print a table per task; return 0, or 1 if a search found a wrong result."""
    check_options(args)

    from rich.console import Console
    from rich.progress import Progress

    from gmskip_ros.benchmarks.calibration import measure

    console = Console(stderr=True)
    is_quiet = args.no_progress or not console.is_terminal
    with Progress(console=console, transient=True, disable=is_quiet) as bar:
        shown = bar.add_task('starting', total=None)

        def show(task: str, done: int, total: int) -> None:
            bar.update(shown, description=task, completed=done, total=total)

        report = measure(make_settings(args), show)
    print_report(report)
    if args.json is not None:
        write_json(report, args.json)
    errors = [error for figures in report['tasks'] for error in figures['errors']]
    for line in errors:
        print(f'gmskip: wrong: {line}', file=sys.stderr)
    return 1 if errors else 0


def check_options(args: argparse.Namespace) -> None:
    """Raise UserError for options that cannot be used, before anything takes long."""
    for name in split_list('--tasks', args.tasks):
        if name not in TASK_NAMES:
            raise UserError(f'--tasks: {name!r} is unknown; use some of {",".join(TASK_NAMES)}')
    for option in ('images', 'batch_size'):
        value = getattr(args, option)
        if value is not None and value < 1:
            raise UserError(f'--{option.replace("_", "-")} {value} must be at least 1')
    if not 0 < args.memory_gib < float('inf'):
        raise UserError(f'--memory-gib {args.memory_gib:g} must be above 0')
    if args.split is not None and args.dataset is None:
        raise UserError('--split needs a --dataset: remove it, or give one')
    if args.json is not None and not Path(args.json).expanduser().parent.is_dir():
        raise UserError(f'--json {args.json}: its folder does not exist: create it first')


def make_settings(args: argparse.Namespace) -> BenchmarkSettings:
    """Return the settings of the benchmark."""
    from gmskip_ros.benchmarks.calibration import BenchmarkSettings

    return BenchmarkSettings(
        tasks=tuple(split_list('--tasks', args.tasks)),
        metric=args.metric,
        model=args.model,
        device=args.device,
        dtype=args.dtype,
        load_options=load_options(args),
        dataset=args.dataset,
        split=args.split,
        images=args.images,
        seed=args.seed,
        max_sparsity=args.max_sparsity,
        rounds=args.rounds,
        batch_size=args.batch_size,
        memory_gib=args.memory_gib,
        command='gmskip ' + shlex.join(args.arguments),
    )


def write_json(report: Mapping[str, Any], path: str) -> None:
    """Write the figures to a file. Raises UserError."""
    from gmskip_ros.files import write_atomically

    content = json.dumps(report, indent=1, ensure_ascii=False) + '\n'
    try:
        write_atomically(path, content.encode('utf-8', 'backslashreplace'))
    except OSError as error:
        raise UserError(
            f'--json {path}: cannot be written ({error.strerror}): give a different file'
        ) from error


def print_report(report: Mapping[str, Any]) -> None:
    """Print a table per task."""
    from rich.console import Console
    from rich.table import Table

    from gmskip_ros.benchmarks.calibration import EXHAUSTIVE, WALK
    from gmskip_ros.report.formatting import demo_alert
    from gmskip_ros.report.headlines import search_headline

    console = Console()
    for line in (search_headline(report['tasks'], WALK), *demo_alert(report)):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    device = report['device']
    if device == 'cpu':
        device = f'{report["machine"]["cpu"]}, {report["threads"]} threads'
    console.print(
        f'{report["model"]}, {report["num_blocks"]} blocks, '
        f'{numbers_in(report["dtype"], report["quantization"])} on {device}; '
        f'{report["dataset"]["images"]} images of {report["dataset"]["name"]}',
        markup=False,
        highlight=False,
    )
    for task in report['tasks']:
        title = f'{task["task"]}, {len(task["methods"][EXHAUSTIVE]["rounds"])} rounds'
        table = Table(title=title, title_justify='left')
        table.add_column('method', no_wrap=True)
        for name in ('seconds', 'speed-up', 'token-blocks', 'share'):
            table.add_column(name, justify='right')
        for name, figures in task['methods'].items():
            table.add_row(
                name,
                f'{figures["seconds"]:.1f}',
                f'{figures["times_less"]:.2f}',
                f'{figures["token_blocks"]:,}',
                f'{figures["share"]:.3f}',
            )
        console.print(table)
        lines = [
            f'{task["metric"]} of the full model: {task["full_score"]:.4f}, '
            f'{task["full_share"]:.2f} of the best possible score',
            *task['notes'],
        ]
        for line in lines:
            console.print(line, markup=False, highlight=False, soft_wrap=True)
