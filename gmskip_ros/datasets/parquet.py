"""Parquet files as the Hugging Face hub has them: questions or captions, and the images inside."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from gmskip_ros.datasets.errors import DatasetError
from gmskip_ros.datasets.json_file import Record
from gmskip_ros.datasets.parquet_file import image_column, image_digests, open_file
from gmskip_ros.datasets.pope import hub_question, pope_dataset
from gmskip_ros.datasets.questions import make_dataset
from gmskip_ros.datasets.sample import Dataset

PARQUET = '.parquet'
# test-00000-of-00003.parquet; in older datasets with a hash: test-00000-of-00003-0f11003c77497969
_SHARD = re.compile(r'(.+?)(?:-\d{5}-of-\d{5}(?:-[0-9a-f]{16})?)?\.parquet')
_FOLDERS = ('', 'data')


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
    Rows with the same image, byte for byte, share the first one's; names may repeat. POPE's
    rows are the questions of open_pope. Raises DatasetError, also if pyarrow is missing.
    """
    records: list[Record] = []
    images: dict[int, tuple[str, Path | None]] = {}
    first: dict[bytes, Path] = {}  # by the content of the image
    for path in paths:
        file = open_file(path)
        column = image_column(file)
        if column is None:
            raise DatasetError(f'{path}: has no column of images; give a dataset that has one')
        others = [each for each in file.schema_arrow.names if each != column]
        rows = file.read(columns=[*others, f'{column}.path']).to_pylist()
        digests = image_digests(path)
        for index, row in enumerate(rows):
            inside = row.pop(column)
            named = (inside or {}).get('path')
            image_id = row.get('image_id')
            shown = str(named or (index if image_id is None else image_id))
            at = None if inside is None else path / str(index)
            digest = digests[index]
            if at is not None and digest is not None:
                at = first.setdefault(digest, at)
            record = Record(row, path, f'row {index}')
            images[id(record)] = shown, at
            records.append(record)

    asked = [
        (question, record)
        for number, record in enumerate(records, start=1)
        if (question := hub_question(record, number))
    ]
    if asked and len(asked) == len(records):
        found: dict[str, Path | None] = {}
        for question, record in asked:
            found.setdefault(question.image, images[id(record)][1])
        return pope_dataset(f'pope-{name}', [question for question, _ in asked], found.get)

    def find(record: Record) -> tuple[str, Path | None]:
        return images[id(record)]

    return make_dataset(paths[0], name, records, find, None)
