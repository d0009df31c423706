"""What the model sees of a frame: its borders are painted, and the features have to change."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from tiny_models import IMAGE_SIZE, make_tiny_model

from gmskip_ros.vlm import ModelLoadError, load_vlm

FAMILIES = [('llava', 'llama'), ('llava_next', 'mistral'), ('llava_onevision', 'qwen2')]
FRAMES = [(480, 270), (310, 94), (720, 465), (270, 480)]  # shapes of cameras, scaled down
STRIP = 0.06  # of a side


def painted(width: int, height: int, side: str | None = None) -> np.ndarray:
    """Return a grey frame, blue along one side: left, right, top or bottom."""
    frame = np.full((height, width, 3), 128, np.uint8)
    columns, rows = round(STRIP * width), round(STRIP * height)
    where = {
        'left': np.s_[:, :columns],
        'right': np.s_[:, -columns:],
        'top': np.s_[:rows],
        'bottom': np.s_[-rows:],
    }
    if side is not None:
        frame[where[side]] = (0, 0, 255)
    return frame


def sides_seen(vlm, width: int, height: int) -> set[str]:
    plain = vlm.encode(painted(width, height)).tokens
    return {
        side
        for side in ('left', 'right', 'top', 'bottom')
        if not torch.equal(vlm.encode(painted(width, height, side)).tokens, plain)
    }


@pytest.fixture(scope='module', params=FAMILIES, ids='-'.join)
def folder(request, tmp_path_factory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp('tiny'), *request.param, 1)


@pytest.mark.parametrize('size', FRAMES, ids=str)
def test_the_whole_frame_is_seen_by_default(folder, size) -> None:
    vlm = load_vlm(folder, 'cpu')
    assert sides_seen(vlm, *size) == {'left', 'right', 'top', 'bottom'}
    assert vlm.visible_box(*size).share == 1.0


@pytest.mark.parametrize('fit', ['pad', 'squash'])
@pytest.mark.parametrize('size', [(480, 270), (150, 450)], ids=str)
def test_pad_and_squash_show_all_of_it(folder, fit, size) -> None:
    vlm = load_vlm(folder, 'cpu', image_fit=fit)
    assert vlm.image_fit == fit
    assert sides_seen(vlm, *size) == {'left', 'right', 'top', 'bottom'}


def test_only_a_processor_that_crops_is_replaced(folder) -> None:
    family = json.loads((folder / 'config.json').read_text())['model_type']
    resolved = load_vlm(folder, 'cpu').image_fit
    assert resolved == ('pad' if family == 'llava' else 'checkpoint')
    assert load_vlm('demo', 'cpu').image_fit == 'checkpoint'  # it squashes by itself


@pytest.mark.parametrize(
    ('size', 'share'),
    [((1920, 1080), 0.5625), ((1242, 375), 0.302), ((1600, 900), 0.5625), ((2880, 1860), 0.646)],
    ids=str,
)
def test_llava_1_5s_own_processor_crops_to_the_middle(tmp_path, size, share) -> None:
    folder = make_tiny_model(tmp_path, num_blocks=1)
    vlm = load_vlm(folder, 'cpu', image_fit='checkpoint')
    assert sides_seen(vlm, *size) == {'top', 'bottom'}
    box = vlm.visible_box(*size)
    assert box.share == pytest.approx(share, abs=1e-3)
    # The box is where the model sees: what is painted beside it changes nothing, inside it does.
    width, height = size
    plain = vlm.encode(painted(*size)).tokens
    margin = round(2 * height / IMAGE_SIZE)  # resizing blurs over that many columns
    beside, inside = painted(*size), painted(*size)
    beside[:, : round(box.left * width) - margin] = (0, 0, 255)
    inside[:, : round(box.left * width) + margin] = (0, 0, 255)
    assert torch.equal(vlm.encode(beside).tokens, plain)
    assert not torch.equal(vlm.encode(inside).tokens, plain)


@pytest.mark.parametrize('size', [(480, 270), (150, 450)], ids=str)
@pytest.mark.parametrize('crop', [IMAGE_SIZE, IMAGE_SIZE // 2], ids=str)
def test_a_processor_that_pads_by_itself_shows_what_its_crop_leaves(tmp_path, size, crop) -> None:
    folder = make_tiny_model(tmp_path, num_blocks=1)
    path = folder / 'preprocessor_config.json'
    content = {**json.loads(path.read_text()), 'image_processor_type': 'LlavaImageProcessor'}
    resized = {'shortest_edge': IMAGE_SIZE * IMAGE_SIZE // crop}
    path.write_text(json.dumps({**content, 'do_pad': True, 'size': resized}))
    vlm = load_vlm(folder, 'cpu', image_fit='checkpoint')
    box = vlm.visible_box(*size)
    width, height = size
    if crop == IMAGE_SIZE:
        assert box.share == 1.0 and load_vlm(folder, 'cpu').image_fit == 'checkpoint'
        assert sides_seen(vlm, *size) == {'left', 'right', 'top', 'bottom'}
    else:  # of the long side, half; of the short side, what half of the long side leaves
        long, short = max(size), min(size)
        assert box.share == pytest.approx(0.5 * min(1.0, long / 2 / short))
        assert (box.right - box.left == 0.5) == (width > height)


def test_a_processor_without_a_crop_is_left_alone(tmp_path) -> None:
    """The demo model's kind: both sides are resized."""
    folder = make_tiny_model(tmp_path, num_blocks=1)
    path = folder / 'preprocessor_config.json'
    content = json.loads(path.read_text())
    size = {'height': IMAGE_SIZE, 'width': IMAGE_SIZE}
    path.write_text(json.dumps({**content, 'do_center_crop': False, 'size': size}))
    vlm = load_vlm(folder, 'cpu')
    assert vlm.image_fit == 'checkpoint'
    assert sides_seen(vlm, 480, 270) == {'left', 'right', 'top', 'bottom'}


