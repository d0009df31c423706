"""One replay from an open bag to its results on disk."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TextIO

import cv2
import numpy as np
from rich.console import Console

from gmskip_ros.errors import UserError
from gmskip_ros.machine import machine, software
from gmskip_ros.pipeline import records
from gmskip_ros.pipeline.health import OK
from gmskip_ros.pipeline.overlay import draw_overlay
from gmskip_ros.pipeline.pipeline import FramePlan, plan_frame
from gmskip_ros.pipeline.pixels import rgb_to_jpeg
from gmskip_ros.pipeline.replay import AnsweredFrame, Replay, ReplayError
from gmskip_ros.pipeline.rows import FrameRow, json_line, row_from_values
from gmskip_ros.report.formatting import machine_name
from gmskip_ros.report.replay_report import Gallery, GalleryFrame, replay_tables
from gmskip_ros.runs.files import WRITTEN_AT_THE_END, clear_room, describe_questions, write_run
from gmskip_ros.runs.result_bag import ResultBag, node_name
from gmskip_ros.vlm import Stopped, Vlm, load_vlm

if TYPE_CHECKING:
    from gmskip_ros.bags.reading import BagFrame, CameraBag
    from gmskip_ros.pipeline.settings import Settings
    from gmskip_ros.signals import StopSignals
    from gmskip_ros.skipping import SkipList

RESULTS = ('frames.jsonl', 'bag', *WRITTEN_AT_THE_END)
COUNTED = {  # of Replay.counts, for people
    'answered': 'answered',
    'gated': 'not due',
    'out_of_order': 'out of order',
    'unreadable': 'unreadable',
    'undecodable': 'undecodable',
    'failed': 'failed',
    'resets': 'after a jump back in time',
}
MAX_PROBLEMS_PRINTED, MAX_PROBLEMS_KEPT = 20, 200
# Set aside at the start, so that a disk that fills up has room for the report.
ROOM_FOR_REPORT_BYTES = 16 << 20
GALLERY_WIDTH = 960  # pixels
JPEG_QUALITY = 80


@dataclass(frozen=True)
class ReplayOptions:
    """What is asked of a replay besides the node's settings. Seconds are of recording time."""

    operating_points: Sequence[str | int]
    start_s: float
    duration_s: float | None
    limit: int | None
    command: str


class ReplayProgress(Protocol):
    """Shown how far a replay is."""

    def status(self, step: str) -> None:
        """What is being done before there is anything to count."""

    def update(self, done: float, answered: int) -> None:
        """The share that is done, and how many frames are answered."""


def replay_bag(
    bag: CameraBag,
    settings: Settings,
    skip_lists: Mapping[str, SkipList],
    options: ReplayOptions,
    folder: Path,
    stop: StopSignals,
    console: Console,
    bar: ReplayProgress,
) -> int:
    """Answer the bag's frames and leave RESULTS in `folder`, also when stopped in the middle.

    Return the exit status: 0, 1 if no frame was answered, 130 or 143 when stopped. Raises
    UserError, VlmError, SkipListError and TaskError.
    """
    run = _Run(bag, settings, options, folder, stop, console)
    try:
        for problem in bag.problems:
            run.tell(problem)
        with stop.at_once():
            vlm = load_vlm(settings.model, settings.device, settings.dtype, bar.status)
        plans = [
            plan_frame(
                vlm,
                settings.make_tasks(),
                skip_lists,
                point,
                caption_agreement=settings.caption_agreement,
            )
            for point in options.operating_points
        ]
        for warning in dict.fromkeys(text for plan in plans for text in plan.warnings):
            run.tell(f'warning: {warning}')
        run.describe(vlm, plans)
        replay = Replay(vlm, plans, settings.period_ns, run.problem)
        bar.status('warming up')
        replay.warm_up(stop.is_set)
    except (Stopped, KeyboardInterrupt):
        run.tell('stopped before the first frame: nothing is written')
        return stop.exit_code
    clear_room(folder, RESULTS)
    error = run.answer_frames(replay, bar)
    run.finish(replay)
    if error:
        raise UserError(f'{error}; what was answered until then is in {folder}')
    if run.stopped_by:
        run.tell(f'stopped; what was answered until then is in {folder}')
        return stop.exit_code
    if not replay.counts['answered']:
        reason = f'see the problems above and in {folder}'
        if not replay.counts['in_bag']:
            length_s = (bag.end_ns - bag.start_ns) / 1e9
            reason = (
                f'none of the {bag.num_frames} on {bag.topic} is in the part of the bag '
                f'({length_s:.1f} s) that --start and --duration choose'
                if bag.num_frames
                else f'the bag has none on {bag.topic}'
            )
        run.tell(f'error: no frame was answered: {reason}')
        return 1
    return 0


