"""Parameter files on the command line: whom their keys are for, as rcl reads them."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from gmskip_ros.pipeline.parameter_kinds import flat_parameters

# Of our parameters, those that nodes of other packages have as well.
COMMON_NAMES = frozenset(('model', 'device', 'dtype', 'labels', 'tasks'))


def files_in(arguments: Sequence[str]) -> list[str]:
    """Return the paths given with --params-file, within --ros-args, in their order."""
    files, in_ros_args = [], False
    for argument, following in zip(arguments, [*arguments, ''][1:], strict=True):
        if argument == '--ros-args':
            in_ros_args = True
        elif argument == '--':
            in_ros_args = False
        elif in_ros_args and argument == '--params-file':
            files.append(following)
    return files


def matches(key: str, full_name: str) -> bool:
    """Return whether rcl gives the parameters under this key to the node of this full name.

    `*` stands for one name, `**` for any number of them; the leading slash may be missing.
    """
    pattern = key if key.startswith('/') else f'/{key}'
    pattern = re.sub(r'/\*\*', r'(/\\w+)*', pattern)
    pattern = re.sub(r'/\*', r'(/\\w+)', pattern)
    return re.fullmatch(pattern, full_name) is not None


def misplaced(
    path: str, full_name: str, names: Collection[str], node_names: Collection[str]
) -> str:
    """Return why a file gives the node nothing though it seems meant to; else ''.

    It seems so if it is empty, has a key that ends in one of `node_names`, or has a key of which
    most parameters are among `names`, COMMON_NAMES not counted alone. Files for other nodes, and
    those rcl cannot read, are ''.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding='utf-8'))
    except (OSError, ValueError, yaml.YAMLError):
        return ''
    sections = {
        key: [name for name, _ in flat_parameters(section)] for key, section in _in(content)
    }
    if not any(sections.values()):
        return 'it is empty: write /**: {ros__parameters: {...}}'
    if any(set(sections[key]) & set(names) for key in sections if matches(key, full_name)):
        return ''
    for key, found in sections.items():
        own = [name for name in found if name in names]
        is_ours = 2 * len(own) > len(found) and not COMMON_NAMES.issuperset(own)
        if not matches(key, full_name) and (key.rpartition('/')[2] in node_names or is_ours):
            return f'its key {key!r} does not match {full_name}: write /** or {full_name}'
    return ''


def _in(content: Any, prefix: str = '') -> Iterator[tuple[str, Any]]:
    """Yield the key and the section of each ros__parameters; nested keys joined by slashes."""
    for key, value in content.items() if isinstance(content, dict) else ():
        if key == 'ros__parameters':
            yield prefix, value
        else:
            yield from _in(value, f'{prefix}/{key}' if prefix else str(key))
