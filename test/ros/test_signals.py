"""SIGINT and SIGTERM at 30 random moments of the node's life: it always exits cleanly.

This is true from the first line of the executable on, which installs the signal handlers before the
slow imports. Before that, while Python itself starts, no handler can exist.
"""

from __future__ import annotations

import os
import random
import signal
import statistics
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from fault_probe import ONE_TASK
from node_probe import picture
from ros_process import RosProcess, ros_command, ros_node, wait_until
from sensor_msgs.msg import Image
from std_msgs.msg import Header

from gmskip_ros.ros.conversions import rgb_to_image

SEED = 5
SIDE_BY_SIDE = 3
AGAIN_S = 0.05  # `ros2 launch` passes on the Ctrl-C that the terminal has sent as well
RUNS = 'runs with'  # the node's line when it has warmed up


@dataclass(frozen=True)
class Moment:
    """When the node gets which signal.

    `at` is in seconds: since its handlers exist if it still imports, since RUNS if it idles or
    answers. While it starts, it is a share of the time that others took from handlers to RUNS.
    A warm node has already imported the engine: its start begins with reading the weights.
    """

    while_it: str  # 'imports', 'starts', 'idles' or 'answers'
    warm: bool
    at: float
    signal: signal.Signals
    twice: bool

    def __str__(self) -> str:
        warm, twice = '-warm' * self.warm, '-twice' * self.twice
        return f'{self.while_it}{warm}-{self.at:.2f}-{self.signal.name}{twice}'


def moments() -> list[Moment]:
    draw = random.Random(SEED)
    kinds = [  # first those that show the others how long a start takes
        *[('idles', False)] * 2,
        *[('answers', True)] * 8,
        *[('starts', False), ('starts', True)] * 6,
        ('starts', False),
        *[('imports', False)] * 7,
    ]
    return [
        Moment(
            while_it,
            warm,
            draw.uniform(0.0, 0.5 if while_it == 'imports' else 1.0),
            draw.choice((signal.SIGINT, signal.SIGTERM)),
            twice=draw.random() < 0.4,
        )
        for while_it, warm in kinds
    ]


@dataclass(frozen=True)
class End:
    """How a node ended."""

    status: int
    exit_s: float  # since the signal
    output: str
    pid: int  # and process group
    last_words: str  # before the signal


def listens(pid: int) -> bool:
    """Return whether the process has a handler for SIGTERM (Python has one for SIGINT anyway)."""
    (line,) = [
        line for line in Path(f'/proc/{pid}/status').read_text().splitlines() if 'SigCgt' in line
    ]
    return bool(int(line.split()[1], 16) >> (signal.SIGTERM - 1) & 1)


def run(index: int, moment: Moment, starts_s: dict[bool, list[float]]) -> End:
    """Start a node, send it the signal at its moment and wait for its end."""
    command = ros_command(
        'dual_vlm_node',
        '-r',
        f'__ns:=/node_{index}',
        remap={'~/input/image': '/nowhere' if moment.while_it == 'idles' else '/camera'},
        rate_hz=60.0,  # always busy
        **ONE_TASK,
    )
    with RosProcess(command, warm=moment.warm) as process:
        wait_until(lambda: listens(process.pid), what='its handlers', process=process)
        start_s = time.monotonic()
        if moment.while_it in ('idles', 'answers'):
            process.wait_for_output(RUNS)
            starts_s[moment.warm].append(time.monotonic() - start_s)
        is_share = moment.while_it == 'starts'
        time.sleep(moment.at * (statistics.median(starts_s[moment.warm]) if is_share else 1.0))
        last_words = process.output()
        signal_s = time.monotonic()
        os.kill(process.pid, moment.signal)
        if moment.twice:
            time.sleep(AGAIN_S)
            if process.returncode() is None:
                os.kill(process.pid, moment.signal)
        status = process.wait()
        exit_s = time.monotonic() - signal_s
        return End(status, exit_s, process.output(), process.pid, last_words)


@pytest.fixture(scope='module')
def ends() -> Iterator[list[Future[End]]]:
    """Run the nodes, a few at a time, while a camera publishes at 30 Hz; return how each ended."""
    stopped = threading.Event()
    with ros_node('camera') as node:
        camera = node.create_publisher(Image, '/camera', 1)

        def play() -> None:
            message = rgb_to_image(picture(), Header(frame_id='front'))
            frames = 0
            while not stopped.wait(1 / 30):
                frames += 1
                message.header.stamp.sec, thirtieth = divmod(frames, 30)
                message.header.stamp.nanosec = thirtieth * 33_000_000
                camera.publish(message)

        player = threading.Thread(target=play)
        player.start()
        with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
            starts_s: dict[bool, list[float]] = {False: [], True: []}
            yield [pool.submit(run, *pair, starts_s) for pair in enumerate(moments())]
        stopped.set()
        player.join()


@pytest.mark.parametrize('index', range(30), ids=[str(moment) for moment in moments()])
def test_a_signal_ends_the_node_well(ends: list[Future[End]], index: int) -> None:
    end = ends[index].result()
    print(f'{moments()[index]}: {end.exit_s:.2f} s after the signal; last: {end.last_words[-90:]}')
    assert end.status == 0, end.output
    for word in ('Traceback', 'terminate called', 'Error', 'ERROR', 'FATAL'):
        assert word not in end.output, end.output
    with pytest.raises(ProcessLookupError):
        os.killpg(end.pid, 0)
