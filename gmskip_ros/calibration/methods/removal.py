"""Removing blocks one at a time, round by round: what the methods with nested sets share."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from gmskip_ros.calibration.methods.method import Option
from gmskip_ros.calibration.scoring import Scorer, chunks
from gmskip_ros.calibration.settings import SearchSettings
from gmskip_ros.calibration.trajectory import FULL, Cell, ChosenSets, Round, ScoredSet
from gmskip_ros.tasks.scoring import Score

TIE_ORDER = Option(
    'tie_order',
    '--tie-order',
    default='backward',
    choices=('backward', 'forward'),
    help='among equally good blocks, remove the deepest (backward, default) or the shallowest',
)


def name_with_ties(settings: SearchSettings) -> str:
    """Return the method's name as a skip list records it: with the tie order, unless usual."""
    tie_order = settings.options.get(TIE_ORDER.name, TIE_ORDER.default)
    return settings.method if tie_order == TIE_ORDER.default else f'{settings.method}-forward-ties'


def limit_reached(scorer: Scorer, most: int) -> str:
    """Return why no more than `most` blocks (settings.num_removals) may be removed."""
    settings = scorer.settings
    if settings.sparsities:
        return f'sparsity {max(settings.sparsities):g} is reached'
    if settings.rounds is not None and most == settings.rounds:
        return f'the requested number of rounds ({most}) is reached'
    if most == scorer.num_blocks - 1:
        return 'one block is left'
    if most == len(scorer.removable):
        return 'only protected blocks are left'
    return f'max_sparsity {settings.max_sparsity:g} is reached'


