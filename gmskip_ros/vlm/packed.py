"""Several questions about one image, with any skip sets, in one sequence.

The prompts begin with the same tokens: system text and image. This prefix goes through the blocks
once per skip set, and only once through the blocks before the first one in which two sets differ.
What follows it in each prompt, with guesses of the answer (drafts), goes through in one pass for
all questions, in which a token sees the prefix, its own question and its own draft (a tree mask, as
in SpecInfer, Miao et al., arXiv:2305.09781). The drafts are verified as in generation.py; then the
questions decode together, a token of each per pass, so that weights are read once for all.

Such passes differ from a lone run in the last bits. A question is unsure, and left to the caller to
answer alone, if the two best logits of one of its tokens are closer than such a difference could
be; so every answer is the one that `Vlm.answer` gives.

Only plain skip sets: both phases skip the same blocks, for all tokens.

Shapes: P columns of the prefix; T tokens in this pass; S columns so far; H, N, K, D, V as in
decoder.py. All states have one row (batch).
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from gmskip_ros.vlm.answer import Confidence
from gmskip_ros.vlm.decoder import Decoder
from gmskip_ros.vlm.errors import Stopped
from gmskip_ros.vlm.generation import (
    ShouldStop,
    choose_with_margins,
    confidence_of,
    probabilities_of,
    useful_draft,
    verify,
)

PREFIX, NOBODY = 0, -1  # owners of columns; questions and drafts are counted from 1
Skipped = frozenset[int]


class Place(NamedTuple):
    """A block, and the blocks before it that are skipped: what states and keys there depend on."""

    block: int
    skipped: Skipped


@dataclass(frozen=True)
class Asked:
    """One question. hidden: states (1, tokens, H) that enter the blocks for the whole prompt."""

    hidden: Tensor
    skipped: Skipped
    max_new_tokens: int
    end_ids: Collection[int]
    drafts: Sequence[Sequence[int]] = ()
    first_token_ids: Sequence[int] = ()


@dataclass
class Packed:
    """One question's answer; is_unsure: it has to be answered alone.

    token_ids are without the end token. The times are shares of passes with other questions.
    """

    token_ids: list[int] = field(default_factory=list)
    probabilities: list[float] = field(default_factory=list)  # an end token's included
    first_probabilities: tuple[float, ...] = ()
    is_unsure: bool = False
    prefill_ms: float = 0.0
    decode_ms: float = 0.0

    @property
    def confidence(self) -> Confidence:
        return confidence_of(self.probabilities[: len(self.token_ids)] or self.probabilities)


class PackedQuestions:
    """One image's prefix, for any number of calls of `answer`; see the module.

    Attribute prefix_ms: the time that the prefix has taken so far.
    """

    def __init__(
        self,
        decoder: Decoder,
        prefix: Tensor,
        skip_sets: Collection[Skipped],
        clock_ms: Callable[[], float],
    ) -> None:
        """prefix: states (1, P, H) that enter the blocks, P > 0; skip_sets: of all questions."""
        self.decoder = decoder
        self.num_prefix = prefix.shape[1]
        self.clock_ms = clock_ms
        self.prefix_ms = 0.0
        self.waiting = set(skip_sets)  # those whose prefix has not run yet
        self.states = {Place(0, frozenset()): prefix}  # where the ways of waiting sets start
        self.stored: dict[Place, _Stored] = {}
        columns = torch.arange(self.num_prefix, device=prefix.device)
        self.columns = _Columns(torch.full_like(columns, PREFIX), columns)

    def answer(self, asked: Sequence[Asked], should_stop: ShouldStop = None) -> list[Packed]:
        """Return the answer to each question. Raises Stopped; then it can be called again."""
        numbers = itertools.count(PREFIX + 1)  # of owners
        questions = [_Question(each, self.num_prefix, numbers) for each in asked]
        num_columns = self.num_prefix + sum(question.most_columns for question in questions)
        # Neighbours have the longest way through the blocks, and what is stored there, in common.
        undone = sorted(questions, key=lambda question: self._way(question.asked.skipped))
        for question in undone:
            if question.asked.skipped in self.waiting:
                start_ms = self.clock_ms()
                self._run_prefix(question.asked.skipped, num_columns, should_stop)
                self.prefix_ms += self.clock_ms() - start_ms
        for stored in self.stored.values():
            stored.make_room(num_columns)
        self.columns = self.columns.first(self.num_prefix)  # earlier questions are done
        phase = 'prefill'
        while undone:
            start_ms = self.clock_ms()
            costs = [question.num_tokens * self._cost(question) for question in undone]
            self._answer_further(undone, should_stop)
            passed_ms = self.clock_ms() - start_ms
            for question, cost in zip(undone, costs, strict=True):
                question.add_time(phase, passed_ms * cost / sum(costs))
            undone = [question for question in undone if not question.is_done]
            phase = 'decode'
        return [question.packed for question in questions]

    def _way(self, skipped: Skipped) -> list[bool]:
        return [block in skipped for block in range(len(self.decoder.blocks))]

    def _cost(self, question: _Question) -> int:
        """Return how many blocks a token runs; the output head counts as one."""
        return 1 + len(self.decoder.blocks) - len(question.asked.skipped)

    def _run_prefix(self, skipped: Skipped, num_columns: int, should_stop: ShouldStop) -> None:
        """Run the prefix with these blocks skipped, from where an earlier set's way parts.

        States are kept where the way of a waiting set parts from this one.
        """
        num_blocks = len(self.decoder.blocks)
        others = self.waiting - {skipped}
        partings = {min(skipped ^ other) for other in others}
        retained = {*range(num_blocks)} - skipped
        last = max(retained | partings, default=-1)  # block that needs the states before it
        start = max(place.block for place in self.states if place == _place(place.block, skipped))
        hidden = self.states[_place(start, skipped)]
        columns = self.columns.first(self.num_prefix)
        rotary = self.decoder.rotary_emb(hidden, columns.positions[None])
        for block in range(start, num_blocks):
            place = _place(block, skipped)
            if block in partings:
                self.states[place] = hidden
            if block in skipped:
                continue
            _poll(should_stop)
            query, key, value = self.decoder.project(block, hidden, rotary)
            self.stored[place] = _Stored(key, value, num_columns)
            if block < last:
                window = self.decoder.windows[block]
                mask = None
                if window is not None and window < self.num_prefix:
                    mask = _mask(columns, columns, columns.owners, window)
                hidden = self.decoder.finish_block(block, hidden, query, key, value, mask)
        self.waiting = others
        self.states = {
            place: states
            for place, states in self.states.items()
            if any(place == _place(place.block, other) for other in others)
        }

    def _answer_further(self, questions: Sequence[_Question], should_stop: ShouldStop) -> None:
        """Run each question's next tokens, and read what the model chooses after them."""
        passes = [question.next_tokens() for question in questions]
        device = self.columns.owners.device
        owners = [owner for tokens in passes for owner in tokens.owners]
        positions = [position for tokens in passes for position in tokens.positions]
        asker = [question.owner for question in questions for _ in range(question.num_tokens)]
        newest = _Columns(*torch.tensor([owners, positions], device=device))
        states = self._run(
            questions, passes, newest, torch.tensor(asker, device=device), should_stop
        )
        first_rows = _starts(passes)
        wanted = [
            row + at
            for row, tokens in zip(first_rows, passes, strict=False)
            for at in tokens.wanted
        ]
        if len(wanted) < len(owners):
            states = states[:, wanted]
        logits = self.decoder.logits(states[0])  # (wanted, V)
        chosen = [_Chosen(*token) for token in zip(*choose_with_margins(logits), strict=True)]
        kept_owners: list[int] = []
        start = 0
        for question, tokens in zip(questions, passes, strict=True):
            end = start + len(tokens.wanted)
            if question.asked.first_token_ids and not question.packed.probabilities:
                [question.packed.first_probabilities] = probabilities_of(
                    logits[start : start + 1], question.asked.first_token_ids
                )
            kept_owners += question.read(tokens, chosen[start:end])
            start = end
        if kept_owners != owners:
            newest = newest._replace(owners=torch.tensor(kept_owners, device=device))
        self.columns = self.columns.followed_by(newest)

    def _run(
        self,
        questions: Sequence[_Question],
        passes: Sequence[_Tokens],
        newest: _Columns,
        asker: Tensor,
        should_stop: ShouldStop,
    ) -> Tensor:
        """Return the states (1, T, H) of all tokens after the blocks, of each question its own."""
        hidden = self._embed(passes)
        rotary = self.decoder.rotary_emb(hidden, newest.positions[None])  # (1, T, D) each
        columns = self.columns.followed_by(newest)
        before, num_columns = len(self.columns.owners), len(columns.owners)
        rows = _starts(passes)

        @functools.cache
        def mask(window: int | None) -> Tensor:
            return _mask(columns, newest, asker, window)

        @functools.cache
        def rows_at(parts: tuple[tuple[int, int], ...]) -> slice | Tensor:
            """Return the rows of these ranges of questions."""
            ranges = [range(rows[first], rows[end]) for first, end in parts]
            if sum(map(len, ranges)) == ranges[-1].stop - ranges[0].start:
                return slice(ranges[0].start, ranges[-1].stop)
            return torch.tensor([*itertools.chain(*ranges)], device=hidden.device)

        ways = tuple(question.asked.skipped for question in questions)
        for block, parts in enumerate(_plan(len(self.decoder.blocks), ways)):
            if not parts:
                continue
            _poll(should_stop)
            at = rows_at(tuple((part.first, part.end) for part in parts))
            cos, sin = rotary
            query, key, value = self.decoder.project(block, hidden[:, at], (cos[:, at], sin[:, at]))
            attended = []
            start = 0
            for part in parts:
                own = slice(rows[part.first], rows[part.end])
                end = start + own.stop - own.start
                keys, values = self.stored[part.place].put(
                    before + own.start, key[:, :, start:end], value[:, :, start:end]
                )
                attended.append(
                    self.decoder.attend(
                        block,
                        query[:, :, start:end],
                        keys[:, :, :num_columns],
                        values[:, :, :num_columns],
                        mask(self.decoder.windows[block])[:, :, own],
                    )
                )
                start = end
            hidden[:, at] = self.decoder.finish_attended(
                block, hidden[:, at], torch.cat(attended, dim=1)
            )
        return hidden

    def _embed(self, passes: Sequence[_Tokens]) -> Tensor:
        """Return what enters the blocks, (1, T, H)."""
        ids = [token for tokens in passes for token in tokens.ids]
        embedded = self.decoder.embed_tokens(
            torch.tensor([ids], dtype=torch.long, device=self.columns.owners.device)
        )
        parts = []
        start = 0
        for tokens in passes:
            end = start + len(tokens.ids)
            parts += [tokens.hidden, embedded[:, start:end]]
            start = end
        return torch.cat(parts, dim=1)


