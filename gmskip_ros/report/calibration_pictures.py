"""The two pictures of a calibration: the effect of skipping, and every block that was tried."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from gmskip_ros.report import formatting as fmt
from gmskip_ros.report.plotting import (
    BLUE,
    DARK,
    DASHED,
    GREEN,
    GREY,
    ORANGE,
    PALE,
    PURPLE,
    Picture,
    add_hover,
    add_label,
    literal,
    new_figure,
    picture,
    report_style,
    set_heading,
)


def scores_are_comparable(result: Mapping[str, Any]) -> bool:
    """Return whether calibration and test scores can share an axis.

    CIDEr weighs words by their frequency in the references in use, so its values on two sets of
    different size are two different measures.
    """
    metric = str(result['metric'])
    has_cider = 'cider' in metric or (metric == 'visual_gain' and result['task'] == 'captioning')
    if not has_cider or result['task'] == 'joint':  # joint: each score relative to full
        return True
    calibration, test = result['dataset']['calibration'], result['dataset']['test']
    return test is None or test['images'] == calibration['images']


def draw_trade_off(result: Mapping[str, Any]) -> Picture:
    """Return a picture: score, visual gain and latency over sparsity, operating points marked.

    There is a panel for each quantity that was measured; they share the sparsity axis.
    """
    with report_style():
        prefixes = sorted(result['prefixes'], key=lambda prefix: prefix['length'])
        panels = _trade_off_panels(result, prefixes)
        figure = new_figure(1.3 + 2.7 * len(panels))
        axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0].tolist()
        set_heading(figure, f'Effect of skipping: {fmt.subject(result)}')
        highest = max([100 * prefix['sparsity'] for prefix in prefixes] + [10])
        axes[-1].set_xlim(-0.02 * highest, 1.02 * highest)
        note = '\nNo test images: visual gain and latency were not measured.'
        axes[-1].set_xlabel(
            f'sparsity: skipped blocks, % of {result["num_blocks"]}'
            + ('' if _tested(prefixes) else note)
        )
        for axis, draw in zip(axes, panels, strict=True):
            draw(axis)
        _mark_operating_points(axes, result)
        return picture(figure)


Panel = Callable[[Axes], None]


def _trade_off_panels(
    result: Mapping[str, Any], prefixes: Sequence[Mapping[str, Any]]
) -> list[Panel]:
    comparable, tested = scores_are_comparable(result), bool(_tested(prefixes))

    def score(axis: Axes) -> None:
        _draw_scores(axis, result, prefixes, calibration=True, test=tested and comparable)

    def test_score(axis: Axes) -> None:
        _draw_scores(axis, result, prefixes, calibration=False, test=True)

    def gain(axis: Axes) -> None:
        axis.set_title('Visual gain: score minus score on shuffled images (test)')
        axis.set_ylabel(literal(fmt.score_label(result).replace(', %', ', % points')))
        xs, ys = _series(prefixes, 'visual_gain', 100)
        axis.axhline(0, color=GREY, linewidth=1)
        _draw_lines(axis, [(xs, ys, GREEN, 'o', 'visual gain')], result['nested'])

    def latency(axis: Axes) -> None:
        axis.set_title(literal(f"Latency: full's median / speed-up, on {fmt.machine_name(result)}"))
        axis.set_ylabel('ms')
        lines = [
            (*_latencies(prefixes, 'latency_ms', 'speed_up_with_vision'), PURPLE, 'o', 'answer'),
            (*_latencies(prefixes, 'language_ms', 'speed_up'), DARK, '^', 'prefill + decode'),
        ]
        _draw_lines(axis, lines, result['nested'], from_zero=True)

    panels: list[Panel] = [score]
    if tested and not comparable:
        panels.append(test_score)
    if len(_series(prefixes, 'visual_gain', 100)[0]):
        panels.append(gain)
    if len(_series(prefixes, 'latency_ms', 1)[0]):
        panels.append(latency)
    return panels


def _tested(prefixes: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [prefix for prefix in prefixes if prefix['test']]


def _latencies(
    prefixes: Sequence[Mapping[str, Any]], key: str, speed_up: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return the sparsity in % and the latency in ms: full's median / the paired speed-up.

    Medians of different sets were measured at different times. Results of earlier versions have
    nothing else.
    """
    full_ms = next((p['test'].get(key) for p in _tested(prefixes) if p['length'] == 0), None)
    xs, ratios = _series(prefixes, speed_up, 1)
    if not len(xs) or not fmt.is_known(full_ms):
        return _series(prefixes, key, 1)
    return xs, full_ms / ratios


