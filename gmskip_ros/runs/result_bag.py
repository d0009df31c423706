"""A replay's answers as a bag: the node's topics, with the headers of the frames.

Every message has the recording time of its frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gmskip_ros.bags.writing import TYPES, NewBag
from gmskip_ros.pipeline import records
from gmskip_ros.pipeline.health import ERROR, OK, WARN
from gmskip_ros.pipeline.pipeline import BranchResult
from gmskip_ros.pipeline.pixels import JPEG_FORMAT
from gmskip_ros.pipeline.records import Status
from gmskip_ros.pipeline.replay import AnsweredFrame

_DIAGNOSTIC_TYPES = records.DiagnosticTypes(
    TYPES.types['diagnostic_msgs/msg/DiagnosticArray'],
    TYPES.types['diagnostic_msgs/msg/DiagnosticStatus'],
    TYPES.types['diagnostic_msgs/msg/KeyValue'],
    {OK: 0, WARN: 1, ERROR: 2},
)
_String = TYPES.types['std_msgs/msg/String']
_Float = TYPES.types['std_msgs/msg/Float64']
_Floats = TYPES.types['std_msgs/msg/Float64MultiArray']
_Layout = TYPES.types['std_msgs/msg/MultiArrayLayout']
_Dimension = TYPES.types['std_msgs/msg/MultiArrayDimension']
_Compressed = TYPES.types['sensor_msgs/msg/CompressedImage']
_Header = TYPES.types['std_msgs/msg/Header']
_Time = TYPES.types['builtin_interfaces/msg/Time']


def node_name(operating_point: str, is_only_one: bool) -> str:
    """Return the full name of the node whose topics hold the answers at an operating point.

    If there are several, each has a namespace, as several nodes would have; a number of blocks is
    `blocks_<n>`, since names in ROS must not start with a digit.
    """
    if is_only_one:
        return f'/{records.NODE_NAME}'
    space = f'blocks_{operating_point}' if operating_point.isdigit() else operating_point
    return f'/{space}/{records.NODE_NAME}'


class ResultBag(NewBag):
    """A new bag of what nodes would publish on frames."""

    def __init__(self, folder: Path, nodes: Sequence[str]) -> None:
        """`folder` must not exist; `nodes` has a full name (`node_name`) per operating point."""
        super().__init__(folder)
        self._nodes = nodes

    def write_frame(self, frame: AnsweredFrame, overlays: Sequence[bytes]) -> None:
        """Write everything that the node would publish on a frame.

        overlays: a JPEG per operating point. Raises OSError when the disk is full; the bag then
        holds the frames before this one.
        """
        header = _header(frame)
        with self.whole():
            for index, node in enumerate(self._nodes):
                self._write_branch(node, frame.time_ns, header, frame.skips[index])
                self._write_branch(node, frame.time_ns, header, frame.full)
                statuses = records.comparison_statuses(frame.comparisons[index], node)
                self._write_array(node, records.COMPARISON_TOPIC, frame.time_ns, header, statuses)
                elapsed = _Float(data=frame.processing_time_ms(index))
                self._write(node, records.PROCESSING_TIME_TOPIC, frame.time_ns, elapsed)
                message = _Compressed(
                    header=header,
                    format=JPEG_FORMAT,
                    data=np.frombuffer(overlays[index], np.uint8),
                )
                self._write(node, records.JPEG_TOPIC, frame.time_ns, message)

    def _write_branch(self, node: str, time_ns: int, header: Any, result: BranchResult) -> None:
        statuses = records.result_statuses(result, node)
        topic = records.RESULT_TOPIC.format(branch=result.branch)
        self._write_array(node, topic, time_ns, header, statuses)
        elapsed = _Float(data=result.elapsed_ms)
        topic = records.BRANCH_PROCESSING_TIME_TOPIC.format(branch=result.branch)
        self._write(node, topic, time_ns, elapsed)
        for task in result.tasks:
            names = {'branch': result.branch, 'task': task.task}
            text = _String(data=task.parsed.text)
            self._write(node, records.TEXT_TOPIC.format(**names), time_ns, text)
            layout = _Layout(dim=[_Dimension(**records.LATENCY_DIMENSION)], data_offset=0)
            values = np.array(records.latencies_ms(task), np.float64)
            latency = _Floats(layout=layout, data=values)
            self._write(node, records.LATENCY_TOPIC.format(**names), time_ns, latency)

    def _write_array(
        self, node: str, topic: str, time_ns: int, header: Any, statuses: Sequence[Status]
    ) -> None:
        array = records.diagnostic_array(_DIAGNOSTIC_TYPES, header, statuses)
        self._write(node, topic, time_ns, array)

    def _write(self, node: str, topic: str, time_ns: int, message: Any) -> None:
        self.write(topic.replace('~', node, 1), time_ns, message)


def _header(frame: AnsweredFrame) -> Any:
    """Return the frame's header as a type of TYPES."""
    stamp = frame.header.stamp
    return _Header(
        stamp=_Time(sec=stamp.sec, nanosec=stamp.nanosec), frame_id=frame.header.frame_id
    )
