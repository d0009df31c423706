"""Answers to many questions under many skip sets, from encoded images and by several processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gmskip_ros.skipping import PHASES, SkipSet

if TYPE_CHECKING:  # `gmskip --help` loads this file, and these load numpy
    from gmskip_ros.calibration.distributed import Ranks
    from gmskip_ros.calibration.images import EncodedImages
    from gmskip_ros.vlm import CalibrationEngine, CandidateAnswer


@dataclass(frozen=True)
class ImageQuestion:
    """A prompt about one image, by its index, and a guess of the answer's tokens."""

    image: int
    prompt: str
    draft: tuple[int, ...] = ()


class Answerer:
    """Answers questions under skip sets; settings of speed do not change the answers.

    method: 'walk', all candidates in one pass; 'alone', a generation for each question and
    candidate; 'batched', one candidate at a time, but many questions at once. Batched answers are
    the same up to rounding, the others exactly. The walk knows only blocks that every token skips:
    other skip sets are answered alone.
    """

    def __init__(
        self,
        vlm: CalibrationEngine,
        images: EncodedImages,
        ranks: Ranks,
        method: str = 'walk',
        batch_size: int = 256,
        memory_bytes: int = 4 << 30,
        should_stop: Callable[[], bool] | None = None,
    ) -> None:
        """`should_stop` is polled before every block; once it is true, `answers` raises Stopped.

        near_tie: of the walk, see Vlm.answer_candidates; None for its default.
        """
        self.vlm = vlm
        self.images = images
        self.ranks = ranks
        self.method = method
        self.batch_size = batch_size
        self.memory_bytes = memory_bytes
        self.should_stop = should_stop
        self.near_tie: float | None = None
        self.token_blocks = 0  # of all processes: tokens that went through a block

    def answers(
        self,
        questions: Sequence[ImageQuestion],
        removed: SkipSet | Iterable[int],
        candidates: Sequence[int | None] = (None,),
        max_new_tokens: int = 16,
        is_decided: Callable[[int, str], bool] | None = None,
        phases: Sequence[str] = PHASES,
    ) -> list[list[CandidateAnswer]]:
        """Return, per question and candidate, the answer without `removed` and that block.

        The candidate is skipped in `phases`. Every process must make the call with the same
        arguments, and gets the same answers. Raises the engine's errors, DatasetError for an image
        that has disappeared, and RankLostError.
        """
        removed = SkipSet.of(removed)
        is_plain = removed.is_plain and (set(phases) == set(PHASES) or [*candidates] == [None])
        method = self.method if is_plain or self.method != 'walk' else 'alone'
        mine = [i for i, question in enumerate(questions) if self.images.is_mine(question.image)]
        before = self.vlm.token_blocks
        answered: list[list[CandidateAnswer]] = []
        if mine:
            own = [questions[i] for i in mine]
            if method == 'walk':
                answered = self._walk(
                    own,
                    removed.blocks,
                    candidates,
                    max_new_tokens,
                    None if is_decided is None else lambda i, text: is_decided(mine[i], text),
                )
            else:
                at_once = {'alone': 1, 'batched': self._images_at_once()}[method]
                sets = [
                    removed if block is None else removed.adding(block, phases)
                    for block in candidates
                ]
                answered = self._one_by_one(own, sets, max_new_tokens, at_once)
        work = self.vlm.token_blocks - before
        results: list[list[CandidateAnswer]] = [[] for _ in questions]
        for rank_work, rank_answers in self.ranks.gather(
            (work, dict(zip(mine, answered, strict=True)))
        ):
            self.token_blocks += rank_work
            for i, answers in rank_answers.items():
                results[i] = answers
        return results

    def _walk(
        self,
        questions: Sequence[ImageQuestion],
        removed: Sequence[int],
        candidates: Sequence[int | None],
        max_new_tokens: int,
        is_decided: Callable[[int, str], bool] | None,
    ) -> list[list[CandidateAnswer]]:
        # As many images as fill a walk with one candidate; the engine splits larger walks.
        results = []
        at_once = self._images_at_once()
        for start in range(0, len(questions), at_once):
            batch = questions[start : start + at_once]

            def is_decided_in_batch(i: int, text: str, start: int = start) -> bool:
                return is_decided is not None and is_decided(start + i, text)

            results += self.vlm.answer_candidates(
                [self.images[question.image] for question in batch],
                [question.prompt for question in batch],
                removed,
                candidates,
                max_new_tokens,
                drafts=[question.draft for question in batch],
                is_decided=None if is_decided is None else is_decided_in_batch,
                max_rows=self.batch_size,
                memory_bytes=max(1, self.memory_bytes - len(batch) * self.images.largest_bytes),
                should_stop=self.should_stop,
                near_tie=self.near_tie,
            )
        return results

    def measure_near_tie(self, questions: Sequence[tuple[ImageQuestion, int]]) -> float | None:
        """Return the largest margin that these questions give; each has its own max_new_tokens.

        None where no walk is used. Every process must make the same call, measures on its own
        images and gets the same margin.
        """
        if self.method != 'walk':
            return None
        mine = [
            self.vlm.near_tie_margin(
                self.images[question.image],
                question.prompt,
                max_new_tokens,
                max_rows=self.batch_size,
                memory_bytes=self.memory_bytes,
                should_stop=self.should_stop,
            )
            for question, max_new_tokens in questions
            if self.images.is_mine(question.image)
        ]
        return max(margin for of_rank in self.ranks.gather(mine) for margin in of_rank)

    def _one_by_one(
        self,
        questions: Sequence[ImageQuestion],
        skip_sets: Sequence[SkipSet],
        max_new_tokens: int,
        at_once: int,
    ) -> list[list[CandidateAnswer]]:
        """Answer under one skip set after the other, `at_once` questions in a batch."""
        from gmskip_ros.vlm import CandidateAnswer

        results: list[list[CandidateAnswer]] = [[] for _ in questions]
        for skip_set in skip_sets:
            for start in range(0, len(questions), at_once):
                batch = questions[start : start + at_once]
                answers = self.vlm.answer_batch(
                    [self.images[question.image] for question in batch],
                    [question.prompt for question in batch],
                    skip_set,
                    max_new_tokens,
                    should_stop=self.should_stop,
                )
                for row, answer in zip(results[start:], answers, strict=False):
                    row.append(CandidateAnswer(answer.token_ids, answer.text))
        return results

    def _images_at_once(self) -> int:
        """Return how many images' features are on the device together."""
        most = self.memory_bytes // 4 // max(1, self.images.largest_bytes)
        return max(1, min(self.batch_size, most))
