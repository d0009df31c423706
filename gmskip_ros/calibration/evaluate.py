"""Skip sets side by side on held-out images: the figures that `gmskip evaluate` prints."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gmskip_ros.calibration.answer_files import AnswerFiles
from gmskip_ros.calibration.answer_log import AnswerLog
from gmskip_ros.calibration.answering import Answerer, ImageQuestion
from gmskip_ros.calibration.baseline import baselines_of_evaluation
from gmskip_ros.calibration.choosing import (
    Chosen,
    choose,
    choose_unanswered,
    value_of_first,
)
from gmskip_ros.calibration.data import Data, load_data, record_header
from gmskip_ros.calibration.distributed import Ranks
from gmskip_ros.calibration.errors import CalibrationError
from gmskip_ros.calibration.measuring import Evaluator
from gmskip_ros.calibration.methods.fixed_interval import INTERVALS, fixed_interval
from gmskip_ros.calibration.methods.registry import METHODS
from gmskip_ros.calibration.objective import choose_metrics
from gmskip_ros.calibration.questions import Questions, choose_question_samples
from gmskip_ros.calibration.settings import EvaluationSettings, Listener
from gmskip_ros.datasets import Dataset, DatasetError, Sample, may_share_pictures, sample_hash
from gmskip_ros.numbers import is_whole_number
from gmskip_ros.skipping import SkipList, SkipSet
from gmskip_ros.tasks import TaskError
from gmskip_ros.vlm import CalibrationEngine
from gmskip_ros.vlm.engine import settings_in_use

FORMAT = 'gmskip/evaluation/1'
CIDER_NOTE = (
    'CIDEr: document frequencies are those of the references of these {images} images; do not '
    'compare it with CIDEr on a different number of images.'
)


@dataclass(frozen=True)
class NamedSet:
    """A row of the table: a skip set and its name."""

    name: str
    skip_set: SkipSet
    blocks: tuple[int, ...]  # skipped in any phase; a list's in their order of removal
    source: str | None = None  # the skip list's name or file


def without_calibration_images(
    dataset: Dataset,
    skip_lists: Mapping[str, SkipList],
    settings: EvaluationSettings,
    print_line: Callable[[str], None] = print,
) -> Dataset:
    """Return the dataset without the images that a skip list was calibrated on.

    A list records its dataset's name, seed, number of images and their hash. The images that these
    and the task options in use give are removed if their hash is the list's. If it is not, or if a
    different dataset may share images with this one, a line says so. Raises CalibrationError if no
    image is left.
    """
    removed: set[Path] = set()
    for name, skip_list in skip_lists.items():
        calibrated_on = str((skip_list.calibration or {}).get('dataset'))
        if not may_share_pictures(calibrated_on, dataset.name):
            continue
        is_same = calibrated_on == dataset.name
        samples = calibration_samples(dataset, skip_list, settings) if is_same else None
        if samples is None:
            print_line(
                f'warning: {name} was calibrated on images of {calibrated_on}; which ones cannot '
                'be determined from these files and options, so some of them may be evaluated'
            )
            continue
        paths = {sample.image_path for sample in samples}
        print_line(f'{len(paths)} images that {name} was calibrated on are skipped')
        removed |= paths
    kept = tuple(sample for sample in dataset.samples if sample.image_path not in removed)
    if not kept:
        raise CalibrationError(
            f'{dataset.name}: every image was calibrated on: evaluate on a different split, or '
            'calibrate on fewer --images'
        )
    return replace(dataset, samples=kept)


def calibration_samples(
    dataset: Dataset, skip_list: SkipList, settings: EvaluationSettings
) -> list[Sample] | None:
    """Return what a list was calibrated on if the hash confirms it; None if it is unknown."""
    calibration = skip_list.calibration or {}
    images, seed = calibration.get('images'), calibration.get('seed')
    if not is_whole_number(images) or not is_whole_number(seed):
        return None
    try:
        match = skip_list.match or settings.match
        tasks = replace(settings, task=skip_list.task, target=skip_list.target, match=match).tasks()
        samples, _ = choose_question_samples(dataset, tasks, images, 0, seed)
        is_same = sample_hash(samples) == calibration.get('sha256')
    except (CalibrationError, DatasetError, TaskError):
        return None
    return samples if is_same else None


def choose_sets(
    num_blocks: int, skip_lists: Mapping[str, SkipList], settings: EvaluationSettings
) -> list[NamedSet]:
    """Return the rows of the table: full, fixed intervals, skip lists; equal sets share a row.

    Where a row does not skip in prefill and decode alike, the names of all state their phases.
    """
    intervals: Sequence[int] | None = settings.intervals
    if intervals is None:
        intervals = [interval for interval in INTERVALS if interval < num_blocks - 1]
    points = [
        (name, skip_list, point, skip_list.skip_set_at(point))
        for name, skip_list in skip_lists.items()
        for point in settings.operating_points
    ]
    all_plain = all(skip_set.is_plain for *_, skip_set in points)

    def with_remarks(title: str, skip_set: SkipSet, file: str = '') -> str:
        phases = skip_set.manner or ('' if all_plain else ','.join(skip_set.by_phases))
        remarks = '; '.join(filter(None, (phases, file)))
        return f'{title} ({remarks})' if remarks else title

    named = [NamedSet('Full', SkipSet(), ())]
    for interval in intervals:
        blocks = fixed_interval(num_blocks, interval)
        skip_set = SkipSet.of(blocks)
        title = with_remarks(f'Fixed interval {interval}', skip_set)
        named.append(NamedSet(title, skip_set, blocks))
    files = _told_apart(list(skip_lists))
    for name, skip_list, point, skip_set in points:
        file = files[name] if len(skip_lists) > 1 else ''
        title = f'{_method_title(skip_list.method)} {_point_title(point)}'
        title = with_remarks(title, skip_set, file)
        named.append(NamedSet(title, skip_set, skip_list.blocks_at(point), name))
    rows: dict[tuple[frozenset[int] | str, ...], NamedSet] = {}
    for row in named:
        key = (row.skip_set.prefill, row.skip_set.decode, row.skip_set.image, row.skip_set.manner)
        if key in rows:
            first = rows[key]
            name = f'{first.name}, {row.name}'
            row = replace(first, name=name, source=first.source or row.source)
        rows[key] = row
    return list(rows.values())


def _told_apart(names: Sequence[str]) -> dict[str, str]:
    """Return each file's name, with as many folders before it as tell it from the others."""
    ends = {
        name: ['/'.join(parts[-count:]) for count in range(1, len(parts) + 1)]
        for name in names
        for parts in [Path(name).parts]
    }
    count = Counter(end for each in ends.values() for end in each)
    return {
        name: next((end for end in each if count[end] == 1), name) for name, each in ends.items()
    }


