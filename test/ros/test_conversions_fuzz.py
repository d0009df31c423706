"""Random messages and parameters are converted or checked correctly, or refused in one line."""

from __future__ import annotations

import array
import io
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image as PilImage
from sensor_msgs.msg import CompressedImage, Image

from gmskip_ros.pipeline.pixels import (
    MAX_PIXELS,
    SUPPORTED_ENCODINGS,
    ConversionError,
    message_to_rgb,
)
from gmskip_ros.pipeline.settings import SPECS, ParameterError, Settings, settings_from
from gmskip_ros.ros.conversions import image_to_rgb
from gmskip_ros.tasks import TASK_NAMES

# The same examples in every run, so that results do not differ between machines.
fuzz = settings(
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=150,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)

CHANNELS = {'rgb': 3, 'bgr': 3, 'rgba': 4, 'bgra': 4, 'mono': 1}
RGB, BGR, GREY = (0, 1, 2), (2, 1, 0), (0, 0, 0)  # which of a pixel's samples become R, G, B
ORDER = {'rgb': RGB, 'bgr': BGR, 'rgba': RGB, 'bgra': BGR, 'mono': GREY}
UNKNOWN_ENCODINGS = ('', '8UC3', '16UC1', '32FC1', 'RGB8', 'rgb8 ', 'mono', 'nv21', 'jpeg')
UINT32 = 2**32 - 1


# ---- Image


def row_bytes_and_rows(encoding: str, width: int, height: int) -> tuple[int, int] | None:
    """Return the bytes per row and the rows that the encoding needs; None if it is unknown."""
    if encoding not in SUPPORTED_ENCODINGS:
        return None
    if encoding == 'nv12':
        return width, height * 3 // 2
    if encoding.startswith(('yuv', 'uyvy', 'yuyv')):
        return width * 2, height
    channels = 1 if encoding.startswith('bayer') else CHANNELS[encoding.rstrip('0123456789')]
    return width * channels * (2 if encoding.endswith('16') else 1), height


def has_a_picture(msg: Image) -> bool:
    """Return whether a message contains an image, by what pixels.py promises."""
    needed = row_bytes_and_rows(msg.encoding, msg.width, msg.height)
    if needed is None or not 0 < msg.width * msg.height <= MAX_PIXELS:
        return False
    if msg.encoding.startswith('bayer') and min(msg.width, msg.height) < 3:
        return False
    if msg.encoding.startswith(('yuv', 'uyvy', 'yuyv', 'nv12')) and msg.width % 2:
        return False
    if msg.encoding == 'nv12' and msg.height % 2:
        return False
    row_bytes, rows = needed
    return msg.step >= row_bytes and len(msg.data) >= msg.step * rows


def pixels_by_numpy(msg: Image) -> np.ndarray | None:
    """Return the image as plain numpy reads it; None if that is not simple."""
    kind = msg.encoding.rstrip('0123456789')
    if kind not in CHANNELS:
        return None
    kinds = {'8': 'u1', '16': '>u2' if msg.is_bigendian else '<u2'}
    dtype = np.dtype(kinds[msg.encoding[len(kind) :]])
    row_bytes, rows = row_bytes_and_rows(msg.encoding, msg.width, msg.height) or (0, 0)
    data = bytes(msg.data)
    lines = [data[at : at + row_bytes] for at in range(0, msg.step * rows, msg.step)]
    samples = np.frombuffer(b''.join(lines), dtype).reshape(msg.height, msg.width, CHANNELS[kind])
    if dtype.itemsize == 2:
        samples = samples >> 8
    return samples[..., ORDER[kind]].astype(np.uint8)


@st.composite
def near_misses(draw: st.DrawFn, encoding: str) -> Image:
    """Draw a valid or nearly valid Image."""
    width, height = draw(st.integers(0, 12)), draw(st.integers(0, 12))
    row_bytes, rows = row_bytes_and_rows(encoding, width, height) or (width, height)
    step = max(0, row_bytes + draw(st.sampled_from((0, 0, 0, 1, 5, -1))))
    length = max(0, step * rows + draw(st.sampled_from((0, 0, 0, 1, 20, -1))))
    return image(encoding, width, height, step, length, draw(st.sampled_from((0, 1, 255))))


@st.composite
def any_images(draw: st.DrawFn) -> Image:
    """Draw an Image with arbitrary fields."""
    sides = st.integers(0, 12) | st.integers(0, UINT32)
    return image(
        draw(st.sampled_from(SUPPORTED_ENCODINGS) | st.text()),
        draw(sides),
        draw(sides),
        draw(sides | st.integers(0, 100)),
        draw(st.integers(0, 4000)),
        draw(st.integers(0, 255)),
    )


