"""Images are read with their orientation applied; incomplete files are refused."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from gmskip_ros.datasets import DatasetError, read_image


@pytest.fixture
def pixels() -> np.ndarray:
    small = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8))
    return np.array(small.resize((80, 60)))


def test_colours_come_in_the_order_red_green_blue(tmp_path, pixels):
    Image.fromarray(pixels).save(tmp_path / 'a.png')
    image = read_image(tmp_path / 'a.png')
    assert image.dtype == np.uint8 and image.flags.c_contiguous
    assert np.array_equal(image, pixels)


@pytest.mark.parametrize('size', [(60, 80), (59, 77), (1, 1)], ids=str)
def test_the_bytes_of_a_jpeg_are_those_of_opencv(tmp_path, size):
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / 'a.jpg')
    image = read_image(tmp_path / 'a.jpg')
    assert image.flags.c_contiguous
    assert np.array_equal(image, cv2.imread(str(tmp_path / 'a.jpg'))[..., ::-1])


@pytest.mark.parametrize('mode', ['L', 'P', '1', 'LA', 'RGBA'])
def test_other_modes_become_rgb(tmp_path, pixels, mode):
    image = Image.fromarray(pixels).convert(mode)
    image.save(tmp_path / 'a.png')
    assert np.array_equal(read_image(tmp_path / 'a.png'), np.array(image.convert('RGB')))


@pytest.mark.parametrize('suffix', ['jpg', 'png'])
@pytest.mark.parametrize('orientation', range(1, 9))
def test_exif_orientation_is_applied(tmp_path, pixels, orientation, suffix):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f'a.{suffix}'
    Image.fromarray(pixels).save(path, exif=exif, quality=95)
    with Image.open(path) as opened:
        expected = np.array(ImageOps.exif_transpose(opened).convert('RGB'))
    image = read_image(path)
    assert image.shape == expected.shape
    assert np.abs(image.astype(int) - expected).max() <= 2  # two decoders


@pytest.mark.parametrize('options', [{}, {'progressive': True}, {'quality': 30}])
@pytest.mark.parametrize('left', [0.1, 0.5, 0.9])
def test_a_truncated_jpeg_is_refused(tmp_path, pixels, options, left):
    """Decoders fill the rest with grey and report no error."""
    path = tmp_path / 'a.jpg'
    Image.fromarray(pixels).save(path, **options)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * left)])
    with pytest.raises(DatasetError, match='is a truncated JPEG'):
        read_image(path)
    path.write_bytes(whole + bytes(100))  # cameras may append data
    assert read_image(path).shape == pixels.shape


def test_the_end_of_a_thumbnail_is_not_that_of_the_image(tmp_path, pixels):
    path, small = tmp_path / 'a.jpg', tmp_path / 'small.jpg'
    Image.fromarray(pixels).resize((16, 12)).save(small)
    Image.fromarray(pixels).save(path)
    thumbnail = small.read_bytes()
    segment = b'\xff\xe5' + (len(thumbnail) + 2).to_bytes(2, 'big') + thumbnail
    whole = b'\xff\xd8' + segment + path.read_bytes()[2:]
    path.write_bytes(whole)
    assert read_image(path).shape == pixels.shape
    path.write_bytes(whole[:-200])
    with pytest.raises(DatasetError, match='is a truncated JPEG'):
        read_image(path)


def test_a_truncated_or_damaged_png_is_refused(tmp_path, pixels):
    path = tmp_path / 'a.png'
    Image.fromarray(pixels).save(path)
    whole = path.read_bytes()
    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 0xFF
    for content in (whole[: len(whole) // 2], whole[:-4], bytes(damaged)):
        path.write_bytes(content)
        with pytest.raises(DatasetError, match='is not an image'):
            read_image(path)


def test_more_than_8_bits_are_refused(tmp_path, pixels):
    Image.fromarray(pixels[:, :, 0].astype(np.uint16) * 257).save(tmp_path / 'deep.png')
    with pytest.raises(DatasetError, match=r'uint16 values; use .* 8 bits'):
        read_image(tmp_path / 'deep.png')
    cv2.imwrite(str(tmp_path / 'deep.tiff'), pixels.astype(np.float32))
    with pytest.raises(DatasetError, match='float32 values'):
        read_image(tmp_path / 'deep.tiff')


@pytest.mark.parametrize('content', [b'', b'hello', b'\xff\xd8', b'\xff\xd8\xff\xd9'])
def test_the_error_about_a_file_that_is_not_an_image_is_one_line(tmp_path, content):
    path = tmp_path / 'a.jpg'
    path.write_bytes(content)
    with pytest.raises(DatasetError) as error:
        read_image(path)
    assert str(error.value).startswith(f'{path}: ') and '\n' not in str(error.value)


def test_the_error_about_an_unreadable_file_is_one_line(tmp_path):
    for path, reason in ((tmp_path / 'a\nb.jpg', 'No such file'), (tmp_path, 'Is a directory')):
        with pytest.raises(DatasetError, match=reason) as error:
            read_image(path)
        assert '\n' not in str(error.value)
