"""Rendered driving scenes, written as a folder in COCO's layout."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gmskip_ros import __version__
from gmskip_ros.datasets.errors import DatasetError
from gmskip_ros.datasets.json_file import read_object
from gmskip_ros.files import FolderLock, write_atomically

if TYPE_CHECKING:
    from gmskip_ros.datasets.scenes import Scene

SPLIT = 'scenes'
_JOB_FILE = 'scenes.json'
_FORMAT = 'gmskip/scenes/1'
JPEG_QUALITY = 95


def write_scenes(
    folder: str | os.PathLike[str],
    count: int,
    seed: int = 0,
    on_progress: Callable[[int], None] | None = None,
) -> bool:
    """Write the scenes of seeds `seed` to `seed` + `count` - 1; open_dataset reads the folder.

    Images are scenes/<seed as 12 digits>.jpg, so different seeds have different keys. Areas are
    visible pixels. An interrupted job is resumed; returns False if it was already complete.
    `on_progress` is called with the number of scenes done. Raises DatasetError if the folder
    contains anything else or cannot be written, and UserError while another process writes there.
    """
    if count < 1 or seed < 0 or seed + count > 10**12:
        raise DatasetError(
            f'{count} scenes from seed {seed}: use 1 or more, and seeds from 0 to 999999999999'
        )
    root = Path(os.path.expanduser(folder))
    job = {'format': _FORMAT, 'scenes': count, 'seed': seed, 'gmskip_ros': __version__}
    try:
        _claim(root, job)
        # Written last: if it exists, the job is complete.
        instances = root / 'annotations' / f'instances_{SPLIT}.json'
        partial = root / 'annotations' / f'{SPLIT}.partial.jsonl'
        if instances.exists():
            partial.unlink(missing_ok=True)
            return False
        with FolderLock() as lock:
            lock.acquire(root)
            descriptions = _render(root, range(seed, seed + count), partial, on_progress)
            _write_annotations(root, descriptions, instances)
            partial.unlink()
    except OSError as error:
        raise DatasetError(
            f'{error.filename or root}: cannot be written ({error.strerror}); check the folder, '
            'its permissions and the space left'
        ) from error
    return True


def scenes_name(folder: Path, split: str) -> str | None:
    """Return 'scenes-<first seed>-<count>' for a folder of write_scenes, None for others."""
    described = folder / _JOB_FILE
    if split != SPLIT or not described.is_file():
        return None
    job = read_object(described)
    if job.get('format') != _FORMAT:
        return None
    return f'{SPLIT}-{job.get("seed")}-{job.get("scenes")}'


def _claim(root: Path, job: dict[str, Any]) -> None:
    """Create the folder with the job's description, or check that it has the same one."""
    root.mkdir(parents=True, exist_ok=True)
    described = root / _JOB_FILE
    if described.exists():
        try:
            found = json.loads(described.read_bytes())
        except ValueError:
            found = None
        if found == job:
            return
        description = ', '.join(f'{name} {value}' for name, value in job.items())
        raise DatasetError(
            f'{described}: belongs to a different job than {description}; use its numbers or a '
            'different folder'
        )
    if any(not entry.name.endswith('.tmp') for entry in root.iterdir()):
        raise DatasetError(f'{root}: is not empty; use a new or an empty folder')
    write_atomically(described, (json.dumps(job) + '\n').encode())


def _render(
    root: Path, seeds: range, partial: Path, on_progress: Callable[[int], None] | None
) -> list[dict[str, Any]]:
    """Render the images that `partial` does not describe yet; return all descriptions."""
    import cv2

    from gmskip_ros.datasets.scenes import render_scene

    for name in (SPLIT, 'annotations'):
        (root / name).mkdir(exist_ok=True)
    lines = partial.read_bytes().splitlines(keepends=True) if partial.exists() else []
    if lines and not lines[-1].endswith(b'\n'):  # interrupted in the middle of a line
        lines.pop()
    write_atomically(partial, b''.join(lines))
    descriptions = [json.loads(line) for line in lines]
    with open(partial, 'ab') as file:
        for seed in seeds[len(descriptions) :]:
            scene = render_scene(seed)
            bgr = cv2.cvtColor(scene.image, cv2.COLOR_RGB2BGR)
            encoded = cv2.imencode('.jpg', bgr, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1]
            name = f'{seed:012d}.jpg'
            write_atomically(root / SPLIT / name, encoded.tobytes())
            descriptions.append(_describe(scene, seed, name))
            file.write((json.dumps(descriptions[-1]) + '\n').encode())
            file.flush()
            if on_progress is not None:
                on_progress(len(descriptions))
    return descriptions


def _describe(scene: Scene, seed: int, name: str) -> dict[str, Any]:
    height, width = scene.image.shape[:2]
    image = {
        'id': seed,
        'file_name': name,
        'width': width,
        'height': height,
        'weather': scene.weather,
        'period': scene.light,
    }
    things = [(thing.name, thing.box, thing.visible_area) for thing in scene.objects]
    return {'image': image, 'things': things, 'caption': scene.caption}


def _write_annotations(root: Path, descriptions: list[dict[str, Any]], instances: Path) -> None:
    from gmskip_ros.datasets.scenes import CLASSES

    boxes: list[dict[str, Any]] = []
    captions: list[dict[str, Any]] = []
    for number, scene in enumerate(descriptions, start=1):
        about = {'image_id': scene['image']['id']}
        captions.append({'id': number, **about, 'caption': scene['caption']})
        for name, box, area in scene['things']:
            class_id = CLASSES.index(name) + 1
            boxes.append(
                {
                    'id': len(boxes) + 1,
                    **about,
                    'category_id': class_id,
                    'bbox': box,
                    'area': area,
                    'iscrowd': 0,
                }
            )
    common = {
        'info': {'description': 'driving scenes rendered by gmskip_ros'},
        'images': [scene['image'] for scene in descriptions],
    }
    classes = [{'id': number, 'name': name} for number, name in enumerate(CLASSES, start=1)]
    _write_json(instances.with_name(f'captions_{SPLIT}.json'), {**common, 'annotations': captions})
    _write_json(instances, {**common, 'annotations': boxes, 'categories': classes})


def _write_json(path: Path, content: dict[str, Any]) -> None:
    write_atomically(path, (json.dumps(content) + '\n').encode())
