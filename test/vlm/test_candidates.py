"""Many skip sets in one walk give, each, the tokens of the answer that it gives alone."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from references import HfReference
from tiny_models import SLIDING_WINDOW, make_tiny_model
from weight_edits import edit_weights, with_twins

from gmskip_ros.datasets.scenes import render_scene
from gmskip_ros.tasks import TASK_NAMES, make_task
from gmskip_ros.vlm import (
    CandidateAnswer,
    ImageFeatures,
    NonFiniteLogitsError,
    PromptError,
    SkipSet,
    SkipSetError,
    Stopped,
    Vlm,
    VlmError,
    VlmOutOfMemoryError,
    load_vlm,
)
from gmskip_ros.vlm.generation import NEAR_TIE, SHIFT_FACTOR, near_tie_of

NUM_BLOCKS = 5
STEPS = 6
FAMILIES = ('llava', 'llava_next', 'llava_onevision')
TEXTS = ('llama', 'mistral', 'qwen2')
IMAGES = [
    np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    for seed, size in enumerate([(40, 70), (90, 30), (28, 28)])
]
PROMPTS = ['What is it?', 'A longer question, so that the others are padded: what?', 'Hm?']
# Printable ASCII from ! on: a random model ends about a tenth of its answers at every token.
END_IDS = list(range(5, 5 + 26))


def every_candidate(removed: Sequence[int]) -> list[int | None]:
    return [*(block for block in range(NUM_BLOCKS) if block not in removed), None]


def without(removed: Sequence[int], candidate: int | None) -> list[int]:
    return [*removed] if candidate is None else [*removed, candidate]


def alone(
    vlm: Vlm,
    features: Sequence[ImageFeatures],
    prompts: Sequence[str],
    removed: Sequence[int],
    candidates: Sequence[int | None],
    max_new_tokens: int = STEPS,
) -> list[list[CandidateAnswer]]:
    """Return what `answer` gives for each image and candidate, one at a time."""
    return [
        [
            CandidateAnswer(answer.token_ids, answer.text)
            for candidate in candidates
            for answer in [vlm.answer(image, prompt, without(removed, candidate), max_new_tokens)]
        ]
        for image, prompt in zip(features, prompts, strict=True)
    ]


def until_end(token_ids: Sequence[int], end_ids: Sequence[int]) -> tuple[int, ...]:
    ends = [position for position, token in enumerate(token_ids) if token in end_ids]
    return tuple(token_ids[: ends[0]] if ends else token_ids)


@pytest.fixture(scope='module')
def make_folder(tmp_path_factory):
    """Return a function that makes tiny checkpoints."""

    def make(*arguments, **options):
        return make_tiny_model(tmp_path_factory.mktemp('tiny'), *arguments, **options)

    return make


@pytest.fixture(scope='module')
def vlm(make_folder) -> Vlm:
    """Mistral: its window is shorter than the prompts and slides over drafts and new tokens."""
    folder = make_folder('llava', 'mistral', NUM_BLOCKS, eos_token_id=END_IDS)
    return load_vlm(str(folder), device='cpu')


@pytest.fixture(scope='module')
def features(vlm) -> list[ImageFeatures]:
    return [vlm.encode(image) for image in IMAGES]


# ---- the same answers as alone, and as Hugging Face's --------------------------------------


@pytest.mark.parametrize('text', TEXTS)
@pytest.mark.parametrize('family', FAMILIES)
def test_answers_are_those_of_the_model_with_the_layers_removed(family, text, make_folder) -> None:
    folder = make_folder(family, text, NUM_BLOCKS, eos_token_id=END_IDS)
    vlm, reference = load_vlm(str(folder), device='cpu'), HfReference(folder)
    features = [vlm.encode(image) for image in IMAGES]
    inputs = reference.inputs(IMAGES, PROMPTS)
    assert not inputs['attention_mask'].all(), 'nothing is padded: the test would be blind'
    lengths, answers = set(), set()
    for removed in [(), (0,), (NUM_BLOCKS - 1,), (3, 1), (0, 1, 2, 4), tuple(range(NUM_BLOCKS))]:
        candidates = every_candidate(removed)
        found = vlm.answer_candidates(features, PROMPTS, removed, candidates, STEPS)
        assert found == alone(vlm, features, PROMPTS, removed, candidates)
        for index, candidate in enumerate(candidates):
            with reference.blocks_removed(without(removed, candidate)):
                token_ids, _ = reference.greedy(inputs, STEPS)
            for row, ids in zip(found, token_ids, strict=True):
                expected = until_end(ids, END_IDS)
                assert row[index].token_ids == expected
                assert row[index].text == reference.tokenizer.decode(expected).strip()
                assert row[index].complete
                lengths.add(len(expected))
                answers.add(expected)
    assert lengths >= {0, STEPS} and len(lengths) > 3, 'answers are too alike to see much'
    assert len(answers) > 20


@pytest.mark.parametrize('removed', [(), (2,), (4, 0)], ids=str)
def test_candidates_may_come_in_any_order_and_number(vlm, features, removed) -> None:
    candidates = every_candidate(removed)
    expected = alone(vlm, features, PROMPTS, removed, candidates)
    reverse = vlm.answer_candidates(features, PROMPTS, removed, candidates[::-1], STEPS)
    assert reverse == [row[::-1] for row in expected]
    for index, candidate in enumerate(candidates):
        single = vlm.answer_candidates(features, PROMPTS, removed, [candidate], STEPS)
        assert single == [[row[index]] for row in expected]
    some = [candidates[-1], candidates[0], candidates[-1]]  # None twice
    found = vlm.answer_candidates(features, PROMPTS, removed, some, STEPS)
    assert found == [[row[-1], row[0], row[-1]] for row in expected]
    default = vlm.answer_candidates(features, PROMPTS, removed, max_new_tokens=STEPS)
    assert default == [[row[-1]] for row in expected]


def test_an_answer_longer_than_the_window(vlm, features) -> None:
    """Most rows end early; the others decode on with nothing of the prompt's text in sight."""
    steps = 3 * SLIDING_WINDOW
    candidates = every_candidate(())
    expected = alone(vlm, features, PROMPTS, (), candidates, steps)
    assert max(len(answer.token_ids) for row in expected for answer in row) > 2 * SLIDING_WINDOW
    assert vlm.answer_candidates(features, PROMPTS, (), candidates, steps) == expected


