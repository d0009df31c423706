"""What other cards could reach at best, from their data sheets: a projection, never a measurement.

The floor is that of `architecture.py` at the card's own peak rates; a second figure assumes that an
engine reaches ASSUMED_BANDWIDTH of the one and ASSUMED_RATE of the other, each a share that good
kernels do reach at these sizes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gmskip_ros.benchmarks.architecture import (
    Cost,
    decode_cost,
    decode_costs,
    decoder_shape,
    prefill_cost,
    vision_cost,
    vision_shape,
)
from gmskip_ros.benchmarks.floors import Rates
from gmskip_ros.benchmarks.random_weights import make_config
from gmskip_ros.benchmarks.shared_cost import shared_frame_costs
from gmskip_ros.benchmarks.subject import FRAME_LENGTHS, skip_sets

MODEL, IMAGE_SIZE, NUMBER_BYTES = 'random:llava-1.5-7b', 336, 2
IMAGE_TOKENS, TEXT_TOKENS = 576, 24
SYSTEM_TOKENS = 4  # of the text, before the image
WANTED_MS = {'RTX 3090': {'one_word': 190.0, 'shared_frame': 900.0}}
ASSUMED_BANDWIDTH, ASSUMED_RATE = 0.8, 0.5


@dataclass(frozen=True)
class Card:
    """Peak rates of a data sheet: dense half-precision with float32 sums, and memory."""

    name: str
    tflops_per_s: float
    gb_per_s: float

    def rates(self, share_of_rate: float = 1.0, share_of_bandwidth: float = 1.0) -> Rates:
        """Return these shares of the peak rates."""
        return Rates(
            self.tflops_per_s * 1e12 * share_of_rate, self.gb_per_s * 1e9 * share_of_bandwidth
        )


CARDS = (
    Card('RTX 3090', 71.0, 936.0),
    Card('RTX 4090', 165.2, 1008.0),
    Card('Jetson AGX Orin 64 GB', 42.5, 204.8),
    Card('H200', 989.0, 4800.0),
)


def project() -> list[dict[str, Any]]:
    """Return a row per card, JSON values in milliseconds: phases, one word, a whole frame.

    The model is LLaVA-1.5-7B in half precision, a prompt of 600 tokens. `one_word` and `frame` skip
    and share nothing: an answer, and three full ones of FRAME_LENGTHS, after one pass of the tower.
    `shared_frame`: both branches' three answers with `timing: shared`, the skip branch with the
    published lists, the full branch agreeing. wanted_ms: goals for this card.
    """
    config = make_config(MODEL, IMAGE_SIZE)
    shape = decoder_shape(config.text_config, NUMBER_BYTES)
    rows = IMAGE_TOKENS + TEXT_TOKENS
    costs = {
        'vision': [vision_cost(vision_shape(config, NUMBER_BYTES), tiles=1)],
        'prefill': [prefill_cost(shape, rows, shape.num_blocks)],
        'decode_per_token': [decode_cost(shape, rows + 1, shape.num_blocks)],
    }
    answers = [
        [*costs['prefill'], decode_costs(shape, rows, length, shape.num_blocks)]
        for length in FRAME_LENGTHS.values()
    ]
    costs['one_word'] = [*costs['vision'], *answers[0]]
    costs['frame'] = [*costs['vision'], *(cost for answer in answers for cost in answer)]
    published = skip_sets(shape.num_blocks)['published lists']
    shared = shared_frame_costs(
        shape, published, FRAME_LENGTHS, IMAGE_TOKENS + SYSTEM_TOKENS, TEXT_TOKENS - SYSTEM_TOKENS
    )
    costs['shared_frame'] = [*costs['vision'], *shared]
    return [
        {
            'card': card.name,
            'model': MODEL,
            'is_projection': True,
            'wanted_ms': dict(WANTED_MS.get(card.name, {})),
            'tflops_per_s': card.tflops_per_s,
            'gb_per_s': card.gb_per_s,
            'assumed_share_of_rate': ASSUMED_RATE,
            'assumed_share_of_bandwidth': ASSUMED_BANDWIDTH,
            'floor_ms': _times(costs, card.rates()),
            'assumed_ms': _times(costs, card.rates(ASSUMED_RATE, ASSUMED_BANDWIDTH)),
        }
        for card in CARDS
    ]


def _times(costs: dict[str, list[Cost]], rates: Rates) -> dict[str, float]:
    return {name: sum(map(rates.floor_ms, phases)) for name, phases in costs.items()}
