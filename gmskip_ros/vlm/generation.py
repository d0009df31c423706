"""Greedy generation over the decoder: prefill image and prompt, decode token by token, verify.

Shapes: B rows (batch), C columns of the left-padded prompts, H hidden size, V vocabulary.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gmskip_ros.skipping import SkipSet
from gmskip_ros.vlm.answer import Confidence, ImageFeatures
from gmskip_ros.vlm.decoder import Decoder, KeyValueStore
from gmskip_ros.vlm.errors import NonFiniteLogitsError

ShouldStop = Callable[[], bool] | None
# How close two logits may be that a pass of other rows could have put in the wrong order. Measured
# on the CPU with the demo model, over 30,000 tokens in float32 and 20,000 in bfloat16: a batch
# moved no logit against the best one by more than 1.2e-4, and by more than 14 roundings of the best
# one; a draft, over 7,000 tokens in float32, by no more than 2.2e-5. With packed weights and up to
# 16 random blocks skipped: over 896 tokens in float32, a batch moved none by more than 3.9e-5, a
# draft by 5.6e-5; over 1,315 in bfloat16, a batch moved one of the eight best by up to 24 roundings
# (unpacked as well), but where it chose another token, the two best were within 1.1 roundings.
NEAR_TIE = 5e-4
NEAR_TIE_ULPS = 16  # that many roundings of the best logit, if they are more
# Of the farthest shift in 20 answers: in 30,000 tokens of the demo model one was 7 times as far.
SHIFT_FACTOR = 16
# Settings of generation_config.json that change a greedy answer in Hugging Face's `generate`, and
# the value of each that changes nothing.
_CHANGES_GREEDY: dict[str, Any] = {
    'bad_words_ids': None,
    'begin_suppress_tokens': None,
    'dola_layers': None,
    'encoder_no_repeat_ngram_size': 0,
    'encoder_repetition_penalty': 1.0,
    'exponential_decay_length_penalty': None,
    'forced_bos_token_id': None,
    'forced_eos_token_id': None,
    'guidance_scale': 1.0,
    'min_length': 0,
    'min_new_tokens': 0,
    'no_repeat_ngram_size': 0,
    'num_beams': 1,
    'penalty_alpha': 0.0,
    'repetition_penalty': 1.0,
    'sequence_bias': None,
    'stop_strings': None,
    'suppress_tokens': None,
}


@dataclass
class Generated:
    """What greedy generation gave, per row; `prefilled_ms` is the clock at the first tokens."""

    token_ids: list[list[int]]
    confidences: list[Confidence]
    first_probabilities: list[tuple[float, ...]]  # of the tokens asked for, as the first one
    logits: list[list[np.ndarray]]  # float32 (V,) per token chosen; empty unless kept
    prefilled_ms: float


def embed(
    decoder: Decoder,
    rows: Sequence[Sequence[int]],
    features: Sequence[ImageFeatures],
    image_token_id: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the left-padded batch (B, C, H), zero on padding; where it is real; where an image.

    The last two are bool (B, C). `rows` holds token ids; each image token is replaced by one of the
    image's features in turn.
    """
    num_columns = max(map(len, rows))
    tokens = features[0].tokens
    hidden = tokens.new_zeros(len(rows), num_columns, tokens.shape[1])
    is_real = torch.zeros(len(rows), num_columns, dtype=torch.bool, device=tokens.device)
    is_image = torch.zeros_like(is_real)
    for index, (row, image) in enumerate(zip(rows, features, strict=True)):
        ids = torch.tensor(row, device=tokens.device)
        embedded = decoder.embed_tokens(ids)  # (tokens, H)
        embedded[ids == image_token_id] = image.tokens
        columns = slice(num_columns - len(row), None)
        hidden[index, columns] = embedded
        is_real[index, columns] = True
        is_image[index, columns] = ids == image_token_id
    return hidden, is_real, is_image


