"""What is asked of a soak, and whether it holds.

Flat is what does not grow between two fifths of the measured time: the median of the last fifth is
at most so much above the median of the second one. The first fifth is the warm-up, in which
allocators and caches fill; medians, because a single second says little.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

BEGINNING, END = (0.2, 0.4), (0.8, 1.0)  # the two windows, as parts of the measured time
MIN_PER_WINDOW = 2  # samples
ENDS_WITHIN_S = 2.0  # of SIGINT
LONGEST_SILENCE_S = 10.0  # between two health reports, which come once a second


@dataclass(frozen=True)
class Verdict:
    """One thing that is asked, whether it holds, and what was found, in one line."""

    name: str
    holds: bool
    found: str


def in_window(
    times_s: Sequence[float], values: Sequence[float], measured_s: float, part: tuple[float, float]
) -> np.ndarray:
    """Return the values, without NaN, whose times are in this part of the measured time."""
    times = np.asarray(times_s, dtype=float)
    chosen = np.asarray(values, dtype=float)[
        (times >= part[0] * measured_s) & (times <= part[1] * measured_s)
    ]
    return chosen[~np.isnan(chosen)]


def begin_and_end(
    times_s: Sequence[float], values: Sequence[float], measured_s: float
) -> tuple[float, float] | None:
    """Return the medians of the two windows; None where one of them has too few values."""
    windows = [in_window(times_s, values, measured_s, part) for part in (BEGINNING, END)]
    if min(window.size for window in windows) < MIN_PER_WINDOW:
        return None
    begin, end = (float(np.median(window)) for window in windows)
    return begin, end


def flat_verdict(
    name: str, medians: tuple[float, float] | None, allowed_growth: float, unit: str = ''
) -> Verdict:
    """Judge whether a series is flat by the medians of its two windows."""
    if medians is None:
        return Verdict(name, False, 'measured for too short a time to tell')
    begin, end = medians
    growth = end - begin
    digits = 1 if unit else 0
    unit = f' {unit}' if unit else ''
    found = (
        f'{begin:.{digits}f}{unit} at the beginning, {end:.{digits}f}{unit} at the end: '
        f'{growth:+.{digits}f} (allowed +{allowed_growth:g})'
    )
    return Verdict(name, growth <= allowed_growth, found)


def frames_verdict(problems: Sequence[str], counters: Mapping[str, int]) -> Verdict:
    """Judge by soak_frames.frame_problems."""
    if problems:
        return Verdict('frames', False, '; '.join(problems))
    found = f'{counters.get("answered", 0)} taken, each answered once'
    if counters.get('full_dropped', 0):
        found += f'; {counters["full_dropped"]} more by skip alone'
    return Verdict('frames', True, f'{found}; {counters.get("received", 0)} came in')


def states_verdict(states_s: Mapping[str, float], error: str, longest_silence_s: float) -> Verdict:
    """Judge the states, by how long each lasted; `error` is the first state error's reason."""
    found = ', '.join(f'{state} {seconds:.0f} s' for state, seconds in states_s.items())
    holds = 'error' not in states_s and not error
    if error:
        found += f'; {error}'
    if longest_silence_s > LONGEST_SILENCE_S:
        holds = False
        found += f'; silent on /diagnostics for {longest_silence_s:.1f} s'
    return Verdict('states', holds, found or 'never heard of on /diagnostics')


def end_verdict(status: int | None, seconds: float, ended_before: str = '') -> Verdict:
    """Judge the end after SIGINT; `status` None = it had to be killed."""
    if ended_before:
        return Verdict('end', False, ended_before)
    if status is None:
        return Verdict('end', False, f'still there {seconds:.1f} s after SIGINT: killed')
    found = f'status {status}, {seconds:.2f} s after SIGINT (allowed {ENDS_WITHIN_S:g} s)'
    return Verdict('end', status == 0 and seconds <= ENDS_WITHIN_S, found)


def percentiles(values: np.ndarray) -> dict[str, Any]:
    """Return p50 and p95; None where there are no values."""
    if not values.size:
        return {'p50': None, 'p95': None}
    return {f'p{q}': round(float(np.percentile(values, q)), 3) for q in (50, 95)}


def duration_by_state(
    reports: Sequence[tuple[float, str]], end_s: float
) -> tuple[dict[str, float], float]:
    """
    Return how long each state lasted, in order of first appearance, and the longest silence.

    `reports` are (time, state); a state lasts until the next report, the last one until `end_s`.
    """
    states_s: dict[str, float] = {}
    longest_s = 0.0 if reports else math.inf
    for index, (time_s, state) in enumerate(reports):
        until_s = reports[index + 1][0] if index + 1 < len(reports) else end_s
        lasted_s = max(0.0, until_s - time_s)
        states_s[state] = states_s.get(state, 0.0) + lasted_s
        longest_s = max(longest_s, lasted_s)
    return states_s, longest_s
