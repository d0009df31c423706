"""Opening a dataset of any supported layout."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from gmskip_ros.datasets.coco import (
    coco_splits,
    is_karpathy,
    karpathy_splits,
    open_coco,
    open_karpathy,
)
from gmskip_ros.datasets.coda import coda_splits, is_coda_split, name_of, open_coda
from gmskip_ros.datasets.errors import DatasetError
from gmskip_ros.datasets.json_file import read_object
from gmskip_ros.datasets.questions import open_questions
from gmskip_ros.datasets.sample import Dataset

_LAYOUTS = (
    'supported are: a folder with annotations/instances_<split>.json or captions_<split>.json '
    '(COCO), a folder with <split>/annotations.json or <split>/corner_case.json (CODA), a .jsonl '
    'file'
)
_CAPTIONS = (
    "captions are a file such as captions_val2017.json, Karpathy's dataset_coco.json, or the "
    'folder CODA-LM'
)


def open_dataset(
    path: str | os.PathLike[str],
    *,
    split: str | None = None,
    captions: str | os.PathLike[str] | None = None,
) -> Dataset:
    """Return the dataset at `path`, whose layout is detected:

    - a COCO folder; `captions` may be a file such as captions_val2017.json, or Karpathy's
      dataset_coco.json, whose splits are then 'karpathy-test' and so on;
    - a CODA folder, or the folder of one of its splits; `captions` may be the folder CODA-LM;
    - a .jsonl file of questions (see open_questions).

    `split` is optional if there is only one. Raises DatasetError: one line with the file, the
    field and the remedy.
    """
    try:
        place = _existing(path, _LAYOUTS)
        captions_path = None if captions is None else _existing(captions, _CAPTIONS)
        return _open(place, split, captions_path)
    except OSError as error:
        raise DatasetError(
            f'{error.filename}: cannot be read ({error.strerror}); check it and its permissions'
        ) from error


def _open(place: Path, split: str | None, captions: Path | None) -> Dataset:
    if place.is_file() and place.suffix == '.jsonl':
        if split is not None or captions is not None:
            raise DatasetError(
                f'{place}: a .jsonl file has neither splits nor captions; remove both options'
            )
        return open_questions(place)
    if not place.is_dir():
        raise DatasetError(f'{place}: is not a supported dataset; {_LAYOUTS}')
    if captions is not None and captions.is_file():
        content = read_object(captions)
        if is_karpathy(content):
            splits = karpathy_splits(content, captions)
            return open_karpathy(place, _choose(split, splits, captions), content, captions)
    if splits := coco_splits(place):
        return open_coco(place, _choose(split, splits, place), captions)
    if is_coda_split(place):
        _choose(split, [name_of(place)], place)
        return open_coda(place, captions)
    if splits := coda_splits(place):
        return open_coda(place / _choose(split, splits, place), captions)
    raise DatasetError(f'{place}: is not a supported dataset; {_LAYOUTS}')


def _choose(split: str | None, splits: Sequence[str], place: Path) -> str:
    if split is None and len(splits) == 1:
        return splits[0]
    if split is None:
        raise DatasetError(f'{place}: has several splits; choose one of {", ".join(splits)}')
    if split not in splits:
        raise DatasetError(f'{place}: has no split {split!r}; choose one of {", ".join(splits)}')
    return split


def _existing(path: str | os.PathLike[str], remedy: str) -> Path:
    place = Path(os.path.expanduser(path))
    if not place.exists():
        raise DatasetError(f'{place}: does not exist; {remedy}')
    return place
