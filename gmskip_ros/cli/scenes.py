"""`gmskip scenes`: rendered driving scenes in COCO's layout, a dataset without a download."""

from __future__ import annotations

import argparse
from typing import Any


def add_parser(subparsers: Any) -> None:
    """Add the command and its options to `gmskip`."""
    parser = subparsers.add_parser(
        'scenes', help="write rendered driving scenes as a dataset in COCO's layout"
    )
    parser.add_argument('--out', required=True, metavar='DIR', help='a new folder')
    parser.add_argument(
        '-n',
        dest='count',
        type=int,
        default=1000,
        metavar='N',
        help='number of scenes (default: 1000)',
    )
    parser.add_argument(
        '--seed', type=int, default=0, metavar='S', help='scene i has the seed S + i (default: 0)'
    )
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Write the scenes, or the missing ones, and return 0."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    from gmskip_ros.datasets import write_scenes

    columns = ('scenes', BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task('scenes', total=args.count)
        written = write_scenes(
            args.out, args.count, args.seed, lambda done: progress.update(task, completed=done)
        )
    state = 'written to' if written else 'already there in'
    print(f'{args.count} scenes {state} {args.out}')
    return 0
