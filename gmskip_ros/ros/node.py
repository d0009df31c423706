"""
`dual_vlm`: camera frames in, a LLaVA's answers with and without skipped blocks out.

Two threads. The executor's thread keeps the newest due camera message, answers the service, checks
parameters and reports health; it never decodes an image and never waits. The inference thread (see
worker.py) does the rest, publishing included. Exit status: 0 after Ctrl-C or SIGTERM, 2 when the
node cannot start with the parameters or arguments it was given.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import rclpy
import rclpy.logging
from diagnostic_msgs.msg import DiagnosticArray
from rcl_interfaces.msg import SetParametersResult
from rclpy.clock import Clock, ClockType
from rclpy.exceptions import ParameterException
from rclpy.executors import SingleThreadedExecutor
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from rclpy.subscription import Subscription
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Float64, Float64MultiArray, Header, String
from std_srvs.srv import SetBool

from gmskip_ros.pipeline import records
from gmskip_ros.pipeline.gate import Frame
from gmskip_ros.pipeline.health import WARN, resident_mib
from gmskip_ros.pipeline.overlay import draw_overlay
from gmskip_ros.pipeline.pipeline import BRANCHES, BranchResult, Comparison
from gmskip_ros.pipeline.records import NODE_NAME
from gmskip_ros.pipeline.settings import (
    ParameterError,
    Settings,
    check_operating_point,
    load_skip_lists,
    settings_from,
)
from gmskip_ros.pipeline.worker import InferenceWorker
from gmskip_ros.ros import messages, parameters
from gmskip_ros.ros.conversions import image_to_rgb, rgb_to_compressed, rgb_to_image
from gmskip_ros.signals import STOP_POLL_S, StopSignals
from gmskip_ros.vlm import ModelLoadError

if TYPE_CHECKING:
    from gmskip_ros.vlm import Vlm

DIAGNOSTICS_PERIOD_S = 1.0
WARN_AGAIN_S = 30.0
UNKNOWN_NODE = '_NODE_NAME_UNKNOWN_'  # rmw's word until discovery is through
NO_FRAMES_AFTER_S = 3.0  # or two periods, whichever is longer
JOIN_TIMEOUT_S = 1.5  # loading cannot be interrupted; the process ends all the same


class DualVlmNode(Node):
    """The node; parameters, topics and service are tables in README.md."""

    def __init__(
        self, load: Callable[[Settings, Callable[[str], None]], Vlm] | None = None, **kwargs: Any
    ) -> None:
        """Start with the parameters given; raises ParameterError. `load` stands in for load_vlm."""
        super().__init__(NODE_NAME, **kwargs)
        self._settings = parameters.declare(self)
        self._skip_lists = load_skip_lists(self._settings)
        check_operating_point(self._settings, self._skip_lists)
        for name in parameters.unknown_names(self):
            self.get_logger().warning(f'parameter {name} is none of this node: is it misspelt?')
        self._settings_changed = False
        self.add_on_set_parameters_callback(self._check_parameters)

        self._outputs = {
            branch: self._publisher(DiagnosticArray, records.RESULT_TOPIC.format(branch=branch))
            for branch in self._settings.branches
        }
        self._comparison = self._publisher(DiagnosticArray, records.COMPARISON_TOPIC)
        answers = [
            (branch, task) for branch in self._settings.branches for task in self._settings.tasks
        ]
        self._texts = {
            (branch, task): self._publisher(
                String, records.TEXT_TOPIC.format(branch=branch, task=task)
            )
            for branch, task in answers
        }
        self._latencies = {
            (branch, task): self._publisher(
                Float64MultiArray, records.LATENCY_TOPIC.format(branch=branch, task=task)
            )
            for branch, task in answers
        }
        self._pipeline_latency = self._publisher(Float64, records.PIPELINE_LATENCY_TOPIC)
        self._picture = self._publisher(Image, records.PICTURE_TOPIC)
        self._picture_jpeg = self._publisher(CompressedImage, records.JPEG_TOPIC)
        self._picture_error = ''
        self._diagnostics = self._publisher(DiagnosticArray, '/diagnostics')

        self._worker = InferenceWorker(
            load=load or _load_vlm,
            to_rgb=image_to_rgb,
            settings=lambda: self._settings,
            skip_lists=self._skip_lists,
            outputs=self,
            now_ns=lambda: self.get_clock().now().nanoseconds,
            log=self.get_logger(),
        )
        self._warned_zero_stamp = False
        self._warned_s: dict[str, float] = {}  # steady time by publisher
        self._newest_stamp_ns: int | None = None
        self._subscription = self._subscribe()
        self._service = self.create_service(SetBool, '~/enable', self._on_enable)
        self._reported_state = ''
        # The steady clock also ticks under use_sim_time while nobody publishes /clock.
        self._timer = self.create_timer(
            DIAGNOSTICS_PERIOD_S,
            self._watch,
            clock=Clock(clock_type=ClockType.STEADY_TIME),
        )
        self._report_health()
        self._worker.start()

    def stop(self, timeout_s: float = JOIN_TIMEOUT_S) -> bool:
        """Ask the inference thread to end; return whether it has."""
        return self._worker.stop(timeout_s)

    # --- executor's thread ---

    def _publisher(self, message_type: type, topic: str) -> Publisher:
        return self.create_publisher(
            message_type, topic, QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE)
        )

    def _subscribe(self) -> Subscription:
        reliability = ReliabilityPolicy.BEST_EFFORT
        if self._settings.input_reliability == 'reliable':
            reliability = ReliabilityPolicy.RELIABLE
        # The compressed topic is the image's resolved name: a remap moves both together.
        topic = self.resolve_topic_name('~/input/image')
        self._message_type: type = Image
        if self._settings.image_transport == 'compressed':
            topic += '/compressed'
            self._message_type = CompressedImage
        reliability_name = self._settings.input_reliability
        self._input = f'{topic} ({self._message_type.__name__}, {reliability_name})'
        self.get_logger().info(f'images are taken from {self._input}')
        qos = QoSProfile(depth=1, reliability=reliability)
        return self.create_subscription(self._message_type, topic, self._on_image, qos)

    def _on_image(self, message: Image | CompressedImage) -> None:
        self._refresh_settings()
        stamp = message.header.stamp
        stamp_ns = stamp.sec * 1_000_000_000 + stamp.nanosec
        if stamp_ns == 0:
            stamp_ns = self.get_clock().now().nanoseconds
            if not self._warned_zero_stamp:
                self._warned_zero_stamp = True
                self.get_logger().warning('images have no stamp: the time of arrival is used')
        self._newest_stamp_ns = stamp_ns
        self._worker.offer(Frame(message, stamp_ns))

    def _on_enable(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        response.success, response.message = self._worker.set_enabled(request.data)
        self.get_logger().info(f'~/enable {str(request.data).lower()}: {response.message}')
        return response

    def _check_parameters(self, changed: list[Any]) -> SetParametersResult:
        """Say whether these new values are good; they are taken over by _refresh_settings."""
        values = parameters.values(self)
        values.update({p.name: p.value for p in changed if p.name in values})
        try:
            settings = settings_from(values)
            check_operating_point(settings, self._skip_lists)
        except ParameterError as error:
            return SetParametersResult(successful=False, reason=str(error))
        self._settings_changed = True
        return SetParametersResult(successful=True)

    def _refresh_settings(self) -> None:
        """Take over what was set: one new immutable snapshot, for the frames from now on."""
        if self._settings_changed:
            self._settings_changed = False
            self._settings = parameters.read(self)
            self._worker.slot.set_period(self._settings.period_ns)

    def _watch(self) -> None:
        """Once a second: see whether inference hangs and whether images can come; tell."""
        self._worker.check_progress()
        self._warn_of_publishers()
        self._report_health()

    def _warn_of_publishers(self) -> None:
        """Warn of who publishes on the input topic what cannot be received; now and then."""
        topic = self._subscription.topic_name
        for info in self.get_publishers_info_by_topic(topic):
            if info.node_name == UNKNOWN_NODE:
                continue
            who = f'{info.node_namespace.rstrip("/")}/{info.node_name} publishes on {topic} '
            expected = f'sensor_msgs/msg/{self._message_type.__name__}'
            problem = ''
            if info.topic_type != expected:
                problem = f'{info.topic_type}, not {expected}: see image_transport, remapping'
            elif (
                self._settings.input_reliability == 'reliable'
                and info.qos_profile.reliability == ReliabilityPolicy.BEST_EFFORT
            ):
                problem = 'best effort, which a reliable subscription never gets: set '
                problem += 'input_reliability: best_effort'
            now_s = time.monotonic()
            if problem and now_s - self._warned_s.get(who, -math.inf) > WARN_AGAIN_S:
                self._warned_s[who] = now_s
                self.get_logger().warning(who + problem)

    def _report_health(self) -> None:
        self._refresh_settings()
        settings = self._settings
        no_frames_after_s = max(NO_FRAMES_AFTER_S, 2.0 / settings.rate_hz)
        report = self._worker.health.report(time.monotonic(), no_frames_after_s)
        now = self.get_clock().now()
        vlm = self._worker.vlm
        age_ms = float('nan')
        if self._newest_stamp_ns is not None and now.nanoseconds:
            age_ms = (now.nanoseconds - self._newest_stamp_ns) / 1e6
        facts: dict[str, object] = {
            'model': vlm.name if vlm else settings.model,
            'device': vlm.device if vlm else settings.device,
            'dtype': vlm.dtype if vlm else settings.dtype,
            'num_blocks': vlm.num_blocks if vlm else 0,
            'branches': ','.join(settings.branches),
            'input': self._input,
            'input_age_ms': age_ms,
            'rate_hz': settings.rate_hz,
            'memory_mib': resident_mib(),
        }
        gpu_bytes = vlm.device_memory_bytes() if vlm else None
        if gpu_bytes is not None:
            facts['gpu_memory_mib'] = gpu_bytes / 2**20
        status = records.health_status(
            report,
            name=f'{self.get_name()}: inference',
            hardware_id=self.get_fully_qualified_name(),
            facts=facts,
            plan=self._worker.plan,
        )
        header = Header(stamp=now.to_msg())
        self._publish(self._diagnostics, messages.diagnostic_array(header, [status]))
        # What goes wrong with a frame is logged by the worker, when it happens.
        if report.state != self._reported_state and report.state not in ('degraded', 'error'):
            text = status.message
            if report.state == 'no_frames':
                text += f'; waiting for {self._input}'
            if report.level == WARN:
                self.get_logger().warning(text)
            else:
                self.get_logger().info(text)
        self._reported_state = report.state

    # --- inference thread (Outputs of worker.py) ---

    def branch_done(self, frame: Frame, result: BranchResult) -> None:
        """Publish one branch's answers."""
        header = frame.message.header
        statuses = records.result_statuses(result, self.get_fully_qualified_name())
        self._publish(self._outputs[result.branch], messages.diagnostic_array(header, statuses))
        now_ns = self.get_clock().now().nanoseconds
        # Simulated time is 0 until somebody publishes /clock: no latency can be told then.
        if result.branch == self._first_branch() and now_ns:
            latency_ms = (now_ns - frame.stamp_ns) / 1e6
            self._publish(self._pipeline_latency, Float64(data=latency_ms))
        for task in result.tasks:
            key = (result.branch, task.task)
            self._publish(self._texts[key], String(data=task.parsed.text))
            self._publish(self._latencies[key], messages.latency_array(task))

    def _first_branch(self) -> str:
        return next(branch for branch in BRANCHES if branch in self._settings.branches)

    def comparison_done(self, frame: Frame, comparison: Comparison) -> None:
        """Publish how the two branches compare."""
        statuses = records.comparison_statuses(comparison, self.get_fully_qualified_name())
        array = messages.diagnostic_array(frame.message.header, statuses)
        self._publish(self._comparison, array)

    def frame_done(
        self,
        frame: Frame,
        rgb: np.ndarray,
        results: list[BranchResult],
        comparison: Comparison | None,
    ) -> None:
        """Draw and publish the overlay picture, if somebody looks at it."""
        raw, jpeg = (p.get_subscription_count() > 0 for p in (self._picture, self._picture_jpeg))
        if not (raw or jpeg) or not results:
            return
        header = frame.message.header
        try:
            title = records.overlay_title(self.get_name(), frame.stamp_ns)
            tasks = records.overlay_tasks(results, comparison)
            picture = draw_overlay(rgb, tasks, title=title)
            if raw:
                self._publish(self._picture, rgb_to_image(picture, header))
            if jpeg:
                self._publish(self._picture_jpeg, rgb_to_compressed(picture, header))
        except Exception as error:  # the answers are out: a picture must not cost the next ones
            if str(error) != self._picture_error:
                self._picture_error = str(error)
                self.get_logger().error(f'no overlay picture: {error}')

    def _publish(self, publisher: Publisher, message: Any) -> None:
        try:
            publisher.publish(message)
        except Exception:
            if self.context.ok():
                raise
            # The context was shut down between the answer and here: nobody can be told any more.


