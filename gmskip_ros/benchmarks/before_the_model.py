"""What happened to a frame before the model in earlier versions: baselines of the same results."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np

from gmskip_ros.vlm.image_fit import FittedImageProcessor


def preprocess(processor: FittedImageProcessor, image: np.ndarray) -> Mapping[str, Any]:
    """Return the tensors of an image, uint8 RGB (H, W, 3), made by Hugging Face's processor."""
    return processor.through_hugging_face(image)


def decode(content: bytes) -> np.ndarray:
    """Return a JPEG or PNG as uint8 RGB (H, W, 3), made from BGR by a strided copy.

    Raises ValueError if OpenCV cannot decode it.
    """
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    bgr = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
    if bgr is None:
        raise ValueError('not a JPEG or PNG that OpenCV can decode')
    return np.ascontiguousarray(bgr[..., ::-1])
