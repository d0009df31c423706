"""Methods side by side: each one's skip sets at the same sizes, on the same held-out images.

What is calibrated, chosen and measured, as JSON values; `report.compare_report` shows it.
"""

from __future__ import annotations

import functools
import json
import os
import statistics
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gmskip_ros.calibration.answer_log import skip_set_key
from gmskip_ros.calibration.answering import Answerer
from gmskip_ros.calibration.baseline import baselines_of_evaluation
from gmskip_ros.calibration.checkpoint import Checkpoint, CheckpointFile, plain_settings
from gmskip_ros.calibration.data import (
    Data,
    choose_calibration_samples,
    choose_calibration_samples_in_view,
    load_data,
    record_header,
)
from gmskip_ros.calibration.distributed import Ranks
from gmskip_ros.calibration.errors import CalibrationError
from gmskip_ros.calibration.evaluate import score_note
from gmskip_ros.calibration.likelihood import likeliest_way, reference_texts
from gmskip_ros.calibration.measuring import FIGURES, Evaluator
from gmskip_ros.calibration.methods.fixed_interval import intervals_of_all_sizes
from gmskip_ros.calibration.methods.method import Method
from gmskip_ros.calibration.methods.registry import check_settings, get_method, search_settings
from gmskip_ros.calibration.objective import choose_metrics
from gmskip_ros.calibration.questions import Questions
from gmskip_ros.calibration.result import Calibration
from gmskip_ros.calibration.run import (
    TEST_IMAGES_NAME,
    calibrate,
    data_fingerprint,
    load_checkpoint,
    open_answer_log,
    set_near_tie,
)
from gmskip_ros.calibration.series import prepare_folder, skip_list_path
from gmskip_ros.calibration.settings import (
    CalibrationSettings,
    CompareSettings,
    Listener,
    SearchSettings,
)
from gmskip_ros.calibration.speed import Sample, TimedQuestion, speed_figures, time_round
from gmskip_ros.datasets import Dataset, may_share_pictures
from gmskip_ros.files import write_atomically
from gmskip_ros.machine import machine
from gmskip_ros.skipping import SkipSet, save_skip_list
from gmskip_ros.tasks.scoring import Absent
from gmskip_ros.vlm import CalibrationEngine

FORMAT = 'gmskip/compare/1'
LONG_FACTOR = 2.0  # answers with more tokens than this many times the references' are marked
REPEATING_SHARE = 0.05  # sets of which a larger share of the answers repeats are marked


@dataclass(frozen=True)
class Plan:
    """How one method is calibrated for a comparison: its search, once per seed."""

    method: Method
    search: SearchSettings
    seeds: tuple[int, ...]

    def folder(self, out: Path, seed: int) -> Path:
        """Return the folder of one of its lists."""
        own = out / self.method.name
        return own / f'seed_{seed}' if self.method.uses_seed else own


def check(dataset: Dataset, settings: CompareSettings, test_dataset: Dataset | None = None) -> None:
    """Raise what `compare_methods` raises for settings and datasets that do not work together.

    This needs no model and little time.
    """
    for name in settings.methods:
        method_settings(settings, name)
    choose_metrics([task.name for task in settings.tasks()], settings.metric)
    choose_calibration_samples(dataset, settings, test_dataset)


def method_settings(settings: CompareSettings, name: str) -> SearchSettings:
    """Return a method's phases, policies, protected blocks and options. Raises CalibrationError."""
    own = {option.name for option in get_method(name).options}
    given = {
        'phases': settings.phases,
        'protect': settings.protect,
        **{key: value for key, value in settings.method_options.items() if key in own},
    }
    return search_settings(
        name,
        seed=settings.seed,
        kv=settings.kv,
        **{key: value for key, value in given.items() if value is not None},
    )


def make_plans(settings: CompareSettings, num_blocks: int) -> list[Plan]:
    """Return how each method is calibrated. Raises CalibrationError for one that cannot be."""
    return [_make_plan(settings, name, num_blocks) for name in settings.methods]


