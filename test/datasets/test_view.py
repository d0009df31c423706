"""Objects that lie wholly outside what a model sees of an image are not part of the truth."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from coco_mini import COCO_MINI, needs_coco_mini
from PIL import Image

from gmskip_ros.datasets import open_dataset, within_view

NAMES = ('car', 'dog', 'bus')


def middle_half(width: float, height: float) -> tuple[float, float, float, float]:
    return (0.25, 0.0, 0.75, 1.0)


def centre_square(width: float, height: float) -> tuple[float, float, float, float]:
    """What a processor that resizes the short edge and crops the centre lets through."""
    x, y = (min(width, height) / side for side in (width, height))
    return ((1 - x) / 2, (1 - y) / 2, (1 + x) / 2, (1 + y) / 2)


def make_dataset(folder: Path, *boxes: tuple[str, list[float]], crowd: bool = False):
    """Write one image of 400x100 px with these boxes (class; x, y, width, height)."""
    (folder / 'annotations').mkdir(parents=True)
    (folder / 'val2017').mkdir()
    Image.fromarray(np.zeros((100, 400, 3), np.uint8)).save(folder / 'val2017' / '1.png')
    content = {
        'images': [{'id': 1, 'file_name': '1.png', 'width': 400, 'height': 100}],
        'categories': [{'id': i, 'name': name} for i, name in enumerate(NAMES)],
        'annotations': [
            {
                'id': i,
                'image_id': 1,
                'category_id': NAMES.index(name),
                'bbox': box,
                'iscrowd': int(crowd),
            }
            for i, (name, box) in enumerate(boxes)
        ],
    }
    (folder / 'annotations' / 'instances_val2017.json').write_text(json.dumps(content))
    return open_dataset(folder)


def test_only_what_touches_the_view_counts(tmp_path) -> None:
    dataset = make_dataset(
        tmp_path,
        ('bus', [0, 0, 100, 100]),  # ends where the view begins
        ('car', [0, 0, 101, 50]),  # a pixel of it is inside
        ('dog', [150, 10, 20, 20]),
        ('dog', [350, 0, 50, 100]),
    )
    assert dataset.samples[0].main_object == 'bus'
    seen = within_view(dataset, middle_half)
    (sample,) = seen.samples
    assert (set(sample.labels), sample.main_object) == ({'car', 'dog'}, 'car')
    assert seen.labels_outside_view == 1
    assert seen.notes[-1].startswith('1 of 3 labels of images lie wholly outside')
    assert dataset.samples[0].labels[0] == 'bus'  # the original is unchanged


def test_nothing_in_view(tmp_path) -> None:
    dataset = make_dataset(tmp_path, ('car', [0, 0, 50, 50]), crowd=True)
    (sample,) = within_view(dataset, middle_half).samples
    assert (sample.labels, sample.main_object) == ((), None)


def test_a_whole_view_changes_nothing(tmp_path) -> None:
    dataset = make_dataset(tmp_path, ('car', [0, 0, 50, 50]))
    assert within_view(dataset, lambda *_: (0.0, 0.0, 1.0, 1.0)) == dataset


@needs_coco_mini
def test_the_photographs_of_coco() -> None:
    """Counted by hand from the annotations: a centre crop hides 16 of 169 labels of images."""
    dataset = open_dataset(COCO_MINI)
    seen = within_view(dataset, centre_square)
    assert seen.labels_outside_view == 16
    assert sum(len(sample.labels) for sample in dataset.samples) == 169
    assert sum(len(sample.labels) for sample in seen.samples) == 169 - 16
