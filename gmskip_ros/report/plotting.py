"""How the reports' pictures look, and how they are drawn into bytes.

Colours are Okabe-Ito's, readable with any colour vision; what a line or a mark means is written
beside it, so that a picture can be read in grey, too.
"""

from __future__ import annotations

import base64
import io
from contextlib import AbstractContextManager

import matplotlib
import matplotlib.style
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, PURPLE = '#0072B2', '#D55E00', '#009E73', '#CC79A7'  # Okabe-Ito
SKY = '#56B4E9'
GREY, DARK, PALE = '#767676', '#222222', '#CFCFCF'
DPI = 130
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
    """Return a context in which Matplotlib draws as the reports do, whatever its settings are."""
    return matplotlib.style.context(['default', _STYLE])


def literal(text: str) -> str:
    """Return a title that Matplotlib draws as it is: no formulas, only letters the font has."""
    return text.encode('latin-1', 'backslashreplace').decode('latin-1').replace('$', r'\$')


def png_bytes(figure: Figure) -> bytes:
    """Return the figure as a PNG."""
    content = io.BytesIO()
    FigureCanvasAgg(figure).print_png(content)
    return content.getvalue()


def data_uri(content: bytes, media_type: str = 'image/png') -> str:
    """Return a picture as a data URI, so that a page needs no other file."""
    return f'data:{media_type};base64,' + base64.b64encode(content).decode('ascii')
