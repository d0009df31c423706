"""Statistics against brute force and closed forms."""

from __future__ import annotations

import itertools
import math
import random
from fractions import Fraction

import numpy as np
import pytest

from gmskip_ros.tasks import TaskError
from gmskip_ros.tasks.statistics import (
    auroc,
    clustered_mcnemar_p,
    mcnemar_p,
    paired_bootstrap_interval,
)


def test_auroc_is_the_share_of_pairs_in_order() -> None:
    random_ = random.Random(0)
    for _ in range(200):
        above = random_.choices([0.0, 0.5, 1.0, 2.0, -math.inf], k=random_.randint(1, 9))
        below = random_.choices([0.0, 0.5, 1.0, 2.0, math.inf], k=random_.randint(1, 9))
        pairs = [(a > b) + (a == b) / 2 for a in above for b in below]
        assert auroc(above, below) == pytest.approx(sum(pairs) / len(pairs), abs=1e-15)
        assert auroc(below, above) == pytest.approx(1 - auroc(above, below))


def test_auroc_of_separated_and_equal_groups() -> None:
    assert auroc([3, 4], [1, 2]) == 1
    assert auroc([1, 2], [3, 4]) == 0
    assert auroc([1, 1], [1]) == 0.5


@pytest.mark.parametrize(
    ('above', 'below', 'message'),
    [
        ([], [1], 'positives: the list is empty'),
        ([1], [], 'negatives: the list is empty'),
        ([1, math.nan], [1], 'positives: the list contains nan'),
    ],
)
def test_invalid_auroc_groups(above: list, below: list, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        auroc(above, below)


def test_mcnemar_is_the_two_sided_binomial_test() -> None:
    for n in range(13):
        outcomes = [sum(coins) for coins in itertools.product((0, 1), repeat=n)]
        for right in range(n + 1):
            far = [abs(2 * heads - n) >= abs(2 * right - n) for heads in outcomes]
            assert mcnemar_p(right, n - right) == pytest.approx(sum(far) / len(far), rel=1e-15)


def test_mcnemar_with_many_images() -> None:
    # Normal approximation with continuity correction, accurate to one per cent here.
    z = (520 - 480 - 1) / math.sqrt(1000)
    assert mcnemar_p(480, 520) == pytest.approx(math.erfc(z / math.sqrt(2)), rel=0.01)
    assert mcnemar_p(0, 5000) == 0  # 2^-4999
    assert mcnemar_p(2500, 2500) == 1
    with pytest.raises(TaskError, match='-1'):
        mcnemar_p(3, -1)


def test_mcnemar_takes_the_questions_about_an_image_as_a_whole() -> None:
    random_ = random.Random(0)
    for _ in range(60):
        gains = [random_.randint(-4, 4) for _ in range(random_.randint(1, 9))]
        sums = [
            abs(sum(sign * gain for sign, gain in zip(signs, gains, strict=True)))
            for signs in itertools.product((1, -1), repeat=len(gains))
        ]
        expected = sum(each >= abs(sum(gains)) for each in sums) / len(sums)
        assert clustered_mcnemar_p(gains) == pytest.approx(expected, abs=1e-12)
    # With one question per image it is McNemar's own test, of any number of them.
    assert clustered_mcnemar_p([1] * 480 + [0] * 99 + [-1] * 520) == mcnemar_p(480, 520)
    assert clustered_mcnemar_p([0, 0]) == 1
    # Six answers about each of two images are not twelve independent ones.
    assert clustered_mcnemar_p([-6, -6]) == 1 / 2 > mcnemar_p(0, 12)


def test_bootstrap_of_few_images_equals_that_over_all_resamples() -> None:
    differences = [Fraction(1), Fraction(0), Fraction(-1, 2), Fraction(3)]
    weights = [1, 2, 1, 4]
    for given in (None, weights):
        used = given or [1] * 4
        means = [
            float(sum(differences[i] * used[i] for i in drawn) / sum(used[i] for i in drawn))
            for drawn in itertools.product(range(4), repeat=4)
        ]
        expected = np.quantile(means, [0.1, 0.9])
        interval = paired_bootstrap_interval(differences, given, 0.8, resamples=20000)
        assert interval == pytest.approx(expected, abs=0.05)


def test_bootstrap_of_many_images_is_the_normal_interval() -> None:
    differences = np.random.default_rng(7).normal(0.2, 1, 400)
    low, high = paired_bootstrap_interval(differences)
    half = 1.96 * differences.std() / 20
    assert low == pytest.approx(differences.mean() - half, abs=0.01)
    assert high == pytest.approx(differences.mean() + half, abs=0.01)
    wide = paired_bootstrap_interval(differences, confidence=0.99)
    assert wide[0] < low < high < wide[1]


def test_bootstrap_is_reproducible() -> None:
    differences = [0.1, -0.3, 0.7, 0.2, 0.05]
    first = paired_bootstrap_interval(differences, seed=3)
    assert paired_bootstrap_interval(differences, seed=3) == first
    assert paired_bootstrap_interval(differences, [2] * 5, seed=3) == pytest.approx(first)
    assert paired_bootstrap_interval(differences, seed=4) != first
    assert paired_bootstrap_interval([0.25] * 4, [1, 2, 3, 4]) == pytest.approx((0.25, 0.25))


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        ({'differences': []}, 'differences: the list is empty'),
        ({'differences': [1, math.nan]}, 'differences: the list contains nan'),
        ({'differences': [1, math.inf]}, 'differences: the list contains inf'),
        ({'differences': [1, 2], 'weights': [1]}, 'weights: 1 given for 2'),
        ({'differences': [1, 2], 'weights': [1, 0]}, 'weights: 0 is not above 0'),
        ({'differences': [1], 'confidence': 1.0}, 'confidence: 1.0'),
        ({'differences': [1], 'confidence': 95}, 'confidence: 95'),
        ({'differences': [1], 'resamples': 0}, 'resamples: 0'),
    ],
)
def test_invalid_bootstrap_settings(settings: dict, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        paired_bootstrap_interval(**settings)
