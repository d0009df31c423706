"""What answers that ignore the image score: the best constant answer, and the empty one.

Both come from the references alone. A score no better than theirs does not show that a model looks
at the image.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gmskip_ros.calibration.objective import (
    VISUAL_GAIN,
    Objective,
    above_zero,
    base_metric,
    make_objective,
)
from gmskip_ros.calibration.questions import Questions
from gmskip_ros.skipping import Baselines, ConstantBaseline
from gmskip_ros.tasks import PRESENCE, Cider, Task, caption_tokens
from gmskip_ros.tasks.benchmark_forms import exact_form
from gmskip_ros.tasks.normalisation import normalise
from gmskip_ros.tasks.rouge_totals import RougeTotals
from gmskip_ros.tasks.scoring import Absent, Score
from gmskip_ros.tasks.task import NO, YES

EMPTY = ''
# Some 10 to 15 s of work at most on one core: texts for CIDEr; texts x references for ROUGE-L, and
# for the other metrics of texts.
MOST_CIDER_TEXTS = 10_000
MOST_ROUGE_PAIRS = 100_000_000
MOST_OTHER_PAIRS = 2_000_000
_ROUNDING = 1e-9  # totals closer than this, relative to the best one, are scored exactly


@dataclass(frozen=True)
class ConstantAnswer:
    """The same answer to every question, and its score in the metric (not x100)."""

    answer: str
    score: float


def best_constant_answer(questions: Questions, metric: str) -> ConstantAnswer | None:
    """Return the constant answer with the best score; None if no question is scored.

    The score is that of a model which always gives this answer, as a search computes it. The
    answer is chosen with the references that it is scored on, and its length is not limited.

    - single_object (accuracy, balanced_accuracy): of all labels and the empty answer. Exact: a text
      is read as at most one label.
    - presence: yes or no. Exact: no text is read as anything else.
    - multi_object: the best set of labels. Exact: for set_precision, set_recall and set_f1 a set of
      k labels scores the sum of what each of its labels adds given k, so the best set of every k
      is known; for set_exact_match it is the most frequent set among the references. For set_recall
      it is every label in the references, which a model's answer may be too short to name.
    - captioning and generic: of the references (and the empty answer), those that most images share
      first, then in the order of the images, as many as MOST_... allow: for CIDEr 10000 texts, for
      ROUGE-L 100 million pairs of text and reference, otherwise 2 million. Exact for exact; else a
      lower bound, since a text that is not a reference may be better (for contains, one that joins
      several references).
    - visual_gain: 0 for every constant answer; the answer is the best one for the metric that the
      gain is computed from.

    Ties: the label in more of the images, then the earlier one in the label set; the smaller set,
    then that of more frequent labels (for set_exact_match, of an earlier image); the text shared by
    more images, then the earlier one.

    Raises CalibrationError and TaskError for questions that the metric cannot score.
    """
    if not questions.num_scored:
        return None
    objective, groups = _objective(questions, metric)
    task = questions.task
    if task is not None and questions.name == 'single_object':
        answer = _best(objective, groups, [*_labels_by_frequency(questions, task), EMPTY])
    elif questions.name == PRESENCE:
        answer = _best(objective, groups, [YES, NO, EMPTY])
    elif task is not None and questions.name == 'multi_object':
        answer = _best_label_set(questions, task, base_metric(questions.name, metric))
    else:
        answer = _best_text(questions, base_metric(questions.name, metric), objective, groups)
    return ConstantAnswer(answer, _score(objective, metric, answer))


def empty_score(questions: Questions, metric: str) -> float | None:
    """Return the score of a model whose answers are all empty; None if no question is scored.

    Raises what best_constant_answer raises.
    """
    if not questions.num_scored:
        return None
    return _score(_objective(questions, metric)[0], metric, EMPTY)


def baselines(
    questions: Sequence[Questions], metrics: Sequence[str], full: Sequence[Score | None]
) -> dict[str, Any] | None:
    """Return the baselines of one task, or of several tasks' joint score, as JSON values.

    The keys are those of a skip list: 'constant' (with 'answer' and 'score') and 'empty' (a score).
    `full`: the full model's score of each task. A joint score is the least of score / full score
    over the tasks with a full score above 0, None where one is unknown or none is above 0; there
    'tasks' has each task's own baselines, by name, and the joint answer names each task's. None if
    no question is scored. Raises what best_constant_answer raises.
    """
    of_tasks: dict[str, dict[str, Any]] = {}
    for of_task, metric in zip(questions, metrics, strict=True):
        constant = best_constant_answer(of_task, metric)
        if constant is None:
            return None
        of_tasks[of_task.name] = {
            'constant': {'answer': constant.answer, 'score': constant.score},
            'empty': empty_score(of_task, metric),
        }
    if len(of_tasks) == 1:
        return next(iter(of_tasks.values()))

    def joint(scores: Sequence[Any]) -> float | None:
        known = [whole for whole in full if whole is not None]
        if len(known) < len(full):
            return None
        return min((scores[part] / float(known[part]) for part in above_zero(known)), default=None)

    answers = [f'{name}: {of_task["constant"]["answer"]}' for name, of_task in of_tasks.items()]
    return {
        'constant': {
            'answer': '; '.join(answers),
            'score': joint([of_task['constant']['score'] for of_task in of_tasks.values()]),
        },
        'empty': joint([of_task['empty'] for of_task in of_tasks.values()]),
        'tasks': of_tasks,
    }


def baselines_of_evaluation(
    questions: Sequence[Questions], metrics: Sequence[str], full: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Return `baselines`, given the full model's figures (Evaluator.evaluate) on these questions.

    Raises what best_constant_answer raises.
    """
    # A joint evaluation has each task's scores as 'task.metric'; others need no full score.
    scores = [
        full['scores'].get(f'{of_task.name}.{metric}')
        for of_task, metric in zip(questions, metrics, strict=True)
    ]
    return baselines(questions, metrics, scores)


