"""The live demo: a camera that plays scenes, the node, and the frames that both branches answered.

The node and the camera are processes of their own; this one sees only what is on the topics.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from gmskip_ros.bags.writing import NewBag
from gmskip_ros.files import write_atomically
from gmskip_ros.machine import describe_run
from gmskip_ros.pipeline.records import NODE_NAME
from gmskip_ros.pipeline.rows import FrameRow, json_line
from gmskip_ros.pipeline.settings import settings_from
from gmskip_ros.report.formatting import machine_name
from gmskip_ros.runs.demo_frames import Frame, FrameCollector
from gmskip_ros.runs.live import (
    CAMERA_TOPIC,
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
from gmskip_ros.runs.output import (
    WRITTEN_AT_THE_END,
    clear_output,
    describe_questions,
    remove_results,
    write_run,
)
from gmskip_ros.signals import StopSignals

BAG = 'bag'  # the folder of what --record writes
MAX_SCENES = 60  # about; then the camera starts over
OVERLAY_WITHIN_S = 5.0  # of the last frame's comparison


@dataclass(frozen=True)
class DemoOptions:
    """How a demo runs."""

    num_frames: int  # answered by both branches
    camera_rate_hz: float
    model: str
    timing: str
    source: Path | None  # folder of images for the camera; None: rendered scenes
    out: Path
    deadline_s: float  # without any news from the node
    record: bool  # the camera and the node's topics, as a bag
    command: str  # for the report


class DemoScreen(Protocol):
    """Shows how a demo goes."""

    def progress(self, text: str) -> None:
        """Show what happens now."""

    def waiting(self, state: str, done: int, wanted: int) -> None:
        """Show the node's state ('' while unknown) and how many frames are done."""

    def frame(self, number: int, frame: Frame) -> None:
        """Show an answered frame; `number` counts from 1."""


def run_demo(options: DemoOptions, stop: StopSignals, screen: DemoScreen) -> list[Frame]:
    """Run a demo, write its results into the folder, and return the answered frames.

    Raises LiveRunError, and KeyboardInterrupt when stopped by a signal; frames.jsonl is written
    even then.
    """
    return _Demo(options, stop, screen).run()


