"""Answers to many questions: how much is held in memory at once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gmskip_ros.calibration.answering import Answerer, ImageQuestion
from gmskip_ros.calibration.distributed import Ranks
from gmskip_ros.calibration.images import EncodedImages
from gmskip_ros.vlm import Answer, CandidateAnswer, ImageFeatures, Timing

IMAGE_BYTES = 4 * 100 * 8
NUM_IMAGES = 10


class CountingVlm:
    """Records how many images it is given at once, and the memory left for the rest."""

    device = 'cpu'
    token_blocks = 0

    def __init__(self) -> None:
        self.images_at_once: list[int] = []
        self.memory_bytes: list[int] = []

    def encode(self, image: object) -> ImageFeatures:
        return ImageFeatures(torch.zeros(100, 8), 'counting', 0.0, 0.0)

    def answer_candidates(self, features, prompts, removed, candidates, *_, memory_bytes, **__):
        self.images_at_once.append(len(features))
        self.memory_bytes.append(memory_bytes)
        return [[CandidateAnswer((1,), prompt)] * len(candidates) for prompt in prompts]

    def answer_batch(self, features, prompts, *_, **__):
        self.images_at_once.append(len(features))
        timing = Timing(0.0, 0.0, 0.0, 0.0, 0.0)
        return [Answer(prompt, (1,), timing, True, None) for prompt in prompts]


@pytest.mark.parametrize('method', ['walk', 'batched'])
@pytest.mark.parametrize(
    'images_in_memory, at_once', [(1, [1] * 10), (16, [4, 4, 2]), (1000, [6, 4])]
)
def test_images_take_only_part_of_the_memory(monkeypatch, method, images_in_memory, at_once):
    monkeypatch.setattr('gmskip_ros.calibration.images.read_image', lambda path: None)
    memory_bytes = images_in_memory * IMAGE_BYTES
    vlm = CountingVlm()
    paths = [Path(f'{number}.jpg') for number in range(NUM_IMAGES)]
    images = EncodedImages(vlm, paths, memory_bytes, Ranks())
    assert images.encode_all() == {}
    answerer = Answerer(vlm, images, Ranks(), method, 6, memory_bytes)
    questions = [ImageQuestion(image, f'{image}?') for image in range(NUM_IMAGES)]
    found = answerer.answers(questions, [], (None,))
    assert [[answer.text for answer in answers] for answers in found] == [
        [question.prompt] for question in questions
    ]
    assert vlm.images_at_once == at_once
    for number, left in zip(vlm.images_at_once, vlm.memory_bytes, strict=False):
        assert left == max(1, memory_bytes - number * IMAGE_BYTES)
