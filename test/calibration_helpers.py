"""Calibration without a model: answers from tables, and the search by brute force."""

from __future__ import annotations

import math
import pickle
import random
import socket
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache, cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from warm_python import fork_context

from gmskip_ros.calibration.answering import ImageQuestion
from gmskip_ros.calibration.methods.registry import METHODS, get_method, search_settings
from gmskip_ros.calibration.objective import (
    BALANCED_ACCURACY,
    VISUAL_GAIN,
    Objective,
    make_objective,
    shuffled_images,
)
from gmskip_ros.calibration.questions import Questions, make_questions
from gmskip_ros.calibration.scoring import Scorer
from gmskip_ros.calibration.settings import SearchSettings, task_settings
from gmskip_ros.calibration.trajectory import Round, SearchState
from gmskip_ros.datasets import Dataset, Sample
from gmskip_ros.skipping import PHASES, SkipSet
from gmskip_ros.tasks import DEFAULT_PROMPTS, TASK_NAMES, Cider, caption_tokens, rouge_l
from gmskip_ros.vlm import CandidateAnswer

LABELS = ('car', 'truck', 'bus', 'dog')
PIECE = 3  # characters to a token
# What can be answered to each task's question, and the labels that are read from it.
LABEL_READ = {
    'car': 'car',
    'Cars.': 'car',
    'truck': 'truck',
    'a truck': 'truck',
    'bus': 'bus',
    'dog': 'dog',
    'Dogs': 'dog',
    'nothing': None,
    'bus stop': None,
    'truck, dog': 'truck',
    'No car. A bus is here. A dog, too.': 'bus',
    'A truck. It waits.': 'truck',
    '': None,
    'no idea': None,
}
LABELS_READ: dict[str, set[str]] = {
    'car': {'car'},
    'car, truck': {'car', 'truck'},
    'dogs and a bus': {'bus', 'dog'},
    'truck, bus, dog': {'truck', 'bus', 'dog'},
    'car, dog': {'car', 'dog'},
    '': set(),
    'sky': set(),
}
CAPTIONS = (
    'A car on a wet road.',
    'a car on a road at night',
    'a truck near a bus',
    'a dog',
    'road',
    '',
    'a dog runs past a truck on the road',
    'The bus stops at night',
    'a a a a a a',
)
POOLS = {
    DEFAULT_PROMPTS['single_object']: tuple(LABEL_READ),
    DEFAULT_PROMPTS['multi_object']: tuple(LABELS_READ),
    DEFAULT_PROMPTS['captioning']: CAPTIONS,
}

tokens_of = cache(caption_tokens)
AnswerOf = Callable[[frozenset[int], int, str], str]  # skip set, image, prompt -> text


class TableAnswerer:
    """Stands in for an Answerer: looks answers up, cuts them once decided, counts questions."""

    def __init__(self, num_blocks: int, answer_of: AnswerOf, calls: float = math.inf) -> None:
        """`calls`: how often `answers` answers before it raises KeyboardInterrupt."""
        self.vlm = SimpleNamespace(num_blocks=num_blocks)
        self.token_blocks = 0
        self.asked: list[tuple[frozenset[int], int, str]] = []
        self.num_cut = 0
        self._answer_of = answer_of
        self._calls = calls

    def answers(
        self,
        questions: Sequence[ImageQuestion],
        removed: SkipSet | Iterable[int],
        candidates: Sequence[int | None],
        max_new_tokens: int,
        is_decided: Callable[[int, str], bool] = lambda i, text: False,
        phases: Sequence[str] = PHASES,
    ) -> list[list[CandidateAnswer]]:
        """Return the answers in the form of Answerer.answers."""
        if self._calls < 1:
            raise KeyboardInterrupt
        self._calls -= 1
        common = frozenset(SkipSet.of(removed).blocks)
        assert not common & set(candidates)
        skips = [common if block is None else common | {block} for block in candidates]
        return [
            [self._answer(i, question, skip, is_decided) for skip in skips]
            for i, question in enumerate(questions)
        ]

    def _answer(
        self,
        i: int,
        question: ImageQuestion,
        skip: frozenset[int],
        is_decided: Callable[[int, str], bool],
    ) -> CandidateAnswer:
        self.asked.append((skip, question.image, question.prompt))
        self.token_blocks += self.vlm.num_blocks - len(skip)
        text = self._answer_of(skip, question.image, question.prompt)
        for end in range(PIECE, len(text), PIECE):
            if is_decided(i, text[:end]):
                self.num_cut += 1
                return CandidateAnswer(tuple(map(ord, text[:end])), text[:end], False)
        return CandidateAnswer(tuple(map(ord, text)), text)


def make_samples(count: int, rng: random.Random) -> tuple[Sample, ...]:
    """Return samples that every task can be asked about, each with its own image."""
    return tuple(
        Sample(
            f'{number:04d}',
            Path(f'{number:04d}.jpg'),
            labels=tuple(rng.sample(LABELS, rng.randint(1, 3))),
            main_object=rng.choice(LABELS),
            captions=tuple(rng.choices([text for text in CAPTIONS if text], k=rng.randint(1, 3))),
        )
        for number in range(count)
    )


