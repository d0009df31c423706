"""Image files as arrays."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from gmskip_ros.datasets.errors import DatasetError
from gmskip_ros.datasets.parquet_file import image_bytes

if TYPE_CHECKING:
    import numpy as np


def read_image(path: str | os.PathLike[str]) -> np.ndarray:
    """Return an image with its EXIF orientation applied: uint8 RGB (H, W, 3).

    Grey becomes RGB, transparency is dropped. Raises DatasetError for a file that is missing, not
    an image, truncated, or has more than 8 bits per channel.
    """
    import cv2
    import numpy as np

    remedy = 'use a complete JPEG or PNG file with 8 bits per channel'
    try:
        content = image_content(Path(path))
    except (OSError, ValueError) as error:
        reason = getattr(error, 'strerror', None) or str(error)
        raise DatasetError(f'{path}: cannot be read ({reason}); {remedy}') from error
    if content.startswith(b'\xff\xd8') and not _jpeg_is_whole(content):
        raise DatasetError(f'{path}: is a truncated JPEG; {remedy}')
    try:
        # Without ANYDEPTH, 16 bits would silently be reduced to 8.
        flags = cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH
        image = cv2.imdecode(np.frombuffer(content, np.uint8), flags) if content else None
    except cv2.error as error:
        raise DatasetError(f'{path}: cannot be decoded ({error.err}); {remedy}') from error
    if image is None:
        raise DatasetError(f'{path}: is not an image that OpenCV can read; {remedy}')
    if image.dtype != np.uint8:
        raise DatasetError(f'{path}: has {image.dtype} values; {remedy}')
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def image_content(path: Path) -> bytes:
    """Return the bytes of an image file, which may be inside a .parquet file: <file>/<row>.

    Raises OSError; DatasetError for a row without an image.
    """
    if path.parent.suffix == '.parquet' and path.parent.is_file():
        return image_bytes(path.parent, int(path.name))
    return path.read_bytes()


def _jpeg_is_whole(content: bytes) -> bool:
    """Return whether the end-of-image marker follows the start of the first scan.

    libjpeg fills missing parts with grey. An embedded thumbnail ends with the same marker, so
    markers before the scan do not count.
    """
    at = 2
    while at + 4 <= len(content) and content[at] == 0xFF:
        if content[at + 1] == 0xFF:  # a fill byte
            at += 1
            continue
        if content[at + 1] == 0xDA:  # start of scan
            return b'\xff\xd9' in content[at:]
        at += 2 + int.from_bytes(content[at + 2 : at + 4], 'big')
    return False
