"""EvoPress (arXiv:2410.14649): an evolutionary search for the set of blocks of a given size.

A set's offspring differ from it in a few swaps: a removed block comes back, a retained one goes.
All offspring are measured on a few answers, those that do best on more, and the last ones on all
answers, where they compete with their parent: the best set never gets worse there. Each size is
searched on its own, so the sets are not nested.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Protocol

from gmskip_ros.calibration.errors import CalibrationError
from gmskip_ros.calibration.likelihood import GivenAnswers, OnDone, own_answers, questions_asked
from gmskip_ros.calibration.methods.measured_rounds import MeasuredRounds
from gmskip_ros.calibration.methods.method import Method, Option
from gmskip_ros.calibration.scoring import Scorer
from gmskip_ros.calibration.settings import Progress, SearchSettings
from gmskip_ros.calibration.trajectory import ChosenSets
from gmskip_ros.numbers import is_whole_number

GENERATIONS, OFFSPRING = 40, 16
MAX_SWAPS = 3
# Stages before all answers: the share of the answers (at least FEWEST_ANSWERS), and the share of
# the offspring that survives.
STAGES = ((16, 4), (4, 8))
FEWEST_ANSWERS = 4
ATTEMPTS = 50  # to draw a set that is not known yet
Blocks = tuple[int, ...]


class _Fitness(Protocol):
    """What sets are compared by: their cost, of which less is better.

    sign * cost is what `name`, and in a few words `short_name`, says.
    """

    name: str
    short_name: str
    sign: int

    @property
    def num_answers(self) -> int: ...

    def measure(
        self, sets: Sequence[Blocks], chosen: Sequence[int], on_done: OnDone
    ) -> list[float]:
        """Return the cost of each set on the answers of these indices."""


@dataclass(frozen=True)
class _Measured:
    blocks: Blocks  # ascending
    cost: float  # on all answers


@dataclass(frozen=True)
class _Stage:
    num_sets: int
    num_answers: int


def _work(stages: Sequence[_Stage]) -> int:
    """Return how many answers are measured in the stages."""
    return sum(stage.num_sets * stage.num_answers for stage in stages)


class EvolutionarySearch:
    """Finds the set of each size that costs least, by mutation and selection."""

    def __init__(
        self,
        scorer: Scorer,
        fitness: _Fitness,
        generations: int = GENERATIONS,
        offspring: int = OFFSPRING,
    ) -> None:
        self.scorer = scorer
        self._fitness = fitness
        self._generations = generations
        self._offspring = offspring
        self._known: set[Blocks] = set()  # measured on all answers
        self._rng = random.Random()
        self._round_of_size = 0
        first, others = (_work(self._stages(count)) for count in (2 * offspring, offspring))
        self._rounds = MeasuredRounds(
            scorer, [first, *[others] * generations] * len(scorer.sizes())
        )

    def search(self, size: int) -> list[_Measured]:
        """Return the best set after each generation, the first one's of random sets at the front.

        It ends early if no further set is found near the best one. Raises Stopped, VlmError,
        RankLostError.
        """
        self._known = set()
        self._round_of_size = 0
        self._rng = random.Random(f'evopress {self.scorer.settings.seed} {size}')
        sets = self._draw(2 * self._offspring, partial(self._random_set, size))
        found: list[_Measured] = []
        while sets:
            best = self._select(sets, found[-1] if found else None)
            found.append(best)
            rounds_left = self._generations + 1 - len(found)
            draw_child = partial(self._mutated, best.blocks)
            sets = self._draw(self._offspring, draw_child) if rounds_left else []
            if not sets:
                self._rounds.leave_out(rounds_left)
            self._report_round(best)
        return found

    def _draw(self, count: int, draw: Callable[[], Blocks]) -> list[Blocks]:
        """Return up to `count` different sets that are not known yet."""
        drawn: dict[Blocks, None] = {}
        for _ in range(ATTEMPTS * count):
            blocks = draw()
            if blocks not in self._known:
                drawn[blocks] = None
            if len(drawn) == count:
                break
        return list(drawn)

    def _random_set(self, size: int) -> Blocks:
        return tuple(sorted(self._rng.sample(self.scorer.removable, size)))

    def _mutated(self, blocks: Blocks) -> Blocks:
        retained = [block for block in self.scorer.removable if block not in blocks]
        # One swap is likelier than two, and two than three.
        swaps = min(self._rng.randint(1, MAX_SWAPS), self._rng.randint(1, MAX_SWAPS))
        swaps = min(swaps, len(blocks), len(retained))
        back = self._rng.sample(blocks, swaps)
        gone = self._rng.sample(retained, swaps)
        return tuple(sorted({*blocks, *gone} - {*back}))

    def _select(self, sets: Sequence[Blocks], parent: _Measured | None) -> _Measured:
        """Return the best of the sets and their parent; of equally good ones, not the parent."""
        self._round_of_size += 1
        self._rounds.begin(f'{self._round_of_size} of evopress, {len(sets[0])} blocks')
        every = range(self._fitness.num_answers)
        stages = self._stages(len(sets))
        done, total = 0, _work(stages)
        for stage, following in itertools.pairwise(stages):
            chosen = sorted(self._rng.sample(every, stage.num_answers))
            costs = self._costs(sets, chosen, done, total)
            best = sorted(range(len(sets)), key=lambda i: costs[i])  # stable
            sets = [sets[i] for i in best[: following.num_sets]]
            done += _work([stage])
        costs = self._costs(sets, every, done, total)
        self._known.update(sets)
        measured = [_Measured(*pair) for pair in zip(sets, costs, strict=True)]
        return min([*measured, *filter(None, [parent])], key=lambda one: one.cost)

    def _stages(self, num_sets: int) -> list[_Stage]:
        """Return the stages that so many sets go through."""
        every, stages = self._fitness.num_answers, []
        for share, surviving in STAGES:
            num_answers = max(FEWEST_ANSWERS, math.ceil(every / share))
            num_survivors = max(1, self._offspring // surviving)
            if num_answers < every and num_survivors < num_sets:
                stages.append(_Stage(num_sets, num_answers))
                num_sets = num_survivors
        return [*stages, _Stage(num_sets, every)]

    def _report_round(self, best: _Measured) -> None:
        size, generation = len(best.blocks), self._round_of_size - 1
        value = self._fitness.sign * best.cost
        self._rounds.end(
            {
                'size': size,
                'generation': generation,
                'blocks': list(best.blocks),
                'value': value,
            },
            sparsity=size / self.scorer.num_blocks,
            value=value,
            what=f'generation {generation} of {size} blocks, '
            f'{self._fitness.short_name} {value:.4g}',
        )

    def _costs(
        self, sets: Sequence[Blocks], chosen: Sequence[int], before: int, total: int
    ) -> list[float]:
        """Return the sets' costs on the chosen answers; they are remembered for a resumed run.

        A resumed run draws the same sets and answers again. Of the round's answers, `total`, the
        stages before this one have `before`.
        """

        def report(done: int) -> None:
            self.scorer.on_progress(
                Progress(
                    round=self._rounds.number,
                    most_rounds=self._rounds.most_rounds,
                    candidates=len(sets),
                    done=before + done,
                    total=total,
                    best_block=None,
                    best_score=None,
                    seconds_left=self._rounds.seconds_left((before + done) / total),
                )
            )

        report(0)
        costs: list[float] = self._rounds.remember(
            # Each size by itself, so that a run with more sizes knows those it has.
            f'evopress {len(sets[0])} blocks, round {self._round_of_size}, {len(chosen)} answers',
            lambda: self._fitness.measure(sets, chosen, report),
        )
        return costs


class _Divergence:
    """The cost is the divergence from the full model, on its own answers."""

    name = "KL(full model || skip set) on the full model's own answers (nats, mean over the tokens)"
    short_name = 'divergence'
    sign = 1

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer

    @cached_property
    def _answers(self) -> GivenAnswers:
        return own_answers(self._scorer)

    @property
    def num_answers(self) -> int:
        return len(self._answers.answers)

    def measure(
        self, sets: Sequence[Blocks], chosen: Sequence[int], on_done: OnDone
    ) -> list[float]:
        return self._answers.divergences(
            [self._scorer.skip_set(blocks) for blocks in sets], chosen, on_done
        )


class _NegativeScore:
    """The cost is the task's score, negated; answers not chosen count as the full model's."""

    name = "the task's score"
    short_name = 'score'
    sign = -1

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer
        self._items = [items for *_, items in questions_asked(scorer)]
        self.num_answers = len(self._items)

    def measure(
        self, sets: Sequence[Blocks], chosen: Sequence[int], on_done: OnDone
    ) -> list[float]:
        items = sorted(item for question in chosen for item in self._items[question])
        costs = []
        for done, blocks in enumerate(sets, start=1):
            contributions = [answer.contribution for answer in self._scorer.state.full]
            for item, contribution in zip(
                items, self._scorer.contributions(blocks, items), strict=True
            ):
                contributions[item] = contribution
            costs.append(-float(self._scorer.overall(contributions)))
            on_done(done * len(chosen))
        return costs


def choose(scorer: Scorer) -> ChosenSets:
    """Return the best set found of each size."""
    options = METHOD.options_of(scorer.settings)
    fitness = (_NegativeScore if options['fitness'] == 'score' else _Divergence)(scorer)
    search = EvolutionarySearch(scorer, fitness, options['generations'], options['offspring'])
    sets, record = [scorer.scored_set(())], []
    for size in scorer.sizes():
        found = search.search(size)
        sets.append(scorer.scored_set(found[-1].blocks))
        record.append(
            {
                'blocks': list(found[-1].blocks),
                'value': fitness.sign * found[-1].cost,
                'generations': [fitness.sign * best.cost for best in found],
            }
        )
    return ChosenSets(
        tuple(sets),
        nested=False,
        stopped_by=f'{options["generations"]} generations of each size, or no further set is near',
        objective={'name': fitness.name, 'sets': record},
    )


def check(settings: SearchSettings, num_blocks: int) -> None:
    """Raise CalibrationError for settings without a size, and counts that are not."""
    if not settings.sparsities:
        raise CalibrationError(
            f'method {METHOD.name} searches sets of given sizes: give --sparsity, such as 0.25,0.5'
        )
    options = METHOD.options_of(settings)
    for name in ('generations', 'offspring'):
        if not is_whole_number(options[name]) or options[name] < 1:
            raise CalibrationError(f'{name} {options[name]!r} must be a whole number, 1 or more')


def parse_count(flag: str, text: str) -> int:
    """Return a whole number, 1 or more. Raises CalibrationError."""
    if not text.isdecimal() or int(text) < 1:
        raise CalibrationError(f'{flag} {text!r}: give a whole number, 1 or more')
    return int(text)


METHOD: Method = Method(
    name='evopress',
    choose=choose,
    summary='evolutionary, by the divergence from the full model; needs --sparsity',
    title='EvoPress',
    options=(
        Option(
            'fitness',
            '--fitness',
            default='kl',
            choices=('kl', 'score'),
            help="what evopress compares: the divergence from the full model's distributions of "
            "the next token (kl, default), or the task's score",
        ),
        Option(
            'generations',
            '--generations',
            default=GENERATIONS,
            metavar='N',
            parse=partial(parse_count, '--generations'),
            help=f'generations of evopress for each size (default: {GENERATIONS})',
            is_extent=True,
        ),
        Option(
            'offspring',
            '--offspring',
            default=OFFSPRING,
            metavar='N',
            parse=partial(parse_count, '--offspring'),
            help=f'sets that evopress tries in a generation (default: {OFFSPRING})',
        ),
    ),
    has_limits=False,
    takes_sparsity=True,
    uses_seed=True,
    check=check,
)
