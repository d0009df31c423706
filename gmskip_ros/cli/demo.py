"""`gmskip demo`: the main job on one machine, with its real parts, ending by itself.

A node process, a camera process and this one, which sees only what is on the topics. At the end it
writes the report that `gmskip replay` writes.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gmskip_ros.cli.options import positive_float, positive_int
from gmskip_ros.runs.demo import _Demo
from gmskip_ros.runs.live import (
    LiveRunError,
)
from gmskip_ros.signals import Interrupted, StopRequest

if TYPE_CHECKING:
    pass


def add_parser(subparsers: Any) -> None:
    """Add `gmskip demo` and its options."""
    parser = subparsers.add_parser(
        'demo',
        help='node and camera in two processes, both branches on rendered scenes, then a summary',
        description='Start the real node and a camera, show what both branches answer and how '
        'long they take, and end after some frames with a summary, a picture and a report.',
    )
    parser.add_argument(
        '--frames',
        type=positive_int,
        default=20,
        metavar='N',
        help='end after this many compared frames (default 20)',
    )
    parser.add_argument(
        '--rate-hz',
        type=positive_float,
        default=10.0,
        metavar='HZ',
        help='rate of the camera; the node answers one frame per second (default 10)',
    )
    parser.add_argument(
        '--model',
        default='demo',
        help='demo, a folder in Hugging Face format, or a hub id (default demo)',
    )
    parser.add_argument(
        '--source',
        type=_folder,
        metavar='FOLDER',
        help='pictures for the camera (default: driving scenes rendered for the occasion)',
    )
    parser.add_argument(
        '--out',
        type=Path,
        default=Path('out/demo'),
        metavar='FOLDER',
        help='where the report, the answers and the logs go (default out/demo)',
    )
    parser.add_argument(
        '--deadline-sec',
        type=positive_float,
        default=120.0,
        metavar='S',
        help='give up when nothing new arrives for this long (default 120)',
    )
    parser.add_argument(
        '--no-progress', action='store_true', help='print the table and the summary only'
    )
    parser.set_defaults(func=run)


def _folder(text: str) -> Path:
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f'{text!r} is not a folder: give one with pictures')
    return Path(text).resolve()


def run(args: argparse.Namespace) -> int:
    """Run the demo; return 0, or 1 with one line of error, or 128 + the signal that ended it."""
    stop = StopRequest()
    try:
        return _Demo(args, stop).run()
    except LiveRunError as error:
        print(f'gmskip demo: error: {error}', file=sys.stderr)
        return 1
    except Interrupted as interrupted:
        print(f'gmskip demo: ended by {interrupted}', file=sys.stderr)
        return interrupted.exit_status
    finally:
        stop.release()
