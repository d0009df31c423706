"""Questions about the current frame, with a stand-in model: what is answered, counted, refused."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from fake_vlm import FakeVlm
from test_worker import DEADLINE_S, SECOND, Bench, Gate, make_benches

from gmskip_ros.pipeline import records
from gmskip_ros.pipeline.gate import Frame
from gmskip_ros.pipeline.parameters import SPECS
from gmskip_ros.pipeline.pipeline import BranchResult, Comparison
from gmskip_ros.pipeline.question import MAX_CHARS, plan_question
from gmskip_ros.pipeline.settings import (
    ParameterError,
    Settings,
    load_skip_lists,
    question_skip_list,
    settings_from,
)
from gmskip_ros.pipeline.worker import FrameResult
from gmskip_ros.skipping import (
    JOINT,
    SkipListMismatchError,
    SkipSet,
    load_skip_list,
    save_skip_list,
)
from gmskip_ros.vlm import PromptError, VlmOutOfMemoryError

MakeBench = Callable[..., Bench]
bench = pytest.fixture(name='bench')(make_benches)


class Heard:
    """Keeps results, those of questions apart."""

    def __init__(self, b: Bench) -> None:
        self.answers: list[tuple[Frame, FrameResult]] = []
        b.publish = self.publish
        self._rest = b.outputs.publish

    def publish(self, frame: Frame, result: FrameResult) -> None:
        is_answer = isinstance(result, BranchResult) and result.is_question
        if isinstance(result, Comparison):
            is_answer = result.tasks[0].skip.task == 'question'
        if is_answer:
            self.answers.append((frame, result))
        else:
            self._rest(frame, result)

    def questions(self) -> list[str]:
        """Return the questions that the skip branch has answered, in order."""
        first = [result for _, result in self.answers if isinstance(result, BranchResult)]
        return [r.tasks[0].question for r in first if r.branch == 'skip']


def facts(b: Bench) -> dict[str, Any]:
    return b.worker.questions.facts()


def counts(b: Bench) -> tuple[int, ...]:
    return tuple(facts(b)[f'questions_{n}'] for n in ('answered', 'replaced', 'refused'))


def ready(b: Bench) -> Bench:
    """Start it, and answer a first frame, which is the current one from then on."""
    b.start()
    b.wait(lambda: b.state() == 'ready')
    b.send(1.0)
    b.wait_for_answers()
    return b


def test_both_branches_answer_under_the_header_of_the_newest_frame(bench: MakeBench) -> None:
    b = bench()
    heard = Heard(b)
    ready(b)
    b.send(1.4)  # not due, and the newest all the same
    seen = []
    b.to_rgb = lambda message: seen.append(message) or np.zeros((48, 64, 3), np.uint8)
    assert b.worker.ask('Is the light green?') == ''
    b.wait(lambda: counts(b) == (1, 0, 0))
    assert seen == [1.4]
    frames, results = zip(*heard.answers, strict=True)
    assert {frame.stamp_ns for frame in frames} == {round(1.4 * SECOND)}
    skip, full, comparison = results
    assert (skip.branch, full.branch) == ('skip', 'full') and isinstance(comparison, Comparison)
    (status,) = records.result_statuses(skip, '/dual_vlm')
    assert status.name == 'question/skip' and status.message == 'dog'
    assert status.values['question'] == 'Is the light green?'
    (compared,) = records.comparison_statuses(comparison, '/dual_vlm')
    assert compared.name == 'question/comparison' and compared.message == 'differ'
    assert compared.values['question'] == 'Is the light green?' and 'rouge_l' in compared.values
    asked = [call for call in b.vlm.calls if call[0] == 'answer'][-2:]
    assert [(call[1], call[3]) for call in asked] == [('Is the light green?', 64)] * 2
    # It is no frame: nothing is drawn, counted or timed.
    assert b.outputs.done() == [1] and b.frames()['answered'] == 1
    assert b.state() == 'ready'


def test_a_newer_question_replaces_the_one_that_waits(bench: MakeBench) -> None:
    gate = Gate()
    b = bench(FakeVlm(gate))
    heard = Heard(b)
    ready(b)
    gate.armed.set()
    b.worker.ask('first')
    assert gate.reached.wait(DEADLINE_S)  # being answered: nothing replaces it
    for text in ('second', 'third', 'fourth'):
        b.worker.ask(text)
    gate.let_go.set()
    b.wait(lambda: counts(b) == (2, 2, 0))
    assert heard.questions() == ['first', 'fourth']


def test_the_tasks_of_every_frame_keep_their_turn(bench: MakeBench) -> None:
    gate = Gate()
    b = bench(FakeVlm(gate))
    order: list[str] = []
    Heard(b)
    keep = b.publish

    def publish(frame: Frame, result: FrameResult) -> None:
        if isinstance(result, BranchResult) and result.branch == 'skip':
            order.append(result.tasks[0].question or f'frame {frame.stamp_ns // SECOND}')
        keep(frame, result)

    b.publish = publish
    ready(b)
    gate.armed.set()
    b.worker.ask('a')
    assert gate.reached.wait(DEADLINE_S)
    b.send(2.0)  # due: it comes first, whatever is asked meanwhile
    b.worker.ask('b')
    gate.let_go.set()
    b.wait(lambda: counts(b)[0] == 2)
    assert order == ['frame 1', 'a', 'frame 2', 'b']
    assert b.frames()['answered'] == 2


def test_questions_one_after_the_other_do_not_keep_frames_waiting(bench: MakeBench) -> None:
    b = ready(bench())
    stop = threading.Event()

    def asks() -> None:
        while not stop.is_set():
            b.worker.ask('again?')
            time.sleep(0.0005)

    asker = threading.Thread(target=asks)
    asker.start()
    try:
        for second in range(2, 12):
            b.send(float(second))
            b.wait(lambda second=second: b.outputs.done()[-1:] == [second])
    finally:
        stop.set()
        asker.join()
    b.wait(lambda: counts(b)[0] > 3)


@pytest.mark.parametrize(
    ('text', 'words'),
    [
        ('', 'is empty'),
        (' \n', 'is empty'),
        ('What is <image>?', 'contains <image>'),
        ('a' * (MAX_CHARS + 1), f'has {MAX_CHARS + 1} characters: ask in {MAX_CHARS}'),
    ],
)
def test_a_text_that_cannot_be_asked_is_refused(bench: MakeBench, text: str, words: str) -> None:
    b = ready(bench())
    before = len(b.vlm.calls)
    assert words in b.worker.ask(text)
    assert counts(b) == (0, 0, 1) and words in facts(b)['question_refused_reason']
    assert len(b.vlm.calls) == before
    assert b.worker.ask('a' * MAX_CHARS) == ''
    b.wait(lambda: counts(b)[0] == 1)


def test_there_is_no_answer_without_a_current_frame(
    bench: MakeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    b = bench(max_frame_age_sec=100.0)
    assert 'not loaded' in b.worker.ask('What?')
    b.start()
    b.wait(lambda: b.state() == 'ready')
    assert 'no image has arrived yet' in b.worker.ask('What?')
    b.send(1.0)
    b.wait_for_answers()
    b.now_ns = 102 * SECOND
    assert 'older than max_frame_age_sec' in b.worker.ask('What?')
    b.now_ns = 0
    now_s = time.monotonic()
    with monkeypatch.context() as patched:
        patched.setattr('gmskip_ros.pipeline.worker.time.monotonic', lambda: now_s + 60)
        assert 'no image has arrived for 6' in b.worker.ask('What?')
    assert counts(b) == (0, 0, 4)


def test_a_pause_refuses_what_waits_and_what_is_asked(bench: MakeBench) -> None:
    gate = Gate()
    b = bench(FakeVlm(gate))
    heard = Heard(b)
    ready(b)
    gate.armed.set()
    b.worker.ask('being answered')
    assert gate.reached.wait(DEADLINE_S)
    b.worker.ask('waits')
    b.worker.set_enabled(False)
    gate.let_go.set()
    assert 'paused' in b.worker.ask('during the pause')
    assert counts(b) == (0, 0, 3) and 'paused' in facts(b)['question_refused_reason']
    b.worker.set_enabled(True)
    assert 'no image has arrived yet' in b.worker.ask('about a frame from before the pause')
    b.send(5.0)
    b.wait_for_answers(2)
    b.worker.ask('afterwards')
    b.wait(lambda: counts(b) == (1, 0, 4))
    assert heard.questions() == ['afterwards']


@pytest.mark.parametrize('error', [PromptError('too long for it'), RuntimeError('the device')])
def test_a_question_that_fails_is_refused_and_the_frames_go_on(
    bench: MakeBench, error: Exception
) -> None:
    b = ready(bench())

    def fail(skips: bool) -> None:
        raise error

    b.vlm.on_token = fail
    b.worker.ask('What?')
    b.wait(lambda: counts(b) == (0, 0, 1))
    assert str(error) in facts(b)['question_refused_reason']
    b.vlm.on_token = lambda skips: None
    b.send(2.0)
    b.wait_for_answers(2)
    assert b.frames()['failed'] == 0 and b.state() == 'ready'


def test_a_question_that_loses_the_gpu_is_refused_with_the_reason(bench: MakeBench) -> None:
    b = ready(bench())

    def fail(skips: bool) -> None:
        raise RuntimeError('CUDA error: an illegal memory access was encountered')

    b.vlm.on_token = fail
    b.worker.ask('What?')
    b.wait(lambda: b.state() == 'error')
    assert counts(b) == (0, 0, 1)
    assert 'an illegal memory access' in facts(b)['question_refused_reason']


def test_out_of_memory_over_a_question_is_an_error(bench: MakeBench) -> None:
    b = ready(bench())

    def fail(skips: bool) -> None:
        raise VlmOutOfMemoryError('no memory: use a smaller model')

    b.vlm.on_token = fail
    b.worker.ask('What?')
    b.wait(lambda: b.state() == 'error')
    assert counts(b) == (0, 0, 1)
    assert facts(b)['question_refused_reason'] == 'no memory: use a smaller model'
    assert 'state error' in b.worker.ask('And now?')


def test_the_full_branch_of_a_question_gives_way_as_that_of_a_frame(bench: MakeBench) -> None:
    gate = Gate(holds=lambda skips: not skips)
    b = bench(FakeVlm(gate), overload_policy='drop_full')
    heard = Heard(b)
    ready(b)
    gate.armed.set()
    b.worker.ask('What?')
    assert gate.reached.wait(DEADLINE_S)  # in the full branch
    b.send(2.0)
    gate.let_go.set()
    b.wait_for_answers(2)
    assert [type(result) for _, result in heard.answers] == [BranchResult]
    assert counts(b) == (1, 0, 0)


# --- which blocks are skipped ---


def settings_with(**values: Any) -> Settings:
    defaults = {name: spec.default for name, spec in SPECS.items()}
    return settings_from({**defaults, **values})


def planned(**values: Any) -> tuple[int, ...]:
    settings = settings_with(**values)
    lists = load_skip_lists(settings)
    skip_list = question_skip_list(settings, lists)
    is_own = 'question' in lists
    plan = plan_question(FakeVlm(), 'What?', settings, skip_list, is_own=is_own)
    assert plan.warnings == ()
    return plan.tasks[0].removed_blocks


def blocks_of(name: str) -> tuple[int, ...]:
    return tuple(load_skip_list(name).blocks_at('high_performance'))


PUBLISHED = {'model': 'x', 'skip_list.captioning': 'gmskip_captioning'}


def test_the_skip_list_of_questions(tmp_path: Any) -> None:
    joint_list = replace(load_skip_list('gmskip_single_object'), task=JOINT, target=None)
    joint = tmp_path / 'joint.skip.yaml'
    save_skip_list(joint_list, joint)
    captioning = blocks_of('gmskip_captioning')
    assert planned(**PUBLISHED) == captioning
    assert planned(**{**PUBLISHED, 'tasks': ['multi_object']}) == captioning
    assert planned(**PUBLISHED, **{'skip_list.multi_object': str(joint)}) == tuple(
        joint_list.blocks_at('high_performance')
    )
    own = {**PUBLISHED, 'skip_list.question': 'gmskip_multi_object'}
    assert planned(**own) == blocks_of('gmskip_multi_object')
    assert planned(**PUBLISHED, **{'skip_list.question': ''}) == ()
    assert planned(model='x') == ()
    assert planned(**PUBLISHED, branches=['full']) == ()


def test_a_question_is_skipped_as_its_list_says(tmp_path: Any) -> None:
    path = tmp_path / 'own.skip.yaml'
    made = replace(
        load_skip_list('gmskip_captioning'),
        phases=('prefill',),
        kv='input',
        warnings=('round 1: all candidates tie',),
    )
    save_skip_list(made, path)
    settings = settings_with(**PUBLISHED, **{'skip_list.question': str(path)})
    skip_list = load_skip_lists(settings)['question']
    for is_own in (True, False):
        plan = plan_question(FakeVlm(), 'What?', settings, skip_list, is_own=is_own)
        assert plan.tasks[0].skip_set == SkipSet(made.blocks_at('high_performance'), kv='input')
        assert plan.tasks[0].removed_blocks == made.blocks_at('high_performance')
        assert [line.endswith('all candidates tie') for line in plan.warnings] == [True] * is_own


def test_a_list_of_another_task_serves_as_far_as_it_goes() -> None:
    only_single = {'tasks': ['single_object'], 'skip_list.single_object': 'gmskip_single_object'}
    length = len(load_skip_list('gmskip_single_object').removed)
    assert length > len(load_skip_list('gmskip_captioning').removed)
    assert planned(**PUBLISHED, **only_single, operating_point=length) == ()
    with pytest.raises(ParameterError, match=r'skip_list\.question'):
        load_skip_lists(settings_with(**{'skip_list.question': '/none'}))


def test_a_list_of_another_model_is_an_error_before_any_question(bench: MakeBench) -> None:
    b = bench()
    b.vlm.num_blocks = 24
    own = {**b.settings.skip_list, 'question': 'gmskip_captioning'}
    b.settings = replace(b.settings, tasks=('captioning',), skip_list=own)
    b.worker._skip_lists = {}  # only questions have one
    b.worker._question_skip_list = load_skip_list('gmskip_captioning')
    b.start()
    b.wait(lambda: b.state() == 'error')
    assert '32' in b.worker.health.report(time.monotonic()).reason
    with pytest.raises(SkipListMismatchError):
        plan_question(b.vlm, '?', b.settings, load_skip_list('gmskip_captioning'), is_own=True)
    # One that questions would only share stops nothing.
    borrowed = load_skip_list('gmskip_captioning')
    plan = plan_question(b.vlm, '?', b.settings, borrowed, is_own=False)
    assert (plan.tasks[0].removed_blocks, plan.warnings) == ((), ())
