"""Opening a dataset of any supported layout."""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from gmskip_ros.datasets.coco import coco_splits, open_coco, open_coco_file
from gmskip_ros.datasets.coda import (
    coda_splits,
    is_coda,
    is_coda_split,
    name_of,
    open_coda,
    open_coda_file,
)
from gmskip_ros.datasets.errors import DatasetError
from gmskip_ros.datasets.json_file import read_json
from gmskip_ros.datasets.karpathy import PREFIX, is_karpathy, karpathy_splits, open_karpathy
from gmskip_ros.datasets.parquet import PARQUET, open_parquet, parquet_splits
from gmskip_ros.datasets.pope import POPE_SPLITS, is_pope, open_pope, pope_files
from gmskip_ros.datasets.questions import entries_of, is_lines, lines_of, open_questions
from gmskip_ros.datasets.sample import Dataset
from gmskip_ros.datasets.wrong_files import explain_folder, refuse_content, refuse_file

_LAYOUTS = (
    'supported are: a folder with annotations/instances_<split>.json or captions_<split>.json '
    '(COCO), a folder with <split>/annotations.json or <split>/corner_case.json (CODA), a .json '
    "file in COCO's or Karpathy's format, a .jsonl, .json or .parquet file of questions, POPE's "
    'files <name>_pope_<split>.json or the folder with them'
)
_CAPTIONS = (
    "captions are a file such as captions_val2017.json, Karpathy's dataset_coco.json, or the "
    'folder CODA-LM'
)
_IMAGES_DIR = 'give the folder that the images are in'


def open_dataset(
    path: str | os.PathLike[str],
    *,
    split: str | None = None,
    captions: str | os.PathLike[str] | None = None,
    images_dir: str | os.PathLike[str] | None = None,
) -> Dataset:
    """Return the dataset at `path`, whose layout is detected:

    - a COCO folder; `captions` may be a file such as captions_val2017.json, or Karpathy's
      dataset_coco.json, whose splits are then 'karpathy-test' and so on;
    - a CODA folder, or the folder of one of its splits; `captions` may be the folder CODA-LM;
    - any .json file in COCO's format (instances, captions, keypoints of people, LVIS, NoCaps,
      Roboflow's _annotations.coco.json), or one of Karpathy's;
    - a .jsonl or .json file of questions (see open_questions), for which `captions` may be a file
      with their answers; a .parquet file of the hub, or a folder with them;
    - a file of POPE, or the folder with its three (see open_pope), all of them without `split`.

    `split` is optional if there is only one; Karpathy's may be joined: 'train+restval'.
    `images_dir`: where the images are, if not where each layout has them. Raises DatasetError: one
    line with the file, the field and the remedy.
    """
    try:
        place = _existing(path, _LAYOUTS)
        captions_path = None if captions is None else _existing(captions, _CAPTIONS)
        images_path = None if images_dir is None else _existing(images_dir, _IMAGES_DIR)
        if images_path is not None and not images_path.is_dir():
            raise DatasetError(f'{images_path}: is not a folder; {_IMAGES_DIR}')
        with _without_garbage_collection():
            if place.is_dir():
                return _open_folder(place, split, captions_path, images_path)
            return _open_file(place, split, captions_path, images_path)
    except OSError as error:
        raise DatasetError(
            f'{error.filename}: cannot be read ({error.strerror}); check it and its permissions'
        ) from error


