"""Quantised weights: what is stored, and answers against Hugging Face's with the same weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from references import HfReference, stored_bytes_of_weights
from tiny_models import make_tiny_model

from gmskip_ros.vlm import FrameQuestion, SkipSet, load_vlm, quantization
from gmskip_ros.vlm.linear import FUSED
from gmskip_ros.vlm.memory import memory_need
from gmskip_ros.vlm.quantization import QuantizedLinear, quantize, stored_as

NUM_BLOCKS = 4
STEPS = 5
PROMPT = 'What is it?'
IMAGE = np.random.default_rng(0).integers(0, 256, (40, 70, 3), dtype=np.uint8)
QUANTIZED = ('int8', 'int4')
# (out, in): whole kernel blocks, a wider group, a smaller one, neither, an odd number of outputs.
SHAPES = [(128, 64), (64, 192), (48, 96), (30, 40), (17, 64)]
TOLERANCES = {torch.float32: 1e-6, torch.bfloat16: 8e-3, torch.float16: 2e-3}


# --- one layer


def make_weight(num_outputs: int, num_inputs: int) -> torch.Tensor:
    random = torch.Generator().manual_seed(num_outputs)
    return 0.02 * torch.randn(num_outputs, num_inputs, generator=random)


@pytest.mark.parametrize('kind', QUANTIZED)
@pytest.mark.parametrize('shape', SHAPES, ids=str)
def test_integers_stand_for_the_nearest_weights(shape, kind) -> None:
    weight = make_weight(*shape)
    weight[3] = 0.0  # of scale 0
    layer = quantize(weight, None, kind, torch.float32)
    stored = stored_as(kind, *shape)
    assert stored.quantization == (kind if shape in SHAPES[:3] else 'int8')
    assert layer.nbytes == stored.num_bytes(*shape, 4)
    groups = weight.unflatten(1, (-1, stored.group_size))
    if stored.quantization == 'int4':
        steps = (groups.amax(-1) - groups.amin(-1)) / 15
    else:
        steps = groups.abs().amax(-1) / 127
    errors = (layer.dequantized() - weight).abs().unflatten(1, (-1, stored.group_size)).amax(-1)
    assert layer.dequantized().shape == shape
    assert (errors <= 0.5001 * steps).all() and (errors[:3] > 0.2 * steps[:3]).any()


@pytest.mark.parametrize('dtype', TOLERANCES, ids=str)
@pytest.mark.parametrize('kind', QUANTIZED)
@pytest.mark.parametrize('shape', SHAPES, ids=str)
def test_both_ways_give_the_product_of_the_dequantised_weights(shape, kind, dtype) -> None:
    bias = torch.linspace(-1.0, 1.0, shape[0])
    start = 2 * (shape[0] // 4)
    layer = quantize(make_weight(*shape), bias, kind, dtype, [start])
    weight, bias = layer.dequantized(), bias.to(dtype).float()
    for rows in (1, layer.kernel_rows, layer.kernel_rows + 1):
        states = torch.randn(2, rows, shape[1], generator=torch.Generator().manual_seed(0))
        states = states.to(dtype)[:1]
        expected = states.float() @ weight.t() + bias
        product = layer(states)
        assert (product.dtype, product.shape) == (dtype, expected.shape)
        tolerance = TOLERANCES[dtype] * float(expected.abs().max())
        torch.testing.assert_close(product.float(), expected, rtol=0, atol=tolerance)
        parts = [layer.part(0, start), layer.part(start, shape[0])]
        joined = torch.cat([part(states) for part in parts], dim=-1)
        torch.testing.assert_close(joined.float(), expected, rtol=0, atol=tolerance)


@pytest.fixture
def without_kernels(monkeypatch):
    """A PyTorch whose private kernels are gone."""
    checks = (quantization._has_int8_kernel, quantization._kernel_block)
    for check in checks:
        check.cache_clear()
    monkeypatch.setattr(quantization, '_KERNELS', object())
    yield
    monkeypatch.undo()
    for check in checks:
        check.cache_clear()


@pytest.mark.parametrize('kind', QUANTIZED)
def test_without_the_kernels_the_dense_product_serves(kind, without_kernels) -> None:
    layer = quantize(make_weight(128, 64), None, kind, torch.bfloat16)
    states = torch.ones(1, 64, dtype=torch.bfloat16)
    expected = layer.dequantized().sum(dim=1)[None]
    torch.testing.assert_close(layer(states).float(), expected, rtol=0, atol=8e-3)


# --- a model


def references(folder, vlm) -> HfReference:
    """Return Hugging Face's model with the weights that the quantised layers stand for."""
    reference = HfReference(folder)
    layers = reference.model.model.language_model.layers
    for layer, block in zip(layers, vlm.decoder.blocks, strict=True):
        for name, (part, members) in FUSED.items():
            quantized = getattr(block, name)
            assert isinstance(quantized, QuantizedLinear)
            rows = iter(quantized.dequantized())
            for member in members:
                weight = getattr(getattr(layer, part), member).weight
                weight.data = torch.stack([next(rows) for _ in range(len(weight))])
    return reference


