"""What `encode`, `answer` and `answer_batch` give back, and what they refuse."""

from __future__ import annotations

import gc
import hashlib
import itertools
import json
import re
import time

import numpy as np
import pytest
import torch
from references import HfReference
from tiny_models import CHAT_TEMPLATE, make_tiny_model

from gmskip_ros.vlm import (
    ImageError,
    NonFiniteLogitsError,
    PromptError,
    SkipSet,
    SkipSetError,
    Stopped,
    VlmError,
    VlmOutOfMemoryError,
    generation,
    load_vlm,
)

PROMPT = 'What is it?'
IMAGE = np.random.default_rng(0).integers(0, 256, (40, 70, 3), dtype=np.uint8)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return make_tiny_model(tmp_path_factory.mktemp('tiny'))


@pytest.fixture(scope='module')
def vlm(folder):
    return load_vlm(str(folder), device='cpu')


def test_what_the_model_says_about_itself(vlm, folder) -> None:
    assert vlm.name == str(folder)
    assert vlm.num_blocks == 4
    assert vlm.text_model_type == 'llama'
    assert (vlm.device, vlm.dtype) == ('cpu', 'float32')
    assert vlm.template_sha256 == hashlib.sha256(CHAT_TEMPLATE.encode()).hexdigest()


def test_two_branches_add_no_parameters(folder) -> None:
    def parameters_alive() -> int:
        gc.collect()
        return sum(type(thing) is torch.nn.Parameter for thing in gc.get_objects())

    reference = HfReference(folder).model
    expected = sum(parameter.numel() for parameter in reference.parameters())
    names = [name for name, _ in reference.named_parameters()]
    # Features are read before the last of the tower's two layers, which is taken out.
    count = sum('.encoder.layers.1.' not in name for name in names)
    del reference
    before = parameters_alive()
    vlm = load_vlm(str(folder), device='cpu')
    loaded = parameters_alive()
    features = vlm.encode(IMAGE)
    vlm.answer(features, PROMPT, [1, 2])
    vlm.answer(features, PROMPT)
    assert vlm.num_parameters == expected
    assert loaded - before == count < len(names)
    assert parameters_alive() == loaded


def test_features_serve_many_prompts(vlm) -> None:
    features = vlm.encode(IMAGE)
    for prompt, skip in itertools.product(['What?', 'A longer question, is it not?'], [(), (2,)]):
        alone = vlm.answer(IMAGE, prompt, skip, max_new_tokens=6, return_logits=True)
        shared = vlm.answer(features, prompt, skip, max_new_tokens=6, return_logits=True)
        assert shared.token_ids == alone.token_ids
        np.testing.assert_array_equal(shared.logits, alone.logits)
        assert (alone.vision_shared, shared.vision_shared) == (False, True)
        assert shared.timing.vision_ms == features.vision_ms > 0
        assert shared.timing.preprocess_ms >= features.preprocess_ms > 0


@pytest.mark.parametrize('shared', [False, True])
def test_phases_sum_to_the_total(vlm, shared) -> None:
    image = vlm.encode(IMAGE) if shared else IMAGE
    timing = vlm.answer(image, PROMPT, forced_length=20).timing
    phases = (timing.preprocess_ms, timing.vision_ms, timing.prefill_ms, timing.decode_ms)
    assert all(phase > 0 for phase in phases)
    assert sum(phases) == pytest.approx(timing.total_ms, rel=0.02)


@pytest.mark.parametrize(
    ('part', 'phase'),
    [
        ('_image_processor', 'preprocess'),
        ('_model.get_image_features', 'vision'),
        ('tokenizer.render', 'preprocess'),
        ('embed', 'prefill'),
        ('decoder.forward', 'prefill'),
        ('generation.prefill', 'prefill'),
        ('generation.decode', 'decode'),
        ('generation.choose', 'prefill'),
        ('generation.choose', 'decode'),
        ('tokenizer.decode', 'decode'),
    ],
)
def test_time_spent_is_in_its_phase_and_in_the_total(vlm, monkeypatch, part, phase) -> None:
    owner = vlm
    *path, name = part.split('.')
    if path == ['generation']:
        owner, path = generation, []
    for attribute in path:
        owner = getattr(owner, attribute)
    original, slowness_ms = getattr(owner, name), 20

    def slow(*args, **options):
        time.sleep(slowness_ms / 1e3)
        return original(*args, **options)

    monkeypatch.setattr(owner, name, slow)
    start = time.perf_counter()
    timing = vlm.answer(IMAGE, PROMPT, forced_length=2).timing
    outside_ms = (time.perf_counter() - start) * 1e3
    assert slowness_ms <= getattr(timing, f'{phase}_ms') < timing.total_ms <= outside_ms


