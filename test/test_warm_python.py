"""A forked process is like any other: what the tests of the node rely on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from warm_python import WarmProcess

REPORT = (
    'import os, sys; print(os.getcwd(), os.environ["A"], "B" in os.environ, sys.argv, '
    'os.getpid() == os.getsid(0), "torch" in sys.modules); '
    'print("to stderr", file=sys.stderr)'
)


def test_it_gets_its_arguments_environment_and_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv('B', '1')
    process = WarmProcess([sys.executable, '-c', REPORT, 'x', 'y z'], {'A': 'a'}, tmp_path)
    assert process.wait(60.0) == 0
    expected = f"{tmp_path} a False ['-c', 'x', 'y z'] True True\nto stderr\n"
    assert process.stdout.read() == expected


def test_a_file_is_run_with_its_folder_on_the_path(tmp_path: Path) -> None:
    (tmp_path / 'other.py').write_text('STATUS = 7')
    (tmp_path / 'file.py').write_text(
        'import sys\nfrom other import STATUS\nif __name__ == "__main__": sys.exit(STATUS)'
    )
    assert WarmProcess([sys.executable, str(tmp_path / 'file.py')], os.environ).wait(60.0) == 7


def test_a_traceback_is_printed_and_the_status_is_1() -> None:
    process = WarmProcess([sys.executable, '-c', 'raise ValueError("x")'], os.environ)
    assert process.wait(60.0) == 1
    assert process.stdout.read().splitlines()[-1] == 'ValueError: x'


def test_it_ends_with_the_signal_that_it_is_sent() -> None:
    process = WarmProcess([sys.executable, '-c', 'import time; time.sleep(600)'], os.environ)
    assert process.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait(60.0) == process.poll() == -signal.SIGKILL
    process.send_signal(signal.SIGKILL)  # as Popen's: not to another process of that number
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


def test_two_run_at_once_and_one_cannot_change_the_other() -> None:
    code = 'import gmskip_ros; print(hasattr(gmskip_ros, "x")); gmskip_ros.x = 1; input()'
    first = WarmProcess([sys.executable, '-c', code.replace('input()', '')], os.environ)
    assert (first.wait(60.0), first.stdout.read()) == (0, 'False\n')
    second = WarmProcess([sys.executable, '-c', code], os.environ)  # stdin is /dev/null
    assert second.wait(60.0) == 1 and second.stdout.read().startswith('False\n')
