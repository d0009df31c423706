"""Logits of given continuations, and the states of every block: against Hugging Face's own."""

from __future__ import annotations

import gc

import numpy as np
import pytest
import torch
from references import HfReference
from tiny_models import make_tiny_model

from gmskip_ros.vlm import SkipSet, SkipSetError, Stopped, VlmError, VlmOutOfMemoryError, load_vlm
from gmskip_ros.vlm.errors import PromptError

NUM_BLOCKS = 4
PROMPTS = ['Hm?', 'A longer question, so that the other rows are padded: what?', 'What is it?']
CHECKPOINTS = [('llava', 'llama'), ('llava_next', 'mistral'), ('llava_onevision', 'qwen2')]
CONTINUATIONS = [[40, 41, 42, 43, 44, 45, 46, 47, 48, 49], [60], [77, 5, 78, 99]]


def make_image(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


IMAGES = [make_image(40, 70), make_image(90, 30, seed=1), make_image(28, 28, seed=2)]


@pytest.fixture(scope='module', params=CHECKPOINTS, ids='-'.join)
def pair(request, tmp_path_factory):
    """The engine and Hugging Face's model over the same checkpoint."""
    folder = make_tiny_model(tmp_path_factory.mktemp('tiny'), *request.param, NUM_BLOCKS)
    return load_vlm(str(folder), device='cpu'), HfReference(folder)


# ---- logits of a continuation ----------------------------------------------------------------


@pytest.mark.parametrize('skip', [(), (1,), (0, 3)], ids=str)
def test_continuation_logits_are_hugging_faces(pair, skip) -> None:
    vlm, reference = pair
    features = [vlm.encode(image) for image in IMAGES]
    found = vlm.continuation_logits(features, PROMPTS, CONTINUATIONS, skip)
    for image, prompt, ids, logits in zip(IMAGES, PROMPTS, CONTINUATIONS, found, strict=True):
        inputs, length = reference.whole_sequence(image, prompt, ids)
        with reference.blocks_removed(skip), torch.inference_mode():
            expected = reference.model(**inputs, use_cache=False).logits[0, length - 1 : -1]
        assert logits.dtype == torch.float32
        np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    'skip',
    [
        SkipSet(decode=[1, 3]),
        SkipSet(prefill=[0, 2]),
        SkipSet(prefill=[0, 1], decode=[1, 2]),
        SkipSet(prefill=range(NUM_BLOCKS)),
        SkipSet(decode=range(NUM_BLOCKS)),
        SkipSet(prefill=[0, 2], kv='input'),
        SkipSet(prefill=[1], image=[0, 2, 3]),
        SkipSet(decode=[2], image=[0, 2, 3], image_kv='none'),
    ],
    ids=str,
)
def test_a_continuation_is_processed_as_decoding_it_would(pair, skip) -> None:
    """The model's own answer, given as the continuation, meets the logits that chose it."""
    vlm, _ = pair
    features = [vlm.encode(image) for image in IMAGES]
    answers = [
        vlm.answer(image, prompt, skip, forced_length=steps, return_logits=True)
        for image, prompt, steps in zip(features, PROMPTS, (12, 1, 5), strict=True)
    ]
    found = vlm.continuation_logits(features, PROMPTS, [a.token_ids for a in answers], skip)
    for logits, answer in zip(found, answers, strict=True):
        np.testing.assert_allclose(logits, answer.logits, rtol=0, atol=1e-4)


