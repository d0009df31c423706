"""The score that a search compares: against sums by hand, and with images shuffled."""

from __future__ import annotations

import math
import random
from fractions import Fraction
from pathlib import Path

import pytest
from calibration_helpers import LABELS, make_all_questions, make_samples

from gmskip_ros.calibration.errors import CalibrationError
from gmskip_ros.calibration.objective import (
    Objective,
    base_metric,
    make_objective,
    shuffled_images,
)
from gmskip_ros.datasets import Sample
from gmskip_ros.tasks import Cider, caption_tokens, rouge_l


def objective_of(
    samples: list[Sample], task: str, *metrics: str, target: str | None = None, seed: int = 0
) -> Objective:
    questions = make_all_questions(samples, task, target=target)
    return make_objective(questions, metrics, image_of(samples), seed)


def image_of(samples: list[Sample]) -> dict[Path, int]:
    # Not the order of the samples: items refer to images by this index.
    return {sample.image_path: 100 + i for i, sample in enumerate(reversed(samples))}


def scores(objective: Objective, answers: dict[int, str]) -> tuple:
    """Return the parts' scores for these answers, by image index."""
    return objective.part_scores(
        [objective.contribution(i, answers[item.image]) for i, item in enumerate(objective.items)]
    )


def shows(*labels: str) -> list[Sample]:
    """Return samples that each show these labels, the first one largest; '' shows nothing."""
    return [
        Sample(
            f'{i}',
            Path(f'{i}.jpg'),
            labels=tuple(filter(None, names.split())),
            main_object=names.split()[0] if names else None,
        )
        for i, names in enumerate(labels)
    ]


def in_order(samples: list[Sample], *answers: str) -> dict[int, str]:
    indices = image_of(samples)
    return {indices[s.image_path]: text for s, text in zip(samples, answers, strict=True)}


def test_accuracy_and_the_accuracy_of_every_class():
    samples = shows('car', 'car bus', 'car', 'bus')
    answers = in_order(samples, 'Cars.', 'bus', 'a car', 'no idea')
    assert scores(objective_of(samples, 'single_object', 'accuracy'), answers) == (Fraction(1, 2),)
    balanced = objective_of(samples, 'single_object', 'balanced_accuracy')
    assert scores(balanced, answers) == (Fraction(1, 3),)  # 2/3 of the cars, no bus
    assert scores(balanced, in_order(samples, 'bus', 'bus', 'bus', 'bus')) == (Fraction(1, 2),)


def test_with_a_target_images_without_it_count_in_balanced_accuracy_only():
    samples = shows('car bus', 'dog car', 'car', 'truck', '')
    says_car = in_order(samples, 'car', 'car', 'dog', 'car', 'car')
    accuracy = objective_of(samples, 'single_object', 'accuracy', target='car')
    assert len(accuracy.items) == 3
    assert scores(accuracy, says_car) == (Fraction(2, 3),)
    balanced = objective_of(samples, 'single_object', 'balanced_accuracy', target='car')
    assert len(balanced.items) == 5
    assert scores(balanced, says_car) == (Fraction(1, 3),)  # the mean of 2/3 and 0
    knows = in_order(samples, 'car', 'Cars', 'car', 'truck', '')
    assert scores(balanced, knows) == (1,)


def test_precision_adds_up_exactly():
    samples = shows('car bus', 'dog', 'truck bus dog')
    answers = in_order(samples, 'car, bus, dog', 'car, truck, bus, dog', '')
    # 2/3 + 1/4 + 0, by three; in floating point it would depend on the order.
    found = scores(objective_of(samples, 'multi_object', 'set_precision'), answers)
    assert found == (Fraction(11, 36),) and isinstance(found[0], Fraction)


def test_visual_gain_is_the_score_minus_that_with_other_images():
    samples = shows(*random.Random(3).choices(LABELS, k=25))
    right = in_order(samples, *(str(sample.main_object) for sample in samples))
    gain = objective_of(samples, 'single_object', 'visual_gain', seed=5)
    order = shuffled_images([image_of(samples)[s.image_path] for s in samples], 5)
    by_luck = sum(right[image] == s.main_object for image, s in zip(order, samples, strict=True))
    assert scores(gain, right) == (1 - Fraction(by_luck, 25),)
    # Answers that ignore the image gain nothing, however often they are right.
    assert scores(gain, dict.fromkeys(right, 'car')) == (0,)
    # Answering what the other image shows is worse than ignoring images.
    others = dict(zip(order, (str(s.main_object) for s in samples), strict=True))
    own = sum(others[image_of(samples)[s.image_path]] == s.main_object for s in samples)
    assert scores(gain, others) == (Fraction(own, 25) - 1,)


