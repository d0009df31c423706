"""What the commands share that work for long, save what they found, and resume.

These are calibrate, compare and redundancy; on several GPUs each of them runs as several processes.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gmskip_ros.cli.options import load_model, lock_folder, make_folder
from gmskip_ros.errors import UserError
from gmskip_ros.files import FolderLock
from gmskip_ros.signals import StopSignals

if TYPE_CHECKING:  # these load numpy, torch or rich, which `gmskip --help` can do without
    from gmskip_ros.calibration.distributed import Ranks
    from gmskip_ros.cli.progress import ProgressBars
    from gmskip_ros.datasets import Dataset
    from gmskip_ros.vlm import CalibrationEngine


@dataclass(frozen=True)
class LongRun:
    """One run of such a command, in this process."""

    folder: Path
    ranks: Ranks
    bars: ProgressBars
    stop: StopSignals
    lock: FolderLock

    @property
    def is_first(self) -> bool:
        """Whether this is the process that prints and writes, of several."""
        return self.ranks.rank == 0

    def open_folder(self) -> None:
        """Make the folder and keep other runs out of it, by the first process for all.

        Raises UserError.
        """
        make_folder(self.folder)
        if self.is_first:
            lock_folder(self.folder, self.lock)

    def show_notes(self, *datasets: Dataset | None) -> None:
        """Print the warnings and notes of the datasets."""
        for dataset in filter(None, datasets):
            for line in (*dataset.warnings, *dataset.notes):
                self._print(f'gmskip: {dataset.name}: {line}')

    def load_model(self, args: argparse.Namespace) -> CalibrationEngine:
        """Return the model of the options, and print its warnings. Raises Stopped, VlmError."""
        vlm = load_model(args, self.ranks, self._show_step)
        for warning in vlm.warnings:
            self._print(f'gmskip: warning: {warning}')
        return vlm

    def _show_step(self, step: str) -> None:
        from gmskip_ros.vlm import Stopped

        if self.stop.is_set():
            raise Stopped('stopped while loading the model')
        self.bars.status(step)

    def _print(self, line: str) -> None:
        if self.is_first:
            self.bars.print(line)


def run_resumable(
    args: argparse.Namespace,
    stop: StopSignals,
    work: Callable[[LongRun], None],
) -> int:
    """Do `work`, whose results go to --out; return 0, or 130 or 143 when stopped.

    `stop` is already in use.
    """
    from gmskip_ros.calibration.distributed import RankLostError, Ranks
    from gmskip_ros.cli.progress import ProgressBars
    from gmskip_ros.cli.tensorboard import TensorBoard
    from gmskip_ros.vlm import Stopped

    ranks = Ranks(stop.is_set)
    folder = Path(args.out).expanduser()
    is_shown = ranks.rank == 0 and not args.no_progress
    others = []
    if ranks.rank == 0 and getattr(args, 'tensorboard', None) is not None:
        others.append(TensorBoard(Path(args.tensorboard).expanduser() / folder.resolve().name))
    with FolderLock() as lock, ProgressBars(is_shown, others) as bars:
        try:
            work(LongRun(folder, ranks, bars, stop, lock))
            ranks.disconnect()
        except (Stopped, KeyboardInterrupt, RankLostError) as error:
            if isinstance(error, RankLostError) and not stop.is_set():
                raise
            bars.stop()
            _print_stopped(folder, ranks, stop)
            return stop.exit_code
    return 0


def write_results(
    result: Mapping[str, Any],
    folder: Path,
    name: str,
    write_report: Callable[[Mapping[str, Any], Path], object],
) -> None:
    """Write a result as JSON under `name`, and its report. Raises UserError."""
    from gmskip_ros.files import write_atomically

    content = json.dumps(result, indent=1, ensure_ascii=False) + '\n'
    try:
        write_atomically(folder / name, content.encode('utf-8', 'backslashreplace'))
        write_report(result, folder)
    except OSError as error:
        raise UserError(
            f'{folder}: the report cannot be written ({error.strerror}): free some space and run '
            'the same command again'
        ) from error


def _print_stopped(folder: Path, ranks: Ranks, stop: StopSignals) -> None:
    """Print one line about what is saved; of several processes only the first one does."""
    why = 'stopped'
    if ranks.world_size > 1 and stop.exit_code == 128 + signal.SIGTERM:
        # Any process may get this because another one has ended.
        why = (
            f'process {ranks.rank} of {ranks.world_size}: stopped by SIGTERM, which torchrun '
            'sends when it is stopped or another process has ended'
        )
    elif ranks.rank != 0:
        return
    print(
        f'gmskip: {why}. Progress is saved in {folder}; run the same command to resume.',
        file=sys.stderr,
    )
