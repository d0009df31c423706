"""Trials of ROS, which `gmskip doctor` runs in child processes because a step may crash.

A trial yields its findings as soon as they are known. An exception is its problem, in one line.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

# One interface that the node or the camera uses from each package; loading it loads the C library.
INTERFACES = {
    'diagnostic_msgs': 'msg.DiagnosticArray',
    'rcl_interfaces': 'msg.ParameterDescriptor',
    'rosgraph_msgs': 'msg.Clock',
    'sensor_msgs': 'msg.Image',
    'std_msgs': 'msg.Header',
    'std_srvs': 'srv.SetBool',
}


class TrialError(Exception):
    """A result is wrong; the message is one line."""


def examine_rclpy() -> Iterator[dict[str, Any]]:
    """Yield `where` rclpy is, whether it is `loaded`, and `missing` message packages.

    `missing` is {package: problem} of the message packages that the node needs.
    """
    spec = importlib.util.find_spec('rclpy')
    yield {'where': os.path.dirname(spec.origin) if spec is not None and spec.origin else None}
    import rclpy
    from rclpy.impl.implementation_singleton import rclpy_implementation
    from rclpy.type_support import check_for_type_support

    assert rclpy and rclpy_implementation
    yield {'loaded': True}
    missing = {}
    for package, interface_name in INTERFACES.items():
        kind, name = interface_name.split('.')
        try:
            interface = getattr(importlib.import_module(f'{package}.{kind}'), name)
            check_for_type_support(interface)
        except Exception as error:
            missing[package] = first_line(error)
    yield {'missing': missing}


def examine_cv_bridge() -> Iterator[dict[str, Any]]:
    """Yield the versions of `numpy`, `opencv`, `cv_bridge`; convert images and compare pixels."""
    import numpy as np

    yield {'numpy': np.__version__}
    import cv2

    yield {'opencv': cv2.__version__}
    from cv_bridge import CvBridge

    yield {'cv_bridge': _version('cv_bridge')}
    from sensor_msgs.msg import Image
    from std_msgs.msg import Header

    from gmskip_ros.ros.conversions import image_to_rgb, rgb_to_image

    rgb = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    bayer = np.empty((48, 64), np.uint8)  # one colour
    bayer[0::2, 0::2], bayer[1::2, 1::2] = 200, 50
    bayer[0::2, 1::2] = bayer[1::2, 0::2] = 100
    images = {'rgb8': rgb, 'mono8': rgb[:, :, 0].copy(), 'bayer_rggb8': bayer}
    as_rgb = {
        'rgb8': rgb,
        'mono8': np.repeat(rgb[:, :, :1], 3, axis=2),
        'bayer_rggb8': np.broadcast_to(np.array([200, 100, 50], np.uint8), rgb.shape),
    }
    bridge = CvBridge()
    for encoding, pixels in images.items():
        message = Image(height=48, width=64, encoding=encoding, step=pixels[0].nbytes)
        message.data = pixels.tobytes()
        # Convert to OpenCV and back with cv_bridge.
        wanted = 'bgr8' if encoding == 'rgb8' else encoding
        opencv = bridge.imgmsg_to_cv2(message, wanted)
        _compare(opencv, pixels[..., ::-1] if encoding == 'rgb8' else pixels, f'{encoding} image')
        back = np.frombuffer(bridge.cv2_to_imgmsg(opencv, wanted).data, np.uint8)
        _compare(back, opencv.ravel(), f'{wanted} message')
        # Convert with the node's functions, to RGB and back to a message.
        converted = image_to_rgb(message)
        _compare(converted, as_rgb[encoding], f'{encoding} image as RGB')
        _compare(image_to_rgb(rgb_to_image(converted, Header())), converted, 'rgb8 message')


def _compare(found: Any, expected: Any, name: str) -> None:
    import numpy as np

    if not np.array_equal(found, expected):
        raise TrialError(f'cv_bridge converts the pixels of a test image wrongly ({name})')


def examine_dds(**camera: Any) -> Iterator[dict[str, Any]]:
    """Yield the fields of a RoundTrip; the arguments are those of measure_round_trip."""
    from gmskip_ros.ros.dds_round_trip import measure_round_trip

    yield asdict(measure_round_trip(**camera))


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return 'of unknown version'


def first_line(error: Exception | Warning | str) -> str:
    """Return the first line of an error, with its type unless it is ours or a warning."""
    lines = [' '.join(line.split()) for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else ''
    if isinstance(error, Exception) and not isinstance(error, (TrialError, Warning)):
        return f'{type(error).__name__}: {text}'
    return text
