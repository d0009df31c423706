"""The error that tasks and scorers raise."""

from __future__ import annotations

from gmskip_ros.errors import UserError


class TaskError(UserError, ValueError):
    """Settings or references of a task are unusable; one line with name, value and remedy."""
