"""CODA's folders, and CODA-LM's descriptions as captions for them.

CODA's licence forbids redistribution: this package contains none of its data.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from gmskip_ros.datasets.coco import find_beside, make_dataset, name_split_and_root
from gmskip_ros.datasets.coco_format import Id, ImageEntry, read_images, read_labels
from gmskip_ros.datasets.errors import DatasetError
from gmskip_ros.datasets.json_file import Record, note
from gmskip_ros.datasets.sample import Dataset
from gmskip_ros.datasets.wrong_files import read_annotations

_ALL = 'annotations.json'
_CORNER_CASES = 'corner_case.json'
_OWN = (_ALL, _CORNER_CASES)
_RENAMED = {'suitcace': 'suitcase'}  # CODA's spelling; a model says 'suitcase'
_NAMELESS = ('misc',)  # a class that no answer can name
_LM_FOLDERS = ('Train', 'Val', 'Test', 'Mini')  # Mini is a subset of Val
_LM_FILE = re.compile(r'(val|test)_(.+)\.json')
_LM_TEXT = 'description and explanation'


def coda_splits(folder: Path) -> list[str]:
    """Return the names of the folders in `folder` that contain a CODA split, sorted."""
    return sorted(entry.name for entry in folder.iterdir() if is_coda_split(entry))


def is_coda_split(folder: Path) -> bool:
    """Return whether the folder contains annotations.json or corner_case.json."""
    return any((folder / name).is_file() for name in _OWN)


def is_coda(content: object) -> bool:
    """Return whether an annotation file is CODA's, by the spelling of one of its classes."""
    categories = content.get('categories') if isinstance(content, dict) else None
    return isinstance(categories, list) and any(
        isinstance(each, dict) and str(each.get('name')) in _RENAMED for each in categories
    )


def name_of(folder: Path) -> str:
    """Return the folder's name as given in the path: links are not resolved, '.' is."""
    return Path(os.path.abspath(folder)).name


def open_coda(folder: Path, captions: Path | None, images_dir: Path | None = None) -> Dataset:
    """Return the split in `folder`: CODA's base-val-1500, CODA2022's val, test or sample."""
    path = next(path for name in _OWN if (path := folder / name).is_file())
    return open_coda_file(path, read_annotations(path), captions, images_dir)


def open_coda_file(
    path: Path, content: dict[str, Any], captions: Path | None, images_dir: Path | None
) -> Dataset:
    """Return what a file of CODA's annotations holds: corner cases and common classes as labels.

    Under CODA's own names the split is named after the folder, else as a file of COCO's format is.
    """
    _, split, root = name_split_and_root(path)
    if path.name in _OWN:
        split = name_of(root)
    notes: list[str] = []
    images = read_images(content, path, split, notes)
    labels = read_labels(content, path, images, notes, renamed=_RENAMED, nameless=_NAMELESS)
    if captions is not None:
        _read_coda_lm(captions, split, images, notes)
    warnings = []
    if path.name == _CORNER_CASES:
        warnings.append(
            f'{_CORNER_CASES} labels only corner cases: an image may show classes that are not '
            'among its labels'
        )
    finder = find_beside(path, root, split, images_dir)
    return make_dataset(f'coda-{split}', split, images, labels, finder, notes, warnings)


def _read_coda_lm(folder: Path, split: str, images: dict[Id, ImageEntry], notes: list[str]) -> None:
    """Add CODA-LM's general description of each image of the split.

    Its files are named <CODA2022 split>_<image>.json in all of its own splits.
    """
    if not folder.is_dir():
        raise DatasetError(f'{folder}: is not a folder; captions for CODA are the folder CODA-LM')
    by_stem = {Path(image.file_name).stem: image for image in images.values()}
    without_text: list[str] = []
    unlisted: list[str] = []
    found = 0
    for part in [folder / name for name in _LM_FOLDERS] + [folder]:
        for file in sorted(part.glob('*.json')):
            match = _LM_FILE.fullmatch(file.name)
            if match is None or match[1] != split:
                continue
            image = by_stem.get(match[2])
            if image is None:
                unlisted.append(file.name)
                continue
            if image.captions:  # Val and Mini both describe it
                continue
            about = Record(read_annotations(file), file, 'the file')
            general = Record(
                about.value('general_perception', 'an object'), file, 'general_perception'
            )
            if not general.has(_LM_TEXT) or general.is_blank(_LM_TEXT):
                without_text.append(file.name)
                continue
            image.captions.append(general.text(_LM_TEXT))
            found += 1
    if not found:
        raise DatasetError(
            f'{folder}: describes no image of {split}; give the folder CODA-LM, which contains '
            f"{', '.join(_LM_FOLDERS)}, and CODA2022's val or test"
        )
    notes += note(
        without_text,
        f'CODA-LM file has no {_LM_TEXT!r}, ignored',
        f'CODA-LM files have no {_LM_TEXT!r}, ignored',
    )
    notes += note(
        unlisted,
        'CODA-LM file describes an image that is not listed, ignored',
        'CODA-LM files describe images that are not listed, ignored',
    )
