"""The one exception of this package."""

from __future__ import annotations


class TaskError(ValueError):
    """A task's settings or references are unusable; one line with the thing, value and remedy."""
