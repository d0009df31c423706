"""One soak, from the start of the node to the verdicts; the node is observed from outside."""

from __future__ import annotations

import csv
import io
import json
import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Protocol

import psutil

from gmskip_ros.bags.reading import is_bag
from gmskip_ros.machine import describe_run
from gmskip_ros.pipeline.settings import Settings, settings_from
from gmskip_ros.report.soak_picture import draw_soak
from gmskip_ros.report.writing import write_files
from gmskip_ros.runs import soak_verdicts as verdicts
from gmskip_ros.runs.live import (
    STOP_WITHIN_S,
    Child,
    LiveRunError,
    number_of_scenes,
    prepare_output,
    render_scenes,
    set_ros_environment,
    start_camera,
    start_node,
    stop_all,
)
from gmskip_ros.runs.soak_record import COMPARISON, Recorder, process_use
from gmskip_ros.signals import StopSignals

FORMAT = 'gmskip/soak/1'
RESULTS = ('soak.json', 'samples.csv', 'memory.png')
LOGS = ('node.log', 'camera.log')
NUM_SCENES = 60  # at least; then the camera starts over
SAMPLE_PERIOD_S = 1.0
STALE_AFTER_S = 2.0  # the machine may have other work
NO_NEWS_S = 600.0  # while the node starts; large models load for minutes
NO_IMAGES_S = 120.0  # in the state no_frames, while the camera starts
REST_WITHIN_S = 60.0  # after the last frame: until the node's counters are final
REST_WITHIN_AFTER_SIGNAL_S = 5.0

# (name of the verdict, series, unit); none of them may grow.
FLAT_SERIES = (
    ('memory', 'own_mib', 'MiB'),
    ('GPU memory', 'gpu_memory_mib', 'MiB'),
    ('open files', 'open_files', ''),
    ('threads', 'threads', ''),
)
SERIES = ('own_mib', 'rss_mib', 'pss_mib', 'open_files', 'threads', 'gpu_memory_mib')
REPORTED = ('gpu_memory_mib', 'achieved_rate_hz', 'frames_received', 'frames_answered')

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


class SoakListener(Protocol):
    """Shows how a soak goes."""

    def status(self, text: str) -> None:
        """Show a step that has nothing to measure."""

    def measured(self, elapsed_s: float, total_s: float, sample: Sample) -> None:
        """Show the newest sample."""


def run_soak(options: SoakOptions, stop: StopSignals, listener: SoakListener) -> dict[str, Any]:
    """Run a soak, write RESULTS into the folder and return the content of soak.json.

    Raises LiveRunError, and KeyboardInterrupt when a signal comes before the first answer.
    """
    return _Soak(options, stop, listener).run()


