"""The results of a soak: soak.json, samples.csv and memory.png."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from gmskip_ros.bags.reading import is_bag
from gmskip_ros.machine import describe_run
from gmskip_ros.pipeline.settings import Settings
from gmskip_ros.report.headlines import soak_headline
from gmskip_ros.report.soak_picture import draw_soak
from gmskip_ros.runs.soak_record import COMPARISON, Answer, Recorder
from gmskip_ros.runs.soak_verdicts import (
    BEGINNING,
    END,
    Verdict,
    duration_by_state,
    end_verdict,
    flat_verdict,
    frame_problems,
    frames_verdict,
    in_window,
    medians,
    percentiles,
    published_topics,
    states_verdict,
)

FORMAT = 'gmskip/soak/1'
STALE_AFTER_S = 2.0  # the machine may have other work
GPU_MEMORY = 'gpu_memory_mib'
REPORTED = (GPU_MEMORY, 'achieved_rate_hz', 'frames_received', 'frames_answered')
MEASURED = ('own_mib', 'rss_mib', 'pss_mib', 'open_files', 'threads')
FLAT = {  # series that must not grow: name of the verdict, unit
    'own_mib': ('memory', 'MiB'),
    GPU_MEMORY: ('GPU memory', 'MiB'),
    'open_files': ('open files', ''),
    'threads': ('threads', ''),
}

Sample = dict[str, Any]  # one row of samples.csv


@dataclass(frozen=True)
class SoakOptions:
    """How a soak runs."""

    minutes: float
    camera_rate_hz: float
    parameters: Mapping[str, Any]  # of the node, by name
    source: Path | None  # images, video or bag; None: rendered scenes
    out: Path
    allowed_growth_mib: float
    command: str  # for the record
    node_command: Sequence[str] = ()  # run instead of the node's executable

    @property
    def plays_bag(self) -> bool:
        """Whether the camera plays a bag; its frames keep the stamps of the recording."""
        return self.source is not None and is_bag(self.source)


@dataclass
class Seen:
    """What was observed in a soak. Times are of the steady clock."""

    recorder: Recorder = field(default_factory=Recorder)
    samples: list[Sample] = field(default_factory=list)
    start_s: float = 0.0  # arrival of the first answer
    measured_s: float = 0.0
    stopped_by: str = ''  # why it stopped early
    signal_status: int = 0  # exit status, if a signal stopped it
    node_exited: str = ''  # how the node exited by itself
    at_rest: bool = False  # the node's counters are final
    end_status: int | None = None  # of the node after SIGINT; None: still running
    end_seconds: float = 0.0  # from SIGINT to the exit

    def series(self, name: str) -> list[float]:
        """Return a column of the samples; NaN where it is empty."""
        return [math.nan if sample[name] == '' else float(sample[name]) for sample in self.samples]

    def medians(self, name: str) -> tuple[float, float] | None:
        """Return the medians of a column at the beginning and the end; None if too short."""
        return medians(self.series('elapsed_s'), self.series(name), self.measured_s)

    def answers(self, topic: str) -> list[Answer]:
        """Return the messages on a topic."""
        return [answer for answer in self.recorder.answers if answer.topic == topic]


def make_result(options: SoakOptions, settings: Settings, seen: Seen) -> dict[str, Any]:
    """Return the content of soak.json."""
    last = seen.recorder.reports[-1]
    branches = [topic for topic in published_topics(settings.branches) if topic != COMPARISON]
    use = _use(seen, options.allowed_growth_mib)
    problems = frame_problems(
        seen.recorder.answers,
        last.counters,
        branches=settings.branches,
        period_ns=settings.period_ns,
        # The newest frame that waits is never older than the time between two.
        stale_after_s=STALE_AFTER_S + 1.0 / options.camera_rate_hz,
        repeats=options.plays_bag,
        at_rest=seen.at_rest,
    )
    states_s, silence_s = duration_by_state(
        seen.recorder.reports, seen.start_s, seen.start_s + seen.measured_s
    )
    error = f'error: {last.reason}' if last.state == 'error' else ''
    verdicts = [
        *_flat_verdicts(use),
        frames_verdict(problems, last.counters),
        states_verdict(states_s, error, silence_s),
        end_verdict(seen.end_status, seen.end_seconds, seen.node_exited),
    ]
    has_failed = bool(seen.stopped_by) or not all(verdict.holds for verdict in verdicts)
    facts = last.values
    return {
        'format': FORMAT,
        'complete': not seen.stopped_by,
        'stopped_by': seen.stopped_by,
        'exit_status': seen.signal_status or int(has_failed),
        'created': datetime.now(timezone.utc).strftime('%Y-%m-%dT%H:%M:%SZ'),
        'command': options.command,
        'minutes_asked': options.minutes,
        'measured_s': round(seen.measured_s, 3),
        'camera': {
            'source': str(options.source or 'rendered driving scenes'),
            'rate_hz': options.camera_rate_hz,
        },
        'parameters': dict(options.parameters),
        **describe_run(
            facts['model'],
            facts['device'],
            facts['dtype'],
            facts['quantization'],
            int(facts['num_blocks']),
            facts['image_fit'],
        ),
        'rate_hz': settings.rate_hz,
        'timing': settings.timing,
        'branches': branches,
        'verdicts': [asdict(verdict) for verdict in verdicts],
        'use': use,
        'latency_ms': _latencies(seen, branches, settings.timing, with_age=not options.plays_bag),
        'achieved_rate_hz': _rate_hz([a.arrived_s for a in seen.answers(branches[0])]),
        'frames': last.counters,
        'messages': {topic: len(seen.answers(topic)) for topic in (*branches, COMPARISON)},
        'pictures': seen.recorder.num_overlays,
        'states_s': {state: round(seconds, 3) for state, seconds in states_s.items()},
        'longest_silence_s': round(silence_s, 3),
        'end': {'status': seen.end_status, 'seconds': round(seen.end_seconds, 3)},
    }


def _use(seen: Seen, allowed_growth_mib: float) -> dict[str, dict[str, float | None]]:
    """Return the figures of each series that was measured."""
    use = {}
    for name in (*MEASURED, GPU_MEMORY):
        values = [value for value in seen.series(name) if not math.isnan(value)]
        if not values:
            continue
        beginning, end = seen.medians(name) or (None, None)
        _, unit = FLAT.get(name, ('', ''))
        allowed_growth = allowed_growth_mib if unit else 0.0
        use[name] = {
            'beginning': beginning,
            'end': end,
            'least': min(values),
            'most': max(values),
            'allowed_growth': allowed_growth if name in FLAT else None,
        }
    return use


def _flat_verdicts(use: Mapping[str, Mapping[str, float | None]]) -> list[Verdict]:
    verdicts = []
    for series, (name, unit) in FLAT.items():
        figures = use.get(series, {})
        if series == GPU_MEMORY and not figures:
            continue
        beginning, end = figures.get('beginning'), figures.get('end')
        both = None if beginning is None or end is None else (beginning, end)
        verdicts.append(flat_verdict(name, both, figures.get('allowed_growth') or 0.0, unit))
    return verdicts


def _latencies(seen: Seen, branches: Sequence[str], timing: str, with_age: bool) -> dict[str, Any]:
    """Return p50 and p95 in the two windows, of each branch and of the first answer's age.

    Only answers with this timing count: no figure mixes the two.
    """
    answers = {
        branch: [answer for answer in seen.answers(branch) if answer.timing == timing]
        for branch in branches
    }
    points = {
        branch: [(answer.arrived_s - seen.start_s, answer.busy_ms) for answer in of_branch]
        for branch, of_branch in answers.items()
    }
    if with_age:
        first = answers[branches[0]]
        points['age'] = [(answer.arrived_s - seen.start_s, answer.age_ms) for answer in first]
    latencies: dict[str, Any] = {}
    for name, of_name in points.items():
        times_s, values = [time_s for time_s, _ in of_name], [value for _, value in of_name]
        latencies[name] = {
            window: percentiles(in_window(times_s, values, seen.measured_s, part))
            for window, part in (('beginning', BEGINNING), ('end', END))
        }
    return latencies


def _rate_hz(times_s: Sequence[float]) -> float | None:
    """Return the mean rate of these times; None for fewer than two."""
    if len(times_s) < 2 or times_s[-1] <= times_s[0]:
        return None
    return round((len(times_s) - 1) / (times_s[-1] - times_s[0]), 4)


def samples_csv(samples: Sequence[Sample]) -> bytes:
    """Return samples.csv: a line per sample."""
    text = io.StringIO()
    names = ('elapsed_s', *MEASURED, *REPORTED, 'state')
    writer = csv.DictWriter(text, names, lineterminator='\n')
    writer.writeheader()
    writer.writerows(samples)
    return text.getvalue().encode()


def memory_picture(seen: Seen, result: Mapping[str, Any]) -> bytes:
    """Return memory.png."""
    minutes = seen.measured_s / 60.0
    return draw_soak(
        [elapsed_s / 60.0 for elapsed_s in seen.series('elapsed_s')],
        seen.series('own_mib'),
        [(begin * minutes, end * minutes) for begin, end in (BEGINNING, END)],
        seen.medians('own_mib') or (),
        f'{result["model"]} on {result["device"]}, {soak_headline(result)}',
    )
