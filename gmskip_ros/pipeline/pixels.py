"""Decode camera messages to RGB, from their fields alone: rclpy's and rosbags' messages both work.

Nothing here imports ROS: the node and the offline replay run the same code. Supported are:

====================================== ===========================================================
``Image.encoding``                     to 8 bit RGB
====================================== ===========================================================
rgb8, bgr8, rgba8, bgra8, mono8        unchanged; alpha is dropped, grey is repeated
bayer_{rggb,bggr,gbrg,grbg}8           bilinear demosaicing; at least 3 x 3 pixels
rgb16, mono16, bayer_rggb16, ...: all  the high byte (value >> 8), then as above
of those with 16 for 8
yuv422 or uyvy (UYVY), yuv422_yuy2     BT.601, 16..235 (OpenCV's), chroma of a pair repeated; even
or yuyv (YUYV)                         width
nv12                                   the same; even width and height; the plane of height/2 rows
                                       of U, V pairs follows the plane of Y, with the same step
====================================== ===========================================================

``CompressedImage`` may contain JPEG or PNG; its bytes decide which. Colours are taken as they are
in the file, of 16-bit PNG the high byte; alpha is dropped. The EXIF orientation is ignored: pixels
stay where the camera's calibration has them.

Everything else is refused with `ConversionError`: depth and label encodings (16UC1, 32FC1, 8UC3:
the name does not give their meaning), sizes of zero or beyond `MAX_PIXELS`, a step shorter than a
row, fewer bytes than the size requires, and files that end before their end marker (some OpenCV
builds return the part that exists). Bytes beyond the last row are ignored. Not detectable, and so
not refused: padding that is really data, and damaged bytes inside a complete JPEG.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeAlias

import cv2
import numpy as np

from gmskip_ros.errors import UserError

# Fields as in sensor_msgs; a CompressedImage has a `format`, an Image has not.
Image: TypeAlias = Any
CompressedImage: TypeAlias = Any

MAX_PIXELS = 1 << 26  # 67 million: beyond any vehicle camera, and 192 MiB as RGB

# Bytes per pixel of the encodings with 8 bits a sample.
_INTERLEAVED = {'rgb8': 3, 'bgr8': 3, 'rgba8': 4, 'bgra8': 4, 'mono8': 1}
_INTERLEAVED_TO_RGB = {
    'bgr8': cv2.COLOR_BGR2RGB,
    'rgba8': cv2.COLOR_RGBA2RGB,
    'bgra8': cv2.COLOR_BGRA2RGB,
    'mono8': cv2.COLOR_GRAY2RGB,
}
# ROS names the top left 2 x 2 pixels, OpenCV those one row and one column further.
_BAYER = {
    'bayer_rggb8': cv2.COLOR_BayerBG2RGB,
    'bayer_bggr8': cv2.COLOR_BayerRG2RGB,
    'bayer_gbrg8': cv2.COLOR_BayerGR2RGB,
    'bayer_grbg8': cv2.COLOR_BayerGB2RGB,
}
_BYTES_PER_PIXEL_8 = {**_INTERLEAVED, **dict.fromkeys(_BAYER, 1)}
_16_TO_8 = {name[:-1] + '16': name for name in _BYTES_PER_PIXEL_8}
_YUV_422 = {
    'yuv422': cv2.COLOR_YUV2RGB_UYVY,
    'uyvy': cv2.COLOR_YUV2RGB_UYVY,
    'yuv422_yuy2': cv2.COLOR_YUV2RGB_YUY2,
    'yuyv': cv2.COLOR_YUV2RGB_YUY2,
}
SUPPORTED_ENCODINGS = (*_BYTES_PER_PIXEL_8, *_16_TO_8, *_YUV_422, 'nv12')

_JPEG_START, _JPEG_SCAN, _JPEG_END = b'\xff\xd8\xff', b'\xff\xda', b'\xff\xd9'
# What compressed_image_transport writes for a colour image and its decoder reads.
JPEG_FORMAT = 'rgb8; jpeg compressed bgr8'
_MAX_JPEG_SIDE = 65_500  # libjpeg's
_PNG_START, _PNG_END = b'\x89PNG\r\n\x1a\n', b'IEND\xaeB`\x82'


class ConversionError(UserError, ValueError):
    """An image cannot be converted; the message is one line: what, the value, the remedy."""


def interleaved_to_rgb(msg: Image, rows: np.ndarray, encoding: str) -> np.ndarray:
    """Return `rows`, uint8 (H, bytes of a row) without padding, as RGB (H, W, 3).

    `encoding` is one with 8 bits a sample and all samples of a pixel next to each other.
    """
    pixels = np.ascontiguousarray(rows).reshape(msg.height, msg.width, -1)
    if encoding == 'rgb8':
        return pixels
    return cv2.cvtColor(pixels, _INTERLEAVED_TO_RGB[encoding])


def message_to_rgb(
    msg: Image | CompressedImage,
    interleaved_to_rgb: Callable[[Image, np.ndarray, str], np.ndarray] = interleaved_to_rgb,
) -> np.ndarray:
    """Return the image in a message: uint8 RGB, shape (height, width, 3), C-contiguous.

    The array may share memory with the message. `interleaved_to_rgb` may replace the function
    above. Raises ConversionError, and nothing else, whatever the message contains. The table of
    encodings is in this module's docstring.
    """
    if hasattr(msg, 'format'):
        return _decode_file(msg)
    try:
        return np.ascontiguousarray(_decode_pixels(msg, interleaved_to_rgb))
    except cv2.error as error:  # e.g. one pixel, whose strides OpenCV 4.5 refuses
        raise _refusal(msg, 'OpenCV cannot convert it; publish a different size') from error


def rgb_to_jpeg(rgb: np.ndarray, quality: int = 90) -> bytes:
    """Return a JPEG of a uint8 RGB array (H, W, 3); quality 1 to 100. Raises ConversionError."""
    height, width = check_rgb(rgb)
    if not 1 <= quality <= 100:
        raise ConversionError(f'JPEG quality {quality}: give 1 to 100')
    if max(height, width) > _MAX_JPEG_SIDE:
        raise ConversionError(f'array {rgb.shape}: JPEG allows {_MAX_JPEG_SIDE} a side; resize it')
    try:
        bgr = cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR)
        return cv2.imencode('.jpg', bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()
    except cv2.error as error:
        raise ConversionError(f'array {rgb.shape}: OpenCV cannot write it as JPEG') from error


def check_rgb(rgb: np.ndarray) -> tuple[int, int]:
    """Return height and width; raises ConversionError unless it is uint8 RGB (H, W, 3)."""
    if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3 or 0 in rgb.shape:
        raise ConversionError(f'array {rgb.shape} of {rgb.dtype}: give uint8 RGB of (H, W, 3)')
    return rgb.shape[0], rgb.shape[1]


def _decode_pixels(
    msg: Image, interleaved_to_rgb: Callable[[Image, np.ndarray, str], np.ndarray]
) -> np.ndarray:
    """Return RGB (H, W, 3) of an Image."""
    encoding, width, height = msg.encoding, msg.width, msg.height
    if encoding in _BYTES_PER_PIXEL_8 or encoding in _16_TO_8:
        rows, encoding = _samples(msg)
        if encoding in _BAYER:
            if min(width, height) < 3:
                raise _refusal(msg, 'demosaicing needs 3 x 3 pixels; publish a larger image')
            return cv2.cvtColor(np.ascontiguousarray(rows), _BAYER[encoding])
        return interleaved_to_rgb(msg, rows, encoding)
    if encoding in _YUV_422:
        if width % 2:
            raise _refusal(msg, 'pixels are stored in pairs; give an even width')
        rows = _rows(msg, width * 2, height)
        return cv2.cvtColor(rows.reshape(height, width, 2), _YUV_422[encoding])
    if encoding == 'nv12':
        if width % 2 or height % 2:
            raise _refusal(msg, 'pixels are stored in squares of 2; give an even width and height')
        rows = _rows(msg, width, height * 3 // 2)  # Y: height rows, then U, V pairs: height/2 rows
        return cv2.cvtColor(np.ascontiguousarray(rows), cv2.COLOR_YUV2RGB_NV12)
    raise _refusal(msg, f'encoding not supported; publish one of {", ".join(SUPPORTED_ENCODINGS)}')


def _rows(msg: Image, row_bytes: int, num_rows: int) -> np.ndarray:
    """Return the message's rows without their padding: uint8 (num_rows, row_bytes), a view."""
    if not 0 < msg.width * msg.height <= MAX_PIXELS:
        raise _refusal(msg, f'give a size of 1 to {MAX_PIXELS} pixels')
    if msg.step < row_bytes:
        raise _refusal(msg, f'step {msg.step} is below the {row_bytes} bytes of a row; correct it')
    data = np.frombuffer(msg.data, np.uint8)
    size = msg.step * num_rows
    if data.size < size:
        raise _refusal(
            msg,
            f'{data.size} bytes of data, but step {msg.step} x {num_rows} rows need {size};'
            ' publish whole images',
        )
    return data[:size].reshape(num_rows, msg.step)[:, :row_bytes]


