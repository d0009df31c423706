"""The search's exact ways of working, side by side: time, work and the same result."""

from __future__ import annotations

import argparse
import shlex
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from gmskip_ros.errors import UserError

if TYPE_CHECKING:
    from rich.progress import Progress

    from gmskip_ros.calibration.images import Pictures
    from gmskip_ros.calibration.methods.gm_skip import Search
    from gmskip_ros.calibration.questions import Questions
    from gmskip_ros.calibration.settings import SearchSettings
    from gmskip_ros.datasets import Dataset
    from gmskip_ros.vlm import Vlm

FORMAT = 'gmskip/benchmark-calibration/1'
# Name -> how candidates are answered, and whether those that cannot win are given up.
METHODS = {
    'exhaustive': ('alone', False),
    'batched': ('batched', False),  # exhaustive, with many pictures in a batch
    'walk without abandonment': ('walk', False),
    'walk': ('walk', True),
}
WHOLE = 0.9  # the goals are for searches up to this sparsity
# What is to be reached on the demo model, against the exhaustive search: how many times less
# seconds, and at most which share of its token-blocks.
GOALS_COMPLETE = {'single_object': 2.0, 'captioning': 3.0}
GOAL_COMPLETE_SHARE = 0.60
# With abandonment; it has bite where the full model reaches nearly the best score there is.
GOAL_TIMES_LESS = 8.0
GOAL_SHARE = 0.35
GOOD_FULL_SHARE = 0.9


EXHAUSTIVE, BATCHED, COMPLETE, WALK = METHODS


def measure(args: argparse.Namespace, tasks: Sequence[str]) -> dict[str, Any]:
    """Return all figures, as plain JSON values."""
    import torch
    from rich.console import Console
    from rich.progress import Progress

    from gmskip_ros.calibration.distributed import Ranks
    from gmskip_ros.calibration.images import GIB, Pictures
    from gmskip_ros.calibration.questions import (
        TaskSettings,
        choose_question_samples,
        make_questions,
    )
    from gmskip_ros.calibration.run import choose_metrics
    from gmskip_ros.calibration.settings import SearchSettings
    from gmskip_ros.datasets import sample_hash
    from gmskip_ros.machine import machine, software
    from gmskip_ros.vlm import load_vlm

    settings = SearchSettings(min_score_ratio=0, max_sparsity=args.max_sparsity, rounds=args.rounds)
    metrics = choose_metrics(tasks, args.metric)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    console = Console(stderr=True)
    is_quiet = args.no_progress or not console.is_terminal
    with (
        Progress(console=console, transient=True, disable=is_quiet) as bars,
        opened(args) as dataset,
    ):
        vlm = load_vlm(args.model, args.device, args.dtype)
        asked = [TaskSettings(name) for name in tasks]
        samples, _ = choose_question_samples(dataset, asked, args.images, 0, args.seed)
        paths = [sample.image_path for sample in samples]
        pictures = Pictures(vlm, paths, int(args.memory_gib * GIB), Ranks())
        for problem in pictures.encode_all().values():
            raise UserError(problem)
        # The first pass pays for the libraries' start.
        vlm.answer(pictures[0], 'What is this?', max_new_tokens=2)
        found = []
        for one, metric in zip(asked, metrics, strict=True):
            questions = make_questions(samples, one, one.make_task(dataset))
            found.append(measure_task(args, vlm, pictures, questions, metric, settings, bars))
        return {
            'format': FORMAT,
            'command': 'gmskip ' + shlex.join(args.arguments),
            'created': time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime()),
            'model': vlm.name,
            'num_blocks': vlm.num_blocks,
            'device': vlm.device,
            'dtype': vlm.dtype,
            'threads': torch.get_num_threads(),
            'batch_size': args.batch_size,
            'dataset': {
                'name': dataset.name,
                'images': len(samples),
                'sha256': sample_hash(samples),
                'seed': args.seed,
            },
            'max_sparsity': args.max_sparsity,
            'rounds': args.rounds,
            'tasks': found,
            'machine': machine(vlm.device),
            'software': software(),
        }


@contextmanager
def opened(args: argparse.Namespace) -> Iterator[Dataset]:
    """The dataset; if none is given, rendered scenes in a folder that goes away after `with`."""
    from gmskip_ros.datasets import open_dataset, write_scenes

    if args.dataset is not None:
        yield open_dataset(args.dataset, split=args.split)
        return
    with tempfile.TemporaryDirectory(prefix='gmskip_scenes_') as folder:
        write_scenes(folder, args.images, args.seed)
        yield open_dataset(folder)


