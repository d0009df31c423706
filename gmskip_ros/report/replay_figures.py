"""The figures of a run, from its rows: plain values for tables, pictures and programs.

A *series* is one task's answers by one branch at one operating point, by one model on one machine,
with one timing. Series are never pooled: GPU and CPU times stay apart, and so do isolated and
shared ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gmskip_ros.pipeline.rows import SHARED, FrameRow
from gmskip_ros.report.formatting import count_of
from gmskip_ros.tasks.statistics import median_interval

PHASES = ('preprocess', 'vision', 'prefill', 'decode', 'total')
RESAMPLES = 1000
SHORTER_RATIO = 0.95  # of full's tokens: answers with fewer got shorter


@dataclass(frozen=True)
class Series:
    """One task's answers by one branch at one operating point, in the order of the rows.

    `full` holds the full branch's answers to the same frames, None where there is none; it is
    empty for the full branch itself.
    """

    place: str  # the machine; preceded by the model if the rows come from several models
    task: str
    branch: str
    operating_point: str
    timing: str
    rows: list[FrameRow] = field(default_factory=list)
    full: list[FrameRow | None] = field(default_factory=list)

    @property
    def is_shared(self) -> bool:
        """Whether the times leave out what answers share: they do not make a speed-up."""
        return self.rows[0].is_shared

    @property
    def name(self) -> str:
        """'full', 'skip high_sparsity' or 'skip 8 blocks'."""
        if self.branch == 'full':
            return self.branch
        return f'{self.branch} {point_name(self.operating_point)}'

    def times_ms(self, phase: str) -> np.ndarray:
        """Return the times of one of PHASES, float (rows,)."""
        return np.array([getattr(row, f'{phase}_ms') for row in self.rows], dtype=float)

    def speedups(self) -> np.ndarray:
        """Return full's / skip's total time for the frames that both branches answered.

        Empty with the timing `shared`.
        """
        if self.is_shared:
            return np.array([])
        return np.array(
            [
                full.total_ms / max(row.total_ms, 1e-9)
                for row, full in zip(self.rows, self.full, strict=True)
                if full is not None
            ]
        )

    def compared(self) -> list[FrameRow]:
        """Return the rows that were compared with the full branch."""
        return [row for row in self.rows if row.agree is not None]


def point_name(operating_point: str) -> str:
    """Return an operating point in words: 'high_sparsity', '8 blocks'."""
    return count_of(int(operating_point)) if operating_point.isdecimal() else operating_point


def series_of(rows: Iterable[FrameRow]) -> list[Series]:
    """Return the series of a run: places and tasks in order of appearance, full before skip."""
    rows = list(rows)
    several_models = len({row.model for row in rows}) > 1
    found: dict[tuple[str, ...], Series] = {}
    full_of: dict[tuple[object, ...], FrameRow] = {}
    for row in rows:
        place = f'{row.model}, {row.machine}' if several_models else row.machine
        key = (place, row.task, row.branch, row.operating_point, row.timing)
        found.setdefault(key, Series(*key)).rows.append(row)
        if row.branch == 'full':
            full_of[_question(row)] = row
    for series in found.values():
        if series.branch != 'full':
            series.full.extend(full_of.get(_question(row)) for row in series.rows)
    places = list(dict.fromkeys(series.place for series in found.values()))
    tasks = list(dict.fromkeys(series.task for series in found.values()))
    return sorted(  # stable: operating points keep their order
        found.values(),
        key=lambda each: (
            places.index(each.place),
            each.timing,
            tasks.index(each.task),
            each.branch != 'full',
        ),
    )


def _question(row: FrameRow) -> tuple[object, ...]:
    """Return what identifies a question; stamps alone recur after a jump back."""
    return row.model, row.machine, row.frame, row.stamp_ns, row.task


def replay_figures(rows: Sequence[FrameRow]) -> dict[str, Any]:
    """Return the figures of a run, as plain values: 'summary' and 'latency'.

    'summary' has an entry per place, task and operating point, 'latency' one per place, task,
    branch and operating point, each per timing. 'shared' has an entry per place and branch of the
    frames with the timing `shared`: what the branch's answers share, and the whole branch. Shares
    are in 0..1; a figure without any frame is None.
    """
    all_series = series_of(rows)
    return {
        'shared': _shared(all_series),
        'summary': [_summary(s, all_series) for s in all_series if s.branch != 'full'],
        'latency': [_latency(series) for series in all_series],
    }


def _summary(series: Series, all_series: Sequence[Series]) -> dict[str, Any]:
    compared = series.compared()
    full = [
        other
        for other in all_series
        if (other.place, other.task, other.branch, other.timing)
        == (series.place, series.task, 'full', series.timing)
    ]
    full_ms = full[0].times_ms('total') if full else np.array([])
    speedups = series.speedups()
    agreeing = sum(row.agree is True for row in compared)
    return {
        'machine': series.place,
        'timing': series.timing,
        'task': series.task,
        'operating_point': series.operating_point,
        'sparsity': series.rows[0].sparsity,
        'skipped_blocks': list(series.rows[0].skipped_blocks),
        'frames': len(series.rows),
        'compared': len(compared),
        'agreeing': agreeing,
        'agreement': agreeing / len(compared) if compared else None,
        'mean_jaccard': _mean(row.jaccard for row in compared),
        'mean_rouge_l': _mean(row.rouge_l for row in compared),
        'skip_total_ms': _quantiles(series.times_ms('total'), p95=95),
        'full_total_ms': _quantiles(full_ms, p95=95),
        'speedup': {
            'frames': int(speedups.size),
            **_quantiles(speedups, min=0, p5=5, p95=95, max=100),
            'interval': _median_interval(speedups),
            'slower_share': float((speedups < 1).mean()) if speedups.size else None,
        },
        'skip_tokens': _mean(row.tokens for row in series.rows),
        'full_tokens': _mean(row.tokens for row in full[0].rows) if full else None,
        'answers_got_shorter': _got_shorter(series),
    }


def _latency(series: Series) -> dict[str, Any]:
    return {
        'machine': series.place,
        'timing': series.timing,
        'task': series.task,
        'branch': series.branch,
        'operating_point': series.operating_point,
        'frames': len(series.rows),
        'tokens': _mean(row.tokens for row in series.rows),
        **{f'{phase}_ms': _quantiles(series.times_ms(phase), p95=95) for phase in PHASES},
    }


def _shared(all_series: Sequence[Series]) -> list[dict[str, Any]]:
    """Return the times of whole branches on the frames with the timing `shared`."""
    branches: dict[tuple[str, str], dict[tuple[int, int], list[FrameRow]]] = {}
    for series in all_series:
        for row in series.rows if series.is_shared else ():
            frames = branches.setdefault((series.place, series.branch), {})
            frames.setdefault((row.frame, row.stamp_ns), []).append(row)
    entries = []
    for (place, branch), frames in branches.items():
        shared_ms = np.array([_shared_ms(answers) for answers in frames.values()])
        own_ms = np.array(
            [
                max(row.preprocess_ms + row.vision_ms for row in answers)
                + sum(row.prefill_ms + row.decode_ms for row in answers)
                for answers in frames.values()
            ]
        )
        entries.append(
            {
                'machine': place,
                'timing': SHARED,
                'branch': branch,
                'frames': len(frames),
                'shared_ms': _quantiles(shared_ms, p95=95),
                'branch_ms': _quantiles(own_ms + shared_ms, p95=95),
            }
        )
    return entries


def _shared_ms(answers: Sequence[FrameRow]) -> float:
    """Return what one branch's answers to one frame share; it is said once."""
    return sum(row.shared_ms or 0.0 for row in answers)


