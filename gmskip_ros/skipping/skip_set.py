"""Which blocks of the language decoder are skipped, and in which phase."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from gmskip_ros.skipping.errors import SkipSetError

PHASES = ('prefill', 'decode')


@dataclass(frozen=True, init=False)
class SkipSet:
    """Blocks to skip, by original 0-based index; the two phases may differ.

    Built from any iterables of integers. Raises SkipSetError for a negative index, a repeated one,
    or something that is not an integer; `check` compares them with a model.
    """

    prefill: frozenset[int] = frozenset()
    decode: frozenset[int] = frozenset()

    def __init__(self, prefill: Iterable[int] = (), decode: Iterable[int] = ()) -> None:
        object.__setattr__(self, 'prefill', _block_indices(prefill))
        object.__setattr__(self, 'decode', _block_indices(decode))

    @classmethod
    def of(cls, blocks: SkipSet | Iterable[int], phases: Iterable[str] = PHASES) -> SkipSet:
        """Return the set that skips `blocks` in `phases`; a SkipSet is returned unchanged."""
        if isinstance(blocks, SkipSet):
            return blocks
        phases = [phases] if isinstance(phases, str) else list(phases)
        unknown = [phase for phase in phases if phase not in PHASES]
        if unknown:
            raise SkipSetError(f'unknown phase {unknown[0]!r}: use {" or ".join(PHASES)}, or both')
        indices = _block_indices(blocks)
        return cls(**{phase: indices for phase in phases})

    @property
    def blocks(self) -> tuple[int, ...]:
        """Blocks skipped in either phase, ascending."""
        return tuple(sorted(self.prefill | self.decode))

    def __bool__(self) -> bool:
        return bool(self.prefill or self.decode)

    def check(self, num_blocks: int) -> None:
        """Raise SkipSetError if a block is not one of a model's `num_blocks` blocks."""
        for block in self.blocks:
            if block >= num_blocks:
                raise SkipSetError(
                    f'block {block} does not exist: the model has {num_blocks} blocks, '
                    f'0 to {num_blocks - 1}'
                )


def _block_indices(blocks: Iterable[int]) -> frozenset[int]:
    if isinstance(blocks, (str, bytes)) or not isinstance(blocks, Iterable):
        raise SkipSetError(f'skip set {blocks!r} is not a list of block indices, such as [29, 16]')
    seen: set[int] = set()
    for block in blocks:
        index = _block_index(block)
        if index in seen:
            raise SkipSetError(f'block {index} is named twice in the skip set: name it once')
        seen.add(index)
    return frozenset(seen)


def _block_index(block: Any) -> int:
    try:
        if isinstance(block, bool):  # True counts as 1 in Python; here it is a mistake
            raise TypeError
        index = operator.index(block)  # accepts NumPy integers, refuses floats and strings
    except TypeError:
        raise SkipSetError(f'block {block!r} is not an integer: give 0-based indices') from None
    if index < 0:
        raise SkipSetError(f'block {index} is negative: blocks are counted from 0')
    return index
