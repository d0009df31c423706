"""The calibration set as the decoder sees it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from gmskip_ros.calibration.distributed import Ranks
from gmskip_ros.calibration.errors import CalibrationError
from gmskip_ros.calibration.questions import choose_question_samples
from gmskip_ros.calibration.settings import CalibrationSettings, Listener
from gmskip_ros.datasets import Dataset, DatasetError, Sample, read_image
from gmskip_ros.vlm import ImageFeatures, Stopped

if TYPE_CHECKING:
    from gmskip_ros.vlm import Vlm

GIB = 1 << 30


class Pictures:
    """The pictures as the decoder sees them, by index: encoded once where memory allows.

    With several processes, each keeps the pictures whose index falls to its rank.
    """

    def __init__(self, vlm: Vlm, paths: Sequence[Path], memory_bytes: int, ranks: Ranks) -> None:
        self.paths = tuple(paths)
        self._vlm = vlm
        self._memory_bytes = memory_bytes
        self._ranks = ranks
        self._kept: dict[int, ImageFeatures] = {}
        self.largest_bytes = 0  # of those encoded so far

    def is_mine(self, image: int) -> bool:
        """Tell whether this process answers questions about a picture."""
        return image % self._ranks.world_size == self._ranks.rank

    def encode_all(
        self,
        on_done: Callable[[int], None] = lambda _: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> dict[int, str]:
        """Encode every picture; return why, for those that cannot be read, in every process.

        Raises Stopped when `should_stop`, asked before each picture, says so.
        """
        unreadable = {}
        for image in range(len(self.paths)):
            if should_stop():
                raise Stopped('stopped before the pictures were encoded')
            if self.is_mine(image):
                try:
                    self._encode(image)
                except DatasetError as error:
                    unreadable[image] = str(error)
            on_done(image + 1)
        merged: dict[int, str] = {}
        for part in self._ranks.gather(unreadable):
            merged.update(part)
        return dict(sorted(merged.items()))

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
        if size <= self._memory_bytes:  # otherwise it is encoded again each time: slower
            self._memory_bytes -= size
            self._kept[image] = replace(features, tokens=kept)
        return features


def _choose_samples(
    dataset: Dataset, settings: CalibrationSettings, test_dataset: Dataset | None
) -> tuple[list[Sample], list[Sample]]:
    test_images = settings.images if settings.test_images is None else settings.test_images
    return choose_question_samples(
        dataset, settings.tasks(), settings.images, test_images, settings.seed, test_dataset
    )


def _load_pictures(
    vlm: Vlm,
    dataset: Dataset,
    settings: CalibrationSettings,
    test_dataset: Dataset | None,
    ranks: Ranks,
    listener: Listener,
    should_stop: Callable[[], bool],
) -> tuple[list[Sample], list[Sample], Pictures, list[str]]:
    """Choose samples and encode their pictures; those that cannot be read are left out, named."""
    samples, test_samples = _choose_samples(dataset, settings, test_dataset)
    paths = list(dict.fromkeys(sample.image_path for sample in [*samples, *test_samples]))
    pictures = Pictures(vlm, paths, int(settings.memory_gib * GIB), ranks)
    broken = pictures.encode_all(lambda done: listener.pictures(done, len(paths)), should_stop)
    unreadable = {paths[index] for index in broken}
    left, left_test = (
        [sample for sample in some if sample.image_path not in unreadable]
        for some in (samples, test_samples)
    )
    if not left or (test_samples and not left_test):
        raise _all_unreadable(dataset, list(broken.values()))
    return left, left_test, pictures, [str(path) for path in sorted(unreadable)]


def _all_unreadable(dataset: Dataset, examples: Sequence[str]) -> CalibrationError:
    return CalibrationError(
        f'none of the pictures chosen from {dataset.name} to be scored can be read '
        f'({examples[0]}): put them back'
    )
