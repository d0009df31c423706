"""One soak, from the start of the node to the verdicts; the node is observed from outside."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import psutil

from gmskip_ros.pipeline.settings import Settings, settings_from
from gmskip_ros.report.writing import write_files
from gmskip_ros.runs.live import (
    STOP_WITHIN_S,
    Child,
    LiveRunError,
    no_shared_memory_left,
    number_of_scenes,
    prepare_output,
    render_scenes,
    set_ros_environment,
    start_camera,
    start_node,
    stop_all,
)
from gmskip_ros.runs.output import remove_results
from gmskip_ros.runs.soak_record import process_use
from gmskip_ros.runs.soak_result import (
    REPORTED,
    Sample,
    Seen,
    SoakOptions,
    make_result,
    memory_picture,
    samples_csv,
)
from gmskip_ros.signals import StopSignals

RESULTS = ('soak.json', 'samples.csv', 'memory.png')
LOGS = ('node.log', 'camera.log')
NUM_SCENES = 60  # at least; then the camera starts over
SAMPLE_PERIOD_S = 1.0
NO_NEWS_S = 600.0  # while the node starts; large models load for minutes
NO_IMAGES_S = 120.0  # in the state no_frames, while the camera starts
REST_WITHIN_S = 60.0  # after the last frame: until the node's counters are final
REST_WITHIN_AFTER_SIGNAL_S = 5.0


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
        self._seen = Seen()
        self._recorder = self._seen.recorder
        self._spin_once: Callable[[float], None]
        self._children: list[Child] = []

    def run(self) -> dict[str, Any]:
        from gmskip_ros.ros.listener import listening

        options = self._options
        prepare_output(options.out, LOGS)
        remove_results(options.out, RESULTS)
        set_ros_environment()
        with (
            tempfile.TemporaryDirectory(prefix='gmskip_soak_') as scratch,
            no_shared_memory_left(),
        ):
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
                    self._seen.at_rest = not self._seen.node_exited and self._come_to_rest()
                    self._stop_node(node)
            finally:
                stop_all(self._children)
        return self._write_results()

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
        if self._settings.image_transport != 'raw' and not self._options.plays_bag:
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
        seen = self._seen
        seen.start_s = due_s = self._recorder.answers[0].arrived_s
        try:
            while not seen.stopped_by and time.monotonic() - seen.start_s < total_s:
                now_s = time.monotonic()
                if now_s >= due_s:
                    due_s += SAMPLE_PERIOD_S * (1 + (now_s - due_s) // SAMPLE_PERIOD_S)
                    self._take_sample(node, total_s)
                self._spin_once(min(due_s - time.monotonic(), 0.1))
                self._stop.check()
                self._check(node)
        except KeyboardInterrupt:
            seen.stopped_by, seen.signal_status = self._stop.name, self._stop.exit_code
        seen.measured_s = time.monotonic() - seen.start_s

    def _take_sample(self, node: Child, total_s: float) -> None:
        try:
            use = process_use(node.pid)
        except psutil.Error:
            return  # it has exited: _check reports how
        report = self._recorder.reports[-1]
        elapsed_s = time.monotonic() - self._seen.start_s
        measured = {'elapsed_s': elapsed_s, **asdict(use)}
        sample = {
            **{name: round(value, 3) for name, value in measured.items()},
            **{name: report.values.get(name, '') for name in REPORTED},
            'state': report.state,
        }
        self._seen.samples.append(sample)
        self._listener.measured(elapsed_s, total_s, sample)

    def _check(self, node: Child) -> None:
        """Note it if a process has exited or the node is in an error."""
        for child in self._children:
            try:
                child.check()
            except LiveRunError as error:
                self._seen.stopped_by = str(error)
                if child is node:
                    self._seen.node_exited = str(error)
                return
        report = self._recorder.reports[-1]
        if report.state == 'error':
            self._seen.stopped_by = f'the node reports an error: {report.reason}'

    def _come_to_rest(self) -> bool:
        """Wait for the last answers, after the camera has stopped; return whether all arrived."""
        self._listener.status('waiting for the last answers')
        patience_s = REST_WITHIN_AFTER_SIGNAL_S if self._seen.signal_status else REST_WITHIN_S
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

    def _stop_node(self, node: Child) -> None:
        """Send SIGINT, and note the exit status and how long it took."""
        self._listener.status('stopping the node')
        asked_s = time.monotonic()
        node.interrupt()
        self._seen.end_status = node.wait(STOP_WITHIN_S)
        self._seen.end_seconds = time.monotonic() - asked_s

    def _write_results(self) -> dict[str, Any]:
        result = make_result(self._options, self._settings, self._seen)
        contents = {
            'soak.json': (json.dumps(result, indent=1, ensure_ascii=False) + '\n').encode(),
            'samples.csv': samples_csv(self._seen.samples),
            'memory.png': memory_picture(self._seen, result),
        }
        try:
            write_files(self._options.out, contents)
        except OSError as error:
            raise LiveRunError(
                f'{error.filename or self._options.out}: {error.strerror}: choose a different '
                'folder with --out'
            ) from None
        return result
