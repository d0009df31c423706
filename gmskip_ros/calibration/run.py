"""One calibration from a dataset to a skip list and everything a report says about it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gmskip_ros.calibration.answering import GIB, Answerer, Pictures
from gmskip_ros.calibration.checkpoint import Checkpoint, CheckpointFile
from gmskip_ros.calibration.distributed import Ranks
from gmskip_ros.calibration.errors import CalibrationError
from gmskip_ros.calibration.evaluation import Evaluator
from gmskip_ros.calibration.objective import base_metric, make_objective
from gmskip_ros.calibration.questions import (
    Questions,
    TaskSettings,
    choose_question_samples,
    make_questions,
    task_settings,
)
from gmskip_ros.calibration.search import (
    Progress,
    Search,
    SearchSettings,
    SearchState,
    fixed_interval,
)
from gmskip_ros.datasets import Dataset, Sample, sample_hash
from gmskip_ros.machine import machine, software
from gmskip_ros.skipping import (
    OPERATING_POINTS,
    Prompt,
    Removal,
    SkipList,
    derive_operating_points,
)
from gmskip_ros.tasks import jaccard
from gmskip_ros.tasks.scoring import METRICS

if TYPE_CHECKING:
    from gmskip_ros.vlm import Vlm

FORMAT = 'gmskip/calibration/1'


@dataclass(frozen=True)
class CalibrationSettings:
    """What a user asks of one calibration. None stands for the task's or the dataset's own."""

    task: str  # one of TASK_NAMES, 'generic' or 'joint'
    target: str | None = None
    metric: str | None = None
    prompt: str | None = None
    labels: tuple[str, ...] | None = None
    synonyms: bool = False
    max_new_tokens: int | None = None
    images: int = 1000
    test_images: int | None = None  # None: as many as `images`
    seed: int = 0
    search: SearchSettings = field(default_factory=SearchSettings)
    intervals: tuple[int, ...] = ()  # fixed intervals instead of a search
    exhaustive: bool = False
    batch_size: int = 256
    memory_gib: float = 4.0
    latency_images: int = 8
    command: str = ''

    def tasks(self) -> list[TaskSettings]:
        """Return the settings of the task, or of each task of a joint calibration."""
        return task_settings(
            self.task,
            target=self.target,
            prompt=self.prompt,
            labels=self.labels,
            synonyms=self.synonyms,
            max_new_tokens=self.max_new_tokens,
        )


class Listener:
    """Told how far a calibration is; does nothing by itself."""

    def pictures(self, done: int, total: int) -> None:
        """Pictures encoded so far."""

    def search(self, progress: Progress) -> None:
        """How far the search is."""

    def full_score(self, score: float) -> None:
        """The full model's score, before any block goes; told to the first process's only."""

    def evaluations(self, done: int, total: int) -> None:
        """Skip sets measured so far on the test pictures."""


@dataclass(frozen=True)
class Calibration:
    """What came out: the skip list, and the figures of contract 'gmskip/calibration/1' as JSON."""

    skip_list: SkipList
    result: dict[str, Any]


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


def stability(found: Sequence[Calibration]) -> dict[str, Any]:
    """Return how alike the lists of several seeds are: per operating point their sets (ascending)
    and the mean Jaccard index |A & B| / |A | B| over all pairs, 1 for two empty sets."""
    points: dict[str, Any] = {}
    for name in OPERATING_POINTS:
        sets = [sorted(one.skip_list.blocks_at(name)) for one in found]
        pairs = [jaccard(set(map(str, a)), set(map(str, b))) for a, b in combinations(sets, 2)]
        points[name] = {'jaccard': sum(pairs) / len(pairs), 'sets': sets}
    seeds = [one.result['dataset']['calibration']['seed'] for one in found]
    return {'seeds': seeds, 'points': points}


def _choose_samples(
    dataset: Dataset, settings: CalibrationSettings, test_dataset: Dataset | None
) -> tuple[list[Sample], list[Sample]]:
    test_images = settings.images if settings.test_images is None else settings.test_images
    return choose_question_samples(
        dataset, settings.tasks(), settings.images, test_images, settings.seed, test_dataset
    )


def _load_pictures(
    vlm: Vlm,
    dataset: Dataset,
    settings: CalibrationSettings,
    test_dataset: Dataset | None,
    ranks: Ranks,
    listener: Listener,
    should_stop: Callable[[], bool],
) -> tuple[list[Sample], list[Sample], Pictures, list[str]]:
    """Choose samples and encode their pictures; those that cannot be read are left out, named."""
    samples, test_samples = _choose_samples(dataset, settings, test_dataset)
    paths = list(dict.fromkeys(sample.image_path for sample in [*samples, *test_samples]))
    pictures = Pictures(vlm, paths, int(settings.memory_gib * GIB), ranks)
    broken = pictures.encode_all(lambda done: listener.pictures(done, len(paths)), should_stop)
    unreadable = {paths[index] for index in broken}
    left, left_test = (
        [sample for sample in some if sample.image_path not in unreadable]
        for some in (samples, test_samples)
    )
    if not left or (test_samples and not left_test):
        raise _all_unreadable(dataset, list(broken.values()))
    return left, left_test, pictures, [str(path) for path in sorted(unreadable)]


def _all_unreadable(dataset: Dataset, examples: Sequence[str]) -> CalibrationError:
    return CalibrationError(
        f'none of the pictures chosen from {dataset.name} to be scored can be read '
        f'({examples[0]}): put them back'
    )


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


def _fingerprint(
    vlm: Vlm,
    dataset: Dataset,
    settings: CalibrationSettings,
    questions: Sequence[Questions],
    metrics: Sequence[str],
    hashes: tuple[str, str],
) -> dict[str, Any]:
    """Return all that a result follows from; not the devices, processes, batches, the progress."""
    prompts = sorted({prompt for asked in questions for prompt in asked.prompts})
    return {
        'model': vlm.name,
        'weights (sha256)': vlm.weights_sha256(),  # a folder may hold a newer model by now
        'num_blocks': vlm.num_blocks,
        'template_sha256': vlm.template_sha256,
        'dtype': vlm.dtype,
        'dataset': dataset.name,
        'calibration pictures (sha256)': hashes[0],
        'test pictures (sha256)': hashes[1],
        'task': settings.task,
        'target': settings.target,
        'metric': list(metrics),
        'prompts': prompts if len(prompts) < 4 else _sha256('\n'.join(prompts)),
        'labels': [list(asked.task.labels) if asked.task else None for asked in questions],
        'synonyms': settings.synonyms,
        'max_new_tokens': [asked.max_new_tokens for asked in questions],
        'seed': settings.seed,
        **{f'search {name}': value for name, value in asdict(settings.search).items()},
        'intervals': list(settings.intervals),
        'exhaustive': settings.exhaustive,
        'latency_images': settings.latency_images,
        'software': software(),
    }


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()


def _options(settings: CalibrationSettings) -> dict[str, Any]:
    """Return the options that say how the search went about it, for the report."""
    search = settings.search
    options: dict[str, Any] = {'exhaustive': settings.exhaustive}
    if settings.intervals:
        return {'intervals': list(settings.intervals)}
    if search.method in ('gm-skip', 'one-shot'):
        options['tie_order'] = search.tie_order
    if search.method == 'gm-skip':
        options['abandon'] = search.abandon
    if search.method == 'positional':
        options['start'] = search.start
    if search.method == 'random':
        options['seed'] = search.seed
    if search.rounds is not None:
        options['rounds'] = search.rounds
    return options


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


def _key(blocks: Sequence[int]) -> str:
    return ','.join(map(str, blocks)) or 'nothing'


def _make_skip_list(
    vlm: Vlm,
    dataset: Dataset,
    settings: CalibrationSettings,
    questions: Sequence[Questions],
    metrics: Sequence[str],
    checkpoint: Checkpoint,
    prefixes: Sequence[Mapping[str, Any]],
    hashes: tuple[str, str],
) -> SkipList:
    search = settings.search
    scores = [prefix['calibration_score'] for prefix in prefixes]
    points = derive_operating_points(scores[0], scores[1:], search.min_score_ratio)
    if settings.intervals:
        blocks: dict[str, Any] = {
            'nested': False,
            'sets': {len(prefix['blocks']): tuple(prefix['blocks']) for prefix in prefixes[1:]},
            'operating_points': {
                name: len(prefixes[index]['blocks']) for name, index in points.items()
            },
        }
    else:
        order = prefixes[-1]['blocks']
        removed = (Removal(*pair) for pair in zip(order, scores[1:], strict=True))
        blocks = {'removed': tuple(removed), 'operating_points': points}
    asked = questions[0] if len(questions) == 1 else None
    prompt = asked.prompts[0] if asked and len(set(asked.prompts)) == 1 else None
    return SkipList(
        model=vlm.name,
        text_model_type=vlm.text_model_type,
        num_blocks=vlm.num_blocks,
        task=settings.task,
        target=settings.target,
        method=method_name(settings),
        metric=', '.join(metrics),
        prompt=Prompt(prompt, vlm.template_sha256, asked.max_new_tokens if asked else None),
        dtype=vlm.dtype,
        min_score_ratio=search.min_score_ratio,
        full_score=scores[0],
        calibration={
            'dataset': dataset.name,
            'images': questions[0].num_scored,
            'sha256': hashes[0],
            'seed': settings.seed,
        },
        created=checkpoint.created,
        software=software(),
        provenance=settings.command or 'gmskip_ros.calibration.calibrate',
        **blocks,
    )


def method_name(settings: CalibrationSettings) -> str:
    """Return what the skip list says of how it was found."""
    search = settings.search
    if settings.intervals:
        return 'fixed-interval'
    if search.method == 'positional':
        return f'positional-from-{search.start}'
    if search.method == 'random':
        return f'random-{search.seed}'
    return search.method if search.tie_order == 'backward' else f'{search.method}-forward-ties'
