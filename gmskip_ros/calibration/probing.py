"""Probing: what every block does to the calibration samples, for methods that rank blocks by it.

A sample is a question about a calibration image and the full model's own answer to it. Samples run
in chunks that are saved, so that a killed run resumes; each process runs those of its own images.
What a method measures is summed exactly rounded (math.fsum) and in the samples' order, so the
number of processes changes nothing.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gmskip_ros.calibration.answering import Answerer
from gmskip_ros.calibration.errors import CalibrationError
from gmskip_ros.calibration.methods.removal import remove_in_order
from gmskip_ros.calibration.scoring import Scorer, chunks
from gmskip_ros.calibration.settings import Progress
from gmskip_ros.calibration.trajectory import ChosenSets

if TYPE_CHECKING:  # `gmskip --help` loads this file, and these load numpy or torch
    from torch import Tensor

    from gmskip_ros.vlm import BlockStates, ImageFeatures


@dataclass(frozen=True)
class Sample:
    """One question about an image, and the full model's answer.

    token_ids: the whole answer, without the end token; empty where no answers were asked for.
    num_decoded: how many of them the model processed as decoded tokens, see Questions.num_decoded.
    """

    answerer: Answerer
    image: int
    prompt: str
    token_ids: tuple[int, ...]
    num_decoded: int

    @property
    def features(self) -> ImageFeatures:
        """The image as the decoder sees it."""
        return self.answerer.images[self.image]

    def block_states(self, attention: bool = False) -> Iterator[BlockStates]:
        """Yield what every block of the full model does to the question and the answer."""
        return self.answerer.vlm.block_states(
            self.features,
            self.prompt,
            self.token_ids,
            attention=attention,
            should_stop=self.answerer.should_stop,
        )


Measure = Callable[[Sample], Sequence[float]]
Values = list[list[float]]


def values_per_sample(
    scorer: Scorer, name: str, measure: Measure, *, with_answers: bool = True
) -> Values:
    """Return what `measure` returns for every calibration sample, in their order.

    `name` identifies the measure among all that a run makes. Without answers, samples are questions
    alone, which takes less time. Every process must make the call, and gets the same values. Raises
    what Answerer.answers raises.
    """
    of_chunks = _of_chunks(scorer, name, measure, with_answers, lambda values: values)
    return [values for of_chunk in of_chunks for values in of_chunk]


def sums_over_samples(
    scorer: Scorer, name: str, measure: Measure, *, with_answers: bool = True
) -> list[float]:
    """Return the sums over all calibration samples of each number that `measure` returns.

    Arguments and errors are those of values_per_sample.
    """
    return _column_sums(list(_of_chunks(scorer, name, measure, with_answers, _column_sums)))


def mean_over_tokens(
    scorer: Scorer, name: str, distance: Callable[[Tensor, Tensor], Tensor]
) -> list[float]:
    """Return, per block, the mean of a distance between what enters and what leaves it.

    The mean is over all tokens of all samples that are processed in the settings' phases: prompts
    (image and text) in prefill, answers in decode. `distance` takes states of shape (tokens, hidden
    size) twice and returns (tokens,). Raises CalibrationError if there are no such tokens, and what
    Answerer.answers raises.
    """
    phases = scorer.settings.phases

    def measure(sample: Sample) -> list[float]:
        sums, num_tokens = [], 0
        for states in sample.block_states():
            first = 0 if 'prefill' in phases else states.prompt_length
            end = states.prompt_length + (sample.num_decoded if 'decode' in phases else 0)
            found = distance(states.entering[first:end], states.leaving[first:end])
            sums.append(float(found.double().sum()))
            num_tokens = end - first
        return [*sums, num_tokens]

    *sums, num_tokens = sums_over_samples(
        scorer, f'{name} in {"+".join(phases)}', measure, with_answers='decode' in phases
    )
    if num_tokens == 0:
        raise CalibrationError(
            f'{name} has nothing to measure in decode: no answer of the full model has a '
            'token that decode processes; use --phases prefill, or a task with longer answers '
            '(--max-new-tokens)'
        )
    return [value / num_tokens for value in sums]


def remove_by_rank(scorer: Scorer, values: Sequence[float]) -> ChosenSets:
    """Return the sets of removing blocks by ascending value; of equal blocks, the deepest first."""
    ranking = sorted(enumerate(values), key=lambda pair: (pair[1], -pair[0]))
    chosen = remove_in_order(scorer, [block for block, _ in ranking])
    return ChosenSets(chosen.sets, chosen.nested, chosen.stopped_by, tuple(ranking))


def cosine_distance(entering: Tensor, leaving: Tensor) -> Tensor:
    """Return 1 - the cosine of the angle between states (..., H): (...), float32.

    It is computed from the difference of the normed states, which is exactly 0 for equal ones.
    """
    return (_normed(entering) - _normed(leaving)).square().sum(dim=-1) / 2


def angular_distance(entering: Tensor, leaving: Tensor) -> Tensor:
    """Return the angle between states (..., H) as a share of pi: (...), float32.

    It is arccos(cosine) / pi in Kahan's form, which is as exact for small angles.
    """
    one, other = _normed(entering), _normed(leaving)
    return 2 / math.pi * (one - other).norm(dim=-1).atan2((one + other).norm(dim=-1))


def norm_difference(entering: Tensor, leaving: Tensor) -> Tensor:
    """Return by how much the Euclidean norms of states (..., H) differ: (...), float64."""
    return (entering.double().norm(dim=-1) - leaving.double().norm(dim=-1)).abs()


def _normed(states: Tensor) -> Tensor:
    states = states.float()
    return states / states.norm(dim=-1, keepdim=True).clamp(min=1e-30)


def _of_chunks(
    scorer: Scorer,
    name: str,
    measure: Measure,
    with_answers: bool,
    combine: Callable[[Values], Any],
) -> Iterator[Any]:
    """Yield the combined values of every chunk of samples, each computed once."""
    samples = _samples(scorer, with_answers)

    def values_of(chunk: Sequence[int]) -> Any:
        mine = {}
        for i in chunk:
            if scorer.answerer.images.is_mine(samples[i].image):
                mine[i] = list(measure(samples[i]))
            most_rounds = scorer.settings.num_removals(scorer.num_blocks)
            scorer.on_progress(Progress(0, most_rounds, 1, i + 1, len(samples), None, None))
        found: dict[int, list[float]] = {}
        for of_rank in scorer.answerer.ranks.gather(mine):
            found.update(of_rank)
        return combine([found[i] for i in chunk])

    for chunk in chunks(range(len(samples))):
        key = f'{name}, samples {chunk[0]} to {chunk[-1]}'
        yield scorer.remember(key, functools.partial(values_of, chunk))


def _samples(scorer: Scorer, with_answers: bool) -> list[Sample]:
    """Return the scored questions of every part, each with its own image."""
    samples = []
    first_item = 0
    for part in scorer.objective.parts:
        for item in part.items[: part.questions.num_scored]:  # further ones repeat their questions
            prompt = part.questions.prompts[item.question]
            token_ids: tuple[int, ...] = ()
            if with_answers:
                token_ids = scorer.full_answers[first_item + item.question]
            num_decoded = part.questions.num_decoded(token_ids)
            samples.append(Sample(scorer.answerer, item.image, prompt, token_ids, num_decoded))
        first_item += len(part.items)
    return samples


def _column_sums(rows: Sequence[Sequence[float]]) -> list[float]:
    return [math.fsum(column) for column in zip(*rows, strict=True)]
