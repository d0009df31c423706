"""The doctor runs on this machine, and every WARN and FAIL comes from its real cause."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tempfile
import time
import venv
from dataclasses import replace
from pathlib import Path

import pytest
from ros_process import ros_env
from tiny_models import make_tiny_model

from gmskip_ros.cli import doctor
from gmskip_ros.cli.main import build_parser, main
from gmskip_ros.doctor import examination, model_checks, ros_checks
from gmskip_ros.doctor import setup as doctor_setup
from gmskip_ros.doctor.processes import REPORT_VARIABLE, Trial, run_program
from gmskip_ros.doctor.setup import TOO_SLOW, Finding, Setup, ok
from gmskip_ros.doctor.trials import find_trial
from gmskip_ros.pipeline.settings import settings_from
from gmskip_ros.vlm.memory import Sharing, memory_need

ROOT = Path(__file__).parents[2]
NAMES = [
    'parameters',
    'python',
    'rclpy',
    'cv_bridge',
    'dds',
    'executables',
    'engine',
    'gpu',
    'model',
    'view',
    'memory',
    'skip_lists',
]


def make_setup(width: int = 64, height: int = 48, timeout_s: float = 60.0, **values) -> Setup:
    """Return a Setup; skip_list__captioning sets the parameter skip_list.captioning."""
    settings = settings_from({name.replace('__', '.'): value for name, value in values.items()})
    return Setup(settings, width, height, timeout_s=timeout_s)


def with_trials(setup: Setup, **trials: Trial) -> Setup:
    """Replace the trials that would run here by these results."""
    setup.__dict__.update(trials)
    return setup


def expect(finding: Finding, level: str, *texts: str, remedy: str = '') -> None:
    assert finding.level == level, finding
    for text in texts:
        assert text in finding.message, finding
    assert remedy in finding.remedy, finding
    assert bool(finding.remedy) == (level != 'OK'), finding
    assert '\n' not in finding.message + finding.remedy


@pytest.fixture
def stub(tmp_path, monkeypatch):
    """Hide real packages behind packages of one file, for child processes."""

    def make(**packages: str) -> None:
        for name, program in packages.items():
            folder = tmp_path / 'stubs' / name
            folder.mkdir(parents=True, exist_ok=True)
            (folder / '__init__.py').write_text(program)
        monkeypatch.setenv('PYTHONPATH', str(tmp_path / 'stubs'))

    return make


@pytest.fixture
def domain(monkeypatch) -> None:
    """Use a separate ROS domain and not our DDS profile."""
    monkeypatch.setenv('ROS_DOMAIN_ID', ros_env()['ROS_DOMAIN_ID'])
    for name in ('FASTRTPS_DEFAULT_PROFILES_FILE', 'RMW_IMPLEMENTATION', 'ROS_DISTRO'):
        monkeypatch.delenv(name, raising=False)


# --- the command ---


def test_this_machine_is_examined() -> None:
    result = subprocess.run(
        [sys.executable, '-m', 'gmskip_ros.cli.main', 'doctor', '--json', '--frame-size', '64x48'],
        env=ros_env(),
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert result.stderr == ''
    found = json.loads(result.stdout)
    checks = {check['name']: check for check in found['checks']}
    assert list(checks) == NAMES
    levels = {check['level'] for check in found['checks']}
    assert found['level'] == ('WARN' if 'WARN' in levels else 'OK')
    assert result.returncode == {'OK': 0, 'WARN': 1}[found['level']]
    for check in found['checks']:
        expect(Finding(check['level'], check['message'], check['remedy']), check['level'])
    for name in ('parameters', 'rclpy', 'cv_bridge', 'executables', 'model', 'skip_lists'):
        assert checks[name]['level'] == 'OK'
    assert 'of 20 raw 64x48 frames' in checks['dds']['message']
    assert '20 of 32 blocks' in checks['skip_lists']['message']


def some_checks(*findings: Finding | Exception):
    def make(finding):
        def check(setup: Setup) -> Finding:
            if isinstance(finding, Exception):
                raise finding
            return finding

        return check

    return lambda setup: [(f'check{i}', make(finding)) for i, finding in enumerate(findings)]


@pytest.mark.parametrize(
    ('findings', 'status', 'verdict'),
    [
        ([ok('fine')], 0, 'This machine can run the node.'),
        ([ok('fine'), Finding('WARN', 'w', 'do')], 1, 'with warnings: check1.'),
        ([Finding('FAIL', 'f', 'do'), Finding('WARN', 'w', 'do')], 2, 'run the node: check0.'),
        ([ValueError('two\nlines'), ok('the next one')], 2, 'cannot run the node: check0.'),
    ],
    ids=['ok', 'warnings', 'failures', 'a check that breaks'],
)
def test_one_line_a_check_and_a_status(findings, status, verdict, monkeypatch, capsys) -> None:
    monkeypatch.setattr(examination, 'checks_of', some_checks(*findings))
    assert main(['doctor']) == status
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert len(lines) == len(findings) + 2 and printed.err == ''
    assert lines[0].startswith('OK    parameters   model demo')
    assert lines[-1].endswith(verdict)
    for line, finding in zip(lines[1:], findings, strict=False):
        if isinstance(finding, Finding):
            assert line.split()[0] == finding.level
            assert line.endswith('-> do') == (finding.level != 'OK')
        else:
            assert line.startswith('FAIL') and 'ValueError: two lines' in line


def test_a_terminal_shows_the_running_check() -> None:
    terminal, pipe = io.StringIO(), io.StringIO()
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    for stream in (terminal, pipe):
        progress = doctor._Progress(stream)
        progress('dds')
        progress('')
    assert 'checking dds' in terminal.getvalue() and terminal.getvalue().endswith('\x1b[K')
    assert pipe.getvalue() == ''
    assert '\x1b[33mWARN' in doctor.as_line(examination.Check('gpu', 'WARN', 'w', 'do'), True)


def test_without_ros_nothing_of_it_is_checked() -> None:
    args = build_parser().parse_args(['doctor', '--no-ros'])
    setup, problems = doctor.make_setup(args)
    assert problems == []
    names = [name for name, _ in examination.checks_of(setup)]
    assert names == ['python', 'engine', 'gpu', 'model', 'view', 'memory', 'skip_lists']
    expect(ros_checks.check_python(setup), 'OK')
    assert 'rclpy' not in setup.__dict__  # not even tried


def test_options_override_the_parameter_file(tmp_path) -> None:
    path = tmp_path / 'node.yaml'
    path.write_text(
        '/**:\n  ros__parameters:\n    model: /models/a\n    image_transport: compressed\n'
        '    skip_list: {captioning: gmskip_captioning}\n    max_new_tokens.captioning: 99\n'
    )
    args = build_parser().parse_args(
        [
            'doctor',
            '--params-file',
            str(path),
            '--model',
            '/models/b',
            '--reliability',
            'reliable',
            '--skip-list',
            'multi_object=mine.yaml',
            '--frame-size',
            '640x480',
            '--dtype',
            'float16',
            '--quantization',
            'int8',
        ]
    )
    setup, problems = doctor.make_setup(args)
    assert problems == [] and (setup.width, setup.height) == (640, 480)
    settings = setup.settings
    assert (settings.model, settings.dtype) == ('/models/b', 'float16')
    assert settings.quantization == 'int8'
    assert (settings.image_transport, settings.input_reliability) == ('compressed', 'reliable')
    assert settings.skip_list == {
        'single_object': 'auto',
        'multi_object': 'mine.yaml',
        'captioning': 'gmskip_captioning',
        'question': 'auto',
    }
    assert settings.max_new_tokens['captioning'] == 99


def test_parameters_that_the_node_refuses_are_named(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(examination, 'checks_of', some_checks(ok('fine')))
    path = tmp_path / 'node.yaml'
    path.write_text('/**:\n  ros__parameters:\n    rate_hz: fast\n')
    assert main(['doctor', '--params-file', str(path), '--device', 'tpu']) == 2
    line = capsys.readouterr().out.splitlines()[0]
    assert line.startswith('FAIL  parameters')
    assert "rate_hz: 'fast'" in line and "device: 'tpu'" in line
    assert main(['doctor', '--params-file', str(tmp_path / 'gone')]) == 2
    assert 'cannot be read' in capsys.readouterr().out


@pytest.mark.parametrize(
    'options',
    [
        ['--frame-size', '1920'],
        ['--frame-size', '0x1'],
        ['--frame-size', '1x99999'],
        ['--skip-list', 'mine.yaml'],
        ['--skip-list', 'all=mine.yaml'],
        ['--timeout-sec', '0'],
    ],
    ids=' '.join,
)
def test_invalid_options(options, capsys) -> None:
    with pytest.raises(SystemExit) as caught:
        main(['doctor', *options])
    assert caught.value.code == 2
    assert options[1] in capsys.readouterr().err


# --- processes ---


def program(text: str) -> list[str]:
    return [sys.executable, '-c', f'import os\nreport = os.environ["{REPORT_VARIABLE}"]\n' + text]


def test_a_trial_keeps_what_it_reported_before_it_crashed() -> None:
    report_and_abort = 'open(report, "w").write(\'{"a": 1}\\n{"b\')\nos.abort()'
    trial = run_program(program(report_and_abort), 60)
    assert (trial['a'], trial['b']) == (1, None)
    assert trial.problem == 'crashed with SIGABRT'


def test_a_trial_that_hangs_is_stopped_with_its_children(tmp_path) -> None:
    pid_file = tmp_path / 'pid'
    hanging = (
        'import subprocess, time\n'
        f'child = subprocess.Popen(["sleep", "1000"])\nopen({str(pid_file)!r}, "w")'
        '.write(str(child.pid))\nprint("waits for ever", flush=True)\ntime.sleep(1000)'
    )
    trial = run_program(program(hanging), 1)
    assert trial.problem == 'not finished within 1 s (waits for ever)'
    state = Path('/proc') / pid_file.read_text() / 'stat'
    deadline = time.monotonic() + 60
    while state.exists() and ') Z' not in state.read_text():  # or still a zombie
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_the_remedy_for_a_timeout_is_more_time(workspace, domain) -> None:
    late = Trial({}, 'not finished within 1 s', timed_out=True)
    impatient = replace(workspace('#!/bin/sh\nexec sleep 60'), timeout_s=1e-3)
    setup = with_trials(impatient, rclpy=late, cv_bridge=late, torch=late)
    in_time = {'torch': '2.9', 'transformers': '5.12', 'gpus': ['A'], 'gpu': 0}
    reached = with_trials(
        make_setup(),
        rclpy=Trial({'loaded': True, 'missing': {}}, ''),
        dds=late,
        torch=Trial(in_time, late.problem, timed_out=True),
        model=late,
    )
    for check, examined in (
        (ros_checks.check_rclpy, setup),
        (ros_checks.check_cv_bridge, setup),
        (ros_checks.check_executables, setup),
        (model_checks.check_engine, setup),
        (ros_checks.check_dds, reached),
        (model_checks.check_gpu, reached),
        (model_checks.check_model, reached),
    ):
        finding = check(examined)
        expect(finding, 'FAIL', 'not finished within')
        assert finding.remedy == TOO_SLOW, finding


def test_a_terminated_doctor_stops_its_trials(tmp_path, stub) -> None:
    pid_file, temporary = tmp_path / 'pid', tmp_path / 'temporary'
    temporary.mkdir()
    stub(
        torch=f'import os, time\nopen({str(pid_file)!r} + "_", "w").write(str(os.getpid()))\n'
        f'os.rename({str(pid_file)!r} + "_", {str(pid_file)!r})\ntime.sleep(1000)'
    )
    process = subprocess.Popen(
        [sys.executable, '-m', 'gmskip_ros.cli.main', 'doctor', '--no-ros'],
        env={**os.environ, 'TMPDIR': str(temporary)},
        stdout=subprocess.DEVNULL,
    )
    while not pid_file.exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.terminate()
    assert process.wait(60) == 143
    assert not (Path('/proc') / pid_file.read_text()).exists()
    assert list(temporary.iterdir()) == []


def test_nothing_is_left_behind(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv('TMPDIR', str(tmp_path))
    monkeypatch.setattr(tempfile, 'tempdir', None)
    trial = run_program(program('import tempfile\ntempfile.mkdtemp()\ntempfile.mkstemp()'), 60)
    assert trial.problem == '' and list(tmp_path.iterdir()) == []


def test_a_program_that_does_not_exist() -> None:
    assert 'No such file' in run_program(['/no/such/program'], 60).problem


# --- Python and rclpy ---


def different_distribution() -> str:
    pythons = ros_checks.DISTRIBUTION_PYTHONS
    return next(name for name in pythons if pythons[name] != sys.version_info[:2])


def test_python_against_the_distribution(monkeypatch, stub) -> None:
    monkeypatch.delenv('ROS_DISTRO', raising=False)
    setup = make_setup()
    expect(ros_checks.check_python(setup), 'OK', 'rclpy was found')
    expect(ros_checks.check_rclpy(setup), 'OK', 'with the message packages')
    monkeypatch.setenv('ROS_DISTRO', different_distribution())
    expect(ros_checks.check_python(setup), 'WARN', 'is built for 3.', remedy='wheels')
    monkeypatch.setenv('ROS_DISTRO', 'rolling')
    expect(ros_checks.check_python(setup), 'WARN', 'Rolling has not been tested', remedy='Jazzy')
    mine = {'mine': sys.version_info[:2]}
    monkeypatch.setattr(ros_checks, 'DISTRIBUTION_PYTHONS', mine)
    monkeypatch.setenv('ROS_DISTRO', 'mine')
    expect(ros_checks.check_python(setup), 'OK', 'as ROS 2 Mine expects')


def test_no_rclpy_for_this_python(monkeypatch, stub) -> None:
    stub(rclpy="raise ImportError('_rclpy_pybind11.cpython-310.so: no such file')")
    setup = make_setup()
    monkeypatch.setenv('ROS_DISTRO', different_distribution())
    expect(ros_checks.check_python(setup), 'FAIL', 'is built for', remedy='--system-site-packages')
    expect(ros_checks.check_rclpy(setup), 'FAIL', 'cpython-310.so', remedy='sudo apt install ros-')
    expect(ros_checks.check_dds(setup), 'FAIL', 'rclpy check failed', remedy='first')
    monkeypatch.delenv('ROS_DISTRO')
    expect(ros_checks.check_python(setup), 'FAIL', 'ROS 2 is not set up', remedy='source /opt/ros/')
    expect(ros_checks.check_rclpy(setup), 'FAIL', remedy='source /opt/ros/')


def test_missing_message_packages_are_named(monkeypatch, stub) -> None:
    monkeypatch.setenv('ROS_DISTRO', 'humble')
    stub(std_srvs='raise ModuleNotFoundError("No module named \'std_srvs\'")')
    finding = ros_checks.check_rclpy(make_setup())
    expect(finding, 'FAIL', 'std_srvs', remedy='sudo apt install ros-humble-std-srvs')


def test_an_rclpy_that_crashes_or_hangs_is_one_line(stub, domain) -> None:
    stub(rclpy='import os; os.abort()')
    expect(ros_checks.check_rclpy(make_setup()), 'FAIL', 'SIGABRT', remedy=' ')
    stub(rclpy='import time; time.sleep(1000)')
    setup = make_setup(timeout_s=1)
    expect(ros_checks.check_rclpy(setup), 'FAIL', 'not finished within', remedy='--timeout-sec')
    expect(ros_checks.check_python(setup), 'OK', 'rclpy was found')  # Python is not at fault


# --- cv_bridge ---


def test_cv_bridge_converts_images() -> None:
    finding = ros_checks.check_cv_bridge(make_setup())
    expect(finding, 'OK', 'NumPy ', 'OpenCV ', 'cv_bridge ')


@pytest.mark.parametrize(
    ('program', 'problem'),
    [
        ('import os; os.abort()', 'SIGABRT'),
        ("raise AttributeError('_ARRAY_API not found')", '_ARRAY_API not found'),
        ("raise ImportError('numpy.core.multiarray failed to import')", 'multiarray'),
    ],
    ids=['crash', 'attribute', 'import'],
)
def test_a_cv_bridge_built_for_a_different_numpy(program, problem, stub) -> None:
    stub(numpy="__version__ = '2.1.3'", cv2="__version__ = '4.6.0'", cv_bridge=program)
    finding = ros_checks.check_cv_bridge(make_setup())
    expect(finding, 'FAIL', 'NumPy 2.1.3', 'OpenCV 4.6.0', problem, remedy='numpy<2')
    stub(numpy="__version__ = '1.26.4'")
    expect(ros_checks.check_cv_bridge(make_setup()), 'FAIL', problem, remedy='cv-bridge')


def test_a_cv_bridge_that_changes_pixels(stub) -> None:
    stub(
        cv_bridge="""
