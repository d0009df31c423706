"""What is asked of a soak, and whether it holds.

Flat is what does not grow between two fifths of the measured time: the median of the last fifth is
at most so much above the median of the second one. The first fifth is the warm-up, in which
allocators and caches fill; medians, because a single second says little.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gmskip_ros.pipeline.health import FRAME_COUNTERS
from gmskip_ros.pipeline.pipeline import BRANCHES
from gmskip_ros.ros.listener import COMPARISON, Answer

UNANSWERED = ('undecodable', 'failed', 'abandoned')  # counters of frames taken for nothing
STAMPS_NAMED = 3
Key = tuple[int, int]  # a frame: which pass of the source, stamp (ns)

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


def topics_of(branches: Sequence[str]) -> tuple[str, ...]:
    """Return what is published about a frame with these branches, in its order."""
    ordered = tuple(branch for branch in BRANCHES if branch in branches)
    return (*ordered, COMPARISON) if len(ordered) == len(BRANCHES) else ordered


def frame_problems(
    answers: Iterable[Answer],
    counters: Mapping[str, int],
    *,
    branches: Sequence[str],
    period_ns: int,
    stale_after_s: float,
    repeats: bool = False,
    at_rest: bool = True,
) -> list[str]:
    """
    Return what is wrong with the answers to all frames of a run, a line each; [] = nothing.

    `answers` in the order of arrival; `counters` as the node tells them in the end, by
    FRAME_COUNTERS. `stale_after_s`: a frame may be so old when work on it begins. `repeats`: the
    source has stamps of its own and begins again with them (a bag does): a jump back by more than
    a period begins a new pass, and ages mean nothing. `at_rest`: no frame was on its way any more
    when the node told its counters.
    """
    topics = topics_of(branches)
    by_topic: dict[str, list[Answer]] = {topic: [] for topic in topics}
    problems = []
    for answer in answers:
        if answer.what in by_topic:
            by_topic[answer.what].append(answer)
        else:
            problems.append(f'a message on {answer.what}, which the node does not publish now')
    frames: dict[str, set[Key]] = {}
    for topic, of_topic in by_topic.items():
        stamps = [answer.stamp_ns for answer in of_topic]
        frames[topic], of_order = _in_order(stamps, period_ns, repeats)
        problems += [f'{topic}: {problem}' for problem in of_order]

    first = topics[0]
    complete = set.intersection(*frames.values())
    for topic in topics[1:]:
        surplus = frames[topic] - frames[first]
        if surplus:
            problems.append(f'{topic}: {_frames(surplus)} without an answer of {first}')
    part = {key for keys in frames.values() for key in keys} - complete
    allowed_part = counters.get('full_dropped', 0)  # the full branch gave way: that is its policy
    if len(part) > allowed_part:
        missing = {topic: _frames(part - keys) for topic, keys in frames.items() if part - keys}
        told = '; '.join(f'{topic}: no answer to {text}' for topic, text in missing.items())
        problems.append(f'{told} (full_dropped: {allowed_part})')
    if not frames[first]:
        problems.append('no frame was answered')
    for name in UNANSWERED:
        if counters.get(name, 0):
            problems.append(f'{counters[name]} taken but {name}')
    if not at_rest:
        problems.append('the node did not come to rest: its counters are not final')
    else:
        problems += _counter_problems(counters, len(complete), len(part))
    if not repeats:
        problems += _stale(by_topic[first], stale_after_s)
    return problems


def _in_order(stamps: Sequence[int], period_ns: int, repeats: bool) -> tuple[set[Key], list[str]]:
    """Return the frames on a topic, and what is wrong with their order."""
    keys: set[Key] = set()
    twice: set[Key] = set()
    late: set[Key] = set()
    number, newest_ns = 0, -1
    for stamp_ns in stamps:
        if repeats and newest_ns - stamp_ns > period_ns:
            number, newest_ns = number + 1, -1
        key = (number, stamp_ns)
        if key in keys:
            twice.add(key)
        elif stamp_ns < newest_ns:
            late.add(key)
        keys.add(key)
        newest_ns = max(newest_ns, stamp_ns)
    problems = []
    if twice:
        problems.append(f'{_frames(twice)} answered more than once')
    if late:
        problems.append(f'{_frames(late)} out of order')
    return keys, problems


def _counter_problems(counters: Mapping[str, int], complete: int, part: int) -> list[str]:
    """Return where the node's counters differ from its answers, or from each other."""
    problems = []
    for name, seen in (('answered', complete), ('full_dropped', part)):
        told = counters.get(name, 0)
        if told != seen:
            problems.append(f'the node counts {told} frames as {name}, its topics show {seen}')
    received = counters.get('received', 0)
    others = sum(counters.get(name, 0) for name in FRAME_COUNTERS if name != 'received')
    if received != others:
        problems.append(f'of {received} frames received, {others} are accounted for')
    return problems


def _stale(answers: Sequence[Answer], stale_after_s: float) -> list[str]:
    waited_ms = {answer.stamp_ns: answer.age_ms - answer.busy_ms for answer in answers}
    limit_ms = 1e3 * stale_after_s
    stale = {(0, stamp_ns) for stamp_ns, waited in waited_ms.items() if waited > limit_ms}
    if not stale:
        return []
    longest_ms = max(waited_ms.values())
    return [f'{_frames(stale)} stale: up to {longest_ms:.0f} ms old when work on it began']


def _frames(keys: set[Key]) -> str:
    """Return '2 frames (1795.100, 1796.200)': how many, and the stamps of the first, in s."""
    stamps = [f'{stamp_ns / 1e9:.3f}' for _, stamp_ns in sorted(keys)]
    more = ', ...' if len(stamps) > STAMPS_NAMED else ''
    noun = 'frame' if len(stamps) == 1 else 'frames'
    return f'{len(stamps)} {noun} ({", ".join(stamps[:STAMPS_NAMED])}{more})'
