"""`gmskip replay`: had we run the skip branch alone, what would have changed on this drive?

Both branches on the frames of a bag that the node would have taken, without ROS; or two such runs
against each other.
"""

from __future__ import annotations

import argparse
import math
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gmskip_ros.errors import UserError
from gmskip_ros.signals import StopSignals

if TYPE_CHECKING:
    from gmskip_ros.pipeline.settings import Settings
    from gmskip_ros.runs.replay import ReplayOptions
    from gmskip_ros.skipping import SkipList

DISTROS = ('humble', 'jazzy')


def add_parser(subparsers: Any) -> None:
    """Add the command and its options to `gmskip`."""
    parser = subparsers.add_parser(
        'replay',
        help='both branches on the frames of a bag, or two such runs against each other',
        description='Run both branches on the frames of a bag that the node would have taken, and '
        'write answers, a bag of results and a report. With --against: compare two such runs.',
    )
    parser.add_argument(
        'source',
        metavar='BAG',
        help='a rosbag2 folder, .mcap or .db3 file; with --against a frames.jsonl, or its folder',
    )
    parser.add_argument(
        '--against', metavar='B.jsonl', help='compare the run BAG (a frames.jsonl) with this one'
    )
    parser.add_argument(
        '--out', type=Path, metavar='DIR', help='folder of the results (default: out/replay/BAG)'
    )
    parser.add_argument(
        '--overwrite', action='store_true', help='replace the results of an earlier run there'
    )
    frames = parser.add_argument_group('frames')
    frames.add_argument(
        '--topic', metavar='NAME', help='of the images (default: the only such topic)'
    )
    frames.add_argument(
        '--rate',
        type=float,
        metavar='HZ',
        help='frames answered per second of header time (default: 1)',
    )
    frames.add_argument(
        '--start',
        type=float,
        metavar='S',
        help="begin so long after the bag's first message (default: 0)",
    )
    frames.add_argument(
        '--duration', type=float, metavar='S', help='of the bag, from --start (default: all)'
    )
    frames.add_argument('--limit', type=int, metavar='N', help='end after N answered frames')
    frames.add_argument(
        '--distro',
        choices=DISTROS,
        help='whose message types a bag has that says nothing of them (default: jazzy)',
    )

    asked = parser.add_argument_group('what is asked')
    asked.add_argument(
        '--params-file',
        metavar='FILE',
        help="the node's parameters (model, tasks, prompts, labels, skip lists, rate ...); "
        'the options here win',
    )
    asked.add_argument('--model', help="'demo' (default), a folder or a hub id")
    asked.add_argument('--device', help='auto (default), cpu or cuda:N')
    asked.add_argument('--dtype', help='auto (default), float32, float16 or bfloat16')
    asked.add_argument(
        '--task', metavar='single_object,captioning', help='one or several (default: all three)'
    )
    asked.add_argument(
        '--labels', metavar='car,bus', help="a set's name, or labels (default: coda)"
    )
    asked.add_argument(
        '--skip-list',
        action='append',
        metavar='TASK=FILE',
        help='a file or a shipped name; once per task (default: the demo model has its own)',
    )
    asked.add_argument(
        '--operating-point',
        metavar='high_sparsity,8',
        help='one or several: high_performance (default), high_sparsity, numbers of blocks',
    )
    parser.add_argument('--no-progress', action='store_true', default=None, help='no progress bar')
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Replay or compare; 0, 1 if no frame was answered, 130 or 143 when stopped."""
    from gmskip_ros.bags.reading import BagError
    from gmskip_ros.pipeline.rows import ReportError
    from gmskip_ros.pipeline.settings import ParameterError

    try:
        if args.against is not None:
            return compare(args)
        if args.source.endswith('.jsonl'):
            raise UserError(f'{args.source} is a run: give another one with --against')
        return replay(args)
    except (BagError, ParameterError, ReportError) as error:
        raise UserError(str(error)) from error


def compare(args: argparse.Namespace) -> int:
    """Print and, with --out, write what changed between two runs; return 0."""
    useless = [
        name
        for name in (
            'topic',
            'rate',
            'start',
            'duration',
            'limit',
            'distro',
            'params_file',
            'model',
            'device',
            'dtype',
            'task',
            'labels',
            'skip_list',
            'operating_point',
            'no_progress',
        )
        if getattr(args, name) is not None
    ]
    if useless:
        names = ', '.join('--' + name.replace('_', '-') for name in useless)
        raise UserError(f'{names}: without use with --against, which asks no model: leave it out')
    if args.overwrite and args.out is None:
        raise UserError('--overwrite: nothing is written without --out: leave it out')

    from rich.console import Console

    from gmskip_ros.pipeline.rows import read_json_lines
    from gmskip_ros.report.comparison_report import (
        compare_runs,
        comparison_tables,
        write_comparison_report,
    )

    files = [_rows_file(args.source), _rows_file(args.against)]
    result = compare_runs(*(read_json_lines(file) for file in files))
    console = Console()
    for table in comparison_tables(result):
        console.print(table)
    if args.out is not None:
        from gmskip_ros.runs.files import check_room, clear_room

        folder = args.out.expanduser()
        if folder.resolve() in [file.parent.resolve() for file in files]:
            raise UserError(f'--out {folder}: has a report of its own: give another folder')
        results = ('changes.csv', 'comparison.json', 'report.html')
        check_room(folder, results, args.overwrite, files)
        clear_room(folder, results)
        try:
            write_comparison_report(result, folder, [str(file) for file in files])
        except OSError as error:
            raise UserError(f'--out {folder}: {error.strerror}: give another folder') from error
        print(f'report: {folder / "report.html"}')
    return 0


def _rows_file(text: str) -> Path:
    path = Path(text).expanduser()
    return path / 'frames.jsonl' if path.is_dir() else path


def replay(args: argparse.Namespace) -> int:
    """Replay one bag; see replay_run."""
    with StopSignals() as stop:
        try:
            return _replay(args, stop)
        except KeyboardInterrupt:
            print('gmskip: stopped', file=sys.stderr)
            return stop.exit_code


def _replay(args: argparse.Namespace, stop: StopSignals) -> int:
    from gmskip_ros.bags.reading import open_camera_bag

    # PyTorch is imported here, and a bag without an index, or one to unpack, takes its time.
    with stop.at_once():
        from rich.console import Console

        from gmskip_ros.cli.progress import ReplayBar
        from gmskip_ros.runs.files import check_room
        from gmskip_ros.runs.replay import RESULTS, replay_bag

        settings, skip_lists, options = _what_is_asked(args)
        path = Path(args.source).expanduser()
        folder = args.out.expanduser() if args.out else Path('out/replay') / _name_of(path)
        if set('?#%') & set(str(folder.absolute())):  # sqlite takes such a path for an address
            raise UserError(
                f'--out {folder}: no bag can be written below a ?, # or %: give another'
            )
        bag = open_camera_bag(path, args.topic, args.distro or 'jazzy')
    with bag:
        check_room(folder, RESULTS, args.overwrite, [path])
        console = Console(stderr=True)
        with ReplayBar(console, not args.no_progress) as bar:
            return replay_bag(bag, settings, skip_lists, options, folder, stop, console, bar)


def _what_is_asked(
    args: argparse.Namespace,
) -> tuple[Settings, dict[str, SkipList], ReplayOptions]:
    """Return the options, checked as far as that can be done without the model."""
    from gmskip_ros.pipeline.settings import load_skip_lists
    from gmskip_ros.runs.replay import ReplayOptions

    settings, points = _settings(args)
    skip_lists = load_skip_lists(settings)
    for point in points:
        for skip_list in skip_lists.values():
            skip_list.blocks_at(point)
    for name in ('start', 'duration'):
        value = getattr(args, name)
        if value is not None and not 0 <= value < math.inf:
            raise UserError(f'--{name} {value:g} must be a number of seconds of at least 0')
    if args.limit is not None and args.limit < 1:
        raise UserError(f'--limit {args.limit} must be at least 1')
    options = ReplayOptions(
        operating_points=points,
        start_s=args.start or 0.0,
        duration_s=args.duration,
        limit=args.limit,
        command='gmskip ' + shlex.join(args.arguments),
    )
    return settings, skip_lists, options


def _name_of(bag: Path) -> str:
    """Return a bag's name without what says that a file is one: drive.v2, drive_0.mcap: drive_0."""
    bag = bag.resolve()
    return (bag.name if bag.is_dir() else bag.name.partition('.')[0]) or 'bag'


