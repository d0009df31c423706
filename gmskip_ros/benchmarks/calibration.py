"""The search's exact ways of working, side by side: time, work and the same result."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from gmskip_ros.calibration.answering import Answerer
from gmskip_ros.calibration.distributed import Ranks
from gmskip_ros.calibration.images import EncodedImages
from gmskip_ros.calibration.methods.gm_skip import GreedySearch
from gmskip_ros.calibration.objective import choose_metrics, make_objective
from gmskip_ros.calibration.questions import Questions, choose_question_samples, make_questions
from gmskip_ros.calibration.scoring import Scorer
from gmskip_ros.calibration.settings import GIB, SearchSettings, TaskSettings
from gmskip_ros.datasets import Dataset, open_dataset, sample_hash, write_scenes
from gmskip_ros.errors import UserError
from gmskip_ros.machine import describe_run
from gmskip_ros.vlm import CalibrationEngine, load_vlm

FORMAT = 'gmskip/benchmark-calibration/1'
EXHAUSTIVE, BATCHED, WALK = 'exhaustive', 'batched', 'walk'
# Name -> how candidates are answered, and whether those that cannot win are pruned.
METHODS = {
    EXHAUSTIVE: ('alone', False),
    BATCHED: ('batched', False),  # exhaustive, with many images in a batch
    'walk without abandonment': ('walk', False),
    WALK: ('walk', True),  # what calibrate does
}


@dataclass(frozen=True)
class BenchmarkSettings:
    """What to measure, and on which model; rendered scenes without a `dataset`."""

    tasks: tuple[str, ...]
    metric: str | None = None
    model: str = 'demo'
    device: str = 'auto'
    dtype: str = 'auto'
    load_options: Mapping[str, Any] = field(default_factory=dict)  # further ones of load_vlm
    dataset: str | None = None
    split: str | None = None
    images: int = 12
    seed: int = 0
    max_sparsity: float = 0.9
    rounds: int | None = None
    batch_size: int = 256
    memory_gib: float = 4.0
    command: str = ''

    @property
    def memory_bytes(self) -> int:
        """Memory for image features, and as much again for a batch."""
        return int(self.memory_gib * GIB)

    def search(self) -> SearchSettings:
        """Return the limits of every search."""
        return SearchSettings(min_score_ratio=0, max_sparsity=self.max_sparsity, rounds=self.rounds)


def measure(
    settings: BenchmarkSettings, on_round: Callable[[str, int, int], None] = lambda *_: None
) -> dict[str, Any]:
    """Return all figures as plain JSON values.

    `on_round` receives the task, the rounds done, and their number. Raises UserError for an image
    that cannot be read, and what the dataset, the metrics and the model raise.
    """
    import torch

    metrics = choose_metrics(settings.tasks, settings.metric)
    search = settings.search()
    with opened_dataset(settings) as dataset:
        vlm = load_vlm(settings.model, settings.device, settings.dtype, **settings.load_options)
        tasks = [TaskSettings(name) for name in settings.tasks]
        samples, _ = choose_question_samples(dataset, tasks, settings.images, 0, settings.seed)
        paths = [sample.image_path for sample in samples]
        images = EncodedImages(vlm, paths, settings.memory_bytes, Ranks())
        for problem in images.encode_all().values():
            raise UserError(problem)
        # The first pass includes the start of the libraries.
        vlm.answer(images[0], 'What is this?', max_new_tokens=2)
        figures = []
        for task, metric in zip(tasks, metrics, strict=True):
            questions = make_questions(samples, task, task.make_task(dataset.labels))
            figures.append(measure_task(settings, search, vlm, images, questions, metric, on_round))
        return {
            'format': FORMAT,
            'command': settings.command,
            'created': time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime()),
            **describe_run(
                vlm.name, vlm.device, vlm.dtype, vlm.quantization, vlm.num_blocks, vlm.image_fit
            ),
            'threads': torch.get_num_threads(),
            'batch_size': settings.batch_size,
            'dataset': {
                'name': dataset.name,
                'images': len(samples),
                'sha256': sample_hash(samples),
                'seed': settings.seed,
            },
            'max_sparsity': settings.max_sparsity,
            'rounds': settings.rounds,
            'tasks': figures,
        }


@contextmanager
def opened_dataset(settings: BenchmarkSettings) -> Iterator[Dataset]:
    """Yield the dataset; without one, rendered scenes in a folder that is removed afterwards."""
    if settings.dataset is not None:
        yield open_dataset(settings.dataset, split=settings.split)
        return
    with tempfile.TemporaryDirectory(prefix='gmskip_scenes_') as folder:
        write_scenes(folder, settings.images, settings.seed)
        yield open_dataset(folder)


@dataclass
class Runner:
    """One method's search, and the seconds it has taken so far."""

    search: GreedySearch
    seconds: float = 0.0

    def step(self) -> bool:
        """Run the full model, then one round per call; return False once the search is over."""
        started = time.perf_counter()
        goes_on = True
        if self.search.state.full:
            goes_on = self.search.run_round()
        else:
            self.search.scorer.score_full()
        self.seconds += time.perf_counter() - started
        return goes_on

    @property
    def token_blocks(self) -> int:
        """The work so far: tokens that went through a block."""
        return self.search.scorer.answerer.token_blocks


