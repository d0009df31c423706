"""One way to write a file, for every room: as a whole or not at all."""

from __future__ import annotations

import contextlib
import csv
import io
import os
import secrets
from collections.abc import Iterable, Sequence
from pathlib import Path


def write_atomically(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file aside and rename it: after an error or a kill the older one is as it was.

    A link stays a link. Raises OSError as the file system does.
    """
    target = Path(os.path.realpath(Path(path).expanduser()))
    aside = target.with_name(f'.{target.name}.{secrets.token_hex(4)}.tmp')
    try:
        with open(aside, 'xb') as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, target)
    finally:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)
    _sync_folder(target.parent)


def remove_leftovers(folder: Path) -> None:
    """Remove what write_atomically left in a folder where the process was killed meanwhile."""
    for path in folder.glob(f'.*.{"[0-9a-f]" * 8}.tmp'):
        with contextlib.suppress(OSError):
            path.unlink()


def _sync_folder(folder: Path) -> None:
    """Let the new name survive a power cut too; not every file system knows how."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


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