@pytest.mark.parametrize('size', [(40, 70), (70, 40), (50, 50), (333, 500)], ids=str)
def test_padding_gives_the_pixels_of_hugging_faces_processor_set_to_pad(tmp_path, size) -> None:
    folder = make_tiny_model(tmp_path, num_blocks=1)
    vlm = load_vlm(folder, 'cpu', image_fit='pad')
    seen = []
    vlm._model.get_image_features = lambda pixel_values: seen.append(pixel_values) or _Stop.now()
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    with pytest.raises(_Stop):
        vlm.encode(image)
    settings = json.loads((folder / 'preprocessor_config.json').read_text())
    processor = transformers.LlavaImageProcessorPil(**{**settings, 'do_pad': True})
    expected = processor(images=Image.fromarray(image), return_tensors='pt')['pixel_values']
    torch.testing.assert_close(seen[0], expected, rtol=0, atol=0)


class _Stop(Exception):
    @classmethod
    def now(cls) -> None:
        raise cls


def test_an_unknown_fit_is_refused(tmp_path) -> None:
    folder = make_tiny_model(tmp_path, num_blocks=1)
    with pytest.raises(ModelLoadError, match="image_fit 'crop' is unknown: use auto, checkpoint"):
        load_vlm(folder, 'cpu', image_fit='crop')


@pytest.mark.parametrize('family', ['llava_next', 'llava_onevision'])
def test_a_cap_on_image_tokens_keeps_the_grids_that_fit(tmp_path, family) -> None:
    folder = make_tiny_model(tmp_path, family, num_blocks=1)
    frames = [painted(480, 270), painted(270, 480), painted(300, 300), painted(700, 100)]
    free = load_vlm(folder, 'cpu')
    most = max(len(free.encode(frame).tokens) for frame in frames)
    least = 4 + 4 + 2  # the image as one tile, the grid of one tile, a token after each of its rows
    for cap in (most - 1, (most + least) // 2, least):
        vlm = load_vlm(folder, 'cpu', max_image_tokens=cap)
        counts = [len(vlm.encode(frame).tokens) for frame in frames]
        assert max(counts) <= cap
        assert vlm.answer(frames[0], 'What?').token_ids
    uncapped = load_vlm(folder, 'cpu', max_image_tokens=most)
    assert [len(uncapped.encode(frame).tokens) for frame in frames] == [
        len(free.encode(frame).tokens) for frame in frames
    ]
    with pytest.raises(ModelLoadError, match=rf'the fewest .* are {least}: allow'):
        load_vlm(folder, 'cpu', max_image_tokens=least - 1)


def test_a_cap_for_a_model_without_tiles(tmp_path) -> None:
    folder = make_tiny_model(tmp_path, num_blocks=1)
    assert len(load_vlm(folder, 'cpu', max_image_tokens=4).encode(painted(480, 270)).tokens) == 4
    with pytest.raises(ModelLoadError, match=r'the fewest .* are 4'):
        load_vlm(folder, 'cpu', max_image_tokens=3)
    with pytest.raises(ModelLoadError, match='is not a whole number'):
        load_vlm(folder, 'cpu', max_image_tokens=-1)
