"""The package on Humble's rclpy, which cannot be installed here: see humble_rclpy.py."""

from __future__ import annotations

import ast
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import humble_rclpy
import pytest
from node_probe import PARAMETERS, Probe
from ros_process import RosProcess, ros_command, ros_node

from gmskip_ros.ros.dds_profile import fastdds_environment

PACKAGE = Path(__file__).resolve().parents[2] / 'gmskip_ros'


def humble_command(command: list[str]) -> list[str]:
    """Return the command that runs `python -m MODULE ...` with Humble's rclpy."""
    python, option, *rest = command
    assert option == '-m'
    return [python, humble_rclpy.__file__, *rest]


# --- by reading the sources ---


def dotted(node: ast.expr) -> list[str]:
    """Return ['a', 'b', 'c'] for a.b.c, [] for anything else."""
    if isinstance(node, ast.Name):
        return [node.id]
    if isinstance(node, ast.Attribute) and (parts := dotted(node.value)):
        return [*parts, node.attr]
    return []


def not_in_humble(tree: ast.AST) -> Iterator[str]:
    """Yield what a module uses of rclpy that Humble lacks, with its line."""
    names: dict[str, str] = {}  # in this module: of rclpy's modules, classes and functions
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.partition('.')[0] == 'rclpy':
                    names[alias.asname or 'rclpy'] = alias.name if alias.asname else 'rclpy'
                    module, _, name = alias.name.rpartition('.')
                    if module and not humble_rclpy.is_known(module, name):
                        yield f'{node.lineno}: import {alias.name}'
        elif isinstance(node, ast.ImportFrom) and (node.module or '').split('.')[0] == 'rclpy':
            assert node.module is not None
            for alias in node.names:
                names[alias.asname or alias.name] = f'{node.module}.{alias.name}'
                if not humble_rclpy.is_known(node.module, alias.name):
                    yield f'{node.lineno}: from {node.module} import {alias.name}'
    added = set().union(*map(humble_rclpy.added_members, humble_rclpy.classes().values()))
    added -= set().union(*humble_rclpy.MEMBERS.values())
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute):
            continue
        first, *rest = dotted(node) or ['']
        owner = '.'.join([names.get(first, ''), *rest[:-1]])
        if first in names and owner in humble_rclpy.HUMBLE:  # rclpy.init, Node.create_timer
            if not humble_rclpy.is_known(owner, node.attr) and not node.attr.startswith('_'):
                yield f'{node.lineno}: {ast.unparse(node)}'
        elif node.attr in added:  # of an object of one of rclpy's classes, perhaps
            yield f'{node.lineno}: {ast.unparse(node)}'


def test_nothing_is_used_that_humble_lacks() -> None:
    used = {
        str(path.relative_to(PACKAGE)): list(not_in_humble(ast.parse(path.read_text())))
        for path in PACKAGE.rglob('*.py')
    }
    assert 'ros/node.py' in used
    assert {path: found for path, found in used.items() if found} == {}


@pytest.mark.parametrize(
    'line',
    [
        'import rclpy.event_handler',
        'from rclpy.event_handler import SubscriptionEventCallbacks',
        'from rclpy.parameter import parameter_dict_from_yaml_file',
        'from rclpy.qos import qos_profile_best_available as profile',
        'from rclpy.qos import ReliabilityPolicy as R; R.BEST_AVAILABLE',
        'import rclpy; rclpy.logging.get_logger_level("a")',
        'self.add_post_set_parameters_callback(f)',
        'self.subscription.get_publisher_count()',
        'node.wait_for_node("a", 1.0)',
    ],
)
def test_uses_of_what_humble_lacks_are_found(line: str) -> None:
    assert list(not_in_humble(ast.parse(line)))


# --- by running ---

DENIED = {
    'import rclpy.event_handler; rclpy.event_handler.SubscriptionEventCallbacks': 'AttributeError',
    'from rclpy.event_handler import SubscriptionEventCallbacks': 'ImportError',
    'from rclpy.qos import qos_profile_best_available': 'ImportError',
    'Node.add_post_set_parameters_callback': 'AttributeError',
    'Node.add_pre_set_parameters_callback': 'AttributeError',
    'Subscription.get_publisher_count': 'AttributeError',
    'with rclpy.Context() as context: pass': 'AttributeError',
    'import rclpy.qos_event; rclpy.qos_event.SubscriptionEventCallbacks(incompatible_type=print)': (
        'TypeError'
    ),
    'rclpy.create_node("a", enable_logger_service=True)': 'TypeError',
    'with rclpy.init(): pass': '(AttributeError, TypeError)',
}


def test_the_stand_in_for_humble_has_nothing_that_humble_lacks() -> None:
    lines = [
        'import humble_rclpy, rclpy',
        'humble_rclpy.deny()',
        'from rclpy.node import Node',
        'from rclpy.subscription import Subscription',
    ]
    for statement, error in DENIED.items():
        lines += [
            'try:',
            f'    exec({statement!r})',
            f'    print("had: " + {statement!r})',
            f'except {error}:',
            '    print("denied")',
        ]
    ended = subprocess.run(
        [sys.executable, '-c', '\n'.join(lines)],
        text=True,
        capture_output=True,
        timeout=60,
        cwd=Path(humble_rclpy.__file__).parent,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines() == ['denied'] * len(DENIED)


def test_the_node_runs_on_humbles_rclpy() -> None:
    command = humble_command(
        ros_command('dual_vlm_node', rate_hz=1, tasks=['single_object'], **PARAMETERS)
    )
    with RosProcess(command) as process, ros_node() as node:
        probe = Probe(node, process, '/dual_vlm', '/dual_vlm/input/image')
        probe.wait_for_state('ready', 'no_frames')
        header = probe.ask()
        assert len(probe.results_of(header, 'output/skip/result')) == 1
        assert probe.set_parameter('rate_hz', 2.0).successful
        assert not probe.set_parameter('rate_hz', -2.0).successful
        probe.wait(lambda: float(probe.health()['rate_hz']) == 2.0, 'the new rate')
        probe.ask(offset_s=0.5)
        assert probe.enable(False).success and probe.enable(True).success
        assert process.stop(signal.SIGINT) == 0
        assert 'Traceback' not in process.output()


def test_the_player_runs_on_humbles_rclpy(tmp_path: Path) -> None:
    import cv2
    import numpy as np

    cv2.imwrite(str(tmp_path / 'a.png'), np.zeros((48, 64, 3), np.uint8))
    command = humble_command(ros_command('image_player', source=tmp_path, count=2, rate_hz=20.0))
    with RosProcess(command) as process:
        assert process.wait() == 0, process.output()
        assert 'published 2 frames' in process.output()


def test_the_profile_keeps_to_this_machine_on_humble(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = {'ROS_LOCALHOST_ONLY', 'ROS_AUTOMATIC_DISCOVERY_RANGE'}
    for distribution, kept in (
        ('humble', {'ROS_LOCALHOST_ONLY': '1'}),
        ('jazzy', {'ROS_AUTOMATIC_DISCOVERY_RANGE': 'LOCALHOST'}),
        ('', {'ROS_AUTOMATIC_DISCOVERY_RANGE': 'LOCALHOST'}),  # the wheels
    ):
        monkeypatch.setenv('ROS_DISTRO', distribution)
        environment = fastdds_environment()
        assert {k: v for k, v in environment.items() if k in names} == kept
        assert Path(environment['FASTRTPS_DEFAULT_PROFILES_FILE']).is_file()
