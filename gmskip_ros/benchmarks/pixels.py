"""From a camera's 1080p frame or JPEG to what the model takes, beside the plain way to do it.

The plain ways are those of earlier versions: Hugging Face's own processor, and a strided copy.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np

from gmskip_ros.benchmarks.ratios import paired_ratio, percentiles
from gmskip_ros.errors import UserError
from gmskip_ros.pipeline.pixels import JPEG_FORMAT, message_to_rgb, rgb_to_jpeg
from gmskip_ros.vlm.image_fit import FittedImageProcessor


def measure_preprocess(
    processor: FittedImageProcessor, frame: np.ndarray, rounds: int
) -> dict[str, Any]:
    """Return the times of both ways and their ratio; raises UserError if the pixels differ."""
    return _compare(
        'preprocess',
        lambda: processor(frame)['pixel_values'].numpy(),
        lambda: processor.through_hugging_face(frame)['pixel_values'].numpy(),
        rounds,
    )


def measure_jpeg(frame: np.ndarray, rounds: int) -> dict[str, Any]:
    """Return the times of both ways and their ratio; raises UserError if the pixels differ."""
    data = rgb_to_jpeg(frame)
    message = SimpleNamespace(format=JPEG_FORMAT, data=data)
    return _compare(
        'JPEG to RGB', lambda: message_to_rgb(message), lambda: _decode_by_copy(data), rounds
    )


def _decode_by_copy(content: bytes) -> np.ndarray:
    """Return a JPEG as uint8 RGB (H, W, 3), made from BGR by a strided copy."""
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    bgr = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
    assert bgr is not None
    return np.ascontiguousarray(bgr[..., ::-1])


def _compare(
    name: str, own: Callable[[], np.ndarray], plain: Callable[[], np.ndarray], rounds: int
) -> dict[str, Any]:
    """Time both in turn: A B, B A, ... after one of each that is not timed."""
    if not np.array_equal(own(), plain()):
        raise UserError(f'{name}: the pixels differ from the plain way: report this as a fault')
    times: dict[str, list[float]] = {'own': [], 'plain': []}
    ways = [('own', own), ('plain', plain)]
    for number in range(rounds):
        for way, run in ways if number % 2 == 0 else reversed(ways):
            started = time.perf_counter()
            run()
            times[way].append(1e3 * (time.perf_counter() - started))
    return {
        'own_ms': percentiles(times['own']),
        'plain_ms': percentiles(times['plain']),
        'ratio': paired_ratio(times['own'], times['plain']),
    }
