"""The doctor's checks of ROS 2: Python version, libraries, image transport, executables."""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

from gmskip_ros.doctor.processes import REPORT_VARIABLE, Trial, run_program
from gmskip_ros.doctor.setup import Finding, Setup, fail, failed, joined, ok, warn
from gmskip_ros.ros.dds_profile import fastdds_environment

DISTRIBUTION_PYTHONS = {'humble': (3, 10), 'jazzy': (3, 12), 'kilted': (3, 12)}
PYTHONS = ((3, 10), (3, 12))  # oldest and newest tested with this package
EXECUTABLES = ('dual_vlm_node', 'image_player')
LIBRARIES = ('torch', 'transformers', 'rclpy', 'gmskip_ros')  # required by the executables
ON_A_VEHICLE = 'see docs/vehicle.md'

PROFILE_VARIABLES = ('FASTDDS_DEFAULT_PROFILES_FILE', 'FASTRTPS_DEFAULT_PROFILES_FILE')
SYSCTL = (
    'sudo sysctl -w net.core.rmem_max=2147483647 net.ipv4.ipfrag_time=3 '
    'net.ipv4.ipfrag_high_thresh=134217728'
)

# Python imports a module of this name on startup, before it runs a script.
STARTUP_MODULE = 'sitecustomize.py'
STARTUP_PROGRAM = f"""
import json, os, sys
try:
    from importlib.util import find_spec
    missing = [name for name in {LIBRARIES!r} if find_spec(name) is None]
    with open(os.environ[{REPORT_VARIABLE!r}], 'a') as file:
        file.write(json.dumps({{'python': sys.executable, 'missing': missing}}) + '\\n')
finally:
    os._exit(0)
"""


def check_python(setup: Setup) -> Finding:
    """Compare this Python with the one that the ROS distribution was built for."""
    version = sys.version_info[:2]
    found = '{}.{}.{}'.format(*sys.version_info[:3])
    if not setup.with_ros:
        oldest, newest = PYTHONS
        if oldest <= version <= newest:
            return ok(found)
        return warn(f'{found} has not been tested with this package', 'use Python 3.10 to 3.12')
    distribution = os.environ.get('ROS_DISTRO', '')
    trial = setup.rclpy
    # A slow import and a missing middleware are not the interpreter's fault.
    fits = trial['loaded'] or trial.timed_out or _lacks_middleware(trial)
    where = trial['where'] if fits else None
    if not distribution:
        if where:
            return ok(f'{found}; ROS_DISTRO is not set, but rclpy was found: {where}')
        return fail(f'{found}; ROS 2 is not set up in this shell', _source_remedy())
    name = f'ROS 2 {distribution.capitalize()}'
    expected = DISTRIBUTION_PYTHONS.get(distribution)
    if expected == version:
        return ok(f'{found}, as {name} expects')
    if expected is None:
        message = f'{found}; {name} has not been tested with this package'
        remedy = 'use ROS 2 Humble or Jazzy'
        return warn(message, remedy) if where else fail(message, remedy)
    message = f'{found}, but {name} is built for {expected[0]}.{expected[1]}'
    if where:
        return warn(
            f'{message}; rclpy can be imported anyway: {where}',
            'check that this is the ROS you mean: wheels, or a build for this Python',
        )
    return fail(
        message,
        f'create the virtual environment with python{expected[0]}.{expected[1]} -m venv '
        f'--system-site-packages ({ON_A_VEHICLE})',
    )


def _source_remedy() -> str:
    found = sorted(Path('/opt/ros').glob('*/setup.bash'))
    if found:
        return ' or '.join(f'source {path}' for path in found)
    return (
        'install ROS 2 Humble or Jazzy and source /opt/ros/$ROS_DISTRO/setup.bash; or run '
        'make demo, which installs it as wheels'
    )


def _apt(*packages: str) -> str:
    """Return the command that installs ROS packages."""
    distribution = os.environ.get('ROS_DISTRO', '$ROS_DISTRO')
    names = ' '.join(f'ros-{distribution}-{package.replace("_", "-")}' for package in packages)
    return f'sudo apt install {names}'


