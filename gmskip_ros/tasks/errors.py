"""The one exception of this package."""

from __future__ import annotations

from gmskip_ros.errors import UserError


class TaskError(UserError, ValueError):
    """A task's settings or references are unusable; one line with the thing, value and remedy."""
