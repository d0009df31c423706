"""One calibration, from a dataset to a skip list and all figures for its report."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from gmskip_ros.calibration.answer_log import AnswerLog, skip_set_key
from gmskip_ros.calibration.answering import Answerer, ImageQuestion
from gmskip_ros.calibration.baseline import baselines, baselines_of_evaluation
from gmskip_ros.calibration.checkpoint import (
    REMEDY,
    Checkpoint,
    CheckpointFile,
    plain_settings,
)
from gmskip_ros.calibration.data import (
    Data,
    choose_calibration_samples,
    choose_calibration_samples_in_view,
    load_data,
)
from gmskip_ros.calibration.distributed import Ranks
from gmskip_ros.calibration.errors import CalibrationError
from gmskip_ros.calibration.guidance import (
    Guidance,
    constant_warnings,
    guidance_lines,
    guidance_of,
    left_out_warnings,
    refuse,
)
from gmskip_ros.calibration.measuring import FIGURES, Evaluator
from gmskip_ros.calibration.methods.method import Method
from gmskip_ros.calibration.methods.registry import check_settings, get_method
from gmskip_ros.calibration.objective import Objective, choose_metrics, make_objective
from gmskip_ros.calibration.questions import label_set
from gmskip_ros.calibration.result import Calibration, Facts, make_calibration
from gmskip_ros.calibration.round_log import RoundLog
from gmskip_ros.calibration.scoring import Scorer, set_key
from gmskip_ros.calibration.settings import (
    CalibrationSettings,
    Listener,
    SearchSettings,
    SharedSettings,
)
from gmskip_ros.calibration.trajectory import ScoredSet, SearchState
from gmskip_ros.datasets import Dataset
from gmskip_ros.machine import software
from gmskip_ros.skipping import Prompt
from gmskip_ros.vlm import CalibrationEngine

NEAR_TIE_ANSWERS = 20  # that a model's own margin is measured on
NEAR_TIE_KEY = 'near tie margin'  # among a checkpoint's evaluations
# Names in the `fingerprint`.
TEST_IMAGES_NAME = 'test pictures (sha256)'
TEST_NAMES = (TEST_IMAGES_NAME, 'latency_images')  # nothing that a search finds depends on them
RATIO_NAME = 'search min_score_ratio'


def check(
    dataset: Dataset, settings: CalibrationSettings, test_dataset: Dataset | None = None
) -> None:
    """Raise what `calibrate` raises for settings and datasets that do not work together.

    This needs no model and little time.
    """
    choose_metrics([task.name for task in settings.tasks()], settings.metric)
    choose_calibration_samples(dataset, settings, test_dataset)


def calibrate(
    vlm: CalibrationEngine,
    dataset: Dataset,
    settings: CalibrationSettings,
    folder: Path,
    *,
    test_dataset: Dataset | None = None,
    ranks: Ranks | None = None,
    listener: Listener | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    data: Data | None = None,
    near_tie_margin: float | None = None,
) -> Calibration:
    """Choose the blocks to skip, test the sets on held-out images, and return all that was found.

    `data`, where several calibrations share it: questions about samples of `dataset`, used in
    place of choosing and encoding images; and `near_tie_margin`, as measured.

    The state is kept in `folder`/checkpoint.json, from which the same call resumes. With several
    ranks every process makes the same call, but only the first needs the datasets. `should_stop` is
    polled before every block of every answer. Raises Stopped, CalibrationError, DatasetError,
    TaskError, VlmError; the state is saved.
    """
    ranks = ranks or Ranks()
    listener = listener or Listener()
    method = get_method(settings.search.method)
    check_settings(settings.search, vlm.num_blocks)
    if data is None:
        chosen_samples = choose_calibration_samples_in_view(
            vlm, dataset, settings, ranks, listener, test_dataset
        )
        data = load_data(vlm, chosen_samples, settings, ranks, listener, should_stop)
    metrics = choose_metrics([task.name for task in settings.tasks()], settings.metric)
    image_of = data.images.index_of
    objective = make_objective(data.questions, metrics, image_of, settings.seed)
    answerer = Answerer(
        vlm,
        data.images,
        ranks,
        'alone' if settings.exhaustive else 'walk',
        settings.batch_size,
        settings.memory_bytes,
        should_stop,
    )
    evaluator = None  # made before the search, so that it refuses before hours are spent
    if data.test_questions:
        evaluator = Evaluator(
            data.test_questions,
            metrics,
            answerer,
            image_of,
            settings.seed,
            settings.latency_images,
        )
    file = CheckpointFile(folder)
    of_run = fingerprint(vlm, data.chosen.dataset.name, settings, method, data, metrics)
    checkpoint = load_checkpoint(file, of_run, ranks, free=extent_names(method))
    is_same_test = extend(checkpoint, of_run)
    answered = open_answer_log(evaluator, folder, ranks, is_same_test)

    scorer = resumed_scorer(
        objective, answerer, settings.search, checkpoint, file, listener, method.num_candidates
    )
    check_rounds(scorer, file)
    log = RoundLog(scorer, folder, listener)

    def save(state: SearchState, is_round: bool) -> None:
        if ranks.rank == 0:
            file.save(checkpoint, now=is_round)
            if is_round and state.full:
                log.update()

    try:
        set_near_tie(answerer, checkpoint, data, near_tie_margin)
        scorer.score_full()
        calibration_baselines = baselines(data.questions, metrics, scorer.full_scores)
        guidance = report_guidance(scorer, calibration_baselines, listener)
        forced = refuse(guidance, settings.force)
        if ranks.rank == 0:
            listener.full_score(float(scorer.full_score))
            log.begin()
            scorer.on_resumed, scorer.on_round = listener.resumed, log.add
        scorer.on_save = save
        chosen = method.choose(scorer)
        warnings = [
            *constant_warnings(guidance, calibration_baselines),
            *left_out_warnings([part.task for part in guidance], metrics, scorer.full_scores),
            *_warn_of_no_effect(scorer),
            *chosen.warnings,
        ]
        chosen = replace(chosen, warnings=tuple(warnings))
        tests = _test(evaluator, answered, scorer, chosen.sets, listener)
    except Exception:  # not KeyboardInterrupt, which may come between two changes of the state
        scorer.on_save(scorer.state, True)
        raise
    facts = _facts(vlm, settings, method, data, metrics, checkpoint.created)
    facts = replace(facts, near_tie_margin=answerer.near_tie)
    test_baselines = None
    if tests[0] is not None:
        if ranks.rank == 0:
            for line in tests[0].get('score_warnings', ()):  # absent in older checkpoints
                listener.note(f'warning: on the test images: {line}')
        test_baselines = baselines_of_evaluation(data.test_questions, metrics, tests[0])
    return make_calibration(
        facts,
        settings,
        chosen,
        tests,
        scorer.rounds,
        guidance,
        forced,
        calibration_baselines,
        test_baselines,
    )


def report_guidance(
    scorer: Scorer, known: Mapping[str, Any] | None, listener: Listener
) -> list[Guidance]:
    """Return whether each part of the score can guide a search; rank 0 reports what it rests on.

    `known`: of baseline.baselines. Raises what guidance_of raises.
    """
    guidance = guidance_of(scorer)
    if scorer.answerer.ranks.rank == 0:
        for line in guidance_lines(guidance, known):
            listener.note(line)
    return guidance


def resumed_scorer(
    objective: Objective,
    answerer: Answerer,
    search: SearchSettings,
    checkpoint: Checkpoint,
    file: CheckpointFile,
    listener: Listener,
    num_candidates: Callable[[int], int] = lambda num_retained: 1,
) -> Scorer:
    """Return a scorer that goes on from a checkpoint, and keeps it in the file (by rank 0)."""

    def save(state: SearchState, is_round: bool) -> None:
        if answerer.ranks.rank == 0:
            file.save(checkpoint, now=is_round)

    return Scorer(
        objective,
        answerer,
        search,
        checkpoint.search,
        listener.search,
        save,
        checkpoint.evaluations,
        num_candidates,
    )


def set_near_tie(
    answerer: Answerer,
    checkpoint: Checkpoint,
    data: Data,
    margin: float | None = None,
) -> None:
    """Let the answerer use the margin that the checkpoint has, else `margin`, else measure it.

    It is measured on the first questions, and saved with the next state.
    """
    known = checkpoint.evaluations
    if NEAR_TIE_KEY not in known:
        if margin is None:
            asked = [
                (
                    ImageQuestion(data.images.index_of[sample.image_path], prompt),
                    questions.max_new_tokens,
                )
                for questions in data.questions
                for sample, prompt in zip(
                    questions.samples[: -(-NEAR_TIE_ANSWERS // len(data.questions))],
                    questions.prompts,
                    strict=False,
                )
            ]
            margin = answerer.measure_near_tie(asked)
        known[NEAR_TIE_KEY] = margin
    answerer.near_tie = known[NEAR_TIE_KEY]


def _warn_of_no_effect(scorer: Scorer) -> list[str]:
    """Return a line if skipping in the phases in use cannot change any answer."""
    if scorer.settings.phases != ('decode',) or scorer.decodes():
        return []
    return [
        'phases decode: no answer of the full model on the calibration images has a token that '
        'decode processes, so no set changes an answer there: use longer answers '
        '(--max-new-tokens) or --phases prefill'
    ]


def _test(
    evaluator: Evaluator | None,
    answered: Collection[str],
    scorer: Scorer,
    sets: Sequence[ScoredSet],
    listener: Listener,
) -> list[dict[str, Any] | None]:
    """Return each set's figures on the test images; None without a test.

    answered: the sets whose answers an earlier run has kept, by skip_set_key. Others are asked.
    """
    figures: list[dict[str, Any] | None] = []
    for done, scored in enumerate(sets):
        listener.evaluations(done, len(sets))
        if evaluator is None:
            figures.append(None)
            continue
        skip_set = scorer.skip_set(scored.blocks)
        key = f'test {FIGURES} without {set_key(scored.blocks)}'
        if skip_set_key(skip_set) not in answered:
            scorer.forget(key)
        figures.append(scorer.remember(key, functools.partial(evaluator.evaluate, skip_set)))
    listener.evaluations(len(sets), len(sets))
    return figures


def fingerprint(
    vlm: CalibrationEngine,
    dataset_name: str,
    settings: CalibrationSettings,
    method: Method,
    data: Data,
    metrics: Sequence[str],
) -> dict[str, Any]:
    """Return all that the result depends on; not devices, processes, batches or progress bars."""
    search = settings.search
    return {
        **data_fingerprint(vlm, dataset_name, settings, data, metrics),
        'search method': search.method,
        'search seed': search.seed,
        'search min_score_ratio': search.min_score_ratio if search.stops_at_ratio else None,
        'search max_sparsity': search.max_sparsity,
        'search rounds': search.rounds,
        'search phases': list(search.phases),
        'search kv': search.kv,
        'search protect': list(search.protect),
        'search sparsities': list(search.sparsities),
        **{f'search {name}': value for name, value in method.options_of(search).items()},
        'exhaustive': settings.exhaustive,
        'latency_images': settings.latency_images,
    }


def data_fingerprint(
    vlm: CalibrationEngine,
    dataset_name: str,
    settings: SharedSettings,
    data: Data,
    metrics: Sequence[str],
) -> dict[str, Any]:
    """Return what every answer and score depends on: the model, the questions, the software."""
    prompts = sorted({prompt for questions in data.questions for prompt in questions.prompts})
    return {
        'model': vlm.name,
        'weights (sha256)': vlm.weights_sha256(),  # a folder may hold a newer model by now
        'num_blocks': vlm.num_blocks,
        'template_sha256': vlm.template_sha256,
        'dtype': vlm.dtype,
        'quantization': vlm.quantization,
        'image_fit': vlm.image_fit,
        'max_image_tokens': vlm.max_image_tokens,
        'dataset': dataset_name,
        'calibration pictures (sha256)': data.sha256,
        'test pictures (sha256)': data.test_sha256,
        'task': settings.task,
        'target': settings.target,
        'metric': list(metrics),
        'prompts': prompts if len(prompts) < 4 else _sha256('\n'.join(prompts)),
        'labels': [
            list(questions.task.labels) if questions.task else None for questions in data.questions
        ],
        'match': settings.match,
        'max_new_tokens': [questions.max_new_tokens for questions in data.questions],
        'seed': settings.seed,
        'software': software(),
    }


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()


def extent_names(method: Method) -> set[str]:
    """Return those of the `fingerprint` that only say how far a method goes, and what is tested.

    A run with different ones goes on from what an earlier run has found.
    """
    limits = ('search max_sparsity', 'search rounds', 'search sparsities')
    options = (f'search {option.name}' for option in method.options if option.is_extent)
    return {RATIO_NAME, *limits, *options, *TEST_NAMES}


def extend(checkpoint: Checkpoint, of_run: Mapping[str, Any]) -> bool:
    """Let a checkpoint go on with this run's `extent_names`; return if the test is the same."""
    then = checkpoint.settings
    if then.get(RATIO_NAME) != of_run[RATIO_NAME] or (
        bool(then.get('search sparsities')) != bool(of_run['search sparsities'])
    ):
        checkpoint.search.reopen()
    is_same_test = all(then.get(name) == of_run[name] for name in TEST_NAMES)
    if not is_same_test:
        checkpoint.forget('test ')
    checkpoint.settings = plain_settings(of_run)
    return is_same_test


