"""The images as the decoder sees them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from gmskip_ros.calibration.distributed import Ranks
from gmskip_ros.datasets import DatasetError, read_image
from gmskip_ros.vlm import CalibrationEngine, ImageFeatures, Stopped


class EncodedImages:
    """Images as the decoder sees them, by index: encoded once where memory allows.

    With several processes, each keeps the images whose index falls to its rank.
    """

    def __init__(
        self, vlm: CalibrationEngine, paths: Sequence[Path], memory_bytes: int, ranks: Ranks
    ) -> None:
        self.paths = tuple(paths)
        self._vlm = vlm
        self._memory_bytes = memory_bytes
        self._ranks = ranks
        self._kept: dict[int, ImageFeatures] = {}
        self.largest_bytes = 0  # of those encoded so far

    @property
    def index_of(self) -> dict[Path, int]:
        """The index of each image by its path."""
        return {path: index for index, path in enumerate(self.paths)}

    def is_mine(self, image: int) -> bool:
        """Return whether this process answers questions about an image."""
        return image % self._ranks.world_size == self._ranks.rank

    def encode_all(
        self,
        on_done: Callable[[int], None] = lambda _: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> dict[Path, str]:
        """Encode every image; return, in every process, why some cannot be read, by path.

        `on_done` receives the number of images done. Raises Stopped when `should_stop`, polled
        before each image, is true.
        """
        unreadable = {}
        for image in range(len(self.paths)):
            if should_stop():
                raise Stopped('stopped before the images were encoded')
            if self.is_mine(image):
                try:
                    self._encode(image)
                except DatasetError as error:
                    unreadable[image] = str(error)
            on_done(image + 1)
        merged: dict[int, str] = {}
        for of_rank in self._ranks.gather(unreadable):
            merged.update(of_rank)
        return {self.paths[image]: reason for image, reason in sorted(merged.items())}

    def __getitem__(self, image: int) -> ImageFeatures:
        features = self._kept.get(image)
        if features is None:
            return self._encode(image)
        return replace(features, tokens=features.tokens.to(self._vlm.device))

    def _encode(self, image: int) -> ImageFeatures:
        features = self._vlm.encode(read_image(self.paths[image]))
        kept = features.tokens.cpu()
        size = kept.element_size() * kept.nelement()
        self.largest_bytes = max(self.largest_bytes, size)
        if size <= self._memory_bytes:  # otherwise it is encoded again each time, which is slower
            self._memory_bytes -= size
            self._kept[image] = replace(features, tokens=kept)
        return features
