"""SIGINT and SIGTERM of a program that runs for long: it stops where that is safe."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

STOP_POLL_S = 0.1  # a main loop checks for a signal at least this often


class StopSignals:
    """Records the first SIGINT or SIGTERM; the program asks for it where it can stop.

    Only `check` and `at_once` raise, always KeyboardInterrupt, whichever signal came. Use it in a
    `with` block, or call `listen` to keep it for the rest of the process. Main thread only.

    hangup: record SIGHUP as well, and leave alone whichever of the three signals this process
    ignores (nohup, a background job of a shell).
    second_interrupts: a second signal raises KeyboardInterrupt wherever the program is.
    """

    def __init__(self, *, hangup: bool = False, second_interrupts: bool = False) -> None:
        self._signals = [signal.SIGINT, signal.SIGTERM]
        if hangup:
            self._signals = [
                number
                for number in (*self._signals, signal.SIGHUP)
                if signal.getsignal(number) != signal.SIG_IGN
            ]
        self._second_interrupts = second_interrupts
        self._received: signal.Signals | None = None
        self._is_at_once = False
        self._previous: dict[signal.Signals, Any] = {}

    def listen(self) -> StopSignals:
        """Take over the signals, and return itself."""
        for number in self._signals:
            self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __enter__(self) -> StopSignals:
        return self.listen()

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def is_set(self) -> bool:
        """Return whether a signal has come."""
        return self._received is not None

    def check(self) -> None:
        """Raise KeyboardInterrupt if a signal has come."""
        if self.is_set():
            raise KeyboardInterrupt

    @property
    def name(self) -> str:
        """The signal that came, such as 'SIGTERM'; SIGINT before any did."""
        return (self._received or signal.SIGINT).name

    @property
    def exit_code(self) -> int:
        """The exit status of a program that the signal stopped: 130 for SIGINT, 143 for SIGTERM."""
        return 128 + (self._received or signal.SIGINT)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Within `with`, a signal raises KeyboardInterrupt as it comes, or if it has come before.

        For steps that do not ask, such as imports.
        """
        self.check()
        self._is_at_once = True
        try:
            yield
        finally:
            self._is_at_once = False

    def _on_signal(self, number: int, _: object) -> None:
        is_second = self.is_set()
        if not is_second:
            self._received = signal.Signals(number)
        if self._is_at_once or (is_second and self._second_interrupts):
            raise KeyboardInterrupt
