"""How a frame becomes the square (or the tiles) that the vision tower takes, and what it sees.

LLaVA-1.5's processor on the hub resizes the short edge and crops the centre: of a 1080p frame the
model sees the middle 56 %. The original LLaVA code pads to a square instead, in training and in
evaluation (`expand2square`, filled with the mean colour), which is `pad` here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from gmskip_ros.vlm.answer import Box
from gmskip_ros.vlm.engine import IMAGE_FITS
from gmskip_ros.vlm.errors import ModelLoadError

CAMERA_FRAME = (1920, 1080)  # width, height: what `auto` asks whether the processor would crop


WHOLE = Box(0.0, 0.0, 1.0, 1.0)


def check_image_fit(model: str, image_fit: str) -> None:
    """Raise ModelLoadError unless `image_fit` is one of IMAGE_FITS."""
    if image_fit not in IMAGE_FITS:
        raise ModelLoadError(
            f'model {model}: image_fit {image_fit!r} is unknown: use {", ".join(IMAGE_FITS)}'
        )


class FittedImageProcessor:
    """Hugging Face's image processor of a checkpoint, behind one of IMAGE_FITS.

    `image_fit` is what 'auto' resolved to: 'pad' where the processor alone would crop a camera
    frame, else 'checkpoint'.
    """

    def __init__(self, model: str, image_processor: Any, image_fit: str = 'auto') -> None:
        """Raises ModelLoadError for an unknown fit."""
        check_image_fit(model, image_fit)
        self.processor = image_processor
        if image_fit == 'auto':
            image_fit = 'checkpoint' if self._processors_box(*CAMERA_FRAME) == WHOLE else 'pad'
        self.image_fit = image_fit

    def __call__(self, image: np.ndarray) -> Mapping[str, Any]:
        """Return the processor's tensors (PyTorch) of an image: uint8 RGB, shape (H, W, 3)."""
        picture = Image.fromarray(image)
        if self.image_fit == 'pad':
            picture = expand_to_square(picture, self._mean_colour())
        elif self.image_fit == 'squash':
            side = max(_sides(self.processor))
            picture = picture.resize((side, side), self.processor.resample)
        return self.processor(images=picture, return_tensors='pt')

    def visible_box(self, width: float, height: float) -> Box:
        """Return which part of a frame of this size (pixels) reaches the vision tower."""
        return WHOLE if self.image_fit != 'checkpoint' else self._processors_box(width, height)

    def _processors_box(self, width: float, height: float) -> Box:
        """Return what the processor alone lets through, from its resizing and its centre crop."""
        processor = self.processor
        # The tiles of LLaVA-NeXT and OneVision are padded, never cropped.
        if getattr(processor, 'image_grid_pinpoints', None) or not getattr(
            processor, 'do_center_crop', False
        ):
            return WHOLE
        resized = float(width), float(height)
        shortest_edge = _get(processor.size, 'shortest_edge')
        if shortest_edge and processor.do_resize:
            scale = shortest_edge / min(width, height)
            resized = width * scale, height * scale
        elif processor.do_resize:
            resized = _get(processor.size, 'width'), _get(processor.size, 'height')
        crop = _get(processor.crop_size, 'width'), _get(processor.crop_size, 'height')
        x, y = (min(1.0, side / whole) for side, whole in zip(crop, resized, strict=True))
        return Box((1 - x) / 2, (1 - y) / 2, (1 + x) / 2, (1 + y) / 2)

    def _mean_colour(self) -> tuple[int, int, int]:
        mean = getattr(self.processor, 'image_mean', None) or (0.0, 0.0, 0.0)
        red, green, blue = (int(value * 255) for value in mean)
        return red, green, blue


def expand_to_square(image: Image.Image, colour: tuple[int, int, int]) -> Image.Image:
    """Return the image centred on a square of its longer side (`expand2square` of LLaVA's code)."""
    width, height = image.size
    if width == height:
        return image
    side = max(width, height)
    square = Image.new('RGB', (side, side), colour)
    square.paste(image, ((side - width) // 2, (side - height) // 2))
    return square


def _sides(processor: Any) -> tuple[int, int]:
    """Return width and height of what the vision tower takes, in pixels."""
    size = processor.crop_size if getattr(processor, 'do_center_crop', False) else processor.size
    side = _get(size, 'shortest_edge')
    return (side, side) if side else (_get(size, 'width'), _get(size, 'height'))


def _get(size: Any, name: str) -> Any:
    """Return an entry of a processor's size, which is a mapping or an object; None if absent."""
    return size.get(name) if isinstance(size, Mapping) else getattr(size, name, None)
