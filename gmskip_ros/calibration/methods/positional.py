"""Positional deletion: blocks in the order of their depth (the GM-Skip paper's Figure 3)."""

from __future__ import annotations

from collections.abc import Sequence

from gmskip_ros.calibration.methods.method import Method, Option
from gmskip_ros.calibration.methods.removal import remove_in_order
from gmskip_ros.calibration.scoring import Scorer
from gmskip_ros.calibration.trajectory import ChosenSets


def deletion_order(start: str, num_blocks: int) -> Sequence[int]:
    """Return the blocks from `start` on, then those before it backwards; 'end': all backwards."""
    blocks = range(num_blocks)
    if start == 'end':
        return blocks[::-1]
    return [*blocks[int(start) :], *blocks[: int(start)][::-1]]


def choose(scorer: Scorer) -> ChosenSets:
    """Return the trajectory in the order of depth."""
    start = METHOD.options_of(scorer.settings)['start']
    return remove_in_order(scorer, deletion_order(start, scorer.num_blocks))


METHOD: Method = Method(
    name='positional',
    choose=choose,
    takes_sparsity=True,
    summary='in the order of depth',
    options=(
        Option(
            'start',
            '--start',
            default='0',
            choices=('0', '2', 'end'),
            help='first block of positional deletion (default: 0; end: backwards)',
        ),
    ),
    list_name=lambda settings: f'positional-from-{METHOD.options_of(settings)["start"]}',
)
