"""Files of answers, in the form that the judges of benchmarks read."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path

from gmskip_ros.calibration.errors import CalibrationError
from gmskip_ros.calibration.questions import Questions
from gmskip_ros.files import write_atomically

LONGEST_BYTES = 120  # of a folder's name; file systems allow 255


class AnswerFiles:
    """Writes <folder>/<skip set>/<questions>_answer.jsonl, one for each skip set.

    CODA-LM's scripts read general_perception_answer.jsonl, driving_suggestion_answer.jsonl and
    region_perception_answer.jsonl from one folder: its questions with `answer`, in their order.
    `prompt` and `text`, which are the same again, are what LLaVA's scripts read.
    """

    def __init__(self, folder: Path, stem: str, model: str) -> None:
        """`stem`: the name of the file of questions, without its suffix."""
        self._folder, self._stem, self._model = folder, stem, model
        self.written: list[Path] = []

    def write(self, name: str, questions: Questions, texts: Sequence[str]) -> None:
        """Write the answers given under the skip set of this name. Raises CalibrationError."""
        lines = []
        for sample, prompt, text in zip(questions.samples, questions.prompts, texts, strict=True):
            question_id = sample.key if sample.question_id is None else sample.question_id
            lines.append(
                {
                    'question_id': question_id,
                    'image': sample.image_name or sample.image_path.name,
                    'question': prompt,
                    'answer': text,
                    'prompt': prompt,
                    'text': text,
                    'model_id': self._model,
                }
            )
        lines.sort(key=lambda line: (isinstance(line['question_id'], str), line['question_id']))
        path = self._folder / _folder_name(name) / f'{self._stem}_answer.jsonl'
        content = ''.join(json.dumps(line) + '\n' for line in lines)
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
