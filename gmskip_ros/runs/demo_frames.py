"""What a demo collects from the node's topics, put together frame by frame."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import numpy as np

from gmskip_ros.pipeline.health import OK
from gmskip_ros.pipeline.pixels import rgb_to_jpeg
from gmskip_ros.pipeline.records import Status
from gmskip_ros.pipeline.rows import FrameRow, row_from_values
from gmskip_ros.report.replay_report import Gallery, GalleryFrame


@dataclass
class Frame:
    """One frame's messages: the values of their statuses by task."""

    stamp_ns: int
    skip: dict[str, dict[str, str]] = field(default_factory=dict)
    full: dict[str, dict[str, str]] = field(default_factory=dict)
    comparison: dict[str, dict[str, str]] = field(default_factory=dict)
    outside: set[str] = field(default_factory=set)  # statuses whose answer is not in the vocabulary

    def is_complete(self) -> bool:
        """Return whether all three messages on this frame have arrived."""
        return bool(self.skip and self.full and self.comparison)

    def agrees(self, task: str) -> bool:
        """Return whether the node reports that the branches agree on this task."""
        return self.comparison[task]['agree'] == 'true'

    @property
    def timing(self) -> str:
        """How the frame's answers were timed: 'isolated' or 'shared'."""
        return next(iter(self.comparison.values()))['timing']

    def rows(self, number: int, model: str, machine: str) -> list[FrameRow]:
        """Return the frame's rows of frames.csv; `number` counts from 1."""
        rows = []
        for branch, by_task in (('skip', self.skip), ('full', self.full)):
            for task, values in by_task.items():
                name = f'{task}/{branch}'
                rows.append(
                    row_from_values(
                        number,
                        self.stamp_ns,
                        name,
                        name not in self.outside,
                        values,
                        self.comparison.get(task) if branch == 'skip' else None,
                        model=model,
                        machine=machine,
                    )
                )
        return rows


class FrameCollector:
    """An observer of the node (ros/listener.py) that keeps complete frames and the gallery."""

    def __init__(self) -> None:
        self.facts: dict[str, str] = {}  # the values of the newest health report
        self.frames: deque[Frame] = deque()  # those that are complete, in order
        self.gallery = Gallery()
        self.newest_overlay: np.ndarray | None = None  # uint8 RGB, (H, W, 3)
        self.overlay_stamp_ns = -1
        self._incomplete: dict[int, Frame] = {}
        self._differing: dict[int, int] = {}  # stamp -> number of a frame for the gallery
        self._num_complete = 0

    @property
    def state(self) -> str:
        """The node's state; '' before its first health report."""
        return self.facts.get('state', '')

    @property
    def reason(self) -> str:
        """The reason for the state, or ''."""
        return self.facts.get('reason', '')

    def frame(self, topic: str, stamp_ns: int, statuses: list[Status]) -> None:
        frame = self._incomplete.setdefault(stamp_ns, Frame(stamp_ns))
        by_task = getattr(frame, topic)
        for status in statuses:
            by_task[status.name.split('/')[0]] = status.values
            if status.level != OK:
                frame.outside.add(status.name)
        if frame.is_complete():
            self.frames.append(frame)
            self._num_complete += 1
            if not all(map(frame.agrees, frame.comparison)):
                self._differing[stamp_ns] = self._num_complete
            # An older frame that is still incomplete stays so.
            self._incomplete = {k: v for k, v in self._incomplete.items() if k > stamp_ns}

    def health(self, values: dict[str, str]) -> None:
        self.facts = values

    def overlay(self, stamp_ns: int, rgb: np.ndarray) -> None:
        """The node publishes it after all results of the frame."""
        self.newest_overlay, self.overlay_stamp_ns = rgb, stamp_ns
        number = self._differing.pop(stamp_ns, None)
        if number is not None and self.gallery.wants_next():
            self.gallery.add(GalleryFrame(number, stamp_ns, rgb_to_jpeg(rgb)))