@contextlib.contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Pause it: it would look at millions of new objects again and again, a third of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _open_folder(
    place: Path, split: str | None, captions: Path | None, images_dir: Path | None
) -> Dataset:
    if captions is not None and captions.is_file():
        refuse_file(captions)
        content = read_json(captions)
        if is_karpathy(content):
            splits = _choose_karpathy(split, karpathy_splits(content, captions), captions)
            return open_karpathy(place, splits, content, captions, images_dir)
        del content  # it may be large, and is read again where it belongs
    if splits := coco_splits(place):
        return open_coco(place, _choose(split, splits, place), captions, images_dir)
    if is_coda_split(place):
        _choose(split, [name_of(place)], place)
        return open_coda(place, captions, images_dir)
    if splits := coda_splits(place):
        return open_coda(place / _choose(split, splits, place), captions, images_dir)
    if files := pope_files(place):
        if captions is not None:
            raise DatasetError(f'{place}: POPE has no captions; remove the option')
        chosen = files.values() if split is None else [files[_choose(split, [*files], place)]]
        return open_pope(chosen, images_dir)
    if parts := parquet_splits(place):
        _refuse_others(place, captions, images_dir)
        if split is None and set(parts) == set(POPE_SPLITS):  # one of its files has one of them
            return open_parquet(
                [path for part in POPE_SPLITS for path in parts[part]], name_of(place)
            )
        part = _choose(split, list(parts), place)
        return open_parquet(parts[part], f'{name_of(place)}/{part}')
    problem = explain_folder(place) or f'is not a supported dataset; {_LAYOUTS}'
    raise DatasetError(f'{place}: {problem}')


def _open_file(
    place: Path, split: str | None, captions: Path | None, images_dir: Path | None
) -> Dataset:
    refuse_file(place)
    if is_pope(place):
        _refuse_split(place, split)
        if captions is not None:
            raise DatasetError(f'{place}: POPE has no captions; remove the option')
        return open_pope([place], images_dir)
    if place.suffix == PARQUET:
        _refuse_split(place, split)
        _refuse_others(place, captions, images_dir)
        return open_parquet([place], place.stem)
    if place.suffix in ('.jsonl', '.json') and (place.suffix == '.jsonl' or is_lines(place)):
        _refuse_split(place, split)
        return open_questions(place, lines_of(place), images_dir, captions)
    if place.suffix != '.json':
        raise DatasetError(f'{place}: is not a supported dataset; {_LAYOUTS}')
    content = read_json(place)
    refuse_content(content, place)
    if is_karpathy(content):
        splits = _choose_karpathy(split, karpathy_splits(content, place), place)
        return open_karpathy(place.parent, splits, content, place, images_dir)
    _refuse_split(place, split)
    if is_coda(content):
        return open_coda_file(place, content, captions, images_dir)
    if isinstance(content, dict) and 'images' in content:
        return open_coco_file(place, content, captions, images_dir)
    if questions := entries_of(content, place):
        return open_questions(place, questions, images_dir, captions)
    raise DatasetError(f'{place}: is not a supported dataset; {_LAYOUTS}')


def _choose(split: str | None, splits: Sequence[str], place: Path) -> str:
    if split is None and len(splits) == 1:
        return splits[0]
    if split is None:
        raise DatasetError(f'{place}: has several splits; choose one of {", ".join(splits)}')
    if split not in splits:
        raise DatasetError(f'{place}: has no split {split!r}; choose one of {", ".join(splits)}')
    return split


def _choose_karpathy(split: str | None, splits: Sequence[str], place: Path) -> list[str]:
    """Return the splits of 'train+restval', or 'karpathy-train+karpathy-restval'."""
    chosen = []
    for part in [split] if split is None else dict.fromkeys(split.split('+')):
        name = None if part is None else PREFIX + part.removeprefix(PREFIX)
        chosen.append(_choose(name if name in splits else part, splits, place))
    return chosen


def _refuse_others(place: Path, captions: Path | None, images_dir: Path | None) -> None:
    for option, value in (('--captions', captions), ('--images-dir', images_dir)):
        if value is not None:
            raise DatasetError(f'{place}: has its texts and images inside; remove {option}')


def _refuse_split(place: Path, split: str | None) -> None:
    if split is not None:
        raise DatasetError(f'{place}: is the file of one split; remove the split {split!r}')


def _existing(path: str | os.PathLike[str], remedy: str) -> Path:
    place = Path(os.path.expanduser(path))
    if not place.exists():
        raise DatasetError(f'{place}: does not exist; {remedy}')
    return place
