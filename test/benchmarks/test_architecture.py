"""Bytes and operations of a small architecture, counted by hand; floors and projections of them."""

from __future__ import annotations

import dataclasses

import pytest
import transformers

from gmskip_ros.benchmarks import cards, floors
from gmskip_ros.benchmarks.architecture import (
    Cost,
    DecoderShape,
    decode_cost,
    decode_costs,
    decoder_shape,
    prefill_cost,
    vision_cost,
    vision_shape,
)
from gmskip_ros.benchmarks.floors import MatrixProbe, PhaseProbe, Rates
from gmskip_ros.benchmarks.random_weights import MODELS, make_config
from gmskip_ros.benchmarks.shared_cost import shared_frame_costs

# H 4, query width 4, key and value width 2, feed-forward 6, vocabulary 10; numbers of 2 bytes.
SHAPE = DecoderShape(
    num_blocks=3, hidden=4, query=4, stored=2, feed_forward=6, vocabulary=10, number_bytes=2
)
BLOCK = 4 * 4 + 4 * 2 + 4 * 2 + 4 * 4 + 3 * 4 * 6  # q, k, v, o, feed-forward
HEAD = 4 * 10


def test_a_decoded_token() -> None:
    attention = 7 * 4 + 7 * 4  # a score and a weighted sum per stored token and channel
    assert decode_cost(SHAPE, 7, 3) == Cost(
        flops=2 * (3 * BLOCK + 3 * attention + HEAD),
        # Weights, keys and values of 7 tokens, the head, and one row of the embedding.
        bytes=2 * (3 * BLOCK + 3 * 7 * (2 + 2) + HEAD + 4),
    )


def test_quantised_blocks_are_read_as_they_are_stored() -> None:
    quantised = dataclasses.replace(SHAPE, quantization='int8')
    layers = (4 * 8, 8), (4 * 4, 4), (4 * 12, 12), (6 * 4, 4)  # numbers, outputs; q k v are one
    stored = sum(numbers + 2 * outputs for numbers, outputs in layers)
    assert quantised.block_bytes == stored
    for cost in (lambda shape: decode_cost(shape, 7, 3), lambda shape: prefill_cost(shape, 5, 3)):
        assert cost(SHAPE).flops == cost(quantised).flops
        assert cost(SHAPE).bytes - cost(quantised).bytes == 3 * (2 * BLOCK - stored)


def test_a_prompt_whose_last_block_serves_one_token() -> None:
    first_two = 2 * 5 * BLOCK + 2 * (1 + 2 + 3 + 4 + 5) * (4 + 4)
    last = 5 * (4 * 2 + 4 * 2) + (4 * 4 + 4 * 4 + 3 * 4 * 6) + 5 * (4 + 4)
    assert prefill_cost(SHAPE, 5, 3) == Cost(
        flops=2 * (first_two + last + HEAD),
        bytes=2 * (3 * BLOCK + 3 * 5 * (2 + 2) + HEAD + 5 * 4),
    )


def test_without_blocks_the_head_remains() -> None:
    assert prefill_cost(SHAPE, 5, 0) == Cost(2 * HEAD, 2 * (HEAD + 5 * 4))
    assert decode_cost(SHAPE, 5, 0) == Cost(2 * HEAD, 2 * (HEAD + 4))


def test_an_answer_runs_all_its_tokens_but_the_last() -> None:
    assert decode_costs(SHAPE, 5, 1, 3) == Cost(0, 0)
    wanted = decode_cost(SHAPE, 6, 3) + decode_cost(SHAPE, 7, 3)
    assert decode_costs(SHAPE, 5, 3, 3) == wanted


@pytest.mark.parametrize('fused', [True, False])
def test_linear_layers_have_the_weights_of_a_block(fused: bool) -> None:
    layers = SHAPE.linear_layers(fused)
    assert sum(wide * out for wide, out in layers) == SHAPE.block_weights == BLOCK
    assert len(layers) == (4 if fused else 7)


def test_sliding_windows_cost_no_attention() -> None:
    config = transformers.AutoConfig.for_model(
        'mistral',
        hidden_size=4,
        intermediate_size=6,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_hidden_layers=3,
        vocab_size=10,
        sliding_window=2,
    )
    shape = decoder_shape(config, 2)
    assert shape == DecoderShape(3, 4, 4, 2, 6, 10, 2, counts_attention=False)
    assert decode_cost(shape, 100, 3) == decode_cost(shape, 1, 3)


def test_vision_runs_as_deep_as_the_features_need() -> None:
    config = make_config('random:llava-cpu', 140)
    shape = vision_shape(config, 4)
    assert (shape.layers, shape.tokens, shape.projected) == (5, 101, 100)  # of 6 layers
    layer = 4 * 256**2 + 2 * 256 * 1024
    per_token = 3 * 14**2 * 256 + 5 * layer
    attention = 5 * 2 * 101**2 * 256
    projector = 256 * 1024 + 1024 * 1024
    for tiles in (1, 3):
        assert vision_cost(shape, tiles) == Cost(
            flops=2 * tiles * (101 * per_token + attention + 100 * projector),
            bytes=4 * (per_token + projector),
        )


