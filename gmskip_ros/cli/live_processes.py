"""A live run's other processes: each in a group of its own, watched, and ended in any case."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from gmskip_ros.errors import UserError

EXECUTABLES = {
    'dual_vlm_node': 'gmskip_ros.ros.dual_vlm_node',
    'image_player': 'gmskip_ros.ros.image_player',
}
STOP_WITHIN_S = 10.0  # after SIGINT to a child; then it is killed
LOG_LINES_SHOWN = 5


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
