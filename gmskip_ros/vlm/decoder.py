"""The language decoder, block by block, over weights that Hugging Face has loaded.

Skipping block i in a phase: a token processed in that phase passes block i unchanged, and block i
stores no key and no value for it. A token that runs block i attends, in that block, to itself and
to the earlier tokens whose keys are stored there. Rotary positions are always the sequence's. The
image axis and the policies of a skip set change who runs and who stores: see `who_runs_and_stores`.

Shapes: B rows (batch), T tokens in this pass, Q of them that run a block, S entries stored by a
block, C columns of the left-padded batch so far, H hidden size, N query heads, K key/value heads,
D head size.
"""

from __future__ import annotations

import bisect
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gmskip_ros.skipping import SkipSet
from gmskip_ros.vlm.block import Block, Rotary, attend
from gmskip_ros.vlm.errors import Stopped
from gmskip_ros.vlm.linear import DenseLinear, Linear, fuse
from gmskip_ros.vlm.norm import RmsNorm
from gmskip_ros.vlm.release import empty_allocators
from gmskip_ros.vlm.rotary import RotaryTable

TEXT_MODEL_TYPES = ('llama', 'mistral', 'qwen2')
NONE, TEXT, ALL = 'none', 'text', 'all'  # which tokens of a pass


def who_runs_and_stores(skip_set: SkipSet, phase: str, block: int) -> tuple[str, str]:
    """Return which tokens of a pass run a block, and which store keys and values: NONE, TEXT, ALL.

    phase: 'prefill' or 'decode'. Those that run are always among those that store.
    """
    if block in (skip_set.prefill if phase == 'prefill' else skip_set.decode):
        # What is stored for a token that skips is read by later tokens that run: decoded ones.
        is_read = phase == 'prefill' and block not in skip_set.decode
        return NONE, ALL if is_read and skip_set.kv == 'input' else NONE
    if phase == 'prefill' and block in skip_set.image:
        return TEXT, ALL if skip_set.image_kv == 'input' else TEXT
    return ALL, ALL


@functools.lru_cache(maxsize=64)
def _plan(skip_set: SkipSet, phase: str, num_blocks: int) -> tuple[tuple[str, str], ...]:
    """Return `who_runs_and_stores` of every block; each decoded token asks again."""
    return tuple(who_runs_and_stores(skip_set, phase, block) for block in range(num_blocks))


class Selection(NamedTuple):
    """Some of the columns of a pass, ascending, and where they are in it, counted from its end."""

    columns: Sequence[int]
    at: slice | Tensor


