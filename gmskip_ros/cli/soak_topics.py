"""What a soak hears of the node: results, comparisons, health, and the picture for people."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from gmskip_ros.cli.live_run import absolute, key_values, ros_node, stamp_ns_of
from gmskip_ros.cli.soak_frames import COMPARISON, Answer
from gmskip_ros.pipeline import records
from gmskip_ros.pipeline.health import FRAME_COUNTERS
from gmskip_ros.pipeline.pipeline import BRANCHES
from gmskip_ros.pipeline.records import NODE_NAME

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
