"""What a search has found so far (rounds, scores, answers), and what it chose in the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gmskip_ros.tasks.scoring import Score

FULL = -1  # the candidate that skips no further block


@dataclass(frozen=True)
class Cell:
    """The score without one block; an upper bound of it where the candidate was pruned."""

    block: int
    score: Score
    is_exact: bool


@dataclass(frozen=True)
class Round:
    """One round: the block removed, the score without it, and every candidate's.

    Where the search stopped, the block is None and the score is the best cell's, which may be an
    upper bound.
    """

    removed: int | None
    score: Score
    cells: tuple[Cell, ...]
    seconds: float
    token_blocks: int


@dataclass(frozen=True)
class ScoredAnswer:
    """One answer: what it adds to the score, and its tokens."""

    contribution: Score
    token_ids: tuple[int, ...]


@dataclass
class SearchState:
    """All that a search needs to resume; saved as a checkpoint."""

    full: list[ScoredAnswer] = field(default_factory=list)  # per item; empty before the full model
    trunk: list[ScoredAnswer] = field(default_factory=list)  # per item, without removed blocks
    rounds: list[Round] = field(default_factory=list)
    estimates: dict[int, Score] = field(default_factory=dict)  # last known score, per block
    shortfall: list[float] = field(default_factory=list)  # per item, of round 1's candidates
    # This round's answers: candidate (or FULL) -> item -> answer.
    answered: dict[int, dict[int, ScoredAnswer]] = field(default_factory=dict)
    seconds: float = 0.0  # spent on this round so far
    token_blocks: int = 0
    stopped_by: str | None = None

    @property
    def removed(self) -> list[int]:
        """The blocks removed so far, in order."""
        return [done.removed for done in self.rounds if done.removed is not None]

    def begin_round(self) -> None:
        """Forget the answers of the round before."""
        self.answered = {}
        self.seconds, self.token_blocks = 0.0, 0

    def learn(self, cells: Sequence[Cell]) -> None:
        """Keep what a round says about each candidate: its score, or a bound below what is kept."""
        for cell in cells:
            if cell.is_exact or cell.score < self.estimates.get(cell.block, float('inf')):
                self.estimates[cell.block] = cell.score

    def reopen(self) -> None:
        """Take back the round in which every score was too low: a lower ratio asks it again."""
        if self.rounds and self.rounds[-1].removed is None:
            self.rounds.pop()
            self.estimates = {}
            for done in self.rounds:
                self.learn(done.cells)
            self.begin_round()
        self.stopped_by = None


@dataclass(frozen=True)
class ScoredSet:
    """A skip set and its score on the calibration images."""

    blocks: tuple[int, ...]
    score: float


@dataclass(frozen=True)
class ChosenSets:
    """What a method chose: skip sets in ascending size, the empty one first.

    nested: each set is the one before it with one block appended. ranking: every block with the
    value that ordered them, the first to remove first; for methods that rank. objective: what was
    compared instead of the task's score, with its values, as JSON values. warnings: a line each.
    """

    sets: tuple[ScoredSet, ...]
    nested: bool
    stopped_by: str
    ranking: tuple[tuple[int, float], ...] | None = None
    objective: Mapping[str, Any] | None = None
    warnings: tuple[str, ...] = ()


def warn_of_ties(tied: Sequence[int], pruned: Sequence[int] = ()) -> list[str]:
    """Return a line if there are rounds, by number, in which every candidate scored the same.

    pruned: further rounds in which every candidate may have, as far as it was asked.
    """
    if not tied:
        return []
    line = f'{_name_rounds(tied)}: every candidate scored the same'
    if pruned:
        line += f' (and in {_name_rounds(pruned)} none was found worse before it was pruned)'
    return [
        f'{line}, so the answers do not tell which block to remove: use longer answers, more '
        'images or different phases'
    ]


def _name_rounds(numbers: Sequence[int]) -> str:
    return f'round{"s" if len(numbers) > 1 else ""} {", ".join(map(str, numbers))}'


def round_record(number: int, done: Round) -> dict[str, Any]:
    """Return a round as JSON values."""
    return {
        'round': number,
        'removed': done.removed,
        'score': float(done.score),
        'seconds': done.seconds,
        'token_blocks': done.token_blocks,
        'cells': [
            {'block': cell.block, 'score': float(cell.score), 'exact': cell.is_exact}
            for cell in done.cells
        ],
    }
