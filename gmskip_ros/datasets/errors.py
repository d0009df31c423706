"""What can be wrong with a dataset."""

from __future__ import annotations

from gmskip_ros.errors import UserError


class DatasetError(UserError, ValueError):
    """A dataset or a picture is unusable; one line with the file, the field and the remedy."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


def one_line(text: str) -> str:
    """Return the text with line breaks and the like escaped: it may quote what is in a file."""
    return ''.join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
