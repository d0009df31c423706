"""`gmskip demo`: the main job on one machine, with its real parts, ending by itself.

A node process, a camera process and this one, which sees only what is on the topics. At the end it
writes the report that `gmskip replay` writes.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import textwrap
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from gmskip_ros.cli.options import positive_float, positive_int
from gmskip_ros.pipeline.overlay import AGREES_RGB, DIFFERS_RGB
from gmskip_ros.ros.demo_listener import Frame
from gmskip_ros.runs.demo import _Demo
from gmskip_ros.runs.live import (
    LiveRunError,
)
from gmskip_ros.signals import Interrupted, StopRequest

PIPE_COLUMNS = 100


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
        return _Demo(args, stop, Screen(show_progress=not args.no_progress)).run()
    except LiveRunError as error:
        print(f'gmskip demo: error: {error}', file=sys.stderr)
        return 1
    except Interrupted as interrupted:
        print(f'gmskip demo: ended by {interrupted}', file=sys.stderr)
        return interrupted.exit_status
    finally:
        stop.release()


MIN_COLUMNS, MAX_COLUMNS = 80, 120


class Screen:
    """What is printed: coloured and with a spinner on a terminal, plain lines in a pipe."""

    def __init__(self, *, show_progress: bool) -> None:
        if hasattr(sys.stdout, 'reconfigure'):
            sys.stdout.reconfigure(errors='replace')  # an answer may hold what a terminal cannot
        width = shutil.get_terminal_size((PIPE_COLUMNS, 25)).columns
        self._console: Console = Console(
            width=max(MIN_COLUMNS, min(width, MAX_COLUMNS)),
            highlight=False,
            markup=False,
            emoji=False,  # text of a model is never an instruction
        )
        self._show_progress = show_progress
        self._status: Any = None
        self._started = time.monotonic()
        self._header_shown = False

    @contextmanager
    def live(self) -> Iterator[None]:
        """Show a spinner on a terminal while the block runs."""
        if not self._show_progress or not self._console.is_terminal:
            yield
            return
        with self._console.status('starting') as self._status:
            yield
        self._status = None

    def progress(self, text: str) -> None:
        """Print a line on what goes on, with the time since the start."""
        if self._show_progress:
            self._print(f'{time.monotonic() - self._started:6.1f} s  {text}')

    def waiting(self, state: str, done: int, wanted: int) -> None:
        """Let the spinner say what is waited for."""
        if self._status is not None:
            elapsed = time.monotonic() - self._started
            what = state or 'starting'
            if done or state == 'ready':
                what = f'frame {min(done + 1, wanted)} of {wanted}'
            self._status.update(f'{what} ({elapsed:.0f} s)')

    def frame(self, number: int, frame: Frame) -> None:
        """Print one frame: a line per task where the branches agree, two where they differ."""
        table = self._grid(5, 13, 7, 7, 7, None, right=(0, 2, 3))
        if not self._header_shown:
            self._print('')
            titles = ('frame', 'task', 'skip ms', 'full ms', 'verdict', 'answer')
            table.add_row(*(Text(title, style='bold') for title in titles))
            self._header_shown = True
        for index, task in enumerate(frame.comparison):
            skip, full = frame.skip[task], frame.full[task]
            agrees = frame.agrees(task)
            colour = 'rgb({},{},{})'.format(*(AGREES_RGB if agrees else DIFFERS_RGB))
            said = [('skip', _said(skip)), ('full', _said(full))]
            if agrees and said[0][1] == said[1][1]:
                said = [('both', said[0][1])]
            table.add_row(
                str(number) if index == 0 else '',
                task,
                f'{float(skip["total_ms"]):.0f}',
                f'{float(full["total_ms"]):.0f}',
                Text('agrees', style=colour) if agrees else Text('DIFFERS', style=f'bold {colour}'),
                Text('\n'.join(f'{who}: {text}' for who, text in said)),
            )
        self._print(table)

    def summary(self, frames: Sequence[Frame]) -> None:
        """Print agreement, medians, speed-up and sparsity per task over all frames."""
        self._print('')
        span_s = (frames[-1].stamp_ns - frames[0].stamp_ns) / 1e9
        rate = f', {(len(frames) - 1) / span_s:.2f} Hz' if span_s > 0 else ''
        self._print(f'{len(frames)} frames answered by both branches{rate}; medians:')
        table = self._grid(13, 9, 8, 8, 8, 8, right=(1, 2, 3, 4, 5))
        titles = ('task', 'agreement', 'skip ms', 'full ms', 'speed-up', 'sparsity')
        table.add_row(*(Text(title, style='bold') for title in titles))
        for task in frames[-1].comparison:
            of_task = [frame for frame in frames if task in frame.comparison]
            skip_ms = [float(frame.skip[task]['total_ms']) for frame in of_task]
            full_ms = [float(frame.full[task]['total_ms']) for frame in of_task]
            speedups = [full / max(skip, 1e-9) for skip, full in zip(skip_ms, full_ms, strict=True)]
            table.add_row(
                task,
                f'{sum(frame.agrees(task) for frame in of_task)}/{len(of_task)}',
                f'{statistics.median(skip_ms):.0f}',
                f'{statistics.median(full_ms):.0f}',
                f'{statistics.median(speedups):.2f}x',
                f'{100 * float(of_task[-1].skip[task]["sparsity"]):.0f} %',
            )
        self._print(table)

    def files(self, out: Path) -> None:
        """Print what was written, and where."""
        self._print('')
        self._print(f'report, for a browser:         {out / "report.html"}')
        self._print(f'last frame with both answers:  {out / "overlay.png"}')
        self._print(f'all answers:                   {out / "frames.csv"}, {out / "frames.jsonl"}')
        self._print(f'logs of node and camera:       {out / "node.log"}, {out / "camera.log"}')

    def _grid(self, *widths: int | None, right: Sequence[int]) -> Any:
        table = Table.grid(padding=(0, 2, 0, 0))
        for index, width in enumerate(widths):
            justify: Any = 'right' if index in right else 'left'
            table.add_column(width=width, justify=justify, overflow='fold')
        return table

    def _print(self, what: RenderableType) -> None:
        self._console.print(what, soft_wrap=isinstance(what, str))


def _said(values: dict[str, str]) -> str:
    """Return an answer on one line; with the raw text where that is all there is to see."""
    answer = ' '.join(values['answer'].split())
    if answer == 'unknown':
        return f'unknown "{textwrap.shorten(values["raw_text"], 60, placeholder="...")}"'
    return answer or '(empty answer)'
