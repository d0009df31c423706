"""A camera, a reader of every topic and a caller of every service, for tests of the real node."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from fault_node import REPORT_S, SETTLE_S, UNSTEADY_NS
from rcl_interfaces.msg import Parameter, ParameterType, ParameterValue
from rcl_interfaces.srv import SetParameters
from rclpy.qos import QoSProfile, ReliabilityPolicy
from ros_process import RosProcess, ros_command, wait_until
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Float64, Float64MultiArray, Header, String
from std_srvs.srv import SetBool

from gmskip_ros.ros.conversions import rgb_to_compressed, rgb_to_image
from gmskip_ros.tasks import TASK_NAMES

# GM-Skip's published lists, and answers short enough for a busy machine.
PARAMETERS: dict[str, Any] = {
    **{f'skip_list.{task}': f'gmskip_{task}' for task in TASK_NAMES},
    **{f'max_new_tokens.{task}': 4 for task in TASK_NAMES},
}


def quick_command(*ros_args: str, **parameters: Any) -> list[str]:
    """Return the command line of the node, as ros_command does.

    It is the real node, except that it reports its health every REPORT_S, that warnings are over
    after SETTLE_S, and that jumps back count together within UNSTEADY_NS: tests wait for all that.
    """
    python, _, _, *arguments = ros_command('dual_vlm_node', *ros_args, **parameters)
    code = (
        'import sys; from gmskip_ros.pipeline import gate; from gmskip_ros.ros import node; '
        f'node.DIAGNOSTICS_PERIOD_S = {REPORT_S}; node.settle_s = lambda rate_hz: {SETTLE_S}; '
        f'gate.UNSTEADY_NS = {UNSTEADY_NS}; '
        'from gmskip_ros.ros.dual_vlm_node import main; sys.exit(main())'
    )
    return [python, '-c', code, *arguments]


def keys(status: DiagnosticStatus) -> dict[str, str]:
    return {entry.key: entry.value for entry in status.values}


def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (360, 480, 3), dtype=np.uint8)


class Probe:
    """Everything around one node, played by a single node in the test's own process."""

    def __init__(self, node: Any, process: RosProcess, name: str, image_topic: str) -> None:
        self.node, self.process, self.name = node, process, name
        self.received: dict[str, list[Any]] = {}
        self.second = int(time.time())  # of the next frame's stamp
        is_jpeg = image_topic.endswith('/compressed')
        self.make_message = rgb_to_compressed if is_jpeg else rgb_to_image
        # Reliable, so that it matches any subscription.
        qos = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE)
        self.camera = node.create_publisher(CompressedImage if is_jpeg else Image, image_topic, qos)
        self.enable_client = node.create_client(SetBool, f'{name}/enable')
        self.parameter_client = node.create_client(SetParameters, f'{name}/set_parameters')
        self.read('/diagnostics', DiagnosticArray)
        for branch in ('skip', 'full'):
            self.read(f'{name}/output/{branch}/result', DiagnosticArray)
            for task in TASK_NAMES:
                self.read(f'{name}/debug/{branch}/{task}/text', String)
                self.read(f'{name}/debug/{branch}/{task}/latency_ms', Float64MultiArray)
        self.read(f'{name}/output/comparison', DiagnosticArray)
        for time_topic in ('', 'skip/', 'full/', 'skip/shared_', 'full/shared_'):
            self.read(f'{name}/debug/{time_topic}processing_time_ms', Float64)
        self.read(f'{name}/debug/pipeline_latency_ms', Float64)

    def read(self, topic: str, message_type: type) -> Any:
        messages = self.received.setdefault(topic, [])
        return self.node.create_subscription(message_type, topic, messages.append, 10)

    def on(self, topic: str) -> list[Any]:
        return self.received[f'{self.name}/{topic}']

    def wait(self, condition: Any, what: str) -> None:
        wait_until(condition, self.node, what=what, process=self.process)

    def health(self) -> dict[str, str]:
        """Return the keys of a health report made after this call."""
        before = len(self.received['/diagnostics'])
        self.wait(lambda: len(self.received['/diagnostics']) > before, 'a health report')
        return keys(self.received['/diagnostics'][-1].status[0])

    def wait_for_state(self, *states: str) -> dict[str, str]:
        self.wait(lambda: self.health()['state'] in states, f'state {states}')
        return keys(self.received['/diagnostics'][-1].status[0])

    def header(self, offset_s: float = 0.0) -> Header:
        header = Header(frame_id='front')
        seconds = self.second + offset_s
        header.stamp.sec, header.stamp.nanosec = int(seconds), round(seconds % 1 * 1e9)
        return header

    def publish(self, message: Any) -> None:
        self.wait(lambda: self.camera.get_subscription_count() > 0, 'the camera subscription')
        self.camera.publish(message)

    def results_of(self, header: Header, topic: str) -> list[Any]:
        return [message for message in self.on(topic) if message.header == header]

    def ask(self, offset_s: float = 0.0, wait_for: str = 'output/comparison') -> Header:
        """Publish a frame, again if need be, until its result arrives (second copies are gated)."""
        header = self.header(offset_s)
        message = self.make_message(picture(), header)
        self.publish(message)
        sent_s = time.monotonic()

        def arrived() -> bool:
            nonlocal sent_s
            if time.monotonic() - sent_s > 5.0:  # best effort: it may have been lost
                sent_s = time.monotonic()
                self.publish(message)
            return bool(self.results_of(header, wait_for))

        self.wait(arrived, f'{wait_for} of the frame of {header.stamp}')
        self.second += 1
        return header

    def call(self, client: Any, request: Any) -> Any:
        self.wait(client.service_is_ready, client.srv_name)
        future = client.call_async(request)
        self.wait(future.done, f'the answer of {client.srv_name}')
        return future.result()

    def enable(self, value: bool) -> Any:
        return self.call(self.enable_client, SetBool.Request(data=value))

    def set_parameter(self, name: str, value: Any) -> Any:
        kinds = {
            bool: ('PARAMETER_BOOL', 'bool_value'),
            int: ('PARAMETER_INTEGER', 'integer_value'),
            float: ('PARAMETER_DOUBLE', 'double_value'),
            str: ('PARAMETER_STRING', 'string_value'),
        }
        kind, field = kinds[type(value)]
        typed = ParameterValue(type=getattr(ParameterType, kind), **{field: value})
        request = SetParameters.Request(parameters=[Parameter(name=name, value=typed)])
        return self.call(self.parameter_client, request).results[0]
