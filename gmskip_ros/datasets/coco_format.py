"""Files in COCO's format, which CODA and others share: images, boxes with classes, captions."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from gmskip_ros.datasets.errors import DatasetError
from gmskip_ros.datasets.json_file import Record, entries, has_word, note, records
from gmskip_ros.datasets.sample import Instance, Sample, labels_and_main_object

Id: TypeAlias = 'int | str'


@dataclass(slots=True)
class ImageEntry:
    """What the annotation files say about one image."""

    key: str
    file_name: str  # may contain folders, separated by /
    size: tuple[float, float] | None = None  # width, height in pixels
    instances: list[Instance] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)


def read_images(
    content: dict[str, Any], path: Path, split: str, notes: list[str]
) -> dict[Id, ImageEntry]:
    """Return the file's list of images by id.

    An image listed twice counts once. An id with two files is ignored with all its annotations,
    since they could belong to either. Without file_name (LVIS) the name is the end of coco_url.
    """
    images: dict[Id, ImageEntry] = {}
    repeated: list[str] = []
    ambiguous: dict[Id, str] = {}
    for record in records(content, 'images', path):
        number, file_name = record.identity('id'), _file_name(record)
        if number in images:
            if images[number].file_name == file_name:
                repeated.append(file_name)
            else:
                ambiguous.setdefault(number, f'id {number}')
            continue
        size = None
        if record.has('width') or record.has('height'):
            size = (record.size('width'), record.size('height'))
        images[number] = ImageEntry(f'{split}/{file_name}', file_name, size)
    if not images:
        raise DatasetError(f'{path}: images is empty; give a file that lists images')
    for number in ambiguous:
        del images[number]
    notes += note(
        repeated, 'image is listed twice, used once', 'images are listed twice, used once'
    )
    notes += note(
        list(ambiguous.values()),
        'image id belongs to two files, both ignored',
        'image ids belong to two files each, all ignored',
    )
    return images


def _file_name(record: Record) -> str:
    if record.has('file_name') or not record.has('coco_url'):
        return record.text('file_name').replace('\\', '/')  # as written on Windows
    return '/'.join(record.text('coco_url').split('/')[-2:])  # http://.../val2017/000000000139.jpg


@dataclass(slots=True)
class _Annotation:
    """The fields of one entry of `annotations` with a box."""

    image_id: Id
    category: Id
    box: Sequence[float]  # left, top, width, height
    is_crowd: bool
    area: float  # 0: not stated


def _annotation(values: Any, path: Path, index: int) -> _Annotation:
    """Return an entry of `annotations`; raise DatasetError, which names the field."""
    try:  # nearly all entries, in a tenth of the time; LVIS has no iscrowd, others no area
        image_id, category, box = values['image_id'], values['category_id'], values['bbox']
        crowd, area = values.get('iscrowd', 0), values.get('area') or 0
        left, top, width, height = box
        if (
            type(image_id) is type(category) is int
            and type(box) is list
            and type(left) in (float, int)
            and type(top) in (float, int)
            and type(width) in (float, int)
            and type(height) in (float, int)
            and type(area) in (float, int)
            and math.isfinite(left + top + width + height + area)
            and (crowd is False or crowd is True or (type(crowd) is int and crowd in (0, 1)))
        ):
            return _Annotation(image_id, category, box, bool(crowd), max(area, 0))
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError):
        pass
    record = Record(values, path, f'annotations[{index}]')
    return _Annotation(
        record.identity('image_id'),
        record.identity('category_id'),
        record.numbers('bbox', 4),
        record.flag('iscrowd'),
        max(record.number('area'), 0) if record.has('area') else 0,
    )


def read_labels(
    content: dict[str, Any],
    path: Path,
    images: Mapping[Id, ImageEntry],
    notes: list[str],
    *,
    renamed: Mapping[str, str] | None = None,
    nameless: Sequence[str] = (),
    only_given: bool = False,
) -> tuple[str, ...]:
    """Add the file's boxes to the images and return its class names.

    `renamed`: corrected spellings of class names. `nameless`: classes to ignore. `only_given`:
    boxes of images that are not in `images` are expected, and not noted. An area is the mask's if
    the file has one above 0, but at most that of the part of the box inside the image. An
    annotation with an unusable field, such as one without a box, is skipped; if all of them are,
    the error about the first one is raised.
    """
    label_of: dict[Id, str | None] = {}
    for record in records(content, 'categories', path):
        name = record.text('name')
        label = None if name in nameless else (renamed or {}).get(name, name)
        number = record.identity('id')
        if label_of.setdefault(number, label) != label:
            raise record.error('id', f'is {number}, the id of two classes; change one')

    crowds: list[str] = []
    ignored: dict[str, list[str]] = {}
    clipped: list[str] = []
    unusable: list[DatasetError] = []
    seen: dict[Id, _Annotation] = {}
    listed = entries(content, 'annotations', path)
    for index, values in enumerate(listed):
        try:
            found = _annotation(values, path, index)
            image = images.get(found.image_id)
            if image is None:
                if not only_given:
                    ignored.setdefault('image', []).append(f'image {found.image_id}')
                continue
            if image.size is None:
                raise DatasetError(
                    f'{path}: annotations[{index}].bbox is in {image.file_name}, which has no '
                    'width and height in images; add them'
                )
        except DatasetError as error:
            unusable.append(error)
            continue
        if found.category not in label_of:
            ignored.setdefault('class', []).append(f'class {found.category}')
            continue
        number = values.get('id')
        if type(number) in (int, str):
            first = seen.setdefault(number, found)
            if first is not found and first == found:
                ignored.setdefault('twice', []).append(f'id {number}')
                continue
        label = label_of[found.category]
        if label is None:
            ignored.setdefault('nameless', []).append(image.key)
            continue
        instance, cut = _visible_part(found, label, image.size)
        if instance is None:
            ignored.setdefault('empty', []).append(image.key)
            continue
        if cut:
            clipped.append(image.key)
        if found.is_crowd:
            crowds.append(image.key)
        image.instances.append(instance)
    if unusable and len(unusable) == len(listed):
        raise unusable[0]

    for kind, one, many in (
        (
            'image',
            'box is in an image that is not listed, ignored',
            'boxes are in images that are not listed, ignored',
        ),
        (
            'class',
            'box has a class that is not listed, ignored',
            'boxes have classes that are not listed, ignored',
        ),
        ('twice', 'box is listed twice, used once', 'boxes are listed twice, used once'),
        (
            'nameless',
            f'box has class {" or ".join(nameless)}, which no answer can name, ignored',
            f'boxes have class {" or ".join(nameless)}, which no answer can name, ignored',
        ),
        (
            'empty',
            'box has no area inside its image, ignored',
            'boxes have no area inside their images, ignored',
        ),
    ):
        notes += note(ignored.get(kind, []), one, many)
    notes += note(
        [str(error).removeprefix(f'{path}: ').partition(';')[0] for error in unusable],
        'annotation cannot be used, skipped',
        'annotations cannot be used, skipped',
    )
    notes += note(clipped, 'box is clipped to its image', 'boxes are clipped to their images')
    notes += note(
        crowds,
        'crowd region counts as a label, never as the main object',
        'crowd regions count as labels, never as the main object',
    )
    return tuple(dict.fromkeys(label for label in label_of.values() if label is not None))


def _visible_part(
    found: _Annotation, label: str, size: tuple[float, float]
) -> tuple[Instance | None, bool]:
    """Return what of a box is inside the image, and whether the box extends beyond it.

    None if nothing is.
    """
    x, y, width, height = found.box
    left, right = max(x, 0), min(x + width, size[0])
    top, bottom = max(y, 0), min(y + height, size[1])
    area = (right - left) * (bottom - top)
    if min(width, height, right - left, bottom - top) <= 0:
        return None, False
    if found.area:
        area = min(area, found.area)
    # Coordinates are rounded to two digits, so less than a pixel does not count.
    cut = right - left < width - 1 or bottom - top < height - 1
    return Instance(label, left, top, right, bottom, area, found.is_crowd), cut


def read_captions(
    content: dict[str, Any], path: Path, images: Mapping[Id, ImageEntry], notes: list[str]
) -> None:
    """Add the file's captions to the images."""
    seen: dict[Id, tuple[Id, str]] = {}
    blank: list[str] = []
    twice: list[str] = []
    unlisted: list[str] = []
    for index, values in enumerate(entries(content, 'annotations', path)):
        image_id, caption = _caption(values, path, index)
        if not has_word(caption):
            blank.append(f'image {image_id}')
            continue
        image = images.get(image_id)
        if image is None:
            unlisted.append(f'image {image_id}')
            continue
        number = values.get('id')
        if type(number) in (int, str):
            if seen.get(number) == (image_id, caption):
                twice.append(f'id {number}')
                continue
            seen[number] = (image_id, caption)
        image.captions.append(caption)
    notes += note_about_blank(blank)
    notes += note(
        twice, 'caption is listed twice, used once', 'captions are listed twice, used once'
    )
    notes += note(
        unlisted,
        'caption belongs to an image that is not listed, ignored',
        'captions belong to images that are not listed, ignored',
    )


