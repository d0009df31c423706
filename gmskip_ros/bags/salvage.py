"""
Storage files that rosbags does not read, read record by record: cut off, damaged, without an index.

`McapScan` and `Sqlite3Scan` have the interface of rosbags' own storage readers (open, close,
connections, metadata, messages) and give what can be read, in the order of recording time. They
keep an index of the camera topics' messages in memory and the messages on the disk. No ROS in here.
"""

from __future__ import annotations

import heapq
import sqlite3
import struct
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import quote

from backports import zstd
from lz4.frame import LZ4FrameDecompressor
from rosbags.interfaces import (
    Connection,
    ConnectionExtRosbag2,
    MessageDefinition,
    MessageDefinitionFormat,
)
from rosbags.rosbag2 import ReaderError
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
_NO_DEFINITION = MessageDefinition(MessageDefinitionFormat.NONE, '')


def in_time_order(sources: Iterable[Source]) -> Iterator[Message]:
    """
    Yield the messages of several sources, each of them in time order, in time order.

    A source is opened when its time has come, so that few are open at once.
    """
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


def _message_definition(encoding: str, text: str) -> MessageDefinition:
    if encoding not in _DEFINITION_FORMATS:
        return _NO_DEFINITION
    return MessageDefinition(_DEFINITION_FORMATS[encoding], text)


def _metadata(num_messages: int, start_ns: int, end_ns: int) -> ReaderMetadata:
    """Return rosbags' description of a file; `end_ns` is the last message's time."""
    if not num_messages:
        return ReaderMetadata(0, FOREVER_NS, 0, 0, None, None, None, None)
    duration_ns = end_ns + 1 - start_ns
    return ReaderMetadata(duration_ns, start_ns, end_ns + 1, num_messages, None, None, None, None)


# ---- mcap (https://mcap.dev/spec): records of opcode (1 byte), length (8 bytes), content

_MAGIC = b'\x89MCAP0\r\n'
_FOOTER, _SCHEMA, _CHANNEL, _MESSAGE, _CHUNK, _MESSAGE_INDEX, _DATA_END = 2, 3, 4, 5, 6, 7, 15
# A record that says to be larger is damaged.
_MAX_CHUNK, _MAX_RECORD = 1 << 30, 64 << 20
_PIECE = 1 << 16


@dataclass
class _Chunk:
    """Where a chunk's records are, the time of its first message, and its messages by channel."""

    start_ns: int
    position: int
    size: int
    compression: str
    counts: Counter[int] = field(default_factory=Counter)


class McapScan:
    """An mcap file by its records, up to where they end; its index is neither needed nor used."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.connections: list[Connection] = []
        self.metadata = _metadata(0, 0, 0)
        self.is_cut_off = True  # its records do not go on to the one that ends them

    def open(self) -> None:
        """Find the file's chunks and topics; raise ReaderError if it is no mcap, and OSError."""
        self._file = self.path.open('rb')
        self._schemas: dict[int, tuple[str, MessageDefinition]] = {}
        self._channels: dict[int, Connection] = {}
        self._chunks: list[_Chunk] = []
        self._loose: dict[int, list[tuple[int, int, int]]] = {}  # outside of chunks: time, at, size
        self._counts: Counter[int] = Counter()
        self._start_ns, self._end_ns = FOREVER_NS, 0
        try:
            if self._file.read(len(_MAGIC)) != _MAGIC:
                raise ReaderError('no mcap file')
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
        self.metadata = _metadata(self._counts.total(), self._start_ns, self._end_ns)

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
        """Note the records of the file itself until they end, one is cut off, or makes no sense."""
        file, size = self._file, self.path.stat().st_size
        at = len(_MAGIC)
        while at + 9 <= size:
            file.seek(at)
            opcode, length = struct.unpack('<BQ', file.read(9))
            at += 9
            is_whole = at + length <= size
            try:
                if opcode == _CHUNK:  # of one that is cut off, the first messages may be there
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
        """Note a chunk's topics and, where no index has said so, how many messages it has."""
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
        """Take up a schema or a channel."""
        strings = _Strings(content, 2 if opcode == _SCHEMA else 4)
        (number,) = struct.unpack_from('<H', content)
        if opcode == _SCHEMA:
            name, encoding, text = strings.next(), strings.next(), strings.next()
            self._schemas[number] = (name, _message_definition(encoding, text))
        else:
            (schema,) = struct.unpack_from('<H', content, 2)
            name, definition = self._schemas.get(schema, ('', _NO_DEFINITION))
            topic, encoding = strings.next(), strings.next()
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


