"""One Transformer block of a Llama, Mistral or Qwen2 decoder, over fused weights.

Shapes: B rows (batch), T tokens, H hidden size, N query heads, K key/value heads, D head size, S
entries stored by the block.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention, silu
from transformers.activations import SiLUActivation

from gmskip_ros.vlm.linear import FUSED, Linear, fuse
from gmskip_ros.vlm.norm import RmsNorm
from gmskip_ros.vlm.quantization import num_parameters
from gmskip_ros.vlm.rotary import rotate_

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

    def project(self, normed: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor, Tensor]:
        """Return the rotated query (B, N, T, D), the rotated key and the value (both (B, K, T, D)).

        normed: (B, T, H).
        """
        heads = self._by_head(self.qkv(normed))  # (B, T, N + 2 K, D)
        rotate_(heads[:, :, : -self._stored_heads], rotary)
        sizes = (self._heads, self._stored_heads, self._stored_heads)
        query, key, value = heads.transpose(1, 2).split_with_sizes(sizes, 1)
        return query, key, value

    def project_query(self, normed: Tensor, rotary: Rotary) -> Tensor:
        """Return the rotated query (B, N, T, D) of normed (B, T, H)."""
        return rotate_(self._by_head(self._query(normed)), rotary).transpose(1, 2)

    def project_stored(self, normed: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor]:
        """Return the rotated key and the value, both (B, K, T, D), of normed (B, T, H)."""
        heads = self._by_head(self._stored(normed))  # (B, T, 2 K, D)
        rotate_(heads[:, :, : self._stored_heads], rotary)
        key, value = heads.transpose(1, 2).chunk(2, dim=1)
        return key, value

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
