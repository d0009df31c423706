"""The launch file: its arguments, and what it hands to the node; with stand-ins for `launch`."""

from __future__ import annotations

import runpy
import sys
import types
from pathlib import Path
from typing import Any

import pytest

LAUNCH_FILE = Path(__file__).resolve().parents[2] / 'launch/dual_vlm.launch.py'
ARGUMENTS = {
    'input_image', 'param_file', 'namespace', 'model', 'device', 'image_transport', 'use_sim_time',
}  # fmt: skip


class Recorded:
    """Keeps what it was made with."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.args, self.kwargs = args, kwargs


class LaunchConfiguration(Recorded):
    def perform(self, context: dict[str, str]) -> str:
        return context[self.args[0]]


def stand_in(name: str, **members: Any) -> types.ModuleType:
    module = types.ModuleType(name)
    module.__dict__.update(members)
    return module


@pytest.fixture
def description(monkeypatch: pytest.MonkeyPatch) -> Recorded:
    kinds = {
        name: type(name, (Recorded,), {})
        for name in ('LaunchDescription', 'DeclareLaunchArgument', 'OpaqueFunction', 'Node',
                     'PathJoinSubstitution', 'FindPackageShare', 'ParameterValue')
    }  # fmt: skip
    modules = {
        'launch': ['LaunchDescription'],
        'launch.actions': ['DeclareLaunchArgument', 'OpaqueFunction'],
        'launch.substitutions': ['PathJoinSubstitution'],
        'launch_ros': [],
        'launch_ros.actions': ['Node'],
        'launch_ros.parameter_descriptions': ['ParameterValue'],
        'launch_ros.substitutions': ['FindPackageShare'],
    }
    for name, members in modules.items():
        module = stand_in(name, **{member: kinds[member] for member in members})
        if name == 'launch.substitutions':
            module.__dict__['LaunchConfiguration'] = LaunchConfiguration
        monkeypatch.setitem(sys.modules, name, module)
    return runpy.run_path(str(LAUNCH_FILE))['generate_launch_description']()


def entities(description: Recorded, kind: str) -> list[Recorded]:
    return [entity for entity in description.args[0] if type(entity).__name__ == kind]


def launched_node(description: Recorded, **given: str) -> dict[str, Any]:
    """Return what the Node action is made with when the launch file is given these arguments."""
    context = {
        argument.args[0]: argument.kwargs['default_value']
        for argument in entities(description, 'DeclareLaunchArgument')
    }
    (opaque,) = entities(description, 'OpaqueFunction')
    (node,) = opaque.kwargs['function']({**context, **given})
    return node.kwargs


def test_arguments(description: Recorded) -> None:
    arguments = entities(description, 'DeclareLaunchArgument')
    assert {argument.args[0] for argument in arguments} == ARGUMENTS
    assert all(argument.kwargs['description'] for argument in arguments)


def test_by_default_the_parameter_file_decides(description: Recorded) -> None:
    node = launched_node(description)
    assert node['executable'] == 'dual_vlm_node' and node['package'] == 'gmskip_ros'
    assert node['name'] == 'dual_vlm'
    (param_file,) = node['parameters']
    share, *path = param_file.args[0]
    assert share.args == ('gmskip_ros',)
    assert LAUNCH_FILE.parents[1].joinpath(*path).is_file()


def test_arguments_override_the_parameter_file(description: Recorded) -> None:
    node = launched_node(
        description, param_file='/my.param.yaml', model='7b', use_sim_time='true', namespace='front'
    )
    param_file, *overrides = node['parameters']
    assert param_file == '/my.param.yaml'
    values = {name: value for override in overrides for name, value in override.items()}
    assert set(values) == {'model', 'use_sim_time'}
    # Substitutions, not their texts: launch_ros converts only those to the type.
    for name, value_type in (('model', str), ('use_sim_time', bool)):
        (substitution,) = values[name].args
        assert isinstance(substitution, LaunchConfiguration) and substitution.args == (name,)
        assert values[name].kwargs == {'value_type': value_type}
    assert node['namespace'] == 'front'


@pytest.mark.parametrize('transport', ['raw', 'compressed'])
def test_the_camera_is_remapped_by_its_base_name(description: Recorded, transport: str) -> None:
    # The node itself adds /compressed to the remapped name: see test_node.py.
    node = launched_node(description, input_image='/cam/image_raw', image_transport=transport)
    assert node['remappings'] == [('~/input/image', '/cam/image_raw')]


def test_with_the_real_launch() -> None:
    pytest.importorskip('launch_ros', reason='the package index has no wheel of launch_ros')
    import launch

    description = runpy.run_path(str(LAUNCH_FILE))['generate_launch_description']()
    assert isinstance(description, launch.LaunchDescription)
    names = {argument.name for argument in description.get_launch_arguments()}
    assert names == ARGUMENTS
