"""The doctor's trials run in processes of their own: they may crash, hang, or lack a library."""

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

REPORT_VARIABLE = 'GMSKIP_DOCTOR_REPORT'  # the file to which a trial appends JSON objects, by line
ERROR_KEY = 'error'  # of what it reports, where it knows what is wrong
STOP_WITHIN_S = 3.0  # after SIGTERM; then it is killed
MAX_PROBLEM_LENGTH = 300
# -c puts the working directory first on the path; the node's own script does not.
TRIAL_PROGRAM = (
    'import sys; sys.path[:] = [path for path in sys.path if path]; '
    'from gmskip_ros.doctor.trials import main; main(*sys.argv[1:])'
)


@dataclass(frozen=True)
class Trial:
    """What a trial reported before it ended, and how it ended."""

    values: Mapping[str, Any]
    problem: str  # '' = it ended well, else one line
    timed_out: bool = False

    def __getitem__(self, key: str) -> Any:
        """Return a reported value, None where the trial did not come to it."""
        return self.values.get(key)


def run_trial(
    name: str,
    arguments: Mapping[str, Any],
    timeout_s: float,
    variables: Mapping[str, str] | None = None,
) -> Trial:
    """Run a function of doctor_trials.py, with arguments that JSON can hold, by this Python."""
    command = [sys.executable, '-c', TRIAL_PROGRAM, name, json.dumps(arguments)]
    return run_program(command, timeout_s, variables)


def run_program(
    command: Sequence[str], timeout_s: float, variables: Mapping[str, str] | None = None
) -> Trial:
    """Run a program that reports as a trial does; it and its children end within the time."""
    with tempfile.TemporaryDirectory(prefix='gmskip_doctor_') as folder:
        report, output = Path(folder) / 'report', Path(folder) / 'output'
        report.touch()
        # What libraries leave in the temporary folder (torch makes one there) goes with ours.
        own = {REPORT_VARIABLE: str(report), 'TMPDIR': folder}
        environment = {**os.environ, **(variables or {}), **own}
        try:
            with output.open('wb') as file:
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    env=environment,
                    start_new_session=True,  # so that its children end with it
                )
        except OSError as error:
            return Trial({}, f'{command[0]}: {error.strerror}')
        status: int | None = None
        try:
            status = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            pass
        finally:
            if status != 0:
                _end_group(process)
        values: dict[str, Any] = {}
        for line in report.read_text(encoding='utf-8', errors='replace').splitlines():
            try:
                values.update(json.loads(line))
            except ValueError:  # half a line of a process that was killed
                continue
        printed = output.read_text(encoding='utf-8', errors='replace')
    problem = _problem(status, values.pop(ERROR_KEY, ''), printed, timeout_s)
    return Trial(values, problem, timed_out=status is None)


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """End the process and its children. Asked first: killed, ROS nodes leave memory behind."""
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
    """Return in one line what went wrong: the trial's own word, or the last that was printed."""
    printed = re.sub(r'\x1b\[[0-9;]*m', '', printed)
    lines = [' '.join(line.split()) for line in printed.splitlines() if line.strip()]
    last = error or (lines[-1] if lines else '')
    last = last if len(last) <= MAX_PROBLEM_LENGTH else last[: MAX_PROBLEM_LENGTH - 4] + ' ...'
    if status is None:
        how = f'no end within {timeout_s:g} s'
    elif status < 0:
        how = f'crashed with {signal.Signals(-status).name}'
    elif status == 0:
        return error
    else:
        return last or f'ended with status {status}'
    return f'{how} ({last})' if last else how
