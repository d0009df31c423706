"""`gmskip demo`: the real node and a camera on one machine, until some frames are answered.

At the end it writes the report that `gmskip replay` writes.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import statistics
import sys
import textwrap
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gmskip_ros.cli.options import add_timing_option, locked, positive_float, positive_int
from gmskip_ros.errors import UserError
from gmskip_ros.pipeline.timing import ISOLATED, SHARED, TIMINGS
from gmskip_ros.signals import StopSignals

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from gmskip_ros.runs.demo_frames import Frame

MIN_COLUMNS, MAX_COLUMNS = 80, 120
PIPE_COLUMNS = 100


def add_parser(subparsers: Any) -> None:
    """Add `gmskip demo` and its options."""
    parser = subparsers.add_parser(
        'demo',
        help='run the node and a camera on rendered scenes, then print a summary',
        description='Start the real node and a camera, show what both branches answer and how '
        'long they take, and stop after some frames with a summary, an image and a report.',
    )
    parser.add_argument(
        '--frames',
        type=positive_int,
        default=20,
        metavar='N',
        help='stop after this many compared frames (default 20)',
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
    add_timing_option(parser)
    parser.add_argument(
        '--source',
        type=_folder,
        metavar='FOLDER',
        help='images for the camera (default: freshly rendered driving scenes)',
    )
    parser.add_argument(
        '--out',
        type=Path,
        default=Path('out/demo'),
        metavar='FOLDER',
        help='folder for the report, the answers and the logs (default out/demo)',
    )
    parser.add_argument(
        '--record',
        action='store_true',
        help='record the camera and the answers as a bag in --out; images travel as JPEG then',
    )
    parser.add_argument(
        '--deadline-sec',
        type=positive_float,
        default=120.0,
        metavar='S',
        help='give up after this long without news from the node (default 120)',
    )
    parser.add_argument(
        '--no-progress', action='store_true', help='print only the table and the summary'
    )
    parser.set_defaults(func=run)


def _folder(text: str) -> Path:
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f'{text!r} is not a folder: give one with images')
    return Path(text).resolve()


def run(args: argparse.Namespace) -> int:
    """Run the demo; return 0, 1 after an error, or 128 + the signal that stopped it."""
    with StopSignals(hangup=True) as stop:
        from gmskip_ros.runs.demo import DemoOptions, run_demo

        options = DemoOptions(
            num_frames=args.frames,
            camera_rate_hz=args.rate_hz,
            model=args.model,
            timing=args.timing,
            source=args.source,
            out=args.out,
            deadline_s=args.deadline_sec,
            record=args.record,
            command='gmskip ' + shlex.join(args.arguments),
        )
        screen = Screen(show_progress=not args.no_progress)
        try:
            with locked(args.out), screen.live():
                frames = run_demo(options, stop, screen)
        except UserError as error:  # LiveRunError, or --out
            print(f'gmskip demo: error: {error}', file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print(f'gmskip demo: stopped by {stop.name}', file=sys.stderr)
            return stop.exit_code
        screen.summary(frames)
        screen.notes(args.model)
        screen.files(args.out, recorded=args.record)
        return 0


class Screen:
    """The demo's output: coloured, with a spinner, on a terminal; plain lines in a pipe."""

    def __init__(self, *, show_progress: bool) -> None:
        if hasattr(sys.stdout, 'reconfigure'):
            sys.stdout.reconfigure(errors='replace')  # answers may have letters it cannot show
        width = shutil.get_terminal_size((PIPE_COLUMNS, 25)).columns
        from rich.console import Console

        self._console: Console = Console(
            width=max(MIN_COLUMNS, min(width, MAX_COLUMNS)),
            highlight=False,
            markup=False,
            emoji=False,  # a model's answer is not markup
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
        """Print what happens now, with the time since the start."""
        if self._show_progress:
            self._print(f'{time.monotonic() - self._started:6.1f} s  {text}')

    def waiting(self, state: str, done: int, wanted: int) -> None:
        """Show in the spinner what it waits for."""
        if self._status is not None:
            elapsed = time.monotonic() - self._started
            step = state or 'starting'
            if done or state == 'ready':
                step = f'frame {min(done + 1, wanted)} of {wanted}'
            self._status.update(f'{step} ({elapsed:.0f} s)')

    def frame(self, number: int, frame: Frame) -> None:
        """Print one frame: a line per task where the branches agree, two where they differ."""
        from rich.text import Text

        from gmskip_ros.pipeline.overlay import AGREES_RGB, DIFFERS_RGB

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
            answers = [('skip', _answer_text(skip)), ('full', _answer_text(full))]
            if agrees and answers[0][1] == answers[1][1]:
                answers = [('both', answers[0][1])]
            table.add_row(
                str(number) if index == 0 else '',
                task,
                f'{float(skip["total_ms"]):.0f}',
                f'{float(full["total_ms"]):.0f}',
                Text('agrees', style=colour) if agrees else Text('DIFFERS', style=f'bold {colour}'),
                Text('\n'.join(f'{branch}: {text}' for branch, text in answers)),
            )
        self._print(table)

    def summary(self, frames: Sequence[Frame]) -> None:
        """Print agreement, medians, speed-up and sparsity of each task over all frames.

        A table per timing: no figure mixes the two, and with `shared` there is no speed-up.
        """
        self._print('')
        span_s = (frames[-1].stamp_ns - frames[0].stamp_ns) / 1e9
        rate = f', {(len(frames) - 1) / span_s:.2f} Hz' if span_s > 0 else ''
        self._print(f'{len(frames)} frames answered by both branches{rate}; medians:')
        for timing in TIMINGS:
            of_timing = [frame for frame in frames if frame.timing == timing]
            if of_timing:
                self._print(self._medians(of_timing, has_speedup=timing == ISOLATED))
            if of_timing and timing == SHARED:
                self._print(
                    'no speed-up with timing: shared: the times leave out what the answers share'
                )

    def _medians(self, frames: Sequence[Frame], has_speedup: bool) -> Any:
        from rich.text import Text

        widths = (13, 9, 8, 8, *([8] if has_speedup else []), 8)
        table = self._grid(*widths, right=range(1, len(widths)))
        titles = ['task', 'agreement', 'skip ms', 'full ms', 'sparsity']
        if has_speedup:
            titles.insert(4, 'speed-up')
        table.add_row(*(Text(title, style='bold') for title in titles))
        for task in frames[-1].comparison:
            of_task = [frame for frame in frames if task in frame.comparison]
            skip_ms = [float(frame.skip[task]['total_ms']) for frame in of_task]
            full_ms = [float(frame.full[task]['total_ms']) for frame in of_task]
            cells = [
                task,
                f'{sum(frame.agrees(task) for frame in of_task)}/{len(of_task)}',
                f'{statistics.median(skip_ms):.0f}',
                f'{statistics.median(full_ms):.0f}',
                f'{100 * float(of_task[-1].skip[task]["sparsity"]):.0f} %',
            ]
            if has_speedup:
                pairs = zip(skip_ms, full_ms, strict=True)
                speedup = statistics.median(full / max(skip, 1e-9) for skip, full in pairs)
                cells.insert(4, f'{speedup:.2f}x')
            table.add_row(*cells)
        return table

    def notes(self, model: str) -> None:
        """Print what a reader of the figures has to know."""
        from gmskip_ros.report.formatting import demo_alert

        for line in demo_alert({'model': model}):
            self._print(line)

    def files(self, out: Path, *, recorded: bool) -> None:
        """Print where the files are."""
        self._print('')
        self._print(f'report, for a browser:         {out / "report.html"}')
        self._print(f'last frame with both answers:  {out / "overlay.png"}')
        self._print(f'all answers:                   {out / "frames.csv"}, {out / "frames.jsonl"}')
        self._print(f'logs of node and camera:       {out / "node.log"}, {out / "camera.log"}')
        if recorded:
            self._print(f'bag of camera and answers:     {out / "bag"}')

    def _grid(self, *widths: int | None, right: Sequence[int]) -> Any:
        from rich.table import Table

        table = Table.grid(padding=(0, 2, 0, 0))
        for index, width in enumerate(widths):
            justify: Any = 'right' if index in right else 'left'
            table.add_column(width=width, justify=justify, overflow='fold')
        return table

    def _print(self, content: RenderableType) -> None:
        self._console.print(content, soft_wrap=isinstance(content, str))


def _answer_text(values: dict[str, str]) -> str:
    """Return an answer on one line, with the raw text if it is not in the vocabulary."""
    answer = ' '.join(values['answer'].split())
    if answer == 'unknown':
        return f'unknown "{textwrap.shorten(values["raw_text"], 60, placeholder="...")}"'
    return answer or '(empty answer)'