def test_nothing_to_answer(vlm, features) -> None:
    assert vlm.answer_candidates([], [], (), [0, None]) == []
    assert vlm.answer_candidates(features, PROMPTS, (), []) == [[], [], []]


def test_one_new_token(vlm, features) -> None:
    candidates = every_candidate((1,))
    found = vlm.answer_candidates(features, PROMPTS, (1,), candidates, 1)
    assert found == alone(vlm, features, PROMPTS, (1,), candidates, 1)
    assert {len(answer.token_ids) for row in found for answer in row} == {0, 1}


def test_an_answer_that_ends_before_it_begins(make_folder) -> None:
    folder = make_folder(num_blocks=NUM_BLOCKS, eos_token_id=list(range(300)))
    vlm = load_vlm(str(folder), device='cpu')
    features = [vlm.encode(image) for image in IMAGES]
    nothing = CandidateAnswer((), '')
    drafts = [[40, 41], [], [42]]
    for options in ({}, {'drafts': drafts}):
        found = vlm.answer_candidates(features, PROMPTS, (), [0, None], STEPS, **options)
        assert found == [[nothing, nothing]] * 3


# ---- drafts --------------------------------------------------------------------------------


@pytest.mark.parametrize('removed', [(), (0, 3)], ids=str)
def test_no_draft_changes_an_answer(vlm, features, removed) -> None:
    candidates = every_candidate(removed)
    expected = alone(vlm, features, PROMPTS, removed, candidates)
    right = [list(row[-1].token_ids) for row in expected]
    assert {len(draft) for draft in right} & {3, 4, 5, 6}, 'too short to be wrong at many positions'
    kinds = {
        'right': right,
        'of another candidate': [list(row[0].token_ids) for row in expected],
        'too long': [[*draft, *range(50, 70)] for draft in right],
        'empty': [[], [], []],
        'for one image only': [right[0], [], []],
        'cut to different lengths': [draft[: 2 * index] for index, draft in enumerate(right)],
        'with an end in it': [[*draft[:1], END_IDS[0], *draft[1:]] for draft in right],
        'one token, repeated': [[99] * STEPS] * 3,
    }
    for position in range(STEPS):
        wrong = [list(draft) for draft in right]
        for draft in wrong:
            if position < len(draft):
                draft[position] = 40 if draft[position] != 40 else 41
        kinds[f'wrong at {position}'] = wrong
    for kind, drafts in kinds.items():
        found = vlm.answer_candidates(features, PROMPTS, removed, candidates, STEPS, drafts=drafts)
        assert found == expected, kind


