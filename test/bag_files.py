"""Bags for tests, written with rosbags: sqlite3, mcap, version 8 and 9, compressed or not, split.

    messages = camera_messages(10, jump={5: -3_000_000_000}, broken=[7])      # JPEG; raw=True: raw
    bag = write_bag(tmp_path / 'bag', {'/camera/compressed': messages}, storage='mcap')

A frame's image (`picture(number)`) and its stamp identify it. Tests damage the files of the
finished bag (`storage_files`, `cut`); `kill_recording` imitates a recorder that was killed.
"""

from __future__ import annotations

import sqlite3
import struct
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
import yaml
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

TYPES = get_typestore(Stores.ROS2_HUMBLE)
IMAGE, COMPRESSED = 'sensor_msgs/msg/Image', 'sensor_msgs/msg/CompressedImage'
START_NS = 1_700_000_000_000_000_000  # recording time of frame 0
PERIOD_NS = 100_000_000  # a camera's 10 Hz
LATENCY_NS = 20_000_000  # from a frame's stamp to its recording


class Recorded(NamedTuple):
    """A message and when it was recorded."""

    time_ns: int
    message: Any  # rosbags'

    @property
    def stamp_ns(self) -> int:
        stamp = self.message.header.stamp
        return stamp.sec * 1_000_000_000 + stamp.nanosec

    @property
    def cdr(self) -> bytes:
        """The message as it is passed to rosbags' writer."""
        return bytes(TYPES.serialize_cdr(self.message, self.message.__msgtype__))


