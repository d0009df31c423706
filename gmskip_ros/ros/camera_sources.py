"""Where a player's frames come from: images, a video, a bag.

A source is iterated once per pass (`frames()`). Frames of images and videos have no time of their
own, a bag's frames have the time of their recording.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias

import cv2
import numpy as np
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

from gmskip_ros.bags.foreign import foreign_file
from gmskip_ros.bags.reading import BagError, is_bag, open_camera_bag
from gmskip_ros.errors import UserError
from gmskip_ros.pipeline.parameter_kinds import ParameterError
from gmskip_ros.ros.conversions import rgb_to_compressed, rgb_to_image

IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png')
VIDEO_SUFFIXES = ('.mp4', '.avi', '.mkv', '.mov', '.webm', '.m4v')
IMAGES_RATE_HZ = 10.0  # usual for a camera
CACHE_BYTES = 512 << 20  # of finished messages: 86 raw frames of 1080p, 582 of 640x480

CameraMessage: TypeAlias = 'Image | CompressedImage'


class PlayerError(UserError):
    """A source cannot be played; the message is one line that names the thing and the remedy."""


@dataclass(frozen=True)
class SourceFrame:
    """One frame of a source."""

    message: CameraMessage | bytes  # bytes: CDR, published unchanged
    time_ns: int | None = None  # of its recording; None: the source has no times


class Source(Protocol):
    """Something that can be played."""

    message_type: type[CameraMessage]
    rate_hz: float | None  # its own pace; None: its frames have times
    description: str
    problems: list[str]  # one line each; may grow while frames are read

    def frames(self) -> Iterator[SourceFrame]:
        """Yield the frames of one pass, in order."""


@dataclass(frozen=True)
class MessageFormat:
    """How images become messages: the transport, raw or compressed, and the size in pixels."""

    image_transport: str = 'raw'
    width: int = 0  # 0: unchanged, or in proportion to the height
    height: int = 0
    jpeg_quality: int = 90  # for the transport compressed
    frame_id: str = 'camera'

    @property
    def message_type(self) -> type[CameraMessage]:
        return Image if self.image_transport == 'raw' else CompressedImage

    @property
    def changes(self) -> list[tuple[str, object]]:
        """The values that differ from the defaults, as (name, value)."""
        return [
            (name, value)
            for name, value in vars(self).items()
            if value != getattr(MessageFormat, name)
        ]

    def make(self, bgr: np.ndarray) -> CameraMessage:
        """Return a uint8 BGR image (H, W, 3) as a message without a stamp."""
        rgb = cv2.cvtColor(self.resized(bgr), cv2.COLOR_BGR2RGB)
        header = Header(frame_id=self.frame_id)
        if self.image_transport == 'raw':
            return rgb_to_image(rgb, header)
        return rgb_to_compressed(rgb, header, self.jpeg_quality)

    def resized(self, bgr: np.ndarray) -> np.ndarray:
        """Return an image (H, W, 3) in this format's size."""
        width, height = self.width, self.height
        if not (width or height):
            return bgr
        width = width or max(1, round(bgr.shape[1] * height / bgr.shape[0]))
        height = height or max(1, round(bgr.shape[0] * width / bgr.shape[1]))
        return cv2.resize(bgr, (width, height), interpolation=cv2.INTER_AREA)


def open_source(source: str, as_message: MessageFormat, topic: str) -> Source:
    """Return the source at a path: a bag, a video, an image or a folder of images.

    `topic`: of a bag; '' is the only one with images. Raises PlayerError, and ParameterError for a
    format or topic that the source cannot have.
    """
    path = Path(source).expanduser()
    if source and is_bag(path):
        if as_message.changes:
            name, value = as_message.changes[0]
            raise ParameterError(
                name,
                value,
                'has no effect on a bag, whose messages are published as they were recorded: '
                'remove it',
            )
        try:
            return BagSource(path, topic)
        except BagError as error:
            raise PlayerError(f'source: {error}') from None
    if topic:
        raise ParameterError('topic', topic, 'has no effect: only a bag has topics; remove it')
    if path.suffix.lower() in VIDEO_SUFFIXES and path.is_file():
        return VideoSource(path, as_message)
    return ImageSource(source, as_message)


# ---- images


def find_images(source: str) -> list[Path]:
    """Return the image at `source`, or the images in that folder, sorted by name."""
    path = Path(source).expanduser()
    if not source or not path.exists():
        raise PlayerError(
            f'source {source!r}: not found; give an image, a folder of images, a video or a bag'
        )
    images = sorted(path.iterdir()) if path.is_dir() else [path]
    images = [p for p in images if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file()]
    if not images:
        raise PlayerError(
            f'source {source!r}: no images ({", ".join(IMAGE_SUFFIXES)}), video '
            f'({", ".join(VIDEO_SUFFIXES)}) or bag: give one of these'
        )
    return images


def read_image(path: Path) -> np.ndarray:
    """Return an image file as uint8 BGR (H, W, 3), rotated upright by its EXIF orientation."""
    data = np.fromfile(path, np.uint8)
    bgr = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
    if bgr is None:
        problem = foreign_file(path) or 'not a readable image; remove or replace it'
        raise PlayerError(f'source {str(path)!r}: {problem}')
    return bgr


