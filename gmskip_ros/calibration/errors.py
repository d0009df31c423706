"""Errors of calibration."""

from __future__ import annotations

from gmskip_ros.errors import UserError


class CalibrationError(UserError, ValueError):
    """Settings or data that do not work; one line with thing, value and remedy."""


class UnguidedError(CalibrationError):
    """The score cannot guide a search, which was therefore not made."""
