"""What stamps say about the camera and the clocks."""

from __future__ import annotations

import pytest

from gmskip_ros.pipeline.stamps import MEANINGS, StampWatch, age_text, check_stamp

SECOND = 1_000_000_000
NOW = 1_790_000_000 * SECOND


@pytest.mark.parametrize(
    ('age_s', 'expected'),
    [
        (0.0, 'ok'),
        (9.9, 'ok'),
        (-0.9, 'ok'),
        (7200.0, 'old'),
        (-5.0, 'future'),
        (-86_400.0, 'future'),
        (NOW / 1e9 - 3600.0, 'since_boot'),
    ],
)
def test_a_stamp_is_compared_with_the_clock(age_s: float, expected: str) -> None:
    stamp_ns = NOW - round(age_s * SECOND)
    assert check_stamp(stamp_ns, NOW) == expected
    assert expected == 'ok' or MEANINGS[expected]


def test_simulated_time_from_zero_is_no_boot() -> None:
    assert check_stamp(5 * SECOND, 0) == 'unknown'
    assert check_stamp(5 * SECOND, 6 * SECOND) == 'ok'
    assert check_stamp(5 * SECOND, 600 * SECOND) == 'old'


def test_ages_are_readable() -> None:
    assert age_text(NOW - 7200 * SECOND, NOW) == '7200 s old'
    assert age_text(NOW + 3 * SECOND, NOW) == '3 s in the future'


def problem(arrivals: list[tuple[float, float, bool]], period_s: float = 1.0) -> str:
    """Return what a watch says about frames of (arrival, stamp, is due), s."""
    watch = StampWatch()
    for arrival_s, stamp_s, is_due in arrivals:
        watch.note(round(stamp_s * SECOND), round(arrival_s * SECOND), is_due=is_due)
    return watch.problem(round(period_s * SECOND), 3 * SECOND)


def test_a_stamp_that_never_changes_is_named() -> None:
    frames = [(tenth / 10, 50.0, tenth == 0) for tenth in range(60)]
    assert problem(frames[:30]) == ''
    assert 'their stamp 50.000 has not advanced for 6 s' in problem(frames)
    assert problem([*frames, (6.1, 51.0, True)]) == ''


def test_stamps_that_stay_behind_the_newest_one_do_not_advance() -> None:
    frames = [(tenth / 10, 50.0 - tenth % 2 * 0.1, tenth == 0) for tenth in range(60)]
    assert 'has not advanced' in problem(frames)


def test_a_bag_at_a_tenth_of_its_speed_is_no_problem() -> None:
    frames = [(tenth / 10, 50.0 + tenth / 100, tenth == 0) for tenth in range(95)]
    assert problem(frames) == ''


def test_a_slow_camera_is_no_problem() -> None:
    assert problem([(0.0, 50.0, True), (20.0, 70.0, True), (40.0, 90.0, True)]) == ''


def test_stamps_that_advance_by_two_periods_with_none_due_are_named() -> None:
    frames = [(tenth / 10, 50.0 + tenth / 10, tenth == 0) for tenth in range(60)]
    assert 'none was due for 6 s' in problem(frames)
    assert problem(frames, period_s=10.0) == ''
