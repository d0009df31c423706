"""The rows of frames.csv and frames.jsonl: one branch's answer to one task on one frame each.

Rows are made from what the node publishes, so that live and offline runs write the same files.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gmskip_ros import files
from gmskip_ros.errors import UserError
from gmskip_ros.numbers import is_number, is_whole_number
from gmskip_ros.pipeline.timing import ISOLATED, SHARED


class ReportError(UserError):
    """A report cannot be made from a file or run; the message is one line with the remedy."""


@dataclass(frozen=True)
class FrameRow:
    """One branch's answer to one task on one frame.

    `agree`, `jaccard` and `rouge_l` compare a skip row with full on the same frame; None if not
    measured. Times are in ms; `total_ms` counts preprocessing to the last token.
    Fields with a default were added later: files without them are read.
    """

    frame: int  # 1, 2, ... of the answered frames
    stamp_ns: int
    task: str
    branch: str  # 'skip' or 'full'
    operating_point: str  # '0' for full, as the node publishes it
    answer: str
    raw_text: str
    tokens: int
    preprocess_ms: float
    vision_ms: float
    prefill_ms: float
    decode_ms: float
    total_ms: float
    vision_shared: bool
    in_vocabulary: bool
    sparsity: float
    skipped_blocks: tuple[int, ...]  # in the order of removal
    agree: bool | None
    jaccard: float | None
    rouge_l: float | None
    model: str
    machine: str  # 'NAME (device, dtype)', with the quantisation if any
    # Probabilities of the answer's tokens; None in files of earlier versions.
    confidence_mean: float | None = None
    confidence_min: float | None = None
    confidence_margin: float | None = None  # single_object only
    match: str | None = None  # how the answer was read
    image_fit: str | None = None  # how the frame became the model's square
    image_tokens: int | None = None  # that the frame made
    timing: str = ISOLATED  # 'shared': the times leave out what the answers of the branch share
    shared_ms: float | None = None  # that time, in the first row of each branch on a frame

    @property
    def is_shared(self) -> bool:
        """Whether the times leave out what answers share: they do not make a speed-up."""
        return self.timing == SHARED


COLUMNS: tuple[str, ...] = tuple(field.name for field in dataclasses.fields(FrameRow))


def row_from_values(
    frame: int,
    stamp_ns: int,
    name: str,
    in_vocabulary: bool,
    values: Mapping[str, str],
    comparison: Mapping[str, str] | None,
    *,
    model: str,
    machine: str,
) -> FrameRow:
    """Return the row of a published status `name`, '<task>/<branch>'.

    `values` and `comparison` are the key/values of the result's and the comparison's status, as
    records.py writes them; `comparison` is None for full rows and if one branch ran alone. Raises
    KeyError or ValueError for values that the node does not publish.
    """
    task, _, branch = name.rpartition('/')
    compared = comparison or {}
    return FrameRow(
        frame=frame,
        stamp_ns=stamp_ns,
        task=task,
        branch=branch,
        operating_point=values['operating_point'],
        answer=values['answer'],
        raw_text=values['raw_text'],
        tokens=int(values['tokens']),
        preprocess_ms=float(values['preprocess_ms']),
        vision_ms=float(values['vision_ms']),
        prefill_ms=float(values['prefill_ms']),
        decode_ms=float(values['decode_ms']),
        total_ms=float(values['total_ms']),
        vision_shared=values['vision_shared'] == 'true',
        in_vocabulary=in_vocabulary,
        sparsity=float(values['sparsity']),
        skipped_blocks=tuple(int(block) for block in values['skipped_blocks'].split(',') if block),
        agree=compared['agree'] == 'true' if comparison else None,
        jaccard=float(compared['jaccard']) if 'jaccard' in compared else None,
        rouge_l=float(compared['rouge_l']) if 'rouge_l' in compared else None,
        model=model,
        machine=machine,
        confidence_mean=_optional_number(values, 'confidence_mean'),
        confidence_min=_optional_number(values, 'confidence_min'),
        confidence_margin=_optional_number(values, 'confidence_margin'),
        match=values.get('match'),
        image_fit=values.get('image_fit'),
        image_tokens=int(values['image_tokens']) if 'image_tokens' in values else None,
        timing=values.get('timing', ISOLATED),
        shared_ms=_optional_number(values, 'shared_ms'),
    )


def _optional_number(values: Mapping[str, str], key: str) -> float | None:
    """Return the number, or None if there is no such key or it has no value."""
    return float(values[key]) if values.get(key) else None


def csv_bytes(rows: Iterable[FrameRow]) -> bytes:
    """Return frames.csv: UTF-8, a header line, lists as '29 16 27', None as an empty field."""
    fields = ([_csv_field(getattr(row, name)) for name in COLUMNS] for row in rows)
    return files.csv_bytes([COLUMNS, *fields])


def _csv_field(value: object) -> object:
    if isinstance(value, bool):
        return 'true' if value else 'false'
    if isinstance(value, tuple):
        return ' '.join(map(str, value))
    return value


def json_line(row: FrameRow) -> str:
    """Return a row as one line of frames.jsonl, ASCII, with its line end."""
    return json.dumps({name: getattr(row, name) for name in COLUMNS}) + '\n'


def read_json_lines(path: str | os.PathLike[str]) -> list[FrameRow]:
    """Return the rows of a frames.jsonl, in its order.

    Skips empty lines and a torn last line, which a killed run leaves; ignores unknown keys. Raises
    ReportError for a file that cannot be read or is not a frames.jsonl.
    """
    try:
        content = Path(path).expanduser().read_bytes()
    except OSError as error:
        raise ReportError(
            f'{path}: {error.strerror or error}; give a frames.jsonl that gmskip replay wrote'
        ) from None
    lines = content.split(b'\n')
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line.decode('utf-8'))
        except (ValueError, RecursionError):
            if number == len(lines):  # without a line end
                break
            raise _bad_line(path, number, 'is not JSON') from None
        rows.append(_row(record, path, number))
    return rows


def _row(record: Any, path: object, number: int) -> FrameRow:
    if not isinstance(record, dict):
        raise _bad_line(path, number, 'is not a JSON object')
    fields = {}
    for name, (is_right, what) in _READERS.items():
        if name not in record and name in _ADDED_LATER:
            continue
        if name not in record:
            raise _bad_line(path, number, f'has no {name!r}')
        if not is_right(record[name]):
            raise _bad_line(path, number, f'{name}: {str(record[name])[:80]!r} is not {what}')
        fields[name] = record[name]
    fields['skipped_blocks'] = tuple(fields['skipped_blocks'])
    return FrameRow(**fields)


def _bad_line(path: object, number: int, what: str) -> ReportError:
    return ReportError(
        f'{path}: line {number} {what}; give a frames.jsonl that gmskip replay wrote'
    )


def _is_integer(value: object) -> bool:
    return is_whole_number(value) and abs(value) < 2**63


def _is_number(value: object) -> bool:
    return is_number(value) and abs(value) < 2**63  # NaN fails this


# What a field of FrameRow must be in JSON, by its annotation.
_KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    'int': (_is_integer, 'a whole number'),
    'int | None': (
        lambda value: value is None or _is_integer(value),
        'a whole number or null',
    ),
    'str': (lambda value: isinstance(value, str), 'a string'),
    'str | None': (lambda value: value is None or isinstance(value, str), 'a string or null'),
    'float': (_is_number, 'a number'),
    'float | None': (lambda value: value is None or _is_number(value), 'a number or null'),
    'bool': (lambda value: isinstance(value, bool), 'true or false'),
    'bool | None': (lambda value: value is None or isinstance(value, bool), 'true, false or null'),
    'tuple[int, ...]': (
        lambda value: isinstance(value, list) and all(map(_is_integer, value)),
        'a list of whole numbers',
    ),
}
_READERS = {field.name: _KINDS[str(field.type)] for field in dataclasses.fields(FrameRow)}
_ADDED_LATER = {
    field.name for field in dataclasses.fields(FrameRow) if field.default is not dataclasses.MISSING
}
