"""Every answer to the test questions, in answers.jsonl: any statistic can be computed from it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from gmskip_ros.calibration.log_file import write_lines
from gmskip_ros.skipping import SkipSet
from gmskip_ros.tasks.scoring import Absent

FILE_NAME = 'answers.jsonl'


def skip_set_key(skip_set: SkipSet) -> str:
    """Return a skip set as text, the same for equal sets."""
    axes = {'prefill': skip_set.prefill, 'decode': skip_set.decode, 'image': skip_set.image}
    parts = [f'{name} {",".join(map(str, sorted(blocks)))}' for name, blocks in axes.items()]
    return '; '.join([*parts, f'kv {skip_set.kv}', f'image_kv {skip_set.image_kv}'])


class AnswerLog:
    """The answers of each skip set, a line per answer, beside what is made of them.

    The file is written whole after each set, so it holds each set once, whatever was killed.
    """

    def __init__(self, folder: Path, *, resumes: bool = True) -> None:
        """`resumes`: keep what an earlier run has written; what is not such a file is dropped."""
        self._path = folder / FILE_NAME
        self._lines: dict[str, list[str]] = {}
        if resumes and self._path.exists():
            try:
                for line in self._path.read_text(encoding='utf-8').splitlines():
                    self._lines.setdefault(json.loads(line)['skip_set'], []).append(line)
            except (OSError, ValueError, KeyError, TypeError):
                self._lines = {}

    @property
    def keys(self) -> set[str]:
        """The skip sets of which all answers are in the file, by skip_set_key."""
        return set(self._lines)

    def add(self, skip_set: SkipSet, records: Iterable[Mapping[str, Any]]) -> None:
        """Write the answers of a set, in place of those it had. Raises CalibrationError."""
        key = skip_set_key(skip_set)
        self._lines[key] = [json.dumps({'skip_set': key, **record}) for record in records]
        lines = [line for of_set in self._lines.values() for line in of_set]
        write_lines(self._path, lines)


def plain_reference(reference: Any) -> Any:
    """Return a right answer as a JSON value; {'absent': label} where any other label is right."""
    if isinstance(reference, Absent):
        return {'absent': plain_reference(reference.label)}
    return str(reference) if isinstance(reference, str) else list(map(str, reference))
