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
from gmskip_ros.pipeline.timing import ISOLATED, SHARED
from gmskip_ros.skipping import SkipList
from gmskip_ros.tasks import Agreement, ParsedAnswer, Task
from gmskip_ros.vlm import SkipSet, VlmOutOfMemoryError
from gmskip_ros.vlm.answer import FrameQuestion
from gmskip_ros.vlm.engine import settings_in_use

if TYPE_CHECKING:
    from gmskip_ros.vlm import Answer, Engine, ImageFeatures
    from gmskip_ros.vlm.engine import SharedFrame

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
    timing: str = ISOLATED  # one of TIMINGS

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
    (preprocessing and vision features), but not the time spent on the other branch. With the timing
    `shared`, that is also the work which the branch takes over from the one before it; `shared_ms`
    is the part of `elapsed_ms` that its answers share and that none of their own times counts.
    """

    branch: str
    schedule: str
    tasks: tuple[TaskResult, ...]
    elapsed_ms: float
    timing: str = ISOLATED
    shared_ms: float = 0.0  # always 0 with the timing `isolated`

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
    """Both branches on one frame. Only with the timing `isolated` is there a speed-up."""

    tasks: tuple[TaskComparison, ...]
    timing: str = ISOLATED


def plan_frame(
    engine: Engine,
    tasks: Sequence[Task],
    skip_lists: Mapping[str, SkipList],
    operating_point: str | int = 'high_performance',
    branches: Sequence[str] = BRANCHES,
    caption_agreement: float = 1.0,
    timing: str = ISOLATED,
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
    return FramePlan(tuple(plans), ordered, tuple(warnings), caption_agreement, timing)


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


@dataclass
class EncodedFrame:
    """What all answers about one frame share, and the time it took to compute.

    The rest is there with the timing `shared` only: what the answers to its questions have in
    common, the part of that time which a branch has counted already, and the skip branch's answers,
    which are drafts of the full branch's.
    """

    features: ImageFeatures
    encode_ms: float
    shared: SharedFrame | None = None
    counted_ms: float = 0.0
    skip_answers: tuple[Answer, ...] = ()


class PreviousAnswers:
    """Each branch's answers to the frame before: drafts of its answers to the next one."""

    def __init__(self) -> None:
        self._token_ids: dict[tuple[str, str], tuple[int, ...]] = {}

    def draft(self, branch: str, task: str) -> tuple[int, ...]:
        """Return the tokens of the newest answer; empty without one."""
        return self._token_ids.get((branch, task), ())

    def note(self, result: TaskResult) -> None:
        """Keep an answer."""
        self._token_ids[result.branch, result.task] = result.answer.token_ids


