"""Faults at the start and of the machine; the table is in docs/faults.md."""

from __future__ import annotations

import contextlib
import importlib.resources
import os
import resource
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from fault_probe import ONE_TASK, FaultProbe
from node_probe import keys, quick_command
from ros_process import RosProcess, ros_command, ros_env, ros_node, wait_until
from sensor_msgs.msg import Image

INPUT = '/dual_vlm/input/image'
SKIP_LISTS = importlib.resources.files('gmskip_ros') / 'assets/skip_lists'
SHARED_MEMORY_BYTES = 64 << 20  # per process, as set by the Fast DDS profile


def parameter(text: str) -> Callable[[Path], list[str]]:
    return lambda _: ['-p', text]


def skip_list(content: bytes | None = None, **changes: str) -> Callable[[Path], list[str]]:
    """Give the node a skip list: `content`, or the demo model's with one line changed."""

    def arguments(folder: Path) -> list[str]:
        data = content
        if data is None:
            text = (SKIP_LISTS / 'demo_single_object.skip.yaml').read_text()
            for key, value in changes.items():
                (line,) = [line for line in text.splitlines() if line.startswith(f'{key}: ')]
                text = text.replace(line, f'{key}: {value}')
            data = text.encode()
        path = folder / 'list.skip.yaml'
        path.write_bytes(data)
        return ['-p', f'skip_list.single_object:={path}']

    return arguments


def demo_list(old: str, new: str) -> bytes:
    text = (SKIP_LISTS / 'demo_single_object.skip.yaml').read_text()
    assert text.count(old) == 1
    return text.replace(old, new).encode()


def parameter_file(text: str) -> Callable[[Path], list[str]]:
    def arguments(folder: Path) -> list[str]:
        path = folder / 'my.param.yaml'
        path.write_text(text)
        return ['--params-file', str(path)]

    return arguments


# The arguments of the node, and words of the one line that it prints.
REFUSED_STARTS: dict[str, tuple[Callable[[Path], list[str]], list[str]]] = {
    'wrong_type': (parameter('rate_hz:=fast'), ['parameter rate_hz', "'fast'", '0.01 to 60']),
    'out_of_range': (parameter('watchdog_sec:=0.0'), ['watchdog_sec', '0.0', '1 to 3600']),
    'unknown_task': (parameter('tasks:=[weather]'), ['tasks', "'weather'", 'single_object']),
    'no_task': (parameter('tasks:=[]'), ['parameter tasks', 'at least one']),
    'task_twice': (
        parameter('tasks:=[captioning, captioning]'),
        ['tasks', 'has an entry twice'],
    ),
    'unknown_device': (parameter('device:=gpu'), ['device', "'gpu'", 'cuda:N']),
    'image_token_in_prompt': (
        parameter("prompt.captioning:='What is <image>?'"),
        ['prompt.captioning', '<image>'],
    ),
    'use_sim_time': (parameter('use_sim_time:=1'), ['use_sim_time']),
    'unknown_argument': (lambda _: ['--no-such-thing'], ['--no-such-thing']),
    'no_parameter_file': (lambda _: ['--params-file', '/no/my.param.yaml'], ['/no/my.param.yaml']),
    'broken_parameter_file': (parameter_file('/**: {ros__parameters: ['), ['my.param.yaml']),
    'no_skip_list': (
        parameter('skip_list.single_object:=/no/list.skip.yaml'),
        ['skip_list.single_object', '/no/list.skip.yaml', 'or the path of a .skip.yaml file'],
    ),
    'skip_list_is_a_folder': (parameter('skip_list.single_object:=/usr/'), ['/usr/']),
    'skip_list_not_yaml': (skip_list(b'a: [1, 2\nb: }'), ['list.skip.yaml']),
    'skip_list_binary': (skip_list(bytes(range(256))), ['list.skip.yaml']),
    'skip_list_of_another_version': (
        skip_list(schema='gmskip/skip-list/3'),
        ['schema', 'gmskip/skip-list/3'],
    ),
    'skip_list_block_twice': (
        skip_list(demo_list('{block: 4,', '{block: 31,')),
        ['removed[25].block', '31', 'is listed twice'],
    ),
    'skip_list_block_out_of_range': (
        skip_list(demo_list('{block: 4,', '{block: 32,')),
        ['removed[25].block', '32', 'use 0..31'],
    ),
    'operating_point_beyond': (
        parameter('operating_point:=27'),
        ['operating_point', '27', '0..26'],
    ),
}


