"""Files of answers, in the form that the judges of benchmarks read."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gmskip_ros.calibration.errors import CalibrationError
from gmskip_ros.calibration.questions import Questions
from gmskip_ros.files import write_atomically

LONGEST_BYTES = 120  # of a folder's name; file systems allow 255


class AnswerFiles:
    """Writes <folder>/<skip set>/<questions>_answer.jsonl, one for each skip set.

    CODA-LM's scripts read general_perception_answer.jsonl, driving_suggestion_answer.jsonl and
    region_perception_answer.jsonl from one folder: its questions with `answer`, in their order.
    `prompt` and `text`, which are the same again, are what LLaVA's scripts read. POPE's script
    reads one file per split, <questions>_<split>_answer.jsonl, with an answer for each of its
    lines; without an id of its own, a question of a split has its number there.
    """

    def __init__(self, folder: Path, stem: str, model: str) -> None:
        """`stem`: the name of the file of questions, without its suffix."""
        self._folder, self._stem, self._model = folder, stem, model
        self.written: list[Path] = []

    def write(self, name: str, questions: Questions, texts: Sequence[str]) -> None:
        """Write the answers given under the skip set of this name. Raises CalibrationError."""
        files: dict[str, list[dict[str, Any]]] = {}
        for number, (sample, prompt, text) in enumerate(
            zip(questions.samples, questions.prompts, texts, strict=True)
        ):
            line = {
                'image': sample.image_name or sample.image_path.name,
                'question': prompt,
                'answer': text,
                'prompt': prompt,
                'text': text,
                'model_id': self._model,
            }
            if not questions.splits:
                question_id = sample.key if sample.question_id is None else sample.question_id
                files.setdefault(self._stem, []).append({'question_id': question_id, **line})
                continue
            splits, ids = questions.splits[number], questions.split_ids[number]
            for split, question_id in itertools.zip_longest(splits, ids):
                has_split = self._stem.endswith(split)  # it is the file of this split
                lines = files.setdefault(self._stem if has_split else f'{self._stem}_{split}', [])
                own_id = len(lines) + 1 if question_id is None else question_id
                lines.append({'question_id': own_id, **line})
        for stem, lines in files.items():
            lines.sort(key=lambda line: (isinstance(line['question_id'], str), line['question_id']))
            content = ''.join(json.dumps(line) + '\n' for line in lines)
            self._write_file(self._folder / _folder_name(name) / f'{stem}_answer.jsonl', content)

    def _write_file(self, path: Path, content: str) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, content.encode())
        except OSError as error:
            raise CalibrationError(
                f'{path}: cannot be written ({error.strerror}): give a different --answers'
            ) from error
        self.written.append(path)


def _folder_name(name: str) -> str:
    """Return a row's name as that of a folder, which may not be long."""
    folder = re.sub(r'\W+', '_', name).strip('_').lower()
    if len(folder.encode()) <= LONGEST_BYTES:
        return folder
    kept = folder.encode()[: LONGEST_BYTES - 9].decode(errors='ignore')
    return f'{kept}_{hashlib.sha256(name.encode()).hexdigest()[:8]}'
