"""Statistics of scores: how sure a difference is, and how well a number separates two groups.

Imported by its own path: the rest of gmskip_ros.tasks does without NumPy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gmskip_ros.tasks.errors import TaskError


def auroc(positives: Sequence[float], negatives: Sequence[float]) -> float:
    """Return the area under the ROC curve, in 0..1.

    It is the share of (positive, negative) pairs in which the positive has the larger value; a
    tie counts half (Mann and Whitney 1947). Infinities are values like others. Raises TaskError
    if a group is empty or holds NaN.
    """
    above = _numbers('positives', positives)
    below = np.sort(_numbers('negatives', negatives))
    # Counted twice (smaller + smaller or equal), so that halves stay whole numbers.
    twice = np.searchsorted(below, above, 'left') + np.searchsorted(below, above, 'right')
    return int(twice.sum()) / (2 * len(above) * len(below))


def paired_bootstrap_interval(
    differences: Sequence[Any],
    weights: Sequence[Any] | None = None,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Return the ends of the percentile bootstrap interval of the mean of paired differences.

    `differences` are, per image, one score minus the other (numbers or Fractions); images are
    drawn with replacement, together with their `weights` (positive; None = all equal), and the
    weighted mean is taken (Efron and Tibshirani 1993, chapter 13). The same seed gives the same
    interval. Raises TaskError for no differences, NaN, infinities, weights that do not fit, a
    confidence outside 0..1 (both excluded) or fewer than one resample.
    """
    values = _numbers('differences', differences, finite=True)
    shares = np.ones(len(values))
    if weights is not None:
        shares = _numbers('weights', weights, finite=True)
        if len(shares) != len(values):
            raise TaskError(
                f'weights: {len(shares)} of them for {len(values)} differences; give one for each'
            )
        if shares.min() <= 0:
            raise TaskError(
                f'weights: {shares.min():g} is not above 0; leave out what is not to count'
            )
    if not 0 < confidence < 1:
        raise TaskError(f'confidence: {confidence!r} is not between 0 and 1; use for example 0.95')
    if resamples < 1:
        raise TaskError(f'resamples: {resamples!r} is less than 1; use for example 2000')
    random = np.random.default_rng(seed)
    weighted = values * shares
    means = np.empty(resamples)
    for number in range(resamples):  # one at a time: memory does not grow with the images
        drawn = random.integers(len(values), size=len(values))
        means[number] = weighted[drawn].sum() / shares[drawn].sum()
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def mcnemar_p(only_a_right: int, only_b_right: int) -> float:
    """Return the two-sided p-value of McNemar's exact test, in 0..1.

    Of the images that exactly one of A and B got right, each is A's or B's with probability 1/2
    if they are equally good: twice the smaller binomial tail, at most 1. Raises TaskError for a
    negative count.
    """
    if only_a_right < 0 or only_b_right < 0:
        raise TaskError(f'counts: {only_a_right}, {only_b_right}; neither may be below 0')
    discordant = only_a_right + only_b_right
    ways = 1  # of choosing k of the discordant images
    tail = 1
    for k in range(1, min(only_a_right, only_b_right) + 1):
        ways = ways * (discordant - k + 1) // k
        tail += ways
    return min(2 * tail / 2**discordant, 1.0)


def _numbers(name: str, values: Sequence[Any], finite: bool = False) -> np.ndarray:
    numbers = np.array([float(value) for value in values])
    if not len(numbers):
        raise TaskError(f'{name}: there is none; at least one is needed')
    unusable = numbers[~np.isfinite(numbers) if finite else np.isnan(numbers)]
    if len(unusable):
        raise TaskError(f'{name}: {unusable[0]} is among them; leave it out')
    return numbers
