"""What callers give to the model: checked before anything is done with it."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from gmskip_ros.vlm.errors import ImageError, VlmError


def check_image(image: np.ndarray) -> None:
    """Raise ImageError unless this is a uint8 RGB array."""
    expected = 'expected a uint8 RGB array of shape (H, W, 3)'
    if not isinstance(image, np.ndarray):
        raise ImageError(f'image is a {type(image).__name__}: {expected}')
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise ImageError(f'image is {image.dtype} of shape {image.shape}: {expected}')


def check_same_length(**lists: Sequence[Any]) -> None:
    """Raise VlmError unless all lists, by what they hold, are of one length."""
    if len({len(items) for items in lists.values()}) > 1:
        counts = [f'{len(items)} {name}' for name, items in lists.items()]
        raise VlmError(f'got {", ".join(counts)}: give one of each per answer')


def check_length(name: str, value: int, unit: str = 'tokens') -> int:
    """Return the value; raise VlmError unless it is a whole number of at least 1."""
    length = whole_number(value)
    if length < 1:
        raise VlmError(f'{name} is {value!r}: give a whole number of {unit}, 1 or more')
    return length


def whole_number(value: Any) -> int:
    """Return the value as an int, -1 if it is not a whole number."""
    try:
        # NumPy's integers are accepted, floats and strings refused; True is a slip.
        return -1 if isinstance(value, (bool, np.bool_)) else operator.index(value)
    except TypeError:
        return -1