def image(
    encoding: str, width: int, height: int, step: int, length: int, is_bigendian: int
) -> Image:
    """Return a message with this many bytes of data."""
    msg = Image(width=width, height=height, step=step, encoding=encoding)
    msg.is_bigendian = is_bigendian
    content = np.random.default_rng(length).integers(0, 256, length, np.uint8)
    msg.data = array.array('B', content.tobytes())
    return msg


def rgb_or_refusal(msg: Image | CompressedImage) -> np.ndarray | str:
    """Return what both conversions make of a message, which must agree: an image or a refusal."""
    # As in rosbags: the same fields, the data as a numpy array.
    alike = SimpleNamespace(
        **{
            name.lstrip('_'): getattr(msg, name.lstrip('_'))
            for name in msg.__slots__
            if name != '_check_fields'
        }
    )
    alike.data = np.frombuffer(msg.data, np.uint8)
    outcomes: list[np.ndarray | str] = []
    for convert, message in ((image_to_rgb, msg), (message_to_rgb, msg), (message_to_rgb, alike)):
        try:
            outcomes.append(convert(message))
        except ConversionError as error:
            outcomes.append(str(error))
    for outcome in outcomes[1:]:
        np.testing.assert_array_equal(outcome, outcomes[0])
    return outcomes[0]


def assert_is_picture(rgb: np.ndarray | str, height: int, width: int) -> None:
    assert isinstance(rgb, np.ndarray), rgb
    assert rgb.shape == (height, width, 3)
    assert rgb.dtype == np.uint8 and rgb.flags.c_contiguous


def assert_is_refusal(outcome: np.ndarray | str) -> None:
    assert isinstance(outcome, str), f'a picture of {outcome.shape}'
    assert outcome and len(outcome.splitlines()) == 1


def is_read_or_refused(msg: Image) -> bool:
    """Check the conversion of a message; return whether it is an image."""
    outcome = rgb_or_refusal(msg)
    if not has_a_picture(msg):
        assert_is_refusal(outcome)
        return False
    assert_is_picture(outcome, msg.height, msg.width)
    expected = pixels_by_numpy(msg)
    if expected is not None:
        np.testing.assert_array_equal(outcome, expected)
    return True


@pytest.mark.parametrize('encoding', (*SUPPORTED_ENCODINGS, *UNKNOWN_ENCODINGS))
def test_nearly_valid_images_are_read_correctly_or_refused(encoding):
    outcomes = set()

    @settings(fuzz, max_examples=40)
    @given(near_misses(encoding))
    def check(msg):
        outcomes.add(is_read_or_refused(msg))

    check()
    assert outcomes == ({True, False} if encoding in SUPPORTED_ENCODINGS else {False})


@fuzz
@given(any_images())
def test_any_image_is_read_correctly_or_refused(msg):
    is_read_or_refused(msg)


# ---- CompressedImage


@st.composite
def picture_files(draw: st.DrawFn) -> tuple[bytes, np.ndarray]:
    """Draw a JPEG or PNG written by Pillow, and the image that Pillow reads from it."""
    height, width = draw(st.integers(1, 24)), draw(st.integers(1, 24))
    mode = draw(st.sampled_from(('RGB', 'L')))
    seed, is_smooth = draw(st.integers(0, 3)), draw(st.booleans())
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    if is_smooth:
        values = (np.mgrid[:height, :width].sum(axis=0) * 4)[..., None].repeat(3, -1)
    picture = PilImage.fromarray(values.astype(np.uint8)).convert(mode)
    if draw(st.booleans()):
        options: dict[str, Any] = {'format': 'PNG'}
    else:
        options = {
            'format': 'JPEG',
            'quality': draw(st.integers(1, 100)),
            'progressive': draw(st.booleans()),
            'subsampling': draw(st.integers(0, 2)),
        }
    file = io.BytesIO()
    picture.save(file, **options)
    with PilImage.open(file) as read:
        return file.getvalue(), np.asarray(read.convert('RGB'))


@st.composite
def damaged_files(draw: st.DrawFn) -> bytes:
    """Draw a file with bytes changed, cut off, removed or added."""
    data = bytearray(draw(picture_files())[0])
    for _ in range(draw(st.integers(1, 3))):
        at = round(draw(st.floats(0.0, 1.0)) * (len(data) - 1))
        how = draw(st.sampled_from(('change', 'change', 'change', 'leave out', 'add')))
        if how == 'change':
            data[at] = draw(st.integers(0, 255))
        elif how == 'leave out':
            del data[at : at + draw(st.integers(1, 9))]
        else:
            data[at:at] = draw(st.binary(max_size=40))
    return bytes(data)


