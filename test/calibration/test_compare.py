"""The parts of a comparison of methods: sizes, settings of each method, loops, speed, marks."""

from __future__ import annotations

import itertools
import statistics
from dataclasses import replace

import numpy as np
import pytest
from calibration_helpers import make_all_questions
from fake_vlm import FakeVlm
from PIL import Image

from gmskip_ros.calibration.answering import Answerer
from gmskip_ros.calibration.compare import (
    make_plans,
    marks_of,
    skip_set_key,
    tokens_per_reference,
)
from gmskip_ros.calibration.distributed import Ranks
from gmskip_ros.calibration.errors import CalibrationError
from gmskip_ros.calibration.images import EncodedImages
from gmskip_ros.calibration.methods.fixed_interval import fixed_interval, intervals_of_all_sizes
from gmskip_ros.calibration.methods.registry import check_settings, search_settings
from gmskip_ros.calibration.repetition import repeats
from gmskip_ros.calibration.settings import GIB, CompareSettings
from gmskip_ros.calibration.speed import FIELDS, TimedQuestion, speed_figures, time_round
from gmskip_ros.datasets import Sample
from gmskip_ros.skipping import SkipSet
from gmskip_ros.vlm import Stopped, load_vlm


def settings(**changes):
    return replace(
        CompareSettings('single_object', methods=('gm-skip',), sparsities=(0.25, 0.5)), **changes
    )


# --- sizes and settings ---


def test_sizes_are_whole_blocks_rounded_down_each_once():
    assert settings(sparsities=(0.0, 0.02, 0.1, 0.11, 0.7, 0.999999)).sizes(10) == {
        1: 0.1,
        7: 0.7,
        9: 0.999999,
    }
    with pytest.raises(CalibrationError, match='of 10 blocks is less than one block'):
        settings(sparsities=(0.0, 0.05)).sizes(10)


def test_searches_go_to_the_largest_size_whatever_the_score():
    methods = ('gm-skip', 'one-shot', 'random', 'sleb', 'self-nll', 'positional', 'shortgpt')
    for each in make_plans(settings(methods=methods, metric='visual_gain'), 32):
        assert each.search.allows_score(-0.1, 0.5), each.method.name
    (plan,) = make_plans(settings(), 32)
    assert plan.search.sizes(32)[-1] == plan.search.num_removals(32) == 16
    (plan,) = make_plans(settings(protect=(10, 10)), 32)
    assert plan.search.num_removals(32) == 12, 'as many as the protected blocks leave'


def test_methods_without_a_search_are_asked_for_the_sizes():
    (plan,) = make_plans(settings(methods=('positional',)), 32)
    assert plan.search.sizes(32) == [8, 16]
    (plan,) = make_plans(settings(methods=('positional',), protect=(10, 10)), 32)
    assert plan.search.sizes(32) == [8, 12]


def test_fixed_intervals_of_every_size_up_to_the_largest():
    (plan,) = make_plans(settings(methods=('fixed-interval',), sparsities=(0.3,)), 32)
    intervals = plan.search.options['intervals']
    sizes = [len(fixed_interval(32, interval)) for interval in intervals]
    assert sizes == sorted({len(fixed_interval(32, i)) for i in range(2, 31)} - {10, 15})[::-1]
    assert {4, 6, 7, 10} <= set(intervals), "the paper's, where several skip equally many"
    with pytest.raises(CalibrationError, match='interval 2 skips none of 3 blocks'):
        intervals_of_all_sizes(3, 1, range(3))
    assert intervals_of_all_sizes(4, 1, range(4)) == (2,)
    (plan,) = make_plans(settings(methods=('fixed-interval',), protect=(5, 3)), 32)
    for interval in plan.search.options['intervals']:
        assert set(fixed_interval(32, interval)) <= set(range(5, 29))
    with pytest.raises(CalibrationError, match='every interval skips a protected block'):
        intervals_of_all_sizes(8, 4, range(2))


def test_fixed_intervals_that_skip_protected_blocks_are_refused():
    with pytest.raises(CalibrationError, match='protect 4,0: an interval skips block 3'):
        check_settings(search_settings('fixed-interval', intervals=(3,), protect=(4, 0)), 32)
    check_settings(search_settings('fixed-interval', intervals=(3,), protect=(3, 1)), 32)


def test_only_methods_that_draw_have_seeds(tmp_path):
    plans = make_plans(settings(methods=('random', 'gm-skip'), num_seeds=3, seed=4), 32)
    assert [plan.seeds for plan in plans] == [(4, 5, 6), (4,)]
    assert plans[0].folder(tmp_path, 5) == tmp_path / 'random' / 'seed_5'
    assert plans[1].folder(tmp_path, 4) == tmp_path / 'gm-skip'


