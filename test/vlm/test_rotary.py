"""Rotary tables hold exactly what Hugging Face computes in every pass."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.models.mistral.modeling_mistral import MistralRotaryEmbedding
from transformers.models.qwen2.modeling_qwen2 import Qwen2RotaryEmbedding

from gmskip_ros.vlm.rotary import RotaryTable, rotate_

POSITIONS = 64
HEAD_SIZE = 8
LLAMA3 = {'low_freq_factor': 1.0, 'high_freq_factor': 4.0, 'factor': 8.0}
LONG = {'short_factor': [1.0] * 4, 'long_factor': [1.5, 2.0, 3.0, 4.0], 'factor': 2.0}
DECODERS = {
    'llama': LlamaRotaryEmbedding,
    'mistral': MistralRotaryEmbedding,
    'qwen2': Qwen2RotaryEmbedding,
}
ROPE: dict[str, dict[str, Any]] = {
    'default': {},
    'linear': {'factor': 2.5},
    'llama3': {**LLAMA3, 'original_max_position_embeddings': POSITIONS // 2},
    'yarn': {'factor': 4.0, 'original_max_position_embeddings': POSITIONS // 4},
    'dynamic': {'factor': 2.0, 'original_max_position_embeddings': POSITIONS // 2},
    'longrope': {**LONG, 'original_max_position_embeddings': POSITIONS // 2},
}


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ('text', 'rope'),
    [*(('llama', rope) for rope in ROPE), ('mistral', 'default'), ('qwen2', 'yarn')],
)
def test_angles_are_exactly_hugging_faces(text, rope, dtype) -> None:
    config = transformers.AutoConfig.for_model(
        text,
        hidden_size=4 * HEAD_SIZE,
        num_attention_heads=4,
        max_position_embeddings=POSITIONS,
        rope_parameters={'rope_type': rope, 'rope_theta': 10000.0, **ROPE[rope]},
    )
    hidden = torch.zeros(2, 1, 4 * HEAD_SIZE, dtype=dtype)
    table, theirs = (DECODERS[text](config) for _ in range(2))
    angles = RotaryTable(table, POSITIONS)
    # Short, as long as the context, and short again: of some types these angles differ.
    for length in (5, POSITIONS, 7):
        positions = torch.arange(length).expand(2, -1) + torch.tensor([[0], [-3]])
        positions = positions.clamp(min=0)
        cos, sin = theirs(hidden, positions)
        found_cos, found_sin = angles(hidden, positions)
        assert found_cos.dtype == found_sin.dtype == dtype
        assert torch.equal(found_cos, cos)
        assert torch.equal(found_sin.abs(), sin.abs())
        states = torch.randn(2, length, HEAD_SIZE, dtype=dtype)
        first, second = states.chunk(2, dim=-1)
        expected = states * cos + torch.cat((-second, first), dim=-1) * sin
        rotated, rounding = rotate_(states.clone(), (found_cos, found_sin)), torch.finfo(dtype).eps
        torch.testing.assert_close(rotated, expected, rtol=0, atol=4 * rounding)