def as_dataset(samples: Sequence[Sample], name: str = 'table') -> Dataset:
    """Return the samples as a dataset of LABELS."""
    return Dataset(name, tuple(samples), LABELS, (), ())


def make_all_questions(samples: Sequence[Sample], task: str, **options: Any) -> list[Questions]:
    """Return the questions of a task, or of all for 'joint', about the samples in their order.

    `options` are those of TaskSettings.
    """
    return [
        make_questions(samples, settings, settings.make_task(LABELS))
        for settings in task_settings(task, **options)
    ]


@dataclass(frozen=True)
class Table:
    """A small search problem: the answers under every skip set, and what is right."""

    task: str
    metric: str  # for 'joint': the metric of every task, separated by commas
    num_blocks: int
    samples: tuple[Sample, ...]
    seed: int
    noise: int  # per cent of the answers that are arbitrary
    harm: int  # per cent more for every harmful block skipped
    harmful: frozenset[int] = field(default_factory=frozenset)
    right: tuple[str, ...] = TASK_NAMES  # the tasks that are otherwise answered correctly

    def answer(self, skip: frozenset[int], image: int, prompt: str) -> str:
        """Return the answer to a prompt about an image: always the same."""
        drawn = zlib.crc32(f'{self.seed} {sorted(skip)} {image} {prompt}'.encode())
        percent, drawn = drawn % 100, drawn // 100
        pool = POOLS[prompt]
        if percent < self.noise + self.harm * len(skip & self.harmful):
            return pool[drawn % len(pool)]
        sample = self.samples[image]
        if prompt == DEFAULT_PROMPTS['captioning']:
            return sample.captions[0] if 'captioning' in self.right else 'nothing'
        if prompt == DEFAULT_PROMPTS['multi_object']:
            return ', '.join(sample.labels) if 'multi_object' in self.right else 'sky'
        return str(sample.main_object) if 'single_object' in self.right else 'nothing'

    @cached_property
    def _cider(self) -> Cider:
        return Cider([[tokens_of(text) for text in sample.captions] for sample in self.samples])

    def objective(self) -> Objective:
        """Return what the search compares, made by the code under test."""
        image_of = {sample.image_path: i for i, sample in enumerate(self.samples)}
        questions = make_all_questions(self.samples, self.task)
        return make_objective(questions, self.metric.split(','), image_of, self.seed)

    def answerer(self, calls: float = math.inf) -> TableAnswerer:
        """Return an answerer that uses this table."""
        return TableAnswerer(self.num_blocks, self.answer, calls)

    def part_scores(self, skip: frozenset[int] = frozenset()) -> list[Any]:
        """Return the score of every task without the blocks, from the definitions."""
        tasks = TASK_NAMES if self.task == 'joint' else (self.task,)
        metrics = self.metric.split(',')
        return [self._score(*pair, skip) for pair in zip(tasks, metrics, strict=True)]

    def score_of(self) -> Callable[[frozenset[int]], Any]:
        """Return the function from a skip set to the score that the search compares."""
        full = self.part_scores()

        def score(skip: frozenset[int]) -> Any:
            parts = self.part_scores(skip)
            if self.task != 'joint':
                return parts[0]
            return min(part / whole for part, whole in zip(parts, full, strict=True))

        return score

    def _score(self, task: str, metric: str, skip: frozenset[int]) -> Any:
        count = len(self.samples)

        def adds(i: int, image: int) -> Any:
            """What the answer about an image is worth to question i."""
            text, sample = self.answer(skip, image, DEFAULT_PROMPTS[task]), self.samples[i]
            if task == 'single_object':
                return Fraction(LABEL_READ[text] == sample.main_object)
            if task == 'multi_object':
                found = set(text.split(', ')) if text not in LABELS_READ else LABELS_READ[text]
                both = len(found & set(sample.labels))
                if metric == 'set_f1':
                    return Fraction(2 * both, len(found) + len(sample.labels))
                return Fraction(both, max(1, len(found)))
            tokens = tokens_of(text)
            if metric == 'rouge_l':
                return rouge_l(tokens, [tokens_of(one) for one in sample.captions])
            return self._cider.score(i, tokens)

        own = [adds(i, i) for i in range(count)]
        if metric == BALANCED_ACCURACY:
            classes = {sample.main_object for sample in self.samples}
            of_class = [
                [one for one, s in zip(own, self.samples, strict=True) if s.main_object == label]
                for label in classes
            ]
            return sum(Fraction(sum(ones), len(ones)) for ones in of_class) / len(classes)
        if metric == VISUAL_GAIN:
            others = shuffled_images(range(count), self.seed)
            own += [-adds(i, others[i]) for i in range(count)]
        return (math.fsum(own) if isinstance(own[0], float) else sum(own)) / count


