"""The score that a search compares: a weighted sum over answers, exact where scores are counts."""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from gmskip_ros.calibration.errors import CalibrationError
from gmskip_ros.calibration.questions import Questions
from gmskip_ros.tasks.scoring import METRICS, Absent, Score, Scorer, make_scorer

BALANCED_ACCURACY = 'balanced_accuracy'
VISUAL_GAIN = 'visual_gain'


@dataclass(frozen=True)
class Item:
    """One answer that counts: the question `question` of its part, asked about image `image`."""

    part: int
    image: int
    question: int
    weight: int


@dataclass(frozen=True)
class Part:
    """One task's score: the sum of weight x score over its items, divided by `denominator`."""

    questions: Questions
    metric: str
    scorer: Scorer
    items: tuple[Item, ...]
    denominator: int


class Objective:
    """What is compared: one part's score or, for several, the least of score / full score.

    A part whose full score is not above 0 has no such ratio and is left out (see `compared`).
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        self.parts = tuple(parts)
        self.items = tuple(item for part in parts for item in part.items)
        self.is_joint = len(self.parts) > 1
        # A sum of counts is exact; floats are summed so that their order does not matter.
        self._is_exact = [isinstance(part.scorer.best(0), Fraction) for part in self.parts]

    def contribution(self, item: int, text: str) -> Score:
        """Return what an answer adds to its part's sum."""
        scored = self.items[item]
        score = self.parts[scored.part].scorer.score(scored.question, text)
        return _plain(scored.weight * score)

    def bounds(self, item: int) -> tuple[Score, Score]:
        """Return the least and the most that any answer could add."""
        scored = self.items[item]
        extreme = _plain(scored.weight * self.parts[scored.part].scorer.best(scored.question))
        return (0, extreme) if scored.weight > 0 else (extreme, 0)

    def is_decided(self, item: int, text_so_far: str) -> bool:
        """Return whether no continuation of the text could change what it adds."""
        scored = self.items[item]
        return self.parts[scored.part].scorer.is_decided(scored.question, text_so_far)

    def part_scores(self, contributions: Sequence[Score]) -> tuple[Score, ...]:
        """Return the score of each part, from the contributions of all items in their order."""
        scores: list[Score] = []
        start = 0
        for part, is_exact in zip(self.parts, self._is_exact, strict=True):
            values = contributions[start : start + len(part.items)]
            start += len(part.items)
            if is_exact:
                scores.append(_exact_sum(values) / part.denominator)
            else:
                scores.append(math.fsum(values) / part.denominator)
        return tuple(scores)

    def overall(self, part_scores: Sequence[Score], full: Sequence[Score]) -> Score:
        """Return the score to compare, given the parts' scores and those of the full model.

        Of several parts, one at least must have a full score above 0.
        """
        if not self.is_joint:
            return part_scores[0]
        return min(part_scores[part] / full[part] for part in self.compared(full))

    def compared(self, full: Sequence[Score]) -> list[int]:
        """Return which parts count, given the full model's score of each."""
        return above_zero(full) if self.is_joint else [0]


def above_zero(full: Sequence[Score]) -> list[int]:
    """Return which parts of a joint score count: those with a full score to divide by."""
    return [part for part, whole in enumerate(full) if whole > 0]


