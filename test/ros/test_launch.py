"""The launch files: their arguments, and what they pass to the node.

Tested with stand-ins for `launch` and, if it can be imported, with the real one: the node's
executable is then a script that records how it was started.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import runpy
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
LAUNCH_FILE = ROOT / 'launch/dual_vlm.launch.py'
XML_FILE = ROOT / 'launch/dual_vlm.launch.xml'
INCLUDED = '$(find-pkg-share gmskip_ros)/launch/'
ARGUMENTS = {
    'input_image',
    'param_file',
    'namespace',
    'model',
    'device',
    'image_transport',
    'use_sim_time',
}


class Recorded:
    """Keeps its arguments."""

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
        for name in (
            'LaunchDescription',
            'DeclareLaunchArgument',
            'OpaqueFunction',
            'Node',
            'PathJoinSubstitution',
            'FindPackageShare',
            'ParameterValue',
        )
    }
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
    """Return the arguments of the Node action for these arguments of the launch file."""
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
    assert ROOT.joinpath(*path).is_file()


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


def test_the_xml_file_is_the_python_file() -> None:
    launch = ElementTree.parse(XML_FILE).getroot()
    (include,) = launch
    # No argument is declared or passed on: the included file sees those that are set, and a
    # second default here would override its own.
    assert (launch.tag, include.tag, list(include)) == ('launch', 'include', [])
    assert include.attrib == {'file': INCLUDED + LAUNCH_FILE.name}


# --- with the real launch ---

# The node's executable: records its arguments and the parameter files' contents (launch removes
# some of the files when it ends).
RECORDER = """#!/usr/bin/env python3
import json, os, sys
arguments = sys.argv[1:]
files = [open(b).read() for a, b in zip(arguments, arguments[1:]) if a == '--params-file']
json.dump({'arguments': arguments, 'files': files}, open(os.environ['RECORD'], 'w'))
"""
# As `ros2 launch` does.
LAUNCH = """
import sys
from launch import LaunchDescription, LaunchService
from launch.actions import IncludeLaunchDescription
from launch.launch_description_sources import AnyLaunchDescriptionSource