def _method_title(list_name: str) -> str:
    title = METHODS[list_name].title if list_name in METHODS else ''
    return title or list_name[:1].upper() + list_name[1:]


def _point_title(point: str) -> str:
    if point.isdecimal():
        return f'{point} block{"" if int(point) == 1 else "s"}'
    return point.replace('_', ' ')


def evaluate_all(
    vlm: CalibrationEngine,
    dataset: Dataset,
    settings: EvaluationSettings,
    skip_lists: Mapping[str, SkipList],
    ranks: Ranks | None = None,
    listener: Listener | None = None,
    print_line: Callable[[str], None] = print,
    answer_files: AnswerFiles | None = None,
    log: AnswerLog | None = None,
) -> dict[str, Any]:
    """Return the figures of every row as JSON values, in the form of evaluation.json.

    The dataset may hold images that a list was calibrated on: see without_calibration_images.
    `print_line` receives warnings; rank 0 writes the answers to `answer_files` and `log`. With
    several ranks every process makes the same call, but only the first needs the dataset. Raises
    CalibrationError, DatasetError, TaskError, SkipListError, VlmError.
    """
    ranks, listener = ranks or Ranks(), listener or Listener()
    sets = choose_sets(vlm.num_blocks, skip_lists, settings)
    metrics = choose_metrics([task.name for task in settings.tasks()], settings.metric)
    chosen = value_of_first(ranks, lambda: choose(dataset, settings, 0, settings.images))
    if chosen.is_short:
        print_line(chosen.line)
    if answer_files is not None:
        _note_unanswered(chosen, print_line)
    data = load_data(vlm, chosen, settings, ranks, listener)
    for reason in data.unreadable.values():
        print_line(f'unreadable, skipped: {reason}')
    warnings = list_warnings(vlm, skip_lists, settings, data.test_questions, metrics)
    for warning in warnings:
        print_line(f'warning: {warning}')
    names = iter([named.name for named in sets for _ in data.test_questions])

    def write(questions: Questions, texts: list[str]) -> None:
        if answer_files is not None and ranks.rank == 0:
            answer_files.write(next(names), questions, texts)

    evaluator = Evaluator(
        data.test_questions,
        metrics,
        _answerer(vlm, data, settings, ranks),
        data.images.index_of,
        settings.seed,
        settings.latency_images,
        write,
    )
    if ranks.rank == 0:
        evaluator.log = log
    rows = _evaluate_rows(evaluator, sets, vlm.num_blocks, listener)
    num_image_tokens, num_tokens = _prompt_tokens(vlm, data)
    for row, named in zip(rows, sets, strict=True):
        prefill, decode = vlm.sparsity(named.skip_set, num_image_tokens, num_tokens)
        row['saved'] = {'prefill': prefill, 'decode': decode}
    for reason in rows[0]['evaluation']['score_warnings']:
        print_line(f'warning: {reason}')
    return {**_record(vlm, settings, metrics, data, rows), 'warnings': warnings}