def prefill(
    decoder: Decoder,
    hidden: Tensor,
    is_real: Tensor,
    is_image: Tensor,
    max_new_tokens: int,
    skip_set: SkipSet,
    should_stop: ShouldStop = None,
) -> tuple[Tensor, KeyValueStore]:
    """Run image and prompt; return the logits (B, V) of the first answer token and the store.

    hidden (B, C, H), is_real and is_image (B, C) are those of `embed`. The store has room for
    `max_new_tokens` - 1 more tokens: the last one chosen is never run.
    """
    max_columns = hidden.shape[1] + max_new_tokens - 1
    store = KeyValueStore(is_real, max_columns, len(decoder.blocks), is_image)
    return decoder.forward(hidden, store, skip_set, 'prefill', should_stop), store


def decode(
    decoder: Decoder,
    token_ids: Tensor,
    store: KeyValueStore,
    skip_set: SkipSet,
    should_stop: ShouldStop = None,
) -> Tensor:
    """Run the newest token of every row, long (B,); return the logits (B, V) of the one after."""
    hidden = decoder.embed_tokens(token_ids[:, None])  # (B, 1, H)
    return decoder.forward(hidden, store, skip_set, 'decode', should_stop)


def verify(draft: Sequence[int], chosen: Sequence[int]) -> int:
    """Return how many of the draft's first tokens are what the model itself chose.

    `chosen` are the likeliest tokens after the prompt and after each token of the draft, all from
    one pass (speculative decoding with greedy acceptance, Leviathan et al., arXiv:2211.17192).
    `chosen` up to and including that position is what decoding token by token would have given.
    """
    for position, (expected, token) in enumerate(zip(draft, chosen, strict=False)):
        if expected != token:
            return position
    return len(draft)


def useful_draft(draft: Sequence[int], max_new_tokens: int, end_ids: Collection[int]) -> list[int]:
    """Return the start of a draft that is worth running.

    The last token of an answer is chosen, but never run; none after the first end token matters.
    """
    before_end = itertools.takewhile(lambda token: token not in end_ids, draft)
    return [int(token) for token in before_end][: max_new_tokens - 1]


def near_tie_of(alone: Tensor, walked: Tensor, dtype: torch.dtype) -> float:
    """Return how close two logits may be that a batch could have put in the wrong order.

    It is measured: `alone` and `walked`, float32 (T, V), are the same logits without and with other
    rows, computed in `dtype`. The farthest that a logit moved against the best one counts, in
    float32 several times over: other answers may move further. (In half precision the roundings
    that `tie_margins` adds are more.)
    """
    moved = walked - alone
    shift = float((moved - moved.gather(-1, alone.argmax(dim=-1, keepdim=True))).abs().max())
    return SHIFT_FACTOR * shift if dtype == torch.float32 else shift


def tie_margins(logits: Tensor, best: Tensor, near_tie: float | None = None) -> Tensor:
    """Return how much the best logits lead by, less what counts as a tie: (...).

    Of logits (..., V), in the model's dtype, `best` (..., 2) are the two highest, in float32. A
    negative margin is a near tie. It is NaN where a logit is NaN or infinite. near_tie: how close
    logits are a tie, by default NEAR_TIE; it is at least NEAR_TIE_ULPS roundings of the best logit.
    """
    tie = torch.full_like(best[..., 0], NEAR_TIE if near_tie is None else near_tie)
    tie = tie.maximum(NEAR_TIE_ULPS * torch.finfo(logits.dtype).eps * best[..., 0].abs())
    margins = best[..., 0] - best[..., 1] - tie
    return margins.masked_fill(~logits.isfinite().all(dim=-1), float('nan'))


def choose(logits: Tensor, rows: Collection[int]) -> tuple[Tensor, list[int], list[float]]:
    """Return the likeliest token of every row of logits (B, V), and its probability.

    The tokens are returned twice: long (B,), still on the device, and read from it. Raises
    NonFiniteLogitsError if a logit of one of `rows` is NaN or infinite.
    """
    finite = logits.isfinite().all(dim=-1)
    best, ids = logits.float().max(dim=-1)
    probabilities = (best - logits.float().logsumexp(dim=-1)).exp()
    # One transfer from the device; token ids are exact in double precision.
    chosen, is_finite, chances = torch.stack(
        (ids.double(), finite.double(), probabilities.double())
    ).tolist()
    if not all(is_finite[row] for row in rows):
        raise non_finite_logits(logits)
    return ids, [int(token) for token in chosen], chances


