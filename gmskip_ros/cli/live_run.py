"""What `gmskip demo` and `gmskip soak` have in common: a node, a camera, and ears for both."""

from __future__ import annotations

import math
import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gmskip_ros.cli.live_processes import Child, LiveRunError

CAMERA_TOPIC = '/camera/image_raw'
FIRST_SCENE_SEED = 40_000_000  # scenes that no training, calibration or test uses
DOMAIN_IDS = range(1, 102)


def set_ros_environment() -> None:
    """Give all processes of the run the Fast DDS profile and, unless one is set, a domain."""
    from gmskip_ros.ros.dds_profile import fastdds_environment

    os.environ.update(fastdds_environment())
    os.environ.setdefault('ROS_DOMAIN_ID', str(random.choice(DOMAIN_IDS)))


def make_room(out: Path, results: Sequence[str], logs: Sequence[str]) -> None:
    """Make the folder, without an earlier run's results and with empty logs; LiveRunError."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name in results:  # an earlier run's are not taken for ours
            (out / name).unlink(missing_ok=True)
        for name in logs:
            (out / name).write_bytes(b'')
    except OSError as error:
        raise LiveRunError(f'--out {out}: {error.strerror}: give a folder to write to') from None


def number_of_scenes(at_least: int) -> int:
    """Return how many scenes to render.

    The node takes every tenth or so of the camera's pictures: with a count that shares no factor
    with 10 it meets all of them before it meets one again.
    """
    return next(n for n in range(at_least, at_least + 10) if math.gcd(n, 10) == 1)


def render_scenes(folder: Path, count: int, check: Callable[[], None]) -> None:
    """Write driving scenes as PNG; `check` may raise between two. Raises LiveRunError."""
    import cv2

    from gmskip_ros.datasets.scenes import render_scene

    for index in range(count):
        check()
        scene = render_scene(FIRST_SCENE_SEED + index)
        picture = cv2.cvtColor(scene.image, cv2.COLOR_RGB2BGR)
        if not cv2.imwrite(str(folder / f'{index:05d}.png'), picture):
            raise LiveRunError(f'{folder}: the pictures cannot be written: is the disk full?')


def start_node(parameters: Mapping[str, object], log: Path, stand_in: Sequence[str] = ()) -> Child:
    """Start the node, which takes its images from CAMERA_TOPIC."""
    return Child('dual_vlm_node', parameters, {'~/input/image': CAMERA_TOPIC}, log, stand_in)


def start_camera(parameters: Mapping[str, object], log: Path) -> Child:
    """Start the player on CAMERA_TOPIC; its first frame waits until the node is ready."""
    from gmskip_ros.pipeline.records import NODE_NAME

    waiting = {'loop': True, 'wait_for_node': f'/{NODE_NAME}', **parameters}
    return Child('image_player', waiting, {'image_raw': CAMERA_TOPIC}, log)


@contextmanager
def ros_node(name: str) -> Iterator[tuple[Any, Any]]:
    """Give a node and its executor, in a context of their own, in the environment's domain."""
    import rclpy
    from rclpy.executors import SingleThreadedExecutor
    from rclpy.signals import SignalHandlerOptions

    context = rclpy.Context()
    # Signals stay ours: the children have to be ended too.
    rclpy.init(context=context, signal_handler_options=SignalHandlerOptions.NO)
    node = rclpy.create_node(name, context=context)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)
    try:
        yield node, executor
    finally:
        executor.shutdown()
        node.destroy_node()
        rclpy.shutdown(context=context)


def absolute(topic: str) -> str:
    """Return a topic of the node (records.py: '~/...') by its full name."""
    from gmskip_ros.pipeline.records import NODE_NAME

    return topic.replace('~', f'/{NODE_NAME}', 1)


def stamp_ns_of(header: Any) -> int:
    """Return a header's stamp in ns."""
    return header.stamp.sec * 1_000_000_000 + header.stamp.nanosec


def key_values(status: Any) -> dict[str, str]:
    """Return a DiagnosticStatus's values by key."""
    return {entry.key: entry.value for entry in status.values}