def _make_plan(settings: CompareSettings, name: str, num_blocks: int) -> Plan:
    method = get_method(name)
    search = method_settings(settings, name)
    removable = search.removable(num_blocks)
    most = min(len(removable), num_blocks - 1)
    sizes = settings.sizes(num_blocks)
    if method.takes_sparsity:
        # Of the sizes that protected blocks leave no room for, it has the largest possible.
        kept = sorted({min(size, most) / num_blocks for size in sizes})
        search = replace(search, sparsities=tuple(kept))
    else:
        search = replace(
            search,
            min_score_ratio=0.0,
            stops_at_ratio=False,
            max_sparsity=min(max(sizes), most) / num_blocks,
        )
        if 'intervals' in search.options and 'intervals' not in settings.method_options:
            intervals = intervals_of_all_sizes(num_blocks, min(max(sizes), most), removable)
            search = replace(search, options={**search.options, 'intervals': intervals})
    check_settings(search, num_blocks)
    count = settings.num_seeds if method.uses_seed else 1
    return Plan(method, search, tuple(range(settings.seed, settings.seed + count)))


@dataclass
class _Sets:
    """Different skip sets in the order in which they were first asked for; the first is full."""

    skip_sets: list[SkipSet] = field(default_factory=lambda: [SkipSet()])

    def index(self, skip_set: SkipSet) -> int:
        """Return the place of a set, which is added if it is new."""
        if skip_set not in self.skip_sets:
            self.skip_sets.append(skip_set)
        return self.skip_sets.index(skip_set)


