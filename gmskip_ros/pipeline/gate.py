"""Which camera frames are due (one per period of header time) and where the newest one waits."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

Verdict = Literal['due', 'reset', 'gated', 'out_of_order']


class FrameGate:
    """Choose frames by their header stamps alone: the same ones live and offline.

    A frame is due when `stamp // period > last_taken_stamp // period`. A stamp more than a period
    older than the newest one seen is a jump (a bag starts over): the gate forgets everything and
    the frame is due. A stamp that is older by less is out of order and never due.

    Live, frames keep arriving while the worker is busy, so judging and taking are two steps.
    Offline they are one: `if gate.judge(stamp_ns) in ('due', 'reset'): gate.take(stamp_ns)`.
    """

    def __init__(self, period_ns: int) -> None:
        """`period_ns` may be assigned later; the next call of `judge` uses it."""
        self.period_ns = period_ns
        self._newest_ns: int | None = None
        self._last_taken_ns: int | None = None

    def judge(self, stamp_ns: int) -> Verdict:
        """Return whether the frame with this stamp (ns) is due; 'reset' is due after a jump."""
        if self._newest_ns is not None and stamp_ns < self._newest_ns:
            if self._newest_ns - stamp_ns <= self.period_ns:
                return 'out_of_order'
            self._newest_ns = stamp_ns
            self._last_taken_ns = None
            return 'reset'
        self._newest_ns = stamp_ns
        last = self._last_taken_ns
        if last is None or stamp_ns // self.period_ns > last // self.period_ns:
            return 'due'
        return 'gated'

    def take(self, stamp_ns: int) -> None:
        """Remember that the due frame with this stamp (ns) is being answered."""
        self._last_taken_ns = stamp_ns


@dataclass(frozen=True)
class Frame:
    """A camera message that is waiting or being answered."""

    message: Any
    stamp_ns: int  # of its header; the time of arrival if the header has none


class FrameSlot:
    """Holds the newest due frame for the worker. While closed, it takes no frames."""

    def __init__(self, period_ns: int) -> None:
        self._lock = threading.Lock()
        self._gate = FrameGate(period_ns)
        self._waiting: Frame | None = None
        self._taken: Frame | None = None
        self._event = threading.Event()
        self._open = False

    def set_period(self, period_ns: int) -> None:
        with self._lock:
            self._gate.period_ns = period_ns

    def set_open(self, is_open: bool) -> bool:
        """Open or close; return whether closing has dropped a waiting frame.

        Closing also revokes the taken frame: `holds` is False for it from then on.
        """
        with self._lock:
            self._open = is_open
            dropped = not is_open and self._waiting is not None
            if not is_open:
                self._waiting = self._taken = None
            return dropped

    def put(self, frame: Frame) -> str:
        """Keep the frame if it is due; never blocks.

        Returns the counter (of health.py) for the frame that this drops: this one, or one that was
        waiting; '' if none is dropped.
        """
        with self._lock:
            if not self._open:
                return 'not_ready'
            verdict = self._gate.judge(frame.stamp_ns)
            if verdict in ('gated', 'out_of_order'):
                return verdict
            dropped = 'replaced' if self._waiting is not None else ''
            self._waiting = frame
        self._event.set()
        return dropped

    def is_occupied(self) -> bool:
        """Return whether a due frame is waiting."""
        with self._lock:
            return self._waiting is not None

    def holds(self, frame: Frame) -> bool:
        """Return whether this is the taken frame; after a pause, however short, it is not."""
        with self._lock:
            return self._taken is frame

    def wake(self) -> None:
        """Make `take` return, with or without a frame."""
        self._event.set()

    def take(self, is_stale: Callable[[Frame], bool]) -> tuple[Frame | None, str]:
        """Wait for a frame or for `wake`; return (frame, '').

        Returns (None, 'stale') for a frame that became too old while waiting (its period stays
        unused), and (None, '') if there is none.
        """
        self._event.wait()
        self._event.clear()
        with self._lock:
            frame, self._waiting = self._waiting, None
            if frame is None:
                return None, ''
            if is_stale(frame):
                return None, 'stale'
            self._gate.take(frame.stamp_ns)
            self._taken = frame
            return frame, ''
