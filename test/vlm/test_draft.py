"""A draft saves passes and changes no answer."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from tiny_models import SLIDING_WINDOW, make_tiny_model
from weight_edits import edit_weights, with_twins

from gmskip_ros.datasets.scenes import render_scene
from gmskip_ros.tasks import TASK_NAMES, make_task
from gmskip_ros.vlm import (
    Answer,
    NonFiniteLogitsError,
    PromptError,
    SkipSet,
    Stopped,
    Vlm,
    VlmError,
    VlmOutOfMemoryError,
    generation,
    load_vlm,
)
from gmskip_ros.vlm.generation import NEAR_TIE

NUM_BLOCKS = 5
BLOCKS = range(NUM_BLOCKS)
STEPS = 2 + SLIDING_WINDOW
PROMPT = 'What is it?'
IMAGE = np.random.default_rng(0).integers(0, 256, (40, 70, 3), dtype=np.uint8)
CHECKPOINTS = [('llava', 'llama'), ('llava_next', 'mistral'), ('llava_onevision', 'qwen2')]
# Printable ASCII from ! on: a random model ends about a tenth of its answers at every token.
END_IDS = list(range(5, 5 + 26))
# The same token ids; logits and what follows from them up to rounding. A skip set changes logits by
# over 0.1.
TOLERANCE = NEAR_TIE


def skip_sets(seed: int, count: int) -> list[SkipSet]:
    """Return sets over all axes and policies, every third of them plain."""
    chooser = random.Random(seed)
    sets = []
    for index in range(count):
        axes = {
            axis: [block for block in BLOCKS if chooser.random() < share]
            for axis, share in (('prefill', 0.35), ('decode', 0.35), ('image', 0.5))
        }
        if index % 3 == 0:
            axes = {axis: axes['prefill'] for axis in ('prefill', 'decode')}
        kv, image_kv = (chooser.choice(['none', 'input']) for _ in range(2))
        sets.append(SkipSet(**axes, kv=kv, image_kv=image_kv))
    return sets


def drafts_for(token_ids: Sequence[int]) -> dict[str, list[int]]:
    """Return drafts of an answer that has these tokens, right and wrong."""
    own, middle = list(token_ids), len(token_ids) // 2
    drafts = {
        'none': [],
        'the answer': own,
        'a start of it': own[:middle],
        'wrong first': [99, *own[1:]],
        'wrong at once': [99, *own],
        'wrong in the middle': [*own[:middle], 99, *own[middle + 1 :]],
        'wrong last': [*own[:-1], 99],
        'too long': [*own, *[40] * 600],
        'ended early': [*own[:middle], END_IDS[1], *own[middle:]],
        'ended at once': [END_IDS[2], *own],
        'special tokens': [0, 1, 2, 3],
    }
    return drafts


def assert_same(found: Answer, expected: Answer, what: object) -> None:
    assert found.token_ids == expected.token_ids, what
    assert found.text == expected.text, what
    assert found.confidence == pytest.approx(expected.confidence, rel=0, abs=1e-4), what
    assert found.first_probabilities == pytest.approx(
        expected.first_probabilities, rel=0, abs=1e-4
    ), what
    assert found.logits is not None and expected.logits is not None
    assert found.logits.dtype == np.float32 and found.logits.shape == expected.logits.shape, what
    np.testing.assert_allclose(found.logits, expected.logits, rtol=0, atol=TOLERANCE)


def answer(vlm: Vlm, features, prompt: str, skip, draft=(), steps=STEPS, **options) -> Answer:
    return vlm.answer(
        features,
        prompt,
        skip,
        steps,
        draft=draft,
        return_logits=True,
        first_token_ids=[7, 40],
        **options,
    )


@pytest.fixture(scope='module')
def make_folder(tmp_path_factory):
    """Return a function that makes tiny checkpoints."""

    def make(*arguments, **options):
        options.setdefault('num_blocks', NUM_BLOCKS)
        return make_tiny_model(tmp_path_factory.mktemp('tiny'), *arguments, **options)

    return make


@pytest.fixture(scope='module', params=CHECKPOINTS, ids='-'.join)
def any_vlm(request, make_folder) -> Vlm:
    folder = make_folder(*request.param, eos_token_id=END_IDS)
    return load_vlm(str(folder), device='cpu')


@pytest.fixture(scope='module')
def vlm(make_folder) -> Vlm:
    return load_vlm(str(make_folder(eos_token_id=END_IDS)), device='cpu')


@pytest.fixture(scope='module')
def demo() -> Vlm:
    return load_vlm('demo', device='cpu')


@pytest.fixture
def passes(monkeypatch):
    """Return a list that grows by (phase, tokens in it) with every pass over the blocks."""
    calls = []
    run_blocks = generation.Decoder.run_blocks

    def counted(self, hidden, store, skip_set, phase, *rest):
        calls.append((phase, hidden.shape[1]))
        return run_blocks(self, hidden, store, skip_set, phase, *rest)

    monkeypatch.setattr(generation.Decoder, 'run_blocks', counted)
    return calls


# ---- the same answer --------------------------------------------------------------------------


@pytest.mark.parametrize('skip', skip_sets(0, 9), ids=str)
def test_no_draft_changes_an_answer(any_vlm, skip) -> None:
    features = any_vlm.encode(IMAGE)
    expected = answer(any_vlm, features, PROMPT, skip)
    for what, draft in drafts_for(expected.token_ids).items():
        assert_same(answer(any_vlm, features, PROMPT, skip, draft), expected, what)


@pytest.mark.parametrize('forced_length', [1, 2, STEPS])
def test_no_draft_changes_an_answer_of_forced_length(any_vlm, forced_length) -> None:
    features = any_vlm.encode(IMAGE)
    options = {'steps': 3, 'forced_length': forced_length}
    for skip in (SkipSet(), SkipSet(decode=[1])):
        expected = answer(any_vlm, features, PROMPT, skip, **options)
        assert len(expected.token_ids) == forced_length
        for what, draft in drafts_for(expected.token_ids).items():
            assert_same(answer(any_vlm, features, PROMPT, skip, draft, **options), expected, what)


def test_answers_that_end_at_any_length(vlm) -> None:
    features, lengths = vlm.encode(IMAGE), set()
    for letter, skip in itertools.product('abcdefgh', [SkipSet(), SkipSet(prefill=[1])]):
        expected = answer(vlm, features, f'{letter}?', skip)
        lengths.add(len(expected.token_ids))
        found = answer(vlm, features, f'{letter}?', skip, expected.token_ids)
        assert_same(found, expected, letter)
        found = answer(vlm, features, f'{letter}?', skip, [*expected.token_ids[:3], 99, 99])
        assert_same(found, expected, letter)
    assert {0, STEPS} <= lengths and len(lengths) > 3, 'answers are too alike to see much'


@pytest.mark.parametrize('task_name', TASK_NAMES)
def test_the_demo_model_answers_as_without_a_draft(demo, task_name) -> None:
    """The draft is what half the blocks answer, as in the node."""
    task = make_task(task_name)
    features = demo.encode(render_scene(60_000_000).image)
    steps = min(task.max_new_tokens, 12)
    guess = demo.answer(features, task.prompt, SkipSet.of(range(1, 31, 2)), steps).token_ids
    for skip in (SkipSet(), SkipSet(prefill=[3], decode=[3, 4])):
        expected = answer(demo, features, task.prompt, skip, steps=steps)
        for draft in (guess, expected.token_ids, [5, *expected.token_ids[1:]]):
            assert_same(answer(demo, features, task.prompt, skip, draft, steps), expected, draft)


# ---- how it gets there ------------------------------------------------------------------------


def test_a_draft_goes_with_the_prompt_and_saves_the_passes_after_it(vlm, passes) -> None:
    features = vlm.encode(IMAGE)
    prompt = len(vlm.input_ids(PROMPT, features))
    own = vlm.answer(features, PROMPT, [1], forced_length=6).token_ids
    for draft, expected in [
        ([], [('prefill', prompt), *[('decode', 1)] * 5]),
        (own, [('prefill', prompt + 5)]),
        (own[:5], [('prefill', prompt + 5)]),
        (own[:3], [('prefill', prompt + 3), *[('decode', 1)] * 2]),
        ([99, *own[1:]], [('prefill', prompt + 5), *[('decode', 1)] * 5]),
        ([*own[:2], 99], [('prefill', prompt + 3), *[('decode', 1)] * 3]),
        ([*own, 40, 41], [('prefill', prompt + 5)]),
    ]:
        passes.clear()
        found = vlm.answer(features, PROMPT, [1], forced_length=6, draft=draft)
        assert found.token_ids == own
        assert passes == expected


@pytest.mark.parametrize(
    'skip',
    [SkipSet(decode=[1]), SkipSet(prefill=[1], kv='input'), SkipSet(image=[1], image_kv='none')],
    ids=str,
)
def test_where_the_phases_differ_it_goes_with_the_first_token(vlm, passes, skip) -> None:
    features = vlm.encode(IMAGE)
    prompt = len(vlm.input_ids(PROMPT, features))
    own = vlm.answer(features, PROMPT, skip, forced_length=6).token_ids
    for draft, expected in [
        (own, [5]),
        (own[:1], [1] * 5),
        (own[:3], [3, 1, 1]),
        ([99, *own[1:]], [1] * 5),
        ([*own[:2], 99, *own[3:]], [5, 1, 1, 1]),
    ]:
        passes.clear()
        found = vlm.answer(features, PROMPT, skip, forced_length=6, draft=draft)
        assert found.token_ids == own
        assert passes == [('prefill', prompt), *(('decode', tokens) for tokens in expected)]


def test_what_comes_after_an_end_token_is_not_processed(make_folder, passes) -> None:
    tokens = load_vlm(str(make_folder()), device='cpu').answer(IMAGE, PROMPT).token_ids
    end = tokens[3]
    assert end not in tokens[:3]
    vlm = load_vlm(str(make_folder(eos_token_id=end)), device='cpu')
    features = vlm.encode(IMAGE)
    prompt = len(vlm.input_ids(PROMPT, features))
    passes.clear()
    assert vlm.answer(features, PROMPT, draft=tokens).token_ids == tokens[:3]
    assert passes == [('prefill', prompt + 3)]


@pytest.mark.parametrize('skip', [SkipSet(), SkipSet(decode=[1])], ids=str)
def test_phases_sum_to_the_total_and_hold_the_verification(vlm, monkeypatch, skip) -> None:
    """It is prefill where it goes with the prompt, decode where it comes after the first token."""
    features = vlm.encode(IMAGE)
    own = vlm.answer(features, PROMPT, skip, forced_length=6).token_ids
    run_blocks, clock_ms, offset_ms = vlm.decoder.run_blocks, vlm._clock_ms, [0.0]

    def slow(hidden, *rest):
        offset_ms[0] += 1e6 if hidden.shape[1] > 1 else 0
        return run_blocks(hidden, *rest)

    monkeypatch.setattr(vlm.decoder, 'run_blocks', slow)
    monkeypatch.setattr(vlm, '_clock_ms', lambda: clock_ms() + offset_ms[0])
    timing = vlm.answer(features, PROMPT, skip, forced_length=6, draft=own[:4]).timing
    phases = (timing.preprocess_ms, timing.vision_ms, timing.prefill_ms, timing.decode_ms)
    assert sum(phases) == pytest.approx(timing.total_ms, rel=1e-6)
    assert timing.prefill_ms // 1e6 == 1
    assert timing.decode_ms // 1e6 == (0 if skip.is_plain else 1)


# ---- near ties --------------------------------------------------------------------------------


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'float16'])
def test_near_ties_are_answered_without_the_draft(make_folder, passes, dtype) -> None:
    vlm = load_vlm(edit_weights(make_folder(), with_twins), device='cpu', dtype=dtype)
    features = vlm.encode(IMAGE)
    prompt = len(vlm.input_ids(PROMPT, features))
    alone = [('prefill', prompt), *[('decode', 1)] * 5]
    expected = vlm.answer(features, PROMPT, forced_length=6, return_logits=True)
    passes.clear()
    for draft in (expected.token_ids, [99, 99]):
        found = vlm.answer(features, PROMPT, forced_length=6, return_logits=True, draft=draft)
        assert found.token_ids == expected.token_ids
        assert found.confidence == expected.confidence
        np.testing.assert_array_equal(found.logits, expected.logits)
        assert passes == [('prefill', prompt + min(5, len(draft))), *alone]
        passes.clear()
    # A draft that has not been run beside the answer moved nothing: no need to start over.
    vlm.answer(features, PROMPT, SkipSet(decode=[1]), forced_length=6, draft=[99])
    assert passes == alone


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'float16'])
def test_passes_that_move_logits_change_no_answer(make_folder, monkeypatch, dtype) -> None:
    """Longer passes on some machines are exact on others, so noise stands in for differences."""
    vlm = load_vlm(edit_weights(make_folder(), with_twins), device='cpu', dtype=dtype)
    logits_of, generator = vlm.decoder.logits, torch.Generator().manual_seed(0)

    def noisy(hidden):
        logits = logits_of(hidden)
        if hidden.numel() == hidden.shape[-1]:
            return logits  # of one token alone
        size = 1.2e-4 if dtype == 'float32' else 4 * torch.finfo(logits.dtype).eps * logits.max()
        noise = 2 * torch.rand(logits.shape, generator=generator) - 1
        return logits + (noise * size).to(logits.dtype)

    monkeypatch.setattr(vlm.decoder, 'logits', noisy)
    prompts = [f'{letter} or {letter * 3}?' for letter in 'abcd']
    features = vlm.encode(IMAGE)
    expected = [vlm.answer(features, prompt).token_ids for prompt in prompts]

    def all_same() -> bool:
        return expected == [
            vlm.answer(features, prompt, draft=ids).token_ids
            for prompt, ids in zip(prompts, expected, strict=True)
        ]

    assert all_same()
    monkeypatch.setattr(generation, 'NEAR_TIE', 0.0)
    monkeypatch.setattr(generation, 'NEAR_TIE_ULPS', 0)
    assert not all_same(), 'the noise changes nothing: the test is blind'


def test_a_draft_moves_logits_by_far_less_than_a_near_tie(demo) -> None:
    task = make_task('captioning')
    features = demo.encode(render_scene(60_000_001).image)
    for skip in (SkipSet.of([3, 8, 12, 20, 30]), SkipSet(decode=[3, 8])):
        expected = answer(demo, features, task.prompt, skip, steps=8)
        for draft in (expected.token_ids, [*expected.token_ids[:4], 99, 99, 99]):
            found = answer(demo, features, task.prompt, skip, draft, 8)
            assert np.abs(found.logits - expected.logits).max() < NEAR_TIE / 4


# ---- what is refused --------------------------------------------------------------------------


@pytest.mark.parametrize('token', [-1, 261, 1.0, '5', True, None], ids=repr)
def test_unknown_tokens_are_refused_in_one_line(vlm, token) -> None:
    with pytest.raises(VlmError, match=r'the draft contains token .*knows 0 to 260') as caught:
        vlm.answer(IMAGE, PROMPT, max_new_tokens=2, draft=[5, 6, 7, token])
    assert '\n' not in str(caught.value)


def test_drafts_may_be_arrays(vlm) -> None:
    expected = vlm.answer(IMAGE, PROMPT)
    for draft in (expected.token_ids, np.array(expected.token_ids), np.array([], dtype=int)):
        assert vlm.answer(IMAGE, PROMPT, draft=draft).token_ids == expected.token_ids


def test_only_what_the_answer_needs_has_to_fit_into_the_context(vlm) -> None:
    tokens = len(vlm.input_ids('', vlm.encode(IMAGE)))
    longest = 'x' * (512 - tokens - 3)
    expected = vlm.answer(IMAGE, longest, max_new_tokens=4).token_ids
    assert (
        vlm.answer(IMAGE, longest, max_new_tokens=4, draft=[*expected, 9, 9]).token_ids == expected
    )
    with pytest.raises(PromptError, match='take up to 513 tokens'):
        vlm.answer(IMAGE, longest, max_new_tokens=5, draft=expected)


@pytest.mark.parametrize('skip', [SkipSet(), SkipSet(decode=[1])], ids=str)
def test_should_stop_is_polled_before_every_block_of_every_pass(vlm, skip) -> None:
    features = vlm.encode(IMAGE)
    own = vlm.answer(features, PROMPT, skip, forced_length=6).token_ids

    def stopping_at(poll: int | None):
        polls = itertools.count()
        draft = [*own[:3], 99]
        return vlm.answer(
            features,
            PROMPT,
            skip,
            forced_length=6,
            draft=draft,
            should_stop=lambda: next(polls) == poll or last.append(poll) is not None,
        )

    last: list[int | None] = []
    assert stopping_at(None).token_ids == own
    num_passes = 3 if skip.is_plain else 4
    assert len(last) == 1 + NUM_BLOCKS * num_passes  # the first before anything
    for poll in range(len(last)):
        with pytest.raises(Stopped):
            stopping_at(poll)
    assert stopping_at(None).token_ids == own


def test_non_finite_logits_are_never_an_answer(make_folder) -> None:
    def break_block_2(weights) -> None:
        [name] = [n for n in weights if 'language' in n and 'layers.2.mlp.down_proj' in n]
        weights[name][0, 0] = float('nan')

    vlm = load_vlm(edit_weights(make_folder(), break_block_2), device='cpu')
    for skip in ((), SkipSet(decode=[2]), SkipSet(prefill=[2])):
        with pytest.raises(NonFiniteLogitsError, match='float32 on cpu: try'):
            vlm.answer(IMAGE, PROMPT, skip, draft=[40, 41])
    expected = vlm.answer(IMAGE, PROMPT, [2]).token_ids
    assert vlm.answer(IMAGE, PROMPT, [2], draft=expected).token_ids == expected


@pytest.mark.parametrize('skip', [SkipSet(), SkipSet(decode=[1])], ids=str)
def test_a_wrong_draft_cannot_make_logits_non_finite(make_folder, skip) -> None:
    """Its tokens are masked for those before them, but zero times NaN is NaN."""

    def break_a_token(weights) -> None:
        [name] = [n for n in weights if n.endswith('embed_tokens.weight')]
        weights[name][40] = float('nan')

    vlm = load_vlm(edit_weights(make_folder('llava', 'mistral'), break_a_token), device='cpu')
    expected = vlm.answer(IMAGE, PROMPT, skip).token_ids
    for draft in ([40, 40], [*expected[:3], 40], [*expected[:2], 40, *expected[3:]]):
        assert vlm.answer(IMAGE, PROMPT, skip, draft=draft).token_ids == expected


def test_no_memory_left_is_said_in_one_line(vlm, monkeypatch) -> None:
    def fail(*_arguments):
        raise torch.OutOfMemoryError('CUDA out of memory')

    features = vlm.encode(IMAGE)
    monkeypatch.setattr(vlm.decoder, 'run_blocks', fail)
    with pytest.raises(VlmOutOfMemoryError, match=r'out of memory .*: use dtype bfloat16, quant'):
        vlm.answer(features, PROMPT, draft=[5, 6])
