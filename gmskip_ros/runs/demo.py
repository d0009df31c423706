"""The live demo: a camera that plays scenes, the node, and what both of them said."""

from __future__ import annotations

import argparse
import shlex
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gmskip_ros.files import write_atomically
from gmskip_ros.runs.live import (
    CAMERA_TOPIC,
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
from gmskip_ros.signals import StopRequest

if TYPE_CHECKING:
    from gmskip_ros.pipeline.rows import FrameRow
    from gmskip_ros.ros.demo_listener import Frame, Listener

MAX_SCENES = 60  # the camera begins again after so many, or a few more
OVERLAY_WITHIN_S = 5.0  # of the last frame's comparison


class _Demo:
    def __init__(self, args: argparse.Namespace, stop: StopRequest, screen: Any) -> None:
        self._args = args
        self._stop = stop
        self._screen = screen
        self._children: list[Child] = []

    def run(self) -> int:
        from gmskip_ros.ros.demo_listener import listening
        from gmskip_ros.runs.files import WRITTEN_AT_THE_END

        out = self._args.out
        make_room(
            out,
            ('overlay.png', 'frames.jsonl', *WRITTEN_AT_THE_END),
            ('node.log', 'camera.log'),
        )
        set_ros_environment()
        frames: list[Frame] = []
        about: dict[str, Any] = {}
        rows: list[FrameRow] = []
        with tempfile.TemporaryDirectory(prefix='gmskip_demo_') as scratch:
            try:
                with self._screen.live():
                    self._children.append(self._start_node())
                    with listening() as listener:
                        source = self._args.source or self._render_scenes(Path(scratch))
                        self._children.append(self._start_camera(source))
                        self._collect(listener, frames)
                        self._save_overlay(listener, frames[-1])
            finally:
                end(self._children)
                if frames:
                    about = self._about(listener, frames[-1])
                    rows = self._write_rows(about, frames)
        self._screen.summary(frames)
        self._write_report(about, rows, listener)
        self._screen.files(out)
        return 0

    def _write_rows(self, about: dict[str, Any], frames: list[Frame]) -> list[FrameRow]:
        """Write frames.jsonl and return its rows."""
        from gmskip_ros.pipeline.rows import json_line
        from gmskip_ros.report.formatting import machine_name

        rows = [
            row
            for number, frame in enumerate(frames, start=1)
            for row in frame.rows(number, about['model'], machine_name(about))
        ]
        _write_aside(self._args.out / 'frames.jsonl', ''.join(map(json_line, rows)).encode())
        return rows

    def _about(self, listener: Listener, last: Frame) -> dict[str, Any]:
        """Return what the report says about the run."""
        from gmskip_ros.machine import machine, software
        from gmskip_ros.pipeline.settings import settings_from
        from gmskip_ros.runs.files import describe_questions

        facts = listener.facts
        skip_sets = [
            (
                task,
                values['operating_point'],
                [int(block) for block in values['skipped_blocks'].split(',') if block],
            )
            for task, values in last.skip.items()
        ]
        return {
            'source': {
                'camera': str(self._args.source or 'rendered driving scenes'),
                'topic': CAMERA_TOPIC,
                'camera_rate_hz': self._args.rate_hz,
                'rate_hz': float(facts['rate_hz']),
            },
            'model': facts['model'],
            'device': facts['device'],
            'dtype': facts['dtype'],
            'num_blocks': int(facts['num_blocks']),
            'machine': machine(facts['device']),
            'software': software(),
            **describe_questions(settings_from(self._node_parameters()), skip_sets),
        }

    def _write_report(
        self, about: dict[str, Any], rows: list[FrameRow], listener: Listener
    ) -> None:
        from gmskip_ros.runs.files import write_run

        out = self._args.out
        self._screen.progress('writing the report')
        try:
            write_run(
                out,
                about,
                rows,
                listener.gallery,
                command='gmskip ' + shlex.join(self._args.arguments),
                frames={'answered': rows[-1].frame},
            )
        except OSError as error:
            raise LiveRunError(
                f'{error.filename or out}: {error.strerror}: give another folder with --out'
            ) from None

    def _start_node(self) -> Child:
        self._screen.progress(f'starting the node with the model {self._args.model}')
        return start_node(self._node_parameters(), self._args.out / 'node.log')

    def _node_parameters(self) -> dict[str, object]:
        parameters: dict[str, object] = {'model': self._args.model}
        if self._args.model == 'demo':
            parameters['labels'] = ['scenes']
        return parameters

    def _start_camera(self, source: Path) -> Child:
        parameters = {'source': str(source), 'rate_hz': self._args.rate_hz}
        return start_camera(parameters, self._args.out / 'camera.log')

    def _render_scenes(self, folder: Path) -> Path:
        count = number_of_scenes(min(self._args.frames, MAX_SCENES))
        self._screen.progress(f'rendering {count} driving scenes')
        render_scenes(folder, count, self._stop.check)
        return folder

    def _collect(self, listener: Listener, frames: list[Frame]) -> None:
        """Fill `frames` from the topics and show each; raises LiveRunError where nothing comes."""
        shown: set[tuple[str, str]] = set()
        last_news = time.monotonic()
        while len(frames) < self._args.frames:
            self._wait_a_little(listener)
            loading_what = listener.reason if listener.state == 'loading' else ''
            if listener.state and (listener.state, loading_what) not in shown:
                shown.add((listener.state, loading_what))
                self._screen.progress(': '.join(filter(None, (listener.state, listener.reason))))
                last_news = time.monotonic()
            if listener.state == 'error':
                raise LiveRunError(f'the node reports an error: {listener.reason}')
            while listener.frames and len(frames) < self._args.frames:
                frames.append(listener.frames.popleft())
                self._screen.frame(len(frames), frames[-1])
                last_news = time.monotonic()
            self._screen.waiting(listener.state, len(frames), self._args.frames)
            if time.monotonic() - last_news > self._args.deadline_sec:
                state = f'in state {listener.state}' if listener.state else 'never heard of'
                raise LiveRunError(
                    f'nothing new from the node ({state}) for {self._args.deadline_sec:g} s: give '
                    f'it longer with --deadline-sec; {self._children[0].last_lines()}'
                )

    def _save_overlay(self, listener: Listener, last: Frame) -> None:
        """Save the last frame's picture, or the newest one if that one does not come."""
        import cv2

        from gmskip_ros.pipeline.records import NODE_NAME
        from gmskip_ros.ros.conversions import image_to_rgb

        deadline = time.monotonic() + OVERLAY_WITHIN_S
        while listener.overlay_stamp_ns < last.stamp_ns and time.monotonic() < deadline:
            self._wait_a_little(listener)
        if listener.overlay is None:
            log = self._args.out / 'node.log'
            raise LiveRunError(f'no picture came on /{NODE_NAME}/debug/image: see {log}')
        picture = cv2.cvtColor(image_to_rgb(listener.overlay), cv2.COLOR_RGB2BGR)
        _write_aside(self._args.out / 'overlay.png', cv2.imencode('.png', picture)[1].tobytes())

    def _wait_a_little(self, listener: Listener) -> None:
        listener.spin_once(0.1)
        self._stop.check()
        for child in self._children:
            child.check()


def _write_aside(path: Path, data: bytes) -> None:
    try:
        write_atomically(path, data)
    except OSError as error:
        raise LiveRunError(f'{path}: {error.strerror}: give another folder with --out') from None
