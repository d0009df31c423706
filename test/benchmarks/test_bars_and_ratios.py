"""Ratios of pairs, bars and what they decide, figures below their floor."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from gmskip_ros.benchmarks import bars, conditions
from gmskip_ros.benchmarks.figures import undercut
from gmskip_ros.benchmarks.ratios import paired_ratio, percentiles
from gmskip_ros.benchmarks.subject import skip_sets, spread, what_to_measure
from gmskip_ros.benchmarks.whole_frame import check_count
from gmskip_ros.errors import UserError
from gmskip_ros.skipping import load_skip_list


def test_percentiles_are_linear_between_samples() -> None:
    found = percentiles([float(i) for i in range(101)])
    assert found == {'p50': 50.0, 'p90': 90.0, 'p99': 99.0, 'least': 0.0, 'count': 101}


def test_a_ratio_is_the_median_over_pairs() -> None:
    found = paired_ratio([1.0, 8.0, 3.0], [2.0, 2.0, 3.0])
    assert found['value'] == 1.0  # of 0.5, 4 and 1; not of the medians, 3 / 2
    assert (found['numerator_ms'], found['denominator_ms'], found['pairs']) == (3.0, 2.0, 3)
    assert found['interval'] == [0.5, 4.0]
    assert found['samples'] == [[1.0, 2.0], [8.0, 2.0], [3.0, 3.0]]
    assert found == paired_ratio([1.0, 8.0, 3.0], [2.0, 2.0, 3.0])


def test_the_interval_narrows_with_pairs() -> None:
    def width(pairs: int) -> float:
        low, high = paired_ratio(random.normal(2, 0.2, pairs), np.ones(pairs))['interval']
        assert low < 2 < high
        return high - low

    random = np.random.default_rng(0)
    assert width(400) < width(25)


@pytest.mark.parametrize('lists', [([], []), ([1.0], [1.0, 2.0])])
def test_a_ratio_needs_pairs(lists) -> None:
    with pytest.raises(ValueError, match='give pairs'):
        paired_ratio(*lists)


def subject(values, image_tokens=100, gpu=None, model=bars.CPU, reasons=None):
    return {
        'model': model,
        'image_tokens': image_tokens,
        'gpu': gpu,
        'values': values,
        'reasons': reasons or {},
    }


def ratio(value):
    return paired_ratio([value], [1.0])


def row_of(rows, name, **wanted):
    [found] = [
        row
        for row in rows
        if row['name'] == name and all(row[key] == value for key, value in wanted.items())
    ]
    return found


def test_bars_that_hold_and_bars_that_do_not() -> None:
    measured = [
        subject({bars.HF_PREFILL: ratio(0.48)}, 100),
        subject({bars.HF_PREFILL: ratio(0.481)}, 576, reasons={bars.WEIGHTS: 'too small'}),
    ]
    rows = bars.judge(measured)
    held = row_of(rows, bars.HF_PREFILL, model=bars.CPU, image_tokens=100)
    assert held == {
        'name': bars.HF_PREFILL,
        'model': bars.CPU,
        'image_tokens': 100,
        'bar': 0.48,
        'is_least': False,
        'holds': True,
        'value': 0.48,
        'numerator_ms': 0.48,
        'denominator_ms': 1.0,
        'pairs': 1,
        'interval': [0.48, 0.48],
        'at_floor': None,
        'reason': '',
    }
    missed = row_of(rows, bars.HF_PREFILL, model=bars.CPU, image_tokens=576)
    assert (missed['holds'], missed['reason']) == (False, '')
    assert row_of(rows, bars.WEIGHTS, image_tokens=576)['reason'] == 'too small'
    assert row_of(rows, bars.WEIGHTS, image_tokens=100)['reason'] == 'not measured in this run'


def test_bars_that_no_model_of_the_run_decides_say_what_would() -> None:
    rows = bars.judge([])
    assert len(rows) == len(bars.BARS)
    assert {(row['holds'], row['value']) for row in rows} == {(None, None)}
    assert all(row['reason'] for row in rows)
    assert row_of(rows, bars.HF_DECODE, model='demo')['reason'] == 'needs --model demo'
    on_gpu = row_of(rows, bars.GPU_VISION)['reason']
    assert on_gpu == 'needs --model random:llava-1.5-7b on an H200'


def test_bars_of_a_gpu_are_decided_on_that_card_only() -> None:
    values = {
        bars.GPU_VISION: {'value': 1.0},
        bars.GPU_SAVING: {'value': 0.96},
        bars.GPU_FRAME: {'value': 901.0},
    }

    def judged(gpu):
        rows = bars.judge([subject(values, 576, gpu, bars.SEVEN_B)])
        names = (bars.GPU_VISION, bars.GPU_SAVING, bars.GPU_FRAME)
        return [row_of(rows, name)['holds'] for name in names]

    assert judged(None) == judged('NVIDIA GeForce RTX 4090') == [None, None, None]
    assert judged('NVIDIA H200') == [True, True, None]
    assert judged('NVIDIA GeForce RTX 3090') == [None, None, False]
    assert bars.Bar('', '', 0.95, is_least=True).holds(0.94) is False


@pytest.mark.parametrize(
    'other, reason',
    [
        ({'quantization': 'int8'}, 'is about weights that are not quantised, not int8'),
        ({'dtype': 'bfloat16'}, 'is about float32, not bfloat16'),
        ({'undecided': '--quick'}, '--quick'),
        ({'dtype': 'float32', 'quantization': 'none', 'undecided': ''}, ''),
    ],
)
def test_bars_are_about_float32_weights_and_whole_runs(other, reason) -> None:
    bar = bars.Bar('speed', bars.CPU, 0.5)
    [row] = bars.judge([{**subject({'speed': {'value': 0.4}}), **other}], [bar])
    assert (row['value'], row['reason']) == (0.4, reason)
    assert row['holds'] is (None if reason else True)


def test_bars_may_depend_on_the_image_tokens() -> None:
    found = {bars.THREE_TASKS: {'value': 0.5}}
    rows = bars.judge([subject(found, 100), subject(found, 576)])
    decided = [(row['bar'], row['holds']) for row in rows if row['name'] == bars.THREE_TASKS]
    assert decided == [(0.52, True), (0.42, False)]


def test_a_figure_below_its_floor_is_an_error() -> None:
    assert undercut('prefill', 10.0, {'own': 10.0, 'Hugging Face': 11.0}) == []
    [line] = undercut('prefill', 10.0, {'own': 9.9, 'Hugging Face': 11.0})
    assert line.startswith('prefill of own: 9.900 ms is below the floor of 10.000 ms')


def test_a_wrong_number_of_tokens_is_an_error() -> None:
    check_count(3, 3, 'own')
    with pytest.raises(UserError, match='own: an answer has 2 tokens, 3 were asked for'):
        check_count(2, 3, 'own')


@pytest.mark.parametrize('num_blocks, removed', [(32, 16), (32, 11), (32, 0), (28, 14), (4, 3)])
def test_removed_blocks_are_spread(num_blocks: int, removed: int) -> None:
    blocks = spread(num_blocks, removed)
    assert len(set(blocks)) == removed
    assert set(blocks) <= set(range(num_blocks))


def test_skip_sets_of_whole_frames() -> None:
    sets = skip_sets(32)
    assert list(sets) == ['published lists', 'one joint list of 16']
    longest = load_skip_list('gmskip_captioning').blocks_at('high_sparsity')
    assert sets['published lists']['captioning'] == longest
    assert list(skip_sets(28)) == ['one joint list of 14']


@pytest.mark.parametrize('other_s, is_busy', [(0.0, False), (1000.0, True)])
def test_a_busy_machine_is_noticed(monkeypatch, other_s: float, is_busy: bool) -> None:
    busy_s = iter([5.0, 5.0 + other_s])
    monkeypatch.setattr(conditions, '_busy_seconds', lambda: next(busy_s))
    found = conditions.Conditions().end()
    assert found['is_busy'] is is_busy
    assert found['other_share'] == float(is_busy)
    assert found['load_before'] >= 0 and found['load_after'] >= 0


def test_what_its_own_processes_do_does_not_make_a_machine_busy(monkeypatch) -> None:
    """A rival's process, for one, once it has ended."""
    busy_s = iter([5.0, 5.4])
    monkeypatch.setattr(conditions, '_busy_seconds', lambda: next(busy_s))
    during = conditions.Conditions()
    work = 'import time\nwhile time.process_time() < 0.5: pass'
    subprocess.run([sys.executable, '-S', '-c', work], check=True)
    assert during.end()['other_share'] == 0.0


def test_the_peak_of_memory_can_be_forgotten() -> None:
    if not os.access('/proc/self/clear_refs', os.W_OK):
        pytest.skip('this kernel does not allow it')
    held = b'x' * (256 << 20)
    with_it = conditions.peak_bytes()
    assert with_it >= conditions.resident_bytes() - (1 << 20)
    del held
    conditions.forget_peak()
    assert conditions.peak_bytes() < with_it


def test_without_a_model_two_are_measured() -> None:
    wanted = [(one.model, one.image_size) for one in what_to_measure(None)]
    assert wanted == [('demo', None), ('random:llava-cpu', 140), ('random:llava-cpu', 336)]
    with pytest.raises(UserError, match='random:nothing'):
        what_to_measure('random:nothing')
