"""A stand-in for the model, where a real one's speed or mood would decide what a test sees."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from gmskip_ros.vlm import Answer, ImageFeatures, SkipSet, Stopped, Timing


class FakeVlm:
    """
    Says 'car' with every block and 'dog' with any block left out; one millisecond a phase.

    `on_token(skips)` is called at every token of an answer, with whether it is a skip branch's; it
    may wait or raise. `calls` lists what was asked for, in order.
    """

    name = 'fake'
    num_blocks = 32
    text_model_type = 'llama'
    device = 'cpu'
    dtype = 'float32'
    num_parameters = 0
    template_sha256 = '0' * 64

    def __init__(self, on_token: Callable[[bool], None] = lambda skips: None) -> None:
        self.on_token = on_token
        self.calls: list[tuple[Any, ...]] = []

    def encode(self, image: np.ndarray) -> ImageFeatures:
        self.calls.append(('encode', image.shape))
        return ImageFeatures(tokens=None, model=self.name, preprocess_ms=1.0, vision_ms=1.0)  # type: ignore[arg-type]

    def free_memory(self) -> None:
        self.calls.append(('free_memory',))

    def device_memory_bytes(self) -> None:
        return None

    def answer(
        self,
        image_or_features: Any,
        prompt: str,
        skip: SkipSet = SkipSet(),  # noqa: B008 (frozen)
        max_new_tokens: int = 16,
        *,
        should_stop: Callable[[], bool] | None = None,
    ) -> Answer:
        self.calls.append(('answer', prompt, skip, max_new_tokens))
        for _ in range(3):
            if should_stop is not None and should_stop():
                raise Stopped('asked to')
            self.on_token(bool(skip))
        timing = Timing(1.0, 1.0, 1.0, 1.0, 4.0)
        return Answer('dog' if skip else 'car', (7,) if skip else (8, 9), timing, True)
