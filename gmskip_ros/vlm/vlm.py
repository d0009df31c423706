"""One loaded checkpoint: encode an image, prefill, decode token by token, with any skip set.

Vision tower, projector, image packing, image processor and tokenizer are Hugging Face's; the
language decoder is run by `decoder.py`. All branches share the one copy of the weights.
"""

from __future__ import annotations

import functools
import gc
import hashlib
import operator
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gmskip_ros.skipping.skip_set import SkipSet
from gmskip_ros.vlm.answer import Answer, CandidateAnswer, ImageFeatures, Timing
from gmskip_ros.vlm.candidates import Candidate, CandidateWalk
from gmskip_ros.vlm.decoder import Decoder, KeyValueStore
from gmskip_ros.vlm.errors import (
    ImageError,
    NonFiniteLogitsError,
    PromptError,
    Stopped,
    VlmError,
    VlmOutOfMemoryError,
)

# LLaVA-1.5's prompt, for checkpoints whose processor has no chat template.
FALLBACK_TEMPLATE = 'USER: <image>\n{prompt} ASSISTANT:'
Method = TypeVar('Method', bound=Callable[..., Any])


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether memory ran out; for the CPU, PyTorch has a RuntimeError like any other."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError, VlmOutOfMemoryError)) or (
        isinstance(error, RuntimeError) and 'DefaultCPUAllocator' in str(error)
    )


def _names_out_of_memory(method: Method) -> Method:
    @functools.wraps(method)
    def wrapped(self: Vlm, *args: Any, **options: Any) -> Any:
        try:
            return method(self, *args, **options)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            raise VlmOutOfMemoryError(
                f'{self.name} ran out of memory in {self.dtype} on {self.device}: use a smaller '
                'model, dtype float16, a smaller batch or another device'
            ) from error

    return wrapped  # type: ignore[return-value]


