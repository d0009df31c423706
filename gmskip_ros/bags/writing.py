"""A new bag that appears in its place whole: what is written after an error is what came before it.

rosbag2 with sqlite3 in metadata version 8, which Humble and Jazzy read (Humble cannot read version
9's QoS lists).
"""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, cast

from rosbags.interfaces import (
    Qos,
    QosDurability,
    QosHistory,
    QosLiveliness,
    QosReliability,
    QosTime,
)
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

from gmskip_ros.errors import UserError

TYPES = get_typestore(Stores.ROS2_HUMBLE)  # Jazzy's definitions of the messages in use are the same
# Reliable, depth 1, as the node publishes.
_FOREVER = QosTime(9_223_372_036, 854_775_807)  # as rosbag2 records it
_QOS = Qos(
    QosHistory.KEEP_LAST,
    1,
    QosReliability.RELIABLE,
    QosDurability.VOLATILE,
    _FOREVER,
    _FOREVER,
    QosLiveliness.AUTOMATIC,
    _FOREVER,
    False,
)


def check_bag_path(folder: Path) -> None:
    """Raise UserError if no bag can be written to this folder: sqlite would read it as a URI."""
    if set('?#%') & set(str(folder.absolute())):
        raise UserError(
            f'{folder}: cannot write a bag to a path with ?, # or %: choose a different folder'
        )


class NewBag:
    """A context manager that writes a temporary bag and moves it in place at the end.

    After an error, the bag holds what was written before it.
    """

    def __init__(self, folder: Path) -> None:
        """`folder` must not exist at the end; the folder above it must. Raises UserError."""
        check_bag_path(folder)
        self._folder = folder
        self._is_discarded = False
        self._connections: dict[str, Any] = {}

    def __enter__(self) -> NewBag:
        """Create the temporary bag; raises OSError."""
        self._temporary = Path(tempfile.mkdtemp(prefix='.bag.', dir=self._folder.parent))
        self._writer = Writer(
            self._temporary / self._folder.name,
            version=8,
            storage_plugin=StoragePlugin.SQLITE3,
        )
        try:
            self._writer.open()
            self._database: sqlite3.Connection = cast(Any, self._writer.storage).conn
            # A temporary bag needs no protection against a crash.
            self._database.execute('PRAGMA journal_mode=MEMORY')
            self._database.execute('PRAGMA synchronous=OFF')
        except sqlite3.Error as error:
            raise OSError(0, str(error), str(self._folder)) from error
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._writer.close()
        except sqlite3.Error as problem:
            raise OSError(0, str(problem), str(self._folder)) from problem
        finally:  # even without metadata: `gmskip replay` and `ros2 bag reindex` can read it
            if not self._is_discarded:
                (self._temporary / self._folder.name).rename(self._folder)
            shutil.rmtree(self._temporary, ignore_errors=True)

    def discard(self) -> None:
        """Leave nothing behind, and what is in its place as it is."""
        self._is_discarded = True

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Write all messages of the block or, after an error, none; raises OSError."""
        counts = dict(self._writer.counts)
        try:
            yield
            self._database.commit()
        except sqlite3.Error as error:
            self._writer.counts.update(dict.fromkeys(self._writer.counts, 0) | counts)
            with suppress(sqlite3.Error):
                self._database.rollback()
            raise OSError(0, str(error), str(self._folder)) from error

    def write(self, topic: str, time_ns: int, message: Any) -> None:
        """Write a message of one of TYPES, within `whole`."""
        content = TYPES.serialize_cdr(message, message.__msgtype__)
        self.write_serialized(topic, message.__msgtype__, time_ns, content)

    def write_serialized(
        self, topic: str, message_type: str, time_ns: int, content: bytes | memoryview
    ) -> None:
        """Write a message as it came, within `whole`; message_type: 'std_msgs/msg/String'."""
        if topic not in self._connections:
            self._connections[topic] = self._writer.add_connection(
                topic, message_type, typestore=TYPES, offered_qos_profiles=[_QOS]
            )
        self._writer.write(self._connections[topic], time_ns, content)
