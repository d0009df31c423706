"""Every figure of an evaluation, recomputed from single answers and the definitions."""

from __future__ import annotations

import functools
import json
import math
from dataclasses import replace
from statistics import fmean

import pytest

from gmskip_ros.calibration.answer_log import AnswerLog
from gmskip_ros.calibration.answering import Answerer
from gmskip_ros.calibration.distributed import Ranks
from gmskip_ros.calibration.errors import CalibrationError
from gmskip_ros.calibration.evaluate import choose_sets
from gmskip_ros.calibration.images import EncodedImages
from gmskip_ros.calibration.measuring import Evaluator
from gmskip_ros.calibration.objective import make_objective, shuffled_images
from gmskip_ros.calibration.questions import make_questions
from gmskip_ros.calibration.settings import EvaluationSettings, task_settings
from gmskip_ros.datasets import open_dataset, read_image, write_scenes
from gmskip_ros.skipping import Removal, SkipList, SkipSet
from gmskip_ros.tasks import Cider, caption_tokens, rouge_l, set_precision
from gmskip_ros.tasks.statistics import paired_bootstrap_interval
from gmskip_ros.vlm import Answer, CandidateAnswer, Timing, load_vlm

SEED = 3  # of the shuffle
BLOCKS = (4, 8, 12, 16, 20, 24, 28, 6, 9, 17)  # some answers are wrong, some no labels
KEYS = {
    'images',
    'answers',
    'score',
    'scores',
    'match_scores',
    'shuffled_score',
    'visual_gain',
    'auroc',
    'score_without_target',
    'most_frequent_answer',
    'most_frequent_share',
    'in_vocabulary_share',
    'tokens_per_answer',
    'repeating_share',
    'difference',
    'interval',
    'mcnemar_p',
    'latency_ms',
    'ms_per_token',
    'language_ms',
    'latency_cut',
    'speed_up',
    'speed_up_interval',
    'speed_up_with_vision',
    'speed_up_with_vision_interval',
    'threads',
    'load',
    'answers_got_shorter',
    'parameters_run',
    'token_agreement',
}


@pytest.fixture(scope='module')
def vlm():
    return load_vlm('demo', 'cpu')


@pytest.fixture(scope='module')
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp('scenes') / 'out'
    write_scenes(folder, 10, 100)
    return open_dataset(folder)


def questions_about(dataset, task, samples=None, **options):
    """Return the questions of a task about samples; those that show the target come first."""
    target = options.get('target')
    samples = dataset.samples if samples is None else samples
    samples = sorted(samples, key=lambda sample: target is not None and target not in sample.labels)
    return [
        make_questions(samples, settings, settings.make_task(dataset.labels))
        for settings in task_settings(task, **options)
    ]


def make_evaluator(vlm, questions, metrics, answerer=Answerer, latency_images=0, batch_size=8):
    """Return an evaluator, and the index of each image of the first questions."""
    paths = list(dict.fromkeys(sample.image_path for sample in questions[0].samples))
    ranks = Ranks()
    encoded = EncodedImages(vlm, paths, 1 << 30, ranks)
    image_of = {path: index for index, path in enumerate(paths)}
    answers = answerer(vlm, encoded, ranks, batch_size=batch_size)
    return Evaluator(questions, metrics, answers, image_of, SEED, latency_images), image_of


def ask_alone(vlm, questions, blocks, images=None):
    """Return each question's answer, alone and from the image file; `images`: other images."""
    paths = [sample.image_path for sample in questions.samples]
    return [
        ask_one(vlm, paths[image], prompt, blocks, questions.max_new_tokens)
        for image, prompt in zip(images or range(len(paths)), questions.prompts, strict=True)
    ]


@functools.cache
def ask_one(vlm, path, prompt, blocks, max_new_tokens):
    """Return one answer through the public interface."""
    return vlm.answer(read_image(path), prompt, blocks, max_new_tokens)


