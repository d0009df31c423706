"""Linear layers whose weights are stored as 8-bit or 4-bit integers.

Weight-only, round to nearest, from the checkpoint's own weights. For output n and input k:

int8    W[n, k] = scale[n] q[n, k], q from -127 to 127.
int4    W[n, k] = scale[n, g] (q[n, k] - 8) + zero[n, g], q from 0 to 15, for each group g of 64
        neighbouring inputs (32 where 64 does not divide the layer's width).

Scales and zeros have the model's dtype, and q is chosen for them as they are stored. A layer that
int4 cannot hold (an odd number of outputs, a width that 32 does not divide) is stored as int8: see
`stored_as`.

There are two ways to the product. PyTorch's own CPU kernels read the stored integers: they take
bfloat16 and are the faster way for few rows, such as an answer's tokens. Otherwise the weights are
dequantised for a dense product, one layer at a time: on any device, in any dtype, and faster for
many rows, such as a prompt's.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from gmskip_ros.vlm.linear import FUSED
from gmskip_ros.vlm.release import empty_allocators

GROUP_SIZES = (64, 32)  # inputs that share a scale in int4, by preference
# The kernels are private: whatever they raise or return, there is a second way.
_KERNELS: Any = torch.ops.aten
_KERNEL_WIDTH = (
    32  # the int8 kernel is wrong, or crashes, for some widths that this does not divide
)
_KERNEL_BLOCKS = (64, 32)  # outputs that the int4 kernel stores together: with AVX-512, with AVX2


class StoredAs(NamedTuple):
    """How a linear layer is stored: 'int8', or 'int4' in groups of `group_size` inputs."""

    quantization: str
    group_size: int

    def num_bytes(self, num_outputs: int, num_inputs: int, number_bytes: int) -> int:
        """Return the bytes of the weights; scales and zeros take `number_bytes` each."""
        if self.quantization == 'int8':
            return num_outputs * (num_inputs + number_bytes)
        return num_outputs * (num_inputs // 2 + 2 * number_bytes * (num_inputs // self.group_size))


def stored_as(quantization: str, num_outputs: int, num_inputs: int) -> StoredAs:
    """Return how a layer of this shape is stored under quantization 'int8' or 'int4'."""
    if quantization == 'int4' and num_outputs % 2 == 0:
        for size in GROUP_SIZES:
            if num_inputs % size == 0:
                return StoredAs('int4', size)
    return StoredAs('int8', num_inputs)


def quantize_model(model: Any, quantization: str, dtype: torch.dtype) -> None:
    """Quantise Hugging Face's LLaVA, where it is; its other weights become `dtype`.

    The linear layers of the decoder's blocks are replaced, one block after the other: layers on the
    same input are fused first, and the dense weights are released. quantization: 'int8' or 'int4'.
    """
    for layer in model.model.language_model.layers:
        for name, (part, members) in FUSED.items():
            module = getattr(layer, part)
            dense = [getattr(module, member) for member in members]
            # Query, key and value are also wanted apart: see Block.
            starts = list(itertools.accumulate(len(each.weight) for each in dense[:-1]))
            quantized = quantize(
                torch.cat([each.weight for each in dense]).detach(),
                None if dense[0].bias is None else torch.cat([each.bias for each in dense]),
                quantization,
                dtype,
                starts if name == 'qkv' else (),
            )
            for member in members:
                delattr(module, member)
            setattr(module, name, quantized)
        empty_allocators()  # what the dense weights of a block took meanwhile
    for parameter in model.parameters():  # not .to(dtype), which would round buffers as well
        parameter.data = parameter.data.to(dtype)


def num_parameters(module: nn.Module) -> int:
    """Return how many numbers the dense weights of a module have, quantised or not."""
    return sum(parameter.numel() for parameter in module.parameters()) + sum(
        each.num_parameters for each in module.modules() if isinstance(each, QuantizedLinear)
    )


def quantize(
    weight: Tensor,
    bias: Tensor | None,
    quantization: str,
    dtype: torch.dtype,
    starts: Sequence[int] = (),
) -> QuantizedLinear:
    """Return the layer of a dense weight (out, in) and bias (out,), on the weight's device.

    quantization: 'int8' or 'int4'. dtype: of activations, scales and zeros. starts: outputs at
    which `part` will be called to start or stop, besides the first and the last.
    """
    bias = None if bias is None else bias.detach().to(dtype)
    stored = stored_as(quantization, *weight.shape)
    if stored.quantization == 'int8':
        return Int8Linear.of(weight, bias, dtype)
    return Int4Linear.of(weight, bias, dtype, stored.group_size, starts)


class QuantizedLinear(nn.Module):
    """y = W x + b, W stored as integers: a `Linear`. Made by `quantize`."""

    kernel_rows: ClassVar[int]  # up to so many rows the kernel was the faster way
    integers: Tensor
    scales: Tensor
    bias: Tensor | None

    def __init__(self, integers: Tensor, scales: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.register_buffer('integers', integers)
        self.register_buffer('scales', scales)
        self.register_buffer('bias', bias)

    @property
    def nbytes(self) -> int:
        """Bytes of integers, scales, zeros and biases."""
        return sum(tensor.nbytes for tensor in self.buffers())

    @property
    def num_parameters(self) -> int:
        """Numbers of the dense weight and of the bias."""
        raise NotImplementedError

    def forward(self, states: Tensor) -> Tensor:
        """Return the outputs (..., out) of states (..., in) in the dtype of the scales."""
        rows = states.reshape(-1, states.shape[-1])
        may_use_kernel = rows.device.type == 'cpu' and rows.dtype == torch.bfloat16
        if may_use_kernel and 0 < len(rows) <= self.kernel_rows and self._fits_kernel():
            outputs = self._by_kernel(rows.contiguous())
        else:
            outputs = self._by_dense_product(rows)
        if self.bias is not None:
            outputs += self.bias
        return outputs.view(*states.shape[:-1], -1)

    def part(self, start: int, stop: int) -> QuantizedLinear:
        """Return a layer with the outputs from `start` up to `stop` only, over the same weights."""
        raise NotImplementedError

    def dequantized(self) -> Tensor:
        """Return W, shape (out, in), in float32: exactly what the integers stand for."""
        raise NotImplementedError

    def _fits_kernel(self) -> bool:
        raise NotImplementedError

    def _by_kernel(self, rows: Tensor) -> Tensor:
        raise NotImplementedError

    def _by_dense_product(self, rows: Tensor) -> Tensor:
        raise NotImplementedError


class Int8Linear(QuantizedLinear):
    """integers: int8 (out, in); scales: (out,)."""

    kernel_rows = 16

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Int8Linear:
        """Return the layer of a dense weight (out, in)."""
        exact = weight.float()
        scales = (exact.abs().amax(dim=1) / 127).to(dtype)
        scales = torch.where(scales > 0, scales, torch.ones_like(scales))  # of zeros alone
        integers = (exact / scales.float()[:, None]).round_().clamp_(-127, 127)
        return cls(integers.to(torch.int8), scales, bias)

    @property
    def num_parameters(self) -> int:
        return self.integers.numel() + (0 if self.bias is None else self.bias.numel())

    def part(self, start: int, stop: int) -> Int8Linear:
        bias = None if self.bias is None else self.bias[start:stop]
        return Int8Linear(self.integers[start:stop], self.scales[start:stop], bias)

    def dequantized(self) -> Tensor:
        return self.integers * self.scales.float()[:, None]

    def _fits_kernel(self) -> bool:
        return self.integers.shape[1] % _KERNEL_WIDTH == 0 and _has_int8_kernel()

    def _by_kernel(self, rows: Tensor) -> Tensor:
        return _KERNELS._weight_int8pack_mm(rows, self.integers, self.scales)

    def _by_dense_product(self, rows: Tensor) -> Tensor:
        if rows.dtype == torch.float16:  # sums of unscaled integers would overflow
            return linear(rows, self.integers * self.scales[:, None])
        # The integers are exact in bfloat16, their products with a scale would not be.
        return linear(rows, self.integers.to(rows.dtype)).mul_(self.scales)


class Int4Linear(QuantizedLinear):
    """integers: uint8 (out / block, in, block / 2); scales: (groups, out, 2), scale and zero.

    The integers lie as the CPU kernel wants them: for each block of outputs and each input, a byte
    holds an output of the block's first half (low bits) and its counterpart in the second.
    """

    kernel_rows = 64

    @classmethod
    def of(
        cls,
        weight: Tensor,
        bias: Tensor | None,
        dtype: torch.dtype,
        group_size: int,
        starts: Sequence[int] = (),
    ) -> Int4Linear:
        """Return the layer of a dense weight (out, in); `starts`: see `quantize`."""
        exact = weight.float().unflatten(1, (-1, group_size))  # (out, groups, group)
        least, most = exact.aminmax(dim=-1, keepdim=True)
        scales = ((most - least) / 15).to(dtype)
        zeros = (least + 8 * scales.float()).to(dtype)
        steps = torch.where(scales > 0, scales, torch.ones_like(scales)).float()
        integers = ((exact - zeros.float()) / steps).round_().add_(8).clamp_(0, 15)
        block = math.gcd(_kernel_block() or max(_KERNEL_BLOCKS), len(weight), *starts)
        packed = _pack(integers.to(torch.uint8).flatten(1), block)
        pairs = torch.cat((scales, zeros), dim=-1)  # (out, groups, 2)
        return cls(packed, pairs.transpose(0, 1).contiguous(), bias)

    @property
    def block(self) -> int:
        """How many outputs are stored together."""
        return 2 * self.integers.shape[-1]

    @property
    def num_parameters(self) -> int:
        return 2 * self.integers.numel() + (0 if self.bias is None else self.bias.numel())

    def part(self, start: int, stop: int) -> Int4Linear:
        blocks = self.integers[start // self.block : stop // self.block]
        bias = None if self.bias is None else self.bias[start:stop]
        return Int4Linear(blocks, self.scales[:, start:stop], bias)

    def dequantized(self) -> Tensor:
        return self._dense(torch.float32).t()

    def _fits_kernel(self) -> bool:
        return self.block == _kernel_block()

    def _by_kernel(self, rows: Tensor) -> Tensor:
        return _int4_product(rows, self.integers, self.scales.contiguous())

    def _by_dense_product(self, rows: Tensor) -> Tensor:
        return rows @ self._dense(rows.dtype)

    def _dense(self, dtype: torch.dtype) -> Tensor:
        """Return W transposed, (in, out)."""
        halves = (self.integers & 15, self.integers >> 4)
        integers = torch.cat(halves, dim=-1).view(torch.int8).sub_(8)  # (out / block, in, block)
        num_groups, num_outputs, _ = self.scales.shape
        weight = integers.transpose(0, 1).reshape(num_groups, -1, num_outputs).to(dtype)
        # One behind the other, not in turns: three times as fast. (2, groups, 1, out)
        scales, zeros = self.scales.to(dtype)[:, None].movedim(-1, 0).contiguous()
        return torch.addcmul(zeros, weight, scales, out=weight).view(-1, num_outputs)


def _pack(integers: Tensor, block: int) -> Tensor:
    """Return integers (out, in) from 0 to 15 as Int4Linear stores them."""
    num_outputs, num_inputs = integers.shape
    blocks = integers.view(num_outputs // block, block, num_inputs).transpose(1, 2)
    first, second = blocks.chunk(2, dim=-1)  # (out / block, in, block / 2)
    return (first | (second << 4)).contiguous()


def _int4_product(rows: Tensor, packed: Tensor, scales: Tensor) -> Tensor:
    num_groups, num_outputs, _ = scales.shape
    num_inputs = packed.shape[1]
    return _KERNELS._weight_int4pack_mm_for_cpu(
        rows, packed.view(num_outputs, num_inputs // 2), num_inputs // num_groups, scales
    )


@functools.cache
def _has_int8_kernel() -> bool:
    """Return whether this PyTorch has the int8 kernel, and it computes what is meant."""
    rows, integers, scales = _example(_KERNEL_WIDTH, torch.int8)
    try:
        product = _KERNELS._weight_int8pack_mm(rows, integers, scales)
    except (AttributeError, RuntimeError):
        return False
    return _is_close(product, rows.float() @ (integers * scales.float()[:, None]).t())


@functools.cache
def _kernel_block() -> int | None:
    """Return how many outputs the int4 kernel of this PyTorch and CPU stores together.

    None if there is no such kernel, or if it stores them otherwise or computes something else.
    """
    rows, integers, scales = _example(GROUP_SIZES[0], torch.uint8)
    pairs = torch.stack((scales, -scales), dim=-1)[None]  # one group
    weight = (integers.float() - 8) * scales.float()[:, None] - scales.float()[:, None]
    try:
        theirs = _KERNELS._convert_weight_to_int4pack_for_cpu(integers.int(), 2)
        for block in _KERNEL_BLOCKS:
            packed = _pack(integers, block)
            if torch.equal(packed.flatten(), theirs.flatten()):
                product = _int4_product(rows, packed, pairs)
                return block if _is_close(product, rows.float() @ weight.t()) else None
    except (AttributeError, RuntimeError):
        pass
    return None


def _example(width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Return bfloat16 rows (3, width), integers (128, width) from 0 to 15, scales (128,)."""
    numbers = torch.arange(128 * width).view(128, width)
    rows = ((numbers[:3] * 7 % 31 - 15) / 16).bfloat16()
    return rows, (numbers * 11 % 13 + numbers % 4).to(dtype), (1 + numbers[:, 0] % 5).bfloat16() / 8


def _is_close(product: Tensor, expected: Tensor) -> bool:
    return product.shape == expected.shape and torch.allclose(
        product.float(), expected, rtol=0.02, atol=0.02 * float(expected.abs().max())
    )
