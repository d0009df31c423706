"""`gmskip benchmark latency`: how long answers take, beside Hugging Face and beside the floor."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gmskip_ros.cli.options import add_load_options, load_options, locked, positive_int
from gmskip_ros.errors import UserError
from gmskip_ros.signals import StopSignals

if TYPE_CHECKING:  # it loads torch, which `gmskip --help` can do without
    from gmskip_ros.benchmarks.latency import LatencySettings

JSON_NAME, PICTURE_NAME = 'latency.json', 'latency.png'
MAX_SEED = (1 << 63) - 1  # of PyTorch's generators
QUICK = {'rounds': 2, 'length': 3, 'frames': 1, 'paced': 1, 'pixel_rounds': 2}


def add_parser(kinds: Any) -> None:
    """Add the command and its options to `gmskip benchmark`."""
    parser = kinds.add_parser(
        'latency', help="answers beside Hugging Face's, and beside the least time possible here"
    )
    add_load_options(
        parser,
        model=None,
        model_help="'demo', random:llava-cpu, random:llava-1.5-7b or random:llava-onevision-7b "
        '(seeded random weights, made in memory), a folder or a hub id (default: the first two)',
    )
    parser.add_argument(
        '--rounds',
        type=positive_int,
        metavar='N',
        help='how often each way of answering takes its turn (default: 10; on a slow machine '
        'fewer, at least 5)',
    )
    parser.add_argument(
        '--seed',
        type=int,
        default=0,
        metavar='S',
        help='determines random weights and the image (default: 0)',
    )
    parser.add_argument(
        '--no-rivals',
        action='store_true',
        help="do not load Hugging Face's copy of the weights to compare with",
    )
    parser.add_argument(
        '--no-compile',
        action='store_true',
        help="do not compare with Hugging Face compiled by PyTorch's compiler, which takes about "
        'half a minute per model',
    )
    parser.add_argument(
        '--quick',
        action='store_true',
        help='few, short answers, and no compiled rival: shows that everything else runs; its '
        'figures are of no use',
    )
    parser.add_argument(
        '--out',
        type=Path,
        default=Path('out/latency'),
        metavar='DIR',
        help=f'folder for {JSON_NAME} and {PICTURE_NAME}, replaced (default: out/latency)',
    )
    parser.add_argument('--no-progress', action='store_true', help='show no progress')
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Measure, write and print; return 0, or 130 when stopped.

    1 if a figure is below its floor, if an answer is not what it should be, or if a further model
    could not be measured. A bar that is missed is a result, not an error, and so is a rival that
    did not run.
    """
    if not 0 <= args.seed <= MAX_SEED:
        raise UserError(f'--seed {args.seed}: give a whole number from 0 to {MAX_SEED}')
    stop = StopSignals()
    with stop:
        folder = args.out.expanduser()
        try:
            with locked(folder), stop.at_once():
                result = measure_with_progress(args)
                write(result, folder)
        except KeyboardInterrupt:
            print('gmskip: stopped; nothing was written', file=sys.stderr)
            return stop.exit_code
    print_result(result, folder)
    for line in result['errors']:
        print(f'gmskip: wrong: {line}', file=sys.stderr)
    return 1 if result['errors'] else 0


def make_settings(args: argparse.Namespace) -> LatencySettings:
    """Return the settings of the benchmark."""
    from gmskip_ros.benchmarks.latency import LatencySettings

    counts: dict[str, int] = dict(QUICK) if args.quick else {}
    why_not_compiled = '--quick' if args.quick else '--no-compile' if args.no_compile else ''
    if args.rounds is not None:
        counts['rounds'] = args.rounds
    return LatencySettings(
        model=args.model,
        device=args.device,
        dtype=args.dtype,
        load_options=load_options(args),
        rivals=not args.no_rivals,
        why_not_compiled=why_not_compiled,
        undecided='few and short answers (--quick)' if args.quick else '',
        seed=args.seed,
        command='gmskip ' + shlex.join(args.arguments),
        **counts,
    )


def measure_with_progress(args: argparse.Namespace) -> dict[str, Any]:
    """Return the figures; show on a terminal what is being done."""
    from rich.console import Console
    from rich.markup import escape

    from gmskip_ros.benchmarks.latency import measure

    console = Console(stderr=True)
    if args.no_progress or not console.is_terminal:
        return measure(make_settings(args))
    with console.status('starting') as status:
        return measure(make_settings(args), lambda step: status.update(escape(step)))


def write(result: Mapping[str, Any], folder: Path) -> None:
    """Write the figures and the picture. Raises UserError."""
    from gmskip_ros.report.latency_report import draw_latency
    from gmskip_ros.report.writing import write_files

    content = json.dumps(result, indent=1, ensure_ascii=False) + '\n'
    try:
        write_files(
            folder,
            {
                JSON_NAME: content.encode('utf-8', 'backslashreplace'),
                PICTURE_NAME: draw_latency(result),
            },
        )
    except OSError as error:
        raise UserError(f'--out {folder}: {error.strerror}: give a different folder') from error


def print_result(result: Mapping[str, Any], folder: Path) -> None:
    """Print the tables, and where the files are."""
    from rich.console import Console

    from gmskip_ros.report.headlines import latency_headline
    from gmskip_ros.report.latency_report import latency_tables

    console = Console()
    if line := latency_headline(result):
        console.print(line, markup=False, highlight=False)
    for table in latency_tables(result):
        console.print(table)
        console.print()
    print(f'figures: {folder / JSON_NAME}, picture: {folder / PICTURE_NAME}')