def open_answer_log(
    evaluator: Evaluator | None, folder: Path, ranks: Ranks, is_same_test: bool
) -> set[str]:
    """Let the evaluator's answers be kept in the folder; return the skip sets that are there."""
    keys: set[str] = set()
    if evaluator is not None and ranks.rank == 0:
        evaluator.log = AnswerLog(folder, resumes=is_same_test)
        keys = evaluator.log.keys
    return ranks.of_first(keys)


def check_rounds(scorer: Scorer, file: CheckpointFile) -> None:
    """Raise CalibrationError if an earlier run has removed blocks that this run's ratio keeps."""
    for done in scorer.rounds:
        score = float(done.score)
        if done.removed is not None and not scorer.settings.allows_score(
            score, float(scorer.full_score)
        ):
            raise CalibrationError(
                f'{file.path}: has removed block {done.removed} at a score of {score:g}, below '
                f'{scorer.settings.min_score_ratio:g} x the full score: {REMEDY}, or cut the list '
                'with gmskip skiplist reselect'
            )


def load_checkpoint(
    file: CheckpointFile,
    settings: Mapping[str, Any],
    ranks: Ranks,
    free: Collection[str] = (),
) -> Checkpoint:
    """Return rank 0's checkpoint in every process; see CheckpointFile.load."""
    loaded: Checkpoint | CalibrationError | None = None
    if ranks.rank == 0:
        try:
            loaded = file.load(settings, free)
        except CalibrationError as error:
            loaded = error
    loaded = ranks.of_first(loaded)
    if isinstance(loaded, CalibrationError):
        raise loaded
    assert loaded is not None
    return loaded