@dataclass
class Runner:
    """One method's search, and the seconds that it took so far."""

    search: Search
    seconds: float = 0.0

    def step(self) -> bool:
        """Run one more round, before the first the full model; False once the search is over."""
        started = time.perf_counter()
        goes_on = True
        if self.search.state.full:
            goes_on = self.search.run_round()
        else:
            self.search.score_full()
        self.seconds += time.perf_counter() - started
        return goes_on


def measure_task(
    args: argparse.Namespace,
    vlm: Vlm,
    pictures: Pictures,
    questions: Questions,
    metric: str,
    settings: SearchSettings,
    bars: Progress,
) -> dict[str, Any]:
    """Return the figures of one task.

    The methods take turns, a round each, so that what else the machine does hits all alike.
    """
    from gmskip_ros.calibration.answering import Answerer
    from gmskip_ros.calibration.distributed import Ranks
    from gmskip_ros.calibration.methods.gm_skip import Search
    from gmskip_ros.calibration.objective import make_objective

    image_of = {path: index for index, path in enumerate(pictures.paths)}
    runners = {}
    for name, (way, abandon) in METHODS.items():
        answerer = Answerer(vlm, pictures, Ranks(), way, args.batch_size, args.memory_gib)
        # One for each, because it remembers the scores of texts.
        objective = make_objective([questions], [metric], image_of, args.seed)
        runners[name] = Runner(Search(objective, answerer, replace(settings, abandon=abandon)))

    order = list(runners)
    bar = bars.add_task(questions.name, total=1 + settings.num_removals(vlm.num_blocks))
    waiting = set(order)
    while waiting:
        waiting -= {name for name in order if name in waiting and not runners[name].step()}
        order = order[1:] + order[:1]
        bars.advance(bar)
    bars.remove_task(bar)

    searches = {name: runner.search for name, runner in runners.items()}
    exhaustive = searches[EXHAUSTIVE]
    full_score = float(exhaustive.full_score)
    best = [objective.bounds(item)[1] for item in range(len(objective.items))]
    differences = {
        name: f'{questions.name}: {name}: {said}'
        for name, search in searches.items()
        if (said := difference(exhaustive, search)) is not None
    }
    figures: dict[str, Any] = {
        'task': questions.name,
        'metric': metric,
        'full_score': full_score,
        'full_share': full_score / float(objective.part_scores(best)[0]),
        'methods': {
            name: {
                'seconds': runner.seconds,
                'times_less': runners[EXHAUSTIVE].seconds / runner.seconds,
                'token_blocks': runner.search.answerer.token_blocks,
                'share': runner.search.answerer.token_blocks / exhaustive.answerer.token_blocks,
                'rounds': rounds_of(runner.search),
            }
            for name, runner in runners.items()
        },
        # A batch has no guard against near ties: it may differ in the last bits of a logit.
        'notes': [said for name, said in differences.items() if name == BATCHED],
        'errors': [said for name, said in differences.items() if name != BATCHED],
    }
    is_whole = args.rounds is None and args.max_sparsity >= WHOLE
    return {**figures, 'goals': goals(figures) if is_whole else None}


def rounds_of(search: Search) -> list[dict[str, Any]]:
    """Return the rounds; their seconds and token_blocks are those spent on answers."""
    return [
        {
            'removed': one.removed,
            'score': float(one.score),
            'seconds': one.seconds,
            'token_blocks': one.token_blocks,
            'cells': len(one.cells),
            'exact_cells': sum(cell.is_exact for cell in one.cells),
        }
        for one in search.state.rounds
    ]


def difference(exhaustive: Search, search: Search) -> str | None:
    """Return the first thing that a search found otherwise than the exhaustive one, if any.

    Scores are compared exactly. Where a candidate was given up, its bound must hold.
    """
    if search.full_score != exhaustive.full_score:
        return f'the full score is {search.full_score}, exhaustive: {exhaustive.full_score}'
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


def goals(figures: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what the walk is meant to reach in this task, and whether it did."""
    methods, task = figures['methods'], figures['task']
    wanted = []
    if task in GOALS_COMPLETE:
        wanted.append((COMPLETE, 'times_less', GOALS_COMPLETE[task]))
    wanted.append((COMPLETE, 'share', GOAL_COMPLETE_SHARE))
    if figures['full_share'] >= GOOD_FULL_SHARE:
        wanted += [(WALK, 'times_less', GOAL_TIMES_LESS), (WALK, 'share', GOAL_SHARE)]
    return [
        {
            'method': name,
            'figure': figure,
            'goal': goal,
            'found': (found := methods[name][figure]),
            'is_reached': found >= goal if figure == 'times_less' else found <= goal,
        }
        for name, figure, goal in wanted
    ]
