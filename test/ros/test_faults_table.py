"""docs/faults.md and the tests agree: every row has a test, every fault test has a row."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ROW = re.compile(r'\| ([A-Z]\d+) \|(?:[^|]+\|){4} `([^`|]+)` \|')


def table() -> list[tuple[str, str]]:
    """Return the id and the test of every row."""
    lines = (ROOT / 'docs/faults.md').read_text().splitlines()
    rows = [line for line in lines if line.startswith('| ')][1:]
    matches = [ROW.fullmatch(row) for row in rows]
    assert all(matches), [row for row, match in zip(rows, matches, strict=True) if not match]
    return [match.groups() for match in matches if match]


def collected() -> dict[str, set[str]]:
    """Return the files of every test, by its name in the table."""
    files = sorted(
        path
        for pattern in ('test_faults_*.py', 'test_node_start_stop.py', 'test_signals.py')
        for path in (ROOT / 'test/ros').glob(pattern)
    )
    command = [sys.executable, '-m', 'pytest', '--collect-only', '-q', *map(str, files)]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    tests: dict[str, set[str]] = {}
    for line in printed.splitlines():
        if '::' in line:
            path, _, name = line.partition('::')
            if 'test_signals' in path:
                name = name.partition('[')[0]  # one row covers all moments
            tests.setdefault(name, set()).add(Path(path).name)
    return tests


def test_every_row_names_a_test_and_every_fault_test_has_a_row() -> None:
    rows, tests = table(), collected()
    assert len(rows) >= 40
    assert max(Counter(id for id, _ in rows).values()) == 1
    assert {name for _, name in rows} <= set(tests)
    of_faults = {
        name
        for name, files in tests.items()
        if any(file.startswith('test_faults_') for file in files)
    }
    here = {test_every_row_names_a_test_and_every_fault_test_has_a_row.__name__}
    assert of_faults - here <= {name for _, name in rows}
