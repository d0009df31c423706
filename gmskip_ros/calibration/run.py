"""One calibration from a dataset to a skip list and everything a report says about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gmskip_ros.calibration.answering import Answerer
from gmskip_ros.calibration.checkpoint import Checkpoint, CheckpointFile
from gmskip_ros.calibration.distributed import Ranks
from gmskip_ros.calibration.errors import CalibrationError
from gmskip_ros.calibration.images import (
    _all_unreadable,
    _choose_samples,
    _load_pictures,
)
from gmskip_ros.calibration.measuring import Evaluator
from gmskip_ros.calibration.methods.fixed import fixed_interval
from gmskip_ros.calibration.methods.gm_skip import Search
from gmskip_ros.calibration.objective import base_metric, make_objective
from gmskip_ros.calibration.questions import (
    Questions,
    make_questions,
)
from gmskip_ros.calibration.result import (
    FORMAT,
    Calibration,
    _fingerprint,
    _key,
    _make_skip_list,
    _options,
)
from gmskip_ros.calibration.settings import CalibrationSettings, Listener
from gmskip_ros.calibration.trajectory import SearchState
from gmskip_ros.datasets import Dataset, Sample, sample_hash
from gmskip_ros.machine import machine
from gmskip_ros.tasks.scoring import METRICS

if TYPE_CHECKING:
    from gmskip_ros.vlm import Vlm


def choose_metrics(task_names: Sequence[str], metric: str | None) -> list[str]:
    """Return each task's metric: the one given that it has, else the paper's.

    `metric` may name several, by commas, for several tasks. Raises CalibrationError for one that
    no task has.
    """
    given = [] if metric is None else [one.strip() for one in metric.split(',')]
    chosen = [METRICS[name][0] for name in task_names]
    for one in given:
        problems = []
        for index, name in enumerate(task_names):
            try:
                base_metric(name, one)
                chosen[index] = one
            except CalibrationError as error:
                problems.append(error)
        if len(problems) == len(task_names):
            raise problems[0]
    return chosen


def check(
    dataset: Dataset, settings: CalibrationSettings, test_dataset: Dataset | None = None
) -> None:
    """Raise what `calibrate` raises for a dataset that has no picture for the task, and so on.

    That takes no model and little time.
    """
    choose_metrics([one.name for one in settings.tasks()], settings.metric)
    _choose_samples(dataset, settings, test_dataset)


def calibrate(
    vlm: Vlm,
    dataset: Dataset,
    settings: CalibrationSettings,
    folder: Path,
    *,
    test_dataset: Dataset | None = None,
    ranks: Ranks | None = None,
    listener: Listener | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Calibration:
    """Find what to skip, measure it on other pictures, and return the skip list and all figures.

    The state is kept in `folder`/checkpoint.json; the same call goes on from there. With several
    ranks every process makes the same call. `should_stop` is polled before every block of every
    answer. Raises Stopped, CalibrationError, DatasetError, TaskError, VlmError; the state is saved.
    """
    ranks = ranks or Ranks()
    listener = listener or Listener()
    interval_sets = _interval_sets(settings.intervals, vlm.num_blocks)
    samples, test_samples, pictures, unreadable = _load_pictures(
        vlm, dataset, settings, test_dataset, ranks, listener, should_stop
    )
    tasks = settings.tasks()
    metrics = choose_metrics([one.name for one in tasks], settings.metric)
    image_of = {path: index for index, path in enumerate(pictures.paths)}

    def questions_about(some: Sequence[Sample]) -> list[Questions]:
        return [make_questions(some, one, one.make_task(dataset)) for one in tasks]

    questions = questions_about(samples)
    test_questions = questions_about(test_samples)
    for some in (questions, test_questions) if test_samples else (questions,):
        if not min(one.num_scored for one in some):  # those with the target cannot be read
            raise _all_unreadable(dataset, unreadable)
    objective = make_objective(questions, metrics, image_of, settings.seed)
    answerer = Answerer(
        vlm,
        pictures,
        ranks,
        'alone' if settings.exhaustive else 'walk',
        settings.batch_size,
        settings.memory_gib,
        should_stop,
    )
    evaluator = None  # made before the search: what it refuses is told before hours are spent
    if test_samples:
        evaluator = Evaluator(
            test_questions, metrics, answerer, image_of, settings.seed, settings.latency_images
        )
    hashes = ranks.of_first((sample_hash(samples), sample_hash(test_samples)))

    file = CheckpointFile(folder)
    checkpoint = _load_checkpoint(
        file, _fingerprint(vlm, dataset, settings, questions, metrics, hashes), ranks
    )

    def save(state: SearchState | None = None, is_round: bool = True) -> None:
        if ranks.rank == 0:
            file.save(checkpoint, now=is_round)

    search = Search(objective, answerer, settings.search, checkpoint.search, listener.search, save)
    try:
        search.score_full()
        if ranks.rank == 0:
            listener.full_score(float(search.full_score))
        if settings.intervals:
            prefixes = _score_sets(search, interval_sets, checkpoint, save)
        else:
            state = search.run()
            prefixes = _prefixes_of(state, float(search.full_score))
        for done, prefix in enumerate(prefixes):
            prefix['length'] = len(prefix['blocks'])
            prefix['sparsity'] = prefix['length'] / vlm.num_blocks
            listener.evaluations(done, len(prefixes))
            prefix['test'] = _evaluate(evaluator, prefix['blocks'], checkpoint, save)
        listener.evaluations(len(prefixes), len(prefixes))
    except Exception:  # not KeyboardInterrupt, which may come between two changes of the state
        save()
        raise

    full_score = float(prefixes[0]['calibration_score'])
    datasets = [dataset] if test_dataset is None else [dataset, test_dataset]
    skip_list = _make_skip_list(
        vlm, dataset, settings, questions, metrics, checkpoint, prefixes, hashes
    )
    result = {
        'format': FORMAT,
        'command': settings.command,
        'created': checkpoint.created,
        'model': vlm.name,
        'text_model_type': vlm.text_model_type,
        'num_blocks': vlm.num_blocks,
        'device': vlm.device,
        'dtype': vlm.dtype,
        'task': settings.task,
        'target': settings.target,
        'metric': ', '.join(metrics),
        'prompt': skip_list.prompt.text,
        'method': skip_list.method,
        'nested': skip_list.nested,
        'options': _options(settings),
        'min_score_ratio': settings.search.min_score_ratio,
        'max_sparsity': settings.search.max_sparsity,
        'stopped_by': checkpoint.search.stopped_by or 'the sets are given by the intervals',
        'dataset': {
            'name': dataset.name,
            'notes': [note for one in datasets for note in one.notes],
            'warnings': [warning for one in datasets for warning in one.warnings],
            'calibration': {
                'images': questions[0].num_scored,
                'sha256': hashes[0],
                'seed': settings.seed,
            },
            'test': {
                'name': (test_dataset or dataset).name,
                'images': test_questions[0].num_scored,
                'sha256': hashes[1],
            }
            if test_samples
            else None,
        },
        'unreadable': unreadable,
        'full_score': full_score,
        'rounds': [
            {
                'round': number,
                'removed': one.removed,
                'score': float(one.score),
                'seconds': one.seconds,
                'token_blocks': one.token_blocks,
                'cells': [
                    {'block': cell.block, 'score': float(cell.score), 'exact': cell.is_exact}
                    for cell in one.cells
                ],
            }
            for number, one in enumerate(checkpoint.search.rounds, start=1)
        ],
        'operating_points': dict(skip_list.operating_points or {}),
        'prefixes': prefixes,
        'stability': None,
        'machine': machine(vlm.device),
        'software': dict(skip_list.software),
    }
    return Calibration(skip_list, result)


def _load_checkpoint(file: CheckpointFile, settings: Mapping[str, Any], ranks: Ranks) -> Checkpoint:
    """Return rank 0's checkpoint in every process."""
    loaded: Checkpoint | CalibrationError | None = None
    if ranks.rank == 0:
        try:
            loaded = file.load(settings)
        except CalibrationError as error:
            loaded = error
    loaded = ranks.of_first(loaded)
    if isinstance(loaded, CalibrationError):
        raise loaded
    assert loaded is not None
    return loaded