def _note_unanswered(chosen: Chosen, print_line: Callable[[str], None]) -> None:
    counts = chosen.test_counts
    if counts is not None and counts.used < counts.found:
        print_line(
            f'{counts.used:,} of {counts.found:,} questions are answered: a judge of all of them '
            f'needs --images {counts.found}'
        )


def _answerer(
    vlm: CalibrationEngine, data: Data, settings: EvaluationSettings, ranks: Ranks
) -> Answerer:
    return Answerer(
        vlm,
        data.images,
        ranks,
        batch_size=settings.batch_size,
        memory_bytes=settings.memory_bytes,
    )


def answer_all(
    vlm: CalibrationEngine,
    dataset: Dataset,
    settings: EvaluationSettings,
    skip_lists: Mapping[str, SkipList],
    ranks: Ranks,
    listener: Listener,
    print_line: Callable[[str], None],
    answer_files: AnswerFiles,
) -> None:
    """Answer questions that have no right answers, which cannot be scored, under every skip set.

    Like evaluate_all, but for the figures.
    """
    sets = choose_sets(vlm.num_blocks, skip_lists, settings)
    chosen = value_of_first(ranks, lambda: choose_unanswered(dataset, settings))
    if chosen.is_short:
        print_line(chosen.line)
    _note_unanswered(chosen, print_line)
    data = load_data(vlm, chosen, settings, ranks, listener)
    for reason in data.unreadable.values():
        print_line(f'unreadable, skipped: {reason}')
    for warning in list_warnings(vlm, skip_lists, settings, data.test_questions):
        print_line(f'warning: {warning}')
    (questions,) = data.test_questions
    index_of = data.images.index_of
    asked = [
        ImageQuestion(index_of[sample.image_path], prompt)
        for sample, prompt in zip(questions.samples, questions.prompts, strict=True)
    ]
    answerer = _answerer(vlm, data, settings, ranks)
    for done, named in enumerate(sets):
        listener.evaluations(done, len(sets))
        answers = answerer.answers(asked, named.skip_set, max_new_tokens=questions.max_new_tokens)
        if ranks.rank == 0:
            answer_files.write(named.name, questions, [answer.text for (answer,) in answers])
    listener.evaluations(len(sets), len(sets))


