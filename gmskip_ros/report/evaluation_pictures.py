"""The picture of an evaluation: score against latency, as the papers print it."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Mapping
from typing import Any

from gmskip_ros.report import columns as col
from gmskip_ros.report import formatting as fmt
from gmskip_ros.report.plotting import (
    BLUE,
    DARK,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    SKY,
    Picture,
    add_hover,
    add_label,
    literal,
    new_figure,
    picture,
    report_style,
    set_heading,
)

LEGEND_CHARS = 36  # in a line


def draw_score_over_latency(result: Mapping[str, Any]) -> Picture | None:
    """Return the score of every skip set over its latency; None if no times were measured.

    The latency is full's median / the paired speed-up, since sets were measured at different times.
    Bars are the intervals of the difference from full, around full's score, and of the speed-up.
    Sets of skip lists take turns with four colours; the numbers tell the sets apart.
    """
    full_row = next((row for row in result['rows'] if not row['blocks']), None)
    full = full_row['evaluation'] if full_row else {}
    points = [
        (row, full['latency_ms'] / speed_up)
        for row in result['rows']
        if fmt.is_known(row['evaluation']['score'])
        and fmt.is_known(speed_up := col.speed_up_of(row['evaluation'], full))
    ]
    if not points:
        return None
    colours = itertools.cycle((ORANGE, GREEN, PURPLE, SKY))  # of skip lists
    with report_style():
        figure = new_figure(4.6)
        axis = figure.subplots()
        set_heading(figure, f'Score against latency: {fmt.subject(result)}')
        points.sort(key=lambda point: point[1])
        for number, (row, latency_ms) in enumerate(points, start=1):
            evaluation, name = row['evaluation'], fmt.one_line(row['name'])
            at = (latency_ms, 100 * evaluation['score'])
            colour = DARK if not row['blocks'] else next(colours) if row['source'] else BLUE
            cuts = evaluation.get('speed_up_with_vision_interval')
            if cuts and row['blocks']:
                ends = [full['latency_ms'] / cut for cut in cuts]
                axis.hlines(at[1], *ends, color=GREY, linewidth=3, alpha=0.4)
            interval = evaluation.get('interval')
            if interval and fmt.is_known(full['score']):
                ends = [100 * (full['score'] + end) for end in interval]
                axis.vlines(at[0], *ends, color=GREY, linewidth=3, alpha=0.4)
            # A set of several lists has all their names; the page's table has them in full.
            lines = textwrap.wrap(f'{number} {name}', LEGEND_CHARS, max_lines=2, placeholder='...')
            label = literal('\n'.join(lines))
            marker = 'o' if row['blocks'] else '*'
            axis.plot(*at, marker, color=colour, markersize=8, label=label)
            # Names at the points would hide each other where sets are alike.
            add_label(axis, str(number), at, (5, 8), fontsize=9)
            text = f'{name}: {at[0]:.1f} ms, score {at[1]:.1f}, {len(row["blocks"])} blocks skipped'
            add_hover(axis, [at[0]], [at[1]], [text])
        beside = {'loc': 'upper left', 'bbox_to_anchor': (1.0, 1.0)}
        axis.legend(**beside, frameon=False, fontsize=9, handlelength=1.0)
        axis.margins(x=0.1, y=0.15)
        axis.set_xlim(left=0)
        axis.set_xlabel(literal(f'latency of an answer, ms, on {fmt.machine_name(result)}'))
        axis.set_ylabel(literal(fmt.score_label(result)))
        return picture(figure)
