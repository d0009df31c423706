"""What skipping does to answers that are given: how likely they stay, how far the model moves.

The answers are the references, or what the full model answers itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from gmskip_ros.calibration.answering import Answerer
from gmskip_ros.calibration.errors import CalibrationError
from gmskip_ros.calibration.questions import Questions
from gmskip_ros.calibration.scoring import Scorer
from gmskip_ros.skipping import SkipSet
from gmskip_ros.tasks import PRESENCE
from gmskip_ros.tasks.scoring import Absent

if TYPE_CHECKING:  # `gmskip --help` loads this file, and torch takes seconds
    from torch import Tensor

Value = TypeVar('Value')
OnDone = Callable[[int], None]  # receives how many answers are measured
# Together in a batch: more saves little, and answers of different lengths waste more.
MOST_ROWS = 8


@dataclass(frozen=True)
class GivenAnswer:
    """A question about an image, by its index, and the tokens of an answer.

    is_complete: whether it is one that the model has ended, and not max_new_tokens.
    """

    image: int
    prompt: str
    token_ids: tuple[int, ...]
    is_complete: bool = False


class GivenAnswers:
    """Measures answers under skip sets, several at once.

    Every process must make the same calls, gets the same values, and does a share of the batches.
    A batch holds the same answers whatever the number of processes, so values do not depend on it;
    a different batch size or memory changes them by rounding.
    """

    def __init__(self, answerer: Answerer, answers: Sequence[GivenAnswer]) -> None:
        """The settings of speed are the answerer's."""
        self.answers = tuple(answers)
        self._answerer = answerer
        self._rows = self._rows_at_once()
        # The full model's log-probabilities, float32 (steps, V), on the CPU, of some batches.
        self._of_full: dict[tuple[int, ...], list[Tensor]] = {}
        self._bytes_left = answerer.memory_bytes

    def negative_log_likelihood(self, skip: SkipSet, on_done: OnDone = lambda _: None) -> float:
        """Return -log P(answer | image, prompt) in nats, the mean over the answers.

        An answer's is the sum over its tokens; the end-of-sequence token is not one of them. Raises
        Stopped, VlmError, DatasetError for an image that has disappeared, and RankLostError.
        """

        def measure(batch: Sequence[int]) -> list[float]:
            ids = [self.answers[i].token_ids for i in batch]
            return [
                -float(logits.log_softmax(dim=-1)[range(len(of_row)), list(of_row)].sum())
                for logits, of_row in zip(self._logits(batch, ids, skip), ids, strict=True)
            ]

        values = self._of_answers(range(len(self.answers)), measure, on_done)
        return math.fsum(values) / len(values)

    def divergences(
        self,
        skip_sets: Sequence[SkipSet],
        chosen: Sequence[int] | None = None,
        on_done: OnDone = lambda _: None,
    ) -> list[float]:
        """Return, per skip set, KL(full model || skip set) in nats, the mean over all steps.

        The steps of an answer are its tokens and, if it is complete, its end: at each, the
        distributions of the next token are compared. `chosen`: indices of the answers to use
        (default: all). Raises what negative_log_likelihood raises.
        """
        chosen = range(len(self.answers)) if chosen is None else chosen

        def measure(batch: Sequence[int]) -> list[list[float]]:
            full = self._log_probabilities_of_full(batch, keep=len(chosen) == len(self.answers))
            of_sets = []
            for skip in skip_sets:
                logits = self._logits(batch, self._steps(batch), skip)
                of_sets.append(
                    [
                        float(divergences_of(known, found.log_softmax(dim=-1)).sum())
                        for known, found in zip(full, logits, strict=True)
                    ]
                )
            return [list(of_answer) for of_answer in zip(*of_sets, strict=True)]

        def report(done: int) -> None:
            on_done(done * len(skip_sets))

        sums = self._of_answers(chosen, measure, report)
        num_steps = sum(map(len, self._steps(chosen)))
        return [math.fsum(of_set) / num_steps for of_set in zip(*sums, strict=True)]

    def _of_answers(
        self,
        chosen: Sequence[int],
        measure: Callable[[Sequence[int]], list[Value]],
        on_done: OnDone,
    ) -> list[Value]:
        """Return what `measure` returns for the chosen answers, by every process."""
        ranks = self._answerer.ranks
        starts = range(0, len(chosen), self._rows)
        batches = [chosen[start : start + self._rows] for start in starts]
        before = self._answerer.vlm.token_blocks
        mine: dict[int, list[Value]] = {}
        for number in range(ranks.rank, len(batches), ranks.world_size):
            mine[number] = measure(batches[number])
            on_done(min(len(chosen), (number + 1) * self._rows))
        found: dict[int, list[Value]] = {}
        work = self._answerer.vlm.token_blocks - before
        for of_rank, rank_work in ranks.gather((mine, work)):
            found.update(of_rank)
            self._answerer.token_blocks += rank_work
        return [value for _, of_batch in sorted(found.items()) for value in of_batch]

    def _steps(self, batch: Sequence[int]) -> list[tuple[int, ...]]:
        """Return the tokens whose distributions are compared.

        The last token is predicted and never run, so any one stands for the end.
        """
        answers = [self.answers[i] for i in batch]
        return [(*one.token_ids, 0) if one.is_complete else one.token_ids for one in answers]

    def _log_probabilities_of_full(self, batch: Sequence[int], keep: bool) -> list[Tensor]:
        """Return the full model's log-probabilities (steps, V) of every answer of a batch.

        keep: keep them on the CPU for the next time, if memory allows.
        """
        key = tuple(batch)
        if key in self._of_full:
            return [known.to(self._answerer.vlm.device) for known in self._of_full[key]]
        logits = self._logits(batch, self._steps(batch), SkipSet())
        found = [each.log_softmax(dim=-1) for each in logits]
        size = sum(each.element_size() * each.nelement() for each in found)
        if keep and size <= self._bytes_left:
            self._bytes_left -= size
            self._of_full[key] = [each.cpu() for each in found]
        return found

    def _logits(
        self, batch: Sequence[int], ids: Sequence[tuple[int, ...]], skip: SkipSet
    ) -> list[Tensor]:
        """Return the logits (tokens, V), float32, that predict each answer's `ids`."""
        answers = [self.answers[i] for i in batch]
        return self._answerer.vlm.continuation_logits(
            [self._answerer.images[one.image] for one in answers],
            [one.prompt for one in answers],
            ids,
            skip,
            should_stop=self._answerer.should_stop,
        )

    def _rows_at_once(self) -> int:
        """Return how many answers fit into memory together, by a deliberate overestimate.

        Keys and values are at most two vectors of the hidden size in each block, like image
        features; a block in passing takes a few more.
        """
        answerer = self._answerer
        largest = max(answerer.ranks.gather(answerer.images.largest_bytes))
        fitting = answerer.memory_bytes // max(1, largest * (2 * answerer.vlm.num_blocks + 16))
        return max(1, min(MOST_ROWS, answerer.batch_size, fitting))