def _evaluate_rows(
    evaluator: Evaluator, sets: Sequence[NamedSet], num_blocks: int, listener: Listener
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for done, named in enumerate(sets):
        listener.evaluations(done, len(sets))
        rows.append(
            {
                'name': named.name,
                'source': named.source,
                'blocks': list(named.blocks),
                'phases': {
                    phases: list(blocks) for phases, blocks in named.skip_set.by_phases.items()
                },
                'kv': named.skip_set.kv,
                'image_kv': named.skip_set.image_kv,
                'sparsity': len(named.blocks) / num_blocks,
                'evaluation': evaluator.evaluate(named.skip_set),
            }
        )
    listener.evaluations(len(sets), len(sets))
    return rows


def _prompt_tokens(vlm: CalibrationEngine, data: Data) -> tuple[int, int]:
    """Return the image tokens and all tokens of the first question's prompt, which stands for all.

    What a set saves depends on them only where image tokens skip more blocks than others.
    """
    questions = data.test_questions[0]
    features = data.images[data.images.index_of[questions.samples[0].image_path]]
    return features.num_tokens, len(vlm.input_ids(questions.prompts[0], features))


def _record(
    vlm: CalibrationEngine,
    settings: EvaluationSettings,
    metrics: Sequence[str],
    data: Data,
    rows: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    dataset, counts = data.chosen.dataset, data.chosen.test_counts
    assert counts is not None
    first = rows[0]['evaluation']
    samples = data.test_questions[0].samples
    return {
        **record_header(FORMAT, vlm, settings, metrics, data.test_questions),
        'prompt': _common_prompt(data.test_questions),
        'dataset': {
            'name': dataset.name,
            'chosen': data.chosen.line,
            'notes': list(dataset.notes),
            'warnings': list(dataset.warnings),
            'labels_outside_view': dataset.labels_outside_view,
            'test': {
                'images': len({sample.image_path for sample in samples}),
                **counts.as_record(),
                'sha256': data.test_sha256,
                'seed': settings.seed,
            },
        },
        'unreadable': list(data.unreadable),
        'score_note': score_note(first),
        'baselines': baselines_of_evaluation(data.test_questions, metrics, first),
        'rows': list(rows),
    }


def _common_prompt(questions: Sequence[Questions]) -> str | None:
    """Return the prompt of all questions (for presence with {label}); None where they differ."""
    prompts = {of_task.common_prompt for of_task in questions}
    return prompts.pop() if len(prompts) == 1 else None


def score_note(evaluation: Mapping[str, Any]) -> str | None:
    """Return the note about CIDEr among the scores of an evaluation (see Evaluator.evaluate)."""
    if not any(name.endswith('cider') for name in evaluation['scores']):
        return None
    return CIDER_NOTE.format(images=evaluation['images'])


def list_warnings(
    vlm: CalibrationEngine,
    skip_lists: Mapping[str, SkipList],
    settings: EvaluationSettings,
    questions: Sequence[Questions],
    metrics: Sequence[str] = (),
) -> list[str]:
    """Return one line for each way in which a list was calibrated for something else.

    Each begins with the list's name, and a list's own warnings come first. `metrics`: of the
    evaluation, if it is scored.
    """
    return [
        f'{name}: {line}'
        for name, skip_list in skip_lists.items()
        for line in _warnings_of(vlm, skip_list, settings, questions, ', '.join(metrics))
    ]


def _warnings_of(
    vlm: CalibrationEngine,
    skip_list: SkipList,
    settings: EvaluationSettings,
    questions: Sequence[Questions],
    metric: str,
) -> list[str]:
    stated = skip_list.prompt
    lengths = {of_task.max_new_tokens for of_task in questions}
    warnings = skip_list.warnings_for(
        **settings_in_use(vlm),
        # Several questions have no single prompt to compare: the list's own gives no warning.
        prompt=_common_prompt(questions) or stated.text or '',
        max_new_tokens=lengths.pop() if len(lengths) == 1 else stated.max_new_tokens or 0,
        task=settings.task,
        match=settings.used_match,
    )
    if skip_list.target is not None and skip_list.target != settings.target:
        used = 'no target' if settings.target is None else f'target {settings.target!r}'
        warnings.append(f'calibrated for target {skip_list.target!r}, evaluated with {used}')
    searched_by = skip_list.metric
    if searched_by and metric and skip_list.task == settings.task and searched_by != metric:
        warnings.append(
            f'calibrated by {searched_by}, evaluated by {metric}: the scores in the list are those '
            f'of --metric {searched_by.replace(" ", "")}'
        )
    return warnings