def _series(
    prefixes: Sequence[Mapping[str, Any]], key: str, factor: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return the sparsity in % and a measured quantity, for the prefixes where it is known."""
    known = [prefix for prefix in _tested(prefixes) if fmt.is_known(prefix['test'].get(key))]
    return (
        np.array([100 * prefix['sparsity'] for prefix in known]),
        np.array([factor * prefix['test'][key] for prefix in known]),
    )


Line = tuple[np.ndarray, np.ndarray, str, str, str]  # x, y, colour, marker, label


def _draw_scores(
    axis: Axes,
    result: Mapping[str, Any],
    prefixes: Sequence[Mapping[str, Any]],
    *,
    calibration: bool,
    test: bool,
) -> None:
    axis.set_ylabel(literal(fmt.score_label(result)))
    lines: list[Line] = []
    levels: list[tuple[float, str]] = []
    banded = False
    if calibration:
        known = [prefix for prefix in prefixes if fmt.is_known(prefix['calibration_score'])]
        xs = np.array([100 * prefix['sparsity'] for prefix in known])
        ys = np.array([100 * prefix['calibration_score'] for prefix in known])
        count = result['dataset']['calibration']['images']
        lines.append((xs, ys, BLUE, 'o', f'calibration, {count} images'))
        if fmt.is_known(result['min_score_ratio']):
            ratio = result['min_score_ratio']
            levels.append((100 * ratio * result['full_score'], f'min_score_ratio {ratio:g} x full'))
    if test:
        xs, ys = _series(prefixes, 'score', 100)
        count = result['dataset']['test']['images']
        lines.append((xs, ys, ORANGE, 's', f'test, {count} images'))
        banded = _draw_interval(axis, prefixes, result['nested'])
        if not calibration and len(ys) and xs[0] == 0:
            levels.append((float(ys[0]), 'full model'))
    title = 'Score' if calibration and test else 'Score on the calibration images'
    if not calibration:
        title = 'Score on the test images: CIDEr on a different number of images, not comparable'
    if banded:
        title += ' ' if calibration else '\n'
        title += '(shaded: 95 % interval of the difference from full)'
    axis.set_title(title)
    _draw_lines(axis, lines, result['nested'], levels)


def _draw_interval(axis: Axes, prefixes: Sequence[Mapping[str, Any]], nested: bool) -> bool:
    """Draw the interval of the difference from full, around full's test score; return if drawn.

    It is a band, or bars for sets that are not prefixes of one another.
    """
    full = [prefix['test'] for prefix in _tested(prefixes) if prefix['length'] == 0]
    known = [
        (100 * prefix['sparsity'], prefix['test'].get('interval') or (0, 0))
        for prefix in _tested(prefixes)
        if prefix['test'].get('interval') or prefix['length'] == 0
    ]
    if not full or len(known) < 2:
        return False
    level = full[0]['score']
    low, high = ([100 * (level + interval[end]) for _, interval in known] for end in (0, 1))
    xs = [x for x, _ in known]
    if nested:
        axis.fill_between(xs, low, high, color=ORANGE, alpha=0.16, linewidth=0)
    else:
        axis.vlines(xs, low, high, color=ORANGE, alpha=0.3, linewidth=5)
    return True


def _draw_lines(
    axis: Axes,
    lines: Sequence[Line],
    nested: bool,
    levels: Sequence[tuple[float, str]] = (),
    from_zero: bool = False,
) -> None:
    """Draw lines and horizontal levels, with their names on the right, without overlap."""
    names: list[tuple[float, str, str]] = []
    for xs, ys, colour, marker, label in lines:
        if len(ys):
            # Sets that are not prefixes of one another are unconnected points. The size of the
            # markers differs, so that both of two coinciding points stay visible.
            axis.plot(
                xs,
                ys,
                color=colour,
                marker=marker,
                markersize=6.5 if colour == BLUE else 4,
                linestyle='-' if nested else '',
            )
            names.append((float(ys[-1]), label, colour))
            texts = [f'{label}, {x:.1f} % skipped: {y:.1f}' for x, y in zip(xs, ys, strict=True)]
            add_hover(axis, xs, ys, texts)
    for level, label in levels:
        axis.axhline(level, color=GREY, linestyle=DASHED, linewidth=1.3, zorder=1)
        names.append((level, label, GREY))
    low, high = axis.get_ylim()
    low = 0 if from_zero else low
    axis.set_ylim(low, high)
    heights = _spread([(y - low) / (high - low) for y, _, _ in names], gap=0.11)
    for height, (_, label, colour) in zip(heights, names, strict=True):
        add_label(axis, label, (1.0, height), xycoords='axes fraction', color=colour)


def _spread(heights: Sequence[float], gap: float) -> list[float]:
    """Return the heights, with those closer than `gap` moved apart by as little as possible."""
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    placed = list(heights)
    for _ in range(50):  # converges within a few steps for so few labels
        for below, above in itertools.pairwise(order):
            missing = gap - (placed[above] - placed[below])
            if missing > 0:
                placed[below] -= missing / 2
                placed[above] += missing / 2
    return placed


def _mark_operating_points(axes: Sequence[Axes], result: Mapping[str, Any]) -> None:
    lengths: dict[int, list[str]] = {}
    for name, length in (result['operating_points'] or {}).items():
        lengths.setdefault(length, []).append(name)
    marked = sorted(lengths.items())
    for i, (length, names) in enumerate(marked):
        sparsity = 100 * length / result['num_blocks']
        for axis in axes:
            axis.axvline(sparsity, color=DARK, linewidth=1.2, linestyle=':', zorder=1)
        # Of two labels, each is on the outer side of its line, so that they never overlap.
        is_left_of_two = len(marked) == 2 and i == 0
        add_label(
            axes[0],
            f'{" = ".join(names)}\n{fmt.count_of(length)}, {sparsity:.1f} %',
            (sparsity, 1.0),
            (5 if is_left_of_two else -5, 3),
            xycoords=('data', 'axes fraction'),
            va='bottom',
            ha='right' if is_left_of_two else 'left',
            fontsize=9,
            weight='bold',
        )
    if marked:
        axes[0].set_title(axes[0].get_title(loc='left'), pad=34)


def draw_heat_map(result: Mapping[str, Any]) -> Picture | None:
    """Return a picture: the score without each block (x) per round (y); None without any round.

    A ring marks the removed block; a pruned block, of which only a bound is known, is grey; a block
    that was removed in an earlier round is empty. The colours are for scores around the least one
    that is allowed: those far below it are all the darkest.
    """
    rounds = [each for each in result['rounds'] if each['cells']]
    if not rounds:
        return None
    scores = np.full((len(rounds), result['num_blocks']), np.nan)  # x100, of exact cells
    pruned = np.full_like(scores, np.nan)
    texts = []
    for row, each in enumerate(rounds):
        for cell in each['cells']:
            if not fmt.is_known(cell['score']):
                continue
            (scores if cell['exact'] else pruned)[row, cell['block']] = 100 * cell['score']
            bound = '' if cell['exact'] else 'at most '
            texts.append(
                f'round {each["round"]}, without block {cell["block"]}: '
                f'{bound}{fmt.hundredths(cell["score"])}'
            )
    where = [
        (cell['block'], row)
        for row, each in enumerate(rounds)
        for cell in each['cells']
        if fmt.is_known(cell['score'])
    ]
    least = None
    if fmt.is_known(result['min_score_ratio']):
        least = 100 * result['min_score_ratio'] * result['full_score']
    low, high = _colour_range(scores, least)
    removed = [
        (each['removed'], row) for row, each in enumerate(rounds) if each['removed'] is not None
    ]
    num_rounds, num_blocks = scores.shape
    is_wide = num_blocks > 48
    cell_inch = 0.19 if is_wide else 0.23
    with report_style():
        figure = new_figure(
            max(2.8, 1.8 + cell_inch * num_rounds), max(9.0, 2.2 + cell_inch * num_blocks)
        )
        axis = figure.subplots()
        grid: dict[str, Any] = {'interpolation': 'nearest', 'aspect': 'auto'}
        axis.imshow(np.where(np.isnan(pruned), np.nan, 0), cmap=ListedColormap([PALE]), **grid)
        image = axis.imshow(scores, cmap='viridis', vmin=low, vmax=high, **grid)
        _draw_cell_borders(axis, num_rounds, num_blocks)
        step = 5 if is_wide else 1
        axis.set_xticks(range(0, num_blocks, step))
        rows = [row for row in range(num_rounds) if (row + 1) % step == 0 or row == 0]
        axis.set_yticks(rows, [str(rounds[row]['round']) for row in rows])
        axis.tick_params(labelsize=8)
        axis.set_xlabel('block skipped in addition to those removed in earlier rounds')
        axis.set_ylabel('round')
        axis.scatter(
            [block for block, _ in removed],
            [row for _, row in removed],
            s=(cell_inch * 72 * 0.5) ** 2,
            facecolors='white',
            edgecolors='black',
            linewidths=1.4,
        )
        side = 0.9 * 72 * cell_inch
        add_hover(
            axis,
            [block for block, _ in where],
            [row for _, row in where],
            texts,
            marker='s',
            size_points=side,
        )
        is_clipped = bool(np.nanmin(scores, initial=high) < low)
        extend = 'min' if is_clipped else 'neither'
        bar = figure.colorbar(image, ax=axis, pad=0.01, fraction=0.03, aspect=18, extend=extend)
        bar.set_label(literal(fmt.score_label(result)))
        set_heading(figure, f'Score without each block, round by round: {fmt.subject(result)}')
        legend = _heat_map_legend()
        if least is not None:
            label = f'min_score_ratio {result["min_score_ratio"]:g} x full: {least:.1f}'
            if low <= least <= high:
                bar.ax.axhline(least, color='black', linewidth=3)
                legend.append(Line2D([], [], color='black', linewidth=3, label=label))
            else:  # outside the colour bar
                legend.append(Line2D([], [], linestyle='', label=f'({label})'))
        axis.legend(
            handles=legend,
            loc='lower left',
            bbox_to_anchor=(0, 1),
            ncol=4 if is_wide else 2,
            frameon=False,
            fontsize=8,
            borderaxespad=0.4,
        )
        return picture(figure)


def _draw_cell_borders(axis: Axes, num_rounds: int, num_blocks: int) -> None:
    axis.grid(False)
    axis.set_xticks(np.arange(-0.5, num_blocks), minor=True)
    axis.set_yticks(np.arange(-0.5, num_rounds), minor=True)
    axis.grid(True, which='minor', color='white', linewidth=0.8)
    axis.tick_params(which='both', length=0)
    axis.spines[:].set_visible(False)


def _colour_range(scores: np.ndarray, least: float | None) -> tuple[float, float]:
    """Return the scores of the darkest and the brightest colour.

    They are as far below the least score allowed as the best is above it, so that what matters for
    the choice of a block has most of the colours.
    """
    known = scores[~np.isnan(scores)]
    if not known.size:
        return 0.0, 100.0
    low, high = float(known.min()), float(known.max())
    if least is not None and low < least < high:
        low = max(low, least - (high - least))
    return low, high


def _heat_map_legend() -> list[Line2D | Patch]:
    return [
        Line2D(
            [],
            [],
            linestyle='',
            marker='o',
            markersize=8,
            markerfacecolor='white',
            markeredgecolor='black',
            label='removed in this round',
        ),
        Patch(facecolor='white', edgecolor=GREY, label='removed in an earlier round'),
        Patch(facecolor=PALE, edgecolor=GREY, label='pruned: only an upper bound is known'),
    ]