import sys
del sys.modules['cv_bridge'], sys.path[0]
import cv_bridge  # the real one
class CvBridge(cv_bridge.CvBridge):
    def imgmsg_to_cv2(self, message, encoding='passthrough'):
        return super().imgmsg_to_cv2(message, encoding)[::-1].copy()
cv_bridge.CvBridge = CvBridge
"""
    )
    finding = ros_checks.check_cv_bridge(make_setup())
    expect(finding, 'FAIL', 'pixels of a test image wrongly (rgb8 image)', remedy=' ')


def test_no_cv_bridge(stub, monkeypatch) -> None:
    monkeypatch.setenv('ROS_DISTRO', 'jazzy')
    stub(cv_bridge='raise ModuleNotFoundError("No module named \'cv_bridge\'")')
    expect(ros_checks.check_cv_bridge(make_setup()), 'FAIL', remedy='ros-jazzy-cv-bridge')
    stub(cv2='raise ModuleNotFoundError("No module named \'cv2\'")')
    expect(ros_checks.check_cv_bridge(make_setup()), 'FAIL', remedy='python3-opencv')


# --- DDS ---

PROFILE = """<dds xmlns="http://www.eprosima.com/XMLSchemas/fastRTPS_Profiles"><profiles>
<transport_descriptors><transport_descriptor><transport_id>it</transport_id>{transport}
</transport_descriptor></transport_descriptors>
<participant profile_name="it" is_default_profile="true"><rtps>
<userTransports><transport_id>it</transport_id></userTransports>
<useBuiltinTransports>false</useBuiltinTransports></rtps></participant></profiles></dds>
"""
# Room for a hundredth of a frame.
TOO_SMALL = (
    '<type>SHM</type><segment_size>65536</segment_size><maxMessageSize>16384</maxMessageSize>'
)
NO_NETWORK = (
    '<type>UDPv4</type><interfaceWhiteList><address>10.255.255.1</address></interfaceWhiteList>'
)


@pytest.fixture
def profile(tmp_path, monkeypatch, domain):
    def use(transport: str) -> None:
        path = tmp_path / 'profile.xml'
        path.write_text(PROFILE.format(transport=transport))
        monkeypatch.setenv('FASTRTPS_DEFAULT_PROFILES_FILE', str(path))

    return use


def test_frames_that_are_lost(profile) -> None:
    profile(TOO_SMALL)
    finding = ros_checks.check_dds(make_setup(1920, 1080))
    assert finding.level in ('WARN', 'FAIL')
    expect(finding, finding.level, 'of 20 raw 1920x1080 frames (6.2 MB, best_effort) arrived')
    expect(finding, finding.level, remedy='/dev/shm')
    assert 'compressed' in finding.remedy and 'reliable' in finding.remedy


def test_processes_that_do_not_hear_each_other(profile) -> None:
    profile(NO_NETWORK)
    finding = ros_checks.check_dds(make_setup(timeout_s=6))
    expect(finding, 'FAIL', 'do not hear each other', remedy='ROS_DOMAIN_ID')


def test_a_middleware_that_is_not_installed(domain, monkeypatch) -> None:
    monkeypatch.setenv('RMW_IMPLEMENTATION', 'rmw_cyclonedds_cpp')
    monkeypatch.setenv('ROS_DISTRO', 'jazzy')
    setup = make_setup()
    assert ros_checks.check_python(setup).level in ('OK', 'WARN')  # Python is not at fault
    finding = ros_checks.check_rclpy(setup)
    expect(finding, 'FAIL', 'rmw_cyclonedds_cpp', remedy='ros-jazzy-rmw-cyclonedds-cpp')
    expect(ros_checks.check_dds(setup), 'FAIL', 'rclpy check failed', remedy='first')


def test_a_domain_that_is_not_a_number(domain, monkeypatch) -> None:
    monkeypatch.setenv('ROS_DOMAIN_ID', 'mine')
    finding = ros_checks.check_dds(make_setup())
    expect(finding, 'FAIL', 'ROS_DOMAIN_ID is not an integral number', remedy='ROS_DOMAIN_ID')


ROUND_TRIP = {
    'middleware': 'rmw_fastrtps_cpp',
    'domain_id': 0,
    'frame_bytes': 6_220_800,
    'connected': True,
    'sent': 20,
    'arrived': 20,
    'damaged': 0,
    'acknowledged': 20,
    'round_trip_ms': 12.3,
}


@pytest.mark.parametrize(
    ('changes', 'level', 'message', 'remedy'),
    [
        ({}, 'OK', '20 of 20 raw', ''),
        ({'arrived': 19}, 'WARN', '19 of 20', 'FASTRTPS_DEFAULT_PROFILES_FILE='),
        ({'arrived': 0, 'acknowledged': 0, 'round_trip_ms': None}, 'FAIL', '0 of 20', 'reliable'),
        ({'arrived': 3, 'middleware': 'rmw_cyclonedds_cpp'}, 'WARN', '3 of', 'SocketReceiveBuffer'),
        ({'arrived': 3, 'middleware': 'rmw_cyclonedds_cpp'}, 'WARN', '3 of', ros_checks.SYSCTL),
        ({'arrived': 3, 'middleware': 'rmw_zenoh_cpp'}, 'WARN', '3 of', 'image_transport'),
        ({'damaged': 1, 'arrived': 19}, 'FAIL', '1 of 20', 'RMW_IMPLEMENTATION'),
        ({'acknowledged': 7}, 'WARN', '7 of their acknowledgements', 'try again'),
    ],
    ids=['all', 'some', 'none', 'cyclone', 'sysctl', 'zenoh', 'damaged', 'one way'],
)
def test_the_verdict_on_frames(domain, changes, level, message, remedy) -> None:
    setup = with_trials(
        make_setup(1920, 1080),
        rclpy=Trial({'loaded': True, 'missing': {}}, ''),
        dds=Trial({**ROUND_TRIP, **changes}, ''),
    )
    expect(ros_checks.check_dds(setup), level, message, remedy=remedy)


def test_frames_that_are_lost_with_every_remedy_in_use(domain) -> None:
    setup = with_trials(
        make_setup(image_transport='compressed', input_reliability='reliable'),
        rclpy=Trial({'loaded': True, 'missing': {}}, ''),
        dds=Trial({**ROUND_TRIP, 'arrived': 19, 'middleware': 'rmw_zenoh_cpp'}, ''),
    )
    expect(ros_checks.check_dds(setup), 'WARN', '19 of 20 compressed', remedy='smaller frames')


def test_frames_that_are_lost_with_our_profile(domain, monkeypatch) -> None:
    for name, value in ros_env().items():
        monkeypatch.setenv(name, value)
    setup = with_trials(
        make_setup(),
        rclpy=Trial({'loaded': True, 'missing': {}}, ''),
        dds=Trial({**ROUND_TRIP, 'arrived': 19}, ''),
    )
    finding = ros_checks.check_dds(setup)
    expect(finding, 'WARN', '19 of 20', remedy='/dev/shm')
    assert 'FASTRTPS_DEFAULT_PROFILES_FILE' not in finding.remedy  # it is in use already


def test_a_profile_that_does_not_exist(domain, monkeypatch) -> None:
    monkeypatch.setenv('FASTRTPS_DEFAULT_PROFILES_FILE', '/no/such/profile.xml')
    setup = with_trials(
        make_setup(), rclpy=Trial({'loaded': True, 'missing': {}}, ''), dds=Trial(ROUND_TRIP, '')
    )
    finding = ros_checks.check_dds(setup)
    expect(finding, 'WARN', '/no/such/profile.xml', remedy='FASTRTPS_DEFAULT_PROFILES_FILE')


def test_the_kernel_settings_are_those_of_the_documentation() -> None:
    pages = [ROOT / 'README.md', *(ROOT / 'docs').glob('*.md')]
    assert any(ros_checks.SYSCTL in page.read_text() for page in pages)


# --- executables ---


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    """Make an ament prefix whose two scripts start with a line; none are beside this Python."""
    alone = tmp_path / 'alone' / 'python'
    alone.parent.mkdir()
    alone.symlink_to(sys.executable)
    monkeypatch.setattr(sys, 'executable', str(alone))

    def make(first_line: str, mode: int = 0o755) -> Setup:
        folder = tmp_path / 'install' / 'lib' / 'gmskip_ros'
        folder.mkdir(parents=True, exist_ok=True)
        for name in ros_checks.EXECUTABLES:
            (folder / name).write_text(f'{first_line}\nprint("never run")\n')
            (folder / name).chmod(mode)
        monkeypatch.setenv('AMENT_PREFIX_PATH', f'/nowhere:{tmp_path / "install"}')
        return make_setup()

    return make


@pytest.fixture
def bare_python(tmp_path) -> Path:
    """A Python without torch."""
    venv.create(tmp_path / 'bare', with_pip=False, symlinks=True)
    return tmp_path / 'bare' / 'bin' / 'python3'


def test_executables_under_a_python_with_the_libraries(workspace, bare_python, stub) -> None:
    stub(torch='', transformers='', rclpy='', gmskip_ros='')
    finding = ros_checks.check_executables(workspace(f'#!{bare_python}'))
    expect(finding, 'OK', 'install/lib/gmskip_ros run under', str(bare_python))


@pytest.mark.parametrize(
    'first_line',
    [
        '#!{python}',
        '#!/usr/bin/env python3',
        # pip writes this for paths that are long or have spaces.
        "#!/bin/sh\n'''exec' \"{python}\" \"$0\" \"$@\"\n' '''",
    ],
    ids=['path', 'env', 'sh'],
)
def test_executables_under_a_python_without_torch(
    workspace, bare_python, monkeypatch, first_line
) -> None:
    monkeypatch.setenv('PATH', f'{bare_python.parent}:{os.environ["PATH"]}')
    finding = ros_checks.check_executables(workspace(first_line.format(python=bare_python)))
    expect(finding, 'FAIL', 'dual_vlm_node', str(bare_python), 'has no torch, transformers')
    assert 'docs/vehicle.md' in finding.remedy and '--symlink-install' in finding.remedy


@pytest.mark.parametrize(
    ('first_line', 'mode', 'problem'),
    [
        ('#!/no/such/python3', 0o755, 'cannot be started: No such file'),
        ('#!/bin/true', 0o755, 'does not start Python'),
        ('print(1)', 0o755, 'cannot be started: Exec format error'),
        ('#!/usr/bin/env python3', 0o644, 'cannot be started: Permission denied'),
    ],
)
def test_executables_that_cannot_run(workspace, first_line, mode, problem) -> None:
    finding = ros_checks.check_executables(workspace(first_line, mode))
    expect(finding, 'FAIL', f'dual_vlm_node {problem}', first_line, remedy='docs/vehicle.md')


def test_nothing_is_installed(workspace, monkeypatch) -> None:
    setup = workspace('')
    monkeypatch.delenv('AMENT_PREFIX_PATH')
    finding = ros_checks.check_executables(setup)
    expect(finding, 'FAIL', 'not installed: dual_vlm_node, image_player', remedy='colcon build')


def test_executables_that_ros2_run_does_not_find(workspace, bare_python, stub, monkeypatch) -> None:
    stub(torch='', transformers='', rclpy='', gmskip_ros='')
    setup = workspace('')
    for name in ros_checks.EXECUTABLES:
        script = Path(sys.executable).with_name(name)
        script.write_text(f'#!{bare_python}\n')
        script.chmod(0o755)
    monkeypatch.setenv('AMENT_PREFIX_PATH', '/opt/ros/nowhere')
    expect(ros_checks.check_executables(setup), 'WARN', 'ros2 launch', remedy='colcon build')


# --- PyTorch and the GPU ---

TORCH = """
__version__, float16 = '2.9.0+cu128', 'float16'

