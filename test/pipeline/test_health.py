"""States over time: a warning is entered at once and left after it has settled."""

from __future__ import annotations

import pytest

from gmskip_ros.pipeline.health import Health, Report


def running() -> Health:
    health = Health(0.0)
    health.set_phase('running', 0.0)
    return health


def answer(health: Health, now_s: float, overload: str = '') -> Report:
    health.frame_received('', now_s)
    health.frame_done('answered', now_s, overload)
    return health.report(now_s)


def test_overload_is_left_three_seconds_after_its_end() -> None:
    health = running()
    assert answer(health, 1.0).state == 'ready'
    assert answer(health, 2.0, 'too slow').state == 'overload'
    held = answer(health, 3.0)
    assert (held.state, held.level) == ('overload', 'WARN')
    assert held.reason == 'too slow (good for 1.0 s)' and held.is_logged
    assert answer(health, 4.9).state == 'overload'
    assert answer(health, 5.1).state == 'ready'


def test_overload_and_silence_that_alternate_are_one_warning() -> None:
    health = running()
    levels = set()
    answer(health, 0.0, 'too slow')
    for now_s in range(1, 300):
        if now_s % 5 == 0:
            levels.add(answer(health, now_s, 'too slow' if now_s % 10 else '').level)
        levels.add(health.report(now_s).level)
    assert levels == {'WARN'}


def test_a_warning_between_two_reports_is_not_missed() -> None:
    health = running()
    health.frame_received('', 1.0)
    health.frame_done('answered', 1.0, 'too slow')
    health.frame_received('', 1.5)
    health.frame_done('answered', 1.5)
    assert health.report(2.0).state == 'overload'


@pytest.mark.parametrize('phase', ['paused', 'error'])
def test_other_states_do_not_wait(phase: str) -> None:
    health = running()
    health.failure('failed', 'broken', 1.0)
    assert health.report(1.0).state == 'degraded'
    if phase == 'paused':
        health.set_enabled(False, 1.5)
    else:
        health.set_phase('error', 1.5, 'worse')
    assert health.report(1.5).state == phase
    health.set_phase('running', 2.0)
    health.set_enabled(True, 2.0)
    assert health.report(2.1).state == 'ready'


def test_rates() -> None:
    health = running()
    for frame in range(100):
        health.frame_received('gated' if frame % 10 else '', frame / 10)
        if frame % 10 == 0:
            health.frame_done('answered', frame / 10)
    report = health.report(10.0)
    assert report.input_rate_hz == pytest.approx(10.0)
    assert report.achieved_rate_hz == pytest.approx(1.0)
    assert health.report(15.0).input_rate_hz == pytest.approx(5.0)