def test_single_object(vlm, dataset):
    (questions,) = questions_about(dataset, 'single_object')
    evaluator, _ = make_evaluator(vlm, [questions], ['accuracy'])
    found = evaluator.evaluate(BLOCKS)
    assert set(found) == KEYS
    assert json.loads(json.dumps(found)) == found

    truths = [sample.main_object.replace('_', ' ') for sample in dataset.samples]
    skip, full = (ask_alone(vlm, questions, blocks) for blocks in (BLOCKS, ()))
    right = [answer.text == truth for answer, truth in zip(skip, truths, strict=True)]
    full_right = [answer.text == truth for answer, truth in zip(full, truths, strict=True)]
    assert 0 < sum(right) < sum(full_right)  # otherwise this test shows little
    assert found['images'] == len(truths)
    assert found['score'] == found['scores']['accuracy'] == fmean(right)
    per_class = [
        fmean(is_right for is_right, truth in zip(right, truths, strict=True) if truth == label)
        for label in set(truths)
    ]
    assert found['scores']['balanced_accuracy'] == pytest.approx(fmean(per_class), abs=1e-12)
    assert found['difference'] == pytest.approx(fmean(right) - fmean(full_right), abs=1e-12)
    differences = [a - b for a, b in zip(right, full_right, strict=True)]
    assert found['interval'] == pytest.approx(paired_bootstrap_interval(differences), abs=1e-12)
    # McNemar's exact test: a fair coin for every image that only one of them gets right.
    wins, losses = differences.count(1), differences.count(-1)
    tail = sum(math.comb(wins + losses, k) for k in range(min(wins, losses) + 1))
    assert found['mcnemar_p'] == pytest.approx(min(1, 2 * tail / 2 ** (wins + losses)))

    others = shuffled_images(range(len(truths)), SEED)
    elsewhere = ask_alone(vlm, questions, BLOCKS, others)
    blind = fmean(answer.text == truth for answer, truth in zip(elsewhere, truths, strict=True))
    assert found['shuffled_score'] == pytest.approx(blind, abs=1e-12)
    assert found['visual_gain'] == pytest.approx(fmean(right) - blind, abs=1e-12)

    texts = [answer.text for answer in skip]
    assert found['most_frequent_share'] == max(map(texts.count, texts)) / len(texts)
    assert texts.count(found['most_frequent_answer']) == max(map(texts.count, texts))
    assert found['in_vocabulary_share'] == fmean(
        text.replace(' ', '_') in dataset.labels for text in texts
    )
    assert found['tokens_per_answer'] == fmean(len(answer.token_ids) for answer in skip)
    same = [a.token_ids == b.token_ids for a, b in zip(skip, full, strict=True)]
    assert found['token_agreement'] == pytest.approx(fmean(same), abs=1e-12)
    assert found['parameters_run'] == vlm.num_parameters_run(BLOCKS) < vlm.num_parameters
    for key in ('auroc', 'score_without_target', 'latency_ms', 'ms_per_token', 'language_ms'):
        assert found[key] is None


def test_full_is_compared_to_itself_and_the_order_of_calls_is_nothing(vlm, dataset):
    (questions,) = questions_about(dataset, 'single_object')
    evaluator, _ = make_evaluator(vlm, [questions], ['accuracy'])
    first = evaluator.evaluate([])
    assert (first['difference'], first['interval'], first['mcnemar_p']) == (0, [0, 0], 1)
    assert first['token_agreement'] == 1
    assert first['parameters_run'] == vlm.num_parameters
    after_full = evaluator.evaluate(BLOCKS)
    alone, _ = make_evaluator(vlm, [questions], ['accuracy'], batch_size=3)
    assert alone.evaluate(BLOCKS[::-1]) == after_full
    assert alone.evaluate([]) == first


def logged(folder):
    """Return the lines of answers.jsonl that are about a question's own image."""
    lines = map(json.loads, (folder / 'answers.jsonl').read_text().splitlines())
    return [line for line in lines if not line['is_shuffled']]


