"""
Do camera frames arrive between two processes here? `measure_round_trip` publishes and counts them.

Two processes, in the environment of the one that asks (middleware, profile, domain): this one
subscribes as the node does and acknowledges every frame; a child publishes as a camera does.

    this process                          child
                        <-- 1 x 1 pixel   at 10 Hz, until one is acknowledged: they know each other
    acknowledges        -->
                        <-- frame         at 10 Hz, each with the checksum of its content
    acknowledges        -->

Topics and nodes have names of their own, so nothing of a running vehicle hears of it.
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

RATE_HZ = 10.0
NUM_FRAMES = 20
CONNECT_WITHIN_S = 15.0
LATE_FRAMES_S = 1.0  # after the last one; reliable ones may be sent again
CAMERA_DEPTH = 5
GREETING = 'greeting'
JPEG_BYTES_PER_PIXEL = 0.25  # of a street scene at good quality, rather more
# The child's program. Its own folder is no place to import from: -c would put it there.
CAMERA_PROGRAM = (
    'import sys; sys.path[:] = [path for path in sys.path if path]; '
    'from gmskip_ros.ros.dds_round_trip import camera_main; camera_main(sys.argv[1])'
)


class RoundTripError(UserError):
    """The camera process failed; the message is one line."""


@dataclass(frozen=True)
class Camera:
    """What the camera publishes: size in pixels, 'raw' or 'compressed', how, and how many."""

    width: int
    height: int
    transport: str
    reliability: str
    num_frames: int
    name: str  # of its node, and the beginning of its topics' names

    @property
    def frame_bytes(self) -> int:
        """Bytes of a frame's pixels: RGB when raw, of a JPEG of usual size when compressed."""
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
        """Return frame `index` with these pixels; its frame_id says what has to arrive."""
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
    """What became of the frames."""

    middleware: str
    domain_id: int
    frame_bytes: int
    connected: bool  # a message of one pixel went there and its acknowledgement came back
    sent: int
    arrived: int  # whole ones, each counted once
    damaged: int
    acknowledged: int  # of those that arrived, as the camera has it
    round_trip_ms: float | None  # median, from before publishing to the acknowledgement


def measure_round_trip(
    width: int,
    height: int,
    transport: str = 'raw',
    reliability: str = 'best_effort',
    num_frames: int = NUM_FRAMES,
    connect_within_s: float = CONNECT_WITHIN_S,
) -> RoundTrip:
    """
    Publish frames from another process, receive them in this one, and return what became of them.

    transport: 'raw' or 'compressed'. reliability: 'best_effort' or 'reliable', of both sides.
    Takes num_frames / 10 s and a few more; hangs where the middleware does. Raises RoundTripError,
    and what rclpy raises.
    """
    name = f'gmskip_doctor_{uuid.uuid4().hex[:12]}'
    camera = Camera(width, height, transport, reliability, num_frames, name)
    order = json.dumps({**asdict(camera), 'connect_within_s': connect_within_s})
    context = rclpy.Context()
    rclpy.init(context=context)
    try:
        node = rclpy.create_node(f'{name}_listener', context=context)
        listener = _Listener(node, camera)
        executor = SingleThreadedExecutor(context=context)
        executor.add_node(node)
        process = subprocess.Popen(
            [sys.executable, '-c', CAMERA_PROGRAM, order],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            while process.poll() is None:
                executor.spin_once(timeout_sec=0.1)
            executor.spin_once(timeout_sec=0.1)  # what came as it ended
        finally:
            printed = _end(process)
        heard = _result_of(process.returncode, printed)
        return RoundTrip(
            middleware=rclpy.get_rmw_implementation_identifier(),
            domain_id=context.get_domain_id(),
            frame_bytes=camera.frame_bytes,
            connected=heard['connected'],
            sent=heard['sent'],
            arrived=len(listener.arrived),
            damaged=listener.num_damaged,
            acknowledged=heard['acknowledged'],
            round_trip_ms=heard['round_trip_ms'],
        )
    finally:
        rclpy.try_shutdown(context=context)


def _end(process: subprocess.Popen[str]) -> str:
    """End the process and return what it printed; asked first: killed, it leaves memory behind."""
    process.terminate()
    try:
        return process.communicate(timeout=3.0)[0]
    except subprocess.TimeoutExpired:
        process.kill()
        return process.communicate()[0]


def _result_of(status: int, printed: str) -> dict[str, Any]:
    """Return the camera's own count, of the last line that it printed."""
    try:
        if status == 0:
            return json.loads(printed.strip().splitlines()[-1])
    except (ValueError, IndexError):
        pass
    raise RoundTripError(f'the publishing process ended with status {status} and no result')


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
        what = message.header.frame_id
        if what != GREETING:
            try:
                index, num_bytes, checksum = (int(part) for part in what.split())
            except ValueError:
                self.num_damaged += 1
                return
            if (len(message.data), zlib.crc32(message.data)) != (num_bytes, checksum):
                self.num_damaged += 1
                return
            self.arrived.add(index)
            what = str(index)
        self._acknowledge.publish(String(data=what))


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
        """Greet, publish all frames, and return what the other process wants to know."""
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
        pixels = bytearray(os.urandom(self._camera.frame_bytes))  # nothing can be packed or shared
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
    """Be the child: publish what the order says, and print the count as the last line."""
    values = json.loads(order)
    connect_within_s = values.pop('connect_within_s')
    rclpy.init()
    try:
        result = _CameraProcess(Camera(**values)).run(connect_within_s)
    finally:
        rclpy.try_shutdown()
    print(json.dumps(result), flush=True)