# One row per kind of error runs a process of its own from start to exit; the others are warm.
COLD_STARTS = {'wrong_type', 'use_sim_time', 'unknown_argument', 'no_parameter_file'}


@pytest.fixture(scope='module')
def starts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Future[RosProcess]]]:
    """Run the processes of REFUSED_STARTS to their end, two at a time."""

    folders = {name: tmp_path_factory.mktemp(name) for name in REFUSED_STARTS}

    def run(name: str) -> RosProcess:
        arguments, _ = REFUSED_STARTS[name]
        command = ros_command('dual_vlm_node', *arguments(folders[name]))
        with RosProcess(command, warm=name not in COLD_STARTS) as process:
            process.wait()
        return process

    with ThreadPoolExecutor(2) as pool:
        yield {name: pool.submit(run, name) for name in REFUSED_STARTS}


@pytest.mark.parametrize('name', REFUSED_STARTS)
def test_refused_start(starts: dict[str, Future[RosProcess]], name: str) -> None:
    process = starts[name].result()
    output = process.output()
    assert process.returncode() == 2, output
    (line,) = [line for line in output.splitlines() if '[dual_vlm]' in line]
    assert '[FATAL]' in line
    for word in REFUSED_STARTS[name][1]:
        assert word in line
    assert 'Traceback' not in output and 'terminate' not in output


def test_log_folder_cannot_be_created() -> None:
    env = ros_env(ROS_LOG_DIR='/dev/null/log')
    with RosProcess(ros_command('dual_vlm_node'), env) as process:
        assert process.wait() == 2
    (line,) = [line for line in process.output().splitlines() if '[dual_vlm]' in line]
    assert "'/dev/null/log'" in line
    assert 'Traceback' not in process.output()


def test_no_room_in_shared_memory() -> None:
    """The profile's 64 MiB are not available: Fast DDS reports it and uses another transport."""
    python, option, code, *arguments = quick_command(start_enabled=False, **ONE_TASK)
    limit = (
        'import resource; '
        f'resource.setrlimit(resource.RLIMIT_FSIZE, ({SHARED_MEMORY_BYTES // 2},) * 2); '
    )
    command = [python, option, limit + code, *arguments]
    with RosProcess(command, warm=True) as process, ros_node() as node:
        probe = FaultProbe(node, process, '/dual_vlm', INPUT)

        def hears_and_is_heard() -> bool:
            probe.publish(Image(header=probe.next_header()))
            return probe.counts()['not_ready'] > 0

        probe.wait(hears_and_is_heard, 'a frame that came while it is paused')
        assert 'Failed to create segment' in process.output()
        assert probe.published == []
        assert process.stop(signal.SIGTERM) == 0
        assert 'Traceback' not in process.output()


# Parameters of the node, environment variables that the hub's library reads on import, and words of
# the reason for the state error.
ERRORS: dict[str, tuple[dict[str, str], dict[str, str], list[str]]] = {
    'no_such_gpu': ({'device': 'cuda:99'}, {}, ["'cuda:99' does not exist", "use 'cpu' or 'auto'"]),
    'hub_out_of_reach': (
        {'model': 'nobody/nothing'},
        {'HF_HUB_OFFLINE': '1'},
        ["'nobody/nothing'", 'check the name and the network', 'give a local folder'],
    ),
}


