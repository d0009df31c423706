"""Questions of one's own: a file with one JSON object per line."""

from __future__ import annotations

import json
from pathlib import Path

from gmskip_ros.datasets.errors import DatasetError
from gmskip_ros.datasets.json_file import Record, note, says_something
from gmskip_ros.datasets.sample import Dataset, Sample


def open_questions(path: Path) -> Dataset:
    """Return the questions of a .jsonl file; the dataset has the file's name.

    A line has `image` (a path, relative to the file), `question`, `references` (a text or a list
    of texts) and, if it likes, `id`. Without an id the key is '<image>:<line number>'.
    """
    try:
        text = path.read_bytes().decode('utf-8-sig')
    except UnicodeDecodeError as error:
        raise DatasetError(f'{path}: is not UTF-8 text; save the file as UTF-8') from error
    samples: dict[str, Sample] = {}
    lines: dict[str, int] = {}
    missing: list[str] = []
    for number, line in enumerate(text.split('\n'), start=1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DatasetError(
                f'{path}: line {number} is not JSON ({error}); write one object per line'
            ) from error
        record = Record(values, path, f'line {number}')
        image = record.text('image')
        key = str(record.identity('id')) if record.has('id') else f'{image}:{number}'
        if key in lines:
            raise record.error('id', f'is {key}, as on line {lines[key]}; give each its own')
        lines[key] = number
        sample = Sample(
            key=key,
            image_path=path.parent / image,
            question=record.text('question'),
            references=_references(record),
        )
        if sample.image_path.is_file():
            samples[key] = sample
        else:
            missing.append(image)
    if not samples:
        what = f'none of {len(lines):,} images is there' if lines else 'has no line'
        raise DatasetError(f'{path}: {what}; image is a path relative to this file')
    notes = note(missing, 'image is missing, left out', 'images are missing, left out')
    ordered = tuple(samples[key] for key in sorted(samples))
    return Dataset(path.stem, ordered, (), tuple(notes), ())


def _references(record: Record) -> tuple[str, ...]:
    value = record.value('references', 'a text or a list of texts')
    texts = [value] if isinstance(value, str) else value
    if (
        not isinstance(texts, list)
        or not texts
        or not all(isinstance(text, str) and text.strip() for text in texts)
    ):
        raise record.error('references', 'must be a text or a list of texts; put numbers in quotes')
    if not any(map(says_something, texts)):  # no metric could use them
        raise record.error('references', 'has no letter or digit; leave the line out')
    return tuple(texts)
