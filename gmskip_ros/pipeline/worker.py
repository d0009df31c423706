"""The inference thread: loads the model, takes the newest due frame, answers it, hands it on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from gmskip_ros.pipeline.gate import Frame, FrameSlot
from gmskip_ros.pipeline.health import Health
from gmskip_ros.pipeline.pipeline import (
    BranchResult,
    Comparison,
    FramePipeline,
    FramePlan,
    plan_frame,
)
from gmskip_ros.skipping import SkipList, SkipListError
from gmskip_ros.tasks import TaskError
from gmskip_ros.vlm import ImageError, Stopped, VlmError, VlmOutOfMemoryError

if TYPE_CHECKING:
    from gmskip_ros.pipeline.settings import Settings
    from gmskip_ros.vlm import Vlm

LOADING_JOIN_S = 0.2
MAX_FAILURES_IN_A_ROW = 10  # then the state is error, and ~/enable starts it again


class Log(Protocol):
    """What the worker needs of a logger: rclpy's and Python's both have it."""

    def info(self, message: str) -> Any: ...
    def warning(self, message: str) -> Any: ...
    def error(self, message: str) -> Any: ...


class Outputs(Protocol):
    """Where results go; called from the worker's thread."""

    def branch_done(self, frame: Frame, result: BranchResult) -> None: ...
    def comparison_done(self, frame: Frame, comparison: Comparison) -> None: ...
    def frame_done(
        self,
        frame: Frame,
        rgb: np.ndarray,
        results: list[BranchResult],
        comparison: Comparison | None,
    ) -> None: ...


