"""The picture of a comparison: how often two runs answer the same, and skip agrees with full."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes

from gmskip_ros.report import formatting as fmt
from gmskip_ros.report.plotting import (
    BLUE,
    DARK,
    GREY,
    ORANGE,
    PALE,
    SKY,
    Picture,
    add_hover,
    add_label,
    name_rows,
    new_figure,
    picture,
    report_style,
)

Group = Mapping[str, Any]  # an entry of 'groups', see compare_runs


def draw_comparison(groups: Sequence[Group]) -> Picture | None:
    """Return a picture with a row per group; None if no frames were compared."""
    groups = [group for group in groups if group['compared']]
    if not groups:
        return None
    with report_style():
        figure = new_figure(1.2 + 0.42 * len(groups))
        same, agreement = figure.subplots(1, 2, sharey=True)
        agreement.set_visible(any(group['agreement_frames'] for group in groups))
        for height, group in enumerate(groups):
            _draw_same_share(same, height, group)
            _draw_agreement(agreement, height, group)
        for axis in (same, agreement):
            name_rows(axis, range(len(groups)), [_name(group) for group in groups])
            axis.set_xlim(0, 112)
            axis.set_xticks(range(0, 101, 25))
        same.set_title('A and B answer the same, %')
        agreement.set_title('Skip agrees with full, %')
        agreement.set_xlabel('ring: A, square: B')
        return picture(figure)


def _name(group: Group) -> str:
    name = f'{fmt.one_line(group["task"])}, {fmt.one_line(group["branch"])}'
    return name if group['branch'] == 'full' else f'{name}\n{fmt.point_of_both(group)}'


def _draw_same_share(axis: Axes, height: int, group: Group) -> None:
    share = 100 * group['same_share']
    colour = PALE if group['branch'] == 'full' else SKY
    axis.barh(height, share, 0.6, color=colour, edgecolor=DARK, linewidth=0.8)
    add_label(axis, f'{share:.1f}', (share, height), (5, 0), fontsize=8)
    text = f'{_name(group)}: {group["same"]} of {group["compared"]} answers are the same'
    add_hover(axis, [share / 2], [height], [text], size_points=18)


def _draw_agreement(axis: Axes, height: int, group: Group) -> None:
    if not group['agreement_frames']:
        return
    a, b = 100 * group['agreement_a'], 100 * group['agreement_b']
    axis.plot([a, b], [height, height], color=GREY, linewidth=1.5, zorder=2)
    ring: dict[str, Any] = {'markerfacecolor': 'white', 'markeredgewidth': 2}
    axis.plot(a, height, marker='o', markersize=10, color=BLUE, zorder=3, **ring)
    axis.plot(b, height, marker='s', markersize=5, color=ORANGE, zorder=4)
    add_label(axis, f'{a:.1f} : {b:.1f}', (max(a, b), height), (9, 0), fontsize=8)
