"""Which images are asked what: the choice of samples, and the questions about them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from calibration_helpers import LABELS, as_dataset

from gmskip_ros.calibration.errors import CalibrationError
from gmskip_ros.calibration.questions import (
    GENERIC_MAX_NEW_TOKENS,
    choose_question_samples,
    make_questions,
)
from gmskip_ros.calibration.settings import TaskSettings, task_settings
from gmskip_ros.datasets import Dataset, Sample
from gmskip_ros.tasks import DEFAULT_MAX_NEW_TOKENS, DEFAULT_PROMPTS, TASK_NAMES, TaskError
from gmskip_ros.tasks.scoring import Absent, make_scorer


def dataset(name: str = 'val', count: int = 60) -> Dataset:
    """Return a dataset in which every third image shows a car and every fifth has nothing."""
    return as_dataset(
        [
            Sample(
                f'{name}/{i:03d}',
                Path(f'/{name}/{i:03d}.jpg'),
                labels=() if i % 5 == 0 else ('Car', 'bus') if i % 3 == 0 else ('bus', 'dog'),
                main_object=None if i % 5 == 0 else 'bus' if i % 2 else 'zebra',
                captions=('A bus.',) if i % 4 else (),
            )
            for i in range(count)
        ],
        name,
    )


def keys(samples: list[Sample]) -> set[str]:
    return {sample.key for sample in samples}


def shows_car(sample: Sample) -> bool:
    return 'Car' in sample.labels


def choose(task: str, *numbers: int, target: str | None = None, **options):
    """Return calibration and test samples of the dataset above; `numbers`: how many, seed."""
    count, test_count, seed = numbers
    return choose_question_samples(
        dataset(), task_settings(task, target=target), count, test_count, seed, **options
    )


@pytest.mark.parametrize(
    'task, is_usable',
    [
        (
            'single_object',
            lambda sample: sample.main_object == 'bus',
        ),  # zebra is not among the labels
        ('multi_object', lambda sample: bool(sample.labels)),
        ('captioning', lambda sample: bool(sample.captions)),
        (
            'joint',
            lambda s: bool(s.main_object == 'bus' and s.labels and s.captions),
        ),
    ],
)
def test_samples_that_can_be_scored_in_every_task_are_chosen_by_seed(task, is_usable):
    usable = {sample.key for sample in dataset().samples if is_usable(sample)}
    assert 10 < len(usable) < 60
    choices = set()
    for seed in range(10):
        chosen, test = choose(task, 6, 4, seed)
        assert (len(chosen), len(test)) == (6, 4)
        assert len(keys(chosen) | keys(test)) == 10  # disjoint
        assert keys(chosen) | keys(test) <= usable
        assert (chosen, test) == choose(task, 6, 4, seed)
        choices.add(frozenset(keys(chosen)))
    assert len(choices) > 5
    everything, more = choose(task, 40, 40, 0)
    assert keys(everything) | keys(more) == usable and not keys(everything) & keys(more)
    assert choose(task, 5, 0, 0)[1] == []


@pytest.mark.parametrize('spelling', ['car', 'Cars', 'Car'])
def test_a_target_adds_as_many_images_without_it(spelling):
    chosen, test = choose('single_object', 6, 4, 1, target=spelling)
    for samples, count in ((chosen, 6), (test, 4)):
        assert [shows_car(sample) for sample in samples] == [True] * count + [False] * count
    assert len(keys(chosen) | keys(test)) == 20
    # There are 16 images with a car and 44 without.
    chosen, test = choose('single_object', 100, 100, 1, target=spelling)
    assert [sum(map(shows_car, samples)) for samples in (chosen, test)] == [8, 8]
    assert len(keys(chosen) | keys(test)) == 32


def test_few_images_without_the_target_are_all_used():
    few = [sample for sample in dataset().samples if shows_car(sample)]
    few += [sample for sample in dataset().samples if not shows_car(sample)][:3]
    settings = task_settings('single_object', target='car')
    chosen, test = choose_question_samples(as_dataset(few), settings, 8, 4, 0)
    without = [[s for s in samples if not shows_car(s)] for samples in (chosen, test)]
    assert [len(samples) for samples in without] == [2, 1]
    # One alone cannot be in both: it is in neither.
    chosen, test = choose_question_samples(as_dataset(few[:-2]), settings, 8, 4, 0)
    assert all(map(shows_car, [*chosen, *test]))


def test_test_samples_of_another_dataset():
    other = dataset('test', 40)
    chosen, test = choose('multi_object', 10, 7, 0, test_dataset=other)
    assert (len(chosen), len(test)) == (10, 7)
    assert {sample.key.split('/')[0] for sample in chosen} == {'val'}
    assert {sample.key.split('/')[0] for sample in test} == {'test'}
    assert choose('multi_object', 10, 0, 0, test_dataset=other)[1] == []
    with_target = choose('single_object', 4, 3, 0, target='car', test_dataset=other)
    assert [shows_car(s) for s in with_target[1]] == [True] * 3 + [False] * 3


def test_test_samples_are_those_that_the_calibrated_labels_can_name():
    other = replace(dataset('test', 40), labels=(*LABELS, 'zebra'))
    _, test = choose('single_object', 4, 8, 0, test_dataset=other)
    assert [sample.main_object for sample in test] == ['bus'] * 8


def test_an_image_of_both_datasets_is_only_calibrated_on():
    for seed in range(5):
        chosen, test = choose('captioning', 20, 20, seed, test_dataset=dataset())
        assert (len(chosen), len(test)) == (20, 20)
        assert not {s.image_path for s in chosen} & {s.image_path for s in test}


# ---- the questions ---------------------------------------------------------------------------


@pytest.mark.parametrize('name', TASK_NAMES)
def test_the_tasks_ask_everything_the_same_question(name):
    (settings,) = task_settings(name)
    samples, _ = choose(name, 5, 0, 0)
    questions = make_questions(samples, settings, settings.make_task(LABELS))
    assert questions.prompts == (DEFAULT_PROMPTS[name],) * 5
    assert questions.max_new_tokens == DEFAULT_MAX_NEW_TOKENS[name]
    assert questions.samples == tuple(samples) and questions.num_scored == 5
    field = {'single_object': 'main_object', 'multi_object': 'labels', 'captioning': 'captions'}
    assert questions.references == tuple(getattr(sample, field[name]) for sample in samples)


def test_questions_about_a_target():
    samples, _ = choose('single_object', 3, 0, 0, target='car')
    (settings,) = task_settings('single_object', target='car', prompt='What?', max_new_tokens=5)
    questions = make_questions(samples, settings, settings.make_task(LABELS))
    assert questions.references == ('car',) * 3 + (Absent('car'),) * 3
    assert questions.num_scored == 3 and questions.target == 'car'
    assert questions.prompts == ('What?',) * 6 and questions.max_new_tokens == 5


def test_questions_of_one_s_own():
    samples = [
        Sample('0', Path('0.jpg'), question='Red?', references=('yes', 'yes!')),
        Sample('1', Path('1.jpg'), question='How many?', references=('3',)),
        Sample('2', Path('2.jpg'), question=None, references=('3',)),
        Sample('3', Path('3.jpg'), question='Nobody knows?', references=()),
    ]
    (settings,) = task_settings('generic')
    chosen, _ = choose_question_samples(as_dataset(samples), [settings], 4, 0, 0)
    assert keys(chosen) == {'0', '1'}
    questions = make_questions(samples[:2], settings, settings.make_task(LABELS))
    assert questions.task is None
    assert questions.prompts == ('Red?', 'How many?')
    assert questions.references == (('yes', 'yes!'), ('3',))
    assert questions.max_new_tokens == GENERIC_MAX_NEW_TOKENS
    (asked,) = task_settings('generic', prompt='What?', max_new_tokens=3)
    chosen, _ = choose_question_samples(as_dataset(samples), [asked], 4, 0, 0)
    assert keys(chosen) == {'0', '1', '2'}
    questions = make_questions(samples[:3], asked, None)
    assert questions.prompts == ('What?',) * 3 and questions.max_new_tokens == 3


def test_formulae_are_compared_without_spaces():
    samples = [
        Sample('0', Path('0.jpg'), question='Read', references=('x + 1',), is_formula=is_formula)
        for is_formula in (True, False)
    ]
    (settings,) = task_settings('generic')
    scorer = make_scorer('contains', make_questions(samples, settings, None).references)
    assert [scorer.score(0, text) for text in ('It is x+1.', 'X + 1')] == [1, 0]
    assert [scorer.score(1, text) for text in ('It is x+1.', 'X + 1')] == [0, 1]


def test_whose_labels():
    def labels(settings: TaskSettings, of_dataset: tuple[str, ...]) -> tuple[str, ...]:
        task = settings.make_task(of_dataset)
        assert task is not None
        return task.labels

    assert labels(TaskSettings('single_object'), LABELS) == LABELS
    assert labels(TaskSettings('single_object', labels=('sky', 'sea')), LABELS) == ('sky', 'sea')
    assert 'tricycle' in labels(TaskSettings('multi_object'), ())  # captions alone: CODA's
    with_synonyms = TaskSettings('single_object', match='synonyms').make_task(LABELS)
    assert with_synonyms is not None and with_synonyms.vocabulary.match('taxi') == 'car'


# ---- what cannot be asked --------------------------------------------------------------------


def refused(task: str, of: Dataset, target: str | None = None, test: Dataset | None = None) -> str:
    with pytest.raises(CalibrationError) as error:
        choose_question_samples(of, task_settings(task, target=target), 5, 5, 0, test)
    assert '\n' not in str(error.value)
    return str(error.value)


def test_a_target_outside_the_label_set_is_refused():
    message = refused('single_object', dataset(), 'unicorn')
    assert message.startswith("target 'unicorn' is not in the label set (car, truck, bus, dog): ")


def test_a_dataset_without_a_usable_image_is_refused():
    assert refused('single_object', dataset(), 'truck').startswith(
        'val has no image for single_object of truck among its 60: '
    )
    uncaptioned = as_dataset([Sample('0', Path('0.jpg'), labels=('car',), main_object='car')])
    assert 'no image for captioning among its 1: ' in refused('captioning', uncaptioned)
    message = refused('joint', uncaptioned)
    assert 'no image for single_object and multi_object and captioning' in message
    assert 'no image for generic' in refused('generic', as_dataset([]))


def test_test_images_that_are_all_calibrated_on_are_refused():
    few = as_dataset(dataset().samples[1:4], 'few')
    assert refused('multi_object', few, test=few).startswith('every test image of few is also a ')


def test_test_images_with_the_target_that_are_all_calibrated_on_are_refused():
    cars = [sample for sample in dataset().samples if shows_car(sample)][:3]
    others = [sample for sample in dataset().samples if not shows_car(sample)]
    message = refused(
        'single_object', as_dataset([*cars, *others]), 'car', as_dataset([*cars, *others], 'test')
    )
    assert message.startswith('test has no image for single_object of car among its ')


def test_labels_that_cannot_be_told_apart_are_refused():
    with pytest.raises(TaskError):
        choose_question_samples(dataset(), [TaskSettings('single_object', labels=('',))], 5, 5, 0)
