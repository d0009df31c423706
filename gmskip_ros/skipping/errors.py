"""What can be wrong with a skip list."""

from __future__ import annotations


class SkipListError(ValueError):
    """A skip list is unusable; one line with the file or field, the value and the remedy."""


class SkipListMismatchError(SkipListError):
    """A skip list was made for a model with another number of blocks."""
