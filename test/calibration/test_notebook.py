"""The code of docs/notebook.md runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import matplotlib

import gmskip_ros.calibration as room

PAGE = Path(__file__).resolve().parents[2] / 'docs' / 'notebook.md'


def test_the_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    matplotlib.use('agg')
    [code] = re.findall(r'^```python\n(.*?)^```', PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert len([line for line in code.splitlines() if line]) <= 20
    names: dict[str, object] = {}
    *statements, last = code.strip().splitlines()
    exec('\n'.join(statements), names)
    assert eval(last, names)
    assert len(names['prefixes']) > 1, 'nothing was removed'


def test_everything_that_the_room_exports_is_there():
    for name in room.__all__:
        assert getattr(room, name) is not None
    named = re.findall(r'`(\w+)`', PAGE.read_text().split('|---|---|')[1])
    assert set(named) <= set(room.__all__) and len(named) >= 8
