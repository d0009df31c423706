"""Normalisation of answers, and the plurals under which labels are recognised."""

from __future__ import annotations

import re

_NOT_WORD = re.compile(r'[\W_]+')
ARTICLES = ('a', 'an', 'the')
# Nouns whose plural does not follow the rules below; only the last word of a label matters.
_IRREGULAR_PLURALS = {
    'child': 'children',
    'foot': 'feet',
    'goose': 'geese',
    'knife': 'knives',
    'leaf': 'leaves',
    'loaf': 'loaves',
    'calf': 'calves',
    'man': 'men',
    'mouse': 'mice',
    'sheep': 'sheep',
    'shelf': 'shelves',
    'ski': 'skis',
    'tooth': 'teeth',
    'wolf': 'wolves',
    'woman': 'women',
}


def words(text: str) -> list[str]:
    """Return the words of a text in lower case, without punctuation, underscores or hyphens."""
    return _NOT_WORD.sub(' ', text.casefold()).split()


def normalise(text: str) -> str:
    """Return the words of a text without its leading articles, joined by single spaces.

    'The traffic-light.' and 'traffic_light' both give 'traffic light'. A text that is only an
    article keeps it, so that labels such as 'A' and 'B' can be answered.
    """
    parts = words(text)
    while len(parts) > 1 and parts[0] in ARTICLES:
        parts = parts[1:]
    return ' '.join(parts)


def plurals(noun: str) -> tuple[str, ...]:
    """Return the plural spellings of a normalised noun phrase; its last word is inflected."""
    head, _, last = noun.rpartition(' ')
    head += ' ' if head else ''
    if last in _IRREGULAR_PLURALS:
        inflected: tuple[str, ...] = (_IRREGULAR_PLURALS[last],)
    elif last.endswith('man') and not last.endswith('human'):
        inflected = (last[:-3] + 'men',)
    elif last == 'bus':
        inflected = ('buses', 'busses')
    elif last.endswith(('s', 'x', 'z', 'ch', 'sh')):
        inflected = (last + 'es',)
    elif last.endswith('y') and last[-2:-1] not in tuple('aeiou'):
        inflected = (last[:-1] + 'ies',)
    elif last.endswith('o'):
        inflected = (last + 's', last + 'es')
    else:
        inflected = (last + 's',)
    return tuple(head + word for word in inflected)


def singulars(noun: str) -> tuple[str, ...]:
    """Return the noun phrases whose plural is the given normalised one ('cars': 'car').

    Words ending in -us, -ss or -is ('bus', 'glass', 'debris') count as singulars.
    """
    head, _, last = noun.rpartition(' ')
    head += ' ' if head else ''
    candidates = [single for single, plural in _IRREGULAR_PLURALS.items() if plural == last]
    if last.endswith('men'):
        candidates.append(last[:-3] + 'man')
    if last.endswith('s') and not last.endswith(('us', 'ss', 'is')) and len(last) > 2:
        candidates += [last[:-1], last[:-2], last[:-3] + 'y']
    return tuple(head + word for word in dict.fromkeys(candidates) if last in plurals(word))
