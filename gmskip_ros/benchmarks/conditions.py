"""Under which conditions figures were measured: threads, load, memory of this process."""

from __future__ import annotations

import contextlib
import os
import resource
import time
from pathlib import Path
from typing import Any

import psutil

BUSY_SHARE = 0.1  # of all cores, used by other processes while measuring
WAKE_SIZE, WAKE_PRODUCTS = 1024, 3  # some 10 ms each


class Conditions:
    """Records what other processes did between its making and `end`."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._load = os.getloadavg()[0]
        self._busy_s = _busy_seconds()
        self._own_s = _own_seconds()

    def end(self) -> dict[str, Any]:
        """Return the conditions as JSON values; processes that this one started have ended by now.

        `other_share`: what other processes used of all cores, 0..1; is_busy: more than BUSY_SHARE.
        """
        elapsed_s = time.monotonic() - self._started
        cores = os.cpu_count() or 1
        own_s = _own_seconds() - self._own_s
        other_s = max(0.0, _busy_seconds() - self._busy_s - own_s)
        share = min(1.0, other_s / (cores * elapsed_s)) if elapsed_s else 0.0
        return {
            'seconds': elapsed_s,
            'load_before': self._load,
            'load_after': os.getloadavg()[0],
            'other_share': share,
            'is_busy': share > BUSY_SHARE,
        }


def wake_cores() -> None:
    """Keep all of PyTorch's threads busy for a moment, before something short is timed.

    After a pause, and after another process, they may share one core for longer than a small model
    answers (13 or 41 ms of prefill, by chance). In a frame, the vision tower does this.
    """
    import torch

    matrix = torch.ones(WAKE_SIZE, WAKE_SIZE)
    for _ in range(WAKE_PRODUCTS):
        torch.mm(matrix, matrix)


def resident_bytes() -> int:
    """Return the memory that this process holds now."""
    return psutil.Process().memory_info().rss


def peak_bytes() -> int:
    """Return the most memory that this process has held since `forget_peak`, where that works."""
    try:
        for line in Path('/proc/self/status').read_text(encoding='ascii').splitlines():
            if line.startswith('VmHWM:'):
                return 1024 * int(line.split()[1])
    except OSError:
        pass
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def forget_peak() -> None:
    """Start `peak_bytes` again; where the kernel does not allow it, it stays."""
    with contextlib.suppress(OSError):
        Path('/proc/self/clear_refs').write_text('5', encoding='ascii')  # proc(5)


def _busy_seconds() -> float:
    times = psutil.cpu_times()
    return sum(getattr(times, kind, 0.0) for kind in ('user', 'nice', 'system', 'irq', 'softirq'))


def _own_seconds() -> float:
    """Return the processor time of this process and of those it has started and waited for."""
    times = psutil.Process().cpu_times()
    return times.user + times.system + times.children_user + times.children_system
