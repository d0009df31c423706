"""Recordings that hold images in a form that is not ROS 2's: what they are and what to do."""

from __future__ import annotations

import struct
from pathlib import Path

LFS_POINTER = b'version https://git-lfs.github.com/spec/'
ROS1_MAGIC = b'#ROSBAG'
ROS1_REMEDY = 'convert it with rosbags-convert'
_MCAP_START = b'\x89MCAP0\r\n\x01'  # magic, opcode of the header; then its length (8 bytes)
_OLD_NAMES = {
    'sensor_msgs/Image': 'sensor_msgs/msg/Image',
    'sensor_msgs/CompressedImage': 'sensor_msgs/msg/CompressedImage',
}


def foreign_file(path: Path) -> str:
    """Return what a file is if it is no recording of ROS 2, with the remedy; '' if it may be."""
    with path.open('rb') as stream:
        start = stream.read(len(LFS_POINTER))
    if start == LFS_POINTER:
        return "a Git LFS pointer, not the recording itself; fetch it with 'git lfs pull'"
    if start.startswith(ROS1_MAGIC):
        return f'a ROS 1 bag; {ROS1_REMEDY}'
    return ''


def foreign_topic(msgtype: str, encoding: str) -> str:
    """Return why images of this type and encoding cannot be read, with the remedy; else ''."""
    if encoding == 'ros1':
        return f'holds ROS 1 messages; {ROS1_REMEDY}'
    if msgtype in _OLD_NAMES:
        return (
            f"is {msgtype}, the type's old name; record it with ROS 2, or rewrite it as "
            f'{_OLD_NAMES[msgtype]}'
        )
    is_image = any(word in msgtype.lower() for word in ('image', 'video'))
    if is_image and msgtype.lower().startswith('foxglove'):
        return (
            f"is {msgtype}, Foxglove's own type; record sensor_msgs/msg/Image or CompressedImage, "
            'or convert it'
        )
    return ''


def lacks_profile(path: Path) -> bool:
    """Return whether this is an mcap file whose header does not name the profile ros2."""
    with path.open('rb') as stream:
        start = stream.read(len(_MCAP_START) + 12)
        if len(start) < len(_MCAP_START) + 12 or not start.startswith(_MCAP_START):
            return False
        (length,) = struct.unpack_from('<I', start, len(_MCAP_START) + 8)
        return length > 64 or stream.read(length) != b'ros2'
