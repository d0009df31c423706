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
        if gate.judge(stamp, 0) in ('due', 'reset'):
            gate.take(stamp, 0)
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
    gate.judge(0, 0)
    gate.take(0, 0)
    assert gate.judge(SECOND // 2, 0) == 'gated'
    assert gate.judge(SECOND, 0) == 'due'
    assert gate.judge(SECOND + 1, 0) == 'due'  # the worker is still busy: the newer one replaces it
    gate.take(SECOND + 1, 0)
    assert gate.judge(SECOND + 2, 0) == 'gated'


def test_a_small_step_back_is_out_of_order() -> None:
    gate = FrameGate(SECOND)
    assert gate.judge(5 * SECOND, 0) == 'due'  # waits, not yet taken
    assert gate.judge(4 * SECOND + 1, 0) == 'out_of_order'
    assert gate.judge(4 * SECOND, 0) == 'out_of_order'  # exactly one period
    gate.take(5 * SECOND, 0)
    assert gate.judge(6 * SECOND, 0) == 'due'


def test_a_jump_back_starts_over() -> None:
    gate = FrameGate(SECOND)
    for stamp in (100 * SECOND, 101 * SECOND):
        assert gate.judge(stamp, 0) == 'due'
        gate.take(stamp, 0)
    assert gate.judge(3 * SECOND, 0) == 'reset'
    gate.take(3 * SECOND, 0)
    assert gate.judge(3 * SECOND + 1, 0) == 'gated'
    assert gate.judge(4 * SECOND, 0) == 'due'


def test_a_jump_back_is_seen_even_when_it_lands_after_the_last_taken_frame() -> None:
    gate = FrameGate(SECOND)
    gate.judge(100 * SECOND, 0)
    gate.take(100 * SECOND, 0)
    gate.judge(120 * SECOND, 0)  # the worker was busy all that time
    assert gate.judge(105 * SECOND, 0) == 'reset'


def test_the_same_stamp_twice_is_taken_once() -> None:
    assert chosen([7, 7, 7]) == [7]


def test_a_new_period_counts_from_the_next_frame() -> None:
    gate = FrameGate(SECOND)
    gate.judge(0, 0)
    gate.take(0, 0)
    assert gate.judge(SECOND // 2, 0) == 'gated'
    gate.period_ns = SECOND // 4
    assert gate.judge(SECOND // 2 + 1, 0) == 'due'


class Live:
    """A gate that is fed as a free worker would feed it; times are s."""

    def __init__(self, period_s: float = 1.0) -> None:
        self.gate = FrameGate(round(period_s * SECOND))
        self.taken: list[tuple[float, float]] = []  # arrival, stamp

    def send(self, arrival_s: float, stamp_s: float) -> None:
        stamp, arrival = round(stamp_s * SECOND), round(arrival_s * SECOND)
        if self.gate.judge(stamp, arrival) in ('due', 'reset'):
            self.gate.take(stamp, arrival)
            self.taken.append((arrival_s, stamp_s))

    def taken_between(self, first_s: float, last_s: float) -> int:
        return sum(first_s <= arrival < last_s for arrival, _ in self.taken)


def test_two_cameras_three_seconds_apart_do_not_lift_the_limit() -> None:
    live = Live()
    for tenth in range(200):
        live.send(tenth / 10, 100 + tenth / 10)
        live.send(tenth / 10 + 0.05, 97 + tenth / 10)
    assert live.taken_between(0, 1) <= 4  # until the second jump back
    assert 17 <= live.taken_between(1, 20) <= 19


def test_stamps_that_jump_back_and_forth_by_five_seconds() -> None:
    live = Live()
    for tenth in range(300):
        live.send(tenth / 10, 100 + tenth / 10 - (5 if tenth % 2 else 0))
    assert live.gate.is_unsteady(30 * SECOND)
    assert 27 <= live.taken_between(1, 30) <= 29


def test_a_single_jump_back_is_answered_at_once_and_so_is_one_much_later() -> None:
    live = Live()
    live.send(0.0, 100.0)
    live.send(0.1, 10.0)
    live.send(10.2, 20.1)
    live.send(10.3, 5.0)  # more than 10 s after the first
    assert [stamp for _, stamp in live.taken] == [100.0, 10.0, 20.1, 5.0]
    assert not live.gate.is_unsteady(11 * SECOND)


def test_a_frame_that_waited_through_a_jump_back_does_not_hold_later_ones_up() -> None:
    """A busy worker takes it when the stamps are elsewhere, in whose periods it does not count."""
    live = Live()
    live.send(0.0, 2000.0)
    live.send(0.1, 1000.0)
    assert live.gate.judge(2001 * SECOND, round(0.4 * SECOND)) == 'due'  # and waits
    assert live.gate.judge(round(1000.2 * SECOND), round(0.5 * SECOND)) == 'gated'
    live.gate.take(2001 * SECOND, SECOND)
    for tenth in range(11, 200):
        live.send(tenth / 10, 1000 + tenth / 10)
    assert live.taken_between(1.1, 20) >= 18


def test_the_limit_ends_ten_seconds_after_the_last_jump_back() -> None:
    live = Live()
    for arrival_s, stamp_s in ((0.0, 50.0), (0.1, 40.0), (0.2, 30.0)):
        live.send(arrival_s, stamp_s)
    assert [stamp for _, stamp in live.taken] == [50.0, 40.0]
    assert live.gate.is_unsteady(round(10.1 * SECOND))
    live.send(10.3, 41.0)
    live.send(10.4, 42.0)  # as a bag played at ten times its speed
    live.send(10.5, 43.0)
    assert [stamp for _, stamp in live.taken] == [50.0, 40.0, 41.0, 42.0, 43.0]
    assert live.gate.resets == 2


def test_a_fast_bag_is_answered_once_per_period_of_its_own_time() -> None:
    live = Live()
    for frame in range(100):
        live.send(frame / 50, 100 + frame / 10)
    assert [stamp for _, stamp in live.taken] == [100.0 + second for second in range(10)]


def test_a_fast_bag_of_four_seconds_in_a_loop_is_limited_from_its_second_start() -> None:
    live = Live()
    for frame in range(400):  # ten times its speed: 0.4 s a round
        live.send(frame / 100, 100 + frame % 40 / 10)
    assert live.gate.resets == 9
    assert live.taken_between(0, 0.8) == 8  # the first two rounds
    assert 2 <= live.taken_between(0.8, 4) <= 4