def test_a_target_is_asked_about_on_images_with_and_without_it(vlm, dataset, tmp_path):
    (questions,) = questions_about(dataset, 'single_object', target='car')
    with_car, count = questions.num_scored, len(questions.samples)
    assert 2 < with_car < count - 2
    evaluator, _ = make_evaluator(vlm, [questions], ['accuracy'])
    evaluator.log = AnswerLog(tmp_path)
    found = evaluator.evaluate(BLOCKS)

    says_car = [answer.text == 'car' for answer in ask_alone(vlm, questions, BLOCKS)]
    assert found['images'] == with_car
    assert found['score'] == pytest.approx(fmean(says_car[:with_car]), abs=1e-12)
    assert found['score_without_target'] == pytest.approx(1 - fmean(says_car[with_car:]))
    balanced = (found['score'] + found['score_without_target']) / 2
    assert found['scores']['balanced_accuracy'] == pytest.approx(balanced, abs=1e-12)
    # An image with a car may be replaced by one without.
    others = shuffled_images(range(count), SEED)
    elsewhere = ask_alone(vlm, questions, BLOCKS, others)[:with_car]
    blind = fmean(answer.text == 'car' for answer in elsewhere)
    assert found['shuffled_score'] == pytest.approx(blind, abs=1e-12)

    prompt = questions.prompts[0]
    chances = [
        sum(
            math.exp(vlm.log_probabilities([vlm.encode(image)], [prompt], [word], BLOCKS)[0])
            for word in ('car', ' car', 'Car', ' Car')
        )
        for image in (read_image(sample.image_path) for sample in questions.samples)
    ]
    pairs = [
        0.5 if a == b else float(a > b) for a in chances[:with_car] for b in chances[with_car:]
    ]
    assert found['auroc'] == pytest.approx(fmean(pairs), abs=1e-12)
    kept = [line['target_log_probability'] for line in logged(tmp_path)]
    assert kept == pytest.approx([math.log(chance) for chance in chances], abs=1e-5)
    pairs = [0.5 if a == b else float(a > b) for a in kept[:with_car] for b in kept[with_car:]]
    assert found['auroc'] == fmean(pairs)


@pytest.mark.parametrize('target', [None, 'car'])
def test_balanced_accuracy_and_visual_gain_are_scores_like_others(vlm, dataset, target):
    (questions,) = questions_about(dataset, 'single_object', target=target)
    others = shuffled_images(range(len(questions.samples)), SEED)

    def scores(metric, blocks):
        """Return the score and the shuffled score, from single answers."""
        objective = make_objective([questions], [metric], dict.fromkeys(paths, 0))
        for images in (None, others):
            texts = [answer.text for answer in ask_alone(vlm, questions, blocks, images)]
            values = [
                objective.contribution(n, texts[item.question])
                for n, item in enumerate(objective.items)
            ]
            yield float(objective.part_scores(values)[0])

    paths = [sample.image_path for sample in questions.samples]
    for metric, base in (('visual_gain', 'accuracy'), ('balanced_accuracy',) * 2):
        found = make_evaluator(vlm, [questions], [metric])[0].evaluate(BLOCKS)
        real, blind = scores(base, BLOCKS)
        full, full_blind = scores(base, ())
        assert found['scores'][base] == real
        assert found['shuffled_score'] == blind
        assert found['visual_gain'] == pytest.approx(real - blind, abs=1e-12)
        if metric == 'visual_gain':
            real, full = real - blind, full - full_blind
        assert found['score'] == pytest.approx(real, abs=1e-12)
        assert found['difference'] == pytest.approx(real - full, abs=1e-12) and real != full
        assert found['interval'][0] <= real - full <= found['interval'][1]
        assert found['mcnemar_p'] is None
    assert found['images'] == len(paths)

    # What the search calls visual gain is the same figure.
    places = {path: place for place, path in enumerate(paths)}
    gain = make_objective([questions], ['visual_gain'], places, SEED)
    values = [
        gain.contribution(n, ask_one(vlm, paths[i.image], questions.prompts[0], BLOCKS, 8).text)
        for n, i in enumerate(gain.items)
    ]
    found = make_evaluator(vlm, [questions], ['visual_gain'])[0].evaluate(BLOCKS)
    assert found['score'] == float(gain.part_scores(values)[0])


