"""`dual_vlm`: camera frames in, a LLaVA's answers with and without skipped blocks out.

Two threads. The executor's thread hands the newest due camera message to the worker, answers the
service, checks parameters and reports health; it never decodes an image and never waits. The
inference thread publishes what the worker yields. Exit status: 0 after Ctrl-C or SIGTERM, 2 if the
node cannot start with the parameters or arguments it was given.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
import threading
import time
from typing import Any

import rclpy
import rclpy.logging
from rcl_interfaces.msg import SetParametersResult
from rclpy.clock import Clock, ClockType
from rclpy.exceptions import ParameterException
from rclpy.executors import SingleThreadedExecutor
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from rclpy.subscription import Subscription
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header
from std_srvs.srv import SetBool

from gmskip_ros.pipeline import records
from gmskip_ros.pipeline.gate import Frame
from gmskip_ros.pipeline.health import WARN, resident_mib
from gmskip_ros.pipeline.parameter_kinds import ParameterError
from gmskip_ros.pipeline.parameters import SPECS
from gmskip_ros.pipeline.records import NODE_NAME
from gmskip_ros.pipeline.settings import check_operating_point, load_skip_lists, settings_from
from gmskip_ros.pipeline.worker import InferenceWorker, LoadEngine, load_engine
from gmskip_ros.ros import parameters
from gmskip_ros.ros.conversions import image_to_rgb
from gmskip_ros.ros.publishing import Publishing
from gmskip_ros.signals import STOP_POLL_S, StopSignals

DIAGNOSTICS_PERIOD_S = 1.0
WARN_AGAIN_S = 30.0
UNKNOWN_NODE = '_NODE_NAME_UNKNOWN_'  # rmw's placeholder until discovery completes
NO_FRAMES_AFTER_S = 3.0  # or two periods, whichever is longer
JOIN_TIMEOUT_S = 1.5
LOADING_JOIN_S = 0.2


class DualVlmNode(Node):
    """The node; README.md has its parameters, topics and service as tables."""

    def __init__(self, load: LoadEngine = load_engine, **kwargs: Any) -> None:
        """Start with the parameters given; raises ParameterError. `load` loads the model."""
        super().__init__(NODE_NAME, **kwargs)
        parameters.declare(self, SPECS)
        self._settings = settings_from(parameters.values(self, SPECS))
        self._skip_lists = load_skip_lists(self._settings)
        check_operating_point(self._settings, self._skip_lists)
        for name in parameters.unknown_names(self):
            self.get_logger().warning(f'unknown parameter {name}: check its spelling')
        self._settings_changed = False
        self.add_on_set_parameters_callback(self._check_parameters)

        self._publishing = Publishing(self, self._settings.branches, self._settings.tasks)
        self._worker = InferenceWorker(
            load=load,
            to_rgb=image_to_rgb,
            settings=lambda: self._settings,
            skip_lists=self._skip_lists,
            now_ns=lambda: self.get_clock().now().nanoseconds,
            log=self.get_logger(),
        )
        self._warned_zero_stamp = False
        self._warned_s: dict[str, float] = {}  # steady time by publisher
        self._newest_stamp_ns: int | None = None
        self._subscription = self._subscribe()
        self._service = self.create_service(SetBool, '~/enable', self._on_enable)
        self._reported_state = ''
        # The steady clock ticks even if use_sim_time is set and nothing publishes /clock.
        self._timer = self.create_timer(
            DIAGNOSTICS_PERIOD_S,
            self._watch,
            clock=Clock(clock_type=ClockType.STEADY_TIME),
        )
        self._report_health()
        # Not a daemon: a daemon thread that is inside torch when Python exits makes it abort.
        self._inference = threading.Thread(target=self._publish_results, name='inference')
        self._inference.start()

    def stop(self, timeout_s: float = JOIN_TIMEOUT_S) -> bool:
        """Ask the inference thread to end and wait for it; return whether it has ended."""
        self._worker.stop()
        # Loading cannot be interrupted and publishes nothing: hardly wait for it.
        self._inference.join(LOADING_JOIN_S if self._worker.is_loading else timeout_s)
        return not self._inference.is_alive()

    # --- inference thread ---

    def _publish_results(self) -> None:
        """Publish each result as soon as the worker yields it, until the worker is stopped."""
        with contextlib.closing(self._worker.results()) as results:
            for frame, result in results:
                try:
                    self._publishing.publish(frame, result)
                except BaseException as error:  # whatever it is, the next frame is answered
                    self._worker.publishing_failed(error)

    # --- executor's thread ---

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
        self._worker.receive(Frame(message, stamp_ns))

    def _on_enable(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        response.success, response.message = self._worker.set_enabled(request.data)
        self.get_logger().info(f'~/enable {str(request.data).lower()}: {response.message}')
        return response

    def _check_parameters(self, changed: list[Any]) -> SetParametersResult:
        """Accept or reject new values; `_refresh_settings` applies them."""
        values = parameters.values(self, SPECS)
        values.update({p.name: p.value for p in changed if p.name in values})
        try:
            settings = settings_from(values)
            check_operating_point(settings, self._skip_lists)
        except ParameterError as error:
            return SetParametersResult(successful=False, reason=str(error))
        self._settings_changed = True
        return SetParametersResult(successful=True)

    def _refresh_settings(self) -> None:
        """Make a new snapshot if a parameter was changed; it applies from the next frame."""
        if self._settings_changed:
            self._settings_changed = False
            self._settings = settings_from(parameters.values(self, SPECS))
            self._worker.slot.set_period(self._settings.period_ns)

    def _watch(self) -> None:
        """Check inference and the camera's publishers, and report; called once a second."""
        self._worker.check_progress()
        self._warn_of_publishers()
        self._report_health()

    def _warn_of_publishers(self) -> None:
        """Warn about publishers on the input topic whose messages cannot be received."""
        topic = self._subscription.topic_name
        for info in self.get_publishers_info_by_topic(topic):
            if info.node_name == UNKNOWN_NODE:
                continue
            who = f'{info.node_namespace.rstrip("/")}/{info.node_name} publishes on {topic} '
            expected = f'sensor_msgs/msg/{self._message_type.__name__}'
            problem = ''
            if info.topic_type != expected:
                problem = f'{info.topic_type}, not {expected}: check image_transport and remapping'
            elif (
                self._settings.input_reliability == 'reliable'
                and info.qos_profile.reliability == ReliabilityPolicy.BEST_EFFORT
            ):
                problem = 'best effort, which a reliable subscription never receives: set '
                problem += 'input_reliability: best_effort'
            now_s = time.monotonic()
            if problem and now_s - self._warned_s.get(who, -math.inf) > WARN_AGAIN_S:
                self._warned_s[who] = now_s
                self.get_logger().warning(who + problem)

    def _report_health(self) -> None:
        self._refresh_settings()
        no_frames_after_s = max(NO_FRAMES_AFTER_S, 2.0 / self._settings.rate_hz)
        report = self._worker.health.report(time.monotonic(), no_frames_after_s)
        now = self.get_clock().now()
        status = records.health_status(
            report,
            name=f'{self.get_name()}: inference',
            hardware_id=self.get_fully_qualified_name(),
            facts=self._facts(now.nanoseconds),
            plan=self._worker.plan,
        )
        self._publishing.publish_health(Header(stamp=now.to_msg()), status)
        # The worker logs what goes wrong with a frame when it happens.
        if report.state != self._reported_state and report.state not in ('degraded', 'error'):
            text = status.message
            if report.state == 'no_frames':
                text += f'; waiting for {self._input}'
            if report.level == WARN:
                self.get_logger().warning(text)
            else:
                self.get_logger().info(text)
        self._reported_state = report.state

    def _facts(self, now_ns: int) -> dict[str, object]:
        """Return the keys of /diagnostics that the worker's health report does not have."""
        settings, engine = self._settings, self._worker.engine
        age_ms = math.nan
        if self._newest_stamp_ns is not None and now_ns:
            age_ms = (now_ns - self._newest_stamp_ns) / 1e6
        facts: dict[str, object] = {
            'model': engine.name if engine else settings.model,
            'device': engine.device if engine else settings.device,
            'dtype': engine.dtype if engine else settings.dtype,
            'num_blocks': engine.num_blocks if engine else 0,
            'image_fit': engine.image_fit if engine else settings.image_fit,
            'branches': ','.join(settings.branches),
            'input': self._input,
            'input_age_ms': age_ms,
            'rate_hz': settings.rate_hz,
            'memory_mib': resident_mib(),
        }
        gpu_bytes = engine.device_memory_bytes() if engine else None
        if gpu_bytes is not None:
            facts['gpu_memory_mib'] = gpu_bytes / 2**20
        return facts


def run(
    stop: StopSignals,
    args: list[str] | None = None,
    load: LoadEngine = load_engine,
) -> int:
    """Run the node until `stop` is set; return the exit status. `load` loads the model."""
    # OpenMP reads this when torch is loaded. By default its threads spin while they wait for each
    # other, which made answers 40 times slower when other processes used the same cores.
    os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')
    if stop.is_set():  # during the imports
        os._exit(0)  # another signal could interrupt Python's own way out
    try:
        # The context stays valid until the inference thread has ended: it may still publish.
        rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
        node = DualVlmNode(load)
    # Our own errors, and those of ROS about arguments, files and its own parameters.
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
    # Shut down even if the thread is still loading: it publishes nothing then, and a participant
    # that is not closed leaves its shared memory behind.
    executor.shutdown()
    node.destroy_node()
    rclpy.try_shutdown()
    # Exit at once: a thread that is loading a model cannot be stopped, and even without it Python
    # takes too long to tear torch down.
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):  # closed or missing
            stream.flush()
    os._exit(0)
