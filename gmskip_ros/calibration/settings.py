"""What a calibration or an evaluation has to do, and what it reports while it runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gmskip_ros.calibration.errors import CalibrationError
from gmskip_ros.numbers import percent_hint, score_ratio_problem
from gmskip_ros.skipping import JOINT, KV_POLICIES, OPERATING_POINTS, PHASES, meets_ratio
from gmskip_ros.tasks import DEFAULT_MATCH, PRESENCE, TASK_NAMES, Task, make_task

GENERIC = 'generic'
GIB = 1 << 30


@dataclass(frozen=True)
class TaskSettings:
    """One task as the user configured it; None stands for the task's (or the dataset's) default."""

    name: str  # one of TASK_NAMES, 'presence' or 'generic'
    target: str | None = None  # single_object and presence
    prompt: str | None = None
    labels: tuple[str, ...] | None = None
    match: str = DEFAULT_MATCH  # how answers are read
    max_new_tokens: int | None = None

    def make_task(self, dataset_labels: Sequence[str]) -> Task | None:
        """Return the task with these labels unless it has its own; None for 'generic'.

        Without any labels, they are CODA's. Raises TaskError.
        """
        if self.name == GENERIC:
            return None
        return make_task(
            self.name,
            prompt=self.prompt,
            labels=self.labels or tuple(dataset_labels) or ('coda',),
            max_new_tokens=self.max_new_tokens,
            match=self.match,
        )


def task_settings(
    name: str, joint_tasks: Sequence[str] = TASK_NAMES, **options: Any
) -> list[TaskSettings]:
    """Return the settings of a task, or of all `joint_tasks` for 'joint'."""
    names = joint_tasks if name == JOINT else (name,)
    return [TaskSettings(task_name, **options) for task_name in names]


@dataclass(frozen=True)
class SearchSettings:
    """What determines which blocks a method chooses; make them with `methods.search_settings`.

    A method that removes blocks one at a time stops when the best score falls below
    min_score_ratio x the full model's, at max_sparsity, after `rounds` removals, and when one block
    is left; with stops_at_ratio=False no score stops it, not even a negative one. One that orders
    or chooses blocks without a search may be given `sparsities` in place of these limits: the sizes
    wanted, whatever the score. phases and kv: how the blocks are skipped, see SkipSet. protect: how
    many of the first and of the last blocks stay. `options` are the method's own, by name; missing
    ones have their default.
    """

    method: str = 'gm-skip'  # one of methods.METHODS
    seed: int = 0
    min_score_ratio: float = 1.0
    stops_at_ratio: bool = True
    max_sparsity: float = 0.9
    rounds: int | None = None
    phases: tuple[str, ...] = PHASES
    kv: str = KV_POLICIES[0]
    protect: tuple[int, int] = (0, 0)
    sparsities: tuple[float, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if problem := score_ratio_problem(self.min_score_ratio):
            raise CalibrationError(f'min score ratio {self.min_score_ratio:g} {problem}')
        if not 0 < self.max_sparsity <= 1:
            raise CalibrationError(
                f'max sparsity {self.max_sparsity:g} must be above 0 and at most 1'
                + percent_hint(self.max_sparsity)
            )
        if self.rounds is not None and self.rounds < 1:
            raise CalibrationError(f'rounds {self.rounds} must be 1 or more')
        for sparsity in self.sparsities:
            if not 0 <= sparsity < 1:
                raise CalibrationError(
                    f'sparsity {sparsity:g} must be at least 0 and below 1{percent_hint(sparsity)}'
                )
        if min(self.protect) < 0:
            raise CalibrationError(f'protect {self.protect} must be two numbers of 0 or more')
        if self.kv != KV_POLICIES[0] and self.phases != ('prefill',):
            raise CalibrationError(
                f'kv {self.kv!r} matters only where prefill skips a block that decode runs: set '
                'phases to prefill, or remove it'
            )

    def allows_score(self, score: float, full_score: float) -> bool:
        """Return whether a method that removes blocks one at a time goes on with this score."""
        if self.sparsities or not self.stops_at_ratio:
            return True
        return meets_ratio(score, full_score, self.min_score_ratio)

    def removable(self, num_blocks: int) -> list[int]:
        """Return the blocks that are not protected, ascending. Raises CalibrationError for none."""
        first, last = self.protect
        blocks = list(range(first, num_blocks - last))
        if not blocks:
            raise CalibrationError(
                f'protect {first},{last} leaves none of {num_blocks} blocks: protect fewer'
            )
        return blocks

    def num_removals(self, num_blocks: int) -> int:
        """Return how many blocks may be removed at most; at least one block stays.

        Raises CalibrationError for sparsities that would all take less than one block, and one that
        would take more than may be removed.
        """
        possible = min(len(self.removable(num_blocks)), num_blocks - 1)
        if self.sparsities:
            most = num_skipped(max(self.sparsities), num_blocks)
            if most > possible:
                raise CalibrationError(
                    f'sparsity {max(self.sparsities):g} is {most} of {num_blocks} blocks, and '
                    f'{possible} may be removed: give a smaller one, or protect fewer'
                )
            if most == 0:
                raise less_than_one_block(max(self.sparsities), num_blocks)
            return most
        most = min(num_skipped(self.max_sparsity, num_blocks), possible)
        return most if self.rounds is None else min(most, self.rounds)

    def sizes(self, num_blocks: int) -> list[int]:
        """Return how many blocks the sets to choose have, ascending: `sparsities`, or every size.

        Raises what num_removals raises.
        """
        most = self.num_removals(num_blocks)
        if not self.sparsities:
            return list(range(1, most + 1))
        sizes = {num_skipped(sparsity, num_blocks) for sparsity in self.sparsities}
        return sorted(sizes - {0})


def num_skipped(sparsity: float, num_blocks: int) -> int:
    """Return how many of the blocks a sparsity skips, rounded down."""
    return int(sparsity * num_blocks + 1e-9)  # 0.7 x 10 is a little less than 7


def less_than_one_block(sparsity: float, num_blocks: int) -> CalibrationError:
    """Return the error for a sparsity that skips nothing."""
    return CalibrationError(
        f'sparsity {sparsity:g} of {num_blocks} blocks is less than one block: give a larger one'
    )


@dataclass(frozen=True)
class SharedSettings:
    """What calibration and evaluation both need; None is the task's or the dataset's default."""

    task: str  # one of TASK_NAMES, 'presence', 'generic' or 'joint'
    joint_tasks: tuple[str, ...] = TASK_NAMES  # those of 'joint'
    target: str | None = None
    metric: str | None = None
    prompt: str | None = None
    labels: tuple[str, ...] | None = None
    match: str = DEFAULT_MATCH  # how answers are read
    max_new_tokens: int | None = None
    images: int = 1000
    seed: int = 0
    batch_size: int = 256
    memory_gib: float = 4.0
    latency_images: int = 8
    command: str = ''

    @property
    def memory_bytes(self) -> int:
        """Memory for image features; as much again for a batch, and for kept log-probabilities."""
        return int(self.memory_gib * GIB)

    @property
    def used_match(self) -> str | None:
        """How answers are read; None for tasks whose scores do not depend on it."""
        return None if self.task in (GENERIC, 'captioning', PRESENCE) else self.match

    def tasks(self) -> list[TaskSettings]:
        """Return the settings of the task, or of each task of a joint run."""
        return task_settings(
            self.task,
            self.joint_tasks,
            target=self.target,
            prompt=self.prompt,
            labels=self.labels,
            match=self.match,
            max_new_tokens=self.max_new_tokens,
        )


@dataclass(frozen=True)
class CalibrationSettings(SharedSettings):
    """One calibration."""

    test_images: int | None = None  # None: as many as `images`
    search: SearchSettings = field(default_factory=SearchSettings)
    exhaustive: bool = False
    force: bool = False  # search although the score cannot guide it


@dataclass(frozen=True)
class EvaluationSettings(SharedSettings):
    """One evaluation: at which operating points, beside which of Skip-MLLM's fixed intervals."""

    operating_points: tuple[str, ...] = OPERATING_POINTS
    intervals: tuple[int, ...] | None = None  # None: the paper's that fit the model