class _Demo:
    def __init__(self, options: DemoOptions, stop: StopSignals, screen: DemoScreen) -> None:
        self._options, self._stop, self._screen = options, stop, screen
        self._children: list[Child] = []
        self._collector = FrameCollector()
        self._frames: list[Frame] = []
        self._parameters: dict[str, object] = {'model': options.model, 'timing': options.timing}
        if options.model == 'demo':
            self._parameters['labels'] = ['scenes']
        if options.record:  # of raw images, a minute would take half a gigabyte
            self._parameters['image_transport'] = 'compressed'

    def run(self) -> list[Frame]:
        from gmskip_ros.ros.listener import listening

        bag = self._options.out / BAG
        if self._options.record and not _may_replace(bag):
            raise LiveRunError(
                f'{bag}: exists and is not what demo --record writes: choose a different --out'
            )
        prepare_output(self._options.out, ('node.log', 'camera.log'))
        clear_output(self._options.out, ())  # what a killed run has left
        set_ros_environment()
        description: dict[str, Any] = {}
        rows: list[FrameRow] = []
        with (
            tempfile.TemporaryDirectory(prefix='gmskip_demo_') as scratch,
            no_shared_memory_left(),
            _recording(bag) if self._options.record else contextlib.nullcontext() as new_bag,
        ):
            try:
                self._children.append(self._start_node())
                with listening(
                    'gmskip_demo',
                    self._collector,
                    record=None if new_bag is None else _recorder(new_bag),
                    camera_topic=f'{CAMERA_TOPIC}/compressed',
                ) as spin_once:
                    source = self._options.source or self._render_scenes(Path(scratch))
                    self._children.append(self._start_camera(source))
                    self._collect(spin_once)
                    self._save_overlay(spin_once)
            finally:
                stop_all(self._children)
                if self._frames:
                    description = self._describe()
                    rows = self._write_rows(description)
                elif new_bag is not None and bag.exists():  # an earlier run's, which had frames
                    new_bag.discard()
        self._write_report(description, rows)
        return self._frames

    # ---- the processes

    def _start_node(self) -> Child:
        self._screen.progress(f'starting the node with the model {self._options.model}')
        return start_node(self._parameters, self._options.out / 'node.log')

    def _start_camera(self, source: Path) -> Child:
        parameters = {'source': str(source), 'rate_hz': self._options.camera_rate_hz}
        if self._options.record:
            parameters['image_transport'] = 'compressed'
        return start_camera(parameters, self._options.out / 'camera.log')

    def _render_scenes(self, folder: Path) -> Path:
        count = number_of_scenes(min(self._options.num_frames, MAX_SCENES))
        self._screen.progress(f'rendering {count} driving scenes')
        render_scenes(folder, count, self._stop.check)
        return folder

    # ---- the frames

    def _collect(self, spin_once: Callable[[float], None]) -> None:
        """Collect and show the frames; raises LiveRunError if none arrives for too long."""
        node, wanted = self._collector, self._options.num_frames
        shown: set[tuple[str, str]] = set()
        last_news = time.monotonic()
        while len(self._frames) < wanted:
            self._wait_a_little(spin_once)
            step = node.reason if node.state == 'loading' else ''
            if node.state and (node.state, step) not in shown:
                shown.add((node.state, step))
                self._screen.progress(': '.join(filter(None, (node.state, node.reason))))
                last_news = time.monotonic()
            if node.state == 'error':
                raise LiveRunError(f'the node reports an error: {node.reason}')
            while node.frames and len(self._frames) < wanted:
                if not self._frames:
                    self._remove_earlier_results()
                self._frames.append(node.frames.popleft())
                self._screen.frame(len(self._frames), self._frames[-1])
                last_news = time.monotonic()
            self._screen.waiting(node.state, len(self._frames), wanted)
            if time.monotonic() - last_news > self._options.deadline_s:
                state = f'in state {node.state}' if node.state else 'no message received'
                raise LiveRunError(
                    f'nothing new from the node ({state}) for {self._options.deadline_s:g} s: '
                    f'raise --deadline-sec; {self._children[0].last_lines()}'
                )

    def _remove_earlier_results(self) -> None:
        results = ['overlay.png', 'frames.jsonl', *WRITTEN_AT_THE_END]
        remove_results(self._options.out, results + [BAG] * self._options.record)

    def _save_overlay(self, spin_once: Callable[[float], None]) -> None:
        """Save the last frame's overlay, or the newest there is if that one does not arrive."""
        import cv2

        node, last = self._collector, self._frames[-1]
        deadline = time.monotonic() + OVERLAY_WITHIN_S
        while node.overlay_stamp_ns < last.stamp_ns and time.monotonic() < deadline:
            self._wait_a_little(spin_once)
        if node.newest_overlay is None:
            log = self._options.out / 'node.log'
            raise LiveRunError(f'no image received on /{NODE_NAME}/debug/image: see {log}')
        image = cv2.cvtColor(node.newest_overlay, cv2.COLOR_RGB2BGR)
        _write(self._options.out / 'overlay.png', cv2.imencode('.png', image)[1].tobytes())

    def _wait_a_little(self, spin_once: Callable[[float], None]) -> None:
        spin_once(0.1)
        self._stop.check()
        for child in self._children:
            child.check()

    # ---- the results

    def _describe(self) -> dict[str, Any]:
        """Return what the report says about the run."""
        facts = self._collector.facts
        skip_sets = [
            (
                task,
                values['operating_point'],
                [int(block) for block in values['skipped_blocks'].split(',') if block],
                '',  # the demo model's lists are plain
            )
            for task, values in self._frames[-1].skip.items()
        ]
        return {
            'source': {
                'camera': str(self._options.source or 'rendered driving scenes'),
                'topic': CAMERA_TOPIC,
                'camera_rate_hz': self._options.camera_rate_hz,
                'rate_hz': float(facts['rate_hz']),
            },
            **describe_run(
                facts['model'],
                facts['device'],
                facts['dtype'],
                facts['quantization'],
                int(facts['num_blocks']),
                facts['image_fit'],
            ),
            'timing': self._options.timing,
            **describe_questions(settings_from(self._parameters), skip_sets),
        }

    def _write_rows(self, description: dict[str, Any]) -> list[FrameRow]:
        """Write frames.jsonl and return its rows."""
        model, machine = description['model'], machine_name(description)
        rows = [
            row
            for number, frame in enumerate(self._frames, start=1)
            for row in frame.rows(number, model, machine)
        ]
        _write(self._options.out / 'frames.jsonl', ''.join(map(json_line, rows)).encode())
        return rows

    def _write_report(self, description: dict[str, Any], rows: list[FrameRow]) -> None:
        out = self._options.out
        self._screen.progress('writing the report')
        try:
            write_run(
                out,
                description,
                rows,
                self._collector.gallery,
                command=self._options.command,
                frames={'answered': rows[-1].frame},
            )
        except OSError as error:
            raise _not_written(error.filename or out, error) from None


def _may_replace(bag: Path) -> bool:
    """Return whether nothing is there, or a bag with the one database that NewBag gives it."""
    if not bag.is_dir() or bag.is_symlink():
        return not (bag.exists() or bag.is_symlink())
    return {path.name for path in bag.iterdir()} <= {f'{BAG}.db3', 'metadata.yaml'}


@contextlib.contextmanager
def _recording(folder: Path) -> Iterator[NewBag]:
    try:
        with NewBag(folder) as bag:
            yield bag
    except OSError as error:
        raise _not_written(error.filename or folder, error) from None


def _recorder(bag: NewBag) -> Callable[[str, str, int, bytes], None]:
    def record(topic: str, message_type: str, time_ns: int, content: bytes) -> None:
        with bag.whole():
            bag.write_serialized(topic, message_type, time_ns, content)

    return record


def _write(path: Path, data: bytes) -> None:
    try:
        write_atomically(path, data)
    except OSError as error:
        raise _not_written(path, error) from None


def _not_written(path: object, error: OSError) -> LiveRunError:
    return LiveRunError(f'{path}: {error.strerror}: choose a different folder with --out')
