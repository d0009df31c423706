"""Early exit: the deepest blocks first, by default for generated tokens only."""

from __future__ import annotations

from gmskip_ros.calibration.methods.method import Method
from gmskip_ros.calibration.methods.removal import remove_in_order
from gmskip_ros.calibration.scoring import Scorer
from gmskip_ros.calibration.trajectory import ChosenSets
from gmskip_ros.skipping import PHASES


def choose(scorer: Scorer) -> ChosenSets:
    """Return the trajectory from the deepest block on."""
    return remove_in_order(scorer, range(scorer.num_blocks)[::-1])


METHOD: Method = Method(
    name='early-exit',
    choose=choose,
    summary='the deepest blocks first',
    phases=(('decode',), ('prefill',), PHASES),
    takes_sparsity=True,
)
