"""The skip-list file, `*.skip.yaml`: read strictly, written whole or not at all."""

from __future__ import annotations

import datetime
import os
from collections.abc import Mapping
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from gmskip_ros.files import write_atomically
from gmskip_ros.skipping.errors import SkipListError
from gmskip_ros.skipping.skip_list import (
    NOT_STATED,
    Baselines,
    ConstantBaseline,
    Prompt,
    Removal,
    SkipList,
    short,
)
from gmskip_ros.skipping.skip_set import PHASES

SCHEMA = 'gmskip/skip-list/2'
SCHEMA_1 = (
    'gmskip/skip-list/1'  # without what version 2 added; still read, and written where enough
)
_SUFFIX = '.skip.yaml'
# In the order in which they are written.
_FIELDS = (
    'schema',
    'model',
    'text_model_type',
    'num_blocks',
    'task',
    'target',
    'method',
    'phases',
    'metric',
    'prompt',
    'dtype',
    'quantization',
    'image_fit',
    'max_image_tokens',
    'match',
    'kv',
    'image_kv',
    'protect',
    'min_score_ratio',
    'full_score',
    'near_tie_margin',
    'forced',
    'baselines',
    'warnings',
    'nested',
    'removed',
    'sets',
    'operating_points',
    'calibration',
    'created',
    'software',
    'provenance',
)
# By version 2; all are optional: absent = not stated.
_ADDED = (
    'quantization',
    'image_fit',
    'max_image_tokens',
    'match',
    'kv',
    'image_kv',
    'protect',
    'near_tie_margin',
    'forced',
    'baselines',
    'warnings',
)
_PROMPT_FIELDS = ('text', 'template_sha256', 'max_new_tokens', 'rendered')
_PROMPT_ADDED = ('rendered',)
_REMOVAL_FIELDS = ('block', 'score', 'phases')
_REMOVAL_ADDED = ('phases',)
_SET_FIELDS = ('blocks', 'score')
_BASELINES_FIELDS = ('constant', 'empty')
_CONSTANT_FIELDS = ('answer', 'score')


def shipped_skip_lists() -> list[str]:
    """Return the names of the skip lists that are shipped with the package, sorted."""
    folder = resources.files('gmskip_ros') / 'assets' / 'skip_lists'
    if not folder.is_dir():
        return []
    return sorted(
        entry.name.removesuffix(_SUFFIX)
        for entry in folder.iterdir()
        if entry.name.endswith(_SUFFIX)
    )


def load_skip_list(name_or_path: str | os.PathLike[str]) -> SkipList:
    """Return a skip list, by the name of a shipped one ('gmskip_captioning') or by its path.

    Raises SkipListError (one line: file, field, value, remedy) if there is no such list, or if
    anything in it violates the format.
    """
    given = os.fspath(name_or_path)
    if not given.strip():
        raise SkipListError(f'skip list: {given!r} does not name a file; {_shipped()}')
    if given in shipped_skip_lists():
        entry = resources.files('gmskip_ros') / 'assets' / 'skip_lists' / (given + _SUFFIX)
        return _parse(entry.read_bytes(), given)
    return _parse(_read(given), given)


def save_skip_list(skip_list: SkipList, path: str | os.PathLike[str]) -> None:
    """Write a skip list to a file, so that load_skip_list returns an equal one.

    An existing file is replaced whole. Raises SkipListError if the list cannot be written; an
    existing file is then unchanged.
    """
    content = _format(skip_list).encode('utf-8')
    try:
        write_atomically(path, content)
    except (OSError, ValueError, RuntimeError) as error:
        raise SkipListError(
            f'{_shown(path)}: cannot be written ({_reason(error)}); '
            'check the folder, its permissions and the free space'
        ) from error


def _shown(path: str | os.PathLike[str]) -> str:
    text = os.fspath(path)
    return text if text.isprintable() else repr(text)  # an error is one line


def _reason(error: Exception) -> str:
    return getattr(error, 'strerror', None) or ' '.join(str(error).split())


