"""The README's table of parameters is made from the schema; its status keys are the node's."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / 'README.md').read_text()
SCHEMA = json.loads((ROOT / 'schema/dual_vlm.schema.json').read_text())


def leaves(properties: dict[str, Any], prefix: str = '') -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for name, entry in properties.items():
        if entry.get('type') == 'object':
            found.update(leaves(entry['properties'], f'{prefix}{name}.'))
        else:
            found[prefix + name] = entry
    return found


def parameter_table() -> str:
    """Return the table that README.md has to have."""
    parameters = SCHEMA['definitions']['dual_vlm']['properties']
    rows = ['| parameter | type | default | range | |', '|---|---|---|---|---|']
    for name, entry in leaves(parameters).items():
        kind = entry.get('type') or ' or '.join(each['type'] for each in entry['anyOf'])
        if 'enum' in entry:
            values = ', '.join(f'`{value}`' for value in entry['enum'])
        elif 'enum' in entry.get('items', {}):
            values = 'of ' + ', '.join(f'`{value}`' for value in entry['items']['enum'])
        elif 'minimum' in entry:
            values = f'{entry["minimum"]} to {entry["maximum"]}'
        else:
            values = ''
        default = entry['default']
        shown = default if isinstance(default, str) else json.dumps(default)
        description = entry['description'].replace('|', '\\|')
        rows.append(f'| `{name}` | {kind} | `{shown}` | {values} | {description} |')
    return '\n'.join(rows) + '\n'


def test_the_table_of_parameters_is_the_schemas() -> None:
    section = README.split('## Parameters', 1)[1]
    table = re.search(r'^\|.*?\n(?!\|)', section, re.MULTILINE | re.DOTALL)
    assert table is not None
    assert table[0] == parameter_table()
