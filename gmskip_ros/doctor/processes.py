"""Child processes for the doctor's trials, which may crash, hang or lack a library."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPORT_VARIABLE = 'GMSKIP_DOCTOR_REPORT'  # the file to which a trial appends JSON lines
ERROR_KEY = 'error'  # in a report: why the trial failed, one line
STOP_WITHIN_S = 3.0  # after SIGTERM, before SIGKILL
MAX_PROBLEM_LENGTH = 300
# Python's -c puts the working directory first on the path; the node's script does not.
TRIAL_PROGRAM = (
    'import sys; sys.path[:] = [path for path in sys.path if path]; '
    'from gmskip_ros.doctor.trials import main; main(*sys.argv[1:])'
)


@dataclass(frozen=True)
class Trial:
    """What a trial reported before it ended, and how it ended."""

    values: Mapping[str, Any]
    problem: str  # '' if it succeeded, otherwise one line
    timed_out: bool = False

    def __getitem__(self, key: str) -> Any:
        """Return a reported value, None if the trial did not get that far."""
        return self.values.get(key)


def run_trial(
    name: str,
    arguments: Mapping[str, Any],
    timeout_s: float,
    variables: Mapping[str, str] | None = None,
) -> Trial:
    """Run a trial (see gmskip_ros.doctor.trials) with this Python; arguments must fit JSON."""
    command = [sys.executable, '-c', TRIAL_PROGRAM, name, json.dumps(arguments)]
    return run_program(command, timeout_s, variables)


def run_program(
    command: Sequence[str], timeout_s: float, variables: Mapping[str, str] | None = None
) -> Trial:
    """Run a program that reports like a trial; stop it and its children after the timeout."""
    with tempfile.TemporaryDirectory(prefix='gmskip_doctor_') as folder:
        report, output = Path(folder) / 'report', Path(folder) / 'output'
        report.touch()
        # Files that libraries leave in the temporary folder are removed with ours.
        ours = {REPORT_VARIABLE: str(report), 'TMPDIR': folder}
        environment = {**os.environ, **(variables or {}), **ours}
        try:
            with output.open('wb') as file:
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    env=environment,
                    start_new_session=True,  # so that its children can be stopped with it
                )
        except OSError as error:
            return Trial({}, f'cannot be started: {error.strerror}')
        status: int | None = None
        try:
            status = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            pass
        finally:
            if status != 0:
                _stop_group(process)
        values: dict[str, Any] = {}
        for line in report.read_text(encoding='utf-8', errors='replace').splitlines():
            try:
                values.update(json.loads(line))
            except ValueError:  # a line cut off when the process was killed
                continue
        printed = output.read_text(encoding='utf-8', errors='replace')
    problem = _problem(status, values.pop(ERROR_KEY, ''), printed, timeout_s)
    return Trial(values, problem, timed_out=status is None)


def _stop_group(process: subprocess.Popen[bytes]) -> None:
    """Stop the process and its children; SIGTERM first, so that ROS frees its shared memory."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        try:
            process.wait(STOP_WITHIN_S)
        except subprocess.TimeoutExpired:
            continue
    process.wait()


def _problem(status: int | None, error: str, printed: str, timeout_s: float) -> str:
    """Return what went wrong, in one line: the reported error or the last line printed."""
    printed = re.sub(r'\x1b\[[0-9;]*m', '', printed)
    lines = [' '.join(line.split()) for line in printed.splitlines() if line.strip()]
    last = error or (lines[-1] if lines else '')
    last = last if len(last) <= MAX_PROBLEM_LENGTH else last[: MAX_PROBLEM_LENGTH - 4] + ' ...'
    if status is None:
        how = f'not finished within {timeout_s:g} s'
    elif status < 0:
        how = f'crashed with {signal.Signals(-status).name}'
    elif status == 0:
        return error
    else:
        return last or f'exited with status {status}'
    return f'{how} ({last})' if last else how
