"""Checks of numbers from outside (here, unlike in Python, a bool is not a number); their names."""

from __future__ import annotations

import re
from typing import Any, TypeGuard


def is_whole_number(value: Any) -> TypeGuard[int]:
    """Return whether the value is an int and not a bool."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> TypeGuard[int | float]:
    """Return whether the value is an int or a float (NaN and infinity included), not a bool."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


MOST_SCORE_RATIO = 2


def percent_hint(value: float) -> str:
    """Return ': did you mean 0.95?' for 95, where a share belongs; '' for what is no percentage."""
    return f': did you mean {value / 100:g}?' if 2 <= value <= 100 else ''


def share_text_hint(text: str) -> str:
    """Return ': did you mean 0.95?' for '95%' or '0,95'; '' for any other text."""
    if percent := re.fullmatch(r'\s*(\d+(?:\.\d+)?)\s*%\s*', text):
        return f': did you mean {float(percent[1]) / 100:g}?'
    if comma := re.fullmatch(r'\s*0?,(\d+)\s*', text):
        return f': did you mean 0.{comma[1]}?'
    return ''


def score_ratio_problem(ratio: float) -> str:
    """Return what is wrong with a ratio to the full model's score, '' if nothing is."""
    if 0 <= ratio <= MOST_SCORE_RATIO:
        return ''
    if ratio > MOST_SCORE_RATIO:
        return f'must be at most {MOST_SCORE_RATIO}{percent_hint(ratio)}'
    return 'must be 0 or more'  # of NaN as well


def numbers_in(dtype: str, quantization: str) -> str:
    """Return how a model's numbers are stored, for people: 'float16', or 'float16, int8'."""
    return dtype if quantization == 'none' else f'{dtype}, {quantization}'
