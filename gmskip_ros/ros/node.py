"""`dual_vlm`: camera frames in, a LLaVA's answers with and without skipped blocks out.

Two threads. The executor's thread hands the newest due camera message to the worker, answers the
service, checks parameters and reports health; it never decodes an image and never waits. The
inference thread publishes what the worker yields. Exit status: 0 after Ctrl-C or SIGTERM, 2 if the
node cannot start with the parameters or arguments it was given.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

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
from std_msgs.msg import Header, String
from std_srvs.srv import SetBool

from gmskip_ros.errors import first_line
from gmskip_ros.machine import tune_cpu
from gmskip_ros.pipeline import records, stamps
from gmskip_ros.pipeline.gate import Frame
from gmskip_ros.pipeline.health import OK, WARN, resident_mib
from gmskip_ros.pipeline.parameter_kinds import ParameterError
from gmskip_ros.pipeline.parameters import SPECS
from gmskip_ros.pipeline.records import NODE_NAME
from gmskip_ros.pipeline.settings import (
    check_operating_point,
    load_skip_lists,
    question_skip_list,
    settings_from,
)
from gmskip_ros.pipeline.worker import InferenceWorker, LoadEngine, load_engine
from gmskip_ros.ros import debug_times, parameter_files, parameters
from gmskip_ros.ros.conversions import image_to_rgb
from gmskip_ros.ros.input_diagnosis import COMPRESSED, InputDiagnosis, message_lost_callbacks
from gmskip_ros.ros.publishing import Publishing
from gmskip_ros.signals import STOP_POLL_S, StopSignals

DIAGNOSTICS_PERIOD_S = 1.0
WARN_AGAIN_S = 30.0
NO_FRAMES_AFTER_S = 3.0  # or two periods, whichever is longer
SAME_NAME_AFTER_S = 30.0  # a killed node is seen for a while
JOIN_TIMEOUT_S = 1.5
LOADING_JOIN_S = 0.2
GRAPH_ERRORS = (
    rclpy_implementation.RCLError,
    rclpy_implementation.RMWError,
    rclpy_implementation.RCUtilsError,
)
T = TypeVar('T')


def settle_s(rate_hz: float) -> float:
    """Return how long all must be well before a warning is over, s."""
    return max(3.0, 2.0 / rate_hz)


class DualVlmNode(Node):
    """The node; its tables are docs/parameters.md and docs/topics.md."""

    def __init__(
        self, load: LoadEngine = load_engine, arguments: Sequence[str] = (), **kwargs: Any
    ) -> None:
        """Start with the parameters given; raises ParameterError.

        `load` loads the model; `arguments`: those that rclpy was initialised with.
        """
        super().__init__(NODE_NAME, **kwargs)
        self._check_parameter_files(arguments)
        parameters.declare(self, SPECS)
        self._settings = settings_from(parameters.values(self, SPECS))
        self._skip_lists = load_skip_lists(self._settings)
        check_operating_point(self._settings, self._skip_lists)
        self._debug_times = debug_times.resolve(self._settings.debug_time_type)
        self.get_logger().info(f'debug times are published as {self._debug_times.name}')
        self._report_unknown_parameters()
        self._settings_changed = False
        self.add_on_set_parameters_callback(self._check_parameters)

        self._publishing = Publishing(
            self, self._settings.branches, self._settings.tasks, self._debug_times
        )
        self._worker = InferenceWorker(
            load=load,
            to_rgb=image_to_rgb,
            settings=lambda: self._settings,
            skip_lists=self._skip_lists,
            now_ns=lambda: self.get_clock().now().nanoseconds,
            log=self.get_logger(),
            question_skip_list=question_skip_list(self._settings, self._skip_lists),
        )
        self._warned_zero_stamp = False
        self._warned_s: dict[str, float] = {}  # steady time by publisher
        self._newest_stamp_ns: int | None = None
        self._stamp_check = 'unknown'  # of the newest stamp
        self._warned_stamps: set[str] = set()
        self._num_lost: int | None = None  # messages, as the middleware counts them
        self._same_name_since_s: float | None = None
        self._logged_graph_error = False
        self._subscription = self._subscribe()
        self._question_subscription = self.create_subscription(
            String,
            records.QUESTION_INPUT,
            self._on_question,
            QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE),
        )
        self._service = self.create_service(SetBool, '~/enable', self._on_enable)
        self._reported_state = ''
        self._logged_refusal = ''
        self._logged_warnings: set[str] = set()  # since the last state of level OK
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

    def _check_parameter_files(self, arguments: Sequence[str]) -> None:
        """Raise ParameterError if a file seems meant for this node and nothing sets a parameter.

        Warn if something else does: then only that file has no effect.
        """
        names = set(SPECS)
        is_set = not names.isdisjoint(parameters.given_names(self))
        full_name = self.get_fully_qualified_name()
        for path in parameter_files.files_in(arguments):
            problem = parameter_files.misplaced(
                path, full_name, names, {NODE_NAME, self.get_name()}
            )
            if problem and not is_set:
                raise ParameterError(
                    'file',
                    path,
                    f'sets no parameter of {full_name}, nor does anything else: {problem}',
                )
            if problem:
                self.get_logger().warning(f'parameter file {path} sets nothing here: {problem}')

    def _report_unknown_parameters(self) -> None:
        """Warn about names that resemble one of ours; the others are meant for other nodes."""
        others = []
        for name in parameters.given_names(self):
            if self.has_parameter(name):
                continue
            similar = parameters.similar_name(name, SPECS)
            if similar:
                self.get_logger().warning(f'unknown parameter {name}: did you mean {similar}?')
            else:
                others.append(name)
        if others:
            self.get_logger().info(f'parameters that this node does not have: {", ".join(others)}')

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
        message_type: type = Image
        if self._settings.image_transport == 'compressed':
            topic = topic.removesuffix(COMPRESSED) + COMPRESSED
            message_type = CompressedImage
        reliability_name = self._settings.input_reliability
        self._input = f'{topic} ({message_type.__name__}, {reliability_name})'
        self.get_logger().info(f'images are taken from {self._input}')
        qos = QoSProfile(depth=1, reliability=reliability)
        self._diagnosis = InputDiagnosis(self, topic, message_type, qos)
        callbacks = message_lost_callbacks(self._on_lost)
        try:
            subscription = self.create_subscription(
                message_type, topic, self._on_image, qos, event_callbacks=callbacks
            )
            self._num_lost = None if callbacks is None else 0
        except rclpy_implementation.UnsupportedEventTypeError:  # this middleware counts none
            subscription = self.create_subscription(message_type, topic, self._on_image, qos)
        return subscription

    def _on_lost(self, total: int) -> None:
        self._num_lost = total

    def _on_image(self, message: Image | CompressedImage) -> None:
        self._refresh_settings()
        stamp = message.header.stamp
        stamp_ns = stamp.sec * 1_000_000_000 + stamp.nanosec
        now_ns = self.get_clock().now().nanoseconds
        self._stamp_check = stamps.check_stamp(stamp_ns, now_ns) if stamp_ns else 'no_stamp'
        if stamp_ns == 0:
            stamp_ns = now_ns
            if not self._warned_zero_stamp:
                self._warned_zero_stamp = True
                self.get_logger().warning('images have no stamp: the time of arrival is used')
        elif self._stamp_check in stamps.MEANINGS:
            self._warn_of_stamp(stamp_ns, now_ns)
        self._newest_stamp_ns = stamp_ns
        self._worker.receive(Frame(message, stamp_ns))

    def _on_question(self, message: String) -> None:
        self._refresh_settings()
        refusal = self._worker.ask(message.data)
        if refusal and refusal != self._logged_refusal:
            self.get_logger().warning(f'question refused: {refusal}')
        self._logged_refusal = refusal

    def _warn_of_stamp(self, stamp_ns: int, now_ns: int) -> None:
        """Log once per kind that stamps and this node's clock do not fit."""
        if self._stamp_check not in self._warned_stamps:
            self._warned_stamps.add(self._stamp_check)
            age = stamps.age_text(stamp_ns, now_ns)
            meaning = stamps.MEANINGS[self._stamp_check]
            self.get_logger().warning(f'the image that just arrived is {age}: {meaning}')

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

    def _from_graph(self, read: Callable[[], T], default: T) -> T:
        """Return what `read` finds in the ROS graph, or `default` if ROS cannot read it."""
        try:
            return read()
        except GRAPH_ERRORS as error:
            if not self._logged_graph_error:
                self._logged_graph_error = True
                self.get_logger().error(f'the ROS graph cannot be read now: {first_line(error)}')
            return default

    def _warn_of_publishers(self) -> None:
        """Warn about publishers on the input topic whose messages cannot be received."""
        now_s = time.monotonic()
        bad: dict[str, str] = self._from_graph(self._diagnosis.bad_publishers, {})
        for name, problem in bad.items():
            if now_s - self._warned_s.get(name, -math.inf) > WARN_AGAIN_S:
                self._warned_s[name] = now_s
                topic = self._subscription.topic_name
                self.get_logger().warning(
                    f'{name} publishes on {topic} but cannot be received: {problem}'
                )

    def _same_name(self) -> str:
        """Return the line about other nodes of the same full name, once they are there to stay."""
        own = (self.get_name(), self.get_namespace())
        seen: list[tuple[str, str]] = self._from_graph(self.get_node_names_and_namespaces, [])
        count = seen.count(own)
        now_s = time.monotonic()
        if count < 2:
            self._same_name_since_s = None
            return ''
        if self._same_name_since_s is None:
            self._same_name_since_s = now_s
        if now_s - self._same_name_since_s < SAME_NAME_AFTER_S:
            return ''
        return (
            f'{count} nodes are named {self.get_fully_qualified_name()}, so their topics and '
            'services mix: stop all but one, or rename them (-r __node:=NAME)'
        )

    def _report_health(self) -> None:
        self._refresh_settings()
        rate_hz = self._settings.rate_hz
        same_name = self._same_name()
        report = self._worker.report(
            max(NO_FRAMES_AFTER_S, 2.0 / rate_hz), settle_s(rate_hz), degraded=same_name
        )
        if report.is_silent:
            received, lost = report.frames['received'], self._num_lost
            cause = self._from_graph(
                lambda: self._diagnosis.silence(received, lost),
                'the ROS graph, which would show the reason, cannot be read',
            )
            report = dataclasses.replace(report, reason=f'{report.reason}: {cause}')
        if same_name and same_name not in report.reason:  # it is wrong in every state
            level = WARN if report.level == OK else report.level
            reason = '; '.join(filter(None, [report.reason, same_name]))
            is_logged = report.is_logged and level != WARN
            report = dataclasses.replace(report, level=level, reason=reason, is_logged=is_logged)
        now = self.get_clock().now()
        status = records.health_status(
            report,
            name=f'{self.get_name()}: inference',
            hardware_id=self.get_fully_qualified_name(),
            facts=self._facts(now.nanoseconds),
            plan=self._worker.plan,
        )
        self._publishing.publish_health(Header(stamp=now.to_msg()), status)
        if report.level == WARN:
            # Each kind of warning once until all is well: the numbers in it change.
            kind = re.sub(r'[\d.]+', '#', status.message)
            if not report.is_logged and kind not in self._logged_warnings:
                self._logged_warnings.add(kind)
                waiting = f'; waiting for {self._input}' if report.is_silent else ''
                self.get_logger().warning(status.message + waiting)
        elif report.state != self._reported_state and not report.is_logged:
            self.get_logger().info(status.message)
        if report.level == OK:
            self._logged_warnings.clear()
        self._reported_state = report.state

    def _facts(self, now_ns: int) -> dict[str, object]:
        """Return the keys of /diagnostics that the worker's health report does not have."""
        age_ms = math.nan
        if self._newest_stamp_ns is not None and now_ns:
            age_ms = (now_ns - self._newest_stamp_ns) / 1e6
        facts: dict[str, object] = {
            **self._worker.engine_facts(),
            'branches': ','.join(self._settings.branches),
            'input': self._input,
            'input_age_ms': age_ms,
            'stamp_check': self._stamp_check,
            'rate_hz': self._settings.rate_hz,
            'timing': self._worker.timing,
            'debug_time_type': self._debug_times.name,
            'memory_mib': resident_mib(),
        }
        facts.update(self._worker.questions.facts())
        facts.update(self._worker.budget.facts())
        if self._num_lost is not None:
            facts['message_lost'] = self._num_lost
        return facts


def run(
    stop: StopSignals,
    args: list[str] | None = None,
    load: LoadEngine = load_engine,
) -> int:
    """Run the node until `stop` is set; return the exit status. `load` loads the model."""
    tune_cpu()
    if stop.is_set():  # during the imports
        os._exit(0)  # another signal could interrupt Python's own way out
    try:
        # The context stays valid until the inference thread has ended: it may still publish.
        rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
        node = DualVlmNode(load, sys.argv if args is None else args)
    # Our own errors, and those of ROS about arguments, files and its own parameters.
    except (ValueError, RuntimeError, ParameterException) as error:
        reason = first_line(error)
        if isinstance(error, rclpy_implementation.UnknownROSArgsError):
            reason = f'unknown ROS arguments {reason}'
        rclpy.logging.get_logger(NODE_NAME).fatal(f'cannot start: {reason}')
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
