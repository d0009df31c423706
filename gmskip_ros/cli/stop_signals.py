"""SIGINT and SIGTERM of a command that runs long: it ends at a safe place, with what it has."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


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
