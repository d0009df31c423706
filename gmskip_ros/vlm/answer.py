"""What the engine returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from gmskip_ros.skipping import SkipSet

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Box:
    """A part of a frame, as fractions of its width and height from the top left corner."""

    left: float
    top: float
    right: float
    bottom: float

    @property
    def share(self) -> float:
        """The part's share of the frame's area."""
        return (self.right - self.left) * (self.bottom - self.top)


@dataclass(frozen=True, eq=False)
class ImageFeatures:
    """One image as the language decoder sees it, for any number of prompts and skip sets.

    tokens has shape (image tokens, hidden size), on the model's device in the model's dtype.
    num_tiles: how many squares went through the vision tower.
    """

    tokens: torch.Tensor = field(repr=False)
    model: str
    preprocess_ms: float
    vision_ms: float
    num_tiles: int = 1

    @property
    def num_tokens(self) -> int:
        """How many image tokens the decoder sees."""
        return len(self.tokens)


@dataclass(frozen=True)
class Timing:
    """Wall-clock milliseconds of one answer; the four phases tile the total.

    preprocess: image processor, chat template, tokenizer. vision: vision tower and projector.
    prefill: the pass over image and prompt, up to the first token. decode: every further token,
    and turning the tokens into text. A draft that goes through the blocks in the pass over the
    prompt counts as prefill, one verified after the first token as decode. Where a near tie makes
    an answer with a draft start over, the first attempt counts as prefill.
    """

    preprocess_ms: float
    vision_ms: float
    prefill_ms: float
    decode_ms: float
    total_ms: float


class Confidence(NamedTuple):
    """How sure the model was of an answer's tokens: mean, least and first of their probabilities.

    The end-of-sequence token does not count, except in an answer that has no other token.
    """

    mean: float
    min: float
    first: float = float('nan')


NOT_MEASURED = Confidence(float('nan'), float('nan'))


@dataclass(frozen=True)
class Answer:
    """One greedy answer.

    token_ids exclude the end-of-sequence token, except that an answer of forced length contains
    every token. vision_shared: the image features already existed; their time counts all the same,
    as if the answer had been made alone. first_probabilities: of each of the `first_token_ids` that
    were asked for, as the first token of the answer. logits: float32, shape (steps, vocabulary),
    one row per chosen token (an end-of-sequence token included); None unless requested.
    """

    text: str
    token_ids: tuple[int, ...]
    timing: Timing
    vision_shared: bool
    confidence: Confidence = NOT_MEASURED
    first_probabilities: tuple[float, ...] = ()
    logits: np.ndarray | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class FrameQuestion:
    """One of the questions about a frame, as `answer` takes them; see `Vlm.share_frame`."""

    prompt: str
    skip: SkipSet = field(default_factory=SkipSet)
    max_new_tokens: int = 16
    first_token_ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class CandidateAnswer:
    """One greedy answer of one of many skip sets; incomplete if cut once its score was certain."""

    token_ids: tuple[int, ...]
    text: str
    complete: bool = True


@dataclass(frozen=True, eq=False)
class BlockStates:
    """What one block did to the T tokens of a prompt and of the answer that was given after it.

    entering and leaving have shape (T, hidden size), in the model's dtype on its device; those that
    leave the last block are not normed yet. An answer's last token is not one of the T if the
    context does not hold it. is_image: bool (T,), every position that the image placeholder expands
    to. prompt_length: how many of the T tokens are the prompt's. image_attention: float32 (tokens
    of the answer,), how much of its attention the position that predicts each token pays to image
    tokens (0..1, mean over heads; 0 where it skips the block); None unless requested.
    """

    block: int
    entering: torch.Tensor
    leaving: torch.Tensor
    is_image: torch.Tensor
    prompt_length: int
    image_attention: torch.Tensor | None = None
