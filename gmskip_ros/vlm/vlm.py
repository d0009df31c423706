"""One loaded checkpoint that answers with any set of decoder blocks skipped.

Vision tower, projector, image packing and tokenizer are Hugging Face's, and so is the image
processor unless `preprocessing.py` gives the same values faster; the language decoder is run by
`decoder.py`, block by block. All branches share one copy of the weights.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Concatenate, ParamSpec, TypeVar

import numpy as np
import torch

from gmskip_ros.skipping import SkipSet
from gmskip_ros.vlm import generation, probe
from gmskip_ros.vlm.answer import (
    Answer,
    BlockStates,
    Box,
    CandidateAnswer,
    FrameQuestion,
    ImageFeatures,
    Timing,
)
from gmskip_ros.vlm.arguments import (
    check_image,
    check_length,
    check_same_length,
    whole_number,
)
from gmskip_ros.vlm.candidates import NEAR_TIE_CANDIDATES, Candidate, CandidateWalk
from gmskip_ros.vlm.decoder import ALL, NONE, TEXT, Decoder, who_runs_and_stores
from gmskip_ros.vlm.engine import SMALLER_WEIGHTS, smaller_dtype
from gmskip_ros.vlm.errors import (
    NonFiniteLogitsError,
    PromptError,
    Stopped,
    VlmError,
    VlmOutOfMemoryError,
)
from gmskip_ros.vlm.image_fit import FittedImageProcessor
from gmskip_ros.vlm.prompt import ChatTokenizer, end_of_sequence_ids
from gmskip_ros.vlm.quantization import num_parameters
from gmskip_ros.vlm.release import release_memory
from gmskip_ros.vlm.shared_frame import VlmSharedFrame
from gmskip_ros.vlm.vision import cut_vision_tower

Arguments = ParamSpec('Arguments')
Result = TypeVar('Result')


# How PyTorch's allocator on the CPU, and what allocates past it on a GPU, say so.
_NO_MEMORY = (
    'DefaultCPUAllocator',
    'CUDA error: out of memory',
    'CUBLAS_STATUS_ALLOC_FAILED',
    'CUDNN_STATUS_ALLOC_FAILED',
)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether memory ran out, for which PyTorch often raises a plain RuntimeError."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError, VlmOutOfMemoryError)) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY)
    )


def _names_out_of_memory(
    method: Callable[Concatenate[Vlm, Arguments], Result],
) -> Callable[Concatenate[Vlm, Arguments], Result]:
    """Turn the kinds of running out of memory into VlmOutOfMemoryError."""

    @functools.wraps(method)
    def wrapped(self: Vlm, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        with self.naming_out_of_memory():
            return method(self, *args, **kwargs)

    return wrapped


class Vlm:
    """A LLaVA that answers with any set of decoder blocks skipped. Made by `load_vlm`.

    Attributes: name (as given to load_vlm), num_blocks, text_model_type ('llama', 'mistral' or
    'qwen2'), device ('cpu', 'cuda:0'), dtype ('float32'), quantization ('none', 'int8' or 'int4'),
    num_parameters, max_tokens (the context), template_sha256 (of the chat template in use),
    image_fit ('checkpoint', 'pad' or 'squash'), max_image_tokens (0 = no cap) and warnings (lines
    about the checkpoint). Not for use by two threads at once.
    """

    def __init__(
        self,
        name: str,
        model: Any,
        image_processor: FittedImageProcessor,
        tokenizer: Any,
        chat_template: str | None,
        max_image_tokens: int = 0,
        *,
        quantization: str = 'none',
        weights_sha256: str | None = None,
    ) -> None:
        """model: Hugging Face's LlavaForConditionalGeneration or a sibling, on its device.

        quantization: how `quantize_model` has changed it. weights_sha256: `hash_weights` of its
        dense weights, if they are not there any more.
        """
        self.name = name
        self._model = model
        self._image_processor = image_processor
        self._device = next(model.parameters()).device
        # Of all weights, before some are released.
        self.num_parameters = num_parameters(model)
        has_weights = self._device.type != 'meta'
        self._weights_sha256 = weights_sha256 or (hash_weights(model) if has_weights else '')
        cut_vision_tower(model)
        self.decoder = Decoder(model.model.language_model, model.lm_head)
        self.tokenizer = ChatTokenizer(name, tokenizer, chat_template, model.config.image_token_id)
        self.end_ids = end_of_sequence_ids(model, tokenizer)
        self.num_blocks = len(self.decoder.blocks)
        self.max_tokens: int = self.decoder.config.max_position_embeddings
        self.text_model_type: str = self.decoder.config.model_type
        self.template_sha256 = self.tokenizer.template_sha256
        self.image_fit = image_processor.image_fit
        self.max_image_tokens = max_image_tokens
        self.warnings = generation.greedy_warnings(model.generation_config)
        self.device = str(self._device)
        self.dtype = str(model.dtype).removeprefix('torch.')
        self.quantization = quantization

    @contextlib.contextmanager
    def naming_out_of_memory(self) -> Iterator[None]:
        """Turn the kinds of running out of memory into VlmOutOfMemoryError."""
        try:
            yield
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            half = smaller_dtype(self.dtype, self.device)
            half = f'dtype {half}, ' if half else ''
            raise VlmOutOfMemoryError(
                f'{self.name} ran out of memory in {self.dtype} on {self.device}: use {half}'
                f'{SMALLER_WEIGHTS[self.quantization]}a smaller model, a smaller batch or another '
                'device'
            ) from error

    def free_memory(self) -> None:
        """Return memory that no answer uses to the device; after VlmOutOfMemoryError."""
        release_memory()

    def device_memory_bytes(self) -> int | None:
        """Return how much GPU memory PyTorch holds; None on a CPU."""
        return torch.cuda.memory_reserved(self._device) if self._device.type == 'cuda' else None

    @_names_out_of_memory
    @torch.inference_mode()
    def encode(self, image: np.ndarray) -> ImageFeatures:
        """Return the image (uint8 RGB, shape (H, W, 3)) as the decoder sees it.

        Raises ImageError for anything else, VlmOutOfMemoryError.
        """
        check_image(image)
        start_ms = self._clock_ms()
        inputs = self._image_processor(image)
        preprocessed_ms = self._clock_ms()
        pixels = {'pixel_values': inputs['pixel_values'].to(self._device, self._model.dtype)}
        if 'image_sizes' in inputs:  # LLaVA-NeXT and OneVision cut large images into tiles
            pixels['image_sizes'] = inputs['image_sizes']
        features = self._model.get_image_features(**pixels).pooler_output
        tokens = torch.cat(list(features)).to(self._model.dtype)  # (image tokens, H)
        done_ms = self._clock_ms()
        return ImageFeatures(
            tokens=tokens,
            model=self.name,
            preprocess_ms=preprocessed_ms - start_ms,
            vision_ms=done_ms - preprocessed_ms,
            num_tiles=pixels['pixel_values'].shape[-4],  # ([1,] tiles, 3, height, width)
        )

    def visible_box(self, width: float, height: float) -> Box:
        """Return which part of a frame of this size (pixels) the model sees."""
        return self._image_processor.visible_box(width, height)

    def answer(
        self,
        image_or_features: np.ndarray | ImageFeatures,
        prompt: str,
        skip: SkipSet | Iterable[int] = (),
        max_new_tokens: int = 16,
        *,
        draft: Sequence[int] = (),
        forced_length: int | None = None,
        first_token_ids: Sequence[int] = (),
        should_stop: Callable[[], bool] | None = None,
        return_logits: bool = False,
    ) -> Answer:
        """Return the greedy answer to `prompt` about one image, with the blocks of `skip` skipped.

        It ends at the end-of-sequence token or after max_new_tokens; with forced_length, after
        exactly that many tokens (for fair timing). `draft`: token ids of a guess of the answer,
        such as another branch's answer, verified in one pass as far as the model agrees: a good one
        saves time, none changes the answer (probabilities and logits up to rounding).
        `first_token_ids`: tokens whose probabilities as the first one are wanted
        (Answer.first_probabilities). `should_stop` is polled before every block of every pass.
        Raises SkipSetError, ImageError, PromptError, NonFiniteLogitsError, VlmOutOfMemoryError,
        Stopped, VlmError for an unknown token.
        """
        return self._answers(
            [image_or_features],
            [prompt],
            skip,
            max_new_tokens,
            forced_length,
            first_token_ids,
            should_stop,
            return_logits,
            draft,
        )[0]

    def answer_batch(
        self,
        images_or_features: Sequence[np.ndarray | ImageFeatures],
        prompts: Sequence[str],
        skip: SkipSet | Iterable[int] = (),
        max_new_tokens: int = 16,
        *,
        forced_length: int | None = None,
        first_token_ids: Sequence[int] = (),
        should_stop: Callable[[], bool] | None = None,
        return_logits: bool = False,
    ) -> list[Answer]:
        """Return one answer per pair of image and prompt, as `answer` would give it alone.

        Prefill and decode times are those of the whole batch. Errors are those of `answer`.
        """
        return self._answers(
            images_or_features,
            prompts,
            skip,
            max_new_tokens,
            forced_length,
            first_token_ids,
            should_stop,
            return_logits,
        )

    def share_frame(
        self,
        features: ImageFeatures,
        questions: Sequence[FrameQuestion],
        *,
        should_stop: Callable[[], bool] | None = None,
    ) -> VlmSharedFrame:
        """Return what answers all questions about one frame with the least work.

        `questions` are those of all branches: what their prompts begin with, system text and image,
        is processed once per skip set, and by the blocks that all sets run at first only once.
        Nothing of this is done before an answer needs it. Each answer is the one that `answer`
        gives, its time without what is shared; see `SharedFrame`. `should_stop` is polled before
        every question. Errors are `answer`'s.
        """
        if not isinstance(features, ImageFeatures):
            raise VlmError(f'features is a {type(features).__name__}: give what encode returns')
        checked, rows, preprocess_ms = [], [], []
        for question in questions:
            if should_stop is not None and should_stop():
                raise Stopped('stopped before the questions were read')
            start_ms = self._clock_ms()
            checked.append(replace(question, skip=self._checked(question.skip)))
            length = check_length('max_new_tokens', question.max_new_tokens)
            self.check_token_ids('first_token_ids', [question.first_token_ids])
            rows += self._rows([features], [question.prompt])
            self.check_context(rows[-1:], [length], 'answer')
            preprocess_ms.append(features.preprocess_ms + self._clock_ms() - start_ms)
        return VlmSharedFrame(self, features, checked, rows, preprocess_ms, self._clock_ms)

    @_names_out_of_memory
    @torch.inference_mode()
    def _answers(
        self,
        images_or_features: Sequence[np.ndarray | ImageFeatures],
        prompts: Sequence[str],
        skip: SkipSet | Iterable[int],
        max_new_tokens: int,
        forced_length: int | None,
        first_token_ids: Sequence[int],
        should_stop: Callable[[], bool] | None,
        return_logits: bool,
        draft: Sequence[int] = (),
    ) -> list[Answer]:
        """Return the answers of `answer_batch`; `draft` goes with a single pair."""
        skip_set = self._checked(skip)
        self.check_token_ids('the draft', [draft])
        self.check_token_ids('first_token_ids', [first_token_ids])
        length = check_length('max_new_tokens', max_new_tokens)
        if forced_length is not None:
            length = check_length('forced_length', forced_length)
        check_same_length(images=images_or_features, prompts=prompts)
        if not prompts:
            return []
        features = self._encode_all(images_or_features, should_stop)

        start_ms = self._clock_ms()
        rows = self._rows(features, prompts)
        self.check_context(rows, [length] * len(rows), 'answer')
        preprocessed_ms = self._clock_ms()
        hidden, is_real, is_image = self.embed(rows, features)
        generated = generation.generate(
            self.decoder,
            hidden,
            is_real,
            is_image,
            skip_set,
            length,
            self.end_ids if forced_length is None else (),
            self._clock_ms,
            first_token_ids=first_token_ids,
            should_stop=should_stop,
            keep_logits=return_logits,
            draft=draft,
        )
        texts = [self.tokenizer.decode(ids) for ids in generated.token_ids]
        done_ms = self._clock_ms()

        return [
            Answer(
                text=texts[row],
                token_ids=tuple(generated.token_ids[row]),
                timing=Timing(
                    preprocess_ms=image.preprocess_ms + preprocessed_ms - start_ms,
                    vision_ms=image.vision_ms,
                    prefill_ms=generated.prefilled_ms - preprocessed_ms,
                    decode_ms=done_ms - generated.prefilled_ms,
                    total_ms=image.preprocess_ms + image.vision_ms + (done_ms - start_ms),
                ),
                vision_shared=isinstance(images_or_features[row], ImageFeatures),
                confidence=generated.confidences[row],
                first_probabilities=generated.first_probabilities[row],
                logits=np.stack(generated.logits[row]) if return_logits else None,
            )
            for row, image in enumerate(features)
        ]

    @_names_out_of_memory
    @torch.inference_mode()
    def answer_candidates(
        self,
        features: Sequence[ImageFeatures],
        prompts: Sequence[str],
        removed: Collection[int] = (),
        candidates: Sequence[Candidate] = (None,),
        max_new_tokens: int = 16,
        *,
        drafts: Sequence[Sequence[int]] | None = None,
        is_decided: Callable[[int, str], bool] | None = None,
        max_rows: int = 256,
        memory_bytes: int = 4 << 30,
        should_stop: Callable[[], bool] | None = None,
        near_tie: float | None = None,
    ) -> list[list[CandidateAnswer]]:
        """Return, per image and candidate, what `answer` gives without `removed` and that block.

        A candidate is a block that is not in `removed`, or None for no further one. `drafts` are
        guesses of each image's answer: good ones save work, none changes an answer.
        `is_decided(image, text so far)` may end an answer early, once its score is certain. At most
        `max_rows` sequences go through a block together, fewer where by estimate they would take
        more than `memory_bytes`; one image and one candidate always go. Logits closer than
        `near_tie` are decided by an answer alone: see near_tie_margin. Errors are `answer`'s.
        """
        self._checked([*removed, *(i for i in candidates if i is not None)])
        length = check_length('max_new_tokens', max_new_tokens)
        max_rows = check_length('max_rows', max_rows, 'sequences')
        memory_bytes = check_length('memory_bytes', memory_bytes, 'bytes')
        drafts = [()] * len(features) if drafts is None else drafts
        check_same_length(images=features, prompts=prompts, drafts=drafts)
        self.check_token_ids('a draft', drafts)
        if not features or not candidates:
            return [[] for _ in features]
        rows = self._rows(features, prompts)
        self.check_context(rows, [length] * len(rows), 'answer')
        walk = CandidateWalk(
            self.decoder,
            self.tokenizer,
            self.end_ids,
            features,
            rows,
            removed,
            length,
            drafts,
            is_decided=is_decided,
            max_rows=max_rows,
            memory_bytes=memory_bytes,
            should_stop=should_stop,
            near_tie=near_tie,
        )

        answers: list[list[CandidateAnswer]] = []
        for image, of_image in enumerate(walk.answers(candidates)):
            answers.append([])
            for candidate, answer in zip(candidates, of_image, strict=True):
                if answer is None:  # the walk is unsure
                    skip = {*removed} if candidate is None else {*removed, candidate}
                    answer = self._answer_alone(
                        features[image], prompts[image], skip, length, should_stop
                    )
                answers[-1].append(answer)
        return answers

    @_names_out_of_memory
    @torch.inference_mode()
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
        """Return the `near_tie` of answer_candidates, as measured on this model's one answer.

        The question is answered alone, and in a walk with other rows (a longer prompt, a few blocks
        skipped), see generation.near_tie_of. Errors are `answer`'s.
        """
        alone = self.answer_batch(
            [features],
            [prompt],
            max_new_tokens=max_new_tokens,
            should_stop=should_stop,
            return_logits=True,
        )[0]
        assert alone.logits is not None
        rows = self._rows([features, features], [prompt, f'{prompt} {prompt}'])
        if len(rows[1]) + max_new_tokens > self.max_tokens:
            rows[1] = rows[0]
        walk = CandidateWalk(
            self.decoder,
            self.tokenizer,
            self.end_ids,
            [features, features],
            rows,
            (),
            max_new_tokens,
            [alone.token_ids, alone.token_ids],
            is_decided=None,
            max_rows=max_rows,
            memory_bytes=memory_bytes,
            should_stop=should_stop,
        )
        others = range(0, self.num_blocks, max(1, self.num_blocks // NEAR_TIE_CANDIDATES))
        walked = walk.draft_logits(others)[: len(alone.logits)]
        logits = torch.from_numpy(alone.logits).to(walked.device)
        return generation.near_tie_of(logits, walked, features.tokens.dtype)

    @_names_out_of_memory
    @torch.inference_mode()
    def continuation_logits(
        self,
        features: Sequence[ImageFeatures],
        prompts: Sequence[str],
        continuations: Sequence[Sequence[int]],
        skip: SkipSet | Iterable[int] = (),
        *,
        should_stop: Callable[[], bool] | None = None,
    ) -> list[torch.Tensor]:
        """Return, per row, the logits that predict each token id of its continuation.

        Float32, shape (tokens of the continuation, vocabulary), on the model's device: what
        answering token by token would give if it chose these tokens (prompts with the prefill set,
        continuations with the decode set). Errors are `answer`'s, VlmError for an unknown token.
        """
        return list(
            self._continuation_logits(
                features, prompts, continuations, skip, 'continuation', should_stop
            )
        )

    @_names_out_of_memory
    @torch.inference_mode()
    def log_probabilities(
        self,
        features: Sequence[ImageFeatures],
        prompts: Sequence[str],
        texts: Sequence[str],
        skip: SkipSet | Iterable[int] = (),
        *,
        should_stop: Callable[[], bool] | None = None,
    ) -> list[float]:
        """Return log P(text | image, prompt), summed over the text's tokens, of every triple.

        A text's tokens are those of the text alone, appended to the prompt's and processed with the
        decode set; an empty text, which has none, gives 0.0. Errors are `answer`'s.
        """
        check_same_length(images=features, prompts=prompts, texts=texts)
        for text in texts:
            self.tokenizer.check_text('text', text)
        text_ids = [self.token_ids(text) for text in texts]
        rows = self._continuation_logits(features, prompts, text_ids, skip, 'text', should_stop)
        return [
            float(logits.log_softmax(dim=-1)[range(len(ids)), list(ids)].sum())
            for logits, ids in zip(rows, text_ids, strict=True)
        ]

    @_names_out_of_memory
    @torch.inference_mode()
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
        """Yield what every block does to a prompt and the answer `token_ids`, one block at a time.

        One causal pass over all of them, as prefill and decode would process them; only the states
        of the block in hand are kept. `attention`: also how much attention goes to image tokens.
        The last token, which answering need not run, is left out if the context does not hold it.
        Errors are `answer`'s; VlmError for an unknown token.
        """
        skip_set = self._checked(skip)
        self.check_token_ids('an answer', [token_ids])
        [row] = self._rows([features], [prompt])
        self.check_context([row], [len(token_ids)], 'answer')
        run_ids = token_ids[: self.max_tokens - len(row)]  # without a last one that does not fit
        hidden, _, is_image = self.embed([row], [features])
        if run_ids:
            ids = torch.tensor([run_ids], device=self._device)
            hidden = torch.cat((hidden, self.decoder.embed_tokens(ids)), dim=1)
            is_image = torch.cat((is_image, torch.zeros_like(ids, dtype=torch.bool)), dim=1)
        num_queries = len(token_ids) if attention else None
        states = probe.block_states(
            self.decoder, hidden, is_image[0], len(row), skip_set, num_queries, should_stop
        )

        def named() -> Iterator[BlockStates]:
            with self.naming_out_of_memory():
                yield from states

        return named()

    def _continuation_logits(
        self,
        features: Sequence[ImageFeatures],
        prompts: Sequence[str],
        continuations: Sequence[Sequence[int]],
        skip: SkipSet | Iterable[int],
        what: str,
        should_stop: Callable[[], bool] | None,
    ) -> Iterable[torch.Tensor]:
        """Return the rows of `continuation_logits`, whose logits are computed one at a time."""
        skip_set = self._checked(skip)
        check_same_length(images=features, prompts=prompts, **{f'{what}s': continuations})
        self.check_token_ids(f'a {what}', continuations)
        rows = self._rows(features, prompts)
        if not rows:
            return ()
        self.check_context(rows, [len(ids) for ids in continuations], what)
        embedded = self.embed(rows, features)
        return probe.continuation_logits(
            self.decoder, *embedded, continuations, skip_set, should_stop
        )

    def num_parameters_run(self, skip: SkipSet | Iterable[int] = ()) -> int:
        """Return how many parameters remain without the blocks that both phases skip."""
        skip_set = self._checked(skip)
        return self.num_parameters - sum(
            self.decoder.blocks[block].num_parameters
            for block in skip_set.prefill & skip_set.decode
        )

    def sparsity(
        self, skip: SkipSet | Iterable[int], num_image_tokens: int, num_tokens: int
    ) -> tuple[float, float]:
        """Return the share of the blocks' multiplications that a skip set saves: prefill, decode.

        They are those of the linear layers, per token, of a prompt of `num_tokens` tokens,
        `num_image_tokens` of them image tokens. Keys and values that a policy still projects are
        not saved. Raises SkipSetError, VlmError.
        """
        skip_set = self._checked(skip)
        num_tokens = check_length('num_tokens', num_tokens)
        if not 0 <= whole_number(num_image_tokens) <= num_tokens:
            raise VlmError(
                f'num_image_tokens is {num_image_tokens!r}: give a whole number from 0 to '
                f'{num_tokens}'
            )
        of_tokens = {NONE: 0, TEXT: num_tokens - num_image_tokens, ALL: num_tokens}
        per_token, of_stored = self.decoder.multiplications()
        saved = {'prefill': 0.0, 'decode': 0.0}
        for phase in saved:
            for block in range(self.num_blocks):
                runs, stores = who_runs_and_stores(skip_set, phase, block)
                done = (per_token - of_stored) * of_tokens[runs] + of_stored * of_tokens[stores]
                saved[phase] += 1 - done / (per_token * num_tokens)
        return saved['prefill'] / self.num_blocks, saved['decode'] / self.num_blocks

    def weights_sha256(self) -> str:
        """Return a hash of the first numbers of every weight: training changes some of them."""
        return self._weights_sha256

    @property
    def token_blocks(self) -> int:
        """Tokens that went through a block since loading: the measure of the decoder's work."""
        return self.decoder.token_blocks

    def token_ids(self, text: str) -> tuple[int, ...]:
        """Return the token ids of a text alone, without special tokens around it."""
        return self.tokenizer.token_ids(text)

    def render_prompt(self, prompt: str) -> str:
        """Return `prompt` in the model's chat template; raises PromptError."""
        return self.tokenizer.render(prompt)

    def input_ids(self, prompt: str, features: ImageFeatures) -> list[int]:
        """Return the whole prompt's token ids, the image token once per image feature.

        Raises PromptError, and VlmError for features of a different model.
        """
        embedding = self.decoder.embed_tokens.weight  # (V, H)
        tokens = features.tokens
        if (features.model, tokens.shape[1], tokens.dtype, tokens.device) != (
            self.name,
            embedding.shape[1],
            embedding.dtype,
            embedding.device,
        ):
            raise VlmError(
                f'image features of {features.model} ({tokens.dtype} on {tokens.device}) given to '
                f'{self.name} ({embedding.dtype} on {embedding.device}): encode the image with the '
                'model that answers'
            )
        return self.tokenizer.input_ids(prompt, len(tokens))

    def _checked(self, skip: SkipSet | Iterable[int]) -> SkipSet:
        """Return the skip set; raises SkipSetError if this model does not have its blocks."""
        skip_set = SkipSet.of(skip)
        skip_set.check(self.num_blocks)
        return skip_set

    def _encode_all(
        self,
        images_or_features: Sequence[np.ndarray | ImageFeatures],
        should_stop: Callable[[], bool] | None,
    ) -> list[ImageFeatures]:
        features = []
        for item in images_or_features:
            features.append(item if isinstance(item, ImageFeatures) else self.encode(item))
            if should_stop is not None and should_stop():
                raise Stopped('stopped before the answer was complete')
        return features

    def _rows(self, features: Sequence[ImageFeatures], prompts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of every prompt, each with its image."""
        return [self.input_ids(*pair) for pair in zip(prompts, features, strict=True)]

    def embed(
        self, rows: Sequence[Sequence[int]], features: Sequence[ImageFeatures]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return what enters the blocks for these token ids; see `generation.embed`."""
        return generation.embed(self.decoder, rows, features, self.tokenizer.image_token_id)

    def _answer_alone(
        self,
        features: ImageFeatures,
        prompt: str,
        skip: Collection[int],
        max_new_tokens: int,
        should_stop: Callable[[], bool] | None,
    ) -> CandidateAnswer:
        try:
            answer = self.answer(features, prompt, skip, max_new_tokens, should_stop=should_stop)
        except NonFiniteLogitsError as error:
            raise NonFiniteLogitsError(f'without blocks {sorted(skip)}: {error}') from error
        return CandidateAnswer(answer.token_ids, answer.text)

    def check_context(
        self, rows: Sequence[Sequence[int]], lengths: Sequence[int], what: str
    ) -> None:
        """Raise PromptError if a row and what follows it are longer than the context.

        lengths: tokens that follow each row; the last of them is chosen or predicted, but not run.
        """
        num_tokens = max(
            len(row) + max(0, length - 1) for row, length in zip(rows, lengths, strict=True)
        )
        if num_tokens > self.max_tokens:
            raise PromptError(
                f'image, prompt and {what} take up to {num_tokens} tokens, but the context of '
                f'{self.name} holds {self.max_tokens}: shorten the prompt or the {what}'
            )

    def check_token_ids(self, what: str, rows: Sequence[Sequence[int]]) -> None:
        num_tokens = self.decoder.embed_tokens.weight.shape[0]
        for token in (token for row in rows for token in row):
            if not 0 <= whole_number(token) < num_tokens:
                raise VlmError(
                    f'{what} contains token {token!r}: {self.name} knows 0 to {num_tokens - 1}'
                )

    def _clock_ms(self) -> float:
        """Return the steady clock once the device has done all it was given."""
        if self._device.type == 'cuda':
            torch.cuda.synchronize(self._device)
        return time.perf_counter() * 1e3


def hash_weights(model: Any) -> str:
    """Return a hash of the first numbers of every dense weight of Hugging Face's model."""
    total = hashlib.sha256()
    for name, weight in model.named_parameters():
        first = weight.detach().flatten()[:64].float().cpu().numpy()
        total.update(name.encode() + first.tobytes())
    return total.hexdigest()
