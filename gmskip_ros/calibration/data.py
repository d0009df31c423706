"""The samples of a run with readable images, and the questions about them."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gmskip_ros.calibration.choosing import Chosen, choose, choose_by_first
from gmskip_ros.calibration.distributed import Ranks
from gmskip_ros.calibration.errors import CalibrationError
from gmskip_ros.calibration.images import EncodedImages
from gmskip_ros.calibration.questions import Questions, label_set, make_questions
from gmskip_ros.calibration.settings import (
    CalibrationSettings,
    CompareSettings,
    Listener,
    SharedSettings,
)
from gmskip_ros.datasets import Dataset, Sample, sample_hash
from gmskip_ros.machine import describe_run
from gmskip_ros.vlm import CalibrationEngine


@dataclass(frozen=True)
class Data:
    """Encoded images and the questions about them, per task; test questions are [] without a test.

    `chosen`: from which datasets, and how many; without the samples, which the questions have.
    `unreadable`: why images were skipped, by path. The hashes are those of the samples.
    """

    chosen: Chosen
    images: EncodedImages
    unreadable: dict[str, str]
    questions: list[Questions]
    test_questions: list[Questions]
    sha256: str
    test_sha256: str

    def without_test(self) -> Data:
        """Return the data without test questions."""
        return replace(self, test_questions=[], test_sha256=sample_hash([]))


def choose_calibration_samples(
    dataset: Dataset, settings: CalibrationSettings | CompareSettings, test_dataset: Dataset | None
) -> Chosen:
    """Return the samples to calibrate on and to test on, as `choose` does."""
    return choose(dataset, settings, settings.images, _test_images(settings), test_dataset)


def choose_calibration_samples_in_view(
    vlm: CalibrationEngine,
    dataset: Dataset,
    settings: CalibrationSettings | CompareSettings,
    ranks: Ranks,
    listener: Listener,
    test_dataset: Dataset | None = None,
) -> Chosen:
    """Return the samples to calibrate on and to test on, as `choose_by_first` does."""
    counts = settings.images, _test_images(settings)
    return choose_by_first(vlm, dataset, settings, *counts, ranks, listener, test_dataset)


def _test_images(settings: CalibrationSettings | CompareSettings) -> int:
    return settings.images if settings.test_images is None else settings.test_images


def load_data(
    vlm: CalibrationEngine,
    chosen: Chosen,
    settings: SharedSettings,
    ranks: Ranks,
    listener: Listener,
    should_stop: Callable[[], bool] = lambda: False,
) -> Data:
    """Encode the chosen samples' images and make the questions; unreadable images are skipped.

    Raises CalibrationError if no readable image of a non-empty list can be scored, and Stopped.
    """
    dataset, samples, test_samples = chosen.dataset, chosen.samples, chosen.test_samples
    paths = list(dict.fromkeys(sample.image_path for sample in [*samples, *test_samples]))
    images = EncodedImages(vlm, paths, settings.memory_bytes, ranks)
    unreadable = images.encode_all(lambda done: listener.pictures(done, len(paths)), should_stop)

    def readable(of_list: Sequence[Sample]) -> list[Sample]:
        return [sample for sample in of_list if sample.image_path not in unreadable]

    def questions_about(of_list: Sequence[Sample]) -> list[Questions]:
        if not of_list:
            return []
        questions = [
            make_questions(readable(of_list), task, task.make_task(dataset.labels), settings.seed)
            for task in settings.tasks()
        ]
        if not min(of_task.num_scored for of_task in questions):
            raise CalibrationError(
                f'{dataset.name}: none of the images chosen to be scored can be read '
                f'({next(iter(unreadable.values()))}): restore them'
            )
        return questions

    questions, test_questions = questions_about(samples), questions_about(test_samples)
    sha256, test_sha256 = ranks.of_first(
        (sample_hash(readable(samples)), sample_hash(readable(test_samples)))
    )
    return Data(
        chosen=replace(chosen, samples=(), test_samples=()),
        images=images,
        unreadable={str(path): reason for path, reason in sorted(unreadable.items())},
        questions=questions,
        test_questions=test_questions,
        sha256=sha256,
        test_sha256=test_sha256,
    )


def record_header(
    format: str,
    vlm: CalibrationEngine,
    settings: SharedSettings,
    metrics: Sequence[str],
    questions: Sequence[Questions],
) -> dict[str, Any]:
    """Return what a record of measurements begins with, as JSON values: what ran, when, on what."""
    now = datetime.datetime.now(datetime.timezone.utc)
    return {
        'format': format,
        'command': settings.command,
        'created': now.strftime('%Y-%m-%dT%H:%M:%SZ'),
        **describe_run(
            vlm.name, vlm.device, vlm.dtype, vlm.quantization, vlm.num_blocks, vlm.image_fit
        ),
        'max_image_tokens': vlm.max_image_tokens,
        'text_model_type': vlm.text_model_type,
        'task': settings.task,
        'target': settings.target,
        'metric': ', '.join(metrics),
        'match': settings.used_match,
        'labels': label_set(questions),
    }
