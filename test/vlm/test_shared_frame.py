"""All questions about a frame together: every answer is the one given alone, with less work."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from tiny_models import make_tiny_model
from weight_edits import edit_weights, with_twins

from gmskip_ros.datasets.scenes import render_scene
from gmskip_ros.skipping import load_skip_list
from gmskip_ros.tasks import TASK_NAMES, make_task
from gmskip_ros.vlm import (
    Answer,
    FrameQuestion,
    NonFiniteLogitsError,
    PromptError,
    SkipSet,
    SkipSetError,
    Stopped,
    Vlm,
    VlmError,
    VlmOutOfMemoryError,
    load_vlm,
    packed,
)
from gmskip_ros.vlm.block import LONG, VERY_LONG
from gmskip_ros.vlm.shared_frame import common_start

NUM_BLOCKS = 5
STEPS = 9  # longer than the tiny models' sliding window
IMAGE = np.random.default_rng(0).integers(0, 256, (40, 70, 3), dtype=np.uint8)
CHECKPOINTS = [('llava', 'llama'), ('llava_next', 'mistral'), ('llava_onevision', 'qwen2')]
# Printable ASCII from ! on: a random model ends about a tenth of its answers at every token.
END_IDS = list(range(5, 5 + 26))
PROMPTS = ('What?', 'What is it?', 'Where is it?')
# Ways through the blocks that part early, late and not at all.
SETS = {
    'no block': [[], [], []],
    'one list': [[1, 3]] * 3,
    'three lists': [[1], [1, 2], [4]],
    'nothing in common': [[0, 1, 2, 3, 4], [0, 2], [1, 4]],
}


def questions_of(sets: Sequence[Sequence[int]]) -> list[FrameQuestion]:
    """Return three tasks with these sets, then the same with every block, as a node asks them."""
    return [
        FrameQuestion(prompt, SkipSet.of(blocks), STEPS, (7, 40))
        for of_branch in (sets, SETS['no block'])
        for prompt, blocks in zip(PROMPTS, of_branch, strict=True)
    ]


def alone(vlm: Vlm, features, question: FrameQuestion, **options) -> Answer:
    return vlm.answer(
        features,
        question.prompt,
        question.skip,
        question.max_new_tokens,
        first_token_ids=question.first_token_ids,
        **options,
    )


def assert_same(found: Sequence[Answer], expected: Sequence[Answer], what: object = '') -> None:
    """Assert that answers are the same, probabilities up to rounding."""
    for one, other in zip(found, expected, strict=True):
        assert (one.token_ids, one.text) == (other.token_ids, other.text), what
        assert one.confidence == pytest.approx(other.confidence, rel=0, abs=1e-4), what
        assert one.first_probabilities == pytest.approx(
            other.first_probabilities, rel=0, abs=1e-4
        ), what


@pytest.fixture(scope='module')
def make_folder(tmp_path_factory):
    """Return a function that makes tiny checkpoints."""

    def make(*arguments, **options):
        return make_tiny_model(
            tmp_path_factory.mktemp('tiny'), *arguments, num_blocks=NUM_BLOCKS, **options
        )

    return make


@pytest.fixture(scope='module', params=CHECKPOINTS, ids='-'.join)
def any_vlm(request, make_folder) -> Vlm:
    return load_vlm(str(make_folder(*request.param, eos_token_id=END_IDS)), device='cpu')


@pytest.fixture(scope='module')
def vlm(make_folder) -> Vlm:
    return load_vlm(str(make_folder()), device='cpu')


@pytest.fixture(scope='module')
def demo() -> Vlm:
    return load_vlm('demo', device='cpu')


@pytest.fixture
def calls(monkeypatch):
    """Return counts of passes that choose tokens, and of answers that were given alone."""
    counts = {'passes': 0, 'alone': 0}
    logits, answer = Vlm.answer.__globals__['Decoder'].logits, Vlm.answer

    def counted_logits(self, hidden):
        counts['passes'] += 1
        return logits(self, hidden)

    def counted_answer(self, *arguments, **options):
        counts['alone'] += 1
        return answer(self, *arguments, **options)

    monkeypatch.setattr('gmskip_ros.vlm.decoder.Decoder.logits', counted_logits)
    monkeypatch.setattr(Vlm, 'answer', counted_answer)
    return counts


# ---- the same answers -------------------------------------------------------------------------


@pytest.mark.parametrize('sets', SETS.values(), ids=SETS)
def test_every_answer_is_the_one_given_alone(any_vlm, calls, sets) -> None:
    features = any_vlm.encode(IMAGE)
    questions = questions_of(sets)
    expected = [alone(any_vlm, features, question) for question in questions]
    calls.update(alone=0)
    frame = any_vlm.share_frame(features, questions)
    assert_same(frame.answer([0, 1, 2]), expected[:3])
    skipping = {3 + i: [answer.token_ids] for i, answer in enumerate(expected[:3])}
    assert_same(frame.answer([3, 4, 5], drafts=skipping), expected[3:])
    assert_same(frame.answer([5, 0, 3]), [expected[i] for i in (5, 0, 3)])
    assert calls['alone'] == 0


def test_a_long_prompt_is_shared_as_well(vlm, calls) -> None:
    """Answers alone, and the prefix, take the way of attention over many keys."""
    features = vlm.encode(IMAGE)
    same = ' '.join(f'Is it {number}?' for number in range(LONG // 7))
    questions = [
        FrameQuestion(same + question.prompt, question.skip, STEPS, (7, 40))
        for question in questions_of(SETS['three lists'])
    ]
    rows = [vlm.input_ids(question.prompt, features) for question in questions]
    assert LONG < common_start(rows) < VERY_LONG
    expected = [alone(vlm, features, question) for question in questions]
    calls.update(alone=0)
    frame = vlm.share_frame(features, questions)
    assert_same(frame.answer([*range(6)]), expected)
    assert calls['alone'] == 0


def test_no_draft_changes_an_answer(any_vlm, calls) -> None:
    features = any_vlm.encode(IMAGE)
    questions = questions_of(SETS['three lists'])
    expected = [alone(any_vlm, features, question) for question in questions]
    calls.update(alone=0)
    frame = any_vlm.share_frame(features, questions)

    def drafts_of(own: list[int]) -> list[list[list[int]]]:
        middle = len(own) // 2
        return [
            [],
            [[]],
            [own],
            [[99, *own[1:]]],
            [[*own[:middle], 99, *own[middle + 1 :]]],
            [[*own[:-1], 99], [99], own[:middle]],
            [[99, 99], own],
            [[*own, *[40] * 600]],
            [[*own[:middle], END_IDS[1], *own[middle:]]],
            [[END_IDS[2], *own], [0, 1, 2]],
        ]

    kinds = [drafts_of(list(answer.token_ids)) for answer in expected]
    for kind in range(len(kinds[0])):
        # Every question gets another kind of draft.
        drafts = {i: of[(kind + i) % len(of)] for i, of in enumerate(kinds)}
        assert_same(frame.answer([*range(6)], drafts=drafts), expected, drafts)
    assert calls['alone'] == 0


@pytest.mark.parametrize('length', [1, 2, STEPS])
def test_answers_of_forced_length(any_vlm, length) -> None:
    features = any_vlm.encode(IMAGE)
    questions = questions_of(SETS['three lists'])
    expected = [alone(any_vlm, features, each, forced_length=length) for each in questions]
    frame = any_vlm.share_frame(features, questions)
    lengths = dict.fromkeys(range(6), length)
    assert_same(frame.answer([*range(6)], forced_lengths=lengths), expected)
    drafts = {i: [answer.token_ids[:4]] for i, answer in enumerate(expected)}
    assert_same(frame.answer([*range(6)], forced_lengths=lengths, drafts=drafts), expected)


def test_other_axes_and_policies_are_answered_alone(vlm, calls) -> None:
    features = vlm.encode(IMAGE)
    others = [SkipSet(decode=[1]), SkipSet(image=[2]), SkipSet(prefill=[3], kv='input')]
    plain = SkipSet([1], [1], kv='input', image_kv='none')  # the policies change nothing
    questions = [FrameQuestion(PROMPTS[0], skip, STEPS) for skip in (*others, plain, SkipSet())]
    expected = [alone(vlm, features, question) for question in questions]
    calls.update(alone=0)
    frame = vlm.share_frame(features, questions)
    drafts = {i: [answer.token_ids, [99]] for i, answer in enumerate(expected)}
    assert_same(
        frame.answer([4, 2, 0, 1, 3], drafts=drafts), [expected[i] for i in (4, 2, 0, 1, 3)]
    )
    assert calls['alone'] == 3


@pytest.mark.parametrize('lists', ['published', 'joint'])
def test_the_demo_model_answers_as_alone(lists, demo) -> None:
    """A draft is what the skip branch answers."""
    tasks = [make_task(name) for name in TASK_NAMES]
    sets = [SkipSet.of(range(1, 32, 2))] * 3
    if lists == 'published':
        found = [load_skip_list(f'gmskip_{name}') for name in TASK_NAMES]
        sets = [each.skip_set_at('high_sparsity') for each in found]
    questions = [
        FrameQuestion(task.prompt, skip, min(task.max_new_tokens, 6))
        for of_branch in (sets, [SkipSet()] * 3)
        for task, skip in zip(tasks, of_branch, strict=True)
    ]
    features = demo.encode(render_scene(60_000_000).image)
    expected = [alone(demo, features, question) for question in questions]
    frame = demo.share_frame(features, questions)
    skip = frame.answer([0, 1, 2])
    assert_same(skip, expected[:3])
    drafts = {3 + i: [answer.token_ids] for i, answer in enumerate(skip)}
    assert_same(frame.answer([3, 4, 5], drafts=drafts), expected[3:])


# ---- what is shared ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    'rows, length',
    [
        ([[1, 2, 3, 4], [1, 2, 5]], 2),
        ([[1, 2, 3], [1, 2, 3]], 2),
        ([[1, 2], [1, 2, 3]], 1),
        ([[1, 2], [3, 2]], 0),
        ([[1, 2]], 0),
        ([], 0),
    ],
)
def test_a_prefix_leaves_a_token_of_every_question(rows, length) -> None:
    assert common_start(rows) == length


def test_a_prefix_runs_once_per_set_and_once_where_sets_do_not_differ_yet(vlm) -> None:
    features = vlm.encode(IMAGE)
    questions = questions_of(SETS['three lists'])
    rows = [vlm.input_ids(prompt, features) for prompt in PROMPTS]
    prefix = common_start(rows)
    assert prefix > features.num_tokens
    before = vlm.token_blocks

    def work() -> int:
        nonlocal before
        done, before = vlm.token_blocks - before, vlm.token_blocks
        return done

    frame = vlm.share_frame(features, questions)
    assert work() == 0
    lengths = dict.fromkeys(range(6), 1)
    frame.answer([0, 1, 2], forced_lengths=lengths)
    suffixes = [len(row) - prefix for row in rows]
    # Without 4: blocks 0, 1, 2, 3, with the prefix, which the full branch needs after them.
    # Without 1: 0, 2, 3, 4, the prefix from 2 on; without 1 and 2: 0, 3, 4, it from 3 on. In a last
    # block only keys and values of the prefix are needed, and one token of each question.
    own = suffixes[2] * 4 + suffixes[0] * 3 + 1 + suffixes[1] * 2 + 1
    assert work() - own == prefix * (4 + 2 + 1)
    frame.answer([3, 4, 5], forced_lengths=lengths)
    assert work() == sum(suffixes) * (NUM_BLOCKS - 1) + 3
    frame.answer([0, 3], forced_lengths=lengths)
    assert work() == suffixes[0] * (3 + 4) + 2


def test_tasks_of_a_set_and_drafts_go_in_one_pass_and_all_decode_together(vlm, calls) -> None:
    features = vlm.encode(IMAGE)
    questions = questions_of(SETS['three lists'])
    own = [alone(vlm, features, question, forced_length=6).token_ids for question in questions]
    frame = vlm.share_frame(features, questions)
    lengths = dict.fromkeys(range(6), 6)
    for drafts, decoded in (
        ({}, 5),
        ({i: [own[i]] for i in range(6)}, 0),
        ({i: [[99], own[i]] for i in range(6)}, 0),
        ({i: [own[i][:2]] for i in range(6)}, 3),
        ({0: [own[0]], 1: [[*own[1][:2], 99, 99]]}, 5),
    ):
        calls.update(passes=0, alone=0)
        found = frame.answer([*range(6)], drafts=drafts, forced_lengths=lengths)
        assert [answer.token_ids for answer in found] == own
        assert calls == {'passes': 4 + decoded, 'alone': 0}  # there are four sets


def test_prompts_that_part_within_or_before_the_image(make_folder, calls) -> None:
    """The image comes last in this template; then nothing but a start token is shared."""
    template = (
        '{% for message in messages %}{% for part in message.content %}'
        "{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}<image>{% endfor %}"
    )
    vlm = load_vlm(str(make_folder(chat_template=template)), device='cpu')
    features = vlm.encode(IMAGE)
    for prompts, shared in (('ab', 1), (('aa', 'a'), 2), ('aa', 5)):
        questions = [FrameQuestion(prompt, SkipSet.of([i]), 4) for i, prompt in enumerate(prompts)]
        rows = [vlm.input_ids(prompt, features) for prompt in prompts]
        assert common_start(rows) == shared
        expected = [alone(vlm, features, question) for question in questions]
        calls.update(alone=0)
        assert_same(vlm.share_frame(features, questions).answer([0, 1]), expected)
        assert calls['alone'] == 0


def test_one_question_shares_nothing(vlm, calls) -> None:
    features = vlm.encode(IMAGE)
    question = FrameQuestion(PROMPTS[0], SkipSet.of([1]), STEPS)
    expected = alone(vlm, features, question)
    calls.update(alone=0)
    frame = vlm.share_frame(features, [question])
    assert frame.answer([]) == []
    assert_same(frame.answer([0], drafts={0: [expected.token_ids]}), [expected])
    assert (calls['alone'], frame.shared_ms) == (1, 0.0)


def test_times_are_shares_and_what_is_shared_is_told_apart(vlm, monkeypatch) -> None:
    features = vlm.encode(IMAGE)
    project, clock_ms, offset_ms = vlm.decoder.project, vlm._clock_ms, [0.0]
    token_ids = [vlm.input_ids(prompt, features) for prompt in PROMPTS]
    prefix, rows = common_start(token_ids), [len(row) for row in token_ids]

    def slow(block, hidden, rotary):
        """Take 1e6 ms for a block with the prefix, 1 ms for one in which tokens decode."""
        tokens = hidden.shape[1]
        offset_ms[0] += 1e6 if tokens == sum(rows) - 2 * prefix else 1.0 if tokens <= 3 else 0.0
        return project(block, hidden, rotary)

    monkeypatch.setattr(vlm.decoder, 'project', slow)
    monkeypatch.setattr(vlm, '_clock_ms', lambda: clock_ms() / 1e3 + offset_ms[0])
    frame = vlm.share_frame(features, questions_of(SETS['one list']))
    assert frame.shared_ms == 0
    lengths = dict.fromkeys(range(6), 3)
    # A token costs the blocks that it runs and the head; the prefix, no head and no known block.
    for indices, blocks, of_prefix in (([0, 1, 2], 3, 3), ([3, 4, 5], 5, 4)):
        before_ms = frame.shared_ms
        answers = frame.answer(indices, forced_lengths=lengths)
        costs = [(row - prefix) * (1 + blocks) for row in rows]
        per_cost_ms = 1e6 * of_prefix / (prefix * of_prefix + sum(costs))
        shared_ms = frame.shared_ms - before_ms
        assert shared_ms == pytest.approx(per_cost_ms * prefix * of_prefix, rel=1e-3)
        for cost, timing in zip(costs, (answer.timing for answer in answers), strict=True):
            phases = (timing.preprocess_ms, timing.vision_ms, timing.prefill_ms, timing.decode_ms)
            assert sum(phases) == pytest.approx(timing.total_ms)
            assert timing.vision_ms == features.vision_ms
            assert timing.preprocess_ms > features.preprocess_ms
            assert timing.prefill_ms == pytest.approx(per_cost_ms * cost, rel=1e-3)
            assert timing.decode_ms == pytest.approx(2 * blocks / 3, abs=1)


# ---- near ties and what is not a number --------------------------------------------------------


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_near_ties_are_answered_alone(make_folder, calls, dtype) -> None:
    vlm = load_vlm(edit_weights(make_folder(), with_twins), device='cpu', dtype=dtype)
    features = vlm.encode(IMAGE)
    questions = questions_of(SETS['three lists'])
    expected = [alone(vlm, features, question) for question in questions]
    calls.update(alone=0)
    found = vlm.share_frame(features, questions).answer([*range(6)])
    assert [answer.token_ids for answer in found] == [answer.token_ids for answer in expected]
    assert [answer.confidence for answer in found] == [answer.confidence for answer in expected]
    assert calls['alone'] == 6


def test_a_near_tie_within_an_answer_leaves_the_others_packed(vlm, calls, monkeypatch) -> None:
    """Both attempts count in its time."""
    features = vlm.encode(IMAGE)
    questions = questions_of(SETS['one list'])
    expected = [alone(vlm, features, question) for question in questions[:3]]

    choose, num_passes = packed.choose_with_margins, itertools.count(1)

    def tied_in_the_third_pass(logits):
        ids, probabilities, margins = choose(logits)
        return ids, probabilities, [-1.0, *margins[1:]] if next(num_passes) == 3 else margins

    monkeypatch.setattr(packed, 'choose_with_margins', tied_in_the_third_pass)
    calls.update(alone=0)
    found = vlm.share_frame(features, questions).answer([0, 1, 2])
    assert_same(found, expected)
    assert calls['alone'] == 1
    for timing in (answer.timing for answer in found):
        phases = (timing.preprocess_ms, timing.vision_ms, timing.prefill_ms, timing.decode_ms)
        assert sum(phases) == pytest.approx(timing.total_ms)


def test_non_finite_logits_are_never_an_answer(make_folder) -> None:
    def break_block_2(weights) -> None:
        [name] = [n for n in weights if 'language' in n and 'layers.2.mlp.down_proj' in n]
        weights[name][0, 0] = float('nan')

    vlm = load_vlm(edit_weights(make_folder(), break_block_2), device='cpu')
    features = vlm.encode(IMAGE)
    questions = questions_of([[2], [2, 3], [2]])
    frame = vlm.share_frame(features, questions)
    expected = [alone(vlm, features, question) for question in questions[:3]]
    assert_same(frame.answer([0, 1, 2]), expected)
    with pytest.raises(NonFiniteLogitsError, match='float32 on cpu: try'):
        frame.answer([0, 4])
    assert_same(frame.answer([0, 1, 2]), expected)


def test_a_wrong_draft_cannot_make_logits_non_finite(make_folder) -> None:
    """Its tokens are hidden from the others, but zero times NaN is NaN."""

    def break_a_token(weights) -> None:
        [name] = [n for n in weights if n.endswith('embed_tokens.weight')]
        weights[name][40] = float('nan')

    vlm = load_vlm(edit_weights(make_folder(), break_a_token), device='cpu')
    features = vlm.encode(IMAGE)
    questions = questions_of(SETS['three lists'])
    expected = [alone(vlm, features, question) for question in questions]
    frame = vlm.share_frame(features, questions)
    assert_same(frame.answer([*range(6)], drafts={1: [[40, 40]]}), expected)
    assert_same(frame.answer([*range(6)]), expected)


# ---- what stops it ----------------------------------------------------------------------------


def test_a_stop_at_any_block_of_any_pass_leaves_the_frame_usable(vlm) -> None:
    features = vlm.encode(IMAGE)
    questions = questions_of(SETS['three lists'])
    expected = [alone(vlm, features, question) for question in questions]
    drafts = {i: [answer.token_ids[:7]] for i, answer in enumerate(expected)}
    last: list[int | None] = []

    def stopping_at(poll: int | None, frame) -> list[Answer]:
        polls = itertools.count()
        return frame.answer(
            [5, 1, 3, 2],
            drafts=drafts,
            should_stop=lambda: next(polls) == poll or last.append(poll) is not None,
        )

    stopping_at(None, vlm.share_frame(features, questions))
    # A pass of each set, then one in which those go on that the draft has not ended.
    assert len(last) == 5 + 4 + 3 + NUM_BLOCKS
    for poll in range(len(last)):
        frame = vlm.share_frame(features, questions)
        with pytest.raises(Stopped):
            stopping_at(poll, frame)
        assert_same(stopping_at(None, frame), [expected[i] for i in (5, 1, 3, 2)])
        assert_same(frame.answer([0, 4], drafts=drafts), [expected[0], expected[4]])
    with pytest.raises(Stopped):
        vlm.share_frame(features, questions, should_stop=lambda: True)


def test_mistakes_are_refused_as_for_one_answer(vlm) -> None:
    features = vlm.encode(IMAGE)
    good = FrameQuestion(PROMPTS[0], SkipSet(), STEPS)
    for wrong, error in (
        (FrameQuestion(PROMPTS[0], SkipSet.of([NUM_BLOCKS])), SkipSetError),
        (FrameQuestion(PROMPTS[0], SkipSet(), 0), VlmError),
        (FrameQuestion('<image>'), PromptError),
        (FrameQuestion('x' * 600), PromptError),
        (FrameQuestion(PROMPTS[0], max_new_tokens=600), PromptError),
    ):
        with pytest.raises(error):
            vlm.share_frame(features, [good, wrong])
    frame = vlm.share_frame(features, [good, good])
    with pytest.raises(PromptError, match=r'the context of .* holds 512'):
        frame.answer([0], forced_lengths={0: 600})
    with pytest.raises(VlmError, match=r'a draft contains token 261: .* knows 0 to 260'):
        frame.answer([0], drafts={0: [[5], [261]]})


@pytest.mark.parametrize(
    'indices, options, said',
    [
        ([0], {'forced_lengths': {0: 0}}, 'forced_length is 0: give a whole number of tokens'),
        ([0], {'forced_lengths': {0: 2.5}}, 'forced_length is 2.5'),
        ([2], {}, 'there is no question 2: the frame has 2'),
        ([-1], {}, 'there is no question -1'),
        ([0], {'drafts': {0: [1, 2]}}, 'drafts of question 0: give a list of drafts'),
        ([0], {'drafts': {0: [[-1]]}}, 'a draft contains token -1'),
    ],
)
def test_what_a_shared_frame_cannot_be_asked(vlm, indices, options, said) -> None:
    questions = [FrameQuestion('What?'), FrameQuestion('Where?')]
    frame = vlm.share_frame(vlm.encode(IMAGE), questions)
    with pytest.raises(VlmError, match=said):
        frame.answer(indices, **options)


def test_an_image_without_its_features_is_refused(vlm) -> None:
    with pytest.raises(VlmError, match='features is a ndarray: give what encode returns'):
        vlm.share_frame(IMAGE, [FrameQuestion('What?')])


def test_a_set_of_a_shared_frame_may_be_a_list_of_blocks(vlm) -> None:
    features = vlm.encode(IMAGE)
    questions = [FrameQuestion('What?', [1, 2]), FrameQuestion('Where?', [1, 2])]
    found = vlm.share_frame(features, questions).answer([0, 1])
    assert_same(found, [alone(vlm, features, question) for question in questions])


@pytest.mark.parametrize('token', [-1, 10**6])
def test_unknown_first_tokens_are_refused(vlm, token) -> None:
    features = vlm.encode(IMAGE)
    said = f'first_token_ids contains token {token}'
    with pytest.raises(VlmError, match=said):
        vlm.answer(features, 'What?', first_token_ids=[token])
    with pytest.raises(VlmError, match=said):
        vlm.share_frame(features, [FrameQuestion('What?', first_token_ids=(token,))])


def test_no_memory_left_is_said_in_one_line(vlm, monkeypatch) -> None:
    def fail(*_arguments):
        raise torch.OutOfMemoryError('CUDA out of memory')

    features = vlm.encode(IMAGE)
    frame = vlm.share_frame(features, questions_of(SETS['one list']))
    monkeypatch.setattr(vlm.decoder, 'project', fail)
    with pytest.raises(VlmOutOfMemoryError, match=r'out of memory .*: use dtype bfloat16, quant'):
        frame.answer([0])
