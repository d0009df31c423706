"""Linear layers behind one small interface, however their weights are stored.

Layers on the same input are fused into one. Where they stay as they are, Hugging Face's parameters
become views of one buffer; where another form replaces them, its parameters are released. Either
way there is one copy.

On the CPU, a library's own layout of weights is the fastest for any number of rows: MKL's on Intel
in float32, otherwise oneDNN's (`gmskip benchmark latency` compares the kernels). PyTorch's
operators for both are private. A release without them, or a CPU or dtype that they refuse, falls
back to the next of PACKINGS, and in the end to the weights as they are.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from gmskip_ros.machine import is_intel_cpu
from gmskip_ros.vlm.release import empty_allocators

# Layers of a block on the same input: which module of Hugging Face's block has them, their names.
FUSED = {
    'qkv': ('self_attn', ('q_proj', 'k_proj', 'v_proj')),
    'o': ('self_attn', ('o_proj',)),
    'gate_up': ('mlp', ('gate_proj', 'up_proj')),
    'down': ('mlp', ('down_proj',)),
}
# The layout is chosen for a number of rows. oneDNN's for 128 is within 5 % of the best for 6 rows,
# for 121, for 600 and for 2048. Its layout for 1 row multiplies 1 row a third slower on a Zen 5, a
# third faster on a Zen 4 (no faster than BLOCK_ROWS below), and 24 rows 40 % slower there. MKL's
# for 320 is about the best for 1 to 800 (256 and 384 are as good; those for 128 and for 1024 are
# slower by a fifth and a third with 160 rows).
PACKED_FOR_ROWS = 128
MKL_PACKED_FOR_ROWS = 320
# Weights that no cache holds arrive fastest when oneDNN multiplies 6 rows at once, its own block on
# a CPU with AVX-512: on a Zen 4, 1 row takes 1.25 times as long as 6, 2 rows take 1.4 times, 3 rows
# 1.2 times, and 4 or 5 up to 1.1 times (float32; bfloat16 is alike). Smaller layers belong to
# models that the cache holds, where each row costs time.
BLOCK_ROWS = 6
LARGE_BYTES = 1 << 20  # of one layer
# How a release, a CPU or a dtype without packed weights shows.
NOT_SUPPORTED = (AttributeError, ImportError, NotImplementedError, RuntimeError, TypeError)


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


class _Part:
    """Some outputs of a layer whose weights cannot be split: all are computed."""

    def __init__(self, whole: Linear, outputs: slice) -> None:
        self._whole = whole
        self._outputs = outputs

    @property
    def nbytes(self) -> int:
        return 0  # all of it is the whole layer's

    def __call__(self, states: Tensor) -> Tensor:
        return self._whole(states)[..., self._outputs]

    def part(self, start: int, stop: int) -> Linear:
        first = self._outputs.start
        return _Part(self._whole, slice(first + start, first + stop))


class _Packed:
    """What forms have in common whose weights cannot be split."""

    def part(self: Linear, start: int, stop: int) -> Linear:
        """Return a layer with the outputs from `start` up to `stop` only; it computes all."""
        return _Part(self, slice(start, stop))


class MklPackedLinear(_Packed):
    """Weights in MKL's layout, float32 only, by the operators that PyTorch's compiler uses.

    Multiplying uses no more threads than packing did.
    """

    def __init__(self, layer: DenseLinear) -> None:
        """Raises one of NOT_SUPPORTED where this does not work."""
        operators: Any = torch.ops.mkl
        empty_allocators()  # the buffer is larger than what is written: pages in use would stay so
        self._weight: Tensor = operators._mkl_reorder_linear_weight(
            layer.weight, MKL_PACKED_FOR_ROWS
        )
        self._bias = layer.bias
        # Weights as they are, which the operator would use for other numbers of rows than those
        # that it is told they were packed for. One layout serves all, so it only reads the shape.
        self._unpacked = layer.weight.new_empty(1).expand_as(layer.weight)
        self._multiply: Callable[..., Tensor] = operators._mkl_linear.default
        self.nbytes = layer.nbytes  # what is written; the rest of the buffer is never touched

    def __call__(self, states: Tensor) -> Tensor:
        """Return the outputs (..., out) of states (..., in)."""
        rows = states.shape[:-1].numel()
        return self._multiply(states, self._weight, self._unpacked, self._bias, rows)


class PackedLinear(_Packed):
    """Weights in oneDNN's layout, by the operators that PyTorch's compiler uses."""

    def __init__(self, layer: DenseLinear) -> None:
        """Raises one of NOT_SUPPORTED where this does not work."""
        operators: Any = torch.ops.mkldnn
        self._weight: Tensor = operators._reorder_linear_weight(layer.weight, PACKED_FOR_ROWS)
        self._bias = layer.bias
        self._is_large = layer.nbytes >= LARGE_BYTES
        self._multiply: Callable[..., Tensor] = operators._linear_pointwise.default

    @property
    def nbytes(self) -> int:
        """Bytes of weights and biases, without what pads them."""
        return self._weight.nbytes + (0 if self._bias is None else self._bias.nbytes)

    def __call__(self, states: Tensor) -> Tensor:
        """Return the outputs (..., out) of states (..., in)."""
        if self._is_large and 1 <= (rows := states.shape[:-1].numel()) <= BLOCK_ROWS // 2:
            copies = states.expand(BLOCK_ROWS // rows, *states.shape)
            outputs = self._multiply(copies, self._weight, self._bias, 'none', [], '')
            return outputs[0].clone()  # whoever keeps it keeps no copies
        return self._multiply(states, self._weight, self._bias, 'none', [], '')


class PubliclyPackedLinear(_Packed):
    """Weights in oneDNN's layout, by `torch.utils.mkldnn`."""

    def __init__(self, layer: DenseLinear) -> None:
        """Raises one of NOT_SUPPORTED where this does not work."""
        from torch.utils.mkldnn import to_mkldnn

        self.nbytes = layer.nbytes
        outputs, inputs = layer.weight.shape
        module = nn.Linear(inputs, outputs, layer.bias is not None, device='meta').eval()
        module.weight = nn.Parameter(layer.weight, requires_grad=False)
        if layer.bias is not None:
            module.bias = nn.Parameter(layer.bias, requires_grad=False)
        self._multiply: Callable[[Tensor], Tensor] = to_mkldnn(module, layer.weight.dtype)

    def __call__(self, states: Tensor) -> Tensor:
        """Return the outputs (..., out) of states (..., in)."""
        return self._multiply(states)


