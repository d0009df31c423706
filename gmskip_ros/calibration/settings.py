"""What a calibration is asked to do, and what it reports on the way."""

from __future__ import annotations

from dataclasses import dataclass, field

from gmskip_ros.calibration.errors import CalibrationError
from gmskip_ros.calibration.questions import TaskSettings, task_settings

METHODS = ('gm-skip', 'one-shot', 'positional', 'random')
TIE_ORDERS = ('backward', 'forward')  # of equally good blocks the deepest goes, or the shallowest
STARTS = ('0', '2', 'end')  # of positional deletion: the paper's Figure 3


@dataclass(frozen=True)
class SearchSettings:
    """What defines a search's result.

    method: 'gm-skip'; 'one-shot' (blocks in the order of round 1's scores); 'positional' (from
    `start` on, in the order of the blocks; 'end': backwards); 'random' (by `seed`). The search
    stops when the best score falls below min_score_ratio x the full model's, at max_sparsity, after
    `rounds`, and with one block left.
    """

    method: str = 'gm-skip'
    tie_order: str = 'backward'
    start: str = '0'
    seed: int = 0
    min_score_ratio: float = 1.0
    max_sparsity: float = 0.9
    rounds: int | None = None
    abandon: bool = True

    def __post_init__(self) -> None:
        for name, value, known in (
            ('method', self.method, METHODS),
            ('tie order', self.tie_order, TIE_ORDERS),
            ('start', self.start, STARTS),
        ):
            if value not in known:
                raise CalibrationError(f'{name} {value!r} is unknown: use {", ".join(known)}')
        if not 0 <= self.min_score_ratio < float('inf'):
            raise CalibrationError(f'min score ratio {self.min_score_ratio} must be 0 or more')
        if not 0 < self.max_sparsity <= 1:
            raise CalibrationError(
                f'max sparsity {self.max_sparsity} must be above 0 and at most 1'
            )
        if self.rounds is not None and self.rounds < 1:
            raise CalibrationError(f'rounds {self.rounds} must be 1 or more')

    def num_removals(self, num_blocks: int) -> int:
        """Return how many blocks may be removed at most; at least one block stays."""
        # 0.7 x 10 is a little less than 7 in floating point.
        most = min(int(self.max_sparsity * num_blocks + 1e-9), num_blocks - 1)
        return most if self.rounds is None else min(most, self.rounds)


@dataclass(frozen=True)
class Progress:
    """How far a search is: answers known of those that this round may need, and the best so far."""

    round: int  # 0: the full model
    most_rounds: int
    candidates: int  # still in the race
    done: int
    total: int
    best_block: int | None
    best_score: float | None


@dataclass(frozen=True)
class CalibrationSettings:
    """What a user asks of one calibration. None stands for the task's or the dataset's own."""

    task: str  # one of TASK_NAMES, 'generic' or 'joint'
    target: str | None = None
    metric: str | None = None
    prompt: str | None = None
    labels: tuple[str, ...] | None = None
    synonyms: bool = False
    max_new_tokens: int | None = None
    images: int = 1000
    test_images: int | None = None  # None: as many as `images`
    seed: int = 0
    search: SearchSettings = field(default_factory=SearchSettings)
    intervals: tuple[int, ...] = ()  # fixed intervals instead of a search
    exhaustive: bool = False
    batch_size: int = 256
    memory_gib: float = 4.0
    latency_images: int = 8
    command: str = ''

    def tasks(self) -> list[TaskSettings]:
        """Return the settings of the task, or of each task of a joint calibration."""
        return task_settings(
            self.task,
            target=self.target,
            prompt=self.prompt,
            labels=self.labels,
            synonyms=self.synonyms,
            max_new_tokens=self.max_new_tokens,
        )


class Listener:
    """Told how far a calibration is; does nothing by itself."""

    def pictures(self, done: int, total: int) -> None:
        """Pictures encoded so far."""

    def search(self, progress: Progress) -> None:
        """How far the search is."""

    def full_score(self, score: float) -> None:
        """The full model's score, before any block goes; told to the first process's only."""

    def evaluations(self, done: int, total: int) -> None:
        """Skip sets measured so far on the test pictures."""
