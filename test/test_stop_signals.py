"""How a long-running program receives SIGINT, SIGTERM and SIGHUP."""

from __future__ import annotations

import os
import signal

import pytest

from gmskip_ros.signals import StopSignals


def send(number: int) -> None:
    os.kill(os.getpid(), number)


def test_the_first_signal_is_recorded_and_raises_only_where_it_is_checked() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with StopSignals() as stop:
        stop.check()
        assert not stop.is_set()
        send(signal.SIGTERM)
        send(signal.SIGINT)
        assert stop.is_set() and (stop.name, stop.exit_code) == ('SIGTERM', 143)
        with pytest.raises(KeyboardInterrupt):
            stop.check()
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_second_signal_interrupts_on_request() -> None:
    with StopSignals(second_interrupts=True) as stop:
        send(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGTERM)
        assert stop.exit_code == 130


def test_at_once_a_signal_interrupts_even_one_from_before() -> None:
    with StopSignals() as stop:
        with pytest.raises(KeyboardInterrupt), stop.at_once():
            send(signal.SIGTERM)
        assert stop.exit_code == 143
        with pytest.raises(KeyboardInterrupt), stop.at_once():
            pytest.fail('entered')
        send(signal.SIGTERM)  # outside of it, nothing is raised


@pytest.mark.parametrize('ignored', [signal.SIGHUP, signal.SIGINT])
def test_with_hangup_ignored_signals_stay_ignored(ignored: int) -> None:
    handler = signal.signal(ignored, signal.SIG_IGN)  # as nohup and background jobs do
    try:
        with StopSignals(hangup=True) as stop:
            send(ignored)
            assert not stop.is_set()
        assert signal.getsignal(ignored) == signal.SIG_IGN
    finally:
        signal.signal(ignored, handler)


def test_a_hangup_is_received_on_request() -> None:
    with StopSignals(hangup=True) as stop:
        send(signal.SIGHUP)
        assert (stop.name, stop.exit_code) == ('SIGHUP', 129)
