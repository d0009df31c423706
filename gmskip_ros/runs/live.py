"""What `gmskip demo` and `gmskip soak` have in common: a node, a camera, and ears for both."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from gmskip_ros.errors import UserError

EXECUTABLES = {
    'dual_vlm_node': 'gmskip_ros.ros.dual_vlm_node',
    'image_player': 'gmskip_ros.ros.image_player',
}
STOP_WITHIN_S = 10.0  # after SIGINT to a child; then it is killed
LOG_LINES_SHOWN = 5

CAMERA_TOPIC = '/camera/image_raw'
FIRST_SCENE_SEED = 40_000_000  # scenes that no training, calibration or test uses
DOMAIN_IDS = range(1, 102)


def set_ros_environment() -> None:
    """Give all processes of the run the Fast DDS profile and, unless one is set, a domain."""
    from gmskip_ros.ros.dds_profile import fastdds_environment

    os.environ.update(fastdds_environment())
    os.environ.setdefault('ROS_DOMAIN_ID', str(random.choice(DOMAIN_IDS)))


def make_room(out: Path, results: Sequence[str], logs: Sequence[str]) -> None:
    """Make the folder, without an earlier run's results and with empty logs; LiveRunError."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name in results:  # an earlier run's are not taken for ours
            (out / name).unlink(missing_ok=True)
        for name in logs:
            (out / name).write_bytes(b'')
    except OSError as error:
        raise LiveRunError(f'--out {out}: {error.strerror}: give a folder to write to') from None


def number_of_scenes(at_least: int) -> int:
    """Return how many scenes to render.

    The node takes every tenth or so of the camera's pictures: with a count that shares no factor
    with 10 it meets all of them before it meets one again.
    """
    return next(n for n in range(at_least, at_least + 10) if math.gcd(n, 10) == 1)


def render_scenes(folder: Path, count: int, check: Callable[[], None]) -> None:
    """Write driving scenes as PNG; `check` may raise between two. Raises LiveRunError."""
    import cv2

    from gmskip_ros.datasets.scenes import render_scene

    for index in range(count):
        check()
        scene = render_scene(FIRST_SCENE_SEED + index)
        picture = cv2.cvtColor(scene.image, cv2.COLOR_RGB2BGR)
        if not cv2.imwrite(str(folder / f'{index:05d}.png'), picture):
            raise LiveRunError(f'{folder}: the pictures cannot be written: is the disk full?')


def start_node(parameters: Mapping[str, object], log: Path, stand_in: Sequence[str] = ()) -> Child:
    """Start the node, which takes its images from CAMERA_TOPIC."""
    return Child('dual_vlm_node', parameters, {'~/input/image': CAMERA_TOPIC}, log, stand_in)


def start_camera(parameters: Mapping[str, object], log: Path) -> Child:
    """Start the player on CAMERA_TOPIC; its first frame waits until the node is ready."""
    from gmskip_ros.pipeline.records import NODE_NAME

    waiting = {'loop': True, 'wait_for_node': f'/{NODE_NAME}', **parameters}
    return Child('image_player', waiting, {'image_raw': CAMERA_TOPIC}, log)


class LiveRunError(UserError):
    """The run cannot go on; the message is for people and names the remedy or the log."""


class Child:
    """A ROS executable in a process group of its own, its output in a log file."""

    def __init__(
        self,
        executable: str,
        parameters: Mapping[str, object],
        remap: Mapping[str, str],
        log: Path,
        stand_in: Sequence[str] = (),
    ) -> None:
        """`stand_in` is the command to run in place of the executable's own."""
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
        with log.open('wb') as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, 'PYTHONUNBUFFERED': '1'},
                start_new_session=True,  # Ctrl-C reaches it through us, and all of it
            )

    @property
    def pid(self) -> int:
        """Its process id, also of its group."""
        return self._process.pid

    def check(self) -> None:
        """Raise LiveRunError with the last lines of its log if it has ended."""
        status = self._process.poll()
        if status is not None:
            how = f'exit status {status}' if status >= 0 else signal.Signals(-status).name
            raise LiveRunError(f'{self.name} ended by itself ({how}); {self.last_lines()}')

    def last_lines(self) -> str:
        """Return the name of its log and the end of it, for an error message."""
        lines = self._log.read_text(errors='replace').strip().splitlines()[-LOG_LINES_SHOWN:]
        if not lines:
            return f'{self._log} is empty'
        return '\n  '.join([f'the end of {self._log}:', *lines])

    def ask_to_end(self) -> None:
        """Send SIGINT, which both executables take as the wish to end."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)

    def wait(self, within_s: float) -> int | None:
        """Return its exit status, minus the signal that killed it; None if it still runs."""
        try:
            return self._process.wait(within_s)
        except subprocess.TimeoutExpired:
            return None

    def end(self, within_s: float) -> None:
        """Wait for it, then kill what is left of its process group."""
        self.wait(within_s)
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self._process.wait()


def end(children: Sequence[Child]) -> None:
    """Ask all of them to end, give them STOP_WITHIN_S together, then kill; returns when gone."""
    for child in children:
        child.ask_to_end()
    deadline = time.monotonic() + STOP_WITHIN_S
    for child in children:
        child.end(max(0.0, deadline - time.monotonic()))
