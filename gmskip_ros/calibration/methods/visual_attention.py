"""Visual attention, FlashVLM's method: the block that looks least at the image first.

"FlashVLM: Exploiting Layer Redundancy via Visual Attention", equation 2 and algorithm 1: how much of
its attention a generated token pays to image tokens, that is the probabilities summed over all
positions of the image (newline embeddings included), averaged over heads, then over the tokens of
an answer, then over samples. The query of a token is the position that predicts it; the first
token's is the prompt's last position.
"""

from __future__ import annotations

from gmskip_ros.calibration.errors import CalibrationError
from gmskip_ros.calibration.methods.method import Method
from gmskip_ros.calibration.probing import Sample, remove_by_rank, sums_over_samples
from gmskip_ros.calibration.scoring import Scorer
from gmskip_ros.calibration.trajectory import ChosenSets
from gmskip_ros.skipping import PHASES


def visual_attention(scorer: Scorer) -> list[float]:
    """Return, per block, the mean attention (0..1) of generated tokens to image tokens.

    Raises CalibrationError if every answer is empty, and what Answerer.answers raises.
    """

    def measure(sample: Sample) -> list[float]:
        if not sample.token_ids:
            return [0.0] * (scorer.num_blocks + 1)
        means = [
            float(states.image_attention.double().mean())
            for states in sample.block_states(attention=True)
            if states.image_attention is not None
        ]
        return [*means, 1]

    *sums, num_answers = sums_over_samples(scorer, 'visual attention', measure)
    if num_answers == 0:
        raise CalibrationError(
            'visual attention has nothing to measure: every answer of the full model is empty; '
            'check the prompt, the chat template and the task'
        )
    return [value / num_answers for value in sums]


def choose(scorer: Scorer) -> ChosenSets:
    """Return the trajectory by ascending attention to image tokens."""
    return remove_by_rank(scorer, visual_attention(scorer))


METHOD: Method = Method(
    name='visual-attention',
    choose=choose,
    summary='least attention of generated tokens to image tokens first (FlashVLM)',
    title='visual attention',
    phases=(('decode',), ('prefill',), PHASES),
    takes_sparsity=True,
)
