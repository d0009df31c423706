"""Checks of numbers from outside: here, unlike in Python, a bool is not a number."""

from __future__ import annotations

from typing import Any, TypeGuard


def is_whole_number(value: Any) -> TypeGuard[int]:
    """Return whether the value is an int and not a bool."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> TypeGuard[int | float]:
    """Return whether the value is an int or a float (NaN and infinity included), not a bool."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)
