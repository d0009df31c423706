"""Writing files: whole or not at all; rows as CSV; where the demo's own are."""

from __future__ import annotations

import contextlib
import csv
import errno
import fcntl
import io
import os
import platform
import secrets
from collections.abc import Iterable, Sequence
from pathlib import Path

from gmskip_ros.errors import UserError

LOCK_NAME = '.lock'
DEMO_FOLDER = Path(__file__).resolve().parent / 'assets' / 'demo'  # the model of that name


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


class FolderLock:
    """Keeps other processes out of a folder while this one works in it; a context manager.

    The lock is on an open file: however the process ends, its lock does too. A killed process
    leaves the file, which means nothing.
    """

    def __init__(self) -> None:
        self._descriptor: int | None = None
        self._path = Path()

    def __enter__(self) -> FolderLock:
        return self

    def __exit__(self, *_: object) -> None:
        """Unlock the folder, if it is locked."""
        if self._descriptor is not None:
            self._path.unlink(missing_ok=True)
            os.close(self._descriptor)
        self._descriptor = None

    def acquire(self, folder: Path, prefix: str = '') -> None:
        """Lock the folder, unless its file system has no locks.

        Raises UserError, which begins with `prefix` and the folder, if another process has it, and
        OSError if the file cannot be written.
        """
        path = folder / LOCK_NAME
        while True:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Not the file of a process that ended, and removed it, just before.
                if os.path.samestat(path.stat(), os.fstat(descriptor)):
                    break
            except OSError as error:
                holder = os.read(descriptor, 200).decode(errors='replace').strip()
                os.close(descriptor)
                if error.errno in (errno.EAGAIN, errno.EACCES):
                    raise UserError(
                        f'{prefix}{folder}: {holder or "another process"} is working there: '
                        'wait for it, stop it, or give a different folder'
                    ) from error
                if error.errno in (errno.ENOLCK, errno.ENOTSUP):
                    return
                if error.errno != errno.ENOENT:
                    raise
                continue
            os.close(descriptor)
        self._descriptor, self._path = descriptor, path
        with contextlib.suppress(OSError):  # a full disk
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f'process {os.getpid()} on {platform.node()}\n'.encode())


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
