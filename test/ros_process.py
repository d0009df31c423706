"""Real ROS processes in tests: an environment of their own, start, wait, stop, what they printed.

    with RosProcess(ros_command('image_player', source=folder, rate_hz=10.0)) as player:
        with ros_node() as node:
            node.create_subscription(...)
            wait_until(lambda: frames, node, what='a frame', process=player)
        assert player.stop() == 0

Deadlines only stop a test that hangs; no test is about them.
"""

from __future__ import annotations

import fcntl
import functools
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from warm_python import WarmProcess

from gmskip_ros.ros.dds_profile import fastdds_environment

DEADLINE_S = 90.0
DOMAIN_IDS = range(1, 102)
_domain_lock: Any = None  # the open lock file: the domain is ours as long as this process lives

MODULES = {
    'dual_vlm_node': 'gmskip_ros.ros.dual_vlm_node',
    'image_player': 'gmskip_ros.ros.image_player',
}


@functools.cache
def free_domain_id() -> int:
    """Return the ROS domain (1 to 101) that no other test process of this machine uses."""
    global _domain_lock
    for step in range(len(DOMAIN_IDS)):
        domain_id = DOMAIN_IDS[(os.getpid() + step) % len(DOMAIN_IDS)]
        name = f'gmskip_ros_test_domain_{os.getuid()}_{domain_id}.lock'
        lock = (Path(tempfile.gettempdir()) / name).open('w')
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            continue
        _domain_lock = lock
        return domain_id
    raise RuntimeError('all ROS domains from 1 to 101 are taken by other test processes')


def ros_env(domain_id: int | None = None, **variables: str) -> dict[str, str]:
    """Return this process's environment with a ROS domain, the Fast DDS profile and `variables`."""
    return {
        **os.environ,
        **fastdds_environment(),
        'ROS_DOMAIN_ID': str(free_domain_id() if domain_id is None else domain_id),
        'ROS_LOG_DIR': str(Path(tempfile.gettempdir()) / f'gmskip_ros_test_log_{os.getuid()}'),
        'PYTHONUNBUFFERED': '1',
        **variables,
    }


def ros_command(
    executable: str,
    *ros_args: str,
    params_file: str | Path | None = None,
    remap: Mapping[str, str] | None = None,
    **parameters: Any,
) -> list[str]:
    """Return the command line of one of our nodes, run by this Python.

    `ros_args` are put after `--ros-args` as they are; True and False become true and false. A
    parameter whose name has a dot goes in as `**{'skip_list.captioning': ...}`.
    """
    command = [sys.executable, '-m', MODULES[executable], '--ros-args', *ros_args]
    if params_file is not None:
        command += ['--params-file', str(params_file)]
    for old, new in (remap or {}).items():
        command += ['-r', f'{old}:={new}']
    for name, value in parameters.items():
        text = str(value).lower() if isinstance(value, bool) else str(value)
        # A quoted string stays a string, whatever it looks like to a YAML reader ('', 10, on).
        text = "'" + text.replace("'", "''") + "'" if isinstance(value, (str, Path)) else text
        command += ['-p', f'{name}:={text}']
    return command


class RosProcess:
    """A running process; stdout and stderr are collected; leaving the `with` block ends it.

    `warm`: forked from a Python process that has already imported the engine, see warm_python.py.
    """

    def __init__(
        self, command: Sequence[str], env: Mapping[str, str] | None = None, *, warm: bool = False
    ) -> None:
        self.command = list(command)
        self._lines: list[str] = []
        env = dict(ros_env() if env is None else env)
        self._process: subprocess.Popen[str] | WarmProcess
        if warm:
            self._process = WarmProcess(self.command, env)
        else:
            self._process = subprocess.Popen(
                self.command,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors='replace',
                start_new_session=True,  # so that its children end with it
            )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.append(line)

    @property
    def pid(self) -> int:
        return self._process.pid

    def output(self) -> str:
        """Return everything printed so far, stdout and stderr together."""
        return ''.join(self._lines)

    def returncode(self) -> int | None:
        """Return the exit status, or None while it runs."""
        return self._process.poll()

    def wait(self, timeout_s: float = DEADLINE_S) -> int:
        """Wait until it ends by itself and return its exit status."""
        try:
            status = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(
                f'{self.command} still runs after {timeout_s} s; it printed:\n{self.output()}'
            ) from None
        self._reader.join(5.0)
        return status

    def stop(self, stop_signal: int = signal.SIGINT, timeout_s: float = DEADLINE_S) -> int:
        """Send it a signal, wait until it has ended and return its exit status."""
        self._process.send_signal(stop_signal)
        return self.wait(timeout_s)

    def wait_for_output(self, text: str, timeout_s: float = DEADLINE_S) -> None:
        """Wait until it has printed `text`."""
        wait_until(
            lambda: text in self.output(),
            what=f'the line {text!r}',
            timeout_s=timeout_s,
            process=self,
        )

    def __enter__(self) -> RosProcess:
        return self

    def __exit__(self, *exc_info: object) -> None:
        # SIGTERM first: a killed process leaves its 64 MiB of shared memory behind.
        for end_signal, patience_s in ((signal.SIGTERM, 20.0), (signal.SIGKILL, 10.0)):
            if self._process.poll() is None:
                os.killpg(self._process.pid, end_signal)
                try:
                    self._process.wait(patience_s)
                except subprocess.TimeoutExpired:
                    continue
        self._reader.join(5.0)


def wait_until(
    condition: Callable[[], object],
    node: Any = None,
    *,
    what: str = 'the condition',
    timeout_s: float = DEADLINE_S,
    process: RosProcess | None = None,
) -> None:
    """Wait, spinning `node` if there is one, until `condition()` is true.

    Fails at the deadline, and at once when `process` ends before; both with what it printed.
    """
    deadline = time.monotonic() + timeout_s
    while not condition():
        printed = '' if process is None else f'; it printed:\n{process.output()}'
        if process is not None and process.returncode() is not None and not condition():
            raise AssertionError(
                f'the process ended with {process.returncode()} before {what}{printed}'
            )
        if time.monotonic() > deadline:
            raise AssertionError(f'no sign of {what} after {timeout_s} s{printed}')
        if node is None:
            time.sleep(0.02)
        else:
            node.executor.spin_once(timeout_sec=0.05)


@contextmanager
def ros_node(
    name: str = 'probe', domain_id: int | None = None, namespace: str = ''
) -> Iterator[Any]:
    """Provide a node in the test's own process, with its executor, in the domain of `ros_env`.

    Spin it with `wait_until` or `node.executor.spin_once()`.
    """
    import rclpy
    from rclpy.executors import SingleThreadedExecutor

    environment = ros_env(domain_id)
    os.environ.update(environment)  # the profile is read when the first participant is made
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=int(environment['ROS_DOMAIN_ID']))
    node = rclpy.create_node(name, context=context, namespace=namespace)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)
    try:
        yield node
    finally:
        executor.shutdown()
        node.destroy_node()
        rclpy.shutdown(context=context)
