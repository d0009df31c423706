"""The pictures of a report's gallery: not more than a page can hold, from the whole drive."""

from __future__ import annotations

from dataclasses import dataclass, field

from gmskip_ros.report.replay_report import GalleryFrame

GALLERY_FRAMES = 40


@dataclass
class Gallery:
    """Pictures spread evenly over all disagreements, GALLERY_FRAMES of them at most."""

    frames: list[GalleryFrame] = field(default_factory=list)
    seen: int = 0
    _every: int = 1

    def wants_next(self) -> bool:
        """Count one more disagreement; return whether its picture is to be added."""
        self.seen += 1
        return (self.seen - 1) % self._every == 0

    def add(self, frame: GalleryFrame) -> None:
        """Add the picture; where there are too many now, every other one goes."""
        self.frames.append(frame)
        if len(self.frames) > GALLERY_FRAMES:
            self.frames = self.frames[::2]
            self._every *= 2
