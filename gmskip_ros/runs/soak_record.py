"""What a soak records: the node's messages, and what its process uses, second by second."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import psutil

from gmskip_ros.pipeline.health import FRAME_COUNTERS
from gmskip_ros.pipeline.records import Status
from gmskip_ros.pipeline.timing import ISOLATED

COMPARISON = 'comparison'
MIB = 2**20


@dataclass(frozen=True)
class Answer:
    """A message on a frame."""

    topic: str  # skip, full or comparison
    stamp_ns: int  # of the frame
    arrived_s: float  # steady clock
    age_ms: float  # arrival minus stamp
    busy_ms: float  # that this branch took for the frame, by its own account; 0 for a comparison
    timing: str = ISOLATED


@dataclass(frozen=True)
class HealthReport:
    """A message of the node on /diagnostics."""

    arrived_s: float  # steady clock
    values: dict[str, str]

    @property
    def state(self) -> str:
        """One of the node's states."""
        return self.values['state']

    @property
    def reason(self) -> str:
        """The reason for the state, or ''."""
        return self.values['reason']

    @cached_property
    def counters(self) -> dict[str, int]:
        """The frame counters, by FRAME_COUNTERS."""
        return {name: int(self.values[f'frames_{name}']) for name in FRAME_COUNTERS}

    @property
    def is_idle(self) -> bool:
        """Whether no frame waits or is being answered: all that came in are counted elsewhere."""
        return self.counters['received'] * 2 == sum(self.counters.values())


class Recorder:
    """An observer of the node (ros/listener.py) that keeps every message."""

    def __init__(self) -> None:
        self.answers: list[Answer] = []
        self.reports: list[HealthReport] = []
        self.num_overlays = 0

    def frame(self, topic: str, stamp_ns: int, statuses: list[Status]) -> None:
        self.answers.append(
            Answer(
                topic=topic,
                stamp_ns=stamp_ns,
                arrived_s=time.monotonic(),
                age_ms=(time.time_ns() - stamp_ns) / 1e6,
                busy_ms=0.0 if topic == COMPARISON else _busy_ms(statuses),
                timing=statuses[0].values.get('timing', ISOLATED),
            )
        )

    def health(self, values: dict[str, str]) -> None:
        self.reports.append(HealthReport(time.monotonic(), values))

    def overlay(self, stamp_ns: int, rgb: np.ndarray) -> None:
        self.num_overlays += 1


def _busy_ms(statuses: list[Status]) -> float:
    """Return how long a branch took for a frame: its image once, the language of every task."""
    tasks = [status.values for status in statuses]
    image_ms = [float(task['preprocess_ms']) + float(task['vision_ms']) for task in tasks]
    language_ms = [float(task['prefill_ms']) + float(task['decode_ms']) for task in tasks]
    shared_ms = [float(task['shared_ms']) for task in tasks if 'shared_ms' in task]
    return max(image_ms, default=0.0) + sum(language_ms) + sum(shared_ms)


@dataclass(frozen=True)
class ProcessUse:
    """What a process uses at one moment."""

    own_mib: float  # anonymous and swapped pages: what it has allocated
    rss_mib: float  # resident, with the pages of files, which the kernel may take back
    pss_mib: float  # resident, each shared page divided by the number of its users
    open_files: int  # file handles
    threads: int


def process_use(pid: int) -> ProcessUse:
    """Return what the process uses now. Raises psutil.Error if it has ended."""
    process = psutil.Process(pid)
    memory = process.memory_full_info()
    return ProcessUse(
        own_mib=(memory.rss - memory.shared + memory.swap) / MIB,
        rss_mib=memory.rss / MIB,
        pss_mib=memory.pss / MIB,
        open_files=process.num_fds(),
        threads=process.num_threads(),
    )
