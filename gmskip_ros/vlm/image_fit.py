"""How a frame becomes the square (or the tiles) that the vision tower takes, and what it sees.

LLaVA-1.5's processor on the hub resizes the short edge and crops the centre: of a 1080p frame the
model sees the middle 56 %. The original LLaVA code pads to a square instead, in training and in
evaluation (`expand2square`, filled with the mean colour), which is `pad` here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image

from gmskip_ros.vlm.answer import Box
from gmskip_ros.vlm.engine import IMAGE_FITS
from gmskip_ros.vlm.errors import ModelLoadError
from gmskip_ros.vlm.preprocessing import (
    Colour,
    Preprocessing,
    expand_to_square,
    pads_to_square,
    recognise,
)

CAMERA_FRAME = (1920, 1080)  # width, height: what `auto` asks whether the processor would crop
PROBES = [(67, 121), (122, 45)]  # height, width of images that show whether two ways agree

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
    frame, else 'checkpoint'. `preprocessing` gives the same pixel values as the processor in less
    time; None where the processor itself is used, because it is not known exactly.
    """

    def __init__(self, model: str, image_processor: Any, image_fit: str = 'auto') -> None:
        """Raises ModelLoadError for an unknown fit."""
        check_image_fit(model, image_fit)
        self.processor = image_processor
        if image_fit == 'auto':
            image_fit = 'checkpoint' if self._processors_box(*CAMERA_FRAME) == WHOLE else 'pad'
        self.image_fit = image_fit
        self.preprocessing = self._find_preprocessing()

    def __call__(self, image: np.ndarray) -> Mapping[str, Any]:
        """Return the processor's tensors (PyTorch) of an image: uint8 RGB, shape (H, W, 3).

        They are `pixel_values`, and `image_sizes` if the image is cut into tiles.
        """
        if self.preprocessing is None:
            return self.through_hugging_face(image)
        return self._preprocess(self.preprocessing, image)

    def through_hugging_face(self, image: np.ndarray) -> Mapping[str, Any]:
        """Return the processor's tensors, made by the processor itself."""
        picture = self._squashed(Image.fromarray(image))
        if self.image_fit == 'pad':
            picture = expand_to_square(picture, self._mean_colour())
        return self.processor(images=picture, return_tensors='pt')

    def _preprocess(self, preprocessing: Preprocessing, image: np.ndarray) -> Mapping[str, Any]:
        pads = self.image_fit == 'pad' or preprocessing.pads
        picture = self._squashed(Image.fromarray(image))
        return preprocessing(picture, self._mean_colour() if pads else None)

    def _find_preprocessing(self) -> Preprocessing | None:
        """Return what the processor does, if that is known and gives the same for PROBES."""
        generator = np.random.default_rng(0)
        try:
            preprocessing = recognise(self.processor)
            if preprocessing is None:
                return None
            for size in PROBES:
                image = generator.integers(0, 256, (*size, 3), np.uint8)
                found = self._preprocess(preprocessing, image)
                expected = self.through_hugging_face(image)
                if not all(torch.equal(found[name], expected[name]) for name in found):
                    return None
        # A broken processor may raise anything; it is refused when the model is tried out.
        except Exception:
            return None
        return preprocessing

    def _squashed(self, picture: Image.Image) -> Image.Image:
        if self.image_fit != 'squash':
            return picture
        side = max(_sides(self.processor))
        return picture.resize((side, side), self.processor.resample)

    def visible_box(self, width: float, height: float) -> Box:
        """Return which part of a frame of this size (pixels) reaches the vision tower."""
        return WHOLE if self.image_fit != 'checkpoint' else self._processors_box(width, height)

    def _processors_box(self, width: float, height: float) -> Box:
        """Return what the processor alone lets through, from its padding, resizing and crop."""
        processor = self.processor
        # The tiles of LLaVA-NeXT and OneVision are padded, never cropped.
        if getattr(processor, 'image_grid_pinpoints', None) or not getattr(
            processor, 'do_center_crop', False
        ):
            return WHOLE
        whole = (max(width, height),) * 2 if pads_to_square(processor) else (width, height)
        scale = 1.0, 1.0
        shortest_edge = _get(processor.size, 'shortest_edge')
        if shortest_edge and processor.do_resize:
            scale = (shortest_edge / min(whole),) * 2
        elif processor.do_resize:
            scale = (
                _get(processor.size, 'width') / whole[0],
                _get(processor.size, 'height') / whole[1],
            )
        resized = width * scale[0], height * scale[1]
        crop = _get(processor.crop_size, 'width'), _get(processor.crop_size, 'height')
        x, y = (min(1.0, side / length) for side, length in zip(crop, resized, strict=True))
        return Box((1 - x) / 2, (1 - y) / 2, (1 + x) / 2, (1 + y) / 2)

    def _mean_colour(self) -> Colour:
        mean = getattr(self.processor, 'image_mean', None) or (0.0, 0.0, 0.0)
        red, green, blue = (int(value * 255) for value in mean)
        return red, green, blue


def _sides(processor: Any) -> tuple[int, int]:
    """Return width and height of what the vision tower takes, in pixels."""
    size = processor.crop_size if getattr(processor, 'do_center_crop', False) else processor.size
    side = _get(size, 'shortest_edge')
    return (side, side) if side else (_get(size, 'width'), _get(size, 'height'))


def _get(size: Any, name: str) -> Any:
    """Return an entry of a processor's size, which is a mapping or an object; None if absent."""
    return size.get(name) if isinstance(size, Mapping) else getattr(size, name, None)
