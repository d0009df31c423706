"""The root-mean-square norm of the three decoders."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import rms_norm


class RmsNorm:
    """Hugging Face's norm, up to rounding; in fewer steps."""

    def __init__(self, module: Any) -> None:
        """module: Hugging Face's, on its device."""
        self._weight: Tensor = module.weight
        self._epsilon: float = module.variance_epsilon
        self._eps = torch.tensor(self._epsilon, dtype=torch.float32, device='cpu')
        self._is_on_cpu = self._weight.device.type == 'cpu'

    def __call__(self, hidden: Tensor) -> Tensor:
        """Return hidden (..., H), normed."""
        if not self._is_on_cpu:
            return rms_norm(hidden, self._weight.shape, self._weight, self._epsilon)  # one kernel
        in_float = hidden.float()
        length = torch.linalg.vector_norm(in_float, dim=-1, keepdim=True)  # (..., 1)
        mean_square = torch.addcmul(self._eps, length, length, value=1 / hidden.shape[-1])
        # Rounded before it is scaled, as Hugging Face does.
        return (in_float * mean_square.rsqrt_()).to(hidden.dtype).mul_(self._weight)
