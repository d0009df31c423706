"""`gmskip doctor`: will this machine run it? One line a check, with the remedy."""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from gmskip_ros.doctor.examination import Check, examine
from gmskip_ros.tasks import TASK_NAMES

if TYPE_CHECKING:
    from gmskip_ros.doctor.setup import Setup

EXIT_STATUS = {'OK': 0, 'WARN': 1, 'FAIL': 2}
COLOURS = {'OK': '32', 'WARN': '33', 'FAIL': '31'}
MAX_SIDE = 16_384  # pixels


def add_parser(subparsers: Any) -> None:
    """Add `gmskip doctor` and its options."""
    parser = subparsers.add_parser(
        'doctor',
        help='will this machine run it? one line a check, with the remedy',
        description='Check this machine for a drive: ROS, image transport, GPU, memory, model '
        'files, skip lists, installed executables. Exit status: 0 all is well, 1 warnings, 2 it '
        'will not run. Nothing is downloaded or changed.',
    )
    parser.add_argument('--model', help="'demo' (default), a folder or a hub id")
    parser.add_argument('--device', help='auto (default), cpu or cuda:N')
    parser.add_argument('--dtype', help='auto (default), float32, float16 or bfloat16')
    parser.add_argument(
        '--skip-list',
        type=_task_and_list,
        action='append',
        default=[],
        metavar='TASK=FILE',
        help='a file or a shipped name; once per task (default: as the node has it)',
    )
    parser.add_argument(
        '--params-file',
        metavar='FILE',
        help="the node's parameters; the options here stand above it",
    )
    parser.add_argument(
        '--frame-size',
        type=_size,
        default=(1920, 1080),
        metavar='WxH',
        help="the camera's (default 1920x1080)",
    )
    parser.add_argument('--image-transport', help='raw (default) or compressed')
    parser.add_argument('--reliability', help='best_effort (default) or reliable')
    parser.add_argument('--no-ros', action='store_true', help='leave out what only the node needs')
    parser.add_argument(
        '--timeout-sec',
        type=_seconds,
        default=60.0,
        metavar='S',
        help='how long a check may take (default 60)',
    )
    parser.add_argument('--json', action='store_true', help='print one JSON object')
    parser.set_defaults(func=run)


def _task_and_list(text: str) -> tuple[str, str]:
    task, mark, name = text.partition('=')
    if not mark or task not in TASK_NAMES:
        raise argparse.ArgumentTypeError(
            f'{text!r} is not TASK=FILE with one of {", ".join(TASK_NAMES)}'
        )
    return task, name


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r'(\d{1,5})x(\d{1,5})', text)
    size = (int(match[1]), int(match[2])) if match else (0, 0)
    if not all(1 <= side <= MAX_SIDE for side in size):
        raise argparse.ArgumentTypeError(
            f'{text!r} is no size such as 1920x1080, of sides from 1 to {MAX_SIDE}'
        )
    return size


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError(f'{text!r} is not a number of seconds above 0')
    return value


def run(args: argparse.Namespace) -> int:
    """Make every check, print the lines or one JSON object, and return the exit status."""
    from gmskip_ros.doctor.setup import worst_level

    # A trial's processes end with this one, also at SIGTERM.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    setup, problems = make_setup(args)
    checks = []
    for check in examine(setup, problems, _Progress(sys.stderr)):
        checks.append(check)
        if not args.json:
            print(as_line(check, _has_colours(sys.stdout)), flush=True)
    level = worst_level([check.level for check in checks])
    if args.json:
        print(json.dumps({'level': level, 'checks': [asdict(check) for check in checks]}, indent=1))
    else:
        print(_verdict(checks))
    return EXIT_STATUS[level]


def make_setup(args: argparse.Namespace) -> tuple[Setup, list[str]]:
    """Return what is to be examined, and a line for every parameter that the node would refuse.

    Such a parameter has its default meanwhile.
    """
    from gmskip_ros.doctor.setup import Setup
    from gmskip_ros.pipeline.settings import SPECS, ParameterError, settings_from, values_from_file

    problems, values = [], {}
    if args.params_file is not None:
        try:
            values = values_from_file(args.params_file)
        except ParameterError as error:
            problems.append(str(error))
    options = {
        'model': args.model,
        'device': args.device,
        'dtype': args.dtype,
        'image_transport': args.image_transport,
        'input_reliability': args.reliability,
        **{f'skip_list.{task}': name for task, name in args.skip_list},
    }
    values.update({name: value for name, value in options.items() if value is not None})
    for name, value in list(values.items()):
        try:
            SPECS[name].check(value)
        except ParameterError as error:
            problems.append(str(error))
            del values[name]
    width, height = args.frame_size
    return (
        Setup(settings_from(values), width, height, not args.no_ros, args.timeout_sec),
        problems,
    )


def as_line(check: Check, in_colours: bool = False) -> str:
    """Return a check as one line for people."""
    level = f'{check.level:<4}'
    if in_colours:
        level = f'\x1b[{COLOURS[check.level]}m{level}\x1b[0m'
    remedy = f' -> {check.remedy}' if check.remedy else ''
    return f'{level}  {check.name:<11}  {check.message}{remedy}'


def _verdict(checks: list[Check]) -> str:
    failed = [check.name for check in checks if check.level == 'FAIL']
    doubtful = [check.name for check in checks if check.level == 'WARN']
    if failed:
        return f'This machine will not run it: {", ".join(failed)}.'
    if doubtful:
        return f'This machine runs it, with warnings: {", ".join(doubtful)}.'
    return 'This machine runs it.'


def _has_colours(stream: Any) -> bool:
    return stream.isatty() and 'NO_COLOR' not in os.environ


class _Progress:
    """On a terminal, what is being looked at; in a pipe nothing."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream if stream.isatty() else None

    def __call__(self, name: str) -> None:
        if self._stream is not None:
            self._stream.write('\r\x1b[K' + (f'looking at {name} ...' if name else ''))
            self._stream.flush()