def test_phases_and_policies_hold_for_all_methods():
    changes = {'methods': ('gm-skip', 'random'), 'phases': ('prefill',), 'kv': 'input'}
    for plan in make_plans(settings(**changes), 32):
        assert (plan.search.phases, plan.search.kv) == (('prefill',), 'input')


def test_keys_tell_skip_sets_apart():
    sets = [
        SkipSet(),
        SkipSet([1, 2], [1, 2]),
        SkipSet([1, 2], []),
        SkipSet([1, 2], [], kv='input'),
        SkipSet([], [1, 2]),
        SkipSet([1, 2], [1, 2], [3]),
    ]
    assert len({skip_set_key(each) for each in sets}) == len(sets)
    assert skip_set_key(SkipSet([2, 1], [1, 2])) == skip_set_key(sets[1])


# --- loops, marks ---


@pytest.mark.parametrize(
    'text, expected',
    [
        ('', False),
        ('aaaaa', False),  # five in a row
        ('aaaaaa', True),
        ('xaaaaaay', True),
        ('ababa', False),
        ('ababab', True),
        ('ab cabcab', False),  # interrupted
        ('abcabcabc', True),
        ('abcdefabcdef', False),  # twice
        ('abcdefabcdefabcde', False),
        ('zabcdefabcdefabcdefz', True),
        ('a car and a truck', False),
    ],
)
def test_repeats(text, expected):
    assert repeats([ord(letter) for letter in text]) is expected


def test_marks_of_answers():
    def marks(tokens, share, reference_tokens):
        figures = {'tokens_per_answer': tokens, 'repeating_share': share}
        return marks_of(figures, reference_tokens)

    assert marks(2.0, 0.05, 1.0) == []
    assert marks(2.1, 0.06, 1.0) == ['long', 'repeats']
    assert marks(50, 0.0, None) == [], 'without references there is no length to compare with'


@pytest.fixture(scope='module')
def demo_answerer(tmp_path_factory):
    """The demo model with two images, a.png and b.png."""
    folder = tmp_path_factory.mktemp('images')
    paths = [folder / 'a.png', folder / 'b.png']
    for path in paths:
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(path)
    vlm = load_vlm('demo', device='cpu')
    images = EncodedImages(vlm, paths, GIB, Ranks())
    assert images.encode_all() == {}
    return Answerer(vlm, images, Ranks())


def test_tokens_per_reference_are_those_that_the_model_would_write(demo_answerer):
    vlm, images = demo_answerer.vlm, demo_answerer.images
    a, b = images.paths
    samples = [
        Sample('a', a, ('car', 'traffic_light'), 'car', ('a truck on a road', 'a truck')),
        Sample('b', b, ('person', 'truck'), 'truck', (' ', 'a car on a road')),
    ]
    labels = ('car', 'traffic_light', 'person', 'truck')

    def length(task, **options):
        questions = make_all_questions(samples, task, labels=labels, **options)
        return tokens_per_reference(
            demo_answerer, questions, images.index_of, lambda key, compute: compute()
        )

    def count(*texts):
        return statistics.fmean(len(vlm.token_ids(f' {text}')) for text in texts)

    # What it answers begins with the space that separates it from the prompt.
    [of_task] = make_all_questions(samples[:1], 'single_object', labels=labels)
    answer = vlm.answer(images[0], of_task.common_prompt)
    assert answer.token_ids == vlm.token_ids(f' {answer.text}') != vlm.token_ids(answer.text)
    assert len(vlm.token_ids('truck')) == 3, 'one more than with the space'
    assert length('single_object') == count('car', 'truck') == 2
    assert length('multi_object') == count('car, traffic light', 'person, truck')
    captions = [count('a truck on a road', 'a truck'), count('a car on a road')]
    assert length('captioning') == statistics.fmean(captions), 'an empty text is no reference'
    assert length('single_object', target='car') == count('car'), 'nor is a wrong answer'
    assert length('joint') == statistics.fmean(
        [count(text) for text in ('car', 'truck', 'car, traffic light', 'person, truck')] + captions
    )


# --- speed ---


