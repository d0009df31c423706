"""Rendered driving scenes as a folder in COCO's layout."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gmskip_ros import __version__
from gmskip_ros.datasets.errors import DatasetError

SPLIT = 'scenes'
JPEG_QUALITY = 95
_JOB_FILE = 'scenes.json'
_AREA = 'visible pixels'


def write_scenes(
    folder: str | os.PathLike[str],
    count: int,
    seed: int = 0,
    on_progress: Callable[[int], None] | None = None,
) -> bool:
    """Write the scenes of seeds `seed` to `seed` + `count` - 1; open_dataset reads the folder.

    Pictures are scenes/<seed as 12 digits>.jpg, so those of other seeds have other keys. An
    interrupted job is taken up where it was; returns False if it was complete. `on_progress` is
    called with the number of scenes done. Raises DatasetError if the folder holds anything else or
    cannot be written.
    """
    if count < 1 or seed < 0 or seed + count > 10**12:
        raise DatasetError(
            f'{count} scenes from seed {seed}: give 1 or more, and a seed from 0 to 999999999999'
        )
    root = Path(folder).expanduser()
    job = {'format': 'gmskip/scenes/1', 'scenes': count, 'seed': seed, 'gmskip_ros': __version__}
    try:
        _claim(root, job)
        # Written last: where it is, all else is.
        last = root / 'annotations' / f'instances_{SPLIT}.json'
        if last.exists():
            return False
        _write_all(root, range(seed, seed + count), last, on_progress)
    except OSError as error:
        raise DatasetError(
            f'{error.filename or root}: cannot be written ({error.strerror}); check the folder, '
            'its permissions and the space left'
        ) from error
    return True


def _claim(root: Path, job: dict[str, Any]) -> None:
    """Make the folder and leave the job's description there, or find the same one."""
    root.mkdir(parents=True, exist_ok=True)
    described = root / _JOB_FILE
    if described.exists():
        try:
            found = json.loads(described.read_bytes())
        except ValueError:
            found = None
        if found == job:
            return
        asked = ', '.join(f'{name} {value}' for name, value in job.items())
        raise DatasetError(
            f'{described}: is of another job than {asked}; give the same numbers or another folder'
        )
    if any(not entry.name.endswith('.tmp') for entry in root.iterdir()):
        raise DatasetError(f'{root}: is not empty; give a new or an empty folder')
    _write(described, (json.dumps(job) + '\n').encode())


def _write_all(
    root: Path, seeds: range, last: Path, on_progress: Callable[[int], None] | None
) -> None:
    import cv2

    from gmskip_ros.datasets.scenes import CLASSES, render_scene

    for name in (SPLIT, 'annotations'):
        (root / name).mkdir(exist_ok=True)
    images: list[dict[str, Any]] = []
    boxes: list[dict[str, Any]] = []
    captions: list[dict[str, Any]] = []
    for done, seed in enumerate(seeds, start=1):
        scene = render_scene(seed)
        picture = root / SPLIT / f'{seed:012d}.jpg'
        if not picture.exists():
            bgr = cv2.cvtColor(scene.image, cv2.COLOR_RGB2BGR)
            encoded = cv2.imencode('.jpg', bgr, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1]
            _write(picture, encoded.tobytes())
        height, width = scene.image.shape[:2]
        images.append({
            'id': seed, 'file_name': picture.name, 'width': width, 'height': height,
            'weather': scene.weather, 'period': scene.light,
        })  # fmt: skip
        for thing in scene.objects:
            boxes.append({
                'id': len(boxes) + 1, 'image_id': seed, 'bbox': list(thing.box), 'iscrowd': 0,
                'category_id': CLASSES.index(thing.name) + 1, 'area': thing.visible_area,
            })  # fmt: skip
        captions.append({'id': done, 'image_id': seed, 'caption': scene.caption})
        if on_progress is not None:
            on_progress(done)
    info = {'description': f'driving scenes rendered by gmskip_ros; area is {_AREA}'}
    classes = [{'id': number, 'name': name} for number, name in enumerate(CLASSES, start=1)]
    _write_json(root / 'annotations' / f'captions_{SPLIT}.json',
                {'info': info, 'images': images, 'annotations': captions})  # fmt: skip
    _write_json(last, {'info': info, 'images': images, 'annotations': boxes,
                       'categories': classes})  # fmt: skip


def _write_json(path: Path, content: dict[str, Any]) -> None:
    _write(path, (json.dumps(content) + '\n').encode())


def _write(path: Path, content: bytes) -> None:
    """Write the file aside and rename it, so that it is there as a whole or not at all."""
    aside = path.with_name(f'.{path.name}.tmp')
    with open(aside, 'wb') as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)
