"""What the model makes of tokens that are given: logits of a continuation, states of every block.

Shapes: B rows (batch), C columns of the left-padded prompts, T tokens of a prompt and its answer, P
of them the prompt's, A the answer's; N query heads, K key/value heads, D head size, H hidden size,
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from gmskip_ros.skipping import SkipSet
from gmskip_ros.vlm.answer import BlockStates
from gmskip_ros.vlm.decoder import ALL, NONE, TEXT, Decoder, KeyValueStore, who_runs_and_stores
from gmskip_ros.vlm.errors import Stopped
from gmskip_ros.vlm.generation import ShouldStop, non_finite_logits


def continuation_logits(
    decoder: Decoder,
    hidden: Tensor,
    is_real: Tensor,
    is_image: Tensor,
    continuations: Sequence[Sequence[int]],
    skip_set: SkipSet,
    should_stop: ShouldStop = None,
) -> Iterator[Tensor]:
    """Yield, per row, the logits (tokens, V), float32, that predict each token of its continuation.

    hidden (B, C, H), is_real and is_image (B, C) are those of `generation.embed`. The prompts are
    processed as in prefill, the continuations as in decode, but all their tokens in one pass. The
    last token of a continuation is predicted, but never run. Raises NonFiniteLogitsError, Stopped.
    """
    num_steps = max(1, *map(len, continuations))
    max_columns = hidden.shape[1] + num_steps - 1
    store = KeyValueStore(is_real, max_columns, len(decoder.blocks), is_image)
    states = decoder.run_blocks(hidden, store, skip_set, 'prefill', 1, should_stop)  # (B, 1, H)
    if num_steps > 1:
        # Right-padded: later columns do not influence earlier ones. A row is padded with one of its
        # own tokens, since 0 x NaN would be NaN if the embedding of a foreign one were broken.
        padded = [
            ([*ids, *[ids[-1] if ids else 0] * num_steps])[: num_steps - 1] for ids in continuations
        ]
        given = decoder.embed_tokens(torch.tensor(padded, device=hidden.device))
        after = decoder.run_blocks(given, store, skip_set, 'decode', num_steps - 1, should_stop)
        states = torch.cat((states, after), dim=1)  # (B, steps, H)
    for row, ids in zip(states, continuations, strict=True):
        logits = decoder.logits(row[: len(ids)])
        if not logits.isfinite().all():
            raise non_finite_logits(logits)
        yield logits.float()


def block_states(
    decoder: Decoder,
    hidden: Tensor,
    is_image: Tensor,
    prompt_length: int,
    skip_set: SkipSet,
    num_queries: int | None = None,
    should_stop: ShouldStop = None,
) -> Iterator[BlockStates]:
    """Yield what every block does, ascending, in one causal pass; it keeps one block's states.

    hidden: (1, T, H), the embedded prompt and answer. is_image: bool (T,). The prompt's tokens skip
    the skip set's prefill blocks, the answer's its decode blocks. num_queries: from the prompt's
    last position on, how many positions' attention to the image is wanted. Raises Stopped.
    """
    for index in range(len(decoder.blocks)):
        if should_stop is not None and should_stop():
            raise Stopped('stopped before the states of every block were known')
        states = _run_block(decoder, index, hidden, is_image, prompt_length, skip_set, num_queries)
        yield states
        hidden = states.leaving[None]


@torch.inference_mode()  # of the generator, it would hold in the caller's code as well
def _run_block(
    decoder: Decoder,
    index: int,
    hidden: Tensor,
    is_image: Tensor,
    prompt_length: int,
    skip_set: SkipSet,
    num_queries: int | None,
) -> BlockStates:
    tokens = torch.arange(hidden.shape[1], device=hidden.device)
    runs, stores = _roles(index, skip_set, is_image, tokens < prompt_length)
    leaving, to_image = hidden, None
    if num_queries is not None:
        to_image = hidden.new_zeros(num_queries, dtype=torch.float32)
    if runs.any():
        rotary = decoder.rotary_emb(hidden, tokens[None])  # (1, T, D) each
        query, key, value = decoder.project(index, hidden, rotary)
        window = decoder.windows[index]
        mask = _mask(tokens, window, stores)
        leaving = decoder.finish_block(index, hidden, query, key, value, mask)
        if not runs.all():
            leaving = torch.where(runs[:, None], leaving, hidden)
        if to_image is not None:
            # The position before each token.
            predicting = slice(prompt_length - 1, prompt_length - 1 + len(to_image))
            visible = _visible(tokens[predicting], window, stores)  # (A, T)
            scale = decoder.blocks[index].scale
            paid = _attention_paid(query[0, :, predicting], key[0], visible, scale, is_image)
            to_image = torch.where(runs[predicting], paid, to_image)
    return BlockStates(index, hidden[0], leaving[0], is_image, prompt_length, to_image)


def _roles(
    block: int, skip_set: SkipSet, is_image: Tensor, is_prompt: Tensor
) -> tuple[Tensor, Tensor]:
    """Return which tokens run a block, and which store a key and a value there (both bool (T,))."""
    every = torch.ones_like(is_image)
    chosen = {NONE: ~every, TEXT: ~is_image, ALL: every}
    runs, stores = (
        torch.where(is_prompt, chosen[prefill], chosen[decode])
        for prefill, decode in zip(
            who_runs_and_stores(skip_set, 'prefill', block),
            who_runs_and_stores(skip_set, 'decode', block),
            strict=True,
        )
    )
    return runs, stores


def _visible(queries: Tensor, window: int | None, stores: Tensor) -> Tensor:
    """Return which of the T tokens each of some positions (Q,) attends to, bool (Q, T).

    They are the earlier ones that store a key and are within the window, and the position itself.
    """
    query, key = queries[:, None], torch.arange(len(stores), device=stores.device)
    visible = (key <= query) & stores
    if window is not None:
        visible = visible & (key > query - window)
    return visible | (key == query)


def _mask(tokens: Tensor, window: int | None, stores: Tensor) -> Tensor | None:
    """Return the attention mask (1, 1, T, T); None where plain causal attention is the same."""
    if stores.all() and (window is None or len(tokens) <= window):
        return None
    return _visible(tokens, window, stores)[None, None]


def _attention_paid(
    query: Tensor, key: Tensor, visible: Tensor, scale: float, is_image: Tensor
) -> Tensor:
    """Return how much attention queries (N, A, D) pay to image tokens, float32 (A,).

    key: (K, T, D). visible: bool (A, T). The probabilities are summed over image tokens and
    averaged over heads.
    """
    by_group = query.float().unflatten(0, (len(key), -1))  # (K, N / K, A, D)
    scores = torch.einsum('kgad,ktd->kgat', by_group, key.float()) * scale
    probabilities = scores.masked_fill(~visible, float('-inf')).softmax(dim=-1)
    return probabilities[..., is_image].sum(dim=-1).mean(dim=(0, 1))
