"""
A camera out of files: publishes a bag, a video, a folder of pictures or one picture.

    image_player --ros-args -p source:=photos -p rate_hz:=10.0 -r image_raw:=/dual_vlm/input/image
    image_player --clock --ros-args -p source:=drive_0412 -p topic:=/front/image_raw

Raw images go to `image_raw`, compressed ones to the resolved name of `image_raw` + `/compressed`,
so that one remapping moves both. The player ends by itself, with exit status 0, one period after
the last frame; a source, an argument or a parameter that is wrong is one line and exit status 2.

**Pace.** Without `rate_hz` (0.0) the source's own: a bag's recording times, a video's frame rate,
10 Hz for pictures. With it, one frame every 1 / rate_hz seconds.

**Stamps.** A bag's messages go out byte by byte as recorded. Frames of pictures and videos are
stamped with the node's clock at publishing.

**`--clock`**, or the parameter `clock`, publishes /clock, 40 Hz and before each frame, for nodes
with `use_sim_time`. Of a bag it is the recording time, as `ros2 bag play --clock` has it: the
frame's own when that is published, and on from there at the pace of the playing, never beyond the
next frame's. When the bag starts over, it jumps back. Of pictures and videos it starts at the wall
clock's now, goes on by one period a frame, and is their stamp. Before the first frame it stands.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import rclpy
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray
from rcl_interfaces.msg import ParameterDescriptor
from rclpy.exceptions import ParameterException
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from rclpy.utilities import remove_ros_args
from rosgraph_msgs.msg import Clock

from gmskip_ros.bags.reading import BagError
from gmskip_ros.pipeline.pixels import ConversionError
from gmskip_ros.ros.camera_sources import (
    CameraMessage,
    MessageFormat,
    PlayerError,
    Source,
    SourceFrame,
    open_source,
)
from gmskip_ros.signals import STOP_POLL_S, StopSignals

# The states (of gmskip's node) in which its model is loaded and it waits for frames.
READY_STATES = ('ready', 'no_frames', 'overload', 'degraded')
LOOK_FOR_NODE_S = 0.1
CLOCK_PERIOD_S = 0.025  # as of ros2 bag play
# A bag's last frame holds as long as the one before it did, within these bounds.
LAST_FRAME_S = (0.1, 1.0)

PARAMETERS: dict[str, tuple[Any, str]] = {
    'source': ('', 'bag (folder, .mcap, .db3), video, picture, or folder of pictures'),
    'topic': ('', 'of a bag; empty: the only one with images'),
    'rate_hz': (0.0, "frames per second; 0: the source's own pace, 10 for pictures"),
    'loop': (True, 'begin again after the last frame'),
    'count': (0, 'end after so many frames; 0: no such end'),
    'clock': (False, 'publish /clock for nodes with use_sim_time; --clock is the same'),
    'wait_for_node': (
        '',
        'node, by its full name, that has to be subscribed and ready before the first frame',
    ),
    'reliability': ('best_effort', 'best_effort or reliable'),
    'image_transport': ('raw', 'raw or compressed (JPEG); like those below not for bags'),
    'jpeg_quality': (90, '1 to 100, of image_transport compressed'),
    'width': (0, 'resize to it, pixels; 0: as is, or in proportion'),
    'height': (0, 'resize to it, pixels; 0: as is, or in proportion'),
    'frame_id': ('camera', "the headers' frame_id"),
}

USAGE = """\
usage: image_player [--clock] [--help] --ros-args -p source:=SOURCE [-p NAME:=VALUE ...]
                    [-r image_raw:=TOPIC]

