"""COCO's folders (2014, 2017 and others in the same layout), and single files in its format."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gmskip_ros.datasets.coco_format import (
    Id,
    ImageEntry,
    make_samples,
    read_captions,
    read_images,
    read_labels,
)
from gmskip_ros.datasets.errors import DatasetError
from gmskip_ros.datasets.image_finder import ImageFinder, coco_names
from gmskip_ros.datasets.sample import Dataset
from gmskip_ros.datasets.scenes_writer import scenes_name
from gmskip_ros.datasets.wrong_files import read_annotations

_ANNOTATIONS = re.compile(r'(?:instances|captions)_(.+)\.json')
_NAMED_AFTER_SPLIT = re.compile(r'(?:instances|captions|person_keypoints|stuff)_(.+)\.json')
_ROBOFLOW = '_annotations.coco.json'  # in the folder of its split
_OFFICIAL = re.compile(r'(?:train|val)20(?:14|17)')
_TRAINED_ON = (
    'are in the training data of LLaVA models: scores on them overstate those on new images'
)


def coco_splits(folder: Path) -> list[str]:
    """Return the splits that have instances or captions in `folder`/annotations, sorted."""
    names = [entry.name for entry in (folder / 'annotations').glob('*.json')]
    return sorted({match[1] for name in names if (match := _ANNOTATIONS.fullmatch(name))})


def open_coco(
    folder: Path, split: str, captions: Path | None, images_dir: Path | None = None
) -> Dataset:
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
        content = read_annotations(instances)
        images = read_images(content, instances, split, notes)
        labels = read_labels(content, instances, images, notes)
        del content  # most of the memory, before the captions take some
    if captions is not None or os.path.lexists(own_captions):
        path = captions or own_captions
        content = read_annotations(path)
        if not has_instances:
            images = read_images(content, path, split, notes)
        read_captions(content, path, images, notes)
        _check_captions(captions, images)
    finder = ImageFinder(image_folders(images_dir or folder, split))
    name = scenes_name(folder, split) or split
    return make_dataset(name, split, images, labels, finder, notes, ())


def open_coco_file(
    path: Path, content: dict[str, Any], captions: Path | None, images_dir: Path | None
) -> Dataset:
    """Return what a file in COCO's format holds, whatever its name: boxes, captions or both.

    The split is what its name says; images are looked for in `images_dir`, or beside the file.
    """
    name, split, root = name_split_and_root(path)
    notes: list[str] = []
    warnings: list[str] = []
    labels: tuple[str, ...] = ()
    images = read_images(content, path, split, notes)
    if _has_captions(content):
        read_captions(content, path, images, notes)
    else:
        labels = read_labels(content, path, images, notes)
        if any('keypoints' in category for category in content['categories']):
            warnings.append(
                f'{path.name} labels only {" and ".join(labels)}: an image may show classes that '
                'are not among its labels'
            )
    if any('neg_category_ids' in image for image in content['images'][:1]):
        warnings.append(
            f'{path.name} is from LVIS, which looks for only some classes in each image: an image '
            'may show classes that are not among its labels'
        )
    if captions is not None:
        read_captions(read_annotations(captions), captions, images, notes)
        _check_captions(captions, images)
    finder = find_beside(path, root, split, images_dir)
    return make_dataset(name, split, images, labels, finder, notes, warnings)


def find_beside(path: Path, root: Path, split: str, images_dir: Path | None) -> ImageFinder:
    """Return what finds a file's images: in `images_dir`, or below `root` and beside the file."""
    if images_dir is not None:
        return ImageFinder(image_folders(images_dir, split))
    parent = path.absolute().parent
    return ImageFinder([*image_folders(root, split), *image_folders(parent, split)])


def name_split_and_root(path: Path) -> tuple[str, str, Path]:
    """Return a dataset's name, the split that its file is about, and the folder above it."""
    parent = path.absolute().parent
    root = parent.parent if parent.name == 'annotations' else parent
    if match := _NAMED_AFTER_SPLIT.fullmatch(path.name):
        return scenes_name(root, match[1]) or match[1], match[1], root
    split = path.stem
    if path.name == _ROBOFLOW:
        split, root = parent.name, parent.parent
    return f'{root.name}/{split}', split, root  # 'train' alone would name many datasets


def _has_captions(content: dict[str, Any]) -> bool:
    annotations = content.get('annotations')
    first = annotations[0] if isinstance(annotations, list) and annotations else None
    return isinstance(first, dict) and 'caption' in first


def make_dataset(
    name: str,
    split: str,
    images: dict[Id, ImageEntry],
    labels: tuple[str, ...],
    finder: ImageFinder,
    notes: list[str],
    warnings: Sequence[str],
) -> Dataset:
    """Return the dataset of these images, those that `finder` finds; `name` is not COCO's own."""
    # Ids of two folders may share a file name; a name in coco_url has its folder before it.
    last = [image.file_name.rpartition('/')[2] for image in images.values()]
    are_unique = len(set(last)) == len(last)

    def find(number: Id, image: ImageEntry) -> Path | None:
        names = coco_names(image.file_name)
        if are_unique and '/' in image.file_name:
            names += coco_names(image.file_name.rpartition('/')[2])
        return finder.find(names)

    samples = make_samples(images, labels, find, str(finder), notes)
    if _OFFICIAL.fullmatch(split):
        name, warnings = f'coco-{split}', [*warnings, *training_warnings([split])]
    return Dataset(name, samples, labels, tuple(notes), tuple(warnings))


def image_folders(folder: Path, *splits: str) -> list[Path]:
    """Return where the images of these splits may be, the most specific place first."""
    own = [at for split in splits for at in (folder / split, folder / 'images' / split)]
    return [*own, folder / 'images', folder / 'data', folder]  # data: as FiftyOne exports


def _check_captions(path: Path | None, images: dict[Id, ImageEntry]) -> None:
    if path is not None and not any(image.captions for image in images.values()):
        raise DatasetError(f'{path}: has no captions for this split; give the file of this split')


def training_warnings(parts: Sequence[str]) -> tuple[str, ...]:
    """Return what is known of these splits of COCO and the training of LLaVA."""
    warnings = []
    if any(part.startswith('train') for part in parts):
        warnings.append(f'COCO train images {_TRAINED_ON}')
    if 'val2014' in parts:
        warnings.append(f'most COCO val2014 images are in train2017, and those {_TRAINED_ON}')
    return tuple(warnings)
