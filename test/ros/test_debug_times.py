"""Which message type the debug times have, and how a message is filled.

Autoware's packages cannot be installed here: stand-ins show what is chosen and filled. Their way
over the wire is untested.
"""

from __future__ import annotations

import sys
import types
from typing import Any

import pytest
from builtin_interfaces.msg import Time
from ros_process import RosProcess, ros_command
from std_msgs.msg import Float64

from gmskip_ros.pipeline.parameter_kinds import ParameterError
from gmskip_ros.ros import debug_times

INTERNAL, TIER4 = 'autoware_internal_debug_msgs', 'tier4_debug_msgs'


class Generated(type):
    """What rosidl gives its messages: the type support that a publisher needs."""

    _TYPE_SUPPORT: Any = object()


class Float64Stamped(metaclass=Generated):
    """As both packages define it: `builtin_interfaces/Time stamp` and `float64 data`."""

    def __init__(self, *, stamp: Time, data: float) -> None:
        assert isinstance(stamp, Time) and isinstance(data, float)
        self.stamp, self.data = stamp, data


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that makes stand-ins of these packages importable, and no others."""

    def install(*packages: str) -> None:
        for package in (INTERNAL, TIER4):
            module: Any = None  # importing it raises ImportError
            if package in packages:
                module = types.ModuleType(f'{package}.msg')
                module.__dict__['Float64Stamped'] = Generated(
                    'Float64Stamped', (Float64Stamped,), {}
                )
                monkeypatch.setitem(sys.modules, package, types.ModuleType(package))
            monkeypatch.setitem(sys.modules, f'{package}.msg', module)

    return install


@pytest.mark.parametrize(
    ('installed', 'wanted', 'name'),
    [
        ((), 'auto', 'std_msgs/msg/Float64'),
        ((TIER4,), 'auto', f'{TIER4}/msg/Float64Stamped'),
        ((INTERNAL,), 'auto', f'{INTERNAL}/msg/Float64Stamped'),
        ((TIER4, INTERNAL), 'auto', f'{INTERNAL}/msg/Float64Stamped'),
        ((TIER4, INTERNAL), TIER4, f'{TIER4}/msg/Float64Stamped'),
        ((TIER4, INTERNAL), INTERNAL, f'{INTERNAL}/msg/Float64Stamped'),
        ((TIER4, INTERNAL), 'std_msgs', 'std_msgs/msg/Float64'),
    ],
)
def test_the_type_is_the_one_asked_for(
    install: Any, installed: tuple[str, ...], wanted: str, name: str
) -> None:
    install(*installed)
    resolved = debug_times.resolve(wanted)
    assert resolved.name == name
    message = resolved.message(12.5, Time(sec=3, nanosec=4))
    assert message.data == 12.5
    assert isinstance(message, resolved.message_type)
    if name.startswith('std_msgs'):
        assert isinstance(message, Float64)
    else:
        assert message.stamp == Time(sec=3, nanosec=4)  # of publication


def test_a_package_without_the_message_is_passed_over(
    install: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(TIER4)
    monkeypatch.setitem(sys.modules, f'{INTERNAL}.msg', types.ModuleType(f'{INTERNAL}.msg'))
    monkeypatch.setitem(sys.modules, INTERNAL, types.ModuleType(INTERNAL))
    assert debug_times.resolve('auto').name == f'{TIER4}/msg/Float64Stamped'
    with pytest.raises(ParameterError, match='debug_time_type'):
        debug_times.resolve(INTERNAL)


def test_a_package_whose_type_support_is_missing_does_not_stop_the_node(
    install: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(INTERNAL, TIER4)
    damaged = sys.modules[f'{INTERNAL}.msg']
    monkeypatch.setitem(damaged.__dict__, 'Float64Stamped', type('Float64Stamped', (), {}))
    assert debug_times.resolve('auto').name == f'{TIER4}/msg/Float64Stamped'
    with pytest.raises(ParameterError, match=f'debug_time_type: .*{INTERNAL}.* cannot be imported'):
        debug_times.resolve(INTERNAL)


def test_a_type_that_cannot_be_imported_is_refused_at_the_start() -> None:
    with RosProcess(ros_command('dual_vlm_node', debug_time_type=TIER4)) as process:
        assert process.wait() == 2
        (line,) = [line for line in process.output().splitlines() if '[FATAL]' in line]
    assert 'parameter debug_time_type' in line and TIER4 in line and 'use std_msgs' in line
