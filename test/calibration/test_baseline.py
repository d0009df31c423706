"""The best constant answer and the empty answer, against every answer tried by definition."""

from __future__ import annotations

import itertools
import json
import random
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from calibration_helpers import LABELS, make_all_questions, make_samples
from coco_mini import COCO_MINI, needs_coco_mini

from gmskip_ros.calibration import baseline
from gmskip_ros.calibration.baseline import (
    ConstantAnswer,
    baselines,
    baselines_of_evaluation,
    best_constant_answer,
    empty_score,
    list_baselines,
)
from gmskip_ros.calibration.errors import CalibrationError
from gmskip_ros.calibration.objective import make_objective
from gmskip_ros.calibration.questions import Questions
from gmskip_ros.datasets import Sample, open_dataset
from gmskip_ros.skipping import Baselines, ConstantBaseline
from gmskip_ros.tasks import METRICS, Cider, TaskError, caption_tokens, make_scorer, rouge_l
from gmskip_ros.tasks.metrics import SET_METRICS

TEXTS = ('yes', 'Yes.', 'no', 'a red bus', 'red', '2', 'two', '2.05', '40%', 'the bus is red')


def questions_about(samples: Sequence[Sample], task: str, **options: Any) -> Questions:
    [questions] = make_all_questions(samples, task, **options)
    return questions


def shows(*labels: str) -> list[Sample]:
    """Return samples that each show these labels, the first one largest."""
    return [
        Sample(f'{i}', Path(f'{i}.jpg'), labels=tuple(n.split()), main_object=n.split()[0])
        for i, n in enumerate(labels)
    ]


def generic(*references: Sequence[str]) -> Questions:
    samples = [
        Sample(f'{i}', Path(f'{i}.jpg'), question='What?', references=tuple(texts))
        for i, texts in enumerate(references)
    ]
    return questions_about(samples, 'generic')


def score_as_searched(questions: Questions, metric: str, answer: str) -> float:
    """Return what the objective of a search gives to a model with this answer to everything."""
    image_of = {sample.image_path: i for i, sample in enumerate(questions.samples)}
    objective = make_objective([questions], [metric], image_of, seed=3)
    items = range(len(objective.items))
    return float(objective.part_scores([objective.contribution(i, answer) for i in items])[0])


def check(questions: Questions, metric: str, best: Any) -> ConstantAnswer:
    """Check the score against the best one, and that the answer really has this score."""
    found = best_constant_answer(questions, metric)
    assert found is not None
    assert found.score == pytest.approx(float(best), rel=1e-12, abs=1e-12)
    assert score_as_searched(questions, metric, found.answer) == found.score
    assert empty_score(questions, metric) == score_as_searched(questions, metric, '')
    assert found.score >= empty_score(questions, metric)
    return found


@pytest.mark.parametrize('seed', range(5))
def test_one_label(seed: int) -> None:
    samples = make_samples(13, random.Random(seed))
    questions = questions_about(samples, 'single_object')
    counts = Counter(sample.main_object for sample in samples)
    found = check(questions, 'accuracy', Fraction(max(counts.values()), 13))
    assert counts[found.answer] == max(counts.values())
    check(questions, 'balanced_accuracy', Fraction(1, len(counts)))


@pytest.mark.parametrize('match', ['strict', 'forms', 'synonyms', 'content'])
def test_a_constant_target_is_right_on_every_image_of_the_papers_protocol(match: str) -> None:
    """Only images that show the target are scored, so its name alone scores 100 %."""
    samples = shows('car bus', 'dog car', 'car', 'truck', 'bus dog')
    questions = questions_about(samples, 'single_object', target='car', match=match)
    assert best_constant_answer(questions, 'accuracy') == ConstantAnswer('car', 1.0)
    assert empty_score(questions, 'accuracy') == 0
    # Balanced, it is right on all images with the target and on none without; others the reverse.
    assert best_constant_answer(questions, 'balanced_accuracy') == ConstantAnswer('car', 0.5)
    assert empty_score(questions, 'balanced_accuracy') == 0.5


@pytest.mark.parametrize('metric', METRICS['multi_object'])
@pytest.mark.parametrize('seed', range(6))
def test_the_best_set_of_labels_is_found(metric: str, seed: int) -> None:
    samples = list(make_samples(9, random.Random(seed)))
    # Labels that no answer can name count as well.
    samples += shows('zebra', 'car zebra', 'dog zebra bus')
    questions = questions_about(samples, 'multi_object')
    truths = [frozenset(sample.labels) for sample in samples]
    best = max(
        sum(SET_METRICS[metric](frozenset(names), truth) for truth in truths) / len(truths)
        for size in range(len(LABELS) + 1)
        for names in itertools.combinations(LABELS, size)
    )
    check(questions, metric, best)