@dataclass(frozen=True)
class Way:
    """A way to write an answer: how it begins."""

    space: str  # '' or ' '
    is_capitalised: bool

    def write(self, text: str) -> str:
        """Return the text written in this way."""
        return self.space + (text[:1].upper() + text[1:] if self.is_capitalised else text)


WAYS = tuple(Way(space, capital) for space in ('', ' ') for capital in (False, True))


def likeliest_way(
    answerer: Answerer,
    task: str,
    texts: Sequence[tuple[int, str, str]],
    remember: Callable[[str, Callable[[], Any]], Any],
) -> tuple[Way, GivenAnswers]:
    """Return the way to write texts that is likeliest to the full model, and them as answers.

    How an answer begins is a matter of the prompt's template and of what the model was trained on:
    after a space or not, with a capital letter or not. All are written in the same way. `texts`:
    image index, prompt and text of each, at least one; `task` names them for `remember`, see
    Scorer.remember. Raises what GivenAnswers.negative_log_likelihood raises.
    """
    # Some tokenizers add the space themselves: ways with the same tokens are tried once.
    of_tokens: dict[tuple[tuple[int, ...], ...], Way] = {}
    for way in WAYS:
        tokens = tuple(answerer.vlm.token_ids(way.write(text)) for _, _, text in texts)
        of_tokens.setdefault(tokens, way)
    ways = sorted(of_tokens.items())
    candidates = [
        GivenAnswers(
            answerer,
            [
                GivenAnswer(image, prompt, token_ids)
                for (image, prompt, _), token_ids in zip(texts, tokens, strict=True)
            ],
        )
        for tokens, _ in ways
    ]
    values = remember(
        f'likelihood of the ways to write the references of {task}',
        partial(_likelihoods, candidates),
    )
    best = values.index(min(values))
    return ways[best][1], candidates[best]


