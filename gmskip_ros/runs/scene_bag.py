"""Rendered driving scenes as a bag: a camera to replay, without a vehicle."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from gmskip_ros.bags.writing import NewBag, camera_message
from gmskip_ros.errors import UserError
from gmskip_ros.runs.live import CAMERA_TOPIC

JPEG_QUALITY = 95
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
    import cv2

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
                bgr = cv2.cvtColor(render_scene(seed + index).image, cv2.COLOR_RGB2BGR)
                encoded = cv2.imencode('.jpg', bgr, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1]
                stamp_ns = START_NS + round(index * 1e9 / rate_hz)
                with bag.whole():
                    bag.write(topic, stamp_ns, camera_message(encoded.tobytes(), stamp_ns))
                on_progress(index + 1)
    except OSError as error:
        raise UserError(
            f'--bag {folder}: cannot be written ({error.strerror}): check the folder and the space '
            'left'
        ) from error
    return topic