def list_baselines(values: Mapping[str, Any] | None) -> Baselines | None:
    """Return what a skip list states of the values of `baselines`; an unknown score is absent."""
    if values is None:
        return None
    constant = values['constant']
    known = constant['score'] is not None
    return Baselines(
        ConstantBaseline(constant['answer'], constant['score']) if known else None,
        values['empty'],
    )


# Of questions with equal references and weights: one item that stands for them, and their number.
_Groups = Sequence[tuple[int, int]]


def _objective(questions: Questions, metric: str) -> tuple[Objective, _Groups]:
    """Return the objective of answers alone (not of images), and its items in groups."""
    plain = base_metric(questions.name, metric) if metric == VISUAL_GAIN else metric
    image_of = {sample.image_path: i for i, sample in enumerate(questions.samples)}
    objective = make_objective([questions], [plain], image_of)
    first: dict[Any, int] = {}
    counts: Counter[Any] = Counter()
    for number, item in enumerate(objective.items):
        reference = questions.references[item.question]
        is_single = isinstance(reference, (str, Absent))
        key = (reference if is_single else tuple(reference), item.weight)
        first.setdefault(key, number)
        counts[key] += 1
    return objective, [(item, counts[key]) for key, item in first.items()]


def _score(objective: Objective, metric: str, answer: str) -> float:
    if metric == VISUAL_GAIN:  # the same answers whichever the images are
        return 0.0
    contributions = [objective.contribution(item, answer) for item in range(len(objective.items))]
    return float(objective.part_scores(contributions)[0])


def _total(objective: Objective, groups: _Groups, answer: str) -> Score:
    return sum(count * objective.contribution(item, answer) for item, count in groups)


def _best(objective: Objective, groups: _Groups, answers: Sequence[str]) -> str:
    """Return the first of the best answers."""
    return max(answers, key=lambda answer: _total(objective, groups, answer))


def _labels_by_frequency(questions: Questions, task: Task) -> list[str]:
    """Return the labels: those of more scored images first, then in the order of the label set."""
    named: Counter[str | None] = Counter()
    for reference in questions.references[: questions.num_scored]:
        names = [reference] if isinstance(reference, str) else reference
        named.update({task.vocabulary.label_named(name) for name in names})
    return sorted(task.labels, key=lambda label: -named[label])