def divergences_of(full: Tensor, other: Tensor) -> Tensor:
    """Return KL(full || other) in nats of log-probabilities (..., V): (...)."""
    return (full.exp() * (full - other)).sum(dim=-1)


def reference_answers(scorer: Scorer) -> GivenAnswers:
    """Return the reference answers of all questions that have one: not of absent targets.

    Those of a task are written as `likeliest_way` chooses. Raises CalibrationError for an empty
    reference, and what GivenAnswers.negative_log_likelihood raises.
    """
    chosen: list[GivenAnswer] = []
    for number, part in enumerate(scorer.objective.parts):
        questions = part.questions
        texts = [
            (image, questions.prompts[question], reference_text(questions, question))
            for of_part, question, image, _ in questions_asked(scorer)
            if of_part == number and not isinstance(questions.references[question], Absent)
        ]
        _, answers = likeliest_way(scorer.answerer, questions.name, texts, scorer.remember)
        chosen += answers.answers
    return GivenAnswers(scorer.answerer, chosen)


def reference_text(questions: Questions, question: int) -> str:
    """Return what is right, as an answer: the first of reference_texts.

    Raises CalibrationError for an empty one.
    """
    text = next(iter(reference_texts(questions, question)), '')
    if not text:
        raise CalibrationError(
            f'{questions.samples[question].image_path}: its reference answer for {questions.name} '
            'is empty: remove the sample, or use --method self-nll'
        )
    return text


def reference_texts(questions: Questions, question: int) -> list[str]:
    """Return all that is right, as answers: the label, the labels joined by ', ', the texts."""
    reference = questions.references[question]
    if questions.name in ('single_object', PRESENCE):
        return [_as_words(reference)]
    if questions.name == 'multi_object':
        return [', '.join(map(_as_words, reference))]
    return [text.strip() for text in reference]


def own_answers(scorer: Scorer) -> GivenAnswers:
    """Return the full model's own answers to all questions. Raises what Answerer.answers raises."""
    answers = []
    for part, question, image, items in questions_asked(scorer):
        questions = scorer.objective.parts[part].questions
        token_ids = scorer.full_answers[items[0]]
        is_complete = len(token_ids) < questions.max_new_tokens
        answers.append(GivenAnswer(image, questions.prompts[question], token_ids, is_complete))
    return GivenAnswers(scorer.answerer, answers)


def questions_asked(scorer: Scorer) -> Iterator[tuple[int, int, int, tuple[int, ...]]]:
    """Yield the part, the question, its own image and its items, the first about that image."""
    items: dict[tuple[int, int], list[int]] = {}
    for index, item in enumerate(scorer.objective.items):
        items.setdefault((item.part, item.question), []).append(index)
    for (part, question), of_question in items.items():
        yield part, question, scorer.objective.items[of_question[0]].image, tuple(of_question)


def _likelihoods(candidates: Sequence[GivenAnswers]) -> list[float]:
    return [answers.negative_log_likelihood(SkipSet()) for answers in candidates]


def _as_words(label: str) -> str:
    return label.replace('_', ' ').strip()
