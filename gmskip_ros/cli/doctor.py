"""`gmskip doctor`: check whether this machine can run the node."""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from gmskip_ros.cli.options import LOAD_OPTIONS, add_load_options, positive_float
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
        help='check whether this machine can run the node',
        description='Check whether this machine can run the node: ROS, image transport, installed '
        'executables, GPU, model files, memory, skip lists. One line per check, with the remedy. '
        'Exit status: 0 no problem, 1 warnings, 2 the node will not run. Nothing is downloaded or '
        'changed.',
    )
    add_load_options(parser, has_defaults=False)
    parser.add_argument(
        '--skip-list',
        type=_task_and_list,
        action='append',
        default=[],
        metavar='TASK=FILE',
        help="a file or the name of a shipped list; once per task (default: the node's)",
    )
    parser.add_argument(
        '--params-file',
        metavar='FILE',
        help="the node's parameters; options given here override them",
    )
    parser.add_argument(
        '--frame-size',
        type=_size,
        default=(1920, 1080),
        metavar='WxH',
        help="of the camera's frames, pixels (default 1920x1080)",
    )
    parser.add_argument('--image-transport', help='raw (default) or compressed')
    parser.add_argument('--reliability', help='best_effort (default) or reliable')
    parser.add_argument('--no-ros', action='store_true', help='skip the checks of ROS')
    parser.add_argument(
        '--timeout-sec',
        type=positive_float,
        default=60.0,
        metavar='S',
        help='time limit per check (default 60)',
    )
    parser.add_argument('--json', action='store_true', help='print one JSON object')
    parser.set_defaults(func=run)


def _task_and_list(text: str) -> tuple[str, str]:
    task, mark, name = text.partition('=')
    if not mark or task not in TASK_NAMES:
        raise argparse.ArgumentTypeError(
            f'{text!r} is not TASK=FILE, where TASK is one of {", ".join(TASK_NAMES)}'
        )
    return task, name


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r'(\d{1,5})x(\d{1,5})', text)
    size = (int(match[1]), int(match[2])) if match else (0, 0)
    if not all(1 <= side <= MAX_SIDE for side in size):
        raise argparse.ArgumentTypeError(
            f'{text!r} is not a size such as 1920x1080 with sides from 1 to {MAX_SIDE}'
        )
    return size


def run(args: argparse.Namespace) -> int:
    """Run every check, print lines or one JSON object, and return the exit status."""
    from gmskip_ros.doctor.setup import worst_level

    # Exit through Python at SIGTERM, so that a running trial's processes are stopped.
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
    """Return what to check, and a line for each parameter that the node would refuse.

    A refused parameter is replaced by its default.
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
        **{name: getattr(args, name) for name in LOAD_OPTIONS},
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
    """Return a check as one line of text."""
    level = f'{check.level:<4}'
    if in_colours:
        level = f'\x1b[{COLOURS[check.level]}m{level}\x1b[0m'
    remedy = f' -> {check.remedy}' if check.remedy else ''
    return f'{level}  {check.name:<11}  {check.message}{remedy}'


def _verdict(checks: list[Check]) -> str:
    failed = [check.name for check in checks if check.level == 'FAIL']
    warned = [check.name for check in checks if check.level == 'WARN']
    if failed:
        return f'This machine cannot run the node: {", ".join(failed)}.'
    if warned:
        return f'This machine can run the node, with warnings: {", ".join(warned)}.'
    return 'This machine can run the node.'


def _has_colours(stream: Any) -> bool:
    return stream.isatty() and 'NO_COLOR' not in os.environ


class _Progress:
    """Shows the running check on a terminal, and nothing in a pipe."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream if stream.isatty() else None

    def __call__(self, name: str) -> None:
        if self._stream is not None:
            self._stream.write('\r\x1b[K' + (f'checking {name} ...' if name else ''))
            self._stream.flush()
