"""Every module and name of the package that is written down anywhere exists.

Spawned processes, entry points, `python -m` lines and monkeypatches name modules in strings, which
no checker follows.
"""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ('.ci', '.github', 'config', 'docs', 'gmskip_ros', 'launch', 'schema', 'test', 'tools')
SUFFIXES = {'', '.cfg', '.json', '.md', '.py', '.rst', '.toml', '.txt', '.xml', '.yaml', '.yml'}
NAME = re.compile(r'(?<![\w.@/-])gmskip_ros(?:\.[A-Za-z_]\w*)+')


def names_in_files() -> dict[str, str]:
    """Return each dotted name and the first file that holds it."""
    files = [path for path in ROOT.iterdir() if path.is_file()]
    for folder in FOLDERS:
        files += (path for path in (ROOT / folder).rglob('*') if path.is_file())
    names: dict[str, str] = {}
    for path in sorted(files):
        if path.suffix in SUFFIXES and '__pycache__' not in path.parts:
            for name in NAME.findall(path.read_text('utf-8', 'replace')):
                names.setdefault(name, str(path.relative_to(ROOT)))
    return names


def resolve(name: str) -> object:
    """Return what a dotted name stands for; raises ImportError or AttributeError."""
    parts = name.split('.')
    found: object = importlib.import_module(parts[0])
    for index, part in enumerate(parts[1:], start=2):
        if not hasattr(found, part):
            importlib.import_module('.'.join(parts[:index]))
        found = getattr(found, part)
    return found


def test_names_are_found() -> None:
    names = names_in_files()
    assert 'gmskip_ros.cli.calibrate' in names  # torchrun's line in the documentation
    assert 'gmskip_ros.ros.dual_vlm_node' in names  # an entry point
    assert len(names) > 50


def test_every_name_exists() -> None:
    missing = {}
    for name, file in names_in_files().items():
        try:
            resolve(name)
        except (ImportError, AttributeError) as error:
            missing[name] = f'{file}: {error}'
    assert not missing


@pytest.mark.parametrize('name', ['cli.nothing', 'vlm.Vlm.nothing'])
def test_a_name_that_does_not_exist_is_noticed(name: str) -> None:
    with pytest.raises((ImportError, AttributeError)):
        resolve(f'gmskip_ros.{name}')