def test_a_floor_is_the_slower_of_reading_and_multiplying() -> None:
    rates = Rates(flops_per_s=1000.0, bytes_per_s=10.0)
    assert rates.floor_ms(Cost(flops=500, bytes=1)) == 500.0
    assert rates.floor_ms(Cost(flops=1, bytes=20)) == 2000.0
    assert rates.best(Rates(1.0, 20.0)) == Rates(1000.0, 20.0)


def test_probes_count_what_they_do() -> None:
    def probe(rows: int) -> MatrixProbe:
        layouts = [SHAPE.linear_layers(fused) for fused in (True, False)]
        return MatrixProbe(layouts, rows, 3, 'cpu', 'float32', working_set_bytes=2 * 4 * BLOCK)

    assert (probe(5).flops, probe(5).bytes) == (2 * 5 * 2 * BLOCK, 4 * 2 * BLOCK)
    phase = PhaseProbe(probe(5), probe(1))
    before = phase.best
    measured = phase.measure()
    assert phase.best == phase.best.best(before) == phase.best.best(measured)
    assert phase.describe()['gb_per_s'] == phase.best.bytes_per_s / 1e9 > 0
    before = phase.best
    phase.choose_again()
    assert phase.best == phase.best.best(before)  # an earlier rate is not forgotten


def test_quantised_weights_are_tried_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(floors, 'KERNELS', {})
    layouts = [SHAPE.linear_layers(fused=True)]
    probe = MatrixProbe(layouts, 5, 3, 'cpu', 'bfloat16', 'int8', working_set_bytes=1 << 10)
    assert (probe.kernel, probe.seconds() > 0) == ('int8', True)


def test_a_shared_frame_is_counted_pass_by_pass() -> None:
    """Two tasks with lists that part at block 1, answers of 1 and 3 tokens; then all blocks."""
    shape = dataclasses.replace(SHAPE, num_blocks=3, counts_attention=False)
    found = shared_frame_costs(shape, {'a': [0], 'b': [0, 1]}, {'a': 1, 'b': 3}, 5, 2)
    stored = 4 * 2 + 4 * 2  # what makes keys and values
    expected = [  # multiplications, and blocks that are read
        (HEAD + 2 * 2 * BLOCK + 5 * (BLOCK + stored), 2),
        (HEAD + 2 * BLOCK + 5 * stored, 1),
        (HEAD + BLOCK, 1),
        (HEAD + BLOCK, 1),
        # Both questions, the two tokens of b's draft that are run, a choice after each of these.
        (4 * HEAD + 6 * 3 * BLOCK + 5 * (2 * BLOCK + stored), 3),
    ]
    assert found == [
        Cost(2 * products, 2 * (HEAD + read * (5 * (2 + 2) + BLOCK))) for products, read in expected
    ]
    joint = shared_frame_costs(shape, {'a': [0], 'b': [0]}, {'a': 1, 'b': 1}, 5, 2)
    assert len(joint) == 2  # one pass of each branch


def test_cards_are_projected_from_their_rates() -> None:
    rows = cards.project()
    assert [row['card'] for row in rows] == [card.name for card in cards.CARDS]
    shape = decoder_shape(make_config(cards.MODEL, cards.IMAGE_SIZE).text_config, 2)
    for row, card in zip(rows, cards.CARDS, strict=True):
        assert row['is_projection']
        # A token of a 7B is limited by reading its weights.
        read_ms = 1e3 * decode_cost(shape, 601, 32).bytes / (card.gb_per_s * 1e9)
        assert row['floor_ms']['decode_per_token'] == pytest.approx(read_ms)
        assert row['assumed_ms']['decode_per_token'] == pytest.approx(read_ms / 0.8)
        assert row['assumed_ms']['prefill'] == pytest.approx(2 * row['floor_ms']['prefill'])
        assert row['floor_ms']['shared_frame'] < 2 * row['floor_ms']['frame']
    assert rows[0]['wanted_ms'] == {'one_word': 190.0, 'shared_frame': 900.0}


def test_the_shapes_of_random_models() -> None:
    import torch

    parameters = {}
    for name, model in MODELS.items():
        with torch.device('meta'):
            skeleton = transformers.AutoModelForImageTextToText.from_config(
                make_config(name, model.image_sizes[-1])
            )
        parameters[name] = sum(weight.numel() for weight in skeleton.parameters())
    assert parameters['random:llava-1.5-7b'] == 7_063_427_072  # as on the hub
    assert 8.0e9 < parameters['random:llava-onevision-7b'] < 8.1e9
    assert 0.42e9 < parameters['random:llava-cpu'] < 0.43e9
