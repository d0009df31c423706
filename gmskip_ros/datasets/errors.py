"""What can be wrong with a dataset."""

from __future__ import annotations


class DatasetError(ValueError):
    """A dataset or a picture is unusable; one line with the file, the field and the remedy."""
