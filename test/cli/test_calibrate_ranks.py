"""`gmskip calibrate` by several processes: the same result, and what if one is lost."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
from calibrate_process import (
    CalibrateProcess,
    command_line,
    found,
    leftovers,
    read_json,
    start,
    without_reports,
)

from gmskip_ros.datasets import write_scenes

# 5 and 3 images do not divide evenly; some processes have none of a kind.
SINGLE = [
    '--task',
    'single_object',
    '--dataset',
    '../scenes',
    '--out',
    'out',
    '--images',
    '5',
    '--test-images',
    '3',
    '--rounds',
    '3',
    '--latency-images',
    '0',
]
# Scores that are not fractions, and long answers.
CAPTIONS = [
    '--task',
    'captioning',
    '--dataset',
    '../scenes',
    '--out',
    'out',
    '--images',
    '4',
    '--test-images',
    '0',
    '--rounds',
    '2',
    '--max-new-tokens',
    '5',
]


@pytest.fixture(scope='module')
def root(tmp_path_factory) -> Path:
    """A folder with scenes in it; every run has its own folder next to them."""
    root = tmp_path_factory.mktemp('ranks')
    write_scenes(root / 'scenes', 16, 9000)
    return root


@pytest.fixture(scope='module')
def alone(root) -> Path:
    """The folder of a run by one process."""
    with CalibrateProcess(root / 'alone', SINGLE) as process:
        assert process.wait() == 0, process.stderr
    return root / 'alone' / 'out'


def start_ranks(
    stack: ExitStack, folder: Path, options: list[str], count: int
) -> list[CalibrateProcess]:
    """Start the processes as torchrun does, but do not stop the others when one is lost."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    world = {'WORLD_SIZE': str(count), 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': str(port)}
    return [
        stack.enter_context(
            CalibrateProcess(
                folder,
                options,
                environment={**world, 'RANK': str(rank), 'LOCAL_RANK': str(rank)},
                save_every_s=0,
            )
        )
        for rank in range(count)
    ]


def run_ranks(folder: Path, options: list[str], count: int) -> None:
    with ExitStack() as stack:
        processes = start_ranks(stack, folder, options, count)
        statuses = [process.wait() for process in processes]
    assert statuses == [0] * count, ''.join(process.stderr for process in processes)
    # Only the first one prints.
    assert [bool(process.stdout) for process in processes] == [True] + [False] * (count - 1)
    first, *others = (process.stderr for process in processes)
    assert lines_of_ours(first) == [] and 'gmskip: round 3 of at most 3: ' in first
    assert others == [''] * (count - 1)


def children_by_rank(torchrun: subprocess.Popen[str], count: int) -> dict[int, int]:
    """Return the process id of each rank, once all exist."""
    ids: dict[int, int] = {}
    while len(ids) < count:
        assert torchrun.poll() is None
        children = Path(f'/proc/{torchrun.pid}/task/{torchrun.pid}/children').read_text()
        for pid in map(int, children.split()):
            environment = Path(f'/proc/{pid}/environ').read_bytes().split(b'\0')
            ids.update({int(line[5:]): pid for line in environment if line.startswith(b'RANK=')})
        time.sleep(0.01)
    return ids


def lines_of_ours(errors: str) -> list[str]:
    """Return our lines of torchrun's output but those about rounds.

    Checks that no traceback comes from our code.
    """
    assert '/gmskip_ros/' not in errors and 'gmskip_ros.calibration' not in errors
    lines = without_reports(errors).splitlines()
    lines = [line for line in lines if line.startswith('gmskip: ')]
    return [line for line in lines if not re.match('gmskip: (round|resumed at round) ', line)]


def test_two_processes_find_the_same(root, alone):
    run_ranks(root / 'two', SINGLE, 2)
    assert found(root / 'two' / 'out') == found(alone)


def test_three_processes_of_torchrun_find_the_same(root):
    with CalibrateProcess(root / 'captions', CAPTIONS) as process:
        assert process.wait() == 0, process.stderr
    torchrun = start(command_line(CAPTIONS, processes=3), root / 'three')
    output, errors = torchrun.communicate(timeout=200)
    assert torchrun.returncode == 0, errors
    assert lines_of_ours(errors) == lines_of_ours(process.stderr)
    assert output == process.stdout
    one, three = (found(root / name / 'out', 'captioning') for name in ('captions', 'three'))
    for one_round in one['rounds'] + three['rounds']:
        del one_round['token_blocks']  # other images share a batch, so other rows are padded
    assert one == three