class InferenceWorker:
    """
    One thread that owns the model.

    `load(settings, on_progress)` gives the Vlm; `to_rgb(message)` an array, or a ValueError;
    `settings()` the snapshot that holds for the next frame; `now_ns()` the time of the clock that
    stamps are made with.
    """

    def __init__(
        self,
        *,
        load: Callable[[Settings, Callable[[str], None]], Vlm],
        to_rgb: Callable[[Any], np.ndarray],
        settings: Callable[[], Settings],
        skip_lists: Mapping[str, SkipList],
        outputs: Outputs,
        now_ns: Callable[[], int],
        log: Log,
    ) -> None:
        self._load = load
        self._to_rgb = to_rgb
        self._settings = settings
        self._skip_lists = skip_lists
        self._outputs = outputs
        self._now_ns = now_ns
        self._log = log
        first = settings()
        self.slot = FrameSlot(first.period_ns)
        self.health = Health(time.monotonic(), first.start_enabled)
        self.plan: FramePlan | None = None  # the one in use; None until the model is loaded
        self.vlm: Vlm | None = None
        self._planned: Settings | None = None  # the settings that self.plan was made of
        self._lock = threading.Lock()  # of the four below, which both threads use
        self._enabled = first.start_enabled
        self._running = False
        self._error = False
        self._ended = False  # by an exception that nothing else has caught
        self._stop = threading.Event()
        self._failures_in_a_row = 0
        # When inference last made progress, on the steady clock; None while there is none to make.
        self._progress_s: float | None = None
        self._logged = ''
        self._warned: set[str] = set()
        # Not a daemon: a daemon thread inside torch at interpreter exit ends in an abort.
        self._thread = threading.Thread(target=self._run, name='inference')

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout_s: float) -> bool:
        """
        Ask the thread to end, wait for it; return whether it has ended.

        Loading cannot be interrupted and publishes nothing: that is hardly waited for.
        """
        self._stop.set()
        self.slot.wake()
        if self._thread.ident is not None:
            self._thread.join(timeout_s if self._running else min(timeout_s, LOADING_JOIN_S))
        return not self._thread.is_alive()

    def set_enabled(self, enabled: bool) -> tuple[bool, str]:
        """Pause or resume; returns (success, message). Off then on also leaves the error state."""
        with self._lock:
            if self._ended:
                return False, 'the inference thread has ended: restart the node'
            hangs = self._hangs()
            if enabled and self._error and hangs:
                self.health.set_phase('error', time.monotonic(), hangs)
                return False, f'{hangs}; it has not come back: restart the node'
            if enabled == self._enabled:
                if enabled and self._error:
                    return False, 'in error: call with false, then with true, to start again'
                return True, 'already enabled' if enabled else 'already paused'
            self._enabled = enabled
            retry = enabled and self._error
            if retry:
                self._error = False
                self._failures_in_a_row = 0
                self._logged = ''  # if it fails in the same way again, that is said again
                self.health.set_phase('running' if self._running else 'loading', time.monotonic())
            self.health.set_enabled(enabled, time.monotonic())
            self._update_slot()
        self.slot.wake()
        if not enabled:
            return True, 'paused'
        return True, 'resumed after an error' if retry else 'resumed'

    def check_progress(self) -> None:
        """Enter the error state if inference hangs; to be called now and then by another thread."""
        hangs = self._hangs()
        if hangs and not self._error:
            self._enter_error(hangs)

    def _hangs(self) -> str:
        """Return for how long there has been no progress, if that is too long; else ''."""
        progress_s, limit_s = self._progress_s, self._settings().watchdog_sec
        if progress_s is None or time.monotonic() - progress_s <= limit_s:
            return ''
        return f'inference hangs: no block and no token for more than {limit_s:g} s (watchdog_sec)'

    def _make_progress(self) -> None:
        self._progress_s = time.monotonic()

    def _update_slot(self) -> None:
        is_open = self._enabled and self._running and not self._error
        if self.slot.set_open(is_open):
            self.health.count('not_ready')

    def _enter_error(self, reason: str) -> None:
        self.health.set_phase('error', time.monotonic(), reason)
        with self._lock:
            self._error = True
            self._update_slot()
        self._log_once(reason)

    def _log_once(self, reason: str) -> None:
        if reason != self._logged:
            self._logged = reason
            self._log.error(reason)

    def _is_stale(self, frame: Frame) -> bool:
        max_age_sec = self._settings().max_frame_age_sec
        return max_age_sec > 0 and self._now_ns() - frame.stamp_ns > max_age_sec * 1e9

    def offer(self, frame: Frame) -> None:
        """Take a camera message, from the executor's thread; never waits for the worker."""
        outcome = 'stale' if self._is_stale(frame) else self.slot.offer(frame)
        self.health.frame_received(outcome, time.monotonic())

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                if not self._running and not self._error:
                    self._prepare()
                    continue
                frame, dropped = self.slot.take(self._is_stale)
                if dropped:
                    self.health.count(dropped)
                if frame is not None and not self._stop.is_set():
                    self._process(frame)
        except BaseException as error:  # nobody else would ever hear of it
            with self._lock:
                self._ended = True
            self._enter_error(f'the inference thread has ended: {_one_line(error)}')
            raise

    def _prepare(self) -> None:
        """Load, plan and warm up, or enter the error state with the reason."""
        self.health.set_phase('loading', time.monotonic())
        try:
            if self.vlm is None:
                self.vlm = self._load(self._settings(), self._on_progress)
            pipeline = self._pipeline(self._settings())
            if self._stop.is_set():
                return
            self.health.set_phase('warming_up', time.monotonic())
            self._make_progress()
            pipeline.warm_up(self._warm_up_stops)
        except Stopped:
            return
        except (SkipListError, TaskError) as error:  # they say all in one line
            self._enter_error(_first_line(error))
            return
        except BaseException as error:  # any: a panic in a library of Rust is no Exception
            self.vlm = self.plan = None  # what is on the disk may be put right before the next try
            self._enter_error(
                _first_line(error)
                if isinstance(error, VlmError)
                else f'the model cannot be used: {_one_line(error)}'
            )
            return
        finally:
            self._progress_s = None
        if self._error:  # the watchdog had given up meanwhile
            return
        with self._lock:
            self._running = True
            self.health.set_phase('running', time.monotonic())
            self._update_slot()
        self._logged = ''
        vlm = self.vlm
        self._log.info(f'{vlm.name} runs with {vlm.num_blocks} blocks, {vlm.dtype} on {vlm.device}')

    def _warm_up_stops(self) -> bool:
        self._make_progress()
        return self._stop.is_set()

    def _on_progress(self, text: str) -> None:
        if self._stop.is_set():
            raise Stopped('stopped while loading')
        self.health.set_phase('loading', time.monotonic(), text)

    def _pipeline(self, settings: Settings) -> FramePipeline:
        assert self.vlm is not None
        if self.plan is None or settings is not self._planned:
            self.plan = plan_frame(
                self.vlm,
                settings.make_tasks(),
                self._skip_lists,
                settings.operating_point,
                settings.branches,
            )
            self._planned = settings
            for warning in self.plan.warnings:
                if warning not in self._warned:
                    self._warned.add(warning)
                    self._log.warning(warning)
        return FramePipeline(self.vlm, self.plan)

    def _process(self, frame: Frame) -> None:
        """Answer one frame; whatever goes wrong, nothing is published for what is missing."""
        self._make_progress()
        try:
            self._answer(frame)
        except Stopped:
            self.health.count('abandoned')
        except ImageError as error:
            self._image_failed(error)
        except VlmOutOfMemoryError as error:  # the pipeline has freed memory and tried again
            self._inference_failed(error)
            self._enter_error(_first_line(error))
        except BaseException as error:  # any: the camera goes on, and so does the node
            self._inference_failed(error)
        else:
            self._failures_in_a_row = 0
            self._logged = ''
        finally:
            self._progress_s = None

    def _answer(self, frame: Frame) -> None:
        """Decode, answer and hand on one frame; raises Stopped when it is not wanted any more."""
        start_s = time.monotonic()
        settings = self._settings()
        drops_full = settings.overload_policy == 'drop_full' and 'skip' in settings.branches
        results: list[BranchResult] = []
        comparison: Comparison | None = None
        gave_way = False

        def is_wanted() -> bool:
            return self.slot.holds(frame) and not self._stop.is_set()

        def should_stop(branch: str) -> bool:
            nonlocal gave_way
            self._make_progress()
            gave_way = branch == 'full' and drops_full and self.slot.waits()
            return gave_way or not is_wanted()

        try:
            rgb = self._to_rgb(frame.message)
        except ValueError as error:
            raise ImageError(str(error)) from error
        try:
            for result in self._pipeline(settings).run(rgb, should_stop):
                self._make_progress()
                if not is_wanted():
                    raise Stopped('paused or stopped')
                if isinstance(result, Comparison):
                    comparison = result
                    self._outputs.comparison_done(frame, comparison)
                else:
                    self._outputs.branch_done(frame, result)
                    self.health.branch_done(result.branch, result.elapsed_ms)
                    results.append(result)
        except Stopped:
            if not gave_way:
                raise
        if is_wanted():
            self._outputs.frame_done(frame, rgb, results, comparison)
        period_ms = settings.period_ns / 1e6
        elapsed_ms = (time.monotonic() - start_s) * 1e3
        overload = ''
        if gave_way:
            overload = 'the full branch gave way to a newer frame'
        elif elapsed_ms > period_ms:
            overload = f'a frame takes {elapsed_ms:.0f} ms of the {period_ms:.0f} ms it has'
        outcome = 'full_dropped' if gave_way else 'answered'
        self.health.frame_done(outcome, time.monotonic(), overload)

    def _image_failed(self, error: ImageError) -> None:
        reason = f'no answer to this image: {_first_line(error)}'
        self.health.failure('undecodable', reason)
        self._log_once(reason)

    def _inference_failed(self, error: BaseException) -> None:
        reason = f'inference failed: {_one_line(error)}'
        self.health.failure('failed', reason)
        self._log_once(reason)
        self._failures_in_a_row += 1
        if self._failures_in_a_row >= MAX_FAILURES_IN_A_ROW:
            self._enter_error(f'{MAX_FAILURES_IN_A_ROW} frames in a row: {reason}')


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _one_line(error: BaseException) -> str:
    return f'{type(error).__name__}: {_first_line(error)}'
