"""`gmskip scenes`: rendered driving scenes, as a dataset in COCO's layout or as a bag."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from gmskip_ros.cli.options import positive_float
from gmskip_ros.errors import UserError


def add_parser(subparsers: Any) -> None:
    """Add the command and its options to `gmskip`."""
    parser = subparsers.add_parser(
        'scenes',
        help="write rendered driving scenes as a dataset in COCO's layout, or as a bag",
        description='Write rendered driving scenes: with --out as a dataset, with --bag as a camera'
        ' to replay.',
    )
    parser.add_argument(
        '--out', metavar='DIR', help="a new folder, for the scenes in COCO's layout"
    )
    parser.add_argument(
        '--bag', type=Path, metavar='DIR', help='a new folder, for the scenes as a ROS 2 bag'
    )
    parser.add_argument(
        '--rate-hz',
        type=positive_float,
        default=10.0,
        metavar='HZ',
        help='frames per second of the bag (default: 10)',
    )
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
    """Write the scenes, or the missing ones, and return 0. Raises UserError."""
    if args.out is None and args.bag is None:
        raise UserError('nothing to write: give --out DIR for a dataset, or --bag DIR')
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    from gmskip_ros.datasets import write_scenes
    from gmskip_ros.runs.scene_bag import write_scene_bag

    columns = ('scenes', BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task('scenes', total=args.count)

        def show(done: int) -> None:
            progress.update(task, completed=done)

        if args.out is not None:
            is_new = write_scenes(args.out, args.count, args.seed, show)
            state = 'written to' if is_new else 'already there in'
            print(f'{args.count} scenes {state} {args.out}')
        if args.bag is not None:
            topic = write_scene_bag(args.bag, args.count, args.seed, args.rate_hz, show)
            print(f'{args.count} scenes written to {args.bag}, topic {topic}')
    return 0