class FramePipeline:
    """Takes frames through a model according to a plan."""

    def __init__(
        self, engine: Engine, plan: FramePlan, previous: PreviousAnswers | None = None
    ) -> None:
        """`previous`: of the frames before, which a plan with the timing `shared` makes use of."""
        self.engine = engine
        self.plan = plan
        self._previous = previous or PreviousAnswers()

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
        """Return one branch's answers to all tasks; for `should_stop` see `run`.

        With the timing `shared`, the branches of one frame are to be answered in their order.
        """
        start = time.perf_counter()
        stops = None if should_stop is None else functools.partial(should_stop, branch)
        answers = self._answers(frame, branch, stops)
        tasks = tuple(
            self._result(frame.features, plan, branch, answer)
            for plan, answer in zip(self.plan.tasks, answers, strict=True)
        )
        shared_ms = 0.0
        if frame.shared is not None:
            shared_ms = frame.shared.shared_ms - frame.counted_ms
            frame.counted_ms += shared_ms
        for result in tasks:
            self._previous.note(result)
        elapsed_ms = frame.encode_ms + _ms_since(start)
        timing = self.plan.timing
        return BranchResult(branch, self.plan.schedule, tasks, elapsed_ms, timing, shared_ms)

    def compare(self, skip: BranchResult, full: BranchResult) -> Comparison:
        """Return how the two branches' answers to the same frame agree."""
        comparisons = []
        for plan, a, b in zip(self.plan.tasks, skip.tasks, full.tasks, strict=True):
            agreement = plan.task.agreement(
                a.parsed, b.parsed, a.answer.token_ids, b.answer.token_ids
            )
            agreement = _with_caption_agreement(agreement, self.plan.caption_agreement)
            comparisons.append(TaskComparison(a, b, agreement))
        return Comparison(tuple(comparisons), self.plan.timing)

    def warm_up(self, should_stop: Callable[[], bool] | None = None) -> None:
        """Answer every task once on a grey image, two tokens each: first runs are the slowest.

        With the timing of the plan.
        """
        features = self.engine.encode(np.full(WARM_UP_SHAPE, 128, dtype=np.uint8))
        frame = EncodedFrame(features, 0.0)
        for branch in self.plan.branches:
            self._answers(frame, branch, should_stop, most_tokens=2)

    def _answers(
        self,
        frame: EncodedFrame,
        branch: str,
        should_stop: Callable[[], bool] | None,
        most_tokens: int | None = None,
    ) -> list[Answer]:
        """Return one branch's answers, with the timing of the plan."""
        if self.plan.timing == SHARED:
            return self._shared_answers(frame, branch, should_stop, most_tokens)

        def answer(question: FrameQuestion) -> Answer:
            return self.engine.answer(
                frame.features,
                question.prompt,
                skip=question.skip,
                max_new_tokens=question.max_new_tokens,
                first_token_ids=question.first_token_ids,
                should_stop=should_stop,
            )

        return [
            self._with_memory(functools.partial(answer, question))
            for question in self._questions(branch, most_tokens)
        ]

    def _shared_answers(
        self,
        frame: EncodedFrame,
        branch: str,
        should_stop: Callable[[], bool] | None,
        most_tokens: int | None,
    ) -> list[Answer]:
        """Return one branch's answers, made from what the questions of both have in common.

        A branch's answers to the frame before are drafts of its answers, and the skip branch's to
        this frame of the full branch's.
        """
        first = self.plan.branches.index(branch) * len(self.plan.tasks)
        indices = range(first, first + len(self.plan.tasks))
        drafts = dict(zip(indices, self._drafts(frame, branch), strict=True))

        def answer() -> list[Answer]:
            if frame.shared is None:
                questions = [
                    question
                    for each in self.plan.branches
                    for question in self._questions(each, most_tokens)
                ]
                frame.shared = self.engine.share_frame(
                    frame.features, questions, should_stop=should_stop
                )
            return frame.shared.answer(indices, drafts=drafts, should_stop=should_stop)

        def start_over() -> None:
            frame.shared, frame.counted_ms = None, 0.0

        answers = self._with_memory(answer, start_over)
        if branch == 'skip':
            frame.skip_answers = tuple(answers)
        return answers

    def _drafts(self, frame: EncodedFrame, branch: str) -> list[list[tuple[int, ...]]]:
        """Return guesses of each answer of a branch; the likelier ones first."""
        guesses = [[self._previous.draft(branch, plan.task.name)] for plan in self.plan.tasks]
        if branch == 'full':
            for of_task, answer in zip(guesses, frame.skip_answers, strict=False):
                of_task.insert(0, answer.token_ids)
        return [[draft for draft in dict.fromkeys(of_task) if draft] for of_task in guesses]

    def _questions(self, branch: str, most_tokens: int | None) -> list[FrameQuestion]:
        """Return what a branch is asked about a frame, a question per task."""
        return [
            FrameQuestion(
                plan.task.prompt,
                plan.skip_set if branch == 'skip' else SkipSet(),
                min(plan.task.max_new_tokens, most_tokens or plan.task.max_new_tokens),
                plan.first_tokens.all_ids if plan.first_tokens else (),
            )
            for plan in self.plan.tasks
        ]

    def _with_memory(
        self, work: Callable[[], Result], start_over: Callable[[], None] = lambda: None
    ) -> Result:
        """Do the work; if memory runs out, start over, free unused memory and try once more."""
        try:
            return work()
        except VlmOutOfMemoryError:
            pass  # in this clause the exception still holds the tensors of the failed try
        start_over()
        self.engine.free_memory()
        return work()

    def _result(
        self, features: ImageFeatures, plan: TaskPlan, branch: str, answer: Answer
    ) -> TaskResult:
        skips = branch == 'skip'
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