@pytest.mark.parametrize('match', ['strict', 'forms', 'synonyms', 'content'])
def test_sets_of_many_labels_are_read_as_themselves(match: str) -> None:
    labels = ('traffic_light', 'stop sign', 'orange', 'bowl', 'hot dog', 'dog', 'bus')
    samples = shows('dog bus orange bowl', 'bus', 'dog bus bowl')
    questions = questions_about(samples, 'multi_object', labels=labels, match=match)
    # Three of four, one of one and three of three labels: 2 x 3 / (3 + 4) and so on.
    f1 = best_constant_answer(questions, 'set_f1')
    assert f1 == ConstantAnswer('bus, bowl, dog', pytest.approx((6 / 7 + 1 / 2 + 1) / 3))
    assert best_constant_answer(questions, 'set_precision') == ConstantAnswer('bus', 1.0)
    assert best_constant_answer(questions, 'set_exact_match') == ConstantAnswer('bus', 1 / 3)
    samples += [Sample('3', Path('3.jpg'), labels=('stop sign', 'traffic light', 'hot dog'))]
    questions = questions_about(samples, 'multi_object', labels=labels, match=match)
    everything = 'bus, bowl, dog, traffic_light, stop sign, orange, hot dog'
    assert best_constant_answer(questions, 'set_recall') == ConstantAnswer(everything, 1.0)


def by_definition(metric: str, references: Sequence[Sequence[str]], text: str) -> float:
    tokens = [[caption_tokens(reference) for reference in texts] for texts in references]
    if metric == 'cider':
        cider = Cider(tokens)
        return fmean(cider.score(i, caption_tokens(text)) for i in range(len(tokens)))
    return fmean(rouge_l(caption_tokens(text), of_image) for of_image in tokens)


@pytest.mark.parametrize('metric', METRICS['captioning'])
@pytest.mark.parametrize('seed', range(4))
def test_captions(metric: str, seed: int) -> None:
    samples = make_samples(12, random.Random(seed))
    references = [sample.captions for sample in samples]
    texts = {text for of_image in references for text in of_image}
    best = max(by_definition(metric, references, text) for text in texts)
    questions = questions_about(samples, 'captioning')
    found = check(questions, metric, best)
    assert found.answer in texts and empty_score(questions, metric) == 0


@pytest.mark.parametrize('metric', METRICS['generic'])
@pytest.mark.parametrize('seed', range(4))
def test_answers_to_questions(metric: str, seed: int) -> None:
    rng = random.Random(seed)
    references = [rng.choices(TEXTS, k=rng.randint(1, 10)) for _ in range(15)]
    questions = generic(*references)
    scorer = make_scorer(metric, references)
    best = max(
        fmean(float(scorer.score(i, text)) for i in range(len(references)))
        for text in (*itertools.chain(*references), '')
    )
    check(questions, metric, best)


def test_ties_are_decided_the_same_way_each_time() -> None:
    samples = shows('bus', 'dog', 'car', 'bus', 'dog', 'car')
    for order in itertools.permutations(range(3)):
        questions = questions_about([samples[i] for i in order], 'single_object')
        # The order of the label set, not of the images.
        assert best_constant_answer(questions, 'accuracy') == ConstantAnswer('car', 1 / 3)
        questions = questions_about([samples[i] for i in order], 'multi_object')
        assert best_constant_answer(questions, 'set_precision').answer == 'car'
    yes_or_no = generic(['Yes.', 'no'], ['no', 'yes'])
    assert best_constant_answer(yes_or_no, 'exact') == ConstantAnswer('Yes.', 1.0)


def test_a_constant_answer_gains_nothing_from_the_image() -> None:
    samples = make_samples(8, random.Random(2))
    for task in ('single_object', 'multi_object', 'captioning'):
        questions = questions_about(samples, task)
        plain = best_constant_answer(questions, METRICS[task][0])
        assert check(questions, 'visual_gain', 0).answer == plain.answer
        assert plain.score > 0


@pytest.mark.parametrize(
    ('task', 'metric', 'limit', 'value'),
    [
        ('captioning', 'cider', 'MOST_CIDER_TEXTS', 1),
        ('captioning', 'rouge_l', 'MOST_ROUGE_PAIRS', 1),
        ('generic', 'vqa', 'MOST_OTHER_PAIRS', 1),
    ],
)
def test_of_too_many_texts_the_most_shared_ones_are_tried(
    monkeypatch: pytest.MonkeyPatch, task: str, metric: str, limit: str, value: int
) -> None:
    monkeypatch.setattr(baseline, limit, value)
    texts = [['a dog runs'], ['a red bus', 'a car'], ['A car!'], ['a red bus on a road']]
    samples = [
        Sample(f'{i}', Path(f'{i}.jpg'), captions=tuple(t), question='?', references=tuple(t))
        for i, t in enumerate(texts)
    ]
    found = best_constant_answer(questions_about(samples, task), metric)
    assert found.answer == 'a car' and found.score > 0


# ---- several tasks, JSON values ----------------------------------------------------------------


