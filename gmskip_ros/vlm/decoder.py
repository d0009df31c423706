"""The language decoder, block by block, over weights that Hugging Face has loaded.

Skipping block i in a phase: a token processed in that phase passes block i unchanged, and block i
stores no key and no value for it. A token that runs block i attends, in that block, to itself and
to the earlier tokens whose own phase ran it. Rotary positions are always the sequence's.

Shapes: B rows (batch), T tokens in this pass, S entries stored by a block, C columns of the
left-padded batch so far, H hidden size, N query heads, K key/value heads, D head size.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from gmskip_ros.vlm.errors import Stopped

TEXT_MODEL_TYPES = ('llama', 'mistral', 'qwen2')


class KeyValueStore:
    """Keys and values of one batch, by original block index, and the position counter.

    Columns are those of the left-padded batch: the prompt's, then one per decoded token. A block
    stores a contiguous run of columns: both phases, the prompt only, or the decoded tokens only.
    """

    def __init__(self, is_real: Tensor, max_columns: int, num_blocks: int) -> None:
        """is_real: bool (B, prompt columns), False on padding; max_columns: how many fit."""
        batch_size, prompt_columns = is_real.shape
        self.max_columns = max_columns
        self.has_padding = not bool(is_real.all())
        self.is_real = is_real.new_ones(batch_size, max_columns)  # every decoded token is real
        self.is_real[:, :prompt_columns] = is_real
        self.num_columns = 0  # processed so far
        self.next_position = torch.zeros_like(is_real[:, :1], dtype=torch.long)  # (B, 1), per row
        self.keys: list[Tensor | None] = [None] * num_blocks  # (B, K, capacity, D)
        self.values: list[Tensor | None] = [None] * num_blocks
        self.first_column = [0] * num_blocks

    def advance(self, num_tokens: int) -> Tensor:
        """Add `num_tokens` columns; return their rotary positions, long (B, T)."""
        columns = slice(self.num_columns, self.num_columns + num_tokens)
        real_so_far = self.is_real[:, columns].cumsum(dim=1)  # 1 at a row's first real token
        positions = (self.next_position + real_so_far - 1).clamp(min=0)
        self.next_position = self.next_position + real_so_far[:, -1:]
        self.num_columns += num_tokens
        return positions

    def append(self, block: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store key and value (B, K, T, D) of the newest columns; return all of the block's."""
        start = self.num_columns - key.shape[2]
        keys, values = self.keys[block], self.values[block]
        if keys is None or values is None:
            self.first_column[block] = start
            capacity = self.max_columns - start
            keys = self.keys[block] = key.new_empty(*key.shape[:2], capacity, key.shape[3])
            values = self.values[block] = torch.empty_like(keys)
        first = self.first_column[block]
        entries = slice(start - first, self.num_columns - first)
        keys[:, :, entries] = key
        values[:, :, entries] = value
        return keys[:, :, : entries.stop], values[:, :, : entries.stop]

    def mask(self, first_column: int, num_tokens: int, window: int | None) -> Tensor | None:
        """Return which stored columns each of the newest tokens attends to: bool (B, 1, T, S).

        None where plain causal attention is the same.
        """
        window_binds = window is not None and self.num_columns - first_column > window
        starts_together = first_column == self.num_columns - num_tokens
        if not (self.has_padding or window_binds) and (num_tokens == 1 or starts_together):
            return None
        columns = torch.arange(first_column, self.num_columns, device=self.is_real.device)
        query, key = columns[-num_tokens:, None], columns[None, :]  # (T, 1), (1, S)
        allowed = key <= query
        if window is not None:
            allowed = allowed & (key > query - window)
        allowed = allowed & self.is_real[:, None, first_column : self.num_columns]  # (B, T, S)
        # A padding token attends to itself: no row is fully masked, so softmax never gives NaN.
        return (allowed | (key == query))[:, None]