def _settings(args: argparse.Namespace) -> tuple[Settings, list[str | int]]:
    """Return the node's settings as file and options give them, and the operating points.

    What is of no use offline (branches, transport, age, overload) keeps its default.
    """
    from gmskip_ros.pipeline.settings import settings_from, values_from_file
    from gmskip_ros.tasks import TASK_NAMES

    values = values_from_file(args.params_file) if args.params_file else {}
    values.pop('branches', None)  # both: that is what a replay is for
    options = {
        'model': args.model,
        'device': args.device,
        'dtype': args.dtype,
        'rate_hz': args.rate,
    }
    values.update({name: value for name, value in options.items() if value is not None})
    for name, text in (('tasks', args.task), ('labels', args.labels)):
        if text is not None:
            values[name] = [part.strip() for part in text.split(',')]
    for text in args.skip_list or ():
        task, _, name = text.partition('=')
        if task not in TASK_NAMES or not name:
            raise UserError(
                f'--skip-list {text!r}: give TASK=FILE, the task one of {", ".join(TASK_NAMES)}'
            )
        values[f'skip_list.{task}'] = name
    if args.operating_point is None:
        settings = settings_from(values)
        return settings, [settings.operating_point]
    points = []
    for text in args.operating_point.split(','):
        settings = settings_from({**values, 'operating_point': text.strip()})
        points.append(settings.operating_point)
    if len(set(points)) < len(points):
        raise UserError(f'--operating-point {args.operating_point} names one twice: leave it out')
    return settings, points