def picture(number: int, width: int = 64, height: int = 48) -> np.ndarray:
    """Return an image that differs from those of other numbers: uint8 RGB (height, width, 3)."""
    noise = np.random.default_rng(number).integers(0, 256, (height // 8 + 1, width // 8 + 1, 3))
    return cv2.resize(noise.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST)


def header(stamp_ns: int, frame_id: str = 'camera') -> Any:
    """Return a std_msgs/Header with that stamp; before 1970 its seconds are negative."""
    stamp = TYPES.types['builtin_interfaces/msg/Time'](*divmod(stamp_ns, 1_000_000_000))
    return TYPES.types['std_msgs/msg/Header'](stamp, frame_id)


def raw_image(rgb: np.ndarray, stamp_ns: int, *, encoding: str = 'rgb8', padding: int = 0) -> Any:
    """Return a sensor_msgs/Image (rgb8, bgr8 or mono8) with `padding` bytes 0xAA after each row."""
    pixels = {'rgb8': rgb, 'bgr8': rgb[..., ::-1], 'mono8': cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)}[
        encoding
    ]
    height, width = rgb.shape[:2]
    rows = np.pad(pixels.reshape(height, -1), ((0, 0), (0, padding)), constant_values=0xAA)
    return TYPES.types[IMAGE](
        header(stamp_ns), height, width, encoding, 0, rows.shape[1], rows.reshape(-1)
    )


def jpeg_image(rgb: np.ndarray, stamp_ns: int, *, broken: bool = False) -> Any:
    """Return a sensor_msgs/CompressedImage; a broken one holds the first half of its JPEG."""
    jpeg = cv2.imencode('.jpg', cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))[1].reshape(-1)
    jpeg = jpeg[: jpeg.size // 2] if broken else jpeg
    return TYPES.types[COMPRESSED](header(stamp_ns), 'rgb8; jpeg compressed bgr8', jpeg)


def text_message(text: str) -> Any:
    """Return a std_msgs/String: what a bag holds besides images."""
    return TYPES.types['std_msgs/msg/String'](text)


def camera_messages(
    count: int,
    *,
    raw: bool = False,
    width: int = 64,
    height: int = 48,
    encoding: str = 'rgb8',
    padding: int = 0,
    period_ns: int = PERIOD_NS,
    start_ns: int = START_NS,
    jump: Mapping[int, int] | None = None,
    broken: Collection[int] = (),
) -> list[Recorded]:
    """Return a camera's frames 0, 1, ...: frame i shows `picture(i)`.

    Recorded at start_ns + i * period_ns and stamped LATENCY_NS earlier; from frame i of `jump` on,
    stamps (not recording times) are off by its nanoseconds. The `broken` ones are half a JPEG or,
    raw, half the pixels that the size says.
    """
    jump, off_ns, messages = jump or {}, 0, []
    for i in range(count):
        off_ns += jump.get(i, 0)
        time_ns = start_ns + i * period_ns
        rgb, stamp_ns = picture(i, width, height), time_ns - LATENCY_NS + off_ns
        if raw:
            message = raw_image(rgb, stamp_ns, encoding=encoding, padding=padding)
            if i in broken:
                message.data = message.data[: message.data.size // 2]
        else:
            message = jpeg_image(rgb, stamp_ns, broken=i in broken)
        messages.append(Recorded(time_ns, message))
    return messages


def write_bag(
    path: Path,
    topics: Mapping[str, Sequence[Recorded]],
    *,
    storage: Literal['sqlite3', 'mcap'] = 'sqlite3',
    version: Literal[8, 9] = 8,
    compression: Literal['none', 'file', 'message', 'storage'] = 'none',
    empty_topics: Mapping[str, str] | None = None,
    typestore: Any = TYPES,
) -> Path:
    """Write a bag folder of the topics' messages, in the order of their times, and return it.

    `empty_topics`: {name: type} of topics without messages. Compression `storage` is mcap's own.
    """
    types = {name: messages[0].message.__msgtype__ for name, messages in topics.items()}
    plugin = StoragePlugin[storage.upper()]
    writer = Writer(path, version=version, storage_plugin=plugin)
    writer.set_compression(CompressionMode[compression.upper()], CompressionFormat.ZSTD)
    with writer:
        connections = {
            name: writer.add_connection(name, msgtype, typestore=typestore)
            for name, msgtype in {**types, **(empty_topics or {})}.items()
        }
        entries = [(r.time_ns, name, r) for name, messages in topics.items() for r in messages]
        for time_ns, name, recorded in sorted(entries, key=lambda entry: entry[0]):
            writer.write(connections[name], time_ns, recorded.cdr)
    return path


def write_split_bag(
    path: Path, topics: Mapping[str, Sequence[Recorded]], *, num_files: int = 2, **options: Any
) -> Path:
    """Write a bag as `write_bag` does, with the messages spread over several files by time."""
    path.mkdir(parents=True)
    entries = sorted(
        ((r.time_ns, name, r) for name, messages in topics.items() for r in messages),
        key=lambda entry: entry[0],
    )
    merged: dict[str, Any] = {}
    for number, indices in enumerate(np.array_split(np.arange(len(entries)), num_files)):
        part: dict[str, list[Recorded]] = {}
        for i in indices:
            part.setdefault(entries[i][1], []).append(entries[i][2])
        folder = write_bag(path / f'{path.name}_{number}', part, **options)
        info = read_metadata(folder)
        for file in storage_files(folder):
            file.rename(path / file.name)
        (folder / 'metadata.yaml').unlink()
        folder.rmdir()
        if not merged:
            merged = info
            continue
        merged['relative_file_paths'] += info['relative_file_paths']
        merged['files'] += info['files']
        merged['message_count'] += info['message_count']
        end_ns = _start_ns(info) + info['duration']['nanoseconds']
        merged['duration']['nanoseconds'] = end_ns - _start_ns(merged)
        counts = {t['topic_metadata']['name']: t for t in merged['topics_with_message_count']}
        for topic in info['topics_with_message_count']:
            name = topic['topic_metadata']['name']
            if name in counts:
                counts[name]['message_count'] += topic['message_count']
            else:
                merged['topics_with_message_count'].append(topic)
    write_metadata(path, merged)
    return path


def _start_ns(info: Mapping[str, Any]) -> int:
    return int(info['starting_time']['nanoseconds_since_epoch'])


def read_metadata(bag: Path) -> dict[str, Any]:
    """Return the `rosbag2_bagfile_information` of a bag's metadata.yaml."""
    return yaml.safe_load((bag / 'metadata.yaml').read_text())['rosbag2_bagfile_information']


def write_metadata(bag: Path, info: Mapping[str, Any]) -> None:
    """Write a bag's metadata.yaml."""
    text = yaml.safe_dump({'rosbag2_bagfile_information': dict(info)}, sort_keys=False)
    (bag / 'metadata.yaml').write_text(text)


def storage_files(bag: Path) -> list[Path]:
    """Return the bag's files without metadata.yaml, sorted by name."""
    return sorted(p for p in bag.iterdir() if p.is_file() and p.name != 'metadata.yaml')


def cut(file: Path, keep: int | float) -> None:
    """Keep the first `keep` bytes of a file, or that part of it if it is a float."""
    size = keep if isinstance(keep, int) else int(keep * file.stat().st_size)
    with file.open('r+b') as stream:
        stream.truncate(size)


def kill_recording(bag: Path) -> None:
    """Turn a bag into what a killed recorder leaves: no metadata, no end of the mcap."""
    (bag / 'metadata.yaml').unlink()
    for file in bag.glob('*.mcap'):
        cut(file, end_of_data(file))


def end_of_data(mcap: Path) -> int:
    """Return the position of the mcap's DataEnd record, which a killed recorder never writes."""
    content, at = mcap.read_bytes(), 8
    while content[at] != 0x0F:
        at += 9 + struct.unpack_from('<Q', content, at + 1)[0]
    return at


def forget_types(bag: Path, ros_distro: str | None = None) -> None:
    """Turn a sqlite3 bag into one as Humble writes it: without message definitions."""
    for file in bag.glob('*.db3'):
        connection = sqlite3.connect(file)
        connection.execute('DELETE FROM message_definitions')
        connection.commit()
        connection.close()
    info = read_metadata(bag)
    if ros_distro is None:
        del info['ros_distro']
    else:
        info['ros_distro'] = ros_distro
    write_metadata(bag, info)
