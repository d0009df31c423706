"""Python processes that start quickly: forked from one that has already imported the engine.

    process = WarmProcess([sys.executable, '-m', 'gmskip_ros.ros.dual_vlm_node', '--ros-args'], env)

Importing torch and transformers takes longer than what most tests do with them afterwards. Apart
from modules that are already imported, such a process is like any other: it has its own pid,
session, arguments, environment, working directory, output and exit status. Tests of the imports
themselves, or of variables that a library reads while it is imported, need a process of their own.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import runpy
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

PRELOADED = [
    'gmskip_ros.calibration.run',
    'gmskip_ros.cli.calibrate',
    'gmskip_ros.cli.progress',
    'gmskip_ros.report.calibration_report',
    'gmskip_ros.ros.node',
    'gmskip_ros.vlm.load',
    'transformers.models.clip.image_processing_pil_clip',
    'transformers.models.clip.modeling_clip',
    'transformers.models.llama.modeling_llama',
    'transformers.models.llava.modeling_llava',
]
POLL_S = 0.01


@functools.cache
def fork_context() -> Any:
    """Return the multiprocessing context whose processes are forked with PRELOADED."""
    # What libraries read while they are imported: one thread each, because cores are few, that
    # does not spin while it waits, as in the node.
    os.environ.update(OMP_NUM_THREADS='1', OMP_WAIT_POLICY='PASSIVE')
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(PRELOADED)
    return context


class WarmProcess:
    """A running `python -m MODULE ...`, `python -c CODE ...` or `python FILE ...`.

    It has those methods of subprocess.Popen that tests use. `stdout` is text, and has stderr in it.
    """

    _lock = threading.Lock()  # starting one process looks after all others

    def __init__(
        self, command: Sequence[str], env: Mapping[str, str], cwd: str | Path | None = None
    ) -> None:
        python, *arguments = command
        assert python == sys.executable, command
        context = fork_context()
        reading, writing = context.Pipe(duplex=False)
        order = (writing, arguments, dict(env), str(cwd or Path.cwd()))
        self._process = context.Process(target=_run, args=order)
        with self._lock:
            self._process.start()
        writing.close()
        self.stdout = os.fdopen(os.dup(reading.fileno()), errors='replace')
        reading.close()
        self.pid: int = self._process.pid

    def poll(self) -> int | None:
        """Return the exit status, or None while it runs."""
        with self._lock:
            return self._process.exitcode

    def wait(self, timeout_s: float | None = None) -> int:
        """Wait until it ends and return its exit status; raises subprocess.TimeoutExpired."""
        start_s = time.monotonic()
        while (status := self.poll()) is None:
            if timeout_s is not None and time.monotonic() - start_s > timeout_s:
                raise subprocess.TimeoutExpired(f'process {self.pid}', timeout_s)
            time.sleep(POLL_S)
        return status

    def send_signal(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)


def _run(output: Connection, arguments: list[str], env: dict[str, str], cwd: str) -> None:
    """Do what `python ARGUMENTS` does."""
    os.setsid()
    for stream in (1, 2):
        os.dup2(output.fileno(), stream)
    output.close()
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