PACKINGS: tuple[Callable[[DenseLinear], Linear], ...] = (
    *((MklPackedLinear,) if is_intel_cpu() else ()),  # elsewhere MKL is slower than oneDNN
    PackedLinear,
    PubliclyPackedLinear,
)


def packed(layer: DenseLinear) -> Linear | None:
    """Return the layer with its weights packed for the CPU; None where nothing can pack them."""
    for pack in PACKINGS:
        if _is_right(pack, layer.weight.dtype):
            try:
                return pack(layer)
            except NOT_SUPPORTED:  # of these shapes
                continue
    return None


@functools.cache
def _is_right(pack: Callable[[DenseLinear], Linear], dtype: torch.dtype) -> bool:
    """Try a packing once, on this machine and with this PyTorch: does it give what it should?"""
    random = torch.Generator().manual_seed(0)
    weights = [torch.randn(*shape, generator=random).to(dtype) for shape in ((40, 24), (520, 1030))]
    try:
        for weight, rows in itertools.product(weights, (1, 3, MKL_PACKED_FOR_ROWS)):
            outputs, inputs = weight.shape
            tolerance = 2 * math.sqrt(inputs) * torch.finfo(dtype).eps  # a wrong layout is far off
            states = torch.randn(2, rows, inputs, generator=random).to(dtype)
            bias = torch.randn(outputs, generator=random).to(dtype)
            for layer in (DenseLinear(weight, None), DenseLinear(weight, bias)):
                found, expected = pack(layer)(states), layer(states)
                size = float(expected.abs().max())
                if found.shape != expected.shape or found.dtype != dtype:
                    return False
                if not torch.allclose(found, expected, rtol=tolerance, atol=tolerance * size):
                    return False
    except NOT_SUPPORTED:
        return False
    return True


def fastest(layer: DenseLinear) -> Linear:
    """Return the fastest known form of a layer on its device: packed on the CPU, else as it is."""
    if layer.weight.device.type == 'cpu' and layer.weight.dtype != torch.float16:
        return packed(layer) or layer
    return layer


def fuse(layers: Sequence[nn.Linear]) -> Linear:
    """Return layers on the same input as one, in its fastest form.

    Their parameters become views of its own, or are released where it has another form. Either all
    of them have biases, or none.
    """
    has_bias = layers[0].bias is not None
    dense = DenseLinear(
        _in_one_buffer(layers, 'weight'), _in_one_buffer(layers, 'bias') if has_bias else None
    )
    layer_of_all = fastest(dense)
    if layer_of_all is not dense:
        for layer in layers:
            _release(layer)
    return layer_of_all


def _in_one_buffer(layers: Sequence[nn.Linear], name: str) -> Tensor:
    parameters = [getattr(layer, name) for layer in layers]
    if len(parameters) == 1:
        return parameters[0]
    buffer = torch.cat([parameter.detach() for parameter in parameters])
    views = buffer.split([len(parameter) for parameter in parameters])
    for layer, view in zip(layers, views, strict=True):
        setattr(layer, name, nn.Parameter(view, requires_grad=False))
    return buffer


def _release(layer: nn.Linear) -> None:
    """Keep only the shapes of a layer's parameters."""
    for name, parameter in list(layer.named_parameters()):
        shape_only = torch.empty_like(parameter, device='meta')
        setattr(layer, name, nn.Parameter(shape_only, requires_grad=False))
