"""ShortGPT (arXiv:2403.03853): least block influence first.

The influence of a block is 1 - the mean, over all tokens of all samples, of the cosine of the angle
between what enters the block and what leaves it (the paper's equation 1).
"""

from __future__ import annotations

from gmskip_ros.calibration.methods.method import Method
from gmskip_ros.calibration.probing import cosine_distance, mean_over_tokens, remove_by_rank
from gmskip_ros.calibration.scoring import Scorer
from gmskip_ros.calibration.trajectory import ChosenSets
from gmskip_ros.skipping import PHASES


def choose(scorer: Scorer) -> ChosenSets:
    """Return the trajectory by ascending block influence."""
    return remove_by_rank(scorer, mean_over_tokens(scorer, 'block influence', cosine_distance))


METHOD: Method = Method(
    name='shortgpt',
    choose=choose,
    summary='least block influence first: 1 - mean cosine between its input and output',
    title='ShortGPT',
    phases=(('prefill',), ('decode',), PHASES),
    takes_sparsity=True,
)
