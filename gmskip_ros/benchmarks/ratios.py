"""Percentiles of times, and ratios of times that were measured in turn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gmskip_ros.tasks.statistics import median_interval

CONFIDENCE = 0.95


def percentiles(times_ms: Sequence[float]) -> dict[str, Any]:
    """Return p50, p90, p99, the least, and how many, as JSON values; linear between samples."""
    p50, p90, p99 = np.percentile(times_ms, [50, 90, 99])
    return {
        'p50': float(p50),
        'p90': float(p90),
        'p99': float(p99),
        'least': float(min(times_ms)),
        'count': len(times_ms),
    }


def paired_ratio(
    numerators: Sequence[float], denominators: Sequence[float], seed: int = 0
) -> dict[str, Any]:
    """Return the median of the ratios of pairs, its interval, both medians and all pairs, as JSON.

    Each pair was measured one after the other, in an order that alternates. The interval is the
    percentile bootstrap over pairs (Efron and Tibshirani 1993, chapter 13) at CONFIDENCE; the same
    seed gives the same interval. Raises ValueError for lists of different or no length.
    """
    above, below = np.array(numerators, float), np.array(denominators, float)
    if len(above) != len(below) or not len(above):
        raise ValueError(f'{len(above)} numerators, {len(below)} denominators: give pairs')
    ratios = above / below
    return {
        'value': float(np.median(ratios)),
        'interval': list(median_interval(ratios, CONFIDENCE, seed=seed)),
        'numerator_ms': float(np.median(above)),
        'denominator_ms': float(np.median(below)),
        'pairs': len(ratios),
        'samples': [[float(a), float(b)] for a, b in zip(above, below, strict=True)],
    }
