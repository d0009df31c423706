"""What the model makes of tokens that are given: logits of a continuation, states of every block.

Shapes: B rows (batch), C columns of the left-padded prompts, T tokens, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from gmskip_ros.skipping import SkipSet
from gmskip_ros.vlm.decoder import Decoder, KeyValueStore
from gmskip_ros.vlm.generation import ShouldStop, non_finite_logits


def continuation_logits(
    decoder: Decoder,
    hidden: Tensor,
    is_real: Tensor,
    continuations: Sequence[Sequence[int]],
    skip_set: SkipSet,
    should_stop: ShouldStop = None,
) -> Iterator[Tensor]:
    """Yield, per row, the logits (tokens, V), float32, that predict each token of its continuation.

    hidden (B, C, H) and is_real (B, C) are those of `generation.embed`. The prompts are processed
    with the skip set's prefill blocks, the continuations with its decode blocks, all their tokens
    in one pass. The last token of a continuation is predicted, but never run. Raises
    NonFiniteLogitsError, Stopped.
    """
    num_steps = max(1, *map(len, continuations))
    store = KeyValueStore(is_real, hidden.shape[1] + num_steps - 1, len(decoder.blocks))
    states = decoder.run_blocks(hidden, store, skip_set.prefill, should_stop)[:, -1:]
    if num_steps > 1:
        # Right-padded: later columns do not influence earlier ones. A row is padded with one of its
        # own tokens, since 0 x NaN would be NaN if the embedding of a foreign one were broken.
        padded = [
            ([*ids, *[ids[-1] if ids else 0] * num_steps])[: num_steps - 1] for ids in continuations
        ]
        given = decoder.embed_tokens(torch.tensor(padded, device=hidden.device))
        after = decoder.run_blocks(given, store, skip_set.decode, should_stop)
        states = torch.cat((states, after), dim=1)  # (B, steps, H)
    for row, ids in zip(states, continuations, strict=True):
        logits = decoder.logits(row[: len(ids)])
        if not logits.isfinite().all():
            raise non_finite_logits(logits)
        yield logits.float()
