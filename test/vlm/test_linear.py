"""Linear layers in every form that the engine may store them in, and the model over each form."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from references import HfReference
from tiny_models import make_tiny_model
from torch import nn
from torch.nn.functional import linear

from gmskip_ros.vlm import generation, load_vlm
from gmskip_ros.vlm.linear import (
    LARGE_BYTES,
    DenseLinear,
    MklPackedLinear,
    PackedLinear,
    PubliclyPackedLinear,
    fastest,
    fuse,
    packed,
)

STEPS = 6
PROMPTS = ['What is the main object in this image?', 'Hm?']
IMAGE = np.random.default_rng(0).integers(0, 256, (28, 28, 3), dtype=np.uint8)
FORMS = {
    'packed by MKL': (MklPackedLinear, PackedLinear),
    'packed': (PackedLinear, PubliclyPackedLinear),
    'publicly packed': (PubliclyPackedLinear,),
    'as they are': (),
}


def first_of(form: str, dtype: torch.dtype) -> type:
    """Return the class that layers of this dtype get."""
    has_mkl = torch.backends.mkl.is_available() and dtype == torch.float32
    usable = [each for each in FORMS[form] if has_mkl or each is not MklPackedLinear]
    return (*usable, DenseLinear)[0]


needs_packing = pytest.mark.skipif(
    packed(DenseLinear(torch.ones(2, 2), None)) is None, reason='nothing packs weights here'
)


def make_layer(inputs: int, outputs: int, bias: bool, seed: int, dtype=torch.float32) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(inputs, outputs, bias, dtype=dtype).requires_grad_(False)


@needs_packing
@pytest.mark.parametrize('form', FORMS, ids=str)
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize('bias', [False, True], ids=['', 'bias'])
def test_layers_fused_into_one_give_what_each_gives(monkeypatch, form, dtype, bias) -> None:
    monkeypatch.setattr('gmskip_ros.vlm.linear.PACKINGS', FORMS[form])
    layers = [make_layer(24, outputs, bias, outputs, dtype) for outputs in (20, 7, 13)]
    numbers = sum(weight.numel() for layer in layers for weight in layer.parameters())
    states = torch.randn(2, 24, 5).to(dtype).transpose(1, 2)  # not contiguous
    expected = torch.cat([layer(states) for layer in layers], dim=-1)
    tolerance = 4 * torch.finfo(dtype).eps * float(expected.abs().max())

    fused = fuse(layers)
    assert type(fused) is first_of(form, dtype)
    assert fused.nbytes == numbers * dtype.itemsize
    for rows in (states, states[:, :1], states[0, 0], states[:, :0]):
        found = fused(rows)
        assert found.shape == (*rows.shape[:-1], 40) and found.dtype == dtype
    torch.testing.assert_close(fused(states), expected, rtol=0, atol=tolerance)
    last = fused.part(20, 40)
    torch.testing.assert_close(last(states), expected[..., 20:], rtol=0, atol=tolerance)
    value = last.part(7, 20)(states)
    torch.testing.assert_close(value, expected[..., 27:], rtol=0, atol=tolerance)


@needs_packing
@pytest.mark.parametrize('form', FORMS, ids=str)
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16], ids=str)
def test_any_number_of_rows_gives_what_each_row_gives(monkeypatch, form, dtype) -> None:
    monkeypatch.setattr('gmskip_ros.vlm.linear.PACKINGS', FORMS[form])
    layer = make_layer(1030, 1024, True, 0, dtype)
    assert layer.weight.nbytes >= LARGE_BYTES
    states = torch.randn(13, 1030).to(dtype)
    expected = layer(states)
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 0.02}[dtype] * float(expected.abs().max())
    fused = fuse([layer])
    assert type(fused) is first_of(form, dtype)
    for rows in range(len(states) + 1):
        found = fused(states[:rows])
        torch.testing.assert_close(found, expected[:rows], rtol=0, atol=tolerance)
        assert found.untyped_storage().nbytes() == found.nbytes  # nothing else is kept with it
    pair = fused(states[:4].view(2, 2, 1030).transpose(0, 1))
    torch.testing.assert_close(pair[1, 0], expected[1], rtol=0, atol=tolerance)
    torch.testing.assert_close(fused(states[5]), expected[5], rtol=0, atol=tolerance)


@needs_packing
def test_a_fused_layer_is_the_only_copy(monkeypatch) -> None:
    def make():
        return [make_layer(24, outputs, True, outputs) for outputs in (20, 7)]

    replaced = make()
    assert not isinstance(fuse(replaced), DenseLinear)
    for layer in replaced:
        assert layer.weight.is_meta and layer.bias.is_meta and layer.weight.shape[1] == 24
    monkeypatch.setattr('gmskip_ros.vlm.linear.PACKINGS', ())
    dense = make()
    kept = fuse(dense)
    assert isinstance(kept, DenseLinear)
    buffers = {weight.untyped_storage().data_ptr() for layer in dense for weight in (layer.weight,)}
    assert buffers == {kept.weight.untyped_storage().data_ptr()}
    dense[1].weight.zero_()
    assert not kept.weight[20:].any() and kept.weight[:20].all()


def wrong(layer: DenseLinear) -> DenseLinear:
    return DenseLinear(1.01 * layer.weight, layer.bias)


def refusing(layer: DenseLinear) -> DenseLinear:
    raise RuntimeError('needs a different CPU')


def refusing_large_ones(layer: DenseLinear) -> DenseLinear:
    if layer.weight.numel() > 1000:
        raise RuntimeError('too large')
    return DenseLinear(layer.weight, layer.bias)


@pytest.mark.parametrize('form', [wrong, refusing, refusing_large_ones])
def test_a_form_that_does_not_work_here_is_not_used(monkeypatch, form) -> None:
    monkeypatch.setattr('gmskip_ros.vlm.linear.PACKINGS', (form,))
    layer = DenseLinear(torch.randn(40, 30), None)
    assert fastest(layer) is layer
    states = torch.randn(3, 30)
    assert torch.equal(fastest(layer)(states), linear(states, layer.weight))


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
    """Grouped heads, windows and biases."""
    return make_tiny_model(tmp_path_factory.mktemp('tiny'), 'llava_onevision', 'qwen2')


@pytest.fixture(scope='module')
def reference(folder) -> HfReference:
    return HfReference(folder)


@needs_packing
@pytest.mark.parametrize('form', FORMS, ids=str)
@pytest.mark.parametrize('removed', [(), (1, 3)], ids=str)
def test_answers_over_every_form_are_hugging_faces(
    folder, reference, monkeypatch, form, removed
) -> None:
    monkeypatch.setattr('gmskip_ros.vlm.linear.PACKINGS', FORMS[form])
    vlm = load_vlm(str(folder), 'cpu')
    assert type(vlm.decoder.blocks[0].qkv) is first_of(form, torch.float32)
    inputs = reference.inputs([IMAGE] * 2, PROMPTS)
    with reference.blocks_removed(removed):
        expected_ids, expected = reference.greedy(inputs, STEPS)
    options = {'forced_length': STEPS, 'return_logits': True}
    for row, answer in enumerate(vlm.answer_batch([IMAGE] * 2, PROMPTS, removed, **options)):
        assert list(answer.token_ids) == expected_ids[row]
        np.testing.assert_allclose(answer.logits, expected[row], rtol=0, atol=1e-4)


@needs_packing
def test_in_bfloat16_the_first_difference_is_a_near_tie(folder, reference) -> None:
    vlm = load_vlm(str(folder), 'cpu', 'bfloat16')
    assert isinstance(vlm.decoder.blocks[0].qkv, PackedLinear)
    dense = reference.model
    theirs = dense.to(torch.bfloat16)
    try:
        inputs = reference.inputs([IMAGE], PROMPTS[:1])
        inputs['pixel_values'] = inputs['pixel_values'].to(torch.bfloat16)
        expected_ids, logits = [], []
        with torch.inference_mode():
            for _ in range(STEPS):
                found = theirs(**inputs, use_cache=False, logits_to_keep=1).logits[0, -1]
                logits.append(found)
                expected_ids.append(int(found.argmax()))
                inputs['input_ids'] = torch.cat(
                    (inputs['input_ids'], torch.tensor([[expected_ids[-1]]])), dim=1
                )
                inputs['attention_mask'] = torch.ones_like(inputs['input_ids'])
    finally:
        dense.to(torch.float32)
    answer = vlm.answer(IMAGE, PROMPTS[0], forced_length=STEPS)
    for position, (found, expected) in enumerate(zip(answer.token_ids, expected_ids, strict=True)):
        if found != expected:
            best = logits[position].float().topk(2).values
            margin = generation.tie_margins(logits[position], best)
            assert margin < 0, f'token {position}: {found}, not {expected}'
            break


@needs_packing
def test_no_second_copy_stays_after_loading(folder) -> None:
    """Weights of the stored dtype are parts of the mapped file until they are packed or copied."""
    vlm = load_vlm(str(folder), 'cpu')
    assert str(folder) not in Path('/proc/self/maps').read_text()
    released = [name for name, weight in vlm._model.named_parameters() if weight.is_meta]
    assert len(released) == 4 * (7 + 3) + 1  # with the biases of query, key and value; the head
    assert vlm.num_parameters == sum(weight.numel() for weight in vlm._model.parameters())
