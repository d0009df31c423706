"""A camera made of files: publishes a bag, a video, a folder of images or one image.

    image_player --ros-args -p source:=photos -p rate_hz:=10.0 -r image_raw:=/dual_vlm/input/image
    image_player --clock --ros-args -p source:=drive_0412 -p topic:=/front/image_raw

Raw images go to `image_raw`, compressed ones to the resolved name of `image_raw` + `/compressed`,
so that one remapping moves both. The player exits with status 0 one period after the last frame,
and with status 2 and a one-line error for a bad source, argument or parameter.

**Pace.** By default (`rate_hz` 0.0) the source's own: a bag's recording times, a video's frame
rate, 10 Hz for images. With `rate_hz`, one frame every 1 / rate_hz seconds.

**Stamps.** A bag's messages are published byte by byte as recorded. Frames of images and videos are
stamped with the node's clock when they are published.

**`--clock`**, or the parameter `clock`, publishes /clock at 40 Hz and before each frame, for nodes
with `use_sim_time`. For a bag it is the recording time, as with `ros2 bag play --clock`: the time
of each frame as it is published, then on at the pace of playback, never beyond the next frame. It
jumps back when the bag starts over. For images and videos it starts at the current wall-clock time,
advances by one period per frame, and is their stamp. It stands still before the first frame.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator

import rclpy
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.exceptions import ParameterException
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from rclpy.utilities import remove_ros_args
from rosgraph_msgs.msg import Clock

from gmskip_ros.errors import UserError, first_line
from gmskip_ros.pipeline.parameter_kinds import (
    ParameterError,
    Spec,
    boolean,
    integer,
    number,
    one_of,
    text,
)
from gmskip_ros.ros import parameters
from gmskip_ros.ros.camera_sources import MessageFormat, PlayerError, open_source
from gmskip_ros.ros.cues import Cue, cues
from gmskip_ros.signals import STOP_POLL_S, StopSignals

# States of the awaited node in which its model is loaded and it accepts frames.
READY_STATES = ('ready', 'no_frames', 'overload', 'degraded')
LOOK_FOR_NODE_S = 0.1
CLOCK_PERIOD_S = 0.025  # as for ros2 bag play
MAX_COUNT = 2**63 - 1

SPECS = {
    spec.name: spec
    for spec in (
        Spec('source', '', text(), 'bag (folder, .mcap, .db3), video, image, or folder of images'),
        Spec('topic', '', text(), 'of a bag; empty: the only one with images'),
        Spec(
            'rate_hz',
            0.0,
            number(0.0, 1000.0),
            "frames per second; 0: the source's own pace, 10 for images",
        ),
        Spec('loop', True, boolean(), 'start over after the last frame'),
        Spec('count', 0, integer(0, MAX_COUNT), 'stop after this many frames; 0: no limit'),
        Spec(
            'clock',
            False,
            boolean(),
            'publish /clock for nodes with use_sim_time; same as --clock',
        ),
        Spec(
            'wait_for_node',
            '',
            text(),
            'full name of a node that must be subscribed and ready before the first frame',
        ),
        Spec('reliability', 'best_effort', one_of(['best_effort', 'reliable']), 'of the images'),
        Spec(
            'image_transport',
            'raw',
            one_of(['raw', 'compressed']),
            'raw or compressed (JPEG); not for bags, nor are the following',
        ),
        Spec('jpeg_quality', 90, integer(1, 100), '1 to 100, for image_transport compressed'),
        Spec('width', 0, integer(0, 8192), 'resize to it, pixels; 0: unchanged, or in proportion'),
        Spec('height', 0, integer(0, 8192), 'resize to it, pixels; 0: unchanged, or in proportion'),
        Spec('frame_id', 'camera', text(), "the headers' frame_id"),
    )
}

USAGE = """\
usage: image_player [--clock] [--help] --ros-args -p source:=SOURCE [-p NAME:=VALUE ...]
                    [-r image_raw:=TOPIC]

