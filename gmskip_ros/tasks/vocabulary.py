"""A label set with all spellings under which its labels are recognised."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence

from gmskip_ros.tasks.content import ContentReader
from gmskip_ros.tasks.errors import TaskError
from gmskip_ros.tasks.normalisation import normalise, plurals, singulars, words
from gmskip_ros.tasks.synonyms import CAPTION_WORDS, STAND_INS, SYNONYMS, Table

# How an answer is read: from the strictest to the one that understands most.
MATCHES = ('strict', 'forms', 'synonyms', 'content')
DEFAULT_MATCH = 'content'  # of the node and the commands; make_task's own is 'forms'
_SENSE = re.compile(r'[_ ]*\([^()]*\)$')  # of a label: 'car_(automobile)'


def without_sense(label: str) -> str:
    """Return LVIS's 'car_(automobile)' as 'car'; other labels as they are."""
    return _SENSE.sub('', label)


class Vocabulary:
    """Finds labels in text, in one of four ways (`match`).

    strict: the whole text is the label, after normalisation; forms: or its plural or singular;
    synonyms: or a synonym; content: the text mentions the label (see ContentReader). A label's own
    spelling takes precedence over a plural of another label, and plurals over synonyms.
    """

    def __init__(self, labels: Sequence[str], match: str = 'forms') -> None:
        """Take the labels; raise TaskError for an unknown `match`."""
        if match not in MATCHES:
            raise TaskError(f'match: {match!r} is unknown; use one of {", ".join(MATCHES)}')
        self.labels = tuple(labels)
        own = {normalise(label): label for label in self.labels}
        self._label_named = dict(own)
        self._add((form, label) for normal, label in own.items() for form in plurals(normal))
        self._add((form, label) for normal, label in own.items() for form in singulars(normal))
        self._add_without_senses()
        if match in ('synonyms', 'content'):
            self._add_synonyms(SYNONYMS, own)
        if match == 'content':
            self._add_synonyms(CAPTION_WORDS, own)
        if match in ('synonyms', 'content'):
            self._add_synonyms(STAND_INS, own)
        self._label_of = own if match == 'strict' else self._label_named
        self._longest = max(len(form.split()) for form in self._label_of)
        self.content = ContentReader(labels, self._label_of) if match == 'content' else None

    def _add_without_senses(self) -> None:
        """Let 'car' mean LVIS's `car_(automobile)`, unless it means several labels."""
        words: dict[str, list[str]] = {}
        for label in filter(_SENSE.search, self.labels):
            if word := normalise(without_sense(label)):
                words.setdefault(word, []).append(label)
        for word, labels in words.items():
            if len(labels) == 1:
                self._add_word(word, labels[0])

    def _add_synonyms(self, table: Table, own: Mapping[str, str]) -> None:
        for group, candidates in table:
            stand_ins = (
                label
                for names, labels in STAND_INS
                for label in labels
                if not set(names).isdisjoint(candidates)
            )
            names = itertools.chain(candidates, stand_ins)
            label = next(filter(None, (own.get(normalise(name)) for name in names)), None)
            if label is not None:
                for word in map(normalise, group):
                    self._add_word(word, label)

    def _add_word(self, word: str, label: str) -> None:
        self._add((form, label) for form in (word, *plurals(word)))

    def _add(self, forms: Iterable[tuple[str, str]]) -> None:
        for form, label in forms:
            self._label_named.setdefault(form, label)

    def match(self, text: str) -> str | None:
        """Return the label that the whole text names after normalisation, or None."""
        return self._label_of.get(normalise(text))

    def label_named(self, name: str) -> str | None:
        """Return the label that a data set or user means by a name, or None.

        Plurals count even where only the label itself is accepted as an answer.
        """
        return self._label_named.get(normalise(name))

    def spellings(self, label: str) -> frozenset[str]:
        """Return the normalised texts that `match` reads as a label; none for an unknown label."""
        return frozenset(form for form, named in self._label_of.items() if named == label)

    def find(self, text: str) -> frozenset[str]:
        """Return the labels mentioned in running text, as whole words.

        Longer names are matched first and consume their words: 'a traffic light' mentions
        traffic_light, but neither 'light' nor 'traffic'. No name extends across punctuation.
        Under `content` negation and more are understood (see ContentReader).
        """
        if self.content is not None:
            return frozenset(self.content.mentioned(text))
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
