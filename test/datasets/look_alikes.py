"""Small folders in the layouts of COCO and CODA, with images made here."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from gmskip_ros.datasets import Sample

WIDTH, HEIGHT = 64, 48


def write_images(folder: Path, names: Sequence[str]) -> None:
    """Write a small JPEG under each name, each with different pixels."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(sum(name.encode())).integers(0, 256, (6, 8, 3), np.uint8)
        cv2.imwrite(str(folder / name), cv2.resize(pixels, (WIDTH, HEIGHT)))


def write_json(path: Path, content: Any) -> Path:
    """Write the content as JSON and return the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def image(number: int, file_name: str, **more: Any) -> dict[str, Any]:
    """Return an entry of `images`."""
    return {'id': number, 'file_name': file_name, 'width': WIDTH, 'height': HEIGHT, **more}


def box(number: int, image_id: int, category: int, bbox: Sequence[float], **more: Any) -> dict:
    """Return an entry of `annotations`; its area is that of the box."""
    entry = {'id': number, 'image_id': image_id, 'category_id': category, 'bbox': list(bbox)}
    return {**entry, 'area': bbox[2] * bbox[3], 'iscrowd': 0, **more}


def classes(**names: int) -> list[dict[str, Any]]:
    """Return `categories`."""
    return [{'id': number, 'name': name} for name, number in names.items()]


def by_key(samples: Sequence[Sample]) -> dict[str, Sample]:
    """Return the samples by key, and check that the keys are unique and in order."""
    keys = [sample.key for sample in samples]
    assert keys == sorted(set(keys))
    return dict(zip(keys, samples, strict=True))


def note_about(notes: Sequence[str], word: str) -> str:
    """Return the only note that contains the word."""
    (found,) = [note for note in notes if word in note]
    return found
