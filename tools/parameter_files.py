"""Write what is made from the table of the node's parameters (gmskip_ros/pipeline/parameters.py).

    python tools/parameter_files.py

Writes config/dual_vlm.param.yaml, schema/dual_vlm.schema.json and docs/parameters.md. A test
compares the committed files with the table.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

import yaml

from gmskip_ros.pipeline.parameter_kinds import Spec
from gmskip_ros.pipeline.parameters import SPECS

ROOT = Path(__file__).resolve().parents[1]
WIDTH = 100
NOTICE = 'Made by tools/parameter_files.py from gmskip_ros/pipeline/parameters.py; edit the latter.'
COMMENT = '    # '
AT_RUN_TIME = 'May be changed at run time.'

DOCS_HEAD = f"""\
# Parameters of dual_vlm

<!-- {NOTICE} -->

Set them in a copy of `config/dual_vlm.param.yaml`, which the launch file takes as `param_file`, or
with `--ros-args -p NAME:=VALUE`. `ros2 param set` changes those that may be changed at run time,
from the next frame on; the node reads the others when it starts. The JSON Schema of parameter files
is `schema/dual_vlm.schema.json`.

| parameter | type | default | range or choices | at run time | description |
|---|---|---|---|---|---|
"""


def groups() -> list[tuple[str, list[Spec]]]:
    """Return the entries by their name's first part: one, or one per task."""
    return [
        (name, list(specs))
        for name, specs in groupby(SPECS.values(), lambda spec: spec.name.partition('.')[0])
    ]


def described(spec: Spec) -> str:
    """Return the description and whether the parameter can be changed while the node runs."""
    return f'{spec.description} {"Read-only." if spec.read_only else AT_RUN_TIME}'


def schema() -> str:
    """Return the JSON Schema of a parameter file."""
    properties: dict[str, Any] = {}
    for name, specs in groups():
        if specs[0].name == name:
            properties[name] = _schema_of(specs[0])
        else:
            leaves = {spec.name.partition('.')[2]: _schema_of(spec) for spec in specs}
            properties[name] = {'description': described(specs[0]), **_closed_object(leaves)}
    node = {'$ref': '#/definitions/dual_vlm'}
    document = {
        '$schema': 'http://json-schema.org/draft-07/schema#',
        'title': 'Parameters of dual_vlm',
        '$comment': NOTICE,
        'definitions': {'dual_vlm': _closed_object(properties)},
        **_closed_object({'/**': _closed_object({'ros__parameters': node})}),
    }
    return json.dumps(document, indent=2) + '\n'


def _schema_of(spec: Spec) -> dict[str, Any]:
    return {'description': described(spec), 'default': spec.default, **spec.kind.schema}


def _closed_object(properties: Mapping[str, Any]) -> dict[str, Any]:
    return {
        'type': 'object',
        'properties': properties,
        'required': list(properties),
        'additionalProperties': False,
    }


def param_file() -> str:
    """Return the parameter file: every default, under a comment that explains it."""
    lines = [
        f'# {NOTICE}',
        f'# Read when the node starts, unless marked "{AT_RUN_TIME}"',
        '/**:',
        '  ros__parameters:',
    ]
    for number, (name, specs) in enumerate(groups()):
        first = specs[0]
        values = values_text(first.kind.schema)
        comment = [first.description]
        if values:
            comment.append(f'{values[0].upper()}{values[1:]}.')
        if not first.read_only:
            comment.append(AT_RUN_TIME)
        lines += [''] if number else []
        lines += textwrap.wrap(
            ' '.join(comment), WIDTH, initial_indent=COMMENT, subsequent_indent=COMMENT
        )
        if first.name == name:
            lines.append(f'    {name}: {_yaml(first.default)}')
        else:
            lines.append(f'    {name}:')
            lines += [
                f'      {spec.name.partition(".")[2]}: {_yaml(spec.default)}' for spec in specs
            ]
    return '\n'.join(lines) + '\n'


def _yaml(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=10 * WIDTH)
    return text.removesuffix('...\n').strip()


def docs_page() -> str:
    """Return docs/parameters.md."""
    rows = []
    for spec in SPECS.values():
        kind = spec.kind.schema
        cells = [
            f'`{spec.name}`',
            kind.get('type') or ' or '.join(each['type'] for each in kind['anyOf']),
            f'`{spec.default if isinstance(spec.default, str) else json.dumps(spec.default)}`',
            values_text(kind),
            'no' if spec.read_only else 'yes',
            spec.description.replace('<', '&lt;'),
        ]
        rows.append('| ' + ' | '.join(cell.replace('|', '\\|') for cell in cells) + ' |\n')
    return DOCS_HEAD + ''.join(rows)


def values_text(kind: Mapping[str, Any]) -> str:
    """Return the choices or the range of a JSON Schema as a few words; '' if it has neither."""
    if 'enum' in kind:
        return 'one of ' + ', '.join(kind['enum'])
    if 'enum' in kind.get('items', {}):
        return 'any of ' + ', '.join(kind['items']['enum'])
    if 'maximum' in kind:
        return f'{kind["minimum"]} to {kind["maximum"]}'
    return ''


FILES = {
    'config/dual_vlm.param.yaml': param_file,
    'schema/dual_vlm.schema.json': schema,
    'docs/parameters.md': docs_page,
}

if __name__ == '__main__':
    for path, make in FILES.items():
        (ROOT / path).write_text(make(), encoding='utf-8')
