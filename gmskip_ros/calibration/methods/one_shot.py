"""One-shot: blocks in the order of round 1's scores, an ablation of GM-Skip."""

from __future__ import annotations

from collections.abc import Sequence

from gmskip_ros.calibration.methods.method import Method
from gmskip_ros.calibration.methods.removal import TIE_ORDER, RemovalSearch, name_with_ties
from gmskip_ros.calibration.scoring import Scorer
from gmskip_ros.calibration.trajectory import ChosenSets


class OneShotSearch(RemovalSearch):
    """Scores every block in round 1, and removes them best first."""

    def candidates(self, retained: Sequence[int]) -> list[int]:
        if not self.state.rounds:
            return list(retained)
        scores = {cell.block: cell.score for cell in self.state.rounds[0].cells}
        return [max(retained, key=lambda block: self.preference(block, scores[block]))]


def choose(scorer: Scorer) -> ChosenSets:
    """Return the trajectory by round 1's ranking."""
    return OneShotSearch(scorer, **METHOD.options_of(scorer.settings)).choose()


METHOD: Method = Method(
    name='one-shot',
    choose=choose,
    summary="by the ranking of gm-skip's first round",
    takes_sparsity=True,
    options=(TIE_ORDER,),
    list_name=name_with_ties,
)
