"""One soak, from the start of the node to the verdicts: the node is observed from outside."""

from __future__ import annotations

import csv
import io
import json
import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gmskip_ros.report.soak_picture import draw_soak
from gmskip_ros.report.writing import write_files
from gmskip_ros.ros.listener import COMPARISON
from gmskip_ros.runs import soak_verdicts as verdicts
from gmskip_ros.runs.live import (
    STOP_WITHIN_S,
    Child,
    LiveRunError,
    end,
    make_room,
    number_of_scenes,
    render_scenes,
    set_ros_environment,
    start_camera,
    start_node,
)
from gmskip_ros.runs.soak_verdicts import frame_problems
from gmskip_ros.signals import Interrupted, StopRequest

if TYPE_CHECKING:
    from gmskip_ros.pipeline.settings import Settings
    from gmskip_ros.ros.listener import HealthReport, Listener

KIB_PER_MIB = 1024.0

FORMAT = 'gmskip/soak/1'
RESULTS = ('soak.json', 'samples.csv', 'memory.png')
LOGS = ('node.log', 'camera.log')
SCENES = 60  # at least; then the camera begins again
SAMPLE_PERIOD_S = 1.0
STALE_AFTER_S = 2.0  # the machine may have other work
NO_NEWS_S = 600.0  # of a node that starts; large models load for minutes
NO_IMAGES_S = 120.0  # in the state no_frames, beside a camera that starts
REST_WITHIN_S = 60.0  # after the last frame: until the node's counters are final
REST_WITHIN_AFTER_SIGNAL_S = 5.0  # the same for somebody who waits


@dataclass(frozen=True)
class SoakOptions:
    """What is asked of a soak."""

    minutes: float
    camera_rate_hz: float
    parameters: Mapping[str, Any]  # of the node, by name
    source: Path | None  # pictures, video or bag; None = rendered scenes
    out: Path
    allowed_growth_mib: float
    command: str  # for the record
    node_command: Sequence[str] = ()  # run in place of the node's own executable


@dataclass(frozen=True)
class Sample:
    """The node at one moment."""

    elapsed_s: float  # since the first answer
    use: ProcessUse
    report: HealthReport  # the newest


class Watcher:
    """Hears how a soak goes; does nothing by default."""

    def status(self, text: str) -> None:
        """Something goes on before there is anything to measure."""

    def measured(self, elapsed_s: float, total_s: float, sample: Sample) -> None:
        """Another second has been measured."""


def run_soak(options: SoakOptions, stop: StopRequest, watcher: Watcher | None = None) -> dict:
    """
    Run a soak, write RESULTS into the folder and return the content of soak.json.

    Raises LiveRunError, and Interrupted when a signal comes before there is anything to tell.
    """
    return _Soak(options, stop, watcher or Watcher()).run()