def _best_label_set(questions: Questions, task: Task, metric: str) -> str:
    """Return the names of the best set, such that the task reads them as this set."""
    truths = [
        frozenset(task.vocabulary.label_named(name) or normalise(name) for name in reference)
        for reference in questions.references
    ]
    labels = _labels_by_frequency(questions, task)
    if metric == 'set_exact_match':
        counts = Counter(truth for truth in truths if truth <= set(labels))
        ranked = sorted(counts, key=lambda truth: (-counts[truth], len(truth)))
        sets = [[label for label in labels if label in truth] for truth in ranked]
    else:
        sets = _sets_by_score(labels, truths, metric)
    for names in sets:
        answer = ', '.join(names)
        if task.parse(answer).labels == frozenset(names):
            return answer
    return EMPTY


def _sets_by_score(
    labels: Sequence[str], truths: Sequence[frozenset[str]], metric: str
) -> list[list[str]]:
    """Return the best set of every size, by descending score, then ascending size.

    A label in a set of k labels adds, for each image with s labels that shows it: to the precision
    1 / k, to the recall 1 / s, to the F1 2 / (k + s).
    """
    present = [label for label in labels if any(label in truth for truth in truths)]
    column = {label: number for number, label in enumerate(present)}
    images = np.zeros((len(present), max(map(len, truths)) + 1))  # label, s -> images
    for truth in truths:
        for label in truth & column.keys():
            images[column[label], len(truth)] += 1
    num_labels = np.arange(1, images.shape[1])
    ranked = []
    for size in range(1, len(present) + 1):
        adds = {
            'set_precision': np.full(len(num_labels), 1 / size),
            'set_recall': 1 / num_labels,
            'set_f1': 2 / (size + num_labels),
        }[metric]
        added = np.round(images[:, 1:] @ adds, 9)  # so that equal labels stay in their order
        best = np.argsort(-added, kind='stable')[:size]
        ranked.append((-round(float(added[best].sum()), 6), size, sorted(best)))
    return [[present[number] for number in best] for _, _, best in sorted(ranked)]


def _best_text(questions: Questions, metric: str, objective: Objective, groups: _Groups) -> str:
    references = [
        [reference] if isinstance(reference, str) else list(reference)
        for reference in questions.references
    ]
    texts = _texts_by_frequency(references)
    if metric == 'cider':
        tokens = [[caption_tokens(text) for text in of_image] for of_image in references]
        texts = texts[:MOST_CIDER_TEXTS]
        totals = np.array(Cider(tokens).totals([caption_tokens(text) for text in texts]))
    elif metric == 'rouge_l':
        tokens = [[caption_tokens(text) for text in of_image] for of_image in references]
        texts = texts[: max(1, MOST_ROUGE_PAIRS // sum(map(len, tokens)))]
        rouge = RougeTotals(tokens)
        totals = np.array([rouge.total(caption_tokens(text)) for text in texts])
    else:
        num_references = sum(len(references[objective.items[item].question]) for item, _ in groups)
        texts = texts[: max(1, MOST_OTHER_PAIRS // num_references)]
        return _best(objective, groups, [*texts, EMPTY])
    near = np.flatnonzero(totals >= totals.max() * (1 - _ROUNDING))
    return _best(objective, groups, [*(texts[number] for number in near), EMPTY])


def _texts_by_frequency(references: Sequence[Sequence[str]]) -> list[str]:
    """Return the texts that differ as `exact` reads them, those of more images first."""
    first: dict[str, str] = {}
    counts: Counter[str] = Counter()
    for of_image in references:
        normals: dict[str, str] = {}
        for text in of_image:
            normals.setdefault(exact_form(text), text.strip())
        normals.pop(EMPTY, None)
        counts.update(normals.keys())
        for normal, text in normals.items():
            first.setdefault(normal, text)
    return [first[normal] for normal in sorted(first, key=lambda normal: -counts[normal])]
