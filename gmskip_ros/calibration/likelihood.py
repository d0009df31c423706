"""What skipping does to answers that are given: how likely they stay, how far the model moves.

The answers are the references, or what the full model answers itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from gmskip_ros.calibration.answering import Answerer
from gmskip_ros.calibration.errors import CalibrationError
from gmskip_ros.calibration.questions import Questions
from gmskip_ros.calibration.scoring import Scorer
from gmskip_ros.skipping import SkipSet
from gmskip_ros.tasks.scoring import Absent

if TYPE_CHECKING:  # `gmskip --help` loads this file, and torch takes seconds
    from torch import Tensor

OnDone = Callable[[int], None]  # receives how many are measured, by this process's share


@dataclass(frozen=True)
class GivenAnswer:
    """A question about an image, by its index, and the tokens of an answer.

    items: the objective's items of the same question. is_complete: whether the model, had it given
    this answer itself, would have had a token left to end it with.
    """

    image: int
    prompt: str
    token_ids: tuple[int, ...]
    items: tuple[int, ...] = ()
    is_complete: bool = True


class GivenAnswers:
    """Measures answers under skip sets, many at once, each process those about its own images.

    Every process must make the same calls, and gets the same values; with a different batch size,
    memory or number of processes they are the same up to rounding.
    """

    def __init__(self, answerer: Answerer, answers: Sequence[GivenAnswer]) -> None:
        """The settings of speed are the answerer's."""
        self.answers = tuple(answers)
        self._answerer = answerer
        self._mine = [i for i, one in enumerate(answers) if answerer.images.is_mine(one.image)]
        # Log-probabilities of the full model, float32 (steps, V), on the CPU; None: none kept yet.
        self._of_full: dict[int, Tensor] | None = None

    def negative_log_likelihood(self, skip: SkipSet, on_done: OnDone = lambda _: None) -> float:
        """Return -log P(answer | image, prompt) in nats, the mean over the answers.

        An answer's is the sum over its tokens; the end-of-sequence token is not one of them. Raises
        Stopped, VlmError, RankLostError.
        """

        def of_batch(batch: Sequence[int]) -> list[float]:
            ids = [self.answers[i].token_ids for i in batch]
            return [
                -float(logits.log_softmax(dim=-1)[range(len(of_row)), list(of_row)].sum())
                for logits, of_row in zip(self._logits(batch, ids, skip), ids, strict=True)
            ]

        values: dict[int, float] = {}
        for batch in self._batches(self._mine):
            values.update(zip(batch, of_batch(batch), strict=True))
            on_done(len(values) * len(self.answers) // len(self._mine))
        gathered = self._gather(values)
        return math.fsum(gathered.values()) / len(self.answers)

    def divergences(
        self,
        skip_sets: Sequence[SkipSet],
        chosen: Sequence[int] | None = None,
        on_done: OnDone = lambda _: None,
    ) -> list[float]:
        """Return, per skip set, KL(full model || skip set) in nats, the mean over all steps.

        The steps of an answer are its tokens and, if it is complete, its end: at each, the
        distribution of the next token is compared. `chosen`: indices of the answers to use (default
        all). Raises Stopped, VlmError, RankLostError.
        """
        chosen = range(len(self.answers)) if chosen is None else chosen
        if self._of_full is None:
            self._of_full = {}
            self._keep_full()
        wanted = set(chosen)
        mine = [i for i in self._mine if i in wanted]
        sums: dict[int, list[float]] = {}
        for batch in self._batches(mine):
            full = self._log_probabilities_of_full(batch)
            by_set = [
                [
                    float((known.exp() * (known - logits.log_softmax(dim=-1))).sum())
                    for logits, known in zip(
                        self._logits(batch, self._steps(batch), skip), full, strict=True
                    )
                ]
                for skip in skip_sets
            ]
            sums.update((i, [of_set[row] for of_set in by_set]) for row, i in enumerate(batch))
            on_done(len(sums) * len(skip_sets) * len(wanted) // len(mine))
        gathered = self._gather(sums)
        num_steps = sum(len(ids) for ids in self._steps(sorted(gathered)))
        return [
            math.fsum(of_answer[index] for of_answer in gathered.values()) / num_steps
            for index in range(len(skip_sets))
        ]

    def _steps(self, batch: Sequence[int]) -> list[tuple[int, ...]]:
        """Return the token ids whose predictions are compared; which one ends an answer is alike.

        The last one is predicted and never run, so any token stands for the end.
        """
        answers = [self.answers[i] for i in batch]
        return [(*one.token_ids, 0) if one.is_complete else one.token_ids for one in answers]

    def _keep_full(self) -> None:
        """Keep the full model's distributions of as many answers as memory allows."""
        assert self._of_full is not None
        left = self._answerer.memory_bytes
        for batch in self._batches(self._mine):
            known = self._log_probabilities_of_full(batch)
            left -= sum(each.element_size() * each.nelement() for each in known)
            if left < 0:
                return
            self._of_full.update((i, each.cpu()) for i, each in zip(batch, known, strict=True))

    def _log_probabilities_of_full(self, batch: Sequence[int]) -> list[Tensor]:
        """Return the full model's log-probabilities (steps, V) of every answer of a batch."""
        kept = self._of_full or {}
        if all(i in kept for i in batch):
            return [kept[i].to(self._answerer.vlm.device) for i in batch]
        logits = self._logits(batch, self._steps(batch), SkipSet())
        return [each.log_softmax(dim=-1) for each in logits]

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

    def _batches(self, indices: Sequence[int]) -> Iterator[Sequence[int]]:
        at_once = self._rows_at_once()
        for start in range(0, len(indices), at_once):
            yield indices[start : start + at_once]

    def _rows_at_once(self) -> int:
        """Return how many answers fit into memory together, by a deliberate overestimate.

        Keys and values are at most two vectors of the hidden size in each block, like image
        features; a block in passing takes a few more.
        """
        per_row = self._answerer.images.largest_bytes * (2 * self._answerer.vlm.num_blocks + 16)
        fitting = self._answerer.memory_bytes // max(1, per_row)
        return max(1, min(self._answerer.batch_size, fitting))

    def _gather(self, mine: dict[int, Any]) -> dict[int, Any]:
        """Return every process's values by the answer's index, ascending."""
        merged: dict[int, Any] = {}
        for of_rank in self._answerer.ranks.gather(mine):
            merged.update(of_rank)
        return dict(sorted(merged.items()))


def reference_answers(scorer: Scorer) -> GivenAnswers:
    """Return the reference answers of all questions that have one: not of absent targets.

    How a reference begins is a matter of the prompt's template and of what the model was trained
    on: after a space or not, with a capital letter or not. All of a task are written in the one way
    that is likeliest to the full model. Raises CalibrationError for an empty reference, and what
    GivenAnswers.negative_log_likelihood raises.
    """
    chosen: list[GivenAnswer] = []
    for number, part in enumerate(scorer.objective.parts):
        references = [
            (image, question, items)
            for of_part, question, image, items in questions_asked(scorer)
            if of_part == number and not isinstance(part.questions.references[question], Absent)
        ]
        texts = [reference_text(part.questions, question) for _, question, _ in references]
        # Some tokenizers add the space themselves: ways with the same tokens are tried once.
        ways = {
            tuple(scorer.answerer.vlm.token_ids(space + write(text)) for text in texts)
            for space in ('', ' ')
            for write in (str, _capitalised)
        }
        candidates = [
            GivenAnswers(
                scorer.answerer,
                [
                    GivenAnswer(image, part.questions.prompts[question], token_ids, items)
                    for (image, question, items), token_ids in zip(references, way, strict=True)
                ],
            )
            for way in sorted(ways)
        ]
        values = scorer.remember(
            f'likelihood of the ways to write the references of {part.questions.name}',
            partial(_likelihoods, candidates),
        )
        chosen += candidates[values.index(min(values))].answers
    return GivenAnswers(scorer.answerer, chosen)


def reference_text(questions: Questions, question: int) -> str:
    """Return what is right, as an answer: the label, the labels joined by ', ', the first text.

    Raises CalibrationError for an empty one.
    """
    reference = questions.references[question]
    if questions.name == 'single_object':
        text = _as_words(reference)
    elif questions.name == 'multi_object':
        text = ', '.join(map(_as_words, reference))
    else:
        text = next(iter(reference), '').strip()
    if not text:
        raise CalibrationError(
            f'{questions.samples[question].image_path}: its reference answer for {questions.name} '
            'is empty: remove the sample, or use --method self-nll'
        )
    return text


def own_answers(scorer: Scorer) -> GivenAnswers:
    """Return the full model's own answers to all questions. Raises what Answerer.answers raises."""
    answers = []
    for part, question, image, items in questions_asked(scorer):
        questions = scorer.objective.parts[part].questions
        token_ids = scorer.full_answers[items[0]]
        is_complete = len(token_ids) < questions.max_new_tokens
        answers.append(
            GivenAnswer(image, questions.prompts[question], token_ids, items, is_complete)
        )
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


def _capitalised(text: str) -> str:
    return text[:1].upper() + text[1:]