def _shipped() -> str:
    names = ', '.join(shipped_skip_lists()) or 'none'
    return f'use a shipped list ({names}) or the path of a {_SUFFIX} file'


def _read(given: str) -> bytes:
    try:
        path = Path(given).expanduser()
        if path.is_dir():
            raise SkipListError(f'{_shown(given)}: is a folder; name the {_SUFFIX} file in it')
        if not path.exists():
            if '/' in given or given.endswith(('.yaml', '.yml')):
                raise SkipListError(f'{_shown(given)}: does not exist; {_shipped()}')
            raise SkipListError(f'skip list: {given!r} is unknown; {_shipped()}')
        if not path.is_file():  # reading a pipe or a device might never end
            raise SkipListError(f'{_shown(given)}: is not a regular file; name a {_SUFFIX} file')
        return path.read_bytes()
    except SkipListError:
        raise
    except (OSError, ValueError, RuntimeError) as error:
        raise SkipListError(
            f'{_shown(given)}: cannot be read ({_reason(error)}); check its permissions'
        ) from error


def _parse(content: bytes, source: str) -> SkipList:
    try:
        return _from_mapping(_load_yaml(content))
    except SkipListError as error:
        raise SkipListError(f'{_shown(source)}: {error}') from error.__cause__


def _load_yaml(content: bytes) -> object:
    try:
        text = content.decode('utf-8-sig')
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b'\n') + 1
        raise SkipListError(f'line {line}: is not UTF-8 text; save the file as UTF-8') from None
    try:
        _refuse_repeated_keys(yaml.compose(text, Loader=yaml.SafeLoader))
        return yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f'line {mark.line + 1}, column {mark.column + 1}: ' if mark else ''
        problem = error.problem or error.context
        raise SkipListError(f'{where}is not valid YAML ({problem})') from None
    except SkipListError:
        raise
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise SkipListError(f'is not valid YAML ({_reason(error)})') from None


def _refuse_repeated_keys(root: yaml.Node | None) -> None:
    """Raise SkipListError for a key that is given twice; YAML silently keeps the last one."""
    waiting, seen = [root], set()
    while waiting:
        node = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            waiting += node.value
        elif isinstance(node, yaml.MappingNode):
            keys = set()
            for key, value in node.value:
                if isinstance(key, yaml.ScalarNode):
                    if key.value in keys:
                        line = key.start_mark.line + 1
                        raise SkipListError(
                            f'line {line}: {short(key.value)} is given twice; remove one'
                        )
                    keys.add(key.value)
                waiting += [key, value]


def _from_mapping(data: object) -> SkipList:
    if not isinstance(data, Mapping):
        raise SkipListError(f'is not a skip list; the first field must be schema: {SCHEMA}')
    schema = data.get('schema')
    if schema not in (SCHEMA, SCHEMA_1):
        raise SkipListError(
            f'schema: {short(schema)} is unknown; this version reads {SCHEMA} and {SCHEMA_1}'
        )
    if schema == SCHEMA_1:
        _refuse_fields('', data, _ADDED)
        _refuse_fields('prompt.', data.get('prompt'), _PROMPT_ADDED)
        _refuse_values_of_version_2(data)
    nested = data.get('nested', True)
    absent = ('nested', 'removed', 'operating_points') if nested is False else ('nested', 'sets')
    _check_fields('', data, _FIELDS, [name for name in _FIELDS if name not in (*absent, *_ADDED)])
    if nested is not False and 'sets' in data:
        raise SkipListError('sets: allowed only with nested: false; write that or remove sets')
    values = {name: value for name, value in data.items() if name != 'schema'}
    values['prompt'] = Prompt(**_record('prompt', data['prompt'], _PROMPT_FIELDS, _PROMPT_ADDED))
    if 'removed' in data:
        values['removed'] = _removals(data['removed'])
    if isinstance(data.get('sets'), Mapping):  # SkipList refuses anything else
        values['sets'], values['set_scores'] = _scored_sets(data['sets'])
    if data.get('baselines') is not None:
        values['baselines'] = _baselines(data['baselines'])
    if data.get('warnings', ()) is None:
        values['warnings'] = ()
    if nested is not False and data['operating_points'] is None:
        raise SkipListError('operating_points: null; write {high_performance: ..., ...}')
    if isinstance(data['created'], datetime.datetime):  # YAML's type for an unquoted time
        values['created'] = _as_utc(data['created'])
    return SkipList(**values)


