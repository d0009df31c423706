"""Every encoding against plain numpy or Pillow; everything else refused in one line."""

from __future__ import annotations

import array
import io
import random

import numpy as np
import pytest
from PIL import Image as PilImage
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

from gmskip_ros.pipeline.pixels import (
    MAX_PIXELS,
    SUPPORTED_ENCODINGS,
    ConversionError,
    message_to_rgb,
)
from gmskip_ros.ros import conversions
from gmskip_ros.ros.conversions import rgb_to_compressed, rgb_to_image

HEIGHT, WIDTH = 6, 10
BAYER_CELLS = {'rggb': 'rg gb', 'bggr': 'bg gr', 'gbrg': 'gb rg', 'grbg': 'gr bg'}


def image_to_rgb(msg: Image | CompressedImage) -> np.ndarray:
    """Return the image; the node's conversion (cv_bridge) and the replay's must agree."""
    try:
        rgb = conversions.image_to_rgb(msg)
    except ConversionError as error:
        with pytest.raises(ConversionError) as refusal:
            message_to_rgb(msg)
        assert str(refusal.value) == str(error)
        raise
    np.testing.assert_array_equal(message_to_rgb(msg), rgb)
    return rgb


def random_bytes(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def image(rows: np.ndarray, encoding: str, width: int, height: int, padding: int = 0, **fields):
    """Return a message of rows of bytes (rows, row bytes), each followed by random padding."""
    padded = np.hstack([rows, np.full((len(rows), padding), 0xA5, np.uint8)])
    msg = Image(width=width, height=height, encoding=encoding, step=padded.shape[1], **fields)
    msg.data = array.array('B', padded.tobytes())
    return msg


def compressed(data: bytes, image_format: str = 'jpeg') -> CompressedImage:
    msg = CompressedImage(format=image_format)
    msg.data = array.array('B', data)
    return msg


def encoded(picture: np.ndarray | PilImage.Image, file_format: str, **options) -> bytes:
    """Return an image as a file, written by Pillow (our own code reads with OpenCV)."""
    file = io.BytesIO()
    if isinstance(picture, np.ndarray):
        picture = PilImage.fromarray(picture)
    picture.save(file, file_format, **options)
    return file.getvalue()


def smooth_picture(height: int = 48, width: int = 64) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 3, y * 4, 255 - x - y], axis=-1).astype(np.uint8)


def assert_refused(msg: Image | CompressedImage, *words: str) -> None:
    with pytest.raises(ConversionError) as caught:
        image_to_rgb(msg)
    text = str(caught.value)
    assert '\n' not in text
    for word in words:
        assert word in text


def assert_is_rgb(rgb: np.ndarray, height: int, width: int) -> None:
    assert rgb.shape == (height, width, 3)
    assert rgb.dtype == np.uint8
    assert rgb.flags.c_contiguous


def mosaic(colour: np.ndarray, pattern: str) -> np.ndarray:
    """Return what a Bayer sensor with this pattern records of an RGB image (H, W, 3)."""
    cells = [['rgb'.index(c) for c in row] for row in BAYER_CELLS[pattern].split()]
    seen = np.empty(colour.shape[:2], colour.dtype)
    for row in range(2):
        for column in range(2):
            seen[row::2, column::2] = colour[row::2, column::2, cells[row][column]]
    return seen