class KeyValueStore:
    """Keys and values of one batch, by original block index, and the position counter.

    Columns are those of the left-padded batch: the prompt's, then one per decoded token. A block
    stores every column from the first that it stored on, or only columns that are text in some row.
    """

    def __init__(
        self, is_real: Tensor, max_columns: int, num_blocks: int, is_image: Tensor | None = None
    ) -> None:
        """max_columns: how many columns fit; is_real and is_image: bool (B, prompt columns).

        is_real is False on padding; is_image None stands for prompts without image tokens.
        """
        batch_size, prompt_columns = is_real.shape
        self._prompt_columns = prompt_columns
        self.max_columns = max_columns
        self.has_padding = not bool(is_real.all())
        self.is_real = is_real.new_ones(batch_size, max_columns)  # every decoded token is real
        self.is_real[:, :prompt_columns] = is_real
        self.is_text = self.is_real.clone()
        if is_image is not None:
            self.is_text[:, :prompt_columns] &= ~is_image
        self.num_columns = 0  # processed so far
        self.next_position = torch.zeros_like(is_real[:, :1], dtype=torch.long)  # (B, 1), per row
        # The heads of keys, then those of values: (B, 2 K, capacity, D).
        self.entries: list[Tensor | None] = [None] * num_blocks
        self.num_stored = [0] * num_blocks
        self.stored = [(ALL, 0)] * num_blocks  # which tokens, from which column on

    def advance(self, num_tokens: int) -> Tensor:
        """Add `num_tokens` columns; return their rotary positions, long (B, T)."""
        columns = slice(self.num_columns, self.num_columns + num_tokens)
        real_so_far = self.is_real[:, columns].cumsum(dim=1)  # 1 at a row's first real token
        positions = (self.next_position + real_so_far - 1).clamp(min=0)
        self.next_position = self.next_position + real_so_far[:, -1:]
        self.num_columns += num_tokens
        return positions

    def drop_newest(self, num_tokens: int) -> None:
        """Forget the newest `num_tokens` columns, as if they had never been processed."""
        kept = self.num_columns - num_tokens
        num_real = self.is_real[:, kept : self.num_columns].sum(dim=1, keepdim=True)
        self.next_position = self.next_position - num_real
        self.num_columns = kept
        for block, (which, first) in enumerate(self.stored):
            # Fewer than that where the block did not store the newest columns anyway.
            num_columns = len(self.columns(which, first))
            self.num_stored[block] = min(self.num_stored[block], num_columns)

    def columns(self, which: str, first: int) -> Sequence[int]:
        """Return the columns so far, from `first` on, that hold such tokens in some row."""
        columns = range(first, self.num_columns)
        if which == TEXT:
            return [column for column in columns if self._has_text[column]]
        return columns if which == ALL else ()

    def newest(self, which: str, num_tokens: int) -> Selection:
        """Return which of the newest columns hold such tokens in some row."""
        columns = self.columns(which, self.num_columns - num_tokens)
        if not columns:
            return Selection(columns, slice(0, 0))
        if len(columns) == num_tokens:  # such as a decoded token: nothing to send to the device
            return Selection(columns, slice(-num_tokens, None))
        return Selection(columns, self._as_tensor(columns) - self.num_columns)

    @functools.cached_property
    def _has_text(self) -> list[bool]:
        return self.is_text.any(dim=0).tolist()

    def append(self, block: int, which: str, newest: Tensor) -> tuple[Tensor, Tensor]:
        """Store the keys and values (B, 2 K, T, D) of such newest columns.

        Returns all keys and all values of the block, both (B, K, S, D).
        """
        entries = self.entries[block]
        num_newest = newest.shape[2]
        if entries is None:
            self.stored[block] = (which, self.num_columns - num_newest if which == ALL else 0)
            capacity = num_newest + self.max_columns - self.num_columns
            entries = newest.new_empty(*newest.shape[:2], capacity, newest.shape[3])
            self.entries[block] = entries
        start = self.num_stored[block]
        end = self.num_stored[block] = start + num_newest
        entries[:, :, start:end] = newest
        keys, values = entries[:, :, :end].chunk(2, dim=1)
        return keys, values

    def mask(
        self, queries: Sequence[int], stored: tuple[str, int], window: int | None
    ) -> Tensor | None:
        """Return what each of the columns `queries` (Q) attends to of what is stored: (B, 1, Q, S).

        It is boolean; None where plain causal attention is the same. `stored`: which tokens, from
        which column on; in each row, only its own tokens of that kind are seen.
        """
        which, first = stored
        keys = self.columns(which, first)
        hides = self.has_padding or (which == TEXT and len(self.is_real) > 1)
        window_binds = window is not None and queries[-1] - keys[0] >= window
        # One newest query sees all; as many queries as keys see what is before them.
        if not (hides or window_binds) and (queries[0] == keys[-1] or queries == keys):
            return None
        key = self._as_tensor(keys)  # (S,)
        query = self._as_tensor(queries)[:, None]  # (Q, 1)
        allowed = key <= query
        if window is not None:
            allowed = allowed & (key > query - window)
        is_seen = self.is_text if which == TEXT else self.is_real
        allowed = allowed & is_seen[:, None, key]  # (B, Q, S)
        # A padding token attends to itself: no row is fully masked, so softmax never gives NaN.
        return (allowed | (key == query))[:, None]

    def _as_tensor(self, columns: Sequence[int]) -> Tensor:
        """Return what `columns` gave, long, on the device; nothing is sent to it per token.

        Text columns are the last ones of the prompt's text, then some in a row after the prompt.
        """
        device = self.is_real.device
        if isinstance(columns, range):
            return torch.arange(columns.start, columns.stop, device=device)
        num_prompt = bisect.bisect_left(columns, self._prompt_columns)
        parts = [self._prompt_text[len(self._prompt_text) - num_prompt :]]
        if later := columns[num_prompt:]:
            parts.append(torch.arange(later[0], later[-1] + 1, device=device))
        return torch.cat(parts)

    @functools.cached_property
    def _prompt_text(self) -> Tensor:
        columns = [column for column in range(self._prompt_columns) if self._has_text[column]]
        return torch.tensor(columns, dtype=torch.long, device=self.is_real.device)


