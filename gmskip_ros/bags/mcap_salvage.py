"""Mcap files that rosbags does not read: cut off, damaged, or without an index.

The records (https://mcap.dev/spec: opcode, 1 byte; length, 8 bytes; content) are read one by one,
until they end or make no sense. The `mcap` package's readers skip a chunk that is cut off; here its
first messages are read: of a file of one chunk, cut in half, 200 of 400 frames instead of none.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from backports import zstd
from lz4.frame import LZ4FrameDecompressor
from rosbags.interfaces import Connection, ConnectionExtRosbag2, MessageDefinition
from rosbags.rosbag2 import ReaderError

from gmskip_ros.bags.salvage import (
    FOREVER_NS,
    IMAGE_TYPES,
    NO_DEFINITION,
    Message,
    Source,
    file_metadata,
    in_time_order,
    message_definition,
    unpacked,
)

_MAGIC = b'\x89MCAP0\r\n'
_FOOTER, _SCHEMA, _CHANNEL, _MESSAGE, _CHUNK, _MESSAGE_INDEX, _DATA_END = 2, 3, 4, 5, 6, 7, 15
# A record that claims to be larger is damaged.
_MAX_CHUNK, _MAX_RECORD = 1 << 30, 64 << 20
_PIECE = 1 << 16


@dataclass
class _Chunk:
    """Where a chunk's records are, and what it holds."""

    start_ns: int  # recording time of its first message
    position: int  # of its records in the file
    size: int  # bytes
    compression: str  # '', 'zstd' or 'lz4'
    counts: Counter[int] = field(default_factory=Counter)  # messages by channel


