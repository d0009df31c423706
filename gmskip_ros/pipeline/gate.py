"""Which camera frames are due: one per period of header time, whatever the jitter."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

Verdict = Literal['due', 'reset', 'gated', 'out_of_order']


class FrameGate:
    """
    Choose frames by their header stamps alone, so that the same ones are chosen live and offline.

    A frame is due when `stamp // period > last_taken_stamp // period`. A stamp that is older than
    the newest one seen by more than a period is a jump (a bag starts over): everything is forgotten
    and the frame is due. One that is older by less is out of order and never due.

    Live, frames keep coming while the worker is busy, so being offered and being taken are two
    steps. Offline they are one: `if gate.offer(stamp_ns) in ('due', 'reset'): gate.take(stamp_ns)`.
    """

    def __init__(self, period_ns: int) -> None:
        """`period_ns` may be assigned later; the next offer uses it."""
        self.period_ns = period_ns
        self._newest_ns: int | None = None
        self._last_taken_ns: int | None = None

    def offer(self, stamp_ns: int) -> Verdict:
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
    """A camera message that waits or is worked on."""

    message: Any
    stamp_ns: int  # of its header; the time of arrival where the header has none


class FrameSlot:
    """The newest due frame: a lock, one reference, an event. Closed, it takes no frames."""

    def __init__(self, period_ns: int) -> None:
        self._lock = threading.Lock()
        self._gate = FrameGate(period_ns)
        self._frame: Frame | None = None
        self._taken: Frame | None = None
        self._event = threading.Event()
        self._open = False

    def set_period(self, period_ns: int) -> None:
        with self._lock:
            self._gate.period_ns = period_ns

    def set_open(self, is_open: bool) -> bool:
        """Closing drops the waiting frame and the taken one; return whether one had waited."""
        with self._lock:
            self._open = is_open
            waited = not is_open and self._frame is not None
            if not is_open:
                self._frame = self._taken = None
            return waited

    def offer(self, frame: Frame) -> str:
        """
        Keep the frame if it is due; never waits for the worker.

        Returns the counter (see health.py) of the frame that is dropped by this, this one or one
        that waited, or '' if none is.
        """
        with self._lock:
            if not self._open:
                return 'not_ready'
            verdict = self._gate.offer(frame.stamp_ns)
            if verdict in ('gated', 'out_of_order'):
                return verdict
            dropped = 'replaced' if self._frame is not None else ''
            self._frame = frame
        self._event.set()
        return dropped

    def waits(self) -> bool:
        """Return whether a due frame waits."""
        with self._lock:
            return self._frame is not None

    def holds(self, frame: Frame) -> bool:
        """Return whether the taken frame is this one; after a pause, however short, it is not."""
        with self._lock:
            return self._taken is frame

    def wake(self) -> None:
        """Let `take` return, with or without a frame."""
        self._event.set()

    def take(self, is_stale: Callable[[Frame], bool]) -> tuple[Frame | None, str]:
        """
        Wait for a frame or for `wake`; return (frame, '').

        (None, 'stale') for one that became too old while it waited (it does not use up its
        period), (None, '') when there is none.
        """
        self._event.wait()
        self._event.clear()
        with self._lock:
            frame, self._frame = self._frame, None
            if frame is None:
                return None, ''
            if is_stale(frame):
                return None, 'stale'
            self._gate.take(frame.stamp_ns)
            self._taken = frame
            return frame, ''
