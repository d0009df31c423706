"""The task presence: its question, and answers read as POPE's evaluation script reads them."""

from __future__ import annotations

import random

import pytest

from gmskip_ros.tasks import PRESENCE, TASK_NAMES, TaskError, make_scorer, make_task
from gmskip_ros.tasks.metrics import yes_no_figures
from gmskip_ros.tasks.task import Presence

# Given by running evaluate.py of RUCAIBox/POPE at 3df3ba1 on these answers, 2026-11-29.
READ_BY_POPE = {
    'Yes': 'yes',
    'No': 'no',
    'no': 'no',
    'yes, it is.': 'yes',
    'No, there is no car.': 'no',
    'Yes. There is no doubt.': 'yes',
    'There is not a car': 'no',
    'NO': 'yes',
    'No\n': 'no',
    'nope': 'yes',
    'None': 'yes',
    'Yes, no car': 'no',
    'yes\nno': 'yes',
    '': 'yes',
    'bus': 'yes',
    'No.': 'no',
    'I do not know. Yes': 'no',
    ' No': 'no',
    'No,sorry': 'yes',
    'cannot see': 'yes',
    'It is, not': 'no',
    'There are none. No': 'yes',
}


@pytest.fixture(scope='module')
def task() -> Presence:
    made = make_task(PRESENCE, labels=['coda'])
    assert isinstance(made, Presence)
    return made


def test_it_is_asked_offline_only(task: Presence) -> None:
    assert PRESENCE not in TASK_NAMES
    assert task.prompt == 'Is there a {label} in the image? Answer yes or no.'
    assert task.max_new_tokens == 4


def test_the_article_is_that_of_pope(task: Presence) -> None:
    ending = 'in the image? Answer yes or no.'
    assert task.question('car') == f'Is there a car {ending}'
    assert task.question('traffic_cone') == f'Is there a traffic cone {ending}'
    assert task.question('umbrella') == f'Is there an umbrella {ending}'
    assert task.template_of(task.question('umbrella'), 'umbrella') == task.prompt
    assert (
        task.template_of('Is there an age in the image?', 'age')
        == 'Is there a {label} in the image?'
    )
    own = make_task(PRESENCE, prompt='Can you see an {label}, or a {label}?')
    assert isinstance(own, Presence)
    assert own.question('bus') == 'Can you see a bus, or a bus?'
    assert own.question('airplane') == 'Can you see an airplane, or an airplane?'


def test_a_sense_is_asked_about_only_where_the_word_has_several() -> None:
    task = make_task(
        PRESENCE, labels=['car_(automobile)', 'mouse_(animal)', 'mouse_(computer_equipment)']
    )
    assert isinstance(task, Presence)
    asked = [
        task.question(label).removesuffix(' in the image? Answer yes or no.')
        for label in task.labels
    ]
    assert asked == [
        'Is there a car',
        'Is there a mouse (animal)',
        'Is there a mouse (computer equipment)',
    ]


def test_answers_are_read_as_by_pope(task: Presence) -> None:
    assert {text: task.parse(text).text for text in READ_BY_POPE} == READ_BY_POPE
    understood = [text for text in READ_BY_POPE if task.parse(text).in_vocabulary]
    assert 'bus' not in understood and {'Yes', 'No', 'It is, not'} <= set(understood)


def test_accuracy_and_when_it_is_decided(task: Presence) -> None:
    scorer = make_scorer('accuracy', ['yes', 'no'], task)
    for text, read in READ_BY_POPE.items():
        assert [scorer.score(i, text) for i in (0, 1)] == [read == 'yes', read == 'no']
    assert scorer.is_decided(0, 'No, ') and scorer.is_decided(0, 'Yes.')
    assert not any(scorer.is_decided(0, text) for text in ('', 'No', 'No,', 'Yes', 'Yes it'))
    random_ = random.Random(0)
    pieces = ['No', 'no', 'not', 'Yes', 'w', ' ', ' ', ',', '.', '\n']
    decided = 0
    for _ in range(2000):
        text = ''.join(random_.choices(pieces, k=random_.randrange(1, 8)))
        for end in range(len(text)):
            if scorer.is_decided(0, text[:end]):
                decided += 1
                assert scorer.score(0, text) == scorer.score(0, text[:end]), (text, end)
    assert decided > 1000


def test_figures_are_those_of_pope() -> None:
    # Printed by the same script for the answers above with the labels no, yes, no, yes, ...
    truths = ['yes' if i % 2 else 'no' for i in range(len(READ_BY_POPE))]
    assert yes_no_figures(list(READ_BY_POPE.values()), truths) == {
        'accuracy': 0.5909090909090909,
        'precision': 0.5833333333333334,
        'recall': 0.6363636363636364,
        'f1': pytest.approx(0.6086956521739131),
        'yes_share': 0.5454545454545454,
    }
    assert yes_no_figures(['no', 'no'], ['yes', 'no'])['precision'] is None
    assert yes_no_figures(['no', 'no'], ['no', 'no'])['recall'] is None


@pytest.mark.parametrize(
    ('make', 'message'),
    [
        (lambda: make_task(PRESENCE, prompt='Is there a car?'), 'has no {label}'),
        (lambda: make_scorer('accuracy', ['maybe'], make_task(PRESENCE)), "is not 'yes' or 'no'"),
        (lambda: make_scorer('f1', ['yes'], make_task(PRESENCE)), 'use one of accuracy'),
    ],
)
def test_what_is_refused(make, message: str) -> None:
    with pytest.raises(TaskError) as caught:
        make()
    assert message in str(caught.value) and '\n' not in str(caught.value)
