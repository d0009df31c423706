"""Which prefix of each skip list fits a latency budget, from the times of the frames themselves.

The budget is for all tasks of the skip branch, from taking a frame to its last answer. The choices
are a ladder: the best scores first, then rung by rung less work, within the operating point. The
first rung is taken that the recent frames say fits.

A phase is taken to cost its time per block and token, times the blocks that run. What it costs
apart from its blocks makes a slower rung look slower than it is, so that a rung which had to be
left as too slow is not taken again until frames have become faster.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from gmskip_ros.skipping import SkipList, SkipSet

HIGH_SPARSITY = 'high_sparsity'
# Of a block in prefill that only text tokens run, or, as in the last one, only the last token: the
# others are projected to keys and values. A first estimate: the rung that is used is measured.
PARTIAL_BLOCK_WORK = 0.25

UNMEASURED = 2  # frames after a start or a change: the first ones at new shapes are the slowest
MIN_FRAMES = 5  # measured since the last change, before a faster rung is taken
HOLD_FRAMES = 20  # the same, before a slower rung is taken (after a start: MIN_FRAMES)
MAX_HOLD_FRAMES = 640  # the same, after slower rungs that proved too slow
COST_WINDOW = 10  # frames whose median is the cost
LENGTH_WINDOW = 50  # frames from whose answers the length of the next is taken
LENGTH_QUANTILE = 0.9  # of these answers, as many are no longer than what is planned for
MARGIN = 0.1  # a slower rung must leave this share of the budget free
MARGIN_OF_LAST = 0.05  # the last rung, where nothing fitted and the fallback does less work


@dataclass(frozen=True)
class Work:
    """How many blocks run in each phase, above 0 to num_blocks."""

    prefill: float
    decode: float

    @classmethod
    def of(cls, skip_set: SkipSet, num_blocks: int) -> Work:
        """Return the work that a skip set leaves."""
        num_partial = min(len(skip_set.image) + 1, num_blocks - len(skip_set.prefill))
        prefill = num_blocks - len(skip_set.prefill) - num_partial * (1.0 - PARTIAL_BLOCK_WORK)
        return cls(prefill, float(num_blocks - len(skip_set.decode)))


@dataclass(frozen=True)
class Rung:
    """One choice for the frame: per task the operating point of its skip list, and the work."""

    points: tuple[str | int, ...]  # a number of blocks; where nothing fits also 'high_sparsity'
    work: tuple[Work, ...]


@dataclass(frozen=True)
class Ladder:
    """The choices, best scores first, and what is used if none of them fits."""

    rungs: tuple[Rung, ...]
    fallback: Rung


@dataclass(frozen=True)
class TaskTimes:
    """The measured times of one answer, and its length."""

    prefill_ms: float
    decode_ms: float
    tokens: int


@dataclass(frozen=True)
class FrameTimes:
    """The measured times of one frame's skip branch.

    total_ms: from taking the frame to the last answer, image decoding and features included.
    """

    total_ms: float
    tasks: tuple[TaskTimes, ...]


def make_ladder(
    skip_lists: Sequence[SkipList | None], operating_point: str | int, num_blocks: int
) -> Ladder:
    """Return the choices for these tasks' skip lists (None: the task has none), up to that point.

    Of one list: its best-scoring prefix (ties: the longer), then the best-scoring of the longer
    ones, and so on; without scores every prefix, the shortest first. Of several: they give way in
    turn, each time the one whose next prefix keeps the larger share of its full score; a list that
    several tasks have, such as a joint one, gives way for all of them. A prefix without a score
    counts as keeping the share of blocks that it keeps. Lists that are not nested give their sets
    in place of prefixes.
    """
    lists: list[SkipList | None] = []
    for skip_list in skip_lists:
        if skip_list not in lists:
            lists.append(skip_list)
    which = [lists.index(skip_list) for skip_list in skip_lists]  # by task
    fronts = [_front(skip_list, operating_point) for skip_list in lists]
    chosen = [0] * len(fronts)
    rungs = []
    while True:
        points = [fronts[i][chosen[i]] for i in which]
        rungs.append(_rung(skip_lists, points, num_blocks))
        steps = [
            (_kept(lists[i], fronts[i][place + 1], num_blocks), -i)
            for i, place in enumerate(chosen)
            if place + 1 < len(fronts[i])
        ]
        if not steps:
            break
        chosen[-max(steps)[1]] += 1
    last = [_least_work(lists[i], fronts[i][-1], num_blocks) for i in which]
    return Ladder(tuple(rungs), _rung(skip_lists, last, num_blocks))


def _least_work(skip_list: SkipList | None, longest: int, num_blocks: int) -> str | int:
    """Return high_sparsity or the longest prefix allowed, whichever leaves less work."""
    if skip_list is None or HIGH_SPARSITY not in _operating_points(skip_list):
        return longest
    work = [Work.of(skip_list.skip_set_at(point), num_blocks) for point in (HIGH_SPARSITY, longest)]
    sparse, bound = (each.prefill + each.decode for each in work)
    return HIGH_SPARSITY if sparse <= bound else longest


def _rung(
    skip_lists: Sequence[SkipList | None], points: Sequence[str | int], num_blocks: int
) -> Rung:
    skip_sets = [
        SkipSet() if skip_list is None else skip_list.skip_set_at(point)
        for skip_list, point in zip(skip_lists, points, strict=True)
    ]
    return Rung(tuple(points), tuple(Work.of(skip_set, num_blocks) for skip_set in skip_sets))


def _operating_points(skip_list: SkipList | None) -> dict[str, int]:
    return {} if skip_list is None else dict(skip_list.operating_points or {})


def _front(skip_list: SkipList | None, operating_point: str | int) -> list[int]:
    """Return the lengths that are worth choosing, ascending; each is the best of those up to it."""
    if skip_list is None:
        return [0]
    longest = int(_operating_points(skip_list).get(str(operating_point), operating_point))
    sizes = range(len(skip_list.removed) + 1) if skip_list.nested else [0, *skip_list.sets]
    lengths = sorted(size for size in sizes if size <= longest)
    scores = _scores(skip_list)
    if not scores:
        return lengths
    front: list[int] = []
    for length in reversed(lengths):
        if not front or scores[length] > scores[front[-1]]:
            front.append(length)
    return front[::-1]


def _scores(skip_list: SkipList) -> dict[int, float]:
    """Return the scores by length, 0 included; empty if the list states none."""
    if not skip_list.nested:
        scores = dict(skip_list.set_scores)
    else:
        scores = {
            length: removal.score
            for length, removal in enumerate(skip_list.removed, start=1)
            if removal.score is not None
        }
    if scores and skip_list.full_score is not None:
        scores[0] = skip_list.full_score
    return scores


def _kept(skip_list: SkipList | None, length: int, num_blocks: int) -> float:
    """Return the share of the full score that a prefix keeps; without scores, of the blocks."""
    scores = {} if skip_list is None else _scores(skip_list)
    if not scores:
        return 1.0 - length / num_blocks
    return scores[length] / scores[0] if scores[0] > 0 else 1.0 + scores[length] - scores[0]


class LatencyBudget:
    """Chooses the rung of the next frame from the times of those before it.

    Too slow by the median of the recent frames: the first faster rung that fits, or the fallback.
    Otherwise it stays, until by that median a slower rung would fit with MARGIN to spare (the last
    one, after the fallback: MARGIN_OF_LAST), HOLD_FRAMES after the last change at the earliest; if
    that one proves too slow after all, the next attempt waits twice as long. Before anything is
    measured the last rung is used: the operating point itself.

    One thread calls the methods; `facts` is for any thread.
    """

    def __init__(self) -> None:
        self._limit_ms = 0.0
        self._ladder: Ladder | None = None
        self._choices: tuple[Rung, ...] = ()  # the rungs, then the fallback
        self._index = 0
        self._lengths: deque[tuple[int, ...]] = deque(maxlen=LENGTH_WINDOW)
        self._recent: deque[FrameTimes] = deque(maxlen=COST_WINDOW)
        self._unmeasured = UNMEASURED  # frames that are not to be measured
        self._measured = 0  # frames since the last change
        self._hold = MIN_FRAMES  # how many of these before a slower rung may be taken
        self._next_hold = HOLD_FRAMES  # what `_hold` becomes with the next change
        self._is_raised = False  # the last change was to a slower rung
        self._is_unmet = False
        self._expected_ms = math.nan
        self._num_over = self._num_unmet = 0

    @property
    def rung(self) -> Rung | None:
        """What the next frame is answered with; None: no budget is set."""
        return self._choices[self._index] if self._choices else None

    @property
    def limit_ms(self) -> float:
        """The budget; 0 = none."""
        return self._limit_ms

    @property
    def is_unmet(self) -> bool:
        """Whether nothing fits, as far as is measured, so that the fallback is used."""
        return self._is_unmet

    @property
    def expected_ms(self) -> float:
        """The frame's time as expected with the rung in use; NaN until enough is measured."""
        return self._expected_ms

    def facts(self) -> dict[str, object]:
        """Return the keys of /diagnostics."""
        return {
            'latency_budget_ms': self._limit_ms,
            'budget_expected_ms': self._expected_ms,
            'over_budget': self._num_over,
            'budget_unmet': self._num_unmet,
        }

    def use(self, limit_ms: float, ladder: Ladder | None) -> None:
        """Apply parameters from the next frame on; a limit of 0 or no ladder: no budget.

        With the same ladder, the rung in use and what was measured stay.
        """
        if limit_ms <= 0 or ladder is None:
            self._limit_ms, self._ladder, self._choices = limit_ms, None, ()
            self._expected_ms, self._is_unmet = math.nan, False
            return
        if ladder != self._ladder:
            self._ladder = ladder
            self._choices = (*ladder.rungs, ladder.fallback)
            self._expected_ms, self._is_unmet = math.nan, False
            self._lengths.clear()
            self._take(len(ladder.rungs) - 1)
        elif limit_ms == self._limit_ms:
            return
        self._limit_ms = limit_ms
        self._hold, self._next_hold = MIN_FRAMES, HOLD_FRAMES
        self._is_raised = False

    def restart(self) -> None:
        """Measure anew, as after a pause; the rung stays."""
        self._recent.clear()
        self._unmeasured = UNMEASURED
        self._measured = 0
        self._expected_ms = math.nan

    def note(self, times: FrameTimes) -> None:
        """Count a frame that was answered with `rung`, and choose the rung of the next one."""
        if not self._choices:
            return
        self._num_over += times.total_ms > self._limit_ms
        self._num_unmet += self._is_unmet
        self._lengths.append(tuple(task.tokens for task in times.tasks))
        if self._unmeasured:
            self._unmeasured -= 1
            return
        self._recent.append(times)
        self._measured += 1
        if self._measured < MIN_FRAMES:
            return
        expected = self._expect()
        target = self._target(expected)
        if target != self._index:
            self._move(target)
        self._expected_ms = expected[target]
        self._is_unmet = target == self._fallback and min(expected[:target]) > self._limit_ms

    def _target(self, expected: Sequence[float]) -> int:
        """Return the index of the choice to take, given the expected time of each."""
        if expected[self._index] > self._limit_ms and self._index != self._fallback:
            faster = range(self._index + 1, self._fallback)
            return next((i for i in faster if expected[i] <= self._limit_ms), self._fallback)
        if self._measured < self._hold:
            return self._index
        last = self._fallback - 1
        saves_work = self._choices[last].work != self._choices[self._fallback].work
        for index in range(self._index):
            margin = MARGIN_OF_LAST if index == last and saves_work else MARGIN
            if expected[index] <= self._limit_ms * (1.0 - margin):
                return index
        return self._index

    @property
    def _fallback(self) -> int:
        return len(self._choices) - 1

    def _move(self, index: int) -> None:
        is_raise = index < self._index
        if not is_raise and self._is_raised:  # did it stay for as long as it had waited?
            is_undone = self._measured < self._hold
            twice = min(2 * self._hold, MAX_HOLD_FRAMES)
            self._next_hold = twice if is_undone else HOLD_FRAMES
        self._is_raised = is_raise
        self._hold = self._next_hold
        self._take(index)

    def _take(self, index: int) -> None:
        self._index = index
        self.restart()

    def _expect(self) -> list[float]:
        """Return the time of a frame with each choice, ms, as the recent frames say."""
        used = self._choices[self._index].work
        other_ms = statistics.median(
            max(0.0, each.total_ms - sum(t.prefill_ms + t.decode_ms for t in each.tasks))
            for each in self._recent
        )
        expected = [other_ms] * len(self._choices)
        for i, work in enumerate(used):
            answers = [each.tasks[i] for each in self._recent]
            prefill_ms = statistics.median(a.prefill_ms / work.prefill for a in answers)
            token_ms = statistics.median(
                a.decode_ms / (work.decode * max(1, a.tokens)) for a in answers
            )
            decode_ms = token_ms * self._length(i)
            for index, choice in enumerate(self._choices):
                expected[index] += (
                    prefill_ms * choice.work[i].prefill + decode_ms * choice.work[i].decode
                )
        return expected

    def _length(self, task: int) -> int:
        """Return the length of a task's answers that is planned for, tokens."""
        lengths = sorted(max(1, each[task]) for each in self._lengths)
        return lengths[math.ceil(LENGTH_QUANTILE * len(lengths)) - 1]
