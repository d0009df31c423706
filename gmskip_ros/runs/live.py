"""What `gmskip demo` and `gmskip soak` share: the node and a camera as child processes."""

from __future__ import annotations

import contextlib
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from gmskip_ros.errors import UserError
from gmskip_ros.pipeline.records import NODE_NAME

EXECUTABLES = {
    'dual_vlm_node': 'gmskip_ros.ros.dual_vlm_node',
    'image_player': 'gmskip_ros.ros.image_player',
}
STOP_WITHIN_S = 10.0  # after SIGINT to a child; then it is killed
LOG_LINES_SHOWN = 5
END_WITH_PARENT = Path(__file__).with_name('end_with_parent.py')
CLEAR_SHARED_MEMORY = Path(__file__).with_name('clear_shared_memory.py')

CAMERA_TOPIC = '/camera/image_raw'
FIRST_SCENE_SEED = 40_000_000  # scenes that no training, calibration or test uses
DOMAIN_IDS = range(1, 102)


class LiveRunError(UserError):
    """The run cannot go on; the message names the remedy or the log."""


def set_ros_environment() -> None:
    """Set the Fast DDS profile and, unless one is set, a domain for all processes of the run."""
    from gmskip_ros.ros.dds_profile import fastdds_environment

    os.environ.update(fastdds_environment())
    os.environ.setdefault('ROS_DOMAIN_ID', str(random.choice(DOMAIN_IDS)))


def prepare_output(out: Path, logs: Sequence[str]) -> None:
    """Create the folder and empty the logs; raises LiveRunError."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name in logs:
            (out / name).write_bytes(b'')
    except OSError as error:
        raise LiveRunError(f'--out {out}: {error.strerror}: choose a different folder') from None


def number_of_scenes(at_least: int) -> int:
    """Return how many scenes to render.

    The node takes about every tenth image of the camera: with a count that shares no factor with
    10, it sees all of them before it sees one again.
    """
    return next(n for n in range(at_least, at_least + 10) if math.gcd(n, 10) == 1)


def render_scenes(folder: Path, count: int, check: Callable[[], None]) -> None:
    """Write driving scenes as PNG files; `check` may raise between two. Raises LiveRunError."""
    import cv2

    from gmskip_ros.datasets.scenes import render_scene

    for index in range(count):
        check()
        scene = render_scene(FIRST_SCENE_SEED + index)
        image = cv2.cvtColor(scene.image, cv2.COLOR_RGB2BGR)
        if not cv2.imwrite(str(folder / f'{index:05d}.png'), image):
            raise LiveRunError(f'{folder}: cannot write the scenes: is the disk full?')


@contextlib.contextmanager
def no_shared_memory_left() -> Iterator[None]:
    """Within the block, a `kill -9` of this process leaves nothing in /dev/shm (Linux)."""
    if sys.platform != 'linux':
        yield
        return
    command = [sys.executable, '-I', '-S', str(CLEAR_SHARED_MEMORY), str(os.getpid())]
    # Its group is its own: a Ctrl-C in the terminal does not reach it.
    with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True) as watcher:
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                watcher.communicate(b'done')


class Child:
    """A ROS executable in a process group of its own, with its output in a log file.

    On Linux it gets SIGTERM when this process is killed. Make it in the main thread.
    """

    def __init__(
        self,
        executable: str,
        parameters: Mapping[str, object],
        remap: Mapping[str, str],
        log: Path,
        stand_in: Sequence[str] = (),
    ) -> None:
        """Start it; `stand_in` is a command to run instead of the executable."""
        self.name = executable
        self._log = log
        installed = Path(sys.executable).with_name(executable)
        own = [str(installed)]
        if not installed.exists():
            own = [sys.executable, '-m', EXECUTABLES[executable]]
        command = [*(stand_in or own), '--ros-args']
        for name, value in parameters.items():
            command += ['-p', f'{name}:={json.dumps(value, ensure_ascii=False)}']  # JSON is YAML
        for old, new in remap.items():
            command += ['-r', f'{old}:={new}']
        if sys.platform == 'linux':
            watched = [sys.executable, '-I', '-S', str(END_WITH_PARENT), str(os.getpid())]
            command = [*watched, *command]
        with log.open('wb') as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, 'PYTHONUNBUFFERED': '1'},
                start_new_session=True,  # a Ctrl-C in the terminal reaches this process alone
            )

    @property
    def pid(self) -> int:
        """The id of the process and of its group."""
        return self._process.pid

    def check(self) -> None:
        """Raise LiveRunError with the last lines of the log if the process has exited."""
        status = self._process.poll()
        if status is not None:
            how = f'exit status {status}' if status >= 0 else signal.Signals(-status).name
            raise LiveRunError(f'{self.name} exited unexpectedly ({how}); {self.last_lines()}')

    def last_lines(self) -> str:
        """Return the log's name and last lines, for an error message."""
        lines = self._log.read_text(errors='replace').strip().splitlines()[-LOG_LINES_SHOWN:]
        if not lines:
            return f'{self._log} is empty'
        return '\n  '.join([f'the last lines of {self._log}:', *lines])

    def interrupt(self) -> None:
        """Send SIGINT, on which both executables stop cleanly."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)

    def wait(self, within_s: float) -> int | None:
        """Return the exit status, minus the signal that killed it; None if it still runs."""
        try:
            return self._process.wait(within_s)
        except subprocess.TimeoutExpired:
            return None

    def kill_after(self, within_s: float) -> None:
        """Wait for it, then kill whatever is left of its process group."""
        self.wait(within_s)
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self._process.wait()


def start_node(parameters: Mapping[str, object], log: Path, stand_in: Sequence[str] = ()) -> Child:
    """Start the node with CAMERA_TOPIC as its input."""
    return Child('dual_vlm_node', parameters, {'~/input/image': CAMERA_TOPIC}, log, stand_in)


def start_camera(parameters: Mapping[str, object], log: Path) -> Child:
    """Start the player on CAMERA_TOPIC; it holds its first frame until the node is ready."""
    waiting = {'loop': True, 'wait_for_node': f'/{NODE_NAME}', **parameters}
    return Child('image_player', waiting, {'image_raw': CAMERA_TOPIC}, log)


def stop_all(children: Sequence[Child]) -> None:
    """Stop all of them; those that still run STOP_WITHIN_S later are killed."""
    for child in children:
        child.interrupt()
    deadline = time.monotonic() + STOP_WITHIN_S
    for child in children:
        child.kill_after(max(0.0, deadline - time.monotonic()))
