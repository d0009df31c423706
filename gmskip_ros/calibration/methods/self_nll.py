"""As SLEB, by the likelihood of what the full model answers itself.

The references do not influence the order of removal. They are still needed: the task's score of
each set, which stands beside it and ends the search, is computed from them.
"""

from __future__ import annotations

from gmskip_ros.calibration.likelihood import own_answers
from gmskip_ros.calibration.methods.method import Method
from gmskip_ros.calibration.methods.sleb import PROTECT, LikelihoodSearch
from gmskip_ros.calibration.scoring import Scorer
from gmskip_ros.calibration.trajectory import ChosenSets


def choose(scorer: Scorer) -> ChosenSets:
    """Return the trajectory by the likelihood of the full model's own answers."""
    return LikelihoodSearch(scorer, own_answers(scorer), "the full model's own answers").choose()


METHOD: Method = Method(
    name='self-nll',
    choose=choose,
    summary="greedy, by the likelihood of the full model's own answers",
    title='self-NLL',
    protect=PROTECT,
)
