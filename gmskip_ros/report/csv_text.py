"""Tables as CSV, the same from every Python."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence


def csv_bytes(rows: Iterable[Sequence[object]]) -> bytes:
    """Return rows of fields as UTF-8, lines ended by a line feed; None is an empty field.

    Every character of a field comes back from a CSV reader, line ends of any kind included. What is
    no Unicode is written as its escape, and so is NUL, which Python 3.10 neither writes nor reads.
    """
    lines = []
    for row in rows:
        text = io.StringIO(newline='')
        fields = [f.replace('\0', '\\x00') if isinstance(f, str) else f for f in row]
        # It quotes what holds a character of its own line end, '\r\n'.
        csv.writer(text).writerow(fields)
        lines.append(text.getvalue().removesuffix('\r\n') + '\n')
    return ''.join(lines).encode('utf-8', 'backslashreplace')
