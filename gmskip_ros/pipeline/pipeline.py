"""One RGB frame through both branches: encode once, skip branch, full branch, comparison.

Nothing here imports ROS or waits for frames: the node and the offline replay run the same code.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from gmskip_ros.pipeline.confidence import FirstTokens, first_tokens, margin
from gmskip_ros.skipping import SkipList
from gmskip_ros.tasks import Agreement, ParsedAnswer, Task
from gmskip_ros.vlm import SkipSet, VlmOutOfMemoryError
from gmskip_ros.vlm.engine import settings_in_use

if TYPE_CHECKING:
    from gmskip_ros.vlm import Answer, Engine, ImageFeatures

QUESTION = 'question'  # the task that is asked live, on ~/input/question
BRANCHES = ('skip', 'full')  # in the order in which they run
WARM_UP_SHAPE = (480, 640, 3)
Result = TypeVar('Result')


@dataclass(frozen=True)
class TaskPlan:
    """One task and the blocks that the skip branch skips for it."""

    task: Task
    skip_set: SkipSet
    removed_blocks: tuple[int, ...]  # skipped in any phase, in their order of removal
    operating_point: str  # 'high_performance', 'high_sparsity' or a number of blocks
    first_tokens: FirstTokens | None = None  # of the labels, where the answer is one of them


@dataclass(frozen=True)
class FramePlan:
    """What to do with each frame; made once, used until a parameter changes."""

    tasks: tuple[TaskPlan, ...]
    branches: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    caption_agreement: float = 1.0  # the least ROUGE-L of captions that agree; 1.0: equal tokens

    @property
    def schedule(self) -> str:
        """'skip_then_full', 'skip_only' or 'full_only'."""
        if len(self.branches) == 1:
            return f'{self.branches[0]}_only'
        return '_then_'.join(self.branches)


@dataclass(frozen=True)
class TaskResult:
    """One branch's answer to one task."""

    task: str
    branch: str
    parsed: ParsedAnswer
    answer: Answer
    removed_blocks: tuple[int, ...]
    operating_point: str
    num_blocks: int
    image_fit: str  # how the frame became the model's square
    image_tokens: int  # that the frame makes
    match: str  # how the answer was read
    confidence_margin: float | None = None  # to the best other label; see confidence.py
    question: str = ''  # that was asked about the frame; '' for the tasks of every frame

    @property
    def sparsity(self) -> float:
        return len(self.removed_blocks) / self.num_blocks


@dataclass(frozen=True)
class BranchResult:
    """One branch's answers to all tasks on one frame.

    `elapsed_ms` is the time that the branch takes on its own: it includes what the branches share
    (preprocessing and vision features), but not the time spent on the other branch.
    """

    branch: str
    schedule: str
    tasks: tuple[TaskResult, ...]
    elapsed_ms: float

    @property
    def is_question(self) -> bool:
        """Return whether this answers a question, and not the tasks of every frame."""
        return any(task.question for task in self.tasks)


@dataclass(frozen=True)
class TaskComparison:
    """Both branches' answers to one task on one frame, and whether they agree."""

    skip: TaskResult
    full: TaskResult
    agreement: Agreement

    @property
    def speedup(self) -> float:
        """`total_ms` of full / `total_ms` of skip."""
        return self.full.answer.timing.total_ms / max(self.skip.answer.timing.total_ms, 1e-9)


@dataclass(frozen=True)
class Comparison:
    """Both branches on one frame."""

    tasks: tuple[TaskComparison, ...]


def plan_frame(
    engine: Engine,
    tasks: Sequence[Task],
    skip_lists: Mapping[str, SkipList],
    operating_point: str | int = 'high_performance',
    branches: Sequence[str] = BRANCHES,
    caption_agreement: float = 1.0,
) -> FramePlan:
    """Return the plan for these tasks and this model.

    A task without a skip list gets an empty skip set and a warning. Raises SkipListMismatchError
    if a list was made for a different number of blocks, SkipListError for an operating point that
    a list does not have.
    """
    plans = []
    warnings = list(engine.warnings)
    for task in tasks:
        first = first_tokens(engine, task.labels) if task.name == 'single_object' else None
        skip_list = skip_lists.get(task.name) if 'skip' in branches else None
        if skip_list is None:
            plans.append(TaskPlan(task, SkipSet(), (), '0', first))
            if 'skip' in branches:
                warnings.append(f'{task.name} has no skip list: its skip branch skips nothing')
            continue
        warnings += skip_list.warnings_for(
            **settings_in_use(engine),
            prompt=task.prompt,
            max_new_tokens=task.max_new_tokens,
            task=task.name,
            match=task.match,
        )
        skip_set = skip_list.skip_set_at(operating_point)
        blocks = skip_list.blocks_at(operating_point)
        plans.append(TaskPlan(task, skip_set, blocks, str(operating_point), first))
    ordered = tuple(branch for branch in BRANCHES if branch in branches)
    return FramePlan(tuple(plans), ordered, tuple(warnings), caption_agreement)


def plan_at(
    plan: FramePlan, skip_lists: Mapping[str, SkipList], points: Sequence[str | int]
) -> FramePlan:
    """Return the plan with an operating point per task in place of one for all.

    A task without a skip list stays as it is. Raises SkipListError as `plan_frame` does.
    """
    tasks = []
    for task_plan, point in zip(plan.tasks, points, strict=True):
        skip_list = skip_lists.get(task_plan.task.name)
        if skip_list is not None:
            task_plan = replace(
                task_plan,
                skip_set=skip_list.skip_set_at(point),
                removed_blocks=skip_list.blocks_at(point),
                operating_point=str(point),
            )
        tasks.append(task_plan)
    return replace(plan, tasks=tuple(tasks))


