"""Options that several commands share."""

from __future__ import annotations

import re

from gmskip_ros.cli.calibrate import INTERVALS
from gmskip_ros.errors import UserError


def split_list(option: str, text: str) -> list[str]:
    """Return the parts between commas, each once."""
    parts = [part.strip() for part in text.split(',')]
    if not all(parts) or len(set(parts)) < len(parts):
        raise UserError(f'{option} {text!r}: give different names with commas between them')
    return parts


def split_numbers(option: str, text: str) -> list[int]:
    """Return the whole numbers between commas."""
    try:
        return [int(part) for part in split_list(option, text)]
    except ValueError:
        raise UserError(f'{option} {text!r}: give whole numbers such as {INTERVALS}') from None


def file_stem(*parts: str | None) -> str:
    """Return a file name made of words, without its ending."""
    return '_'.join(re.sub(r'\W+', '_', part) for part in parts if part is not None)
