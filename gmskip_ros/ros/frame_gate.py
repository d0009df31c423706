"""Which camera frames are due: one per period of header time, whatever the jitter."""

from __future__ import annotations

from typing import Literal

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