def _removals(entries: object) -> tuple[Removal, ...]:
    if not isinstance(entries, list):
        raise SkipListError(
            f'removed: {short(entries)} is not a list of {{block: ..., score: ...}}'
        )
    return tuple(
        Removal(**_record(f'removed[{i}]', entry, _REMOVAL_FIELDS, _REMOVAL_ADDED))
        for i, entry in enumerate(entries)
    )


def _scored_sets(sets: Mapping[Any, Any]) -> tuple[dict[Any, Any], dict[Any, Any]]:
    """Return the blocks and the scores by size; a plain list of blocks has no score."""
    blocks: dict[Any, Any] = {}
    scores: dict[Any, Any] = {}
    for size, entry in sets.items():
        if isinstance(entry, Mapping):
            entry = _record(f'sets.{short(size)}', entry, _SET_FIELDS)
            blocks[size], scores[size] = entry['blocks'], entry['score']
        else:
            blocks[size] = entry
    return blocks, scores


def _baselines(entry: object) -> Baselines:
    values = _record('baselines', entry, _BASELINES_FIELDS, _BASELINES_FIELDS)
    if values.get('constant') is not None:
        constant = _record('baselines.constant', values['constant'], _CONSTANT_FIELDS)
        values['constant'] = ConstantBaseline(**constant)
    return Baselines(**values)


def _refuse_values_of_version_2(data: Mapping[Any, Any]) -> None:
    """Raise SkipListError for what a field of version 1 can hold only in version 2."""
    phases, removed, sets = (data.get(name) for name in ('phases', 'removed', 'sets'))
    found = []
    if isinstance(phases, list) and 'image' in phases:
        found.append(f'phases: {short(phases)}')
    if isinstance(sets, Mapping):
        found += [
            f'sets.{short(size)}: {short(entry)}'
            for size, entry in sets.items()
            if isinstance(entry, Mapping)
        ]
    if found:
        raise SkipListError(f'{found[0]} is not possible in {SCHEMA_1}; write schema: {SCHEMA}')
    for i, entry in enumerate(removed if isinstance(removed, list) else ()):
        _refuse_fields(f'removed[{i}].', entry, _REMOVAL_ADDED)


def _refuse_fields(prefix: str, value: object, names: tuple[str, ...]) -> None:
    for name in names:
        if isinstance(value, Mapping) and name in value:
            raise SkipListError(
                f'{prefix}{name}: is not a field of {SCHEMA_1}; write schema: {SCHEMA}'
            )


def _record(
    name: str, value: object, fields: tuple[str, ...], optional: tuple[str, ...] = ()
) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise SkipListError(f'{name}: {short(value)} is not {{{", ".join(fields)}: ...}}')
    required = [field for field in fields if field not in optional]
    _check_fields(f'{name}.', value, fields, required)
    return dict(value)


def _check_fields(
    prefix: str,
    value: Mapping[object, object],
    fields: tuple[str, ...],
    required: tuple[str, ...] | list[str],
) -> None:
    for name in value:
        if name not in fields:
            raise SkipListError(f'{prefix}{short(name)}: is not a field of {SCHEMA}; remove it')
    for name in required:
        if name not in value:
            raise SkipListError(
                f'{prefix}{name}: is missing; add it (null or {NOT_STATED!r} if unknown)'
            )


def _as_utc(time: datetime.datetime) -> str | datetime.datetime:
    if time.tzinfo is None or time.microsecond:
        return time  # SkipList refuses it: it cannot be converted to whole seconds of UTC
    return time.astimezone(datetime.timezone.utc).strftime('%Y-%m-%dT%H:%M:%SZ')


