"""Errors of skip lists and skip sets."""

from __future__ import annotations

from gmskip_ros.errors import UserError


class SkipListError(UserError, ValueError):
    """A skip list is unusable; one line with the file or field, the value and the remedy."""


class SkipListMismatchError(SkipListError):
    """A skip list was made for a model with a different number of blocks."""


class SkipSetError(UserError, ValueError):
    """A skip set lists a block that does not exist, lists one twice, or lists a non-integer."""