Publish a bag, a video, a folder of images or one image as a camera does. Parameters:
"""


class ImagePlayer(Node):
    """Publishes its source's frames; call `play` repeatedly until `finished`."""

    def __init__(self, clock: bool = False) -> None:
        super().__init__('image_player')
        parameters.declare(self, SPECS)
        given = parameters.values(self, SPECS)
        values = {name: spec.check(given[name]) for name, spec in SPECS.items()}
        makes_clock = clock or values['clock']
        if makes_clock and self.get_parameter('use_sim_time').value:
            raise ParameterError(
                'use_sim_time',
                True,
                'and --clock exclude each other: the player cannot follow its own /clock; remove '
                'one of them',
            )
        self._wait_for_node = values['wait_for_node'].strip('/')

        self._source = open_source(
            values['source'],
            MessageFormat(
                values['image_transport'],
                values['width'],
                values['height'],
                values['jpeg_quality'],
                values['frame_id'],
            ),
            values['topic'],
        )
        rate_hz = values['rate_hz'] or self._source.rate_hz
        self._cues = cues(
            self._source,
            loop=values['loop'],
            count=values['count'],
            period_s=1.0 / rate_hz if rate_hz else None,
            start_ns=time.time_ns(),
        )
        self._next = next(self._cues, None)  # to be published at _due_s
        if self._next is None:
            raise PlayerError(f'{self._source.description}: no frame can be read')
        self._num_warned = 0
        self._warn_of_problems()
        self._newest: Cue | None = None  # published at _since_s
        self._since_s = self._due_s = 0.0  # time.monotonic()
        self._published = 0
        self.finished = False

        qos = QoSProfile(depth=5, reliability=ReliabilityPolicy[values['reliability'].upper()])
        topic = self.resolve_topic_name('image_raw')
        if self._source.message_type.__name__ == 'CompressedImage':
            topic += '/compressed'
        self._publisher = self.create_publisher(self._source.message_type, topic, qos)
        pace = f'{rate_hz:g} Hz' if rate_hz else 'as recorded'
        self._what = f'{self._source.description} on {topic}, {pace}'
        self._clock_publisher = None
        self._tick_s = 0.0  # when /clock is due
        if makes_clock:
            clock_qos = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
            self._clock_publisher = self.create_publisher(Clock, '/clock', clock_qos)
        self._is_waiting = bool(self._wait_for_node)
        self._node_state, self._logged = 'not reported', ''
        if self._is_waiting:
            self._diagnostics = self.create_subscription(
                DiagnosticArray, '/diagnostics', self._on_diagnostics, 10
            )
        else:
            self._start()

    def play(self) -> float:
        """Publish what is due; return the seconds until something is due again."""
        # A camera paces itself by the steady clock, not by the simulated time of its stamps.
        now_s = time.monotonic()
        if now_s >= self._due_s:
            if self._is_waiting:
                self._due_s = now_s + LOOK_FOR_NODE_S
                self._look_for_node()
            else:
                self._publish_next(now_s)
        next_s = self._due_s
        if self._clock_publisher is not None:
            if now_s >= self._tick_s:
                self._publish_clock(now_s)
            next_s = min(next_s, self._tick_s)
        return max(0.0, next_s - time.monotonic())

    def _warn_of_problems(self) -> None:
        for problem in self._source.problems[self._num_warned :]:
            self.get_logger().warning(problem)
            self._num_warned += 1

    # ---- waiting

    def _on_diagnostics(self, msg: DiagnosticArray) -> None:
        # diagnostic_updater names a status '<node>: <task>', the node without its namespace.
        name = self._wait_for_node.rpartition('/')[2] + ': inference'
        for status in msg.status:
            if status.name == name:
                self._node_state = {v.key: v.value for v in status.values}.get('state', '')

    def _look_for_node(self) -> None:
        """Start if the awaited node is subscribed and ready; otherwise log what is missing."""
        topic = self._publisher.topic_name
        subscribers = {
            f'{info.node_namespace}/{info.node_name}'.strip('/')
            for info in self.get_subscriptions_info_by_topic(topic)
        }
        is_matched = self._publisher.get_subscription_count() > 0
        is_subscribed = is_matched and self._wait_for_node in subscribers
        if is_subscribed and self._node_state in READY_STATES:
            self._is_waiting = False
            self.destroy_subscription(self._diagnostics)
            self._start()
            return
        waiting = (
            f'waiting for /{self._wait_for_node}: {"" if is_subscribed else "not "}subscribed to '
            f'{topic}, state {self._node_state!r}'
        )
        if waiting != self._logged:
            self._logged = waiting
            self.get_logger().info(waiting)

    # ---- playing

    def _start(self) -> None:
        self.get_logger().info(f'publishing {self._what}')
        self._due_s = time.monotonic()

    def _publish_next(self, now_s: float) -> None:
        cue = self._next
        if cue is None:  # a period after the last frame, which has had time to arrive
            self.finished = True
            self.get_logger().info(f'published {self._published} frames')
            return
        self._newest, self._since_s = cue, now_s
        # After a delay, continue from now: no burst of missed frames.
        self._due_s = max(self._due_s + cue.hold_s, now_s)
        if self._clock_publisher is not None:
            self._publish_clock(now_s)
        if not isinstance(cue.message, bytes):
            makes_clock = self._clock_publisher is not None
            stamp = _time(cue.time_ns) if makes_clock else self.get_clock().now().to_msg()
            cue.message.header.stamp = stamp
        self._publisher.publish(cue.message)
        self._published += 1
        self._next = next(self._cues, None)
        self._warn_of_problems()

    def _publish_clock(self, now_s: float) -> None:
        assert self._clock_publisher is not None
        self._clock_publisher.publish(Clock(clock=_time(self._simulated_ns(now_s))))
        self._tick_s = now_s + CLOCK_PERIOD_S

    def _simulated_ns(self, now_s: float) -> int:
        cue = self._newest
        if cue is None:
            assert self._next is not None
            return self._next.time_ns
        # Interpolate from this frame's time to the next one's while this one is the newest.
        hold_s = self._due_s - self._since_s
        part = min(1.0, (now_s - self._since_s) / hold_s) if hold_s > 0.0 else 0.0
        return cue.time_ns + int(part * (cue.until_ns - cue.time_ns))