class Decoder:
    """A Llama, Mistral or Qwen2 decoder and its output head, over Hugging Face's weights."""

    def __init__(self, language_model: nn.Module, lm_head: nn.Module) -> None:
        """Linear layers take their fastest form, one after the other: see `linear.fuse`."""
        # Any: the attributes below belong to the three decoders' own classes.
        model: Any = language_model
        if model.embed_tokens.weight.device.type == 'cuda':
            # cuDNN's attention plans for every shape and stride, some tenths of a second each; here
            # both change from token to token. PyTorch's other kernels do not plan.
            torch.backends.cuda.enable_cudnn_sdp(False)
        self.config: Any = model.config
        self.embed_tokens: Any = model.embed_tokens
        self.blocks: list[Block] = []
        for layer in model.layers:
            self.blocks.append(Block(layer))
            empty_allocators()  # of a fused block, both forms exist for a moment
        self.rotary_emb = RotaryTable(model.rotary_emb, self.config.max_position_embeddings)
        self.norm = RmsNorm(model.norm)
        head: Any = lm_head
        is_embedding = head.weight is model.embed_tokens.weight  # which needs it as it is
        self.lm_head: Linear = (
            DenseLinear(head.weight, head.bias) if is_embedding else fuse((head,))
        )
        self.windows = sliding_windows(model.config)
        self.token_blocks = 0  # tokens, padding included, that went through a block so far

    def forward(
        self,
        hidden: Tensor,
        store: KeyValueStore,
        skip_set: SkipSet,
        phase: str,
        should_stop: Callable[[], bool] | None = None,
    ) -> Tensor:
        """Run hidden (B, T, H) through a phase's blocks; return the last token's logits (B, V).

        Raises Stopped as soon as `should_stop`, polled before every block, returns True.
        """
        return self.logits(self.run_blocks(hidden, store, skip_set, phase, 1, should_stop)[:, -1])

    def run_blocks(
        self,
        hidden: Tensor,
        store: KeyValueStore,
        skip_set: SkipSet,
        phase: str,
        num_wanted: int,
        should_stop: Callable[[], bool] | None = None,
    ) -> Tensor:
        """Return the last `num_wanted` tokens of hidden (B, T, H) after the blocks; see `forward`.

        The last block that does anything runs only for these.
        """
        num_tokens = hidden.shape[1]
        angles = self.rotary_emb(hidden, store.advance(num_tokens))  # (B, T, D) each
        plan = _plan(skip_set, phase, len(self.blocks))
        newest = {which: store.newest(which, num_tokens) for which in set().union(*plan)}
        rotary = {which: _by_token(angles, tokens.at) for which, tokens in newest.items()}
        last = max((i for i, (_, stores) in enumerate(plan) if stores != NONE), default=None)
        masks: dict[tuple[Any, ...], Tensor | None] = {}
        for index, (runs, stores) in enumerate(plan):
            if should_stop is not None and should_stop():
                raise Stopped('stopped before the answer was complete')
            if not newest[stores].columns:
                continue
            block, window = self.blocks[index], self.windows[index]
            normed = block.input_norm(hidden)  # (B, T, H)
            queries = newest[runs]
            is_cut = index == last and num_wanted < num_tokens
            if is_cut:  # nothing needs the earlier tokens further
                queries, hidden = store.newest(runs, num_wanted), hidden[:, -num_wanted:]
            is_whole = runs == stores == ALL and not is_cut
            if is_whole:
                query, stored = block.project(normed, rotary[ALL])
            else:
                stored = block.project_stored(normed[:, newest[stores].at], rotary[stores])
            keys, values = store.append(index, stores, stored)  # (B, K, S, D)
            if not queries.columns:
                continue
            if not is_whole:
                rotary_of_queries = _by_token(angles, queries.at)
                query = block.project_query(normed[:, queries.at], rotary_of_queries)
            seen = (len(queries.columns), store.stored[index], window)
            if seen not in masks:
                masks[seen] = store.mask(queries.columns, store.stored[index], window)
            before = hidden if runs == ALL else hidden[:, queries.at]  # (B, Q, H)
            after = self.finish_block(index, before, query, keys, values, masks[seen])
            if runs == ALL:
                hidden = after
            else:  # a column that is text in one row may be image in another
                is_text = store.is_text[:, : store.num_columns][:, queries.at, None]
                hidden = hidden.clone()
                hidden[:, queries.at] = torch.where(is_text, after, before)
        return hidden[:, -num_wanted:]

    def project(
        self, index: int, hidden: Tensor, rotary: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run a block's first half: rotated query (B, N, T, D), key, value (both (B, K, T, D))."""
        block = self.blocks[index]
        query, stored = block.project(block.input_norm(hidden), _by_token(rotary, slice(None)))
        key, value = stored.chunk(2, dim=1)
        return query, key, value

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
        return self.finish_attended(index, hidden, self.attend(index, query, keys, values, mask))

    def attend(
        self, index: int, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None
    ) -> Tensor:
        """Return what query (B, N, T, D) finds in keys and values, for `finish_attended`."""
        return attend(query, keys, values, mask, self.blocks[index].scale)

    def finish_attended(self, index: int, hidden: Tensor, attended: Tensor) -> Tensor:
        """Run what follows attention in `finish_block`, attended being (B, T, N D)."""
        self.token_blocks += hidden.shape[0] * hidden.shape[1]
        return self.blocks[index].finish(hidden, attended)

    def multiplications(self) -> tuple[int, int]:
        """Return how many a token takes in a block's linear layers, and for key and value alone."""
        hidden_size, head_size = self.config.hidden_size, self.blocks[0].head_size
        of_query = hidden_size * self.config.num_attention_heads * head_size
        of_stored = 2 * hidden_size * self.config.num_key_value_heads * head_size
        of_feed_forward = 3 * hidden_size * self.config.intermediate_size
        return 2 * of_query + of_stored + of_feed_forward, of_stored

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


def _by_token(angles: tuple[Tensor, Tensor], at: slice | Tensor) -> Rotary:
    """Return both (B, T, D) of the tokens at `at`, for all heads: (B, tokens, 1, D)."""
    cos, signed_sin = angles
    return cos[:, at, None], signed_sin[:, at, None]
