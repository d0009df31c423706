"""One frame through both branches: order, prompts, results, and what is refused."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from fake_vlm import FakeVlm
from tiny_models import make_tiny_model

from gmskip_ros.pipeline import records
from gmskip_ros.pipeline.pipeline import (
    BranchResult,
    Comparison,
    FramePipeline,
    FramePlan,
    PreviousAnswers,
    plan_frame,
)
from gmskip_ros.skipping import (
    Removal,
    SkipList,
    SkipListError,
    SkipListMismatchError,
    load_skip_list,
)
from gmskip_ros.tasks import TASK_NAMES, make_task
from gmskip_ros.vlm import (
    Answer,
    ImageFeatures,
    SkipSet,
    Stopped,
    VlmOutOfMemoryError,
    load_vlm,
)

GREY = np.full((48, 64, 3), 128, dtype=np.uint8)
TASKS = [make_task(name) for name in TASK_NAMES]
SKIP_LISTS = {name: load_skip_list(f'gmskip_{name}') for name in TASK_NAMES}


def plan(vlm: FakeVlm, **arguments: Any) -> FramePlan:
    return plan_frame(vlm, **{'tasks': TASKS, 'skip_lists': SKIP_LISTS, **arguments})


def test_encode_once_then_skip_then_full_then_comparison() -> None:
    vlm = FakeVlm()
    results = FramePipeline(vlm, plan(vlm)).run(GREY)
    skip = next(results)
    assert isinstance(skip, BranchResult) and skip.branch == 'skip'
    # Yielded before the full branch starts: the production result does not wait for it.
    assert [call[0] for call in vlm.calls] == ['encode'] + 3 * ['answer']
    full, comparison = results
    assert isinstance(full, BranchResult) and full.branch == 'full'
    assert isinstance(comparison, Comparison)
    assert [call[0] for call in vlm.calls] == ['encode'] + 6 * ['answer']
    assert [task.task for task in skip.tasks] == list(TASK_NAMES)
    assert skip.schedule == full.schedule == 'skip_then_full'


def test_each_task_is_asked_with_its_prompt_its_skip_set_and_its_length() -> None:
    vlm = FakeVlm()
    list(FramePipeline(vlm, plan(vlm, operating_point='high_performance')).run(GREY))
    asked = vlm.calls[1:]
    published_lengths = {'single_object': 11, 'multi_object': 9, 'captioning': 3}
    for task, call in zip(TASKS, asked[:3], strict=True):
        blocks = [removal.block for removal in SKIP_LISTS[task.name].removed]
        expected = SkipSet.of(blocks[: published_lengths[task.name]])
        assert call == ('answer', task.prompt, expected, task.max_new_tokens)
    for task, call in zip(TASKS, asked[3:], strict=True):
        assert call == ('answer', task.prompt, SkipSet(), task.max_new_tokens)


def test_warming_up_answers_every_task_once_and_briefly() -> None:
    vlm = FakeVlm()
    FramePipeline(vlm, plan(vlm)).warm_up()
    encode, *asked = vlm.calls
    assert encode[0] == 'encode'
    assert [(call[1], bool(call[2])) for call in asked] == [
        (task.prompt, skips) for skips in (True, False) for task in TASKS
    ]
    assert {call[3] for call in asked} == {2}


def test_results_name_the_skipped_blocks() -> None:
    vlm = FakeVlm()
    skip, full, comparison = FramePipeline(vlm, plan(vlm, operating_point=2)).run(GREY)
    assert skip.tasks[0].removed_blocks == (29, 16)  # in the order of removal
    assert skip.tasks[0].operating_point == '2' and skip.tasks[0].sparsity == 2 / 32
    assert full.tasks[0].removed_blocks == () and full.tasks[0].operating_point == '0'
    assert skip.tasks[0].parsed.text == 'dog' and full.tasks[0].parsed.text == 'car'
    single, multi, captioning = comparison.tasks
    assert not single.agreement.agree and not captioning.agreement.agree
    assert multi.agreement.values['jaccard'] == 0.0
    assert single.speedup == 1.0


@pytest.mark.parametrize('branch', ['skip', 'full'])
def test_one_branch_alone_has_no_comparison(branch: str) -> None:
    vlm = FakeVlm()
    (result,) = FramePipeline(vlm, plan(vlm, branches=[branch])).run(GREY)
    assert result.branch == branch and result.schedule == f'{branch}_only'


def test_skip_runs_first_in_whatever_order_the_branches_are_named() -> None:
    vlm = FakeVlm()
    assert plan(vlm, branches=['full', 'skip']).branches == ('skip', 'full')


def test_an_operating_point_of_zero_blocks_agrees_with_full() -> None:
    vlm = FakeVlm()
    *_, comparison = FramePipeline(vlm, plan(vlm, operating_point=0)).run(GREY)
    assert isinstance(comparison, Comparison)
    assert all(task.agreement.agree for task in comparison.tasks)


@pytest.mark.parametrize(
    ('least', 'texts', 'agree'),
    [
        (1.0, ('A red car.', 'A red car!'), False),  # other tokens, the same words
        (0.99, ('A red car.', 'A red car!'), True),
        (0.5, ('A red car.', 'A red bus.'), True),
        (0.7, ('A red car.', 'A red bus.'), False),  # ROUGE-L is 2/3
        (0.5, ('A red car.', 'Two dogs'), False),
        (0.0, ('A red car.', 'Two dogs'), True),
    ],
)
def test_captions_agree_by_rouge_l_below_one(
    least: float, texts: tuple[str, str], agree: bool
) -> None:
    class Captions(FakeVlm):
        def answer(self, *args: Any, **kwargs: Any) -> Answer:
            answer = super().answer(*args, **kwargs)
            return replace(answer, text=texts[answer.text == 'car'])

    vlm = Captions()
    *_, comparison = FramePipeline(vlm, plan(vlm, caption_agreement=least)).run(GREY)
    assert isinstance(comparison, Comparison)
    single, _, captioning = comparison.tasks
    assert captioning.agreement.agree is agree
    assert captioning.agreement.values['caption_agreement'] == least
    assert 'caption_agreement' not in single.agreement.values


def test_stopping_the_full_branch_keeps_the_skip_result() -> None:
    vlm = FakeVlm()
    results = FramePipeline(vlm, plan(vlm)).run(GREY, lambda branch: branch == 'full')
    assert isinstance(next(results), BranchResult)
    with pytest.raises(Stopped):
        next(results)


def test_the_overlay_shows_the_models_own_words_outside_the_label_set() -> None:
    vlm = FakeVlm()
    tasks = [make_task('single_object', labels=['car'])]  # 'dog' is not one of them
    skip, full, comparison = FramePipeline(vlm, plan(vlm, tasks=tasks)).run(GREY)
    assert isinstance(skip, BranchResult) and isinstance(full, BranchResult)
    assert isinstance(comparison, Comparison)
    (drawn,) = records.overlay_tasks([skip, full], comparison)
    assert drawn.skip is not None and drawn.full is not None
    assert drawn.skip.text == 'dog' and not drawn.skip.in_vocabulary
    assert drawn.full.text == 'car' and drawn.full.in_vocabulary


def test_elapsed_time_counts_the_shared_part_for_both_branches() -> None:
    class SlowEncoder(FakeVlm):
        def encode(self, image: np.ndarray) -> ImageFeatures:
            time.sleep(0.03)
            return super().encode(image)

    vlm = SlowEncoder()
    skip, full, _ = FramePipeline(vlm, plan(vlm)).run(GREY)
    assert skip.elapsed_ms >= 30.0 and full.elapsed_ms >= 30.0


def test_a_task_without_a_skip_list_skips_nothing_and_warns() -> None:
    vlm = FakeVlm()
    planned = plan(vlm, tasks=TASKS[:1], skip_lists={})
    assert not planned.tasks[0].skip_set
    assert any('single_object' in warning for warning in planned.warnings)
    assert plan(vlm, tasks=TASKS[:1], skip_lists={}, branches=['full']).warnings == ()


def test_a_skip_list_for_a_different_number_of_blocks_is_refused() -> None:
    vlm = FakeVlm()
    vlm.num_blocks = 24
    with pytest.raises(SkipListMismatchError, match=r'(?s)32.*24|24.*32'):
        plan(vlm)


def test_an_unknown_operating_point_is_refused() -> None:
    with pytest.raises(SkipListError):
        plan(FakeVlm(), operating_point=17)


def own_list(**changes: Any) -> SkipList:
    """Return a list for captioning on four blocks."""
    made = SkipList(
        'fake',
        4,
        'captioning',
        (Removal(2), Removal(1), Removal(2, phases=('image',))),
        operating_points={'high_performance': 2, 'high_sparsity': 3},
        phases=('decode',),
    )
    return replace(made, **changes)


def test_a_lists_phases_and_policies_reach_the_model() -> None:
    vlm = FakeVlm()
    vlm.num_blocks = 4
    task = make_task('captioning')
    for changes, expected in (
        ({}, SkipSet(decode=[1, 2], image=[2])),
        ({'image_kv': 'none'}, SkipSet(decode=[1, 2], image=[2], image_kv='none')),
        (
            {'phases': ('prefill',), 'kv': 'input', 'warnings': ('round 1: all tie',)},
            SkipSet([1, 2], image=[2], kv='input'),
        ),
    ):
        skip_list = own_list(**changes)
        planned = plan_frame(vlm, [task], {'captioning': skip_list}, 'high_sparsity')
        assert planned.warnings == tuple(
            f'skip list for captioning: {line}' for line in skip_list.warnings
        )
        vlm.calls.clear()
        skip, *_ = FramePipeline(vlm, planned).run(GREY)
        assert [call[2] for call in vlm.calls[1:]] == [expected, SkipSet()]
        assert isinstance(skip, BranchResult)
        (result,) = skip.tasks
        # Three removals of two blocks.
        assert result.removed_blocks == (2, 1) and result.sparsity == 2 / 4
        (status,) = records.result_statuses(skip, 'x')
        assert (status.values['skipped_blocks'], status.values['sparsity']) == ('2,1', '0.500')


def test_a_model_skips_in_decode_only_or_keeps_keys_and_values(tmp_path: Any) -> None:
    vlm = load_vlm(str(make_tiny_model(tmp_path)), device='cpu')
    task = make_task('captioning', max_new_tokens=6)
    scene = np.random.default_rng(0).integers(0, 256, (90, 160, 3), dtype=np.uint8)
    full = vlm.answer(scene, task.prompt, (), 6).token_ids
    answers = {}
    for name, changes, skip_set in (
        ('decode', {}, SkipSet(decode=[1, 2])),
        ('both', {'phases': ('prefill', 'decode')}, SkipSet.of([1, 2])),
        ('kv', {'phases': ('prefill',), 'kv': 'input'}, SkipSet([1, 2], kv='input')),
    ):
        planned = plan_frame(vlm, [task], {'captioning': own_list(**changes)})
        skip, _, _ = FramePipeline(vlm, planned).run(scene)
        assert isinstance(skip, BranchResult)
        answers[name] = skip.tasks[0].answer.token_ids
        assert answers[name] == vlm.answer(scene, task.prompt, skip_set, 6).token_ids
        assert skip.tasks[0].removed_blocks == (2, 1)
    assert answers['decode'][0] == full[0]  # from prefill, which runs every block
    assert answers['kv'][0] == answers['both'][0]
    without_kv = vlm.answer(scene, task.prompt, SkipSet([1, 2]), 6).token_ids
    assert len({full, without_kv, *answers.values()}) == 5


def test_the_demo_model_answers_as_when_asked_directly() -> None:
    vlm = load_vlm('demo')
    scene = np.random.default_rng(0).integers(0, 256, (90, 160, 3), dtype=np.uint8)
    planned = plan_frame(vlm, TASKS[:2], SKIP_LISTS, 'high_sparsity')
    skip, full, _ = FramePipeline(vlm, planned).run(scene)
    assert isinstance(skip, BranchResult) and isinstance(full, BranchResult)
    for index, task in enumerate(TASKS[:2]):
        blocks = SKIP_LISTS[task.name].blocks_at('high_sparsity')
        alone = vlm.answer(scene, task.prompt, blocks, task.max_new_tokens)
        assert skip.tasks[index].answer.token_ids == alone.token_ids
        assert skip.tasks[index].answer.vision_shared and not alone.vision_shared
        complete = vlm.answer(scene, task.prompt, (), task.max_new_tokens)
        assert full.tasks[index].answer.token_ids == complete.token_ids
        assert skip.tasks[index].parsed == task.parse(alone.text)


# --- timing: shared


def shared_calls(vlm: FakeVlm) -> list[tuple[Any, ...]]:
    """Return the calls without the answers that the stand-in makes for the shared ones."""
    return [call for call in vlm.calls if call[0] != 'answer']


def test_shared_answers_start_from_skip_ones_and_those_of_the_frame_before() -> None:
    vlm = FakeVlm()
    planned = plan(vlm, timing='shared')
    previous = PreviousAnswers()
    for skip_before, full_before in (([], []), ([(7,)], [(8, 9)])):
        vlm.calls.clear()
        results = FramePipeline(vlm, planned, previous).run(GREY)
        skip = next(results)
        assert isinstance(skip, BranchResult) and skip.branch == 'skip'
        encode, share, skip_call = shared_calls(vlm)
        assert encode[0] == 'encode' and share[0] == 'share_frame'
        asked = [(question.prompt, question.max_new_tokens) for question in share[1:]]
        assert asked == 2 * [(task.prompt, task.max_new_tokens) for task in TASKS]
        assert [bool(question.skip) for question in share[1:]] == 3 * [True] + 3 * [False]
        assert share[1].first_token_ids and share[1].first_token_ids == share[4].first_token_ids
        # Yielded before the full branch starts.
        assert skip_call == ('shared answer', 0, 1, 2, dict.fromkeys((0, 1, 2), skip_before))
        full, comparison = results
        drafts = [(7,), *full_before]  # 'dog', then 'car' of the frame before
        expected = ('shared answer', 3, 4, 5, dict.fromkeys((3, 4, 5), drafts))
        assert shared_calls(vlm)[3:] == [expected]
        assert isinstance(full, BranchResult) and isinstance(comparison, Comparison)
        assert full.tasks[0].parsed.text == 'car' and not comparison.tasks[0].agreement.agree
        assert skip.timing == full.timing == comparison.timing == 'shared'


@pytest.mark.parametrize('branch', ['skip', 'full'])
def test_a_shared_branch_alone(branch: str) -> None:
    vlm = FakeVlm()
    previous = PreviousAnswers()
    planned = plan(vlm, branches=[branch], timing='shared')
    for _ in range(2):
        (result,) = FramePipeline(vlm, planned, previous).run(GREY)
        assert result.branch == branch and result.shared_ms == 4.0
    (_, share, answer) = shared_calls(vlm)[3:]
    assert len(share) == 1 + len(TASKS)
    drafts = [(8, 9)] if branch == 'full' else [(7,)]  # its own of the frame before
    assert answer == ('shared answer', 0, 1, 2, dict.fromkeys((0, 1, 2), drafts))


def test_what_answers_share_is_said_once_per_branch_and_has_no_speedup() -> None:
    vlm = FakeVlm()
    skip, full, comparison = FramePipeline(vlm, plan(vlm, timing='shared')).run(GREY)
    for result in (skip, full):
        assert isinstance(result, BranchResult)
        statuses = records.result_statuses(result, 'x')
        assert [status.values.get('shared_ms') for status in statuses] == ['4.000', None, None]
        assert {status.values['timing'] for status in statuses} == {'shared'}
        assert {status.values['full_branch'] for status in statuses} == {'verified'}
    assert isinstance(comparison, Comparison)
    for status in records.comparison_statuses(comparison, 'x'):
        assert status.values['timing'] == 'shared' and status.values['agree'] == 'false'
        assert not {'speedup', 'skip_total_ms', 'full_total_ms'} & set(status.values)
    assert records.overlay_title('n', 0, 'shared') == 'n  00:00:00.0  timing: shared'


def test_memory_that_runs_out_once_in_a_shared_answer_starts_the_frame_over() -> None:
    vlm = FakeVlm()
    failing = iter([False, True])  # the first token of the second branch

    def on_token(skips: bool) -> None:
        if not skips and next(failing, False):
            raise VlmOutOfMemoryError('no memory')

    vlm.on_token = on_token
    skip, full, _ = FramePipeline(vlm, plan(vlm, timing='shared')).run(GREY)
    names = [call[0] for call in shared_calls(vlm)]
    assert names == [
        'encode',
        *('share_frame', 'shared answer'),
        *('shared answer', 'free_memory', 'share_frame', 'shared answer'),
    ]
    assert isinstance(skip, BranchResult) and isinstance(full, BranchResult)
    assert (skip.shared_ms, full.shared_ms) == (4.0, 4.0)
    assert [task.parsed.text for task in full.tasks] == ['car', 'car', 'car']


def test_stopping_a_shared_full_branch_keeps_the_skip_result() -> None:
    vlm = FakeVlm()
    results = FramePipeline(vlm, plan(vlm, timing='shared')).run(GREY, lambda b: b == 'full')
    assert isinstance(next(results), BranchResult)
    with pytest.raises(Stopped):
        next(results)


def test_warming_up_shares_when_frames_do() -> None:
    vlm = FakeVlm()
    FramePipeline(vlm, plan(vlm, timing='shared')).warm_up()
    _, share, skip, full = shared_calls(vlm)
    assert {question.max_new_tokens for question in share[1:]} == {2}
    assert (skip[1:4], full[1:4]) == ((0, 1, 2), (3, 4, 5))


def test_a_model_answers_shared_frames_as_isolated_ones(tmp_path: Any) -> None:
    """Through changes of the operating point, and with lists for different tasks."""
    vlm = load_vlm(str(make_tiny_model(tmp_path)), device='cpu')
    dice = np.random.default_rng(0)
    tasks = [make_task(name, max_new_tokens=6) for name in TASK_NAMES]
    lists = {
        task: own_list(
            task=task,
            removed=tuple(map(Removal, blocks)),
            operating_points=dict.fromkeys(('high_performance', 'high_sparsity'), 2),
            phases=('prefill', 'decode'),
        )
        for task, blocks in zip(TASK_NAMES, ((2, 1), (2, 3), (1, 2)), strict=True)
    }
    previous = PreviousAnswers()
    disagreed = False
    for point in (1, 2, 0, 2):
        scene = dice.integers(0, 256, (90, 160, 3), dtype=np.uint8)
        isolated, shared = (
            list(FramePipeline(vlm, planned, previous).run(scene))
            for planned in (
                plan_frame(vlm, tasks, lists, point, timing=timing)
                for timing in ('isolated', 'shared')
            )
        )
        for one, other in zip(isolated[:2], shared[:2], strict=True):
            assert isinstance(one, BranchResult) and isinstance(other, BranchResult)
            assert one.branch == other.branch and one.shared_ms == 0
            for alone, together in zip(one.tasks, other.tasks, strict=True):
                assert alone.answer.token_ids == together.answer.token_ids
                assert alone.removed_blocks == together.removed_blocks
                assert alone.parsed == together.parsed
                assert together.answer.confidence == pytest.approx(
                    alone.answer.confidence, abs=1e-4
                )
                assert together.answer.first_probabilities == pytest.approx(
                    alone.answer.first_probabilities, abs=1e-4
                )
        assert isinstance(shared[0], BranchResult) and shared[0].shared_ms > 0
        agreements = [[each.agreement for each in c.tasks] for c in (isolated[2], shared[2])]
        assert agreements[0] == agreements[1]
        disagreed |= not all(agreement.agree for agreement in agreements[0])
    assert disagreed
