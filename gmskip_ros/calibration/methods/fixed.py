"""Orders and sets of blocks that need no search."""

from __future__ import annotations

import random

from gmskip_ros.calibration.errors import CalibrationError
from gmskip_ros.calibration.settings import SearchSettings


def deletion_order(settings: SearchSettings, num_blocks: int) -> list[int]:
    """Return the order in which 'positional' and 'random' remove blocks, whatever they score."""
    blocks = list(range(num_blocks))
    if settings.method == 'random':
        random.Random(f'deletion order {settings.seed}').shuffle(blocks)
        return blocks
    if settings.start == 'end':
        return blocks[::-1]
    start = int(settings.start)
    return blocks[start:] + blocks[:start][::-1]


def fixed_interval(num_blocks: int, interval: int) -> tuple[int, ...]:
    """Return the blocks that Skip-MLLM's rule leaves out: 0 < i < L - 1 and i % interval == 0.

    Raises CalibrationError for an interval that leaves out no block, or all inner ones.
    """
    if interval < 2:
        raise CalibrationError(f'interval {interval} leaves out every inner block: use 2 or more')
    blocks = tuple(i for i in range(1, num_blocks - 1) if i % interval == 0)
    if not blocks:
        raise CalibrationError(
            f'interval {interval} leaves out none of {num_blocks} blocks: use a smaller one'
        )
    return blocks