class _Soak:
    def __init__(self, options: SoakOptions, stop: StopSignals, listener: SoakListener) -> None:
        self._options, self._stop, self._listener = options, stop, listener
        self._settings: Settings = settings_from(options.parameters)
        self._topics = verdicts.published_topics(self._settings.branches)
        self._branches = [topic for topic in self._topics if topic != COMPARISON]
        # A bag's frames keep the stamps of the recording.
        self._plays_bag = options.source is not None and is_bag(options.source)
        self._recorder = Recorder()
        self._spin_once: Callable[[float], None]
        self._samples: list[Sample] = []
        self._children: list[Child] = []
        self._start_s = 0.0  # the first answer's arrival, steady clock
        self._measured_s = 0.0
        self._stopped_by = ''  # why it stopped early
        self._node_exited = ''  # how the node exited by itself

    def run(self) -> dict[str, Any]:
        from gmskip_ros.ros.listener import listening

        options = self._options
        prepare_output(options.out, RESULTS, LOGS)
        set_ros_environment()
        with tempfile.TemporaryDirectory(prefix='gmskip_soak_') as scratch:
            try:
                log = options.out / 'node.log'
                node = start_node(options.parameters, log, options.node_command)
                self._children.append(node)
                with listening('gmskip_soak', self._recorder, jpeg=True) as self._spin_once:
                    self._wait_for(self._recorder.reports, 'starting the node')
                    camera = self._start_camera(Path(scratch))
                    self._children.append(camera)
                    self._wait_for(self._recorder.answers, 'waiting for an answer')
                    self._measure(node)
                    self._children.remove(camera)
                    stop_all([camera])
                    at_rest = not self._node_exited and self._come_to_rest()
                    status, seconds = self._stop_node(node)
            finally:
                stop_all(self._children)
        return self._write_results(at_rest, status, seconds)

    def _start_camera(self, scratch: Path) -> Child:
        source = self._options.source
        if source is None:
            source = scratch
            self._listener.status('rendering driving scenes')
            render_scenes(scratch, number_of_scenes(NUM_SCENES), self._stop.check)
        parameters: dict[str, object] = {
            'source': str(source),
            'rate_hz': self._options.camera_rate_hz,
        }
        if self._settings.image_transport != 'raw' and not self._plays_bag:
            parameters['image_transport'] = self._settings.image_transport
        return start_camera(parameters, self._options.out / 'camera.log')

    # ---- observing

    def _wait_for(self, messages: Sequence[object], step: str) -> None:
        """Wait for the first of these messages; raises LiveRunError if there is no progress."""
        self._listener.status(step)
        news, since_s = step, time.monotonic()
        while not messages:
            self._spin_once(0.1)
            self._stop.check()
            for child in self._children:
                child.check()
            state, text = '', step
            if self._recorder.reports:
                report = self._recorder.reports[-1]
                state = report.state
                if state == 'error':
                    raise LiveRunError(f'the node reports an error: {report.reason}')
                # In other states the reason may change every second.
                text = (
                    f'{state}: {report.reason}' if state == 'loading' and report.reason else state
                )
            if text != news:
                news, since_s = text, time.monotonic()
                self._listener.status(text)
            patience_s = NO_IMAGES_S if state == 'no_frames' else NO_NEWS_S
            if time.monotonic() - since_s > patience_s:
                raise LiveRunError(
                    f'nothing new ({text}) for {patience_s:g} s; {self._children[-1].last_lines()}'
                )

    def _measure(self, node: Child) -> None:
        """Take a sample a second until the time is over, or something ends the soak early."""
        total_s = self._options.minutes * 60.0
        self._start_s = due_s = self._recorder.answers[0].arrived_s
        try:
            while not self._stopped_by and time.monotonic() - self._start_s < total_s:
                now_s = time.monotonic()
                if now_s >= due_s:
                    due_s += SAMPLE_PERIOD_S * (1 + (now_s - due_s) // SAMPLE_PERIOD_S)
                    self._take_sample(node, total_s)
                self._spin_once(min(due_s - time.monotonic(), 0.1))
                self._stop.check()
                self._check(node)
        except KeyboardInterrupt:
            self._stopped_by = self._stop.name
        self._measured_s = time.monotonic() - self._start_s

    def _take_sample(self, node: Child, total_s: float) -> None:
        try:
            use = process_use(node.pid)
        except psutil.Error:
            return  # it has exited: _check reports how
        report = self._recorder.reports[-1]
        elapsed_s = time.monotonic() - self._start_s
        sample = {'elapsed_s': elapsed_s, **asdict(use)}
        sample = {name: round(value, 3) for name, value in sample.items()}
        sample.update({name: report.values.get(name, '') for name in REPORTED})
        self._samples.append({**sample, 'state': report.state})
        self._listener.measured(elapsed_s, total_s, self._samples[-1])

    def _check(self, node: Child) -> None:
        """Note it if a process has exited or the node is in an error."""
        for child in self._children:
            try:
                child.check()
            except LiveRunError as error:
                self._stopped_by = str(error)
                if child is node:
                    self._node_exited = str(error)
                return
        report = self._recorder.reports[-1]
        if report.state == 'error':
            self._stopped_by = f'the node reports an error: {report.reason}'

    def _come_to_rest(self) -> bool:
        """Wait for the last answers, after the camera has stopped; return whether all arrived."""
        self._listener.status('waiting for the last answers')
        patience_s = REST_WITHIN_AFTER_SIGNAL_S if self._stop.is_set() else REST_WITHIN_S
        since_s = time.monotonic()
        deadline_s = since_s + patience_s
        num_idle = 0
        while num_idle < 2 and time.monotonic() < deadline_s:  # a second one: nothing came since
            self._spin_once(0.1)
            report = self._recorder.reports[-1]
            if report.arrived_s > since_s:
                since_s = report.arrived_s
                num_idle = num_idle + 1 if report.is_idle else 0
        return num_idle == 2

    def _stop_node(self, node: Child) -> tuple[int | None, float]:
        """Send SIGINT; return the exit status, None if it still runs, and the seconds it took."""
        self._listener.status('stopping the node')
        asked_s = time.monotonic()
        node.interrupt()
        status = node.wait(STOP_WITHIN_S)
        return status, time.monotonic() - asked_s

    # ---- results

    def _write_results(self, at_rest: bool, status: int | None, seconds: float) -> dict[str, Any]:
        result = self._result(at_rest, status, seconds)
        windows_min = [
            (begin * self._measured_s / 60.0, end * self._measured_s / 60.0)
            for begin, end in (verdicts.BEGINNING, verdicts.END)
        ]
        picture = draw_soak(
            [seconds / 60.0 for seconds in self._series('elapsed_s')],
            self._series('own_mib'),
            windows_min,
            self._medians('own_mib') or (),
            _title(result),
        )
        contents = {
            'soak.json': (json.dumps(result, indent=1, ensure_ascii=False) + '\n').encode(),
            'samples.csv': self._samples_csv(),
            'memory.png': picture,
        }
        try:
            write_files(self._options.out, contents)
        except OSError as error:
            raise LiveRunError(
                f'{error.filename or self._options.out}: {error.strerror}: choose a different '
                'folder with --out'
            ) from None
        return result

    def _samples_csv(self) -> bytes:
        text = io.StringIO()
        names = ['elapsed_s', *SERIES[:-1], *REPORTED, 'state']
        writer = csv.DictWriter(text, names, lineterminator='\n')
        writer.writeheader()
        writer.writerows(self._samples)
        return text.getvalue().encode()

    def _result(self, at_rest: bool, status: int | None, seconds: float) -> dict[str, Any]:
        options, recorder = self._options, self._recorder
        last = recorder.reports[-1]
        states_s, silence_s = verdicts.duration_by_state(
            recorder.reports, self._start_s, self._start_s + self._measured_s
        )
        error = f'error: {last.reason}' if last.state == 'error' else ''
        judged = [
            *self._flat_verdicts(),
            verdicts.frames_verdict(self._frame_problems(at_rest), last.counters),
            verdicts.states_verdict(states_s, error, silence_s),
            verdicts.end_verdict(status, seconds, self._node_exited),
        ]
        exit_status = int(bool(self._stopped_by) or not all(verdict.holds for verdict in judged))
        if self._stop.is_set():
            exit_status = self._stop.exit_code
        num_blocks = int(last.values['num_blocks'])
        arrivals_s = {
            topic: [answer.arrived_s for answer in recorder.answers if answer.topic == topic]
            for topic in (*self._branches, COMPARISON)
        }
        return {
            'format': FORMAT,
            'complete': not self._stopped_by,
            'stopped_by': self._stopped_by,
            'exit_status': exit_status,
            'created': datetime.now(timezone.utc).strftime('%Y-%m-%dT%H:%M:%SZ'),
            'command': options.command,
            'minutes_asked': options.minutes,
            'measured_s': round(self._measured_s, 3),
            'camera': {
                'source': str(options.source or 'rendered driving scenes'),
                'rate_hz': options.camera_rate_hz,
            },
            'parameters': dict(options.parameters),
            **describe_run(
                last.values['model'], last.values['device'], last.values['dtype'], num_blocks
            ),
            'rate_hz': self._settings.rate_hz,
            'branches': self._branches,
            'verdicts': [asdict(verdict) for verdict in judged],
            'use': {name: use for name in SERIES if (use := self._use(name))},
            'latency_ms': self._latencies(),
            'achieved_rate_hz': _rate_hz(arrivals_s[self._branches[0]]),
            'frames': last.counters,
            'messages': {topic: len(arrived) for topic, arrived in arrivals_s.items()},
            'pictures': recorder.num_overlays,
            'states_s': {state: round(lasted_s, 3) for state, lasted_s in states_s.items()},
            'longest_silence_s': round(silence_s, 3),
            'end': {'status': status, 'seconds': round(seconds, 3)},
        }

    def _flat_verdicts(self) -> list[verdicts.Verdict]:
        return [
            verdicts.flat_verdict(name, self._medians(series), self._allowed_growth(series), unit)
            for name, series, unit in FLAT_SERIES
            if series != 'gpu_memory_mib' or self._use(series)
        ]

    def _allowed_growth(self, series: str) -> float:
        return self._options.allowed_growth_mib if series.endswith('_mib') else 0.0

    def _frame_problems(self, at_rest: bool) -> list[str]:
        return verdicts.frame_problems(
            self._recorder.answers,
            self._recorder.reports[-1].counters,
            branches=self._settings.branches,
            period_ns=self._settings.period_ns,
            # The newest frame that waits is never older than the time between two.
            stale_after_s=STALE_AFTER_S + 1.0 / self._options.camera_rate_hz,
            repeats=self._plays_bag,
            at_rest=at_rest,
        )

    def _series(self, name: str) -> list[float]:
        """Return a column of the samples; NaN where it is empty."""
        return [math.nan if sample[name] == '' else float(sample[name]) for sample in self._samples]

    def _medians(self, name: str) -> tuple[float, float] | None:
        return verdicts.medians(self._series('elapsed_s'), self._series(name), self._measured_s)

    def _use(self, name: str) -> dict[str, float | None] | None:
        """Return the figures of a series for soak.json; None if it was never measured."""
        values = [value for value in self._series(name) if not math.isnan(value)]
        if not values:
            return None
        beginning, end = self._medians(name) or (None, None)
        is_judged = any(name == series for _, series, _ in FLAT_SERIES)
        return {
            'beginning': beginning,
            'end': end,
            'least': min(values),
            'most': max(values),
            'allowed_growth': self._allowed_growth(name) if is_judged else None,
        }

    def _latencies(self) -> dict[str, Any]:
        """Return p50 and p95 in the two windows, by branch, and of the first answer's age."""
        by_branch = {
            branch: [answer for answer in self._recorder.answers if answer.topic == branch]
            for branch in self._branches
        }
        series = {
            branch: [(answer.arrived_s, answer.busy_ms) for answer in answers]
            for branch, answers in by_branch.items()
        }
        if not self._plays_bag:
            first = by_branch[self._branches[0]]
            series['age'] = [(answer.arrived_s, answer.age_ms) for answer in first]
        return {
            name: {
                'beginning': self._percentiles(points, verdicts.BEGINNING),
                'end': self._percentiles(points, verdicts.END),
            }
            for name, points in series.items()
        }

    def _percentiles(
        self, points: Sequence[tuple[float, float]], part: tuple[float, float]
    ) -> dict[str, float | None]:
        times_s = [time_s - self._start_s for time_s, _ in points]
        values = [value for _, value in points]
        return verdicts.percentiles(verdicts.in_window(times_s, values, self._measured_s, part))


def _rate_hz(times_s: Sequence[float]) -> float | None:
    """Return the mean rate of these times; None for fewer than two."""
    if len(times_s) < 2 or times_s[-1] <= times_s[0]:
        return None
    return round((len(times_s) - 1) / (times_s[-1] - times_s[0]), 4)


def _title(result: Mapping[str, Any]) -> str:
    failing = [verdict['name'] for verdict in result['verdicts'] if not verdict['holds']]
    return f'{result["model"]} on {result["device"]}, {result["measured_s"] / 60:.1f} min: ' + (
        f'fails: {", ".join(failing)}' if failing else 'all holds'
    )
