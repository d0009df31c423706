"""The pixel values of Hugging Face's image processors, bit by bit the same, in less time.

A processor converts a frame to PIL's format and back at every step, and computes each pixel's value
in float64. Here the frame becomes a PIL image once, PIL resizes it, and the values are looked up in
a table of 256 per channel, which the processor itself has filled. Of a frame that is padded or
cropped, only the part that counts is resized.

Only processors whose class and settings are known exactly are replaced (`recognise`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.image_processing_utils import get_patch_output_size, select_best_resolution
from transformers.image_transforms import get_resize_output_image_size
from transformers.image_utils import ChannelDimension

from gmskip_ros.vlm.errors import ImageError

# Class of transformers -> whether it cuts the image into a grid of tiles.
KNOWN_CLASSES = {
    'CLIPImageProcessorPil': False,
    'LlavaImageProcessorPil': False,
    'SiglipImageProcessorPil': False,
    'LlavaNextImageProcessorPil': True,
    'LlavaOnevisionImageProcessorPil': True,
}
# PIL's filters that resize rows and then columns, with values of 8 bits in between.
TWO_PASS_FILTERS = (
    Image.Resampling.BILINEAR,
    Image.Resampling.BICUBIC,
    Image.Resampling.LANCZOS,
)
Colour = tuple[int, int, int]
MAX_PIXELS_AT_ONCE = 1 << 24  # of padding that is added to a tall image
MAX_PIXELS = 1 << 29  # of a resized image that is cropped: 1.5 GiB


@dataclass(frozen=True)
class Preprocessing:
    """What a recognised processor does to an image, and its values for every pixel.

    size: (height, width) that the image is resized to, or (shorter side,). crop: (height, width) of
    the centre that remains. grids: (height, width) of every grid of tiles; none: no tiles.
    pads: whether the processor itself pads to a square first. values: float32 (channel, 256).
    """

    size: tuple[int, ...]
    crop: tuple[int, int]
    resample: Image.Resampling
    grids: tuple[tuple[int, int], ...]
    pads: bool
    values: np.ndarray

    def __call__(self, picture: Image.Image, colour: Colour | None) -> dict[str, torch.Tensor]:
        """Return `pixel_values`, float32 (1, 3, H, W) or (1, tiles, 3, H, W), of an RGB image.

        With tiles also `image_sizes`, (height, width). `colour`: pad to a square of it first.
        """
        width, height = picture.size
        if colour is not None:
            width = height = max(width, height)
        if not self.grids:
            values = self._values([self._whole(picture, colour, height, width)])
            return {'pixel_values': values}
        tiles = self._tiles(picture, colour, height, width)
        return {
            'pixel_values': self._values(tiles)[None],
            'image_sizes': torch.tensor([[height, width]]),
        }

    def _whole(
        self, picture: Image.Image, colour: Colour | None, height: int, width: int
    ) -> np.ndarray:
        """Return the whole image, uint8 (*crop, 3); height and width are the padded image's.

        Raises ImageError for one so tall that its resized image would not fit into memory.
        """
        if len(self.size) == 2:
            height, width = self.size
        else:
            [side] = self.size
            height, width = get_resize_output_image_size(
                _stand_in(height, width), side, False, input_data_format=ChannelDimension.FIRST
            )
        rows, columns = self.crop
        if columns * height > MAX_PIXELS:  # a wide image is cropped before its rows are resized
            raise ImageError(
                f'image of {picture.width}x{picture.height} pixels: would be resized to '
                f'{width}x{height} before it is cropped: use image_fit pad or squash, or frames '
                'that are not so tall'
            )
        left, top = (width - columns) // 2, (height - rows) // 2
        resized = resize(picture, (width, height), self.resample, colour, (left, left + columns))
        return np.asarray(resized)[top : top + rows]

    def _tiles(
        self, picture: Image.Image, colour: Colour | None, height: int, width: int
    ) -> list[np.ndarray]:
        """Return the image as one tile, then the tiles of its best grid, each uint8 (*crop, 3)."""
        grid = select_best_resolution((height, width), self.grids)
        rows, columns = get_patch_output_size(
            _stand_in(height, width), grid, ChannelDimension.FIRST
        )
        top, left = (grid[0] - rows) // 2, (grid[1] - columns) // 2
        canvas = np.zeros((*grid, 3), np.uint8)
        canvas[top : top + rows, left : left + columns] = resize(
            picture, (columns, rows), self.resample, colour
        )
        tile_height, tile_width = self.crop
        return [
            np.asarray(resize(picture, (tile_width, tile_height), self.resample, colour)),
            *(
                canvas[y : y + tile_height, x : x + tile_width]
                for y in range(0, grid[0], tile_height)
                for x in range(0, grid[1], tile_width)
            ),
        ]

    def _values(self, images: Sequence[np.ndarray]) -> torch.Tensor:
        """Return float32 (images, 3, H, W) of uint8 images (H, W, 3)."""
        values = np.empty((len(images), 3, *self.crop), np.float32)
        for image, of_image in zip(images, values, strict=True):
            for channel, table in enumerate(self.values):
                # With 'clip', which changes no index of 8 bits, NumPy writes without a buffer.
                np.take(table, image[..., channel], out=of_image[channel], mode='clip')
        return torch.from_numpy(values)


def resize(
    picture: Image.Image,
    size: tuple[int, int],
    resample: Image.Resampling,
    colour: Colour | None = None,
    columns: tuple[int, int] | None = None,
) -> Image.Image:
    """Return an RGB image resized to (width, height), of that only `columns` (from, to).

    With a colour, the image is first padded to a square of it. PIL resizes each row, then each
    column. So rows of padding, which resizing leaves as they are, are added in between, and columns
    that are not wanted are removed there.
    """
    width, height = picture.size
    is_low = colour is not None and height < width  # padded above and below
    is_tall = colour is not None and height > width  # padded on both sides
    is_cropped = columns is not None and columns != (0, size[0])
    if not (is_low or is_tall or is_cropped):
        return picture.resize(size, resample)
    if is_tall:
        narrow = _rows_of_square(picture, size[0], resample, colour)
    else:
        narrow = picture.resize((size[0], height), resample)
    if columns is not None:
        narrow = narrow.crop((columns[0], 0, columns[1], height))
    if is_low:
        square = Image.new('RGB', (narrow.width, width), colour)
        square.paste(narrow, (0, (width - height) // 2))
        narrow = square
    return narrow.resize((narrow.width, size[1]), resample)


def _rows_of_square(
    picture: Image.Image, width: int, resample: Image.Resampling, colour: Colour | None
) -> Image.Image:
    """Return the rows of a tall image, padded to a square of `colour`, resized to this width.

    A few rows at a time: the square of a very tall image would take more memory than there is.
    """
    old_width, height = picture.size
    narrow = Image.new('RGB', (width, height))
    step = max(1, MAX_PIXELS_AT_ONCE // height)
    for top in range(0, height, step):
        bottom = min(top + step, height)
        rows = Image.new('RGB', (height, bottom - top), colour)
        rows.paste(picture.crop((0, top, old_width, bottom)), ((height - old_width) // 2, 0))
        narrow.paste(rows.resize((width, bottom - top), resample), (0, top))
    return narrow


def expand_to_square(image: Image.Image, colour: Colour) -> Image.Image:
    """Return the image centred on a square of its longer side (`expand2square` of LLaVA's code)."""
    width, height = image.size
    if width == height:
        return image
    side = max(width, height)
    square = Image.new('RGB', (side, side), colour)
    square.paste(image, ((side - width) // 2, (side - height) // 2))
    return square


def recognise(processor: Any) -> Preprocessing | None:
    """Return what one of Hugging Face's image processors does; None if that is not known exactly.

    It is known of the PIL processors of LLaVA's families if they resize, rescale and normalise; if
    what they crop to lies within what they resize to; and if tiles are squares that fill each grid.
    """
    kind = type(processor)
    tiled = KNOWN_CLASSES.get(kind.__name__)
    if tiled is None or not kind.__module__.startswith('transformers.models.'):
        return None
    all_steps = processor.do_resize and processor.do_rescale and processor.do_normalize
    if not all_steps or processor.resample not in TWO_PASS_FILTERS:
        return None
    pads = pads_to_square(processor)
    if processor.input_data_format is not None or (processor.do_pad and not (pads or tiled)):
        return None

    size, crop_size = _size(processor.size), _size(processor.crop_size)
    grids: tuple[tuple[int, int], ...] = ()
    if tiled:
        grids = tuple((height, width) for height, width in processor.image_grid_pinpoints)
        if not (size and grids) or len({*size, *crop_size}) > 1:
            return None
        side = size[0]
        if any(length % side for grid in grids for length in grid):
            return None
        size = crop = (side, side)
    else:
        rest = crop_size if processor.do_center_crop else size
        if len(rest) != 2 or rest[0] > size[0] or rest[1] > size[-1]:
            return None
        crop = (rest[0], rest[1])

    levels = np.arange(256, dtype=np.uint8)[None, None].repeat(3, axis=0)  # (3, 1, 256)
    shares = processor.rescale(levels, processor.rescale_factor)
    values = processor.normalize(shares, processor.image_mean, processor.image_std)
    if values.shape != levels.shape or values.dtype != np.float32:
        return None
    return Preprocessing(
        size=size,
        crop=crop,
        resample=Image.Resampling(processor.resample),
        grids=grids,
        pads=pads,
        values=np.ascontiguousarray(values[:, 0]),
    )


def pads_to_square(processor: Any) -> bool:
    """Return whether one of Hugging Face's image processors itself pads to a square first."""
    return type(processor).__name__.startswith('LlavaImageProcessor') and bool(processor.do_pad)


def _size(size: Any) -> tuple[int, ...]:
    """Return a processor's size as (height, width) or (shortest edge,); empty if it is neither."""
    given = {name: value for name, value in dict(size or {}).items() if value is not None}
    if given.keys() == {'shortest_edge'}:
        return (given['shortest_edge'],)
    if given.keys() == {'height', 'width'}:
        return given['height'], given['width']
    return ()


def _stand_in(height: int, width: int) -> np.ndarray:
    """Return an array (3, height, width) for functions that only read its shape."""
    return np.broadcast_to(np.uint8(0), (3, height, width))
