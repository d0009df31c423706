"""ROUGE-L of many texts against all images at once.

Not imported by gmskip_ros.tasks, which works without NumPy.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class RougeTotals:
    """Sums of ROUGE-L over images with fixed references (see gmskip_ros.tasks.metrics.rouge_l).

    The longest common subsequences with all references are found together: bit-parallel (Hyyro
    2004, "Bit-parallel LCS-length computation revisited"), with the references side by side in one
    integer. A reference has a bit per token and a guard bit, which stops the carry of an addition.
    """

    def __init__(self, references: Sequence[Sequence[Sequence[str]]], beta: float = 1.2) -> None:
        """Take the tokens of each image's references; every image needs a non-empty one."""
        self._beta = beta
        kept = [[tokens for tokens in of_image if tokens] for of_image in references]
        lengths = [len(tokens) for of_image in kept for tokens in of_image]
        self._lengths = np.array(lengths)
        self._first_of_image = np.cumsum([0, *(len(of_image) for of_image in kept)])[:-1]
        starts = np.cumsum([0, *(length + 1 for length in lengths)])
        self._starts, self._num_bits = starts[:-1], int(starts[-1])
        bits_of: dict[str, list[int]] = {}
        start = 0
        for of_image in kept:
            for tokens in of_image:
                for place, token in enumerate(tokens, start):
                    bits_of.setdefault(token, []).append(place)
                start += len(tokens) + 1
        self._places = {token: self._as_integer(places) for token, places in bits_of.items()}
        self._no_guards = ~self._as_integer([int(first) - 1 for first in starts[1:]])
        self._ones = ((1 << self._num_bits) - 1) & self._no_guards

    def total(self, tokens: Sequence[str]) -> float:
        """Return the sum over all images of a text's ROUGE-L, up to rounding."""
        if not tokens:
            return 0.0
        row = self._ones
        for token in tokens:
            common = row & self._places.get(token, 0)
            if common:
                row = ((row + common) | (row - common)) & self._no_guards
        data = np.frombuffer(row.to_bytes(-(-self._num_bits // 8), 'little'), np.uint8)
        ones = np.unpackbits(data, count=self._num_bits, bitorder='little')
        # A bit that was cleared is a token of the longest common subsequence.
        common_lengths = self._lengths - np.add.reduceat(ones, self._starts, dtype=np.int64)
        precision = np.maximum.reduceat(common_lengths, self._first_of_image) / len(tokens)
        recall = np.maximum.reduceat(common_lengths / self._lengths, self._first_of_image)
        weight = self._beta**2
        bottom = recall + weight * precision
        scores = (1 + weight) * precision * recall / np.where(bottom > 0, bottom, 1)
        return float(scores.sum())

    def _as_integer(self, places: Sequence[int]) -> int:
        bits = np.zeros(self._num_bits, np.uint8)
        bits[list(places)] = 1
        return int.from_bytes(np.packbits(bits, bitorder='little').tobytes(), 'little')
