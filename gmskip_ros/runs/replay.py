"""One replay, from an open bag to its results on disk."""

from __future__ import annotations

import errno
import itertools
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TextIO

import cv2
import numpy as np

from gmskip_ros.errors import UserError
from gmskip_ros.machine import describe_run
from gmskip_ros.pipeline import records
from gmskip_ros.pipeline.health import OK
from gmskip_ros.pipeline.overlay import draw_overlay
from gmskip_ros.pipeline.pipeline import FramePlan, plan_frame
from gmskip_ros.pipeline.pixels import rgb_to_jpeg
from gmskip_ros.pipeline.replay import AnsweredFrame, Replay, ReplayError
from gmskip_ros.pipeline.rows import FrameRow, json_line, row_from_values
from gmskip_ros.pipeline.timing import ISOLATED
from gmskip_ros.report.formatting import machine_name
from gmskip_ros.report.replay_report import Gallery, GalleryFrame
from gmskip_ros.runs.output import (
    WRITTEN_AT_THE_END,
    clear_output,
    describe_questions,
    write_run,
)
from gmskip_ros.runs.result_bag import ResultBag, node_name
from gmskip_ros.vlm import Stopped, load_vlm

if TYPE_CHECKING:
    from gmskip_ros.bags.reading import BagFrame, CameraBag
    from gmskip_ros.pipeline.settings import Settings
    from gmskip_ros.signals import StopSignals
    from gmskip_ros.skipping import SkipList
    from gmskip_ros.vlm.engine import Engine

RESULTS = ('frames.jsonl', 'bag', *WRITTEN_AT_THE_END)
MAX_PROBLEMS_SHOWN, MAX_PROBLEMS_KEPT = 20, 200
# Reserved at the start, so that a disk that fills up still has room for the report.
REPORT_RESERVE_BYTES = 16 << 20
GALLERY_WIDTH = 960  # pixels
JPEG_QUALITY = 80


@dataclass(frozen=True)
class ReplayOptions:
    """What a replay needs besides the node's settings. Seconds are of recording time."""

    operating_points: Sequence[str | int]
    start_s: float
    duration_s: float | None
    limit: int | None
    command: str


@dataclass(frozen=True)
class ReplayOutcome:
    """How a replay ended; of one without a first frame, nothing is written."""

    stopped: bool = False  # by a signal
    error: str = ''  # what broke it off
    run: dict[str, Any] | None = None  # the content of replay.json
    rows: Sequence[FrameRow] = field(default=(), repr=False)


class ReplayListener(Protocol):
    """Shows how a replay goes."""

    def status(self, step: str) -> None:
        """Show a step that has nothing to count."""

    def answered(self, frames: int, share: float) -> None:
        """Show how many frames are answered, and the share of the work that is done."""

    def message(self, line: str) -> None:
        """Show a problem or a warning."""


def replay_bag(
    bag: CameraBag,
    settings: Settings,
    skip_lists: Mapping[str, SkipList],
    options: ReplayOptions,
    folder: Path,
    stop: StopSignals,
    listener: ReplayListener,
) -> ReplayOutcome:
    """Answer the bag's frames and leave RESULTS in `folder`, even when stopped halfway.

    Without a frame, an earlier run's results stay.

    Raises UserError, VlmError, SkipListError and TaskError.
    """
    run = _Run(bag, settings, options, folder, stop, listener)
    try:
        for problem in bag.problems:
            listener.message(problem)
        with stop.at_once():
            vlm = load_vlm(
                settings.model,
                settings.device,
                settings.dtype,
                listener.status,
                threads=settings.threads,
                **settings.model_options,
            )
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
            listener.message(f'warning: {warning}')
        run.describe(vlm, plans)
        replay = Replay(vlm, plans, settings.period_ns, run.problem)
        listener.status('warming up')
        replay.warm_up(stop.is_set)
    except (Stopped, KeyboardInterrupt):
        return ReplayOutcome(stopped=True)
    return run.answer_and_write(replay)


