"""The rounds of searches as scalars of TensorBoard, for those who watch many at once."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from gmskip_ros.calibration.settings import Listener, RoundDone
from gmskip_ros.errors import UserError


def add_tensorboard_option(parser: argparse._ActionsContainer) -> None:
    """Add --tensorboard."""
    parser.add_argument(
        '--tensorboard',
        metavar='DIR',
        help='also write score, sparsity and seconds of every round for TensorBoard, in a folder '
        'of this one named like --out (needs the package tensorboard)',
    )


class TensorBoard(Listener):
    """Writes events below a folder: a run for each search. A resumed one replaces its run."""

    def __init__(self, folder: Path) -> None:
        """Raises UserError without the package, and for a folder that cannot be made."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UserError(
                '--tensorboard needs the package tensorboard: install it, or remove the option'
            ) from error
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f'--tensorboard {folder}: {error.strerror}: give a different folder'
            ) from error
        self._make_writer = SummaryWriter
        self._folder = folder
        self._run = folder
        self._writer: Any = None

    def begin(self, target: str | None, seed: int | None) -> None:
        """Start the run of a search, in a folder of its own where there are several."""
        self.close()
        names = [*filter(None, [target]), *([] if seed is None else [f'seed_{seed}'])]
        self._run = self._folder.joinpath(*names)

    def full_score(self, score: float) -> None:
        """Write the full model's score, as that of round 0."""
        # What an earlier process wrote of this run is hidden from here on: all is written again.
        self._writer = self._make_writer(str(self._run), purge_step=0)
        self._write(0, {'score': score, 'sparsity': 0.0})

    def round_done(self, done: RoundDone) -> None:
        """Write a round."""
        values = {'score': done.score, 'value': done.value, 'seconds': done.seconds}
        measured = {name: value for name, value in values.items() if value is not None}
        self._write(done.number, {**measured, 'sparsity': done.sparsity})

    def close(self) -> None:
        """Write what is not written yet."""
        if self._writer is not None:
            self._writer.close()
        self._writer = None

    def _write(self, number: int, values: dict[str, float]) -> None:
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, number)
            self._writer.flush()