def check_rclpy(setup: Setup) -> Finding:
    """Import rclpy and the message packages with their C libraries."""
    trial = setup.rclpy
    where, missing = trial['where'], trial['missing']
    if not trial['loaded']:
        message = f'rclpy cannot be imported: {trial.problem}'
        if _lacks_middleware(trial):
            return fail(message, _middleware_remedy(trial))
        if not os.environ.get('ROS_DISTRO'):
            return failed(trial, message, _source_remedy())
        return failed(
            trial,
            message,
            f'{_apt("rclpy")}, source its setup.bash, and use its own Python in a virtual '
            f'environment with --system-site-packages ({ON_A_VEHICLE})',
        )
    if trial.problem:
        return failed(trial, f'{where}: {trial.problem}', _apt('rclpy', 'diagnostic_msgs'))
    if missing:
        problems = '; '.join(f'{package}: {problem}' for package, problem in missing.items())
        return fail(
            f'rclpy works, but packages that the node needs do not: {problems}', _apt(*missing)
        )
    return ok(f'{where}, with the message packages')


def _lacks_middleware(trial: Trial) -> bool:
    """Return whether the middleware named in RMW_IMPLEMENTATION is what failed."""
    name = os.environ.get('RMW_IMPLEMENTATION', '')
    return bool(name) and name in trial.problem


def check_cv_bridge(setup: Setup) -> Finding:
    """Convert images with cv_bridge, this NumPy and this OpenCV, and compare the pixels."""
    trial = setup.cv_bridge
    names = {'numpy': 'NumPy', 'opencv': 'OpenCV', 'cv_bridge': 'cv_bridge'}
    versions = ', '.join(f'{names[key]} {trial[key]}' for key in names if trial[key])
    if not trial.problem:
        return ok(f'{versions}: colour, grey and Bayer images are converted correctly')
    message = f'{versions}: {trial.problem}' if versions else trial.problem
    absent = re.search(r"No module named '(\w+)", trial.problem)
    if absent:
        others = {'numpy': "pip install 'numpy<2'", 'cv2': 'sudo apt install python3-opencv'}
        return fail(message, others.get(absent[1]) or _apt(absent[1]))
    if int((trial['numpy'] or '2').partition('.')[0]) >= 2:
        return failed(
            trial,
            message,
            "pip install 'numpy<2': the ROS distributions build cv_bridge and OpenCV for NumPy 1",
        )
    return failed(trial, message, f'{_apt("cv_bridge")}, and remove any OpenCV installed with pip')


def check_dds(setup: Setup) -> Finding:
    """Publish camera frames from a second process and count how many arrive."""
    if not setup.rclpy['loaded'] or setup.rclpy['missing']:
        return fail('skipped: the rclpy check failed', 'fix that first')
    trial, settings = setup.dds, setup.settings
    if trial.problem:
        message = f'the test of the transport failed: {trial.problem}'
        return failed(trial, message, _middleware_remedy(trial))
    where = f'{trial["middleware"]}, domain {trial["domain_id"]}'
    missing_profiles = [finding for name in PROFILE_VARIABLES for finding in _missing_profile(name)]
    frames = (
        f'{settings.image_transport} {setup.width}x{setup.height} frames '
        f'({trial["frame_bytes"] / 1e6:.1f} MB, {settings.input_reliability})'
    )
    if not trial['connected']:
        return joined(
            [
                fail(
                    f'two processes on this machine do not hear each other ({where})',
                    'check ROS_DOMAIN_ID, ROS_LOCALHOST_ONLY, ROS_AUTOMATIC_DISCOVERY_RANGE, the '
                    f"DDS profile and the firewall; {_shared_memory()} (see also 'ros2 multicast')",
                ),
                *missing_profiles,
            ]
        )
    sent, arrived, damaged = trial['sent'], trial['arrived'], trial['damaged']
    if damaged:
        return fail(
            f'{damaged} of {sent} {frames} arrived damaged ({where})',
            'use a different middleware (RMW_IMPLEMENTATION) and report this to its authors',
        )
    message = f'{arrived} of {sent} {frames} arrived; {where}'
    if trial['round_trip_ms'] is not None:
        message += f'; round trip {trial["round_trip_ms"]:.0f} ms (median)'
    if arrived < sent:
        level = warn if arrived else fail
        return joined([level(message, _lost_frames_remedy(setup)), *missing_profiles])
    if trial['acknowledged'] < arrived:
        message += f'; {trial["acknowledged"]} of their acknowledgements came back'
        return joined([warn(message, 'check the load on this machine and try again')])
    return joined([ok(message), *missing_profiles])


