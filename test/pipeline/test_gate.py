"""Which frames are due, by their stamps alone."""

from __future__ import annotations

import random

import pytest

from gmskip_ros.pipeline.gate import FrameGate

SECOND = 1_000_000_000


def chosen(stamps: list[int], period_ns: int = SECOND) -> list[int]:
    """Return the stamps a worker that is always free would take."""
    gate = FrameGate(period_ns)
    taken = []
    for stamp in stamps:
        if gate.judge(stamp) in ('due', 'reset'):
            gate.take(stamp)
            taken.append(stamp)
    return taken


def test_one_frame_per_period_of_a_steady_camera() -> None:
    assert chosen([i * SECOND // 10 for i in range(35)]) == [0, SECOND, 2 * SECOND, 3 * SECOND]


@pytest.mark.parametrize('seed', range(5))
def test_jitter_never_changes_the_number_of_frames(seed: int) -> None:
    rng = random.Random(seed)
    start = rng.randrange(10**18)
    # 10 Hz, each stamp late by up to 90 ms: still in order, and one in each 100 ms.
    stamps = [start + i * SECOND // 10 + rng.randrange(90_000_000) for i in range(600)]
    taken = chosen(stamps)
    # Exactly the first frame of each second, computed in a different way.
    first_of_second: dict[int, int] = {}
    for stamp in stamps:
        first_of_second.setdefault(stamp // SECOND, stamp)
    assert taken == list(first_of_second.values())
    assert len(taken) in (60, 61)


def test_a_camera_slower_than_the_rate_loses_no_frame() -> None:
    stamps = [i * 3 * SECOND for i in range(5)]
    assert chosen(stamps) == stamps


def test_frames_stay_due_until_one_is_taken() -> None:
    gate = FrameGate(SECOND)
    gate.judge(0)
    gate.take(0)
    assert gate.judge(SECOND // 2) == 'gated'
    assert gate.judge(SECOND) == 'due'
    assert gate.judge(SECOND + 1) == 'due'  # the worker is still busy: the newer one replaces it
    gate.take(SECOND + 1)
    assert gate.judge(SECOND + 2) == 'gated'


def test_a_small_step_back_is_out_of_order() -> None:
    gate = FrameGate(SECOND)
    assert gate.judge(5 * SECOND) == 'due'  # waits, not yet taken
    assert gate.judge(4 * SECOND + 1) == 'out_of_order'
    assert gate.judge(4 * SECOND) == 'out_of_order'  # exactly one period
    gate.take(5 * SECOND)
    assert gate.judge(6 * SECOND) == 'due'


def test_a_jump_back_starts_over() -> None:
    gate = FrameGate(SECOND)
    for stamp in (100 * SECOND, 101 * SECOND):
        assert gate.judge(stamp) == 'due'
        gate.take(stamp)
    assert gate.judge(3 * SECOND) == 'reset'
    gate.take(3 * SECOND)
    assert gate.judge(3 * SECOND + 1) == 'gated'
    assert gate.judge(4 * SECOND) == 'due'


def test_a_jump_back_is_seen_even_when_it_lands_after_the_last_taken_frame() -> None:
    gate = FrameGate(SECOND)
    gate.judge(100 * SECOND)
    gate.take(100 * SECOND)
    gate.judge(120 * SECOND)  # the worker was busy all that time
    assert gate.judge(105 * SECOND) == 'reset'


def test_the_same_stamp_twice_is_taken_once() -> None:
    assert chosen([7, 7, 7]) == [7]


def test_a_new_period_counts_from_the_next_frame() -> None:
    gate = FrameGate(SECOND)
    gate.judge(0)
    gate.take(0)
    assert gate.judge(SECOND // 2) == 'gated'
    gate.period_ns = SECOND // 4
    assert gate.judge(SECOND // 2 + 1) == 'due'
