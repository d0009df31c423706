"""ROS messages of what is published about a frame (records.py)."""

from __future__ import annotations

from collections.abc import Sequence

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from std_msgs.msg import Float64MultiArray, Header, MultiArrayDimension

from gmskip_ros.pipeline.health import ERROR, OK, WARN
from gmskip_ros.pipeline.pipeline import TaskResult
from gmskip_ros.pipeline.records import LATENCY_PARTS, Status, latencies_ms

LEVEL_BYTES = {OK: DiagnosticStatus.OK, WARN: DiagnosticStatus.WARN, ERROR: DiagnosticStatus.ERROR}


def diagnostic_array(header: Header, statuses: Sequence[Status]) -> DiagnosticArray:
    """Return the statuses as one message with this header."""
    return DiagnosticArray(
        header=header,
        status=[
            DiagnosticStatus(
                level=LEVEL_BYTES[status.level],
                name=status.name,
                message=status.message,
                hardware_id=status.hardware_id,
                values=[KeyValue(key=key, value=text) for key, text in status.values.items()],
            )
            for status in statuses
        ],
    )


def latency_array(result: TaskResult) -> Float64MultiArray:
    """Return the five phase times (ms) in their fixed order, which the layout's label names."""
    message = Float64MultiArray()
    size = len(LATENCY_PARTS)
    message.layout.dim = [
        MultiArrayDimension(label=','.join(LATENCY_PARTS), size=size, stride=size)
    ]
    message.data = latencies_ms(result)
    return message