def compare_methods(
    vlm: CalibrationEngine,
    dataset: Dataset,
    settings: CompareSettings,
    folder: Path,
    *,
    test_dataset: Dataset | None = None,
    ranks: Ranks | None = None,
    listener: Listener | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Calibrate the methods, measure their sets in turn, and return all figures as JSON values.

    Without `test_dataset` the images to evaluate on are others of `dataset`, as in `calibrate`.
    Skip lists are written below `folder`, one folder per method, and what was found is kept in
    checkpoint files there, from which the same call resumes. With several ranks every process
    makes the same call. Raises Stopped, CalibrationError, DatasetError, TaskError, VlmError; the
    state is saved.
    """
    ranks = ranks or Ranks()
    listener = listener or Listener()
    plans = make_plans(settings, vlm.num_blocks)
    chosen = choose_calibration_samples_in_view(
        vlm, dataset, settings, ranks, listener, test_dataset
    )
    dataset, test_dataset = chosen.dataset, chosen.test_dataset
    data = load_data(vlm, chosen, settings, ranks, listener, should_stop)
    metrics = choose_metrics([task.name for task in settings.tasks()], settings.metric)
    answerer = Answerer(
        vlm,
        data.images,
        ranks,
        batch_size=settings.batch_size,
        memory_bytes=settings.memory_bytes,
        should_stop=should_stop,
    )
    # Made before the searches, so that it refuses before hours are spent.
    evaluator = Evaluator(
        data.test_questions, metrics, answerer, data.images.index_of, settings.seed, 0
    )
    names = [dataset.name, (test_dataset or dataset).name]
    fingerprint = data_fingerprint(vlm, ' and '.join(dict.fromkeys(names)), settings, data, metrics)
    file = CheckpointFile(folder)
    checkpoint = load_checkpoint(file, fingerprint, ranks, free=[TEST_IMAGES_NAME])
    is_same_test = checkpoint.settings.get(TEST_IMAGES_NAME) == fingerprint[TEST_IMAGES_NAME]
    answered = open_answer_log(evaluator, folder, ranks, is_same_test)
    if not is_same_test:
        checkpoint.forget('')  # nearly all of it is about the test images
    checkpoint.settings = plain_settings(fingerprint)

    set_near_tie(answerer, checkpoint, data)

    def save() -> None:
        if ranks.rank == 0:
            file.save(checkpoint)

    def remember(key: str, compute: Callable[[], Any]) -> Any:
        if key not in checkpoint.evaluations:
            checkpoint.evaluations[key] = compute()
            save()
        return checkpoint.evaluations[key]

    sets = _Sets()
    methods: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    for plan in plans:
        found = {}
        for seed in plan.seeds:
            listener.begin(plan.method.name, seed if len(plan.seeds) > 1 else None)
            found[seed] = _calibrate(
                vlm,
                dataset,
                settings,
                plan,
                seed,
                data,
                folder,
                ranks,
                listener,
                should_stop,
                answerer.near_tie,
            )
            rows += _rows(settings, plan, seed, found[seed], sets)
        methods.append(_method_record(plan, found, folder))
    listener.begin(None, None)
    try:
        evaluations = _evaluate(evaluator, answered, checkpoint, sets.skip_sets, remember, listener)
        reference_tokens = tokens_per_reference(
            answerer, data.test_questions, data.images.index_of, remember
        )
        speeds, conditions = _time(
            vlm, settings, data, sets, checkpoint, save, ranks, listener, should_stop
        )
    except Exception:  # not KeyboardInterrupt, which may come between two changes of the state
        save()
        raise
    if ranks.rank == 0:
        for line in evaluations[0].get('score_warnings', ()):  # absent in older checkpoints
            listener.note(f'warning: on the images evaluated: {line}')
    return {
        **_header(vlm, settings, metrics, data, checkpoint.created),
        'dataset': _dataset_record(settings, data),
        'unreadable': list(data.unreadable),
        'score_note': score_note(evaluations[0]),
        'sparsities': list(settings.sparsities),
        'tokens_per_reference': reference_tokens,
        'timing_conditions': conditions,
        'baselines': baselines_of_evaluation(data.test_questions, metrics, evaluations[0]),
        'methods': methods,
        'sets': [
            {
                **_set_record(vlm, skip_set),
                'evaluation': evaluation,
                'speed': speed,
                'marks': marks_of(evaluation, reference_tokens),
            }
            for skip_set, evaluation, speed in zip(sets.skip_sets, evaluations, speeds, strict=True)
        ],
        'rows': rows,
    }


def _calibrate(
    vlm: CalibrationEngine,
    dataset: Dataset,
    settings: CompareSettings,
    plan: Plan,
    seed: int,
    data: Data,
    out: Path,
    ranks: Ranks,
    listener: Listener,
    should_stop: Callable[[], bool],
    near_tie_margin: float | None,
) -> Calibration:
    """Return what a method finds with a seed; rank 0 writes its skip list and its record."""
    folder = plan.folder(out, seed)
    prepare_folder(folder, ranks)
    found = calibrate(
        vlm,
        dataset,
        CalibrationSettings(
            task=settings.task,
            target=settings.target,
            metric=settings.metric,
            prompt=settings.prompt,
            labels=settings.labels,
            match=settings.match,
            max_new_tokens=settings.max_new_tokens,
            images=settings.images,
            seed=settings.seed,
            batch_size=settings.batch_size,
            memory_gib=settings.memory_gib,
            latency_images=0,
            command=settings.command,
            test_images=0,
            search=replace(plan.search, seed=seed),
            force=settings.force,
        ),
        folder,
        ranks=ranks,
        listener=listener,
        should_stop=should_stop,
        data=data.without_test(),
        near_tie_margin=near_tie_margin,
    )
    if ranks.rank == 0:
        save_skip_list(found.skip_list, skip_list_path(found.skip_list, folder))
        content = json.dumps(found.result, indent=1, ensure_ascii=False) + '\n'
        try:
            write_atomically(
                folder / 'calibration.json', content.encode('utf-8', 'backslashreplace')
            )
        except OSError as error:
            raise CalibrationError(
                f'{folder}: cannot be written ({error.strerror}): free some space and run the same '
                'command again'
            ) from error
    return found


def _rows(
    settings: CompareSettings, plan: Plan, seed: int, found: Calibration, sets: _Sets
) -> list[dict[str, Any]]:
    """Return a row per size asked for: the list's set of that size, or its nearest smaller one."""
    num_blocks = found.skip_list.num_blocks
    prefixes = sorted(found.result['prefixes'], key=lambda prefix: prefix['length'])
    rows = []
    for size, sparsity in settings.sizes(num_blocks).items():
        chosen = [prefix for prefix in prefixes if prefix['length'] <= size][-1]
        rows.append(
            {
                'method': plan.method.name,
                'seed': seed if plan.method.uses_seed else None,
                'asked_sparsity': sparsity,
                'asked_blocks': size,
                'num_skipped': chosen['length'],
                'calibration_score': chosen['calibration_score'],
                'set': sets.index(found.skip_list.skip_set_at(chosen['length'])),
            }
        )
    return rows


def _method_record(plan: Plan, found: Mapping[int, Calibration], folder: Path) -> dict[str, Any]:
    first = next(iter(found.values()))
    return {
        'name': plan.method.name,
        'title': plan.method.title or plan.method.name,
        'phases': list(plan.search.phases),
        'kv': plan.search.kv,
        'protect': list(plan.search.protect),
        'options': first.result['options'],
        'nested': first.skip_list.nested,
        'seeds': list(plan.seeds) if plan.method.uses_seed else [],
        'skip_lists': [
            str(skip_list_path(each.skip_list, plan.folder(folder, seed)).relative_to(folder))
            for seed, each in found.items()
        ],
        'stopped_by': first.result['stopped_by'],
        'warnings': list(
            dict.fromkeys(line for each in found.values() for line in each.result['warnings'])
        ),
    }


def _evaluate(
    evaluator: Evaluator,
    answered: Collection[str],
    checkpoint: Checkpoint,
    skip_sets: Sequence[SkipSet],
    remember: Callable[[str, Callable[[], Any]], Any],
    listener: Listener,
) -> list[dict[str, Any]]:
    """Return each set's figures on the test images; only those not yet known are measured."""
    figures = []
    for done, skip_set in enumerate(skip_sets):
        listener.evaluations(done, len(skip_sets))
        key = f'test {FIGURES} with {skip_set_key(skip_set)}'
        if skip_set_key(skip_set) not in answered:
            checkpoint.evaluations.pop(key, None)
        figures.append(remember(key, functools.partial(evaluator.evaluate, skip_set)))
    listener.evaluations(len(skip_sets), len(skip_sets))
    return figures


def _time(
    vlm: CalibrationEngine,
    settings: CompareSettings,
    data: Data,
    sets: _Sets,
    checkpoint: Checkpoint,
    save: Callable[[], None],
    ranks: Ranks,
    listener: Listener,
    should_stop: Callable[[], bool],
) -> tuple[list[dict[str, Any] | None], dict[str, Any] | None]:
    """Return each set's times (see speed_figures), measured by rank 0; None if not asked for.

    And under which conditions: threads, of PyTorch on the CPU; load, in each round, the processes
    that the machine had to run (the mean of the minute before its end).

    Rounds that were measured of exactly these sets are kept: sets are compared only within one run
    of rounds, so one new set means that all are timed again.
    """
    if not settings.latency_images:
        return [None] * len(sets.skip_sets), None
    figures: list[dict[str, Any] | None] = []
    conditions: dict[str, Any] = {}
    if ranks.rank == 0:
        import torch  # here: `gmskip --help` loads this file

        questions = _timed_questions(data, settings.latency_images)
        setup: dict[str, Any] = {
            'sets': [skip_set_key(skip_set) for skip_set in sets.skip_sets],
            'machine': machine(vlm.device),
            'threads': torch.get_num_threads(),
            'questions': [[str(one.path), one.prompt, one.max_new_tokens] for one in questions],
        }
        known = checkpoint.evaluations.get('times') or {}
        if {name: known.get(name) for name in setup} != setup:
            known = checkpoint.evaluations['times'] = {**setup, 'rounds': [], 'load': []}
        rounds: list[list[list[Sample]]] = known['rounds']
        per_round = len(questions) * len(sets.skip_sets)
        total = per_round * settings.latency_rounds
        done = len(rounds) * per_round

        def show() -> None:
            nonlocal done
            done += 1
            listener.timings(min(done, total), total)

        if len(rounds) < settings.latency_rounds:
            # Not counted: the first answer of each set includes the start of libraries.
            time_round(vlm, questions[:1], sets.skip_sets, 0, should_stop=should_stop)
        while len(rounds) < settings.latency_rounds:
            number = len(rounds)
            rounds.append(time_round(vlm, questions, sets.skip_sets, number, show, should_stop))
            known['load'].append(os.getloadavg()[0])
            save()
        used = rounds[: settings.latency_rounds]
        samples = [
            [sample for one_round in used for sample in one_round[index]]
            for index in range(len(sets.skip_sets))
        ]
        figures = [speed_figures(of_set, samples[0], len(questions)) for of_set in samples]
        conditions = {'threads': known['threads'], 'load': known['load'][: len(used)]}
    return ranks.of_first((figures, conditions))


def _timed_questions(data: Data, count: int) -> list[TimedQuestion]:
    """Return the first scored test questions, alternating between tasks, each about its image."""
    longest = max(questions.num_scored for questions in data.test_questions)
    return [
        TimedQuestion(
            questions.samples[i].image_path, questions.prompts[i], questions.max_new_tokens
        )
        for i in range(longest)
        for questions in data.test_questions
        if i < questions.num_scored
    ][:count]


def tokens_per_reference(
    answerer: Answerer,
    questions: Sequence[Questions],
    index_of: Mapping[Path, int],
    remember: Callable[[str, Callable[[], Any]], Any],
) -> float | None:
    """Return the mean length in tokens of the right answers, as the model would write them.

    Those of a task are written in the way that is likeliest to the full model, which is asked about
    the first text of each question: see `likelihood.likeliest_way`, also for `remember`. Of several
    right texts about an image the mean counts. Images without the target have no right answer. None
    without any. index_of: the image of a sample by its path. Raises what likeliest_way raises.
    """
    lengths = []
    for of_task in questions:
        texts = {
            i: [text for text in reference_texts(of_task, i) if text]
            for i, reference in enumerate(of_task.references)
            if not isinstance(reference, Absent)
        }
        written = {i: of_question for i, of_question in texts.items() if of_question}
        if not written:
            continue
        first = [
            (index_of[of_task.samples[i].image_path], of_task.prompts[i], of_question[0])
            for i, of_question in written.items()
        ]
        way, _ = likeliest_way(answerer, of_task.name, first, remember)
        lengths += [
            statistics.fmean(len(answerer.vlm.token_ids(way.write(text))) for text in of_question)
            for of_question in written.values()
        ]
    return statistics.fmean(lengths) if lengths else None


def marks_of(evaluation: Mapping[str, Any], reference_tokens: float | None) -> list[str]:
    """Return what is odd about a set's answers: 'long', 'repeats'.

    long: they have more than LONG_FACTOR times the references' tokens. repeats: more than
    REPEATING_SHARE of them contain a loop, see `repetition.repeats`.
    """
    marks = []
    tokens = evaluation['tokens_per_answer']
    if reference_tokens is not None and tokens > LONG_FACTOR * reference_tokens:
        marks.append('long')
    if evaluation['repeating_share'] > REPEATING_SHARE:
        marks.append('repeats')
    return marks


def _set_record(vlm: CalibrationEngine, skip_set: SkipSet) -> dict[str, Any]:
    """Return a set and the share of block multiplications that it saves in each phase."""
    # Whatever the prompt: in each of these sets all tokens of a phase do the same.
    prefill, decode = vlm.sparsity(skip_set, num_image_tokens=0, num_tokens=1)
    return {
        'prefill': sorted(skip_set.prefill),
        'decode': sorted(skip_set.decode),
        'kv': skip_set.kv,
        'num_skipped': len(skip_set.blocks),
        'sparsity': {'prefill': prefill, 'decode': decode},
    }


def _header(
    vlm: CalibrationEngine,
    settings: CompareSettings,
    metrics: Sequence[str],
    data: Data,
    started: str,
) -> dict[str, Any]:
    prompts = {prompt for questions in data.test_questions for prompt in questions.prompts}
    return {
        **record_header(FORMAT, vlm, settings, metrics, data.test_questions),
        'started': started,
        'prompt': prompts.pop() if len(prompts) == 1 else None,
        'latency_images': settings.latency_images,
        'latency_rounds': settings.latency_rounds,
    }


def _dataset_record(settings: CompareSettings, data: Data) -> dict[str, Any]:
    chosen = data.chosen
    dataset, test_dataset = chosen.dataset, chosen.test_dataset
    assert chosen.counts is not None and chosen.test_counts is not None
    datasets = [dataset] if test_dataset is None else [dataset, test_dataset]
    tested = datasets[-1]
    warnings = [line for one in datasets for line in one.warnings]
    if test_dataset is not None and may_share_pictures(dataset.name, test_dataset.name):
        warnings.append(
            f'{dataset.name} and {test_dataset.name} may have images in common: some of those '
            'evaluated may have been calibrated on'
        )
    return {
        'name': dataset.name if test_dataset is None else f'{dataset.name} and {tested.name}',
        'chosen': chosen.line,
        'notes': [line for one in datasets for line in one.notes],
        'warnings': warnings,
        'labels_outside_view': sum(one.labels_outside_view for one in datasets),
        'calibration': {
            'name': dataset.name,
            'images': data.questions[0].num_images,
            **chosen.counts.as_record(),
            'sha256': data.sha256,
            'seed': settings.seed,
        },
        'test': {
            'name': tested.name,
            'images': data.test_questions[0].num_images,
            **chosen.test_counts.as_record(),
            'sha256': data.test_sha256,
        },
    }
