"""POPE's question files (RUCAIBox/POPE): is an object in the image, yes or no?"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from gmskip_ros.datasets.coco import image_folders, training_warnings
from gmskip_ros.datasets.errors import DatasetError
from gmskip_ros.datasets.image_finder import ImageFinder, coco_names
from gmskip_ros.datasets.json_file import Record, note, read_text
from gmskip_ros.datasets.sample import Dataset, PresenceQuestion, Sample
from gmskip_ros.datasets.wrong_files import refuse_file

POPE_SPLITS = ('random', 'popular', 'adversarial')
_FILE = re.compile(rf'(.+)_pope_(?:seem_)?({"|".join(POPE_SPLITS)})\.jsonl?')
_LABEL = re.compile(r'Is there an? (.+?) in the ')
_FIELDS = {'image', 'text', 'label'}
_ANSWERS = ('yes', 'no')
_HEAD = 1 << 16  # bytes; a question is far shorter
# What is asked about an image: text and answer -> split and id of each time that it is asked.
_OfImage = dict[tuple[str, str], list[tuple[str, 'int | str']]]
_COCO_SPLITS = ('val2014', 'val2017', 'train2017')


def pope_files(folder: Path) -> dict[str, Path]:
    """Return the files <name>_pope_<split>.json in a folder, by split.

    Raises DatasetError for files of several names.
    """
    found: dict[str, dict[str, Path]] = {}
    for path in sorted(folder.iterdir()):
        if match := _FILE.fullmatch(path.name):
            found.setdefault(match[1], {})[match[2]] = path
    if len(found) > 1:
        raise DatasetError(
            f'{folder}: has POPE files of {" and ".join(found)}; put those of one into a folder, '
            'or give one file'
        )
    of_name = next(iter(found.values()), {})
    return {split: of_name[split] for split in POPE_SPLITS if split in of_name}


def is_pope(path: Path) -> bool:
    """Return whether the first record of the file, a list or lines of JSON, is a POPE question."""
    with path.open('rb') as file:
        head = file.read(_HEAD).decode('utf-8-sig', 'replace')
    try:
        first, _ = json.JSONDecoder().raw_decode(head.lstrip().removeprefix('[').lstrip())
    except (ValueError, RecursionError):
        return False
    return isinstance(first, dict) and first.keys() >= _FIELDS and first['label'] in _ANSWERS


def open_pope(files: Iterable[Path], images_dir: Path | None = None) -> Dataset:
    """Return the questions in these files, one for each split: a sample is an image with them all.

    A question that several splits (or one of them several times) ask is one question, whose splits
    say how often it counts in which. The dataset is called pope-<name>, or pope-<name>-<split> for
    one split. Images are searched in `images_dir` or beside the files, and there in images and the
    folders of COCO's splits; those of 2017 have shorter names.
    """
    files = tuple(files)
    name = f'pope-{_name_and_split(files[0])[0]}'
    if len(files) == 1 and (split := _name_and_split(files[0])[1]) != name.removeprefix('pope-'):
        name += f'-{split}'
    finder = ImageFinder(image_folders(images_dir or files[0].parent, *_COCO_SPLITS))
    questions = []
    for path in files:
        split = _name_and_split(path)[1]
        refuse_file(path)
        for number, record in enumerate(_records(path), start=1):
            image, text = record.text('image'), record.text('text')
            answer, question_id = _answer(record, 'label'), _id(record, number)
            questions.append(PopeQuestion(image, text, answer, split, question_id))
    dataset = pope_dataset(name, questions, lambda image: finder.find(coco_names(image)))
    if not dataset.samples:
        num_images = len({question.image for question in questions})
        raise DatasetError(
            f'{files[0]}: none of {num_images:,} images was found; give the folder that they are '
            f'in (searched: {finder})'
            if questions
            else f'{files[0]}: has no questions'
        )
    return dataset


class PopeQuestion(NamedTuple):
    """A line of POPE: about which image, the question, 'yes' or 'no', its split, and its id."""

    image: str
    text: str
    answer: str
    split: str
    question_id: int | str  # its number in the file, if it has none of its own


def hub_question(record: Record, number: int) -> PopeQuestion | None:
    """Return the question in a row of POPE's copy on the Hugging Face hub; None for other rows.

    It has `question`, `answer`, `category` (the split) and `image_source`, the image's name; the
    number of the row is the id of a question without `question_id`.
    """
    if not all(record.has(name) for name in ('question', 'answer', 'category', 'image_source')):
        return None
    split = record.value('category', 'a text')
    if split not in POPE_SPLITS or record.value('answer', 'a text') not in _ANSWERS:
        return None
    return PopeQuestion(
        record.text('image_source'),
        record.text('question'),
        record.text('answer'),
        split,
        _id(record, number),
    )


def pope_dataset(
    name: str, questions: Iterable[PopeQuestion], find: Callable[[str], Path | None]
) -> Dataset:
    """Return these questions, a sample for each image that `find` finds by its name."""
    asked: dict[str, _OfImage] = {}
    for image, text, answer, split, question_id in questions:
        of_image = asked.setdefault(image, {})
        of_image.setdefault((text, answer), []).append((split, question_id))
    samples: list[Sample] = []
    missing: list[str] = []
    for image, of_image in sorted(asked.items()):
        found = find(image)
        if found is None:
            missing.append(image)
        else:
            asked_about = _questions(of_image)
            samples.append(Sample(f'{name}/{image}', found, presence=asked_about, image_name=image))
    notes = note(missing, 'image is missing, ignored', 'images are missing, ignored')
    labels = dict.fromkeys(
        question.label for sample in samples for question in sample.presence if question.label
    )
    parts = ['val2014'] if any(image.startswith('COCO_val2014_') for image in asked) else []
    return Dataset(name, tuple(samples), tuple(labels), tuple(notes), training_warnings(parts))


def _answer(record: Record, name: str) -> str:
    answer = record.text(name)
    if answer not in _ANSWERS:
        raise record.error(name, f"is {answer!r}; it must be 'yes' or 'no'")
    return answer


def _id(record: Record, number: int) -> int | str:
    return record.identity('question_id') if record.has('question_id') else number


def _questions(of_image: _OfImage) -> tuple[PresenceQuestion, ...]:
    questions = []
    for (text, answer), times in of_image.items():
        match = _LABEL.search(text)
        splits, ids = zip(*times, strict=True)
        questions.append(PresenceQuestion(match[1] if match else None, answer, splits, text, ids))
    return tuple(questions)


def _name_and_split(path: Path) -> tuple[str, str]:
    match = _FILE.fullmatch(path.name)
    return (match[1], match[2]) if match else (path.stem, path.stem)


def _records(path: Path) -> Iterable[Record]:
    text = read_text(path)
    if text.lstrip().startswith('['):
        for index, values in enumerate(_decoded(text, path, 'the file')):
            yield Record(values, path, f'[{index}]')
        return
    for number, line in enumerate(text.split('\n'), start=1):
        if line.strip():
            place = f'line {number}'
            yield Record(_decoded(line, path, place), path, place)


def _decoded(text: str, path: Path, place: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DatasetError(
            f'{path}: {place} is not JSON ({error}); fetch the file again'
        ) from error
