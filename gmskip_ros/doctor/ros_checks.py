"""The doctor's checks of ROS 2 on this machine: interpreter, libraries, transport, executables."""

from __future__ import annotations

import os
import re
import shutil
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

from gmskip_ros.doctor.processes import REPORT_VARIABLE, Trial, run_program
from gmskip_ros.doctor.setup import Finding, Setup, fail, failed, joined, ok, warn
from gmskip_ros.ros.dds_profile import fastdds_environment

DISTRIBUTION_PYTHONS = {'humble': (3, 10), 'jazzy': (3, 12), 'kilted': (3, 12)}
PYTHONS = ((3, 10), (3, 12))  # of this package, from and to
EXECUTABLES = ('dual_vlm_node', 'image_player')
LIBRARIES = ('torch', 'transformers', 'rclpy', 'gmskip_ros')  # that they need
ON_A_VEHICLE = "README, 'On a vehicle'"

PROFILE_VARIABLES = ('FASTDDS_DEFAULT_PROFILES_FILE', 'FASTRTPS_DEFAULT_PROFILES_FILE')
UDP_MIDDLEWARES = ('rmw_fastrtps', 'rmw_cyclonedds', 'rmw_connextdds')
SYSCTL = (
    'sudo sysctl -w net.core.rmem_max=2147483647 net.ipv4.ipfrag_time=3 '
    'net.ipv4.ipfrag_high_thresh=134217728'
)

# Imports the modules that it is given; each report line is JSON of simple names and texts.
IMPORTS_PROGRAM = f"""
import importlib, json, os, sys
sys.path[:] = [path for path in sys.path if path]
missing = {{}}
def report(values):
    with open(os.environ[{REPORT_VARIABLE!r}], 'a') as file:
        file.write(json.dumps(values) + '\\n')
for name in sys.argv[1:]:
    report({{'trying': name}})
    try:
        importlib.import_module(name)
    except Exception as error:
        lines = str(error).splitlines() or ['']
        missing[name] = type(error).__name__ + ': ' + lines[0]
report({{'trying': '', 'missing': missing}})
"""


def check_python(setup: Setup) -> Finding:
    """Compare this Python with the one that the ROS distribution was built for."""
    version = sys.version_info[:2]
    found = '{}.{}.{}'.format(*sys.version_info[:3])
    if not setup.with_ros:
        low, high = PYTHONS
        if low <= version <= high:
            return ok(found)
        return warn(f'{found} has not been tried with this package', 'use Python 3.10 to 3.12')
    distribution = os.environ.get('ROS_DISTRO', '')
    trial = setup.rclpy
    fits = trial['loaded'] or trial.timed_out or _is_no_middleware(trial)
    where = trial['where'] if fits else None
    if not distribution:
        if where:
            return ok(f'{found}; ROS_DISTRO is not set, but rclpy is there: {where}')
        return fail(f'{found}; no ROS 2 in this shell', _source_remedy())
    name = f'ROS 2 {distribution.capitalize()}'
    expected = DISTRIBUTION_PYTHONS.get(distribution)
    if expected == version:
        return ok(f"{found}, {name}'s")
    if expected is None:
        message = f'{found}; {name} has not been tried with this package'
        remedy = 'use ROS 2 Humble or Jazzy'
        return warn(message, remedy) if where else fail(message, remedy)
    message = f'{found}, where {name} is built for {expected[0]}.{expected[1]}'
    if where:
        return warn(
            f'{message}; rclpy is importable all the same: {where}',
            'see that it is the ROS that you mean: wheels, or one built for this Python',
        )
    return fail(
        message,
        f'make the virtual environment with python{expected[0]}.{expected[1]} -m venv '
        f'--system-site-packages ({ON_A_VEHICLE})',
    )


def _source_remedy() -> str:
    found = sorted(Path('/opt/ros').glob('*/setup.bash'))
    if found:
        return ' or '.join(f'source {path}' for path in found)
    return (
        'install ROS 2 Humble or Jazzy and source /opt/ros/$ROS_DISTRO/setup.bash; or run '
        'make demo, which brings it as wheels'
    )


def _apt(*packages: str) -> str:
    """Return how to install ROS packages."""
    distribution = os.environ.get('ROS_DISTRO', '$ROS_DISTRO')
    names = ' '.join(f'ros-{distribution}-{package.replace("_", "-")}' for package in packages)
    return f'sudo apt install {names}'


