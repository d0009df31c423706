"""What a search has done, round by round: reported as it happens, and kept in rounds.jsonl."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gmskip_ros.calibration.log_file import write_lines
from gmskip_ros.calibration.scoring import Scorer
from gmskip_ros.calibration.settings import Listener, RoundDone
from gmskip_ros.calibration.trajectory import Round, round_record

FILE_NAME = 'rounds.jsonl'


class RoundLog:
    """Reports the rounds of a search, those of an earlier run first, and writes the file.

    The file is written whole after each round, so it holds every round once, whatever was killed.
    """

    def __init__(self, scorer: Scorer, folder: Path, listener: Listener) -> None:
        self._scorer = scorer
        self._path = folder / FILE_NAME
        self._listener = listener
        self._num_reported = 0
        self._records: list[dict[str, Any]] = []  # of rounds that are not in the scorer's state

    def begin(self) -> None:
        """Report what an earlier run has found. Call the scorer's score_full first."""
        scorer = self._scorer
        self.update(is_new=False)
        if not scorer.is_searched and (scorer.rounds or scorer.state.answered):
            most = scorer.settings.num_removals(scorer.num_blocks)
            self._listener.resumed(len(scorer.rounds) + 1, most)

    def update(self, is_new: bool = True) -> None:
        """Report the rounds that have been added, and write the file. Raises CalibrationError."""
        rounds = self._scorer.rounds
        if not rounds[self._num_reported :]:
            return
        self._write(rounds)
        for number in range(self._num_reported + 1, len(rounds) + 1):
            self._listener.round_done(self._done(number, rounds, is_new))
        self._num_reported = len(rounds)

    def add(self, done: RoundDone, record: Mapping[str, Any]) -> None:
        """Report a round that is not in the scorer's state, and write the file.

        Raises CalibrationError.
        """
        more = {'full_score': done.full_score, 'sparsity': done.sparsity}
        self._records.append({**record, **more})
        write_lines(self._path, map(json.dumps, self._records))
        self._listener.round_done(done)

    def _done(self, number: int, rounds: list[Round], is_new: bool) -> RoundDone:
        scorer, done = self._scorer, rounds[number - 1]
        return RoundDone(
            number=number,
            most_rounds=scorer.settings.num_removals(scorer.num_blocks),
            removed=done.removed,
            score=float(done.score),
            full_score=float(scorer.full_score),
            sparsity=self._sparsity(number, rounds),
            seconds=done.seconds,
            seconds_left=None if scorer.is_searched else scorer.seconds_left(),
            is_new=is_new,
        )

    def _sparsity(self, number: int, rounds: list[Round]) -> float:
        removed = sum(done.removed is not None for done in rounds[:number])
        return removed / self._scorer.num_blocks

    def _write(self, rounds: list[Round]) -> None:
        full_score = float(self._scorer.full_score)
        lines = []
        for number, done in enumerate(rounds, start=1):
            more = {'full_score': full_score, 'sparsity': self._sparsity(number, rounds)}
            lines.append(json.dumps({**round_record(number, done), **more}))
        write_lines(self._path, lines)
