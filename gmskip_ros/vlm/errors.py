"""The engine's expected errors."""

from __future__ import annotations

from gmskip_ros.errors import UserError


class VlmError(UserError):
    """Base of everything that `gmskip_ros.vlm` raises on purpose."""


class ModelLoadError(VlmError):
    """A checkpoint, device or dtype cannot be used."""


class ImageError(VlmError, ValueError):
    """An image is not a uint8 RGB array of shape (H, W, 3)."""


class PromptError(VlmError, ValueError):
    """A prompt does not fit the model's chat template or its context."""


class NonFiniteLogitsError(VlmError):
    """The model gave NaN or infinite logits, so there is no answer."""


class VlmOutOfMemoryError(VlmError):
    """The device has no memory left for this image, batch or answer."""


class Stopped(VlmError):
    """`should_stop` returned True; the answer was abandoned."""
