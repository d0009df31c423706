"""What the demo sees of the node: its real topics, put together frame by frame."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

NODE = 'dual_vlm'
# Values that stay text even where they look like a number.
TEXT_KEYS = {'format', 'answer', 'raw_text', 'skip_answer', 'full_answer', 'skipped_blocks',
             'operating_point', 'full_branch', 'schedule'}  # fmt: skip


@dataclass
class Frame:
    """What came in on one frame: by task, the values of the three statuses."""

    stamp_ns: int
    skip: dict[str, dict[str, str]] = field(default_factory=dict)
    full: dict[str, dict[str, str]] = field(default_factory=dict)
    comparison: dict[str, dict[str, str]] = field(default_factory=dict)

    def is_complete(self) -> bool:
        """Return whether all three messages on this frame have arrived."""
        return bool(self.skip and self.full and self.comparison)

    def agrees(self, task: str) -> bool:
        """Return whether the node says that the branches agree on this task."""
        return self.comparison[task]['agree'] == 'true'


@contextmanager
def listening() -> Iterator[Listener]:
    """Give a Listener in a ROS context of its own, in the domain that the environment names."""
    import rclpy
    from rclpy.executors import SingleThreadedExecutor
    from rclpy.signals import SignalHandlerOptions

    context = rclpy.Context()
    # Signals stay ours: the children have to be ended too.
    rclpy.init(context=context, signal_handler_options=SignalHandlerOptions.NO)
    node = rclpy.create_node('gmskip_demo', context=context)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)
    try:
        yield Listener(node, executor)
    finally:
        executor.shutdown()
        node.destroy_node()
        rclpy.shutdown(context=context)


class Listener:
    """Subscribes to the node's real topics; `frames` are those of which everything has arrived."""

    def __init__(self, node: Any, executor: Any) -> None:
        from diagnostic_msgs.msg import DiagnosticArray
        from rclpy.qos import QoSProfile
        from sensor_msgs.msg import Image

        self.state = ''
        self.reason = ''
        self.frames: deque[Frame] = deque()
        self.overlay: Any = None
        self.overlay_stamp_ns = -1
        self._unfinished: dict[int, Frame] = {}
        self._executor = executor
        reliable = QoSProfile(depth=10)  # reliable is its default
        for what, topic in (
            ('skip', 'output/skip/result'),
            ('full', 'output/full/result'),
            ('comparison', 'output/comparison'),
        ):
            node.create_subscription(
                DiagnosticArray, f'/{NODE}/{topic}', self._receiver(what), reliable
            )
        node.create_subscription(DiagnosticArray, '/diagnostics', self._receive_health, reliable)
        node.create_subscription(Image, f'/{NODE}/debug/image', self._receive_overlay, reliable)

    def spin_once(self, timeout_s: float) -> None:
        """Take one message, or wait this long for one."""
        self._executor.spin_once(timeout_sec=timeout_s)

    def _receiver(self, what: str) -> Callable[[Any], None]:
        def receive(message: Any) -> None:
            stamp_ns = _stamp_ns(message.header)
            frame = self._unfinished.setdefault(stamp_ns, Frame(stamp_ns))
            by_task = getattr(frame, what)
            for status in message.status:
                by_task[status.name.split('/')[0]] = _values(status)
            if frame.is_complete():
                self.frames.append(frame)
                # Whatever is older and still unfinished will never be finished.
                self._unfinished = {k: v for k, v in self._unfinished.items() if k > stamp_ns}

        return receive

    def _receive_health(self, message: Any) -> None:
        for status in message.status:
            if status.name == f'{NODE}: inference':
                values = _values(status)
                self.state, self.reason = values['state'], values['reason']

    def _receive_overlay(self, message: Any) -> None:
        self.overlay = message
        self.overlay_stamp_ns = _stamp_ns(message.header)


def _stamp_ns(header: Any) -> int:
    return header.stamp.sec * 1_000_000_000 + header.stamp.nanosec


def _values(status: Any) -> dict[str, str]:
    return {entry.key: entry.value for entry in status.values}


def as_json_lines(frames: Sequence[Frame]) -> str:
    """Return one line per frame and task, with numbers as numbers."""
    lines = []
    for number, frame in enumerate(frames, start=1):
        for task in frame.comparison:
            record = {
                'frame': number,
                'stamp_ns': frame.stamp_ns,
                'task': task,
                'agree': frame.agrees(task),
                'skip': _typed(frame.skip[task]),
                'full': _typed(frame.full[task]),
                'comparison': _typed(frame.comparison[task]),
            }
            lines.append(json.dumps(record, ensure_ascii=False) + '\n')
    return ''.join(lines)


def _typed(values: dict[str, str]) -> dict[str, Any]:
    typed: dict[str, Any] = {}
    for key, text in values.items():
        typed[key] = text
        if key not in TEXT_KEYS:
            try:
                typed[key] = json.loads(text)  # numbers, true and false
            except ValueError:
                pass
    return typed
