"""Publish the results of a frame: statuses, texts, latencies and the overlay image."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Float64MultiArray, Header, MultiArrayDimension, String

from gmskip_ros.pipeline import records
from gmskip_ros.pipeline.gate import Frame
from gmskip_ros.pipeline.health import ERROR, OK, WARN
from gmskip_ros.pipeline.overlay import draw_overlay
from gmskip_ros.pipeline.pipeline import (
    BRANCHES,
    QUESTION,
    BranchResult,
    Comparison,
    TaskResult,
)
from gmskip_ros.pipeline.records import Status
from gmskip_ros.pipeline.timing import SHARED
from gmskip_ros.pipeline.worker import FinishedFrame, FrameResult
from gmskip_ros.ros.conversions import rgb_to_compressed, rgb_to_image
from gmskip_ros.ros.debug_times import DebugTimes

DIAGNOSTIC_TYPES = records.DiagnosticTypes(
    DiagnosticArray,
    DiagnosticStatus,
    KeyValue,
    {OK: DiagnosticStatus.OK, WARN: DiagnosticStatus.WARN, ERROR: DiagnosticStatus.ERROR},
)


class Publishing:
    """The node's publishers; results are published by the inference thread, health by the other."""

    def __init__(
        self, node: Node, branches: Iterable[str], tasks: Sequence[str], debug_times: DebugTimes
    ) -> None:
        """Create the publishers of these branches and tasks on the node."""
        self._debug_times = debug_times
        self._node = node
        self._hardware_id = node.get_fully_qualified_name()
        running = [branch for branch in BRANCHES if branch in branches]
        self._first_branch = running[0]
        self._results = {
            branch: self._publisher(DiagnosticArray, records.RESULT_TOPIC, branch=branch)
            for branch in running
        }
        self._comparison = self._publisher(DiagnosticArray, records.COMPARISON_TOPIC)
        answers = [(branch, task) for branch in running for task in (*tasks, QUESTION)]
        self._texts = {
            (branch, task): self._publisher(String, records.TEXT_TOPIC, branch=branch, task=task)
            for branch, task in answers
        }
        self._latencies = {
            (branch, task): self._publisher(
                Float64MultiArray, records.LATENCY_TOPIC, branch=branch, task=task
            )
            for branch, task in answers
        }
        time_type = debug_times.message_type
        self._pipeline_latency = self._publisher(time_type, records.PIPELINE_LATENCY_TOPIC)
        self._processing_time = self._publisher(time_type, records.PROCESSING_TIME_TOPIC)
        self._branch_times, self._shared_branch_times = (
            {branch: self._publisher(time_type, topic, branch=branch) for branch in running}
            for topic in (
                records.BRANCH_PROCESSING_TIME_TOPIC,
                records.SHARED_PROCESSING_TIME_TOPIC,
            )
        )
        self._image = self._publisher(Image, records.PICTURE_TOPIC)
        self._image_jpeg = self._publisher(CompressedImage, records.JPEG_TOPIC)
        self._image_error = ''
        self._diagnostics = self._publisher(DiagnosticArray, '/diagnostics')

    def publish(self, frame: Frame, result: FrameResult) -> None:
        """Publish one result of the frame, under the frame's own header."""
        if isinstance(result, BranchResult):
            self._publish_branch(frame, result)
        elif isinstance(result, Comparison):
            statuses = records.comparison_statuses(result, self._hardware_id)
            self._publish_statuses(self._comparison, frame.message.header, statuses)
        else:
            self._publish_time(self._processing_time, result.elapsed_ms)
            self._publish_overlay(frame, result)

    def publish_health(self, header: Header, status: Status) -> None:
        """Publish the node's status on /diagnostics."""
        self._publish_statuses(self._diagnostics, header, [status])

    def _publish_branch(self, frame: Frame, result: BranchResult) -> None:
        statuses = records.result_statuses(result, self._hardware_id)
        self._publish_statuses(self._results[result.branch], frame.message.header, statuses)
        if not result.is_question:
            self._publish_branch_times(frame, result)
        for task in result.tasks:
            key = (result.branch, task.task)
            self._publish(self._texts[key], String(data=task.parsed.text))
            self._publish(self._latencies[key], latency_array(task))

    def _publish_branch_times(self, frame: Frame, result: BranchResult) -> None:
        now_ns = self._node.get_clock().now().nanoseconds
        # Simulated time is 0 until the first /clock message: there is no latency then.
        if result.branch == self._first_branch and now_ns:
            latency_ms = (now_ns - frame.stamp_ns) / 1e6
            self._publish_time(self._pipeline_latency, latency_ms)
        is_shared = result.timing == SHARED
        publishers = self._shared_branch_times if is_shared else self._branch_times
        self._publish_time(publishers[result.branch], result.elapsed_ms)

    def _publish_overlay(self, frame: Frame, finished: FinishedFrame) -> None:
        """Draw and publish the overlay image if it has subscribers."""
        raw, jpeg = (p.get_subscription_count() > 0 for p in (self._image, self._image_jpeg))
        if not (raw or jpeg):
            return
        header = frame.message.header
        try:
            title = records.overlay_title(
                self._node.get_name(), frame.stamp_ns, finished.branches[0].timing
            )
            tasks = records.overlay_tasks(finished.branches, finished.comparison)
            image = draw_overlay(finished.rgb, tasks, title=title)
            if raw:
                self._publish(self._image, rgb_to_image(image, header))
            if jpeg:
                self._publish(self._image_jpeg, rgb_to_compressed(image, header))
        except Exception as error:  # the answers are out: an image must not cost the next ones
            if str(error) != self._image_error:
                self._image_error = str(error)
                self._node.get_logger().error(f'no overlay image: {error}')

    def _publish_statuses(
        self, publisher: Publisher, header: Header, statuses: Sequence[Status]
    ) -> None:
        self._publish(publisher, records.diagnostic_array(DIAGNOSTIC_TYPES, header, statuses))

    def _publish_time(self, publisher: Publisher, milliseconds: float) -> None:
        now = self._node.get_clock().now().to_msg()
        self._publish(publisher, self._debug_times.message(milliseconds, now))

    def _publish(self, publisher: Publisher, message: object) -> None:
        try:
            publisher.publish(message)
        except Exception:
            if self._node.context.ok():
                raise
            # The context was shut down after the answer was made: nobody can receive it any more.

    def _publisher(self, message_type: type, topic: str, **names: str) -> Publisher:
        qos = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE)
        return self._node.create_publisher(message_type, topic.format(**names), qos)


def latency_array(result: TaskResult) -> Float64MultiArray:
    """Return the times of LATENCY_PARTS (ms) in that order, which the layout's label names."""
    message = Float64MultiArray()
    message.layout.dim = [MultiArrayDimension(**records.LATENCY_DIMENSION)]
    message.data = records.latencies_ms(result)
    return message
