"""Writing reports: each file whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from gmskip_ros.files import write_atomically


def write_files(folder: Path, contents: Mapping[str, bytes]) -> list[Path]:
    """Write files into a folder, created if missing; return their paths.

    Raises OSError with the file's name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        write_atomically(folder / name, content)
    return [folder / name for name in contents]


def render_html(template: str, **values: Any) -> bytes:
    """Return a page made from a template in assets/report; every value is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader('gmskip_ros', 'assets/report'),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # File names that are not valid Unicode are escaped.
    return environment.get_template(template).render(values).encode('utf-8', 'backslashreplace')