class Vlm:
    """A LLaVA that answers with any set of decoder blocks left out. Made by `load_vlm`.

    Attributes: name (as given to load_vlm), num_blocks, text_model_type ('llama', 'mistral' or
    'qwen2'), device ('cpu', 'cuda:0'), dtype ('float32'), num_parameters, and template_sha256, of
    the chat template in use. Not for use by two threads at once.
    """

    def __init__(
        self, name: str, model: Any, image_processor: Any, tokenizer: Any, chat_template: str | None
    ) -> None:
        """model: Hugging Face's LlavaForConditionalGeneration or a sibling, on its device."""
        self.name = name
        self._model = model
        self._image_processor = image_processor
        self._tokenizer = tokenizer
        self._chat_template = chat_template
        self.decoder = Decoder(model.model.language_model, model.lm_head)
        self._device = next(model.parameters()).device
        self.text_config = model.config.text_config
        self.max_tokens: int = self.text_config.max_position_embeddings
        self._image_token_id: int = model.config.image_token_id
        self._image_token: str = tokenizer.convert_ids_to_tokens(self._image_token_id)
        self.end_ids = _end_of_sequence_ids(model, tokenizer)
        self.num_blocks = len(self.decoder.blocks)
        self.text_model_type: str = self.text_config.model_type
        self.device = str(self._device)
        self.dtype = str(model.dtype).removeprefix('torch.')
        self.num_parameters = sum(parameter.numel() for parameter in model.parameters())
        template = FALLBACK_TEMPLATE if chat_template is None else chat_template
        self.template_sha256 = hashlib.sha256(template.encode()).hexdigest()

    def free_memory(self) -> None:
        """Give what no answer holds any more back to the device; after VlmOutOfMemoryError."""
        gc.collect()
        if self._device.type == 'cuda':
            torch.cuda.empty_cache()

    def device_memory_bytes(self) -> int | None:
        """Return what PyTorch holds of the GPU's memory; None on a CPU."""
        return torch.cuda.memory_reserved(self._device) if self._device.type == 'cuda' else None

    @_names_out_of_memory
    @torch.inference_mode()
    def encode(self, image: np.ndarray) -> ImageFeatures:
        """Return the image (uint8 RGB, shape (H, W, 3)) as the decoder sees it.

        Raises ImageError for anything else, VlmOutOfMemoryError.
        """
        _check_image(image)
        start_ms = self._clock_ms()
        inputs = self._image_processor(images=Image.fromarray(image), return_tensors='pt')
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
        )

    def answer(
        self,
        image_or_features: np.ndarray | ImageFeatures,
        prompt: str,
        skip: SkipSet | Iterable[int] = (),
        max_new_tokens: int = 16,
        *,
        forced_length: int | None = None,
        should_stop: Callable[[], bool] | None = None,
        return_logits: bool = False,
    ) -> Answer:
        """Return the greedy answer to `prompt` about one image, with the blocks of `skip` left out.

        It ends at the end-of-sequence token or after max_new_tokens; with forced_length, after
        exactly that many tokens (for fair timing). `should_stop` is polled before every block of
        every token. Raises SkipSetError, ImageError, PromptError, NonFiniteLogitsError,
        VlmOutOfMemoryError, Stopped.
        """
        return self.answer_batch(
            [image_or_features],
            [prompt],
            skip,
            max_new_tokens,
            forced_length=forced_length,
            should_stop=should_stop,
            return_logits=return_logits,
        )[0]

    @_names_out_of_memory
    @torch.inference_mode()
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
        """Return one answer per pair of image and prompt, as `answer` would give it alone.

        Prefill and decode times are those of the whole batch. Errors are those of `answer`.
        """
        skip_set = SkipSet.of(skip)
        skip_set.check(self.num_blocks)
        num_steps = _check_length('max_new_tokens', max_new_tokens)
        if forced_length is not None:
            num_steps = _check_length('forced_length', forced_length)
        if len(images_or_features) != len(prompts):
            raise VlmError(
                f'{len(images_or_features)} images for {len(prompts)} prompts: give one for each'
            )
        if not prompts:
            return []

        shared = [isinstance(item, ImageFeatures) for item in images_or_features]
        features = []
        for item in images_or_features:
            features.append(item if isinstance(item, ImageFeatures) else self.encode(item))
            if should_stop is not None and should_stop():
                raise Stopped('stopped before the answer was complete')

        start_ms = self._clock_ms()
        rows = [self.input_ids(*pair) for pair in zip(prompts, features, strict=True)]
        num_tokens = max(map(len, rows)) + num_steps - 1  # the last one chosen is not processed
        if num_tokens > self.max_tokens:
            raise PromptError(
                f'image, prompt and answer take up to {num_tokens} tokens, the context of '
                f'{self.name} holds {self.max_tokens}: shorten the prompt or the answer'
            )
        preprocessed_ms = self._clock_ms()

        hidden, is_real = self.embed(rows, features)  # (B, C, H), (B, C)
        store = KeyValueStore(is_real, is_real.shape[1] + num_steps - 1, self.num_blocks)
        logits = self.decoder.forward(hidden, store, skip_set.prefill, should_stop)
        token_ids: list[list[int]] = [[] for _ in rows]
        chosen_logits: list[list[np.ndarray]] = [[] for _ in rows]
        unfinished = set(range(len(rows)))
        next_ids = self._choose(logits, unfinished)
        prefilled_ms = self._clock_ms()

        for step in range(num_steps):
            if step > 0:
                logits = self._decode_one_token(next_ids, store, skip_set, should_stop)
                next_ids = self._choose(logits, unfinished)
            for row in sorted(unfinished):
                if return_logits:
                    chosen_logits[row].append(logits[row].float().cpu().numpy())
                if forced_length is None and next_ids[row] in self.end_ids:
                    unfinished.discard(row)
                else:
                    token_ids[row].append(next_ids[row])
            if not unfinished:
                break
        texts = [self.decode_text(ids) for ids in token_ids]
        done_ms = self._clock_ms()

        return [
            Answer(
                text=texts[row],
                token_ids=tuple(token_ids[row]),
                timing=Timing(
                    preprocess_ms=features[row].preprocess_ms + preprocessed_ms - start_ms,
                    vision_ms=features[row].vision_ms,
                    prefill_ms=prefilled_ms - preprocessed_ms,
                    decode_ms=done_ms - prefilled_ms,
                    total_ms=features[row].preprocess_ms
                    + features[row].vision_ms
                    + (done_ms - start_ms),
                ),
                vision_shared=shared[row],
                logits=np.stack(chosen_logits[row]) if return_logits else None,
            )
            for row in range(len(rows))
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
    ) -> list[list[CandidateAnswer]]:
        """Return, per image and candidate, what `answer` gives without `removed` and that block.

        A candidate is a block that is not in `removed`, or None for no further one. `drafts` are
        guesses of each image's answer: good ones save work, none changes an answer.
        `is_decided(image, text so far)` may end an answer that it knows enough of. At most
        `max_rows` sequences go through a block together, fewer where by estimate they would take
        more than `memory_bytes`; one image and one candidate always go. Errors are `answer`'s.
        """
        SkipSet.of([*removed, *(i for i in candidates if i is not None)]).check(self.num_blocks)
        num_steps = _check_length('max_new_tokens', max_new_tokens)
        max_rows = _check_length('max_rows', max_rows, 'sequences')
        memory_bytes = _check_length('memory_bytes', memory_bytes, 'bytes')
        drafts = [()] * len(features) if drafts is None else drafts
        if not len(features) == len(prompts) == len(drafts):
            raise VlmError(
                f'{len(features)} images, {len(prompts)} prompts and {len(drafts)} drafts: give '
                'one for each'
            )
        self._check_drafts(drafts)
        if not features or not candidates:
            return [[] for _ in features]
        walk = CandidateWalk(
            self,
            features,
            prompts,
            removed,
            num_steps,
            drafts,
            is_decided=is_decided,
            max_rows=max_rows,
            memory_bytes=memory_bytes,
            should_stop=should_stop,
        )
        return walk.answers(candidates)

    @_names_out_of_memory
    @torch.inference_mode()
    def log_probabilities(
        self,
        features: Sequence[ImageFeatures],
        prompts: Sequence[str],
        texts: Sequence[str],
        skip: Iterable[int] = (),
    ) -> list[float]:
        """Return log P(text | image, prompt), summed over the text's tokens, of every triple.

        A text's tokens are those of the text alone, put behind the prompt's; no token (an empty
        text) gives 0.0. The blocks of `skip` are left out throughout. Errors are those of `answer`.
        """
        skip_set = SkipSet.of(skip)
        skip_set.check(self.num_blocks)
        if not len(features) == len(prompts) == len(texts):
            raise VlmError(
                f'{len(features)} images, {len(prompts)} prompts and {len(texts)} texts: give one '
                'for each'
            )
        for text in texts:
            _check_text('text', text, self._image_token)
        text_ids = [list(self.token_ids(text)) for text in texts]
        rows = [
            self.input_ids(prompt, image) + ids
            for prompt, image, ids in zip(prompts, features, text_ids, strict=True)
        ]
        if not rows:
            return []
        if max(map(len, rows)) > self.max_tokens:
            raise PromptError(
                f'image, prompt and text take up to {max(map(len, rows))} tokens, the context of '
                f'{self.name} holds {self.max_tokens}: shorten the prompt or the text'
            )
        hidden, is_real = self.embed(rows, list(features))
        store = KeyValueStore(is_real, is_real.shape[1], self.num_blocks)
        hidden = self.decoder.run_blocks(hidden, store, skip_set.prefill)
        results = []
        for row, ids in zip(hidden, text_ids, strict=True):  # left-padded: texts end together
            before = self.decoder.logits(row[-len(ids) - 1 : -1])  # (tokens of the text, V)
            if not before.isfinite().all():
                raise self._non_finite_logits()
            chosen = before.float().log_softmax(dim=-1)[range(len(ids)), ids]
            results.append(float(chosen.sum()))
        return results

    def num_parameters_run(self, skip: SkipSet | Iterable[int] = ()) -> int:
        """Return how many parameters are left with the blocks of `skip` left out in both phases."""
        skip_set = SkipSet.of(skip)
        skip_set.check(self.num_blocks)
        left_out = skip_set.prefill & skip_set.decode
        return self.num_parameters - sum(
            parameter.numel()
            for block in left_out
            for parameter in self.decoder.blocks[block].parameters()
        )

    def weights_sha256(self) -> str:
        """Return a hash of the first numbers of every weight: training changes some of them."""
        total = hashlib.sha256()
        for name, weight in self._model.named_parameters():
            first = weight.detach().flatten()[:64].float().cpu().numpy()
            total.update(name.encode() + first.tobytes())
        return total.hexdigest()

    @property
    def token_blocks(self) -> int:
        """Tokens that went through a block since loading: the measure of the decoder's work."""
        return self.decoder.token_blocks

    def token_ids(self, text: str) -> tuple[int, ...]:
        """Return the tokens of a text alone, without special tokens around it."""
        return tuple(self._tokenizer(text, add_special_tokens=False)['input_ids'])

    def decode_text(self, token_ids: Sequence[int]) -> str:
        """Return the text of an answer's tokens."""
        return self._tokenizer.decode(list(token_ids), skip_special_tokens=True).strip()

    def render_prompt(self, prompt: str) -> str:
        """Return `prompt` in the model's chat template, with one image placeholder in it."""
        _check_text('prompt', prompt, self._image_token)
        if self._chat_template is None:
            text = FALLBACK_TEMPLATE.format(prompt=prompt).replace('<image>', self._image_token, 1)
        else:
            content = [{'type': 'image'}, {'type': 'text', 'text': prompt}]
            text = self._tokenizer.apply_chat_template(
                [{'role': 'user', 'content': content}],
                chat_template=self._chat_template,
                add_generation_prompt=True,
                tokenize=False,
            )
        if text.count(self._image_token) != 1:
            raise PromptError(
                f'the chat template of {self.name} gives {text.count(self._image_token)} image '
                'placeholders instead of 1: use a checkpoint with a template for images'
            )
        return text

    def input_ids(self, prompt: str, features: ImageFeatures) -> list[int]:
        """Return the token ids of the whole sequence, the image token once per image feature."""
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
        text = self.render_prompt(prompt)
        # Expanded as text, as Hugging Face's processors do it, so that tokenization is theirs too.
        text = text.replace(self._image_token, self._image_token * len(tokens))
        start = self._tokenizer.bos_token  # some templates write it themselves
        adds_start = start is None or not text.startswith(start)
        return self._tokenizer(text, add_special_tokens=adds_start)['input_ids']

    def embed(self, rows: list[list[int]], features: list[ImageFeatures]) -> tuple[Tensor, Tensor]:
        """Return the left-padded batch (B, C, H), zero on padding, and where it is real (B, C)."""
        num_columns = max(len(row) for row in rows)
        hidden_size = features[0].tokens.shape[1]
        hidden = features[0].tokens.new_zeros(len(rows), num_columns, hidden_size)
        is_real = torch.zeros(len(rows), num_columns, dtype=torch.bool, device=self._device)
        for index, (row, image) in enumerate(zip(rows, features, strict=True)):
            ids = torch.tensor(row, device=self._device)
            embedded = self.decoder.embed_tokens(ids)  # (tokens, H)
            embedded[ids == self._image_token_id] = image.tokens
            hidden[index, num_columns - len(row) :] = embedded
            is_real[index, num_columns - len(row) :] = True
        return hidden, is_real

    def _decode_one_token(
        self,
        token_ids: list[int],
        store: KeyValueStore,
        skip_set: SkipSet,
        should_stop: Callable[[], bool] | None,
    ) -> Tensor:
        """Run the newest token of every row; return the logits (B, V) of the one after it."""
        ids = torch.tensor(token_ids, device=self._device)[:, None]  # (B, 1)
        hidden = self.decoder.embed_tokens(ids)  # (B, 1, H)
        return self.decoder.forward(hidden, store, skip_set.decode, should_stop)

    def _choose(self, logits: Tensor, unfinished: set[int]) -> list[int]:
        """Return the likeliest token of every row; refuse NaN and infinite logits (B, V)."""
        finite = logits.isfinite().all(dim=-1)
        ids, is_finite = torch.stack((logits.argmax(dim=-1), finite.long())).tolist()
        if not all(is_finite[row] for row in unfinished):
            raise self._non_finite_logits()
        return ids

    def _non_finite_logits(self) -> NonFiniteLogitsError:
        return NonFiniteLogitsError(
            f'{self.name} gave NaN or infinite logits in {self.dtype} on {self.device}: '
            'try dtype float32 or bfloat16, or check the weights'
        )

    def _check_drafts(self, drafts: Sequence[Sequence[int]]) -> None:
        num_tokens = self.decoder.embed_tokens.weight.shape[0]
        for token in (token for draft in drafts for token in draft):
            if not 0 <= token < num_tokens:
                raise VlmError(
                    f'a draft holds token {token}: {self.name} knows 0 to {num_tokens - 1}'
                )

    def _clock_ms(self) -> float:
        """Return the steady clock once the device has done all it was given."""
        if self._device.type == 'cuda':
            torch.cuda.synchronize(self._device)
        return time.perf_counter() * 1e3