def _prefixes_of(state: SearchState, full_score: float) -> list[dict[str, Any]]:
    scores = [full_score, *(float(one.score) for one in state.rounds if one.removed is not None)]
    return [
        {'blocks': state.removed[:length], 'calibration_score': score}
        for length, score in enumerate(scores)
    ]


def _interval_sets(intervals: Sequence[int], num_blocks: int) -> list[tuple[int, ...]]:
    """Return the blocks that each fixed interval leaves out, the fewest first."""
    sets: dict[int, tuple[int, ...]] = {}
    for interval in intervals:
        blocks = fixed_interval(num_blocks, interval)
        if sets.setdefault(len(blocks), blocks) != blocks:
            raise CalibrationError(
                f'interval {interval} leaves out {len(blocks)} blocks, as another one does: a '
                'skip list holds one set of a size, so leave one of them out'
            )
    return [blocks for _, blocks in sorted(sets.items())]


def _score_sets(
    search: Search,
    sets: Sequence[tuple[int, ...]],
    checkpoint: Checkpoint,
    save: Callable[[], None],
) -> list[dict[str, Any]]:
    """Return the full model's, known by now, and each set's score on the calibration pictures."""
    prefixes = [{'blocks': [], 'calibration_score': float(search.full_score)}]
    for blocks in sets:
        key = f'calibration score without {_key(blocks)}'
        if key not in checkpoint.evaluations:
            checkpoint.evaluations[key] = {'score': float(search.score_of(blocks))}
            save()
        score = checkpoint.evaluations[key]['score']
        prefixes.append({'blocks': list(blocks), 'calibration_score': score})
    return prefixes


def _evaluate(
    evaluator: Evaluator | None,
    blocks: Sequence[int],
    checkpoint: Checkpoint,
    save: Callable[[], None],
) -> dict[str, Any] | None:
    if evaluator is None:
        return None
    key = f'test without {_key(blocks)}'
    if key not in checkpoint.evaluations:
        checkpoint.evaluations[key] = evaluator.evaluate(blocks)
        save()
    return checkpoint.evaluations[key]
