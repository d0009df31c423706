"""Linear layers behind one small interface, however their weights are stored.

Layers on the same input are fused into one: their weights lie behind one another in one buffer, and
Hugging Face's own parameters become views of it, so that there is no second copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

# Layers of a block on the same input: which module of Hugging Face's block has them, their names.
FUSED = {
    'qkv': ('self_attn', ('q_proj', 'k_proj', 'v_proj')),
    'o': ('self_attn', ('o_proj',)),
    'gate_up': ('mlp', ('gate_proj', 'up_proj')),
    'down': ('mlp', ('down_proj',)),
}


class Linear(Protocol):
    """Maps states (..., in) to (..., out), all in the model's dtype."""

    @property
    def nbytes(self) -> int:
        """Bytes of what is stored."""
        ...

    def __call__(self, states: Tensor) -> Tensor:
        """Return the outputs (..., out) of states (..., in)."""
        ...

    def part(self, start: int, stop: int) -> Linear:
        """Return a layer with the outputs from `start` up to `stop` only, over the same weights."""
        ...


class DenseLinear:
    """Weights (out, in) and biases (out,) as they are."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight = weight
        self.bias = bias

    @property
    def nbytes(self) -> int:
        """Bytes of weights and biases."""
        return self.weight.nbytes + (0 if self.bias is None else self.bias.nbytes)

    def __call__(self, states: Tensor) -> Tensor:
        """Return the outputs (..., out) of states (..., in)."""
        return linear(states, self.weight, self.bias)

    def part(self, start: int, stop: int) -> DenseLinear:
        """Return a layer with the outputs from `start` up to `stop` only, as views."""
        bias = None if self.bias is None else self.bias[start:stop]
        return DenseLinear(self.weight[start:stop], bias)


def fuse(layers: Sequence[nn.Linear]) -> DenseLinear:
    """Return layers on the same input as one layer; their parameters become views of its own.

    Either all of them have biases, or none.
    """
    weight = _in_one_buffer(layers, 'weight')
    if all(layer.bias is None for layer in layers):
        return DenseLinear(weight, None)
    return DenseLinear(weight, _in_one_buffer(layers, 'bias'))


def _in_one_buffer(layers: Sequence[nn.Linear], name: str) -> Tensor:
    parameters = [getattr(layer, name) for layer in layers]
    if len(parameters) == 1:
        return parameters[0].detach()
    buffer = torch.cat([parameter.detach() for parameter in parameters])
    views = buffer.split([len(parameter) for parameter in parameters])
    for layer, view in zip(layers, views, strict=True):
        setattr(layer, name, nn.Parameter(view, requires_grad=False))
    return buffer
