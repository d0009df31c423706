"""The two pictures of a comparison of methods: score over sparsity, score over speed."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gmskip_ros.report import formatting as fmt
from gmskip_ros.report.plotting import (
    BLUE,
    DARK,
    DASHED,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    SKY,
    Picture,
    add_hover,
    literal,
    new_figure,
    picture,
    report_style,
    set_heading,
)

COLOURS = (BLUE, ORANGE, GREEN, PURPLE, SKY, '#E69F00', DARK)
MARKERS = ('o', 's', '^', 'D', 'v', 'P', 'X', '*', '<', '>')  # no period common with COLOURS
LINES = ('-', '--', ':')  # with each repetition of COLOURS


@dataclass(frozen=True)
class _Point:
    """One method's sets of one size: a value per list, of equal sets as well."""

    num_skipped: float
    scores: list[float]
    speeds: list[Mapping[str, Any]]  # empty if not measured
    is_marked: bool  # answers are long or repeat


def draw_score_over_sparsity(result: Mapping[str, Any]) -> Picture:
    """Return the scores of all methods over the share of skipped blocks.

    Of a method with several lists the mean, and the range as a shaded band.
    """
    with report_style():
        figure = new_figure(5.6)
        axis = figure.subplots()
        set_heading(figure, f'Score over sparsity: {fmt.subject(result)}')
        _draw_levels(axis, result)
        num_blocks = result['num_blocks']
        full = result['sets'][0]['evaluation']['score']
        names = fmt.method_names(result)
        for number, method in enumerate(result['methods']):
            points = _points(result, method)
            if not points:
                continue
            xs = [100 * point.num_skipped / num_blocks for point in points]
            ys = [100 * statistics.fmean(point.scores) for point in points]
            if fmt.is_known(full) and xs[0] > 0:
                axis.plot([0, xs[0]], [100 * full, ys[0]], color=_colour(number), linewidth=0.6)
            _draw_line(axis, number, names[method['name']], points, xs, ys)
            if any(len(point.scores) > 1 for point in points):
                low = [100 * min(point.scores) for point in points]
                high = [100 * max(point.scores) for point in points]
                axis.fill_between(xs, low, high, color=_colour(number), alpha=0.16, linewidth=0)
                axis.vlines(xs, low, high, color=_colour(number), linewidth=1)
        axis.set_xlim(left=0)
        axis.set_xlabel(f'skipped blocks, % of {num_blocks}{_hollow_note(result)}')
        axis.set_ylabel(literal(fmt.score_label(result)))
        _add_legend(figure, axis)
        return picture(figure)


def draw_score_over_speed(result: Mapping[str, Any]) -> Picture | None:
    """Return the scores over tokens and answers per second; None if no times were measured.

    A line connects the sets of a method in the order of their size.
    """
    full, names = result['sets'][0], fmt.method_names(result)
    if not full['speed']:
        return None
    panels = (('tokens_per_s', 'tokens per second'), ('answers_per_s', 'answers per second'))
    with report_style():
        figure = new_figure(5.6, 12)
        axes = figure.subplots(1, 2, sharey=True)
        set_heading(figure, f'Score over speed: {fmt.subject(result)}')
        for axis, (key, name) in zip(axes, panels, strict=True):
            _draw_levels(axis, result)
            for number, method in enumerate(result['methods']):
                points = _points(result, method)
                xs = [statistics.fmean(each[key] for each in point.speeds) for point in points]
                ys = [100 * statistics.fmean(point.scores) for point in points]
                _draw_line(axis, number, names[method['name']], points, xs, ys)
                for point in points:
                    if len(point.scores) > 1:  # each list, small and pale
                        axis.plot(
                            [each[key] for each in point.speeds],
                            [100 * score for score in point.scores],
                            linestyle='',
                            marker='.',
                            markersize=5,
                            alpha=0.4,
                            color=_colour(number),
                        )
            if fmt.is_known(full['evaluation']['score']):
                axis.plot(
                    full['speed'][key],
                    100 * full['evaluation']['score'],
                    linestyle='',
                    marker='*',
                    markersize=15,
                    color='white',
                    markeredgecolor=DARK,
                    label='full model',
                    zorder=5,
                )
            axis.set_xlabel(f'{name} of prefill and decode')
        axes[0].set_ylabel(literal(fmt.score_label(result)))
        note = f'on {fmt.machine_name(result)}{_hollow_note(result)}'
        figure.supxlabel(literal(note), fontsize=9, color=GREY)
        _add_legend(figure, axes[0])
        return picture(figure)


def _points(result: Mapping[str, Any], method: Mapping[str, Any]) -> list[_Point]:
    """Return a method's different sizes in ascending order."""
    of_size: dict[float, dict[tuple[Any, int], Mapping[str, Any]]] = {}
    for row in result['rows']:
        if row['method'] == method['name']:
            found = result['sets'][row['set']]
            if fmt.is_known(found['evaluation']['score']):
                # A list's set that stands in for several larger sizes counts once.
                of_size.setdefault(found['num_skipped'], {})[row['seed'], row['set']] = found
    return [
        _Point(
            size,
            [found['evaluation']['score'] for found in sets.values()],
            [found['speed'] for found in sets.values() if found['speed']],
            any(found['marks'] for found in sets.values()),
        )
        for size, sets in sorted(of_size.items())
    ]


def _draw_levels(axis: Axes, result: Mapping[str, Any]) -> None:
    """Draw the score of the full model and of the best constant answer across the panel."""
    levels: Sequence[tuple[Any, Any, str]] = (
        (result['sets'][0]['evaluation']['score'], DASHED, 'full model'),
        (((result['baselines'] or {}).get('constant') or {}).get('score'), ':', 'constant answer'),
    )
    for score, linestyle, name in levels:
        if fmt.is_known(score):
            axis.axhline(100 * score, color=GREY, linestyle=linestyle, linewidth=1.3, zorder=1)
            axis.annotate(
                name,
                (1, 100 * score),
                (-3, 3),
                xycoords=('axes fraction', 'data'),
                textcoords='offset points',
                ha='right',
                fontsize=8,
                color=GREY,
            )


def _colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


def _draw_line(
    axis: Axes,
    number: int,
    name: str,
    points: Sequence[_Point],
    xs: Sequence[float],
    ys: Sequence[float],
) -> None:
    """Draw a method's line; markers are hollow where answers are long or repeat.

    Earlier methods have larger markers and wider lines, so that all that coincide stay visible.
    """
    size = max(4.5, 9 - 0.8 * number)
    style: dict[str, Any] = {
        'color': _colour(number),
        'marker': MARKERS[number % len(MARKERS)],
        'markersize': size,
        'linewidth': size / 3,
        'linestyle': LINES[number // len(COLOURS) % len(LINES)],
    }
    axis.plot(xs, ys, label=literal(name), **style)
    texts = [
        f'{name}, {point.num_skipped:g} blocks skipped: {x:.1f}, score {y:.1f}'
        for point, x, y in zip(points, xs, ys, strict=True)
    ]
    add_hover(axis, xs, ys, texts)
    marked = [i for i, point in enumerate(points) if point.is_marked]
    axis.plot(
        [xs[i] for i in marked],
        [ys[i] for i in marked],
        **{**style, 'linestyle': '', 'markersize': size - 2.5, 'color': 'white'},
    )


def _add_legend(figure: Figure, axis: Axes) -> None:
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc='outside right upper', frameon=False, fontsize=9)


def _hollow_note(result: Mapping[str, Any]) -> str:
    is_used = any(found['marks'] for found in result['sets'][1:])
    return '\nhollow: answers are more than twice as long as the references, or repeat' * is_used
