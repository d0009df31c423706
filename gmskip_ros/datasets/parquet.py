"""Parquet files as the Hugging Face hub has them: questions or captions, and the images inside."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gmskip_ros.datasets.errors import DatasetError
from gmskip_ros.datasets.json_file import Record
from gmskip_ros.datasets.questions import make_dataset
from gmskip_ros.datasets.sample import Dataset
from gmskip_ros.datasets.wrong_files import refuse_file

PARQUET = '.parquet'
_SHARD = re.compile(r'(.+?)(?:-\d{5}-of-\d{5})?\.parquet')  # test-00000-of-00003.parquet
_FOLDERS = ('', 'data')
_GROUPS_KEPT = 4  # row groups, of 100 images each where the hub's own tools wrote them


def parquet_splits(folder: Path) -> dict[str, list[Path]]:
    """Return the .parquet files of a folder, or of `data` in it, by split."""
    splits: dict[str, list[Path]] = {}
    for path in sorted(path for name in _FOLDERS for path in (folder / name).glob(f'*{PARQUET}')):
        match = _SHARD.fullmatch(path.name)
        assert match is not None
        splits.setdefault(match[1], []).append(path)
    return splits


def open_parquet(paths: Sequence[Path], name: str) -> Dataset:
    """Return the rows of these files, the parts of one split, as open_questions reads records.

    An image inside a file has the path <file>/<row>, which read_image knows; nothing is unpacked.
    Rows with the same `image_id`, or the same name of their image, share the first one's. Raises
    DatasetError, also if pyarrow is missing.
    """
    records: list[Record] = []
    images: dict[int, tuple[str, Path | None]] = {}
    first: dict[str, Path] = {}
    for path in paths:
        file = _open(path)
        column = _image_column(file)
        if column is None:
            raise DatasetError(f'{path}: has no column of images; give a dataset that has one')
        others = [each for each in file.schema_arrow.names if each != column]
        rows = file.read(columns=[*others, f'{column}.path']).to_pylist()
        for index, row in enumerate(rows):
            inside = row.pop(column)
            named = (inside or {}).get('path')
            image_id = row.get('image_id')
            shown = str(named or (index if image_id is None else image_id))
            at = None if inside is None else path / str(index)
            if at is not None and (named or image_id is not None):
                at = first.setdefault(shown, at)
            record = Record(row, path, f'row {index}')
            images[id(record)] = shown, at
            records.append(record)

    def find(record: Record) -> tuple[str, Path | None]:
        return images[id(record)]

    return make_dataset(paths[0], name, records, find, None)


def image_bytes(path: Path, row: int) -> bytes:
    """Return the image file in a row. Raises DatasetError, OSError."""
    file = _open(path)
    column = _image_column(file)
    for group in range(file.num_row_groups):
        count = file.metadata.row_group(group).num_rows
        if row < count:
            content = _images_of(path, group, column)[row]
            if content is None:
                raise DatasetError(f'{path}: row {row} has no image inside; give a file that does')
            return content
        row -= count
    raise DatasetError(f'{path}: has fewer rows than it had; fetch the file again')


@functools.lru_cache(maxsize=_GROUPS_KEPT)
def _images_of(path: Path, group: int, column: str) -> list[bytes | None]:
    read = _open(path).read_row_group(group, columns=[f'{column}.bytes'])
    return [value and value['bytes'] for value in read.column(0).to_pylist()]


@functools.lru_cache(maxsize=64)  # parts of a dataset
def _open(path: Path) -> Any:
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


def _image_column(file: Any) -> str | None:
    """Return the first column with images: objects with `bytes` and `path`."""
    for field in file.schema_arrow:
        kind = field.type
        names = {kind.field(i).name for i in range(kind.num_fields)}
        if names >= {'bytes', 'path'}:
            return field.name
    return None