class version:
    cuda = {cuda!r}

class cuda:
    is_available = staticmethod(lambda: {gpus} > 0)
    device_count = staticmethod(lambda: {gpus})
    get_device_name = staticmethod(lambda index: 'NVIDIA Model ' + 'ABC'[index])
    get_device_capability = staticmethod(lambda index: (12, 0))
    mem_get_info = staticmethod(lambda device: (20 << 30, 24 << 30))

    class get_device_properties:
        is_integrated = False
        def __init__(self, device):
            pass

class Numbers:
    def __matmul__(self, other):
        {matmul}
        return self
    def __eq__(self, other):
        return self
    def all(self):
        return True

ones = lambda *size, dtype, device: Numbers()
"""


@pytest.fixture
def torch_stub(tmp_path, stub, monkeypatch):
    """A machine with this PyTorch, number of GPUs and driver version ('': no driver)."""
    monkeypatch.setenv('PATH', f'{tmp_path}:{os.environ["PATH"]}')

    def make(gpus: int = 1, cuda: str | None = '12.8', matmul: str = '', driver: str = '') -> None:
        matmul = matmul or 'pass'
        stub(
            torch=TORCH.format(gpus=gpus, cuda=cuda, matmul=matmul),
            transformers="__version__ = '5.12.1'",
        )
        smi = tmp_path / 'nvidia-smi'
        smi.write_text(f'#!/bin/sh\necho {driver}\n' if driver else '#!/bin/sh\nexit 9\n')
        smi.chmod(0o755)

    return make


def test_a_gpu_that_computes(torch_stub) -> None:
    torch_stub(gpus=2, driver='570.86.15')
    setup = make_setup(model='/some/model', device='cuda:1')
    expect(model_checks.check_gpu(setup), 'OK', 'NVIDIA Model B', '570.86.15', '12.8')
    expect(model_checks.check_engine(setup), 'OK', 'torch 2.9.0+cu128; transformers 5.12.1')
    assert setup.torch['free_bytes'] == 20 << 30


def test_a_gpu_for_which_pytorch_has_no_kernels(torch_stub) -> None:
    problem = 'CUDA error: no kernel image is available for execution on the device'
    torch_stub(matmul=f'raise RuntimeError({problem!r})', driver='570.86.15')
    finding = model_checks.check_gpu(make_setup())
    expect(finding, 'FAIL', 'no kernel image', remedy='compute capability 12.0')
    torch_stub(matmul='import os; os.abort()', driver='570.86.15')
    expect(model_checks.check_gpu(make_setup()), 'FAIL', 'SIGABRT', remedy='nvidia-smi')


@pytest.mark.parametrize(
    ('device', 'gpus', 'cuda', 'driver', 'level', 'message', 'remedy'),
    [
        ('cuda:3', 1, '12.8', '570.86', 'FAIL', "'cuda:3' does not exist", 'auto'),
        ('cuda', 0, '12.8', '', 'FAIL', 'PyTorch sees none', 'auto'),
        ('cuda', 0, None, '570.86', 'FAIL', 'without CUDA', 'pytorch.org'),
        ('auto', 0, None, '570.86', 'WARN', 'without CUDA', 'pytorch.org'),
        ('auto', 0, '12.8', '470.57', 'WARN', '470.57 is too old', '525.60'),
        ('auto', 0, '12.8', '570.86', 'WARN', 'sees no GPU', 'CUDA_VISIBLE_DEVICES'),
        ('auto', 0, None, '', 'OK', 'sufficient for the demo model', ''),
        ('cpu', 1, '12.8', '570.86', 'OK', 'sufficient for the demo model', ''),
    ],
)
def test_no_gpu(torch_stub, device, gpus, cuda, driver, level, message, remedy) -> None:
    torch_stub(gpus=gpus, cuda=cuda, driver=driver)
    expect(model_checks.check_gpu(make_setup(device=device)), level, message, remedy=remedy)


@pytest.mark.parametrize('device', ['auto', 'cpu'])
def test_a_large_model_on_the_cpu(torch_stub, device) -> None:
    torch_stub(gpus=0, cuda=None)
    finding = model_checks.check_gpu(make_setup(model='/some/model', device=device))
    expect(finding, 'WARN', 'seconds per answer', remedy='NVIDIA GPU')


def test_libraries_that_are_missing_or_old(torch_stub, stub) -> None:
    torch_stub()
    stub(transformers="__version__ = '4.57.0'")
    expect(model_checks.check_engine(make_setup()), 'WARN', 'transformers 4.57.0', remedy='pip')
    stub(transformers="raise ImportError('of no use')")
    finding = model_checks.check_engine(make_setup())
    expect(finding, 'FAIL', 'transformers', 'of no use', remedy='pip install')
    stub(torch='import os; os.abort()')
    setup = make_setup()
    expect(model_checks.check_engine(setup), 'FAIL', 'torch', 'SIGABRT', remedy='pip install')
    expect(model_checks.check_gpu(setup), 'FAIL', 'engine check failed', remedy='first')
    expect(model_checks.check_model(setup), 'FAIL', 'engine check failed', remedy='first')
    expect(model_checks.check_memory(setup), 'WARN', 'model check failed', remedy='first')


# --- the model's files, its memory, and skip lists ---


@pytest.fixture
def in_this_process(monkeypatch) -> None:
    """Run trials in this process, where the libraries are imported already."""

    def run_trial(name, arguments, timeout_s, variables=None) -> Trial:
        values: dict = {}
        for found in find_trial(name)(**json.loads(json.dumps(arguments))):
            values.update(json.loads(json.dumps(found)))
        return Trial(values, '')

    monkeypatch.setattr(doctor_setup, 'run_trial', run_trial)


@pytest.fixture
def folder(tmp_path, in_this_process) -> Path:
    return make_tiny_model(tmp_path / 'tiny', num_blocks=4)


def edit_json(path: Path, **changes) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def check_model(folder: Path | str) -> Finding:
    return model_checks.check_model(make_setup(model=str(folder), device='cpu'))


def test_a_whole_checkpoint(folder) -> None:
    setup = make_setup(model=str(folder), device='cpu')
    expect(model_checks.check_model(setup), 'OK', '4 blocks (llama)', 'float32', 'all files found')
    expect(model_checks.check_memory(setup), 'OK', 'weights 0 MiB', 'free of main memory')


def test_files_that_are_not_whole(folder) -> None:
    path = folder / 'model.safetensors'
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    expect(
        check_model(folder),
        'FAIL',
        'model.safetensors',
        'is not a complete safetensors file',
        remedy='copy',
    )
    path.unlink()
    expect(
        check_model(folder),
        'FAIL',
        'no safetensors weights',
        remedy='repeat an incomplete download',
    )


def test_missing_shards(folder) -> None:
    (folder / 'model.safetensors').rename(folder / 'model-00001-of-00002.safetensors')
    weight_map = {'a': 'model-00001-of-00002.safetensors', 'b': 'model-00002-of-00002.safetensors'}
    (folder / 'model.safetensors.index.json').write_text(json.dumps({'weight_map': weight_map}))
    finding = check_model(folder)
    expect(finding, 'FAIL', 'lacks 1 of its 2 weight files (model-00002-of-00002', remedy='copy')


def test_missing_weights(folder) -> None:
    from safetensors.torch import load_file, save_file

    path = folder / 'model.safetensors'
    weights = load_file(path)
    weights.pop(next(name for name in weights if 'layers.1.mlp.up_proj' in name))
    save_file(weights, path, metadata={'format': 'pt'})
    expect(check_model(folder), 'FAIL', 'parameters of its config.json', remedy='copy')


def test_all_problems_of_a_checkpoint_are_reported_at_once(folder) -> None:
    (folder / 'model.safetensors').write_bytes(b'')
    (folder / 'tokenizer.json').write_text('{')
    expect(check_model(folder), 'FAIL', 'model.safetensors', 'the tokenizer', remedy='copy')


def test_checkpoints_that_are_never_run(folder) -> None:
    edit_json(folder / 'config.json', auto_map={'AutoConfig': 'evil.Config'})
    expect(check_model(folder), 'FAIL', 'auto_map in config.json', remedy='without code')
    edit_json(folder / 'config.json', model_type='idefics3')
    expect(check_model(folder), 'FAIL', "'idefics3'", remedy='LLaVA-1.5')


def test_models_that_are_not_on_this_machine(tmp_path, in_this_process, monkeypatch) -> None:
    expect(check_model(tmp_path / 'gone'), 'FAIL', 'neither a folder nor a hub id', remedy='folder')
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_CACHE', str(tmp_path))
    monkeypatch.setattr('huggingface_hub.constants.ENDPOINT', 'http://127.0.0.1:9')
    finding = check_model('owner/name')
    expect(finding, 'FAIL', 'nor in the cache', remedy='hf download owner/name')


def test_a_model_that_is_too_large(folder) -> None:
    """The size is declared in the header of a sparse file."""
    shape = [1 << 20, 1 << 21]
    header = {
        name: {'dtype': 'F16', 'shape': shape, 'data_offsets': [at << 42, (at + 1) << 42]}
        for at, name in enumerate(['a', 'b'])
    }
    content = json.dumps(header).encode()
    path = folder / 'model.safetensors'
    path.write_bytes(len(content).to_bytes(8, 'little') + content)
    os.truncate(path, 8 + len(content) + (2 << 42))
    setup = make_setup(model=str(folder), device='cpu')
    finding = model_checks.check_memory(setup)
    expect(finding, 'FAIL', 'weights 16384.0 GiB', 'free of main memory', remedy='float16')


def test_memory_that_is_short(folder, tmp_path) -> None:
    (tmp_path / 'meminfo').write_text('MemTotal: 9 kB\nMemAvailable:     512000 kB\n')
    setup = make_setup(model=str(folder), device='cpu', timing='shared')
    finding = model_checks.check_memory(setup, tmp_path)
    expect(finding, 'FAIL', '0.5 GiB free of main memory', 'refuses', remedy='smaller model')
    need = memory_need(folder, 'float32', sharing=Sharing(4, 8 + 32 + 64, text_tokens=1))
    assert setup.model['need']['kv_bytes'] > need.kv_bytes  # of three tasks with both branches
    expect(model_checks.check_memory(setup, tmp_path / 'gone'), 'WARN', 'unknown', remedy='gpu')


def test_memory_of_a_quantised_model(folder, tmp_path) -> None:
    (tmp_path / 'meminfo').write_text('MemAvailable: 9 kB\n')
    weights = {}
    for quantization, advice in (('none', 'int8 or int4'), ('int8', 'quantization int4')):
        setup = make_setup(model=str(folder), device='cpu', quantization=quantization)
        expect(model_checks.check_memory(setup, tmp_path), 'FAIL', 'refuses', remedy=advice)
        weights[quantization] = setup.model['need']['weights_bytes']
        numbers = 'float32' if quantization == 'none' else 'bfloat16, int8'
        expect(model_checks.check_model(setup), 'OK', f'of weights in {numbers}, all files found')
    assert weights['int8'] < 0.5 * weights['none']


NEED = {'weights_bytes': 13 << 30, 'kv_bytes': 1 << 30, 'activation_bytes': 1 << 30}


@pytest.mark.parametrize(
    ('free_gib', 'host_gib', 'level', 'message'),
    [
        (20, 32, 'OK', '20.0 GiB free on cuda:0'),
        (17.5, 32, 'FAIL', '1 GiB must stay free (memory_headroom_gib)'),
        (14, 32, 'FAIL', '14.0 GiB free on cuda:0'),
        (20, 8, 'WARN', 'through main memory, 8.0 GiB free'),
        (None, 32, 'WARN', 'unknown'),
    ],
)
def test_memory_of_a_gpu(free_gib, host_gib, level, message, tmp_path) -> None:
    (tmp_path / 'meminfo').write_text(f'MemAvailable: {host_gib << 20} kB\n')
    need = {**NEED, 'total_bytes': 17 << 30}
    setup = with_trials(
        make_setup(model='/some/model'),
        model=Trial({'need': need, 'device': 'cuda:0', 'dtype': 'float16'}, ''),
        torch=Trial({'free_bytes': free_gib and round(free_gib * 2**30)}, ''),
    )
    remedy = '' if level == 'OK' else 'gpu' if free_gib is None else 'stop other users'
    expect(model_checks.check_memory(setup, tmp_path), level, message, remedy=remedy)


def test_skip_lists_against_the_model(folder) -> None:
    lists = {f'skip_list__{task}': f'gmskip_{task}' for task in ('single_object', 'captioning')}
    setup = make_setup(model=str(folder), device='cpu', **lists)
    finding = model_checks.check_skip_lists(setup)
    expect(finding, 'FAIL', '32 blocks', 'has 4', remedy='gmskip calibrate')
    assert 'multi_object has no skip list' in finding.message


def test_skip_lists_and_their_conditions(in_this_process) -> None:
    check = model_checks.check_skip_lists
    expect(check(make_setup(device='cpu')), 'OK', 'single_object 20 of 32 blocks')
    expect(check(make_setup(branches=['full'])), 'OK', 'no skip branch')
    changed = make_setup(device='cpu', prompt__captioning='What?', operating_point='high_sparsity')
    expect(check(changed), 'WARN', 'calibrated with prompt', remedy='calibrate')
    expect(check(make_setup(operating_point='31')), 'FAIL', 'operating_point', remedy='correct')
    unknown = make_setup(skip_list__captioning='mine', tasks=['captioning'])
    expect(check(unknown), 'FAIL', "skip_list.captioning: 'mine'", remedy='skip_list.captioning')
    lost = with_trials(make_setup(), model=Trial({}, 'crashed with SIGSEGV'))
    expect(check(lost), 'WARN', 'model check failed', remedy='first')


WITHOUT_YAML = """
import sys
class NoYaml:
    def find_spec(self, name, *_):
        if name.partition('.')[0] in ('yaml', 'numpy'):
            raise ModuleNotFoundError(f'No module named {name!r}', name=name)