def yuv_to_rgb(y: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """ITU-R BT.601 with 16..235 for Y and 16..240 for U and V, in floating point."""
    y, u, v = (1.164383 * (y - 16.0), u - 128.0, v - 128.0)
    rgb = [y + 1.596027 * v, y - 0.391762 * u - 0.812968 * v, y + 2.017232 * u]
    return np.clip(np.stack(rgb, axis=-1), 0, 255)


# --- Image: what is read ---


@pytest.mark.parametrize('padding', [0, 1, 6])
@pytest.mark.parametrize('big_endian', [0, 1])
@pytest.mark.parametrize('bits', [8, 16])
@pytest.mark.parametrize(
    ('layout', 'rgb_channels'),
    [
        ('rgb', [0, 1, 2]),
        ('bgr', [2, 1, 0]),
        ('rgba', [0, 1, 2]),
        ('bgra', [2, 1, 0]),
        ('mono', [0, 0, 0]),
    ],
)
def test_interleaved(layout, rgb_channels, bits, big_endian, padding):
    num_channels = 1 if layout == 'mono' else len(layout)
    dtype = np.dtype(f'u{bits // 8}').newbyteorder('>' if big_endian else '<')
    picture = random_bytes(HEIGHT, WIDTH * num_channels * bits // 8).view(dtype)
    msg = image(
        picture.view(np.uint8), f'{layout}{bits}', WIDTH, HEIGHT, padding, is_bigendian=big_endian
    )

    rgb = image_to_rgb(msg)

    assert_is_rgb(rgb, HEIGHT, WIDTH)
    expected = picture.reshape(HEIGHT, WIDTH, num_channels)[..., rgb_channels]
    np.testing.assert_array_equal(rgb, expected >> 8 if bits == 16 else expected)


@pytest.mark.parametrize('padding', [0, 3])
@pytest.mark.parametrize('pattern', BAYER_CELLS)
@pytest.mark.parametrize('bits', [8, 16])
def test_bayer(pattern, bits, padding):
    """A uniform colour is reproduced exactly; with two colours, each half has its own."""
    colour = np.empty((HEIGHT, WIDTH, 3), np.uint8)
    colour[:, : WIDTH // 2] = (200, 120, 40)
    colour[:, WIDTH // 2 :] = (10, 60, 250)
    seen = mosaic(colour, pattern)
    if bits == 16:
        seen = (seen.astype('<u2') << 8 | 0x7F).view(np.uint8)

    rgb = image_to_rgb(image(seen, f'bayer_{pattern}{bits}', WIDTH, HEIGHT, padding))

    assert_is_rgb(rgb, HEIGHT, WIDTH)
    away_from_the_edge = [0, 1, 2, 3, 6, 7, 8, 9]
    np.testing.assert_array_equal(rgb[:, away_from_the_edge], colour[:, away_from_the_edge])


@pytest.mark.parametrize('padding', [0, 5])
@pytest.mark.parametrize(
    ('encoding', 'order'),
    [('yuv422', 'uyvy'), ('uyvy', 'uyvy'), ('yuv422_yuy2', 'yuyv'), ('yuyv', 'yuyv')],
)
def test_yuv_422(encoding, order, padding):
    rows = random_bytes(HEIGHT, WIDTH * 2)
    chroma, luma = (0, 1) if order == 'uyvy' else (1, 0)
    pairs = rows.reshape(HEIGHT, WIDTH // 2, 4).astype(float)  # two pixels: U Y V Y or Y U Y V
    y = pairs[..., luma::2].reshape(HEIGHT, WIDTH)
    u, v = (pairs[..., i].repeat(2, axis=1) for i in (chroma, chroma + 2))

    rgb = image_to_rgb(image(rows, encoding, WIDTH, HEIGHT, padding))

    assert_is_rgb(rgb, HEIGHT, WIDTH)
    np.testing.assert_allclose(rgb, yuv_to_rgb(y.clip(16), u, v), atol=1.5)


@pytest.mark.parametrize('padding', [0, 5])
def test_nv12(padding):
    y = random_bytes(HEIGHT, WIDTH, seed=1)
    uv = random_bytes(HEIGHT // 2, WIDTH, seed=2)
    u, v = (uv[:, i::2].repeat(2, axis=0).repeat(2, axis=1).astype(float) for i in (0, 1))

    rgb = image_to_rgb(image(np.vstack([y, uv]), 'nv12', WIDTH, HEIGHT, padding))

    assert_is_rgb(rgb, HEIGHT, WIDTH)
    np.testing.assert_allclose(rgb, yuv_to_rgb(y.clip(16), u, v), atol=1.5)


def test_smallest_and_odd_sizes():
    assert image_to_rgb(image(np.array([[1, 2, 3]], np.uint8), 'rgb8', 1, 1)).tolist() == [
        [[1, 2, 3]]
    ]
    sample = np.array([[0x12, 0x34]], np.uint8)  # little-endian: the high byte is the second
    assert image_to_rgb(image(sample, 'mono16', 1, 1)).tolist() == [[[0x34] * 3]]
    assert image_to_rgb(image(random_bytes(5, 7), 'bayer_rggb8', 7, 5)).shape == (5, 7, 3)


def test_bytes_beyond_the_last_row_are_ignored():
    rows = random_bytes(HEIGHT, WIDTH * 3)
    msg = image(rows, 'bgr8', WIDTH, HEIGHT)
    msg.data.extend(b'rubbish')
    np.testing.assert_array_equal(image_to_rgb(msg), rows.reshape(HEIGHT, WIDTH, 3)[..., ::-1])


# --- Image: what is refused ---


@pytest.mark.parametrize(
    'encoding',
    ['', 'RGB8', '8UC1', '8UC3', '16UC1', '32FC1', 'nv21', 'nv24', 'bayer_rggb', 'h264', 'x\ny'],
)
def test_other_encodings_are_refused(encoding):
    msg = image(random_bytes(HEIGHT, WIDTH * 4), encoding, WIDTH, HEIGHT)
    assert_refused(msg, repr(encoding), 'rgb8', 'nv12')


@pytest.mark.parametrize('encoding', SUPPORTED_ENCODINGS)
def test_missing_bytes_are_refused(encoding):
    msg = image(random_bytes(HEIGHT * 2, WIDTH * 8), encoding, WIDTH, HEIGHT)
    rows = HEIGHT * 3 // 2 if encoding == 'nv12' else HEIGHT
    msg.data = msg.data[: rows * msg.step]
    assert_is_rgb(image_to_rgb(msg), HEIGHT, WIDTH)

    msg.data.pop()
    assert_refused(msg, repr(encoding), f'{rows * msg.step - 1} bytes', str(rows * msg.step))
    msg.data = array.array('B')
    assert_refused(msg, '0 bytes')


@pytest.mark.parametrize(
    ('encoding', 'row_bytes'),
    [('rgb8', 30), ('bgra8', 40), ('mono8', 10), ('mono16', 20), ('yuyv', 20), ('nv12', 10)],
)
def test_step_below_the_row_is_refused(encoding, row_bytes):
    msg = image(random_bytes(HEIGHT * 3, row_bytes), encoding, WIDTH, HEIGHT)
    for step in (0, row_bytes - 1):
        msg.step = step
        assert_refused(msg, f'step {step}', f'{row_bytes} bytes')


@pytest.mark.parametrize('encoding', SUPPORTED_ENCODINGS)
@pytest.mark.parametrize(
    ('width', 'height'),
    [(0, 0), (0, HEIGHT), (WIDTH, 0), (2**32 - 2, 2**32 - 2), (MAX_PIXELS, 2)],
)
def test_impossible_sizes_are_refused(encoding, width, height):
    msg = Image(width=width, height=height, encoding=encoding, step=2**32 - 1)
    msg.data = array.array('B', bytes(100))
    assert_refused(msg, f'{width}x{height}', 'size')


@pytest.mark.parametrize(
    ('encoding', 'width', 'height', 'word'),
    [
        ('yuv422', 9, 6, 'even width'),
        ('yuyv', 9, 6, 'even width'),
        ('nv12', 9, 6, 'even'),
        ('nv12', 10, 5, 'even'),
        ('bayer_rggb8', 2, 6, '3 x 3'),
        ('bayer_gbrg16', 10, 2, '3 x 3'),
    ],
)
def test_sizes_that_the_encoding_cannot_have_are_refused(encoding, width, height, word):
    assert_refused(image(random_bytes(12, 40), encoding, width, height), word, f'{width}x{height}')


def test_any_header_and_bytes_give_a_picture_or_a_refusal():
    rng = random.Random(20)
    outcomes = {'picture': 0, 'refusal': 0}
    for _ in range(300):
        msg = Image(
            width=rng.choice([0, 1, 2, 3, 4, 7, 16, 2**31, rng.randrange(2**32)]),
            height=rng.choice([0, 1, 2, 3, 4, 7, 16, 2**31, rng.randrange(2**32)]),
            encoding=rng.choice([*SUPPORTED_ENCODINGS, '32FC1', 'rubbish']),
            step=rng.choice([0, 1, 16, 64, 96, 200, rng.randrange(2**32)]),
            is_bigendian=rng.choice([0, 1, 255]),
        )
        msg.data = array.array('B', rng.randbytes(rng.choice([0, 1, 100, 2000, 5000])))
        try:
            assert_is_rgb(image_to_rgb(msg), msg.height, msg.width)
            outcomes['picture'] += 1
        except ConversionError as error:
            assert '\n' not in str(error)
            outcomes['refusal'] += 1
    assert min(outcomes.values()) > 20  # both happened, or the test proves nothing


# --- CompressedImage ---


@pytest.mark.parametrize(
    'image_format', ['jpeg', 'jpg', '', 'rgb8; jpeg compressed bgr8', 'mono8; jpeg compressed ']
)
def test_jpeg(image_format):
    picture = smooth_picture()
    rgb = image_to_rgb(compressed(encoded(picture, 'jpeg', quality=98), image_format))
    assert_is_rgb(rgb, *picture.shape[:2])
    np.testing.assert_allclose(rgb.astype(int), picture, atol=12)


def test_jpeg_in_grey_and_progressive():
    grey = smooth_picture()[..., 0]
    rgb = image_to_rgb(compressed(encoded(grey, 'jpeg', quality=98)))
    assert_is_rgb(rgb, *grey.shape)
    np.testing.assert_allclose(rgb.astype(int), grey[..., None].repeat(3, -1), atol=6)
    data = encoded(smooth_picture(), 'jpeg', quality=98, progressive=True)
    np.testing.assert_allclose(
        image_to_rgb(compressed(data)).astype(int), smooth_picture(), atol=12
    )


@pytest.mark.parametrize('image_format', ['png', 'bgr8; png compressed ', 'rgb8; png compressed'])
def test_png(image_format):
    picture = random_bytes(HEIGHT, WIDTH, 3)
    rgb = image_to_rgb(compressed(encoded(picture, 'png'), image_format))
    assert_is_rgb(rgb, HEIGHT, WIDTH)
    np.testing.assert_array_equal(rgb, picture)


def test_png_in_grey_with_alpha_with_a_palette_and_in_16_bit():
    colour, grey = random_bytes(HEIGHT, WIDTH, 4), random_bytes(HEIGHT, WIDTH)
    deep = grey.astype(np.uint16) << 8 | 0xFE
    grey_rgb = grey[..., None].repeat(3, axis=-1)
    palette = PilImage.fromarray(grey % 16).convert('P')
    palette.putpalette(random_bytes(768, seed=3).tobytes())
    cases = [
        (encoded(grey, 'png'), grey_rgb),
        (encoded(colour, 'png'), colour[..., :3]),
        (encoded(deep, 'png'), grey_rgb),
        (encoded(palette, 'png'), np.asarray(palette.convert('RGB'))),
    ]
    for data, expected in cases:
        np.testing.assert_array_equal(image_to_rgb(compressed(data, 'png')), expected)


def test_exif_orientation_is_ignored():
    exif = PilImage.Exif()
    exif[0x0112] = 6  # "rotate by 90 degrees to show"
    data = encoded(smooth_picture(48, 64), 'jpeg', exif=exif)
    assert image_to_rgb(compressed(data)).shape == (48, 64, 3)


@pytest.mark.parametrize('file_format', ['jpeg', 'png'])
def test_truncated_files_are_refused(file_format):
    data = encoded(np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8), file_format)
    for size in [8, 20, 30, *range(40, len(data) - 2, len(data) // 50), len(data) - 2]:
        assert_refused(compressed(data[:size], file_format), f'{size} bytes', 'end marker')


def test_jpeg_with_a_thumbnail_cut_in_its_scan_is_refused():
    """The thumbnail has an end marker of its own."""
    thumbnail = encoded(smooth_picture(16, 16), 'jpeg')
    data = encoded(smooth_picture(), 'jpeg')
    app1 = b'\xff\xe1' + (2 + len(thumbnail)).to_bytes(2, 'big') + thumbnail
    with_thumbnail = data[:2] + app1 + data[2:]
    assert image_to_rgb(compressed(with_thumbnail)).shape == (48, 64, 3)
    assert_refused(compressed(with_thumbnail[:-40]), 'end marker')


def test_bytes_after_a_complete_jpeg_are_ignored():
    data = encoded(smooth_picture(), 'jpeg')
    assert image_to_rgb(compressed(data + bytes(500))).shape == (48, 64, 3)


@pytest.mark.parametrize(
    ('image_format', 'word'),
    [
        ('16UC1; compressedDepth png', 'depth'),
        ('32FC1; compressedDepth', 'depth'),
        ('16UC1; png compressed ', 'depth'),
        ('bayer_rggb8; png compressed ', 'Bayer'),
    ],
)
def test_files_that_are_not_images_are_refused(image_format, word):
    data = encoded(random_bytes(HEIGHT, WIDTH), 'png')
    assert_refused(compressed(data, image_format), word, repr(image_format))


@pytest.mark.parametrize('data', [b'', b'\xff', b'GIF89a', b'\x00' * 1000, b'RIFF\x00\x00\x00\x00'])
def test_other_files_are_refused(data):
    assert_refused(compressed(data, 'h264'), "'h264'", 'neither JPEG nor PNG')


def test_files_with_an_absurd_size_are_refused():
    png = bytearray(encoded(random_bytes(HEIGHT, WIDTH, 3), 'png'))
    png[16:24] = (60_000).to_bytes(4, 'big') * 2
    assert_refused(compressed(bytes(png), 'png'), '60000x60000')
    jpeg = bytearray(encoded(smooth_picture(), 'jpeg'))
    frame_header = jpeg.index(b'\xff\xc0')
    jpeg[frame_header + 5 : frame_header + 9] = b'\xea\x60\xea\x60'
    assert_refused(compressed(bytes(jpeg)), '60000x60000')


def test_damaged_files_give_a_picture_or_a_refusal():
    rng = random.Random(21)
    picture = np.random.default_rng(1).integers(0, 256, (24, 32, 3), np.uint8)
    refusals = 0
    for _ in range(300):
        file_format = rng.choice(['jpeg', 'png'])
        data = bytearray(encoded(picture, file_format))
        for _ in range(rng.choice([1, 5, 50])):
            data[rng.randrange(len(data))] = rng.randrange(256)
        try:
            rgb = image_to_rgb(compressed(bytes(data), file_format))
            assert_is_rgb(rgb, *rgb.shape[:2])
        except ConversionError as error:
            assert '\n' not in str(error)
            refusals += 1
    assert 20 < refusals < 300


# --- and back ---


def header() -> Header:
    made = Header(frame_id='camera')
    made.stamp.sec, made.stamp.nanosec = 12, 34
    return made


@pytest.mark.parametrize('view', [lambda a: a, lambda a: a[:, ::-1], lambda a: a[::2, 1:5]])
def test_rgb_to_image_round_trip(view):
    rgb = view(random_bytes(HEIGHT, WIDTH, 3))
    msg = rgb_to_image(rgb, header())
    assert (msg.encoding, msg.height, msg.width) == ('rgb8', *rgb.shape[:2])
    assert (msg.step, msg.is_bigendian, msg.header) == (3 * rgb.shape[1], 0, header())
    np.testing.assert_array_equal(image_to_rgb(msg), rgb)


def test_rgb_to_compressed_is_a_jpeg_that_others_can_read():
    picture = smooth_picture()
    msg = rgb_to_compressed(picture, header(), quality=98)
    assert msg.header == header()
    assert 'jpeg' in msg.format
    read = PilImage.open(io.BytesIO(bytes(msg.data)))
    assert read.format == 'JPEG'
    np.testing.assert_allclose(np.asarray(read).astype(int), picture, atol=12)
    np.testing.assert_allclose(image_to_rgb(msg).astype(int), picture, atol=12)
    assert len(rgb_to_compressed(picture, header(), quality=20).data) < len(msg.data)


@pytest.mark.parametrize(
    'wrong',
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
    ],
)
def test_arrays_that_are_not_rgb_are_refused(wrong):
    for to_message in (rgb_to_image, rgb_to_compressed):
        with pytest.raises(ConversionError, match='uint8 RGB'):
            to_message(wrong, header())


def test_images_too_large_for_jpeg_are_refused():
    for quality in (0, 101):
        with pytest.raises(ConversionError, match=f'quality {quality}'):
            rgb_to_compressed(smooth_picture(), header(), quality)
    with pytest.raises(ConversionError, match='resize'):
        rgb_to_compressed(np.zeros((1, 70_000, 3), np.uint8), header())
