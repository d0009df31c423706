"""UIDL, "The Unreasonable Ineffectiveness of the Deeper Layers" (arXiv:2403.17887): n in a row.

Of all runs of n consecutive blocks, `uidl` removes the one with the least angular distance
arccos(cosine) / pi between what enters its first and what leaves its last block, at the prompt's
last token, averaged over samples. `uidl-simple`, the paper's rule without measuring, removes the n
deepest blocks but the last one.
"""

from __future__ import annotations

from collections.abc import Sequence

from gmskip_ros.calibration.errors import CalibrationError
from gmskip_ros.calibration.methods.method import Method
from gmskip_ros.calibration.methods.removal import remove_in_order
from gmskip_ros.calibration.probing import Sample, angular_distance, sums_over_samples
from gmskip_ros.calibration.scoring import Scorer
from gmskip_ros.calibration.settings import SearchSettings, less_than_one_block
from gmskip_ros.calibration.trajectory import ChosenSets


def run_distances(scorer: Scorer) -> list[list[float]]:
    """Return the mean angular distance (0..1) over each run of blocks: entry [n - 1][first].

    Raises what Answerer.answers raises.
    """
    num_blocks = scorer.num_blocks

    def measure(sample: Sample) -> list[float]:
        # What is before every block and after the last, at the last prompt token: (blocks + 1, H).
        states = []
        for of_block in sample.block_states():
            last = of_block.prompt_length - 1
            states.append(of_block.entering[last].clone())
            end = of_block.leaving[last].clone()
        path = end.new_empty(num_blocks + 1, len(end))
        for index, state in enumerate([*states, end]):
            path[index] = state
        distances: list[float] = []
        for length in range(1, num_blocks + 1):
            distances += angular_distance(path[:-length], path[length:]).double().tolist()
        return distances

    sums = sums_over_samples(scorer, 'angular distances', measure, with_answers=False)
    num_samples = sum(part.questions.num_scored for part in scorer.objective.parts)
    rows, start = [], 0
    for num_runs in range(num_blocks, 0, -1):
        rows.append([value / num_samples for value in sums[start : start + num_runs]])
        start += num_runs
    return rows


def closest_run(distances: Sequence[float], removable: Sequence[int], length: int) -> range:
    """Return the removable run of that many blocks with the least distance, the first of equals.

    `distances`: by a run's first block.
    """
    firsts = range(removable[0], removable[-1] + 2 - length)
    first = min(firsts, key=lambda block: distances[block])
    return range(first, first + length)


def choose(scorer: Scorer) -> ChosenSets:
    """Return the closest run of each size."""
    distances = run_distances(scorer)
    sets = [
        tuple(closest_run(distances[size - 1], scorer.removable, size)) for size in scorer.sizes()
    ]
    return ChosenSets(
        tuple(scorer.scored_set(blocks) for blocks in [(), *sets]),
        nested=False,
        stopped_by='there is one set for each size asked for',
    )


def check(settings: SearchSettings, num_blocks: int) -> None:
    """Raise CalibrationError for limits that leave no size to choose a run of."""
    if not settings.sizes(num_blocks):
        raise less_than_one_block(settings.max_sparsity, num_blocks)


def choose_simple(scorer: Scorer) -> ChosenSets:
    """Return the trajectory from the last block but one backwards."""
    return remove_in_order(scorer, range(scorer.num_blocks)[::-1])


def check_simple(settings: SearchSettings, num_blocks: int) -> None:
    """Raise CalibrationError if the last block is not protected."""
    first, last = settings.protect
    if last == 0:
        raise CalibrationError(
            f'protect {first},{last}: uidl-simple keeps the last block: protect {first},1 or more'
        )


METHOD: Method = Method(
    name='uidl',
    choose=choose,
    summary='consecutive blocks with the least angle between first input and last output',
    title='UIDL',
    takes_sparsity=True,
    check=check,
)
SIMPLE_METHOD: Method = Method(
    name='uidl-simple',
    choose=choose_simple,
    summary='the deepest blocks, the last one kept: no samples are looked at',
    title='UIDL (simple rule)',
    protect=(0, 1),
    takes_sparsity=True,
    check=check_simple,
)