def test_captions_and_a_joint_score(vlm, dataset):
    samples = dataset.samples[:6]
    questions = questions_about(dataset, 'joint', samples)
    metrics = ['accuracy', 'set_precision', 'cider']
    answers = {
        blocks: [ask_alone(vlm, one, blocks) for one in questions] for blocks in (BLOCKS, ())
    }
    references = [[caption_tokens(text) for text in sample.captions] for sample in samples]
    cider = Cider(references)

    def score_of(answers):
        single, several, captions = answers
        return (
            fmean(
                a.text == s.main_object.replace('_', ' ')
                for a, s in zip(single, samples, strict=True)
            ),
            fmean(
                set_precision(questions[1].task.parse(a.text).labels, frozenset(s.labels))
                for a, s in zip(several, samples, strict=True)
            ),
            fmean(cider.score(i, caption_tokens(a.text)) for i, a in enumerate(captions)),
        )

    scores, full_scores = score_of(answers[BLOCKS]), score_of(answers[()])
    alone, _ = make_evaluator(vlm, questions[2:], ['cider'])
    found = alone.evaluate(BLOCKS)
    assert found['score'] == found['scores']['cider'] == pytest.approx(scores[2], abs=1e-12)
    assert found['difference'] == pytest.approx(scores[2] - full_scores[2], abs=1e-12)
    rouge = [
        rouge_l(caption_tokens(a.text), references[i]) for i, a in enumerate(answers[BLOCKS][2])
    ]
    assert found['scores']['rouge_l'] == pytest.approx(fmean(rouge), abs=1e-12)
    assert found['interval'][0] <= found['difference'] <= found['interval'][1]
    assert found['mcnemar_p'] is None

    joint, _ = make_evaluator(vlm, questions, metrics)
    found = joint.evaluate(BLOCKS)
    assert set(found) == KEYS
    least = min(score / full for score, full in zip(scores, full_scores, strict=True))
    assert found['score'] == pytest.approx(least, abs=1e-12)
    assert found['difference'] == pytest.approx(least - 1, abs=1e-12)
    others = shuffled_images(range(len(samples)), SEED)
    blind = score_of([ask_alone(vlm, one, BLOCKS, others) for one in questions])
    least_blind = min(score / full for score, full in zip(blind, full_scores, strict=True))
    assert found['shuffled_score'] == pytest.approx(least_blind, abs=1e-12)
    assert found['visual_gain'] == pytest.approx(least - least_blind, abs=1e-12)
    names = ('single_object.accuracy', 'multi_object.set_precision', 'captioning.cider')
    assert [found['scores'][name] for name in names] == pytest.approx(scores, abs=1e-12)
    every = [answer for of_task in answers[BLOCKS] for answer in of_task]
    assert found['tokens_per_answer'] == pytest.approx(fmean(len(a.token_ids) for a in every))
    for key in ('interval', 'mcnemar_p', 'auroc', 'most_frequent_answer', 'most_frequent_share'):
        assert found[key] is None
    assert joint.evaluate([])['score'] == 1


class SaysRedCars(Answerer):
    """Answers in a sentence, except about the first image."""

    def answers(self, questions, removed, candidates=(None,), max_new_tokens=16, is_decided=None):
        texts = ['Cars.' if question.image == 0 else 'It is a red car.' for question in questions]
        return [[CandidateAnswer((7,), text)] for text in texts]


def test_the_same_answers_are_also_scored_as_stricter_readings_would(vlm, dataset):
    # The data set says 'taxi', which only the given task takes for its label 'car'.
    samples = [
        replace(sample, main_object='taxi', labels=('taxi', 'dog')) for sample in dataset.samples
    ]
    labels = ('car', 'dog')
    for target in (None, 'car'):
        (questions,) = questions_about(
            dataset, 'single_object', samples, labels=labels, target=target
        )
        found = make_evaluator(vlm, [questions], ['accuracy'], SaysRedCars)[0].evaluate([])
        assert (found['score'], found['match_scores']) == (1, {'strict': 0, 'forms': 0.1})
    (questions,) = questions_about(dataset, 'multi_object', samples, labels=labels)
    found = make_evaluator(vlm, [questions], ['set_recall'], SaysRedCars)[0].evaluate([])
    assert (found['score'], found['match_scores']) == (0.5, {'strict': 0, 'forms': 0.05})
    (questions,) = questions_about(
        dataset, 'single_object', samples, labels=labels, match='synonyms'
    )
    found = make_evaluator(vlm, [questions], ['accuracy'], SaysRedCars)[0].evaluate([])
    assert found['score'] == 0.1
    (captions,) = questions_about(dataset, 'captioning')
    assert make_evaluator(vlm, [captions], ['cider'])[0].evaluate([])['match_scores'] == {}


class SaysCar(Answerer):
    """Answers 'car' to everything, whatever the image shows."""

    def answers(self, questions, removed, candidates=(None,), max_new_tokens=16, is_decided=None):
        return [[CandidateAnswer((7,), ' Car.')] for _ in questions]


