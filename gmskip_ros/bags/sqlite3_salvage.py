"""Sqlite3 files that rosbags does not read: cut off, damaged, or with a write-ahead log."""

from __future__ import annotations

import sqlite3
import struct
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from urllib.parse import quote

from rosbags.interfaces import Connection, ConnectionExtRosbag2, MessageDefinition

from gmskip_ros.bags.salvage import (
    FOREVER_NS,
    IMAGE_TYPES,
    NO_DEFINITION,
    Message,
    file_metadata,
    message_definition,
)


class Sqlite3Scan:
    """Reads a .db3 file row by row, around what is damaged, together with its -wal file if any.

    rosbags refuses a file that is shorter than its header says, and never looks into a -wal.
    """

    _GIVE_UP_AFTER = 1000  # consecutive ids without a readable row: it was the end

    def __init__(self, path: Path) -> None:
        self.path = path
        self.connections: list[Connection] = []
        self.metadata = file_metadata(0, 0, 0)
        self.is_cut_off = is_cut_off(path)
        self.num_lost = 0  # messages whose row is known and whose data cannot be read

    def open(self) -> None:
        """Find topics and messages. Raises sqlite3.Error if not even the topics can be read."""
        # Nothing may be written beside the file: unix-none takes no locks, and exclusive mode needs
        # no -shm file. So the folder may be read-only.
        options = 'mode=ro&vfs=unix-none' if has_wal(self.path) else 'immutable=1'
        uri = f'file:{quote(str(self.path))}?{options}'
        self._database = sqlite3.connect(uri, uri=True, check_same_thread=False)
        try:
            self._database.text_factory = lambda text: text.decode(errors='replace')
            self._database.execute('PRAGMA locking_mode=EXCLUSIVE')
            self._database.execute('PRAGMA writable_schema=ON')  # accepts a file that is too short
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
        self.metadata = file_metadata(counts.total(), start_ns, end_ns)

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
            places.pop()  # sqlite may have padded its last page with zeros
        return before - len(places)

    def _rows(self) -> Iterator[tuple[int, int, int]]:
        """Yield (id, topic_id, timestamp) of every row that can be read, in the order of ids."""
        query = 'SELECT id, topic_id, timestamp FROM messages WHERE id > ? ORDER BY id'
        after, num_failures = 0, 0
        while num_failures < self._GIVE_UP_AFTER and after < FOREVER_NS:
            try:
                for row in self._database.execute(query, (after,)):
                    if row[0] <= after:  # a damaged tree may be circular
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
        """Return the type's definition if the file has one (files from before Jazzy have none)."""
        try:
            encoding, text = self._database.execute(
                'SELECT encoding, encoded_message_definition FROM message_definitions'
                ' WHERE topic_type = ?',
                (msgtype,),
            ).fetchone()
            return message_definition(encoding, text)
        except (sqlite3.Error, TypeError):  # no such table or row
            return NO_DEFINITION


def has_wal(path: Path) -> bool:
    """Return whether a .db3 has messages in a write-ahead log: its recorder was killed."""
    wal = path.with_name(path.name + '-wal')
    return wal.is_file() and wal.stat().st_size > 0


def is_cut_off(path: Path) -> bool:
    """Return whether a .db3 is shorter than its header says, or ends within a page.

    sqlite refuses the former, and silently pads the latter with zeros.
    """
    with path.open('rb') as file:
        header = file.read(100)
    if len(header) < 100:
        return True
    (page_size,) = struct.unpack_from('>H', header, 16)
    (num_pages,) = struct.unpack_from('>I', header, 28)
    page_size = 65536 if page_size == 1 else page_size
    if header[24:28] != header[92:96]:  # written by a sqlite that does not maintain the number
        num_pages = 0
    size = path.stat().st_size
    return size < num_pages * page_size or (page_size > 0 and size % page_size > 0)