def _format(skip_list: SkipList) -> str:
    """Return the file's text: fields in a fixed order, one line per removal."""
    values = {**vars(skip_list), 'prompt': asdict(skip_list.prompt)}
    prompt = values['prompt']
    for name in _PROMPT_ADDED:
        if prompt[name] is None:
            del prompt[name]
    absent = {name for name in _ADDED if values[name] in (None, ())}
    values['schema'] = SCHEMA_1 if _is_version_1(skip_list, absent) else SCHEMA
    if skip_list.nested:
        absent |= {'nested', 'sets'}
    else:
        absent |= {'removed'}
        values['sets'] = {size: _set_entry(skip_list, size) for size in skip_list.sets}
    if skip_list.baselines is not None:
        values['baselines'] = _baselines_entry(skip_list.baselines)
    for name in ('phases', 'protect', 'warnings'):
        values[name] = list(values[name] or ())
    lines = []
    for name in _FIELDS:
        if name in absent:
            continue
        if name == 'removed' and skip_list.removed:
            lines.append('removed:\n')
            lines += [f'  - {_flow(_removal_entry(removal))}\n' for removal in skip_list.removed]
        elif name == 'removed':
            lines.append('removed: []\n')
        elif name == 'created' and skip_list.created is not None:
            lines.append(f'created: {skip_list.created}\n')  # unquoted: YAML reads it as a time
        elif isinstance(values[name], (dict, list)):
            lines.append(f'{name}: {_flow(values[name])}\n')
        else:
            lines.append(_dump({name: _plain(values[name])}, flow=False))
    return ''.join(lines)


def _is_version_1(skip_list: SkipList, absent: set[str]) -> bool:
    """Return whether version 1 can hold the list; `absent`: its _ADDED fields without a value."""
    return (
        len(absent) == len(_ADDED)
        and skip_list.prompt.rendered is None
        and set(skip_list.phases) <= set(PHASES)
        and all(removal.phases is None for removal in skip_list.removed)
        and not skip_list.set_scores
    )


def _removal_entry(removal: Removal) -> dict[str, Any]:
    entry: dict[str, Any] = {'block': removal.block}
    if removal.phases is not None:
        entry['phases'] = list(removal.phases)
    return {**entry, 'score': _plain(removal.score)}


def _set_entry(skip_list: SkipList, size: int) -> list[int] | dict[str, Any]:
    blocks = list(skip_list.sets[size])
    if not skip_list.set_scores:
        return blocks
    return {'blocks': blocks, 'score': _plain(skip_list.set_scores[size])}


def _baselines_entry(baselines: Baselines) -> dict[str, Any]:
    """Return what is stated; {} if nothing is."""
    entry: dict[str, Any] = {}
    if baselines.constant is not None:
        score = _plain(baselines.constant.score)
        entry['constant'] = {'answer': baselines.constant.answer, 'score': score}
    if baselines.empty is not None:
        entry['empty'] = _plain(baselines.empty)
    return entry


def _plain(value: Any) -> Any:
    """Return a NumPy float64, which is a float that YAML cannot write, as Python's float."""
    return float(value) if isinstance(value, float) else value


def _flow(value: object) -> str:
    return _dump(value, flow=True).rstrip('\n')


class _Dumper(yaml.SafeDumper):
    """Writes text of several lines as one, with its line breaks escaped."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = '"' if '\n' in text else None
    return dumper.represent_scalar('tag:yaml.org,2002:str', text, style=style)


_Dumper.add_representer(str, _represent_text)


def _dump(value: object, flow: bool) -> str:
    # No line is wrapped: with one field per line, a diff of two files is easy to read.
    text = yaml.dump(
        value,
        Dumper=_Dumper,
        default_flow_style=flow,
        sort_keys=False,
        allow_unicode=True,
        width=float('inf'),
    )
    if '\x85' in text:  # PyYAML does not escape this line break, and reads it as a space
        text = yaml.dump(
            value, Dumper=_Dumper, default_flow_style=flow, sort_keys=False, width=float('inf')
        )
    return text
