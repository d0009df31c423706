"""Files in COCO's format: pictures, boxes of classes, captions. COCO and CODA are written so."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from gmskip_ros.datasets.errors import DatasetError
from gmskip_ros.datasets.json_file import Record, note, records
from gmskip_ros.datasets.sample import Sample

Id: TypeAlias = 'int | str'


@dataclass
class Picture:
    """One picture while its files are read."""

    key: str
    file_name: str
    size: tuple[float, float] | None = None  # width, height in pixels
    areas: dict[str, float] = field(default_factory=dict)  # total per class, pixels
    largest: dict[str, float] = field(default_factory=dict)  # single instance per class, no crowds
    captions: list[str] = field(default_factory=list)

    def add(self, label: str, area: float, crowd: bool) -> None:
        """Add one instance. A crowd shows its class, but it is no single object."""
        self.areas[label] = self.areas.get(label, 0) + area
        if not crowd:
            self.largest[label] = max(self.largest.get(label, 0), area)


def read_pictures(
    content: dict[str, Any], path: Path, split: str, notes: list[str]
) -> dict[Id, Picture]:
    """Return the file's list of pictures by id.

    A picture listed twice counts once. An id with two files is left out with all its annotations:
    nobody knows which of the two they are about.
    """
    pictures: dict[Id, Picture] = {}
    repeated: list[str] = []
    ambiguous: dict[Id, str] = {}
    for record in records(content, 'images', path):
        number, file_name = record.identity('id'), record.text('file_name')
        if number in pictures:
            if pictures[number].file_name == file_name:
                repeated.append(file_name)
            else:
                ambiguous.setdefault(number, f'id {number}')
            continue
        size = None
        if record.has('width') or record.has('height'):
            size = (record.size('width'), record.size('height'))
        pictures[number] = Picture(f'{split}/{file_name}', file_name, size)
    if not pictures:
        raise DatasetError(f'{path}: images is empty; give a file that lists pictures')
    for number in ambiguous:
        del pictures[number]
    notes += note(
        repeated, 'image is listed twice, taken once', 'images are listed twice, taken once'
    )
    notes += note(
        list(ambiguous.values()),
        'image id is given to two files, both left out',
        'image ids are given to two files each, all left out',
    )
    return pictures


def read_labels(
    content: dict[str, Any],
    path: Path,
    pictures: Mapping[Id, Picture],
    notes: list[str],
    *,
    renamed: Mapping[str, str] | None = None,
    nameless: Sequence[str] = (),
    only_given: bool = False,
) -> tuple[str, ...]:
    """Add the file's boxes to the pictures and return its class names.

    `renamed`: other spellings for class names. `nameless`: classes to leave out. `only_given`:
    boxes of other pictures are no peculiarity of the file. An area is the mask's where the file
    states one, but never more than the part of the box that is inside the picture.
    """
    label_of: dict[Id, str | None] = {}
    for record in records(content, 'categories', path):
        name = record.text('name')
        label = None if name in nameless else (renamed or {}).get(name, name)
        number = record.identity('id')
        if label_of.setdefault(number, label) != label:
            raise record.error('id', f'is {number}, which another class has, too; rename one')

    crowds: list[str] = []
    left_out: dict[str, list[str]] = {}
    clipped: list[str] = []
    seen: dict[Id, tuple[Any, ...]] = {}
    for record in records(content, 'annotations', path):
        image_id, category = record.identity('image_id'), record.identity('category_id')
        box, crowd = record.numbers('bbox', 4), record.flag('iscrowd')
        picture = pictures.get(image_id)
        if picture is None:
            if not only_given:
                left_out.setdefault('image', []).append(f'image {image_id}')
            continue
        if category not in label_of:
            left_out.setdefault('class', []).append(f'class {category}')
            continue
        if record.has('id'):
            number = record.identity('id')
            same = (image_id, category, tuple(box))
            if seen.setdefault(number, same) is not same and seen[number] == same:
                left_out.setdefault('twice', []).append(f'id {number}')
                continue
        if label_of[category] is None:
            left_out.setdefault('nameless', []).append(picture.key)
            continue
        area, cut = _visible_area(record, box, picture)
        if area <= 0:
            left_out.setdefault('empty', []).append(picture.key)
            continue
        if cut:
            clipped.append(picture.key)
        if crowd:
            crowds.append(picture.key)
        picture.add(str(label_of[category]), area, crowd)

    for kind, one, many in (
        (
            'image',
            'box is of an image that is not listed, left out',
            'boxes are of images that are not listed, left out',
        ),
        (
            'class',
            'box is of a class that is not listed, left out',
            'boxes are of classes that are not listed, left out',
        ),
        ('twice', 'box is there twice, taken once', 'boxes are there twice, taken once'),
        (
            'nameless',
            f'box of class {" or ".join(nameless)}, which no answer can name, is left out',
            f'boxes of class {" or ".join(nameless)}, which no answer can name, are left out',
        ),
        (
            'empty',
            'box has no area inside its image, left out',
            'boxes have no area inside their images, left out',
        ),
    ):
        notes += note(left_out.get(kind, []), one, many)
    notes += note(clipped, 'box is clipped to its image', 'boxes are clipped to their images')
    notes += note(
        crowds,
        'crowd region counts as a label, never as the main object',
        'crowd regions count as labels, never as the main object',
    )
    return tuple(dict.fromkeys(label for label in label_of.values() if label is not None))


def _visible_area(record: Record, box: Sequence[float], picture: Picture) -> tuple[float, bool]:
    """Return the area inside the picture, and whether the box reaches out of it."""
    if picture.size is None:
        raise record.error(
            'bbox', f'is in {picture.file_name}, which has no width and height in images; add them'
        )
    x, y, width, height = box
    inside_width = min(x + width, picture.size[0]) - max(x, 0)
    inside_height = min(y + height, picture.size[1]) - max(y, 0)
    if min(width, height, inside_width, inside_height) <= 0:
        return 0.0, False
    # Boxes are written with two digits: less than a pixel is rounding.
    cut = inside_width < width - 1 or inside_height < height - 1
    area = inside_width * inside_height
    return (min(area, record.number('area')) if record.has('area') else area), cut


def read_captions(
    content: dict[str, Any], path: Path, pictures: Mapping[Id, Picture], notes: list[str]
) -> None:
    """Add the file's captions to the pictures."""
    seen: dict[Id, str] = {}
    blank: list[str] = []
    twice: list[str] = []
    strange: list[str] = []
    for record in records(content, 'annotations', path):
        image_id = record.identity('image_id')
        if record.is_blank('caption'):
            blank.append(f'image {image_id}')
            continue
        caption = record.text('caption')
        picture = pictures.get(image_id)
        if picture is None:
            strange.append(f'image {image_id}')
            continue
        if record.has('id'):
            same = f'{image_id} {caption}'
            number = record.identity('id')
            if number in seen and seen[number] == same:
                twice.append(f'id {number}')
                continue
            seen[number] = same
        picture.captions.append(caption)
    notes += note_about_blank(blank)
    notes += note(
        twice, 'caption is there twice, taken once', 'captions are there twice, taken once'
    )
    notes += note(
        strange,
        'caption is of an image that is not listed, left out',
        'captions are of images that are not listed, left out',
    )