def _facts(
    vlm: CalibrationEngine,
    settings: CalibrationSettings,
    method: Method,
    data: Data,
    metrics: Sequence[str],
    created: str,
) -> Facts:
    """Return what the skip list and the record state."""
    chosen = data.chosen
    datasets = [chosen.dataset, *filter(None, [chosen.test_dataset])]
    assert chosen.counts is not None
    test = None
    if data.test_questions:
        test = {
            'name': datasets[-1].name,
            'images': data.test_questions[0].num_images,
            **(chosen.test_counts.as_record() if chosen.test_counts else {}),
            'sha256': data.test_sha256,
        }
    first, *others = data.questions
    prompt = None if others else first.common_prompt
    return Facts(
        model=vlm.name,
        text_model_type=vlm.text_model_type,
        num_blocks=vlm.num_blocks,
        device=vlm.device,
        dtype=vlm.dtype,
        quantization=vlm.quantization,
        image_fit=vlm.image_fit,
        max_image_tokens=vlm.max_image_tokens,
        dataset={
            'name': datasets[0].name,
            'chosen': chosen.line,
            'notes': [note for dataset in datasets for note in dataset.notes],
            'warnings': [warning for dataset in datasets for warning in dataset.warnings],
            'labels_outside_view': sum(dataset.labels_outside_view for dataset in datasets),
            'calibration': {
                'images': first.num_images,
                **chosen.counts.as_record(),
                'sha256': data.sha256,
                'seed': settings.seed,
            },
            'test': test,
        },
        unreadable=tuple(data.unreadable),
        metrics=tuple(metrics),
        labels=label_set(data.questions),
        prompt=Prompt(
            prompt,
            vlm.template_sha256,
            None if others else first.max_new_tokens,
            None if prompt is None else vlm.render_prompt(prompt),
        ),
        method=method.list_name(settings.search),
        phases=settings.search.phases,
        options=_report_options(method, settings),
        created=created,
    )


def _report_options(method: Method, settings: CalibrationSettings) -> dict[str, Any]:
    """Return the options that determined the search, as JSON values."""
    search = settings.search
    options = {'exhaustive': settings.exhaustive, **method.options_of(search)}
    if method.uses_seed:
        options['seed'] = search.seed
    if search.rounds is not None:
        options['rounds'] = search.rounds
    return {
        name: list(value) if isinstance(value, tuple) else value for name, value in options.items()
    }