def check_rclpy(setup: Setup) -> Finding:
    """Import rclpy and the message packages, with their C libraries."""
    trial = setup.rclpy
    where, missing = trial['where'], trial['missing']
    if not trial['loaded']:
        message = f'rclpy cannot be imported: {trial.problem}'
        if _is_no_middleware(trial):
            return fail(message, _middleware_remedy(trial))
        if not os.environ.get('ROS_DISTRO'):
            return failed(trial, message, _source_remedy())
        return failed(
            trial,
            message,
            f'{_apt("rclpy")}, source its setup.bash, and use its own Python in a virtual '
            f'environment that sees the system ({ON_A_VEHICLE})',
        )
    if trial.problem:
        return failed(trial, f'{where}: {trial.problem}', _apt('rclpy', 'diagnostic_msgs'))
    if missing:
        what = '; '.join(f'{package}: {problem}' for package, problem in missing.items())
        return fail(f'rclpy is there, but not what it needs beside it: {what}', _apt(*missing))
    return ok(f'{where}, with the message packages')


def _is_no_middleware(trial: Trial) -> bool:
    """Tell whether what failed is the middleware that RMW_IMPLEMENTATION asks for."""
    name = os.environ.get('RMW_IMPLEMENTATION', '')
    return bool(name) and name in trial.problem


def check_cv_bridge(setup: Setup) -> Finding:
    """Convert images with cv_bridge, this NumPy and this OpenCV, and compare the pixels."""
    trial = setup.cv_bridge
    names = {'numpy': 'NumPy', 'opencv': 'OpenCV', 'cv_bridge': 'cv_bridge'}
    versions = ', '.join(f'{names[key]} {trial[key]}' for key in names if trial[key])
    if not trial.problem:
        return ok(f'{versions}: colour, grey and Bayer images come through whole')
    message = f'{versions}: {trial.problem}' if versions else trial.problem
    absent = re.search(r"No module named '(\w+)", trial.problem)
    if absent:
        others = {'numpy': "pip install 'numpy<2'", 'cv2': 'sudo apt install python3-opencv'}
        return fail(message, others.get(absent[1]) or _apt(absent[1]))
    if int((trial['numpy'] or '2').partition('.')[0]) >= 2:
        return failed(
            trial,
            message,
            "pip install 'numpy<2': the distributions build cv_bridge and OpenCV for NumPy 1",
        )
    return failed(trial, message, f'{_apt("cv_bridge")}, and no other OpenCV from pip beside it')


def check_dds(setup: Setup) -> Finding:
    """Publish camera frames in another process and count what arrives in this environment."""
    if not setup.rclpy['loaded'] or setup.rclpy['missing']:
        return fail('not tried: see rclpy', 'put that right first')
    trial, settings = setup.dds, setup.settings
    if trial.problem:
        message = f'no message came through: {trial.problem}'
        return failed(trial, message, _middleware_remedy(trial))
    where = f'{trial["middleware"]}, domain {trial["domain_id"]}'
    lost_profiles = [finding for name in PROFILE_VARIABLES for finding in _lost_profile(name)]
    frames = (
        f'{settings.image_transport} {setup.width}x{setup.height} frames '
        f'({trial["frame_bytes"] / 1e6:.1f} MB, {settings.input_reliability})'
    )
    if not trial['connected']:
        return joined(
            [
                fail(
                    f'two processes of this machine do not hear each other ({where})',
                    'look at ROS_DOMAIN_ID, ROS_LOCALHOST_ONLY, ROS_AUTOMATIC_DISCOVERY_RANGE, the '
                    f"DDS profile and the firewall; {_shared_memory()} (see also 'ros2 multicast')",
                ),
                *lost_profiles,
            ]
        )
    sent, arrived, damaged = trial['sent'], trial['arrived'], trial['damaged']
    if damaged:
        return fail(
            f'{damaged} of {sent} {frames} arrived damaged ({where})',
            'use another middleware (RMW_IMPLEMENTATION) and report this to its authors',
        )
    message = f'{arrived} of {sent} {frames} arrived; {where}'
    if trial['round_trip_ms'] is not None:
        message += f'; there and back in {trial["round_trip_ms"]:.0f} ms (median)'
    if arrived < sent:
        level = warn if arrived else fail
        return joined([level(message, _lost_frames_remedy(setup)), *lost_profiles])
    if trial['acknowledged'] < arrived:
        message += f'; of their acknowledgements {trial["acknowledged"]} came back'
        return joined([warn(message, 'see whether other programs load this machine and try again')])
    return joined([ok(message), *lost_profiles])


def _lost_profile(variable: str) -> list[Finding]:
    path = os.environ.get(variable, '')
    if not path or Path(path).is_file():
        return []
    return [warn(f'{variable} names {path}, which is not there', f'correct {variable}')]


