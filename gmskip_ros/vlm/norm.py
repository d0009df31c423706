"""The root-mean-square norm of the three decoders."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# Private: on the CPU, the public function runs the same steps one by one.
_fused: Callable[..., tuple[Tensor, Tensor]] | None = getattr(torch, '_fused_rms_norm', None)


class RmsNorm:
    """Hugging Face's norm, bit for bit, in one step on the CPU where PyTorch has it."""

    def __init__(self, module: Any) -> None:
        """module: Hugging Face's, on its device."""
        self._module = module
        self._weight: Tensor = module.weight
        self._eps: float = module.variance_epsilon
        self._is_fused = _fused is not None and self._weight.device.type == 'cpu'

    def __call__(self, hidden: Tensor) -> Tensor:
        """Return hidden (..., H), normed."""
        if _fused is None or not self._is_fused:
            return self._module(hidden)
        weight, shape = self._weight, self._weight.shape
        if hidden.dtype == torch.float32:
            return _fused(hidden, shape, weight, self._eps)[0]
        # Rounded before it is scaled, as Hugging Face does.
        return weight * _fused(hidden, shape, None, self._eps)[0]
