"""Publishes camera frames between two processes and counts those that arrive.

Both run in the environment of the caller (middleware, profile, domain): this process subscribes as
the node does and acknowledges every frame; a child process publishes as a camera does.

    this process                          child
                        <-- greeting      at 10 Hz, until one is acknowledged
    acknowledges        -->
                        <-- frame         at 10 Hz, each with the checksum of its content
    acknowledges        -->

Topics and nodes have unique names, so a running vehicle is not disturbed.
"""

from __future__ import annotations

import array
import json
import os
import statistics
import subprocess
import sys
import time
import uuid
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import String

from gmskip_ros.errors import UserError
from gmskip_ros.ros.listener import ros_node

RATE_HZ = 10.0
NUM_FRAMES = 20
CONNECT_WITHIN_S = 15.0
LATE_FRAMES_S = 1.0  # after the last one; reliable frames may be sent again
CAMERA_DEPTH = 5
GREETING = 'greeting'
JPEG_BYTES_PER_PIXEL = 0.25  # of a street scene at good quality; a deliberate overestimate
# The child's program. `python -c` puts '' into sys.path; nothing must be imported from there.
CAMERA_PROGRAM = (
    'import sys; sys.path[:] = [path for path in sys.path if path]; '
    'from gmskip_ros.ros.dds_round_trip import camera_main; camera_main(sys.argv[1])'
)


class RoundTripError(UserError):
    """The camera process failed; the message is one line."""


@dataclass(frozen=True)
class Camera:
    """What the camera publishes, and how."""

    width: int  # pixels
    height: int
    transport: str  # 'raw' or 'compressed'
    reliability: str  # 'best_effort' or 'reliable'
    num_frames: int
    name: str  # of its node, and the first part of its topics' names

    @property
    def frame_bytes(self) -> int:
        """Bytes of a frame's data: RGB pixels when raw, a JPEG of usual size when compressed."""
        pixels = self.width * self.height
        return 3 * pixels if self.transport == 'raw' else max(4, int(JPEG_BYTES_PER_PIXEL * pixels))

    @property
    def message_type(self) -> type:
        return Image if self.transport == 'raw' else CompressedImage

    @property
    def topic(self) -> str:
        return f'/{self.name}/image'

    def qos(self, depth: int) -> QoSProfile:
        return QoSProfile(depth=depth, reliability=ReliabilityPolicy[self.reliability.upper()])

    def message(self, index: int, pixels: bytearray) -> Any:
        """Return frame `index` with these pixels; its frame_id describes the data for a check."""
        pixels[:4] = index.to_bytes(4, 'little')
        message = self.message_type()
        if self.transport == 'raw':
            message.height, message.width = self.height, self.width
            message.encoding, message.step = 'rgb8', 3 * self.width
        else:
            message.format = 'rgb8; jpeg compressed bgr8'
        message.data = array.array('B', pixels)
        message.header.frame_id = f'{index} {len(pixels)} {zlib.crc32(pixels)}'
        return message


@dataclass(frozen=True)
class RoundTrip:
    """How many frames arrived, and how fast."""

    middleware: str
    domain_id: int
    frame_bytes: int
    connected: bool  # a greeting and its acknowledgement arrived
    sent: int
    arrived: int  # intact, each counted once
    damaged: int
    acknowledged: int  # acknowledgements that reached the camera
    round_trip_ms: float | None  # median, from before publishing to the acknowledgement


