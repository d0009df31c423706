"""The package in a colcon workspace: it builds, installs its files, and they run."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import setuptools
from ament_index_python.packages import get_package_share_directory
from diagnostic_msgs.msg import DiagnosticArray
from ros_process import RosProcess, ros_env, ros_node, wait_until

pytest.importorskip('colcon_core', reason='no colcon: pip install colcon-common-extensions')

ROOT = Path(__file__).resolve().parents[1]
EXECUTABLES = ('dual_vlm_node', 'gmskip', 'image_player')
SHARED_FOLDERS = ('launch', 'config', 'schema')
NOT_SOURCE = ('.*', 'build', 'install', 'log', 'dist', 'out', '__pycache__', '*.egg-info')
# Makes the workspace's copy of the package print where it is when it is imported.
TELL = "\nimport sys\nprint('gmskip_ros runs from', __file__, file=sys.stderr, flush=True)\n"


@dataclass(frozen=True)
class Install:
    """One built workspace: the package's prefix, and the environment after `. setup.sh`."""

    prefix: Path
    env: dict[str, str]

    @property
    def share(self) -> Path:
        return self.prefix / 'share/gmskip_ros'

    def executable(self, name: str) -> Path:
        return self.prefix / 'lib/gmskip_ros' / name

    def run(self, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.executable(name), *arguments],
            env=self.env,
            cwd=self.prefix,
            text=True,
            capture_output=True,
            timeout=120,
        )


def copy_source(target: Path) -> None:
    """Copy what belongs to the repository, whether it is a clone or an unpacked archive."""
    if not ((ROOT / '.git').exists() and shutil.which('git')):
        shutil.copytree(ROOT, target, ignore=shutil.ignore_patterns(*NOT_SOURCE))
        return
    command = ['git', 'ls-files', '-z', '--cached', '--others', '--exclude-standard']
    listed = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, check=True)
    for name in filter(None, listed.stdout.split('\0')):
        if (ROOT / name).is_file():  # not deleted since
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)