class McapScan:
    """Reads an mcap file record by record; it needs no index."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.connections: list[Connection] = []
        self.metadata = file_metadata(0, 0, 0)
        self.is_cut_off = True  # unless the record that ends the data is found

    def open(self) -> None:
        """Find the chunks and topics. Raises OSError, and ReaderError if it is not an mcap file."""
        self._file = self.path.open('rb')
        self._schemas: dict[int, tuple[str, MessageDefinition]] = {}
        self._channels: dict[int, Connection] = {}
        self._chunks: list[_Chunk] = []
        self._loose: dict[
            int, list[tuple[int, int, int]]
        ] = {}  # outside of chunks: time, position, size
        self._counts: Counter[int] = Counter()
        self._start_ns, self._end_ns = FOREVER_NS, 0
        try:
            if self._file.read(len(_MAGIC)) != _MAGIC:
                raise ReaderError('not an mcap file')
            self._walk()
            if self._chunks and self.is_cut_off:
                self._chunks[-1].counts.clear()  # its index may be cut off
            for chunk in self._chunks:
                if not chunk.counts or not chunk.counts.keys() <= self._channels.keys():
                    self._look_into(chunk)
                self._counts += chunk.counts
        except BaseException:
            self._file.close()
            raise
        self.connections = [
            connection._replace(msgcount=self._counts[number])
            for number, connection in sorted(self._channels.items())
        ]
        self.metadata = file_metadata(self._counts.total(), self._start_ns, self._end_ns)

    def close(self) -> None:
        self._file.close()

    def messages(
        self, connections: Collection[Connection], start: int | None = None, stop: int | None = None
    ) -> Iterator[Message]:
        """Yield the connections' messages of start <= recording time < stop, in its order."""
        start, stop = start or 0, FOREVER_NS if stop is None else stop
        wanted = {connection.id: connection for connection in connections}

        def open_chunk(chunk: _Chunk) -> Iterator[Message]:
            found = [
                (wanted[channel], time_ns, bytes(content[22:]))
                for opcode, content in self._records(chunk)
                if opcode == _MESSAGE
                for channel, _, time_ns in [struct.unpack_from('<HIQ', content)]
                if channel in wanted and start <= time_ns < stop
            ]
            yield from sorted(found, key=lambda message: message[1])

        def open_loose(channel: int, places: list[tuple[int, int, int]]) -> Iterator[Message]:
            for time_ns, position, size in places:
                self._file.seek(position)
                yield wanted[channel], time_ns, self._file.read(size)

        sources: list[Source] = [
            (chunk.start_ns, partial(open_chunk, chunk))
            for chunk in self._chunks
            if chunk.counts.keys() & wanted.keys() and chunk.start_ns < stop
        ]
        for channel, places in self._loose.items():
            places = sorted(place for place in places if start <= place[0] < stop)
            if channel in wanted and places:
                sources.append((places[0][0], partial(open_loose, channel, places)))
        yield from in_time_order(sources)

    def _walk(self) -> None:
        """Note the file's top-level records until they end, one is cut off, or makes no sense."""
        file, size = self._file, self.path.stat().st_size
        at = len(_MAGIC)
        while at + 9 <= size:
            file.seek(at)
            opcode, length = struct.unpack('<BQ', file.read(9))
            at += 9
            is_whole = at + length <= size
            try:
                if opcode == _CHUNK:  # even one that is cut off: its first messages may be there
                    start_ns, _, _, _, name_size = struct.unpack('<QQQII', file.read(32))
                    name = file.read(min(name_size, 16)).decode()
                    (data_size,) = struct.unpack('<Q', file.read(8))
                    if data_size > _MAX_CHUNK:
                        return
                    self._chunks.append(_Chunk(start_ns, file.tell(), data_size, name))
                elif not is_whole or opcode == 0:
                    return
                elif opcode in (_DATA_END, _FOOTER):
                    self.is_cut_off = False
                    return
                elif opcode == _MESSAGE:
                    channel, _, time_ns, _ = struct.unpack('<HIQQ', file.read(22))
                    self._count(self._counts, channel, time_ns)
                    known = self._channels.get(channel)
                    if known is not None and known.msgtype in IMAGE_TYPES:
                        place = (time_ns, at + 22, length - 22)
                        self._loose.setdefault(channel, []).append(place)
                elif opcode in (_SCHEMA, _CHANNEL, _MESSAGE_INDEX) and length <= _MAX_RECORD:
                    content = file.read(length)
                    if opcode != _MESSAGE_INDEX:
                        self._note(opcode, content)
                    elif self._chunks:
                        channel, index_size = struct.unpack_from('<HI', content)
                        for time_ns, _ in struct.iter_unpack('<QQ', content[6 : 6 + index_size]):
                            self._count(self._chunks[-1].counts, channel, time_ns)
            except (struct.error, UnicodeDecodeError):
                return
            at += length

    def _count(self, counts: Counter[int], channel: int, time_ns: int) -> None:
        counts[channel] += 1
        self._start_ns, self._end_ns = min(self._start_ns, time_ns), max(self._end_ns, time_ns)

    def _look_into(self, chunk: _Chunk) -> None:
        """Note a chunk's topics and, if no index has counted them, its messages."""
        is_counted = bool(chunk.counts)
        for opcode, content in self._records(chunk):
            if opcode == _MESSAGE and not is_counted:
                channel, _, time_ns = struct.unpack_from('<HIQ', content)
                self._count(chunk.counts, channel, time_ns)
            elif opcode in (_SCHEMA, _CHANNEL):
                try:
                    self._note(opcode, bytes(content))
                except (struct.error, UnicodeDecodeError):
                    return

    def _note(self, opcode: int, content: bytes) -> None:
        """Note a schema or a channel."""
        (number,) = struct.unpack_from('<H', content)
        if opcode == _SCHEMA:
            name, encoding, text = _strings(content, 2, 3)
            self._schemas[number] = (name, message_definition(encoding, text))
        else:
            (schema,) = struct.unpack_from('<H', content, 2)
            name, definition = self._schemas.get(schema, ('', NO_DEFINITION))
            topic, encoding = _strings(content, 4, 2)
            ext = ConnectionExtRosbag2(encoding, [])
            self._channels[number] = Connection(number, topic, name, definition, '', 0, ext, self)

    def _records(self, chunk: _Chunk) -> Iterator[tuple[int, memoryview]]:
        """Yield (opcode, content) of a chunk's records, up to where they are damaged or end."""
        self._file.seek(chunk.position)
        data = memoryview(_unpack(self._file.read(chunk.size), chunk.compression))
        at = 0
        while at + 9 <= len(data):
            opcode, length = struct.unpack_from('<BQ', data, at)
            at += 9
            if at + length > len(data) or (opcode == _MESSAGE and length < 22):
                return
            yield opcode, data[at : at + length]
            at += length


def _strings(content: bytes, at: int, count: int) -> list[str]:
    """Return the strings of a record from `at` on, each a length (4 bytes) and UTF-8."""
    strings = []
    for _ in range(count):
        (size,) = struct.unpack_from('<I', content, at)
        strings.append(content[at + 4 : at + 4 + size].decode())
        at += 4 + size
    return strings


def _unpack(data: bytes, compression: str) -> bytes:
    """Return a chunk's records, decompressed as far as it is whole."""
    if not compression:
        return data
    if compression == 'zstd':
        decompressor = zstd.ZstdDecompressor()
    elif compression == 'lz4':
        decompressor = LZ4FrameDecompressor()
    else:
        return b''
    pieces = (data[start : start + _PIECE] for start in range(0, len(data), _PIECE))
    return b''.join(unpacked(decompressor, pieces))
