"""Questions of the task `presence`, made from labels as POPE makes them (arXiv:2305.10355).

Source of the rules: RUCAIBox/POPE, utils.py. What a class is more often seen with, or what is most
often seen, is what a model names without looking.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Sequence

from gmskip_ros.calibration.errors import CalibrationError
from gmskip_ros.datasets import PresenceQuestion, Sample
from gmskip_ros.tasks import Task

SPLITS = ('random', 'popular', 'adversarial')
MOST_PRESENT = 3  # labels of an image that are asked about, as in POPE


def label_of(name: str, task: Task) -> str | None:
    """Return the task's label that a dataset means by a name, or None."""
    return task.vocabulary.label_named(name)


def present_labels(sample: Sample, task: Task) -> list[str]:
    """Return the labels in an image, each once: largest total area first."""
    found = (label_of(name, task) for name in sample.labels)
    return list(dict.fromkeys(label for label in found if label is not None))


def make_presence_questions(
    samples: Sequence[Sample], task: Task, seed: int
) -> list[tuple[PresenceQuestion, ...]]:
    """Return the questions about each image, with as many absent labels as present ones.

    Present are the first three labels of an image, by area. For each of them, each split asks about
    one label that the image does not have: any ('random', drawn by the seed), the one in most
    images ('popular'), or the one that is most often seen together with the present one
    ('adversarial'; drawn where every such label is used up). Labels are those of the samples, which
    also give the frequencies. Ties go by the order of the task's labels. A split asks nothing twice
    about an image; what several splits ask is one question. Raises CalibrationError where every
    image has all labels.
    """
    order = {label: index for index, label in enumerate(task.labels)}
    present = [present_labels(sample, task) for sample in samples]
    frequency = Counter(label for of_image in present for label in of_image)
    seen_with: dict[str, Counter[str]] = defaultdict(Counter)
    for of_image in present:
        for label in of_image:
            seen_with[label].update(other for other in of_image if other != label)

    def most_frequent_first(counts: Counter[str]) -> list[str]:
        return sorted(counts, key=lambda label: (-counts[label], order[label]))

    popular = most_frequent_first(frequency)
    beside = {label: most_frequent_first(counts) for label, counts in seen_with.items()}
    questions = []
    for sample, of_image in zip(samples, present, strict=True):
        absent = [
            label for label in sorted(frequency, key=order.__getitem__) if label not in of_image
        ]
        asked = of_image[: min(MOST_PRESENT, len(absent))]
        splits_of: dict[str, list[str]] = {}
        for split in SPLITS:
            drawn = _shuffled(absent, f'presence {seed} {split} {sample.key}')
            for label in asked:
                preferred = {'random': [], 'popular': popular, 'adversarial': beside[label]}[split]
                left = [
                    other
                    for other in (*preferred, *drawn)
                    if other not in of_image and split not in splits_of.get(other, ())
                ]
                splits_of.setdefault(left[0], []).append(split)
        questions.append(
            (
                *(PresenceQuestion(label, 'yes', SPLITS) for label in asked),
                *(
                    PresenceQuestion(label, 'no', tuple(splits))
                    for label, splits in splits_of.items()
                ),
            )
        )
    if samples and not any(questions):
        raise CalibrationError(
            f'presence: no image lacks a label that another one has ({", ".join(popular)}): use '
            'more images, or a dataset with more labels'
        )
    return questions


def _shuffled(labels: Sequence[str], seed: str) -> list[str]:
    # A key may have half a surrogate pair, which is not valid Unicode.
    return random.Random(seed.encode('utf-8', 'surrogatepass')).sample(labels, len(labels))
