"""`gmskip replay`: what would have changed on this drive, had only the skip branch run?

Runs both branches on the frames of a bag that the node would have taken, without ROS; or compares
two such runs.
"""

from __future__ import annotations

import argparse
import math
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gmskip_ros.cli.options import LOAD_OPTIONS, add_load_options, add_match_option, locked
from gmskip_ros.errors import UserError
from gmskip_ros.signals import StopSignals

if TYPE_CHECKING:
    from gmskip_ros.bags.reading import CameraBag
    from gmskip_ros.cli.progress import Bars
    from gmskip_ros.pipeline.settings import Settings
    from gmskip_ros.runs.replay import ReplayOptions, ReplayOutcome
    from gmskip_ros.skipping import SkipList

DISTROS = ('humble', 'jazzy')
COUNTER_LABELS = {  # of Replay.counts
    'answered': 'answered',
    'gated': 'not due',
    'out_of_order': 'out of order',
    'unreadable': 'unreadable',
    'undecodable': 'undecodable',
    'failed': 'failed',
    'resets': 'after a jump back in time',
}


def add_parser(subparsers: Any) -> None:
    """Add the command and its options to `gmskip`."""
    parser = subparsers.add_parser(
        'replay',
        help='run both branches on the frames of a bag, or compare two such runs',
        description='Run both branches on the frames of a bag that the node would have taken, and '
        'write the answers, a bag of results and a report. With --against: compare two such runs.',
    )
    parser.add_argument(
        'source',
        metavar='BAG',
        help='a rosbag2 folder, .mcap or .db3 file; with --against a frames.jsonl or its folder',
    )
    parser.add_argument(
        '--against', metavar='B.jsonl', help='compare the run BAG (a frames.jsonl) with this run'
    )
    parser.add_argument(
        '--out', type=Path, metavar='DIR', help='folder for the results (default: out/replay/BAG)'
    )
    parser.add_argument(
        '--overwrite', action='store_true', help='replace the results of an earlier run in it'
    )
    frames = parser.add_argument_group('frames')
    frames.add_argument(
        '--topic',
        metavar='NAME',
        help="camera topic (default: the only one, besides the node's own debug/image)",
    )
    frames.add_argument(
        '--rate',
        type=float,
        metavar='HZ',
        help='frames to answer per second of header time (default: 1)',
    )
    frames.add_argument(
        '--start',
        type=float,
        metavar='S',
        help="start this many seconds after the bag's first message (default: 0)",
    )
    frames.add_argument(
        '--duration', type=float, metavar='S', help='seconds to replay from --start (default: all)'
    )
    frames.add_argument('--limit', type=int, metavar='N', help='stop after N answered frames')
    frames.add_argument(
        '--distro',
        choices=DISTROS,
        help='message definitions to assume when the bag contains none (default: jazzy)',
    )

    questions = parser.add_argument_group('model and questions')
    questions.add_argument(
        '--params-file',
        metavar='FILE',
        help="the node's parameters (model, tasks, prompts, labels, skip lists, rate ...); "
        'options given here take precedence',
    )
    add_load_options(questions, has_defaults=False)
    questions.add_argument(
        '--task', metavar='single_object,captioning', help='one or more tasks (default: all three)'
    )
    questions.add_argument(
        '--labels', metavar='car,bus', help='the name of a label set, or labels (default: coda)'
    )
    add_match_option(questions)
    questions.add_argument(
        '--skip-list',
        action='append',
        metavar='TASK=FILE',
        help="a file or a shipped list's name; once per task (default: the demo model's)",
    )
    questions.add_argument(
        '--operating-point',
        metavar='high_sparsity,8',
        help='one or more: high_performance (default), high_sparsity, numbers of blocks',
    )
    parser.add_argument('--no-progress', action='store_true', default=None, help='no progress bar')
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Replay or compare; 0, 1 if no frame was answered, 130 or 143 when stopped."""
    if args.against is not None:
        return compare(args)
    if args.source.endswith('.jsonl'):
        raise UserError(f'{args.source} is a run, not a bag: give a second run with --against')
    return replay(args)


def compare(args: argparse.Namespace) -> int:
    """Print and, with --out, write what changed between two runs; return 0."""
    unused = [
        name
        for name in (
            'topic',
            'rate',
            'start',
            'duration',
            'limit',
            'distro',
            'params_file',
            *LOAD_OPTIONS,
            'task',
            'labels',
            'match',
            'skip_list',
            'operating_point',
            'no_progress',
        )
        if getattr(args, name) is not None
    ]
    if unused:
        names = ', '.join('--' + name.replace('_', '-') for name in unused)
        raise UserError(f'{names}: not allowed with --against, which runs no model')
    if args.overwrite and args.out is None:
        raise UserError('--overwrite has no effect without --out: add --out, or remove it')

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
        from gmskip_ros.runs.output import check_output, clear_output

        folder = args.out.expanduser()
        if folder.resolve() in [file.parent.resolve() for file in files]:
            raise UserError(
                f'--out {folder}: holds the report of one of the runs: choose a different folder'
            )
        results = ('changes.csv', 'comparison.json', 'report.html')
        check_output(folder, results, args.overwrite, files)
        try:
            with locked(folder):
                clear_output(folder, results)
                write_comparison_report(result, folder, [str(file) for file in files])
        except OSError as error:
            raise UserError(
                f'--out {folder}: {error.strerror}: choose a different folder'
            ) from error
        print(f'report: {folder / "report.html"}')
    return 0


def _rows_file(text: str) -> Path:
    path = Path(text).expanduser()
    return path / 'frames.jsonl' if path.is_dir() else path


def replay(args: argparse.Namespace) -> int:
    """Replay one bag; see runs/replay.py."""
    with StopSignals(second_interrupts=True) as stop:
        try:
            return _replay(args, stop)
        except KeyboardInterrupt:
            print('gmskip: stopped', file=sys.stderr)
            return stop.exit_code


def _replay(args: argparse.Namespace, stop: StopSignals) -> int:
    # Importing PyTorch takes long, and so does opening a bag without an index or a packed one.
    with stop.at_once():
        from gmskip_ros.bags.reading import open_camera_bag
        from gmskip_ros.bags.writing import check_bag_path
        from gmskip_ros.cli.progress import Bars
        from gmskip_ros.runs.output import check_output
        from gmskip_ros.runs.replay import RESULTS, replay_bag

        settings, skip_lists, options = _read_options(args)
        path = Path(args.source).expanduser()
        folder = args.out.expanduser() if args.out else Path('out/replay') / _bag_name(path)
        check_bag_path(folder)
        bag = open_camera_bag(path, args.topic, args.distro or 'jazzy')
    with bag:
        check_output(folder, RESULTS, args.overwrite, [path])
        with locked(folder), Bars(not args.no_progress) as bars:
            outcome = replay_bag(bag, settings, skip_lists, options, folder, stop, _Screen(bars))
        return _print_outcome(outcome, bag, folder, stop)


class _Screen:
    """Shows a replay (runs/replay.py: ReplayListener) on stderr."""

    def __init__(self, bars: Bars) -> None:
        self._bars = bars
        self.status = bars.status

    def answered(self, frames: int, share: float) -> None:
        self._bars.show('frames', share, 1.0, info=f'{share:.0%}, {frames} answered')

    def message(self, line: str) -> None:
        self._bars.print(f'gmskip: {line}')


def _print_outcome(outcome: ReplayOutcome, bag: CameraBag, folder: Path, stop: StopSignals) -> int:
    """Print the summary of what was written, and return the exit status."""
    if outcome.run is None:
        if outcome.stopped:
            print('gmskip: stopped before the first frame: nothing is written', file=sys.stderr)
            return stop.exit_code
        print(f'gmskip: error: no frame: {_why_no_frame(bag)}: nothing is written', file=sys.stderr)
        return 1
    _print_summary(outcome, outcome.run, folder)
    if outcome.error:
        raise UserError(f'{outcome.error}; the answers so far are in {folder}')
    if outcome.stopped:
        print(f'gmskip: stopped; the answers so far are in {folder}', file=sys.stderr)
        return stop.exit_code
    if not outcome.run['frames']['answered']:
        print(
            f'gmskip: error: no frame was answered: see the problems above and in {folder}',
            file=sys.stderr,
        )
        return 1
    return 0


def _print_summary(outcome: ReplayOutcome, run: Mapping[str, Any], folder: Path) -> None:
    from rich.console import Console

    from gmskip_ros.report.replay_report import replay_tables

    console = Console()
    for table in replay_tables(run, outcome.rows):
        console.print(table)
    counts = run['frames']
    others = [f'{counts[name]} {label}' for name, label in COUNTER_LABELS.items() if counts[name]]
    print(f'{counts["in_bag"]} frames read' + (': ' + ', '.join(others) if others else ''))
    print(f'answers: {folder / "frames.csv"}, frames.jsonl')
    print(f"the same as a bag, on the node's topics: {folder / 'bag'}")
    print(f'report: {folder / "report.html"}')


def _why_no_frame(bag: CameraBag) -> str:
    if bag.problems:
        return 'see the problems above'
    if not bag.num_frames:
        return f'the bag has none on {bag.topic}'
    length_s = (bag.end_ns - bag.start_ns) / 1e9
    return (
        f'none of the {bag.num_frames} on {bag.topic} is in the part of the bag ({length_s:.1f} s) '
        'that --start and --duration select'
    )


def _read_options(
    args: argparse.Namespace,
) -> tuple[Settings, dict[str, SkipList], ReplayOptions]:
    """Return the options, checked as far as is possible without the model."""
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


def _bag_name(bag: Path) -> str:
    """Return the name of a bag's folder, or of its file without endings: drive_0.mcap: drive_0."""
    bag = bag.resolve()
    return (bag.name if bag.is_dir() else bag.name.partition('.')[0]) or 'bag'


def _settings(args: argparse.Namespace) -> tuple[Settings, list[str | int]]:
    """Return the node's settings from file and options, and the operating points.

    Parameters with no meaning offline (branches, transport, age, overload) have no effect.
    """
    from gmskip_ros.pipeline.settings import settings_from, values_from_file
    from gmskip_ros.tasks import TASK_NAMES

    values = values_from_file(args.params_file) if args.params_file else {}
    values.pop('branches', None)  # a replay compares both
    options = {
        **{name: getattr(args, name) for name in LOAD_OPTIONS},
        'match': args.match,
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
                f'--skip-list {text!r}: give TASK=FILE; TASK is one of {", ".join(TASK_NAMES)}'
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
        raise UserError(f'--operating-point {args.operating_point} names one twice: name each once')
    return settings, points