def _time(time_ns: int) -> Time:
    seconds, nanoseconds = divmod(time_ns, 1_000_000_000)
    # A bag may contain any value.
    return Time(sec=min(max(seconds, 0), 2**31 - 1), nanosec=nanoseconds)


def main(args: list[str] | None = None) -> int:
    """Run the player until it has finished or gets a signal; return the exit status."""
    arguments = sys.argv[1:] if args is None else args
    if '--help' in arguments or '-h' in arguments:
        print(USAGE + '\n'.join(_parameter_lines()))
        return 0
    stop = StopSignals().listen()
    try:
        rclpy.init(args=arguments, signal_handler_options=SignalHandlerOptions.NO)
    except RuntimeError as error:
        print(f'image_player: error: ROS arguments: {first_line(error)}', file=sys.stderr)
        return 2
    try:
        unknown = [argument for argument in remove_ros_args(arguments) if argument != '--clock']
        if unknown:
            raise PlayerError(
                f'unknown argument {unknown[0]!r}: give parameters as --ros-args -p, see --help'
            )
        executor = SingleThreadedExecutor()
        node = ImagePlayer(clock='--clock' in arguments)
        executor.add_node(node)
        while not stop.is_set():
            wait_s = node.play()
            if node.finished:
                break
            executor.spin_once(timeout_sec=min(wait_s, STOP_POLL_S))
    except (UserError, OSError, ParameterException) as error:
        print(f'image_player: error: {error}', file=sys.stderr)
        return 2
    finally:
        rclpy.try_shutdown()
    return 0


def _parameter_lines() -> Iterator[str]:
    for spec in SPECS.values():
        is_text = isinstance(spec.default, str)
        default = repr(spec.default) if is_text else str(spec.default).lower()
        yield f'  {spec.name:<16} {default:<14} {spec.description}'


if __name__ == '__main__':
    sys.exit(main())
