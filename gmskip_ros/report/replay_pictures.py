"""The pictures of a run: where the time goes, the speed-up, agreement along the drive.

Every series is named beside it; grey boxes are full, coloured ones skip, a colour per operating
point. A panel with times holds a
single task on a single machine.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from gmskip_ros.pipeline.rows import FrameRow
from gmskip_ros.report import formatting as fmt
from gmskip_ros.report.plotting import (
    BLUE,
    DARK,
    DASHED,
    GREEN,
    ORANGE,
    PALE,
    PURPLE,
    SKY,
    Picture,
    add_hover,
    add_label,
    literal,
    name_rows,
    new_figure,
    picture,
    report_style,
)
from gmskip_ros.report.replay_figures import PHASES, Series, point_name

_BOX_INCH = 0.24  # from one box to the next
_PHASE_GAP = 0.6  # between two phases, in boxes
_POINTS_PER_SERIES = 2000  # more would merge into a black bar
_MAX_HOVERS = 500  # per strip
_MARKS_PER_STRIP = 80  # more are drawn as ticks above the strip
_POINT_COLOURS = (SKY, GREEN, PURPLE, ORANGE, BLUE)  # of operating points, in their order
_LINE_COLOURS = (BLUE, ORANGE, GREEN, PURPLE, DARK)
SHARED_MARK = ', timing: shared'
_AXIS_MARGIN = 1.12  # length of an axis, relative to the longest whisker


def draw_latency(series: Sequence[Series]) -> Picture | None:
    """Return a picture of the times per phase and branch; None without rows.

    A panel holds one task on one machine, with one timing.

    A box is the middle half of the frames, its line the median, its whiskers end at 5 and 95 %.
    """
    panels: dict[tuple[str, str, str], list[Series]] = {}
    for each in series:
        panels.setdefault((each.task, each.place, each.timing), []).append(each)
    if not panels:
        return None
    boxes = [_num_boxes(group) for group in panels.values()]
    with report_style():
        figure = new_figure(sum(0.95 + _BOX_INCH * count for count in boxes))
        axes = figure.subplots(
            len(panels), 1, squeeze=False, gridspec_kw={'height_ratios': [2 + n for n in boxes]}
        )[:, 0]
        colours = _point_colours(series)
        for axis, ((task, place, _), group) in zip(axes, panels.items(), strict=True):
            _draw_phases(axis, group, colours)
            note = SHARED_MARK if group[0].is_shared else ''
            axis.set_title(literal(f'{fmt.one_line(task)}, on {fmt.one_line(place)}{note}'))
        return picture(figure)


def _num_boxes(group: Sequence[Series]) -> float:
    return len(PHASES) * (len(group) + _PHASE_GAP)


def _point_colours(series: Sequence[Series]) -> dict[str, str]:
    """Return a colour for each operating point of a run, for full pale grey."""
    points = dict.fromkeys(each.operating_point for each in series if each.branch != 'full')
    return dict(zip(points, itertools.cycle(_POINT_COLOURS), strict=False))


def _draw_phases(axis: Axes, group: Sequence[Series], colours: Mapping[str, str]) -> None:
    """Draw a group of boxes per phase, from top to bottom, with the medians as text."""
    heights: list[float] = []
    names: list[str] = []
    reach = max(float(np.percentile(each.times_ms('total'), 95)) for each in group)
    axis.set_xlim(0, max(reach, 1e-6) * _AXIS_MARGIN)
    for index, phase in enumerate(PHASES):
        top = index * (len(group) + _PHASE_GAP)
        beside = ('axes fraction', 'data')
        add_label(axis, phase, (0, top), (-150, 0), xycoords=beside, weight='bold')
        if index:
            axis.axhline(top - 0.5 - _PHASE_GAP / 2, color='#D0D0D0', linewidth=0.8)
        for offset, each in enumerate(group):
            values = each.times_ms(phase)
            colour = PALE if each.branch == 'full' else colours[each.operating_point]
            end = _draw_box(axis, top + offset, values, colour)
            median = f'{np.median(values):.1f} ms'
            low, first, middle, third, high = np.percentile(values, [5, 25, 50, 75, 95])
            text = (
                f'{each.name}, {phase}: median {middle:.1f} ms, middle half {first:.1f} to '
                f'{third:.1f}, 5 to 95 % {low:.1f} to {high:.1f}, {values.size} frames'
            )
            add_hover(axis, [middle], [top + offset], [text])
            add_label(axis, median, (end, top + offset), (5, 0), fontsize=8)
            heights.append(top + offset)
            names.append(fmt.one_line(each.name))
    name_rows(axis, heights, names)
    axis.set_xlabel('ms')


def _draw_box(
    axis: Axes, height: float, values: np.ndarray, colour: str, thickness: float = 0.62
) -> float:
    """Draw a box with whiskers on a horizontal axis; return the end of its right whisker."""
    low, first, median, third, high = np.percentile(values, [5, 25, 50, 75, 95])
    axis.hlines(height, low, high, color=DARK, linewidth=1.0, zorder=2)
    end = thickness / 4
    axis.vlines([low, high], height - end, height + end, color=DARK, linewidth=1.0, zorder=2)
    axis.barh(
        height,
        third - first,
        thickness,
        left=first,
        color=colour,
        edgecolor=DARK,
        linewidth=0.8,
        zorder=3,
    )
    half = thickness / 2
    axis.vlines(median, height - half, height + half, color=DARK, linewidth=1.8, zorder=4)
    return float(high)


def draw_speedup(series: Sequence[Series]) -> Picture | None:
    """Return a picture: total time of full / skip, a point per frame; None without any pair.

    Frames with the timing `shared` have no speed-up. Outliers do not stretch the axis: they are
    counted at its edge.
    """
    known = [(each, each.speedups()) for each in series if each.branch != 'full']
    known = [(each, values) for each, values in known if values.size]
    if not known:
        return None
    rng = np.random.default_rng(0)
    several_places = len({each.place for each, _ in known}) > 1
    with report_style():
        figure = new_figure(0.8 + 0.46 * len(known))
        axis = figure.subplots()
        reach = max(1.0, *(float(np.percentile(values, 95)) for _, values in known)) * _AXIS_MARGIN
        axis.set_xlim(0, reach)
        colours = _point_colours(series)
        for height, (each, values) in enumerate(known):
            shown = values
            if values.size > _POINTS_PER_SERIES:
                shown = values[np.linspace(0, values.size - 1, _POINTS_PER_SERIES, dtype=int)]
            jitter = height + rng.uniform(0.1, 0.4, shown.size)
            alpha = 0.7 if shown.size < 200 else 0.25
            axis.scatter(shown, jitter, s=8, color=DARK, alpha=alpha, linewidths=0)
            _draw_box(axis, height - 0.15, values, colours[each.operating_point], 0.34)
            text = (
                f'{_strip_name(each, False)}: median {np.median(values):.2f}, {values.size} frames'
            )
            add_hover(axis, [float(np.median(values))], [height - 0.15], [text])
            beside = ('axes fraction', 'data')
            median = f'{np.median(values):.2f} x'
            add_label(axis, median, (1.0, height), xycoords=beside, weight='bold')
            beyond = values.size - int(np.count_nonzero(values <= reach))
            if beyond:
                at = (1.0, height + 0.36)
                add_label(axis, f'{beyond} beyond', at, xycoords=beside, fontsize=7.5)
        axis.axvline(1, color=DARK, linestyle=DASHED, linewidth=1.2)
        names = [_strip_name(each, several_places) for each, _ in known]
        name_rows(axis, range(len(known)), names)
        axis.set_xlabel("speed-up: full's total time / skip's (dashed: equal)")
        return picture(figure)


def draw_agreement_over_speedup(summary: Sequence[Mapping[str, Any]]) -> Picture | None:
    """Return a picture: a task's agreement over its speed-up, a point per operating point.

    `summary` is that of `replay_figures`. None unless a task on a machine has several points.
    """
    lines: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in summary:
        if row['agreement'] is not None and row['speedup']['median'] is not None:
            lines.setdefault((row['machine'], row['task']), []).append(row)
    if all(len(rows) < 2 for rows in lines.values()):
        return None
    several_places = len({machine for machine, _ in lines}) > 1
    with report_style():
        figure = new_figure(4.4)
        axis = figure.subplots()
        marks = zip(itertools.cycle('os^Dv'), itertools.cycle(_LINE_COLOURS), strict=False)
        for ((machine, task), rows), (marker, colour) in zip(lines.items(), marks, strict=False):
            rows = sorted(rows, key=lambda row: row['sparsity'])
            xs = [row['speedup']['median'] for row in rows]
            ys = [100 * row['agreement'] for row in rows]
            name = fmt.one_line(f'{task}, {machine}' if several_places else task)
            axis.plot(xs, ys, color=colour, marker=marker, label=literal(name))
            texts = [
                f'{name}, {point_name(row["operating_point"])}: {x:.2f} x, {y:.1f} % agree'
                for row, x, y in zip(rows, xs, ys, strict=True)
            ]
            add_hover(axis, xs, ys, texts)
            for row, x, y in zip(rows, xs, ys, strict=True):
                point = fmt.one_line(point_name(row['operating_point']))
                add_label(axis, point, (x, y), (6, 6), fontsize=8, color=colour)
        axis.set_xlabel("speed-up: median of full's total time / skip's")
        axis.set_ylabel('frames on which skip and full agree, %')
        axis.legend(frameon=False, fontsize=9)
        return picture(figure)


def _strip_name(series: Series, with_place: bool) -> str:
    name = f'{fmt.one_line(series.task)}, {fmt.one_line(point_name(series.operating_point))}'
    name += SHARED_MARK if series.is_shared else ''
    return f'{name}\n{fmt.one_line(series.place)}' if with_place else name


def draw_agreement(series: Sequence[Series]) -> Picture | None:
    """Return a picture: the disagreements of each task and operating point; None without any pair.

    The x axis is the time of the drive, or the frame number if the time stamps jump.
    """
    strips = [each for each in series if each.compared()]
    if not strips:
        return None
    by_time = all(_is_steady([row.stamp_ns for row in each.compared()]) for each in strips)
    start_ns = min(row.stamp_ns for each in strips for row in each.compared())
    several_places = len({each.place for each in strips}) > 1
    with report_style():
        figure = new_figure(0.75 + 0.74 * len(strips))
        axes = figure.subplots(len(strips), 1, sharex=True, squeeze=False)[:, 0]
        last = max((row.stamp_ns - start_ns) / 1e9 for each in strips for row in each.compared())
        unit, divisor = ('min', 60.0) if last > 600 else ('s', 1.0)
        for axis, each in zip(axes, strips, strict=True):
            rows = each.compared()
            differing = [row for row in rows if row.agree is False]
            xs = np.array(
                [
                    (row.stamp_ns - start_ns) / 1e9 / divisor if by_time else row.frame
                    for row in rows
                ]
            )
            agree = np.array([row.agree is True for row in rows])
            _draw_strip(axis, xs, agree)
            texts = [f'frame {row.frame}: {_one_answer(row)}' for row in differing]
            differs = xs[~agree][:_MAX_HOVERS]
            add_hover(axis, differs, [119.0] * len(differs), texts[:_MAX_HOVERS], size_points=9)
            axis.set_ylabel(
                literal(_strip_name(each, several_places).replace(', ', '\n', 1)),
                rotation=0,
                ha='right',
                va='center',
                fontsize=9,
            )
        axes[-1].set_xlabel(
            f'time into the drive, {unit}' if by_time else 'frame number (the time stamps jump)'
        )
        return picture(figure)


def _one_answer(row: FrameRow) -> str:
    return f'skip says "{fmt.one_line(row.answer, 80)}"'


def _is_steady(stamps_ns: Sequence[int]) -> bool:
    """Return whether the stamps never fall and no pause is longer than half of the drive."""
    steps = np.diff(np.array(stamps_ns, dtype=float))
    if steps.size == 0:
        return True
    return bool((steps >= 0).all() and (steps.size < 3 or steps.max() <= 0.5 * steps.sum()))


def rolling_window(num_frames: int) -> int:
    """Return the number of frames in the rolling share of agreement."""
    return min(num_frames, max(5, min(61, num_frames // 20)))


def _draw_strip(axis: Axes, xs: np.ndarray, agree: np.ndarray) -> None:
    """Draw the frames on which the branches differ, and the rolling share of agreement."""
    window = rolling_window(agree.size)
    sums = np.concatenate([[0], np.cumsum(agree)])
    ends = np.minimum(np.arange(agree.size) + window - window // 2, agree.size)
    starts = np.maximum(np.arange(agree.size) - window // 2, 0)
    share = 100 * (sums[ends] - sums[starts]) / (ends - starts)
    differs = xs[~agree]
    axis.set_ylim(0, 134)
    axis.fill_between(xs, share, 100, color=ORANGE, alpha=0.22, linewidth=0)
    if differs.size <= _MARKS_PER_STRIP:
        axis.vlines(differs, 0, 100, color=ORANGE, linewidth=1.1, alpha=0.6)
        axis.plot(
            differs,
            np.full(differs.size, 119),
            linestyle='',
            marker='v',
            markersize=4.5,
            color=ORANGE,
        )
    else:  # the more there are, the darker
        alpha = max(0.1, _MARKS_PER_STRIP / differs.size)
        axis.vlines(differs, 108, 130, color=DARK, linewidth=1.1, alpha=alpha)
    axis.plot(xs, share, color=BLUE, linewidth=1.8, marker='o' if xs.size == 1 else None)
    axis.axhline(100, color='#C8C8C8', linewidth=0.8, zorder=0)
    axis.set_yticks([0, 50, 100], ['0', '50', '100 %'])
    axis.tick_params(axis='y', labelsize=7.5, length=2)
    axis.margins(x=0.01)
    if np.ptp(xs) == 0:
        axis.set_xlim(xs[0] - 1, xs[0] + 1)
    summary = f'{100 * agree.mean():.1f} % of {agree.size}\n{differs.size} differ'
    add_label(axis, summary, (1.0, 0.4), xycoords='axes fraction', fontsize=9)
