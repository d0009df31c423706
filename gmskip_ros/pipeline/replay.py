"""A bag's frames through the node's own gate and pipeline, one after the other, without ROS.

Every due frame is answered, as by a node that always keeps up: the skip branch once per operating
point, the full branch once. A problem with a frame is counted and reported in one line; the other
frames are answered regardless.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gmskip_ros.errors import UserError, first_line
from gmskip_ros.pipeline.gate import FrameGate
from gmskip_ros.pipeline.pipeline import BranchResult, Comparison, FramePipeline, FramePlan
from gmskip_ros.pipeline.pixels import ConversionError, message_to_rgb
from gmskip_ros.vlm import ImageError, Stopped, VlmError

if TYPE_CHECKING:
    from gmskip_ros.bags.reading import BagFrame
    from gmskip_ros.vlm import Engine

MAX_FAILURES_IN_A_ROW = 5  # then the fault is the model's, not a frame's
COUNTERS = (
    'in_bag',  # frames read; each is also counted under one of the next four
    'gated',  # its period already had an answer
    'out_of_order',  # older than an earlier frame, by less than a period
    'unreadable',  # the bag's bytes are not a message
    'due',  # each is also counted under one of the next three
    'answered',
    'undecodable',  # the message could not be decoded to an image
    'failed',  # inference failed
    'resets',  # jumps back in time, as in a bag recorded while another one was looped
)


class ReplayError(UserError):
    """Every frame fails, so continuing is pointless. The message is one line."""


@dataclass(frozen=True)
class AnsweredFrame:
    """One frame with everything that was answered about it."""

    number: int  # 1, 2, ...
    stamp_ns: int  # of its header; of its recording if the header has none
    time_ns: int  # of its recording
    header: Any  # the message's own
    rgb: np.ndarray  # uint8, (H, W, 3)
    full: BranchResult
    skips: tuple[BranchResult, ...]  # one per operating point
    comparisons: tuple[Comparison, ...]  # of each skip result with full
    decode_ms: float  # of the message, to the array
    encode_ms: float  # counted in every branch's elapsed_ms

    def processing_time_ms(self, index: int) -> float:
        """Return the frame's time with the skip result of this index: what a node would take."""
        branches_ms = self.skips[index].elapsed_ms + self.full.elapsed_ms
        return self.decode_ms + branches_ms - self.encode_ms


class Replay:
    """Answers frames; `counts` (by COUNTERS) is up to date at any time."""

    def __init__(
        self,
        engine: Engine,
        plans: Sequence[FramePlan],
        period_ns: int,
        on_problem: Callable[[str], None],
    ) -> None:
        """`plans`: one per operating point; `on_problem` is called with one line per problem."""
        self.counts: Counter[str] = Counter(dict.fromkeys(COUNTERS, 0))
        self._pipelines = [FramePipeline(engine, plan) for plan in plans]
        self._gate = FrameGate(period_ns)
        self._on_problem = on_problem
        self._failures_in_a_row = 0
        self._warned_of_no_stamp = False

    def warm_up(self, should_stop: Callable[[], bool]) -> None:
        """Answer every task once; raises Stopped."""
        for pipeline in self._pipelines:
            pipeline.warm_up(should_stop)

    def take(self, frame: BagFrame, should_stop: Callable[[], bool]) -> AnsweredFrame | None:
        """Return the answered frame, or None if it is not due or cannot be answered.

        `should_stop` is called at every block and token; once it returns True, Stopped is raised
        and the frame is not counted. Raises ReplayError after MAX_FAILURES_IN_A_ROW.
        """
        if frame.message is None:
            self.counts.update(in_bag=1, unreadable=1)
            self._report(frame, frame.problem)
            return None
        stamp = frame.message.header.stamp
        if stamp.sec == stamp.nanosec == 0 and not self._warned_of_no_stamp:
            self._warned_of_no_stamp = True
            self._on_problem('images have no stamp: the time of recording is used')
        resets_before = self._gate.resets
        verdict = self._gate.judge(frame.stamp_ns, frame.time_ns)
        resets = self._gate.resets - resets_before
        if verdict in ('gated', 'out_of_order'):
            self.counts.update({'in_bag': 1, 'resets': resets, verdict: 1})
            return None
        self._gate.take(frame.stamp_ns, frame.time_ns)
        answered, outcome, reason = None, 'answered', ''
        try:
            answered = self._answer(frame, should_stop)
        except Stopped:
            raise
        except (ConversionError, ImageError) as error:
            outcome, reason = 'undecodable', first_line(error)
        except (VlmError, RuntimeError) as error:  # RuntimeError is torch's
            outcome = 'failed'
            reason = f'inference failed: {type(error).__name__}: {first_line(error)}'
        self.counts.update({'in_bag': 1, 'due': 1, 'resets': resets, outcome: 1})
        if reason:
            self._report(frame, reason)
        self._failures_in_a_row = self._failures_in_a_row + 1 if outcome == 'failed' else 0
        if self._failures_in_a_row >= MAX_FAILURES_IN_A_ROW:
            raise ReplayError(f'{MAX_FAILURES_IN_A_ROW} frames in a row: {reason}')
        return answered

    def _answer(self, frame: BagFrame, should_stop: Callable[[], bool]) -> AnsweredFrame:
        start_s = time.perf_counter()
        rgb = message_to_rgb(frame.message)
        decode_ms = (time.perf_counter() - start_s) * 1e3
        first = self._pipelines[0]
        encoded = first.encode(rgb)

        def stops(_branch: str) -> bool:
            return should_stop()

        skips = [pipeline.answer(encoded, 'skip', stops) for pipeline in self._pipelines]
        full = first.answer(encoded, 'full', stops)
        return AnsweredFrame(
            number=self.counts['answered'] + 1,
            stamp_ns=frame.stamp_ns,
            time_ns=frame.time_ns,
            header=frame.message.header,
            rgb=rgb,
            full=full,
            skips=tuple(skips),
            comparisons=tuple(first.compare(skip, full) for skip in skips),
            decode_ms=decode_ms,
            encode_ms=encoded.encode_ms,
        )

    def _report(self, frame: BagFrame, reason: str) -> None:
        seconds, rest_ns = divmod(frame.stamp_ns, 1_000_000_000)
        self._on_problem(f'frame at {seconds}.{rest_ns:09d}: {reason}')