def non_finite_logits(logits: Tensor) -> NonFiniteLogitsError:
    """Return the error for logits of which one is NaN or infinite."""
    dtype = str(logits.dtype).removeprefix('torch.')
    return NonFiniteLogitsError(
        f'the model gave NaN or infinite logits in {dtype} on {logits.device}: '
        'try dtype float32 or bfloat16, or check the weights'
    )


def generate(
    decoder: Decoder,
    hidden: Tensor,
    is_real: Tensor,
    is_image: Tensor,
    skip_set: SkipSet,
    max_new_tokens: int,
    end_ids: Collection[int],
    clock_ms: Callable[[], float],
    *,
    first_token_ids: Sequence[int] = (),
    should_stop: ShouldStop = None,
    keep_logits: bool = False,
    draft: Sequence[int] = (),
) -> Generated:
    """Return the greedy continuation of every row, up to a token of `end_ids`.

    hidden (B, C, H), is_real and is_image (B, C) are those of `embed`. A row's tokens are without
    the end token, its logits with it. `draft`, for a single row only: a guess of its tokens, which
    saves passes and changes none of them. Raises NonFiniteLogitsError, Stopped.
    """
    draft = useful_draft(draft, max_new_tokens, end_ids)
    if draft:
        generated = _generate_from_draft(
            decoder,
            hidden,
            is_real,
            is_image,
            skip_set,
            max_new_tokens,
            end_ids,
            clock_ms,
            draft,
            first_token_ids,
            should_stop,
            keep_logits,
        )
        if generated is not None:
            return generated
    logits, store = prefill(
        decoder, hidden, is_real, is_image, max_new_tokens, skip_set, should_stop
    )
    num_rows = len(hidden)
    unfinished = set(range(num_rows))
    token_ids: list[list[int]] = [[] for _ in range(num_rows)]
    probabilities: list[list[float]] = [[] for _ in range(num_rows)]  # an end token's included
    kept: list[list[np.ndarray]] = [[] for _ in range(num_rows)]
    newest, chosen, chances = choose(logits, unfinished)
    first = probabilities_of(logits, first_token_ids)
    prefilled_ms = clock_ms()
    for step in range(max_new_tokens):
        if step > 0:
            logits = decode(decoder, newest, store, skip_set, should_stop)
            newest, chosen, chances = choose(logits, unfinished)
        for row in sorted(unfinished):
            if keep_logits:
                kept[row].append(logits[row].float().cpu().numpy())
            probabilities[row].append(chances[row])
            if chosen[row] in end_ids:
                unfinished.discard(row)
            else:
                token_ids[row].append(chosen[row])
        if not unfinished:
            break
    confidences = [
        confidence_of(of_row[: len(ids)] or of_row)
        for of_row, ids in zip(probabilities, token_ids, strict=True)
    ]
    return Generated(token_ids, confidences, first, kept, prefilled_ms)


