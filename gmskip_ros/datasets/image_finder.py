"""Where the files are that an annotation file names."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
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
        self._alike: dict[Path, dict[str, str]] = {}  # by folder: the only file that is spelt so

    def find(self, names: Sequence[str]) -> Path | None:
        """Return the first of these names that is a file in the first folder that has one.

        A name may contain folders, separated by /, and be absolute. If none is a file, one counts
        that differs only in upper and lower case or in how its accents are encoded.
        """
        for folder, file_name in self._places(names):
            if file_name in self._files_in(folder):
                return folder / file_name
        for folder, file_name in self._places(names):
            if alike := self._files_alike(folder).get(_spelling(file_name)):
                return folder / alike
        return None

    def _places(self, names: Sequence[str]) -> Iterator[tuple[Path, str]]:
        for name in names:
            parent, _, file_name = name.rpartition('/')
            at = parent or '/' if name.startswith('/') else parent
            for folder in self.folders:
                yield folder / at, file_name

    def _files_in(self, folder: Path) -> frozenset[str]:
        if folder not in self._listed:
            self._listed[folder] = _files_in(folder)
        return self._listed[folder]

    def _files_alike(self, folder: Path) -> dict[str, str]:
        if folder not in self._alike:
            spellings = {file: _spelling(file) for file in self._files_in(folder)}
            count = Counter(spellings.values())
            self._alike[folder] = {to: file for file, to in spellings.items() if count[to] == 1}
        return self._alike[folder]

    def __str__(self) -> str:
        return ' or '.join(map(str, self.folders))


def _spelling(name: str) -> str:
    return unicodedata.normalize('NFC', name).casefold()


def _files_in(folder: Path) -> frozenset[str]:
    try:
        with os.scandir(folder) as listing:
            return frozenset(entry.name for entry in listing if entry.is_file())
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a null byte
        return frozenset()
