"""Writes reports: each file aside and then renamed, so that none is ever half there."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2


def write_files(folder: Path, contents: Mapping[str, bytes]) -> list[Path]:
    """Write files into a folder, which is made if it is missing; return their paths.

    Raises OSError with the file's name, as the file system does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    return [_write(folder / name, content) for name, content in contents.items()]


def _write(path: Path, content: bytes) -> Path:
    aside = path.with_name(f'.{path.name}.{secrets.token_hex(4)}')
    try:
        aside.write_bytes(content)
        os.replace(aside, path)
    except BaseException:
        with contextlib.suppress(OSError):
            aside.unlink()
        raise
    return path


def render_html(template: str, **values: Any) -> bytes:
    """Return a page made from a template in assets/report; every value is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader('gmskip_ros', 'assets/report'),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # A file name that is no Unicode must not keep a report from being written.
    return environment.get_template(template).render(values).encode('utf-8', 'backslashreplace')