def _samples(msg: Image) -> tuple[np.ndarray, str]:
    """Return the samples, 8 bits each, as rows without padding, and their encoding."""
    if msg.encoding not in _16_TO_8:
        return _rows(msg, msg.width * _BYTES_PER_PIXEL_8[msg.encoding], msg.height), msg.encoding
    encoding = _16_TO_8[msg.encoding]
    rows = _rows(msg, msg.width * 2 * _BYTES_PER_PIXEL_8[encoding], msg.height)
    return rows[:, 0::2] if msg.is_bigendian else rows[:, 1::2], encoding


def _refusal(msg: Image, reason: str) -> ConversionError:
    return ConversionError(f'image {msg.width}x{msg.height} {msg.encoding[:40]!r}: {reason}')


def _decode_file(msg: CompressedImage) -> np.ndarray:
    """Return RGB (H, W, 3) of the JPEG or PNG in a CompressedImage."""
    data = bytes(msg.data)
    what = f'compressed image {msg.format[:40]!r}, {len(data)} bytes'
    # compressed_image_transport writes '<encoding>; <codec> compressed <encoding in the file>'.
    source, _, stored = msg.format.partition(';')
    if 'compressedDepth' in msg.format or re.match(r'(16[US]|32[SF]|64F)C', source):
        raise ConversionError(f'{what}: depth is not a colour image; use the colour camera')
    if source.startswith('bayer_') and stored.strip().endswith('compressed'):
        raise ConversionError(f'{what}: contains a Bayer mosaic stored as grey; publish it as bgr8')

    if data.startswith(_JPEG_START):
        # Neither marker can occur within a scan; an embedded thumbnail ends before the scan.
        complete = data.rfind(_JPEG_END) > data.rfind(_JPEG_SCAN)
        size = _jpeg_size(data)
    elif data.startswith(_PNG_START):
        complete = _PNG_END in data
        size = int.from_bytes(data[16:20], 'big'), int.from_bytes(data[20:24], 'big')
    else:
        raise ConversionError(f'{what}: neither JPEG nor PNG; publish one of them')
    if not complete:
        raise ConversionError(f'{what}: ends before its end marker; publish whole images')
    if not 0 < size[0] * size[1] <= MAX_PIXELS:
        raise ConversionError(
            f'{what}: its header says {size[0]}x{size[1]}; give a size of 1 to {MAX_PIXELS} pixels'
        )
    try:
        flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
        bgr = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
        rgb = None if bgr is None else cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)
    except cv2.error:
        rgb = None
    if rgb is None:
        raise ConversionError(f'{what}: OpenCV cannot decode it; check the publisher')
    return rgb


def _jpeg_size(data: bytes) -> tuple[int, int]:
    """Return the (width, height) of the frame header (ITU T.81, B.2.2); (0, 0) without one."""
    at = 2
    while at + 9 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = data[at + 5 : at + 7], data[at + 7 : at + 9]
            return int.from_bytes(width, 'big'), int.from_bytes(height, 'big')
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4], 'big')
    return 0, 0