@dataclass(frozen=True)
class EncodedFrame:
    """What all answers about one frame share, and the time it took to compute."""

    features: ImageFeatures
    encode_ms: float


class FramePipeline:
    """Takes frames through a model according to a plan."""

    def __init__(self, engine: Engine, plan: FramePlan) -> None:
        self.engine = engine
        self.plan = plan

    def run(
        self, rgb: np.ndarray, should_stop: Callable[[str], bool] | None = None
    ) -> Iterator[BranchResult | Comparison]:
        """Yield each branch's result as soon as it exists, then, if both ran, their comparison.

        `rgb` is uint8, (H, W, 3). `should_stop(branch)` is called at every block and token of that
        branch; once it returns True, vlm.Stopped is raised and nothing more is yielded.
        """
        frame = self.encode(rgb)
        results: dict[str, BranchResult] = {}
        for branch in self.plan.branches:
            results[branch] = self.answer(frame, branch, should_stop)
            yield results[branch]
        if len(results) == len(BRANCHES):
            yield self.compare(results['skip'], results['full'])

    def encode(self, rgb: np.ndarray) -> EncodedFrame:
        """Return what all branches share; `rgb` is uint8, (H, W, 3)."""
        start = time.perf_counter()
        features = self._with_memory(lambda: self.engine.encode(rgb))
        return EncodedFrame(features, _ms_since(start))

    def answer(
        self,
        frame: EncodedFrame,
        branch: str,
        should_stop: Callable[[str], bool] | None = None,
    ) -> BranchResult:
        """Return one branch's answers to all tasks; for `should_stop` see `run`."""
        start = time.perf_counter()
        tasks = tuple(
            self._with_memory(
                functools.partial(self._answer, frame.features, plan, branch, should_stop)
            )
            for plan in self.plan.tasks
        )
        return BranchResult(branch, self.plan.schedule, tasks, frame.encode_ms + _ms_since(start))

    def _with_memory(self, work: Callable[[], Result]) -> Result:
        """Do the work; if memory runs out, free unused memory and try once more."""
        try:
            return work()
        except VlmOutOfMemoryError:
            pass  # in this clause the exception still holds the tensors of the failed try
        self.engine.free_memory()
        return work()

    def compare(self, skip: BranchResult, full: BranchResult) -> Comparison:
        """Return how the two branches' answers to the same frame agree."""
        comparisons = []
        for plan, a, b in zip(self.plan.tasks, skip.tasks, full.tasks, strict=True):
            agreement = plan.task.agreement(
                a.parsed, b.parsed, a.answer.token_ids, b.answer.token_ids
            )
            agreement = _with_caption_agreement(agreement, self.plan.caption_agreement)
            comparisons.append(TaskComparison(a, b, agreement))
        return Comparison(tuple(comparisons))

    def warm_up(self, should_stop: Callable[[], bool] | None = None) -> None:
        """Answer every task once on a grey image, two tokens each: first runs are the slowest."""
        features = self.engine.encode(np.full(WARM_UP_SHAPE, 128, dtype=np.uint8))
        for branch in self.plan.branches:
            for plan in self.plan.tasks:
                self.engine.answer(
                    features,
                    plan.task.prompt,
                    skip=plan.skip_set if branch == 'skip' else SkipSet(),
                    max_new_tokens=min(2, plan.task.max_new_tokens),
                    should_stop=should_stop,
                )

    def _answer(
        self,
        features: ImageFeatures,
        plan: TaskPlan,
        branch: str,
        should_stop: Callable[[str], bool] | None,
    ) -> TaskResult:
        skips = branch == 'skip'
        answer = self.engine.answer(
            features,
            plan.task.prompt,
            skip=plan.skip_set if skips else SkipSet(),
            max_new_tokens=plan.task.max_new_tokens,
            first_token_ids=plan.first_tokens.all_ids if plan.first_tokens else (),
            should_stop=None if should_stop is None else lambda: should_stop(branch),
        )
        parsed = plan.task.parse(answer.text)
        return TaskResult(
            task=plan.task.name,
            branch=branch,
            parsed=parsed,
            answer=answer,
            removed_blocks=plan.removed_blocks if skips else (),
            operating_point=plan.operating_point if skips else '0',
            num_blocks=self.engine.num_blocks,
            image_fit=self.engine.image_fit,
            image_tokens=features.num_tokens,
            match=plan.task.match,
            confidence_margin=(
                margin(self.engine, plan.first_tokens, parsed, answer)
                if plan.first_tokens
                else None
            ),
            question=plan.task.prompt if plan.task.name == QUESTION else '',
        )


def _with_caption_agreement(agreement: Agreement, least_rouge_l: float) -> Agreement:
    """Return the agreement of two texts by their ROUGE-L; of other answers, what it was."""
    if 'rouge_l' not in agreement.values:
        return agreement
    rouge_l = agreement.values['rouge_l']
    agree = agreement.agree if least_rouge_l == 1.0 else rouge_l >= least_rouge_l
    return Agreement(agree, {**agreement.values, 'caption_agreement': least_rouge_l})


def _ms_since(start: float) -> float:
    return (time.perf_counter() - start) * 1000.0
