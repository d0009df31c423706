"""Files and folders that are often given by mistake: what they are, and what to give instead."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gmskip_ros.datasets.errors import DatasetError
from gmskip_ros.datasets.json_file import kind_of, read_json, read_text

QUESTION = ('question', 'query', 'text')  # the names that a field with a question has
ASKS = frozenset({*QUESTION, 'conversations'})  # an entry that asks has one of these
_TOKEN_LINE = re.compile(r'[^\t\n]+\.(?:jpg|jpeg|png)#[0-9]+[\t ]', re.IGNORECASE)
_IMAGES = ('.jpg', '.jpeg', '.png', '.webp', '.bmp')
# Annotations that no reader reads: what they are, and in which form they can be given.
_OTHER_FORMS = {
    **dict.fromkeys(('.csv', '.tsv'), 'a table'),
    '.xml': 'XML, as Pascal VOC has it',
    **dict.fromkeys(('.txt', '.token'), 'plain text'),
}
_ARCHIVES = ('.zip', '.tar', '.gz', '.tgz', '.7z', '.rar')
_LFS_POINTER = b'version https://git-lfs.github.com/spec/'
_MOST_SHOWN = 3


def read_annotations(path: Path) -> dict[str, Any]:
    """Return the JSON object of an annotation file. Raises DatasetError for any other file."""
    refuse_file(path)
    content = read_json(path)
    refuse_content(content, path)
    if not isinstance(content, dict):
        raise DatasetError(f'{path}: contains {kind_of(content)}; it must contain an object')
    return content


def refuse_file(path: Path) -> None:
    """Raise DatasetError for a file that is recognised by its name or its first line."""
    with open(path, 'rb') as file:
        head = file.read(len(_LFS_POINTER))
    if not head:
        raise DatasetError(f'{path}: is empty; fetch it again')
    if head == _LFS_POINTER:
        raise DatasetError(
            f'{path}: is a git-LFS pointer, not the file itself; fetch it with git lfs pull'
        )
    if path.suffix.lower() in _ARCHIVES:
        raise DatasetError(f'{path}: is an archive; unpack it and give what is in it')
    if path.suffix.lower() in _IMAGES:
        raise DatasetError(f'{path}: is an image; give the file that says what images show')
    if path.suffix in ('.token', '.txt') and _TOKEN_LINE.match(read_text(path)):
        raise DatasetError(
            f"{path}: is Flickr's token file, which has captions and no splits; give Karpathy's "
            'dataset_flickr8k.json or dataset_flickr30k.json'
        )
    if what := _OTHER_FORMS.get(path.suffix.lower()):
        raise DatasetError(
            f"{path}: is {what}; give the annotations as a .json file in COCO's or Karpathy's "
            'format, or questions as a .jsonl file'
        )


def refuse_content(content: object, path: Path) -> None:
    """Raise DatasetError for JSON that is known not to be annotations."""
    what = None
    if isinstance(content, list) and content and isinstance(content[0], dict):
        has_id = not {'image_id', 'question_id'}.isdisjoint(content[0])
        if has_id and ASKS.isdisjoint(content[0]):
            what = (
                "is a list of a model's results, not what is right; give the file that they are "
                'compared with: instances_val2017.json, captions_val2017.json, or the questions'
            )
    elif isinstance(content, dict):
        what = _kind_of_object(content, path)
    if what is not None:
        raise DatasetError(f'{path}: {what}')


def _kind_of_object(content: Mapping[str, Any], path: Path) -> str | None:
    """Return what is wrong with an object and what to give instead; None if nothing is known."""
    annotation, category = _first(content, 'annotations'), _first(content, 'categories')
    if 'segments_info' in annotation:
        return 'is a panoptic file, which has segments and no boxes; give instances_<split>.json'
    if 'keypoints' in category and path.name.startswith('instances'):
        return (
            'has the keypoints of people, and no other class; give the instances of all classes, '
            'or call it person_keypoints_<split>.json to use people alone'
        )
    if 'answers' in annotation and 'question_id' in annotation:
        return "has VQA's answers without their questions; give a file with both in each entry"
    if 'questions' in content and 'question' in _first(content, 'questions'):
        return "has VQA's questions without answers; give a file with both in each entry"
    if (
        'images' in content
        and 'annotations' not in content
        and not _first(content, 'images').get('sentences')
    ):
        return (
            'lists images and has no annotations, as the files of test splits; give a split whose '
            'annotations are published'
        )
    return None


def _first(content: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return the first entry of a list of objects, {} if there is none."""
    entries = content.get(name)
    entry = entries[0] if isinstance(entries, list) and entries else None
    return entry if isinstance(entry, dict) else {}


def explain_folder(folder: Path) -> str:
    """Return what a folder that no reader recognises holds, and what to give instead."""
    names = sorted(entry.name for entry in folder.iterdir())
    files = [name for name in names if name.endswith('.json')]
    if folder.absolute().name == 'annotations' and files:
        shown = ', '.join(f'{folder / name}' for name in files[:_MOST_SHOWN])
        return f'is the folder of the annotations alone; give the one above it, or a file: {shown}'
    below = [*folder.glob('*/_annotations.coco.json'), *folder.glob('annotations/*.json')]
    candidates = [folder / name for name in files] or sorted(below)
    if candidates:
        return 'has no split that is known by its name; give a file: ' + ', '.join(
            map(str, candidates[:_MOST_SHOWN])
        )
    if any(name.lower().endswith(_IMAGES) for name in names):
        return 'is a folder of images; give the annotations, and this folder with --images-dir'
    return ''