class _Strings:
    """The strings of an mcap record, one after the other: length (4 bytes), UTF-8."""

    def __init__(self, content: bytes, at: int) -> None:
        self._content, self._at = content, at

    def next(self) -> str:
        (size,) = struct.unpack_from('<I', self._content, self._at)
        start, self._at = self._at + 4, self._at + 4 + size
        return self._content[start : self._at].decode()


def _unpack(data: bytes, compression: str) -> bytes:
    """Return a chunk's records; of one that is cut off or damaged, those before that."""
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


def unpacked(decompressor: Any, pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Yield what a decompressor makes of the pieces, up to where they are damaged or end."""
    for piece in pieces:
        try:
            yield decompressor.decompress(piece)
        except Exception:  # ZstdError, RuntimeError, EOFError: the rest cannot be had
            return


# ---- sqlite3


class Sqlite3Scan:
    """
    A .db3 file row by row, around what is damaged, together with the -wal file beside it if any.

    rosbags refuses a file that is shorter than its header says, and never looks into a -wal.
    """

    _GIVE_UP_AFTER = 1000  # rows in a row that cannot be read: it was the end

    def __init__(self, path: Path) -> None:
        self.path = path
        self.connections: list[Connection] = []
        self.metadata = _metadata(0, 0, 0)
        self.is_cut_off = is_cut_off(path)
        self.num_lost = 0  # messages that are known of and could not be read

    def open(self) -> None:
        """Find topics and messages; raise sqlite3.Error if not even the topics can be read."""
        # Nothing is written beside the file, so the folder may be read-only. With unix-none there
        # are no locks, and in exclusive mode no -shm file.
        options = 'mode=ro&vfs=unix-none' if has_wal(self.path) else 'immutable=1'
        uri = f'file:{quote(str(self.path))}?{options}'
        self._database = sqlite3.connect(uri, uri=True, check_same_thread=False)
        try:
            self._database.text_factory = lambda text: text.decode(errors='replace')
            self._database.execute('PRAGMA locking_mode=EXCLUSIVE')
            self._database.execute('PRAGMA writable_schema=ON')  # accept a file that is too short
            topics = self._database.execute(
                'SELECT id, name, type, serialization_format FROM topics'
            ).fetchall()
            image_ids = {number for number, _, msgtype, _ in topics if msgtype in IMAGE_TYPES}
            counts: Counter[int] = Counter()
            start_ns, end_ns = FOREVER_NS, 0
            # (time, row) of the camera topics' messages, by topic
            self._places: dict[int, list[tuple[int, int]]] = {number: [] for number in image_ids}
            for row, topic_id, time_ns in self._rows():
                counts[topic_id] += 1
                start_ns, end_ns = min(start_ns, time_ns), max(end_ns, time_ns)
                if topic_id in image_ids:
                    self._places[topic_id].append((time_ns, row))
            if self.is_cut_off:
                for topic_id, places in self._places.items():
                    counts[topic_id] -= self._drop_cut_off(places)
            self.connections = [
                Connection(
                    number,
                    name,
                    msgtype,
                    self._definition(msgtype),
                    '',
                    counts[number],
                    ConnectionExtRosbag2(serialization, []),
                    self,
                )
                for number, name, msgtype, serialization in topics
            ]
        except BaseException:
            self._database.close()
            raise
        self.metadata = _metadata(counts.total(), start_ns, end_ns)

    def close(self) -> None:
        self._database.close()

    def messages(
        self, connections: Collection[Connection], start: int | None = None, stop: int | None = None
    ) -> Iterator[Message]:
        """Yield the connections' messages of start <= recording time < stop, in its order."""
        start, stop = start or 0, FOREVER_NS if stop is None else stop
        self.num_lost = 0
        places = sorted(
            (time_ns, row, connection)
            for connection in connections
            for time_ns, row in self._places.get(connection.id, [])
            if start <= time_ns < stop
        )
        for time_ns, row, connection in places:
            data = self._data(row)
            if data is None:
                self.num_lost += 1
            else:
                yield connection, time_ns, data

    def _data(self, row: int) -> bytes | None:
        """Return a message's CDR; None if it cannot be read."""
        query = 'SELECT data FROM messages WHERE id = ?'
        try:
            (data,) = self._database.execute(query, (row,)).fetchone()
        except (sqlite3.Error, TypeError):  # TypeError: no such row after all
            return None
        return data if isinstance(data, bytes) else None

    def _drop_cut_off(self, places: list[tuple[int, int]]) -> int:
        """Remove the last messages, whose data are beyond the end of the file; return how many."""
        before = len(places)
        while places and self._data(places[-1][1]) is None:
            places.pop()
        (page_size,) = self._database.execute('PRAGMA page_size').fetchone()
        if places and self.path.stat().st_size % page_size:
            places.pop()  # it may be the one that the last page was filled up with zeros for
        return before - len(places)

    def _rows(self) -> Iterator[tuple[int, int, int]]:
        """Yield (id, topic_id, timestamp) of every row that can be found, in the order of ids."""
        query = 'SELECT id, topic_id, timestamp FROM messages WHERE id > ? ORDER BY id'
        after, num_failures = 0, 0
        while num_failures < self._GIVE_UP_AFTER and after < FOREVER_NS:
            try:
                for row in self._database.execute(query, (after,)):
                    if row[0] <= after:  # of a damaged tree, that may lead round and round
                        num_failures += 1
                        if num_failures == self._GIVE_UP_AFTER:
                            return
                    elif isinstance(row[1], int) and isinstance(row[2], int):
                        yield row
                        after, num_failures = row[0], 0
                return
            except sqlite3.Error:
                after, num_failures = after + 1, num_failures + 1

    def _definition(self, msgtype: str) -> MessageDefinition:
        """Return the type's definition as the file has it, if it does (not before Jazzy)."""
        try:
            encoding, text = self._database.execute(
                'SELECT encoding, encoded_message_definition FROM message_definitions'
                ' WHERE topic_type = ?',
                (msgtype,),
            ).fetchone()
            return _message_definition(encoding, text)
        except (sqlite3.Error, TypeError):  # no such table or row
            return _NO_DEFINITION


def has_wal(path: Path) -> bool:
    """Return whether a .db3 has messages in a write-ahead log: its recorder did not end well."""
    wal = path.with_name(path.name + '-wal')
    return wal.is_file() and wal.stat().st_size > 0


def is_cut_off(path: Path) -> bool:
    """
    Return whether a .db3 is shorter than its own header says, or ends within a page.

    sqlite refuses the former, and fills the latter up with zeros and says nothing.
    """
    with path.open('rb') as file:
        header = file.read(100)
    if len(header) < 100:
        return True
    (page_size,) = struct.unpack_from('>H', header, 16)
    (num_pages,) = struct.unpack_from('>I', header, 28)
    page_size = 65536 if page_size == 1 else page_size
    if header[24:28] != header[92:96]:  # written by a sqlite that does not keep the number
        num_pages = 0
    size = path.stat().st_size
    return size < num_pages * page_size or (page_size > 0 and size % page_size > 0)
