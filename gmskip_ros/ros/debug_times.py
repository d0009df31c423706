"""The message type of the node's debug times: std_msgs/Float64, or Autoware's Float64Stamped.

Autoware's checkers read its own type. Its packages are imported only if they are there; none of
them is a dependency.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rclpy.type_support import check_for_type_support
from std_msgs.msg import Float64

from gmskip_ros.pipeline.parameter_kinds import ParameterError
from gmskip_ros.pipeline.parameters import AUTOWARE_DEBUG_MSGS

if TYPE_CHECKING:
    from builtin_interfaces.msg import Time


@dataclass(frozen=True)
class DebugTimes:
    """The type of the messages, and how to fill one."""

    message_type: Any
    name: str  # 'std_msgs/msg/Float64'
    is_stamped: bool

    def message(self, milliseconds: float, now: Time) -> Any:
        """Return the message of a time published at `now`."""
        if self.is_stamped:
            return self.message_type(stamp=now, data=milliseconds)
        return self.message_type(data=milliseconds)


def resolve(debug_time_type: str) -> DebugTimes:
    """Return the type that the parameter debug_time_type stands for; raises ParameterError.

    'auto': the first of Autoware's packages that can be imported, else std_msgs.
    """
    if debug_time_type in AUTOWARE_DEBUG_MSGS:
        try:
            return _autoware(debug_time_type)
        except Exception as error:  # a damaged package raises whatever it likes
            raise ParameterError(
                'debug_time_type',
                debug_time_type,
                f'cannot be imported ({error}): source the workspace that has it, or use std_msgs',
            ) from None
    for package in AUTOWARE_DEBUG_MSGS if debug_time_type == 'auto' else ():
        try:
            return _autoware(package)
        except Exception:
            continue
    return DebugTimes(Float64, 'std_msgs/msg/Float64', is_stamped=False)


def _autoware(package: str) -> DebugTimes:
    messages = importlib.import_module(f'{package}.msg')
    check_for_type_support(messages.Float64Stamped)  # otherwise only a publisher finds out
    return DebugTimes(messages.Float64Stamped, f'{package}/msg/Float64Stamped', is_stamped=True)