@dataclass(frozen=True)
class CompareSettings(SharedSettings):
    """One comparison. None: the method's own phases and protected blocks, as many test images."""

    methods: tuple[str, ...] = ()
    sparsities: tuple[float, ...] = ()
    phases: tuple[str, ...] | None = None
    kv: str = KV_POLICIES[0]
    protect: tuple[int, int] | None = None
    num_seeds: int = 1
    test_images: int | None = None
    latency_rounds: int = 3
    force: bool = False  # search although the score cannot guide it
    method_options: Mapping[str, Any] = field(default_factory=dict)  # for those that have them

    def sizes(self, num_blocks: int) -> dict[int, float]:
        """Return the smallest sparsity asked for of each number of blocks that they make."""
        sizes: dict[int, float] = {}
        for sparsity in sorted(self.sparsities):
            sizes.setdefault(min(num_skipped(sparsity, num_blocks), num_blocks - 1), sparsity)
        sizes.pop(0, None)  # the full model, which is measured anyway
        if not sizes:
            raise less_than_one_block(max(self.sparsities, default=0), num_blocks)
        return sizes


@dataclass(frozen=True)
class Progress:
    """Answers known of those that this round may need, and the best candidate so far."""

    round: int  # 0: the full model
    most_rounds: int
    candidates: int  # not pruned yet
    done: int
    total: int
    best_block: int | None
    best_score: float | None
    seconds_left: float | None = None  # of the whole search at most, by what it took so far


@dataclass(frozen=True)
class RoundDone:
    """One finished round: what it removed (None: every score was too low), and what is left.

    A method that compares something other than the task's score has it as `value`, and may not know
    the score; one that removes no block says in words `what` the round found.
    """

    number: int
    most_rounds: int
    removed: int | None
    score: float | None
    full_score: float
    sparsity: float  # after it
    seconds: float | None  # None: an older version did not measure them
    seconds_left: float | None  # of the whole search at most; None once it is over
    is_new: bool  # not taken over from an earlier run
    value: float | None = None
    what: str = ''


class Listener:
    """Receives the progress of a calibration or evaluation; does nothing by itself."""

    def begin(self, target: str | None, seed: int | None) -> None:
        """A search begins; `target` and `seed` are None where there is only one."""

    def note(self, line: str) -> None:
        """A line that the user should read."""

    def pictures(self, done: int, total: int) -> None:
        """Images encoded so far."""

    def search(self, progress: Progress) -> None:
        """How far the search is."""

    def resumed(self, number: int, most_rounds: int) -> None:
        """A search goes on in this round, from what an earlier run has found."""

    def round_done(self, done: RoundDone) -> None:
        """A round is finished, or known from an earlier run; only in the first process."""

    def full_score(self, score: float) -> None:
        """The full model's score, before any block is removed; only in the first process."""

    def evaluations(self, done: int, total: int) -> None:
        """Skip sets measured so far on the test images."""

    def timings(self, done: int, total: int) -> None:
        """Answers timed so far."""