def test_a_constant_answer_is_exposed(vlm, dataset):
    samples = [
        replace(
            sample,
            main_object='car' if i < 9 else 'bus',
            labels=('car' if i < 7 else 'bus',),
        )
        for i, sample in enumerate(dataset.samples)
    ]
    (questions,) = questions_about(dataset, 'single_object', samples)
    found = make_evaluator(vlm, [questions], ['accuracy'], SaysCar)[0].evaluate([5])
    assert found['score'] == pytest.approx(9 / 10)
    assert (found['scores']['balanced_accuracy'], found['visual_gain']) == (0.5, 0)
    assert (found['most_frequent_answer'], found['most_frequent_share']) == ('car', 1)
    assert (found['difference'], found['token_agreement']) == (0, 1)

    (questions,) = questions_about(dataset, 'single_object', samples, target='car')
    found = make_evaluator(vlm, [questions], ['accuracy'], SaysCar)[0].evaluate([5])
    assert (found['score'], found['score_without_target'], found['visual_gain']) == (1, 0, 0)
    assert found['scores']['balanced_accuracy'] == 0.5

    # Two of three tasks score nothing: a joint score has nothing to divide by and leaves them out.
    wrong = [replace(sample, labels=('bus',), main_object='bus') for sample in samples]
    joint = questions_about(dataset, 'joint', wrong)
    metrics = ['accuracy', 'set_precision', 'rouge_l']
    evaluator = make_evaluator(vlm, joint, metrics, SaysCar)[0]
    found = evaluator.evaluate([5])
    assert (found['score'], found['difference'], found['visual_gain']) == (1, 0, 0)
    assert found['scores']['captioning.rouge_l'] > 0
    warnings = evaluator.evaluate([])['score_warnings']
    left_out = [line.partition(':')[0] for line in warnings if 'joint score leaves' in line]
    assert left_out == ['single_object', 'multi_object']
    nothing = make_evaluator(vlm, joint[:2], metrics[:2], SaysCar)[0].evaluate([5])
    assert (nothing['score'], nothing['difference'], nothing['visual_gain']) == (None, None, None)


def test_generic_questions_have_no_vocabulary_and_a_single_image_no_shuffle(vlm, dataset):
    sample = replace(
        dataset.samples[0],
        question='What is the main object in this image? Answer with one word.',
        references=(f'{dataset.samples[0].main_object}!', '?'),
    )
    (questions,) = questions_about(dataset, 'generic', [sample])
    found = make_evaluator(vlm, [questions], ['exact'])[0].evaluate([])
    assert (found['score'], found['mcnemar_p'], found['images']) == (1, 1, 1)
    assert list(found['scores']) == ['exact', 'vqa', 'relaxed', 'contains', 'rouge_l', 'cider']
    for key in ('in_vocabulary_share', 'shuffled_score', 'visual_gain'):
        assert found[key] is None
    with pytest.raises(CalibrationError, match='a single image cannot be shuffled'):
        make_evaluator(vlm, [questions], ['visual_gain'])
    (single,) = questions_about(dataset, 'single_object', [sample])
    found = make_evaluator(vlm, [single], ['accuracy'])[0].evaluate([])
    assert found['scores'] == {'accuracy': 1, 'balanced_accuracy': None}
    with pytest.raises(CalibrationError, match='2 classes'):
        make_evaluator(vlm, [single], ['balanced_accuracy'])


class TimedVlm:
    """Takes its times from a table: prefill, decode and tokens of full and of the skip set."""

    num_blocks = 10

    def __init__(self, full, skip):
        self.table = {False: list(full), True: list(skip)}
        self.order = []

    def num_parameters_run(self, blocks):
        return 100 - len(SkipSet.of(blocks).blocks)

    def answer(self, features, prompt, skip, max_new_tokens):
        self.order.append((features, bool(skip)))
        prefill, decode, tokens = self.table[bool(skip)].pop(0)
        timing = Timing(1.0, 2.0, prefill, decode, 3.0 + prefill + decode)
        return Answer('car', tuple(range(tokens)), timing, True)


class ImageNames(list):
    def is_mine(self, image):
        return True


def timed(dataset, full, skip, blocks=(4, 5), images=2, log=None):
    """Return the evaluation, and which images were answered with which set."""
    (questions,) = questions_about(dataset, 'single_object', dataset.samples[:4], max_new_tokens=3)
    vlm = TimedVlm(full, skip)
    answerer = SaysCar(vlm, ImageNames('abcd'), Ranks())
    image_of = {sample.image_path: i for i, sample in enumerate(questions.samples)}
    evaluator = Evaluator([questions], ['accuracy'], answerer, image_of, SEED, images)
    evaluator.log = log
    return evaluator.evaluate(blocks), vlm.order


