"""The program of the doctor's child processes: run one trial and report what it finds.

A trial is a generator of findings (dicts that JSON can hold). Each is reported as soon as it is
known, because the next step may crash. An exception is the trial's problem, in one line.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

from gmskip_ros.doctor.processes import ERROR_KEY, REPORT_VARIABLE
from gmskip_ros.ros.trials import first_line


def find_trial(name: str) -> Callable[..., Iterator[dict[str, Any]]]:
    """Return the trial `examine_<name>`: of ROS (rclpy, cv_bridge, dds) or of torch and model."""
    if name in ('torch', 'model'):
        from gmskip_ros.doctor import model_trials

        return getattr(model_trials, f'examine_{name}')
    from gmskip_ros.ros import trials

    return getattr(trials, f'examine_{name}')


def report(values: dict[str, Any]) -> None:
    """Append values to this process's report."""
    with open(os.environ[REPORT_VARIABLE], 'a', encoding='utf-8') as file:
        file.write(json.dumps(values) + '\n')


def main(name: str, arguments: str) -> None:
    """Run one trial with JSON arguments; exit with status 1 after reporting an error."""
    # Exit through Python, so that ROS releases its shared memory.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    try:
        for found in find_trial(name)(**json.loads(arguments)):
            report(found)
    except Exception as error:
        report({ERROR_KEY: first_line(error)})
        sys.exit(1)
