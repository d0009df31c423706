"""One Transformer block of a Llama, Mistral or Qwen2 decoder, over fused weights.

Shapes: B rows (batch), T tokens, H hidden size, N query heads, K key/value heads, D head size, S
entries stored by the block.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention, silu
from transformers.activations import SiLUActivation

from gmskip_ros.vlm.linear import FUSED, Linear, fuse
from gmskip_ros.vlm.norm import RmsNorm
from gmskip_ros.vlm.quantization import num_parameters
from gmskip_ros.vlm.rotary import rotate_

# In float32 on the CPU, plain products are faster than PyTorch's own attention for as many queries
# as keys, from LONG on, and fewer than VERY_LONG, from where on its kernel takes larger tiles (1.3
# to 1.5 times with 600; 16 heads of 64 and 32 of 128, two threads, on a Zen 5 and on a Xeon).
LONG, VERY_LONG = 256, 768
TILE = 64
Rotary = tuple[Tensor, Tensor]  # cosines and signed sines, (B, T, 1, D): for all heads


class Block:
    """Both norms and the linear layers of one block: qkv, o, gate_up and down.

    Attributes besides these: head_size (D), scale (of the attention's scores), num_parameters.
    """

    def __init__(self, layer: Any) -> None:
        """layer: Hugging Face's module; see `linear.fuse` for its parameters."""
        attention = layer.self_attn
        self.num_parameters = num_parameters(layer)
        self.head_size: int = attention.head_dim
        self.scale: float = attention.scaling
        self.input_norm = RmsNorm(layer.input_layernorm)
        self.post_attention_norm = RmsNorm(layer.post_attention_layernorm)
        of_query = attention.config.num_attention_heads * self.head_size
        of_stored = 2 * attention.config.num_key_value_heads * self.head_size
        self.qkv = _linear(layer, 'qkv')
        self._query = self.qkv.part(0, of_query)
        self._stored = self.qkv.part(of_query, of_query + of_stored)
        self._heads = of_query // self.head_size  # N
        self._stored_heads = of_stored // self.head_size // 2  # K
        self.o = _linear(layer, 'o')
        self.gate_up = _linear(layer, 'gate_up')
        self.down = _linear(layer, 'down')
        act_fn = layer.mlp.act_fn
        self._activation: Callable[[Tensor], Tensor] = (
            silu if isinstance(act_fn, (nn.SiLU, SiLUActivation)) else act_fn
        )

    def project(self, normed: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor]:
        """Return the rotated query (B, N, T, D), and what `project_stored` does.

        normed: (B, T, H).
        """
        heads = self._by_head(self.qkv(normed))  # (B, T, N + 2 K, D)
        rotate_(heads[:, :, : -self._stored_heads], rotary)
        query, stored = heads.transpose(1, 2).split_with_sizes(
            (self._heads, 2 * self._stored_heads), 1
        )
        return query, stored

    def project_query(self, normed: Tensor, rotary: Rotary) -> Tensor:
        """Return the rotated query (B, N, T, D) of normed (B, T, H)."""
        return rotate_(self._by_head(self._query(normed)), rotary).transpose(1, 2)

    def project_stored(self, normed: Tensor, rotary: Rotary) -> Tensor:
        """Return the heads of the rotated key, then those of the value, of normed (B, T, H).

        They are (B, 2 K, T, D).
        """
        heads = self._by_head(self._stored(normed))  # (B, T, 2 K, D)
        rotate_(heads[:, :, : self._stored_heads], rotary)
        return heads.transpose(1, 2)

    def finish(self, hidden: Tensor, attended: Tensor) -> Tensor:
        """Return hidden (B, T, H) after what `attend` gave, (B, T, N D), and the feed-forward."""
        hidden = hidden + self.o(attended)
        gate, up = self.gate_up(self.post_attention_norm(hidden)).chunk(2, dim=-1)
        return hidden + self.down(self._activation(gate).mul_(up))

    def _by_head(self, projected: Tensor) -> Tensor:
        """Return projected (B, T, heads D) as (B, T, heads, D)."""
        return projected.view(*projected.shape[:-1], -1, self.head_size)


def _linear(layer: Any, name: str) -> Linear:
    """Return the linear layer of this name in FUSED: quantised already, or fused."""
    part, members = FUSED[name]
    module = getattr(layer, part)
    quantized = getattr(module, name, None)
    return quantized or fuse([getattr(module, member) for member in members])


def attend(
    query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scale: float
) -> Tensor:
    """Grouped-query attention of query (B, N, T, D) over keys, values (B, K, S, D): (B, T, N D).

    Without a mask (B or 1, 1, T, S), a single token sees all of S; of as many tokens as S, each
    sees those before it and itself.
    """
    num_queries = query.shape[2]
    num_keys = keys.shape[2]
    is_long = num_queries == num_keys and LONG <= num_keys < VERY_LONG
    if mask is None and is_long and _is_one_row_in_float32_on_cpu(query):
        return _attend_in_tiles(query[0], keys[0], values[0], scale)
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
        is_causal=mask is None and num_queries > 1,
        scale=scale,
        enable_gqa=groups > 1,
    )
    return attended.transpose(1, 2).flatten(2)


def _is_one_row_in_float32_on_cpu(states: Tensor) -> bool:
    return len(states) == 1 and states.dtype == torch.float32 and states.device.type == 'cpu'


def _attend_in_tiles(query: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
    """Return what each of query (N, T, D) finds in the first ones of keys, values (K, T, D).

    It is (1, T, N D), from TILE queries at a time.
    """
    groups = len(query) // len(keys)
    if groups > 1:
        keys, values = (states.repeat_interleave(groups, dim=0) for states in (keys, values))
    num_heads, num_tokens, head_size = query.shape
    attended = query.new_empty(1, num_tokens, num_heads, head_size)
    scratch = query.new_empty(num_heads * TILE * num_tokens)  # one for all: it stays in the cache
    unused = query.new_empty(1, 1, 1)
    later = query.new_full((TILE, TILE), float('-inf')).triu_(1)
    for start in range(0, num_tokens, TILE):
        end = min(start + TILE, num_tokens)
        size = end - start
        scores = scratch[: num_heads * size * end].view(num_heads, size, end)
        torch.baddbmm(
            unused, query[:, start:end], keys[:, :end].mT, beta=0, alpha=scale, out=scores
        )
        scores[:, :, start:].add_(later[:size, :size])
        torch.softmax(scores, dim=-1, out=scores)
        attended[0, start:end] = torch.bmm(scores, values[:, :end]).transpose(0, 1)
    return attended.flatten(2)