class _Soak:
    def __init__(self, options: SoakOptions, stop: StopRequest, watcher: Watcher) -> None:
        from gmskip_ros.pipeline.pipeline import BRANCHES
        from gmskip_ros.pipeline.settings import settings_from

        self._options, self._stop, self._watcher = options, stop, watcher
        self._settings: Settings = settings_from(options.parameters)
        # skip before full, as they are published, in whatever order they were asked for
        self._branches = [name for name in BRANCHES if name in self._settings.branches]
        self._samples: list[Sample] = []
        self._children: list[Child] = []
        self._start_s = 0.0  # the first answer's arrival, steady clock
        self._measured_s = 0.0
        self._stopped_by = ''  # why it ended before its time
        self._node_ended = ''  # how the node ended by itself
        self._signal: int | None = None  # exit status

    def run(self) -> dict[str, Any]:
        from gmskip_ros.ros.listener import listening

        make_room(self._options.out, RESULTS, LOGS)
        set_ros_environment()
        with tempfile.TemporaryDirectory(prefix='gmskip_soak_') as scratch:
            try:
                self._watcher.status('starting the node')
                node = start_node(
                    self._options.parameters,
                    self._options.out / 'node.log',
                    self._options.node_command,
                )
                self._children.append(node)
                with listening() as listener:
                    self._wait_for(listener, lambda: listener.reports, 'starting the node')
                    camera = self._start_camera(Path(scratch))
                    self._children.append(camera)
                    self._wait_for(listener, lambda: listener.answers, 'waiting for an answer')
                    self._measure(listener, node)
                    end([camera])
                    self._children.remove(camera)
                    is_at_rest = not self._node_ended and self._come_to_rest(listener)
                    status, seconds = self._end_node(node)
            finally:
                end(self._children)
        return self._write(listener, is_at_rest, status, seconds)

    def _start_camera(self, scratch: Path) -> Child:
        source = self._options.source
        if source is None:
            source = scratch
            self._watcher.status('rendering driving scenes')
            render_scenes(scratch, number_of_scenes(SCENES), self._stop.check)
        parameters: dict[str, object] = {
            'source': str(source),
            'rate_hz': self._options.camera_rate_hz,
        }
        if self._settings.image_transport != 'raw' and not self._repeats:
            parameters['image_transport'] = self._settings.image_transport
        return start_camera(parameters, self._options.out / 'camera.log')

    @property
    def _repeats(self) -> bool:
        """Whether the camera plays a bag, with the stamps of the recording."""
        from gmskip_ros.bags.reading import is_bag

        return self._options.source is not None and is_bag(self._options.source)

    # ---- observing

    def _wait_for(self, listener: Listener, is_there: Callable[[], object], what: str) -> None:
        """Wait for something of the node; LiveRunError where it does not come."""
        news, since_s = '', time.monotonic()
        while not is_there():
            listener.spin_once(0.1)
            self._stop.check()
            for child in self._children:
                child.check()
            state, text = '', what
            if listener.reports:
                state, reason = listener.reports[-1].state, listener.reports[-1].reason
                if state == 'error':
                    raise LiveRunError(f'the node reports an error: {reason}')
                # Of the other states the reason may be another one every second.
                text = f'loading: {reason}' if state == 'loading' and reason else state
            if text != news:
                news, since_s = text, time.monotonic()
                self._watcher.status(text)
            patience_s = NO_IMAGES_S if state == 'no_frames' else NO_NEWS_S
            if time.monotonic() - since_s > patience_s:
                raise LiveRunError(
                    f'nothing new ({text}) for {patience_s:g} s; {self._children[-1].last_lines()}'
                )

    def _measure(self, listener: Listener, node: Child) -> None:
        """Take a sample a second until the time is over, or until there is no use in going on."""
        total_s = self._options.minutes * 60.0
        self._start_s = listener.answers[0].arrived_s
        due_s = self._start_s
        try:
            while not self._stopped_by and time.monotonic() - self._start_s < total_s:
                now_s = time.monotonic()
                if now_s >= due_s:
                    due_s += SAMPLE_PERIOD_S * (1 + (now_s - due_s) // SAMPLE_PERIOD_S)
                    self._take_sample(listener, node, total_s)
                listener.spin_once(min(due_s - time.monotonic(), 0.1))
                self._stop.check()
                self._check(listener, node)
        except Interrupted as interrupted:
            self._stopped_by, self._signal = str(interrupted), interrupted.exit_status
        self._measured_s = time.monotonic() - self._start_s

    def _take_sample(self, listener: Listener, node: Child, total_s: float) -> None:
        try:
            use = process_use(node.pid)
        except OSError:
            return  # it has ended: _check tells how
        elapsed_s = time.monotonic() - self._start_s
        self._samples.append(Sample(elapsed_s, use, listener.reports[-1]))
        self._watcher.measured(elapsed_s, total_s, self._samples[-1])

    def _check(self, listener: Listener, node: Child) -> None:
        """See whether both processes live, and the node without an error."""
        for child in self._children:
            try:
                child.check()
            except LiveRunError as error:
                self._stopped_by = str(error)
                if child is node:
                    self._node_ended = str(error)
                return
        report = listener.reports[-1]
        if report.state == 'error':
            self._stopped_by = f'the node reports an error: {report.reason}'

    def _come_to_rest(self, listener: Listener) -> bool:
        """Wait, after the camera has ended, for the last answers; return whether all are there."""
        self._watcher.status('waiting for the last answers')
        patience_s = REST_WITHIN_AFTER_SIGNAL_S if self._signal else REST_WITHIN_S
        now_s = time.monotonic()
        deadline_s, since_s = now_s + patience_s, now_s
        at_rest = 0
        while at_rest < 2 and time.monotonic() < deadline_s:  # the second one: nothing came after
            listener.spin_once(0.1)
            new = [report for report in listener.reports if report.arrived_s > since_s]
            if new:
                since_s = new[-1].arrived_s
                at_rest = at_rest + 1 if new[-1].frames_rest else 0
        return at_rest == 2

    def _end_node(self, node: Child) -> tuple[int | None, float]:
        """Send SIGINT; return the exit status, None if there is none, and the seconds it took."""
        self._watcher.status('ending the node')
        asked_s = time.monotonic()
        node.ask_to_end()
        status = node.wait(STOP_WITHIN_S)
        return status, time.monotonic() - asked_s

    # ---- telling

    def _write(
        self, listener: Listener, is_at_rest: bool, status: int | None, seconds: float
    ) -> dict[str, Any]:
        result = self._result(listener, is_at_rest, status, seconds)
        times_min = [sample.elapsed_s / 60.0 for sample in self._samples]
        use = {name: self._series(name) for name in USED}
        windows_min = [
            (part[0] * self._measured_s / 60.0, part[1] * self._measured_s / 60.0)
            for part in (verdicts.BEGINNING, verdicts.END)
        ]
        latencies = {
            branch: (
                [(answer.arrived_s - self._start_s) / 60.0 for answer in answers],
                [answer.busy_ms for answer in answers],
            )
            for branch, answers in self._by_branch(listener).items()
        }
        contents = {
            'soak.json': (json.dumps(result, indent=1, ensure_ascii=False) + '\n').encode(),
            'samples.csv': self._csv(),
            'memory.png': draw_soak(times_min, use, latencies, windows_min, _title(result)),
        }
        try:
            write_files(self._options.out, contents)
        except OSError as error:
            raise LiveRunError(
                f'{error.filename or self._options.out}: {error.strerror}: give another folder '
                'with --out'
            ) from None
        return result

    def _result(
        self, listener: Listener, is_at_rest: bool, status: int | None, seconds: float
    ) -> dict[str, Any]:
        from gmskip_ros.machine import machine, software

        options, settings = self._options, self._settings
        last = listener.reports[-1]
        growth = {
            'own_mib': options.allowed_growth_mib,
            'gpu_memory_mib': options.allowed_growth_mib,
            'open_files': 0.0,
            'threads': 0.0,
        }
        use = {name: self._figures(name, growth.get(name)) for name in (*USED, 'gpu_memory_mib')}
        use = {name: figures for name, figures in use.items() if figures is not None}
        problems = frame_problems(
            listener.answers,
            last.counters,
            branches=settings.branches,
            period_ns=settings.period_ns,
            # The newest frame that waits is never older than the time between two.
            stale_after_s=STALE_AFTER_S + 1.0 / options.camera_rate_hz,
            repeats=self._repeats,
            at_rest=is_at_rest,
        )
        end_s = self._start_s + self._measured_s
        reports = [
            (max(report.arrived_s, self._start_s), report.state)
            for report in listener.reports
            if report.arrived_s <= end_s
        ]
        states_s, silence_s = verdicts.duration_by_state(reports, end_s)
        states_s = {state: round(lasted_s, 3) for state, lasted_s in states_s.items() if lasted_s}
        error = f'error: {last.reason}' if last.state == 'error' else ''
        asked = [
            self._flat('memory', 'own_mib', growth, 'MiB'),
            *(
                [self._flat('GPU memory', 'gpu_memory_mib', growth, 'MiB')]
                if 'gpu_memory_mib' in use
                else []
            ),
            self._flat('open files', 'open_files', growth),
            self._flat('threads', 'threads', growth),
            verdicts.frames_verdict(problems, last.counters),
            verdicts.states_verdict(states_s, error, silence_s),
            verdicts.end_verdict(status, seconds, self._node_ended),
        ]
        holds = all(verdict.holds for verdict in asked)
        answered = [a for a in listener.answers if a.what == self._branches[0]]
        return {
            'format': FORMAT,
            'complete': not self._stopped_by,
            'stopped_by': self._stopped_by,
            'exit_status': self._signal or int(bool(self._stopped_by) or not holds),
            'created': datetime.now(timezone.utc).strftime('%Y-%m-%dT%H:%M:%SZ'),
            'command': options.command,
            'minutes_asked': options.minutes,
            'measured_s': round(self._measured_s, 3),
            'camera': {
                'source': str(options.source or 'rendered driving scenes'),
                'rate_hz': options.camera_rate_hz,
            },
            'parameters': dict(options.parameters),
            'model': last.values['model'],
            'device': last.values['device'],
            'dtype': last.values['dtype'],
            'rate_hz': settings.rate_hz,
            'branches': self._branches,
            'machine': machine(last.values['device']),
            'software': software(),
            'verdicts': [asdict(verdict) for verdict in asked],
            'use': use,
            'latency_ms': self._latencies(listener),
            'achieved_rate_hz': _rate_hz([answer.arrived_s for answer in answered]),
            'frames': last.counters,
            'messages': {
                what: sum(answer.what == what for answer in listener.answers)
                for what in (*self._branches, COMPARISON)
            },
            'pictures': listener.pictures,
            'states_s': states_s,
            'longest_silence_s': round(silence_s, 3),
            'end': {'status': status, 'seconds': round(seconds, 3)},
        }

    def _series(self, name: str) -> list[float]:
        """Return a figure of all samples; NaN where it was not told."""
        if name in USED:
            return [float(getattr(sample.use, name)) for sample in self._samples]
        return [float(sample.report.values.get(name, 'nan')) for sample in self._samples]

    def _medians(self, name: str) -> tuple[float, float] | None:
        times_s = [sample.elapsed_s for sample in self._samples]
        return verdicts.begin_and_end(times_s, self._series(name), self._measured_s)

    def _flat(
        self, name: str, series: str, allowed_growth: Mapping[str, float], unit: str = ''
    ) -> verdicts.Verdict:
        return verdicts.flat_verdict(name, self._medians(series), allowed_growth[series], unit)

    def _figures(self, name: str, allowed_growth: float | None) -> dict[str, Any] | None:
        """Return the figures of one series for soak.json; None if it was never told."""
        values = [value for value in self._series(name) if not math.isnan(value)]
        if not values:
            return None
        medians = self._medians(name)
        begin, end_ = medians if medians is not None else (None, None)
        return {
            'beginning': begin,
            'end': end_,
            'least': min(values),
            'most': max(values),
            'allowed_growth': allowed_growth,
        }

    def _by_branch(self, listener: Listener) -> dict[str, list[Any]]:
        return {
            branch: [answer for answer in listener.answers if answer.what == branch]
            for branch in self._branches
        }

    def _latencies(self, listener: Listener) -> dict[str, Any]:
        """Return p50 and p95 in the two windows, by branch, and of the first answer's age."""
        by_branch = self._by_branch(listener)
        series = {
            branch: [(answer.arrived_s - self._start_s, answer.busy_ms) for answer in answers]
            for branch, answers in by_branch.items()
        }
        if not self._repeats:
            first = next(iter(by_branch))
            series['age'] = [(a.arrived_s - self._start_s, a.age_ms) for a in by_branch[first]]
        windows = {'beginning': verdicts.BEGINNING, 'end': verdicts.END}
        return {
            name: {
                window: verdicts.percentiles(
                    verdicts.in_window(
                        [time_s for time_s, _ in points],
                        [value for _, value in points],
                        self._measured_s,
                        part,
                    )
                )
                for window, part in windows.items()
            }
            for name, points in series.items()
        }

    def _csv(self) -> bytes:
        """Return samples.csv: a line a second."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator='\n')
        told = ('gpu_memory_mib', 'achieved_rate_hz', 'frames_received', 'frames_answered')
        writer.writerow(['elapsed_s', *USED, *told, 'state'])
        for sample in self._samples:
            writer.writerow(
                [
                    f'{sample.elapsed_s:.3f}',
                    *(_text(getattr(sample.use, name)) for name in USED),
                    *(sample.report.values.get(name, '') for name in told),
                    sample.report.state,
                ]
            )
        return text.getvalue().encode()


def _text(value: float) -> str:
    if isinstance(value, int):
        return str(value)
    return '' if math.isnan(value) else f'{value:.3f}'


def _rate_hz(times_s: Sequence[float]) -> float | None:
    """Return how many a second there were; None where that cannot be said."""
    if len(times_s) < 2 or times_s[-1] <= times_s[0]:
        return None
    return round((len(times_s) - 1) / (times_s[-1] - times_s[0]), 4)


def _title(result: Mapping[str, Any]) -> str:
    failing = [verdict['name'] for verdict in result['verdicts'] if not verdict['holds']]
    return f'{result["model"]} on {result["device"]}, {result["measured_s"] / 60:.1f} min: ' + (
        f'fails: {", ".join(failing)}' if failing else 'all holds'
    )


@dataclass(frozen=True)
class ProcessUse:
    """One moment of a process."""

    own_mib: float  # anonymous, shared-memory and swapped pages: what it has allocated
    rss_mib: float  # resident, with the pages of files, which the kernel takes back when it likes
    pss_mib: float  # resident, shared pages counted in part; NaN where the kernel does not tell
    open_files: int  # file handles
    threads: int


USED = tuple(field.name for field in fields(ProcessUse))


def process_use(pid: int) -> ProcessUse:
    """Return what the process uses now. Raises OSError when it has ended."""
    process = Path('/proc') / str(pid)
    status = _fields(process / 'status')
    if 'VmRSS' not in status:
        raise ProcessLookupError(f'process {pid} has ended')
    own_kib = sum(status.get(name, 0) for name in ('RssAnon', 'RssShmem', 'VmSwap'))
    try:
        pss_mib = _fields(process / 'smaps_rollup')['Pss'] / KIB_PER_MIB
    except (OSError, KeyError):
        pss_mib = float('nan')
    return ProcessUse(
        own_mib=own_kib / KIB_PER_MIB,
        rss_mib=status['VmRSS'] / KIB_PER_MIB,
        pss_mib=pss_mib,
        open_files=sum(1 for _ in (process / 'fd').iterdir()),
        threads=status['Threads'],
    )


def _fields(path: Path) -> dict[str, int]:
    """Return the lines 'Name:  123 kB' of a file that have a number."""
    fields = {}
    for line in path.read_text(errors='replace').splitlines():
        name, _, value = line.partition(':')
        words = value.split()
        if words and words[0].isdigit():
            fields[name] = int(words[0])
    return fields