@pytest.mark.parametrize('metric', ['cider', 'rouge_l', 'visual_gain'])
def test_captions_add_up_with_one_rounding(metric):
    samples = list(make_samples(20, random.Random(1)))
    texts = [random.Random(i).choice(samples).captions[0] for i in range(20)]
    tokens = [[caption_tokens(text) for text in s.captions] for s in samples]
    cider = Cider(tokens)
    one = objective_of(samples, 'captioning', metric, seed=2)
    if metric == 'rouge_l':
        own = [rouge_l(caption_tokens(text), tokens[i]) for i, text in enumerate(texts)]
    else:
        own = [cider.score(i, caption_tokens(text)) for i, text in enumerate(texts)]
    answers = in_order(samples, *texts)
    if metric == 'visual_gain':
        places = {image: i for i, image in enumerate(answers)}
        order = shuffled_images(list(answers), 2)
        own += [
            -cider.score(i, caption_tokens(texts[places[image]])) for i, image in enumerate(order)
        ]
    assert scores(one, answers) == (math.fsum(own) / 20,)


def test_joint_is_the_least_share_of_each_full_score():
    samples = list(make_samples(6, random.Random(0)))
    joint = objective_of(samples, 'joint', 'accuracy', 'set_precision', 'cider')
    assert [part.questions.name for part in joint.parts] == [
        'single_object',
        'multi_object',
        'captioning',
    ]
    full = (Fraction(4, 5), Fraction(1, 2), 4.0)
    assert joint.overall(full, full) == 1
    assert joint.overall((Fraction(2, 5), Fraction(1, 2), 8.0), full) == Fraction(1, 2)
    assert joint.overall((Fraction(1), Fraction(1), 1.0), full) == 0.25
    lone = objective_of(samples, 'captioning', 'cider')
    assert lone.overall((3.5,), (7.0,)) == 3.5


@pytest.mark.parametrize(
    'task, metrics',
    [
        ('single_object', ['accuracy']),
        ('single_object', ['balanced_accuracy']),
        ('single_object', ['visual_gain']),
        ('multi_object', ['set_precision']),
        ('multi_object', ['visual_gain']),
        ('captioning', ['cider']),
        ('captioning', ['visual_gain']),
        ('joint', ['accuracy', 'set_precision', 'cider']),
    ],
)
def test_no_answer_is_outside_the_bounds_or_changes_once_decided(task, metrics):
    samples = list(make_samples(8, random.Random(4)))
    one = objective_of(samples, task, *metrics)
    texts = [
        '',
        'car',
        'Cars. They wait.',
        'a truck, a bus',
        'car dog bus',
        'A car on a wet road.',
        'zebra',
    ]
    texts += [caption for sample in samples for caption in sample.captions]
    reached, decided = 0, 0
    for item in range(len(one.items)):
        least, most = one.bounds(item)
        assert least <= 0 <= most
        for text in texts:
            contribution = one.contribution(item, text)
            assert least <= contribution <= most
            reached += contribution in (least, most)
            for end in range(len(text)):
                if one.is_decided(item, text[:end]):
                    decided += 1
                    assert one.contribution(item, text[:end]) == contribution
    assert reached
    assert (decided > 0) == (task in ('single_object', 'joint'))


# ---- shuffled images ---------------------------------------------------------------------------


def test_every_place_gets_the_image_of_a_different_place():
    images = list(range(100, 130))
    orders = set()
    for seed in range(50):
        others = shuffled_images(images, seed)
        assert sorted(others) == images
        assert all(own != other for own, other in zip(images, others, strict=True))
        assert others == shuffled_images(images, seed)
        orders.add(tuple(others))
    assert len(orders) == 50
    assert shuffled_images([7, 9], 0) == [9, 7]
    assert sorted(shuffled_images([1, 1, 2], 0)) == [1, 1, 2]


@pytest.mark.parametrize('images', [[], [3], [3, 3]])
def test_a_single_image_cannot_be_shuffled(images):
    with pytest.raises(CalibrationError, match=r'^a single image cannot be shuffled: use 2 '):
        shuffled_images(images, 0)


# ---- metrics ---------------------------------------------------------------------------------


def test_the_metric_of_one_answer():
    assert base_metric('single_object', 'balanced_accuracy') == 'accuracy'
    assert base_metric('single_object', 'visual_gain') == 'accuracy'
    assert base_metric('multi_object', 'visual_gain') == 'set_f1'
    assert base_metric('multi_object', 'set_precision') == 'set_precision'
    assert base_metric('captioning', 'rouge_l') == 'rouge_l'
    assert base_metric('generic', 'visual_gain') == 'exact'


@pytest.mark.parametrize(
    'task, metric',
    [('multi_object', 'balanced_accuracy'), ('single_object', 'cider'), ('captioning', 'bleu')],
)
def test_a_metric_of_a_different_task_is_refused(task, metric):
    samples = list(make_samples(3, random.Random(0)))
    with pytest.raises(CalibrationError) as error:
        objective_of(samples, task, metric)
    message = str(error.value)
    assert message.startswith(f'metric {metric!r} is not defined for {task}: use one of ')
    assert 'visual_gain' in message and '\n' not in message


def test_balanced_accuracy_needs_two_classes():
    with pytest.raises(CalibrationError, match="only 'car': use accuracy, or more images"):
        objective_of(shows('car', 'car'), 'single_object', 'balanced_accuracy')