Publish a bag, a video, a folder of pictures or one picture as a camera does. Parameters:
"""


@dataclass(frozen=True)
class Cue:
    """A frame, when it is in simulated time, and until when it is the newest."""

    message: CameraMessage | bytes
    time_ns: int
    until_ns: int  # simulated time at which the next one is due
    hold_s: float  # the same in seconds of the wall


def cues(
    source: Source, *, loop: bool, count: int, period_s: float | None, start_ns: int
) -> Iterator[Cue]:
    """
    Yield what to publish when; frames are read one ahead.

    `period_s`: between two frames; None: as their times say. `count`: of frames, 0 is no limit.
    `start_ns`: simulated time of the first frame, where the source has no time of its own.
    """
    frames: Iterator[tuple[int, SourceFrame]] = _passes(source, loop)
    if count:
        frames = itertools.islice(frames, count)
    interval_ns = 0
    following = next(frames, None)
    for number in itertools.count():
        if following is None:
            return
        pass_number, frame = following
        following = next(frames, None)
        if frame.time_ns is None:
            assert period_s is not None
            time_ns = start_ns + round(number * period_s * 1e9)
            until_ns = start_ns + round((number + 1) * period_s * 1e9)
        else:
            time_ns = frame.time_ns
            if following and following[0] == pass_number and following[1].time_ns is not None:
                interval_ns = following[1].time_ns - time_ns
                until_ns = following[1].time_ns
            else:  # the last one of a pass
                shortest_s, longest_s = LAST_FRAME_S
                until_ns = time_ns + round(min(max(interval_ns, shortest_s * 1e9), longest_s * 1e9))
        hold_s = (until_ns - time_ns) / 1e9 if period_s is None else period_s
        yield Cue(frame.message, time_ns, until_ns, hold_s)


def _passes(source: Source, loop: bool) -> Iterator[tuple[int, SourceFrame]]:
    """Yield (number of the pass, frame); with `loop` for ever, unless a pass has no frames."""
    for number in itertools.count():
        is_empty = True
        for frame in source.frames():
            is_empty = False
            yield number, frame
        if is_empty or not loop:
            return


class ImagePlayer(Node):
    """Publishes its source's frames when they are due, until `finished`; `play` makes it go on."""

    def __init__(self, clock: bool = False) -> None:
        super().__init__('image_player')
        values = {name: self._parameter(name) for name in PARAMETERS}
        self._wait_for_node = values['wait_for_node'].strip('/')
        rate_hz, reliability = values['rate_hz'], values['reliability']
        transport = values['image_transport']
        self._check(
            'rate_hz', rate_hz, 0.0 <= rate_hz <= 1000.0, "0 (the source's own pace) to 1000"
        )
        self._check(
            'image_transport', transport, transport in ('raw', 'compressed'), 'raw or compressed'
        )
        self._check(
            'reliability',
            reliability,
            reliability in ('best_effort', 'reliable'),
            'best_effort or reliable',
        )
        self._check('count', values['count'], values['count'] >= 0, '0 or more')
        for side in ('width', 'height'):
            self._check(side, values[side], 0 <= values[side] <= 8192, '0 to 8192')
        self._check(
            'jpeg_quality', values['jpeg_quality'], 1 <= values['jpeg_quality'] <= 100, '1 to 100'
        )
        makes_clock = clock or values['clock']
        if makes_clock and self.get_parameter('use_sim_time').value:
            raise PlayerError(
                'parameter use_sim_time = True: the player cannot follow the /clock that it makes; '
                'leave it out, or --clock'
            )

        self._source = open_source(
            values['source'],
            MessageFormat(
                transport,
                values['width'],
                values['height'],
                values['jpeg_quality'],
                values['frame_id'],
            ),
            values['topic'],
        )
        own_rate_hz = rate_hz or self._source.rate_hz
        self._cues = cues(
            self._source,
            loop=values['loop'],
            count=values['count'],
            period_s=1.0 / own_rate_hz if own_rate_hz else None,
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

        qos = QoSProfile(depth=5, reliability=ReliabilityPolicy[reliability.upper()])
        topic = self.resolve_topic_name('image_raw')
        if self._source.message_type.__name__ == 'CompressedImage':
            topic += '/compressed'
        self._publisher = self.create_publisher(self._source.message_type, topic, qos)
        pace = f'{own_rate_hz:g} Hz' if own_rate_hz else 'as recorded'
        self._what = f'{self._source.description} on {topic}, {pace}'
        self._clock_publisher = None
        self._tick_s = 0.0  # when /clock is due
        if makes_clock:
            clock_qos = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
            self._clock_publisher = self.create_publisher(Clock, '/clock', clock_qos)
        self._is_waiting = bool(self._wait_for_node)
        self._node_state, self._said = 'not heard of', ''
        if self._is_waiting:
            self._diagnostics = self.create_subscription(
                DiagnosticArray, '/diagnostics', self._on_diagnostics, 10
            )
        else:
            self._start()

    def play(self) -> float:
        """Do what is due; return the seconds until there is something again."""
        # A camera keeps its own pace: the steady clock's, not the simulated one that stamps have.
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

    def _parameter(self, name: str) -> Any:
        """Declare a parameter and return its value, of the default's type."""
        default, description = PARAMETERS[name]
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
        """Start when the awaited node is subscribed and ready; until then say what is missing."""
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
        if waiting != self._said:
            self._said = waiting
            self.get_logger().info(waiting)

    # ---- playing

    def _start(self) -> None:
        self.get_logger().info(f'publishing {self._what}')
        self._due_s = time.monotonic()

    def _publish_next(self, now_s: float) -> None:
        cue = self._next
        if cue is None:  # a period after the last frame, which has had its time to arrive
            self.finished = True
            self.get_logger().info(f'published {self._published} frames')
            return
        self._newest, self._since_s = cue, now_s
        # After a delay the pace goes on from here: no burst of what was missed.
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
        # From this frame's time to the next one's in the time that this one holds.
        hold_s = self._due_s - self._since_s
        part = min(1.0, (now_s - self._since_s) / hold_s) if hold_s > 0.0 else 0.0
        return cue.time_ns + int(part * (cue.until_ns - cue.time_ns))


def _time(time_ns: int) -> Time:
    seconds, nanoseconds = divmod(time_ns, 1_000_000_000)
    return Time(sec=min(max(seconds, 0), 2**31 - 1), nanosec=nanoseconds)  # a bag may say anything


def main(args: list[str] | None = None) -> int:
    """Run the player until it has finished or is told to stop; return the exit status."""
    arguments = sys.argv[1:] if args is None else args
    if '--help' in arguments or '-h' in arguments:
        print(USAGE + '\n'.join(_parameter_lines()))
        return 0
    stop = StopSignals().listen()
    try:
        rclpy.init(args=arguments, signal_handler_options=SignalHandlerOptions.NO)
    except RuntimeError as error:
        print(f'image_player: error: ROS arguments: {str(error).splitlines()[0]}', file=sys.stderr)
        return 2
    try:
        unknown = [argument for argument in remove_ros_args(arguments) if argument != '--clock']
        if unknown:
            raise PlayerError(
                f'argument {unknown[0]!r}: not known; parameters go behind --ros-args -p, '
                'see --help'
            )
        executor = SingleThreadedExecutor()
        node = ImagePlayer(clock='--clock' in arguments)
        executor.add_node(node)
        while not stop.is_set():
            wait_s = node.play()
            if node.finished:
                break
            executor.spin_once(timeout_sec=min(wait_s, STOP_POLL_S))
    except (PlayerError, BagError, ConversionError, OSError, ParameterException) as error:
        print(f'image_player: error: {error}', file=sys.stderr)
        return 2
    finally:
        rclpy.try_shutdown()
    return 0


def _parameter_lines() -> Iterator[str]:
    for name, (default, description) in PARAMETERS.items():
        shown = repr(default) if isinstance(default, str) else str(default).lower()
        yield f'  {name:<16} {shown:<14} {description}'


if __name__ == '__main__':
    sys.exit(main())
