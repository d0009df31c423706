"""Words of a caption as COCO's caption scorer counts them, without its Java tokenizer."""

from __future__ import annotations

import re

# What COCO's scorer leaves out (PUNCTUATIONS of its ptbtokenizer.py, after lower-casing).
_PUNCTUATION = frozenset(
    ("''", "'", '``', '`', '.', '?', '!', ',', ':', '-', '--', '...', ';')
)
_TOKEN = re.compile(
    r"[a-z]+(?=n't\b)|n't\b|'(?:s|m|d|re|ve|ll)\b|\w+(?:[-.:,/]\w+)*|\.\.\.|--|\S"
)


def caption_tokens(caption: str) -> list[str]:
    """Return the lower-case tokens of a caption, punctuation left out."""
    return [token for token in _TOKEN.findall(caption.lower()) if token not in _PUNCTUATION]
