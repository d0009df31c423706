"""Statistics of scores: significance of differences, separation of two groups.

Not imported by gmskip_ros.tasks, which works without NumPy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gmskip_ros.tasks.errors import TaskError


def auroc(positives: Sequence[float], negatives: Sequence[float]) -> float:
    """Return the area under the ROC curve, in 0..1.

    This is the share of (positive, negative) pairs in which the positive has the larger value; a
    tie counts half (Mann and Whitney 1947). Infinities are allowed. Raises TaskError if a group
    is empty or contains NaN.
    """
    above = _numbers('positives', positives)
    below = np.sort(_numbers('negatives', negatives))
    # Twice the number of pairs won: pairs < plus pairs <=, so that ties count half.
    twice = np.searchsorted(below, above, 'left') + np.searchsorted(below, above, 'right')
    return int(twice.sum()) / (2 * len(above) * len(below))


def paired_bootstrap_interval(
    differences: Sequence[Any],
    weights: Sequence[Any] | None = None,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Return (low, high) of the percentile bootstrap interval of the mean of paired differences.

    `differences` are one score minus the other for each image (numbers or Fractions). Images are
    drawn with replacement, together with their `weights` (positive; None: all equal), and the
    weighted mean is taken (Efron and Tibshirani 1993, chapter 13). The same seed gives the same
    interval. Raises TaskError for an empty list, NaN, infinities, weights of a different number
    or not positive, a confidence outside 0..1 (both excluded), and fewer than one resample.
    """
    values = _numbers('differences', differences, finite=True)
    shares = np.ones(len(values))
    if weights is not None:
        shares = _numbers('weights', weights, finite=True)
        if len(shares) != len(values):
            raise TaskError(
                f'weights: {len(shares)} given for {len(values)} differences; give one for each'
            )
        if shares.min() <= 0:
            raise TaskError(
                f'weights: {shares.min():g} is not above 0; remove images that must not count'
            )
    if not 0 < confidence < 1:
        raise TaskError(f'confidence: {confidence!r} is not between 0 and 1; use for example 0.95')
    if resamples < 1:
        raise TaskError(f'resamples: {resamples!r} is less than 1; use for example 2000')
    weighted = values * shares
    return _bootstrap_interval(
        lambda drawn: weighted[drawn].sum() / shares[drawn].sum(),
        len(values),
        confidence,
        resamples,
        seed,
    )


def median_interval(
    values: np.ndarray, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Return (low, high) of the percentile bootstrap interval of the median of values (N,), N > 0.

    See paired_bootstrap_interval, of the mean. The same seed gives the same interval.
    """
    return _bootstrap_interval(
        lambda drawn: np.median(values[drawn]), len(values), confidence, resamples, seed
    )


def _bootstrap_interval(
    statistic: Callable[[np.ndarray], Any],
    size: int,
    confidence: float,
    resamples: int,
    seed: int,
) -> tuple[float, float]:
    """Return the interval of a statistic of `size` values, given the indices of those drawn."""
    random = np.random.default_rng(seed)
    found = np.empty(resamples)
    for index in range(resamples):  # one at a time, to bound the memory
        found[index] = statistic(random.integers(size, size=size))
    low, high = np.quantile(found, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def mcnemar_p(only_a_right: int, only_b_right: int) -> float:
    """Return the two-sided p-value of McNemar's exact test, in 0..1.

    The counts are the images that only A, or only B, gets right. If both are equally good, each
    of these images is A's or B's with probability 1/2; p is twice the smaller binomial tail, at
    most 1. Raises TaskError for a negative count.
    """
    if only_a_right < 0 or only_b_right < 0:
        raise TaskError(f'counts: {only_a_right}, {only_b_right}; neither may be negative')
    discordant = only_a_right + only_b_right
    ways = 1  # binomial coefficient: discordant choose k
    tail = 1
    for k in range(1, min(only_a_right, only_b_right) + 1):
        ways = ways * (discordant - k + 1) // k
        tail += ways
    return min(2 * tail / 2**discordant, 1.0)


def clustered_mcnemar_p(gains: Sequence[int]) -> float:
    """Return the two-sided p-value of McNemar's exact test with several questions per image, 0..1.

    `gains`: for each image, the questions that only A gets right minus those that only B does; a
    question that counts several times in the score does so here. If both are equally good, each of
    them has the other sign with probability 1/2; p is the probability of a sum at least as far from
    0. With one question per image it is `mcnemar_p`.
    (A randomisation test by image: questions about one image are not independent.)
    """
    sizes = [abs(gain) for gain in gains if gain]
    if max(sizes, default=1) == 1:
        return mcnemar_p(gains.count(1), gains.count(-1))
    shares: np.ndarray = np.ones(1)  # entry s: the probability that A's images have the sum s
    for size in sizes:
        shares = (np.pad(shares, (0, size)) + np.pad(shares, (size, 0))) / 2
    differences = np.abs(2 * np.arange(len(shares)) - sum(sizes))
    return min(float(shares[differences >= abs(sum(gains))].sum()), 1.0)


def _numbers(name: str, values: Sequence[Any], finite: bool = False) -> np.ndarray:
    numbers = np.array([float(value) for value in values])
    if not len(numbers):
        raise TaskError(f'{name}: the list is empty; at least one is needed')
    unusable = numbers[~np.isfinite(numbers) if finite else np.isnan(numbers)]
    if len(unusable):
        raise TaskError(f'{name}: the list contains {unusable[0]}; remove it')
    return numbers
