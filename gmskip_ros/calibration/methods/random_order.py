"""Random deletion: blocks in an order drawn with the seed."""

from __future__ import annotations

import random

from gmskip_ros.calibration.methods.method import Method
from gmskip_ros.calibration.methods.removal import remove_in_order
from gmskip_ros.calibration.scoring import Scorer
from gmskip_ros.calibration.trajectory import ChosenSets


def deletion_order(seed: int, num_blocks: int) -> list[int]:
    """Return the blocks in a random order, always the same for a seed."""
    blocks = list(range(num_blocks))
    random.Random(f'deletion order {seed}').shuffle(blocks)
    return blocks


def choose(scorer: Scorer) -> ChosenSets:
    """Return the trajectory in a random order."""
    return remove_in_order(scorer, deletion_order(scorer.settings.seed, scorer.num_blocks))


METHOD: Method = Method(
    name='random',
    choose=choose,
    takes_sparsity=True,
    summary='in an order drawn with --seed',
    uses_seed=True,
    list_name=lambda settings: f'random-{settings.seed}',
)
