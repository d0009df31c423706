"""Compressed images have, byte by byte, the pixels that a strided copy of OpenCV's BGR gives."""

from __future__ import annotations

import io
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from PIL import Image

from gmskip_ros.pipeline.pixels import message_to_rgb


def encoded(pixels: np.ndarray, kind: str, **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def exif_turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


@pytest.mark.parametrize('size', [(48, 64), (47, 63), (1, 1), (1, 33), (33, 1)], ids=str)
@pytest.mark.parametrize(
    ('kind', 'channels', 'options'),
    [
        ('jpeg', 'RGB', {}),
        ('jpeg', 'RGB', {'quality': 100, 'subsampling': 0, 'progressive': True}),
        ('jpeg', 'RGB', {'exif': exif_turned()}),
        ('jpeg', 'grey', {}),
        ('png', 'RGB', {}),
        ('png', 'RGB', {'exif': exif_turned()}),
        ('png', 'RGBA', {}),
        ('png', 'grey', {}),
        ('png', '16 bit', {}),
    ],
)
def test_the_bytes_of_a_compressed_image(size, kind, channels, options) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 4), np.uint8)
    if channels == '16 bit':
        pixels = pixels[..., 0].astype(np.uint16) << 8 | pixels[..., 1]
    else:
        pixels = pixels[..., {'grey': 0, 'RGB': slice(3), 'RGBA': slice(4)}[channels]]
    content = encoded(np.ascontiguousarray(pixels), kind, **options)
    rgb = message_to_rgb(SimpleNamespace(format=kind, data=content))
    assert rgb.flags.c_contiguous and rgb.dtype == np.uint8 and rgb.shape == (*size, 3)
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    bgr = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
    np.testing.assert_array_equal(rgb, bgr[..., ::-1])
