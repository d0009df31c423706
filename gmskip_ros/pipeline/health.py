"""What the node reports about itself on /diagnostics: states, counters, latencies.

The camera callback and the worker update it, the node reads it once a second; any thread may call
it. Times are seconds of a steady clock, passed in by the caller.
"""

from __future__ import annotations

import math
import os
import threading
from collections import Counter, deque
from dataclasses import dataclass
from pathlib import Path

import numpy as np

OK, WARN, ERROR = 'OK', 'WARN', 'ERROR'
LEVELS = {
    'loading': OK,
    'warming_up': OK,
    'ready': OK,
    'paused': OK,
    'no_frames': WARN,
    'overload': WARN,
    'degraded': WARN,
    'error': ERROR,
}
FRAME_COUNTERS = (
    'received',  # by the camera callback; each also counts under at most one of those below
    'not_ready',  # arrived while loading, paused or in error
    'stale',  # older than max_frame_age_sec
    'gated',  # its period already has an answer
    'out_of_order',  # older than an earlier frame, by less than a period
    'replaced',  # due, but a newer due frame arrived before the worker was free
    'answered',  # every branch has published its answers
    'full_dropped',  # overload_policy drop_full: only the skip branch has published
    'undecodable',  # the message could not be decoded to an image
    'failed',  # any other exception between the message and the overlay image
    'abandoned',  # paused or stopped while it was being answered
)
ACHIEVED_RATE_WINDOW_S = 10.0
LATENCY_WINDOW = 100  # frames


def resident_mib() -> float:
    """Return this process's resident memory, MiB; NaN if the system does not report it."""
    try:
        pages = int(Path('/proc/self/statm').read_text().split()[1])
    except OSError:
        return math.nan
    return pages * os.sysconf('SC_PAGE_SIZE') / 2**20


@dataclass(frozen=True)
class Report:
    """The node's health at one moment."""

    state: str
    level: str  # OK, WARN or ERROR
    reason: str  # '' if the state needs none
    frames: dict[str, int]
    achieved_rate_hz: float
    latency_ms: dict[str, tuple[float, float]]  # branch -> (p50, p95), if measured
    last_error: str


class Health:
    """The node's state and counters."""

    def __init__(self, now_s: float, enabled: bool = True) -> None:
        self._lock = threading.Lock()
        self._phase, self._phase_reason = 'loading', ''
        self._paused = not enabled
        self._frames: Counter[str] = Counter()
        self._last_received_s = self._last_usable_s = self._running_since_s = now_s
        self._answered_s: deque[float] = deque()
        self._latency_ms: dict[str, deque[float]] = {}
        self._overload = ''
        self._last_error = ''
        self._degraded = False
        self._failed_since_report = False

    def set_phase(self, phase: str, now_s: float, reason: str = '') -> None:
        """Enter 'loading', 'warming_up', 'running' or 'error'."""
        with self._lock:
            self._phase, self._phase_reason = phase, reason
            if phase == 'running':
                self._restart_windows(now_s)
            elif phase == 'error':
                self._last_error = reason
                self._paused = False  # a pause must not hide an error that came after it

    def set_enabled(self, enabled: bool, now_s: float) -> None:
        """Note a call of `~/enable`."""
        with self._lock:
            self._paused = not enabled
            self._restart_windows(now_s)

    def _restart_windows(self, now_s: float) -> None:
        self._running_since_s = self._last_received_s = self._last_usable_s = now_s
        self._answered_s.clear()
        self._overload = ''
        self._degraded = False

    def frame_received(self, outcome: str, now_s: float) -> None:
        """Count a camera message; `outcome` is one of FRAME_COUNTERS, or '' if it is waiting."""
        with self._lock:
            self._frames['received'] += 1
            self._last_received_s = now_s
            if outcome != 'stale':
                self._last_usable_s = now_s
            if outcome:
                self._frames[outcome] += 1

    def count(self, outcome: str) -> None:
        """Count a frame that was waiting or being answered under one of FRAME_COUNTERS."""
        with self._lock:
            self._frames[outcome] += 1

    def branch_done(self, branch: str, elapsed_ms: float) -> None:
        """Note that a branch has published its result for a frame."""
        with self._lock:
            window = self._latency_ms.setdefault(branch, deque(maxlen=LATENCY_WINDOW))
            window.append(elapsed_ms)

    def frame_done(self, outcome: str, now_s: float, overload: str = '') -> None:
        """Count a frame as 'answered' or 'full_dropped'; `overload`: why it is behind."""
        with self._lock:
            self._frames[outcome] += 1
            self._answered_s.append(now_s)
            self._overload = overload
            self._degraded = False

    def failure(self, outcome: str, reason: str) -> None:
        """Count a frame as 'undecodable' or 'failed'."""
        with self._lock:
            self._frames[outcome] += 1
            self._last_error = reason
            self._degraded = self._failed_since_report = True

    def report(self, now_s: float, no_frames_after_s: float = 3.0) -> Report:
        """Return the health now; state 'no_frames' after that long without a usable frame."""
        with self._lock:
            state, reason = self._state(now_s, no_frames_after_s)
            self._failed_since_report = False
            return Report(
                state=state,
                level=LEVELS[state],
                reason=reason,
                frames={name: self._frames[name] for name in FRAME_COUNTERS},
                achieved_rate_hz=self._achieved_rate_hz(now_s),
                latency_ms={
                    branch: (float(np.percentile(window, 50)), float(np.percentile(window, 95)))
                    for branch, window in self._latency_ms.items()
                },
                last_error=self._last_error,
            )

    def _state(self, now_s: float, no_frames_after_s: float) -> tuple[str, str]:
        if self._phase in ('loading', 'warming_up'):
            return self._phase, self._phase_reason
        if self._paused:
            return 'paused', 'call ~/enable with true to resume'
        if self._phase == 'error':
            return 'error', self._phase_reason
        if self._failed_since_report:
            return 'degraded', self._last_error
        if now_s - self._last_received_s > no_frames_after_s:
            return 'no_frames', f'no image for {now_s - self._last_received_s:.0f} s'
        if now_s - self._last_usable_s > no_frames_after_s:
            return 'no_frames', ('all images are older than max_frame_age_sec: check use_sim_time')
        if self._degraded:
            return 'degraded', self._last_error
        if self._overload:
            return 'overload', self._overload
        return 'ready', ''

    def _achieved_rate_hz(self, now_s: float) -> float:
        window_start_s = max(now_s - ACHIEVED_RATE_WINDOW_S, self._running_since_s)
        while self._answered_s and self._answered_s[0] < window_start_s:
            self._answered_s.popleft()
        return len(self._answered_s) / max(now_s - window_start_s, 1.0)
