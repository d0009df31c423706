"""The worker with a stand-in model: which frame it takes, what is published, states."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from fake_vlm import FakeVlm

from gmskip_ros.pipeline.gate import Frame
from gmskip_ros.pipeline.parameters import SPECS
from gmskip_ros.pipeline.pipeline import BranchResult, Comparison
from gmskip_ros.pipeline.settings import (
    Settings,
    load_skip_lists,
    question_skip_list,
    settings_from,
)
from gmskip_ros.pipeline.worker import (
    MAX_FAILURES_IN_A_ROW,
    FinishedFrame,
    FrameResult,
    InferenceWorker,
)
from gmskip_ros.vlm import ModelLoadError, NonFiniteLogitsError, VlmOutOfMemoryError
from gmskip_ros.vlm.answer import Box

SECOND = 1_000_000_000
GREY = np.full((48, 64, 3), 128, dtype=np.uint8)
DEADLINE_S = 30.0


class Recorder:
    """Publishes by remembering."""

    def __init__(self) -> None:
        self.events: list[tuple[str, int]] = []  # (what, stamp in s)

    def publish(self, frame: Frame, result: FrameResult) -> None:
        if isinstance(result, BranchResult):
            what = result.branch
        else:
            what = 'comparison' if isinstance(result, Comparison) else 'done'
        self.events.append((what, frame.stamp_ns // SECOND))

    def done(self) -> list[int]:
        return [stamp for what, stamp in self.events if what == 'done']


class Bench:
    """A worker with a stand-in model, its clock and settings, and a thread that publishes."""

    def __init__(self, vlm: FakeVlm | None = None, **settings: Any) -> None:
        self.vlm = vlm or FakeVlm()
        values = {name: spec.default for name, spec in SPECS.items()}
        values.update({f'skip_list.{task}': f'gmskip_{task}' for task in values['tasks']})
        self.settings = settings_from({**values, 'tasks': ['single_object'], **settings})
        self.outputs = Recorder()
        self.publish: Callable[[Frame, FrameResult], None] = self.outputs.publish
        self.now_ns = 0
        self.load: Callable[[], FakeVlm] = lambda: self.vlm
        self.to_rgb: Callable[[Any], np.ndarray] = lambda message: GREY
        skip_lists = load_skip_lists(self.settings)
        self.worker = InferenceWorker(
            load=self._load,
            to_rgb=lambda message: self.to_rgb(message),
            settings=lambda: self.settings,
            skip_lists=skip_lists,
            question_skip_list=question_skip_list(self.settings, skip_lists),
            now_ns=lambda: self.now_ns,
            log=logging.getLogger('bench'),
        )
        self.thread = threading.Thread(target=self._publish_results)

    def _load(self, settings: Settings, on_progress: Callable[[str], None]) -> FakeVlm:
        on_progress('reading weights')
        return self.load()

    def _publish_results(self) -> None:
        """Do as the node's inference thread does."""
        for frame, result in self.worker.results():
            try:
                self.publish(frame, result)
            except BaseException as error:
                self.worker.publishing_failed(error)

    def start(self) -> Bench:
        self.thread.start()
        return self

    def stop(self, timeout_s: float) -> bool:
        """Stop the worker; return whether its thread has ended."""
        self.worker.stop()
        self.thread.join(timeout_s)
        return not self.thread.is_alive()

    def send(self, *stamps_s: float) -> None:
        for stamp in stamps_s:
            self.worker.receive(Frame(message=stamp, stamp_ns=round(stamp * SECOND)))

    def state(self) -> str:
        return self.worker.health.report(time.monotonic()).state

    def frames(self) -> dict[str, int]:
        return self.worker.health.report(time.monotonic()).frames

    def wait_for_answers(self, count: int = 1) -> None:
        """Wait until this many frames are finished and counted."""
        self.wait(lambda: sum(map(self.frames().get, ('answered', 'full_dropped'))) >= count)

    def wait(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < deadline, (self.outputs.events, self.frames())
            time.sleep(0.002)


def make_benches() -> Iterator[Callable[..., Bench]]:
    """Give a function that makes benches; all are stopped at the end."""
    benches: list[Bench] = []

    def make(*args: Any, **kwargs: Any) -> Bench:
        benches.append(Bench(*args, **kwargs))
        return benches[-1]

    yield make
    for made in benches:
        assert made.stop(DEADLINE_S)


bench = pytest.fixture(name='bench')(make_benches)


class Gate:
    """Once armed, blocks the model at its next token until it is released."""

    def __init__(self, holds: Callable[[bool], bool] = lambda skips: True) -> None:
        self.holds = holds
        self.armed = threading.Event()
        self.reached = threading.Event()
        self.let_go = threading.Event()

    def __call__(self, skips: bool) -> None:
        if self.armed.is_set() and self.holds(skips) and not self.let_go.is_set():
            self.reached.set()
            assert self.let_go.wait(DEADLINE_S)


def start_and_hold(
    bench: Callable[..., Bench], gate: Gate | None = None, **settings: Any
) -> tuple[Bench, Gate]:
    """Start a worker; return it while the gate holds it at a token of the frame at 0 s."""
    gate = gate or Gate()
    b = bench(FakeVlm(gate), **settings).start()
    b.wait(lambda: b.state() == 'ready')
    gate.armed.set()
    b.send(0.0)
    assert gate.reached.wait(DEADLINE_S)
    return b, gate


def test_each_branch_is_handed_on_in_order(bench: Callable[..., Bench]) -> None:
    b = bench().start()
    b.wait(lambda: b.state() == 'ready')
    assert b.outputs.events == []  # warming up publishes nothing
    b.send(1.0)
    b.wait_for_answers()
    assert b.outputs.events == [('skip', 1), ('full', 1), ('comparison', 1), ('done', 1)]


def test_a_busy_worker_takes_the_newest_due_frame(bench: Callable[..., Bench]) -> None:
    b, gate = start_and_hold(bench)
    b.send(0.5, 1.0, 1.5, 2.0, 3.0, 2.9)
    gate.let_go.set()
    b.wait_for_answers(2)
    assert b.outputs.done() == [0, 3]
    frames = b.frames()
    assert frames['received'] == 7
    assert frames['gated'] == 1  # 0.5
    assert frames['replaced'] == 3  # 1.0, 1.5, 2.0
    assert frames['out_of_order'] == 1  # 2.9
    assert frames['answered'] == 2


def test_frames_before_ready_are_counted_and_not_kept(bench: Callable[..., Bench]) -> None:
    b = bench()
    let_go = threading.Event()

    def load() -> FakeVlm:
        assert let_go.wait(DEADLINE_S)
        return b.vlm

    b.load = load
    b.start()
    b.wait(lambda: 'reading weights' in b.worker.health.report(0.0).reason)
    assert b.state() == 'loading'
    b.send(0.0, 1.0)
    let_go.set()
    b.wait(lambda: b.state() == 'ready')
    b.send(2.0)
    b.wait_for_answers()
    assert b.outputs.done() == [2]
    assert b.frames()['not_ready'] == 2


def test_stale_frames_are_dropped_and_do_not_use_up_their_period(
    bench: Callable[..., Bench],
) -> None:
    b = bench(max_frame_age_sec=0.5).start()
    b.wait(lambda: b.state() == 'ready')
    b.now_ns = 10 * SECOND
    b.send(9.0)  # too old
    b.send(9.6)
    b.wait_for_answers()
    assert b.outputs.done() == [9] and b.frames()['stale'] == 1


def test_a_frame_that_became_stale_while_it_waited_is_dropped(bench: Callable[..., Bench]) -> None:
    b, gate = start_and_hold(bench, max_frame_age_sec=2)
    b.send(1.0)
    b.now_ns = 10 * SECOND
    gate.let_go.set()
    b.wait(lambda: b.frames()['stale'] == 1)
    assert b.outputs.done() == [0]


def test_the_age_of_a_frame_counts_only_while_frames_are_taken(
    bench: Callable[..., Bench],
) -> None:
    """Each is counted once, for the reason that a user would look for."""
    b = bench(max_frame_age_sec=0.5)
    b.now_ns = 10 * SECOND
    b.send(1.0)  # nothing is loaded yet
    b.start()
    b.wait(lambda: b.state() == 'ready')
    b.worker.set_enabled(False)
    b.send(2.0)
    b.wait(lambda: b.state() == 'paused')
    frames = b.frames()
    assert (frames['received'], frames['not_ready'], frames['stale']) == (2, 2, 0)
    b.worker.set_enabled(True)
    b.send(3.0)
    frames = b.frames()
    assert (frames['received'], frames['not_ready'], frames['stale']) == (3, 2, 1)


def test_drop_full_gives_way_to_a_newer_due_frame_only(bench: Callable[..., Bench]) -> None:
    in_full = Gate(holds=lambda skips: not skips)
    b, gate = start_and_hold(bench, in_full, overload_policy='drop_full')
    b.send(0.5, 1.0)  # the second is due
    gate.let_go.set()
    b.wait_for_answers(2)
    assert b.outputs.events == [
        ('skip', 0),
        ('done', 0),
        ('skip', 1),
        ('full', 1),
        ('comparison', 1),
        ('done', 1),
    ]
    assert b.frames()['full_dropped'] == 1 and b.frames()['answered'] == 1


def test_slow_down_runs_both_branches_whatever_waits(bench: Callable[..., Bench]) -> None:
    in_full = Gate(holds=lambda skips: not skips)
    b, gate = start_and_hold(bench, in_full, overload_policy='slow_down')
    b.send(1.0)
    gate.let_go.set()
    b.wait_for_answers(2)
    assert [what for what, stamp in b.outputs.events if stamp == 0] == [
        'skip',
        'full',
        'comparison',
        'done',
    ]


def test_a_frame_longer_than_its_period_is_overload(bench: Callable[..., Bench]) -> None:
    b = bench(rate_hz=60.0).start()
    b.wait(lambda: b.state() == 'ready')
    b.vlm.on_token = lambda skips: time.sleep(0.02)
    b.send(0.0)
    b.wait_for_answers()
    report = b.worker.health.report(time.monotonic())
    assert report.state == 'overload' and '17 ms' in report.reason


def test_new_settings_hold_from_the_next_frame(bench: Callable[..., Bench]) -> None:
    b = bench().start()
    b.wait(lambda: b.state() == 'ready')
    before = b.settings

    def change(message: Any) -> np.ndarray:
        prompt = {**before.prompt, 'single_object': 'Which?'}
        b.settings = replace(before, prompt=prompt)
        return GREY

    b.to_rgb = change  # while the first frame is being answered
    b.send(0.0)
    b.wait_for_answers()
    assert b.vlm.calls[-1][1] == before.prompt['single_object']
    b.send(1.0)
    b.wait_for_answers(2)
    assert b.vlm.calls[-1][1] == 'Which?'


def test_the_timing_can_be_changed_between_frames(bench: Callable[..., Bench]) -> None:
    b = bench()
    timings: list[str] = []
    keep = b.publish

    def publish(frame: Frame, result: FrameResult) -> None:
        if not isinstance(result, FinishedFrame):
            timings.append(result.timing)
        keep(frame, result)

    b.publish = publish
    b.start()
    b.wait(lambda: b.state() == 'ready')
    assert b.worker.timing == 'isolated'
    windows = b.worker.health.report(time.monotonic()).latency_ms
    assert not windows
    for number, timing in enumerate(('isolated', 'isolated', 'shared', 'shared'), start=1):
        if timing == 'shared' and number == 3:
            b.vlm.on_token = lambda skips: time.sleep(0.01)  # 30 ms an answer
        b.settings = replace(b.settings, timing=timing)
        b.send(float(number))
        b.wait_for_answers(number)
    assert timings == 6 * ['isolated'] + 6 * ['shared'] and b.worker.timing == 'shared'
    assert b.outputs.done() == [1, 2, 3, 4]
    shared = [call for call in b.vlm.calls if call[0] == 'shared answer']
    assert [call[1] for call in shared] == [0, 1, 0, 1]
    # The answers to the frame before are drafts, however they were made.
    assert [call[2] for call in shared] == 2 * [{0: [(7,)]}, {1: [(7,), (8, 9)]}]
    # Medians of the latency do not mix the two.
    for p50, _ in b.worker.health.report(time.monotonic()).latency_ms.values():
        assert p50 >= 30.0


def test_questions_share_within_themselves(bench: Callable[..., Bench]) -> None:
    b = bench(timing='shared').start()
    b.wait(lambda: b.state() == 'ready')
    shared = [call for call in b.vlm.calls if call[0] == 'share_frame']
    assert len(shared) == 1  # to warm up
    b.send(1.0)
    b.wait_for_answers()
    b.worker.ask('Is it wet?')
    b.wait(lambda: b.worker.questions.facts()['questions_answered'] == 1)
    asked = [call[1:] for call in b.vlm.calls if call[0] == 'share_frame'][-1]
    assert [question.prompt for question in asked] == 2 * ['Is it wet?']
    drafts = [call[2] for call in b.vlm.calls if call[0] == 'shared answer'][-1]
    assert drafts == {1: [(7,)]}  # the skip branch's answer to this question alone


def test_pausing_abandons_the_frame_and_publishes_nothing_more(
    bench: Callable[..., Bench],
) -> None:
    b, gate = start_and_hold(bench)
    b.send(1.0)  # waits
    assert b.worker.set_enabled(False) == (True, 'paused')
    gate.let_go.set()
    b.wait(lambda: b.frames()['abandoned'] == 1)
    b.send(2.0)
    assert b.state() == 'paused'
    assert b.worker.set_enabled(True) == (True, 'resumed')
    b.send(3.0)
    b.wait_for_answers()
    assert b.outputs.done() == [3]
    frames = b.frames()
    assert frames['not_ready'] == 2  # the one that was waiting, and the one during the pause
    assert frames.pop('received') == sum(frames.values())  # each counted once


def test_a_frame_from_before_a_pause_is_not_answered_after_a_quick_resume(
    bench: Callable[..., Bench],
) -> None:
    b, gate = start_and_hold(bench)
    b.worker.set_enabled(False)
    b.worker.set_enabled(True)
    gate.let_go.set()
    b.wait(lambda: b.frames()['abandoned'] == 1)
    b.send(1.0)
    b.wait_for_answers()
    assert {stamp for _, stamp in b.outputs.events} == {1}


def test_a_frame_is_not_drawn_after_a_pause(bench: Callable[..., Bench]) -> None:
    b = bench().start()
    b.wait(lambda: b.state() == 'ready')

    def pause(frame: Frame, result: FrameResult) -> None:
        b.outputs.publish(frame, result)
        if isinstance(result, Comparison):
            b.worker.set_enabled(False)
            b.worker.set_enabled(True)

    b.publish = pause
    b.send(0.0)
    b.wait_for_answers()
    assert b.outputs.events == [('skip', 0), ('full', 0), ('comparison', 0)]


def test_started_disabled_it_loads_and_waits(bench: Callable[..., Bench]) -> None:
    b = bench(start_enabled=False).start()
    b.wait(lambda: b.state() == 'paused')
    b.send(0.0)
    assert b.frames()['not_ready'] == 1
    assert b.worker.set_enabled(True)[0]
    b.send(1.0)
    b.wait_for_answers()
    assert b.outputs.done() == [1]


def test_good_frames_between_bad_ones_do_not_fill_the_log(
    bench: Callable[..., Bench], caplog: pytest.LogCaptureFixture
) -> None:
    b = bench().start()
    b.wait(lambda: b.state() == 'ready')

    def refuse_odd(message: float) -> np.ndarray:
        if message % 2:
            raise ValueError('the frame is broken')
        return GREY

    b.to_rgb = refuse_odd
    for stamp in range(10):
        b.send(float(stamp))
        outcome = 'undecodable' if stamp % 2 else 'answered'
        b.wait(lambda stamp=stamp, outcome=outcome: b.frames()[outcome] == stamp // 2 + 1)
    assert len([r for r in caplog.records if 'is broken' in r.message]) == 1


def test_an_undecodable_image_is_counted_and_never_answered(
    bench: Callable[..., Bench], caplog: pytest.LogCaptureFixture
) -> None:
    b = bench().start()
    b.wait(lambda: b.state() == 'ready')

    def refuse(message: float) -> np.ndarray:
        if message < 100.0:
            raise ValueError('encoding theora is unknown')
        return GREY

    b.to_rgb = refuse
    for stamp in range(MAX_FAILURES_IN_A_ROW + 3):
        b.send(float(stamp))
        b.wait(lambda stamp=stamp: b.frames()['undecodable'] == stamp + 1)
    report = b.worker.health.report(time.monotonic())
    # The camera is at fault, not the model: however many, they never lead to the state error.
    assert report.state == 'degraded' and 'encoding theora' in report.last_error
    assert len([r for r in caplog.records if 'theora' in r.message]) == 1  # logged once
    assert b.outputs.events == []
    b.send(100.0)
    b.wait_for_answers()
    assert b.outputs.done() == [100]


@pytest.mark.parametrize('where', ['to_rgb', 'publish'])
def test_failures_outside_the_model_count_like_those_inside(
    bench: Callable[..., Bench], where: str
) -> None:
    b = bench().start()
    b.wait(lambda: b.state() == 'ready')
    healthy = getattr(b, where)

    def fail(*_: Any) -> Any:
        raise MemoryError('too large')

    setattr(b, where, fail)
    for stamp in range(MAX_FAILURES_IN_A_ROW):
        b.send(float(stamp))
        b.wait(lambda stamp=stamp: b.frames()['failed'] == stamp + 1)
    b.wait(lambda: b.state() == 'error')
    assert 'MemoryError: too large' in b.worker.health.report(time.monotonic()).reason
    assert b.frames()['answered'] == 0
    setattr(b, where, healthy)
    b.worker.set_enabled(False)
    assert b.worker.set_enabled(True)[0]
    b.send(60.0)
    b.wait_for_answers()
    assert b.outputs.done() == [60] and b.state() == 'ready'


@pytest.mark.parametrize(
    ('kind', 'published'),
    [
        (BranchResult, []),
        (Comparison, ['skip', 'full']),
        (FinishedFrame, ['skip', 'full', 'comparison']),
    ],
)
def test_a_result_that_cannot_be_published_fails_its_frame_alone(
    bench: Callable[..., Bench], kind: type, published: list[str]
) -> None:
    b = bench().start()
    b.wait(lambda: b.state() == 'ready')

    def fail(frame: Frame, result: FrameResult) -> None:
        if isinstance(result, kind) and frame.stamp_ns == 0:
            raise RuntimeError('the publisher is gone')
        b.outputs.publish(frame, result)

    b.publish = fail
    b.send(0.0)
    b.wait(lambda: b.frames()['failed'] == 1)
    assert b.outputs.events == [(what, 0) for what in published]  # and nothing after it
    report = b.worker.health.report(time.monotonic())
    assert report.last_error == 'inference failed: RuntimeError: the publisher is gone'
    assert set(report.latency_ms) == set(published) & {'skip', 'full'}
    b.send(1.0)
    b.wait_for_answers()
    assert b.outputs.done() == [1] and b.frames()['answered'] == 1
    assert '(good for' in b.worker.health.report(time.monotonic()).reason


def test_results_that_are_closed_in_the_middle_of_a_frame_count_nothing() -> None:
    b = Bench()
    results = b.worker.results()
    taken = threading.Thread(target=lambda: next(results))
    taken.start()
    b.wait(lambda: b.state() == 'ready')
    b.send(0.0)
    taken.join(DEADLINE_S)
    results.close()
    frames = b.frames()
    assert frames.pop('received') == 1 and not any(frames.values())
    assert b.state() == 'ready'


@pytest.mark.filterwarnings('ignore::pytest.PytestUnhandledThreadExceptionWarning')
def test_a_thread_that_has_ended_is_an_error_that_enable_cannot_end(
    bench: Callable[..., Bench],
) -> None:
    b, gate = start_and_hold(bench, max_frame_age_sec=9.0)
    b.send(1.0)
    b.now_ns = None  # type: ignore[assignment]  # the clock fails, outside of any frame
    gate.let_go.set()
    b.wait(lambda: b.state() == 'error')
    for enabled in (False, True):
        success, message = b.worker.set_enabled(enabled)
        assert not success and 'restart the node' in message
    assert b.state() == 'error'


@pytest.mark.parametrize('error', [NonFiniteLogitsError('logits are NaN'), KeyError('bug')])
def test_failures_in_a_row_end_in_error_and_enable_recovers(
    bench: Callable[..., Bench], error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    b = bench().start()
    b.wait(lambda: b.state() == 'ready')

    def fail(skips: bool) -> None:
        raise error

    b.vlm.on_token = fail
    for stamp in range(MAX_FAILURES_IN_A_ROW):
        b.send(float(stamp))
        b.wait(lambda stamp=stamp: b.frames()['failed'] == stamp + 1)
    b.wait(lambda: b.state() == 'error')
    b.send(50.0)
    assert b.frames()['not_ready'] == 1
    assert b.outputs.events == []
    success, message = b.worker.set_enabled(True)
    assert not success and 'false' in message
    b.worker.set_enabled(False)
    assert b.worker.set_enabled(True)[0]
    for stamp in range(100, 100 + MAX_FAILURES_IN_A_ROW):
        b.send(float(stamp))
        expected = MAX_FAILURES_IN_A_ROW + stamp - 99
        b.wait(lambda expected=expected: b.frames()['failed'] == expected)
    b.wait(lambda: b.state() == 'error')
    # The same reason is logged again after the operator's retry.
    assert len([r for r in caplog.records if '10 frames in a row' in r.message]) == 2
    b.vlm.on_token = lambda skips: None
    b.worker.set_enabled(False)
    assert b.state() == 'paused'
    assert b.worker.set_enabled(True)[0]
    b.send(60.0)
    b.wait_for_answers()
    assert b.outputs.done() == [60] and b.state() == 'ready'


def test_a_failure_does_not_hide_that_no_frames_come(bench: Callable[..., Bench]) -> None:
    b = bench().start()
    b.wait(lambda: b.state() == 'ready')

    def fail(message: Any) -> np.ndarray:
        raise ValueError('half a picture')

    b.to_rgb = fail
    b.send(0.0)
    b.wait(lambda: b.worker.health.report(time.monotonic()).last_error)
    assert b.state() == 'degraded'
    report = b.worker.health.report(time.monotonic() + 60.0)
    assert report.state == 'no_frames' and 'half a picture' in report.last_error


def test_one_failure_is_degraded_until_the_next_answer(bench: Callable[..., Bench]) -> None:
    b = bench().start()
    b.wait(lambda: b.state() == 'ready')

    def fail_in_full(skips: bool) -> None:
        if not skips:
            raise RuntimeError('first line\nsecond line')

    b.vlm.on_token = fail_in_full
    b.send(0.0)
    b.wait(lambda: b.frames()['failed'] == 1)
    b.wait(lambda: b.state() == 'degraded')
    report = b.worker.health.report(time.monotonic())
    assert report.last_error == 'inference failed: RuntimeError: first line'
    assert b.outputs.events == [('skip', 0)]  # published before the failure; no comparison
    b.vlm.on_token = lambda skips: None
    b.send(1.0)
    b.wait_for_answers()
    report = b.worker.health.report(time.monotonic())
    assert report.state == 'degraded' and '(good for' in report.reason  # until it settles


def test_a_model_that_cannot_be_loaded_is_an_error_until_enabled_again(
    bench: Callable[..., Bench],
) -> None:
    b = bench()

    def load() -> FakeVlm:
        raise ModelLoadError('model /x: no such folder; give demo, a folder or a hub id')

    b.load = load
    b.start()
    b.wait(lambda: b.state() == 'error')
    assert 'no such folder' in b.worker.health.report(0.0).reason
    b.load = lambda: b.vlm
    b.worker.set_enabled(False)
    b.worker.set_enabled(True)
    b.wait(lambda: b.state() == 'ready')


def test_started_disabled_a_model_that_cannot_be_loaded_is_an_error_all_the_same(
    bench: Callable[..., Bench],
) -> None:
    b = bench(start_enabled=False)

    def load() -> FakeVlm:
        raise ModelLoadError('model /x: no such folder')

    b.load = load
    b.start()
    b.wait(lambda: b.state() == 'error')
    b.load = lambda: b.vlm
    assert b.worker.set_enabled(True)[0]
    b.wait(lambda: b.state() == 'ready')


def test_a_skip_list_for_another_model_is_never_run(bench: Callable[..., Bench]) -> None:
    vlm = FakeVlm()
    vlm.num_blocks = 24
    b = bench(vlm).start()
    b.wait(lambda: b.state() == 'error')
    reason = b.worker.health.report(time.monotonic()).reason
    assert '24' in reason and '32' in reason and '\n' not in reason
    assert vlm.calls == []


def test_stopping_in_the_middle_of_an_answer(bench: Callable[..., Bench]) -> None:
    b, gate = start_and_hold(bench)
    assert not b.stop(0.01)  # it is held
    gate.let_go.set()
    assert b.stop(DEADLINE_S)
    assert b.outputs.events == []


def start_and_hang(bench: Callable[..., Bench]) -> tuple[Bench, Gate]:
    """Start a worker; return it once the watchdog has seen it hang in the middle of a frame."""
    b, gate = start_and_hold(bench, watchdog_sec=1.0)
    b.worker.check_progress()
    assert b.state() != 'error'  # not at once

    def is_seen() -> bool:
        b.worker.check_progress()
        return b.state() == 'error'

    b.wait(is_seen)
    assert 'hangs' in b.worker.health.report(time.monotonic()).reason
    return b, gate


def test_inference_that_hangs_is_an_error_that_enable_cannot_end(
    bench: Callable[..., Bench],
) -> None:
    b, gate = start_and_hang(bench)
    b.send(5.0)
    assert b.frames()['not_ready'] == 1
    b.worker.set_enabled(False)
    success, message = b.worker.set_enabled(True)
    assert not success and 'restart the node' in message
    assert b.state() == 'error'
    gate.let_go.set()


def test_inference_that_comes_back_is_recovered_by_enable_and_its_frame_is_not_answered(
    bench: Callable[..., Bench],
) -> None:
    b, gate = start_and_hang(bench)
    gate.let_go.set()
    b.wait(lambda: b.frames()['abandoned'] == 1)
    assert b.state() == 'error'  # an operator decides
    b.worker.set_enabled(False)
    assert b.worker.set_enabled(True)[0]
    b.send(10.0)
    b.wait_for_answers()
    assert b.outputs.done() == [10] and b.state() == 'ready'


def test_memory_that_runs_out_once_is_freed_and_the_frame_answered(
    bench: Callable[..., Bench],
) -> None:
    b = bench().start()
    b.wait(lambda: b.state() == 'ready')
    failures = [VlmOutOfMemoryError('no memory left'), None]
    freed = []

    def fail_once(skips: bool) -> None:
        error = failures.pop(0) if failures else None
        if error is not None:
            raise error

    b.vlm.on_token = fail_once
    b.vlm.free_memory = lambda: freed.append(1)  # type: ignore[method-assign]
    b.send(0.0)
    b.wait_for_answers()
    assert freed == [1] and b.outputs.events == [
        ('skip', 0),
        ('full', 0),
        ('comparison', 0),
        ('done', 0),
    ]
    assert b.frames()['failed'] == 0 and b.state() == 'ready'


def test_memory_that_stays_out_is_an_error_at_once_and_enable_recovers(
    bench: Callable[..., Bench],
) -> None:
    b = bench().start()
    b.wait(lambda: b.state() == 'ready')

    def fail_full(skips: bool) -> None:
        if not skips:
            raise VlmOutOfMemoryError('no memory left: use a smaller model')

    b.vlm.on_token = fail_full
    b.send(0.0)
    b.wait(lambda: b.state() == 'error')
    assert 'smaller model' in b.worker.health.report(time.monotonic()).reason
    assert b.outputs.events == [('skip', 0)]  # it was complete; nothing is published for full
    b.vlm.on_token = lambda skips: None
    b.worker.set_enabled(False)
    assert b.worker.set_enabled(True)[0]
    b.send(5.0)
    b.wait_for_answers()
    assert b.state() == 'ready'


class Panic(BaseException):
    """Like the panics that the tokenizer's Rust libraries raise."""


def test_a_panic_is_a_failure_like_any_other(bench: Callable[..., Bench]) -> None:
    b = bench().start()
    b.wait(lambda: b.state() == 'ready')

    def panic(skips: bool) -> None:
        raise Panic('index out of bounds')

    b.vlm.on_token = panic
    b.send(0.0)
    b.wait(lambda: b.frames()['failed'] == 1)
    assert 'index out of bounds' in b.worker.health.report(time.monotonic()).last_error
    b.vlm.on_token = lambda skips: None
    b.send(5.0)
    b.wait_for_answers()
    assert b.outputs.done() == [5]


def test_a_model_that_fails_when_it_is_warmed_up_is_loaded_anew(
    bench: Callable[..., Bench],
) -> None:
    def fail(skips: bool) -> None:
        raise NonFiniteLogitsError('the model gave NaN')

    b = bench()
    loaded = [FakeVlm(fail), FakeVlm()]
    b.load = lambda: loaded.pop(0)
    b.start()
    b.wait(lambda: b.state() == 'error')
    b.worker.set_enabled(False)
    assert b.worker.set_enabled(True)[0]
    b.wait(lambda: b.state() == 'ready')
    assert loaded == []


def test_what_the_model_sees_of_a_frame_is_logged_once_per_size(bench, caplog) -> None:
    caplog.set_level(logging.INFO)

    class Cropping(FakeVlm):
        def visible_box(self, width: float, height: float) -> Box:
            return Box(0.0, 0.0, height / width, 1.0)

    b = bench(Cropping()).start()
    b.wait(lambda: b.state() == 'ready')
    shapes = [(90, 160), (90, 160), (100, 100)]
    b.to_rgb = lambda stamp: np.zeros((*shapes[int(stamp)], 3), np.uint8)
    for stamp in range(len(shapes)):
        b.send(float(stamp))
        b.wait_for_answers(stamp + 1)
    lines = [(r.levelname, r.message) for r in caplog.records if 'the model sees' in r.message]
    seen = 'image_fit checkpoint), 4 image tokens'
    assert lines == [
        (
            'WARNING',
            f'frames of 160x90: the model sees 56 % ({seen}; image_fit: pad shows all of it',
        ),
        ('INFO', f'frames of 100x100: the model sees 100 % ({seen}'),
    ]


def test_warnings_about_the_checkpoint_are_logged(bench, caplog) -> None:
    vlm = FakeVlm()
    vlm.warnings = ('generation_config.json sets repetition_penalty to 1.2',)
    b = bench(vlm).start()
    b.wait(lambda: b.state() == 'ready')
    assert any('repetition_penalty' in r.message for r in caplog.records)