def measure_task(
    settings: BenchmarkSettings,
    search: SearchSettings,
    vlm: CalibrationEngine,
    images: EncodedImages,
    questions: Questions,
    metric: str,
    on_round: Callable[[str, int, int], None],
) -> dict[str, Any]:
    """Return the figures of one task.

    The methods take turns, a round each, so that other load on the machine affects all alike.
    """
    runners: dict[str, Runner] = {}
    for name, (way, abandon) in METHODS.items():
        answerer = Answerer(vlm, images, Ranks(), way, settings.batch_size, settings.memory_bytes)
        # Each has its own objective, because it remembers the scores of texts.
        objective = make_objective([questions], [metric], images.index_of, settings.seed)
        scorer = Scorer(objective, answerer, search)
        runners[name] = Runner(GreedySearch(scorer, abandon=abandon))
    _take_turns(
        runners,
        lambda done: on_round(questions.name, done, 1 + search.num_removals(vlm.num_blocks)),
    )

    exhaustive = runners[EXHAUSTIVE]
    full_score = float(exhaustive.search.scorer.full_score)
    best = [objective.bounds(item)[1] for item in range(len(objective.items))]
    differences = {
        name: f'{questions.name}: {name}: {problem}'
        for name, runner in runners.items()
        if (problem := difference(exhaustive.search, runner.search)) is not None
    }
    return {
        'task': questions.name,
        'metric': metric,
        'full_score': full_score,
        'full_share': full_score / float(objective.part_scores(best)[0]),
        'methods': {
            name: {
                'seconds': runner.seconds,
                'times_less': exhaustive.seconds / runner.seconds,
                'token_blocks': runner.token_blocks,
                'share': runner.token_blocks / exhaustive.token_blocks,
                'rounds': rounds_of(runner.search),
            }
            for name, runner in runners.items()
        },
        # A batch has no guard against near ties: it may differ in the last bits of a logit.
        'notes': [line for name, line in differences.items() if name == BATCHED],
        'errors': [line for name, line in differences.items() if name != BATCHED],
    }


def _take_turns(runners: dict[str, Runner], on_round: Callable[[int], None]) -> None:
    """Run all searches to the end, each a round at a time, in an order that rotates."""
    order = list(runners)
    waiting = set(order)
    done = 0
    while waiting:
        waiting -= {name for name in order if name in waiting and not runners[name].step()}
        order = order[1:] + order[:1]
        done += 1
        on_round(done)


def rounds_of(search: GreedySearch) -> list[dict[str, Any]]:
    """Return the rounds; their seconds and token_blocks are those spent on answers."""
    return [
        {
            'removed': done.removed,
            'score': float(done.score),
            'seconds': done.seconds,
            'token_blocks': done.token_blocks,
            'cells': len(done.cells),
            'exact_cells': sum(cell.is_exact for cell in done.cells),
        }
        for done in search.state.rounds
    ]


def difference(exhaustive: GreedySearch, search: GreedySearch) -> str | None:
    """Return the first difference between a search and the exhaustive one; None if they agree.

    Scores are compared exactly. The bound of a pruned candidate must hold.
    """
    full_score, exact_full_score = search.scorer.full_score, exhaustive.scorer.full_score
    if full_score != exact_full_score:
        return f'the full score is {full_score}, exhaustive: {exact_full_score}'
    pairs = zip(search.state.rounds, exhaustive.state.rounds, strict=True)
    for number, (found, wanted) in enumerate(pairs, start=1):
        if (found.removed, found.score) != (wanted.removed, wanted.score):
            return (
                f'round {number} removes block {found.removed} with score {found.score}, '
                f'exhaustive: {wanted.removed} with {wanted.score}'
            )
        for cell, exact in zip(found.cells, wanted.cells, strict=True):
            if cell.score != exact.score if cell.is_exact else cell.score < exact.score:
                kind = 'score' if cell.is_exact else 'upper bound'
                return (
                    f'round {number}: the {kind} without block {cell.block} is {cell.score}, '
                    f'exhaustive: {exact.score}'
                )
    return None
