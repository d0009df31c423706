"""Datasets and their samples, and a seeded choice of samples."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gmskip_ros.datasets.errors import DatasetError
from gmskip_ros.datasets.image_file import image_content


@dataclass(frozen=True, slots=True)
class Instance:
    """One annotated object, or a crowd of them: the part of its box that is inside the image."""

    label: str
    left: float  # pixels from the image's top left corner, as the other three
    top: float
    right: float
    bottom: float
    area: float  # the mask's where it is known, else the box's
    is_crowd: bool = False


def labels_and_main_object(
    instances: Iterable[Instance], order: Mapping[str, int]
) -> tuple[tuple[str, ...], str | None]:
    """Return the classes present, largest total area first, and that of the largest single one.

    A crowd counts for its class, but never as a single object. Ties go by `order`.
    """
    totals: dict[str, float] = {}
    largest: dict[str, float] = {}
    for instance in instances:
        label = instance.label
        totals[label] = totals.get(label, 0) + instance.area
        if not instance.is_crowd:
            largest[label] = max(largest.get(label, 0), instance.area)
    ranked = sorted(totals, key=lambda label: (-totals[label], order[label]))
    single = min(largest, key=lambda label: (-largest[label], order[label]), default=None)
    return tuple(ranked), single


@dataclass(frozen=True, slots=True)
class PresenceQuestion:
    """Whether an image shows something: yes or no.

    `splits` has the name of a split (POPE's: random, popular, adversarial) for each time that the
    question counts in it; `ids`, of a file's questions, what it calls the question each time.
    """

    label: str | None  # what is asked about, if it is known
    answer: str  # the right one: 'yes' or 'no'
    splits: tuple[str, ...] = ()
    text: str | None = None  # the question; None: made from the task's prompt and the label
    ids: tuple[int | str, ...] = ()


@dataclass(frozen=True)
class Sample:
    """One image and its annotations; unknown ones are empty or None."""

    key: str  # unique in its dataset: '<split>/<file name>'
    image_path: Path
    labels: tuple[str, ...] = ()  # classes present, each once, largest total visible area first
    main_object: str | None = None  # class of the largest single instance; crowds do not count
    captions: tuple[str, ...] = ()
    question: str | None = None  # generic task only
    references: tuple[str, ...] = ()  # generic task only
    is_formula: bool = False  # the references are formulae, whose spaces do not count
    presence: tuple[PresenceQuestion, ...] = ()  # as published; none: made from labels
    question_id: int | str | None = None  # as the file of questions has it
    image_name: str = ''  # likewise
    instances: tuple[Instance, ...] = ()  # what labels and main_object follow from
    size: tuple[float, float] | None = None  # width, height of the image, in pixels


@dataclass(frozen=True)
class Dataset:
    """The samples of one split, in the order of their keys."""

    name: str  # 'coco-val2017', 'coda-base-val-1500', 'scenes-0-1000', ...
    samples: tuple[Sample, ...]
    labels: tuple[str, ...]  # class names in the file's order
    notes: tuple[str, ...]  # one line per kind of entry that was ignored or corrected
    warnings: tuple[str, ...]  # needed to interpret scores
    labels_outside_view: int = 0  # left out of the samples; see within_view


def choose_samples(
    samples: Sequence[Sample], count: int, test_count: int, seed: int
) -> tuple[list[Sample], list[Sample]]:
    """Return `count` samples to calibrate on and `test_count` others, chosen by the seed.

    No image is in both, even if it has several questions. The choice depends on the keys and not
    on the order of `samples`; with the same seed, a smaller choice is the beginning of a larger
    one. If there are too few samples, both parts shrink in proportion, to at least 1 each. Raises
    DatasetError if that is impossible.
    """
    if count < 0 or test_count < 0 or count + test_count == 0:
        raise DatasetError(f'{count} and {test_count} samples cannot be chosen: request 1 or more')
    groups: dict[Path, list[Sample]] = {}
    for sample in sorted(samples, key=lambda sample: sample.key):
        groups.setdefault(sample.image_path, []).append(sample)
    wanted_groups = (count > 0) + (test_count > 0)
    if len(groups) < wanted_groups:
        raise DatasetError(
            f'{len(groups)} images are too few for {count} samples and {test_count} others: '
            f'provide at least {wanted_groups}'
        )
    if len(samples) < count + test_count:
        share = count / (count + test_count)
        least, most = int(count > 0), len(samples) - int(test_count > 0)
        count = min(max(round(len(samples) * share), least), most)
        test_count = len(samples) - count
    ordered = sorted(groups.values(), key=lambda group: _shuffled(group[0].key, seed))
    chosen: list[Sample] = []
    while len(chosen) < count and len(ordered) > (test_count > 0):
        chosen += ordered.pop(0)
    others = [sample for group in ordered for sample in group]
    return chosen[:count], others[:test_count]


def _shuffled(key: str, seed: int) -> bytes:
    # JSON allows half a surrogate pair, which is not valid Unicode, in a key.
    return hashlib.sha256(f'{seed}\n{key}'.encode('utf-8', 'surrogatepass')).digest()


def sample_hash(samples: Sequence[Sample]) -> str:
    """Return the SHA-256 (hex) of the samples' keys, image bytes and annotations, in order.

    Raises DatasetError if an image cannot be read.
    """
    total = hashlib.sha256()
    for sample in samples:
        try:
            image = hashlib.sha256(image_content(sample.image_path)).hexdigest()
        except OSError as error:
            raise DatasetError(
                f'{sample.image_path}: cannot be read ({error.strerror}); restore it'
            ) from error
        content = [
            sample.key,
            image,
            sample.labels,
            sample.main_object,
            sample.captions,
            sample.question,
            sample.references,
            *(['formula'] if sample.is_formula else []),
            *((each.label, each.answer, each.splits, each.text) for each in sample.presence),
        ]
        total.update(json.dumps(content).encode() + b'\n')
    return total.hexdigest()
