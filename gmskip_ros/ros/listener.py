"""What a soak hears of the node: results, comparisons, health, and the picture for people."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from gmskip_ros.pipeline import records
from gmskip_ros.pipeline.health import FRAME_COUNTERS
from gmskip_ros.pipeline.pipeline import BRANCHES, QUESTION
from gmskip_ros.pipeline.records import NODE_NAME

COMPARISON = 'comparison'

QUEUE = 100  # messages; more than come in while a picture of this process's own is drawn


@dataclass(frozen=True)
class HealthReport:
    """A message of the node on /diagnostics."""

    arrived_s: float  # steady clock
    values: dict[str, str]

    @property
    def state(self) -> str:
        """One of the states."""
        return self.values['state']

    @property
    def reason(self) -> str:
        """What the state does not say itself, or ''."""
        return self.values['reason']

    @property
    def counters(self) -> dict[str, int]:
        """Return the frame counters, by FRAME_COUNTERS."""
        return {name: int(self.values[f'frames_{name}']) for name in FRAME_COUNTERS}

    @property
    def frames_rest(self) -> bool:
        """Return whether no frame waits or is worked on."""
        counters = self.counters
        return counters['received'] * 2 == sum(counters.values())


@contextmanager
def listening() -> Iterator[Listener]:
    """Give a Listener in a ROS context of its own, in the domain that the environment names."""
    with ros_node('gmskip_soak') as (node, executor):
        yield Listener(node, executor)


class Listener:
    """Keeps all that is published on frames, and the health reports."""

    def __init__(self, node: Any, executor: Any) -> None:
        from diagnostic_msgs.msg import DiagnosticArray
        from rclpy.qos import QoSProfile
        from sensor_msgs.msg import CompressedImage

        self.answers: list[Answer] = []
        self.reports: list[HealthReport] = []
        self.pictures = 0
        self._executor = executor
        reliable = QoSProfile(depth=QUEUE)  # reliable is its default
        topics = {branch: records.RESULT_TOPIC.format(branch=branch) for branch in BRANCHES}
        topics[COMPARISON] = records.COMPARISON_TOPIC
        for what, topic in topics.items():
            node.create_subscription(
                DiagnosticArray, absolute(topic), self._receiver(what), reliable
            )
        node.create_subscription(DiagnosticArray, '/diagnostics', self._receive_health, reliable)
        # Somebody looks at it, so the node draws it: that could leak, too.
        node.create_subscription(
            CompressedImage, absolute(records.JPEG_TOPIC), self._receive_picture, QUEUE
        )

    def spin_once(self, timeout_s: float) -> None:
        """Take one message, or wait this long for one."""
        self._executor.spin_once(timeout_sec=max(0.0, timeout_s))

    def _receiver(self, what: str) -> Callable[[Any], None]:
        def receive(message: Any) -> None:
            if answers_question(message):
                return
            stamp_ns = stamp_ns_of(message.header)
            self.answers.append(
                Answer(
                    what=what,
                    stamp_ns=stamp_ns,
                    arrived_s=time.monotonic(),
                    age_ms=(time.time_ns() - stamp_ns) / 1e6,
                    busy_ms=0.0 if what == COMPARISON else _busy_ms(message),
                )
            )

        return receive

    def _receive_health(self, message: Any) -> None:
        for status in message.status:
            if status.name == f'{NODE_NAME}: inference':
                self.reports.append(HealthReport(time.monotonic(), key_values(status)))

    def _receive_picture(self, _: Any) -> None:
        self.pictures += 1


def _busy_ms(message: Any) -> float:
    """Return how long a branch took for a frame: the picture once, the language of every task."""
    tasks = [key_values(status) for status in message.status]
    encoding_ms = [float(task['preprocess_ms']) + float(task['vision_ms']) for task in tasks]
    language_ms = [float(task['prefill_ms']) + float(task['decode_ms']) for task in tasks]
    return max(encoding_ms, default=0.0) + sum(language_ms)


@contextmanager
def ros_node(name: str) -> Iterator[tuple[Any, Any]]:
    """Give a node and its executor, in a context of their own, in the environment's domain."""
    import rclpy
    from rclpy.executors import SingleThreadedExecutor
    from rclpy.signals import SignalHandlerOptions

    context = rclpy.Context()
    # Signals stay ours: the children have to be ended too.
    rclpy.init(context=context, signal_handler_options=SignalHandlerOptions.NO)
    node = rclpy.create_node(name, context=context)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)
    try:
        yield node, executor
    finally:
        executor.shutdown()
        node.destroy_node()
        rclpy.shutdown(context=context)


def absolute(topic: str) -> str:
    """Return a topic of the node (records.py: '~/...') by its full name."""
    from gmskip_ros.pipeline.records import NODE_NAME

    return topic.replace('~', f'/{NODE_NAME}', 1)


def stamp_ns_of(header: Any) -> int:
    """Return a header's stamp in ns."""
    return header.stamp.sec * 1_000_000_000 + header.stamp.nanosec


def answers_question(message: Any) -> bool:
    """Return whether results or a comparison are of a question, not of every frame's tasks."""
    return any(status.name.startswith(f'{QUESTION}/') for status in message.status)


def key_values(status: Any) -> dict[str, str]:
    """Return a DiagnosticStatus's values by key."""
    return {entry.key: entry.value for entry in status.values}


@dataclass(frozen=True)
class Answer:
    """A message of results as it came in."""

    what: str  # skip, full or comparison
    stamp_ns: int  # of the frame
    arrived_s: float  # since any moment, the same for all answers
    age_ms: float  # arrival minus stamp
    busy_ms: float  # that this branch took for the frame, as its statuses say; 0 for a comparison
