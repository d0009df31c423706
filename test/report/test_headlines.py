"""The sentence on top of a report says what its figures say."""

from __future__ import annotations

import pytest
import synthetic_results as made_up

from gmskip_ros.report.formatting import demo_alert
from gmskip_ros.report.headlines import (
    calibration_headline,
    compare_headline,
    comparison_headline,
    evaluation_headline,
    latency_headline,
    redundancy_headline,
    replay_headlines,
    search_headline,
    soak_headline,
    targets_headline,
)
from gmskip_ros.vlm.hub import find_local_folder


def measured(score: float, **changes):
    return {'images': 60, 'score': score, 'interval': None, 'latency_ms': None, **changes}


def evaluated(skip: dict) -> dict:
    full = measured(0.975, latency_ms=250.0)
    rows = [
        {'name': 'Full', 'blocks': [], 'sparsity': 0.0, 'source': None, 'evaluation': full},
        {'name': 'mine', 'blocks': [3, 4], 'sparsity': 0.25, 'source': None, 'evaluation': skip},
    ]
    return {'task': 'single_object', 'metric': 'accuracy', 'rows': rows}


def test_gain_and_cost_stand_in_one_sentence():
    skip = measured(0.967, latency_ms=100.0, token_agreement=58 / 60, interval=[-0.03, 0.01])
    assert evaluation_headline(evaluated(skip)) == (
        'mine (2 blocks skipped, 25.0 %): 2.5x faster, 58 of 60 answers the same, '
        'accuracy 97.5 -> 96.7 (not significant)'
    )


@pytest.mark.parametrize(
    'changes, expected',
    [
        ({'interval': [-0.05, -0.01]}, 'accuracy 97.5 -> 96.7 (significant)'),
        ({'interval': [0.01, 0.02]}, 'accuracy 97.5 -> 96.7 (significant)'),
        (
            {'speed_up_with_vision': 1.05, 'speed_up_with_vision_interval': [0.97, 1.12]},
            'not measurably faster (0.97x to 1.12x), accuracy 97.5 -> 96.7',
        ),
        (
            {'speed_up_with_vision': 1.05, 'speed_up_with_vision_interval': [1.03, 1.12]},
            '1.05x faster, accuracy 97.5 -> 96.7',
        ),
        ({'latency_ms': 500.0}, '0.50x as fast, accuracy 97.5 -> 96.7'),
        ({}, 'accuracy 97.5 -> 96.7'),
        (
            {'token_agreement': 0.5, 'answers': 180},
            '90 of 180 answers the same, accuracy 97.5 -> 96.7',
        ),
    ],
)
def test_only_what_was_measured_is_said(changes, expected):
    assert evaluation_headline(evaluated(measured(0.967, **changes))).endswith(f': {expected}')


def test_without_a_skip_set_there_is_nothing_to_say():
    result = evaluated(measured(0.9))
    assert evaluation_headline({**result, 'rows': result['rows'][:1]}) == ''
    assert calibration_headline(made_up.calibration(operating_points=None)) == ''
    assert comparison_headline([]) == ''


def test_a_calibration_without_test_images_has_the_scores_of_the_search():
    line = calibration_headline(made_up.calibration(test=False))
    assert line.startswith('high_performance (') and line.endswith('on the images of the search')


def test_the_largest_sparsity_that_keeps_the_score_is_named():
    def result(intervals):
        sets = [{'num_skipped': 0, 'evaluation': measured(0.9), 'speed': None}]
        for size, interval in enumerate(intervals, 1):
            evaluation = measured(0.9 - 0.1 * size, interval=interval)
            sets.append({'num_skipped': size, 'evaluation': evaluation, 'speed': {'speed_up': 2.0}})
        rows = [{'method': 'x', 'asked_blocks': size, 'set': size} for size in range(1, len(sets))]
        methods = [{'name': 'x', 'title': 'Method X', 'phases': ['prefill', 'decode']}]
        return {
            'task': 'captioning',
            'metric': 'cider',
            'num_blocks': 4,
            'sets': sets,
            'rows': rows,
            'methods': methods,
        }

    line = compare_headline(result([[-0.2, 0.1], [-0.3, -0.1]]))
    assert line == (
        'Method X, 1 of 4 blocks skipped: 2.0x faster, CIDEr 90.0 -> 80.0 (not significant)'
    )
    assert 'No method keeps' in compare_headline(result([[-0.3, -0.1]]))


def test_all_tasks_of_an_operating_point_are_in_its_sentence():
    def row(task, median, agreeing):
        return {
            'machine': 'm',
            'operating_point': '8',
            'task': task,
            'speedup': {'median': median},
            'agreeing': agreeing,
            'compared': 20,
        }

    rows = [row('a', 1.9, 20), row('b', 2.6, 18), row('c', None, 20)]
    assert replay_headlines(rows) == ['8 blocks: 1.90x to 2.60x faster, 58 of 60 answers agree']
    for one, interval in zip(rows, ([0.97, 1.5], [0.9, 1.12], None), strict=True):
        one['speedup']['interval'] = interval
    assert 'not measurably faster (0.90x to 1.50x)' in replay_headlines(rows)[0]
    rows[1]['speedup']['interval'] = [1.01, 3.12]
    assert ': 2.6x faster (no measurable difference: a), 58 of 60' in replay_headlines(rows)[0]
    rows[0]['speedup']['interval'] = [1.7, 2.1]
    assert ': 1.90x to 2.60x faster, 58 of 60' in replay_headlines(rows)[0]


