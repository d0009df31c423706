"""A `gmskip` command that starts processes of its own, run by a test."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterable
from pathlib import Path

import psutil
from ros_process import free_domain_id

MARK = 'GMSKIP_TEST_MARK'  # in the environment of everything that a test starts
DEADLINE_S = 150.0  # for a test that hangs


class LiveCommand:
    """A running command, `gmskip COMMAND --out OUT OPTIONS`, and everything it has started."""

    def __init__(self, command: str, out: Path, *options: str) -> None:
        self._mark = f'{MARK}={uuid.uuid4()}'
        name, _, value = self._mark.partition('=')
        environment = {**os.environ, 'ROS_DOMAIN_ID': str(free_domain_id()), name: value}
        self._stdout = out.with_name('stdout.txt')
        with self._stdout.open('w') as stdout:
            self._process = subprocess.Popen(
                [sys.executable, '-m', 'gmskip_ros.cli.main', command, '--out', str(out), *options],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )

    def wait_for_line(self, pattern: str) -> None:
        self.wait_until(lambda: re.search(pattern, self._stdout.read_text(), re.MULTILINE), pattern)

    def wait_until(self, condition, what: str) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not condition():
            assert self._process.poll() is None, self._stdout.read_text()
            assert time.monotonic() < deadline, f'no {what!r} in {self._stdout.read_text()!r}'
            time.sleep(0.1)

    def send_signal(self, signum: int) -> None:
        self._process.send_signal(signum)

    def wait(self) -> tuple[int, str, str]:
        """Return exit status, stdout and stderr."""
        _, stderr = self._process.communicate(timeout=DEADLINE_S)
        return self._process.returncode, self._stdout.read_text(), stderr

    def processes(self) -> dict[int, str]:
        """Return the command lines, by process id, of everything that the command has started."""
        name, _, value = self._mark.partition('=')
        found = {}
        for process in psutil.process_iter():
            try:
                if process.environ().get(name) == value:
                    found[process.pid] = ' '.join(process.cmdline())
            except psutil.Error:  # it has exited, or belongs to somebody else
                continue
        return {pid: command for pid, command in found.items() if command}

    def check_nothing_is_left_when_killed(self) -> None:
        """Send SIGKILL to the command alone; no process and no shared memory stays behind."""
        segments = shared_memory_of(self.processes())
        self.send_signal(signal.SIGKILL)
        assert self.wait()[0] == -signal.SIGKILL
        deadline = time.monotonic() + 10.0
        while self.processes() and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not self.processes()
        while any(path.exists() for path in segments) and time.monotonic() < deadline + 10.0:
            time.sleep(0.1)
        assert segments and not [path for path in segments if path.exists()]

    def kill_all(self) -> None:
        for pid in self.processes():
            os.kill(pid, signal.SIGKILL)


def shared_memory_of(pids: Iterable[int]) -> set[Path]:
    """Return the segments of Fast DDS that these processes have in memory."""
    maps = ''.join(Path(f'/proc/{pid}/maps').read_text() for pid in pids)
    return {Path(path) for path in re.findall(r'/dev/shm/fastrtps_[0-9a-f]{16}$', maps, re.M)}
