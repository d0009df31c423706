"""The error that the dataset readers raise."""

from __future__ import annotations

from gmskip_ros.errors import UserError


class DatasetError(UserError, ValueError):
    """A dataset or an image is unusable; one line with the file, the field and the remedy."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


def one_line(text: str) -> str:
    """Escape line breaks and other unprintable characters, which may be quoted from a file."""
    return ''.join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
