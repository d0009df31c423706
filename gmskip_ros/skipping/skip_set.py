"""Which blocks of the language decoder are skipped, in which phase and by which tokens."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from gmskip_ros.skipping.errors import SkipSetError

PHASES = ('prefill', 'decode')
AXES = (*PHASES, 'image')  # of a skip set
KV_POLICIES = ('none', 'input')  # the default first
IMAGE_KV_POLICIES = ('input', 'none')


@dataclass(frozen=True, init=False)
class SkipSet:
    """Blocks to skip, by original 0-based index: in prefill, in decode, for image tokens.

    image: in these blocks image tokens are left as they came, text tokens run. A block that is in
    prefill as well is skipped there for all tokens, and is not kept in `image`.
    kv: what a token stores in a block that it skips, 'none' or keys and values projected from the
    block's input ('input'; this matters where prefill skips a block that decode runs).
    image_kv: the same of image tokens in the blocks of `image`; with 'none' they are unseen there.

    Built from any iterables of integers. Raises SkipSetError for a negative index, a repeated one,
    something that is not an integer, or an unknown policy; `check` compares them with a model.
    """

    prefill: frozenset[int] = frozenset()
    decode: frozenset[int] = frozenset()
    image: frozenset[int] = frozenset()
    kv: str = KV_POLICIES[0]
    image_kv: str = IMAGE_KV_POLICIES[0]

    def __init__(
        self,
        prefill: Iterable[int] = (),
        decode: Iterable[int] = (),
        image: Iterable[int] = (),
        kv: str = KV_POLICIES[0],
        image_kv: str = IMAGE_KV_POLICIES[0],
    ) -> None:
        object.__setattr__(self, 'prefill', _block_indices(prefill))
        object.__setattr__(self, 'decode', _block_indices(decode))
        object.__setattr__(self, 'image', _block_indices(image) - self.prefill)
        object.__setattr__(self, 'kv', _policy('kv', kv, KV_POLICIES))
        object.__setattr__(self, 'image_kv', _policy('image_kv', image_kv, IMAGE_KV_POLICIES))

    @classmethod
    def of(
        cls,
        blocks: SkipSet | Iterable[int],
        phases: Iterable[str] = PHASES,
        kv: str = KV_POLICIES[0],
        image_kv: str = IMAGE_KV_POLICIES[0],
    ) -> SkipSet:
        """Return the set that skips `blocks` in `phases` (of AXES); a SkipSet is unchanged."""
        if isinstance(blocks, SkipSet):
            return blocks
        phases = [phases] if isinstance(phases, str) else list(phases)
        unknown = [phase for phase in phases if phase not in AXES]
        if unknown:
            raise SkipSetError(
                f'unknown phase {unknown[0]!r}: use one or more of {", ".join(AXES)}'
            )
        indices = _block_indices(blocks)
        return cls(**{phase: indices for phase in phases}, kv=kv, image_kv=image_kv)

    def adding(self, block: int, phases: Iterable[str]) -> SkipSet:
        """Return the set that also skips `block` in `phases` (of AXES)."""
        more = SkipSet.of([block], phases)
        return SkipSet(
            self.prefill | more.prefill,
            self.decode | more.decode,
            self.image | more.image,
            self.kv,
            self.image_kv,
        )

    @property
    def blocks(self) -> tuple[int, ...]:
        """Blocks skipped on any axis, ascending."""
        return tuple(sorted(self.prefill | self.decode | self.image))

    @property
    def by_phases(self) -> dict[str, tuple[int, ...]]:
        """Blocks, ascending, by where skipped: {'prefill+decode': (3, 4), 'image': (7,)}."""
        found: dict[str, tuple[int, ...]] = {}
        for block in self.blocks:
            axes = '+'.join(axis for axis in AXES if block in getattr(self, axis))
            found[axes] = (*found.get(axes, ()), block)
        return found

    @property
    def manner(self) -> str:
        """How blocks are skipped, for people: 'decode' or 'prefill,image; kv input'; '' if plain.

        As in --phases, commas are between blocks, plus signs between the phases of one block.
        """
        if self.is_plain:
            return ''
        policies = [f'kv {self.kv}'] if self.kv != KV_POLICIES[0] else []
        if self.image and self.image_kv != IMAGE_KV_POLICIES[0]:
            policies.append(f'image_kv {self.image_kv}')
        return '; '.join([','.join(self.by_phases), *policies])

    @property
    def is_plain(self) -> bool:
        """Whether every block is skipped by every token, which the policies do not affect."""
        return self.prefill == self.decode and not self.image

    def __bool__(self) -> bool:
        return bool(self.prefill or self.decode or self.image)

    def check(self, num_blocks: int) -> None:
        """Raise SkipSetError if a block is not one of a model's `num_blocks` blocks."""
        for block in self.blocks:
            if block >= num_blocks:
                raise SkipSetError(
                    f'block {block} does not exist: the model has {num_blocks} blocks, '
                    f'0 to {num_blocks - 1}'
                )


def _policy(name: str, value: str, known: tuple[str, ...]) -> str:
    if value not in known:
        raise SkipSetError(f'{name} {value!r} is unknown: use {" or ".join(known)}')
    return value


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