class Decoder:
    """A view of a Llama, Mistral or Qwen2 decoder and its output head; owns no weights."""

    def __init__(self, language_model: nn.Module, lm_head: nn.Module) -> None:
        # Any: the attributes below belong to the three decoders' own classes.
        model: Any = language_model
        self.config: Any = model.config
        self.embed_tokens: Any = model.embed_tokens
        self.blocks: list[Any] = list(model.layers)
        self.rotary_emb: nn.Module = model.rotary_emb
        self.norm: nn.Module = model.norm
        self.lm_head = lm_head
        self.windows = sliding_windows(model.config)
        self.token_blocks = 0  # tokens, padding included, that went through a block so far

    def forward(
        self,
        hidden: Tensor,
        store: KeyValueStore,
        skipped: Collection[int],
        should_stop: Callable[[], bool] | None = None,
    ) -> Tensor:
        """Run hidden (B, T, H) through the retained blocks; return the last token's logits (B, V).

        Raises Stopped as soon as `should_stop`, polled before every block, returns True.
        """
        return self.logits(self.run_blocks(hidden, store, skipped, should_stop)[:, -1])

    def run_blocks(
        self,
        hidden: Tensor,
        store: KeyValueStore,
        skipped: Collection[int],
        should_stop: Callable[[], bool] | None = None,
    ) -> Tensor:
        """Return hidden (B, T, H) after the retained blocks; see `forward`."""
        num_tokens = hidden.shape[1]
        rotary = self.rotary_emb(hidden, store.advance(num_tokens))  # cos, sin: (B, T, D)
        masks: dict[tuple[int, int | None], Tensor | None] = {}
        for index in range(len(self.blocks)):
            if should_stop is not None and should_stop():
                raise Stopped('stopped before the answer was complete')
            if index in skipped:
                continue
            query, key, value = self.project(index, hidden, rotary)
            keys, values = store.append(index, key, value)  # (B, K, S, D)
            which = (store.first_column[index], self.windows[index])
            if which not in masks:
                masks[which] = store.mask(which[0], num_tokens, which[1])
            hidden = self.finish_block(index, hidden, query, keys, values, masks[which])
        return hidden

    def project(
        self, index: int, hidden: Tensor, rotary: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run a block's first half: rotated query (B, N, T, D), key, value (both (B, K, T, D))."""
        block = self.blocks[index]
        return _project(block.self_attn, block.input_layernorm(hidden), rotary)

    def finish_block(
        self,
        index: int,
        hidden: Tensor,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        mask: Tensor | None,
    ) -> Tensor:
        """Run the second half: attention over keys, values (B, K, S, D), feed-forward; (B, T, H).

        With a mask (B or 1, 1, T, S), the T tokens may be just the last ones.
        """
        self.token_blocks += hidden.shape[0] * hidden.shape[1]
        block = self.blocks[index]
        attended = _attend(query, keys, values, mask, block.self_attn.scaling)
        hidden = hidden + block.self_attn.o_proj(attended)
        return hidden + block.mlp(block.post_attention_layernorm(hidden))

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits (..., V) of the tokens after hidden (..., H)."""
        return self.lm_head(self.norm(hidden))


def sliding_windows(config: Any) -> list[int | None]:
    """Return each block's attention window in tokens (itself included), None for no limit."""
    window = getattr(config, 'sliding_window', None)
    if config.model_type == 'mistral':
        return [window] * config.num_hidden_layers
    if config.model_type == 'qwen2':
        return [window if kind == 'sliding_attention' else None for kind in config.layer_types]
    return [None] * config.num_hidden_layers


def _project(
    attention: Any, hidden: Tensor, rotary: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the rotated query (B, N, T, D) and key, and the value (both (B, K, T, D))."""
    batch_size, num_tokens, _ = hidden.shape
    by_head = (batch_size, num_tokens, -1, attention.head_dim)
    query = attention.q_proj(hidden).view(by_head).transpose(1, 2)
    key = attention.k_proj(hidden).view(by_head).transpose(1, 2)
    value = attention.v_proj(hidden).view(by_head).transpose(1, 2)
    cos, sin = (part.unsqueeze(1) for part in rotary)  # (B, 1, T, D)
    return _rotate(query, cos, sin), _rotate(key, cos, sin), value


def _rotate(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding, in the half-split layout of Hugging Face's Llama weights."""
    first, second = states.chunk(2, dim=-1)
    return states * cos + torch.cat((-second, first), dim=-1) * sin


def _attend(
    query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scale: float
) -> Tensor:
    """Grouped-query attention of query (B, N, T, D) over keys, values (B, K, S, D): (B, T, N D)."""
    groups = query.shape[1] // keys.shape[1]
    if mask is not None and groups > 1:  # with a mask, torch's fast kernels need equal heads
        keys = keys.repeat_interleave(groups, dim=1)
        values = values.repeat_interleave(groups, dim=1)
        groups = 1
    attended = scaled_dot_product_attention(
        query,
        keys,
        values,
        attn_mask=mask,
        is_causal=mask is None and query.shape[2] > 1,
        scale=scale,
        enable_gqa=groups > 1,
    )
    return attended.transpose(1, 2).flatten(2)