def test_the_work_is_that_of_one_walk_and_right_drafts_leave_none_to_decode(vlm) -> None:
    """With n blocks retained and all of them candidates, the one that leaves out the k-th runs the
    n - k blocks behind it. The trunk runs all blocks for its own answer; without it, all but the
    last: n (n + 1) / 2 block-rows, or one less. Every one of them is as many columns wide as the
    longest prompt and the longest draft together; in the last block, only what answers: the
    prompt's last column and the draft.
    """
    features = [vlm.encode(image) for image in IMAGES[:2]]
    prompts = PROMPTS[:2]
    prompt_columns = max(
        len(vlm.input_ids(prompt, image)) for prompt, image in zip(prompts, features, strict=True)
    )

    def work(removed, candidates, steps, drafts) -> int:
        before = vlm.token_blocks
        vlm.answer_candidates(features, prompts, removed, candidates, steps, drafts=drafts)
        done = vlm.token_blocks - before
        assert done % len(features) == 0
        return done // len(features)

    for removed in [(), (0,), (2, 4), (0, 1, 2, 3)]:
        blocks = [block for block in range(NUM_BLOCKS) if block not in removed]
        n = len(blocks)
        triangle = n * (n + 1) // 2
        nothing = [(), ()]  # and with one new token there is nothing to decode
        # All but the one that leaves it out go through the last block.
        before_last = (triangle - n) * prompt_columns
        assert work(removed, [*blocks, None], 1, nothing) == before_last + n
        assert work(removed, blocks, 1, nothing) == before_last + n - 1
        for candidate in blocks:  # the trunk goes no further than where a candidate leaves it
            in_last = 0 if candidate == blocks[-1] else 1
            before_last = (n - 1 - in_last) * prompt_columns
            assert work(removed, [candidate], 1, nothing) == before_last + in_last

        for candidate in every_candidate(removed):
            answers = alone(vlm, features, prompts, removed, [candidate])
            drafts = [answer.token_ids for [answer] in answers]
            runs = n if candidate is None else n - 1
            draft_columns = min(max(map(len, drafts)), STEPS - 1)
            columns = prompt_columns + draft_columns
            saved = 0 if candidate == blocks[-1] else prompt_columns - 1
            assert work(removed, [candidate], STEPS, drafts) == runs * columns - saved


def test_rows_that_miss_the_draft_decode_alone(vlm, features) -> None:
    """Of a wrong draft, what agrees is kept; each token more goes once through every block."""
    [[answer]] = alone(vlm, features[:1], PROMPTS[:1], (), [None], 30)
    length = len(answer.token_ids)
    assert length > 4
    prompt_columns = len(vlm.input_ids(PROMPTS[0], features[0]))
    for num_right in range(length):
        wrong = 40 if answer.token_ids[num_right] != 40 else 41
        draft = [*answer.token_ids[:num_right], wrong]
        before = vlm.token_blocks
        vlm.answer_candidates(features[:1], PROMPTS[:1], (), [None], 30, drafts=[draft])
        # One more token is known from where the draft went wrong; then one a step, the end too.
        columns = prompt_columns + len(draft) + length - num_right
        # Of the prompt, only the last column goes through the last block.
        assert vlm.token_blocks - before == NUM_BLOCKS * columns - (prompt_columns - 1)


# ---- answers that end once decided ---------------------------------------------------------


def test_a_decided_answer_ends_there_and_the_others_do_not(vlm, features) -> None:
    def is_decided(image: int, text: str) -> bool:
        return image != 1 and sum(map(ord, text)) % 3 == 0  # for some texts, early or late

    def expected_of(image: int, whole: CandidateAnswer) -> CandidateAnswer:
        for length in range(1, min(len(whole.token_ids), STEPS - 1) + 1):
            text = vlm.tokenizer.decode(whole.token_ids[:length])
            if is_decided(image, text):
                return CandidateAnswer(whole.token_ids[:length], text, complete=False)
        return whole

    candidates = every_candidate(())
    whole = alone(vlm, features, PROMPTS, (), candidates)
    expected = [[expected_of(i, answer) for answer in row] for i, row in enumerate(whole)]
    decided = [[answer for answer in row if not answer.complete] for row in expected]
    assert decided[0] and decided[2] and not decided[1]
    assert any(answer.complete for answer in [*expected[0], *expected[2]])
    assert len({len(answer.token_ids) for answer in decided[0] + decided[2]}) > 2
    for drafts in (None, [row[-1].token_ids for row in whole], [[99] * STEPS] * 3):
        found = vlm.answer_candidates(
            features, PROMPTS, (), candidates, STEPS, drafts=drafts, is_decided=is_decided
        )
        assert found == expected


