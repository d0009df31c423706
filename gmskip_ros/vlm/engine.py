"""What the other rooms need of an engine; `Vlm` is the one that ships.

Stand-ins in tests and faster engines implement these.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from gmskip_ros.skipping import SkipSet
from gmskip_ros.vlm.answer import (
    Answer,
    BlockStates,
    Box,
    CandidateAnswer,
    FrameQuestion,
    ImageFeatures,
)

if TYPE_CHECKING:
    import torch

DTYPES = ('float32', 'float16', 'bfloat16')  # that a model can be loaded in
QUANTIZATIONS = ('none', 'int8', 'int4')  # of the weights of the decoder's linear layers
SMALLER_WEIGHTS = {  # what may be advised against too little memory
    'none': 'quantization int8 or int4, ',
    'int8': 'quantization int4, ',
    'int4': '',
}
MAX_THREADS = 1024  # that compute an answer; far more crash OpenMP
IMAGE_FITS = ('auto', 'checkpoint', 'pad', 'squash')  # how a frame becomes the model's square


def smaller_dtype(dtype: str, device: str) -> str:
    """Return a dtype with half the memory that is fast on the device; '' if there is none."""
    if dtype != 'float32':
        return ''
    return 'bfloat16' if device == 'cpu' else 'float16'


class SharedFrame(Protocol):
    """One frame and all that is asked about it; see `Engine.share_frame`."""

    @property
    def shared_ms(self) -> float:
        """Milliseconds spent so far on what several answers share; no answer's timing has them."""

    def answer(
        self,
        indices: Sequence[int],
        *,
        drafts: Mapping[int, Sequence[Sequence[int]]] | None = None,
        forced_lengths: Mapping[int, int] | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> list[Answer]:
        """Return the answers to these questions, by their places in the list that was given.

        `drafts`, by place: token ids of one or more guesses of its answer; good ones save time,
        none changes the answer. `forced_lengths`, by place: the exact number of tokens.
        """


class Engine(Protocol):
    """One loaded checkpoint that answers with any set of blocks skipped: what a frame needs."""

    @property
    def name(self) -> str:
        """The model's name, as given."""

    @property
    def num_blocks(self) -> int:
        """Blocks of the language decoder."""

    @property
    def text_model_type(self) -> str:
        """The language decoder's type: 'llama', 'mistral', 'qwen2'."""

    @property
    def device(self) -> str:
        """'cpu', 'cuda:0'."""

    @property
    def dtype(self) -> str:
        """'float32', 'float16', 'bfloat16'."""

    @property
    def quantization(self) -> str:
        """How the decoder's linear layers are stored: 'none', 'int8' or 'int4'."""

    @property
    def template_sha256(self) -> str:
        """Hash of the chat template in use."""

    @property
    def image_fit(self) -> str:
        """How a frame becomes the model's square: 'checkpoint', 'pad' or 'squash'."""

    @property
    def max_image_tokens(self) -> int:
        """The cap on an image's tokens; 0 = none."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a user should know about the checkpoint, a line each."""

    def visible_box(self, width: float, height: float) -> Box:
        """Return which part of an image of this size (pixels) the model sees."""

    def render_prompt(self, prompt: str) -> str:
        """Return `prompt` in the model's chat template."""

    def encode(self, image: np.ndarray) -> ImageFeatures:
        """Return the image (uint8 RGB, (H, W, 3)) as the decoder sees it."""

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
        """Return the greedy answer with the blocks of `skip` skipped.

        `draft`: token ids of a guess of the answer; a good one saves time, none changes the answer.
        """

    def share_frame(
        self,
        features: ImageFeatures,
        questions: Sequence[FrameQuestion],
        *,
        should_stop: Callable[[], bool] | None = None,
    ) -> SharedFrame:
        """Return what answers all questions about a frame with the least work.

        `questions` are those of all branches. Each answer is the one that `answer` gives.
        """

    def token_ids(self, text: str) -> tuple[int, ...]:
        """Return the tokens of a text alone."""

    def free_memory(self) -> None:
        """Return unused memory to the device."""

    def device_memory_bytes(self) -> int | None:
        """Return how much GPU memory is held; None on a CPU."""


def settings_in_use(engine: Engine) -> dict[str, Any]:
    """Return what SkipList.warnings_for compares of an engine, as its keyword arguments."""
    return {
        'model': engine.name,
        'num_blocks': engine.num_blocks,
        'text_model_type': engine.text_model_type,
        'template_sha256': engine.template_sha256,
        'dtype': engine.dtype,
        'quantization': engine.quantization,
        'image_fit': engine.image_fit,
        'max_image_tokens': engine.max_image_tokens,
    }


class CalibrationEngine(Engine, Protocol):
    """What calibration needs as well: many answers at once, probabilities, a measure of work."""

    @property
    def token_blocks(self) -> int:
        """Tokens that went through a block since loading."""

    def answer_batch(
        self,
        images_or_features: Sequence[np.ndarray | ImageFeatures],
        prompts: Sequence[str],
        skip: SkipSet | Iterable[int] = (),
        max_new_tokens: int = 16,
        *,
        forced_length: int | None = None,
        should_stop: Callable[[], bool] | None = None,
        return_logits: bool = False,
    ) -> list[Answer]:
        """Return one answer per pair of image and prompt."""

    def answer_candidates(
        self,
        features: Sequence[ImageFeatures],
        prompts: Sequence[str],
        removed: Collection[int] = (),
        candidates: Sequence[int | None] = (None,),
        max_new_tokens: int = 16,
        *,
        drafts: Sequence[Sequence[int]] | None = None,
        is_decided: Callable[[int, str], bool] | None = None,
        max_rows: int = 256,
        memory_bytes: int = 4 << 30,
        should_stop: Callable[[], bool] | None = None,
        near_tie: float | None = None,
    ) -> list[list[CandidateAnswer]]:
        """Return, per image and candidate, the answer without `removed` and that block."""

    def near_tie_margin(
        self,
        features: ImageFeatures,
        prompt: str,
        max_new_tokens: int = 16,
        *,
        max_rows: int = 256,
        memory_bytes: int = 4 << 30,
        should_stop: Callable[[], bool] | None = None,
    ) -> float:
        """Return the `near_tie` of answer_candidates, as measured on one answer."""

    def block_states(
        self,
        features: ImageFeatures,
        prompt: str,
        token_ids: Sequence[int] = (),
        skip: SkipSet | Iterable[int] = (),
        *,
        attention: bool = False,
        should_stop: Callable[[], bool] | None = None,
    ) -> Iterator[BlockStates]:
        """Yield what every block does to a prompt and the answer `token_ids`."""

    def continuation_logits(
        self,
        features: Sequence[ImageFeatures],
        prompts: Sequence[str],
        continuations: Sequence[Sequence[int]],
        skip: SkipSet | Iterable[int] = (),
        *,
        should_stop: Callable[[], bool] | None = None,
    ) -> list[torch.Tensor]:
        """Return, per row, the logits that predict each token id of its continuation."""

    def log_probabilities(
        self,
        features: Sequence[ImageFeatures],
        prompts: Sequence[str],
        texts: Sequence[str],
        skip: SkipSet | Iterable[int] = (),
        *,
        should_stop: Callable[[], bool] | None = None,
    ) -> list[float]:
        """Return log P(text | image, prompt) of every triple."""

    def input_ids(self, prompt: str, features: ImageFeatures) -> list[int]:
        """Return the whole prompt's token ids, the image token once per image feature."""

    def sparsity(
        self, skip: SkipSet | Iterable[int], num_image_tokens: int, num_tokens: int
    ) -> tuple[float, float]:
        """Return the share of the blocks' multiplications saved, in prefill and in decode."""

    def num_parameters_run(self, skip: SkipSet | Iterable[int] = ()) -> int:
        """Return how many parameters remain without the blocks that both phases skip."""

    def weights_sha256(self) -> str:
        """Return a hash that tells one set of weights from another."""