def _generate_from_draft(
    decoder: Decoder,
    hidden: Tensor,
    is_real: Tensor,
    is_image: Tensor,
    skip_set: SkipSet,
    max_new_tokens: int,
    end_ids: Collection[int],
    clock_ms: Callable[[], float],
    draft: list[int],
    first_token_ids: Sequence[int],
    should_stop: ShouldStop,
    keep_logits: bool,
) -> Generated | None:
    """Return what `generate` gives for its only row; None if that is uncertain.

    As long as the answer follows the draft, the rest of the draft goes through the blocks together
    with the tokens before it: behind the prompt where both phases skip the same, otherwise behind
    the answer's first token. What `verify` rejects is dropped again. Such a pass moves logits by
    rounding, so a near tie in or after it is uncertain; so are logits that are NaN or infinite,
    which rejected tokens can cause.
    """
    max_columns = hidden.shape[1] + max_new_tokens - 1
    store = KeyValueStore(is_real, max_columns, len(decoder.blocks), is_image)
    token_ids: list[int] = []
    probabilities: list[float] = []  # an end token's included
    kept: list[np.ndarray] = []
    guessed = draft if skip_set.is_plain else []  # tokens of the draft that go along in this pass
    has_guessed = False
    phase, has_ended = 'prefill', False
    while True:
        if guessed:
            has_guessed = True
            hidden = torch.cat((hidden, _embed_tokens(decoder, guessed)), dim=1)
        states = decoder.run_blocks(hidden, store, skip_set, phase, 1 + len(guessed), should_stop)
        logits = decoder.logits(states[0])  # (1 + guessed, V)
        chosen, chances, margins = choose_with_margins(logits)
        if phase == 'prefill':
            first = probabilities_of(logits[:1], first_token_ids)
            prefilled_ms = clock_ms()
        num_accepted = verify(guessed, chosen)
        for position in range(num_accepted + 1):
            if math.isnan(margins[position]) or (has_guessed and margins[position] < 0):
                return None
            if keep_logits:
                kept.append(logits[position].float().cpu().numpy())
            probabilities.append(chances[position])
            has_ended = chosen[position] in end_ids
            if not has_ended:
                token_ids.append(chosen[position])
        if has_ended or len(token_ids) == max_new_tokens:
            break
        if num_accepted < len(guessed):
            store.drop_newest(len(guessed) - num_accepted)
        follows_draft = token_ids == draft[: len(token_ids)]
        guessed = draft[len(token_ids) :] if follows_draft else []
        hidden, phase = _embed_tokens(decoder, token_ids[-1:]), 'decode'
    confidence = confidence_of(probabilities[: len(token_ids)] or probabilities)
    return Generated([token_ids], [confidence], first, [kept], prefilled_ms)


def _embed_tokens(decoder: Decoder, token_ids: Sequence[int]) -> Tensor:
    """Return the embeddings (1, tokens, H)."""
    weight = decoder.embed_tokens.weight
    return decoder.embed_tokens(torch.tensor([token_ids], device=weight.device))


def choose_with_margins(logits: Tensor) -> tuple[list[int], list[float], list[float]]:
    """Return the likeliest token of every row of logits (T, V), its probability, its tie margin.

    Of equal logits, the token is the one that `choose` returns.
    """
    in_float = logits.float()
    best, ids = in_float.max(dim=-1)
    probabilities = (best - in_float.logsumexp(dim=-1)).exp()
    margins = tie_margins(logits, in_float.topk(2, dim=-1).values)
    # One transfer from the device; token ids are exact in double precision.
    chosen, chances, leads = torch.stack(
        (ids.double(), probabilities.double(), margins.double())
    ).tolist()
    return [int(token) for token in chosen], chances, leads


def probabilities_of(logits: Tensor, token_ids: Sequence[int]) -> list[tuple[float, ...]]:
    """Return, per row of logits (B, V), the probabilities of these tokens."""
    if len(token_ids) == 0:
        return [()] * len(logits)
    wanted = logits.float().softmax(dim=-1)[:, list(token_ids)]  # (B, tokens)
    return [tuple(row) for row in wanted.tolist()]


def confidence_of(probabilities: Sequence[float]) -> Confidence:
    """Return the mean, the least and the first of the probabilities, at least one."""
    mean = sum(probabilities) / len(probabilities)
    return Confidence(mean, min(probabilities), probabilities[0])


def greedy_warnings(generation_config: Any) -> tuple[str, ...]:
    """Return a line for each setting that changes Hugging Face's greedy answers and is not applied.

    Sampling settings are not among them: answers are greedy by design.
    """
    warnings = []
    for name, neutral in _CHANGES_GREEDY.items():
        value = getattr(generation_config, name, None)
        if value is not None and value != neutral and value != []:
            warnings.append(
                f'generation_config.json sets {name} to {value!r}, which is not applied: answers '
                "can differ from those of Hugging Face's generate"
            )
    return tuple(warnings)