def _caption(values: Any, path: Path, index: int) -> tuple[Id, str]:
    """Return the image id and the text of an entry of `annotations`; the text may be blank."""
    try:
        image_id, caption = values['image_id'], values['caption']
        if type(image_id) is int and type(caption) is str:
            return image_id, caption.strip()
    except (KeyError, TypeError):
        pass
    record = Record(values, path, f'annotations[{index}]')
    image_id = record.identity('image_id')
    return image_id, '' if record.is_blank('caption') else record.text('caption')


def note_about_blank(names: Sequence[str]) -> list[str]:
    """Return the note about captions without a letter or digit; `names` are their images."""
    return note(names, 'caption has no word, ignored', 'captions have no word, ignored')


def make_samples(
    images: Mapping[Id, ImageEntry],
    labels: Sequence[str],
    find: Callable[[Id, ImageEntry], Path | None],
    where: str,
    notes: list[str],
) -> tuple[Sample, ...]:
    """Return a sample for every image whose file `find` returns, in the order of their keys.

    Several ids of one file are one image. `where` names the folders that `find` searches, for the
    DatasetError if no image is found.
    """
    by_key: dict[str, ImageEntry] = {}
    paths: dict[str, Path] = {}
    twins: list[str] = []
    missing: list[str] = []
    for number, image in images.items():
        if image.key in by_key:
            twins.append(image.key)
            _merge(by_key[image.key], image)
            continue
        path = find(number, image)
        if path is None:
            missing.append(image.key)
            continue
        by_key[image.key], paths[image.key] = image, path
    if not by_key:
        raise DatasetError(
            f'{where}: none of {len(images):,} images was found; unpack them there, or give their '
            'folder with --images-dir'
        )
    notes += note(
        twins,
        'image is listed under two ids, which are merged',
        'images are listed under two ids each, which are merged',
    )
    notes += note(missing, 'image is missing, ignored', 'images are missing, ignored')
    bare = [key for key, image in by_key.items() if not image.instances]
    if labels:
        notes += note(bare, 'image has no labels', 'images have no labels')

    order = {label: index for index, label in enumerate(labels)}
    samples = []
    for key, image in sorted(by_key.items()):
        present, main_object = labels_and_main_object(image.instances, order)
        samples.append(
            Sample(
                key=key,
                image_path=paths[key],
                labels=present,
                main_object=main_object,
                captions=tuple(image.captions),
                instances=tuple(image.instances),
                size=image.size,
            )
        )
    return tuple(samples)


def _merge(image: ImageEntry, twin: ImageEntry) -> None:
    image.instances += [found for found in twin.instances if found not in image.instances]
    image.captions += [text for text in twin.captions if text not in image.captions]
