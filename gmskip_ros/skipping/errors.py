"""What can be wrong with a skip list."""

from __future__ import annotations

from gmskip_ros.errors import UserError


class SkipListError(UserError, ValueError):
    """A skip list is unusable; one line with the file or field, the value and the remedy."""


class SkipListMismatchError(SkipListError):
    """A skip list was made for a model with another number of blocks."""


class SkipSetError(UserError, ValueError):
    """A skip set names a block that does not exist, or names one twice, or not by an integer."""