def test_decided_rows_leave_the_batch(vlm, features) -> None:
    [[answer]] = alone(vlm, features[2:], PROMPTS[2:], (), [None])
    assert len(answer.token_ids) == STEPS
    asked = [0, 0, 0]

    def is_decided(image: int, text: str) -> bool:
        asked[image] += 1
        return image < 2 and asked[image] == 2

    before = vlm.token_blocks
    found = vlm.answer_candidates(features, PROMPTS, (), [None], STEPS, is_decided=is_decided)
    assert [len(answer.token_ids) for [answer] in found] == [2, 2, STEPS]
    pairs = zip(PROMPTS, features, strict=True)
    columns = max(len(vlm.input_ids(prompt, image)) for prompt, image in pairs)
    # All prompts, then a token of each; the further tokens of the third but for its last. In the
    # last block, a prompt is its last column.
    saved = 3 * (columns - 1)
    assert vlm.token_blocks - before == NUM_BLOCKS * (3 * columns + 3 + STEPS - 2) - saved


# ---- the limits on memory and rows ---------------------------------------------------------


@pytest.mark.parametrize(
    'limits',
    [
        {'max_rows': 1},
        {'max_rows': 2},
        {'max_rows': 3},
        {'max_rows': 7},  # one image and all candidates
        {'max_rows': 13},
        {'memory_bytes': 1},
        {'memory_bytes': 200_000},
        {'memory_bytes': 1_000_000},
        {'memory_bytes': 1_000_000, 'max_rows': 5},
    ],
    ids=str,
)
def test_little_room_changes_no_answer(vlm, features, limits) -> None:
    candidates = every_candidate(())
    expected = alone(vlm, features, PROMPTS, (), candidates)
    drafts = [answers[0].token_ids for answers in expected]
    num_rows = []
    finish_block = vlm.decoder.finish_block

    def counted(block, hidden, *arguments):
        num_rows.append(len(hidden))
        return finish_block(block, hidden, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vlm.decoder, 'finish_block', counted)
        patch.setattr('gmskip_ros.vlm.candidates.CACHED_TOKENS', 1 << 30)  # all rows at once
        found = vlm.answer_candidates(
            features, PROMPTS, (), candidates, STEPS, drafts=drafts, **limits
        )
        assert found == expected
        assert max(num_rows) <= limits.get('max_rows', 256)
        limited = max(num_rows)
        num_rows.clear()
        vlm.answer_candidates(features, PROMPTS, (), candidates, STEPS, drafts=drafts)
        assert limited < max(num_rows), 'the limit did not bind'


def test_one_candidate_leaves_room_for_as_many_images(vlm, features, monkeypatch) -> None:
    monkeypatch.setattr('gmskip_ros.vlm.candidates.CACHED_TOKENS', 1 << 30)  # all rows at once
    num_rows = []
    finish_block = vlm.decoder.finish_block

    def counted(block, hidden, *arguments):
        num_rows.append(len(hidden))
        return finish_block(block, hidden, *arguments)

    monkeypatch.setattr(vlm.decoder, 'finish_block', counted)
    vlm.answer_candidates(features, PROMPTS, (), (None,), STEPS, max_rows=3)
    assert num_rows[0] == 3 == max(num_rows)
    num_rows.clear()
    vlm.answer_candidates(features, PROMPTS, (), (1,), STEPS, max_rows=3)  # and the trunk
    assert max(num_rows) <= 3


@pytest.mark.parametrize('cached_tokens', [1, 200, 400, 1 << 30])
def test_how_many_rows_go_at_once_changes_no_answer(vlm, features, monkeypatch, cached_tokens):
    """The prompts differ in length, so every row needs its own picture's mask and positions."""
    candidates = every_candidate((1,))
    expected = alone(vlm, features, PROMPTS, (1,), candidates)
    drafts = [answers[0].token_ids for answers in expected]
    monkeypatch.setattr('gmskip_ros.vlm.candidates.CACHED_TOKENS', cached_tokens)
    found = vlm.answer_candidates(features, PROMPTS, (1,), candidates, STEPS, drafts=drafts)
    assert found == expected


