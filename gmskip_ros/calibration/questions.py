"""Which pictures are asked what, and what is right: from a dataset's samples to questions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from gmskip_ros.calibration.errors import CalibrationError
from gmskip_ros.datasets import Dataset, Sample, choose_samples
from gmskip_ros.skipping import JOINT
from gmskip_ros.tasks import TASK_NAMES, Task, make_task
from gmskip_ros.tasks.scoring import Absent

GENERIC = 'generic'
GENERIC_MAX_NEW_TOKENS = 32


@dataclass(frozen=True)
class TaskSettings:
    """One task as the user asked for it; None stands for the task's (or the dataset's) own."""

    name: str  # one of TASK_NAMES, or 'generic'
    target: str | None = None  # single_object only
    prompt: str | None = None
    labels: tuple[str, ...] | None = None
    synonyms: bool = False
    max_new_tokens: int | None = None

    def make_task(self, dataset: Dataset) -> Task | None:
        """Return the task with the dataset's labels; None for 'generic'. Raises TaskError."""
        if self.name == GENERIC:
            return None
        labels = self.labels or dataset.labels or ('coda',)
        return make_task(
            self.name,
            prompt=self.prompt,
            labels=labels,
            max_new_tokens=self.max_new_tokens,
            synonyms=self.synonyms,
        )


@dataclass(frozen=True)
class Questions:
    """One task's questions about some pictures: entry i of each field belongs together.

    The first `num_scored` are scored; behind them come, for a target, as many pictures that do not
    show it, with the same question and the reference Absent(target).
    """

    name: str
    task: Task | None
    target: str | None
    max_new_tokens: int
    samples: tuple[Sample, ...]
    prompts: tuple[str, ...]
    references: tuple[Any, ...]
    num_scored: int


def can_be_asked(sample: Sample, settings: TaskSettings, task: Task | None) -> bool:
    """Tell whether a sample has what the task needs to be scored."""
    if settings.name == GENERIC:
        return bool(sample.references) and bool(sample.question or settings.prompt)
    if settings.name == 'captioning':
        return bool(sample.captions)
    if settings.name == 'multi_object':
        return bool(sample.labels)
    assert task is not None
    if settings.target is not None:
        return _shows(sample, settings.target, task)
    return sample.main_object is not None and _label(sample.main_object, task) is not None


def choose_question_samples(
    dataset: Dataset,
    settings: Sequence[TaskSettings],
    count: int,
    test_count: int,
    seed: int,
    test_dataset: Dataset | None = None,
) -> tuple[list[Sample], list[Sample]]:
    """Return the samples to calibrate on and others to test on, usable for every task given.

    With a target, pictures that show it come first and as many (or all there are) that do not show
    it after them. A `test_dataset` gives the test samples. Raises CalibrationError if there is no
    usable sample, DatasetError if there are too few.
    """
    if test_dataset is not None and test_count:
        calibration, _ = choose_question_samples(dataset, settings, count, 0, seed)
        paths = {sample.image_path.resolve() for sample in calibration}
        others = tuple(s for s in test_dataset.samples if s.image_path.resolve() not in paths)
        if not others:
            raise CalibrationError(
                f'every test picture of {test_dataset.name} is one that is calibrated on: '
                'choose another split, or leave the test split out'
            )
        # Asked with the labels of the one that is calibrated on, whatever its own are.
        rest = replace(test_dataset, samples=others, labels=dataset.labels)
        _, test = choose_question_samples(rest, settings, 0, test_count, seed)
        return calibration, test
    tasks = [one.make_task(dataset) for one in settings]
    target = settings[0].target
    if target is not None:
        task = tasks[0]
        assert task is not None
        if _label(target, task) is None:
            raise CalibrationError(
                f'target {target!r} is not in the label set ({", ".join(task.labels)}): '
                'choose one of them, or set the labels'
            )
    usable = [
        sample
        for sample in dataset.samples
        if all(can_be_asked(sample, one, task) for one, task in zip(settings, tasks, strict=True))
    ]
    what = ' and '.join(one.name for one in settings) + (f' of {target}' if target else '')
    if not usable:
        raise CalibrationError(
            f'{dataset.name} has no picture for {what} among its {len(dataset.samples)}: choose '
            'another split, task or target, or give captions'
        )
    chosen, test = choose_samples(usable, count, test_count, seed)
    if target is None:
        return chosen, test
    assert tasks[0] is not None
    without = [sample for sample in dataset.samples if not _shows(sample, target, tasks[0])]
    if len(without) < 2:
        return chosen, test
    other, other_test = choose_samples(without, len(chosen), len(test), seed)
    return chosen + other, test + other_test


def make_questions(
    samples: Sequence[Sample], settings: TaskSettings, task: Task | None
) -> Questions:
    """Return the questions of one task about these samples (those of choose_question_samples)."""
    references: list[Any] = []
    num_scored = 0
    for sample in samples:
        if settings.name == GENERIC:
            references.append(sample.references)
        elif settings.name == 'captioning':
            references.append(sample.captions)
        elif settings.name == 'multi_object':
            references.append(sample.labels)
        elif settings.target is None:
            references.append(sample.main_object)
        else:
            assert task is not None
            shows = _shows(sample, settings.target, task)
            references.append(settings.target if shows else Absent(settings.target))
            num_scored += shows
    if task is None:
        prompts = tuple(settings.prompt or str(sample.question) for sample in samples)
        max_new_tokens = settings.max_new_tokens or GENERIC_MAX_NEW_TOKENS
    else:
        prompts = (task.prompt,) * len(samples)
        max_new_tokens = task.max_new_tokens
    return Questions(
        name=settings.name,
        task=task,
        target=settings.target,
        max_new_tokens=max_new_tokens,
        samples=tuple(samples),
        prompts=prompts,
        references=tuple(references),
        num_scored=len(samples) if settings.target is None else num_scored,
    )


def task_settings(name: str, **options: Any) -> list[TaskSettings]:
    """Return the settings of a task, or of all three tasks for 'joint'."""
    names = TASK_NAMES if name == JOINT else (name,)
    return [TaskSettings(one, **options) for one in names]


def _label(name: str, task: Task) -> str | None:
    return task.vocabulary.match(name)


def _shows(sample: Sample, target: str, task: Task) -> bool:
    wanted = _label(target, task)
    return any(_label(label, task) == wanted for label in sample.labels)