def test_log_probabilities_use_each_phases_own_set(pair) -> None:
    vlm, _ = pair
    features = [vlm.encode(image) for image in IMAGES]
    texts = ['a cat', '', 'no']
    skip = SkipSet(prefill=[1], decode=[2])
    found = vlm.log_probabilities(features, PROMPTS, texts, skip)
    ids = [list(vlm.token_ids(text)) for text in texts]
    logits = vlm.continuation_logits(features, PROMPTS, ids, skip)
    expected = [
        sum(float(row.log_softmax(-1)[token]) for row, token in zip(rows, tokens, strict=True))
        for rows, tokens in zip(logits, ids, strict=True)
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert found[1] == 0.0 and len(logits[1]) == 0
    both = vlm.log_probabilities(features, PROMPTS, texts, [1])
    assert abs(both[0] - found[0]) > 1e-2  # the decode set matters


def test_wrong_continuations_are_refused_in_one_line(pair) -> None:
    vlm, _ = pair
    features = [vlm.encode(IMAGES[0])]
    for ids, skip, error, words in [
        ([[261]], (), VlmError, 'a continuation contains token 261: .* knows 0 to 260'),
        ([[1], [2]], (), VlmError, '1 images, 1 prompts, 2 continuations: give one of each'),
        ([[5] * 512], (), PromptError, 'the context of .* holds 512: shorten'),
        ([[5]], [NUM_BLOCKS], SkipSetError, 'does not exist'),
    ]:
        with pytest.raises(error, match=words) as caught:
            vlm.continuation_logits(features, PROMPTS[:1], ids, skip)
        assert '\n' not in str(caught.value)
    with pytest.raises(Stopped):
        vlm.continuation_logits(features, PROMPTS[:1], [[5]], should_stop=lambda: True)
    assert vlm.continuation_logits([], [], []) == []


# ---- states of every block -------------------------------------------------------------------

ANSWER = [40, 41, 42, 43, 44, 45, 46, 47, 48]


@pytest.mark.parametrize('ids', [ANSWER, [60], []], ids=lambda ids: f'{len(ids)}-tokens')
def test_block_states_are_hugging_faces(pair, ids) -> None:
    vlm, reference = pair
    for image, prompt in zip(IMAGES[:2], PROMPTS[:2], strict=True):
        states, attentions, is_image, length = reference.states(image, prompt, ids)
        found = list(vlm.block_states(vlm.encode(image), prompt, ids, attention=True))
        assert [state.block for state in found] == list(range(NUM_BLOCKS))
        for state in found:
            assert state.prompt_length == length
            assert state.is_image.tolist() == is_image.tolist() and is_image.any()
            for given, expected in [
                (state.entering, states[state.block]),
                (state.leaving, states[state.block + 1]),
            ]:
                assert given.shape == (length + len(ids), vlm.decoder.config.hidden_size)
                np.testing.assert_allclose(given, expected, rtol=1e-4, atol=5e-4)  # up to 30
            assert state.image_attention.dtype == torch.float32
            paid = attentions[state.block, :, length - 1 : length - 1 + len(ids), is_image]
            np.testing.assert_allclose(
                state.image_attention, paid.sum(dim=-1).mean(dim=0), rtol=0, atol=1e-5
            )


def test_attention_is_computed_on_request_and_changes_nothing(pair) -> None:
    vlm, _ = pair
    features = vlm.encode(IMAGES[0])
    before = vlm.answer(features, PROMPTS[0], forced_length=4, return_logits=True)
    plain = list(vlm.block_states(features, PROMPTS[0], ANSWER))
    with_attention = list(vlm.block_states(features, PROMPTS[0], ANSWER, attention=True))
    for one, other in zip(plain, with_attention, strict=True):
        assert one.image_attention is None
        assert torch.equal(one.leaving, other.leaving)
    after = vlm.answer(features, PROMPTS[0], forced_length=4, return_logits=True)
    assert after.token_ids == before.token_ids
    np.testing.assert_array_equal(after.logits, before.logits)


@pytest.mark.parametrize(
    'skip',
    [
        SkipSet(prefill=[1], decode=[1]),
        SkipSet(decode=[1, 3]),
        SkipSet(prefill=[0, 2]),
        SkipSet(prefill=[0, 1], decode=[1, 2]),
        SkipSet(prefill=range(NUM_BLOCKS)),
        SkipSet(prefill=[0, 2], kv='input'),
        SkipSet(prefill=[1], image=[0, 2, 3]),
        SkipSet(decode=[2], image=[0, 2, 3], image_kv='none'),
    ],
    ids=str,
)
def test_block_states_of_a_skip_set_are_those_of_answering(pair, skip) -> None:
    vlm, _ = pair
    features = vlm.encode(IMAGES[0])
    states = list(vlm.block_states(features, PROMPTS[0], ANSWER, skip, attention=True))
    prompt = states[0].prompt_length
    last = vlm.decoder.logits(states[-1].leaving[prompt - 1 : -1])
    [expected] = vlm.continuation_logits([features], PROMPTS[:1], [ANSWER], skip)
    np.testing.assert_allclose(last, expected, rtol=0, atol=1e-4)
    for state in states:
        passed = (state.entering == state.leaving).all(dim=-1)  # (T,)
        is_skipped = torch.full_like(passed, state.block in skip.decode)
        is_skipped[:prompt] = state.block in skip.prefill
        is_skipped |= state.is_image & (state.block in skip.image)
        assert passed.tolist() == is_skipped.tolist()
        hides_image = (state.block in skip.prefill and skip.kv == 'none') or (
            state.block in skip.image and skip.image_kv == 'none'
        )
        runs = ~is_skipped[prompt - 1 : -1]
        assert state.image_attention[~runs].sum() == 0
        if hides_image:
            assert state.image_attention.max() == 0
        elif vlm.text_model_type == 'llama':  # no windows
            assert (state.image_attention[runs] > 0).all()


def test_only_the_states_of_the_block_in_hand_are_kept(pair) -> None:
    vlm, _ = pair
    for state in vlm.block_states(vlm.encode(IMAGES[0]), PROMPTS[0], ANSWER, attention=True):
        kept = {
            item.data_ptr()
            for item in gc.get_objects()
            if issubclass(type(item), torch.Tensor) and item.shape[-2:] == state.entering.shape
        }
        assert kept == {state.entering.data_ptr(), state.leaving.data_ptr()}


@pytest.mark.parametrize('num_missing', [0, 1])
def test_an_answer_that_just_fits_the_context_has_states(pair, num_missing) -> None:
    """The last token of an answer is never run, so only that one may be beyond the context."""
    vlm, _ = pair
    features = vlm.encode(IMAGES[0])
    length = len(vlm.input_ids('', features))
    prompt = 'x' * (512 - length - len(ANSWER) + num_missing)
    assert len(vlm.answer(features, prompt, max_new_tokens=9, forced_length=9).token_ids) == 9
    found = list(vlm.block_states(features, prompt, ANSWER, attention=True))
    assert len(found) == NUM_BLOCKS
    before = vlm.block_states(features, prompt, ANSWER[:-1], attention=True)
    for state, shorter in zip(found, before, strict=True):
        assert len(state.entering) == len(state.leaving) == len(state.is_image) == 512
        assert state.prompt_length == 512 - len(ANSWER) + num_missing
        num_run = 512 - 1 + num_missing
        torch.testing.assert_close(state.leaving[:num_run], shorter.leaving, rtol=1e-4, atol=1e-4)
        assert len(state.image_attention) == len(ANSWER)
        torch.testing.assert_close(
            state.image_attention[:-1], shorter.image_attention, rtol=1e-4, atol=1e-6
        )
        if vlm.decoder.windows[state.block] is None:
            assert state.image_attention[-1] > 0
    with pytest.raises(PromptError, match='answer take up to 513 tokens'):
        vlm.block_states(features, prompt + 'x' * (2 - num_missing), ANSWER)


def test_continuations_fit_the_context_each_with_its_own_prompt(pair) -> None:
    vlm, _ = pair
    features = [vlm.encode(IMAGES[0])] * 2
    prompts = ['x' * (512 - len(vlm.input_ids('', features[0]))), '']
    ids = [[40], ANSWER]
    together = vlm.continuation_logits(features, prompts, ids)
    for row, alone in enumerate(together):
        (expected,) = vlm.continuation_logits(features[:1], prompts[row : row + 1], [ids[row]])
        torch.testing.assert_close(alone, expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(PromptError, match='text take up to 513 tokens'):
        vlm.log_probabilities(features, prompts, ['ab', ''])


def test_block_states_can_be_stopped_and_refuse_what_does_not_fit(pair, monkeypatch) -> None:
    vlm, _ = pair
    features = vlm.encode(IMAGES[0])
    polls = iter([False, False, True])
    states = vlm.block_states(features, PROMPTS[0], should_stop=lambda: next(polls))
    assert [next(states).block, next(states).block] == [0, 1]
    with pytest.raises(Stopped):
        next(states)
    for ids, skip, error, words in [
        ([261], (), VlmError, 'an answer contains token 261: .* knows 0 to 260'),
        ([5] * 512, (), PromptError, 'the context of .* holds 512: shorten'),
        ([5], [NUM_BLOCKS], SkipSetError, 'does not exist'),
    ]:
        with pytest.raises(error, match=words) as caught:
            vlm.block_states(features, PROMPTS[0], ids, skip)
        assert '\n' not in str(caught.value)

    def fail(*_arguments):
        raise torch.OutOfMemoryError('CUDA out of memory')

    monkeypatch.setattr(vlm.decoder, 'finish_block', fail)
    with pytest.raises(VlmOutOfMemoryError, match='ran out of memory'):
        next(vlm.block_states(features, PROMPTS[0]))