def random_table(task: str, metric: str, seed: int) -> Table:
    """Return a table of 3 to 8 blocks and 1 to 30 images, often with many equal scores."""
    rng = random.Random(f'{task} {metric} {seed}')
    num_blocks = rng.randint(3, 8)
    fewest = {VISUAL_GAIN: 2, BALANCED_ACCURACY: 5}.get(metric, 1)
    samples = make_samples(rng.randint(fewest, rng.choice([5, 12, 30])), rng)
    is_poor = rng.random() < 0.15
    table = Table(
        task,
        metric,
        num_blocks,
        samples,
        seed,
        noise=rng.choice([0, 0, 3, 10, 40, 100]),
        harm=rng.choice([0, 5, 30, 100]),
        harmful=frozenset(rng.sample(range(num_blocks), rng.randint(0, num_blocks))),
        right=() if is_poor else TASK_NAMES,
    )
    has_no_score = (
        metric == BALANCED_ACCURACY and len({sample.main_object for sample in samples}) < 2
    ) or (task == 'joint' and min(table.part_scores()) <= 0)
    return random_table(task, metric, seed + 1_000_000) if has_no_score else table


def random_settings(number: int, **fixed: Any) -> SearchSettings:
    """Return settings of every kind, of `fixed` those that the method has."""
    rng = random.Random(f'settings {number}')
    drawn: dict[str, Any] = {
        'tie_order': rng.choice(['backward', 'forward']),
        'min_score_ratio': rng.choice([0, 0.9, 1.0, 1.0, 1.1]),
        'max_sparsity': rng.choice([0.3, 0.5, 0.7, 0.9, 0.9, 1.0]),
        'rounds': rng.choice([None, None, None, 1, 2, 4]),
    }
    values = {**drawn, **fixed}
    method = get_method(values.pop('method', 'gm-skip'))
    others = {option.name for other in METHODS.values() for option in other.options}
    others -= {option.name for option in method.options}
    return search_settings(
        method.name, **{name: value for name, value in values.items() if name not in others}
    )


def run_search(scorer: Scorer) -> SearchState:
    """Run the settings' method to its end and return the state."""
    get_method(scorer.settings.method).choose(scorer)
    return scorer.state


def is_enough(score: Any, full: Any, ratio: float) -> bool:
    """Return whether a score is at least ratio x full; 0.9 is nine tenths."""
    return score >= ratio * full or math.isclose(float(score), ratio * float(full), rel_tol=1e-11)


def brute_force(
    score_of: Callable[[frozenset[int]], Any],
    num_blocks: int,
    settings: SearchSettings,
    order: Sequence[int] | None = None,
) -> tuple[list[tuple[int | None, Any, dict[int, Any]]], str]:
    """Return every round (removed, best score, all scores) and a word of why it stopped.

    With an `order`, its next block is the only candidate.
    """
    full = score_of(frozenset())
    removed: list[int] = []
    rounds: list[tuple[int | None, Any, dict[int, Any]]] = []
    deepest = settings.options.get('tie_order') == 'backward'
    while True:
        if settings.rounds is not None and len(removed) == settings.rounds:
            return rounds, 'rounds'
        if len(removed) == num_blocks - 1:
            return rounds, 'one block'
        if Fraction(len(removed) + 1, num_blocks) > Fraction(str(settings.max_sparsity)):
            return rounds, 'max_sparsity'
        retained = [block for block in range(num_blocks) if block not in removed]
        if order is not None:
            retained = [order[len(removed)]]
        scores = {block: score_of(frozenset({*removed, block})) for block in retained}
        best = max(scores.values())
        if not is_enough(best, full, settings.min_score_ratio):
            return [*rounds, (None, best, scores)], 'scores below'
        equal = [block for block in scores if scores[block] == best]
        block = max(equal) if deepest else min(equal)
        removed.append(block)
        rounds.append((block, best, scores))


def without_seconds(rounds: Iterable[Round]) -> list[tuple[Any, ...]]:
    """Return everything of the rounds except their duration."""
    return [(done.removed, done.score, done.cells, done.token_blocks) for done in rounds]


def result_of(state: SearchState) -> tuple[Any, ...]:
    """Return all of a finished search that a result file could hold, except times."""
    return without_seconds(state.rounds), state.full, state.trunk, state.stopped_by


RunRank = Callable[[Path, list[Sample], dict[str, str], Path], None]


def results_of_two_ranks(
    run_rank: RunRank, folder: Path, samples: list[Sample], out: Path
) -> list[Any]:
    """Return what each of two connected processes pickled.

    `run_rank` is called with the model's folder, the samples, torchrun's variables and the file.
    """
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = str(free.getsockname()[1])
    address = {'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': port, 'WORLD_SIZE': '2'}
    processes = [
        fork_context().Process(
            target=run_rank,
            args=(folder, samples, {**address, 'RANK': str(rank)}, out / f'{rank}'),
        )
        for rank in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    return [pickle.loads((out / f'{rank}').read_bytes()) for rank in range(2)]