def _missing_profile(variable: str) -> list[Finding]:
    path = os.environ.get(variable, '')
    if not path or Path(path).is_file():
        return []
    return [warn(f'{variable} names {path}, which does not exist', f'correct {variable}')]


def _middleware_remedy(trial: Trial) -> str:
    if _lacks_middleware(trial):
        name = os.environ['RMW_IMPLEMENTATION']
        return f'{_apt(name)}, or unset RMW_IMPLEMENTATION'
    return (
        'correct the setting it names, or try with RMW_IMPLEMENTATION, ROS_DOMAIN_ID and the DDS '
        'profile unset'
    )


def _lost_frames_remedy(setup: Setup) -> str:
    """Return what helps frames to arrive and is not in use yet."""
    middleware, settings = setup.dds['middleware'], setup.settings
    remedies = []
    if middleware.startswith('rmw_fastrtps'):
        profile = fastdds_environment()['FASTRTPS_DEFAULT_PROFILES_FILE']
        if profile not in map(os.environ.get, PROFILE_VARIABLES):
            remedies.append(
                f'export FASTRTPS_DEFAULT_PROFILES_FILE={profile} in every process, including the '
                'camera driver'
            )
        remedies.append(_shared_memory())
    elif middleware.startswith('rmw_cyclonedds'):
        remedies.append(f'set SocketReceiveBufferSize min="10MB" in cyclonedds.xml after {SYSCTL}')
    if settings.image_transport == 'raw':
        remedies.append('image_transport: compressed')
    if settings.input_reliability == 'best_effort':
        remedies.append('input_reliability: reliable, if the camera publishes reliably')
    return ', or '.join(remedies) or 'use smaller frames, or reduce the load on this machine'


def _shared_memory() -> str:
    """Return how much shared memory is needed and how much is free."""
    try:
        room = f'{shutil.disk_usage("/dev/shm").free >> 20} MiB are free'
    except OSError:
        room = 'it does not exist'
    return f'make sure that /dev/shm has room, 64 MiB per process ({room})'


def check_executables(setup: Setup) -> Finding:
    """Start the Python of the installed executables and look for the libraries they need."""
    build = (
        'colcon build --packages-select gmskip_ros && source install/setup.bash, with the '
        f'virtual environment active ({ON_A_VEHICLE})'
    )
    beside_python = Path(sys.executable).parent
    prefixes = filter(None, os.environ.get('AMENT_PREFIX_PATH', '').split(os.pathsep))
    workspaces = [Path(prefix) / 'lib' / 'gmskip_ros' for prefix in prefixes]
    # One build installs all executables of a folder, for one Python.
    folders = [
        folder
        for folder in dict.fromkeys([*workspaces, beside_python])
        if all((folder / name).is_file() for name in EXECUTABLES)
    ]
    if not folders:
        return fail(f'not installed: {", ".join(EXECUTABLES)}', build)
    findings = [_check_interpreter(folder / EXECUTABLES[0], setup) for folder in folders]
    if workspaces and folders == [beside_python]:
        findings.append(warn(f'ros2 run and ros2 launch do not look in {beside_python}', build))
    return joined(findings)


def _check_interpreter(script: Path, setup: Setup) -> Finding:
    """Start a script, whose Python reports on itself and exits instead of running it."""
    with tempfile.TemporaryDirectory(prefix='gmskip_doctor_') as folder:
        (Path(folder) / STARTUP_MODULE).write_text(STARTUP_PROGRAM)
        paths = [folder, *filter(None, [os.environ.get('PYTHONPATH')])]
        # A Python that ignores PYTHONPATH runs the node, which refuses these arguments.
        command = [str(script), '--ros-args', '--remap', 'doctor']
        variables = {'PYTHONPATH': os.pathsep.join(paths)}
        trial = run_program(command, setup.timeout_s, variables)
    remedy = (
        'activate the virtual environment before running colcon build and before starting the '
        f'node, and build without --symlink-install ({ON_A_VEHICLE})'
    )
    python, missing = trial['python'], trial['missing']
    if python is None:
        first_line = script.read_bytes().split(b'\n')[0][:200].decode(errors='replace')
        problem = trial.problem or 'does not start Python'
        return failed(trial, f'{script} {problem} (its first line: {first_line!r})', remedy)
    if missing:
        return fail(f'{script} runs under {python}, which has no {", ".join(missing)}', remedy)
    return ok(f'the executables in {script.parent} run under {python}')
