"""What the engine gives back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, eq=False)
class ImageFeatures:
    """One image as the language decoder sees it; serves any number of prompts and skip sets.

    tokens has shape (image tokens, hidden size), on the model's device in the model's dtype.
    """

    tokens: torch.Tensor = field(repr=False)
    model: str
    preprocess_ms: float
    vision_ms: float


@dataclass(frozen=True)
class Timing:
    """Wall-clock milliseconds of one answer; the four phases tile the total.

    preprocess: image processor, chat template, tokenizer. vision: vision tower and projector.
    prefill: the pass over image and prompt up to the first token. decode: every further token and
    turning them into text.
    """

    preprocess_ms: float
    vision_ms: float
    prefill_ms: float
    decode_ms: float
    total_ms: float


@dataclass(frozen=True)
class Answer:
    """One greedy answer.

    token_ids are without the end-of-sequence token, except that an answer of forced length holds
    every token. vision_shared: the image features were made before; their time is counted all the
    same, as if the answer had been made alone. logits: float32, shape (steps, vocabulary), one row
    per token chosen (an end-of-sequence token included); None unless asked for.
    """

    text: str
    token_ids: tuple[int, ...]
    timing: Timing
    vision_shared: bool
    logits: np.ndarray | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class CandidateAnswer:
    """One greedy answer of a skip set among many; not complete if it was ended once decided."""

    token_ids: tuple[int, ...]
    text: str
    complete: bool = True