# ---- near ties -----------------------------------------------------------------------------


@pytest.fixture
def num_alone(monkeypatch):
    """Return a list that grows by one with every row of a walk that is answered alone."""
    calls = []
    answer = Vlm.answer

    def counted(self, *arguments, **options):
        calls.append(arguments)
        return answer(self, *arguments, **options)

    monkeypatch.setattr(Vlm, 'answer', counted)
    return calls


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'float16'])
def test_tokens_with_the_same_logit_are_told_apart_as_alone(make_folder, dtype, num_alone) -> None:
    folder = edit_weights(make_folder(num_blocks=NUM_BLOCKS), with_twins)
    vlm = load_vlm(folder, device='cpu', dtype=dtype)
    features = [vlm.encode(image) for image in IMAGES]
    candidates = every_candidate(())
    expected = alone(vlm, features, PROMPTS, (), candidates)
    drafts = [row[0].token_ids for row in expected]
    num_alone.clear()
    found = vlm.answer_candidates(features, PROMPTS, (), candidates, STEPS, drafts=drafts)
    assert found == expected
    assert len(num_alone) == len(IMAGES) * len(candidates)  # or the twins are none


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'float16'])
def test_a_random_model_is_exact_in_every_dtype(make_folder, dtype) -> None:
    vlm = load_vlm(str(make_folder(num_blocks=NUM_BLOCKS)), device='cpu', dtype=dtype)
    prompts = [f'{letter} or {letter * 3}?' for letter in 'abcdefghijkl']
    features = [vlm.encode(IMAGES[0])] * len(prompts)
    candidates = every_candidate(())
    expected = alone(vlm, features, prompts, (), candidates)
    drafts = [row[-1].token_ids for row in expected]
    found = vlm.answer_candidates(features, prompts, (), candidates, STEPS, drafts=drafts)
    assert found == expected


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'float16'])
def test_a_batch_that_moves_logits_changes_no_answer(make_folder, monkeypatch, dtype) -> None:
    """Batches on some machines are exact on others, so noise stands in for their differences."""
    model = make_folder(num_blocks=NUM_BLOCKS)
    if dtype == 'float32':  # or no two logits are near enough
        edit_weights(model, with_twins)
    vlm = load_vlm(str(model), device='cpu', dtype=dtype)
    features = [vlm.encode(image) for image in IMAGES]
    logits_of, generator = vlm.decoder.logits, torch.Generator().manual_seed(0)

    def noisy(hidden):
        logits = logits_of(hidden)
        if hidden.numel() == hidden.shape[-1]:
            return logits  # of one token alone
        best = logits.abs().max()
        size = 1.2e-4 if dtype == 'float32' else 4 * torch.finfo(logits.dtype).eps * best
        noise = 2 * torch.rand(logits.shape, generator=generator) - 1
        return logits + (noise * size).to(logits.dtype)

    monkeypatch.setattr(vlm.decoder, 'logits', noisy)
    candidates = every_candidate(())
    expected = alone(vlm, features, PROMPTS, (), candidates)
    drafts = [row[0].token_ids for row in expected]

    def all_same() -> bool:
        same = []
        for steps in (1, 2, STEPS):
            found = vlm.answer_candidates(features, PROMPTS, (), candidates, steps, drafts=drafts)
            same.append(found == alone(vlm, features, PROMPTS, (), candidates, steps))
        return all(same)

    assert all_same()
    monkeypatch.setattr('gmskip_ros.vlm.generation.NEAR_TIE', 0.0)
    monkeypatch.setattr('gmskip_ros.vlm.generation.NEAR_TIE_ULPS', 0)
    assert not all_same(), 'the noise changes nothing: the test is blind'


