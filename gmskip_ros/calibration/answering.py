"""Answers to many questions under many skip sets, over cached pictures and several processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gmskip_ros.calibration.distributed import Ranks
from gmskip_ros.calibration.images import GIB, Pictures
from gmskip_ros.vlm import CandidateAnswer

if TYPE_CHECKING:
    from gmskip_ros.vlm import Vlm


@dataclass(frozen=True)
class Ask:
    """One question about one picture, by its index, and a guess of the answer's tokens."""

    image: int
    prompt: str
    draft: tuple[int, ...] = ()


class Answerer:
    """Answers questions under skip sets; what it answers depends on no setting of speed.

    method: 'walk', all candidates in one; 'alone', each question and candidate with a full
    generation of its own; 'batched', each candidate alone, but many questions at once. Batched
    answers are the same up to rounding, the others exactly.
    """

    def __init__(
        self,
        vlm: Vlm,
        pictures: Pictures,
        ranks: Ranks,
        method: str = 'walk',
        batch_size: int = 256,
        memory_gib: float = 4.0,
        should_stop: Callable[[], bool] | None = None,
    ) -> None:
        """`should_stop` is polled before every block; when it says so, `answers` raises Stopped."""
        self.vlm = vlm
        self.pictures = pictures
        self.ranks = ranks
        self.method = method
        self.batch_size = batch_size
        self.memory_bytes = int(memory_gib * GIB)
        self.should_stop = should_stop
        self.token_blocks = 0  # of all processes: tokens that went through a block

    def answers(
        self,
        asks: Sequence[Ask],
        removed: Iterable[int],
        candidates: Sequence[int | None] = (None,),
        max_new_tokens: int = 16,
        is_decided: Callable[[int, str], bool] | None = None,
    ) -> list[list[CandidateAnswer]]:
        """Return, per question and candidate, the answer without `removed` and that block.

        Every process must call it with the same arguments, and gets the same. Errors are the
        engine's, DatasetError for a picture that has gone, and RankLostError.
        """
        removed = sorted(removed)
        mine = [i for i, ask in enumerate(asks) if self.pictures.is_mine(ask.image)]
        before = self.vlm.token_blocks
        answered: list[list[CandidateAnswer]] = []
        if mine:
            own = [asks[i] for i in mine]
            if self.method == 'walk':
                answered = self._walk(
                    own,
                    removed,
                    candidates,
                    max_new_tokens,
                    None if is_decided is None else lambda i, text: is_decided(mine[i], text),
                )
            else:
                at_once = {'alone': 1, 'batched': self._pictures_at_once()}[self.method]
                answered = self._one_by_one(own, removed, candidates, max_new_tokens, at_once)
        work = self.vlm.token_blocks - before
        results: list[list[CandidateAnswer]] = [[] for _ in asks]
        for part in self.ranks.gather((work, dict(zip(mine, answered, strict=True)))):
            self.token_blocks += part[0]
            for i, answers in part[1].items():
                results[i] = answers
        return results

    def _walk(
        self,
        asks: Sequence[Ask],
        removed: Sequence[int],
        candidates: Sequence[int | None],
        max_new_tokens: int,
        is_decided: Callable[[int, str], bool] | None,
    ) -> list[list[CandidateAnswer]]:
        # So many pictures that a walk is full with one candidate; it splits what is too much.
        results = []
        at_once = self._pictures_at_once()
        for start in range(0, len(asks), at_once):
            some = asks[start : start + at_once]

            def decided(i: int, text: str, start: int = start) -> bool:
                return is_decided is not None and is_decided(start + i, text)

            results += self.vlm.answer_candidates(
                [self.pictures[ask.image] for ask in some],
                [ask.prompt for ask in some],
                removed,
                candidates,
                max_new_tokens,
                drafts=[ask.draft for ask in some],
                is_decided=None if is_decided is None else decided,
                max_rows=self.batch_size,
                memory_bytes=max(1, self.memory_bytes - len(some) * self.pictures.largest_bytes),
                should_stop=self.should_stop,
            )
        return results

    def _one_by_one(
        self,
        asks: Sequence[Ask],
        removed: Sequence[int],
        candidates: Sequence[int | None],
        max_new_tokens: int,
        at_once: int,
    ) -> list[list[CandidateAnswer]]:
        """Answer for one candidate after the other, `at_once` questions in a batch."""
        results: list[list[CandidateAnswer]] = [[] for _ in asks]
        for candidate in candidates:
            left_out = [*removed, *([] if candidate is None else [candidate])]
            for start in range(0, len(asks), at_once):
                some = asks[start : start + at_once]
                answers = self.vlm.answer_batch(
                    [self.pictures[ask.image] for ask in some],
                    [ask.prompt for ask in some],
                    left_out,
                    max_new_tokens,
                    should_stop=self.should_stop,
                )
                for row, answer in zip(results[start:], answers, strict=False):
                    row.append(CandidateAnswer(answer.token_ids, answer.text))
        return results

    def _pictures_at_once(self) -> int:
        """Return how many pictures' features are on the device together."""
        most = self.memory_bytes // 4 // max(1, self.pictures.largest_bytes)
        return max(1, min(self.batch_size, most))