def probabilities_of(answer) -> np.ndarray:
    """Return the probability of every token chosen, from the answer's logits."""
    logits = torch.from_numpy(answer.logits).double()
    return logits.softmax(dim=-1).max(dim=-1).values.numpy()


@pytest.mark.parametrize('skip', [(), (1, 2)])
def test_confidence_is_the_mean_and_least_token_probability(vlm, skip) -> None:
    answer = vlm.answer(IMAGE, PROMPT, skip, max_new_tokens=6, return_logits=True)
    expected = probabilities_of(answer)[: len(answer.token_ids)]
    assert answer.confidence.mean == pytest.approx(expected.mean(), abs=1e-6)
    assert answer.confidence.min == pytest.approx(expected.min(), abs=1e-6)
    assert 0 < answer.confidence.min < answer.confidence.mean <= 1
    alone = vlm.answer(IMAGE, PROMPT, skip, max_new_tokens=6)
    assert alone.confidence == answer.confidence


def test_an_empty_answers_confidence_is_the_end_tokens(vlm, tmp_path) -> None:
    first = vlm.answer(IMAGE, PROMPT, forced_length=1).token_ids[0]
    empty = load_vlm(str(make_tiny_model(tmp_path, eos_token_id=first)), device='cpu')
    answer = empty.answer(IMAGE, PROMPT, return_logits=True)
    assert answer.token_ids == ()
    assert answer.confidence.mean == pytest.approx(probabilities_of(answer)[0], abs=1e-6)


def test_probabilities_of_first_tokens(vlm) -> None:
    answer = vlm.answer(IMAGE, PROMPT, first_token_ids=np.array([7, 40, 7]), return_logits=True)
    expected = torch.from_numpy(answer.logits[0]).double().softmax(dim=-1)[[7, 40, 7]]
    np.testing.assert_allclose(answer.first_probabilities, expected, atol=1e-6)
    assert vlm.answer(IMAGE, PROMPT).first_probabilities == ()


def test_an_answer_is_the_decoded_tokens(vlm) -> None:
    answer = vlm.answer(IMAGE, PROMPT, max_new_tokens=7)
    assert len(answer.token_ids) == 7
    assert isinstance(answer.text, str) and answer.text == answer.text.strip()
    assert answer.logits is None
    assert vlm.answer(IMAGE, PROMPT, max_new_tokens=3).token_ids == answer.token_ids[:3]
    assert vlm.answer(IMAGE, PROMPT, max_new_tokens=1).token_ids == answer.token_ids[:1]


@pytest.mark.parametrize('as_list', [False, True])
def test_the_answer_ends_at_end_of_sequence(vlm, folder, tmp_path, as_list) -> None:
    tokens = vlm.answer(IMAGE, PROMPT, forced_length=10).token_ids
    end = tokens[3]
    first = tokens.index(end)
    ending = make_tiny_model(tmp_path, eos_token_id=[1, end] if as_list else end)
    stopping = load_vlm(str(ending), device='cpu')
    answer = stopping.answer(IMAGE, PROMPT, max_new_tokens=10, return_logits=True)
    assert answer.token_ids == tokens[:first]
    assert len(answer.logits) == first + 1  # the end-of-sequence token was chosen, too
    assert stopping.answer(IMAGE, PROMPT, forced_length=10).token_ids == tokens

    # In a batch, the row that ends first leaves the other as it is.
    other = vlm.answer(IMAGE, 'Another, longer question?', max_new_tokens=10).token_ids
    other = tuple(itertools.takewhile(lambda token: token != end, other))
    answers = stopping.answer_batch([IMAGE] * 2, [PROMPT, 'Another, longer question?'], (), 10)
    assert [answer.token_ids for answer in answers] == [tokens[:first], other]


def test_an_empty_answer_is_an_answer(vlm, tmp_path) -> None:
    first = vlm.answer(IMAGE, PROMPT, max_new_tokens=1).token_ids[0]
    silent = load_vlm(str(make_tiny_model(tmp_path, eos_token_id=first)), device='cpu')
    answer = silent.answer(IMAGE, PROMPT)
    assert (answer.text, answer.token_ids) == ('', ())