class RemovalSearch:
    """Removes, in each round, the best of the round's candidates; resumes from any state.

    A subclass gives the candidates.
    """

    def __init__(self, scorer: Scorer, tie_order: str = 'backward') -> None:
        self.scorer = scorer
        self.settings = scorer.settings
        self.state = scorer.state
        self._prefers_deep = tie_order == 'backward'
        self.bounds = [scorer.objective.bounds(item) for item in range(scorer.num_items)]
        # The least and the most that each item can still add to a candidate's score.
        self.least = defaultdict[int, list[Score]](lambda: [least for least, _ in self.bounds])
        self.most = defaultdict[int, list[Score]](lambda: [most for _, most in self.bounds])

    def candidates(self, retained: Sequence[int]) -> list[int]:
        """Return those of the retained, unprotected blocks to try in this round, ascending."""
        raise NotImplementedError

    def choose(self) -> ChosenSets:
        """Search to the end and return every prefix with its score.

        Raises what Answerer.answers raises.
        """
        self.scorer.score_full()
        while self.run_round():
            pass
        rounds = [done for done in self.scorer.rounds if done.removed is not None]
        removed = [block for done in rounds if (block := done.removed) is not None]
        scores = [float(self.scorer.full_score), *(float(done.score) for done in rounds)]
        return ChosenSets(
            tuple(ScoredSet(tuple(removed[:n]), score) for n, score in enumerate(scores)),
            nested=True,
            stopped_by=str(self.state.stopped_by),
        )

    def run_round(self) -> bool:
        """Remove one more block if the limits allow; return False once the search has stopped.

        Call the scorer's score_full first. Raises what Answerer.answers raises.
        """
        state = self.state
        state.stopped_by = self._reason_to_stop()
        if state.stopped_by is None:
            self._remove_best()
            state.stopped_by = self._reason_to_stop()
            self.scorer.on_save(state, True)
        return state.stopped_by is None

    def _reason_to_stop(self) -> str | None:
        """Return why no further block is removed; None if one is.

        It follows from the rounds and the limits, so a search goes on under wider ones.
        """
        most = self.settings.num_removals(self.scorer.num_blocks)
        if len(self.state.removed) >= most:
            return limit_reached(self.scorer, most)
        if self.scorer.is_searched:
            ratio = self.settings.min_score_ratio
            return f'every further removal scores below {ratio:g} x the full score'
        return None

    def preference(self, block: int, score: Score) -> tuple[Score, int]:
        """Return what candidates are compared by: the score, then the depth that breaks ties."""
        return score, block if self._prefers_deep else -block

    def score_candidates(self, candidates: Sequence[int]) -> Sequence[int]:
        """Score the candidates; return those that have an exact score and may be removed."""
        for chunk in chunks(range(self.scorer.num_items)):
            self.fill(candidates, chunk)
        return candidates

    def fill(
        self,
        candidates: Sequence[int],
        items: Sequence[int],
        in_race: Sequence[int] | None = None,
    ) -> None:
        """Find the candidates' answers to the items, and narrow the bounds of their scores.

        `in_race`, for the progress: the candidates with more to answer, if not these.
        """
        racing = candidates if in_race is None else in_race
        self.scorer.answer_items(candidates, items, lambda: self._report(racing))
        # Set bounds only here, cached answers included, so a resumed search makes the same
        # comparisons.
        for block in candidates:
            for item in items:
                contribution = self.state.answered[block][item].contribution
                self.least[block][item] = self.most[block][item] = contribution

    def upper_bound(self, block: int) -> Score:
        """Return the candidate's best possible score; its score once every answer is known."""
        return self.scorer.overall(self.most[block])

    def is_enough(self, score: Score) -> bool:
        """Return whether the search may go on with a score."""
        return self.settings.allows_score(float(score), float(self.scorer.full_score))

    def _remove_best(self) -> None:
        state = self.state
        removed = set(state.removed)
        retained = [block for block in self.scorer.removable if block not in removed]
        candidates = self.candidates(retained)
        finished = self.score_candidates(candidates)
        if not state.rounds:
            state.shortfall = self._mean_shortfall(candidates)

        best: int | None = None
        if finished:
            best = max(finished, key=lambda block: self.preference(block, self.upper_bound(block)))
            if not self.is_enough(self.upper_bound(best)):
                best = None
        cells = tuple(self.cell(block, best) for block in candidates)
        state.learn(cells)
        score = max(cell.score for cell in cells)
        state.rounds.append(Round(best, score, cells, state.seconds, state.token_blocks))
        if best is not None:
            state.trunk = self.scorer.answers_of(best)
        state.begin_round()
        self.least.clear()
        self.most.clear()

    def _mean_shortfall(self, candidates: Sequence[int]) -> list[float]:
        """Return, per item, how much the candidates miss of the best contribution on average."""
        return [
            sum(float(self.bounds[item][1] - self.most[block][item]) for block in candidates)
            / len(candidates)
            for item in range(self.scorer.num_items)
        ]

    def cell(self, block: int, best: int | None) -> Cell:
        """Return a candidate's score as the round records it; `best`: the one to remove, if any."""
        is_exact = len(self.state.answered.get(block, ())) == self.scorer.num_items
        return Cell(block, self.upper_bound(block), is_exact)

    def _report(self, in_race: Sequence[int]) -> None:
        scores = {
            block: self.scorer.overall(
                [answer.contribution for answer in self.scorer.answers_of(block)]
            )
            for block, answers in self.state.answered.items()
            if block != FULL and len(answers) == self.scorer.num_items
        }
        best = max(scores, key=lambda block: self.preference(block, scores[block]), default=None)
        self.scorer.report(in_race, best, None if best is None else scores[best])


class _OrderedRemoval(RemovalSearch):
    def __init__(self, scorer: Scorer, order: Sequence[int]) -> None:
        super().__init__(scorer)
        self._order = order

    def candidates(self, retained: Sequence[int]) -> list[int]:
        return [next(block for block in self._order if block in retained)]


def remove_in_order(scorer: Scorer, order: Sequence[int]) -> ChosenSets:
    """Return every prefix of an order of all blocks, with its score; protected blocks stay.

    It ends at the largest of the sparsities asked for; without, where the score is no longer good
    enough, or at the other limits.
    """
    return _OrderedRemoval(scorer, order).choose()
