"""Answers of many skip sets that differ in one block, in one walk over the decoder's blocks.

A calibration asks what every retained block is worth: the answer without it, for each in turn. All
these candidates share the way up to the block that they leave out, so one walk serves them all. At
a block, the trunk (which leaves out none of them) and the candidates that left out an earlier block
go through together; then the candidate that leaves this block out joins with what the trunk had
before it: n (n + 1) / 2 block-rows for n blocks, with the trunk's own answer, instead of n n.

The answer that is expected (the draft: the trunk's own, from the round before) rides along behind
the prompt. A causal decoder then says in the same pass what it would have answered after each of
the draft's tokens (as in speculative decoding, Leviathan et al., arXiv:2211.17192): a candidate
that agrees is done, the others decode from where they first differ.

A batch differs from a lone run in the last bits. A row is therefore answered again, alone, if the
two best logits of one of its tokens are closer than such a difference could be: every answer is the
one that `Vlm.answer` gives.

Shapes: B images; G groups of B rows (the trunk's, then each candidate's); R rows; C columns (the
left-padded prompts, then the drafts); N, K, D, H, V as in decoder.py.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gmskip_ros.vlm.answer import CandidateAnswer, ImageFeatures
from gmskip_ros.vlm.decoder import KeyValueStore
from gmskip_ros.vlm.errors import NonFiniteLogitsError, PromptError, Stopped

if TYPE_CHECKING:
    from gmskip_ros.vlm.vlm import Vlm

# How close two logits may be that the batch could have put in the wrong order. Measured on the CPU
# with the demo model, over 30,000 tokens in float32 and 20,000 in bfloat16: a batch moved no logit
# against the best one by more than 1.2e-4, and by more than 14 roundings of the best one.
NEAR_TIE = 5e-4
NEAR_TIE_ULPS = 16  # in half precision: that many roundings of the best logit, if they are more
# On the CPU so many tokens, per thread, go through a block at once, because what they become on the
# way then stays in the caches: 1.8 times as fast as all of them (demo model, 1 MiB L2 per core).
CACHED_TOKENS = 512

Candidate = int | None  # the block left out besides those removed, if any


@dataclass
class _Row:
    """One image under one candidate, while it is being answered."""

    image: int
    candidate: Candidate
    tokens: list[int]
    num_accepted: int = 0  # tokens of the draft that were read as its own
    is_unsure: bool = False  # a near tie or NaN: to be answered alone
    has_ended: bool = False
    is_complete: bool = True


class CandidateWalk:
    """One question about each of several images, put to many skip sets; see `answers`."""

    def __init__(
        self,
        vlm: Vlm,
        features: Sequence[ImageFeatures],
        prompts: Sequence[str],
        removed: Collection[int],
        num_steps: int,
        drafts: Sequence[Sequence[int]],
        *,
        is_decided: Callable[[int, str], bool] | None,
        max_rows: int,
        memory_bytes: int,
        should_stop: Callable[[], bool] | None,
    ) -> None:
        """The arguments are those of Vlm.answer_candidates, already checked."""
        self.vlm = vlm
        self.decoder = vlm.decoder
        self.features = features
        self.prompts = prompts
        self.removed = frozenset(removed)
        self.num_steps = num_steps
        # The last token of an answer of full length is chosen, but never processed.
        self.drafts = [list(draft)[: num_steps - 1] for draft in drafts]
        self.is_decided = is_decided
        self.max_rows = max_rows
        self.memory_bytes = memory_bytes
        self.should_stop = should_stop
        self.retained = [i for i in range(vlm.num_blocks) if i not in self.removed]
        self.input_ids = [vlm.input_ids(*pair) for pair in zip(prompts, features, strict=True)]
        self.texts: dict[tuple[int, ...], str] = {}

    def answers(self, candidates: Sequence[Candidate]) -> list[list[CandidateAnswer]]:
        """Return the answers, per image and candidate; split into as many walks as memory needs."""
        found: dict[tuple[int, Candidate], CandidateAnswer] = {}
        waiting = [sorted(set(candidates), key=lambda block: (block is None, block))]
        while waiting:
            group = waiting.pop()
            num_images = self._images_at_once(_num_groups(group))
            if num_images == 0 and len(group) > 1:
                half = len(group) // 2
                waiting += [group[half:], group[:half]]
                continue
            for start in range(0, len(self.features), max(1, num_images)):
                images = range(start, min(start + max(1, num_images), len(self.features)))
                for row in self._walk(images, group):
                    found[row.image, row.candidate] = self._answer_of(row)
        return [[found[i, block] for block in candidates] for i in range(len(self.features))]

    def _images_at_once(self, num_groups: int) -> int:
        """Return how many images fit into one walk of that many groups; 0 if not one does."""
        config = self.vlm.text_config
        columns = max(map(len, self.input_ids)) + self.num_steps
        size = self.features[0].tokens.element_size()
        head_size = getattr(config, 'head_dim', None) or (
            config.hidden_size // config.num_attention_heads
        )
        per_token = 2 * config.num_key_value_heads * head_size * size
        # Stored in the walk, and copied once more for the rows that go on decoding.
        stored = 2 * len(self.retained) * columns * per_token
        passing = columns * (8 * config.hidden_size + 3 * config.intermediate_size) * size
        logits = 3 * self.num_steps * config.vocab_size * 4
        fitting = self.memory_bytes // (num_groups * (stored + passing + logits))
        return min(self.max_rows // num_groups, fitting)

    def _walk(self, images: range, candidates: list[Candidate]) -> list[_Row]:
        """Return the rows of these images under these candidates (ascending, None last), done."""
        num_images = len(images)
        num_groups = _num_groups(candidates)
        drafts = [self.drafts[i] for i in images]
        draft_columns = max(map(len, drafts))
        ids = [self.input_ids[i] for i in images]
        prompt_columns = max(map(len, ids))
        num_columns = prompt_columns + draft_columns
        if prompt_columns + self.num_steps - 1 > self.vlm.max_tokens:
            raise PromptError(
                f'image, prompt and answer take up to {prompt_columns + self.num_steps - 1} '
                f'tokens, the context of {self.vlm.name} holds {self.vlm.max_tokens}: shorten the '
                'prompt or the answer'
            )

        embedded, is_real = self.vlm.embed(ids, [self.features[i] for i in images])
        hidden = embedded.new_zeros(num_groups * num_images, num_columns, embedded.shape[2])
        hidden[:num_images, :prompt_columns] = embedded
        for index, draft in enumerate(drafts):
            tokens = torch.tensor(draft, dtype=torch.long, device=embedded.device)
            hidden[index, prompt_columns : prompt_columns + len(draft)] = self.decoder.embed_tokens(
                tokens
            )
        # Behind a shorter draft stands nothing: later columns do not touch earlier ones.
        columns = is_real.new_ones(num_images, num_columns)
        columns[:, :prompt_columns] = is_real
        layout = KeyValueStore(columns, num_columns, 0)
        positions = layout.advance(num_columns)  # (B, C)

        first, end = 0, 1  # the groups that are under way
        joined: dict[Candidate, int] = {None: 0}  # candidate -> its group; None is the trunk
        rotary = self.decoder.rotary_emb(hidden, positions)  # cos, sin: (B, C, D)
        stored: dict[int, tuple[int, Tensor, Tensor]] = {}  # block -> first group, keys, values
        for block in self.retained:
            self._poll()
            if block in candidates:
                joins = slice(end * num_images, (end + 1) * num_images)
                hidden[joins] = hidden[:num_images]
                joined[block] = end
                if block == candidates[-1]:
                    first = 1  # nobody is left to join, and the trunk's answer is not asked for
            if end > first:
                # Behind the last block, only what is answered is looked at.
                wanted = num_columns
                if block == self.retained[-1]:
                    wanted = 1 + draft_columns
                mask = layout.mask(0, wanted, self.decoder.windows[block])
                rows = hidden[first * num_images : end * num_images]
                stored[block] = (first, *self._run_block(block, rows, rotary, wanted, mask))
            end += block in candidates

        chosen, margins = self._choose(hidden, prompt_columns, num_images, candidates, joined)
        rows_done: list[_Row] = []
        undone: list[_Row] = []
        for group, candidate in enumerate(candidates):
            for index, image in enumerate(images):
                row = _Row(image, candidate, [])
                at = group * num_images + index
                self._follow_draft(row, drafts[index], chosen[at], margins[at])
                (rows_done if row.has_ended or row.is_unsure else undone).append(row)
        if undone:
            self._decode(undone, images, joined, stored, layout, positions, prompt_columns)
        return rows_done + undone

    def _run_block(
        self,
        block: int,
        hidden: Tensor,
        rotary: tuple[Tensor, Tensor],
        wanted: int,
        mask: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Run hidden (R, C, H) through a block; return its keys and values, (R, K, C, D).

        The last `wanted` columns are replaced by what the block makes of them. `rotary` (B, C, D)
        and `mask` (B, 1, wanted, C) are those of the images: R is a multiple of B.
        """
        num_rows, num_columns, _ = hidden.shape
        num_images = len(rotary[0])
        at_once = num_rows
        if hidden.device.type == 'cpu':
            at_once = max(1, CACHED_TOKENS * torch.get_num_threads() // num_columns)
        answered = slice(num_columns - wanted, num_columns)
        keys, values = [], []
        for start in range(0, num_rows, at_once):
            rows = hidden[start : start + at_once]
            image = torch.arange(start, start + len(rows), device=hidden.device) % num_images
            cos, sin = (part[image] for part in rotary)
            query, key, value = self.decoder.project(block, rows, (cos, sin))
            rows[:, answered] = self.decoder.finish_block(
                block,
                rows[:, answered],
                query[:, :, answered],
                key,
                value,
                None if mask is None else mask[image],
            )
            keys.append(key)
            values.append(value)
        return torch.cat(keys), torch.cat(values)

    def _choose(
        self,
        hidden: Tensor,
        prompt_columns: int,
        num_images: int,
        candidates: list[Candidate],
        joined: dict[Candidate, int],
    ) -> tuple[list[list[int]], list[list[float]]]:
        """Return, per candidate's row, the likeliest tokens from the prompt's end on, and margins.

        Margins are those to the second best logit, less what counts as a tie: negative is a tie.
        """
        chosen: list[list[int]] = []
        margins: list[list[float]] = []
        for candidate in candidates:  # one at a time: logits are (B, T + 1, V)
            start = joined[candidate] * num_images
            answered = hidden[start : start + num_images, prompt_columns - 1 :]
            ids, values = self._two_best(self.decoder.logits(answered))
            chosen += ids
            margins += values
        return chosen, margins

    def _two_best(self, logits: Tensor) -> tuple[list[list[int]], list[list[float]]]:
        """Return the best tokens of logits (R, T, V) and their margins as in `_choose`.

        The margin is NaN where a logit is NaN or infinite.
        """
        best, ids = logits.float().topk(2, dim=-1)
        tie = torch.full_like(best[..., 0], NEAR_TIE)
        if logits.dtype != torch.float32:
            tie = tie.maximum(NEAR_TIE_ULPS * torch.finfo(logits.dtype).eps * best[..., 0].abs())
        margin = best[..., 0] - best[..., 1] - tie
        margin = margin.masked_fill(~logits.isfinite().all(dim=-1), float('nan'))
        return ids[..., 0].tolist(), margin.tolist()

    def _follow_draft(
        self, row: _Row, draft: list[int], chosen: list[int], margins: list[float]
    ) -> None:
        """Take what the walk says row answers, as far as it goes along with the draft."""
        for position in range(len(draft) + 1):
            self._take(row, chosen[position], margins[position])
            agrees = position < len(draft) and chosen[position] == draft[position]
            if row.has_ended or row.is_unsure or not agrees:
                return
            row.num_accepted += 1

    def _take(self, row: _Row, token: int, margin: float) -> None:
        """Add one token to row, and see whether that ends it."""
        # Of NaN too: tokens of the draft that the row did not take can have brought it in.
        row.is_unsure = row.is_unsure or not margin >= 0
        if token in self.vlm.end_ids:
            row.has_ended = True
            return
        row.tokens.append(token)
        if len(row.tokens) == self.num_steps:
            row.has_ended = True
        elif self.is_decided is not None and self.is_decided(row.image, self._text(row.tokens)):
            row.has_ended, row.is_complete = True, False

    def _decode(
        self,
        rows: list[_Row],
        images: range,
        joined: dict[Candidate, int],
        stored: dict[int, tuple[int, Tensor, Tensor]],
        layout: KeyValueStore,
        positions: Tensor,
        prompt_columns: int,
    ) -> None:
        """Decode the rows token by token, each from where it left the draft."""
        device = positions.device
        num_images, num_columns = positions.shape
        index = torch.tensor([row.image - images.start for row in rows], device=device)  # (R,)
        accepted = torch.tensor([row.num_accepted for row in rows], device=device)
        room = self.num_steps - 1 - min(row.num_accepted for row in rows)
        end_columns = num_columns + room
        column = torch.arange(end_columns, device=device)
        # What a row may attend to: its prompt, the draft as far as it agreed, its own new tokens.
        is_its_own = (column < prompt_columns + accepted[:, None]) | (column >= num_columns)
        is_its_own[:, :num_columns] &= layout.is_real[index]
        new_positions = (
            positions[index, prompt_columns - 1][:, None]
            + accepted[:, None]
            + torch.arange(1, room + 1, device=device)
        )
        at = torch.cat((positions[index], new_positions), dim=1)  # (R, columns)

        keys: dict[int, Tensor] = {}
        values: dict[int, Tensor] = {}
        for block, (first, key, value) in stored.items():
            # Before a candidate joins, what it has is the trunk's. (Where it is the one that
            # leaves this block out, its entries are never looked at.)
            group = [
                joined[row.candidate] if row.candidate is None or row.candidate < block else 0
                for row in rows
            ]
            source = (torch.tensor(group, device=device) - first).clamp(min=0) * num_images + index
            shape = (len(rows), key.shape[1], end_columns, key.shape[3])
            keys[block], values[block] = key.new_empty(shape), key.new_empty(shape)
            keys[block][:, :, :num_columns] = key[source]
            values[block][:, :, :num_columns] = value[source]

        for new in range(room):
            hidden = self.decoder.embed_tokens(
                torch.tensor([row.tokens[-1] for row in rows], device=device)[:, None]
            )  # (R, 1, H)
            here = num_columns + new
            rotary = self.decoder.rotary_emb(hidden, at[:, here : here + 1])  # (R, 1, D)
            masks = {
                window: self._mask(is_its_own, at, here, window)
                for window in set(self.decoder.windows)
            }
            for block in self.retained:
                self._poll()
                if block not in stored:
                    continue
                run = [i for i, row in enumerate(rows) if row.candidate != block]
                if not run:
                    continue
                some = slice(None) if len(run) == len(rows) else torch.tensor(run, device=device)
                mask = masks[self.decoder.windows[block]][some]
                cos, sin = (part[some] for part in rotary)
                query, key, value = self.decoder.project(block, hidden[some], (cos, sin))
                keys[block][some, :, here : here + 1] = key
                values[block][some, :, here : here + 1] = value
                hidden[some] = self.decoder.finish_block(
                    block,
                    hidden[some],
                    query,
                    keys[block][some, :, : here + 1],
                    values[block][some, :, : here + 1],
                    mask,
                )
            chosen, margins = self._two_best(self.decoder.logits(hidden))
            for row, ids, margin in zip(rows, chosen, margins, strict=True):
                if not (row.has_ended or row.is_unsure):
                    self._take(row, ids[0], margin[0])
            going_on = [i for i, row in enumerate(rows) if not (row.has_ended or row.is_unsure)]
            if not going_on:
                return
            if 5 * len(going_on) <= 4 * len(rows):  # copying all that is stored pays off
                rows = [rows[i] for i in going_on]
                kept = torch.tensor(going_on, device=device)
                at, is_its_own = at[kept], is_its_own[kept]
                for store in (keys, values):
                    for block in store:
                        store[block] = store[block][kept]

    @staticmethod
    def _mask(is_its_own: Tensor, at: Tensor, here: int, window: int | None) -> Tensor:
        """Return which columns up to `here` the token there attends to: bool (R, 1, 1, S)."""
        allowed = is_its_own[:, : here + 1]
        if window is not None:
            allowed = allowed & (at[:, : here + 1] > at[:, here : here + 1] - window)
        return allowed[:, None, None]

    def _answer_of(self, row: _Row) -> CandidateAnswer:
        if row.is_unsure:
            left_out = self._left_out(row)
            try:
                answer = self.vlm.answer(
                    self.features[row.image],
                    self.prompts[row.image],
                    left_out,
                    self.num_steps,
                    should_stop=self.should_stop,
                )
            except NonFiniteLogitsError as error:
                raise NonFiniteLogitsError(f'without blocks {sorted(left_out)}: {error}') from error
            return CandidateAnswer(answer.token_ids, answer.text, True)
        return CandidateAnswer(tuple(row.tokens), self._text(row.tokens), row.is_complete)

    def _left_out(self, row: _Row) -> frozenset[int]:
        return self.removed if row.candidate is None else self.removed | {row.candidate}

    def _text(self, tokens: list[int]) -> str:
        key = tuple(tokens)
        if key not in self.texts:
            self.texts[key] = self.vlm.decode_text(tokens)
        return self.texts[key]

    def _poll(self) -> None:
        if self.should_stop is not None and self.should_stop():
            raise Stopped('stopped before the answers were complete')


def _num_groups(candidates: Sequence[Candidate]) -> int:
    """Return how many rows of one image a walk has: the trunk's, and one for each block."""
    return 1 + sum(candidate is not None for candidate in candidates)
