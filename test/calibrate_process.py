"""Real processes of `gmskip calibrate` that start quickly.

    with CalibrateProcess(folder, ['--task', 'captioning', ...]) as process:
        process.wait_until(lambda: (folder / 'out' / 'checkpoint.json').exists())
        process.send_signal(signal.SIGINT)
        assert process.wait() == 130

Each is forked from a server that has done the slow imports, and is otherwise a process of its own:
signals, limits, exit status, working directory, output. `command_line` is the slow way, as a person
starts it. Deadlines only stop a test that hangs.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from warm_python import fork_context

DEADLINE_S = 150.0
BEFORE_A_SEARCH = re.compile(r'gmskip: .* of the full model .* \(x100\); answers: .*\r?\n')


def without_reports(errors: str) -> str:
    """Return what a command printed on stderr, without the line about each score that it uses."""
    return BEFORE_A_SEARCH.sub('', errors)


class CalibrateProcess:
    """A running `gmskip calibrate`; leaving the `with` block kills it."""

    def __init__(
        self,
        folder: Path,
        arguments: Sequence[Any],
        *,
        environment: Mapping[str, str] | None = None,
        save_every_s: float | None = None,
        file_size: int | None = None,
        terminal: str | None = None,
    ) -> None:
        """Start it in `folder`.

        `save_every_s`: how often it saves within rounds. `file_size`: the largest file that it may
        write, in bytes. `terminal`: the terminal for its errors and progress.
        """
        self.started = time.monotonic()
        folder.mkdir(parents=True, exist_ok=True)
        number = len(list(folder.glob('stdout_*')))
        self._stdout = folder / f'stdout_{number}'
        self._stderr = folder / f'stderr_{number}'
        self._stdout.touch()
        self._stderr.touch()
        self._process = fork_context().Process(
            target=_calibrate,
            args=(
                str(folder),
                [str(argument) for argument in arguments],
                str(self._stdout),
                terminal or str(self._stderr),
                dict(environment or {}),
                save_every_s,
                file_size,
            ),
        )
        self._process.start()

    @property
    def stdout(self) -> str:
        return self._stdout.read_text()

    @property
    def stderr(self) -> str:
        return without_reports(self._stderr.read_text())

    @property
    def is_running(self) -> bool:
        return self._process.is_alive()

    def send_signal(self, number: int) -> None:
        if self._process.is_alive():
            os.kill(self._process.pid, number)

    def wait(self) -> int:
        """Return the exit status at the end; the negative number of a signal that killed it."""
        self._process.join(DEADLINE_S)
        assert not self._process.is_alive(), f'it is still running; it printed:\n{self.stderr}'
        return self._process.exitcode

    def wait_until(self, condition: Callable[[], object]) -> None:
        """Wait until the condition holds, while it runs."""
        while not condition():
            assert self._process.is_alive(), f'it has ended; it printed:\n{self.stderr}'
            assert time.monotonic() < self.started + DEADLINE_S, f'it printed:\n{self.stderr}'
            time.sleep(0.005)

    def __enter__(self) -> CalibrateProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.send_signal(signal.SIGKILL)
        self._process.join(DEADLINE_S)


def _calibrate(
    folder: str,
    arguments: list[str],
    stdout: str,
    stderr: str,
    environment: dict[str, str],
    save_every_s: float | None,
    file_size: int | None,
) -> None:
    """Run the command; this is the forked process."""
    import torch

    from gmskip_ros.calibration import checkpoint
    from gmskip_ros.cli.main import main

    torch.set_num_threads(1)
    os.setsid()
    for name, number in ((stdout, 1), (stderr, 2)):
        os.dup2(os.open(name, os.O_WRONLY | os.O_APPEND), number)
    os.chdir(folder)
    os.environ.update(environment)
    if save_every_s is not None:
        checkpoint.SAVE_EVERY_S = save_every_s
    if file_size is not None:
        import resource

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # as Python does itself
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
    sys.exit(main(['calibrate', *arguments]))


def command_line(arguments: Sequence[Any], processes: int | None = None) -> list[str]:
    """Return the command as a person types it, with `torchrun` for several processes."""
    if processes is None:
        command = [sys.executable, '-m', 'gmskip_ros.cli.main', 'calibrate']
    else:
        command = [
            sys.executable,
            '-m',
            'torch.distributed.run',
            '--standalone',
            '--nproc-per-node',
            str(processes),
            '-m',
            'gmskip_ros.cli.calibrate',
        ]
    return [*command, *map(str, arguments)]


def start(command: Sequence[str], folder: Path) -> subprocess.Popen[str]:
    """Start a command in a folder and its own session, with one thread per process."""
    folder.mkdir(parents=True, exist_ok=True)
    return subprocess.Popen(
        command,
        cwd=folder,
        env={**os.environ, 'OMP_NUM_THREADS': '1'},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())


def found(out: Path, name: str = 'single_object') -> dict[str, Any]:
    """Return all that a finished calibration found, except what depends on the clock."""
    skip_list = yaml.safe_load((out / f'{name}.skip.yaml').read_text())
    assert skip_list.pop('created')
    result = read_json(out / 'calibration.json')
    rounds = [{**each, 'seconds': None} for each in result['rounds']]
    return {
        'skip list': skip_list,
        'rounds': rounds,
        'prefixes': result['prefixes'],
        'stopped_by': result['stopped_by'],
    }


def leftovers(out: Path) -> list[str]:
    """Return the files in a folder that only a killed process leaves there."""
    return [path.name for path in out.rglob('*') if path.name.endswith('.tmp')]
