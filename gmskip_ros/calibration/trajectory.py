"""What a search has found so far: rounds, scores, answers."""

from __future__ import annotations

from dataclasses import dataclass, field

from gmskip_ros.tasks.scoring import Score

FULL = -1  # the candidate that leaves nothing out


@dataclass(frozen=True)
class Cell:
    """The score without one block; an upper bound of it, where the block was given up."""

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
class Known:
    """What is known of one answer: what it adds to the score, and its tokens."""

    contribution: Score
    token_ids: tuple[int, ...]


@dataclass
class SearchState:
    """All that a search needs to go on; saved as a checkpoint."""

    full: list[Known] = field(default_factory=list)  # per item; empty before the full model ran
    trunk: list[Known] = field(default_factory=list)  # per item, without the blocks removed so far
    rounds: list[Round] = field(default_factory=list)
    estimates: dict[int, Score] = field(default_factory=dict)  # last known score, per block
    shortfall: list[float] = field(default_factory=list)  # per item, of round 1's candidates
    # What is known in this round: candidate (or FULL) -> item -> answer.
    answered: dict[int, dict[int, Known]] = field(default_factory=dict)
    seconds: float = 0.0  # spent on this round so far
    token_blocks: int = 0
    stopped_by: str | None = None

    @property
    def removed(self) -> list[int]:
        """The blocks removed so far, in order."""
        return [one.removed for one in self.rounds if one.removed is not None]
