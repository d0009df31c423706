"""SLEB (arXiv:2402.09025): greedy, by the likelihood of the reference answers.

Round by round, every retained block is removed in turn; the one without which the reference answers
have the least negative log-likelihood stays removed, among equally good ones the shallowest. The
first and the last block stay. SLEB measures texts; here an answer is measured, given its image and
prompt: the sum over its tokens, without the end-of-sequence token, and the mean over the answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from gmskip_ros.calibration.likelihood import GivenAnswers, reference_answers
from gmskip_ros.calibration.methods.measured_rounds import MeasuredRounds
from gmskip_ros.calibration.methods.method import Method
from gmskip_ros.calibration.methods.removal import limit_reached
from gmskip_ros.calibration.scoring import Scorer, set_key
from gmskip_ros.calibration.settings import Progress
from gmskip_ros.calibration.trajectory import ChosenSets, ScoredSet, warn_of_ties

PROTECT = (1, 1)  # SLEB's code calls it the early and the latter barrier


@dataclass(frozen=True)
class _Round:
    values: dict[int, float]  # of every candidate, ascending

    @property
    def best(self) -> int:
        return min(self.values, key=lambda block: (self.values[block], block))

    @property
    def is_tied(self) -> bool:
        return len(self.values) > len(set(self.values.values())) == 1


class LikelihoodSearch:
    """Removes, in each round, the block without which given answers stay likeliest.

    `name` says which answers they are, for the record and for messages.
    """

    def __init__(self, scorer: Scorer, answers: GivenAnswers, name: str) -> None:
        self.scorer = scorer
        self._answers = answers
        self._name = f'negative log-likelihood of {name}'
        self._most = scorer.settings.num_removals(scorer.num_blocks)
        # Candidates, and the task's score, times the blocks that each runs, in every round.
        costs = [
            (len(scorer.removable) - n + 1) * (scorer.num_blocks - n) for n in range(self._most)
        ]
        self._rounds = MeasuredRounds(scorer, costs)

    def choose(self) -> ChosenSets:
        """Return every prefix with the task's score, which ends the search when it is too low.

        Raises Stopped, VlmError, RankLostError.
        """
        full = self._value((), Progress(1, self._most, 1, 0, 1, None, None))
        sets = [self.scorer.scored_set(())]
        rounds: list[_Round] = []
        stopped_by = None
        while stopped_by is None:
            removed = sets[-1].blocks
            if len(removed) >= self._most:
                stopped_by = limit_reached(self.scorer, self._most)
                continue
            self._rounds.begin(f'{len(removed) + 1} by {self._name}')
            rounds.append(_Round(self._values(removed)))
            best = rounds[-1].best
            scored = self._rounds.timed(partial(self.scorer.scored_set, (*removed, best)))
            is_allowed = self.scorer.settings.allows_score(scored.score, sets[0].score)
            self._report_round(rounds[-1], len(removed), scored, is_allowed)
            if is_allowed:
                sets.append(scored)
            else:
                ratio = self.scorer.settings.min_score_ratio
                stopped_by = f'removing block {best} scores below {ratio:g} x the full score'
        return ChosenSets(
            tuple(sets),
            nested=True,
            stopped_by=stopped_by,
            objective={
                'name': f'{self._name} (nats, mean over the answers)',
                'full': full,
                'rounds': [
                    {
                        'round': number,
                        'best': of_round.best,
                        'candidates': [
                            {'block': block, 'value': value}
                            for block, value in of_round.values.items()
                        ],
                    }
                    for number, of_round in enumerate(rounds, start=1)
                ],
            },
            warnings=tuple(
                warn_of_ties([number for number, each in enumerate(rounds, 1) if each.is_tied])
            ),
        )

    def _report_round(
        self, found: _Round, num_removed: int, scored: ScoredSet, is_allowed: bool
    ) -> None:
        removed = found.best if is_allowed else None
        value = found.values[found.best]
        what = 'nothing removed' if removed is None else f'block {removed} removed'
        self._rounds.end(
            {
                'removed': removed,
                'score': scored.score,
                'value': value,
                'cells': [{'block': block, 'value': each} for block, each in found.values.items()],
            },
            sparsity=(num_removed + is_allowed) / self.scorer.num_blocks,
            value=value,
            what=f'{what}, {value:.4g} nats per answer',
            score=scored.score,
            removed=removed,
            is_last=not is_allowed,
        )

    def _values(self, removed: Sequence[int]) -> dict[int, float]:
        """Return the value without `removed` and each block that may be removed in turn."""
        candidates = [block for block in self.scorer.removable if block not in removed]
        values: dict[int, float] = {}
        for done, block in enumerate(candidates):
            best = min(values, key=lambda known: (values[known], known), default=None)
            progress = Progress(
                round=len(removed) + 1,
                most_rounds=self._most,
                candidates=len(candidates),
                done=done,
                total=len(candidates),
                best_block=best,
                best_score=None if best is None else values[best],
            )
            values[block] = self._value((*removed, block), progress)
        return values

    def _value(self, blocks: Sequence[int], progress: Progress) -> float:
        """Return the value without these blocks; `progress` counts candidates, as if of one answer.

        It is remembered for a resumed run.
        """
        blocks = sorted(blocks)
        num_answers = len(self._answers.answers)

        def report(done: int) -> None:
            done += progress.done * num_answers
            total = progress.total * num_answers
            share = done / (total + num_answers)  # the task's score follows
            left = self._rounds.seconds_left(share) if blocks else None
            self.scorer.on_progress(replace(progress, done=done, total=total, seconds_left=left))

        remember = self._rounds.remember if blocks else self.scorer.remember
        return float(
            remember(
                f'{self._name} without {set_key(blocks)}',
                lambda: self._answers.negative_log_likelihood(self.scorer.skip_set(blocks), report),
            )
        )


def choose(scorer: Scorer) -> ChosenSets:
    """Return the trajectory by the likelihood of the reference answers."""
    return LikelihoodSearch(scorer, reference_answers(scorer), 'the reference answers').choose()


METHOD: Method = Method(
    name='sleb',
    choose=choose,
    summary='greedy, by the likelihood of the reference answers',
    title='SLEB',
    protect=PROTECT,
)
