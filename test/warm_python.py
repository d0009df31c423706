"""
Python processes that start in no time: forked from one that has already imported the engine.

    process = WarmProcess([sys.executable, '-m', 'gmskip_ros.ros.dual_vlm_node', '--ros-args'], env)

Importing torch and transformers takes longer than what most tests do with them afterwards. Apart
from modules that are already imported, such a process is like any other: it has its own pid,
session, arguments, environment, working directory, output and exit status. Tests of the imports
themselves, or of variables that a library reads while it is imported, need a process of their own.
"""

from __future__ import annotations

import functools
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

ORDER_BYTES = 1 << 20  # at most, for a command and its environment


class WarmProcess:
    """
    A running `python -m MODULE ...`, `python -c CODE ...` or `python FILE ...`.

    It has those methods of subprocess.Popen that tests use. `stdout` is text, and has stderr in it.
    """

    def __init__(
        self, command: Sequence[str], env: Mapping[str, str], cwd: str | Path | None = None
    ) -> None:
        assert command[0] == sys.executable, command
        self.returncode: int | None = None
        order = json.dumps([list(command[1:]), dict(env), str(cwd or Path.cwd())]).encode()
        assert len(order) <= ORDER_BYTES
        self._reports, reports = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        reading, writing = os.pipe()
        with reports:
            socket.send_fds(_server(), [order], [reports.fileno(), writing])
        os.close(writing)
        self.stdout = os.fdopen(reading, errors='replace')
        self.pid = self._next_report()

    def poll(self) -> int | None:
        """Return the exit status, or None while it runs."""
        try:
            return self.wait(0.0)
        except subprocess.TimeoutExpired:
            return None

    def wait(self, timeout_s: float | None = None) -> int:
        """Wait until it ends and return its exit status; raises subprocess.TimeoutExpired."""
        if self.returncode is None:
            self._reports.settimeout(timeout_s)
            try:
                self.returncode = os.waitstatus_to_exitcode(self._next_report())
            except (TimeoutError, BlockingIOError):
                raise subprocess.TimeoutExpired(str(self.pid), timeout_s or 0.0) from None
            self._reports.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def _next_report(self) -> int:
        report = self._reports.recv(32)
        assert report, 'the process that forks has ended'
        return int(report)


@functools.cache
def _server() -> socket.socket:
    """Start the process that the others are forked from; it ends when this one does."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, ORDER_BYTES)
    with theirs:
        subprocess.Popen(
            [sys.executable, __file__, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for the tests
        )
    return ours


def _import_the_engine() -> None:
    os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')  # as the node sets it, before torch
    from transformers.models.clip import modeling_clip  # noqa: F401
    from transformers.models.llama import modeling_llama  # noqa: F401
    from transformers.models.llava import modeling_llava  # noqa: F401

    from gmskip_ros.ros import node  # noqa: F401
    from gmskip_ros.vlm import load_vlm  # noqa: F401


def _serve(orders: socket.socket) -> tuple[list[str], dict[str, str], str]:
    """Fork a process for every order; return, in that process, its arguments, environment, cwd."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the keepers
    while True:
        order, descriptors, _, _ = socket.recv_fds(orders, ORDER_BYTES, 2)
        if not order:  # the tests have ended
            os._exit(0)
        if os.fork() == 0:
            break
        for descriptor in descriptors:
            os.close(descriptor)
    orders.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    reports, output = descriptors
    pid = os.fork()
    if pid:  # the keeper: a parent that reports the exit status
        os.close(output)
        _, status = os.waitpid(pid, 0)
        os.write(reports, str(status).encode())
        os._exit(0)
    os.setsid()
    os.write(reports, str(os.getpid()).encode())
    os.close(reports)
    for stream in (1, 2):
        os.dup2(output, stream)
    os.close(output)
    arguments, env, cwd = json.loads(order)
    return arguments, env, cwd


def _run(arguments: list[str], env: dict[str, str], cwd: str) -> None:
    """Do what `python ARGUMENTS` does."""
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    sys.stdout.reconfigure(write_through=True)  # type: ignore[union-attr]
    option, *rest = arguments
    if option == '-m':
        module, *rest = rest
        sys.path[0], sys.argv = cwd, [module, *rest]
        runpy.run_module(module, run_name='__main__', alter_sys=True)
    elif option == '-c':
        code, *rest = rest
        sys.path[0], sys.argv = cwd, ['-c', *rest]
        exec(code, {'__name__': '__main__'})
    else:
        sys.path[0], sys.argv = str(Path(option).parent), [option, *rest]
        runpy.run_path(option, run_name='__main__')


if __name__ == '__main__':
    _import_the_engine()
    _run(*_serve(socket.socket(fileno=int(sys.argv[1]))))
