"""Which images are asked which questions, and what is right: from samples to questions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from gmskip_ros.calibration.errors import CalibrationError
from gmskip_ros.calibration.presence import label_of, make_presence_questions, present_labels
from gmskip_ros.calibration.settings import GENERIC, TaskSettings
from gmskip_ros.datasets import Dataset, PresenceQuestion, Sample, choose_samples
from gmskip_ros.tasks import PRESENCE, Task, make_task
from gmskip_ros.tasks.scoring import Absent, Formula
from gmskip_ros.tasks.task import NO, YES, Presence

GENERIC_MAX_NEW_TOKENS = 32


@dataclass(frozen=True)
class Questions:
    """One task's questions about images; entry i of samples, prompts and references is question i.

    The first `num_scored` are scored. With a target, as many images that do not show it follow,
    with the same question and the reference Absent(target); in the task presence these are scored,
    too. `num_images`: how many samples were chosen to be scored, without such others. `splits`, of
    presence: for each question the split of each time that it counts; () without splits.
    `split_ids`: likewise what a file calls the question there; () for questions of no file.
    """

    name: str
    task: Task | None
    target: str | None
    max_new_tokens: int
    samples: tuple[Sample, ...]
    prompts: tuple[str, ...]
    references: tuple[Any, ...]
    num_scored: int
    num_images: int
    template: str | None = None
    splits: tuple[tuple[str, ...], ...] = ()
    split_ids: tuple[tuple[int | str, ...], ...] = ()

    @property
    def common_prompt(self) -> str | None:
        """The prompt of every question, for presence with {label}; None where they differ."""
        if self.template is not None:
            return self.template
        prompts = set(self.prompts)
        return prompts.pop() if len(prompts) == 1 else None

    def num_decoded(self, token_ids: Sequence[int]) -> int:
        """Return how many tokens of an answer the model processed as decoded tokens.

        All, if it then chose an end token; a last token after which max_new_tokens ended the answer
        is never processed.
        """
        return min(len(token_ids), self.max_new_tokens - 1)


def label_set(questions: Sequence[Questions]) -> list[str]:
    """Return the labels that answers are read with; [] where no task has any."""
    tasks = [of_task.task for of_task in questions if of_task.task is not None]
    return list(dict.fromkeys(label for task in tasks for label in task.labels))


def reread(questions: Questions, match: str) -> Questions | None:
    """Return the same questions with answers read in a different way; None for other tasks.

    The right answers stay what they are: labels that only the questions' own task knows by their
    name are replaced by what that task calls them.
    """
    task = questions.task
    if task is None or task.name in ('captioning', PRESENCE):
        return None
    other = make_task(
        task.name,
        prompt=task.prompt,
        labels=task.labels,
        max_new_tokens=task.max_new_tokens,
        match=match,
    )

    def renamed(reference: Any) -> Any:
        if isinstance(reference, Absent):
            return Absent(renamed(reference.label))
        if isinstance(reference, str):
            return label_of(reference, task) or reference
        return tuple(renamed(name) for name in reference)

    return replace(questions, task=other, references=tuple(map(renamed, questions.references)))


def can_be_asked(sample: Sample, settings: TaskSettings, task: Task | None) -> bool:
    """Return whether a sample has what the task needs to be scored."""
    if settings.name == GENERIC:
        return bool(sample.references) and bool(sample.question or settings.prompt)
    if settings.name == 'captioning':
        return bool(sample.captions)
    if settings.name == 'multi_object':
        return bool(sample.labels)
    assert task is not None
    if settings.name == PRESENCE and settings.target is None:
        return bool(sample.presence or present_labels(sample, task))
    if settings.target is not None:
        return _shows(sample, settings.target, task)
    return sample.main_object is not None and label_of(sample.main_object, task) is not None


def usable_samples(dataset: Dataset, settings: Sequence[TaskSettings]) -> list[Sample]:
    """Return the dataset's samples that have what all of the tasks need to be scored."""
    tasks = [of_task.make_task(dataset.labels) for of_task in settings]
    return [
        sample
        for sample in dataset.samples
        if all(can_be_asked(sample, *pair) for pair in zip(settings, tasks, strict=True))
    ]