def test_sets_take_turns_image_by_image(tmp_path):
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / 'a.png')
    questions = [TimedQuestion(tmp_path / 'a.png', prompt, 4) for prompt in 'pq']
    sets = [SkipSet(), SkipSet([1], [1]), SkipSet([2], [2])]
    vlm, done = FakeVlm(), []
    samples = time_round(vlm, questions, sets, 1, lambda: done.append(1))
    assert len(done) == 6
    assert [len(of_set) for of_set in samples] == [2, 2, 2]
    kinds = [call[0] for call in vlm.calls]
    assert kinds == ['encode', *['answer'] * 3] * 2, 'an image is encoded once for all sets'
    answers = [call[1:3] for call in vlm.calls if call[0] == 'answer']
    for prompt, of_question in (('p', answers[:3]), ('q', answers[3:])):
        assert {one[0] for one in of_question} == {prompt}
        assert all([one[1] for one in of_question].count(skip_set) == 1 for skip_set in sets)
    assert dict(zip(FIELDS, samples[0][0], strict=True)) == {
        'vision_ms': 2,
        'prefill_ms': 1,
        'decode_ms': 1,
        'total_ms': 4,
        'tokens': 2,
        'passes': 2,
    }
    with pytest.raises(Stopped):
        time_round(vlm, questions, sets, 0, should_stop=lambda: True)


def test_no_set_is_always_early_or_follows_the_same_one(tmp_path):
    """With many more sets than questions and rounds as well."""
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / 'a.png')
    questions = [TimedQuestion(tmp_path / 'a.png', str(i), 4) for i in range(8)]
    sets = [SkipSet(), *(SkipSet.of([block]) for block in range(30))]

    def orders():
        vlm = FakeVlm()
        for number in range(3):
            time_round(vlm, questions, sets, number)
        asked = [sets.index(call[2]) for call in vlm.calls if call[0] == 'answer']
        return [asked[i : i + len(sets)] for i in range(0, len(asked), len(sets))]

    found = orders()
    assert len(found) == 24
    assert found == orders()
    for index in range(len(sets)):
        places = [order.index(index) for order in found]
        assert 8 < statistics.fmean(places) < 22, 'the middle is 15'
        before = [order[place - 1] for order, place in zip(found, places, strict=True) if place]
        assert max(map(before.count, before)) < 8


def test_speed_is_a_ratio_of_sums_and_a_mean_of_ratios():
    # vision, prefill, decode, total, tokens, passes
    full = [[10.0, 20.0, 0.0, 30.0, 1, 0], [10.0, 20.0, 70.0, 100.0, 8, 7]]
    fast = [[10.0, 10.0, 0.0, 20.0, 1, 0], [10.0, 10.0, 20.0, 40.0, 5, 4]]
    figures = speed_figures(fast, full, 2)
    assert (figures['questions'], figures['rounds'], figures['answers']) == (2, 1, 2)
    assert (figures['prefill_ms'], figures['prefill_total_ms']) == (10, 20)
    assert (figures['decode_ms'], figures['decode_total_ms']) == (10, 20)
    assert figures['decode_ms_per_token'] == figures['decode_ms_per_token_of_sums'] == 5
    assert (figures['tokens'], figures['tokens_per_answer']) == (6, 3)
    assert figures['tokens_per_s'] == pytest.approx(1000 * 6 / 40)
    assert figures['tokens_per_s_mean_of_ratios'] == pytest.approx(500 * (1 / 10 + 5 / 30))
    assert figures['tokens_per_s_with_vision'] == pytest.approx(1000 * 6 / 60)
    assert figures['answers_per_s'] == pytest.approx(1000 * 2 / 40)
    assert figures['answers_per_s_mean_of_ratios'] == pytest.approx(500 * (1 / 10 + 1 / 30))
    assert figures['answers_per_s_with_vision_mean_of_ratios'] == pytest.approx(
        500 * (1 / 20 + 1 / 40)
    )
    assert figures['speed_up'] == pytest.approx(110 / 40)
    assert figures['speed_up_with_vision'] == pytest.approx(130 / 60)
    assert speed_figures(full[:1], full[:1], 1)['decode_ms_per_token'] is None


def test_the_spread_of_a_speed_up_is_that_of_the_questions():
    def sample(prefill, decode):
        return [10.0, prefill, decode, 10.0 + prefill + decode, 2, 2]

    # Two rounds of three questions: 2, 3 and 4 times as fast, and the same in both rounds.
    full = [sample(20.0, 20.0), sample(30.0, 30.0), sample(40.0, 40.0)] * 2
    fast = [sample(10.0, 10.0)] * 6
    figures = speed_figures(fast, full, 3)
    assert (figures['questions'], figures['rounds'], figures['answers']) == (3, 2, 6)
    assert figures['speed_up'] == 3
    means = sorted(statistics.fmean(drawn) for drawn in itertools.product([2, 3, 4], repeat=3))
    low, high = figures['speed_up_interval']
    assert means[0] <= low <= means[1] and means[-2] <= high <= means[-1]
    assert speed_figures(full, full, 3)['speed_up_interval'] == [1, 1]
    assert speed_figures(fast[::3], full[::3], 1)['speed_up_interval'] is None, 'only rounds differ'
