"""Rounds of the methods that compare something other than the task's score: time, record, report.

Their values are remembered one by one, so a resumed run goes through its rounds again, in no time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from gmskip_ros.calibration.scoring import Scorer
from gmskip_ros.calibration.settings import RoundDone

T = TypeVar('T')


class MeasuredRounds:
    """Times a method's rounds and reports each; the time of an interrupted one is kept as well.

    `costs`: of every round that there may be, in any unit, for the time left. Rounds that an older
    version measured have no time.
    """

    def __init__(self, scorer: Scorer, costs: Sequence[float]) -> None:
        self._scorer = scorer
        self._costs = list(costs)
        self.number = 0
        self._key = ''
        self._seconds, self._cost = 0.0, 0.0  # of the finished rounds whose time is known
        self._running_since: float | None = None
        self._goes_on = False

    @property
    def most_rounds(self) -> int:
        """How many rounds there may be."""
        return len(self._costs)

    def begin(self, key: str) -> None:
        """Begin a round, which is the same in every run by its key."""
        self.number += 1
        self._key = f'round {key}'
        if not self._goes_on and not self._scorer.is_remembered(self._key):
            self._goes_on = True
            if self.number > 1 or self._scorer.state.seconds:
                self._scorer.on_resumed(self.number, self.most_rounds)

    def remember(self, key: str, compute: Callable[[], Any]) -> Any:
        """Return what `compute` returns, as Scorer.remember does; it is a part of the round."""
        return self._scorer.remember(key, lambda: self.timed(compute))

    def leave_out(self, count: int) -> None:
        """Do without the `count` rounds after this one."""
        del self._costs[self.number : self.number + count]

    def seconds_left(self, share: float = 0.0) -> float | None:
        """Return about how long the search takes at most; `share` of this round is done.

        None before anything was measured.
        """
        cost, seconds = self._costs[self.number - 1], self._scorer.state.seconds
        if self._running_since is not None:
            seconds += time.monotonic() - self._running_since
        if share > 0:
            return self._left(seconds, share * cost, (1 - share) * cost)
        left = self._left(0.0, 0.0, cost)
        return None if left is None else max(0.0, left - seconds)

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
            is_measured = found['token_blocks'] > 0  # else all was remembered
            return found if is_measured else dict.fromkeys(found)

        is_known = scorer.is_remembered(self._key)
        spent_on_it = scorer.remember(self._key, spent)
        seconds = spent_on_it['seconds']
        if seconds is not None:
            self._seconds += seconds
            self._cost += self._costs[self.number - 1]
        is_last = is_last or self.number == self.most_rounds
        done = RoundDone(
            number=self.number,
            most_rounds=self.most_rounds,
            removed=removed,
            score=score,
            full_score=float(scorer.full_score),
            sparsity=sparsity,
            seconds=seconds,
            seconds_left=None if is_last else self._left(0.0, 0.0, 0.0),
            is_new=not is_known and seconds is not None,
            value=value,
            what=what,
        )
        scorer.on_round(done, {'round': self.number, **record, **spent_on_it})

    def timed(self, compute: Callable[[], T]) -> T:
        """Return what `compute` returns; its time is a part of the round."""
        state, answerer = self._scorer.state, self._scorer.answerer
        started, work = time.monotonic(), answerer.token_blocks
        self._running_since = started
        value = compute()
        self._running_since = None
        state.seconds += time.monotonic() - started
        state.token_blocks += answerer.token_blocks - work
        return value

    def _left(self, seconds: float, cost: float, cost_left: float) -> float | None:
        """Return the time left, if `cost` of this round took `seconds` and `cost_left` remains."""
        seconds, cost = self._seconds + seconds, self._cost + cost
        if not seconds or not cost:
            return None
        return seconds / cost * (cost_left + sum(self._costs[self.number :]))
