"""A stand-in for the model, for tests that depend on its speed, its answers or its failures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

import numpy as np

from gmskip_ros.vlm import Answer, Confidence, Engine, ImageFeatures, SkipSet, Stopped, Timing
from gmskip_ros.vlm.answer import Box, FrameQuestion

TOKENS = {'dog': (7,), 'car': (8, 9)}


class FakeVlm(Engine):
    """Answers 'car' with every block and 'dog' with any block skipped; one millisecond a phase.

    `on_token(skips)` is called at every token of an answer, with whether blocks are skipped; it may
    wait or raise. `calls` lists the calls in their order.
    """

    name = 'fake'
    num_blocks = 32
    text_model_type = 'llama'
    device = 'cpu'
    dtype = 'float32'
    quantization = 'none'
    template_sha256 = '0' * 64
    image_fit = 'checkpoint'
    warnings: tuple[str, ...] = ()

    def __init__(self, on_token: Callable[[bool], None] = lambda skips: None) -> None:
        self.on_token = on_token
        self.confidence = Confidence(0.75, 0.5, 1.0)
        self.probabilities: dict[int, float] = {}  # of tokens as the first one of an answer
        self.calls: list[tuple[Any, ...]] = []

    def encode(self, image: np.ndarray) -> ImageFeatures:
        self.calls.append(('encode', image.shape))
        tokens = cast(Any, np.zeros((4, 8)))  # torch takes seconds to import
        return ImageFeatures(tokens=tokens, model=self.name, preprocess_ms=1.0, vision_ms=1.0)

    def visible_box(self, width: float, height: float) -> Box:
        return Box(0.0, 0.0, 1.0, 1.0)

    def render_prompt(self, prompt: str) -> str:
        return f'<image> {prompt}'

    def token_ids(self, text: str) -> tuple[int, ...]:
        """Return made-up tokens: the same for the same text."""
        return TOKENS.get(text) or tuple(1000 + ord(character) for character in text)

    def free_memory(self) -> None:
        self.calls.append(('free_memory',))

    def device_memory_bytes(self) -> int | None:
        return None

    def answer(
        self,
        image_or_features: np.ndarray | ImageFeatures,
        prompt: str,
        skip: SkipSet | Iterable[int] = (),
        max_new_tokens: int = 16,
        *,
        draft: Sequence[int] = (),
        first_token_ids: Sequence[int] = (),
        should_stop: Callable[[], bool] | None = None,
    ) -> Answer:
        self.calls.append(('answer', prompt, skip, max_new_tokens))
        for _ in range(3):
            if should_stop is not None and should_stop():
                raise Stopped('asked to')
            self.on_token(bool(skip))
        timing = Timing(1.0, 1.0, 1.0, 1.0, 4.0)
        return Answer(
            'dog' if skip else 'car',
            TOKENS['dog'] if skip else TOKENS['car'],
            timing,
            True,
            confidence=self.confidence,
            first_probabilities=tuple(self.probabilities.get(id, 0.0) for id in first_token_ids),
        )

    def share_frame(
        self,
        features: ImageFeatures,
        questions: Sequence[FrameQuestion],
        *,
        should_stop: Callable[[], bool] | None = None,
    ) -> FakeSharedFrame:
        self.calls.append(('share_frame', *questions))
        return FakeSharedFrame(self, features, questions)


class FakeSharedFrame:
    """Answers as the stand-in does alone; four milliseconds of each call are shared."""

    def __init__(
        self, vlm: FakeVlm, features: ImageFeatures, questions: Sequence[FrameQuestion]
    ) -> None:
        self._vlm, self._features, self._questions = vlm, features, questions
        self.shared_ms = 0.0

    def answer(
        self,
        indices: Sequence[int],
        *,
        drafts: Mapping[int, Sequence[Sequence[int]]] | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> list[Answer]:
        self._vlm.calls.append(('shared answer', *indices, dict(drafts or {})))
        self.shared_ms += 4.0
        return [
            self._vlm.answer(
                self._features,
                question.prompt,
                question.skip,
                question.max_new_tokens,
                first_token_ids=question.first_token_ids,
                should_stop=should_stop,
            )
            for question in (self._questions[index] for index in indices)
        ]
