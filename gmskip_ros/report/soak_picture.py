"""The picture of a soak: the node's memory over time."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from gmskip_ros.report.formatting import one_line
from gmskip_ros.report.plotting import BLUE, DPI, PALE, png_bytes, report_style, set_heading

SIZE_INCH = (9.5, 4.0)
LEAST_SPAN_MIB = 50.0  # of the axis, so that what is flat looks flat


def draw_soak(
    times_min: Sequence[float],
    own_mib: Sequence[float],
    windows_min: Sequence[tuple[float, float]],
    medians_mib: Sequence[float],
    title: str,
) -> bytes:
    """Return a PNG of the node's own memory over the measured minutes.

    windows_min: the two windows that the verdict compares; medians_mib: the memory in each, or ().
    """
    with report_style():
        figure = Figure(figsize=SIZE_INCH, dpi=DPI, layout='constrained')
        axis = figure.subplots()
        set_heading(figure, one_line(title))
        axis.plot(times_min, own_mib, color=BLUE, linewidth=1.4)
        for begin, end in windows_min:
            axis.axvspan(begin, end, color=PALE, alpha=0.4, linewidth=0, zorder=0)
        for (begin, end), median in zip(windows_min, medians_mib, strict=False):
            axis.hlines(median, begin, end, color=BLUE, linestyle='--', linewidth=1.4)
        lowest, highest = min(own_mib, default=0.0), max(own_mib, default=0.0)
        margin = max(LEAST_SPAN_MIB - (highest - lowest), 0.1 * (highest - lowest)) / 2
        axis.set_ylim(max(0.0, lowest - margin), highest + margin)
        axis.set_ylabel("the node's own memory, MiB")
        axis.set_xlabel('minutes since the first answer; dashed: medians that the verdict compares')
        return png_bytes(figure)