def _middleware_remedy(trial: Trial) -> str:
    if _is_no_middleware(trial):
        name = os.environ['RMW_IMPLEMENTATION']
        return f'{_apt(name)}, or unset RMW_IMPLEMENTATION'
    return (
        'correct what it names, or try with RMW_IMPLEMENTATION, ROS_DOMAIN_ID and the DDS '
        'profile unset'
    )


def _lost_frames_remedy(setup: Setup) -> str:
    """Return what makes frames arrive, of what is not in use already."""
    middleware, settings = setup.dds['middleware'], setup.settings
    ways = []
    if middleware.startswith('rmw_fastrtps'):
        if _is_shared_memory_only(middleware):
            ways.append(_shared_memory())
        else:
            profile = fastdds_environment()['FASTRTPS_DEFAULT_PROFILES_FILE']
            ways.append(
                f'export FASTRTPS_DEFAULT_PROFILES_FILE={profile} in every process, the camera '
                'driver too'
            )
    elif middleware.startswith('rmw_cyclonedds'):
        ways.append('SocketReceiveBufferSize min="10MB" in cyclonedds.xml, and see kernel')
    if settings.image_transport == 'raw':
        ways.append('image_transport: compressed')
    if settings.input_reliability == 'best_effort':
        ways.append('input_reliability: reliable, if the camera publishes so')
    return ', or '.join(ways) or 'smaller frames, or fewer programs that load this machine'


def _shared_memory() -> str:
    """Return what the shared memory of this machine has to have, and has."""
    try:
        room = f'{shutil.disk_usage("/dev/shm").free >> 20} MiB are free'
    except OSError:
        room = 'it is not there'
    return f'see that /dev/shm has room, 64 MiB a process ({room})'


def check_kernel(setup: Setup, proc_sys: Path = Path('/proc/sys')) -> Finding:
    """Compare the kernel's buffers for UDP with a raw frame."""
    middleware = os.environ.get('RMW_IMPLEMENTATION') or ''
    if setup.rclpy['loaded']:
        middleware = setup.dds['middleware'] or middleware
    frame_bytes = 3 * setup.width * setup.height
    if setup.settings.image_transport != 'raw':
        return ok('compressed images are small enough for any buffer')
    if _is_shared_memory_only(middleware):
        return ok('receive buffers are not needed: shared memory only')
    if middleware and not middleware.startswith(UDP_MIDDLEWARES):
        return ok(f'what {middleware} needs of receive buffers is not known')
    # A frame is many datagrams of several IP fragments. A datagram that lacks one waits for it, and
    # takes room, for ipfrag_time; reckoned with one of ten, ten frames a second.
    fragments_s = _kernel_value(proc_sys / 'net/ipv4/ipfrag_time')
    needed = {
        'net.core.rmem_max': frame_bytes,
        'net.ipv4.ipfrag_high_thresh': None if fragments_s is None else frame_bytes * fragments_s,
    }
    too_small, known = [], []
    for name, bytes_needed in needed.items():
        value = _kernel_value(proc_sys / name.replace('.', '/'))
        if value is None or bytes_needed is None:
            continue
        known.append(f'{name} {value}')
        if value < bytes_needed:
            too_small.append(f'{name} is {value}, {bytes_needed} are needed')
    if not known:
        return ok('receive buffers are not known on this system')
    if not too_small:
        return ok(', '.join(known))
    if 'net.ipv4.ipfrag_high_thresh is' in ' '.join(too_small):
        too_small.append(f'with net.ipv4.ipfrag_time {fragments_s} s')
    return warn(
        f'raw {setup.width}x{setup.height} frames over UDP may be lost: {", ".join(too_small)}',
        f'{SYSCTL} (and in /etc/sysctl.d, to keep it)',
    )