class _Columns(NamedTuple):
    """Who may see each column, and its rotary position: long, (columns,)."""

    owners: Tensor
    positions: Tensor

    def first(self, count: int) -> _Columns:
        return _Columns(self.owners[:count], self.positions[:count])

    def followed_by(self, other: _Columns) -> _Columns:
        return _Columns(*(torch.cat(pair) for pair in zip(self, other, strict=True)))


def _mask(columns: _Columns, newest: _Columns, asker: Tensor, window: int | None) -> Tensor:
    """Return what each of the newest tokens, of the questions `asker` (T), sees: (1, 1, T, S)."""
    owners, positions = columns
    is_own = (owners == newest.owners[:, None]) | (owners == asker[:, None])
    allowed = (is_own | (owners == PREFIX)) & (positions <= newest.positions[:, None])
    if window is not None:
        allowed &= positions > newest.positions[:, None] - window
    return allowed[None, None]


class _Stored:
    """Keys and values (1, K, columns, D) of a block, of all whose way to it is the same."""

    def __init__(self, key: Tensor, value: Tensor, num_columns: int) -> None:
        """key, value: the prefix's, (1, K, P, D)."""
        self.num_prefix = key.shape[2]
        self.keys, self.values = _extended(key, num_columns), _extended(value, num_columns)

    def make_room(self, num_columns: int) -> None:
        """Hold so many columns; those after the prefix are free."""
        if self.keys.shape[2] < num_columns:
            self.keys = _extended(self.keys[:, :, : self.num_prefix], num_columns)
            self.values = _extended(self.values[:, :, : self.num_prefix], num_columns)

    def put(self, start: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store key and value from this column on; return all."""
        columns = slice(start, start + key.shape[2])
        self.keys[:, :, columns] = key
        self.values[:, :, columns] = value
        return self.keys, self.values


def _extended(states: Tensor, num_columns: int) -> Tensor:
    """Return the states with room behind them, of zeros: NaN would spread from hidden columns."""
    extended = states.new_zeros(*states.shape[:2], num_columns, states.shape[3])
    extended[:, :, : states.shape[2]] = states
    return extended


class _Chosen(NamedTuple):
    """The likeliest token somewhere, its probability, its lead beyond a near tie."""

    token: int
    probability: float
    margin: float


@dataclass(frozen=True)
class _Tokens:
    """What one question adds to a pass: states that enter the blocks, then token ids.

    Of all of them, in this order: owners and positions. wanted: after which the choice is read.
    """

    hidden: Tensor  # (1, tokens, H)
    ids: list[int]
    owners: list[int]
    positions: list[int]
    wanted: list[int]


class _Question:
    """A question on its way: its tokens so far, and whose columns are its own."""

    def __init__(self, asked: Asked, num_prefix: int, numbers: Iterator[int]) -> None:
        """numbers: of owners that nobody has."""
        self.asked = asked
        self.packed = Packed()
        self.owner = next(numbers)
        self.num_prompt = asked.hidden.shape[1]
        self.suffix = asked.hidden[:, num_prefix:]
        self.drafts = _distinct(
            useful_draft(draft, asked.max_new_tokens, asked.end_ids) for draft in asked.drafts
        )
        self.draft_owners = [next(numbers) for _ in self.drafts]
        self.has_ended = False

    @property
    def is_done(self) -> bool:
        return self.has_ended or self.packed.is_unsure

    @property
    def num_tokens(self) -> int:
        """How many tokens the next pass gets."""
        if self.packed.token_ids:
            return 1
        return self.suffix.shape[1] + sum(map(len, self.drafts))

    @property
    def most_columns(self) -> int:
        """How many columns all passes together can take."""
        return self.num_tokens + self.asked.max_new_tokens - 1

    def next_tokens(self) -> _Tokens:
        """Return what the next pass gets: the question and its drafts, or the newest token."""
        if self.packed.token_ids:
            position = self.num_prompt + len(self.packed.token_ids) - 1
            return _Tokens(
                self.suffix[:, :0], self.packed.token_ids[-1:], [self.owner], [position], [0]
            )
        num_suffix = self.suffix.shape[1]
        owners = [self.owner] * num_suffix
        positions = [*range(self.num_prompt - num_suffix, self.num_prompt)]
        for owner, draft in zip(self.draft_owners, self.drafts, strict=True):
            owners += [owner] * len(draft)
            positions += range(self.num_prompt, self.num_prompt + len(draft))
        return _Tokens(
            self.suffix,
            [token for draft in self.drafts for token in draft],
            owners,
            positions,
            [*range(num_suffix - 1, len(owners))],
        )

    def read(self, tokens: _Tokens, chosen: Sequence[_Chosen]) -> list[int]:
        """Take what was chosen after the tokens `wanted`; return who owns the columns now."""
        drafts = [] if self.packed.token_ids else self.drafts
        accepted = list(chosen[:1])
        own = range(0)  # of the columns of all drafts, those that were accepted
        start = 0
        for draft in drafts:
            along = [chosen[0], *chosen[1 + start : 1 + start + len(draft)]]
            num_accepted = verify(draft, [each.token for each in along])
            if num_accepted >= len(accepted):
                accepted = along[: 1 + num_accepted]
                own = range(start, start + num_accepted)
            start += len(draft)
        for each in accepted:
            if not self.is_done:
                self._append(each)
        num_suffix = len(tokens.owners) - start
        return [
            self.owner if column < num_suffix or column - num_suffix in own else NOBODY
            for column in range(len(tokens.owners))
        ]

    def _append(self, chosen: _Chosen) -> None:
        """Take one more token of the answer, and see whether that ends it."""
        # NaN is unsure as well: tokens of a draft that was rejected can cause it.
        self.packed.is_unsure = not chosen.margin >= 0
        self.packed.probabilities.append(chosen.probability)
        if chosen.token in self.asked.end_ids:
            self.has_ended = True
            return
        self.packed.token_ids.append(chosen.token)
        self.has_ended = len(self.packed.token_ids) == self.asked.max_new_tokens

    def add_time(self, phase: str, passed_ms: float) -> None:
        """Count the time of its share of a pass."""
        if phase == 'prefill':
            self.packed.prefill_ms += passed_ms
        else:
            self.packed.decode_ms += passed_ms


def _distinct(drafts: Iterable[list[int]]) -> list[list[int]]:
    """Return the drafts, without those that are the start of another one."""
    kept: list[list[int]] = []
    for draft in sorted(drafts, key=len, reverse=True):
        if draft and not any(other[: len(draft)] == draft for other in kept):
            kept.append(draft)
    return kept


class _Part(NamedTuple):
    """Questions `first` to `end` - 1, which run a block and came there the same way."""

    place: Place
    first: int
    end: int


@functools.lru_cache(maxsize=64)
def _plan(num_blocks: int, ways: tuple[Skipped, ...]) -> list[list[_Part]]:
    """Return, per block, which questions run it, by what each skips; each pass asks again."""
    plan: list[list[_Part]] = []
    for block in range(num_blocks):
        parts: list[_Part] = []
        for index, skipped in enumerate(ways):
            if block in skipped:
                continue
            place = _place(block, skipped)
            if parts and parts[-1].place == place:
                parts[-1] = parts[-1]._replace(end=index + 1)
            else:
                parts.append(_Part(place, index, index + 1))
        plan.append(parts)
    return plan


def _place(block: int, skipped: Skipped) -> Place:
    return Place(block, frozenset(other for other in skipped if other < block))


def _starts(passes: Sequence[_Tokens]) -> list[int]:
    """Return each question's first row in a pass, and how many rows there are."""
    return [0, *itertools.accumulate(len(tokens.owners) for tokens in passes)]


def _poll(should_stop: ShouldStop) -> None:
    if should_stop is not None and should_stop():
        raise Stopped('stopped before the answers were complete')
