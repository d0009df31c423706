"""Answers to many questions: how much is held at once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gmskip_ros.calibration.answering import Answerer, Ask
from gmskip_ros.calibration.distributed import Ranks
from gmskip_ros.calibration.images import GIB, Pictures
from gmskip_ros.vlm import Answer, CandidateAnswer, ImageFeatures, Timing

PICTURE_BYTES = 4 * 100 * 8
NUM_PICTURES = 10


class CountingVlm:
    """Counts the pictures that it is given at once, and the memory that is left for the rest."""

    device = 'cpu'
    token_blocks = 0

    def __init__(self) -> None:
        self.pictures: list[int] = []
        self.memory_bytes: list[int] = []

    def encode(self, image: object) -> ImageFeatures:
        return ImageFeatures(torch.zeros(100, 8), 'counting', 0.0, 0.0)

    def answer_candidates(self, features, prompts, removed, candidates, *_, memory_bytes, **__):
        self.pictures.append(len(features))
        self.memory_bytes.append(memory_bytes)
        return [[CandidateAnswer((1,), prompt)] * len(candidates) for prompt in prompts]

    def answer_batch(self, features, prompts, *_, **__):
        self.pictures.append(len(features))
        timing = Timing(0.0, 0.0, 0.0, 0.0, 0.0)
        return [Answer(prompt, (1,), timing, True, None) for prompt in prompts]


@pytest.mark.parametrize('method', ['walk', 'batched'])
@pytest.mark.parametrize(
    'pictures_in_memory, at_once', [(1, [1] * 10), (16, [4, 4, 2]), (1000, [6, 4])]
)
def test_pictures_take_a_part_of_the_memory_only(monkeypatch, method, pictures_in_memory, at_once):
    monkeypatch.setattr('gmskip_ros.calibration.images.read_image', lambda path: None)
    memory_bytes = pictures_in_memory * PICTURE_BYTES
    vlm = CountingVlm()
    paths = [Path(f'{number}.jpg') for number in range(NUM_PICTURES)]
    pictures = Pictures(vlm, paths, memory_bytes, Ranks())
    assert pictures.encode_all() == {}
    answerer = Answerer(vlm, pictures, Ranks(), method, 6, memory_bytes / GIB)
    asks = [Ask(image, f'{image}?') for image in range(NUM_PICTURES)]
    found = answerer.answers(asks, [], (None,))
    assert [[answer.text for answer in answers] for answers in found] == [
        [ask.prompt] for ask in asks
    ]
    assert vlm.pictures == at_once
    for number, left in zip(vlm.pictures, vlm.memory_bytes, strict=False):
        assert left == max(1, memory_bytes - number * PICTURE_BYTES)
