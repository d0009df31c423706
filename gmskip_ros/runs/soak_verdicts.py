"""What a soak requires, and whether it holds.

A series is flat if the median of the last fifth of the measured time is at most so much above that
of the second fifth. In the first fifth, allocators and caches fill; a single second says little.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from gmskip_ros.pipeline.health import FRAME_COUNTERS
from gmskip_ros.pipeline.pipeline import BRANCHES
from gmskip_ros.runs.soak_record import COMPARISON, Answer, HealthReport

BEGINNING, END = (0.2, 0.4), (0.8, 1.0)  # the two windows, as parts of the measured time
MIN_PER_WINDOW = 2  # samples
STOPS_WITHIN_S = 2.0  # of SIGINT
LONGEST_SILENCE_S = 10.0  # between two health reports, which come once a second
UNANSWERED = ('undecodable', 'failed', 'abandoned')  # counters of taken frames without an answer
STAMPS_NAMED = 3

FrameKey = tuple[int, int]  # pass of the source, stamp (ns)


@dataclass(frozen=True)
class Verdict:
    """One requirement, whether it holds, and what was found, in one line."""

    name: str
    holds: bool
    found: str


# ---- flat series


def in_window(
    times_s: Sequence[float], values: Sequence[float], measured_s: float, part: tuple[float, float]
) -> np.ndarray:
    """Return the values, without NaN, whose times are in this part of the measured time."""
    times, numbers = np.asarray(times_s, dtype=float), np.asarray(values, dtype=float)
    is_inside = (times >= part[0] * measured_s) & (times <= part[1] * measured_s)
    return numbers[is_inside & ~np.isnan(numbers)]


def medians(
    times_s: Sequence[float], values: Sequence[float], measured_s: float
) -> tuple[float, float] | None:
    """Return the medians of the two windows; None if one of them has too few values."""
    windows = [in_window(times_s, values, measured_s, part) for part in (BEGINNING, END)]
    if min(window.size for window in windows) < MIN_PER_WINDOW:
        return None
    beginning, end = (float(np.median(window)) for window in windows)
    return beginning, end


def flat_verdict(
    name: str, medians: tuple[float, float] | None, allowed_growth: float, unit: str = ''
) -> Verdict:
    """Judge whether a series is flat by the medians of its two windows."""
    if medians is None:
        return Verdict(name, False, 'too short a time was measured')
    beginning, end = medians
    digits, unit = (1, f' {unit}') if unit else (0, '')
    found = (
        f'{beginning:.{digits}f}{unit} at the beginning, {end:.{digits}f}{unit} at the end: '
        f'{end - beginning:+.{digits}f} (allowed +{allowed_growth:g})'
    )
    return Verdict(name, end - beginning <= allowed_growth, found)


def percentiles(values: np.ndarray) -> dict[str, float | None]:
    """Return p50 and p95; None if there are no values."""
    if not values.size:
        return {'p50': None, 'p95': None}
    return {f'p{q}': round(float(np.percentile(values, q)), 3) for q in (50, 95)}


# ---- states and the end


def duration_by_state(
    reports: Sequence[HealthReport], start_s: float, end_s: float
) -> tuple[dict[str, float], float]:
    """Return how many seconds each state lasted, in order of appearance, and the longest silence.

    A state lasts from its report, or from `start_s`, until the next report, the last until `end_s`.
    """
    reports = [report for report in reports if report.arrived_s <= end_s]
    times_s = [max(report.arrived_s, start_s) for report in reports] + [end_s]
    seconds: dict[str, float] = {}
    for report, begin_s, until_s in zip(reports, times_s[:-1], times_s[1:], strict=True):
        if until_s > begin_s:
            seconds[report.state] = seconds.get(report.state, 0.0) + until_s - begin_s
    return seconds, float(max(np.diff(times_s), default=math.inf))


def states_verdict(states_s: Mapping[str, float], error: str, longest_silence_s: float) -> Verdict:
    """Judge the states by the seconds that each lasted; `error`: the reason for a final error."""
    found = [', '.join(f'{state} {seconds:.0f} s' for state, seconds in states_s.items())]
    if error:
        found.append(error)
    is_silent = longest_silence_s > LONGEST_SILENCE_S
    if is_silent:
        found.append(f'silent on /diagnostics for {longest_silence_s:.1f} s')
    holds = 'error' not in states_s and not error and not is_silent
    return Verdict('states', holds, '; '.join(filter(None, found)))


def end_verdict(status: int | None, seconds: float, exited_early: str = '') -> Verdict:
    """Judge the exit after SIGINT; status None: it had to be killed."""
    if exited_early:
        return Verdict('end', False, exited_early)
    if status is None:
        return Verdict('end', False, f'still running {seconds:.1f} s after SIGINT: killed')
    found = f'status {status}, {seconds:.2f} s after SIGINT (allowed {STOPS_WITHIN_S:g} s)'
    return Verdict('end', status == 0 and seconds <= STOPS_WITHIN_S, found)


# ---- every frame that is taken is answered once


def frames_verdict(problems: Sequence[str], counters: Mapping[str, int]) -> Verdict:
    """Judge by the result of `frame_problems`."""
    if problems:
        return Verdict('frames', False, '; '.join(problems))
    found = f'{counters["answered"]} taken, each answered once'
    if counters['full_dropped']:
        found += f'; {counters["full_dropped"]} more by skip alone'
    return Verdict('frames', True, f'{found}; {counters["received"]} received')


def frame_problems(
    answers: Sequence[Answer],
    counters: Mapping[str, int],
    *,
    branches: Sequence[str],
    period_ns: int,
    stale_after_s: float,
    repeats: bool = False,
    at_rest: bool = True,
) -> list[str]:
    """Return one line for each way in which frames and answers do not match; [] if they do.

    answers: in order of arrival. counters: the node's last ones, by FRAME_COUNTERS. stale_after_s:
    the greatest age of a frame when work on it starts. repeats: the source starts over with the
    same stamps (a bag does): a jump back by more than a period starts a new pass, and ages mean
    nothing. at_rest: the counters are final.
    """
    topics = published_topics(branches)
    problems = [
        f'a message on {answer.topic}, which the node does not publish now'
        for answer in answers
        if answer.topic not in topics
    ]
    frames: dict[str, set[FrameKey]] = {}
    for topic in topics:
        stamps = [answer.stamp_ns for answer in answers if answer.topic == topic]
        keys = _frame_keys(stamps, period_ns if repeats else None)
        frames[topic] = set(keys)
        repeated = {key for key, count in Counter(keys).items() if count > 1}
        newest = accumulate(keys, max)
        late = {key for key, newest_key in zip(keys, newest, strict=True) if key < newest_key}
        if repeated:
            problems.append(f'{topic}: {_named(repeated)} answered more than once')
        if late - repeated:
            problems.append(f'{topic}: {_named(late - repeated)} out of order')

    first, others = topics[0], topics[1:]
    for topic in others:
        if frames[topic] - frames[first]:
            surplus = _named(frames[topic] - frames[first])
            problems.append(f'{topic}: {surplus} without an answer of {first}')
    complete = set.intersection(*frames.values())
    partial = set.union(*frames.values()) - complete
    may_be_partial = counters['full_dropped']  # the overload policy drops the full branch
    if len(partial) > may_be_partial:
        missing = [
            f'{topic}: no answer to {_named(partial - keys)}'
            for topic, keys in frames.items()
            if partial - keys
        ]
        problems.append(f'{"; ".join(missing)} (full_dropped: {may_be_partial})')
    if not frames[first]:
        problems.append('no frame was answered')
    problems += [f'{counters[name]} taken but {name}' for name in UNANSWERED if counters[name]]
    if at_rest:
        problems += _counter_problems(counters, len(complete), len(partial))
    else:
        problems.append('the node did not come to rest: its counters are not final')
    if not repeats:
        stamped = [answer for answer in answers if answer.topic == first]
        problems += _stale_problems(stamped, stale_after_s)
    return problems


def published_topics(branches: Collection[str]) -> tuple[str, ...]:
    """Return what is published on a frame with these branches, in its order."""
    ordered = tuple(branch for branch in BRANCHES if branch in branches)
    return (*ordered, COMPARISON) if len(ordered) == len(BRANCHES) else ordered


def _frame_keys(stamps: Sequence[int], pass_gap_ns: int | None) -> list[FrameKey]:
    """Return each stamp with its pass; one that is older by more than the gap starts a new pass."""
    keys: list[FrameKey] = []
    number, newest_ns = 0, -1
    for stamp_ns in stamps:
        if pass_gap_ns is not None and newest_ns - stamp_ns > pass_gap_ns:
            number, newest_ns = number + 1, -1
        keys.append((number, stamp_ns))
        newest_ns = max(newest_ns, stamp_ns)
    return keys


def _counter_problems(
    counters: Mapping[str, int], num_complete: int, num_partial: int
) -> list[str]:
    """Return where the node's counters differ from its answers, or from each other."""
    problems = [
        f'the node counts {counters[name]} frames as {name}, its topics show {seen}'
        for name, seen in (('answered', num_complete), ('full_dropped', num_partial))
        if counters[name] != seen
    ]
    received = counters['received']
    accounted = sum(counters[name] for name in FRAME_COUNTERS) - received
    if received != accounted:
        problems.append(f'of {received} frames received, {accounted} are accounted for')
    return problems


def _stale_problems(answers: Sequence[Answer], stale_after_s: float) -> list[str]:
    waited_ms = {(0, answer.stamp_ns): answer.age_ms - answer.busy_ms for answer in answers}
    stale = {key for key, waited in waited_ms.items() if waited > 1e3 * stale_after_s}
    if not stale:
        return []
    longest_ms = max(waited_ms.values())
    return [f'{_named(stale)} stale: up to {longest_ms:.0f} ms old when work on it began']


def _named(keys: set[FrameKey]) -> str:
    """Return '2 frames (1795.100, 1796.200)': how many, and the first stamps in seconds."""
    stamps = [f'{stamp_ns / 1e9:.3f}' for _, stamp_ns in sorted(keys)]
    more = ', ...' if len(stamps) > STAMPS_NAMED else ''
    noun = 'frame' if len(stamps) == 1 else 'frames'
    return f'{len(stamps)} {noun} ({", ".join(stamps[:STAMPS_NAMED])}{more})'