def choose_question_samples(
    dataset: Dataset,
    settings: Sequence[TaskSettings],
    count: int,
    test_count: int,
    seed: int,
    test_dataset: Dataset | None = None,
) -> tuple[list[Sample], list[Sample]]:
    """Return the samples to calibrate on and different ones to test on, usable for every task.

    With a target, images that show it come first, then as many (or all there are) that do not.
    For presence these are as many as show it, else there are fewer of both. A `test_dataset`
    supplies the test samples. Raises CalibrationError if no sample is usable, DatasetError if there
    are too few.
    """
    if test_dataset is not None and test_count:
        return _choose_from_both(dataset, test_dataset, settings, count, test_count, seed)
    tasks = [of_task.make_task(dataset.labels) for of_task in settings]
    target = settings[0].target
    if target is not None:
        _check_target(target, tasks[0])
    usable = usable_samples(dataset, settings)
    if not usable:
        what = ' and '.join(of_task.name for of_task in settings)
        raise CalibrationError(
            f'{dataset.name} has no image for {what}{f" of {target}" if target else ""} among its '
            f'{len(dataset.samples)}: choose a different split, task or target, or give captions'
        )
    chosen, test = choose_samples(usable, count, test_count, seed)
    if target is None:
        for of_task, task in zip(settings, tasks, strict=True):
            for of_list in filter(None, (chosen, test) if isinstance(task, Presence) else ()):
                make_questions(of_list, of_task, task, seed)  # refused now, not after hours
        return chosen, test
    assert tasks[0] is not None
    without = [sample for sample in dataset.samples if not _shows(sample, target, tasks[0])]
    is_presence = settings[0].name == PRESENCE
    if len(without) < (bool(chosen) + bool(test) if is_presence else 2):
        if is_presence:
            raise CalibrationError(
                f'{dataset.name} has {len(without)} images without {target!r}, too few to ask '
                'whether it is there: choose a different target or split'
            )
        return chosen, test
    other, other_test = choose_samples(without, len(chosen), len(test), seed)
    if is_presence:
        chosen, test = chosen[: len(other)], test[: len(other_test)]
    return chosen + other, test + other_test


def _choose_from_both(
    dataset: Dataset,
    test_dataset: Dataset,
    settings: Sequence[TaskSettings],
    count: int,
    test_count: int,
    seed: int,
) -> tuple[list[Sample], list[Sample]]:
    calibration, _ = choose_question_samples(dataset, settings, count, 0, seed)
    paths = {sample.image_path.resolve() for sample in calibration}
    others = tuple(s for s in test_dataset.samples if s.image_path.resolve() not in paths)
    if not others:
        raise CalibrationError(
            f'every test image of {test_dataset.name} is also a calibration image: choose a '
            'different test split, or none'
        )
    # The labels are those of the calibration dataset, whatever the test dataset's are.
    rest = replace(test_dataset, samples=others, labels=dataset.labels)
    _, test = choose_question_samples(rest, settings, 0, test_count, seed)
    return calibration, test


def _check_target(target: str, task: Task | None) -> None:
    assert task is not None
    if label_of(target, task) is None:
        raise CalibrationError(
            f'target {target!r} is not in the label set ({", ".join(task.labels)}): '
            'choose one of them, or set the labels'
        )


def make_questions(
    samples: Sequence[Sample], settings: TaskSettings, task: Task | None, seed: int = 0
) -> Questions:
    """Return the questions of one task about these samples (those of choose_question_samples).

    The seed draws labels for presence. Raises CalibrationError for presence without questions.
    """
    if isinstance(task, Presence):
        return _ask_presence(samples, settings, task, seed)
    references: list[Any] = []
    num_scored = 0
    for sample in samples:
        if settings.name == GENERIC:
            kind = Formula if sample.is_formula else str
            references.append(tuple(map(kind, sample.references)))
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
        num_images=len(samples) if settings.target is None else num_scored,
    )


def _ask_presence(
    samples: Sequence[Sample], settings: TaskSettings, task: Presence, seed: int
) -> Questions:
    asked: list[tuple[PresenceQuestion, ...]]
    if settings.target is not None:
        target = label_of(settings.target, task) or settings.target
        answers = [YES if _shows(sample, target, task) else NO for sample in samples]
        asked = [(PresenceQuestion(target, answer),) for answer in answers]
    elif any(sample.presence for sample in samples):
        asked = [sample.presence for sample in samples]
        if settings.labels is not None:
            raise CalibrationError(
                'labels have no effect where a file has the questions of presence: remove them'
            )
    else:
        asked = make_presence_questions(samples, task, seed)
    pairs = [
        (sample, question)
        for sample, of_sample in zip(samples, asked, strict=True)
        for question in of_sample
    ]
    own_prompt = settings.prompt is not None
    prompts, templates = [], set()
    for sample, question in pairs:
        prompt, template = _presence_prompt(sample, question, task, own_prompt)
        prompts.append(prompt)
        templates.add(template)
    return Questions(
        name=settings.name,
        task=task,
        target=settings.target,
        max_new_tokens=task.max_new_tokens,
        samples=tuple(sample for sample, _ in pairs),
        prompts=tuple(prompts),
        references=tuple(question.answer for _, question in pairs),
        num_scored=len(pairs),
        num_images=sum(map(bool, asked)) if settings.target is None else answers.count(YES),
        template=templates.pop() if len(templates) == 1 else None,
        splits=() if settings.target is not None else tuple(q.splits for _, q in pairs),
        split_ids=tuple(q.ids for _, q in pairs),
    )


def _presence_prompt(
    sample: Sample, question: PresenceQuestion, task: Presence, own_prompt: bool
) -> tuple[str, str | None]:
    """Return the question to ask and its template, None if the label is not known."""
    label = question.label
    if question.text is not None and not own_prompt:
        return question.text, None if label is None else task.template_of(question.text, label)
    if label is None:
        raise CalibrationError(
            f'{sample.image_path}: the label is not known that {question.text!r} asks about: '
            'remove the prompt'
        )
    return task.question(label), task.prompt


def _shows(sample: Sample, target: str, task: Task) -> bool:
    wanted = label_of(target, task)
    return any(label_of(label, task) == wanted for label in sample.labels)
