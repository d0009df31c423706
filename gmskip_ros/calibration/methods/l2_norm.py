"""L2 norm, a comparison in the FlashVLM paper: the block that changes its input's norm least first.

A block's value is the mean, over all tokens of all samples, of the difference between the Euclidean
norms of what enters and what leaves it.
"""

from __future__ import annotations

from gmskip_ros.calibration.methods.method import Method
from gmskip_ros.calibration.probing import mean_over_tokens, norm_difference, remove_by_rank
from gmskip_ros.calibration.scoring import Scorer
from gmskip_ros.calibration.trajectory import ChosenSets
from gmskip_ros.skipping import PHASES


def choose(scorer: Scorer) -> ChosenSets:
    """Return the trajectory by ascending change of the norm."""
    return remove_by_rank(scorer, mean_over_tokens(scorer, 'norm difference', norm_difference))


METHOD: Method = Method(
    name='l2-norm',
    choose=choose,
    summary='least difference of the norms of its input and output first',
    phases=(('decode',), ('prefill',), PHASES),
    takes_sparsity=True,
)
