"""What the demo sees of the node: its real topics, put together frame by frame."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from gmskip_ros.pipeline import records
from gmskip_ros.pipeline.records import NODE_NAME
from gmskip_ros.pipeline.rows import FrameRow, row_from_values
from gmskip_ros.report.replay_report import Gallery, GalleryFrame
from gmskip_ros.ros.listener import (
    absolute,
    answers_question,
    key_values,
    ros_node,
    stamp_ns_of,
)


@dataclass
class Frame:
    """What came in on one frame: by task, the values of the three statuses."""

    stamp_ns: int
    skip: dict[str, dict[str, str]] = field(default_factory=dict)
    full: dict[str, dict[str, str]] = field(default_factory=dict)
    comparison: dict[str, dict[str, str]] = field(default_factory=dict)
    outside: set[str] = field(default_factory=set)  # statuses whose answer is not in the vocabulary

    def is_complete(self) -> bool:
        """Return whether all three messages on this frame have arrived."""
        return bool(self.skip and self.full and self.comparison)

    def agrees(self, task: str) -> bool:
        """Return whether the node says that the branches agree on this task."""
        return self.comparison[task]['agree'] == 'true'

    def rows(self, number: int, model: str, machine: str) -> list[FrameRow]:
        """Return the frame's rows of frames.csv; `number` counts from 1."""
        rows = []
        for branch, by_task in (('skip', self.skip), ('full', self.full)):
            for task, values in by_task.items():
                name = f'{task}/{branch}'
                rows.append(
                    row_from_values(
                        number,
                        self.stamp_ns,
                        name,
                        name not in self.outside,
                        values,
                        self.comparison.get(task) if branch == 'skip' else None,
                        model=model,
                        machine=machine,
                    )
                )
        return rows


@contextmanager
def listening() -> Iterator[Listener]:
    """Give a Listener in a ROS context of its own, in the domain that the environment names."""
    with ros_node('gmskip_demo') as (node, executor):
        yield Listener(node, executor)


class Listener:
    """Subscribes to the node's real topics; `frames` are those of which everything has arrived."""

    def __init__(self, node: Any, executor: Any) -> None:
        from diagnostic_msgs.msg import DiagnosticArray
        from rclpy.qos import QoSProfile
        from sensor_msgs.msg import Image

        self.state = ''
        self.reason = ''
        self.facts: dict[str, str] = {}  # all values of the newest health status
        self.gallery = Gallery()
        self.frames: deque[Frame] = deque()
        self.overlay: Any = None
        self.overlay_stamp_ns = -1
        self._unfinished: dict[int, Frame] = {}
        self._numbers: dict[int, int] = {}  # of the frames that differ, by stamp
        self._num_complete = 0
        self._executor = executor
        reliable = QoSProfile(depth=10)  # reliable is its default
        for what, topic in (
            ('skip', records.RESULT_TOPIC.format(branch='skip')),
            ('full', records.RESULT_TOPIC.format(branch='full')),
            ('comparison', records.COMPARISON_TOPIC),
        ):
            node.create_subscription(
                DiagnosticArray, absolute(topic), self._receiver(what), reliable
            )
        node.create_subscription(DiagnosticArray, '/diagnostics', self._receive_health, reliable)
        node.create_subscription(
            Image, absolute(records.PICTURE_TOPIC), self._receive_overlay, reliable
        )

    def spin_once(self, timeout_s: float) -> None:
        """Take one message, or wait this long for one."""
        self._executor.spin_once(timeout_sec=timeout_s)

    def _receiver(self, what: str) -> Callable[[Any], None]:
        def receive(message: Any) -> None:
            if answers_question(message):
                return
            stamp_ns = stamp_ns_of(message.header)
            frame = self._unfinished.setdefault(stamp_ns, Frame(stamp_ns))
            by_task = getattr(frame, what)
            for status in message.status:
                by_task[status.name.split('/')[0]] = key_values(status)
                if status.level != status.OK:
                    frame.outside.add(status.name)
            if frame.is_complete():
                self.frames.append(frame)
                self._num_complete += 1
                if not all(map(frame.agrees, frame.comparison)):
                    self._numbers[stamp_ns] = self._num_complete
                # Whatever is older and still unfinished will never be finished.
                self._unfinished = {k: v for k, v in self._unfinished.items() if k > stamp_ns}

        return receive

    def _receive_health(self, message: Any) -> None:
        for status in message.status:
            if status.name == f'{NODE_NAME}: inference':
                self.facts = key_values(status)
                self.state, self.reason = self.facts['state'], self.facts['reason']

    def _receive_overlay(self, message: Any) -> None:
        from gmskip_ros.pipeline.pixels import rgb_to_jpeg
        from gmskip_ros.ros.conversions import image_to_rgb

        self.overlay = message
        self.overlay_stamp_ns = stamp_ns_of(message.header)
        number = self._numbers.pop(self.overlay_stamp_ns, None)  # drawn after all was published
        if number is not None and self.gallery.wants_next():
            jpeg = rgb_to_jpeg(image_to_rgb(message))
            self.gallery.add(GalleryFrame(number, self.overlay_stamp_ns, jpeg))
