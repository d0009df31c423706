"""Custom questions: a file with one JSON object per line."""

from __future__ import annotations

import json
from pathlib import Path

from gmskip_ros.datasets.errors import DatasetError
from gmskip_ros.datasets.json_file import Record, has_word, note, read_text
from gmskip_ros.datasets.sample import Dataset, Sample


def open_questions(path: Path) -> Dataset:
    """Return the questions in a .jsonl file; the dataset is named after the file.

    A line has `image` (a path relative to the file), `question`, `references` (a text or a list of
    texts) and optionally `id` and `formula` (true: the references are formulae, whose spaces do
    not count in the metric `contains`). Without an id the key is '<image>:<line number>'.
    """
    text = read_text(path)
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
            raise record.error('id', f'is {key}, as on line {lines[key]}; make it unique')
        lines[key] = number
        sample = Sample(
            key=key,
            image_path=path.parent / image,
            question=record.text('question'),
            references=_references(record),
            is_formula=record.flag('formula'),
        )
        if sample.image_path.is_file():
            samples[key] = sample
        else:
            missing.append(image)
    if not samples:
        problem = f'none of {len(lines):,} images was found' if lines else 'has no questions'
        raise DatasetError(f'{path}: {problem}; image is a path relative to this file')
    notes = note(missing, 'image is missing, ignored', 'images are missing, ignored')
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
    if not any(map(has_word, texts)):  # no metric could use them
        raise record.error('references', 'has no letter or digit; remove the line')
    return tuple(texts)
