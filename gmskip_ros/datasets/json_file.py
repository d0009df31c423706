"""JSON files of datasets, read with errors that name the place and the problem."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from gmskip_ros.datasets.errors import DatasetError, one_line
from gmskip_ros.numbers import is_number, is_whole_number

_SHOWN = 5  # names in a note
_UNUSED = ('segmentation', 'tokens')  # most of COCO's and Karpathy's files, read by nothing
_DECIMAL = re.compile(r'0|-?[1-9][0-9]*')


def read_text(path: Path) -> str:
    """Return the text of a UTF-8 file. Raises DatasetError."""
    try:
        return path.read_text('utf-8-sig')
    except UnicodeDecodeError as error:
        raise DatasetError(f'{path}: is not UTF-8 text; save the file as UTF-8') from error


def parse_json(text: str) -> Any:
    """Return the JSON value without the fields in _UNUSED. Raises ValueError, RecursionError.

    They are dropped while reading, so that a large file needs little more memory than its text.
    """
    return json.loads(text, object_hook=_without_unused)


def read_json(path: Path) -> Any:
    """Return the JSON value in the file, as parse_json does. Raises DatasetError."""
    try:
        return parse_json(read_text(path))
    except DatasetError:
        raise
    except (ValueError, RecursionError) as error:
        raise DatasetError(f'{path}: is not JSON ({error}); fetch the file again') from error


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in the file; raise DatasetError if it contains anything else."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise DatasetError(f'{path}: contains {kind_of(content)}; it must contain an object')
    return content


def _without_unused(values: dict[str, Any]) -> dict[str, Any]:
    for name in _UNUSED:
        values.pop(name, None)
    return values


def entries(content: dict[str, Any], name: str, path: Path) -> list[Any]:
    """Return the list `name`, its entries unchecked; raise DatasetError if it is not a list."""
    if name not in content:
        raise DatasetError(f'{path}: {name} is missing; it must be a list of objects')
    if not isinstance(content[name], list):
        raise DatasetError(f'{path}: {name} is {kind_of(content[name])}; it must be a list')
    return content[name]


def records(content: dict[str, Any], name: str, path: Path) -> Iterator[Record]:
    """Yield the entries of the list `name` as Records; raise DatasetError if it is not a list."""
    for index, values in enumerate(entries(content, name, path)):
        yield Record(values, path, f'{name}[{index}]')


class Record:
    """One object of a file; its fields are checked when they are read."""

    __slots__ = ('_path', '_place', '_values')

    def __init__(self, values: object, path: Path, place: str) -> None:
        self._path, self._place = path, place
        if not isinstance(values, dict):
            raise DatasetError(f'{path}: {place} is {kind_of(values)}; it must be an object')
        self._values = values

    def error(self, name: str, what: str) -> DatasetError:
        """Return the error about one field."""
        return DatasetError(f'{self._path}: {self._place}.{name} {what}')

    def __contains__(self, name: str) -> bool:
        return name in self._values

    @property
    def number_in_file(self) -> int | None:
        """The number of the line, if the record is one."""
        line = self._place.removeprefix('line ')
        return int(line) if line.isdecimal() else None

    def has(self, name: str) -> bool:
        """Return whether the field exists and is neither null nor NaN, as pandas writes it."""
        value = self._values.get(name)
        return value is not None and not _is_nan(value)

    def has_any(self, names: Sequence[str]) -> bool:
        """Return whether the record `has` one of the fields."""
        return any(map(self.has, names))

    def first_of(self, names: Sequence[str]) -> str:
        """Return the first of the names that the record `has`, else the first one."""
        return next(filter(self.has, names), names[0])

    def is_blank(self, name: str) -> bool:
        """Return whether the field is a text without a letter or digit, useless to any metric."""
        value = self._values.get(name)
        return isinstance(value, str) and not has_word(value)

    def value(self, name: str, needed: str) -> Any:
        """Return the field unchecked; `needed` is what the error for a missing one asks for."""
        if name not in self._values:
            raise self.error(name, f'is missing; it must be {needed}')
        return self._values[name]

    def identity(self, name: str) -> int | str:
        """Return an id: a whole number or a text. "7" and 7.0 are 7; "007" is a text."""
        value = self.value(name, 'a whole number')
        if isinstance(value, float) and value.is_integer():  # as pandas writes it
            value = int(value)
        if not (is_whole_number(value) or isinstance(value, str)):
            raise self.error(name, f'is {short(value)}; it must be a whole number or a text')
        if isinstance(value, str) and len(value) < 30 and _DECIMAL.fullmatch(value):
            return int(value)
        return value

    def text(self, name: str) -> str:
        """Return a text that is not blank, without surrounding white space."""
        value = self.value(name, 'a text')
        if not isinstance(value, str) or not value.strip():
            raise self.error(name, f'is {short(value)}; it must be a text')
        return value.strip()

    def texts(self, name: str) -> tuple[str, ...]:
        """Return a text, or a list of them, without blank ones and NaN.

        A number counts as a text, and so does an object with the field `answer` (VQA).
        """
        value = self.value(name, 'a text or a list of texts')
        entries = value if isinstance(value, list) else [value]
        texts = []
        for entry in entries:
            text = entry.get('answer') if isinstance(entry, dict) else entry
            if is_number(text):
                text = '' if _is_nan(text) else str(text)
            if not isinstance(text, str):
                raise self.error(name, f'is {short(value)}; it must be a text or a list of texts')
            texts.append(text.strip())
        return tuple(filter(None, texts))

    def number(self, name: str) -> float:
        """Return a finite number, which may be written as a text: Roboflow does."""
        value = self.value(name, 'a number')
        number = _number(value)
        if number is None:
            raise self.error(name, f'is {short(value)}; it must be a number')
        return number

    def size(self, name: str) -> float:
        """Return a number above 0."""
        value = self.number(name)
        if value <= 0:
            raise self.error(name, f'is {short(value)}; it must be above 0')
        return value

    def flag(self, name: str) -> bool:
        """Return 0, 1, false or true as a bool; a missing field is false."""
        value = self._values.get(name, False)
        if value not in (0, 1):
            raise self.error(name, f'is {short(value)}; it must be 0, 1, false or true')
        return bool(value)

    def numbers(self, name: str, count: int) -> Sequence[float]:
        """Return a list of `count` finite numbers, as `number` does."""
        value = self.value(name, f'a list of {count} numbers')
        numbers = [_number(entry) for entry in value] if isinstance(value, list) else []
        found = [number for number in numbers if number is not None]
        if len(numbers) != count or len(found) != count:
            raise self.error(name, f'is {short(value)}; it must be a list of {count} numbers')
        return found

    def list_of(self, name: str) -> list[Any]:
        """Return a list; its entries are not checked."""
        value = self.value(name, 'a list')
        if not isinstance(value, list):
            raise self.error(name, f'is {short(value)}; it must be a list')
        return value

    def objects(self, name: str) -> Iterator[Record]:
        """Yield the objects of a list as Records."""
        for index, values in enumerate(self.list_of(name)):
            yield Record(values, self._path, f'{self._place}.{name}[{index}]')


def _is_nan(value: object) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _number(value: object) -> float | None:
    """Return a number, also of a text, that a finite float can represent; None for others."""
    try:
        number = float(value) if isinstance(value, str) else value
        return number if is_number(number) and math.isfinite(number) else None
    except (OverflowError, ValueError):  # an int too large for a float, a text without a number
        return None


def has_word(text: str) -> bool:
    """Return whether the text has a letter or digit."""
    return any(char.isalnum() for char in text)


def kind_of(value: object) -> str:
    """Return JSON's name for the type of a value, with an article."""
    names = {dict: 'an object', list: 'a list', str: 'a text', bool: 'a boolean'}
    return 'null' if value is None else names.get(type(value), 'a number')


def short(value: object) -> str:
    """Return the value as JSON for an error message: one line, at most 60 characters."""
    text = json.dumps(value, ensure_ascii=True)
    return text if len(text) <= 60 else text[:57] + '...'


def note(names: Sequence[object], one: str, many: str) -> list[str]:
    """Return ['<count> <one or many>: <the first names>'], or [] without names."""
    if not names:
        return []
    shown = one_line(', '.join(str(name) for name in names[:_SHOWN]))
    more = ', ...' if len(names) > _SHOWN else ''
    return [f'{len(names):,} {one if len(names) == 1 else many}: {shown}{more}']