def test_a_batch_moves_logits_by_far_less_than_a_near_tie(monkeypatch) -> None:
    """Whole answers as drafts, so that the walk gives all of a row's logits at once."""
    vlm, task = load_vlm('demo', device='cpu'), make_task('multi_object')
    features = [vlm.encode(render_scene(60_000_000 + i).image) for i in range(4)]
    prompts = [f'{start}{task.prompt}' for start in ('', 'Look. ', 'Well now: ', 'Ah. ')]
    walked = []
    logits_of = vlm.decoder.logits

    def kept(hidden):
        walked.append(logits_of(hidden))
        return walked[-1]

    for removed, candidate in [((), None), ((), 7), ((3, 8, 12, 20), 30)]:
        lone = [
            vlm.answer(image, prompt, without(removed, candidate), 12, return_logits=True)
            for image, prompt in zip(features, prompts, strict=True)
        ]
        drafts = [answer.token_ids for answer in lone]
        walked.clear()
        with monkeypatch.context() as patch:
            patch.setattr(vlm.decoder, 'logits', kept)
            vlm.answer_candidates(features, prompts, removed, [candidate], 12, drafts=drafts)
        for row, answer in zip(walked[0].numpy(), lone, strict=True):
            difference = np.abs(row[: len(answer.logits)] - answer.logits).max()
            assert difference < NEAR_TIE / 4


def test_the_margin_of_a_model_is_measured_and_used(make_folder, monkeypatch) -> None:
    vlm = load_vlm(str(make_folder()), device='cpu')
    features = vlm.encode(IMAGES[0])
    margin = vlm.near_tie_margin(features, PROMPTS[0], 6)
    assert margin == vlm.near_tie_margin(features, PROMPTS[0], 6)
    assert 0 <= margin < NEAR_TIE, 'of a model so small'
    asked = []
    answer_alone = vlm._answer_alone
    monkeypatch.setattr(vlm, '_answer_alone', lambda *a: asked.append(a) or answer_alone(*a))
    expected = vlm.answer_candidates([features], PROMPTS[:1], (), [None, 1, 2], 6)
    assert not asked
    for near_tie, count in ((margin, 0), (1e9, 3)):
        found = vlm.answer_candidates(
            [features], PROMPTS[:1], (), [None, 1, 2], 6, near_tie=near_tie
        )
        assert found == expected
        assert len(asked) == count
    # What a batch does to logits, the margin holds several times over.
    noisy = torch.tensor([[1.0, 3.0, 2.0]])
    moved = noisy + torch.tensor([[0.0, 1e-4, 3e-4]])
    assert near_tie_of(noisy, moved, torch.float32) == pytest.approx(SHIFT_FACTOR * 2e-4, rel=1e-2)
    assert near_tie_of(noisy, moved, torch.float16) == pytest.approx(2e-4, rel=1e-2)


# ---- what is refused -----------------------------------------------------------------------


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_non_finite_logits_are_never_an_answer(make_folder, value) -> None:
    def break_block_2(weights) -> None:
        [name] = [n for n in weights if 'language' in n and 'layers.2.mlp.down_proj' in n]
        weights[name][0, 0] = value

    vlm = load_vlm(edit_weights(make_folder(num_blocks=NUM_BLOCKS), break_block_2), device='cpu')
    features = [vlm.encode(image) for image in IMAGES]
    with pytest.raises(NonFiniteLogitsError) as error:
        vlm.answer_candidates(features, PROMPTS, (4,), [2, 3], STEPS)
    assert '\n' not in str(error.value)
    assert 'without blocks [3, 4]' in str(error.value) and 'float32 on cpu' in str(error.value)
    found = vlm.answer_candidates(features, PROMPTS, (), [2], STEPS)  # it is left out
    assert found == alone(vlm, features, PROMPTS, (), [2])
    with pytest.raises(NonFiniteLogitsError, match='float32 on cpu: try'):
        vlm.log_probabilities(features, PROMPTS, ['a', 'b', 'c'])


def test_a_wrong_draft_cannot_make_logits_non_finite(make_folder) -> None:
    """Its tokens are masked for a row that does not take them, but zero times NaN is NaN."""

    def break_a_token(weights) -> None:
        [name] = [n for n in weights if n.endswith('embed_tokens.weight')]
        weights[name][40] = float('nan')

    vlm = load_vlm(edit_weights(make_folder(num_blocks=NUM_BLOCKS), break_a_token), device='cpu')
    features = [vlm.encode(image) for image in IMAGES]
    expected = alone(vlm, features, PROMPTS, (), [1, None])
    found = vlm.answer_candidates(features, PROMPTS, (), [1, None], STEPS, drafts=[[40, 40]] * 3)
    assert found == expected


