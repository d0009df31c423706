"""Fixed intervals: Skip-MLLM's rule, which needs no search and whose sets are not nested."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from gmskip_ros.calibration.errors import CalibrationError
from gmskip_ros.calibration.methods.method import Method, Option
from gmskip_ros.calibration.scoring import Scorer
from gmskip_ros.calibration.settings import SearchSettings
from gmskip_ros.calibration.trajectory import ChosenSets

INTERVALS = (3, 4, 6, 7, 10)  # the paper's, for 32 blocks
INTERVALS_TEXT = ','.join(map(str, INTERVALS))


def parse_intervals(text: str) -> tuple[int, ...]:
    """Return the numbers of '3,4'. Raises CalibrationError."""
    try:
        numbers = tuple(int(part) for part in text.split(','))
    except ValueError:
        numbers = ()
    if not numbers or len(set(numbers)) < len(numbers):
        raise CalibrationError(
            f'--interval {text!r}: give different whole numbers separated by commas, such as '
            f'{INTERVALS_TEXT}'
        )
    return numbers


INTERVALS_OPTION = Option(
    'intervals',
    '--interval',
    default=INTERVALS,
    metavar='3,4',
    parse=parse_intervals,
    is_extent=True,
    help=f'for fixed-interval and uneven-interval (default: {INTERVALS_TEXT})',
)


def fixed_interval(num_blocks: int, interval: int) -> tuple[int, ...]:
    """Return the blocks that Skip-MLLM's rule skips: 0 < i < L - 1 and i % interval == 0.

    Raises CalibrationError for an interval that skips no block, or all inner ones.
    """
    if interval < 2:
        raise CalibrationError(f'interval {interval} skips every inner block: use 2 or more')
    blocks = tuple(i for i in range(1, num_blocks - 1) if i % interval == 0)
    if not blocks:
        raise CalibrationError(
            f'interval {interval} skips none of {num_blocks} blocks: use a smaller one'
        )
    return blocks


def intervals_of_all_sizes(
    num_blocks: int, most: int, removable: Collection[int]
) -> tuple[int, ...]:
    """Return an interval for each number of blocks up to `most` that one can skip, ascending.

    They skip only `removable` blocks. Of several intervals that skip equally many it is the
    paper's, else the largest. Raises CalibrationError if there is none.
    """
    of_size: dict[int, int] = {}
    for interval in range(max(2, num_blocks - 2), 1, -1):
        blocks = fixed_interval(num_blocks, interval)
        size = len(blocks)
        if size > most or not set(blocks) <= set(removable):
            continue
        if size not in of_size or (interval in INTERVALS and of_size[size] not in INTERVALS):
            of_size[size] = interval
    if not of_size:
        raise CalibrationError('every interval skips a protected block: protect fewer blocks')
    return tuple(sorted(of_size.values()))


def interval_sets(intervals: Iterable[int], num_blocks: int) -> list[tuple[int, ...]]:
    """Return the blocks that each interval skips, in ascending size. Raises CalibrationError."""
    sets: dict[int, tuple[int, ...]] = {}
    for interval in intervals:
        blocks = fixed_interval(num_blocks, interval)
        if sets.setdefault(len(blocks), blocks) != blocks:
            raise CalibrationError(
                f'interval {interval} skips {len(blocks)} blocks, the same number as another '
                'interval, and a skip list holds one set per size: remove one of the two'
            )
    return [blocks for _, blocks in sorted(sets.items())]


def choose(scorer: Scorer) -> ChosenSets:
    """Return the set of each interval."""
    intervals = METHOD.options_of(scorer.settings)['intervals']
    sets = [(), *interval_sets(intervals, scorer.num_blocks)]
    return ChosenSets(
        tuple(scorer.scored_set(blocks) for blocks in sets),
        nested=False,
        stopped_by='the intervals determine the sets',
    )


def check(settings: SearchSettings, num_blocks: int) -> None:
    """Raise CalibrationError for intervals that do not suit the model and its protected blocks."""
    removable = settings.removable(num_blocks)
    for blocks in interval_sets(METHOD.options_of(settings)['intervals'], num_blocks):
        for block in blocks:
            if block not in removable:
                raise CalibrationError(
                    'protect {},{}: '.format(*settings.protect)
                    + f'an interval skips block {block}, which stays: choose others, or protect '
                    'fewer blocks'
                )


METHOD: Method = Method(
    name='fixed-interval',
    choose=choose,
    summary="Skip-MLLM's rule: every n-th block",
    options=(INTERVALS_OPTION,),
    has_limits=False,
    check=check,
)