class _Run:
    def __init__(
        self,
        bag: CameraBag,
        settings: Settings,
        options: ReplayOptions,
        folder: Path,
        stop: StopSignals,
        listener: ReplayListener,
    ) -> None:
        self._bag, self._settings, self._options = bag, settings, options
        self._folder, self._stop, self._listener = folder, stop, listener
        self._rows: list[FrameRow] = []
        self._problems: list[str] = []  # the first MAX_PROBLEMS_KEPT frame problems
        self._num_problems = 0
        self._gallery = Gallery()
        self._description: dict[str, Any] = {}
        points = [str(point) for point in options.operating_points]
        self._nodes = [node_name(point, len(points) == 1) for point in points]
        self._result_bag = ResultBag(folder / 'bag', self._nodes)

    def problem(self, line: str) -> None:
        """Show and keep what is wrong with a frame."""
        self._num_problems += 1
        if self._num_problems <= MAX_PROBLEMS_KEPT:
            self._problems.append(line)
        if self._num_problems <= MAX_PROBLEMS_SHOWN:
            self._listener.message(line)
        elif self._num_problems == MAX_PROBLEMS_SHOWN + 1:
            self._listener.message('further problems are in the report')

    def describe(self, vlm: Engine, plans: Sequence[FramePlan]) -> None:
        """Keep what the report says about the run."""
        import torch

        self._description = {
            'source': {
                'bag': str(self._bag.path),
                'topic': self._bag.topic,
                'message_type': self._bag.message_type,
                'start_s': self._options.start_s,
                'duration_s': self._options.duration_s,
                'limit': self._options.limit,
                'rate_hz': self._settings.rate_hz,
            },
            **describe_run(
                vlm.name, vlm.device, vlm.dtype, vlm.quantization, vlm.num_blocks, vlm.image_fit
            ),
            'threads': torch.get_num_threads(),
            'timing': ISOLATED,  # whatever the parameter file says: a replay compares times
            **describe_questions(
                self._settings,
                [
                    (
                        each.task.name,
                        each.operating_point,
                        each.removed_blocks,
                        each.skip_set.manner,
                    )
                    for plan in plans
                    for each in plan.tasks
                ],
            ),
        }
        self._machine = machine_name(self._description)

    def answer_and_write(self, replay: Replay) -> ReplayOutcome:
        """Answer and write frame by frame until the end or a signal, then write the report.

        An earlier run's results are removed once there is a frame, and space for the report.
        """
        stopped, error = False, ''
        first: BagFrame | None = None
        num_shown = len(self._bag.problems)
        frames = self._bag.frames(self._options.start_s, self._options.duration_s)
        try:
            with ExitStack() as files:
                self._reserve_for_report(files)
                first = next(frames, None)
                if self._stop.is_set():
                    return ReplayOutcome(stopped=True)
                if first is not None:
                    clear_output(self._folder, RESULTS)
                    lines = files.enter_context(
                        open(self._folder / 'frames.jsonl', 'w', encoding='utf-8')
                    )
                    files.enter_context(self._result_bag)
                    self._answer_frames(replay, itertools.chain([first], frames), lines)
        except Stopped:
            stopped = True
        except ReplayError as replay_error:
            error = str(replay_error)
        except OSError as os_error:
            error = f'{os_error.filename or self._folder}: {os_error.strerror or os_error}'
        for problem in self._bag.problems[num_shown:]:
            self._listener.message(problem)
        if first is None:
            if error:
                raise UserError(error)
            return ReplayOutcome()
        run = self._write(replay, self._stop.name if stopped else error)
        return ReplayOutcome(stopped, error, run, self._rows)

    def _reserve_for_report(self, files: ExitStack) -> None:
        """Fill the report's part of the disk until `files` are closed; UserError if it is full."""
        file = files.enter_context(tempfile.TemporaryFile(dir=self._folder))
        try:
            os.posix_fallocate(file.fileno(), 0, REPORT_RESERVE_BYTES)
        except OSError as error:
            if error.errno == errno.ENOSPC:  # any other: this file system cannot reserve
                raise UserError(
                    f'--out {self._folder}: {error.strerror} for the report: free disk space '
                    'or choose a different folder'
                ) from None

    def _answer_frames(self, replay: Replay, frames: Iterable[BagFrame], lines: TextIO) -> None:
        for frame in frames:
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
                self._result_bag.write_frame(answered, self._overlays(answered))
            num_answered = replay.counts['answered']
            self._listener.answered(num_answered, self._share_done(frame, num_answered))
            if num_answered == self._options.limit:
                return

    def _share_done(self, frame: BagFrame, answered: int) -> float:
        """Return the share of the work that is done, 0 to 1."""
        start_ns = self._bag.start_ns + self._options.start_s * 1e9
        end_ns = float(self._bag.end_ns)
        if self._options.duration_s is not None:
            end_ns = min(end_ns, start_ns + self._options.duration_s * 1e9)
        by_time = (frame.time_ns - start_ns) / max(end_ns - start_ns, 1.0)
        by_limit = answered / self._options.limit if self._options.limit else 0.0
        return min(1.0, max(0.0, by_time, by_limit))

    def _rows_of(self, frame: AnsweredFrame) -> list[FrameRow]:
        """Return the rows, made from the values that the node would publish."""
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
                        model=self._description['model'],
                        machine=self._machine,
                    )
                )
        return rows

    def _overlays(self, frame: AnsweredFrame) -> list[bytes]:
        """Return the overlays as JPEG, one per operating point.

        The first one on which the branches differ joins the gallery.
        """
        overlays = []
        is_shown = False
        for node, skip, comparison in zip(self._nodes, frame.skips, frame.comparisons, strict=True):
            title = records.overlay_title(node.strip('/'), frame.stamp_ns)
            tasks = records.overlay_tasks([skip, frame.full], comparison)
            overlays.append(rgb_to_jpeg(draw_overlay(frame.rgb, tasks, title=title), JPEG_QUALITY))
            if not is_shown and not all(task.agreement.agree for task in comparison.tasks):
                is_shown = True
                if self._gallery.wants_next():
                    small = draw_overlay(_narrow(frame.rgb), tasks, title=title)
                    jpeg = rgb_to_jpeg(small, JPEG_QUALITY)
                    self._gallery.add(GalleryFrame(frame.number, frame.stamp_ns, jpeg))
        return overlays

    def _write(self, replay: Replay, stopped_by: str) -> dict[str, Any]:
        """Write the table, the description and the report; return the content of replay.json."""
        hidden = self._num_problems - len(self._problems)
        try:
            return write_run(
                self._folder,
                self._description,
                self._rows,
                self._gallery,
                command=self._options.command,
                frames=replay.counts,
                problems=[
                    *self._bag.problems,
                    *self._problems,
                    *([f'{hidden} more like these'] if hidden else []),
                ],
                stopped_by=stopped_by,
            )
        except OSError as error:
            raise UserError(
                f'{self._folder}: cannot write the report ({error.strerror}): free disk space and '
                'run the same command again with --overwrite'
            ) from error


def _narrow(rgb: np.ndarray) -> np.ndarray:
    """Return the image, (H, W, 3), at most GALLERY_WIDTH wide."""
    height, width = rgb.shape[:2]
    if width <= GALLERY_WIDTH:
        return rgb
    size = (GALLERY_WIDTH, max(1, round(height * GALLERY_WIDTH / width)))
    return cv2.resize(rgb, size, interpolation=cv2.INTER_AREA)