def test_a_redundancy_says_how_many_blocks_can_be_missed():
    result = {
        'task': 'single_object',
        'metric': 'accuracy',
        'num_blocks': 32,
        'blocks_that_change': {'kl': 30, 'score_change': 12},
    }
    assert redundancy_headline(result) == (
        "Skipped one at a time, 20 of 32 blocks change no answer's accuracy"
    )


def test_a_soak_says_what_holds_and_what_fails():
    verdicts = [{'name': 'memory', 'holds': True}, {'name': 'frames', 'holds': True}]
    result = {
        'verdicts': verdicts,
        'achieved_rate_hz': 0.998,
        'frames': {'answered': 1796},
        'measured_s': 1800.0,
    }
    assert soak_headline(result) == ('30.0 min: all 2 checks hold, 1796 frames answered at 1.00 Hz')
    verdicts[0]['holds'] = False
    assert soak_headline(result).startswith('30.0 min: fails: memory, 1796')


def test_benchmarks_say_how_they_stand():
    def ratio(value, low, high):
        name = 'against Hugging Face, dynamic cache: prefill'
        return {'name': name, 'value': value, 'interval': [low, high]}

    own = {'name': 'own', 'value': 9.0, 'interval': [8.0, 10.0]}
    models = [{'ratios': [ratio(0.5, 0.4, 0.6), ratio(0.4, 0.3, 0.5), own]}]
    bars = [{'holds': True}, {'holds': False}, {'holds': None}]
    assert latency_headline({'models': models, 'bars': bars}) == (
        'Prefill and decode: 2.0x to 2.5x faster than Hugging Face, 1 of 2 bars met'
    )
    models[0]['ratios'].append(ratio(0.98, 0.9, 1.1))
    assert latency_headline({'models': models, 'bars': []}) == (
        'Prefill and decode: 2.0x to 2.5x faster than Hugging Face '
        '(no measurable difference: 1 of 3)'
    )
    models[0]['ratios'].append(ratio(1.25, 1.1, 1.4))
    assert '0.80x to 2.50x as fast as Hugging Face (' in (
        latency_headline({'models': models, 'bars': []})
    )
    unsure = [{'ratios': [ratio(0.98, 0.8, 1.25)]}]
    assert latency_headline({'models': unsure, 'bars': []}) == (
        'Prefill and decode: not measurably faster than Hugging Face (0.80x to 1.25x)'
    )
    assert latency_headline({'models': [{'ratios': []}], 'bars': []}) == ''
    tasks = [
        {'methods': {'walk': {'share': share}}, 'errors': errors}
        for share, errors in ((0.25, []), (0.1, ['wrong']))
    ]
    assert search_headline(tasks[:1], 'walk') == (
        'the same result as exhaustive search, with 25 % of its work'
    )
    assert search_headline(tasks, 'walk').startswith('NOT the same result as exhaustive search in')


def of_target(target, share, score, speed_up, interval=(None, None)):
    point = 'high_performance'
    return {
        'target': target,
        'full_score': 0.9,
        f'{point}_sparsity': share,
        f'{point}_score': score,
        f'{point}_speed_up': speed_up,
        f'{point}_speed_up_low': interval[0],
        f'{point}_speed_up_high': interval[1],
    }


def test_all_targets_of_a_table_are_in_one_sentence():
    rows = [of_target('car', 0.25, 0.9, 1.2, (1.1, 1.3)), of_target('bus', 0.5, 0.8, 1.75)]
    assert targets_headline(rows) == (
        'high_performance: 25.0 to 50.0 % of the blocks skipped, 1.20x to 1.75x faster, '
        'the score kept for 1 of 2 targets'
    )


@pytest.mark.parametrize(
    'num_unsure, expected',
    [
        (1, '1.20x faster (no measurable difference: 0)'),
        (3, '1.20x faster (no measurable difference: 0, 1, 2)'),
        (4, '1.20x faster (no measurable difference: 4 of 5)'),
    ],
)
def test_targets_whose_gain_is_not_measurable_are_not_among_the_gains(num_unsure, expected):
    unsure = [of_target(str(n), 0.25, 0.9, 1.01, (0.9, 1.1)) for n in range(num_unsure)]
    rows = [*unsure, of_target('car', 0.25, 0.9, 1.2, (1.1, 1.3))]
    assert f', {expected}, the score kept' in targets_headline(rows)


def test_the_demo_model_is_known_by_its_folder_as_well():
    folder = find_local_folder('demo')
    assert demo_alert({'model': 'demo'}) == demo_alert({'model': f'{folder}/'}) != []
    assert demo_alert({'model': 'llava-hf/llava-1.5-7b-hf'}) == []