def _got_shorter(series: Series) -> bool:
    """Return whether part of the time saved is due to shorter answers and not to skipping.

    That is the case if the answers have clearly fewer tokens than full's (SHORTER_RATIO), and the
    time of prefill and decode fell by more than the sparsity. Never with the timing `shared`.
    """
    if series.is_shared:
        return False
    pairs = [
        (row, full) for row, full in zip(series.rows, series.full, strict=True) if full is not None
    ]
    if not pairs or sum(row.tokens for row, _ in pairs) >= SHORTER_RATIO * sum(
        full.tokens for _, full in pairs
    ):
        return False
    skip_ms, full_ms = (
        float(np.median([row.prefill_ms + row.decode_ms for row in side]))
        for side in zip(*pairs, strict=True)
    )
    return full_ms > 0 and 1 - skip_ms / full_ms > series.rows[0].sparsity


def _quantiles(values: np.ndarray, **percents: float) -> dict[str, float | None]:
    """Return the median and the named percentiles; None without values."""
    percents = {'median': 50, **percents}
    return {
        name: float(np.percentile(values, percent)) if values.size else None
        for name, percent in percents.items()
    }


def _median_interval(values: np.ndarray) -> list[float] | None:
    """Return the 95 % bootstrap interval of the median; None for fewer than two values."""
    return list(median_interval(values, resamples=RESAMPLES)) if values.size > 1 else None


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
