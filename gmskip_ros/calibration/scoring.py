"""Scores of skip sets under one objective: the answers known so far, and asking for the rest."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

from gmskip_ros.calibration.answering import Answerer, ImageQuestion
from gmskip_ros.calibration.errors import CalibrationError
from gmskip_ros.calibration.objective import Objective
from gmskip_ros.calibration.settings import Progress, RoundDone, SearchSettings
from gmskip_ros.calibration.trajectory import FULL, Round, ScoredAnswer, ScoredSet, SearchState
from gmskip_ros.skipping import SkipSet
from gmskip_ros.tasks.scoring import Score

# Images asked about at a time, doubling; the state may be saved in between.
FIRST_CHUNK, LARGEST_CHUNK = 8, 64


class Scorer:
    """Scores skip sets on the calibration images; this is what a method chooses blocks with.

    Attributes: objective, answerer, settings, state (what is known so far).
    """

    def __init__(
        self,
        objective: Objective,
        answerer: Answerer,
        settings: SearchSettings,
        state: SearchState | None = None,
        on_progress: Callable[[Progress], None] = lambda _: None,
        on_save: Callable[[SearchState, bool], None] = lambda state, is_round: None,
        remembered: dict[str, Any] | None = None,
        num_candidates: Callable[[int], int] = lambda num_retained: 1,
    ) -> None:
        """`on_save(state, True)` is called after a round, and with False within one.

        `remembered` keeps what `remember` computes, so that a resumed run has it. `num_candidates`:
        how many of so many retained blocks a round tries, for the time left. Methods whose rounds
        are not in the state report them to `on_resumed` (round, most rounds), where they go on, and
        `on_round` (with its record).
        """
        self.objective = objective
        self.answerer = answerer
        self.settings = settings
        self.state = state or SearchState()
        self.on_progress = on_progress
        self.on_save = on_save
        self.on_resumed: Callable[[int, int], None] = lambda number, most_rounds: None
        self.on_round: Callable[[RoundDone, Mapping[str, Any]], None] = lambda done, record: None
        self._remembered = {} if remembered is None else remembered
        self._num_candidates = num_candidates
        self.num_items = len(objective.items)

    @property
    def num_blocks(self) -> int:
        """Blocks of the language decoder."""
        return self.answerer.vlm.num_blocks

    @property
    def removable(self) -> list[int]:
        """The blocks that are not protected, ascending."""
        return self.settings.removable(self.num_blocks)

    @property
    def rounds(self) -> list[Round]:
        """The rounds within the limits; an earlier run may have gone further."""
        return self.state.rounds[: self.settings.num_removals(self.num_blocks)]

    @property
    def is_searched(self) -> bool:
        """Whether the rounds go as far as the limits allow, or end with too low a score."""
        rounds = self.rounds
        return len(rounds) >= self.settings.num_removals(self.num_blocks) or (
            bool(rounds) and rounds[-1].removed is None
        )

    def sizes(self) -> list[int]:
        """Return how many blocks the sets to choose have, ascending."""
        return self.settings.sizes(self.num_blocks)

    def skip_set(self, blocks: Iterable[int]) -> SkipSet:
        """Return the set that skips these blocks as the settings say."""
        return SkipSet.of(blocks, self.settings.phases, self.settings.kv)

    @cached_property
    def full_scores(self) -> tuple[Score, ...]:
        """The full model's score of each part; call score_full first."""
        return self.objective.part_scores([answer.contribution for answer in self.state.full])

    @cached_property
    def full_score(self) -> Score:
        """The full model's score; 1 for several parts. Call score_full first."""
        return self.objective.overall(self.full_scores, self.full_scores)

    def score_full(self) -> None:
        """Find the full model's score, unless it is known.

        Raises what Answerer.answers raises, and CalibrationError for a joint score without a task
        that has a full score to divide by.
        """
        state = self.state
        if not state.full:
            for chunk in chunks(range(self.num_items)):
                self.answer_items([FULL], chunk, lambda: self.report([FULL], None, None))
            state.full = state.trunk = self.answers_of(FULL)
            state.begin_round()
            self.on_save(state, True)
        if not self.objective.compared(self.full_scores):
            scores = ', '.join(
                f'{float(score):g} in {part.questions.name} ({part.metric})'
                for part, score in zip(self.objective.parts, self.full_scores, strict=True)
            )
            raise CalibrationError(
                f'the full model scores {scores}, and score / full score needs one above 0: check '
                'the tasks and the label set, or use a different dataset'
            )

    @cached_property
    def full_answers(self) -> list[tuple[int, ...]]:
        """The token ids of the full model's answer to every item, complete.

        Those of `state.full` end where the score was certain. Call score_full first.
        """
        return [tuple(token_ids) for token_ids, _ in self._complete_answers]

    @cached_property
    def full_texts(self) -> list[str]:
        """The texts of `full_answers`. Call score_full first."""
        return [text for _, text in self._complete_answers]

    @cached_property
    def _complete_answers(self) -> list[tuple[list[int], str]]:
        return self.remember('complete answers of the full model', self._ask_full)

    def decodes(self) -> bool:
        """Return whether the full model processed a decoded token in any of its answers.

        Call score_full first, and in every process. Raises what Answerer.answers raises.
        """

        def is_decoded(answers: Iterable[Sequence[int]]) -> bool:
            return any(
                self.objective.parts[item.part].questions.num_decoded(token_ids) > 0
                for item, token_ids in zip(self.objective.items, answers, strict=True)
            )

        # Beginnings of answers, which are known already, are enough if a token of one was decoded.
        begun = [answer.token_ids for answer in self.state.full]
        return is_decoded(begun) or is_decoded(self.full_answers)

    def _ask_full(self) -> list[tuple[list[int], str]]:
        answers: list[tuple[list[int], str]] = []
        for index, part in enumerate(self.objective.parts):
            of_part = [i for i, item in enumerate(self.objective.items) if item.part == index]
            asked = self._questions(of_part)
            for (answer,) in self.answerer.answers(
                asked, (), (None,), part.questions.max_new_tokens
            ):
                answers.append((list(answer.token_ids), answer.text))
        return answers

    def score_of(self, blocks: Sequence[int]) -> Score:
        """Return the score without these blocks. Call score_full first."""
        return self.overall(self.contributions(blocks, range(self.num_items)))

    def contributions(self, blocks: Sequence[int], items: Sequence[int]) -> list[Score]:
        """Return what each item's answer without these blocks adds. Call score_full first."""
        answers: dict[int, ScoredAnswer] = {}
        for part in range(len(self.objective.parts)):
            of_part = [item for item in items if self.objective.items[item].part == part]
            if of_part:
                answers.update(self._ask([FULL], of_part, blocks)[FULL])
        return [answers[item].contribution for item in items]

    def scored_set(self, blocks: Sequence[int]) -> ScoredSet:
        """Return a set with its score, which a resumed run remembers. Call score_full first."""
        if not blocks:
            return ScoredSet((), float(self.full_score))
        key = f'calibration score without {set_key(blocks)}'
        found = self.remember(key, lambda: {'score': float(self.score_of(blocks))})
        return ScoredSet(tuple(blocks), found['score'])

    def remember(self, key: str, compute: Callable[[], Any]) -> Any:
        """Return what `compute` returns (JSON values), computed once and kept for a resumed run.

        Every process must compute the same.
        """
        if key not in self._remembered:
            self._remembered[key] = compute()
            self.on_save(self.state, True)
        return self._remembered[key]

    def is_remembered(self, key: str) -> bool:
        """Return whether `remember` has computed this already."""
        return key in self._remembered

    def forget(self, key: str) -> None:
        """Let `remember` compute this again."""
        self._remembered.pop(key, None)

    def overall(self, contributions: Sequence[Score]) -> Score:
        """Return the score to compare, from the contributions of all items in their order."""
        return self.objective.overall(self.objective.part_scores(contributions), self.full_scores)

    def answers_of(self, candidate: int) -> list[ScoredAnswer]:
        """Return this round's answers of a candidate (or FULL) to every item."""
        answered = self.state.answered[candidate]
        return [answered[item] for item in range(self.num_items)]

    def answer_items(
        self,
        candidates: Sequence[int],
        items: Sequence[int],
        report_progress: Callable[[], None] = lambda: None,
    ) -> None:
        """Find every candidate's answer to each of the items, asking only for unknown ones."""
        state = self.state
        waiting: dict[tuple[int, ...], list[int]] = {}  # missing items -> candidates
        for block in candidates:
            known = state.answered.get(block, {})
            missing = tuple(item for item in items if item not in known)
            for part in range(len(self.objective.parts)):
                of_part = tuple(i for i in missing if self.objective.items[i].part == part)
                if of_part:
                    waiting.setdefault(of_part, []).append(block)
        if waiting:
            report_progress()
        for missing, blocks in waiting.items():
            started, work = time.monotonic(), self.answerer.token_blocks
            for block, answers in self._ask(blocks, missing, state.removed).items():
                state.answered.setdefault(block, {}).update(answers)
            state.seconds += time.monotonic() - started
            state.token_blocks += self.answerer.token_blocks - work
            report_progress()
            self.on_save(state, False)

    def _ask(
        self, blocks: Sequence[int], items: Sequence[int], removed: Sequence[int]
    ) -> dict[int, dict[int, ScoredAnswer]]:
        """Ask about items of one part without `removed` and each of the blocks in turn."""
        objective = self.objective
        questions = objective.parts[objective.items[items[0]].part].questions
        answered = self.answerer.answers(
            self._questions(items),
            self.skip_set(removed),
            [None if block == FULL else block for block in blocks],
            questions.max_new_tokens,
            is_decided=lambda i, text: objective.is_decided(items[i], text),
            phases=self.settings.phases,
        )
        return {
            block: {
                item: ScoredAnswer(
                    objective.contribution(item, of_item[n].text), of_item[n].token_ids
                )
                for item, of_item in zip(items, answered, strict=True)
            }
            for n, block in enumerate(blocks)
        }

    def _questions(self, items: Sequence[int]) -> list[ImageQuestion]:
        """Return the items' questions, with the last known answers as drafts."""
        trunk = self.state.trunk
        asked = []
        for number in items:
            item = self.objective.items[number]
            prompt = self.objective.parts[item.part].questions.prompts[item.question]
            draft = trunk[number].token_ids if trunk else ()
            asked.append(ImageQuestion(item.image, prompt, draft))
        return asked

    def report(self, in_race: Sequence[int], best: int | None, best_score: Score | None) -> None:
        """Report the progress: `in_race` have more to answer; `best` is the best one so far."""
        state = self.state
        done = sum(map(len, state.answered.values()))
        missing = sum(self.num_items - len(state.answered.get(block, ())) for block in in_race)
        self.on_progress(
            Progress(
                round=len(state.rounds) + bool(state.full),
                most_rounds=self.settings.num_removals(self.num_blocks),
                candidates=len(in_race),
                done=done,
                total=done + missing,
                best_block=best,
                best_score=None if best_score is None else float(best_score),
                seconds_left=self.seconds_left(done / max(1, done + missing)),
            )
        )

    def seconds_left(self, share: float = 0.0) -> float | None:
        """Return about how long the search still takes, if it is not stopped by a score.

        `share` of the answers of this round (or of the full model) are known. It follows from what
        the last round took, and before one, from this one. None before anything was measured.
        """
        state = self.state
        most = self.settings.num_removals(self.num_blocks)
        removed = len(state.removed)
        costs = [self._cost(len(self.removable) - n) for n in range(removed, most)]
        if state.rounds:
            retained = len(self.removable) - removed + (state.rounds[-1].removed is not None)
            unit = state.rounds[-1].seconds / self._cost(retained)
        elif share > 0:
            of_this = (costs or [1])[0] if state.full else self.num_blocks
            unit = state.seconds / share / of_this
        else:
            return None
        if not state.full:
            costs.append(self.num_blocks)
        return max(0.0, unit * sum(costs) - state.seconds)

    def _cost(self, num_retained: int) -> float:
        """Return how many blocks an image passes in a round: the trunk, and half per candidate."""
        return num_retained * (1 + self._num_candidates(num_retained) / 2)


def chunks(items: Sequence[int], first: int = FIRST_CHUNK) -> Iterator[Sequence[int]]:
    """Cut items into runs that double in length from `first` to LARGEST_CHUNK."""
    start, length = 0, first
    while start < len(items):
        yield items[start : start + length]
        start, length = start + length, min(2 * length, LARGEST_CHUNK)


def set_key(blocks: Sequence[int]) -> str:
    """Return the blocks as a key of the checkpoint's evaluations."""
    return ','.join(map(str, blocks)) or 'nothing'