def compressed(data: bytes, image_format: str) -> CompressedImage:
    msg = CompressedImage(format=image_format)
    msg.data = array.array('B', data)
    return msg


COLOUR_FORMATS = st.sampled_from(('jpeg', 'png', 'bgr8; jpeg compressed bgr8', '', 'any; thing'))


@fuzz
@given(picture_files(), COLOUR_FORMATS)
def test_whole_files_are_read_as_pillow_reads_them(file_and_picture, image_format):
    data, expected = file_and_picture
    rgb = rgb_or_refusal(compressed(data, image_format))
    assert_is_picture(rgb, *expected.shape[:2])
    # Two decoders round a JPEG's cosines and its chroma differently.
    tolerance = 0 if data.startswith(b'\x89PNG') else 4
    assert np.abs(rgb.astype(int) - expected).max() <= tolerance


@fuzz
@given(picture_files(), st.floats(0.0, 1.0))
def test_files_that_are_cut_off_are_refused(file_and_picture, part):
    data, _ = file_and_picture
    assert_is_refusal(rgb_or_refusal(compressed(data[: round(part * (len(data) - 1))], 'jpeg')))


def is_picture_or_refusal(data: bytes, image_format: str) -> bool:
    """Check the conversion of a file; return whether it is an image."""
    outcome = rgb_or_refusal(compressed(data, image_format))
    if isinstance(outcome, str):
        assert_is_refusal(outcome)
        return False
    height, width = outcome.shape[:2]
    assert_is_picture(outcome, height, width)
    assert 0 < height * width <= MAX_PIXELS
    return True


def test_damaged_files_are_a_picture_or_refused():
    outcomes = set()

    @fuzz
    @given(damaged_files(), COLOUR_FORMATS)
    def check(data, image_format):
        outcomes.add(is_picture_or_refusal(data, image_format))

    check()
    assert outcomes == {True, False}


starts = st.sampled_from((b'', b'\xff\xd8\xff', b'\x89PNG\r\n\x1a\n'))


@fuzz
@given(starts, st.binary(max_size=300), st.text())
def test_any_bytes_are_a_picture_or_refused(start, data, image_format):
    is_picture_or_refusal(start + data, image_format)


# ---- parameters


numbers = (
    st.integers()
    | st.integers(0, 600)
    | st.floats()
    | st.floats(0.0, 100.0)
    | st.sampled_from((10**400, -(10**400), 2**63, float('nan'), float('inf'), -0.0, 1e-320))
)
DEFAULTS = [spec.default for spec in SPECS.values() if isinstance(spec.default, str)]
words = st.sampled_from(
    [
        *DEFAULTS,
        *TASK_NAMES,
        'coda',
        'scenes',
        'skip',
        'full',
        'high_sparsity',
        'cuda:1',
        'cuda:',
        'cuda:1\n',
        'float16',
        '7',
        '-1',
        '٣',
        'true',
        '<image>',
        ' ',
        '\0',
        '\ud800',
    ]
)
scalars = st.none() | st.booleans() | numbers | words | words | st.text(max_size=20)
values = st.recursive(
    scalars | st.binary(max_size=9).map(lambda data: array.array('B', data)),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=5), inner, max_size=2)
    ),
    max_leaves=4,
)


@pytest.mark.parametrize('name', SPECS)
def test_any_value_of_a_parameter_is_accepted_or_refused(name):
    outcomes = set()

    @settings(fuzz, max_examples=40)
    @given(values)
    def check(value):
        try:
            taken = settings_from({name: value})
        except ParameterError as error:
            assert name in str(error) and len(str(error).splitlines()) == 1
            outcomes.add(ParameterError)
            return
        assert isinstance(taken, Settings)
        assert taken.period_ns > 0
        assert len(taken.make_tasks()) == len(taken.tasks) > 0
        outcomes.add(Settings)

    check()
    assert ParameterError in outcomes  # the values are random enough


@fuzz
@given(st.dictionaries(st.sampled_from(sorted(SPECS)) | st.text(max_size=9), values, max_size=6))
def test_any_combination_of_parameters_is_accepted_or_refused(some):
    try:
        assert isinstance(settings_from(some), Settings)
    except ParameterError as error:
        assert any(name in str(error) for name in some)
