"""Tables as CSV, the same from every Python."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence


def csv_bytes(rows: Iterable[Sequence[object]]) -> bytes:
    """Return rows of fields as UTF-8, lines ended by a line feed; None is an empty field.

    Every character of a field comes back from a CSV reader, line ends of any kind included. What is
    no Unicode is written as its escape.
    """
    lines = []
    for row in rows:
        text = io.StringIO(newline='')
        csv.writer(text).writerow(row)  # quotes what holds a character of its own line end, '\r\n'
        lines.append(text.getvalue().removesuffix('\r\n') + '\n')
    return ''.join(lines).encode('utf-8', 'backslashreplace')