def test_the_values_of_one_task() -> None:
    questions = [questions_about(shows('car', 'car', 'bus'), 'single_object')]
    expected = {'constant': {'answer': 'car', 'score': 2 / 3}, 'empty': 0.0}
    assert baselines(questions, ['accuracy'], [Fraction(1)]) == expected
    assert baselines(questions, ['accuracy'], [None]) == expected
    figures = {'scores': {'accuracy': 0.5}}
    assert baselines_of_evaluation(questions, ['accuracy'], figures) == expected
    assert list_baselines(expected) == Baselines(ConstantBaseline('car', 2 / 3), 0.0)
    assert list_baselines(None) is None


def test_joint_is_the_least_share_of_the_full_scores() -> None:
    metrics = ['accuracy', 'set_recall', 'cider']
    samples = make_samples(7, random.Random(5))
    questions = make_all_questions(samples, 'joint')
    single, multi, caption = (
        best_constant_answer(*pair) for pair in zip(questions, metrics, strict=True)
    )
    full = [Fraction(1, 2), Fraction(3, 4), 4.0]
    found = baselines(questions, metrics, full)
    assert json.loads(json.dumps(found)) == found
    shares = [single.score / 0.5, multi.score / 0.75, caption.score / 4]
    assert found['constant']['score'] == min(shares)
    assert found['empty'] == 0
    for answer, name in zip((single, multi, caption), found['tasks'], strict=True):
        of_task = found['tasks'][name]
        assert of_task['constant'] == {'answer': answer.answer, 'score': answer.score}
        assert f'{name}: {answer.answer}' in found['constant']['answer']
    assert list(found['tasks']) == ['single_object', 'multi_object', 'captioning']
    figures = {
        'scores': {
            'single_object.accuracy': 0.5,
            'multi_object.set_recall': 0.75,
            'multi_object.set_f1': 0.1,
            'captioning.cider': 4.0,
        }
    }
    assert baselines_of_evaluation(questions, metrics, figures) == found
    # A task in which the full model scores nothing is left out, as in the score.
    without = baselines(questions, metrics, [full[0], 0, full[2]])
    assert without['constant']['score'] == min(shares[0], shares[2])
    for unknown in ([*full[:2], None], [0, 0, 0]):
        without = baselines(questions, metrics, unknown)
        assert without['constant']['score'] is without['empty'] is None
        assert list_baselines(without) == Baselines(None, None)


def test_without_a_question_there_is_no_answer() -> None:
    samples = shows('bus', 'dog')
    questions = questions_about(samples, 'single_object', target='car')
    assert questions.num_scored == 0
    assert best_constant_answer(questions, 'accuracy') is None
    assert empty_score(questions, 'accuracy') is None
    assert baselines([questions], ['accuracy'], [None]) is None


def test_what_cannot_be_scored_is_refused() -> None:
    with pytest.raises(CalibrationError, match="only 'car'"):
        best_constant_answer(
            questions_about(shows('car', 'car'), 'single_object'), 'balanced_accuracy'
        )
    with pytest.raises(CalibrationError, match="metric 'cider' is not defined for single_object"):
        best_constant_answer(questions_about(shows('car', 'bus'), 'single_object'), 'cider')
    with pytest.raises(TaskError, match='none has a letter or digit'):
        best_constant_answer(generic(['?']), 'exact')


# ---- photographs -------------------------------------------------------------------------------


@needs_coco_mini
def test_photographs_of_coco() -> None:
    """Labels counted in the annotation file itself; captions scored one by one."""
    dataset = open_dataset(COCO_MINI, split='val2017')
    records = json.loads((COCO_MINI / 'annotations/instances_val2017.json').read_text())
    names = {record['id']: record['name'] for record in records['categories']}
    shown: dict[int, set[str]] = {}
    for record in records['annotations']:
        if not record['iscrowd']:
            shown.setdefault(record['image_id'], set()).add(names[record['category_id']])
    counts = Counter(itertools.chain(*shown.values()))

    samples = [sample for sample in dataset.samples if sample.labels]
    [multi] = make_all_questions(samples, 'multi_object', labels=dataset.labels)
    precision = best_constant_answer(multi, 'set_precision')
    assert precision == ConstantAnswer('person', counts['person'] / len(shown))
    assert counts.most_common(1)[0][0] == 'person' and len(samples) == len(shown)

    people = [sample for sample in samples if 'person' in sample.labels]
    [single] = make_all_questions(people, 'single_object', target='person', labels=dataset.labels)
    assert single.num_scored == counts['person']
    assert best_constant_answer(single, 'accuracy') == ConstantAnswer('person', 1.0)

    [captions] = make_all_questions(dataset.samples[:12], 'captioning')
    references = [sample.captions for sample in dataset.samples[:12]]
    for metric in METRICS['captioning']:
        texts = itertools.chain(*references)
        check(captions, metric, max(by_definition(metric, references, text) for text in texts))
