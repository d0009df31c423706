"""What was asked for, found and used; which process reads a dataset; texts without spaces."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from calibration_helpers import as_dataset

from gmskip_ros.calibration.choosing import OF_FIRST, Counts, choose, value_of_first
from gmskip_ros.calibration.distributed import Ranks
from gmskip_ros.calibration.errors import CalibrationError
from gmskip_ros.calibration.settings import CalibrationSettings
from gmskip_ros.datasets import Dataset, Sample


def dataset(count: int = 48, name: str = 'val') -> Dataset:
    """Return images of which every third shows a car, and all a bus."""
    return as_dataset(
        [
            Sample(
                f'{name}/{i:03d}',
                Path(f'/{name}/{i:03d}.jpg'),
                labels=('car', 'bus') if i % 3 == 0 else ('bus',),
                main_object='bus',
            )
            for i in range(count)
        ],
        name,
    )


def settings(**options) -> CalibrationSettings:
    return CalibrationSettings(**{'task': 'single_object', **options})


def test_too_few_images_that_show_a_target_are_divided_and_that_is_said():
    """`--images 1000 --target car` of 48 images used 8 and said nothing."""
    chosen = choose(dataset(), settings(target='car'), 1000, 1000)
    assert chosen.counts == chosen.test_counts == Counts(asked=1000, found=16, used=8)
    assert chosen.is_short
    assert chosen.line == (
        "val: 16 of 48 images suit target 'car'; used: 8 of 1,000 asked for to calibrate on, 8 of "
        "1,000 asked for to test on, and 16 without 'car'; too few for both, so they share them: "
        '--test-images 0 leaves none for the test'
    )
    shows = [sample for sample in chosen.samples if 'car' in sample.labels]
    assert (len(shows), len(chosen.samples), chosen.dataset.samples) == (8, 16, ())


def test_all_images_of_a_small_dataset_are_halved_and_that_is_said():
    """`--images 30` of 30 used 15."""
    chosen = choose(dataset(30), settings(), 30, 30)
    assert 'used: 15 of 30 asked for to calibrate on, 15 of 30 asked for' in chosen.line
    chosen = choose(dataset(30), settings(), 30, 0)
    assert not chosen.is_short and chosen.test_counts is None
    assert chosen.line == (
        'val: 30 of 30 images suit single_object; used: 30 of 30 asked for to calibrate on'
    )


def test_a_different_test_dataset_has_counts_of_its_own():
    chosen = choose(dataset(30), settings(target='car'), 10, 9, dataset(20, 'test'))
    assert (chosen.counts, chosen.test_counts) == (Counts(10, 10, 10), Counts(9, 7, 7))
    assert '7 of 9 asked for to test on of the 7 of test' in chosen.line
    assert 'share' not in chosen.line


def with_texts(*texts: str) -> Dataset:
    samples = dataset(len(texts)).samples
    return as_dataset(
        [
            replace(sample, captions=(text,), references=(text,), question='What?')
            for sample, text in zip(samples, texts, strict=True)
        ],
        'lm',
    )


CHINESE = ('图中有一辆车。', '路上有行人，请减速。')


@pytest.mark.parametrize(
    'task, metric', [('captioning', None), ('captioning', 'rouge_l'), ('captioning', 'visual_gain')]
)
def test_chinese_captions_are_refused_by_metrics_that_compare_words(task, metric):
    """CODA-LM-chinese, the other language that CODA-LM is published in."""
    with pytest.raises(CalibrationError, match=r'2 of 3 texts .* Chinese, .* in English'):
        choose(with_texts(*CHINESE, 'A car.'), settings(task=task, metric=metric), 2, 1)


def test_chinese_references_are_scored_by_metrics_of_whole_texts():
    lm = with_texts(*CHINESE)
    for metric in ('cider', 'rouge_l'):
        with pytest.raises(CalibrationError, match='use --metric exact or contains'):
            choose(lm, settings(task='generic', metric=metric), 1, 1)
    assert choose(lm, settings(task='generic'), 1, 1).samples
    # A name on a sign does not make a caption Chinese.
    english = with_texts('A sign that says 北京.', 'A bus to 上海.')
    assert choose(english, settings(task='captioning'), 1, 1).samples


class Others(Ranks):
    """The second of two processes, to which the first one sent `sent`."""

    def __init__(self, sent: object) -> None:
        super().__init__()
        self.rank, self._sent = 1, sent

    def of_first(self, value):
        assert value is None  # nothing was computed here
        return self._sent


def test_only_the_first_process_reads_a_dataset():
    def fail():
        raise AssertionError('computed by the wrong process')

    assert value_of_first(Others('chosen'), fail) == 'chosen'
    with pytest.raises(CalibrationError, match='no image'):
        value_of_first(Others(CalibrationError('no image')), fail)
    assert OF_FIRST.samples == ()
