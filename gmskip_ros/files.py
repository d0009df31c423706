"""Writing files: whole or not at all; rows as CSV."""

from __future__ import annotations

import contextlib
import csv
import io
import os
import secrets
from collections.abc import Iterable, Sequence
from pathlib import Path


def write_atomically(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a temporary file and rename it: an error or a kill leaves an existing file unchanged.

    A symbolic link stays a link. Raises OSError.
    """
    target = Path(os.path.realpath(Path(path).expanduser()))
    temporary = target.with_name(f'.{target.name}.{secrets.token_hex(4)}.tmp')
    try:
        with open(temporary, 'xb') as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    _sync_folder(target.parent)


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files that a killed write_atomically left in a folder."""
    for path in folder.glob(f'.*.{"[0-9a-f]" * 8}.tmp'):
        with contextlib.suppress(OSError):
            path.unlink()


def _sync_folder(folder: Path) -> None:
    """Make the new name survive a power cut, on file systems that can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def csv_bytes(rows: Iterable[Sequence[object]]) -> bytes:
    r"""Return rows of fields as CSV in UTF-8, each line ending in '\n'; None is an empty field.

    A CSV reader gets every character of a field back, line breaks of any kind included. Lone
    surrogates are written as escapes, and so is NUL, which Python 3.10 can neither write nor read.
    """
    lines = []
    for row in rows:
        text = io.StringIO(newline='')
        fields = [f.replace('\0', '\\x00') if isinstance(f, str) else f for f in row]
        # With its default line end, '\r\n', the writer quotes fields that hold either character.
        csv.writer(text).writerow(fields)
        lines.append(text.getvalue().removesuffix('\r\n') + '\n')
    return ''.join(lines).encode('utf-8', 'backslashreplace')