def test_it_stops_when_told_to(vlm, features) -> None:
    candidates = every_candidate(())
    polls = []
    vlm.answer_candidates(
        features, PROMPTS, (), candidates, STEPS, should_stop=lambda: bool(polls.append(0))
    )
    assert len(polls) == NUM_BLOCKS * STEPS  # the walk, then a step for every further token
    for stop_at in (0, 1, NUM_BLOCKS, len(polls) - 1):
        calls = itertools.count()
        with pytest.raises(Stopped):
            vlm.answer_candidates(
                features,
                PROMPTS,
                (),
                candidates,
                STEPS,
                should_stop=lambda calls=calls, stop_at=stop_at: next(calls) >= stop_at,
            )
    found = vlm.answer_candidates(features, PROMPTS, (), candidates, STEPS)
    assert found == alone(vlm, features, PROMPTS, (), candidates)  # as good as before


@pytest.mark.parametrize(
    ('arguments', 'error', 'words'),
    [
        ({'removed': [1], 'candidates': [1]}, SkipSetError, 'block 1 is named twice'),
        ({'candidates': [0, 0]}, SkipSetError, 'block 0 is named twice'),
        ({'candidates': [NUM_BLOCKS]}, SkipSetError, f'block {NUM_BLOCKS} does not exist'),
        ({'removed': [-1]}, SkipSetError, 'block -1 is negative'),
        ({'candidates': ['2']}, SkipSetError, "block '2' is not an integer"),
        ({'candidates': [True]}, SkipSetError, 'block True is not an integer'),
        ({'max_new_tokens': 0}, VlmError, 'max_new_tokens is 0: give a whole number of tokens'),
        ({'max_rows': 0}, VlmError, 'max_rows is 0: give a whole number of sequences'),
        ({'memory_bytes': 1e9}, VlmError, 'memory_bytes is 1000000000.0: give a whole number of b'),
        ({'prompts': PROMPTS[:2]}, VlmError, '3 images, 2 prompts, 3 drafts: give one of each'),
        ({'drafts': [[]]}, VlmError, '3 images, 3 prompts, 1 drafts: give one of each'),
        ({'drafts': [[5], [-1], []]}, VlmError, 'a draft contains token -1: .* knows 0 to 260'),
        ({'drafts': [[5], [], [261]]}, VlmError, 'a draft contains token 261: .* knows 0 to 260'),
        ({'prompts': ['a', '<image>', 'b']}, PromptError, 'remove it'),
        ({'max_new_tokens': 500}, PromptError, 'the context of .* holds 512: shorten the prompt'),
    ],
    ids=str,
)
def test_wrong_arguments_are_refused_in_one_line(vlm, features, arguments, error, words) -> None:
    with pytest.raises(error, match=words) as caught:
        vlm.answer_candidates(**{'features': features, 'prompts': PROMPTS, **arguments})
    assert '\n' not in str(caught.value)


def test_no_memory_left_is_said_in_one_line(vlm, features, monkeypatch) -> None:
    def fail(*_arguments):
        raise torch.OutOfMemoryError('CUDA out of memory')

    monkeypatch.setattr(vlm.decoder, 'finish_block', fail)
    for ask in (
        lambda: vlm.answer_candidates(features, PROMPTS),
        lambda: vlm.log_probabilities(features, PROMPTS, ['a', 'b', 'c']),
    ):
        with pytest.raises(VlmOutOfMemoryError, match=r'out of memory .*: use dtype bfloat16, '):
            ask()


# ---- the demo model ------------------------------------------------------------------------


@pytest.mark.parametrize('task_name', TASK_NAMES)
def test_the_demo_model_answers_as_alone(task_name) -> None:
    """All its blocks retained and half of them; candidates at both ends and in the middle."""
    vlm, task = load_vlm('demo', device='cpu'), make_task(task_name)
    features = [vlm.encode(render_scene(60_000_000 + i).image) for i in range(2)]
    prompts = [task.prompt, f'Look. {task.prompt}']
    steps = min(task.max_new_tokens, 12)
    for removed, candidates in [((), [0, 13, 31]), (range(1, 31, 2), [0, 12, 31, None])]:
        expected = alone(vlm, features, prompts, removed, candidates, steps)
        full = alone(vlm, features, prompts, removed, [None], steps)
        drafts = [answer.token_ids for [answer] in full]
        found = vlm.answer_candidates(features, prompts, removed, candidates, steps, drafts=drafts)
        assert found == expected


# ---- log probabilities ---------------------------------------------------------------------

