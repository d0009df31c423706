"""Calibrations for several targets, each with several seeds."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from gmskip_ros.calibration.distributed import Ranks
from gmskip_ros.calibration.errors import CalibrationError, UnguidedError
from gmskip_ros.calibration.result import Calibration, stability
from gmskip_ros.calibration.run import calibrate
from gmskip_ros.calibration.settings import CalibrationSettings, Listener
from gmskip_ros.datasets import Dataset
from gmskip_ros.files import remove_leftovers
from gmskip_ros.skipping import SkipList, save_skip_list
from gmskip_ros.vlm import CalibrationEngine


def calibrate_targets(
    vlm: CalibrationEngine,
    dataset: Dataset,
    settings: CalibrationSettings,
    targets: Sequence[str | None],
    num_seeds: int,
    folder: Path,
    *,
    test_dataset: Dataset | None,
    ranks: Ranks,
    listener: Listener,
    should_stop: Callable[[], bool],
) -> Iterator[tuple[Calibration, Path]]:
    """Yield each target's calibration and its folder: `folder`, or one below it per target.

    Further seeds are only searched, each in a folder of its own; the calibration that is yielded
    then has its stability filled in. Rank 0 writes every skip list. A target or a seed whose score
    cannot guide a search does not stop the others: UnguidedError is raised at the end. Raises what
    `calibrate` and save_skip_list raise, and CalibrationError for a folder that cannot be made.
    """
    unguided: list[str] = []
    num_searches = len(targets) * num_seeds
    for target in targets:
        into = folder if target is None or len(targets) == 1 else folder / file_stem(target)
        found: list[Calibration] = []
        for seed in range(settings.seed, settings.seed + num_seeds):
            listener.begin(target, None if num_seeds == 1 else seed)
            seed_folder, of_seed = into, replace(settings, target=target)
            if found:
                seed_folder = into / f'seed_{seed}'
                search = replace(settings.search, seed=seed)
                of_seed = replace(of_seed, seed=seed, test_images=0, search=search)
            prepare_folder(seed_folder, ranks)
            try:
                calibration = calibrate(
                    vlm,
                    dataset,
                    of_seed,
                    seed_folder,
                    test_dataset=test_dataset,
                    ranks=ranks,
                    listener=listener,
                    should_stop=should_stop,
                )
            except UnguidedError as error:
                if num_searches == 1:
                    raise
                seed_name = f'seed {seed}' if num_seeds > 1 else None
                unguided.append(' '.join(filter(None, [target, seed_name])))
                if ranks.rank == 0:
                    listener.note(f'warning: {unguided[-1]}: {error}')
                if not found:  # further seeds only show how stable the first one's list is
                    break
                continue
            found.append(calibration)
            if ranks.rank == 0:
                path = skip_list_path(calibration.skip_list, seed_folder)
                save_skip_list(calibration.skip_list, path)
        if len(found) > 1:
            found[0].result['stability'] = stability(found)
        if found:
            yield found[0], into
    if unguided:
        raise UnguidedError(
            f'not searched, for the reasons above: {", ".join(unguided)}; --force searches all the '
            'same'
        )


def skip_list_path(skip_list: SkipList, folder: Path) -> Path:
    """Return the file of a skip list in a folder."""
    return folder / f'{file_stem(skip_list.task, skip_list.target)}.skip.yaml'


def file_stem(*parts: str | None) -> str:
    """Return a file name made of words, without a suffix."""
    return '_'.join(re.sub(r'\W+', '_', part) for part in parts if part is not None)


def prepare_folder(folder: Path, ranks: Ranks) -> None:
    """Make the folder; remove what a killed process left in it. Raises CalibrationError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CalibrationError(f'{folder}: {error.strerror}: give a different --out') from error
    if ranks.rank == 0:
        remove_leftovers(folder)
