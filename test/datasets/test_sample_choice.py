"""The choice of samples: by seed, disjoint, and recorded by hash."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

import pytest
from look_alikes import write_images

from gmskip_ros.datasets import DatasetError, Sample, choose_samples, sample_hash


def make_samples(count: int, per_image: int = 1) -> list[Sample]:
    return [
        Sample(f'val/{number:04d}', Path(f'/data/{number // per_image:04d}.jpg'))
        for number in range(count)
    ]


def keys(samples: list[Sample]) -> list[str]:
    return [sample.key for sample in samples]


@pytest.mark.parametrize('per_image', [1, 4])
def test_the_choice_depends_on_the_seed_and_not_on_the_order(per_image):
    samples = make_samples(50, per_image)
    chosen, others = choose_samples(samples, 10, 5, seed=3)
    assert (len(chosen), len(others)) == (10, 5)
    assert len({*keys(chosen), *keys(others)}) == 15  # disjoint
    for attempt in range(5):
        random.Random(attempt).shuffle(samples)
        assert choose_samples(samples, 10, 5, seed=3) == (chosen, others)
    other_seeds = [keys(choose_samples(samples, 10, 5, seed)[0]) for seed in range(20)]
    assert len({tuple(found) for found in other_seeds}) > 15


def test_a_key_may_be_invalid_unicode():
    samples = [Sample(key, Path(key[1:])) for key in ('\ud800a', 'b', '\udcffc')]  # allowed in JSON
    chosen, others = choose_samples(samples, 2, 1, seed=0)
    assert {*chosen, *others} == {*samples}


def test_a_smaller_choice_is_the_beginning_of_a_larger_one():
    samples = make_samples(50)
    assert choose_samples(samples, 4, 0, 0)[0] == choose_samples(samples, 30, 9, 0)[0][:4]


def test_every_sample_is_as_likely_as_any_other():
    samples = make_samples(20)
    counts = dict.fromkeys(keys(samples), 0)
    for seed in range(2000):
        for key in keys(choose_samples(samples, 5, 0, seed)[0]):
            counts[key] += 1
    # 2,000 x 5 / 20 = 500 each, with a standard deviation of 19.4; allow five of those.
    assert all(400 < count < 600 for count in counts.values())


@pytest.mark.parametrize(
    'available, asked, got',
    [
        (30, (20, 10), (20, 10)),
        (15, (20, 10), (10, 5)),
        (3, (1000, 1000), (2, 1)),
        (2, (1000, 10), (1, 1)),
        (2, (1, 1000), (1, 1)),
        (5, (1000, 0), (5, 0)),
        (5, (0, 1000), (0, 5)),
        (100, (1000, 1), (99, 1)),
    ],
)
def test_too_few_samples_are_shared_in_proportion(available, asked, got):
    chosen, others = choose_samples(make_samples(available), *asked, seed=1)
    assert (len(chosen), len(others)) == got
    assert not set(keys(chosen)) & set(keys(others))


@pytest.mark.parametrize('asked', [(10, 5), (39, 1), (1, 39), (100, 100)])
def test_an_image_with_several_questions_is_on_one_side(asked):
    samples = make_samples(40, per_image=4)
    for seed in range(10):
        chosen, others = choose_samples(samples, *asked, seed)
        assert chosen and others
        images = [{sample.image_path for sample in part} for part in (chosen, others)]
        assert not images[0] & images[1]
        assert len(chosen) <= asked[0] and len(others) <= asked[1]


@pytest.mark.parametrize('available, asked', [(0, (1, 0)), (1, (1, 1)), (5, (0, 0)), (5, (-1, 5))])
def test_an_impossible_choice_is_refused(available, asked):
    with pytest.raises(DatasetError):
        choose_samples(make_samples(available), *asked, seed=0)


def test_one_image_with_two_questions_cannot_be_on_both_sides():
    with pytest.raises(DatasetError, match='1 images are too few'):
        choose_samples(make_samples(2, per_image=2), 1, 1, seed=0)


def test_the_hash_changes_with_whatever_a_score_depends_on(tmp_path):
    write_images(tmp_path, ['a.jpg', 'b.jpg'])
    sample = Sample(
        'val/a.jpg', tmp_path / 'a.jpg', ('car',), 'car', ('A car.',), 'What?', ('car',)
    )
    other = Sample('val/b.jpg', tmp_path / 'b.jpg')
    before = sample_hash([sample, other])
    assert len(before) == 64 and before == sample_hash([sample, other])
    changed = [
        [other, sample],
        [sample],
        [],
        *(
            [dataclasses.replace(sample, **change), other]
            for change in (
                {'key': 'test/a.jpg'},
                {'labels': ('bus',)},
                {'main_object': None},
                {'captions': ()},
                {'question': None},
                {'references': ('bus',)},
                {'image_path': tmp_path / 'b.jpg'},
            )
        ),
    ]
    assert len({before, *map(sample_hash, changed)}) == 1 + len(changed)

    moved = tmp_path / 'moved'
    moved.mkdir()
    (tmp_path / 'a.jpg').rename(moved / 'a.jpg')
    sample = dataclasses.replace(sample, image_path=moved / 'a.jpg')
    assert sample_hash([sample, other]) == before  # the path does not matter
    with open(moved / 'a.jpg', 'ab') as file:
        file.write(b'\0')
    assert sample_hash([sample, other]) != before
    (moved / 'a.jpg').unlink()
    with pytest.raises(DatasetError, match=r'a\.jpg: cannot be read'):
        sample_hash([sample])


def test_samples_are_hashable():
    first, second = make_samples(2)
    assert len({first, second, dataclasses.replace(first, labels=('car',))}) == 3
