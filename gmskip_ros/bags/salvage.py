"""What the readers of damaged recordings share: see mcap_salvage.py and sqlite3_salvage.py.

Both have the interface of rosbags' storage readers (open, close, connections, metadata, messages)
and yield what can be read, in the order of recording time. They keep an index of the camera topics'
messages in memory, and leave the messages on the disk.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeAlias

from rosbags.interfaces import Connection, MessageDefinition, MessageDefinitionFormat
from rosbags.rosbag2.metadata import ReaderMetadata

IMAGE_TYPES = ('sensor_msgs/msg/Image', 'sensor_msgs/msg/CompressedImage')
FOREVER_NS = 2**63 - 1

# (connection, recording time in ns, CDR): what rosbags' readers yield.
Message: TypeAlias = tuple[Connection, int, bytes]
# (no later than its first message's time, how to open it)
Source: TypeAlias = tuple[int, Callable[[], Iterator[Message]]]

_DEFINITION_FORMATS = {
    'ros2msg': MessageDefinitionFormat.MSG,
    'ros2idl': MessageDefinitionFormat.IDL,
    'omgidl': MessageDefinitionFormat.IDL,
}
NO_DEFINITION = MessageDefinition(MessageDefinitionFormat.NONE, '')


def in_time_order(sources: Iterable[Source]) -> Iterator[Message]:
    """Merge sources that are each in time order; one is opened only when its time has come."""
    waiting = sorted(enumerate(sources), key=lambda entry: entry[1][0], reverse=True)
    open_sources: list[tuple[int, int, Message, Iterator[Message]]] = []

    def push(number: int, source: Iterator[Message]) -> None:
        message = next(source, None)
        if message is not None:
            heapq.heappush(open_sources, (message[1], number, message, source))

    while waiting or open_sources:
        if waiting and (not open_sources or waiting[-1][1][0] <= open_sources[0][0]):
            number, (_, open_source) = waiting.pop()
            push(number, open_source())
        else:
            _, number, message, source = heapq.heappop(open_sources)
            yield message
            push(number, source)


def message_definition(encoding: str, text: str) -> MessageDefinition:
    """Return a definition as rosbags has it; NO_DEFINITION for an unknown encoding."""
    if encoding not in _DEFINITION_FORMATS:
        return NO_DEFINITION
    return MessageDefinition(_DEFINITION_FORMATS[encoding], text)


def file_metadata(num_messages: int, start_ns: int, end_ns: int) -> ReaderMetadata:
    """Return rosbags' metadata of a file; `end_ns` is the last message's time."""
    if not num_messages:
        return ReaderMetadata(0, FOREVER_NS, 0, 0, None, None, None, None)
    duration_ns = end_ns + 1 - start_ns
    return ReaderMetadata(duration_ns, start_ns, end_ns + 1, num_messages, None, None, None, None)


def unpacked(decompressor: Any, pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the decompressed pieces, up to where they are damaged or end."""
    for piece in pieces:
        try:
            yield decompressor.decompress(piece)
        except Exception:  # ZstdError, RuntimeError, EOFError: the rest is lost
            return
