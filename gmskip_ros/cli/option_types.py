"""Types of options, for argparse: what is wrong with a value is said in one line."""

from __future__ import annotations

import argparse


def positive_int(text: str) -> int:
    """Return a whole number of at least 1."""
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'{text!r} is not a whole number of at least 1')
    return int(text)


def positive_float(text: str) -> float:
    """Return a number above 0 and below a million."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError(f'{text!r} is not a number above 0')
    return value
