"""Writing a log of a calibration: whole each time, so that nothing is lost or written twice."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from gmskip_ros.calibration.errors import CalibrationError
from gmskip_ros.files import write_atomically


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write the lines, given without their ends, in place of the file. Raises CalibrationError."""
    try:
        write_atomically(path, ''.join(line + '\n' for line in lines).encode())
    except OSError as error:
        raise CalibrationError(
            f'{path}: cannot be written ({error.strerror}): free some space and run the same '
            'command again'
        ) from error