def test_should_stop_is_asked_per_block_and_token(vlm) -> None:
    asked = itertools.count()

    def count() -> bool:
        next(asked)
        return False

    vlm.answer(IMAGE, PROMPT, forced_length=3, should_stop=count)
    total = next(asked)
    assert total >= 3 * vlm.num_blocks
    for stop_at in (0, 1, vlm.num_blocks, total - 1):
        calls = itertools.count()
        with pytest.raises(Stopped):
            vlm.answer(
                IMAGE,
                PROMPT,
                forced_length=3,
                should_stop=lambda calls=calls, stop_at=stop_at: next(calls) >= stop_at,
            )
    assert vlm.answer(IMAGE, PROMPT).token_ids  # and the model is as good as before


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_non_finite_logits_are_never_an_answer(tmp_path, value) -> None:
    folder = make_tiny_model(tmp_path)
    path = folder / 'model.safetensors'
    from safetensors.torch import load_file, save_file

    weights = load_file(path)
    name = next(name for name in weights if 'layers.2.mlp.down_proj' in name and 'language' in name)
    weights[name][0, 0] = value
    save_file(weights, path, metadata={'format': 'pt'})
    broken = load_vlm(str(folder), device='cpu')
    with pytest.raises(NonFiniteLogitsError, match='float32 on cpu'):
        broken.answer(IMAGE, PROMPT)
    with pytest.raises(NonFiniteLogitsError):
        broken.answer(IMAGE, PROMPT, SkipSet(prefill=[2]), forced_length=3)
    assert broken.answer(IMAGE, PROMPT, [2]).token_ids  # the broken block is left out


def test_bfloat16_runs(folder) -> None:
    half = load_vlm(str(folder), device='cpu', dtype='bfloat16')
    answer = half.answer(IMAGE, PROMPT, [1], return_logits=True)
    assert half.dtype == 'bfloat16' and answer.logits.dtype == np.float32


@pytest.mark.parametrize(
    'image',
    [
        None,
        'photo.jpg',
        IMAGE.astype(np.float32),
        IMAGE[..., 0],
        IMAGE[..., :2],
        np.zeros((40, 70, 4), np.uint8),
        np.zeros((0, 70, 3), np.uint8),
        IMAGE[None],
    ],
    ids=['none', 'path', 'float', 'grey', 'two-channels', 'rgba', 'empty', 'batch'],
)
def test_what_is_no_image_is_refused(vlm, image) -> None:
    with pytest.raises(ImageError, match=r'uint8 RGB array of shape \(H, W, 3\)'):
        vlm.answer(image, PROMPT)


@pytest.mark.parametrize('shape', [(1, 1), (1, 50), (50, 1), (3, 3)], ids=str)
def test_the_smallest_images_are_answered(vlm, shape) -> None:
    assert vlm.answer(np.full((*shape, 3), 200, np.uint8), PROMPT).token_ids


def test_read_only_and_strided_images_are_read_right(vlm) -> None:
    expected = vlm.answer(IMAGE, PROMPT).token_ids
    wide = np.repeat(IMAGE, 2, axis=1)
    wide.setflags(write=False)
    assert vlm.answer(wide[:, ::2], PROMPT).token_ids == expected


@pytest.mark.parametrize('prompt', [None, 7, b'What?', 'an <image> here', 'half a \ud800 pair'])
def test_bad_prompts_are_refused(vlm, prompt) -> None:
    with pytest.raises(PromptError):
        vlm.answer(IMAGE, prompt)


def test_what_exceeds_the_context_is_refused(vlm) -> None:
    with pytest.raises(PromptError, match=r'take up to \d+ tokens.* holds 512') as caught:
        vlm.answer(IMAGE, 'x' * 600, max_new_tokens=1)
    excess = int(re.search(r'take up to (\d+)', str(caught.value))[1]) - 512
    longest = 'x' * (600 - excess)
    assert vlm.answer(IMAGE, longest, max_new_tokens=1).token_ids
    for prompt, length in [(longest + 'x', 1), (longest, 2)]:
        with pytest.raises(PromptError, match='take up to 513 tokens'):
            vlm.answer(IMAGE, prompt, max_new_tokens=length)
        with pytest.raises(PromptError, match='take up to 513 tokens'):
            vlm.answer_batch([IMAGE] * 2, ['short', prompt], max_new_tokens=length)


