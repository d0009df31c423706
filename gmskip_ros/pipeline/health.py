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
    'stale',  # older than max_frame_age_sec while frames are taken
    'gated',  # its period already has an answer
    'out_of_order',  # older than an earlier frame, by less than a period
    'replaced',  # due, but a newer due frame arrived before the worker was free
    'answered',  # every branch has published its answers
    'full_dropped',  # overload_policy drop_full: only the skip branch has published
    'undecodable',  # the message could not be decoded to an image
    'failed',  # any other exception between the message and the overlay image
    'abandoned',  # paused or stopped while it was being answered
)
RATE_WINDOW_S = 10.0
LATENCY_WINDOW = 100  # frames


def resident_mib() -> float:
    """Return this process's resident memory, MiB; NaN if the system does not report it."""
    try:
        pages = int(Path('/proc/self/statm').read_text().split()[1])
    except OSError:
        return math.nan
    return pages * os.sysconf('SC_PAGE_SIZE') / 2**20


class RateMeter:
    """The rate of events within the last RATE_WINDOW_S."""

    def __init__(self) -> None:
        self._times_s: deque[float] = deque()

    def note(self, now_s: float) -> None:
        """Note an event."""
        self._times_s.append(now_s)
        self._forget(now_s)

    def clear(self) -> None:
        """Forget all events."""
        self._times_s.clear()

    def rate_hz(self, now_s: float, since_s: float) -> float:
        """Return the events per second since then, at most within the last RATE_WINDOW_S."""
        self._forget(now_s)
        window_s = min(now_s - since_s, RATE_WINDOW_S)
        return len(self._times_s) / max(window_s, 1.0)

    def _forget(self, now_s: float) -> None:
        while self._times_s and self._times_s[0] < now_s - RATE_WINDOW_S:
            self._times_s.popleft()


@dataclass(frozen=True)
class _State:
    """A state and its reason."""

    name: str
    reason: str
    is_logged: bool = False
    is_silent: bool = False


def _silence(silent_s: float) -> _State:
    return _State('no_frames', f'no image for {silent_s:.0f} s', is_silent=True)