class _Run:
    def __init__(
        self,
        bag: CameraBag,
        settings: Settings,
        options: ReplayOptions,
        folder: Path,
        stop: StopSignals,
        console: Console,
    ) -> None:
        self._bag, self._settings, self._options = bag, settings, options
        self._folder, self._stop, self._console = folder, stop, console
        self._rows: list[FrameRow] = []
        self._problems: list[str] = []  # of frames, the first MAX_PROBLEMS_KEPT of them
        self._num_problems = 0
        self._told = len(bag.problems)
        self._gallery = Gallery()
        self.stopped_by = ''  # what ended the run before its time
        self._about: dict[str, Any] = {}
        points = [str(point) for point in options.operating_points]
        self._nodes = [node_name(point, len(points) == 1) for point in points]
        self._result_bag = ResultBag(folder / 'bag', self._nodes)

    def tell(self, line: str) -> None:
        """Print one line for people."""
        self._console.print(f'gmskip: {line}', markup=False, highlight=False, soft_wrap=True)

    def problem(self, line: str) -> None:
        """Tell and keep what is wrong with a frame."""
        self._num_problems += 1
        if self._num_problems <= MAX_PROBLEMS_KEPT:
            self._problems.append(line)
        if self._num_problems <= MAX_PROBLEMS_PRINTED:
            self.tell(line)
        elif self._num_problems == MAX_PROBLEMS_PRINTED + 1:
            self.tell('further problems are in the report')

    def describe(self, vlm: Vlm, plans: Sequence[FramePlan]) -> None:
        """Keep what the report says about the run."""
        self._about = {
            'source': {
                'bag': str(self._bag.path),
                'topic': self._bag.topic,
                'message_type': self._bag.message_type,
                'start_s': self._options.start_s,
                'duration_s': self._options.duration_s,
                'limit': self._options.limit,
                'rate_hz': self._settings.rate_hz,
            },
            'model': vlm.name,
            'device': vlm.device,
            'dtype': vlm.dtype,
            'num_blocks': vlm.num_blocks,
            'machine': machine(vlm.device),
            'software': software(),
            **describe_questions(
                self._settings,
                [
                    (each.task.name, each.operating_point, each.removed_blocks)
                    for plan in plans
                    for each in plan.tasks
                ],
            ),
        }
        self._machine = machine_name(self._about)

    def answer_frames(self, replay: Replay, bar: ReplayProgress) -> str:
        """Answer and write frame by frame until the end or a signal; return what went wrong."""
        what_failed = ''
        try:
            with ExitStack() as files:
                self._set_room_aside(files)
                lines = files.enter_context(
                    open(self._folder / 'frames.jsonl', 'w', encoding='utf-8')
                )
                files.enter_context(self._result_bag)
                self._answer_frames(replay, bar, lines)
        except Stopped:
            self.stopped_by = self._stop.name
        except ReplayError as error:
            self.stopped_by = what_failed = str(error)
        except OSError as error:
            what_failed = f'{error.filename or self._folder}: {error.strerror or error}'
            self.stopped_by = what_failed
        for line in self._bag.problems[self._told :]:
            self.tell(line)
        return what_failed

    def _set_room_aside(self, files: ExitStack) -> None:
        """Take up the report's room until `files` are closed; raises UserError if there is none."""
        path = self._folder / '.room.00000000.tmp'  # a name that atomic_write clears away
        files.callback(path.unlink, missing_ok=True)
        with open(path, 'wb') as file:
            try:
                os.posix_fallocate(file.fileno(), 0, ROOM_FOR_REPORT_BYTES)
            except OSError as error:
                if error.errno == errno.ENOSPC:  # else the file system does not know how
                    raise UserError(
                        f'--out {self._folder}: {error.strerror} for the report: make room, or '
                        'give another folder'
                    ) from None

    def _answer_frames(self, replay: Replay, bar: ReplayProgress, lines: TextIO) -> None:
        options = self._options
        for frame in self._bag.frames(options.start_s, options.duration_s):
            if self._stop.is_set():
                raise Stopped('stopped')
            answered = replay.take(frame, self._stop.is_set)
            if answered is not None:
                rows = self._rows_of(answered)
                try:
                    lines.writelines(map(json_line, rows))
                    lines.flush()
                except OSError:
                    replay.counts.subtract(('in_bag', 'due', 'answered'))
                    raise
                self._rows += rows
                self._result_bag.write(answered, self._pictures(answered))
            bar.update(self._done(frame, replay.counts['answered']), replay.counts['answered'])
            if replay.counts['answered'] == options.limit:
                return

    def _done(self, frame: BagFrame, answered: int) -> float:
        """Return the share of the work that is done."""
        start_ns = self._bag.start_ns + self._options.start_s * 1e9
        end_ns = float(self._bag.end_ns)
        if self._options.duration_s is not None:
            end_ns = min(end_ns, start_ns + self._options.duration_s * 1e9)
        by_time = (frame.time_ns - start_ns) / max(end_ns - start_ns, 1.0)
        by_limit = answered / self._options.limit if self._options.limit else 0.0
        return min(1.0, max(0.0, by_time, by_limit))

    def _rows_of(self, frame: AnsweredFrame) -> list[FrameRow]:
        """Return the rows, made of the very values that the node would publish."""
        rows = []
        results = [*zip(frame.skips, frame.comparisons, strict=True), (frame.full, None)]
        for result, comparison in results:
            compared: list[dict[str, str] | None] = [None] * len(result.tasks)
            if comparison is not None:
                compared = [each.values for each in records.comparison_statuses(comparison, '')]
            for status, values in zip(records.result_statuses(result, ''), compared, strict=True):
                rows.append(
                    row_from_values(
                        frame.number,
                        frame.stamp_ns,
                        status.name,
                        status.level == OK,
                        status.values,
                        values,
                        model=self._about['model'],
                        machine=self._machine,
                    )
                )
        return rows

    def _pictures(self, frame: AnsweredFrame) -> list[bytes]:
        """Return the overlay of each operating point; the first that differs is for the gallery."""
        pictures = []
        is_shown = False
        for node, skip, comparison in zip(self._nodes, frame.skips, frame.comparisons, strict=True):
            title = records.overlay_title(node.strip('/'), frame.stamp_ns)
            tasks = records.overlay_tasks([skip, frame.full], comparison)
            pictures.append(rgb_to_jpeg(draw_overlay(frame.rgb, tasks, title=title), JPEG_QUALITY))
            if not is_shown and not all(task.agreement.agree for task in comparison.tasks):
                is_shown = True
                if self._gallery.wants_next():
                    small = draw_overlay(_narrow(frame.rgb), tasks, title=title)
                    jpeg = rgb_to_jpeg(small, JPEG_QUALITY)
                    self._gallery.add(GalleryFrame(frame.number, frame.stamp_ns, jpeg))
        return pictures

    def finish(self, replay: Replay) -> None:
        """Write the table, the description and the report, and print the summary."""
        hidden = self._num_problems - len(self._problems)
        try:
            run = write_run(
                self._folder,
                self._about,
                self._rows,
                self._gallery,
                command=self._options.command,
                frames=replay.counts,
                problems=[
                    *self._bag.problems,
                    *self._problems,
                    *([f'{hidden} more like these'] if hidden else []),
                ],
                stopped_by=self.stopped_by,
            )
        except OSError as error:
            raise UserError(
                f'{self._folder}: the report cannot be written ({error.strerror}): make room and '
                'start the same command again with --overwrite'
            ) from error
        console = Console()
        for table in replay_tables(run, self._rows):
            console.print(table)
        counts = replay.counts
        others = [f'{counts[name]} {words}' for name, words in COUNTED.items() if counts[name]]
        print(f'{counts["in_bag"]} frames read' + (': ' + ', '.join(others) if others else ''))
        print(f'answers: {self._folder / "frames.csv"}, frames.jsonl')
        print(f'the same as a bag, on the topics of the node: {self._folder / "bag"}')
        print(f'report: {self._folder / "report.html"}')


def _narrow(rgb: np.ndarray) -> np.ndarray:
    """Return a picture of at most GALLERY_WIDTH, (H, W, 3)."""
    height, width = rgb.shape[:2]
    if width <= GALLERY_WIDTH:
        return rgb
    size = (GALLERY_WIDTH, max(1, round(height * GALLERY_WIDTH / width)))
    return cv2.resize(rgb, size, interpolation=cv2.INTER_AREA)
