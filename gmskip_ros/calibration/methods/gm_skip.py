"""The search: which block to leave out next, and when to stop (GM-Skip, arXiv:2508.18227).

Round by round, every retained block is left out in turn; the one without which the score is best is
removed, of equally good ones the deepest. The result is exact: a candidate is only given up when
its best possible score, with every picture not yet asked about answered perfectly, cannot win.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property

from gmskip_ros.calibration.answering import Answerer, Ask
from gmskip_ros.calibration.errors import CalibrationError
from gmskip_ros.calibration.methods.fixed import deletion_order
from gmskip_ros.calibration.objective import Objective
from gmskip_ros.calibration.settings import Progress, SearchSettings
from gmskip_ros.calibration.trajectory import FULL, Cell, Known, Round, SearchState
from gmskip_ros.skipping import meets_ratio
from gmskip_ros.tasks.scoring import Score

# Pictures asked about at a time, between which the state may be saved: more and more of them. In a
# race candidates are compared in between, for the first time after one: the hardest decide most.
FIRST_CHUNK, FIRST_CHUNK_OF_RACE, LARGEST_CHUNK = 8, 1, 64


class Search:
    """One search over one objective; `run` goes on from any state it was in before."""

    def __init__(
        self,
        objective: Objective,
        answerer: Answerer,
        settings: SearchSettings,
        state: SearchState | None = None,
        on_progress: Callable[[Progress], None] = lambda _: None,
        on_save: Callable[[SearchState, bool], None] = lambda state, is_round: None,
    ) -> None:
        """`on_save(state, True)` is called after a round, and with False within one."""
        self.objective = objective
        self.answerer = answerer
        self.settings = settings
        self.state = state or SearchState()
        self._on_progress = on_progress
        self._on_save = on_save
        self._num_blocks = answerer.vlm.num_blocks
        self._num_items = len(objective.items)
        self._sign = 1 if settings.tie_order == 'backward' else -1
        self._bounds = [objective.bounds(item) for item in range(self._num_items)]
        # The least and the most that each item adds to a candidate's score, as far as is known.
        self._least = defaultdict[int, list[Score]](lambda: [least for least, _ in self._bounds])
        self._most = defaultdict[int, list[Score]](lambda: [most for _, most in self._bounds])

    @cached_property
    def full_scores(self) -> tuple[Score, ...]:
        """The full model's score of each part, once it is known."""
        return self.objective.part_scores([known.contribution for known in self.state.full])

    @cached_property
    def full_score(self) -> Score:
        """The full model's score, once it is known; 1 for several parts."""
        return self.objective.overall(self.full_scores, self.full_scores)

    def run(self) -> SearchState:
        """Search to the end and return the state. Raises what Answerer.answers raises."""
        self.score_full()
        while self.run_round():
            pass
        return self.state

    def run_round(self) -> bool:
        """Remove one more block, if one may go; False once the search has stopped.

        score_full comes first. Raises what Answerer.answers raises.
        """
        state = self.state
        most = self.settings.num_removals(self._num_blocks)
        if state.stopped_by is None:
            if len(state.removed) >= most:
                state.stopped_by = self._why_no_more(most)
            else:
                self._remove_best()
            self._on_save(state, True)
        return state.stopped_by is None

    def score_full(self) -> None:
        """Find the full model's score, unless it is known."""
        if not self.state.full:
            for chunk in _chunks(range(self._num_items)):
                self._fill([FULL], chunk)
            self.state.full = self.state.trunk = self._answers_of(FULL)
            self._next_round()
            self._on_save(self.state, True)
        self._check_full_score()

    def score_of(self, blocks: Sequence[int]) -> Score:
        """Return the score without these blocks; score_full comes first."""
        contributions: list[Score] = []
        for part in range(len(self.objective.parts)):
            items = [i for i, item in enumerate(self.objective.items) if item.part == part]
            answers = self._ask([FULL], items, blocks)[FULL]
            contributions += [answers[item].contribution for item in items]
        return self.objective.overall(self.objective.part_scores(contributions), self.full_scores)

    def _check_full_score(self) -> None:
        for part, score in zip(self.objective.parts, self.full_scores, strict=True):
            if self.objective.is_joint and score <= 0:
                raise CalibrationError(
                    f'the full model scores {float(score):g} in {part.questions.name} '
                    f'({part.metric}), so score / full score has no meaning: leave joint, or '
                    'choose another dataset'
                )

    def _why_no_more(self, most: int) -> str:
        if self.settings.rounds is not None and most == self.settings.rounds:
            return f'as many rounds as were asked for ({most})'
        if most == self._num_blocks - 1:
            return 'one block is left'
        return f'max_sparsity {self.settings.max_sparsity:g} is reached'

    def _remove_best(self) -> None:
        state = self.state
        candidates = self._candidates()
        if self.settings.abandon and state.rounds and len(candidates) > 1:
            finished = self._race(candidates)
        else:
            finished = candidates
            for chunk in _chunks(range(self._num_items)):
                self._fill(candidates, chunk)
        cells = tuple(self._cell(block) for block in candidates)
        for cell in cells:
            if cell.is_exact or cell.score < state.estimates.get(cell.block, float('inf')):
                state.estimates[cell.block] = cell.score
        if not state.rounds:
            state.shortfall = self._mean_shortfall(candidates)

        removed: int | None = None
        score = max(cell.score for cell in cells)
        if finished:
            removed = max(finished, key=lambda block: (self._most_of(block), block * self._sign))
            score = self._most_of(removed)
            if not self._is_enough(score):
                removed = None
        state.rounds.append(Round(removed, score, cells, state.seconds, state.token_blocks))
        if removed is None:
            ratio = self.settings.min_score_ratio
            state.stopped_by = f'every further removal scores below {ratio:g} x the full score'
        else:
            state.trunk = self._answers_of(removed)
        self._next_round()

    def _next_round(self) -> None:
        self.state.answered = {}
        self.state.seconds, self.state.token_blocks = 0.0, 0
        self._least.clear()
        self._most.clear()

    def _candidates(self) -> list[int]:
        """Return the blocks that may be removed in this round, ascending."""
        state, settings = self.state, self.settings
        removed = state.removed
        retained = [block for block in range(self._num_blocks) if block not in removed]
        if settings.method == 'gm-skip' or (settings.method == 'one-shot' and not state.rounds):
            return retained
        if settings.method == 'one-shot':
            cells = {cell.block: cell.score for cell in state.rounds[0].cells}
            order = sorted(
                cells, key=lambda block: (cells[block], block * self._sign), reverse=True
            )
        else:
            order = deletion_order(settings, self._num_blocks)
        return [next(block for block in order if block in retained)]

    def _race(self, candidates: Sequence[int]) -> list[int]:
        """Ask about the hardest pictures first, and give up whoever cannot win any more.

        Returns those that were asked about every picture and not given up: none or one.
        """
        items = self._hardest_first()
        # The one to beat runs ahead: the best of the round before, as far as it is known.
        estimates = self.state.estimates
        favourite = max(candidates, key=lambda block: (estimates[block], block * self._sign))
        alive = list(candidates)
        for chunk in _chunks(items):
            if not self._is_enough(self._most_of(favourite)):
                break
            self._fill([favourite], chunk, in_race=alive)
        for chunk in [[], *_chunks(items, FIRST_CHUNK_OF_RACE)]:
            self._fill(alive, chunk)
            alive = self._still_in_race(alive)
        return alive

    def _still_in_race(self, alive: Sequence[int]) -> list[int]:
        """Return the candidates that may yet be removed: no other one is surely better."""
        if not alive:
            return []
        least = {block: self._overall(self._least[block]) for block in alive}
        leader = max(alive, key=lambda block: (least[block], block * self._sign))
        to_beat = (least[leader], leader * self._sign)
        return [
            block
            for block in alive
            if self._is_enough(most := self._most_of(block))
            and (block == leader or (most, block * self._sign) > to_beat)
        ]

    def _hardest_first(self) -> list[int]:
        """Return the items, those first on which the trunk falls short most, then round 1's."""
        parts = self.objective.parts

        def key(item: int) -> tuple[float, float, int]:
            denominator = parts[self.objective.items[item].part].denominator
            short = float(self._bounds[item][1] - self.state.trunk[item].contribution)
            return (-short / denominator, -self.state.shortfall[item] / denominator, item)

        return sorted(range(self._num_items), key=key)

    def _mean_shortfall(self, candidates: Sequence[int]) -> list[float]:
        return [
            sum(float(self._bounds[item][1] - self._most[block][item]) for block in candidates)
            / len(candidates)
            for item in range(self._num_items)
        ]

    def _fill(
        self,
        candidates: Sequence[int],
        items: Sequence[int],
        in_race: Sequence[int] | None = None,
    ) -> None:
        """Have every candidate's answer to every one of the items, asking what is not known yet.

        `in_race`, for the progress: the candidates that will be asked about more, if not these.
        """
        state = self.state
        waiting: dict[tuple[int, ...], list[int]] = {}  # what is missing -> who misses it
        for block in candidates:
            known = state.answered.get(block, {})
            missing = tuple(item for item in items if item not in known)
            for part in range(len(self.objective.parts)):
                of_part = tuple(i for i in missing if self.objective.items[i].part == part)
                if of_part:
                    waiting.setdefault(of_part, []).append(block)
        racing = candidates if in_race is None else in_race
        if waiting:
            self._on_progress(self._progress(racing))
        for missing, blocks in waiting.items():
            started, work = time.monotonic(), self.answerer.token_blocks
            for block, answers in self._ask(blocks, missing, state.removed).items():
                state.answered.setdefault(block, {}).update(answers)
            state.seconds += time.monotonic() - started
            state.token_blocks += self.answerer.token_blocks - work
            self._on_progress(self._progress(racing))
            self._on_save(state, False)
        # Only now, and also what was known before: so a search that goes on from a state compares
        # what an uninterrupted one compares.
        for block in candidates:
            for item in items:
                contribution = state.answered[block][item].contribution
                self._least[block][item] = self._most[block][item] = contribution

    def _ask(
        self, blocks: Sequence[int], items: Sequence[int], removed: Sequence[int]
    ) -> dict[int, dict[int, Known]]:
        """Ask about items of one part without `removed` and each of the blocks in turn."""
        objective = self.objective
        questions = objective.parts[objective.items[items[0]].part].questions
        trunk = self.state.trunk
        asks = []
        for item in items:
            it = objective.items[item]
            draft = trunk[item].token_ids if trunk else ()
            asks.append(Ask(it.image, questions.prompts[it.question], draft))
        answered = self.answerer.answers(
            asks,
            removed,
            [None if block == FULL else block for block in blocks],
            questions.max_new_tokens,
            is_decided=lambda i, text: objective.is_decided(items[i], text),
        )
        return {
            block: {
                item: Known(objective.contribution(item, of_item[n].text), of_item[n].token_ids)
                for item, of_item in zip(items, answered, strict=True)
            }
            for n, block in enumerate(blocks)
        }

    def _answers_of(self, candidate: int) -> list[Known]:
        answered = self.state.answered[candidate]
        return [answered[item] for item in range(self._num_items)]

    def _most_of(self, block: int) -> Score:
        return self._overall(self._most[block])

    def _overall(self, contributions: Sequence[Score]) -> Score:
        return self.objective.overall(self.objective.part_scores(contributions), self.full_scores)

    def _cell(self, block: int) -> Cell:
        is_exact = len(self.state.answered.get(block, ())) == self._num_items
        return Cell(block, self._most_of(block), is_exact)

    def _is_enough(self, score: Score) -> bool:
        return meets_ratio(float(score), float(self.full_score), self.settings.min_score_ratio)

    def _progress(self, in_race: Sequence[int]) -> Progress:
        state = self.state
        scores = {
            block: self._overall([known.contribution for known in self._answers_of(block)])
            for block, answers in state.answered.items()
            if block != FULL and len(answers) == self._num_items
        }
        best = max(scores, key=lambda block: (scores[block], block * self._sign), default=None)
        done = sum(map(len, state.answered.values()))
        missing = sum(self._num_items - len(state.answered.get(block, ())) for block in in_race)
        return Progress(
            round=len(state.rounds) + bool(state.full),
            most_rounds=self.settings.num_removals(self._num_blocks),
            candidates=len(in_race),
            done=done,
            total=done + missing,
            best_block=best,
            best_score=None if best is None else float(scores[best]),
        )


def _chunks(items: Sequence[int], first: int = FIRST_CHUNK) -> Iterator[Sequence[int]]:
    """Cut items into runs that double in length from `first` to LARGEST_CHUNK."""
    start, length = 0, first
    while start < len(items):
        yield items[start : start + length]
        start, length = start + length, min(2 * length, LARGEST_CHUNK)
