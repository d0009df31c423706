"""One Parquet file and the images inside it."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path
from typing import Any

from gmskip_ros.datasets.errors import DatasetError
from gmskip_ros.datasets.wrong_files import refuse_file

_ROWS_AT_ONCE = 64
_GROUPS_KEPT = 4  # row groups, of 100 images each where the hub's own tools wrote them


def image_bytes(path: Path, row: int) -> bytes:
    """Return the image file in a row. Raises DatasetError, OSError."""
    file = open_file(path)
    column = image_column(file)
    for group in range(file.num_row_groups):
        count = file.metadata.row_group(group).num_rows
        if row < count:
            content = _images_of(path, group, column)[row]
            if content is None:
                raise DatasetError(f'{path}: row {row} has no image inside; give a file that does')
            return content
        row -= count
    raise DatasetError(f'{path}: has fewer rows than it had; fetch the file again')


def image_digests(path: Path) -> list[bytes | None]:
    """Return a hash of the image file in each row; None where there is none. Raises OSError."""
    file = open_file(path)
    batches = file.iter_batches(batch_size=_ROWS_AT_ONCE, columns=[f'{image_column(file)}.bytes'])
    return [
        value and value['bytes'] and hashlib.sha256(value['bytes']).digest()
        for batch in batches
        for value in batch.column(0).to_pylist()
    ]


@functools.lru_cache(maxsize=_GROUPS_KEPT)
def _images_of(path: Path, group: int, column: str) -> list[bytes | None]:
    read = open_file(path).read_row_group(group, columns=[f'{column}.bytes'])
    return [value and value['bytes'] for value in read.column(0).to_pylist()]


@functools.lru_cache(maxsize=64)  # parts of a dataset
def open_file(path: Path) -> Any:
    """Return a pyarrow.parquet.ParquetFile. Raises DatasetError, OSError."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise DatasetError(
            f"{path}: needs pyarrow, which is not installed; install gmskip_ros's extra parquet: "
            "pip install -e '.[parquet]'"
        ) from error
    try:
        refuse_file(path)
        return pyarrow.parquet.ParquetFile(path)
    except pyarrow.ArrowInvalid as error:
        raise DatasetError(f'{path}: is not a Parquet file ({error}); fetch it again') from error


def image_column(file: Any) -> str | None:
    """Return the name of the first column with images: objects with `bytes` and `path`."""
    for field in file.schema_arrow:
        kind = field.type
        names = {kind.field(i).name for i in range(kind.num_fields)}
        if names >= {'bytes', 'path'}:
            return field.name
    return None
