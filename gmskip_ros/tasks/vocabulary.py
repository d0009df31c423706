"""A label set with all spellings under which its labels are recognised."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from gmskip_ros.tasks.labels import SYNONYMS
from gmskip_ros.tasks.normalisation import normalise, plurals, singulars, words


class Vocabulary:
    """Finds labels in text: as spelt, in the plural, and by synonym if `synonyms` is set.

    A label's own spelling takes precedence over a plural of another label, and plurals over
    synonyms.
    """

    def __init__(self, labels: Sequence[str], synonyms: bool = False) -> None:
        self.labels = tuple(labels)
        self._label_of: dict[str, str] = {normalise(label): label for label in self.labels}
        own = dict(self._label_of)
        self._add((form, label) for normal, label in own.items() for form in plurals(normal))
        self._add((form, label) for normal, label in own.items() for form in singulars(normal))
        if synonyms:
            for group, candidates in SYNONYMS:
                label = next(filter(None, (own.get(normalise(name)) for name in candidates)), None)
                if label is not None:
                    self._add((form, label) for word in group for form in (word, *plurals(word)))
        self._longest = max(len(form.split()) for form in self._label_of)

    def _add(self, forms: Iterable[tuple[str, str]]) -> None:
        for form, label in forms:
            self._label_of.setdefault(form, label)

    def match(self, text: str) -> str | None:
        """Return the label that the whole text names after normalisation, or None."""
        return self._label_of.get(normalise(text))

    def spellings(self, label: str) -> frozenset[str]:
        """Return the normalised texts that `match` reads as a label; none for an unknown label."""
        return frozenset(form for form, named in self._label_of.items() if named == label)

    def find(self, text: str) -> frozenset[str]:
        """Return the labels mentioned in running text, as whole words.

        Longer names are matched first and consume their words: 'a traffic light' mentions
        traffic_light, but neither 'light' nor 'traffic'. No name extends across punctuation.
        """
        found: set[str] = set()
        for clause in re.split(r'[.,;:!?()\n]', text):
            parts: list[str | None] = list(words(clause))
            for length in range(min(self._longest, len(parts)), 0, -1):
                for start in range(len(parts) - length + 1):
                    window = parts[start : start + length]
                    if None in window:
                        continue
                    label = self._label_of.get(' '.join(word for word in window if word))
                    if label is not None:
                        found.add(label)
                        parts[start : start + length] = [None] * length
        return frozenset(found)
