"""The style of the reports' pictures, their common parts, and their bytes.

Colours are Okabe-Ito's, distinguishable with any colour vision; every line and mark is also named
in words, so that a picture can be read in grey.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import matplotlib
import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from gmskip_ros.report import formatting as fmt

BLUE, ORANGE, GREEN, PURPLE = '#0072B2', '#D55E00', '#009E73', '#CC79A7'  # Okabe-Ito
SKY = '#56B4E9'
GREY, DARK, PALE = '#767676', '#222222', '#CFCFCF'
DPI = 130
WIDTH_INCH = 9.5
LEAST_PX_PER_POINT = 0.893  # of an SVG on a narrow screen; WIDTH_INCH then fits 640 pixels
DASHED = (0, (5, 3))
_HOVER = 'hover:'  # what marks a text of `add_hover` among the links of an SVG
_HOVER_LINK = re.compile(
    rf"""<a xlink:href=(["']){_HOVER}(.*?)\1[^>]*>(.*?)</a>""",
    re.DOTALL,
)
_STYLE = {
    'font.size': 10,
    'axes.titlesize': 11,
    'axes.titleweight': 'bold',
    'axes.titlelocation': 'left',
    'axes.spines.top': False,
    'axes.spines.right': False,
    'axes.edgecolor': GREY,
    'axes.labelcolor': DARK,
    'xtick.color': DARK,
    'ytick.color': DARK,
    'text.color': DARK,
    'axes.grid': True,
    'grid.color': '#E4E4E4',
    'grid.linewidth': 0.8,
    'axes.axisbelow': True,
    'lines.linewidth': 2.0,
}


def report_style() -> AbstractContextManager[None]:
    """Return a context in which Matplotlib draws in the reports' style, whatever its settings."""
    return matplotlib.style.context(['default', _STYLE])


def new_figure(height_inch: float, width_inch: float = WIDTH_INCH) -> Figure:
    """Return an empty figure of this size."""
    return Figure(figsize=(width_inch, height_inch), dpi=DPI, layout='constrained')


def set_heading(figure: Figure, text: str) -> None:
    """Set the heading of the whole figure, at its left edge."""
    figure.suptitle(literal(text), x=0.01, ha='left', fontsize=13, weight='bold', wrap=True)


def name_rows(axis: Axes, heights: Sequence[float], names: Sequence[str]) -> None:
    """Name the rows of a horizontal chart at its left, the first row on top."""
    axis.set_yticks(heights, [literal(name) for name in names])
    axis.set_ylim(heights[-1] + 0.6, -0.6)
    axis.tick_params(axis='y', length=0, labelsize=9)
    axis.grid(False, axis='y')
    axis.spines['left'].set_visible(False)


def add_label(
    axis: Axes,
    text: str,
    at: tuple[float, float],
    offset: tuple[float, float] = (6, 0),
    **style: Any,
) -> None:
    """Write text beside a point; `offset` is in points (1/72 inch)."""
    style = {'va': 'center', 'annotation_clip': False, **style}
    axis.annotate(text, at, xytext=offset, textcoords='offset points', **style)


def literal(text: str) -> str:
    """Return text that Matplotlib draws as it is: no formulas, only letters that the font has."""
    return text.encode('latin-1', 'backslashreplace').decode('latin-1').replace('$', r'\$')


def png_bytes(figure: Figure) -> bytes:
    """Return the figure as a PNG."""
    content = io.BytesIO()
    FigureCanvasAgg(figure).print_png(content)
    return content.getvalue()


def _svg_bytes(figure: Figure) -> bytes:
    """Return the figure as an SVG that shows the texts of `add_hover`."""
    content = io.BytesIO()
    # Text stays text, to be found and copied.
    with matplotlib.rc_context({'svg.hashsalt': 'gmskip', 'svg.fonttype': 'none'}):
        FigureCanvasSVG(figure).print_svg(content, metadata={'Date': None})
    text = re.sub(r'<metadata>.*?</metadata>', '', content.getvalue().decode(), flags=re.DOTALL)
    return _HOVER_LINK.sub(r'<g><title>\2</title>\3</g>', text).encode()


def add_hover(
    axis: Axes,
    xs: ArrayLike,
    ys: ArrayLike,
    texts: Sequence[str],
    *,
    marker: str = 'o',
    size_points: float = 12,
) -> None:
    """Show a text where the pointer is over a point, in an SVG."""
    axis.scatter(
        np.asarray(xs),
        np.asarray(ys),
        s=size_points**2,
        marker=marker,
        color='white',
        alpha=0.004,  # of 0, a backend draws nothing that a pointer can be over
        linewidths=0,
        zorder=10,
        urls=[_HOVER + fmt.one_line(text) for text in texts],
    )


@dataclass(frozen=True)
class Picture:
    """A figure as the content of two files, PNG and SVG."""

    png: bytes
    svg: bytes

    @property
    def element(self) -> str:
        """The SVG as an element of a page, which may hold several.

        It is never so narrow that its text cannot be read.
        """
        text = self.svg.decode('utf-8')
        text = re.sub(r'<g id="[^"]*"', '<g', text[text.index('<svg') :])
        width = re.search(r'width="([\d.]+)pt"', text)
        assert width is not None
        least_px = round(LEAST_PX_PER_POINT * float(width[1]))
        return text.replace('<svg', f'<svg style="min-width: {least_px}px"', 1)


def picture(figure: Figure) -> Picture:
    """Return the figure, drawn; the same bytes for the same figure."""
    return Picture(png_bytes(figure), _svg_bytes(figure))


def data_uri(content: bytes, media_type: str = 'image/png') -> str:
    """Return a picture as a data URI, so that a page needs no other file."""
    return f'data:{media_type};base64,' + base64.b64encode(content).decode('ascii')
