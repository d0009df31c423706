"""What the node publishes, handed on as plain values: for commands that run a node and watch it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

from gmskip_ros.pipeline import records
from gmskip_ros.pipeline.health import ERROR, OK, WARN
from gmskip_ros.pipeline.pipeline import BRANCHES, QUESTION
from gmskip_ros.ros.conversions import image_to_rgb

COMPARISON = 'comparison'
QUEUE = 100  # messages; more than arrive while the observer draws or writes
# Receives topic, type ('std_msgs/msg/String'), time of arrival (ns) and a serialized message.
Record = Callable[[str, str, int, bytes], None]
LEVELS = {DiagnosticStatus.OK: OK, DiagnosticStatus.WARN: WARN}


class Observer(Protocol):
    """Receives everything that the node publishes; called by the function of `listening`."""

    def frame(self, topic: str, stamp_ns: int, statuses: list[records.Status]) -> None:
        """Receive one message on a frame: `topic` is 'skip', 'full' or 'comparison'."""

    def health(self, values: dict[str, str]) -> None:
        """Receive the values of one health report."""

    def overlay(self, stamp_ns: int, rgb: np.ndarray) -> None:
        """Receive the image with the answers drawn on it: uint8 RGB, (H, W, 3)."""


@contextmanager
def listening(
    name: str,
    observer: Observer,
    *,
    jpeg: bool = False,
    record: Record | None = None,
    camera_topic: str = '',
) -> Iterator[Callable[[float], None]]:
    """Yield a function that hands on the next message, or returns after so many seconds.

    The ROS node `name` lives in a context of its own, in the environment's domain. jpeg: subscribe
    to the overlay as JPEG, not as raw image. record: receives every message of the node, but for
    the raw overlay, and of the camera on `camera_topic` (compressed images) as it came.
    """
    with ros_node(name) as (node, executor):
        _subscribe(node, observer, jpeg)
        if record is not None:
            _subscribe_raw(node, record, camera_topic)

        def spin_once(timeout_s: float) -> None:
            executor.spin_once(timeout_sec=max(0.0, timeout_s))

        yield spin_once


@contextmanager
def ros_node(name: str) -> Iterator[tuple[Node, SingleThreadedExecutor]]:
    """Yield a node and its executor, in a context of their own, in the environment's domain."""
    context = rclpy.Context()
    # rclpy's signal handlers would shut the context down while child processes still run.
    rclpy.init(context=context, signal_handler_options=SignalHandlerOptions.NO)
    try:
        node = rclpy.create_node(name, context=context)
        executor = SingleThreadedExecutor(context=context)
        executor.add_node(node)
        try:
            yield node, executor
        finally:
            executor.shutdown()
            node.destroy_node()
    finally:
        rclpy.try_shutdown(context=context)


def _subscribe(node: Node, observer: Observer, jpeg: bool) -> None:
    def receive_frame(topic: str) -> Callable[[DiagnosticArray], None]:
        def receive(message: DiagnosticArray) -> None:
            statuses = [_status(status) for status in message.status]
            # Answers to questions are not those of every frame's tasks.
            if not any(status.name.startswith(f'{QUESTION}/') for status in statuses):
                observer.frame(topic, _stamp_ns(message.header), statuses)

        return receive

    def receive_health(message: DiagnosticArray) -> None:
        for status in message.status:
            if status.name == f'{records.NODE_NAME}: inference':
                observer.health(_status(status).values)

    def receive_overlay(message: Image | CompressedImage) -> None:
        observer.overlay(_stamp_ns(message.header), image_to_rgb(message))

    def subscribe(message_type: Any, topic: str, callback: Callable[[Any], None]) -> None:
        full_name = topic.replace('~', f'/{records.NODE_NAME}', 1)
        reliable = QoSProfile(depth=QUEUE)  # rclpy's default reliability
        node.create_subscription(message_type, full_name, callback, reliable)

    for branch in BRANCHES:
        topic = records.RESULT_TOPIC.format(branch=branch)
        subscribe(DiagnosticArray, topic, receive_frame(branch))
    subscribe(DiagnosticArray, records.COMPARISON_TOPIC, receive_frame(COMPARISON))
    subscribe(DiagnosticArray, '/diagnostics', receive_health)
    if jpeg:
        subscribe(CompressedImage, records.JPEG_TOPIC, receive_overlay)
    else:
        subscribe(Image, records.PICTURE_TOPIC, receive_overlay)


def _subscribe_raw(node: Node, record: Record, camera_topic: str) -> None:
    """Hand on the camera's messages and the node's, serialized, with the time of their arrival."""

    def subscribe(message_type: Any, name: str, topic: str, qos: QoSProfile) -> None:
        def receive(content: bytes) -> None:
            record(topic, name, node.get_clock().now().nanoseconds, content)

        node.create_subscription(message_type, topic, receive, qos, raw=True)

    best_effort = QoSProfile(depth=QUEUE, reliability=ReliabilityPolicy.BEST_EFFORT)
    subscribe(CompressedImage, 'sensor_msgs/msg/CompressedImage', camera_topic, best_effort)
    topics: list[tuple[Any, str, str]] = [
        (DiagnosticArray, 'diagnostic_msgs/msg/DiagnosticArray', topic)
        for topic in (
            *(records.RESULT_TOPIC.format(branch=branch) for branch in BRANCHES),
            records.COMPARISON_TOPIC,
            '/diagnostics',
        )
    ]
    topics.append((CompressedImage, 'sensor_msgs/msg/CompressedImage', records.JPEG_TOPIC))
    for message_type, name, topic in topics:
        full_name = topic.replace('~', f'/{records.NODE_NAME}', 1)
        subscribe(message_type, name, full_name, QoSProfile(depth=QUEUE))


def _stamp_ns(header: Header) -> int:
    return header.stamp.sec * 1_000_000_000 + header.stamp.nanosec


def _status(status: DiagnosticStatus) -> records.Status:
    return records.Status(
        level=LEVELS.get(status.level, ERROR),
        name=status.name,
        message=status.message,
        hardware_id=status.hardware_id,
        values={entry.key: entry.value for entry in status.values},
    )
