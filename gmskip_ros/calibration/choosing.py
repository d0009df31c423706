"""Which samples of a dataset a run uses: chosen by the first process, for all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, replace
from typing import TypeVar

from gmskip_ros.calibration.distributed import Ranks
from gmskip_ros.calibration.errors import CalibrationError
from gmskip_ros.calibration.objective import base_metric, choose_metrics
from gmskip_ros.calibration.questions import choose_question_samples, usable_samples
from gmskip_ros.calibration.settings import GENERIC, Listener, SharedSettings
from gmskip_ros.datasets import Dataset, Sample, choose_samples, within_view
from gmskip_ros.errors import UserError
from gmskip_ros.tasks.tokenizer import is_without_spaces
from gmskip_ros.vlm import CalibrationEngine

Value = TypeVar('Value')

# In all processes but the first, in place of its dataset: reading it takes much memory and time.
OF_FIRST = Dataset('', (), (), (), ())

_OF_WORDS = ('cider', 'rouge_l')


@dataclass(frozen=True)
class Counts:
    """How many samples were asked for, can be scored, and were taken."""

    asked: int
    found: int
    used: int

    def as_record(self) -> dict[str, int]:
        """Return what was asked and found, as JSON values."""
        return {'asked': self.asked, 'found': self.found}


@dataclass(frozen=True)
class Chosen:
    """The samples to calibrate on and to test on. The datasets have no samples of their own.

    `counts` and `test_counts` are None for a list that was not asked for. `line` says in a sentence
    what was asked for, found and used; `is_short`: it was less than was asked for.
    """

    dataset: Dataset
    test_dataset: Dataset | None
    samples: tuple[Sample, ...]
    test_samples: tuple[Sample, ...]
    counts: Counts | None
    test_counts: Counts | None
    line: str

    @property
    def is_short(self) -> bool:
        """Whether fewer samples are used than were asked for."""
        return any(each.used < each.asked for each in (self.counts, self.test_counts) if each)


def choose(
    dataset: Dataset,
    settings: SharedSettings,
    count: int,
    test_count: int,
    test_dataset: Dataset | None = None,
) -> Chosen:
    """Return the samples to use; see choose_question_samples.

    Raises CalibrationError, DatasetError, TaskError: no sample is usable, there are too few, or a
    metric that compares words would have to score texts without spaces between words.
    """
    tasks = settings.tasks()
    metrics = choose_metrics([task.name for task in tasks], settings.metric)
    samples, test_samples = choose_question_samples(
        dataset, tasks, count, test_count, settings.seed, test_dataset
    )
    for task, metric in zip(tasks, metrics, strict=True):
        if base_metric(task.name, metric) in _OF_WORDS:
            _check_words(dataset.name, task.name, metric, [*samples, *test_samples])

    def counts_of(of: Dataset, asked: int, chosen: Sequence[Sample]) -> Counts | None:
        if not asked:
            return None
        # The labels are those of the calibration dataset, whatever the test dataset's are.
        usable = {
            sample.key for sample in usable_samples(replace(of, labels=dataset.labels), tasks)
        }
        return Counts(asked, len(usable), sum(sample.key in usable for sample in chosen))

    counts = counts_of(dataset, count, samples)
    test_counts = counts_of(test_dataset or dataset, test_count, test_samples)
    return Chosen(
        replace(dataset, samples=()),
        None if test_dataset is None else replace(test_dataset, samples=()),
        tuple(samples),
        tuple(test_samples),
        counts,
        test_counts,
        _line(dataset, test_dataset, settings, counts, test_counts, [*samples, *test_samples]),
    )


def choose_unanswered(dataset: Dataset, settings: SharedSettings) -> Chosen:
    """Return questions to answer, though nothing says what is right. Raises DatasetError."""
    asked = [sample for sample in dataset.samples if sample.question or settings.prompt]
    samples, _ = choose_samples(asked, settings.images, 0, settings.seed)
    counts = Counts(settings.images, len(asked), len(samples))
    line = _line(dataset, None, settings, None, counts, samples)
    return Chosen(replace(dataset, samples=()), None, (), tuple(samples), None, counts, line)


def choose_by_first(
    vlm: CalibrationEngine,
    dataset: Dataset,
    settings: SharedSettings,
    count: int,
    test_count: int,
    ranks: Ranks,
    listener: Listener,
    test_dataset: Dataset | None = None,
) -> Chosen:
    """Return, in every process, what `choose` gives the first one, of what the model sees.

    Labels that lie wholly outside its view are left out. The other processes' datasets are not
    used: OF_FIRST will do.
    """

    def choose_in_view() -> Chosen:
        return choose(
            in_view(vlm, dataset, ranks, listener),
            settings,
            count,
            test_count,
            None if test_dataset is None else in_view(vlm, test_dataset, ranks, listener),
        )

    chosen = value_of_first(ranks, choose_in_view)
    if ranks.rank == 0 and chosen.is_short:
        listener.note(chosen.line)
    return chosen


def value_of_first(ranks: Ranks, compute: Callable[[], Value]) -> Value:
    """Return, in every process, what the first one computes. Raises the UserError that it meets."""
    value: Value | UserError | None = None
    if ranks.rank == 0:
        try:
            value = compute()
        except UserError as error:
            value = error
    value = ranks.of_first(value)
    if isinstance(value, UserError):
        raise value
    assert value is not None
    return value


def in_view(vlm: CalibrationEngine, dataset: Dataset, ranks: Ranks, listener: Listener) -> Dataset:
    """Return the dataset without labels that lie wholly outside what the model sees of images."""
    seen = within_view(dataset, lambda width, height: astuple(vlm.visible_box(width, height)))
    if seen.labels_outside_view and ranks.rank == 0:
        listener.note(f'{dataset.name}: {seen.notes[-1]}')
    return seen


def _line(
    dataset: Dataset,
    test_dataset: Dataset | None,
    settings: SharedSettings,
    counts: Counts | None,
    test_counts: Counts | None,
    chosen: Sequence[Sample],
) -> str:
    what = 'questions' if settings.task == GENERIC else 'images'
    about = settings.task if settings.target is None else f'target {settings.target!r}'
    parts = []
    for of, one, purpose in (
        (dataset, counts, 'to calibrate on'),
        (test_dataset or dataset, test_counts, 'to test on'),
    ):
        if one is not None:
            own = '' if of is dataset else f' of the {one.found:,} of {of.name}'
            parts.append(f'{one.used:,} of {one.asked:,} asked for {purpose}{own}')
    first = counts or test_counts
    assert first is not None
    total = len(dataset.samples)
    line = f'{dataset.name}: {first.found:,} of {total:,} {what} suit {about}; used: '
    line += ', '.join(parts)
    others = len(chosen) - sum(one.used for one in (counts, test_counts) if one is not None)
    if others:
        line += f', and {others:,} without {settings.target!r}'
    if counts and test_counts and test_dataset is None and counts.used < counts.asked:
        line += '; too few for both, so they share them: --test-images 0 leaves none for the test'
    return line


def _check_words(name: str, task: str, metric: str, samples: Sequence[Sample]) -> None:
    """Raise CalibrationError if most of the texts to compare with have no spaces between words."""
    texts = [
        text
        for sample in samples
        for text in (sample.captions if task == 'captioning' else sample.references)
    ]
    strange = [text for text in texts if is_without_spaces(text)]
    if 2 * len(strange) > len(texts):
        remedy = 'use --metric exact or contains, or texts' if task == GENERIC else 'give captions'
        raise CalibrationError(
            f'{name}: {len(strange):,} of {len(texts):,} texts to compare with are in a language '
            f'without spaces between words, such as Chinese, and {metric} compares words: {remedy} '
            'in English'
        )
