"""Load the model, take the newest due frame, answer it, yield the results."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

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
from gmskip_ros.vlm import (
    Engine,
    ImageError,
    ModelLoadError,
    Stopped,
    VlmError,
    VlmOutOfMemoryError,
)

if TYPE_CHECKING:
    from gmskip_ros.pipeline.settings import Settings

MAX_FAILURES_IN_A_ROW = 10  # then the state is error, until ~/enable is called off and on

LoadEngine: TypeAlias = 'Callable[[Settings, Callable[[str], None]], Engine]'


class Log(Protocol):
    """The part of a logger that the worker uses; rclpy's and Python's both fit."""

    def info(self, message: str) -> Any: ...
    def warning(self, message: str) -> Any: ...
    def error(self, message: str) -> Any: ...


@dataclass(frozen=True)
class FinishedFrame:
    """The last result of a frame: its image and everything that was answered about it."""

    rgb: np.ndarray  # uint8, (H, W, 3)
    branches: tuple[BranchResult, ...]
    comparison: Comparison | None  # None unless both branches have answered


FrameResult: TypeAlias = 'BranchResult | Comparison | FinishedFrame'


def load_engine(settings: Settings, on_progress: Callable[[str], None]) -> Engine:
    """Check the memory and load the model; imports torch. Raises ModelLoadError."""
    try:
        from gmskip_ros.vlm import load_vlm
        from gmskip_ros.vlm.memory import check_memory
    except ModuleNotFoundError as error:
        raise ModelLoadError(
            f'{error.name} is not installed for {sys.executable}: activate the virtual environment '
            'of docs/vehicle.md where the node is started'
        ) from error

    on_progress('checking the free memory')
    check_memory(
        settings.model,
        settings.device,
        settings.dtype,
        headroom_gib=settings.memory_headroom_gib,
        max_new_tokens=max(settings.max_new_tokens.values()),
        on_progress=on_progress,
    )
    return load_vlm(
        settings.model, settings.device, settings.dtype, on_progress, **settings.model_options
    )


class InferenceWorker:
    """Owns the model; one thread iterates over `results()`, all other methods are for others.

    `load(settings, on_progress)` returns the engine; `to_rgb(message)` an array, or raises
    ValueError; `settings()` the snapshot that applies to the next frame; `now_ns()` the time of the
    clock that stamps are made with.
    """

    def __init__(
        self,
        *,
        load: LoadEngine,
        to_rgb: Callable[[Any], np.ndarray],
        settings: Callable[[], Settings],
        skip_lists: Mapping[str, SkipList],
        now_ns: Callable[[], int],
        log: Log,
    ) -> None:
        self._load = load
        self._to_rgb = to_rgb
        self._settings = settings
        self._skip_lists = skip_lists
        self._now_ns = now_ns
        self._log = log
        first = settings()
        self.slot = FrameSlot(first.period_ns)
        self.health = Health(time.monotonic(), first.start_enabled)
        self.plan: FramePlan | None = None  # the one in use; None until the model is loaded
        self.engine: Engine | None = None
        self._planned: Settings | None = None  # the settings that self.plan was made from
        self._lock = threading.Lock()  # guards the next four, which several threads use
        self._enabled = first.start_enabled
        self._running = False
        self._error = False
        self._ended = False  # `results` was ended by an exception
        self._stop = threading.Event()
        self._publishing_error: BaseException | None = None  # of the result yielded last
        self._failures_in_a_row = 0
        # When inference last made progress, on the steady clock; None while it has nothing to do.
        self._progress_s: float | None = None
        self._logged = ''
        self._frame_size = (0, 0)  # of the newest answered frame, pixels
        self._warned: set[str] = set()

    @property
    def is_loading(self) -> bool:
        """Whether the model is not ready yet."""
        return not self._running

    def results(self) -> Generator[tuple[Frame, FrameResult], None, None]:
        """Yield each result of each frame as soon as it exists, until `stop` is called.

        A frame yields a BranchResult per branch, a Comparison if both ran, and a FinishedFrame,
        unless it is abandoned or fails before. Loads the model first. A result counts as published
        when the next one is asked for; if publishing fails, call `publishing_failed` before that.
        """
        try:
            while not self._stop.is_set():
                if not self._running and not self._error:
                    self._prepare()
                    continue
                frame, dropped = self.slot.take(self._is_stale)
                if dropped:
                    self.health.count(dropped)
                if frame is not None and not self._stop.is_set():
                    for result in self._process(frame):
                        yield frame, result
        except GeneratorExit:
            raise
        except BaseException as error:  # nothing else would ever report it
            with self._lock:
                self._ended = True
            self._enter_error(f'the inference thread has ended: {_one_line(error)}')
            raise

    def publishing_failed(self, error: BaseException) -> None:
        """Count the frame of the result yielded last as failed; its further results are dropped."""
        self._publishing_error = error

    def stop(self) -> None:
        """Make `results` end at the next block or token; loading cannot be interrupted."""
        self._stop.set()
        self.slot.wake()

    def receive(self, frame: Frame) -> None:
        """Accept a camera message from another thread; never blocks."""
        outcome = 'stale' if self._is_stale(frame) else self.slot.put(frame)
        self.health.frame_received(outcome, time.monotonic())

    def set_enabled(self, enabled: bool) -> tuple[bool, str]:
        """Pause or resume; return (success, message). Off then on also leaves the error state."""
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
                self._logged = ''  # log the same reason again if it fails in the same way
                self.health.set_phase('running' if self._running else 'loading', time.monotonic())
            self.health.set_enabled(enabled, time.monotonic())
            self._update_slot()
        self.slot.wake()
        if not enabled:
            return True, 'paused'
        return True, 'resumed after an error' if retry else 'resumed'

    def check_progress(self) -> None:
        """Enter the error state if inference hangs; call it periodically from another thread."""
        hangs = self._hangs()
        if hangs and not self._error:
            self._enter_error(hangs)

    def _hangs(self) -> str:
        """Return the reason if inference has made no progress for too long; else ''."""
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

    def _prepare(self) -> None:
        """Load, plan and warm up, or enter the error state with the reason."""
        self.health.set_phase('loading', time.monotonic())
        try:
            if self.engine is None:
                self.engine = self._load(self._settings(), self._on_progress)
            pipeline = self._pipeline(self._settings())
            if self._stop.is_set():
                return
            self.health.set_phase('warming_up', time.monotonic())
            self._make_progress()
            pipeline.warm_up(self._warm_up_stops)
        except Stopped:
            return
        except (SkipListError, TaskError) as error:  # their one line is complete
            self._enter_error(_first_line(error))
            return
        except BaseException as error:  # a panic in a Rust library is not an Exception
            self.engine = self.plan = None  # the files may be repaired before the next try
            self._enter_error(
                _first_line(error)
                if isinstance(error, VlmError)
                else f'the model cannot be used: {_one_line(error)}'
            )
            return
        finally:
            self._progress_s = None
        if self._error:  # the watchdog has raised it meanwhile
            return
        with self._lock:
            self._running = True
            self.health.set_phase('running', time.monotonic())
            self._update_slot()
        self._logged = ''
        engine = self.engine
        self._log.info(
            f'{engine.name} runs with {engine.num_blocks} blocks, {engine.dtype} on {engine.device}'
        )

    def _warm_up_stops(self) -> bool:
        self._make_progress()
        return self._stop.is_set()

    def _on_progress(self, text: str) -> None:
        if self._stop.is_set():
            raise Stopped('stopped while loading')
        self.health.set_phase('loading', time.monotonic(), text)

    def _pipeline(self, settings: Settings) -> FramePipeline:
        assert self.engine is not None
        if self.plan is None or settings is not self._planned:
            self.plan = plan_frame(
                self.engine,
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
        return FramePipeline(self.engine, self.plan)

    def _process(self, frame: Frame) -> Iterator[FrameResult]:
        """Yield the results of one frame and count its outcome; a failure ends them early."""
        self._make_progress()
        try:
            for result in self._answer(frame):
                yield result
                self._raise_publishing_error()
        except GeneratorExit:
            raise
        except Stopped:
            self.health.count('abandoned')
        except ImageError as error:
            self._image_failed(error)
        except VlmOutOfMemoryError as error:  # the pipeline has freed memory and tried again
            self._inference_failed(error)
            self._enter_error(_first_line(error))
        except BaseException as error:  # whatever it is, the camera goes on, and so does the node
            self._inference_failed(error)
        else:
            self._failures_in_a_row = 0
            self._logged = ''
        finally:
            self._progress_s = None

    def _raise_publishing_error(self) -> None:
        error, self._publishing_error = self._publishing_error, None
        if error is not None:
            raise error

    def _answer(self, frame: Frame) -> Iterator[FrameResult]:
        """Decode and answer one frame, yield its results; raises Stopped once it is not wanted."""
        start_s = time.monotonic()
        settings = self._settings()
        drops_full = settings.overload_policy == 'drop_full' and 'skip' in settings.branches
        branches: list[BranchResult] = []
        comparison: Comparison | None = None
        gave_way = False

        def is_wanted() -> bool:
            return self.slot.holds(frame) and not self._stop.is_set()

        def should_stop(branch: str) -> bool:
            nonlocal gave_way
            self._make_progress()
            gave_way = branch == 'full' and drops_full and self.slot.is_occupied()
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
                yield result
                if isinstance(result, Comparison):
                    comparison = result
                else:
                    self._log_view(rgb, result)
                    self.health.branch_done(result.branch, result.elapsed_ms)
                    branches.append(result)
        except Stopped:
            if not gave_way:
                raise
        if is_wanted():
            yield FinishedFrame(rgb, tuple(branches), comparison)
        period_ms = settings.period_ns / 1e6
        elapsed_ms = (time.monotonic() - start_s) * 1e3
        overload = ''
        if gave_way:
            overload = 'the full branch gave way to a newer frame'
        elif elapsed_ms > period_ms:
            overload = f'a frame takes {elapsed_ms:.0f} ms of the {period_ms:.0f} ms it has'
        outcome = 'full_dropped' if gave_way else 'answered'
        self.health.frame_done(outcome, time.monotonic(), overload)

    def _log_view(self, rgb: np.ndarray, result: BranchResult) -> None:
        """Log what the model sees of frames of this size, when the first one is answered."""
        height, width = rgb.shape[:2]
        if (width, height) == self._frame_size or self.engine is None:
            return
        self._frame_size = (width, height)
        share = self.engine.visible_share(width, height)
        line = (
            f'frames of {width}x{height}: the model sees {100 * share:.0f} % '
            f'(image_fit {result.tasks[0].image_fit}), {result.tasks[0].image_tokens} image tokens'
        )
        if share < 1:
            self._log.warning(f'{line}; image_fit: pad shows all of it')
        else:
            self._log.info(line)

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