@pytest.fixture(scope='module', params=['llama', 'mistral', 'qwen2'])
def folder(request, tmp_path_factory):
    return make_tiny_model(tmp_path_factory.mktemp('tiny'), 'llava', request.param, NUM_BLOCKS)


@pytest.fixture(scope='module', params=QUANTIZED)
def exact(request, folder):
    """A quantised model in float32, and its reference."""
    vlm = load_vlm(folder, 'cpu', 'float32', quantization=request.param)
    return vlm, references(folder, vlm)


def test_answers_are_those_of_hugging_face_with_the_same_weights(exact) -> None:
    vlm, reference = exact
    features, inputs = vlm.encode(IMAGE), reference.inputs([IMAGE], [PROMPT])
    for skip in ((), (1,), (0, NUM_BLOCKS - 1)):
        with reference.blocks_removed(skip):
            [token_ids], [logits] = reference.greedy(inputs, STEPS)
        answer = vlm.answer(features, PROMPT, skip, forced_length=STEPS, return_logits=True)
        assert list(answer.token_ids) == token_ids
        np.testing.assert_allclose(answer.logits, logits, rtol=0, atol=2e-4)
        draft = [*token_ids[:3], (token_ids[3] + 1) % 256]
        verified = vlm.answer(features, PROMPT, skip, forced_length=STEPS, draft=draft)
        assert list(verified.token_ids) == token_ids
    by_phase = SkipSet(prefill=[0], decode=[2], image=[1])
    answers = vlm.answer_batch([features] * 2, [PROMPT, 'Is it?'], by_phase, forced_length=STEPS)
    alone = vlm.answer(features, PROMPT, by_phase, forced_length=STEPS)
    assert answers[0].token_ids == alone.token_ids


def test_weights_are_stored_once_and_counted_as_the_checkpoints(exact, folder) -> None:
    vlm, _ = exact
    dense = load_vlm(folder, 'cpu', 'float32')
    assert (dense.quantization, dense.num_parameters) == ('none', vlm.num_parameters)
    assert vlm.weights_sha256() == dense.weights_sha256()
    assert vlm.num_parameters_run([1]) == dense.num_parameters_run([1])
    of_decoder = vlm._model.model.language_model.layers.named_parameters()
    assert {name.rpartition('.')[0].rpartition('.')[2] for name, _ in of_decoder} == {
        'input_layernorm',
        'post_attention_layernorm',
    }
    layers = [each for each in vlm._model.modules() if isinstance(each, QuantizedLinear)]
    assert len(layers) == 4 * NUM_BLOCKS
    need = memory_need(folder, 'float32', quantization=vlm.quantization)
    assert need.weights_bytes == stored_bytes_of_weights(vlm) < stored_bytes_of_weights(dense)


@pytest.mark.parametrize('kind', QUANTIZED)
def test_answers_together_are_those_alone_in_half_precision(folder, kind) -> None:
    """Few rows go through the kernels and many through dense products: near ties are covered."""
    vlm = load_vlm(folder, 'cpu', quantization=kind)
    assert (vlm.dtype, vlm.quantization) == ('bfloat16', kind)
    prompts = [PROMPT, 'Is it a car?', 'Name one object, please.']
    features = [vlm.encode(np.roll(IMAGE, 7 * shift, axis=1)) for shift in range(len(prompts))]
    walked = vlm.answer_candidates(features, prompts, [2], [None, 0, 1, 3], STEPS)
    for image, prompt, answers in zip(features, prompts, walked, strict=True):
        for block, found in zip((None, 0, 1, 3), answers, strict=True):
            skip = [2] if block is None else [2, block]
            alone = vlm.answer(image, prompt, skip, STEPS)
            assert found.token_ids == alone.token_ids
        draft = vlm.answer(image, prompt, [2], STEPS).token_ids
        full = vlm.answer(image, prompt, (), STEPS)
        assert vlm.answer(image, prompt, (), STEPS, draft=draft).token_ids == full.token_ids
    questions = [
        FrameQuestion(prompt, SkipSet.of(skip), STEPS) for skip in ([2], []) for prompt in prompts
    ]
    together = vlm.share_frame(features[0], questions).answer(range(len(questions)))
    for question, answer in zip(questions, together, strict=True):
        alone = vlm.answer(features[0], question.prompt, question.skip, STEPS)
        assert answer.token_ids == alone.token_ids
