"""Several questions about one image, with any skip sets, in one sequence.

The prompts begin with the same tokens: system text and image. This prefix goes through the blocks
once per skip set, and only once through the blocks before the first one in which two sets differ.
What follows it in each prompt, with guesses of the answer (drafts), goes through in one pass for
all questions, in which a token sees the prefix, its own question and its own draft (a tree mask, as
in SpecInfer, Miao et al., arXiv:2305.09781). The drafts are verified as in generation.py; then the
questions decode together, a token of each per pass, so that weights are read once for all.

Such passes differ from a lone run in the last bits. A question is unsure, and left to the caller to
answer alone, if the two best logits of one of its tokens are closer than such a difference could
be; so every answer is the one that `Vlm.answer` gives. Not always in half precision: there a
rounding can grow, from token to token, into a token of which the model is sure.

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
        self.capacity = self.num_prefix  # columns that questions in hand can take
        columns = torch.arange(self.num_prefix, device=prefix.device)
        self.columns = _Columns(torch.full_like(columns, PREFIX), columns)

    def answer(self, asked: Sequence[Asked], should_stop: ShouldStop = None) -> list[Packed]:
        """Return the answer to each question. Raises Stopped; then it can be called again."""
        numbers = itertools.count(PREFIX + 1)  # of owners
        questions = [_Question(each, self.num_prefix, numbers) for each in asked]
        self.columns = self.columns.first(self.num_prefix)  # earlier questions are done
        self.capacity = self.num_prefix + sum(question.most_columns for question in questions)
        for stored in self.stored.values():
            stored.make_room(self.capacity)
        # Neighbours have the longest way through the blocks, and what is stored there, in common.
        ordered = sorted(questions, key=lambda question: self._way(question.asked.skipped))
        for _, of_set in itertools.groupby(ordered, key=lambda question: question.asked.skipped):
            self._answer_further([*of_set], 'prefill', should_stop)
        while undone := [question for question in ordered if not question.is_done]:
            self._answer_further(undone, 'decode', should_stop)
        return [question.packed for question in questions]

    def _way(self, skipped: Skipped) -> list[bool]:
        return [block in skipped for block in range(len(self.decoder.blocks))]

    def _next_prefix(self, skipped: Skipped) -> _Prefix | None:
        """Return how the prefix has to run with these blocks skipped; None if it has run."""
        if skipped not in self.waiting:
            return None
        others = self.waiting - {skipped}
        partings = frozenset(min(skipped ^ other) for other in others)
        retained = {*range(len(self.decoder.blocks))} - skipped
        start = max(place.block for place in self.states if place == _place(place.block, skipped))
        return _Prefix(
            self.states[_place(start, skipped)],
            start,
            max(retained | partings, default=-1),
            partings,
            len([block for block in retained if block >= start]),
        )

    def _prefix_has_run(self, skipped: Skipped) -> None:
        """Keep only the states from which waiting sets go on."""
        self.waiting.discard(skipped)
        self.states = {
            place: states
            for place, states in self.states.items()
            if any(place == _place(place.block, other) for other in self.waiting)
        }

    def _answer_further(
        self, questions: Sequence[_Question], phase: str, should_stop: ShouldStop
    ) -> None:
        """Run each question's next tokens, and read what the model chooses after them.

        In prefill all questions have one skip set, and the prefix goes along if it has to run.
        """
        start_ms = self.clock_ms()
        skipped = questions[0].asked.skipped
        prefix = self._next_prefix(skipped) if phase == 'prefill' else None
        passes = [question.next_tokens() for question in questions]
        device = self.columns.owners.device
        owners = [owner for tokens in passes for owner in tokens.owners]
        positions = [position for tokens in passes for position in tokens.positions]
        askers = [
            question.owner
            for question, tokens in zip(questions, passes, strict=True)
            for _ in tokens.owners
        ]
        new = torch.tensor([owners, positions, askers], device=device)
        newest = _Columns(*new[:2])
        wanted = [
            row + at
            for row, tokens in zip(_starts(passes), passes, strict=False)
            for at in tokens.wanted
        ]
        rows = _Rows(
            self.columns, newest, new[2], _starts(passes), torch.tensor(wanted, device=device)
        )
        ways = tuple(question.asked.skipped for question in questions)
        states = self._run(self._embed(passes), ways, rows, prefix, should_stop)
        if prefix is not None:
            self._prefix_has_run(skipped)
        logits = self.decoder.logits(states[0])  # (wanted, V)
        chosen = [_Chosen(*token) for token in zip(*choose_with_margins(logits), strict=True)]
        kept_owners: list[int] = []
        start = 0
        for question, tokens in zip(questions, passes, strict=True):
            end = start + len(tokens.wanted)
            if len(question.asked.first_token_ids) and not question.packed.probabilities:
                [question.packed.first_probabilities] = probabilities_of(
                    logits[start : start + 1], question.asked.first_token_ids
                )
            kept_owners += question.read(tokens, chosen[start:end])
            start = end
        if kept_owners != owners:
            newest = newest._replace(owners=torch.tensor(kept_owners, device=device))
        self.columns = self.columns.followed_by(newest)
        self._share_time(questions, passes, phase, prefix, self.clock_ms() - start_ms)

    def _share_time(
        self,
        questions: Sequence[_Question],
        passes: Sequence[_Tokens],
        phase: str,
        prefix: _Prefix | None,
        passed_ms: float,
    ) -> None:
        """Divide the time of a pass by tokens and the blocks that they ran; the head is one."""
        num_blocks = 1 + len(self.decoder.blocks)
        costs = [
            len(tokens.owners) * (num_blocks - len(question.asked.skipped))
            for question, tokens in zip(questions, passes, strict=True)
        ]
        of_prefix = 0 if prefix is None else self.num_prefix * prefix.num_blocks
        per_cost = passed_ms / (of_prefix + sum(costs))
        self.prefix_ms += of_prefix * per_cost
        for question, cost in zip(questions, costs, strict=True):
            question.add_time(phase, cost * per_cost)

    def _run(
        self,
        hidden: Tensor,
        ways: tuple[Skipped, ...],
        rows: _Rows,
        prefix: _Prefix | None,
        should_stop: ShouldStop,
    ) -> Tensor:
        """Return the states (1, tokens, H) that leave the blocks, of the tokens wanted.

        hidden (1, T, H): what enters, of questions that skip `ways`. The prefix goes before them.
        """
        positions = rows.newest.positions
        num_prefix = 0
        if prefix is not None:
            num_prefix = self.num_prefix
            hidden = torch.cat((prefix.hidden, hidden), dim=1)
            positions = torch.cat((rows.earlier.positions[:num_prefix], positions))
        cos, sin = self.decoder.rotary_emb(hidden, positions[None])  # (1, P + T, D) each
        plan = _plan(len(self.decoder.blocks), ways)
        last = max((block for block, parts in enumerate(plan) if parts), default=None)
        for block, parts in enumerate(plan):
            prefix_runs = prefix is not None and block >= prefix.start
            if prefix is not None and prefix_runs and block in prefix.partings:
                self.states[_place(block, ways[0])] = hidden[:, :num_prefix].clone()
            if not parts:
                continue
            _poll(should_stop)
            at = slice(None) if prefix_runs else rows.of(parts, num_prefix)
            query, key, value = self.decoder.project(block, hidden[:, at], (cos[:, at], sin[:, at]))
            attended = []
            if prefix is not None and prefix_runs:
                keys, values = key[:, :, :num_prefix], value[:, :, :num_prefix]
                self.stored[parts[0].place] = _Stored(keys, values, self.capacity)
                if block < prefix.last:
                    of_prefix = query[:, :, :num_prefix]
                    mask = rows.prefix_mask(self.decoder.windows[block], num_prefix)
                    attended.append(self.decoder.attend(block, of_prefix, keys, values, mask))
                else:  # nothing needs its states further
                    at = slice(num_prefix, None)
                query, key, value = (states[:, :, num_prefix:] for states in (query, key, value))
            wanted = None
            if block == last and rows.has_unwanted and not attended:  # nor those of other tokens
                wanted = rows.wanted
                at = num_prefix + wanted
            attended += self._attend(block, parts, rows, query, key, value, wanted)
            after = self.decoder.finish_attended(block, hidden[:, at], torch.cat(attended, dim=1))
            if after.shape == hidden.shape:
                hidden = after
            else:
                hidden[:, at] = after
        return hidden[:, num_prefix + rows.wanted]

    def _attend(
        self,
        block: int,
        parts: Sequence[_Part],
        rows: _Rows,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        wanted: Tensor | None,
    ) -> list[Tensor]:
        """Store keys and values; return what the tokens of each part find in what is stored.

        `wanted`, where there is one part only: which of its tokens are needed.
        """
        mask = rows.mask(self.decoder.windows[block])
        found = []
        start = 0
        for part in parts:
            first, end = rows.starts[part.first], rows.starts[part.end]
            own = slice(start, start + end - first)
            start = own.stop
            keys, values = self.stored[part.place].put(
                rows.num_earlier + first, key[:, :, own], value[:, :, own], rows.num_columns
            )
            of_part, sees = query[:, :, own], mask[:, :, first:end]
            if wanted is not None:
                of_part, sees = of_part[:, :, wanted], sees[:, :, wanted]
            found.append(self.decoder.attend(block, of_part, keys, values, sees))
        return found

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


class _Prefix(NamedTuple):
    """How the prefix goes along in a pass.

    hidden: states (1, P, H) before block `start`, from where it runs; nothing needs the states that
    leave block `last`. partings: before these blocks, states are kept for waiting sets. num_blocks:
    how many it runs.
    """

    hidden: Tensor
    start: int
    last: int
    partings: frozenset[int]
    num_blocks: int


class _Columns(NamedTuple):
    """Who may see each column, and its rotary position: long, (columns,)."""

    owners: Tensor
    positions: Tensor

    def first(self, count: int) -> _Columns:
        return _Columns(self.owners[:count], self.positions[:count])

    def followed_by(self, other: _Columns) -> _Columns:
        return _Columns(*(torch.cat(pair) for pair in zip(self, other, strict=True)))


class _Rows:
    """The T tokens of a pass: whose they are, and what they see."""

    def __init__(
        self,
        earlier: _Columns,
        newest: _Columns,
        askers: Tensor,
        starts: list[int],
        wanted: Tensor,
    ) -> None:
        """newest: columns of these tokens, of the questions with these owners (`askers`, T).

        starts: each question's first token, then T. wanted: after which tokens a choice is read.
        """
        self.earlier = earlier
        self.newest = newest
        self.askers = askers
        self.starts = starts
        self.wanted = wanted
        self.has_unwanted = len(wanted) < len(askers)
        self.columns = earlier.followed_by(newest)
        self.num_earlier = len(earlier.owners)
        self.num_columns = len(self.columns.owners)
        self._gaps: dict[tuple[range, ...], Tensor] = {}
        self._masks: dict[int | None, Tensor] = {}
        self._prefix_masks: dict[int | None, Tensor] = {}

    def of(self, parts: Sequence[_Part], offset: int) -> slice | Tensor:
        """Return where the tokens of these parts are, all moved by `offset`."""
        ranges = tuple(
            range(offset + self.starts[part.first], offset + self.starts[part.end])
            for part in parts
        )
        if sum(map(len, ranges)) == ranges[-1].stop - ranges[0].start:
            return slice(ranges[0].start, ranges[-1].stop)
        if ranges not in self._gaps:  # most blocks have the same
            rows = [*itertools.chain(*ranges)]
            self._gaps[ranges] = torch.tensor(rows, device=self.wanted.device)
        return self._gaps[ranges]

    def mask(self, window: int | None) -> Tensor:
        """Return what each token sees, bool (1, 1, T, S): prefix, own question, own draft."""
        if window not in self._masks:
            owners, positions = self.columns
            of_token = self.newest.owners[:, None]
            is_own = (owners == of_token) | (owners == self.askers[:, None]) | (owners == PREFIX)
            self._masks[window] = _within(window, is_own, positions, self.newest.positions)
        return self._masks[window]

    def prefix_mask(self, window: int | None, num_prefix: int) -> Tensor | None:
        """Return what each token of the prefix sees; None where it is plain causal attention."""
        if window is None or window >= num_prefix:
            return None
        if window not in self._prefix_masks:
            owners, positions = self.earlier.first(num_prefix)
            self._prefix_masks[window] = _within(window, owners == PREFIX, positions, positions)
        return self._prefix_masks[window]


def _within(window: int | None, allowed: Tensor, seen: Tensor, seeing: Tensor) -> Tensor:
    """Return which allowed columns, at positions `seen`, are not later and within the window."""
    allowed = allowed & (seen <= seeing[:, None])
    if window is not None:
        allowed &= seen > seeing[:, None] - window
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

    def put(
        self, start: int, key: Tensor, value: Tensor, num_columns: int
    ) -> tuple[Tensor, Tensor]:
        """Store key and value from column `start` on; return the first `num_columns` of each."""
        columns = slice(start, start + key.shape[2])
        self.keys[:, :, columns] = key
        self.values[:, :, columns] = value
        return self.keys[:, :, :num_columns], self.values[:, :, :num_columns]


def _extended(states: Tensor, num_columns: int) -> Tensor:
    """Return the states with room behind them, of zeros: NaN would spread from hidden columns."""
    extended = states.new_empty(*states.shape[:2], num_columns, states.shape[3])
    extended[:, :, : states.shape[2]] = states
    extended[:, :, states.shape[2] :] = 0
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
    def most_columns(self) -> int:
        """How many columns all passes together can take."""
        first_pass = self.suffix.shape[1] + sum(map(len, self.drafts))
        return first_pass + self.asked.max_new_tokens - 1

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
