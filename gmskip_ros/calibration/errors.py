"""What can keep a calibration from being made."""

from __future__ import annotations

from gmskip_ros.errors import UserError


class CalibrationError(UserError, ValueError):
    """Settings or data that cannot be calibrated with; one line with thing, value and remedy."""
