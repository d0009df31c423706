"""Camera messages of ROS to RGB arrays and back; pixels.py has what is supported."""

from __future__ import annotations

import array
import sys

import numpy as np
from cv_bridge import CvBridge
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

from gmskip_ros.pipeline.pixels import (
    JPEG_FORMAT,
    ConversionError,  # noqa: F401
    check_rgb,
    message_to_rgb,
    rgb_to_jpeg,
)

_bridge = CvBridge()


def image_to_rgb(msg: Image | CompressedImage) -> np.ndarray:
    """Return the image in a message: uint8 RGB, shape (height, width, 3), C-contiguous.

    The array may share memory with the message. Raises ConversionError, and nothing else, whatever
    the message contains.
    """
    return message_to_rgb(msg, _through_cv_bridge)


def rgb_to_image(rgb: np.ndarray, header: Header) -> Image:
    """Return a uint8 RGB array (H, W, 3) as an rgb8 Image."""
    height, width = check_rgb(rgb)
    msg = Image(header=header, height=height, width=width, encoding='rgb8', step=3 * width)
    msg.data = _as_data(rgb)
    return msg


def rgb_to_compressed(rgb: np.ndarray, header: Header, quality: int = 90) -> CompressedImage:
    """Return a uint8 RGB array (H, W, 3) as a JPEG CompressedImage; quality 1 to 100."""
    jpeg = rgb_to_jpeg(rgb, quality)
    msg = CompressedImage(header=header, format=JPEG_FORMAT)
    msg.data = array.array('B', jpeg)
    return msg


def _as_data(values: np.ndarray) -> array.array[int]:
    """Return the bytes as the type that a message accepts without checking every element."""
    return array.array('B', values.tobytes())


def _through_cv_bridge(msg: Image, rows: np.ndarray, encoding: str) -> np.ndarray:
    """Return uint8 rows (H, bytes of a row) without padding as RGB (H, W, 3)."""
    # Always a new message: builds of cv_bridge differ in how they read step and is_bigendian.
    tight = Image(height=msg.height, width=msg.width, encoding=encoding, step=rows.shape[1])
    tight.is_bigendian = int(sys.byteorder == 'big')
    tight.data = msg.data if rows.shape[1] == msg.step else _as_data(rows)
    return _bridge.imgmsg_to_cv2(tight, 'rgb8')
