"""Skip sets hold distinct block indices per phase and refuse anything else."""

from __future__ import annotations

import numpy as np
import pytest

from gmskip_ros import vlm
from gmskip_ros.skipping import SkipSet, SkipSetError


def test_phases_are_sets_of_ints() -> None:
    skip = SkipSet(prefill=[3, 1], decode=(np.int64(5), 1))
    assert skip.prefill == frozenset({1, 3})
    assert skip.decode == frozenset({1, 5})
    assert skip.blocks == (1, 3, 5)
    assert all(type(block) is int for block in skip.decode)


def test_of_gives_the_same_blocks_to_the_phases_named() -> None:
    assert SkipSet.of([2, 0]) == SkipSet(prefill=[0, 2], decode=[0, 2])
    assert SkipSet.of([2], phases=['decode']) == SkipSet(decode=[2])
    assert SkipSet.of([2], phases='prefill') == SkipSet(prefill=[2])
    assert SkipSet.of(iter(range(2))) == SkipSet(prefill=[0, 1], decode=[0, 1])
    skip = SkipSet(decode=[4])
    assert SkipSet.of(skip) is skip


def test_an_empty_set_is_false() -> None:
    assert not SkipSet()
    assert not SkipSet.of([])
    assert SkipSet(prefill=[0])
    assert SkipSet(decode=[0])


def test_the_engine_exports_the_same_class() -> None:
    assert vlm.SkipSet is SkipSet
    assert vlm.SkipSetError is SkipSetError


def test_it_is_frozen_and_can_be_a_key() -> None:
    assert {SkipSet.of([1]): 'a'}[SkipSet(prefill=[1], decode=[1])] == 'a'
    with pytest.raises(AttributeError):
        SkipSet().prefill = frozenset()


@pytest.mark.parametrize(
    ('blocks', 'message'),
    [
        ([-1], 'block -1 is negative'),
        ([3, 3], 'block 3 is named twice'),
        ([2.0], 'block 2.0 is not an integer'),
        (['2'], "block '2' is not an integer"),
        ([True], 'block True is not an integer'),
        ([None], 'block None is not an integer'),
        ('29,16', "'29,16' is not a list"),
        (29, '29 is not a list'),
        (None, 'None is not a list'),
    ],
)
def test_bad_blocks_are_named(blocks, message) -> None:
    for make in (SkipSet.of, SkipSet, lambda blocks: SkipSet(decode=blocks)):
        with pytest.raises(SkipSetError, match=message) as caught:
            make(blocks)
        assert isinstance(caught.value, ValueError)
        assert '\n' not in str(caught.value)


def test_unknown_phases_are_named() -> None:
    with pytest.raises(SkipSetError, match="unknown phase 'encode'"):
        SkipSet.of([1], phases=['prefill', 'encode'])


def test_blocks_are_checked_against_the_model() -> None:
    SkipSet.of(range(32)).check(32)
    with pytest.raises(SkipSetError, match='block 32 does not exist: the model has 32 blocks'):
        SkipSet(decode=[0, 32]).check(32)
