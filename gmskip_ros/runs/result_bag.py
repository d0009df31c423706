"""A replay's answers as a bag: the node's topics, with the headers of the frames.

rosbag2 with sqlite3 in metadata version 8, which Humble and Jazzy read (Humble cannot read version
9's QoS lists). Every message has the recording time of its frame.
"""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import numpy as np
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

from gmskip_ros.pipeline import records
from gmskip_ros.pipeline.health import ERROR, OK, WARN
from gmskip_ros.pipeline.pipeline import BranchResult
from gmskip_ros.pipeline.pixels import JPEG_FORMAT
from gmskip_ros.pipeline.records import Status
from gmskip_ros.pipeline.replay import AnsweredFrame

# As the node publishes: reliable, depth 1.
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
_TYPES = get_typestore(Stores.ROS2_HUMBLE)  # Jazzy's definitions of these messages are the same
_DIAGNOSTIC_TYPES = records.DiagnosticTypes(
    _TYPES.types['diagnostic_msgs/msg/DiagnosticArray'],
    _TYPES.types['diagnostic_msgs/msg/DiagnosticStatus'],
    _TYPES.types['diagnostic_msgs/msg/KeyValue'],
    {OK: 0, WARN: 1, ERROR: 2},
)
_String = _TYPES.types['std_msgs/msg/String']
_Floats = _TYPES.types['std_msgs/msg/Float64MultiArray']
_Layout = _TYPES.types['std_msgs/msg/MultiArrayLayout']
_Dimension = _TYPES.types['std_msgs/msg/MultiArrayDimension']
_Compressed = _TYPES.types['sensor_msgs/msg/CompressedImage']
_Header = _TYPES.types['std_msgs/msg/Header']
_Time = _TYPES.types['builtin_interfaces/msg/Time']


def node_name(operating_point: str, is_only_one: bool) -> str:
    """Return the full name of the node whose topics hold the answers at an operating point.

    If there are several, each has a namespace, as several nodes would have; a number of blocks is
    `blocks_<n>`, since names in ROS must not start with a digit.
    """
    if is_only_one:
        return f'/{records.NODE_NAME}'
    space = f'blocks_{operating_point}' if operating_point.isdigit() else operating_point
    return f'/{space}/{records.NODE_NAME}'


class ResultBag:
    """A context manager that writes a temporary bag and moves it in place at the end.

    After an error, the bag holds the frames before it.
    """

    def __init__(self, folder: Path, nodes: Sequence[str]) -> None:
        """`folder` must not exist; `nodes` has a full name (`node_name`) per operating point."""
        self._folder = folder
        self._nodes = nodes
        self._connections: dict[str, Any] = {}

    def __enter__(self) -> ResultBag:
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

    def write(self, frame: AnsweredFrame, overlays: Sequence[bytes]) -> None:
        """Write everything that the node would publish on a frame.

        overlays: a JPEG per operating point. Raises OSError when the disk is full; the bag then
        holds the frames before this one.
        """
        header = _header(frame)
        counts = dict(self._writer.counts)
        try:
            for index, node in enumerate(self._nodes):
                self._write_branch(node, frame.time_ns, header, frame.skips[index])
                self._write_branch(node, frame.time_ns, header, frame.full)
                statuses = records.comparison_statuses(frame.comparisons[index], node)
                self._write_array(node, records.COMPARISON_TOPIC, frame.time_ns, header, statuses)
                message = _Compressed(
                    header=header,
                    format=JPEG_FORMAT,
                    data=np.frombuffer(overlays[index], np.uint8),
                )
                self._write(node, records.JPEG_TOPIC, frame.time_ns, message)
            self._database.commit()
        except sqlite3.Error as error:
            self._writer.counts.update(dict.fromkeys(self._writer.counts, 0) | counts)
            with suppress(sqlite3.Error):
                self._database.rollback()
            raise OSError(0, str(error), str(self._folder)) from error

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
            (self._temporary / self._folder.name).rename(self._folder)
            shutil.rmtree(self._temporary, ignore_errors=True)

    def _write_branch(self, node: str, time_ns: int, header: Any, result: BranchResult) -> None:
        statuses = records.result_statuses(result, node)
        topic = records.RESULT_TOPIC.format(branch=result.branch)
        self._write_array(node, topic, time_ns, header, statuses)
        for task in result.tasks:
            names = {'branch': result.branch, 'task': task.task}
            text = _String(data=task.parsed.text)
            self._write(node, records.TEXT_TOPIC.format(**names), time_ns, text)
            values = records.latencies_ms(task)
            label = ','.join(records.LATENCY_PARTS)
            dimension = _Dimension(label=label, size=len(values), stride=len(values))
            latency = _Floats(
                layout=_Layout(dim=[dimension], data_offset=0), data=np.array(values, np.float64)
            )
            self._write(node, records.LATENCY_TOPIC.format(**names), time_ns, latency)

    def _write_array(
        self, node: str, topic: str, time_ns: int, header: Any, statuses: Sequence[Status]
    ) -> None:
        array = records.diagnostic_array(_DIAGNOSTIC_TYPES, header, statuses)
        self._write(node, topic, time_ns, array)

    def _write(self, node: str, topic: str, time_ns: int, message: Any) -> None:
        name = topic.replace('~', node, 1)
        if name not in self._connections:
            self._connections[name] = self._writer.add_connection(
                name, message.__msgtype__, typestore=_TYPES, offered_qos_profiles=[_QOS]
            )
        content = _TYPES.serialize_cdr(message, message.__msgtype__)
        self._writer.write(self._connections[name], time_ns, content)


def _header(frame: AnsweredFrame) -> Any:
    """Return the frame's header as a type of _TYPES."""
    stamp = frame.header.stamp
    return _Header(
        stamp=_Time(sec=stamp.sec, nanosec=stamp.nanosec), frame_id=frame.header.frame_id
    )
