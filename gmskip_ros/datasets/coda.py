"""CODA's folders, and CODA-LM's descriptions as captions for them.

CODA's licence forbids redistribution: nothing of it is in this package.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from gmskip_ros.datasets.coco_format import (
    Id,
    Picture,
    make_samples,
    read_labels,
    read_pictures,
)
from gmskip_ros.datasets.errors import DatasetError
from gmskip_ros.datasets.json_file import Record, note, read_object
from gmskip_ros.datasets.sample import Dataset

_ALL = 'annotations.json'
_CORNER_CASES = 'corner_case.json'
_RENAMED = {'suitcace': 'suitcase'}  # CODA's spelling; a model says 'suitcase'
_NAMELESS = ('misc',)
_LM_FOLDERS = ('Train', 'Val', 'Test', 'Mini')  # Mini is a part of Val
_LM_FILE = re.compile(r'(val|test)_(.+)\.json')
_LM_TEXT = 'description and explanation'


def coda_splits(folder: Path) -> list[str]:
    """Return the names of the folders in `folder` that hold one of CODA's splits, sorted."""
    return sorted(entry.name for entry in folder.iterdir() if is_coda_split(entry))


def is_coda_split(folder: Path) -> bool:
    """Return whether the folder itself holds annotations.json or corner_case.json."""
    return (folder / _ALL).is_file() or (folder / _CORNER_CASES).is_file()


def name_of(folder: Path) -> str:
    """Return the name under which the folder is reached, also where that is a link or '.'."""
    return Path(os.path.abspath(folder)).name


def open_coda(folder: Path, captions: Path | None) -> Dataset:
    """Return the split that `folder` holds: CODA's base-val-1500, CODA2022's val, test or sample.

    The split's name is the folder's. Corner cases and common classes are labels alike.
    """
    split = name_of(folder)
    path = next(path for path in (folder / _ALL, folder / _CORNER_CASES) if path.is_file())
    notes: list[str] = []
    content = read_object(path)
    pictures = read_pictures(content, path, split, notes)
    labels = read_labels(content, path, pictures, notes, renamed=_RENAMED, nameless=_NAMELESS)
    if captions is not None:
        _read_coda_lm(captions, split, pictures, notes)

    def find(number: Id, picture: Picture) -> Path | None:
        file = folder / 'images' / picture.file_name
        return file if file.is_file() else None

    samples = make_samples(pictures, labels, find, str(folder / 'images'), notes)
    warnings = []
    if path.name == _CORNER_CASES:
        warnings.append(
            f'{_CORNER_CASES} labels corner cases only: a class that is not among the labels of a '
            'picture may still be in it'
        )
    return Dataset(f'coda-{split}', samples, labels, tuple(notes), tuple(warnings))


def _read_coda_lm(folder: Path, split: str, pictures: dict[Id, Picture], notes: list[str]) -> None:
    """Add CODA-LM's general description of each picture of the split.

    Its files are called <CODA2022 split>_<picture>.json, whatever its own split they are in.
    """
    if not folder.is_dir():
        raise DatasetError(f'{folder}: is no folder; captions of CODA are the folder CODA-LM')
    by_stem = {Path(picture.file_name).stem: picture for picture in pictures.values()}
    silent: list[str] = []
    strange: list[str] = []
    found = 0
    for part in [folder / name for name in _LM_FOLDERS] + [folder]:
        for file in sorted(part.glob('*.json')):
            match = _LM_FILE.fullmatch(file.name)
            if match is None or match[1] != split:
                continue
            picture = by_stem.get(match[2])
            if picture is None:
                strange.append(file.name)
                continue
            if picture.captions:  # Mini repeats Val
                continue
            about = Record(read_object(file), file, 'the file')
            general = Record(
                about.value('general_perception', 'an object'), file, 'general_perception'
            )
            if not general.has(_LM_TEXT) or general.is_blank(_LM_TEXT):
                silent.append(file.name)
                continue
            picture.captions.append(general.text(_LM_TEXT))
            found += 1
    if not found:
        raise DatasetError(
            f'{folder}: describes no picture of {split}; give the folder CODA-LM with '
            f"{', '.join(_LM_FOLDERS)} in it, and CODA2022's val or test"
        )
    notes += note(
        silent,
        f'CODA-LM file has no {_LM_TEXT!r}, left out',
        f'CODA-LM files have no {_LM_TEXT!r}, left out',
    )
    notes += note(
        strange,
        'CODA-LM file is about an image that is not listed, left out',
        'CODA-LM files are about images that are not listed, left out',
    )
