"""Load the model, take the newest due frame, answer it, yield the results."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np

from gmskip_ros.errors import first_line
from gmskip_ros.numbers import numbers_in
from gmskip_ros.pipeline.budget import (
    FrameTimes,
    Ladder,
    LatencyBudget,
    Rung,
    TaskTimes,
    make_ladder,
)
from gmskip_ros.pipeline.gate import Frame, FrameSlot
from gmskip_ros.pipeline.health import OK, Health, Report
from gmskip_ros.pipeline.parameters import AUTO
from gmskip_ros.pipeline.pipeline import (
    QUESTION,
    BranchResult,
    Comparison,
    FramePipeline,
    FramePlan,
    PreviousAnswers,
    plan_at,
    plan_frame,
)
from gmskip_ros.pipeline.question import Question, Questions, plan_question, refusal_of_text
from gmskip_ros.skipping import SkipList, SkipListError
from gmskip_ros.tasks import TaskError
from gmskip_ros.vlm import (
    Engine,
    ImageError,
    ModelLoadError,
    PromptError,
    Stopped,
    VlmError,
    VlmOutOfMemoryError,
)
from gmskip_ros.vlm.release import release_memory

if TYPE_CHECKING:
    from gmskip_ros.pipeline.settings import Settings

MAX_LOGGED = 100  # different reasons that are remembered
MAX_FAILURES_IN_A_ROW = 10  # then the state is error, until ~/enable is called off and on

# Of CUDA's errors those after which every call of the process fails, in any version of PyTorch.
LASTING_CUDA_ERRORS = (
    'device-side assert',
    'illegal',
    'misaligned address',
    'launch failure',
    'uncorrectable ECC',
    'hardware',
)

Fetch: TypeAlias = 'Callable[[Settings, Callable[[str], None]], None]'
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
    elapsed_ms: float  # since the frame was taken


NO_FRAMES_AFTER_S = 3.0  # or two periods: a question has no current frame then
FrameResult: TypeAlias = 'BranchResult | Comparison | FinishedFrame'


def load_engine(settings: Settings, on_progress: Callable[[str], None]) -> Engine:
    """Check the memory and load the model; imports torch. Raises ModelLoadError."""
    try:
        from gmskip_ros.vlm import load_vlm
        from gmskip_ros.vlm.memory import Sharing, check_memory
    except ModuleNotFoundError as error:
        raise _not_installed(error) from error

    on_progress('checking the free memory')
    check_memory(
        settings.model,
        settings.device,
        settings.dtype,
        quantization=settings.quantization,
        headroom_gib=settings.memory_headroom_gib,
        max_new_tokens=max(settings.max_new_tokens.values()),
        sharing=Sharing(**settings.sharing) if settings.sharing else None,
        max_image_tokens=settings.max_image_tokens,
        on_progress=on_progress,
    )
    return load_vlm(
        settings.model,
        settings.device,
        settings.dtype,
        on_progress,
        threads=settings.threads,
        **settings.model_options,
    )


def fetch_model(settings: Settings, on_progress: Callable[[str], None]) -> None:
    """Download the model's files, so that loading it needs no network; raises ModelLoadError."""
    try:
        from gmskip_ros.vlm.load import fetch_files
    except ModuleNotFoundError as error:
        raise _not_installed(error) from error
    fetch_files(settings.model, on_progress)


def _not_installed(error: ModuleNotFoundError) -> ModelLoadError:
    return ModelLoadError(
        f'{error.name} is not installed for {sys.executable}: activate the virtual environment '
        'of docs/vehicle.md where the node is started'
    )


