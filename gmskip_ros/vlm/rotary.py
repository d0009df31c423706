"""Rotary position embedding, in the half-split layout of Hugging Face's Llama weights.

Shapes: B rows (batch), T tokens, D head size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

CHANGING = ('dynamic', 'longrope')  # rope types whose angles depend on the length so far


class RotaryTable:
    """Hugging Face's cosines and sines, computed once for every position of the context."""

    def __init__(self, rotary_emb: Any, max_positions: int) -> None:
        """rotary_emb: the decoder's own module, on its device."""
        self._rotary_emb = rotary_emb
        self._max_positions = max_positions
        self._is_constant = rotary_emb.rope_type not in CHANGING
        self._tables: tuple[Tensor, Tensor] | None = None  # (positions, D) each

    def __call__(self, hidden: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return cosines and signed sines, (B, T, D) each, of positions (B, T), long.

        They are in the dtype and on the device of hidden. `rotate_` takes them.
        """
        if self._is_constant:
            if self._tables is None or self._tables[0].dtype != hidden.dtype:
                self._tables = self._make_tables(hidden)
            cos, sin = self._tables
            # Padding behind a row can lie beyond the context; what it becomes is not read.
            positions = positions.clamp(max=len(cos) - 1)
            return cos[positions], sin[positions]
        return _with_sign(*self._rotary_emb(hidden, positions))

    def _make_tables(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        positions = torch.arange(self._max_positions, device=hidden.device)
        cos, sin = _with_sign(*self._rotary_emb(hidden, positions[None]))
        return cos[0], sin[0]


def _with_sign(cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Negate the first half of the sines: what they multiply comes from the second half."""
    half = sin.shape[-1] // 2
    return cos, torch.cat((-sin[..., :half], sin[..., half:]), dim=-1)


def rotate_(states: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate states (..., D), in place, by cosines and signed sines that broadcast to them."""
    cos, signed_sin = rotary
    other_half = states.roll(states.shape[-1] // 2, -1)
    return states.mul_(cos).addcmul_(other_half, signed_sin)