TEXTS_OF_ANSWERS = ['a person', ' no', 'Straße 道 and much more']


@pytest.mark.parametrize('text', TEXTS)
@pytest.mark.parametrize('skip', [(), (0, 3), tuple(range(NUM_BLOCKS))], ids=str)
def test_log_probabilities_are_hugging_faces(make_folder, text, skip) -> None:
    folder = make_folder('llava', text, NUM_BLOCKS)
    vlm, reference = load_vlm(str(folder), device='cpu'), HfReference(folder)
    features = [vlm.encode(image) for image in IMAGES]
    found = vlm.log_probabilities(features, PROMPTS, TEXTS_OF_ANSWERS, skip)
    expected = []
    with reference.blocks_removed(skip), torch.inference_mode():
        for image, prompt, answer in zip(IMAGES, PROMPTS, TEXTS_OF_ANSWERS, strict=True):
            inputs = reference.inputs([image], [prompt])
            ids = reference.tokenizer(answer, add_special_tokens=False)['input_ids']
            inputs['input_ids'] = torch.cat((inputs['input_ids'], torch.tensor([ids])), dim=1)
            inputs['attention_mask'] = torch.ones_like(inputs['input_ids'])
            inputs.pop('token_type_ids', None)
            logits = reference.model(**inputs, use_cache=False).logits[0].double().numpy()
            total = 0.0
            for position, token in enumerate(ids, start=len(logits) - len(ids) - 1):
                row = logits[position]
                total += row[token] - row.max() - math.log(np.exp(row - row.max()).sum())
            expected.append(total)
    assert max(expected) < -10  # a random model expects none of this
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    for index in range(3):  # and each alone
        one = slice(index, index + 1)
        single = vlm.log_probabilities(features[one], PROMPTS[one], TEXTS_OF_ANSWERS[one], skip)
        np.testing.assert_allclose(single, expected[one], rtol=1e-5)


def test_an_empty_text_is_certain(vlm, features) -> None:
    [nothing, something] = vlm.log_probabilities(features[:2], PROMPTS[:2], ['', 'yes'])
    assert nothing == 0.0
    assert something < 0
    assert vlm.log_probabilities(features[:1], PROMPTS[:1], ['']) == [0.0]
    assert vlm.log_probabilities([], [], []) == []


@pytest.mark.parametrize(
    ('arguments', 'error', 'words'),
    [
        ({'texts': ['a', 'b']}, VlmError, '3 images, 3 prompts, 2 texts: give one of each'),
        ({'prompts': []}, VlmError, '3 images, 0 prompts, 3 texts: give one of each'),
        ({'texts': ['a', None, 'b']}, PromptError, 'text is a NoneType: give text'),
        ({'texts': ['a', '<image>', 'b']}, PromptError, "text contains '<image>'"),
        ({'texts': ['a', '\ud800', 'b']}, PromptError, 'not valid Unicode'),
        ({'texts': ['a' * 512, 'b', 'c']}, PromptError, 'the context of .* holds 512: shorten'),
        ({'skip': [NUM_BLOCKS]}, SkipSetError, 'does not exist'),
    ],
    ids=str,
)
def test_wrong_texts_are_refused_in_one_line(vlm, features, arguments, error, words) -> None:
    given = {'features': features, 'prompts': PROMPTS, 'texts': TEXTS_OF_ANSWERS, **arguments}
    with pytest.raises(error, match=words) as caught:
        vlm.log_probabilities(**given)
    assert '\n' not in str(caught.value)


# ---- parameters ----------------------------------------------------------------------------


def test_parameters_run_are_those_of_the_model_with_the_layers_removed(make_folder) -> None:
    folder = make_folder('llava_onevision', 'qwen2', NUM_BLOCKS)
    vlm, reference = load_vlm(str(folder), device='cpu'), HfReference(folder)
    for skip in [(), (2,), (0, 4), tuple(range(NUM_BLOCKS))]:
        with reference.blocks_removed(skip):
            expected = sum(parameter.numel() for parameter in reference.model.parameters())
        assert vlm.num_parameters_run(skip) == expected
    # A block that one of the phases runs is run.
    assert vlm.num_parameters_run(SkipSet(prefill=[0, 1], decode=[1, 2])) == (
        vlm.num_parameters_run([1])
    )
    with pytest.raises(SkipSetError, match='does not exist'):
        vlm.num_parameters_run([NUM_BLOCKS])
