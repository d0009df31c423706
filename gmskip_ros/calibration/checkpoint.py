"""What a calibration has found so far, in a file from which the same command resumes."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from fractions import Fraction
from pathlib import Path
from typing import Any

from gmskip_ros.calibration.errors import CalibrationError
from gmskip_ros.calibration.trajectory import Cell, Round, ScoredAnswer, SearchState
from gmskip_ros.files import write_atomically
from gmskip_ros.tasks.scoring import Score

FORMAT = 'gmskip/checkpoint/1'
FILE_NAME = 'checkpoint.json'
SAVE_EVERY_S = 10.0
REMEDY = 'give a different --out, or remove the file to start over'


@dataclass
class Checkpoint:
    """A calibration's state, and the settings that it was made with."""

    settings: dict[str, Any]
    created: str = ''
    search: SearchState = field(default_factory=SearchState)
    evaluations: dict[str, Any] = field(default_factory=dict)  # by what was measured

    def to_json(self) -> dict[str, Any]:
        """Return plain values that from_json accepts."""
        state = self.search
        return {
            'format': FORMAT,
            'settings': self.settings,
            'created': self.created,
            'search': {
                'full': [_answer_to_json(answer) for answer in state.full],
                'trunk': [_answer_to_json(answer) for answer in state.trunk],
                'rounds': [_round_to_json(done) for done in state.rounds],
                'estimates': {str(b): _score_to_json(s) for b, s in state.estimates.items()},
                'shortfall': state.shortfall,
                'answered': {
                    str(block): {
                        str(item): _answer_to_json(known) for item, known in answers.items()
                    }
                    for block, answers in state.answered.items()
                },
                'seconds': state.seconds,
                'token_blocks': state.token_blocks,
                'stopped_by': state.stopped_by,
            },
            'evaluations': self.evaluations,
        }

    def forget(self, prefix: str) -> None:
        """Forget the evaluations whose keys begin like this."""
        for key in [key for key in self.evaluations if key.startswith(prefix)]:
            del self.evaluations[key]

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Checkpoint:
        """Return the checkpoint; raises KeyError, TypeError or ValueError if it is not one."""
        search = content['search']
        state = SearchState(
            full=[_answer(value) for value in search['full']],
            trunk=[_answer(value) for value in search['trunk']],
            rounds=[_round(value) for value in search['rounds']],
            estimates={int(block): _score(value) for block, value in search['estimates'].items()},
            shortfall=search['shortfall'],
            answered={
                int(block): {int(item): _answer(value) for item, value in answers.items()}
                for block, answers in search['answered'].items()
            },
            seconds=search['seconds'],
            token_blocks=search['token_blocks'],
            stopped_by=search['stopped_by'],
        )
        return cls(content['settings'], content['created'], state, content['evaluations'])


def plain_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings as they come out of the file: lists for tuples."""
    return dict(json.loads(json.dumps(dict(settings))))


class CheckpointFile:
    """The file of a checkpoint in a folder."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE_NAME
        self._last_save_s = time.monotonic()

    def load(self, settings: Mapping[str, Any], free: Collection[str] = ()) -> Checkpoint:
        """Return the state to resume from: a new one where there is no file.

        Raises CalibrationError if the file is broken or was made with different settings, but for
        those in `free`. Settings that only the file has are ignored: older versions recorded
        options of other methods.
        """
        plain = plain_settings(settings)
        if not self.path.exists():
            created = datetime.now(timezone.utc).strftime('%Y-%m-%dT%H:%M:%SZ')
            return Checkpoint(plain, created)
        try:
            content = json.loads(self.path.read_bytes())
            if content['format'] != FORMAT:
                raise ValueError(f'format {content["format"]!r}')
            checkpoint = Checkpoint.from_json(content)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CalibrationError(
                f'{self.path}: is not a checkpoint ({type(error).__name__}: {error}): {REMEDY}'
            ) from error
        for name, now in sorted(plain.items()):
            then = checkpoint.settings.get(name)
            if then != now and name not in free:
                raise CalibrationError(
                    f'{self.path}: was made with {name} {then!r}, this run has {now!r}: {REMEDY}'
                )
        return checkpoint

    def save(self, checkpoint: Checkpoint, now: bool = True) -> None:
        """Write the state; if not `now`, only once SAVE_EVERY_S seconds have passed since the last.

        Raises CalibrationError if it cannot be written; an older file stays unchanged.
        """
        if not now and time.monotonic() - self._last_save_s < SAVE_EVERY_S:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self.path, json.dumps(checkpoint.to_json()).encode())
        except OSError as error:
            raise CalibrationError(
                f'{self.path}: cannot be written ({error.strerror}): free some space or '
                'check the folder, then run the same command to resume from the last saved state'
            ) from error
        self._last_save_s = time.monotonic()


def _score_to_json(score: Score) -> Any:
    return f'{score.numerator}/{score.denominator}' if isinstance(score, Fraction) else score


def _score(value: Any) -> Score:
    return Fraction(value) if isinstance(value, str) else value


def _answer_to_json(answer: ScoredAnswer) -> list[Any]:
    return [_score_to_json(answer.contribution), list(answer.token_ids)]


def _answer(value: Any) -> ScoredAnswer:
    contribution, token_ids = value
    return ScoredAnswer(_score(contribution), tuple(token_ids))


def _round_to_json(done: Round) -> dict[str, Any]:
    return {
        'removed': done.removed,
        'score': _score_to_json(done.score),
        'cells': [[cell.block, _score_to_json(cell.score), cell.is_exact] for cell in done.cells],
        'seconds': done.seconds,
        'token_blocks': done.token_blocks,
    }


def _round(value: Mapping[str, Any]) -> Round:
    return Round(
        removed=value['removed'],
        score=_score(value['score']),
        cells=tuple(Cell(block, _score(score), exact) for block, score, exact in value['cells']),
        seconds=value['seconds'],
        token_blocks=value['token_blocks'],
    )
