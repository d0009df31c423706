"""The picture of a soak: memory, open files and threads, and latency over time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from gmskip_ros.report.formatting import one_line
from gmskip_ros.report.plotting import (
    BLUE,
    DPI,
    GREEN,
    GREY,
    ORANGE,
    PALE,
    literal,
    png_bytes,
    report_style,
)

WIDTH_INCH, HEIGHT_INCH = 9.5, 8.0
MEMORY = {'own_mib': ('its own', BLUE), 'rss_mib': ('resident', GREY)}
COUNTS = {'open_files': ('open files', GREEN), 'threads': ('threads', ORANGE)}
BRANCHES = {'skip': ('skip', BLUE), 'full': ('full', GREY)}
LEAST_SPAN_MIB, LEAST_SPAN = 50.0, 10.0  # of the axes, so that what is flat looks flat

Lines = Mapping[str, tuple[Sequence[float], Sequence[float]]]  # by name: minutes, values


def draw_soak(
    times_min: Sequence[float],
    use: Mapping[str, Sequence[float]],
    latencies_ms: Lines,
    windows_min: Sequence[tuple[float, float]],
    title: str,
) -> bytes:
    """
    Return a PNG of three panels over the measured minutes.

    `use` by the names in MEMORY and COUNTS, a value per time; `latencies_ms` by branch;
    `windows_min`, whose medians the verdicts compare, are shaded.
    """
    series: Lines = {name: (times_min, values) for name, values in use.items()}
    with report_style():
        figure = Figure(figsize=(WIDTH_INCH, HEIGHT_INCH), dpi=DPI, layout='constrained')
        memory, counts, latency = figure.subplots(3, 1, sharex=True)
        figure.suptitle(literal(one_line(title)))
        memory.set_title('Memory of the node, MiB (its own: without the pages of files)')
        _draw(memory, series, MEMORY, LEAST_SPAN_MIB)
        counts.set_title('Open files and threads of the node')
        _draw(counts, series, COUNTS, LEAST_SPAN)
        counts.yaxis.set_major_locator(MaxNLocator(integer=True))
        latency.set_title('Time that a branch takes for a frame, ms')
        _draw(latency, latencies_ms, BRANCHES)
        latency.set_ylim(bottom=0)
        latency.legend(loc='lower right', bbox_to_anchor=(1, 1), frameon=False, ncols=2)
        latency.set_xlabel('minutes since the first answer; shaded: what the verdicts compare')
        for axis in (memory, counts, latency):
            for begin, end in windows_min:
                axis.axvspan(begin, end, color=PALE, alpha=0.4, linewidth=0, zorder=0)
        return png_bytes(figure)


def _draw(
    axis: Axes, lines: Lines, names: Mapping[str, tuple[str, str]], least_span: float = 0.0
) -> None:
    """Draw the lines that are there; where they keep apart, each has its name at its end."""
    values: list[float] = []
    for key, (name, colour) in names.items():
        times, heights = lines.get(key, ((), ()))
        if not len(times):
            continue
        axis.plot(times, heights, color=colour, linewidth=1.4, label=name)
        if least_span:
            axis.annotate(
                name,
                (times[-1], heights[-1]),
                xytext=(5, 0),
                textcoords='offset points',
                color=colour,
                va='center',
                weight='bold',
                annotation_clip=False,
            )
        values += heights
    known = [value for value in values if np.isfinite(value)]
    if least_span and known:
        span = max(known) - min(known)
        margin = max(least_span - span, 0.1 * span) / 2
        axis.set_ylim(max(0.0, min(known) - margin), max(known) + margin)
