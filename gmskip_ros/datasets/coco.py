"""COCO's folders (2014, 2017 and others in the same layout), and Karpathy's splits."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from gmskip_ros.datasets.coco_format import (
    Id,
    ImageEntry,
    make_samples,
    note_about_blank,
    read_captions,
    read_images,
    read_labels,
)
from gmskip_ros.datasets.errors import DatasetError
from gmskip_ros.datasets.json_file import note, read_object, records
from gmskip_ros.datasets.sample import Dataset
from gmskip_ros.datasets.scenes_writer import scenes_name

_ANNOTATIONS = re.compile(r'(?:instances|captions)_(.+)\.json')
_OFFICIAL = re.compile(r'(?:train|val)20(?:14|17)')
_KARPATHY = 'karpathy-'
_TRAINED_ON = (
    'are in the training data of LLaVA models: scores on them overstate those on new images'
)


def coco_splits(folder: Path) -> list[str]:
    """Return the splits that have instances or captions in `folder`/annotations, sorted."""
    names = [entry.name for entry in (folder / 'annotations').glob('*.json')]
    return sorted({match[1] for name in names if (match := _ANNOTATIONS.fullmatch(name))})


def open_coco(folder: Path, split: str, captions: Path | None) -> Dataset:
    """Return one split: labels from instances_<split>.json, captions from captions_<split>.json.

    `captions` is a different captions file in the same format. An image without annotations is a
    sample without labels.
    """
    notes: list[str] = []
    images: dict[Id, ImageEntry] = {}
    labels: tuple[str, ...] = ()
    instances = folder / 'annotations' / f'instances_{split}.json'
    own_captions = folder / 'annotations' / f'captions_{split}.json'
    # A broken link exists: it must not count as a split without labels.
    has_instances = os.path.lexists(instances)
    if has_instances:
        content = read_object(instances)
        images = read_images(content, instances, split, notes)
        labels = read_labels(content, instances, images, notes)
    if captions is not None or os.path.lexists(own_captions):
        path = captions or own_captions
        content = read_object(path)
        if not has_instances:
            images = read_images(content, path, split, notes)
        read_captions(content, path, images, notes)
        _check_captions(captions, images)

    folders = _image_folders(folder, split)

    def find(number: Id, image: ImageEntry) -> Path | None:
        return _first_file(at / image.file_name for at in folders)

    samples = make_samples(images, labels, find, ' or '.join(map(str, folders)), notes)
    official = _OFFICIAL.fullmatch(split)
    name = f'coco-{split}' if official else scenes_name(folder, split) or split
    return Dataset(name, samples, labels, tuple(notes), _warnings([split] if official else []))


def is_karpathy(content: dict[str, object]) -> bool:
    """Return whether a file's content is in Karpathy's format: its images have sentences."""
    images = content.get('images')
    return isinstance(images, list) and any(
        isinstance(image, dict) and 'sentences' in image for image in images[:1]
    )


def karpathy_splits(content: dict[str, object], path: Path) -> list[str]:
    """Return the names of the file's splits ('karpathy-train', ...), sorted."""
    return sorted({_KARPATHY + record.text('split') for record in records(content, 'images', path)})


def open_karpathy(folder: Path, split: str, content: dict[str, object], path: Path) -> Dataset:
    """Return one of Karpathy's splits, for example 'karpathy-test', of a COCO folder.

    Captions come from his file, labels from the instances of 2014 or 2017 if the folder has them.
    Images are found under the names of both years.
    """
    notes: list[str] = []
    images: dict[Id, ImageEntry] = {}
    repeated: list[str] = []
    blank: list[str] = []
    parts: dict[str, None] = {}
    for record in records(content, 'images', path):
        if _KARPATHY + record.text('split') != split:
            continue
        number, part, file_name = (
            record.identity('cocoid'),
            record.text('filepath'),
            record.text('filename'),
        )
        if number in images:
            repeated.append(file_name)
            continue
        texts = []
        for sentence in record.objects('sentences'):
            if sentence.is_blank('raw'):
                blank.append(file_name)
            else:
                texts.append(sentence.text('raw'))
        images[number] = ImageEntry(f'{part}/{file_name}', file_name, captions=texts)
        parts[part] = None
    notes += note(
        repeated, 'image is listed twice, used once', 'images are listed twice, used once'
    )
    notes += note_about_blank(blank)

    labels: tuple[str, ...] = ()
    annotations = folder / 'annotations'
    files = [annotations / f'instances_{part}.json' for part in parts]
    if not all(file.exists() for file in files):
        files = [annotations / f'instances_{part}.json' for part in ('train2017', 'val2017')]
    for file in filter(Path.exists, files):
        instances = read_object(file)
        for number, listed in read_images(instances, file, split, []).items():
            if number in images:
                images[number].size = listed.size
        found = read_labels(instances, file, images, notes, only_given=True)
        labels = tuple(dict.fromkeys(labels + found))

    def find(number: Id, image: ImageEntry) -> Path | None:
        new_name = f'{number:012d}.jpg' if isinstance(number, int) else f'{number}.jpg'
        part = image.key.partition('/')[0]
        named = [at / image.file_name for at in _image_folders(folder, part)]
        for year in ('val2017', 'train2017'):
            named += [at / new_name for at in _image_folders(folder, year)]
        return _first_file(named)

    samples = make_samples(images, labels, find, str(folder), notes)
    return Dataset(f'coco-{split}', samples, labels, tuple(notes), _warnings(list(parts)))


def _image_folders(folder: Path, split: str) -> list[Path]:
    return [folder / split, folder / 'images' / split, folder / 'images']


def _first_file(paths: Iterable[Path]) -> Path | None:
    return next((path for path in paths if path.is_file()), None)


def _check_captions(path: Path | None, images: dict[Id, ImageEntry]) -> None:
    if path is not None and not any(image.captions for image in images.values()):
        raise DatasetError(f'{path}: has no captions for this split; give the file of this split')


def _warnings(parts: list[str]) -> tuple[str, ...]:
    warnings = []
    if any(part.startswith('train') for part in parts):
        warnings.append(f'COCO train images {_TRAINED_ON}')
    if 'val2014' in parts:
        warnings.append(f'most COCO val2014 images are in train2017, and those {_TRAINED_ON}')
    return tuple(warnings)
