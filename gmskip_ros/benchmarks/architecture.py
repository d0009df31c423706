"""Bytes that each phase must read and operations that it must do, from the architecture alone.

Lower bounds, so that a floor made of them holds for any engine: every weight is read once and every
needed product is formed once; activations, norms, biases and rotary positions cost nothing. In
prefill the last block that runs is needed for the last token only, beyond keys and values.

Symbols: T rows (tokens of a pass), S stored tokens, H hidden size, N D query width, K D key/value
width, F feed-forward width, V vocabulary; a multiplication and its addition are 2 operations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Cost:
    """What a phase cannot do without: floating-point operations, and bytes read or written."""

    flops: int
    bytes: int

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.flops + other.flops, self.bytes + other.bytes)


@dataclass(frozen=True)
class DecoderShape:
    """The sizes of a Llama-like language decoder.

    counts_attention: False where blocks have sliding windows, which are not modelled: attention
    then costs nothing, and the bounds stay bounds.
    """

    num_blocks: int
    hidden: int  # H
    query: int  # N D
    stored: int  # K D
    feed_forward: int  # F
    vocabulary: int  # V
    number_bytes: int  # of one weight
    counts_attention: bool = True
    quantization: str = 'none'  # of the blocks' linear layers

    @property
    def block_weights(self) -> int:
        """Numbers in the linear layers of one block: 2 H N D + 2 H K D + 3 H F."""
        return self.hidden * (2 * self.query + 2 * self.stored + 3 * self.feed_forward)

    @property
    def block_bytes(self) -> int:
        """Bytes of the linear layers of one block, as they are stored."""
        if self.quantization == 'none':
            return self.number_bytes * self.block_weights
        from gmskip_ros.vlm.quantization import stored_as

        return sum(
            stored_as(self.quantization, out, into).num_bytes(out, into, self.number_bytes)
            for into, out in self.linear_layers(fused=True)
        )

    @property
    def stored_weights(self) -> int:
        """Those of them that make keys and values: 2 H K D."""
        return 2 * self.hidden * self.stored

    def linear_layers(self, fused: bool) -> list[tuple[int, int]]:
        """Return (in, out) of a block's linear layers; fused: Q K V in one, gate and up in one."""
        hidden, wide = self.hidden, self.feed_forward
        into = [self.query, self.stored, self.stored], [wide, wide]
        attention, feed_forward = ([sum(group)] for group in into) if fused else into
        return [
            *((hidden, out) for out in attention),
            (self.query, hidden),
            *((hidden, out) for out in feed_forward),
            (wide, hidden),
        ]


def decoder_shape(text_config: Any, number_bytes: int, quantization: str = 'none') -> DecoderShape:
    """Return the sizes in a configuration of Hugging Face's Llama, Mistral or Qwen2."""
    from gmskip_ros.vlm.decoder import sliding_windows

    head = getattr(text_config, 'head_dim', None) or (
        text_config.hidden_size // text_config.num_attention_heads
    )
    return DecoderShape(
        num_blocks=text_config.num_hidden_layers,
        hidden=text_config.hidden_size,
        query=text_config.num_attention_heads * head,
        stored=text_config.num_key_value_heads * head,
        feed_forward=text_config.intermediate_size,
        vocabulary=text_config.vocab_size,
        number_bytes=number_bytes,
        counts_attention=not any(sliding_windows(text_config)),
        quantization=quantization,
    )


def prefill_cost(shape: DecoderShape, rows: int, blocks: int) -> Cost:
    """Return the cost of a prompt of `rows` tokens through `blocks` blocks, one logit row."""
    head = shape.hidden * shape.vocabulary
    multiplications, moved = head, head + rows * shape.hidden
    if blocks:
        last = rows * shape.stored_weights + (shape.block_weights - shape.stored_weights)
        multiplications += (blocks - 1) * rows * shape.block_weights + last
        if shape.counts_attention:  # scores and weighted sums: 2 products per pair and channel
            pairs = (blocks - 1) * rows * (rows + 1) // 2 + rows
            multiplications += 2 * pairs * shape.query
        moved += blocks * 2 * shape.stored * rows
    return Cost(2 * multiplications, shape.number_bytes * moved + blocks * shape.block_bytes)


def decode_cost(shape: DecoderShape, stored: int, blocks: int) -> Cost:
    """Return the cost of one further token that sees `stored` tokens, itself included."""
    head = shape.hidden * shape.vocabulary
    multiplications = head + blocks * shape.block_weights
    moved = head + shape.hidden
    if shape.counts_attention:
        multiplications += 2 * blocks * stored * shape.query
        moved += 2 * blocks * stored * shape.stored
    return Cost(2 * multiplications, shape.number_bytes * moved + blocks * shape.block_bytes)


def decode_costs(shape: DecoderShape, prompt: int, length: int, blocks: int) -> Cost:
    """Return the cost of all tokens after the first of an answer of `length` tokens."""
    total = Cost(0, 0)
    for step in range(1, length):  # the last token chosen is never run
        total += decode_cost(shape, prompt + step, blocks)
    return total


@dataclass(frozen=True)
class VisionShape:
    """The sizes of a vision tower and its projector, as deep as the features need."""

    layers: int
    hidden: int
    feed_forward: int
    patch_inputs: int  # numbers of one patch
    tokens: int  # of a tile inside the tower
    projected: int  # tokens of a tile that are projected
    projector: tuple[int, int]  # width in (features of several layers side by side), width out
    number_bytes: int

    @property
    def layer_weights(self) -> int:
        """Numbers in the linear layers of one layer: 4 h h + 2 h f."""
        return self.hidden * (4 * self.hidden + 2 * self.feed_forward)

    def linear_layers(self, fused: bool) -> list[tuple[int, int]]:
        """Return (in, out) of one layer's linear layers; fused: Q, K and V in one."""
        hidden, wide = self.hidden, self.feed_forward
        attention = [(hidden, 3 * hidden)] if fused else [(hidden, hidden)] * 3
        return [*attention, (hidden, hidden), (hidden, wide), (wide, hidden)]


def vision_shape(config: Any, number_bytes: int) -> VisionShape:
    """Return the sizes in the configuration of a LLaVA."""
    from gmskip_ros.vlm.tiles import tile_tokens, tower_tokens
    from gmskip_ros.vlm.vision import layers_before_features

    vision, read = config.vision_config, layers_before_features(config)
    return VisionShape(
        layers=max(read.values()),
        hidden=vision.hidden_size,
        feed_forward=vision.intermediate_size,
        patch_inputs=vision.num_channels * vision.patch_size**2,
        tokens=tower_tokens(config),
        projected=tile_tokens(config),
        projector=(len(read) * vision.hidden_size, config.text_config.hidden_size),
        number_bytes=number_bytes,
    )


def vision_cost(shape: VisionShape, tiles: int) -> Cost:
    """Return the cost of encoding an image of `tiles` tiles."""
    wide, out = shape.projector
    patches = shape.hidden * shape.patch_inputs
    projector = wide * out + out * out
    per_tile = shape.tokens * (patches + shape.layers * shape.layer_weights)
    per_tile += 2 * shape.layers * shape.tokens**2 * shape.hidden  # attention, not causal
    per_tile += shape.projected * projector
    weights = patches + shape.layers * shape.layer_weights + projector
    return Cost(2 * tiles * per_tile, shape.number_bytes * weights)