@dataclass(frozen=True)
class Report:
    """The node's health at one moment."""

    state: str
    level: str  # OK, WARN or ERROR
    reason: str  # '' if the state needs none
    is_logged: bool  # whether the reason has been logged
    is_silent: bool  # whether the reason is that no image arrives
    frames: dict[str, int]
    input_rate_hz: float  # of camera messages
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
        self._created_s = now_s
        self._no_frames_after_s = 3.0  # as in the last call of `report`
        self._received = RateMeter()
        self._answered = RateMeter()
        self._latency_ms: dict[str, deque[float]] = {}
        self._overload = ''
        self._last_error = ''
        self._degraded = False
        self._failed_since_report = False
        self._warning: _State | None = None  # the last one, which may be over
        self._warning_s = now_s

    def set_phase(self, phase: str, now_s: float, reason: str = '') -> None:
        """Enter 'loading', 'warming_up', 'running', 'unloaded' (while paused) or 'error'."""
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
        self._answered.clear()
        self._overload = ''
        self._degraded = False
        self._warning = None

    def frame_received(self, outcome: str, now_s: float) -> None:
        """Count a camera message; `outcome` is one of FRAME_COUNTERS, or '' if it is waiting."""
        with self._lock:
            self._frames['received'] += 1
            self._received.note(now_s)
            silent_s = now_s - self._last_received_s
            if silent_s > self._no_frames_after_s:  # over, but only just
                self._warn(_silence(silent_s), now_s)
            self._last_received_s = now_s
            if outcome != 'stale':
                self._last_usable_s = now_s
            if outcome:
                self._frames[outcome] += 1

    def count(self, outcome: str) -> None:
        """Count a frame that was waiting or being answered under one of FRAME_COUNTERS."""
        with self._lock:
            self._frames[outcome] += 1

    def forget_latencies(self) -> None:
        """Start the latencies anew: the next ones cannot be compared with those so far."""
        with self._lock:
            self._latency_ms.clear()

    def branch_done(self, branch: str, elapsed_ms: float) -> None:
        """Note that a branch has published its result for a frame."""
        with self._lock:
            window = self._latency_ms.setdefault(branch, deque(maxlen=LATENCY_WINDOW))
            window.append(elapsed_ms)

    def frame_done(self, outcome: str, now_s: float, overload: str = '') -> None:
        """Count a frame as 'answered' or 'full_dropped'; `overload`: why it is behind."""
        with self._lock:
            self._frames[outcome] += 1
            self._answered.note(now_s)
            self._overload = overload
            self._degraded = False
            if overload:
                self._warn(_State('overload', overload), now_s)

    def failure(self, outcome: str, reason: str, now_s: float) -> None:
        """Count a frame as 'undecodable' or 'failed'."""
        with self._lock:
            self._frames[outcome] += 1
            self._last_error = reason
            self._degraded = self._failed_since_report = True
            self._warn(_State('degraded', reason, is_logged=True), now_s)

    def report(
        self,
        now_s: float,
        no_frames_after_s: float = 3.0,
        settle_s: float = 3.0,
        *,
        stuck_stamps: str = '',
        degraded: str = '',
    ) -> Report:
        """Return the health now.

        State 'no_frames' after `no_frames_after_s` without a usable frame, or if `stuck_stamps` has
        a reason; 'degraded' if `degraded` has one and nothing worse is wrong. A state of level WARN
        is entered at once, and left after `settle_s` without a warning.
        """
        with self._lock:
            self._no_frames_after_s = no_frames_after_s
            warning = self._current_warning(now_s, no_frames_after_s, stuck_stamps, degraded)
            state = self._state(now_s, settle_s, warning)
            self._failed_since_report = False
            return Report(
                state=state.name,
                level=LEVELS[state.name],
                reason=state.reason,
                is_logged=state.is_logged,
                is_silent=state.is_silent,
                frames={name: self._frames[name] for name in FRAME_COUNTERS},
                input_rate_hz=self._received.rate_hz(now_s, self._created_s),
                achieved_rate_hz=self._answered.rate_hz(now_s, self._running_since_s),
                latency_ms={
                    branch: (float(np.percentile(window, 50)), float(np.percentile(window, 95)))
                    for branch, window in self._latency_ms.items()
                },
                last_error=self._last_error,
            )

    def _state(self, now_s: float, settle_s: float, warning: _State | None) -> _State:
        if self._phase in ('loading', 'warming_up'):
            return _State(self._phase, self._phase_reason)
        if self._paused:
            return _State('paused', 'call ~/enable with true to resume')
        if self._phase == 'error':
            return _State('error', self._phase_reason, is_logged=True)
        if warning is not None:
            self._warn(warning, now_s)
            return warning
        good_s = now_s - self._warning_s
        if self._warning is not None and good_s <= settle_s:
            reason = f'{self._warning.reason} (good for {good_s:.1f} s)'
            return _State(self._warning.name, reason, is_logged=True)
        return _State('ready', '')

    def _warn(self, warning: _State, now_s: float) -> None:
        self._warning, self._warning_s = warning, now_s

    def _current_warning(
        self, now_s: float, no_frames_after_s: float, stuck_stamps: str, degraded: str
    ) -> _State | None:
        failed = _State('degraded', self._last_error, is_logged=True)
        silent_s = now_s - self._last_received_s
        if self._failed_since_report:
            return failed
        if silent_s > no_frames_after_s:
            return _silence(silent_s)
        if now_s - self._last_usable_s > no_frames_after_s:
            reason = 'all images are older than max_frame_age_sec: check use_sim_time'
            return _State('no_frames', reason)
        if stuck_stamps:
            return _State('no_frames', stuck_stamps)
        if self._degraded:
            return failed
        if degraded:
            return _State('degraded', degraded)
        if self._overload:
            return _State('overload', self._overload)
        return None
