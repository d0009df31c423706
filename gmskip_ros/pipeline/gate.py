"""Which camera frames are due (one per period of header time) and where the newest one waits."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from gmskip_ros.pipeline.stamps import StampWatch

Verdict = Literal['due', 'reset', 'gated', 'out_of_order']
UNSTEADY_NS = 10_000_000_000  # two jumps back within it, until it has passed without one


class FrameGate:
    """Choose frames by their header stamps: the same ones live and offline.

    A frame is due when `stamp // period > last_taken_stamp // period`. A stamp more than a period
    older than the newest one seen is a jump (a bag starts over): the gate forgets everything and
    the frame is due. A stamp that is older by less is out of order and never due.

    Stamps that go back and forth (two cameras on one topic) would make every frame due. From the
    second jump back within UNSTEADY_NS until UNSTEADY_NS without one, a frame is therefore gated
    unless a period has also passed since the last one was taken, by the time of arrival.

    Live, frames keep arriving while the worker is busy, so judging and taking are two steps.
    Offline they are one: `if gate.judge(stamp_ns, time_ns) in ('due', 'reset'):
    gate.take(stamp_ns, time_ns)`.
    """

    def __init__(self, period_ns: int) -> None:
        """`period_ns` may be assigned later; the next call of `judge` uses it."""
        self.period_ns = period_ns
        self.resets = 0  # jumps back so far
        self._newest_ns: int | None = None
        self._last_taken_ns: int | None = None
        self._last_taken_at_ns: int | None = None
        self._last_reset_at_ns = 0
        self._close_resets = 0  # each within UNSTEADY_NS of the one before

    def judge(self, stamp_ns: int, arrival_ns: int) -> Verdict:
        """Return whether the frame with this stamp (ns) is due; 'reset' is due after a jump.

        `arrival_ns`: when it arrived, by a clock that does not jump (offline: when it was
        recorded).
        """
        verdict = self._judge_stamp(stamp_ns)
        if verdict == 'reset':
            is_close = arrival_ns - self._last_reset_at_ns < UNSTEADY_NS
            self._close_resets = self._close_resets + 1 if is_close and self.resets else 1
            self._last_reset_at_ns = arrival_ns
            self.resets += 1
        if verdict in ('due', 'reset') and self.is_unsteady(arrival_ns):
            taken_ns = self._last_taken_at_ns
            if taken_ns is not None and 0 <= arrival_ns - taken_ns < self.period_ns:
                return 'gated'
        return verdict

    def _judge_stamp(self, stamp_ns: int) -> Verdict:
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

    def is_unsteady(self, now_ns: int) -> bool:
        """Return whether stamps go back and forth; `now_ns` is of the clock of arrivals."""
        return self._close_resets > 1 and now_ns - self._last_reset_at_ns < UNSTEADY_NS

    def take(self, stamp_ns: int, now_ns: int) -> None:
        """Remember that the due frame with this stamp is being answered from `now_ns` on."""
        if self._newest_ns is None or stamp_ns <= self._newest_ns:
            self._last_taken_ns = stamp_ns
        # Else stamps have jumped back while it waited: it says nothing of the periods from then on.
        self._last_taken_at_ns = now_ns


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
        self._stamps = StampWatch()
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
            self._stamps = StampWatch()
            dropped = not is_open and self._waiting is not None
            if not is_open:
                self._waiting = self._taken = None
            return dropped

    def put(self, frame: Frame, is_stale: Callable[[Frame], bool]) -> str:
        """Keep the frame if it is due; never blocks.

        Returns the counter (of health.py) for the frame that this drops: this one, or one that was
        waiting; '' if none is dropped. Age counts only while open.
        """
        with self._lock:
            if not self._open:
                return 'not_ready'
            if is_stale(frame):
                return 'stale'
            now_ns = time.monotonic_ns()
            verdict = self._gate.judge(frame.stamp_ns, now_ns)
            self._stamps.note(frame.stamp_ns, now_ns, is_due=verdict in ('due', 'reset'))
            if verdict in ('gated', 'out_of_order'):
                return verdict
            dropped = 'replaced' if self._waiting is not None else ''
            self._waiting = frame
        self._event.set()
        return dropped

    def stuck_stamps(self, after_ns: int) -> str:
        """Return what makes arriving frames never due, if it lasts for `after_ns`; else ''."""
        with self._lock:
            return self._stamps.problem(self._gate.period_ns, after_ns)

    def unsteady_stamps(self) -> str:
        """Return a line about stamps that go back and forth; '' if they do not."""
        with self._lock:
            if not self._gate.is_unsteady(time.monotonic_ns()):
                return ''
            return (
                f'stamps go back and forth ({self._gate.resets} jumps back so far), so frames are '
                'taken by time of arrival: are there two cameras or bags on this topic, or a bag '
                'of less than 10 s in a loop?'
            )

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
            self._gate.take(frame.stamp_ns, time.monotonic_ns())
            self._taken = frame
            return frame, ''
