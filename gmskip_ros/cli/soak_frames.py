"""Was every frame that the node took answered exactly once? By its topics and its counters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from gmskip_ros.pipeline.health import FRAME_COUNTERS
from gmskip_ros.pipeline.pipeline import BRANCHES

COMPARISON = 'comparison'
UNANSWERED = ('undecodable', 'failed', 'abandoned')  # counters of frames taken for nothing
STAMPS_NAMED = 3

Key = tuple[int, int]  # a frame: which pass of the source, stamp (ns)


@dataclass(frozen=True)
class Answer:
    """A message of results as it came in."""

    what: str  # skip, full or comparison
    stamp_ns: int  # of the frame
    arrived_s: float  # since any moment, the same for all answers
    age_ms: float  # arrival minus stamp
    busy_ms: float  # that this branch took for the frame, as its statuses say; 0 for a comparison


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