def _kernel_value(path: Path) -> int | None:
    try:
        return int(path.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return None


def _is_shared_memory_only(middleware: str) -> bool:
    """Tell whether Fast DDS is told to use nothing else."""
    if middleware and not middleware.startswith('rmw_fastrtps'):
        return False
    if os.environ.get('FASTDDS_BUILTIN_TRANSPORTS') == 'SHM':
        return True
    for variable in PROFILE_VARIABLES:
        try:
            tree = ElementTree.parse(os.environ.get(variable, ''))
        except (OSError, ElementTree.ParseError):
            continue
        texts: dict[str, list[str]] = {}
        for element in tree.iter():
            tag = element.tag.rpartition('}')[2]
            texts.setdefault(tag, []).append((element.text or '').strip())
        if texts.get('useBuiltinTransports') == ['false'] and set(texts.get('type', ())) == {'SHM'}:
            return True
    return False


def check_executables(setup: Setup) -> Finding:
    """Run the interpreter of each installed executable and import what that needs."""
    found = {name: list(_installed(name)) for name in EXECUTABLES}
    missing = [name for name, paths in found.items() if not paths]
    build = (
        'colcon build --packages-select gmskip_ros && source install/setup.bash, with the '
        f'virtual environment active ({ON_A_VEHICLE})'
    )
    if missing:
        return fail(f'not installed: {", ".join(missing)}', build)
    all_paths = [path for paths in found.values() for path in paths]
    by_interpreter: dict[str, list[Path]] = {}
    for path in all_paths:
        by_interpreter.setdefault(_interpreter(path), []).append(path)
    findings = [
        _check_interpreter(interpreter, paths, setup)
        for interpreter, paths in by_interpreter.items()
    ]
    beside = Path(sys.executable).parent
    if os.environ.get('AMENT_PREFIX_PATH') and {path.parent for path in all_paths} == {beside}:
        findings.append(warn(f'{beside} is not where ros2 run and ros2 launch look', build))
    return joined(findings)


def _installed(name: str) -> Iterator[Path]:
    """Yield where an executable is: in the sourced workspaces, and beside this interpreter."""
    seen = set()
    for variable in ('AMENT_PREFIX_PATH', 'COLCON_PREFIX_PATH'):
        for prefix in filter(None, os.environ.get(variable, '').split(os.pathsep)):
            for folder in (Path(prefix), Path(prefix) / 'gmskip_ros'):
                seen.add(folder / 'lib' / 'gmskip_ros' / name)
    seen.add(Path(sys.executable).with_name(name))
    yield from sorted(path for path in seen if path.is_file())


def _interpreter(script: Path) -> str:
    """Return what runs a script, as the kernel would find it; '' for one that says nothing."""
    try:
        head = script.read_bytes()[:1000].decode(errors='replace').splitlines()
    except OSError:
        head = []
    words = head[0][2:].split() if head and head[0].startswith('#!') else []
    if words[:1] == ['/bin/sh']:  # pip's way around paths that are long or have spaces
        match = re.match(r"'''exec' \"?([^\"]+?)\"? \"\$0\"", head[1] if len(head) > 1 else '')
        return match[1] if match else ''
    if words and Path(words[0]).name == 'env':
        program = next((word for word in words[1:] if not word.startswith('-')), '')
        return shutil.which(program) or program
    return words[0] if words else ''


def _check_interpreter(interpreter: str, scripts: list[Path], setup: Setup) -> Finding:
    names = ', '.join(dict.fromkeys(script.name for script in scripts))
    remedy = (
        'source the virtual environment before colcon builds and before the node is started, and '
        f'build without --symlink-install ({ON_A_VEHICLE})'
    )
    if not interpreter:
        return fail(f'{scripts[0]} names no interpreter', remedy)
    where = f'{names} in {scripts[0].parent}'
    if _is_this_python(interpreter):
        tried = {'rclpy': setup.rclpy['loaded'], **setup.torch.values, 'gmskip_ros': True}
        missing = [library for library in LIBRARIES if not tried.get(library)]
        if missing:
            what = f'{interpreter} could not import {", ".join(missing)} (see rclpy and engine)'
            first = 'put that right first; if it is not the interpreter that you mean'
            return fail(f'{where}: {what}', f'{first}: {remedy}')
    else:
        trial = run_program([interpreter, '-c', IMPORTS_PROGRAM, *LIBRARIES], setup.timeout_s)
        what = _missing_libraries(trial)
        if what:
            return failed(trial, f'{where}: {interpreter} {what}', remedy)
    return ok(f'{where} run under {interpreter}')


def _is_this_python(interpreter: str) -> bool:
    """Tell whether it is the one that runs the doctor, whose libraries are tried anyway."""
    path, this = Path(interpreter), Path(sys.executable)
    # The folder counts: the interpreters of virtual environments are links to one and the same.
    return path.parent == this.parent and path.exists() and path.samefile(this)


def _missing_libraries(trial: Trial) -> str:
    """Return what an interpreter could not do, '' if it could import everything."""
    if trial.problem:
        trying = f' at import {trial["trying"]}' if trial['trying'] else ''
        return f'cannot be used{trying}: {trial.problem}'
    missing = trial['missing']
    if missing is None:
        return 'cannot be used: it is no Python'
    if missing:
        return f'has no {", ".join(missing)} ({next(iter(missing.values()))})'
    return ''