def make_objective(
    questions: Sequence[Questions],
    metrics: Sequence[str],
    image_of: Mapping[Path, int],
    seed: int = 0,
) -> Objective:
    """Return the objective of one task's questions, or of several tasks' jointly.

    `metrics`, one for each: any of the task's (tasks.scoring.METRICS), for single_object also
    'balanced_accuracy' (the mean over classes, or over showing the target or not, of the share of
    right answers), and 'visual_gain' (the task's first metric, minus the same score with each
    question paired with a different question's image). `image_of`: the index of an image by its
    path; `seed` shuffles the images. Raises CalibrationError.
    """
    parts = []
    for index, (of_task, metric) in enumerate(zip(questions, metrics, strict=True)):
        scorer = make_scorer(base_metric(of_task.name, metric), of_task.references, of_task.task)
        images = [image_of[sample.image_path] for sample in of_task.samples]
        scored = range(of_task.num_scored)
        weights, denominator = [1] * of_task.num_scored, of_task.num_scored
        if metric == BALANCED_ACCURACY:
            weights, denominator = _balanced_weights(of_task)
        elif of_task.splits:
            weights, denominator = _split_weights(of_task)
        items = [Item(index, images[i], i, weight) for i, weight in enumerate(weights)]
        if metric == VISUAL_GAIN:
            # Shuffled among all images: those that show a target would replace one another.
            others = shuffled_images(images, seed)
            items += [Item(index, others[i], i, -weights[i]) for i in scored]
        parts.append(Part(of_task, metric, scorer, tuple(items), denominator))
    return Objective(parts)


def choose_metrics(task_names: Sequence[str], metric: str | None) -> list[str]:
    """Return each task's metric: one that was given and that it has, else the task's first.

    `metric` may name several, separated by commas. Raises CalibrationError for a metric that no
    task has.
    """
    given = [] if metric is None else [name.strip() for name in metric.split(',')]
    chosen = [METRICS[task_name][0] for task_name in task_names]
    for name in given:
        problems = []
        for index, task_name in enumerate(task_names):
            try:
                base_metric(task_name, name)
                chosen[index] = name
            except CalibrationError as error:
                problems.append(error)
        if len(problems) == len(task_names):
            raise problems[0]
    return chosen


def base_metric(task_name: str, metric: str) -> str:
    """Return the per-answer metric that `metric` is computed from. Raises CalibrationError."""
    own = METRICS[task_name]
    more = (BALANCED_ACCURACY, VISUAL_GAIN) if task_name == 'single_object' else (VISUAL_GAIN,)
    if metric in own:
        return metric
    if metric in more:
        return own[0]
    raise CalibrationError(
        f'metric {metric!r} is not defined for {task_name}: use one of {", ".join((*own, *more))}'
    )


def shuffled_images(images: Sequence[int], seed: int) -> list[int]:
    """Return, for every place, the image of a different place, by one random cycle through them.

    Where images repeat, a place may get its own again. Raises CalibrationError for a single image.
    """
    if len(set(images)) < 2:
        raise CalibrationError('a single image cannot be shuffled: use 2 or more')
    order = list(range(len(images)))
    random.Random(f'shuffled pictures {seed}').shuffle(order)
    others = [0] * len(images)
    for place, following in zip(order, order[1:] + order[:1], strict=True):
        others[place] = images[following]
    return others


def _balanced_weights(questions: Questions) -> tuple[list[int], int]:
    """Return whole weights of the right answers, and the denominator that makes them a mean."""
    classes = [
        'without' if isinstance(reference, Absent) else str(reference)
        for reference in questions.references
    ]
    counts = Counter(classes)
    if len(counts) < 2:
        raise CalibrationError(
            f'balanced_accuracy needs images of 2 classes, there is only {classes[0]!r}: use '
            'accuracy, or more images'
        )
    common = math.lcm(*counts.values())
    return [common // counts[name] for name in classes], common * len(counts)


def _split_weights(questions: Questions) -> tuple[list[int], int]:
    """Return the same for the mean over splits of the share of right answers in each."""
    sizes = Counter(split for splits in questions.splits for split in splits)
    common = math.lcm(*sizes.values())
    weights = [sum(common // sizes[split] for split in splits) for splits in questions.splits]
    return weights, common * len(sizes)


def _exact_sum(counts: Iterable[Any]) -> Fraction:
    """Return the sum of whole numbers and fractions, added up per denominator, which is faster."""
    numerators: dict[int, int] = defaultdict(int)
    for count in counts:
        numerators[count.denominator] += count.numerator
    return sum((Fraction(n, d) for d, n in numerators.items()), Fraction(0))


def _plain(score: Score) -> Score:
    """Return whole numbers as int: they add up much faster than fractions."""
    return score.numerator if isinstance(score, Fraction) and score.denominator == 1 else score
