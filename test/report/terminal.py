"""Tables as a terminal shows them."""

from __future__ import annotations

import io
from collections.abc import Iterable

from rich.console import Console
from rich.table import Table


def printed(tables: Iterable[Table], width: int = 80) -> str:
    """Return the text of the tables on a terminal of this width."""
    file = io.StringIO()
    console = Console(width=width, file=file, color_system=None)
    for table in tables:
        console.print(table)
    return file.getvalue()


def printed_ascii(tables: Iterable[Table]) -> str:
    """Return the text of the tables on an ASCII terminal; raises UnicodeEncodeError."""
    content = io.BytesIO()
    file = io.TextIOWrapper(content, encoding='ascii')
    console = Console(width=80, file=file)
    for table in tables:
        console.print(table)
    file.flush()
    return content.getvalue().decode('ascii')