sys.meta_path.insert(0, NoYaml())
from gmskip_ros.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


def test_a_missing_requirement_of_gmskip_is_one_line() -> None:
    done = subprocess.run(
        [sys.executable, '-c', WITHOUT_YAML, 'doctor'], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert done.stderr.startswith('gmskip: error: yaml is not installed for ')
    assert len(done.stderr.splitlines()) == 1 and done.stdout == ''


# --- what the model sees ---


def test_the_view_of_a_frame(folder) -> None:
    setup = make_setup(1920, 1080, model=str(folder))
    expect(
        model_checks.check_view(setup),
        'OK',
        'sees 100 % of a frame of 1920x1080 (image_fit pad): 1 tile, 4 image tokens',
        "prompt 'USER: <image>",
    )


def test_a_cropped_view_is_a_warning(folder) -> None:
    setup = make_setup(1920, 1080, model=str(folder), image_fit='checkpoint')
    finding = model_checks.check_view(setup)
    expect(finding, 'WARN', 'sees 56 % of a frame of 1920x1080', remedy='image_fit: pad')


def test_tiles_and_their_cap(tmp_path, in_this_process) -> None:
    folder = make_tiny_model(tmp_path / 'next', 'llava_next', 'mistral', 1)
    expect(model_checks.check_view(make_setup(1920, 1080, model=str(folder))), 'OK', '5 tiles')
    setup = make_setup(1920, 1080, model=str(folder), max_image_tokens=10)
    expect(model_checks.check_view(setup), 'OK', '2 tiles, 10 image tokens')


def test_settings_that_change_answers_are_named(folder) -> None:
    edit_json(folder / 'generation_config.json', repetition_penalty=1.2)
    expect(
        model_checks.check_view(make_setup(model=str(folder))),
        'WARN',
        'generation_config.json sets repetition_penalty to 1.2, which is not applied',
    )
