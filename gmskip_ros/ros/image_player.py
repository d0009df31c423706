"""
A camera made of pictures: publishes a folder's pictures, or one picture, at a fixed rate.

    image_player --ros-args -p source:=photos -r image_raw:=/dual_vlm/input/image

Raw images go to `image_raw`, compressed ones to the resolved name of `image_raw` + `/compressed`,
so that one remapping moves both. Stamps are the node's clock at publishing. The player ends by
itself, with exit status 0, one period after the last frame; a source or a parameter that is wrong
is one line and exit status 2.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import cv2
import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rcl_interfaces.msg import ParameterDescriptor
from rclpy.clock import Clock, ClockType
from rclpy.exceptions import ParameterException
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

from gmskip_ros.ros.conversions import ConversionError, rgb_to_compressed, rgb_to_image
from gmskip_ros.ros.stop_signals import STOP_POLL_S, stop_event_on_signals

PICTURE_SUFFIXES = ('.jpg', '.jpeg', '.png')
CACHE_BYTES = 512 << 20  # of finished messages: 86 raw frames of 1080p, 582 of 640x480
# The states (of gmskip's node) in which its model is loaded and it waits for frames.
READY_STATES = ('ready', 'no_frames', 'overload', 'degraded')

CameraMessage: TypeAlias = 'Image | CompressedImage'


class PlayerError(Exception):
    """The player cannot go on; the message is one line that names the thing and the remedy."""


def find_pictures(source: str) -> list[Path]:
    """Return the picture at `source`, or the pictures in that folder, sorted by name."""
    path = Path(source).expanduser()
    if not source or not path.exists():
        raise PlayerError(f'source {source!r}: not found; give a picture or a folder of pictures')
    pictures = sorted(path.iterdir()) if path.is_dir() else [path]
    pictures = [p for p in pictures if p.suffix.lower() in PICTURE_SUFFIXES and p.is_file()]
    if not pictures:
        raise PlayerError(f'source {source!r}: no pictures ({", ".join(PICTURE_SUFFIXES)}) there')
    return pictures


def read_picture(path: Path, width: int = 0, height: int = 0) -> np.ndarray:
    """
    Return a picture file as uint8 RGB (H, W, 3), upright as its EXIF orientation says.

    A width or height of 0 follows from the other and the picture's shape; both 0: as it is.
    """
    data = np.fromfile(path, np.uint8)
    bgr = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
    if bgr is None:
        raise PlayerError(f'source {str(path)!r}: not a readable picture; remove or replace it')
    if width or height:
        width = width or max(1, round(bgr.shape[1] * height / bgr.shape[0]))
        height = height or max(1, round(bgr.shape[0] * width / bgr.shape[1]))
        bgr = cv2.resize(bgr, (width, height), interpolation=cv2.INTER_AREA)
    return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)


def picture_messages(
    pictures: Sequence[Path], make_message: Callable[[Path], CameraMessage], loop: bool
) -> Iterator[CameraMessage]:
    """
    Yield the message of each picture in turn; with `loop`, for ever.

    The first ones, as many as fit into CACHE_BYTES, are made before this returns and kept, so that
    publishing does not wait for decoding; the rest are made anew each time.
    """
    kept: dict[Path, CameraMessage] = {}
    room = CACHE_BYTES
    for path in pictures:
        message = make_message(path)
        room -= len(message.data)
        if room < 0:
            break
        kept[path] = message

    def play() -> Iterator[CameraMessage]:
        while True:
            for path in pictures:
                yield kept[path] if path in kept else make_message(path)
            if not loop:
                return

    return play()


class ImagePlayer(Node):
    """Publishes its source's frames, one per period, from `start()` until `finished`."""

    def __init__(self) -> None:
        super().__init__('image_player')
        source = self._parameter('source', '', 'picture, or folder of .jpg and .png pictures')
        rate_hz = self._parameter('rate_hz', 10.0, 'frames per second, above 0')
        transport = self._parameter('image_transport', 'raw', 'raw or compressed (JPEG)')
        self._frame_id = self._parameter('frame_id', 'camera', "the headers' frame_id")
        loop = self._parameter('loop', True, 'begin again after the last picture')
        self._count = self._parameter('count', 0, 'end after so many frames; 0: no such end')
        width = self._parameter('width', 0, 'resize to it, pixels; 0: as is, or in proportion')
        height = self._parameter('height', 0, 'resize to it, pixels; 0: as is, or in proportion')
        quality = self._parameter('jpeg_quality', 90, '1 to 100, of image_transport compressed')
        reliability = self._parameter('reliability', 'best_effort', 'best_effort or reliable')
        self._wait_for_node = self._parameter(
            'wait_for_node', '', 'full name of the node whose subscription and state ready to '
            'await before the first frame; empty: start at once'
        ).strip('/')
        self._check('rate_hz', rate_hz, 0.0 < rate_hz <= 1000.0, 'above 0, at most 1000')
        self._check('image_transport', transport, transport in ('raw', 'compressed'),
                    'raw or compressed')
        self._check('reliability', reliability, reliability in ('best_effort', 'reliable'),
                    'best_effort or reliable')
        self._check('count', self._count, self._count >= 0, '0 or more')
        self._check('width', width, 0 <= width <= 8192, '0 to 8192')
        self._check('height', height, 0 <= height <= 8192, '0 to 8192')
        self._check('jpeg_quality', quality, 1 <= quality <= 100, '1 to 100')

        def make_message(path: Path) -> CameraMessage:
            rgb = read_picture(path, width, height)
            if transport == 'raw':
                return rgb_to_image(rgb, Header())
            return rgb_to_compressed(rgb, Header(), quality)

        pictures = find_pictures(source)
        self._messages = picture_messages(pictures, make_message, loop)
        self._published = 0
        self.finished = False

        qos = QoSProfile(depth=5, reliability=ReliabilityPolicy[reliability.upper()])
        topic = self.resolve_topic_name('image_raw')
        message_type = Image
        if transport == 'compressed':
            topic, message_type = topic + '/compressed', CompressedImage
        self._publisher = self.create_publisher(message_type, topic, qos)
        self._period_s = 1.0 / rate_hz
        self._what = f'{len(pictures)} picture(s) of {source} on {topic}, {rate_hz:g} Hz'
        # A camera keeps its own pace, so timers do not follow the simulated time that stamps may.
        self._steady_clock = Clock(clock_type=ClockType.STEADY_TIME)
        self._node_state = 'not heard of'
        if self._wait_for_node:
            self._diagnostics = self.create_subscription(
                DiagnosticArray, '/diagnostics', self._on_diagnostics, 10
            )
            self._said = ''
            self._wait_timer = self.create_timer(0.1, self._wait, clock=self._steady_clock)
        else:
            self._start()

    def _parameter(self, name: str, default: Any, description: str) -> Any:
        """Declare a parameter and return its value, of the default's type."""
        descriptor = ParameterDescriptor(description=description, read_only=True)
        if isinstance(default, float):
            descriptor.dynamic_typing = True  # so that 10 is accepted for 10.0
        value = self.declare_parameter(name, default, descriptor).value
        if isinstance(default, float):
            numeric = isinstance(value, (int, float)) and not isinstance(value, bool)
            self._check(name, value, numeric, 'a number')
            return float(value)
        return value

    def _check(self, name: str, value: object, is_valid: bool, allowed: str) -> None:
        if not is_valid:
            raise PlayerError(f'parameter {name} = {value!r}: give {allowed}')

    def _on_diagnostics(self, msg: DiagnosticArray) -> None:
        # diagnostic_updater names a status '<node>: <task>', the node without its namespace.
        name = self._wait_for_node.rpartition('/')[2] + ': inference'
        for status in msg.status:
            if status.name == name:
                self._node_state = {v.key: v.value for v in status.values}.get('state', '')

    def _wait(self) -> None:
        """Start when the awaited node is subscribed and ready; until then say what is missing."""
        topic = self._publisher.topic_name
        subscribers = {
            f'{info.node_namespace}/{info.node_name}'.strip('/')
            for info in self.get_subscriptions_info_by_topic(topic)
        }
        is_matched = self._publisher.get_subscription_count() > 0
        is_subscribed = is_matched and self._wait_for_node in subscribers
        if is_subscribed and self._node_state in READY_STATES:
            self.destroy_timer(self._wait_timer)
            self.destroy_subscription(self._diagnostics)
            self._start()
            return
        waiting = (
            f'waiting for /{self._wait_for_node}: {"" if is_subscribed else "not "}subscribed to '
            f'{topic}, state {self._node_state!r}'
        )
        if waiting != self._said:
            self._said = waiting
            self.get_logger().info(waiting)

    def _start(self) -> None:
        self.get_logger().info(f'publishing {self._what}')
        self.create_timer(self._period_s, self._publish_next, clock=self._steady_clock)

    def _publish_next(self) -> None:
        at_end = 0 < self._count <= self._published
        message = None if at_end else next(self._messages, None)
        if message is None:  # a period after the last frame, which has had its time to arrive
            self.finished = True
            self.get_logger().info(f'published {self._published} frames')
            return
        message.header.stamp = self.get_clock().now().to_msg()
        message.header.frame_id = self._frame_id
        self._publisher.publish(message)
        self._published += 1


def main(args: list[str] | None = None) -> int:
    """Run the player until it has finished or is told to stop; return the exit status."""
    stop = stop_event_on_signals()
    try:
        rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    except RuntimeError as error:
        print(f'image_player: error: ROS arguments: {str(error).splitlines()[0]}', file=sys.stderr)
        return 2
    try:
        executor = SingleThreadedExecutor()
        node = ImagePlayer()
        executor.add_node(node)
        while not (node.finished or stop.is_set()):
            executor.spin_once(timeout_sec=STOP_POLL_S)
    except (PlayerError, ConversionError, OSError, ParameterException) as error:
        print(f'image_player: error: {error}', file=sys.stderr)
        return 2
    finally:
        rclpy.try_shutdown()
    return 0


if __name__ == '__main__':
    sys.exit(main())