@pytest.fixture(scope='module')
def nodes_in_error() -> Iterator[dict[str, RosProcess]]:
    """The nodes of ERRORS, side by side in namespaces."""
    with contextlib.ExitStack() as stack:
        yield {
            name: stack.enter_context(
                RosProcess(
                    ros_command('dual_vlm_node', '-r', f'__ns:=/{name}', **parameters),
                    ros_env(**variables),
                    warm=not variables,
                )
            )
            for name, (parameters, variables, _) in ERRORS.items()
        }


@pytest.mark.parametrize('name', ERRORS)
def test_error_while_loading(nodes_in_error: dict[str, RosProcess], name: str) -> None:
    process = nodes_in_error[name]
    statuses: list[DiagnosticStatus] = []

    def note(array: DiagnosticArray) -> None:
        statuses.extend(s for s in array.status if s.hardware_id == f'/{name}/dual_vlm')

    with ros_node() as node:
        node.create_subscription(DiagnosticArray, '/diagnostics', note, 10)
        wait_until(
            lambda: statuses and statuses[-1].level == DiagnosticStatus.ERROR,
            node,
            what='state error',
            process=process,
        )
        status = statuses[-1]
        assert keys(status)['state'] == 'error' and '\n' not in status.message
        for word in ERRORS[name][2]:
            assert word in status.message
        camera = node.create_publisher(Image, f'/{name}{INPUT}', 1)
        wait_until(camera.get_subscription_count, node, what='the subscription')

        def not_taken() -> bool:
            camera.publish(Image())
            return keys(statuses[-1])['frames_not_ready'] != '0'

        wait_until(not_taken, node, what='a frame that is not taken')
    assert process.stop(signal.SIGTERM) == 0
    assert 'Traceback' not in process.output()


@pytest.fixture(scope='module')
def log_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp('log')


@pytest.fixture(scope='module')
def unheard(log_folder: Path) -> Iterator[FaultProbe]:
    """A node with its stdout closed, its stderr full, and a log folder of its own.

    It has been started before, and killed.
    """
    env = ros_env(ROS_LOG_DIR=str(log_folder))
    node_command = quick_command(**ONE_TASK)
    with RosProcess(node_command, env, warm=True) as killed:
        killed.wait_for_output(': loading')
        os.kill(killed.pid, signal.SIGKILL)
        assert killed.wait() == -signal.SIGKILL
    command = ['sh', '-c', 'exec "$@" >&- 2>/dev/full', 'sh', *node_command]
    with RosProcess(command, env) as process, ros_node() as node:
        probe = FaultProbe(node, process, '/dual_vlm', INPUT)
        probe.wait_for_state('ready', 'no_frames')
        yield probe
        assert process.stop(signal.SIGTERM) == 0


def test_killed_and_started_again(unheard: FaultProbe) -> None:
    """The shared memory that `kill -9` leaves behind is harmless."""
    unheard.check_answered()


def test_outputs_closed_or_full(unheard: FaultProbe) -> None:
    unheard.check_answered()
    unheard.wait_for_state('ready')


def test_log_on_a_full_disk(unheard: FaultProbe, log_folder: Path) -> None:
    """A file size limit stands in for a full disk; then it is lifted."""
    (log,) = log_folder.glob(f'*_{unheard.process.pid}_*.log')

    def log_an_error() -> None:
        """Errors are written immediately."""
        failed = unheard.counts()['undecodable']
        # Each reason is logged once, so each is a different one.
        unheard.publish(Image(header=unheard.next_header(), encoding=f'theora{failed}'))
        unheard.wait(lambda: unheard.counts()['undecodable'] > failed, 'the counter')
        unheard.check_answered()

    log_an_error()
    size = log.stat().st_size
    assert size > 0
    soft, hard = resource.prlimit(unheard.process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(unheard.process.pid, resource.RLIMIT_FSIZE, (size + 10, hard))
    log_an_error()
    assert log.stat().st_size <= size + 10
    resource.prlimit(unheard.process.pid, resource.RLIMIT_FSIZE, (soft, hard))
    log_an_error()
    assert log.stat().st_size > size + 10