def _load_vlm(settings: Settings, on_progress: Callable[[str], None]) -> Vlm:
    """Import the engine (torch with it) and load the model; runs in the inference thread."""
    try:
        from gmskip_ros.vlm import load_vlm
        from gmskip_ros.vlm.memory import check_memory
    except ModuleNotFoundError as error:
        raise ModelLoadError(
            f'{error.name} is not installed for {sys.executable}: activate the virtual environment '
            'of README.md (On a vehicle) where the node is started'
        ) from error

    on_progress('looking at what memory is free')
    check_memory(
        settings.model,
        settings.device,
        settings.dtype,
        headroom_gib=settings.memory_headroom_gib,
        max_new_tokens=max(settings.max_new_tokens.values()),
        on_progress=on_progress,
    )
    return load_vlm(settings.model, settings.device, settings.dtype, on_progress)


def run(
    stop: StopSignals,
    args: list[str] | None = None,
    load: Callable[[Settings, Callable[[str], None]], Vlm] | None = None,
) -> int:
    """Run the node until `stop` is set; return the exit status. `load` stands in for load_vlm."""
    # OpenMP reads this when torch is loaded. Its threads spin while they wait for each other by
    # default: beside other processes on the same cores that made an answer 40 times slower.
    os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')
    if stop.is_set():  # during the imports
        os._exit(0)  # another signal could interrupt Python's own way out
    try:
        # The context stays whole until the inference thread has ended: it may still publish.
        rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
        node = DualVlmNode(load)
    # Ours, and ROS's about arguments, files and its own parameters.
    except (ValueError, RuntimeError, ParameterException) as error:
        first_line = str(error).strip().splitlines()[0]
        if isinstance(error, rclpy_implementation.UnknownROSArgsError):
            first_line = f'unknown ROS arguments {first_line}'
        rclpy.logging.get_logger(NODE_NAME).fatal(f'cannot start: {first_line}')
        rclpy.try_shutdown()
        return 2
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    try:
        while not stop.is_set() and rclpy.ok():
            executor.spin_once(timeout_sec=STOP_POLL_S)
    finally:
        node.stop()
    # Also while the thread still loads: it publishes nothing then, and a participant that is not
    # closed leaves its shared memory behind.
    executor.shutdown()
    node.destroy_node()
    rclpy.try_shutdown()
    # Leave hard: a thread that still loads a model cannot be ended, and where it has ended, Python
    # takes longer to take torch down than an operator likes to wait.
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):  # closed, or never there
            stream.flush()
    os._exit(0)