path, *arguments = sys.argv[1:]
included = IncludeLaunchDescription(
    AnyLaunchDescriptionSource(path), launch_arguments=[a.split(':=', 1) for a in arguments]
)
service = LaunchService(noninteractive=True)
service.include_launch_description(LaunchDescription([included]))
sys.exit(service.run())
"""


def entry_after(arguments: list[str], flag: str) -> list[str]:
    return [b for a, b in itertools.pairwise(arguments) if a == flag]


class Launched:
    """How the node was started."""

    def __init__(self, arguments: list[str], files: list[str]) -> None:
        remaps = [rule.split(':=') for rule in entry_after(arguments, '-r')]
        self.remaps = {old: new for old, new in remaps}
        self.param_files = entry_after(arguments, '--params-file')
        self.parameters: dict[str, Any] = {}  # of the later files, over those of the first
        for text in files[1:]:
            for node in yaml.safe_load(text).values():
                self.parameters.update(node['ros__parameters'])
        self.file = yaml.safe_load(files[0])


@pytest.fixture
def launch_it(tmp_path: Path) -> Callable[..., Launched]:
    """Return a function that runs a launch file with arguments `name:=value`."""
    pytest.importorskip('launch', reason='the package index has no wheel of launch')
    pytest.importorskip('launch_ros', reason='the package index has no wheel of launch_ros')
    prefix = tmp_path / 'prefix'
    index = prefix / 'share/ament_index/resource_index/packages'
    for folder in (index, prefix / 'share/gmskip_ros', prefix / 'lib/gmskip_ros'):
        folder.mkdir(parents=True)
    (index / 'gmskip_ros').touch()
    for folder_name in ('launch', 'config'):
        (prefix / 'share/gmskip_ros' / folder_name).symlink_to(ROOT / folder_name)
    node = prefix / 'lib/gmskip_ros/dual_vlm_node'
    node.write_text(RECORDER)
    node.chmod(0o755)
    record = tmp_path / 'record.json'
    prefixes = [str(prefix), os.environ.get('AMENT_PREFIX_PATH') or sys.prefix]
    env = {
        **os.environ,
        'AMENT_PREFIX_PATH': os.pathsep.join(prefixes),
        'RECORD': str(record),
        'ROS_LOG_DIR': str(tmp_path / 'log'),
    }

    def launch(path: Path, *arguments: str) -> Launched:
        command = [sys.executable, '-c', LAUNCH, str(path), *arguments]
        ended = subprocess.run(
            command,
            env=env,
            text=True,
            timeout=60,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert ended.returncode == 0 and record.is_file(), ended.stdout
        return Launched(**json.loads(record.read_text()))

    return launch


@pytest.mark.parametrize('path', [LAUNCH_FILE, XML_FILE], ids=lambda path: path.suffix)
def test_the_real_launch_without_arguments(launch_it: Callable[..., Launched], path: Path) -> None:
    node = launch_it(path)
    assert node.remaps['__node'] == 'dual_vlm' and node.remaps.get('__ns', '/') == '/'
    assert node.remaps['~/input/image'] == '/sensing/camera/camera0/image_rect_color'
    assert node.file == yaml.safe_load((ROOT / 'config/dual_vlm.param.yaml').read_text())
    assert node.parameters == {}


@pytest.mark.parametrize('path', [LAUNCH_FILE, XML_FILE], ids=lambda path: path.suffix)
def test_the_real_launch_with_every_argument(
    launch_it: Callable[..., Launched], path: Path, tmp_path: Path
) -> None:
    param_file = tmp_path / 'my.param.yaml'
    param_file.write_text('/**: {ros__parameters: {rate_hz: 2.0}}')
    given = {
        'input_image': '/cam/image_raw',
        'param_file': param_file,
        'namespace': 'front',
        'model': 'on',
        'device': 'cuda:1',
        'image_transport': 'compressed',
        'use_sim_time': 'true',
    }
    assert set(given) == ARGUMENTS
    node = launch_it(path, *(f'{name}:={value}' for name, value in given.items()))
    assert node.remaps == {
        '__node': 'dual_vlm',
        '__ns': '/front',
        '~/input/image': '/cam/image_raw',
    }
    assert node.param_files[0] == str(param_file)
    assert node.parameters == {
        'model': 'on',
        'device': 'cuda:1',
        'image_transport': 'compressed',
        'use_sim_time': True,
    }


def documented_snippets() -> list[ElementTree.Element]:
    """Return the launch files in XML that docs/vehicle.md shows."""
    blocks = re.findall(r'^```xml\n(.*?)^```', (ROOT / 'docs/vehicle.md').read_text(), re.M | re.S)
    snippets = [ElementTree.fromstring(block) for block in blocks if INCLUDED in block]
    assert snippets
    return snippets


def test_the_documented_launch_snippet_names_what_there_is() -> None:
    for snippet in documented_snippets():
        includes = [e for e in snippet.iter('include') if INCLUDED in e.attrib['file']]
        for include in includes:
            assert (ROOT / 'launch' / include.attrib['file'].removeprefix(INCLUDED)).is_file()
            assert {argument.attrib['name'] for argument in include.iter('arg')} <= ARGUMENTS


def test_the_documented_launch_snippet_in_the_real_launch(
    launch_it: Callable[..., Launched], tmp_path: Path
) -> None:
    for snippet in documented_snippets():
        launch = ElementTree.Element('launch')
        launch.append(snippet)
        (include,) = snippet.iter('include')
        given = {e.attrib['name']: e.attrib['value'] for e in include.iter('arg')}
        # Paths of packages that exist only on a vehicle.
        param_file = ROOT / 'config/dual_vlm.param.yaml'
        for argument in include.iter('arg'):
            if argument.attrib['name'] == 'param_file':
                argument.set('value', str(param_file))
        path = tmp_path / 'autoware.launch.xml'
        ElementTree.ElementTree(launch).write(path)
        node = launch_it(path, 'use_sim_time:=true')
        (pushed,) = (e.attrib['namespace'] for e in snippet.iter('push-ros-namespace'))
        assert node.remaps['__ns'] == f'/{pushed}'
        assert node.remaps['~/input/image'] == given['input_image']
        assert node.param_files[0] == str(param_file)
        assert node.parameters['use_sim_time'] is True
