"""Rounds of the methods that compare something other than the task's score: time, record, report.

Their values are remembered one by one, so a resumed run goes through its rounds again, in no time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gmskip_ros.calibration.scoring import Scorer
from gmskip_ros.calibration.settings import RoundDone


class MeasuredRounds:
    """Times a method's rounds and reports each; the time of an interrupted one is kept as well.

    `costs`: of every round that there may be, in any unit, for the time left.
    """

    def __init__(self, scorer: Scorer, costs: Sequence[float]) -> None:
        self._scorer = scorer
        self._costs = costs
        self._number = 0
        self._key = ''
        self._seconds = 0.0  # of the rounds so far
        self._goes_on = False

    def begin(self, key: str) -> None:
        """Begin a round, which is the same in every run by its key."""
        self._number += 1
        self._key = f'round {key}'
        if not self._goes_on and not self._scorer.is_remembered(self._key):
            self._goes_on = True
            if self._number > 1 or self._scorer.state.seconds:
                self._scorer.on_resumed(self._number, len(self._costs))

    def remember(self, key: str, compute: Callable[[], Any]) -> Any:
        """Return what `compute` returns, as Scorer.remember does; it is a part of the round."""
        return self._scorer.remember(key, lambda: self._timed(compute))

    def seconds_left(self, share: float = 0.0) -> float | None:
        """Return about how long the search takes at most; `share` of this round is done.

        None before anything was measured.
        """
        of_this = self._scorer.state.seconds
        before = sum(self._costs[: self._number - 1])
        known = before + share * self._costs[self._number - 1]
        if not known:
            return None
        unit = (self._seconds + of_this) / known
        return unit * max(0.0, sum(self._costs) - known)

    def end(
        self,
        record: Mapping[str, Any],
        *,
        sparsity: float,
        value: float,
        what: str,
        score: float | None = None,
        removed: int | None = None,
        is_last: bool = False,
    ) -> None:
        """Report the round; `record`: what rounds.jsonl holds of it, besides what all have."""
        scorer, state = self._scorer, self._scorer.state

        def spent() -> dict[str, Any]:
            found = {'seconds': state.seconds, 'token_blocks': state.token_blocks}
            state.begin_round()
            return found

        is_new = not scorer.is_remembered(self._key)
        cost = scorer.remember(self._key, spent)
        self._seconds += cost['seconds']
        done = RoundDone(
            number=self._number,
            most_rounds=len(self._costs),
            removed=removed,
            score=score,
            full_score=float(scorer.full_score),
            sparsity=sparsity,
            seconds=cost['seconds'],
            seconds_left=None if is_last else self.seconds_left(1.0),
            is_new=is_new,
            value=value,
            what=what,
        )
        scorer.on_round(done, {'round': self._number, **record, **cost})

    def _timed(self, compute: Callable[[], Any]) -> Any:
        state, answerer = self._scorer.state, self._scorer.answerer
        started, work = time.monotonic(), answerer.token_blocks
        value = compute()
        state.seconds += time.monotonic() - started
        state.token_blocks += answerer.token_blocks - work
        return value