@pytest.mark.parametrize(
    'error', [torch.OutOfMemoryError('CUDA out of memory'), MemoryError()], ids=['gpu', 'cpu']
)
def test_no_memory_left_is_said_in_one_line(vlm, monkeypatch, error) -> None:
    def fail(*_args, **_options):
        raise error

    features = vlm.encode(IMAGE)
    with monkeypatch.context() as patched:
        patched.setattr(vlm._model, 'get_image_features', fail)
        patched.setattr(vlm.decoder, 'forward', fail)
        for ask in (lambda: vlm.encode(IMAGE), lambda: vlm.answer(features, PROMPT)):
            with pytest.raises(
                VlmOutOfMemoryError, match=r'out of memory .*: use dtype bfloat16, '
            ):
                ask()
    assert vlm.answer(IMAGE, PROMPT).token_ids


def test_the_cpu_allocators_own_refusal_is_recognised(tmp_path) -> None:
    folder = make_tiny_model(tmp_path)
    config = json.loads((folder / 'config.json').read_text())
    config['text_config']['max_position_embeddings'] = 1 << 60
    (folder / 'config.json').write_text(json.dumps(config))
    with pytest.raises(VlmOutOfMemoryError, match='float32 on cpu'):
        load_vlm(folder, 'cpu').answer(IMAGE, PROMPT, forced_length=1 << 50)


def test_other_errors_are_not_taken_for_memory(vlm, monkeypatch) -> None:
    def fail(*_args, **_options):
        raise RuntimeError('shapes do not match')

    monkeypatch.setattr(vlm.decoder, 'forward', fail)
    with pytest.raises(RuntimeError, match='shapes'):
        vlm.answer(IMAGE, PROMPT)


@pytest.mark.parametrize('prompt', ['', ' ', '{braces} {{ x }} {% y %}', '</s><s>', 'é 日本 🚗\n'])
def test_odd_prompts_are_answered(vlm, prompt) -> None:
    assert vlm.answer(IMAGE, prompt).token_ids


@pytest.mark.parametrize('skip', [[4], [-1], [1, 1], [1.0], ['1'], [True], '1', 1], ids=repr)
def test_bad_skip_sets_are_refused(vlm, skip) -> None:
    with pytest.raises(SkipSetError):
        vlm.answer(IMAGE, PROMPT, skip)


def test_lengths_may_be_numpy_integers(vlm) -> None:
    assert len(vlm.answer(IMAGE, PROMPT, max_new_tokens=np.int64(2)).token_ids) == 2


@pytest.mark.parametrize('length', [0, -1, 1.5, True, np.True_, '3'])
def test_bad_lengths_are_refused(vlm, length) -> None:
    with pytest.raises(VlmError, match='max_new_tokens'):
        vlm.answer(IMAGE, PROMPT, max_new_tokens=length)
    with pytest.raises(VlmError, match='forced_length'):
        vlm.answer(IMAGE, PROMPT, forced_length=length)


def test_batches_are_pairs(vlm) -> None:
    assert vlm.answer_batch([], []) == []
    with pytest.raises(VlmError, match='2 images, 1 prompts'):
        vlm.answer_batch([IMAGE, IMAGE], [PROMPT])


def test_features_of_another_model_are_refused(vlm, tmp_path) -> None:
    other = load_vlm(str(make_tiny_model(tmp_path, seed=1)), device='cpu')
    with pytest.raises(VlmError, match='encode the image with the model that answers'):
        vlm.answer(other.encode(IMAGE), PROMPT)
    half = load_vlm(vlm.name, device='cpu', dtype='bfloat16')
    with pytest.raises(VlmError, match='bfloat16'):
        vlm.answer(half.encode(IMAGE), PROMPT)


def test_without_a_chat_template_the_prompt_is_llava_1_5s(vlm, tmp_path) -> None:
    bare = load_vlm(str(make_tiny_model(tmp_path, chat_template=None)), device='cpu')
    assert bare.render_prompt('Hm {x}?') == 'USER: <image>\nHm {x}? ASSISTANT:'
    assert bare.render_prompt('Hm?') == vlm.render_prompt('Hm?')
    assert bare.answer(IMAGE, PROMPT).token_ids == vlm.answer(IMAGE, PROMPT).token_ids
    assert bare.template_sha256 != vlm.template_sha256


def test_a_template_that_writes_the_start_token_has_it_once(vlm, tmp_path) -> None:
    starting = make_tiny_model(tmp_path, chat_template='{{ bos_token }}' + CHAT_TEMPLATE)
    twin = load_vlm(str(starting), device='cpu')
    assert twin.answer(IMAGE, PROMPT).token_ids == vlm.answer(IMAGE, PROMPT).token_ids