def note_about_blank(names: Sequence[str]) -> list[str]:
    """Return the note about captions without a word, by their pictures' names."""
    return note(names, 'caption says nothing, left out', 'captions say nothing, left out')


def make_samples(
    pictures: Mapping[Id, Picture],
    labels: Sequence[str],
    find: Callable[[Id, Picture], Path | None],
    where: str,
    notes: list[str],
) -> tuple[Sample, ...]:
    """Return a sample for every picture whose file `find` gives, in the order of their keys.

    Several ids of one file are one picture. Raises DatasetError where no picture is left; `where`
    says where they were looked for.
    """
    by_key: dict[str, Picture] = {}
    paths: dict[str, Path] = {}
    twins: list[str] = []
    missing: list[str] = []
    for number, picture in pictures.items():
        if picture.key in by_key:
            twins.append(picture.key)
            _merge(by_key[picture.key], picture)
            continue
        path = find(number, picture)
        if path is None:
            missing.append(picture.key)
            continue
        by_key[picture.key], paths[picture.key] = picture, path
    if not by_key:
        raise DatasetError(f'{where}: none of {len(pictures):,} images is there; unpack them there')
    notes += note(
        twins,
        'image is listed under two ids, taken as one',
        'images are listed under two ids, taken as one each',
    )
    notes += note(missing, 'image is missing, left out', 'images are missing, left out')
    bare = [key for key, picture in by_key.items() if not picture.areas]
    if labels:
        notes += note(bare, 'image has no labels', 'images have no labels')

    order = {label: index for index, label in enumerate(labels)}
    samples = []
    for key, picture in sorted(by_key.items()):
        ranked = sorted(picture.areas, key=lambda label: (-picture.areas[label], order[label]))
        single = sorted(picture.largest, key=lambda label: (-picture.largest[label], order[label]))
        samples.append(
            Sample(
                key=key,
                image_path=paths[key],
                labels=tuple(ranked),
                main_object=single[0] if single else None,
                captions=tuple(picture.captions),
            )
        )
    return tuple(samples)


def _merge(picture: Picture, twin: Picture) -> None:
    for label, area in twin.areas.items():
        picture.areas[label] = max(picture.areas.get(label, 0), area)
    for label, area in twin.largest.items():
        picture.largest[label] = max(picture.largest.get(label, 0), area)
    picture.captions += [text for text in twin.captions if text not in picture.captions]
