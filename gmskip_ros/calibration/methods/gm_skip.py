"""GM-Skip (arXiv:2508.18227): greedy, guided by the task's own metric.

Round by round, every retained block is removed in turn; the one whose removal scores best stays
removed, among equally good ones the deepest. The result is exact: a candidate is pruned only when
its best possible score, with every image not yet asked about answered perfectly, cannot win.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from gmskip_ros.calibration.methods.method import Method, Option
from gmskip_ros.calibration.methods.removal import TIE_ORDER, RemovalSearch, name_with_ties
from gmskip_ros.calibration.scoring import Scorer, chunks
from gmskip_ros.calibration.trajectory import Cell, ChosenSets
from gmskip_ros.tasks.scoring import Score

# In a race candidates are compared after each chunk, first after one image: the hardest images
# decide most.
FIRST_CHUNK_OF_RACE = 1


class GreedySearch(RemovalSearch):
    """Tries every retained block in every round; with `abandon`, prunes those that cannot win."""

    def __init__(self, scorer: Scorer, tie_order: str = 'backward', abandon: bool = True) -> None:
        super().__init__(scorer, tie_order)
        self._abandon = abandon
        self._raced: list[int] = []  # the items of this round's race in their order; else empty

    def candidates(self, retained: Sequence[int]) -> list[int]:
        return list(retained)

    def score_candidates(self, candidates: Sequence[int]) -> Sequence[int]:
        self._raced = []
        if self._abandon and self.state.rounds and len(candidates) > 1:
            return self._race(candidates)
        return super().score_candidates(candidates)

    def cell(self, block: int, best: int | None) -> Cell:
        """Return the candidate's score; after a race the first bound that is worse than the best.

        How much a candidate is asked about before it is pruned depends on how far the search may
        go. This bound does not, so a search that goes on has the cells of one run at once.
        """
        if best is None or block == best or not self._raced:
            return super().cell(block, best)
        winner = self.preference(best, self.upper_bound(best))
        answered = self.state.answered.get(block, {})

        def bound(count: int) -> Score:
            """Return the best possible score, given the first answers of the race."""
            most = [bound for _, bound in self.bounds]
            for item in self._raced[:count]:
                most[item] = answered[item].contribution
            return self.scorer.overall(most)

        # Every further answer lowers the bound, or leaves it.
        count = bisect_left(
            range(len(answered)), True, key=lambda n: self.preference(block, bound(n)) < winner
        )
        return Cell(block, bound(count), count == self.scorer.num_items)

    def _race(self, candidates: Sequence[int]) -> list[int]:
        """Ask about the hardest images first, and prune candidates that can no longer win.

        Returns those that were asked about every image and not pruned: none or one.
        """
        items = self._raced = self._hardest_first()
        # The favourite runs ahead: the best candidate of the round before, as far as it is known.
        estimates = self.state.estimates
        favourite = max(candidates, key=lambda block: self.preference(block, estimates[block]))
        alive = list(candidates)
        for chunk in chunks(items):
            if not self.is_enough(self.upper_bound(favourite)):
                break
            self.fill([favourite], chunk, in_race=alive)
        for chunk in [[], *chunks(items, FIRST_CHUNK_OF_RACE)]:
            self.fill(alive, chunk)
            alive = self._still_in_race(alive)
        return alive

    def _still_in_race(self, alive: Sequence[int]) -> list[int]:
        """Return the candidates that may still be removed: no other is certainly better."""
        if not alive:
            return []
        lower = {
            block: self.preference(block, self.scorer.overall(self.least[block])) for block in alive
        }
        leader = max(alive, key=lambda block: lower[block])
        return [
            block
            for block in alive
            if self.is_enough(upper := self.upper_bound(block))
            and (block == leader or self.preference(block, upper) > lower[leader])
        ]

    def _hardest_first(self) -> list[int]:
        """Return the items, first those where the trunk falls short most, then round 1's."""
        objective = self.scorer.objective

        def difficulty(item: int) -> tuple[float, float, int]:
            denominator = objective.parts[objective.items[item].part].denominator
            short = float(self.bounds[item][1] - self.state.trunk[item].contribution)
            return (-short / denominator, -self.state.shortfall[item] / denominator, item)

        return sorted(range(self.scorer.num_items), key=difficulty)


def choose(scorer: Scorer) -> ChosenSets:
    """Return the greedy trajectory."""
    return GreedySearch(scorer, **METHOD.options_of(scorer.settings)).choose()


METHOD: Method = Method(
    name='gm-skip',
    choose=choose,
    summary='greedy, by the score of every block in every round',
    title='GM-Skip',
    options=(
        TIE_ORDER,
        Option(
            'abandon',
            '--no-abandon',
            default=True,
            help='score every candidate on all images, even after it can no longer win',
        ),
    ),
    num_candidates=lambda num_retained: num_retained,
    list_name=name_with_ties,
)
