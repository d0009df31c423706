"""Where the files are that an annotation file names."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

_COCO = re.compile(r'(.*?)(?:COCO_(?:train|val)2014_)?(\d{12}\.jpg)')


def coco_names(image: str) -> list[str]:
    """Return the names that an image may have: COCO's of 2014 are longer than those of 2017."""
    match = _COCO.fullmatch(image)
    if match is None:
        return [image]
    folder, number = match.groups()
    names = [number, *(f'COCO_{part}2014_{number}' for part in ('val', 'train'))]
    return list(dict.fromkeys([image, *(folder + name for name in names)]))


class ImageFinder:
    """Finds image files by name in a list of folders, each of which is listed once.

    A folder is listed because asking for every file on its own takes minutes over a network.
    """

    def __init__(self, folders: Iterable[Path]) -> None:
        self.folders = tuple(dict.fromkeys(folders))
        self._listed: dict[Path, frozenset[str]] = {}

    def find(self, names: Sequence[str]) -> Path | None:
        """Return the first of these names that is a file in the first folder that has one.

        A name may contain folders, separated by /, and be absolute.
        """
        for name in names:
            parent, _, file_name = name.rpartition('/')
            for folder in self.folders:
                at = folder / (parent or '/') if name.startswith('/') else folder / parent
                if at not in self._listed:
                    self._listed[at] = _files_in(at)
                if file_name in self._listed[at]:
                    return at / file_name
        return None

    def __str__(self) -> str:
        return ' or '.join(map(str, self.folders))


def _files_in(folder: Path) -> frozenset[str]:
    try:
        with os.scandir(folder) as listing:
            return frozenset(entry.name for entry in listing if entry.is_file())
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a null byte
        return frozenset()