def test_latency_is_of_answers_one_after_the_other(dataset, tmp_path):
    warm_up = (999.0, 999.0, 3)
    full = [warm_up, (10, 20, 3), (10, 40, 3), (14, 20, 3), (10, 44, 3)]
    skip = [warm_up, (9, 4, 1), (9, 0, 0), (9, 10, 2), (11, 10, 3)]
    found, order = timed(dataset, full, skip, log=AnswerLog(tmp_path))
    images = ['a', 'a', 'b', 'a', 'b']
    assert order == [
        (image, is_skip)
        for number, image in enumerate(images)
        for is_skip in ((True, False) if number % 2 else (False, True))
    ]
    language = [13, 9, 19, 21]
    assert found['language_ms'] == 16  # the median
    assert found['latency_ms'] == 3 + 16
    # 1 token and the end: one pass; 2 and the end: two; 3 at the limit: two; none without decode.
    assert found['ms_per_token'] == 5 == sorted([4 / 1, 10 / 2, 10 / 2])[1]
    # The same questions in both: (30 + 50 + 34 + 54) ms / (13 + 9 + 19 + 21) ms.
    assert found['speed_up'] == pytest.approx(168 / 62)
    assert found['latency_cut'] == pytest.approx(1 - 62 / 168)
    assert found['speed_up_with_vision'] == pytest.approx((168 + 12) / (62 + 12))
    # One image alone, with both its rounds: the least and the most that two images can give.
    assert found['speed_up_interval'] == pytest.approx([64 / 32, 104 / 30])
    assert found['threads'] >= 1 and found['load'] >= 0
    # Every time is kept beside the answer to its question.
    kept = [line['times'] for line in logged(tmp_path) if 'times' in line]
    assert [[one['set']['language_ms'] for one in times] for times in kept] == [[13, 19], [9, 21]]
    sums = [
        sum(one[which]['total_ms'] for times in kept for one in times) for which in ('full', 'set')
    ]
    assert found['speed_up_with_vision'] == sums[0] / sums[1]
    assert kept[0][1]['set'] == {
        'total_ms': 22,
        'decode_ms': 10,
        'language_ms': 19,
        'tokens': 2,
        'passes': 2,
    }
    # Fewer tokens, and a cut of 0.63 where 0.2 of the blocks are skipped, but the noise is 0.45.
    noise = 1 - sum(language[:2]) / sum(language[2:])
    assert 0.2 + noise > found['latency_cut']
    assert found['answers_got_shorter'] is False
    assert found['parameters_run'] == 98


@pytest.mark.parametrize(
    ('tokens', 'decode', 'got_shorter'),
    [(1, 5, True), (3, 5, False), (1, 13, False)],
    ids=['shorter and quicker', 'quicker with as many tokens', 'no quicker than the blocks'],
)
def test_answers_that_got_shorter_are_marked(dataset, tokens, decode, got_shorter):
    found, _ = timed(dataset, [(10, 10, 3)] * 5, [(5, decode, tokens)] * 5)
    assert found['answers_got_shorter'] is got_shorter


def test_the_full_model_is_timed_alone(dataset):
    found, order = timed(dataset, [(8, 0, 1)] * 9, [], blocks=(), images=9)
    assert order == [(image, False) for image in 'aabcdabcd']
    assert (found['latency_cut'], found['answers_got_shorter']) == (0, False)
    assert (found['speed_up'], found['speed_up_interval']) == (1, [1, 1])
    assert found['ms_per_token'] == 0  # one pass each, for the end-of-sequence token
    at_once, _ = timed(dataset, [(8, 0, 0)] * 9, [], blocks=(), images=9)
    assert at_once['ms_per_token'] == at_once['language_ms'] == 8


# ---- the rows ----------------------------------------------------------------------------------


def test_rows_name_their_phases_where_not_all_skip_in_prefill_and_decode():
    def names(phases):
        scores = {'full_score': 1.0, 'min_score_ratio': 1.0}
        skip_list = SkipList(
            'm', 8, 'captioning', (Removal(3, 1.0),), phases=phases, method='gm-skip', **scores
        )
        settings = EvaluationSettings('captioning', operating_points=('0', '1'), intervals=(4,))
        return [row.name for row in choose_sets(8, {'m.skip.yaml': skip_list}, settings)]

    assert names(('prefill', 'decode')) == [
        'Full, GM-Skip 0 blocks',
        'Fixed interval 4',
        'GM-Skip 1 block',
    ]
    assert names(('decode',)) == [
        'Full, GM-Skip 0 blocks',
        'Fixed interval 4 (prefill+decode)',
        'GM-Skip 1 block (decode)',
    ]
