"""Rendered driving scenes as a bag: a camera to replay, without a vehicle."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from gmskip_ros.bags.writing import TYPES, NewBag
from gmskip_ros.datasets.scenes_writer import JPEG_QUALITY
from gmskip_ros.errors import UserError
from gmskip_ros.pipeline.pixels import JPEG_FORMAT, rgb_to_jpeg
from gmskip_ros.runs.live import CAMERA_TOPIC

START_NS = 1_600_000_000_000_000_000  # of the first frame; the same command gives the same bag


def write_scene_bag(
    folder: Path,
    count: int,
    seed: int = 0,
    rate_hz: float = 10.0,
    on_progress: Callable[[int], None] = lambda done: None,
) -> str:
    """Write the scenes of seeds `seed` to `seed` + `count` - 1, a frame each; return their topic.

    The images are sensor_msgs/CompressedImage. `folder` must not exist. Raises UserError.
    """
    from gmskip_ros.datasets.scenes import render_scene

    if count < 1 or seed < 0:
        raise UserError(f'{count} scenes from seed {seed}: use 1 or more, and a seed of 0 or more')
    if folder.exists():
        raise UserError(f'--bag {folder}: already exists: give a new folder')
    topic = f'{CAMERA_TOPIC}/compressed'
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with NewBag(folder) as bag:
            for index in range(count):
                jpeg = rgb_to_jpeg(render_scene(seed + index).image, JPEG_QUALITY)
                stamp_ns = START_NS + round(index * 1e9 / rate_hz)
                with bag.whole():
                    bag.write(topic, stamp_ns, _message(jpeg, stamp_ns))
                on_progress(index + 1)
    except OSError as error:
        raise UserError(
            f'--bag {folder}: cannot be written ({error.strerror}): check the folder and the space '
            'left'
        ) from error
    return topic


def _message(jpeg: bytes, stamp_ns: int) -> Any:
    """Return the image as sensor_msgs/CompressedImage."""
    types = TYPES.types
    sec, nanosec = divmod(stamp_ns, 1_000_000_000)
    stamp = types['builtin_interfaces/msg/Time'](sec=sec, nanosec=nanosec)
    return types['sensor_msgs/msg/CompressedImage'](
        header=types['std_msgs/msg/Header'](stamp=stamp, frame_id='camera'),
        format=JPEG_FORMAT,
        data=np.frombuffer(jpeg, np.uint8),
    )