class InferenceWorker:
    """Owns the model; one thread iterates over `results()`, all other methods are for others.

    `load(settings, on_progress)` returns the engine; `fetch(settings, on_progress)` downloads what
    it needs; `to_rgb(message)` an array, or raises
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
        fetch: Fetch = fetch_model,
        question_skip_list: SkipList | None = None,
    ) -> None:
        self._load = load
        self._fetch = fetch
        self._question_skip_list = question_skip_list
        self.questions = Questions()
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
        self.budget = LatencyBudget()
        self._previous = PreviousAnswers()
        self._planned: Settings | None = None  # the settings that self.plan was made from
        self._planned_rung: Rung | None = None  # what the budget made of them
        self._was_paused = False  # since the last frame
        self._lock = threading.Lock()  # guards the next four, which several threads use
        self._enabled = first.start_enabled
        self._running = False
        self._error = False
        self._ended = False  # `results` was ended by an exception, or the GPU is lost
        self._gpu_is_lost = False
        self._unloads = first.unload_when_paused
        self._stop = threading.Event()
        self._publishing_error: BaseException | None = None  # of the result yielded last
        self._failures_in_a_row = 0
        # When inference last made progress, on the steady clock; None while it has nothing to do.
        self._progress_s: float | None = None
        self._logged: set[str] = set()  # reasons since all was well
        self._logged_sizes: set[tuple[int, int]] = set()  # of answered frames, pixels
        self._warned: set[str] = set()

    @property
    def timing(self) -> str:
        """The timing of the plan in use; before there is one, as configured."""
        plan = self.plan
        return self._settings().timing if plan is None else plan.timing

    @property
    def is_loading(self) -> bool:
        """Whether the model is not ready yet."""
        return not self._running

    def results(self) -> Generator[tuple[Frame, FrameResult], None, None]:
        """Yield each result of each frame as soon as it exists, until `stop` is called.

        A frame yields a BranchResult per branch, a Comparison if both ran, and a FinishedFrame,
        unless it is abandoned or fails before; a question the same without the last. Loads the
        model first. A result counts as published when the next one is asked for; if publishing
        fails, call `publishing_failed` before that.
        """
        try:
            if self._unloads and not self._may_load():
                self._fetch_files()
            while not self._stop.is_set():
                if self._gpu_is_lost:
                    with self._lock:
                        self._ended = True
                    return
                if self._unload_if_paused():
                    continue
                if not self._running and not self._error and self._may_load():
                    self._prepare()
                    continue
                frame, dropped = self.slot.take(self._is_stale)
                if dropped:
                    self.health.count(dropped)
                if frame is not None and not self._stop.is_set():
                    for result in self._process(frame):
                        yield frame, result
                # After the frame: the tasks of every frame keep their turn.
                question = self.questions.take()
                if question is not None and not self._stop.is_set():
                    for answer in self._process_question(question):
                        yield question.frame, answer
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
        outcome = self.slot.put(frame, self._is_stale)
        if outcome not in ('stale', 'not_ready', 'out_of_order'):
            self.questions.note_frame(frame, time.monotonic())
        self.health.frame_received(outcome, time.monotonic())

    def ask(self, text: str) -> str:
        """Accept a question about the newest frame; return why it is refused, '' if it is not.

        For another thread; never blocks.
        """
        with self._lock:
            frame, arrived_s = self.questions.newest()
            reason = (
                refusal_of_text(text)
                or self._not_answering()
                or self._not_current(frame, time.monotonic() - arrived_s)
            )
            if reason or frame is None:
                self.questions.refuse(reason)
                return reason
            self.questions.put(Question(text, frame))
        self.slot.wake()
        return ''

    def _not_answering(self) -> str:
        """Return why no question is answered now; '' if one is."""
        if not self._enabled:
            return 'the node is paused: call ~/enable with true'
        if self._error:
            return 'the node is in the state error: see /diagnostics'
        return '' if self._running else 'the model is not loaded yet: ask again'

    def _not_current(self, frame: Frame | None, age_s: float) -> str:
        """Return why this is not the current frame; '' if it is."""
        if frame is None:
            return 'no image has arrived yet'
        if age_s > max(NO_FRAMES_AFTER_S, 2.0 / self._settings().rate_hz):
            return f'no image has arrived for {age_s:.0f} s'
        return 'the newest image is older than max_frame_age_sec' if self._is_stale(frame) else ''

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
            was_loaded = self._running or not self._unloads
            if enabled and not was_loaded and not self._error:
                self.health.set_phase('loading', time.monotonic())
            retry = enabled and self._error
            if retry:
                self._error = False
                self._failures_in_a_row = 0
                self._logged.clear()  # log the same reason again if it fails in the same way
                self.health.set_phase('running' if self._running else 'loading', time.monotonic())
            self.health.set_enabled(enabled, time.monotonic())
            self._was_paused = True
            self._update_slot()
        self.slot.wake()
        if not enabled:
            return True, 'paused'
        message = 'resumed after an error' if retry else 'resumed'
        return True, message if was_loaded else f'{message}: the model is being loaded'

    def report(self, no_frames_after_s: float, settle_s: float, degraded: str = '') -> Report:
        """Return the health now; arguments as in Health.report."""
        report = self.health.report(
            time.monotonic(),
            no_frames_after_s,
            settle_s,
            stuck_stamps=self.slot.stuck_stamps(int(no_frames_after_s * 1e9)),
            degraded=degraded or self.slot.unsteady_stamps(),
        )
        if report.level == OK:
            self._logged.clear()
        return report

    def engine_facts(self) -> dict[str, object]:
        """Return the keys of /diagnostics about the model; until it is loaded, as configured."""
        settings = self._settings()
        with self._lock:
            if self.engine is None:
                return {
                    'model': settings.model,
                    'device': settings.device,
                    'dtype': settings.dtype,
                    'quantization': settings.quantization,
                    'num_blocks': 0,
                    'image_fit': settings.image_fit,
                }
            facts: dict[str, object] = {
                'model': self.engine.name,
                'device': self.engine.device,
                'dtype': self.engine.dtype,
                'quantization': self.engine.quantization,
                'num_blocks': self.engine.num_blocks,
                'image_fit': self.engine.image_fit,
            }
            gpu_bytes = self.engine.device_memory_bytes()
        if gpu_bytes is not None:
            facts['gpu_memory_mib'] = gpu_bytes / 2**20
        return facts

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
        if not is_open:
            self.questions.close(self._not_answering())

    def _enter_error(self, reason: str) -> None:
        with self._lock:
            self.health.set_phase('error', time.monotonic(), reason)
            self._error = True
            self._update_slot()
        self._log_once(reason)

    def _log_once(self, reason: str) -> None:
        if len(self._logged) >= MAX_LOGGED:  # whatever a broken driver puts into its frames
            self._logged.clear()
        if reason not in self._logged:
            self._logged.add(reason)
            self._log.error(reason)

    def _is_stale(self, frame: Frame) -> bool:
        max_age_sec = self._settings().max_frame_age_sec
        return max_age_sec > 0 and self._now_ns() - frame.stamp_ns > max_age_sec * 1e9

    def _may_load(self) -> bool:
        return self._enabled or not self._unloads

    def _is_unwanted(self) -> bool:
        """Return whether loading should end: stopped, or paused where a pause unloads."""
        return self._stop.is_set() or not self._may_load()

    def _unload_if_paused(self) -> bool:
        """Give the model's memory back if a pause asks for it; return whether it was there."""
        with self._lock:
            if self._may_load():
                return False
            self._running = False
            if not self._error:
                self.health.set_phase('unloaded', time.monotonic())
            if self.engine is None:
                return False
        self._drop_model()
        self._log.info('the model is unloaded: ~/enable with true loads it again')
        return True

    def _drop_model(self) -> None:
        """Forget all that holds the model, and give its memory back but for the CUDA context."""
        with self._lock:  # not while `engine_facts` looks at it: it would outlive release_memory
            self.engine = self.plan = self._planned = self._planned_rung = None
            self._previous = PreviousAnswers()  # a repaired checkpoint may have other tokens
        self._publishing_error = None  # its traceback
        release_memory()

    def _fetch_files(self) -> None:
        """Download the model's files; state error with the reason if that fails."""
        self.health.set_phase('loading', time.monotonic())
        try:
            self._fetch(self._settings(), self._on_fetch_progress)
        except Stopped:
            return
        except BaseException as error:  # as in _prepare
            self._enter_error(_load_failure(error))
            return

    def _on_fetch_progress(self, text: str) -> None:
        if self._stop.is_set():
            raise Stopped('stopped while downloading')
        self.health.set_phase('loading', time.monotonic(), text)

    def _prepare(self) -> None:
        """Load, plan and warm up, or enter the error state with the reason."""
        failure, stopped = '', False
        pipeline: FramePipeline | None = None
        self.health.set_phase('loading', time.monotonic())
        try:
            if self.engine is None:
                self.engine = self._load(self._settings(), self._on_progress)
            pipeline = self._pipeline(self._settings())
            self._plan_question('?', self._settings())  # refuses a list of a different model
            if self._is_unwanted():
                return
            self.health.set_phase('warming_up', time.monotonic())
            self._make_progress()
            pipeline.warm_up(self._warm_up_stops)
        except Stopped:
            stopped = True
        except BaseException as error:  # a panic in a Rust library is not an Exception
            failure = _load_failure(error)
        finally:
            self._progress_s = None
        # Outside of the clauses, where the exception is gone with all that it holds.
        if stopped:  # perhaps between the last step of loading and its result
            if self.engine is None:
                release_memory()
            return
        if failure:
            pipeline = None
            self._drop_model()  # the files may be repaired before the next try
            self._enter_error(failure)
            return
        with self._lock:
            if self._error:  # the watchdog has raised it meanwhile
                return
            self._running = True
            self.health.set_phase('running', time.monotonic())
            self._update_slot()
        self._logged.clear()
        engine = self.engine
        assert engine is not None
        self._log.info(
            f'{engine.name} runs with {engine.num_blocks} blocks, '
            f'{numbers_in(engine.dtype, engine.quantization)} on {engine.device}'
        )
        if engine.name == 'demo':
            self._log.warning(
                'the model demo is a toy, trained on rendered scenes: what it answers about camera '
                'images means nothing; set the parameter model'
            )

    def _warm_up_stops(self) -> bool:
        self._make_progress()
        return self._is_unwanted()

    def _on_progress(self, text: str) -> None:
        if self._is_unwanted():
            raise Stopped('stopped while loading')
        self.health.set_phase('loading', time.monotonic(), text)

    def _pipeline(self, settings: Settings) -> FramePipeline:
        assert self.engine is not None
        plan = self.plan
        if plan is None or settings is not self._planned:
            plan = plan_frame(
                self.engine,
                settings.make_tasks(),
                self._skip_lists,
                settings.operating_point,
                settings.branches,
                settings.caption_agreement,
                settings.timing,
            )
            if self.plan is not None and plan.timing != self.plan.timing:
                self.health.forget_latencies()
                self.budget.restart()
            self._planned, self._planned_rung = settings, None
            self._warn_once(plan.warnings)
            self.budget.use(settings.latency_budget_ms, self._ladder(settings))
        if self._was_paused:
            self._was_paused = False
            self.budget.restart()
        rung = self.budget.rung
        if rung is not self._planned_rung and rung is not None:
            plan = plan_at(plan, self._skip_lists, rung.points)
            self._planned_rung = rung
        self.plan = plan
        return FramePipeline(self.engine, plan, self._previous)

    def _ladder(self, settings: Settings) -> Ladder | None:
        """Return the choices of the latency budget; None without one."""
        assert self.engine is not None
        if not settings.latency_budget_ms:
            return None
        if 'skip' not in settings.branches:
            self._warn_once(['latency_budget_ms has no effect: branches lacks skip'])
            return None
        skip_lists = [self._skip_lists.get(task) for task in settings.tasks]
        return make_ladder(skip_lists, settings.operating_point, self.engine.num_blocks)

    def _warn_once(self, warnings: Iterable[str]) -> None:
        for warning in warnings:
            if warning not in self._warned:
                self._warned.add(warning)
                self._log.warning(warning)

    def _plan_question(self, text: str, settings: Settings) -> FramePlan:
        assert self.engine is not None
        is_own = settings.skip_list[QUESTION] != AUTO
        skip_list = self._question_skip_list
        plan = plan_question(self.engine, text, settings, skip_list, is_own=is_own)
        self._warn_once(plan.warnings)
        return plan

    def _process_question(self, question: Question) -> Iterator[FrameResult]:
        """Yield the answers to a question and count it; a failure refuses it with the reason."""
        self._make_progress()
        reason = ''
        try:
            for result in self._answer_question(question):
                yield result
                self._raise_publishing_error()
        except GeneratorExit:
            raise
        except Stopped:
            return  # counted where it was taken back
        except (ImageError, PromptError) as error:
            reason = first_line(error)
        except VlmOutOfMemoryError as error:
            reason = first_line(error)
            self.questions.refuse(reason, question)  # before the state refuses it without a reason
            self._enter_error(reason)
        except BaseException as error:  # whatever it is, the next frame is answered
            reason = f'inference failed: {_one_line(error)}'
            if _loses_gpu(error):
                self.questions.refuse(reason, question)
                self._lose_gpu(error)
        finally:
            self._progress_s = None
        if reason:
            self.questions.refuse(reason, question)
            self._log.error(f'no answer to the question {question.text!r}: {reason}')
        else:
            self.questions.finish(question)

    def _answer_question(self, question: Question) -> Iterator[FrameResult]:
        """Yield the results of a question; raises Stopped once it is not wanted."""
        settings = self._settings()
        rgb = self._decode(question.frame)
        assert self.engine is not None
        pipeline = FramePipeline(self.engine, self._plan_question(question.text, settings))
        yield from self._run(pipeline, rgb, settings, lambda: self.questions.holds(question))

    def _decode(self, frame: Frame) -> np.ndarray:
        """Return the frame's image: uint8 RGB, (H, W, 3). Raises ImageError."""
        try:
            return self._to_rgb(frame.message)
        except ValueError as error:
            raise ImageError(str(error)) from error

    def _run(
        self,
        pipeline: FramePipeline,
        rgb: np.ndarray,
        settings: Settings,
        is_held: Callable[[], bool],
    ) -> Iterator[BranchResult | Comparison]:
        """Yield the results of an image; raises Stopped once `is_held` is False or on `stop`.

        With `drop_full`, they end before those of the full branch if a frame waits by then.
        """
        drops_full = settings.overload_policy == 'drop_full' and 'skip' in settings.branches
        gave_way = False

        def is_wanted() -> bool:
            return is_held() and not self._stop.is_set()

        def should_stop(branch: str) -> bool:
            nonlocal gave_way
            self._make_progress()
            gave_way = branch == 'full' and drops_full and self.slot.is_occupied()
            return gave_way or not is_wanted()

        try:
            for result in pipeline.run(rgb, should_stop):
                self._make_progress()
                if not is_wanted():
                    raise Stopped('paused or stopped')
                yield result
        except Stopped:
            if not gave_way:
                raise

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
            self._enter_error(first_line(error))
        except BaseException as error:  # whatever it is, the camera goes on, and so does the node
            self._inference_failed(error)
        else:
            self._failures_in_a_row = 0
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
        branches: list[BranchResult] = []
        comparison: Comparison | None = None
        rgb = self._decode(frame)
        pipeline = self._pipeline(settings)
        for result in self._run(pipeline, rgb, settings, lambda: self.slot.holds(frame)):
            if isinstance(result, BranchResult) and result.branch == 'skip':
                self._note_times(result, (time.monotonic() - start_s) * 1e3)
            yield result
            if isinstance(result, Comparison):
                comparison = result
            else:
                self._log_view(rgb, result)
                self.health.branch_done(result.branch, result.elapsed_ms)
                branches.append(result)
        if self.slot.holds(frame) and not self._stop.is_set():
            elapsed_ms = (time.monotonic() - start_s) * 1e3
            yield FinishedFrame(rgb, tuple(branches), comparison, elapsed_ms)
        gave_way = len(branches) < len(pipeline.plan.branches)
        period_ms = settings.period_ns / 1e6
        elapsed_ms = (time.monotonic() - start_s) * 1e3
        overload = ''
        if gave_way:
            overload = 'the full branch gave way to a newer frame'
        elif elapsed_ms > period_ms:
            overload = f'a frame takes {elapsed_ms:.0f} ms of the {period_ms:.0f} ms it has'
        outcome = 'full_dropped' if gave_way else 'answered'
        self.health.frame_done(outcome, time.monotonic(), overload)

    def _note_times(self, skip: BranchResult, total_ms: float) -> None:
        """Let the latency budget choose for the next frame; log what it changes."""
        before = self.budget.rung
        if before is None:
            return
        total_work = sum(work.prefill for work in before.work)
        tasks = tuple(
            TaskTimes(
                # What the answers share is the pass of the blocks over the image.
                task.answer.timing.prefill_ms + skip.shared_ms * work.prefill / total_work,
                task.answer.timing.decode_ms,
                len(task.answer.token_ids),
            )
            for task, work in zip(skip.tasks, before.work, strict=True)
        )
        self.budget.note(FrameTimes(total_ms, tasks))
        rung = self.budget.rung
        if rung is None or rung is before:
            return
        points = ', '.join(
            f'{task.task} {point}' for task, point in zip(skip.tasks, rung.points, strict=True)
        )
        limit_ms = self.budget.limit_ms
        if self.budget.is_unmet:
            self._warn_once([f'nothing fits latency_budget_ms {limit_ms:g}: {points}'])
        self._log.info(
            f'latency_budget_ms {limit_ms:g}: {points}; '
            f'{self.budget.expected_ms:.0f} ms are expected'
        )

    def _log_view(self, rgb: np.ndarray, result: BranchResult) -> None:
        """Log what the model sees of frames of this size, when the first one is answered."""
        height, width = rgb.shape[:2]
        is_logged = (width, height) in self._logged_sizes or len(self._logged_sizes) >= MAX_LOGGED
        if is_logged or self.engine is None:
            return
        self._logged_sizes.add((width, height))
        share = self.engine.visible_box(width, height).share
        line = (
            f'frames of {width}x{height}: the model sees {100 * share:.0f} % '
            f'(image_fit {result.tasks[0].image_fit}), {result.tasks[0].image_tokens} image tokens'
        )
        if share < 1:
            self._log.warning(f'{line}; image_fit: pad shows all of it')
        else:
            self._log.info(line)

    def _image_failed(self, error: ImageError) -> None:
        reason = f'no answer to this image: {first_line(error)}'
        self.health.failure('undecodable', reason, time.monotonic())
        self._log_once(reason)

    def _inference_failed(self, error: BaseException) -> None:
        reason = f'inference failed: {_one_line(error)}'
        self.health.failure('failed', reason, time.monotonic())
        self._log_once(reason)
        self._failures_in_a_row += 1
        if _loses_gpu(error):
            self._lose_gpu(error)
        elif self._failures_in_a_row >= MAX_FAILURES_IN_A_ROW:
            self._enter_error(f'{MAX_FAILURES_IN_A_ROW} frames in a row: {reason}')

    def _lose_gpu(self, error: BaseException) -> None:
        self._gpu_is_lost = True
        self._enter_error(f'the GPU is lost to this process: restart the node ({_one_line(error)})')


def _loses_gpu(error: BaseException) -> bool:
    text = str(error)
    return (
        isinstance(error, RuntimeError)
        and 'CUDA error' in text
        and any(words in text for words in LASTING_CUDA_ERRORS)
    )


def _load_failure(error: BaseException) -> str:
    """Return one line that says why the model cannot be used."""
    if isinstance(error, (SkipListError, TaskError, VlmError)):  # their one line is complete
        return first_line(error)
    return f'the model cannot be used: {_one_line(error)}'


def _one_line(error: BaseException) -> str:
    return f'{type(error).__name__}: {first_line(error)}'
