"""Karpathy's files with captions of COCO, Flickr8k and Flickr30k, and his splits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gmskip_ros.datasets.coco import image_folders, training_warnings
from gmskip_ros.datasets.coco_format import (
    Id,
    ImageEntry,
    make_samples,
    note_about_blank,
    read_images,
    read_labels,
)
from gmskip_ros.datasets.image_finder import ImageFinder, coco_names
from gmskip_ros.datasets.json_file import Record, note, records
from gmskip_ros.datasets.sample import Dataset
from gmskip_ros.datasets.wrong_files import read_annotations

PREFIX = 'karpathy-'
_YEARS = ('val2017', 'train2017')
# The folders that the images of Flickr8k and Flickr30k come in.
_FLICKR = (
    'Flicker8k_Dataset',
    'Flickr8k_Dataset',
    'Images',
    'flickr30k-images',
    'flickr30k_images',
)


def is_karpathy(content: object) -> bool:
    """Return whether a file's content is in Karpathy's format: its images have sentences."""
    images = content.get('images') if isinstance(content, dict) else None
    return isinstance(images, list) and any(
        isinstance(image, dict) and 'sentences' in image for image in images[:1]
    )


def karpathy_splits(content: dict[str, Any], path: Path) -> list[str]:
    """Return the names of the file's splits ('karpathy-train', ...), sorted."""
    return sorted({PREFIX + record.text('split') for record in records(content, 'images', path)})


def open_karpathy(
    folder: Path,
    splits: Sequence[str],
    content: dict[str, Any],
    path: Path,
    images_dir: Path | None,
) -> Dataset:
    """Return one of Karpathy's splits, for example 'karpathy-test', or several joined.

    Captions come from his file. Of COCO, labels come from the instances of 2014 or 2017 if the
    folder has them, and images are found under the names of both years. Flickr's files have no
    cocoid and no filepath: their images are known by their names.
    """
    notes: list[str] = []
    images: dict[Id, ImageEntry] = {}
    repeated: list[str] = []
    blank: list[str] = []
    parts: dict[str, None] = {}
    for record in records(content, 'images', path):
        if PREFIX + record.text('split') not in splits:
            continue
        file_name, part = record.text('filename'), _part(record)
        key = f'{part}/{file_name}' if part else file_name
        number = record.identity('cocoid') if record.has('cocoid') else key
        if number in images:
            repeated.append(file_name)
            continue
        texts = []
        for sentence in record.objects('sentences'):
            if sentence.is_blank('raw'):
                blank.append(file_name)
            else:
                texts.append(sentence.text('raw'))
        images[number] = ImageEntry(key, file_name, captions=texts)
        parts[part] = None
    notes += note(
        repeated, 'image is listed twice, used once', 'images are listed twice, used once'
    )
    notes += note_about_blank(blank)
    labels = _read_labels(folder, list(filter(None, parts)), images, notes)

    years = [*filter(None, parts), *_YEARS] if any(parts) else []
    root = folder if images_dir is None else images_dir
    finder = ImageFinder(
        [*image_folders(root, *years), *(root / name for name in _FLICKR if not years)]
    )

    def find(number: Id, image: ImageEntry) -> Path | None:
        return finder.find(coco_names(image.file_name))

    samples = make_samples(images, labels, find, str(root), notes)
    collection = str(content.get('dataset') or path.stem.removeprefix('dataset_'))
    joined = '+'.join(split.removeprefix(PREFIX) for split in splits)
    name = f'{collection}-{PREFIX}{joined}'
    return Dataset(name, samples, labels, tuple(notes), training_warnings(list(parts)))


def _part(record: Record) -> str:
    return record.text('filepath') if record.has('filepath') else ''


def _read_labels(
    folder: Path, parts: Sequence[str], images: dict[Id, ImageEntry], notes: list[str]
) -> tuple[str, ...]:
    """Add the boxes of COCO's own files to the images, and return the class names."""
    labels: tuple[str, ...] = ()
    annotations = folder / 'annotations'
    files = [annotations / f'instances_{part}.json' for part in parts]
    if not all(file.exists() for file in files):
        files = [annotations / f'instances_{part}.json' for part in _YEARS]
    for file in filter(Path.exists, files if parts else []):
        instances = read_annotations(file)
        for number, listed in read_images(instances, file, '', []).items():
            if number in images:
                images[number].size = listed.size
        found = read_labels(instances, file, images, notes, only_given=True)
        labels = tuple(dict.fromkeys(labels + found))
    return labels