def build(workspace: Path, *options: str) -> Install:
    """Copy the sources into a new workspace and build them there with this Python."""
    source = workspace / 'src/gmskip_ros'
    copy_source(source)
    init_file = source / 'gmskip_ros/__init__.py'
    init_file.write_text(init_file.read_text() + TELL)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get('PATH', os.defpath)])
    env = {**os.environ, 'PATH': path, 'COLCON_HOME': str(workspace / 'colcon_home')}
    for name in ('PYTHONPATH', 'AMENT_PREFIX_PATH', 'COLCON_PREFIX_PATH'):
        env.pop(name, None)
    command = [sys.executable, '-m', 'colcon', 'build', '--packages-select', 'gmskip_ros', *options]
    built = subprocess.run(
        command,
        cwd=workspace,
        env=env,
        text=True,
        timeout=240,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert built.returncode == 0, built.stdout
    command = ['sh', '-c', '. install/setup.sh && env -0']
    sourced = subprocess.run(
        command, cwd=workspace, env=env, text=True, capture_output=True, check=True
    )
    variables = dict(line.split('=', 1) for line in sourced.stdout.split('\0') if line)
    return Install(workspace / 'install/gmskip_ros', variables)


@pytest.fixture(scope='module')
def install(tmp_path_factory: pytest.TempPathFactory) -> Install:
    return build(tmp_path_factory.mktemp('workspace'))


@pytest.fixture
def package_folder(install: Install) -> Path:
    (folder,) = install.prefix.glob('lib/python3*/site-packages/gmskip_ros')
    return folder


@pytest.mark.parametrize('name', EXECUTABLES)
def test_executables_take_the_python_of_the_environment_in_use(install: Install, name: str) -> None:
    executable = install.executable(name)
    assert os.access(executable, os.X_OK)
    # Not the one that ran colcon: on a vehicle that is /usr/bin/python3, which has no torch.
    assert executable.read_text().splitlines()[0] == '#!/usr/bin/env python3'


def test_what_is_shared(install: Install) -> None:
    assert {path.name for path in install.executable('gmskip').parent.iterdir()} == set(EXECUTABLES)
    assert (install.share / 'package.xml').read_bytes() == (ROOT / 'package.xml').read_bytes()
    for folder in SHARED_FOLDERS:
        wanted = {p.name: p.read_bytes() for p in (ROOT / folder).iterdir() if p.is_file()}
        assert wanted
        assert {p.name: p.read_bytes() for p in (install.share / folder).iterdir()} == wanted
    assert (install.share / 'launch/dual_vlm.launch.py').is_file()
    assert (install.share / 'launch/dual_vlm.launch.xml').is_file()


def test_the_ament_index_knows_the_package(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (install.prefix / 'share/ament_index/resource_index/packages/gmskip_ros').is_file()
    monkeypatch.setenv('AMENT_PREFIX_PATH', install.env['AMENT_PREFIX_PATH'])
    assert Path(get_package_share_directory('gmskip_ros')) == install.share


def test_the_package_and_its_data_are_complete(package_folder: Path) -> None:
    def files(folder: Path) -> set[str]:
        return {
            str(path.relative_to(folder))
            for path in folder.rglob('*')
            if path.is_file() and path.suffix != '.pyc'
        }

    installed = files(package_folder)
    assert installed == files(ROOT / 'gmskip_ros')
    assert {
        'py.typed',
        'assets/fastdds_profile.xml',
        'assets/demo/model.safetensors',
        'assets/report/replay.html',
        'assets/skip_lists/gmskip_captioning.skip.yaml',
    } <= installed


def test_the_installed_commands_run(install: Install, package_folder: Path) -> None:
    told = f'gmskip_ros runs from {package_folder / "__init__.py"}'
    for name, argument, printed in (
        ('gmskip', '--version', 'gmskip 0.'),
        ('image_player', '--help', 'usage: image_player'),
    ):
        ended = install.run(name, argument)
        assert ended.returncode == 0, ended.stderr
        assert ended.stdout.startswith(printed) and told in ended.stderr


@pytest.fixture
def installed_node(install: Install, package_folder: Path) -> Iterator[RosProcess]:
    """The installed node with the installed parameter file, as the launch file starts it."""
    profile = package_folder / 'assets/fastdds_profile.xml'
    env = ros_env(**{**install.env, 'FASTRTPS_DEFAULT_PROFILES_FILE': str(profile)})
    command = [
        str(install.executable('dual_vlm_node')),
        '--ros-args',
        '-r',
        '__node:=dual_vlm',
        '--params-file',
        str(install.share / 'config/dual_vlm.param.yaml'),
    ]
    with RosProcess(command, env) as process:
        yield process


def test_the_installed_node_runs(installed_node: RosProcess, package_folder: Path) -> None:
    reports: list[DiagnosticArray] = []

    def is_loaded() -> bool:
        values = reports[-1].status[0].values if reports else []
        return {v.key: v.value for v in values}.get('state') in ('ready', 'no_frames')

    with ros_node() as node:
        node.create_subscription(DiagnosticArray, '/diagnostics', reports.append, 10)
        wait_until(
            is_loaded,
            node,
            what='the loaded model',
            process=installed_node,
        )
    assert installed_node.stop(signal.SIGINT) == 0
    assert f'gmskip_ros runs from {package_folder / "__init__.py"}' in installed_node.output()


def test_symlink_install(tmp_path: Path) -> None:
    if int(setuptools.__version__.split('.')[0]) >= 80:
        pytest.skip(
            f'setuptools {setuptools.__version__} has no `develop --editable`: '
            'colcon build --symlink-install wants setuptools < 80'
        )
    install = build(tmp_path, '--symlink-install')
    source = tmp_path / 'src/gmskip_ros'
    for folder in SHARED_FOLDERS:
        for path in (install.share / folder).iterdir():
            assert path.resolve() == source / folder / path.name
    # [build_scripts] does not hold here: it is the Python that ran colcon.
    first_line = install.executable('gmskip').read_text().splitlines()[0]
    assert Path(first_line.removeprefix('#!')).parent.samefile(Path(sys.executable).parent)
    ended = install.run('gmskip', '--version')
    assert ended.returncode == 0, ended.stderr
    (told,) = (line for line in ended.stderr.splitlines() if 'gmskip_ros runs from' in line)
    assert Path(told.split()[-1]).resolve() == source / 'gmskip_ros/__init__.py'
