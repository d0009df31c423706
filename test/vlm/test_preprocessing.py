"""Pixel values are, bit by bit, those of the checkpoint's own image processor."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import make_tiny_model
from transformers import (
    CLIPImageProcessorPil,
    LlavaImageProcessorPil,
    LlavaNextImageProcessorPil,
    LlavaOnevisionImageProcessorPil,
    SiglipImageProcessorPil,
)
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from gmskip_ros.vlm import ImageError, load_vlm, preprocessing
from gmskip_ros.vlm.image_fit import FittedImageProcessor

FITS = ['checkpoint', 'pad', 'squash']
LANCZOS, BILINEAR = Image.Resampling.LANCZOS, Image.Resampling.BILINEAR


def square(side: int) -> dict[str, int]:
    return {'height': side, 'width': side}


def grids(side: int, rows: int, columns: int) -> list[list[int]]:
    return [[side * y, side * x] for y in range(1, rows + 1) for x in range(1, columns + 1)]


# Both families of tiles have the grids of their checkpoints on the hub, with smaller tiles.
NEXT_GRIDS = [[20, 40], [40, 20], [40, 40], [60, 20], [20, 60]]
PROCESSORS = {
    'llava-1.5': lambda: CLIPImageProcessorPil(size={'shortest_edge': 36}, crop_size=square(36)),
    'crop of another shape': lambda: CLIPImageProcessorPil(
        size={'shortest_edge': 40}, crop_size={'height': 23, 'width': 34}, resample=LANCZOS
    ),
    'both sides': lambda: CLIPImageProcessorPil(
        size={'height': 31, 'width': 44}, do_center_crop=False, resample=BILINEAR
    ),
    'both sides and a crop': lambda: CLIPImageProcessorPil(
        size={'height': 31, 'width': 44}, crop_size={'height': 30, 'width': 29}
    ),
    'llava': lambda: LlavaImageProcessorPil(size={'shortest_edge': 36}, crop_size=square(36)),
    'llava, padding': lambda: LlavaImageProcessorPil(
        size={'shortest_edge': 36}, crop_size=square(36), do_pad=True
    ),
    'siglip': lambda: SiglipImageProcessorPil(size=square(42)),
    'llava-next': lambda: LlavaNextImageProcessorPil(
        size={'shortest_edge': 20}, crop_size=square(20), image_grid_pinpoints=NEXT_GRIDS
    ),
    'llava-onevision': lambda: LlavaOnevisionImageProcessorPil(
        size=square(14), image_grid_pinpoints=grids(14, 6, 6)
    ),
}
# Height, width: cameras, scaled down; odd sides; tall; smaller than the model's square; one pixel.
SIZES = [(108, 192), (107, 193), (193, 71), (97, 97), (19, 11), (12, 27), (36, 36), (1, 1), (3, 90)]


def images(size: tuple[int, int]) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(size[0])
    noise = generator.integers(0, 256, (*size, 3), np.uint8)
    return {
        'noise': noise,
        'black and white': np.where(noise > 127, 255, 0).astype(np.uint8),  # overshoots everywhere
        'grey': noise[..., :1].repeat(3, axis=2),
        'a view': generator.integers(0, 256, (size[0], size[1] * 2, 3), np.uint8)[:, ::2],
    }


def assert_same(found, expected) -> None:
    assert found.keys() <= expected.keys() and 'pixel_values' in found
    assert ('image_sizes' in found) == ('image_sizes' in expected)
    for name, tensor in found.items():
        assert tensor.dtype == expected[name].dtype, name
        assert tensor.stride() == expected[name].stride(), name
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize('fit', FITS)
@pytest.mark.parametrize('name', PROCESSORS)
def test_every_value_is_the_processors(name, fit) -> None:
    processor = FittedImageProcessor('a model', PROCESSORS[name](), fit)
    assert processor.preprocessing is not None
    for size in SIZES:
        for image in images(size).values():
            assert_same(processor(image), processor.through_hugging_face(image))


@pytest.mark.parametrize('at_once', [1, 5000])
@pytest.mark.parametrize('name', ['llava-1.5', 'llava, padding', 'siglip', 'llava-next'])
def test_tall_images_are_padded_a_few_rows_at_a_time(name, at_once, monkeypatch) -> None:
    monkeypatch.setattr(preprocessing, 'MAX_PIXELS_AT_ONCE', at_once)
    processor = FittedImageProcessor('a model', PROCESSORS[name](), 'pad')
    for size in ((193, 71), (90, 3)):
        image = images(size)['noise']
        assert_same(processor(image), processor.through_hugging_face(image))


def test_a_line_of_pixels_takes_no_more_memory_than_there_is(monkeypatch) -> None:
    """A square of 60,000 pixels a side takes 10 GB, 336 x 20 million pixels take 20."""
    sizes = []
    new = Image.new

    def counted(mode, size, *colour):
        sizes.append(size[0] * size[1])
        return new(mode, size, *colour)

    monkeypatch.setattr(Image, 'new', counted)
    hugging_face = CLIPImageProcessorPil(size={'shortest_edge': 336}, crop_size=square(336))
    line = np.zeros((9_000, 1, 3), np.uint8)
    padded = FittedImageProcessor('a model', hugging_face, 'pad')
    assert padded(line)['pixel_values'].shape == (1, 3, 336, 336)
    assert max(sizes) <= preprocessing.MAX_PIXELS_AT_ONCE < 9_000**2
    cropped = FittedImageProcessor('a model', hugging_face, 'checkpoint')
    with pytest.raises(ImageError, match=r'1x9000 pixels: .* use image_fit pad or squash'):
        cropped(line)
    assert cropped(line.transpose(1, 0, 2))['pixel_values'].shape == (1, 3, 336, 336)


@pytest.mark.parametrize('name', ['llava-next', 'llava-onevision'])
def test_every_layout_of_tiles_is_the_processors(name) -> None:
    hugging_face = PROCESSORS[name]()
    processor = FittedImageProcessor('a model', hugging_face)
    side = processor.preprocessing.crop[0]
    layouts = hugging_face.image_grid_pinpoints
    for height, width in layouts:
        for size in ((height, width), (height * 2 - 1, width * 2), (height * 3, width * 3 - 5)):
            image = images(size)['noise']
            found = processor(image)
            assert_same(found, hugging_face(images=Image.fromarray(image), return_tensors='pt'))
            if size == (height, width):
                assert found['pixel_values'].shape[1] == 1 + height * width // side**2


@pytest.mark.parametrize(
    'hugging_face',
    [
        CLIPImageProcessorPil(size={'shortest_edge': 336}, crop_size=square(336)),
        LlavaNextImageProcessorPil(size={'shortest_edge': 336}, crop_size=square(336)),
        LlavaOnevisionImageProcessorPil(),
    ],
    ids=lambda processor: type(processor).__name__,
)
def test_a_camera_frame_at_the_size_of_real_checkpoints(hugging_face) -> None:
    """LLaVA-1.5's is padded, the others' tiles are black where the frame does not reach."""
    processor = FittedImageProcessor('a model', hugging_face)
    assert processor.preprocessing is not None
    image = images((1080, 1920))['noise']
    assert_same(processor(image), processor.through_hugging_face(image))


@pytest.mark.parametrize('fit', FITS)
@pytest.mark.parametrize('family', ['llava', 'llava_next', 'llava_onevision', 'demo'])
def test_a_loaded_checkpoint_sees_what_its_own_processor_makes(
    tmp_path, monkeypatch, family, fit
) -> None:
    folder = family if family == 'demo' else make_tiny_model(tmp_path, family, num_blocks=1)
    vlm = load_vlm(folder, 'cpu', image_fit=fit)
    hugging_face, seen = vlm._image_processor.processor, []
    features = vlm._model.get_image_features
    monkeypatch.setattr(
        vlm._model,
        'get_image_features',
        lambda **pixels: seen.append(pixels) or features(**pixels),
    )
    # Should the hot path go through Hugging Face's processor, it would be slow, not wrong.
    monkeypatch.setattr(type(hugging_face), '__call__', None)
    image = images((75, 131))['noise']
    vlm.encode(image)
    monkeypatch.undo()
    if family != 'demo':
        hugging_face = AutoImageProcessor.from_pretrained(Path(folder), backend='pil')
    [found] = seen
    expected = FittedImageProcessor('a model', hugging_face, fit).through_hugging_face(image)
    assert_same(found, expected)


def changed(name: str, **settings):
    processor = PROCESSORS[name]()
    for setting, value in settings.items():
        setattr(processor, setting, value)
    return processor


class SomebodysProcessor(CLIPImageProcessorPil):
    pass


NOT_KNOWN_EXACTLY = {
    'a class of its own': lambda: SomebodysProcessor(
        size={'shortest_edge': 36}, crop_size=square(36)
    ),
    'not rescaled': lambda: changed('llava-1.5', do_rescale=False),
    'not normalised': lambda: changed('llava-1.5', do_normalize=False),
    'not resized': lambda: changed('llava-1.5', do_resize=False),
    'not cropped to one size': lambda: changed('llava-1.5', do_center_crop=False),
    'nearest pixel': lambda: changed('llava-1.5', resample=Image.Resampling.NEAREST),
    'a crop larger than the image': lambda: CLIPImageProcessorPil(
        size={'shortest_edge': 36}, crop_size=square(50)
    ),
    'a longest edge': lambda: CLIPImageProcessorPil(
        size={'shortest_edge': 36, 'longest_edge': 50}, crop_size=square(36)
    ),
    'padding of a batch': lambda: CLIPImageProcessorPil(
        size={'shortest_edge': 36}, crop_size=square(36), do_pad=True, pad_size=square(40)
    ),
    'tiles of another size': lambda: LlavaNextImageProcessorPil(
        size={'shortest_edge': 20}, crop_size=square(15), image_grid_pinpoints=grids(30, 2, 2)
    ),
    'grids that tiles do not fill': lambda: LlavaNextImageProcessorPil(
        size={'shortest_edge': 20}, crop_size=square(20), image_grid_pinpoints=[[30, 50]]
    ),
}


@pytest.mark.parametrize('fit', FITS)
@pytest.mark.parametrize('name', NOT_KNOWN_EXACTLY)
def test_a_processor_that_is_not_known_exactly_is_used_itself(name, fit) -> None:
    hugging_face = NOT_KNOWN_EXACTLY[name]()
    processor = FittedImageProcessor('a model', hugging_face, fit)
    assert processor.preprocessing is None
    image = images((75, 75))['noise']  # a square: nothing is padded
    if fit != 'squash':
        expected = hugging_face(images=Image.fromarray(image), return_tensors='pt')
        assert torch.equal(processor(image)['pixel_values'], expected['pixel_values'])


def test_a_release_that_computes_differently_is_noticed(monkeypatch) -> None:
    original = CLIPImageProcessorPil._preprocess

    def brighter(self, images, **options):
        return original(self, [np.minimum(image, 254) + 1 for image in images], **options)

    monkeypatch.setattr(CLIPImageProcessorPil, '_preprocess', brighter)
    hugging_face = PROCESSORS['llava-1.5']()
    processor = FittedImageProcessor('a model', hugging_face)
    assert processor.preprocessing is None
    image = images((75, 75))['noise']
    expected = hugging_face(images=Image.fromarray(image), return_tensors='pt')
    assert torch.equal(processor(image)['pixel_values'], expected['pixel_values'])


def test_a_broken_processor_is_left_to_the_trial_of_the_model() -> None:
    processor = FittedImageProcessor('a model', changed('llava-1.5', image_std=(1.0,)))
    assert processor.preprocessing is None
