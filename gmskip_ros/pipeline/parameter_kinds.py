"""What an entry of a table of parameters is made of: name, default, kind of value, description."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from gmskip_ros.errors import UserError
from gmskip_ros.numbers import is_number, is_whole_number, percent_hint


class ParameterError(UserError, ValueError):
    """A parameter has an unusable value; the message is one line: parameter, value, remedy."""

    def __init__(self, name: str, value: object, problem: str) -> None:
        # YAML gives an empty list no type, so rcl passes no value on.
        shown = 'nothing' if value is None else repr(value)
        super().__init__(f'parameter {name}: {shown} {problem}')


@dataclass(frozen=True)
class Kind:
    """The values that a parameter may have, in JSON Schema and in Python."""

    schema: Mapping[str, Any]
    check: Callable[[Any], Any]  # returns the value in its own type; ValueError: what is wrong


@dataclass(frozen=True)
class Spec:
    """One parameter."""

    name: str
    default: Any
    kind: Kind
    description: str
    read_only: bool = True

    def check(self, value: Any) -> Any:
        """Return the value in its own type; raises ParameterError."""
        try:
            return self.kind.check(value)
        except ValueError as error:
            raise ParameterError(self.name, value, str(error)) from None


def flat_parameters(section: Any, prefix: str = '') -> Iterator[tuple[str, Any]]:
    """Yield name and value of each parameter of a file's section; nested names get dots."""
    for key, value in section.items() if isinstance(section, dict) else ():
        if isinstance(value, dict):
            yield from flat_parameters(value, f'{prefix}{key}.')
        else:
            yield f'{prefix}{key}', value


def text() -> Kind:
    """Any string."""
    return Kind({'type': 'string'}, check_text)


def filled_text() -> Kind:
    """A string that is not blank."""
    return Kind({'type': 'string', 'pattern': r'\S'}, check_filled_text)


def one_of(choices: Iterable[str]) -> Kind:
    """One of these strings."""
    allowed = tuple(choices)

    def check(value: Any) -> str:
        if value not in allowed:
            raise ValueError(f'is not one of {", ".join(allowed)}')
        return value

    return Kind({'type': 'string', 'enum': list(allowed)}, check)


def some_of(choices: Iterable[str]) -> Kind:
    """A list of at least one of these strings, each once; checked values are tuples."""
    allowed = tuple(choices)

    def check(value: Any) -> tuple[str, ...]:
        entries = check_texts(value)
        for entry in entries:
            if entry not in allowed:
                raise ValueError(f'has {entry!r}, which is not one of {", ".join(allowed)}')
        return entries

    items = {'type': 'string', 'enum': list(allowed)}
    return Kind({'type': 'array', 'items': items, 'minItems': 1, 'uniqueItems': True}, check)


def number(low: float, high: float) -> Kind:
    """A number from `low` to `high`, integers included; checked values are floats."""

    def check(value: Any) -> float:
        if not is_number(value):
            raise ValueError(f'is not a number: give {low:g} to {high:g}')
        if not low <= value <= high:  # NaN fails this, and integers too large for a float
            hint = percent_hint(value) if (low, high) == (0, 1) else ''
            raise ValueError(f'is out of range: give {low:g} to {high:g}{hint}')
        return float(value)

    return Kind({'type': 'number', 'minimum': low, 'maximum': high}, check)


def integer(low: int, high: int) -> Kind:
    """An integer from `low` to `high`."""

    def check(value: Any) -> int:
        if not is_whole_number(value):
            raise ValueError(f'is not an integer: give {low} to {high}')
        if not low <= value <= high:
            raise ValueError(f'is out of range: give {low} to {high}')
        return value

    return Kind({'type': 'integer', 'minimum': low, 'maximum': high}, check)


def boolean() -> Kind:
    """True or false."""
    return Kind({'type': 'boolean'}, check_boolean)


def check_text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError('is not a string')
    return value


def check_filled_text(value: Any) -> str:
    if not check_text(value).strip():
        raise ValueError('is empty: give a text')
    return value


def check_texts(value: Any) -> tuple[str, ...]:
    is_list = isinstance(value, (list, tuple)) and all(isinstance(entry, str) for entry in value)
    if not is_list or not value:
        raise ValueError('is not a list of at least one string')
    if len(set(value)) < len(value):
        raise ValueError('has an entry twice')
    return tuple(value)


def check_boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError('is not true or false')
    return value