def _end_of_sequence_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """Return the tokens that end an answer: the generation config's, else the model's."""
    for source in (model.generation_config, model.config.text_config, tokenizer):
        ids = getattr(source, 'eos_token_id', None)
        if ids is not None:
            return frozenset(ids if isinstance(ids, (list, tuple)) else [ids])
    return frozenset()


def _check_image(image: np.ndarray) -> None:
    expected = 'expected a uint8 RGB array of shape (H, W, 3)'
    if not isinstance(image, np.ndarray):
        raise ImageError(f'image is a {type(image).__name__}: {expected}')
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise ImageError(f'image is {image.dtype} of shape {image.shape}: {expected}')


def _check_text(name: str, text: str, image_token: str) -> None:
    """Refuse what is no text for a `name` ('prompt', ...) of the model."""
    if not isinstance(text, str):
        raise PromptError(f'{name} is a {type(text).__name__}: give text')
    if image_token in text:
        raise PromptError(f'{name} holds {image_token!r}, which stands for the image: leave it out')
    try:
        text.encode()
    except UnicodeEncodeError:
        raise PromptError(f'{name} {text!r} is not valid Unicode text') from None


def _check_length(name: str, value: int, unit: str = 'tokens') -> int:
    try:
        # NumPy's integers are taken, floats and strings refused; True is a slip.
        length = 0 if isinstance(value, (bool, np.bool_)) else operator.index(value)
    except TypeError:
        length = 0
    if length < 1:
        raise VlmError(f'{name} is {value!r}: give a whole number of {unit}, 1 or more')
    return length