class ImageSource:
    """An image, or the images of a folder sorted by name.

    The first messages, as many as fit into CACHE_BYTES, are made at once and kept, so that
    publishing does not wait for decoding; the others are made again in each pass.
    """

    def __init__(self, source: str, as_message: MessageFormat) -> None:
        self._paths, self._as_message = find_images(source), as_message
        self.message_type = as_message.message_type
        self.rate_hz: float | None = IMAGES_RATE_HZ
        self.description = f'{len(self._paths)} image(s) of {source}'
        self.problems: list[str] = []
        self._kept: dict[Path, CameraMessage] = {}
        room = CACHE_BYTES
        for path in self._paths:
            message = self._message(path)
            room -= len(message.data)
            if room < 0:
                break
            self._kept[path] = message

    def frames(self) -> Iterator[SourceFrame]:
        for path in self._paths:
            yield SourceFrame(self._kept.get(path) or self._message(path))

    def _message(self, path: Path) -> CameraMessage:
        return self._as_message.make(read_image(path))


# ---- video


class VideoSource:
    """A video file, decoded while it is played, at the frame rate that the file gives."""

    def __init__(self, path: Path, as_message: MessageFormat) -> None:
        self._path, self._as_message = path, as_message
        # OpenCV's FFmpeg prints lines of its own for a broken file.
        os.environ.setdefault('OPENCV_FFMPEG_LOGLEVEL', '-8')
        self.message_type = as_message.message_type
        capture = self._open()
        rate_hz = capture.get(cv2.CAP_PROP_FPS)
        is_readable = capture.read()[0]
        capture.release()
        if not is_readable:
            raise PlayerError(f'source {str(path)!r}: {self._why_unreadable()}')
        self.rate_hz: float | None = IMAGES_RATE_HZ
        self.problems: list[str] = []
        if math.isfinite(rate_hz) and 0.0 < rate_hz <= 1000.0:
            self.rate_hz = rate_hz
        else:
            self.problems.append(f'{path.name}: has no frame rate: give rate_hz')
        self.description = f'the video {path}'

    def frames(self) -> Iterator[SourceFrame]:
        capture = self._open()
        num_read, last_s = 0, 0.0
        try:
            while True:
                is_read, bgr = capture.read()
                if not is_read:
                    self._check_length(capture, num_read, last_s)
                    return
                num_read, last_s = num_read + 1, capture.get(cv2.CAP_PROP_POS_MSEC) / 1000.0
                yield SourceFrame(self._as_message.make(bgr))
        finally:
            capture.release()

    def _open(self) -> cv2.VideoCapture:
        capture = cv2.VideoCapture(str(self._path))
        if not capture.isOpened():
            raise PlayerError(f'source {str(self._path)!r}: {self._why_unreadable()}')
        return capture

    def _why_unreadable(self) -> str:
        """Return why no frame can be read, with the remedy."""
        problem = foreign_file(self._path)
        if problem:
            return problem
        if is_cut_off(self._path):
            return 'cut off: no frame of it can be read; copy it again, or repair it'
        return 'not a readable video; convert it'

    def _check_length(self, capture: cv2.VideoCapture, num_read: int, last_s: float) -> None:
        """Note it if the file states more frames, and a longer duration, than could be read."""
        stated, rate_hz = capture.get(cv2.CAP_PROP_FRAME_COUNT), capture.get(cv2.CAP_PROP_FPS)
        if not (math.isfinite(stated) and math.isfinite(rate_hz) and rate_hz > 0.0):
            return
        # With a variable frame rate the count is an estimate: the duration has to be short as well.
        is_short = num_read < stated and last_s + 1.5 / rate_hz < stated / rate_hz
        problem = f'{self._path}: cut off or damaged: {num_read} of {stated:.0f} frames can be read'
        if is_short and problem not in self.problems:  # played before, in a loop
            self.problems.append(problem)


def is_cut_off(path: Path) -> bool:
    """Return whether an AVI, MP4 or MOV file is shorter than it states, or lacks its index."""
    size = path.stat().st_size
    with path.open('rb') as file:
        head = file.read(8)
        if head[:4] == b'RIFF':
            return 8 + int.from_bytes(head[4:], 'little') > size
        if head[4:] != b'ftyp':
            return False
        # A box begins with its length (4 bytes) and its type; the box moov has the index.
        position, types = 0, set()
        while position < size:
            file.seek(position)
            head = file.read(16)
            types.add(head[4:8])
            length = int.from_bytes(head[:4], 'big')
            if length == 1:  # the length follows, in 8 bytes
                length = int.from_bytes(head[8:], 'big')
            if length < 8:  # 0: to the end of the file; others are damaged
                break
            position += length
        return position > size or b'moov' not in types


# ---- bag


class BagSource:
    """A bag's camera topic; its messages are published as recorded, damaged or not."""

    def __init__(self, path: Path, topic: str) -> None:
        self._bag = open_camera_bag(path, topic or None)
        self.problems = self._bag.problems
        raw = self._bag.message_type == 'sensor_msgs/msg/Image'
        self.message_type: type[CameraMessage] = Image if raw else CompressedImage
        self.rate_hz: float | None = None
        if not self._bag.num_frames:
            raise PlayerError(f'source {str(path)!r}: contains no messages on {self._bag.topic}')
        self.description = (
            f'{self._bag.num_frames} frame(s) of {self._bag.topic} '
            f'({self._bag.message_type}) of {path}'
        )

    def frames(self) -> Iterator[SourceFrame]:
        for frame in self._bag.frames():
            if frame.problem:
                seconds, rest_ns = divmod(frame.stamp_ns, 1_000_000_000)
                problem = f'frame at {seconds}.{rest_ns:09d}: {frame.problem}'
                if problem not in self.problems:  # played before, in a loop
                    self.problems.append(problem)
            yield SourceFrame(frame.raw, frame.time_ns)
