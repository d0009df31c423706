"""Camera messages of ROS to RGB arrays and back. What is read, and how: see pixels.py."""

from __future__ import annotations

import array
import sys

import cv2
import numpy as np
from cv_bridge import CvBridge
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

from gmskip_ros.ros.pixels import ConversionError, message_to_rgb

_MAX_JPEG_SIDE = 65_500  # libjpeg's
_bridge = CvBridge()


def image_to_rgb(msg: Image | CompressedImage) -> np.ndarray:
    """
    Return the picture in a message: uint8 RGB, shape (height, width, 3), C-contiguous.

    The array may share memory with the message. Raises ConversionError, and nothing else, whatever
    the message holds.
    """
    return message_to_rgb(msg, _through_cv_bridge)


def rgb_to_image(rgb: np.ndarray, header: Header) -> Image:
    """Return an rgb8 Image of a uint8 RGB array (H, W, 3)."""
    height, width = _check_rgb(rgb)
    msg = Image(header=header, height=height, width=width, encoding='rgb8', step=3 * width)
    msg.data = _as_data(rgb)
    return msg


def rgb_to_compressed(rgb: np.ndarray, header: Header, quality: int = 90) -> CompressedImage:
    """Return a JPEG CompressedImage of a uint8 RGB array (H, W, 3); quality 1 to 100."""
    height, width = _check_rgb(rgb)
    if not 1 <= quality <= 100:
        raise ConversionError(f'JPEG quality {quality}: give 1 to 100')
    if max(height, width) > _MAX_JPEG_SIDE:
        raise ConversionError(f'array {rgb.shape}: JPEG ends at {_MAX_JPEG_SIDE} a side; resize it')
    bgr = cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR)
    jpeg = cv2.imencode('.jpg', bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    # The words that compressed_image_transport writes: its decoder reads them.
    msg = CompressedImage(header=header, format='rgb8; jpeg compressed bgr8')
    msg.data = _as_data(jpeg)
    return msg


def _as_data(values: np.ndarray) -> array.array[int]:
    """Return bytes as the type that a message takes over without a check of every element."""
    return array.array('B', values.tobytes())


def _check_rgb(rgb: np.ndarray) -> tuple[int, int]:
    if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3 or 0 in rgb.shape:
        raise ConversionError(f'array {rgb.shape} of {rgb.dtype}: give uint8 RGB of (H, W, 3)')
    return rgb.shape[0], rgb.shape[1]


def _through_cv_bridge(msg: Image, rows: np.ndarray, encoding: str) -> np.ndarray:
    """Return RGB (H, W, 3) of uint8 rows (H, bytes of a row) without padding."""
    # Always a new message: builds of cv_bridge differ in how they read step and is_bigendian.
    tight = Image(height=msg.height, width=msg.width, encoding=encoding, step=rows.shape[1])
    tight.is_bigendian = int(sys.byteorder == 'big')
    tight.data = msg.data if rows.shape[1] == msg.step else _as_data(rows)
    return _bridge.imgmsg_to_cv2(tight, 'rgb8')
