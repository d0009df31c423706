"""SIGINT and SIGTERM of a command that runs long: it ends at a safe place, with what it has."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

STOP_POLL_S = 0.1  # how often a main loop looks, at least


class StopSignals:
    """Within `with`, SIGINT and SIGTERM set a flag; a second one ends the program at once."""

    def __init__(self) -> None:
        self.exit_code = 130
        self._is_set = False
        self._ends_at_once = False
        self._before: dict[int, Any] = {}

    def is_set(self) -> bool:
        """Tell whether a signal came."""
        return self._is_set

    @property
    def name(self) -> str:
        """The signal that came: 'SIGINT' or 'SIGTERM'."""
        return signal.Signals(self.exit_code - 128).name

    def __enter__(self) -> StopSignals:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Within `with`, the first signal raises KeyboardInterrupt: nobody asks the flag there.

        One that came before raises it, too.
        """
        if self._is_set:
            raise KeyboardInterrupt
        self._ends_at_once = True
        try:
            yield
        finally:
            self._ends_at_once = False

    def _on_signal(self, number: int, _: object) -> None:
        if self._is_set:
            raise KeyboardInterrupt
        self._is_set = True
        self.exit_code = 128 + number
        if self._ends_at_once:
            raise KeyboardInterrupt


def stop_event_on_signals() -> threading.Event:
    """
    Return an event that SIGINT and SIGTERM set from now on; for the main thread.

    For use with `SignalHandlerOptions.NO`: rclpy's own handlers shut the context in the middle of
    whatever is published, and raise KeyboardInterrupt anywhere.
    """
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    return stop


class Interrupted(Exception):
    """A signal asked the run to end."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.exit_status = 128 + signum


class StopRequest:
    """
    Remembers SIGINT, SIGTERM and SIGHUP; `check` turns them into Interrupted at a safe place.

    A signal that is ignored (SIGHUP under nohup) stays ignored.
    """

    def __init__(self) -> None:
        self._signum = 0
        signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        self._previous = {
            signum: signal.signal(signum, self._remember)
            for signum in signals
            if signal.getsignal(signum) != signal.SIG_IGN
        }

    def _remember(self, signum: int, frame: object) -> None:
        self._signum = self._signum or signum

    def check(self) -> None:
        """Raise Interrupted if a signal has come."""
        if self._signum:
            raise Interrupted(self._signum)

    def release(self) -> None:
        """Give the signals back to whom they belonged before."""
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