def measure_round_trip(
    width: int,
    height: int,
    transport: str = 'raw',
    reliability: str = 'best_effort',
    num_frames: int = NUM_FRAMES,
    connect_within_s: float = CONNECT_WITHIN_S,
) -> RoundTrip:
    """Publish frames from a child process, receive them in this one, and return the counts.

    transport: 'raw' or 'compressed'. reliability: 'best_effort' or 'reliable', of both sides.
    Takes num_frames / 10 s and a few seconds more; hangs if the middleware does. Raises
    RoundTripError, and whatever rclpy raises.
    """
    name = f'gmskip_doctor_{uuid.uuid4().hex[:12]}'
    camera = Camera(width, height, transport, reliability, num_frames, name)
    order = json.dumps({**asdict(camera), 'connect_within_s': connect_within_s})
    with ros_node(f'{name}_listener') as (node, executor):
        listener = _Listener(node, camera)
        process = subprocess.Popen(
            [sys.executable, '-c', CAMERA_PROGRAM, order],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            while process.poll() is None:
                executor.spin_once(timeout_sec=0.1)
            executor.spin_once(timeout_sec=0.1)  # what arrived as it exited
        finally:
            output = _stop(process)
        result = _camera_result(process.returncode, output)
        return RoundTrip(
            middleware=rclpy.get_rmw_implementation_identifier(),
            domain_id=node.context.get_domain_id(),
            frame_bytes=camera.frame_bytes,
            connected=result['connected'],
            sent=result['sent'],
            arrived=len(listener.arrived),
            damaged=listener.num_damaged,
            acknowledged=result['acknowledged'],
            round_trip_ms=result['round_trip_ms'],
        )


def _stop(process: subprocess.Popen[str]) -> str:
    """Stop the process, without SIGKILL if possible, as that leaves shared memory behind."""
    process.terminate()
    try:
        return process.communicate(timeout=3.0)[0]
    except subprocess.TimeoutExpired:
        process.kill()
        return process.communicate()[0]


def _camera_result(status: int, output: str) -> dict[str, Any]:
    """Return the camera's counts, from the last line of its output."""
    try:
        if status == 0:
            return json.loads(output.strip().splitlines()[-1])
    except (ValueError, IndexError):
        pass
    raise RoundTripError(f'the publishing process exited with status {status} and no result')


class _Listener:
    """Subscribes as the node does, checks every frame and acknowledges it."""

    def __init__(self, node: Node, camera: Camera) -> None:
        self.arrived: set[int] = set()
        self.num_damaged = 0
        self._acknowledge = node.create_publisher(String, f'{camera.topic}/acknowledged', 100)
        self._subscription = node.create_subscription(
            camera.message_type, camera.topic, self._on_frame, camera.qos(depth=1)
        )

    def _on_frame(self, message: Image | CompressedImage) -> None:
        name = message.header.frame_id
        if name != GREETING:
            try:
                index, num_bytes, checksum = (int(part) for part in name.split())
            except ValueError:
                self.num_damaged += 1
                return
            if (len(message.data), zlib.crc32(message.data)) != (num_bytes, checksum):
                self.num_damaged += 1
                return
            self.arrived.add(index)
            name = str(index)
        self._acknowledge.publish(String(data=name))


class _CameraProcess:
    """Publishes as a camera does, and counts what is acknowledged."""

    def __init__(self, camera: Camera) -> None:
        self._camera = camera
        node = rclpy.create_node(camera.name)
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(node)
        self._publisher = node.create_publisher(
            camera.message_type, camera.topic, camera.qos(CAMERA_DEPTH)
        )
        self._acknowledgements = node.create_subscription(
            String, f'{camera.topic}/acknowledged', self._on_acknowledgement, 100
        )
        self._is_greeted = False
        self._sent_s: dict[str, float] = {}
        self._round_trips_s: dict[str, float] = {}

    def run(self, connect_within_s: float) -> dict[str, Any]:
        """Greet, publish all frames, and return the counts for the other process."""
        deadline = time.monotonic() + connect_within_s
        while not self._is_greeted and time.monotonic() < deadline:
            greeting = self._camera.message_type()
            greeting.header.frame_id = GREETING
            self._publisher.publish(greeting)
            self._wait_for(lambda: self._is_greeted, 1.0 / RATE_HZ)
        if self._is_greeted:
            self._publish_frames()
        round_trips_ms = [1e3 * seconds for seconds in self._round_trips_s.values()]
        return {
            'connected': self._is_greeted,
            'sent': len(self._sent_s),
            'acknowledged': len(round_trips_ms),
            'round_trip_ms': statistics.median(round_trips_ms) if round_trips_ms else None,
        }

    def _publish_frames(self) -> None:
        # Random, so that no middleware can compress it.
        pixels = bytearray(os.urandom(self._camera.frame_bytes))
        start_s = time.monotonic()
        for index in range(self._camera.num_frames):
            message = self._camera.message(index, pixels)
            due_s = start_s + index / RATE_HZ
            self._wait_for(lambda: False, due_s - time.monotonic())
            self._sent_s[str(index)] = time.monotonic()
            self._publisher.publish(message)
        self._wait_for(lambda: len(self._round_trips_s) == len(self._sent_s), LATE_FRAMES_S)

    def _wait_for(self, condition: Callable[[], bool], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not condition() and (left_s := deadline - time.monotonic()) > 0:
            self._executor.spin_once(timeout_sec=left_s)

    def _on_acknowledgement(self, message: String) -> None:
        if message.data == GREETING:
            self._is_greeted = True
        elif message.data in self._sent_s:
            elapsed_s = time.monotonic() - self._sent_s[message.data]
            self._round_trips_s.setdefault(message.data, elapsed_s)


def camera_main(order: str) -> None:
    """Run the child: publish what the order says, and print the counts as the last line."""
    values = json.loads(order)
    connect_within_s = values.pop('connect_within_s')
    rclpy.init()
    try:
        result = _CameraProcess(Camera(**values)).run(connect_within_s)
    finally:
        rclpy.try_shutdown()
    print(json.dumps(result), flush=True)
