"""When each frame of a source is published."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from gmskip_ros.ros.camera_sources import CameraMessage, Source, SourceFrame

# A bag's last frame lasts as long as the one before it, within these bounds.
LAST_FRAME_S = (0.1, 1.0)


@dataclass(frozen=True)
class Cue:
    """A frame, its simulated time, and how long it is the newest."""

    message: CameraMessage | bytes
    time_ns: int
    until_ns: int  # simulated time at which the next one is due
    hold_s: float  # the same as a duration in real time


def cues(
    source: Source, *, loop: bool, count: int, period_s: float | None, start_ns: int
) -> Iterator[Cue]:
    """Yield the frames with their times; frames are read one ahead.

    `period_s`: between two frames; None: as their times say. `count`: number of frames, 0 is no
    limit. `start_ns`: simulated time of the first frame of a source without times.
    """
    frames: Iterator[tuple[int, SourceFrame]] = _passes(source, loop)
    if count:
        frames = itertools.islice(frames, count)
    interval_ns = 0
    following = next(frames, None)
    for number in itertools.count():
        if following is None:
            return
        pass_number, frame = following
        following = next(frames, None)
        if frame.time_ns is None:
            assert period_s is not None
            time_ns = start_ns + round(number * period_s * 1e9)
            until_ns = start_ns + round((number + 1) * period_s * 1e9)
        else:
            time_ns = frame.time_ns
            if following and following[0] == pass_number and following[1].time_ns is not None:
                interval_ns = following[1].time_ns - time_ns
                until_ns = following[1].time_ns
            else:  # the last one of a pass
                shortest_s, longest_s = LAST_FRAME_S
                until_ns = time_ns + round(min(max(interval_ns, shortest_s * 1e9), longest_s * 1e9))
        hold_s = (until_ns - time_ns) / 1e9 if period_s is None else period_s
        yield Cue(frame.message, time_ns, until_ns, hold_s)


def _passes(source: Source, loop: bool) -> Iterator[tuple[int, SourceFrame]]:
    """Yield (number of the pass, frame); endless with `loop`, unless a pass has no frames."""
    for number in itertools.count():
        is_empty = True
        for frame in source.frames():
            is_empty = False
            yield number, frame
        if is_empty or not loop:
            return
