"""Uneven intervals (GM-Skip's ablation): as many inner blocks as a fixed interval, at random."""

from __future__ import annotations

import random

from gmskip_ros.calibration.errors import CalibrationError
from gmskip_ros.calibration.methods.fixed_interval import INTERVALS_OPTION, interval_sets
from gmskip_ros.calibration.methods.method import Method
from gmskip_ros.calibration.scoring import Scorer
from gmskip_ros.calibration.settings import SearchSettings
from gmskip_ros.calibration.trajectory import ChosenSets


def uneven_sets(settings: SearchSettings, num_blocks: int) -> list[tuple[int, ...]]:
    """Return the blocks of each interval's set, in ascending size; the same for a seed.

    The first and the last block stay, as with fixed intervals, and so do protected ones. A set
    depends only on its size and the seed. Raises CalibrationError where too few blocks remain.
    """
    inner = [block for block in settings.removable(num_blocks) if 0 < block < num_blocks - 1]
    sets = []
    for fixed in interval_sets(METHOD.options_of(settings)['intervals'], num_blocks):
        size = len(fixed)
        if size > len(inner):
            raise CalibrationError(
                f'an interval skips {size} blocks, and only {len(inner)} inner blocks may be '
                'removed: use larger intervals, or protect fewer blocks'
            )
        rng = random.Random(f'uneven interval {settings.seed} {size}')
        sets.append(tuple(sorted(rng.sample(inner, size))))
    return sets


def choose(scorer: Scorer) -> ChosenSets:
    """Return a random set at the size of each interval's."""
    sets = [(), *uneven_sets(scorer.settings, scorer.num_blocks)]
    return ChosenSets(
        tuple(scorer.scored_set(blocks) for blocks in sets),
        nested=False,
        stopped_by='the intervals and the seed determine the sets',
    )


def check(settings: SearchSettings, num_blocks: int) -> None:
    """Raise CalibrationError for intervals that do not suit the model."""
    uneven_sets(settings, num_blocks)


METHOD: Method = Method(
    name='uneven-interval',
    choose=choose,
    summary="random inner blocks, as many as fixed-interval's",
    options=(INTERVALS_OPTION,),
    has_limits=False,
    uses_seed=True,
    list_name=lambda settings: f'uneven-interval-{settings.seed}',
    check=check,
)
