"""All questions about one frame, answered with the least work; made by `Vlm.share_frame`."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from gmskip_ros.vlm.answer import Answer, FrameQuestion, ImageFeatures, Timing
from gmskip_ros.vlm.arguments import check_length, whole_number
from gmskip_ros.vlm.engine import SharedFrame
from gmskip_ros.vlm.errors import VlmError
from gmskip_ros.vlm.packed import Asked, Packed, PackedQuestions

if TYPE_CHECKING:
    from gmskip_ros.vlm.vlm import Vlm

Drafts = Mapping[int, Sequence[Sequence[int]]]


class VlmSharedFrame(SharedFrame):
    """Questions with plain skip sets share a prefix and are packed; others are answered alone.

    Attribute num_alone: how many answers were given alone so far.
    """

    def __init__(
        self,
        vlm: Vlm,
        features: ImageFeatures,
        questions: Sequence[FrameQuestion],
        rows: Sequence[Sequence[int]],
        preprocess_ms: Sequence[float],
        clock_ms: Callable[[], float],
    ) -> None:
        """rows: token ids of the questions' prompts, with the image; all of this is checked."""
        self._vlm = vlm
        self._features = features
        self._questions = questions
        self._rows = rows
        self._preprocess_ms = preprocess_ms  # of each question, the image's included
        self._clock_ms = clock_ms
        self._plain = [i for i, question in enumerate(questions) if question.skip.is_plain]
        self._num_prefix = common_start([rows[i] for i in self._plain])
        self._packed: PackedQuestions | None = None
        self.num_alone = 0

    @property
    def shared_ms(self) -> float:
        return 0.0 if self._packed is None else self._packed.prefix_ms

    def answer(
        self,
        indices: Sequence[int],
        *,
        drafts: Drafts | None = None,
        forced_lengths: Mapping[int, int] | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> list[Answer]:
        """Return the answers to these questions, by their places in the list that was given.

        Each is the one that `Vlm.answer` gives (probabilities up to rounding), as are errors. For
        `drafts` and `forced_lengths` see `SharedFrame`.
        """
        if not indices:
            return []
        drafts, lengths = drafts or {}, forced_lengths or {}
        self._check(indices, drafts, lengths)
        self._vlm.check_context(
            [self._rows[i] for i in indices],
            [lengths.get(i, self._questions[i].max_new_tokens) for i in indices],
            'answer',
        )
        together = [i for i in indices if i in self._plain] if self._num_prefix else []
        packed = self._answer_together(together, drafts, lengths, should_stop)
        found = dict(zip(together, packed, strict=True))
        return [
            self._answer_alone(i, drafts, lengths, should_stop, found.get(i))
            if i not in found or found[i].is_unsure
            else self._completed(i, found[i])
            for i in indices
        ]

    def _check(self, indices: Sequence[int], drafts: Drafts, lengths: Mapping[int, int]) -> None:
        """Raise VlmError for what `answer` cannot be given."""
        for index in indices:
            if not 0 <= whole_number(index) < len(self._questions):
                raise VlmError(
                    f'there is no question {index!r}: the frame has {len(self._questions)}, '
                    'numbered from 0'
                )
        for index, guesses in drafts.items():
            if not all(isinstance(guess, Iterable) for guess in guesses):
                raise VlmError(
                    f'drafts of question {index}: give a list of drafts, each a list of token ids'
                )
            self._vlm.check_token_ids('a draft', guesses)
        for length in lengths.values():
            check_length('forced_length', length)

    def _answer_together(
        self,
        indices: Sequence[int],
        drafts: Drafts,
        lengths: Mapping[int, int],
        should_stop: Callable[[], bool] | None,
    ) -> list[Packed]:
        """Return what these questions are answered in packed passes."""
        if not indices:
            return []
        with self._vlm.naming_out_of_memory(), torch.inference_mode():
            asked, embed_ms = [], []
            for index in indices:
                question = self._questions[index]
                start_ms = self._clock_ms()
                hidden, _, _ = self._vlm.embed([self._rows[index]], [self._features])
                embed_ms.append(self._clock_ms() - start_ms)
                asked.append(
                    Asked(
                        hidden,
                        question.skip.prefill,
                        lengths.get(index, question.max_new_tokens),
                        () if index in lengths else self._vlm.end_ids,
                        drafts.get(index, ()),
                        question.first_token_ids,
                    )
                )
            if self._packed is None:
                self._packed = PackedQuestions(
                    self._vlm.decoder,
                    asked[0].hidden[:, : self._num_prefix],
                    {self._questions[i].skip.prefill for i in self._plain},
                    self._clock_ms,
                )
            packed = self._packed.answer(asked, should_stop)
        for each, of_embedding in zip(packed, embed_ms, strict=True):
            each.prefill_ms += of_embedding
        return packed

    def _completed(self, index: int, packed: Packed) -> Answer:
        """Return a packed question's answer, with its text and times."""
        start_ms = self._clock_ms()
        text = self._vlm.tokenizer.decode(packed.token_ids)
        phases_ms = (
            self._preprocess_ms[index],
            self._features.vision_ms,
            packed.prefill_ms,
            packed.decode_ms + self._clock_ms() - start_ms,
        )
        return Answer(
            text,
            tuple(packed.token_ids),
            Timing(*phases_ms, sum(phases_ms)),
            vision_shared=True,
            confidence=packed.confidence,
            first_probabilities=packed.first_probabilities,
        )

    def _answer_alone(
        self,
        index: int,
        drafts: Drafts,
        lengths: Mapping[int, int],
        should_stop: Callable[[], bool] | None,
        unsure: Packed | None,
    ) -> Answer:
        """Return `Vlm.answer`'s answer; what was spent on an unsure one counts as prefill."""
        self.num_alone += 1
        question = self._questions[index]
        guesses = () if unsure is not None else drafts.get(index, ())
        answer = self._vlm.answer(
            self._features,
            question.prompt,
            question.skip,
            question.max_new_tokens,
            draft=guesses[0] if guesses else (),
            forced_length=lengths.get(index),
            first_token_ids=question.first_token_ids,
            should_stop=should_stop,
        )
        if unsure is None:
            return answer
        spent_ms = unsure.prefill_ms + unsure.decode_ms
        timing = replace(
            answer.timing,
            prefill_ms=answer.timing.prefill_ms + spent_ms,
            total_ms=answer.timing.total_ms + spent_ms,
        )
        return replace(answer, timing=timing)


def common_start(rows: Sequence[Sequence[int]]) -> int:
    """Return how many tokens all rows begin with, at least one less than the shortest has.

    It is 0 for a single row, which shares nothing.
    """
    if len(rows) < 2:
        return 0
    same = itertools.takewhile(lambda tokens: len(set(tokens)) == 1, zip(*rows, strict=False))
    return min(sum(1 for _ in same), min(map(len, rows)) - 1)