def test_two_processes_resume_the_state_of_one(root, alone):
    folder = root / 'one_then_two'
    path = folder / 'out' / 'checkpoint.json'
    with CalibrateProcess(folder, SINGLE) as process:
        process.wait_until(lambda: path.exists() and read_json(path)['search']['rounds'])
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not any(name.startswith('test') for name in read_json(path)['evaluations'])
    run_ranks(folder, SINGLE, 2)
    assert found(folder / 'out') == found(alone)


@pytest.mark.parametrize('lost', [0, 1])
def test_a_lost_process_stops_the_other_with_one_line(root, alone, lost):
    """Without torchrun, which would stop it."""
    folder = root / f'lost_{lost}'
    path = folder / 'out' / 'checkpoint.json'
    with ExitStack() as stack:
        processes = start_ranks(stack, folder, SINGLE, 2)
        processes[0].wait_until(lambda: path.exists() and read_json(path)['search']['full'])
        processes[lost].send_signal(signal.SIGKILL)
        other = processes[1 - lost]
        assert other.wait() == 2
    assert re.fullmatch(
        rf'gmskip: error: process {1 - lost} of 2 cannot reach the others \(.*\): one of them '
        r'ended, see its message; run the same command to resume\n',
        other.stderr,
    ), other.stderr
    with CalibrateProcess(folder, SINGLE) as process:
        assert process.wait() == 0, process.stderr
    assert found(folder / 'out') == found(alone)
    assert leftovers(folder) == []


def test_stopped_and_killed_under_torchrun_the_same_command_resumes(root, alone):
    folder = root / 'torchrun'
    path = folder / 'out' / 'checkpoint.json'
    command = command_line(SINGLE, processes=2)

    torchrun = start(command, folder)
    wait_for(torchrun, path.exists)
    os.killpg(torchrun.pid, signal.SIGINT)  # as a terminal does
    _, errors = torchrun.communicate(timeout=200)
    assert torchrun.returncode == 1  # torchrun's own, with its own report
    line = 'gmskip: stopped. Progress is saved in out; run the same command to resume.'
    assert lines_of_ours(errors) == [line]
    assert read_json(path)['search']['full']

    saved_ns = path.stat().st_mtime_ns
    torchrun = start(command, folder)
    wait_for(torchrun, lambda: path.stat().st_mtime_ns > saved_ns)
    os.kill(children_by_rank(torchrun, 2)[1], signal.SIGKILL)
    killed_at = time.monotonic()
    _, errors = torchrun.communicate(timeout=200)
    assert time.monotonic() - killed_at < 60
    assert torchrun.returncode == 1  # whatever its processes return
    lines = lines_of_ours(errors)
    # Either the connection closes first, or torchrun sends SIGTERM first.
    assert len(lines) == 1
    assert 'process 0 of 2' in lines[0]
    assert 'another process has ended' in lines[0] or 'one of them ended' in lines[0]

    run_ranks(folder, SINGLE, 2)
    assert found(folder / 'out') == found(alone)


def wait_for(torchrun: subprocess.Popen[str], condition: Callable[[], bool]) -> None:
    """Wait until the condition holds, while torchrun runs."""
    while not condition():
        assert torchrun.poll() is None
        time.sleep(0.01)


def test_a_process_killed_before_they_connect_stops_the_run(root):
    torchrun = start(command_line(SINGLE, processes=2), root / 'torchrun_start')
    ids = children_by_rank(torchrun, 2)
    # Torch is being imported, which takes seconds; the model is not loaded yet.
    while 'libtorch_cpu' not in Path(f'/proc/{ids[0]}/maps').read_text():
        time.sleep(0.01)
    os.kill(ids[1], signal.SIGKILL)
    killed_at = time.monotonic()
    _, errors = torchrun.communicate(timeout=200)
    assert time.monotonic() - killed_at < 60
    assert torchrun.returncode == 1
    lines = lines_of_ours(errors)
    assert len(lines) == 1 and 'process 0 of 2: stopped by SIGTERM' in lines[0]
