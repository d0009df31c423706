"""Answers of many skip sets that differ in one block, in one walk over the decoder's blocks.

A calibration asks what every retained block is worth: the answer without it, for each in turn. All
these candidates share the way up to the block that they skip, so one walk serves them all. At a
block, the trunk (which skips none of them) and the candidates that skipped an earlier block go
through together; then the candidate that skips this block joins with what the trunk had before it:
n (n + 1) / 2 block-rows for n blocks, with the trunk's own answer, instead of n n.

The expected answer (the draft: the trunk's own, from the round before) rides along behind the
prompt. A causal decoder then verifies it in the same pass, as in speculative decoding (Leviathan et
al., arXiv:2211.17192): it says what it would have answered after each of the draft's tokens. A
candidate that agrees is done; the others decode from where they first differ.

A batch differs from a lone run in the last bits. A row is unsure, and left to the caller to answer
alone, if the two best logits of one of its tokens are closer than such a difference could be; so
every answer is the one that `Vlm.answer` gives.

Shapes: B images; G groups of B rows (the trunk's, then each candidate's); R rows; C columns (the
left-padded prompts, then the drafts); T tokens; N, K, D, H, V as in decoder.py.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gmskip_ros.vlm.answer import CandidateAnswer, ImageFeatures
from gmskip_ros.vlm.decoder import ALL, Decoder, KeyValueStore
from gmskip_ros.vlm.errors import Stopped
from gmskip_ros.vlm.generation import embed, tie_margins, verify
from gmskip_ros.vlm.prompt import ChatTokenizer

# Tokens per thread that go through a block at once on the CPU, where intermediate results then stay
# in the caches: 1.8 times as fast as all of them at once (demo model, 1 MiB L2 per core).
CACHED_TOKENS = 512

NEAR_TIE_CANDIDATES = 2  # rows of other blocks where a model's own margin is measured

Candidate = int | None  # the block skipped besides those removed, if any


@dataclass
class _Row:
    """One image under one candidate, while it is being answered."""

    image: int
    candidate: Candidate
    tokens: list[int] = field(default_factory=list)
    num_accepted: int = 0  # tokens of the draft that are its own
    is_unsure: bool = False  # a near tie or NaN: to be answered alone
    has_ended: bool = False
    is_complete: bool = True

    @property
    def is_done(self) -> bool:
        return self.has_ended or self.is_unsure


@dataclass
class _Prefill:
    """The walk over prompts and drafts of some images under some candidates."""

    images: range
    candidates: list[Candidate]  # ascending, None last
    drafts: list[list[int]]  # of each image
    prompt_columns: int
    layout: KeyValueStore  # which columns are real; it stores nothing
    positions: Tensor  # rotary positions, long (B, C)
    hidden: Tensor  # (G x B, C, H), after the last block
    group_of: dict[Candidate, int]  # None: the trunk's
    stored: dict[int, tuple[int, Tensor, Tensor]]  # block -> its first group, keys, values


class CandidateWalk:
    """One question about each of several images, put to many skip sets; see `answers`."""

    def __init__(
        self,
        decoder: Decoder,
        tokenizer: ChatTokenizer,
        end_ids: Collection[int],
        features: Sequence[ImageFeatures],
        prompts: Sequence[Sequence[int]],
        removed: Collection[int],
        num_steps: int,
        drafts: Sequence[Sequence[int]],
        *,
        is_decided: Callable[[int, str], bool] | None,
        max_rows: int,
        memory_bytes: int,
        should_stop: Callable[[], bool] | None,
        near_tie: float | None = None,
    ) -> None:
        """`prompts` are token ids. The other arguments are Vlm.answer_candidates', checked."""
        self.decoder = decoder
        self.tokenizer = tokenizer
        self.end_ids = end_ids
        self.features = features
        self.prompts = prompts
        self.num_steps = num_steps
        # The last token of an answer of full length is chosen, but never run.
        self.drafts = [list(draft)[: num_steps - 1] for draft in drafts]
        self.is_decided = is_decided
        self.max_rows = max_rows
        self.memory_bytes = memory_bytes
        self.should_stop = should_stop
        self.near_tie = near_tie
        self.retained = [i for i in range(len(decoder.blocks)) if i not in removed]
        self.texts: dict[tuple[int, ...], str] = {}

    def answers(self, candidates: Sequence[Candidate]) -> list[list[CandidateAnswer | None]]:
        """Return the answers, per image and candidate; None where the walk is unsure.

        It is split into as many walks as memory requires. Raises Stopped.
        """
        found: dict[tuple[int, Candidate], CandidateAnswer | None] = {}
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

    def draft_logits(self, candidates: Sequence[int]) -> Tensor:
        """Return the first image's logits after its prompt and each token of its draft.

        Float32, (T + 1, V), of the trunk, in one walk with all images and, as far as memory allows,
        these blocks as candidates. Raises Stopped.
        """
        while candidates and self._images_at_once(1 + len(candidates)) < len(self.features):
            candidates = candidates[: len(candidates) // 2]
        images = range(len(self.features))
        prefill = self._prefill(images, [*sorted(candidates), None])
        answered = prefill.hidden[: len(images), prefill.prompt_columns - 1 :]
        return self.decoder.logits(answered)[0].float()

    def _images_at_once(self, num_groups: int) -> int:
        """Return how many images fit into one walk of that many groups; 0 if not even one does."""
        config = self.decoder.config
        columns = max(map(len, self.prompts)) + self.num_steps
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
        prefill = self._prefill(images, candidates)
        rows = self._verify(prefill)
        undone = [row for row in rows if not row.is_done]
        if undone:
            self._decode(undone, prefill)
        return rows

    def _prefill(self, images: range, candidates: list[Candidate]) -> _Prefill:
        """Run prompts and drafts of these images, under every candidate, through the blocks."""
        num_images = len(images)
        prompts = [self.prompts[i] for i in images]
        drafts = [self.drafts[i] for i in images]
        prompt_columns = max(map(len, prompts))
        draft_columns = max(map(len, drafts))
        num_columns = prompt_columns + draft_columns

        features = [self.features[i] for i in images]
        embedded, is_real, _ = embed(self.decoder, prompts, features, self.tokenizer.image_token_id)
        hidden = embedded.new_zeros(
            _num_groups(candidates) * num_images, num_columns, embedded.shape[2]
        )
        hidden[:num_images, :prompt_columns] = embedded
        for index, draft in enumerate(drafts):
            ids = torch.tensor(draft, dtype=torch.long, device=embedded.device)
            end = prompt_columns + len(draft)
            hidden[index, prompt_columns:end] = self.decoder.embed_tokens(ids)
        # A shorter draft is followed by zeros: later columns do not influence earlier ones.
        columns = is_real.new_ones(num_images, num_columns)
        columns[:, :prompt_columns] = is_real
        layout = KeyValueStore(columns, num_columns, 0)
        positions = layout.advance(num_columns)  # (B, C)

        first, end = 0, 1  # the groups that are under way
        group_of: dict[Candidate, int] = {None: 0}
        rotary = self.decoder.rotary_emb(hidden, positions)  # (B, C, D) each
        stored: dict[int, tuple[int, Tensor, Tensor]] = {}
        for block in self.retained:
            self._poll()
            if block in candidates:
                joins = slice(end * num_images, (end + 1) * num_images)
                hidden[joins] = hidden[:num_images]
                group_of[block] = end
                if block == candidates[-1]:
                    first = 1  # no further candidate joins, and the trunk's answer is not wanted
            if end > first:
                # After the last block only the columns that predict an answer token are needed.
                wanted = num_columns
                if block == self.retained[-1]:
                    wanted = 1 + draft_columns
                mask = layout.mask(
                    layout.columns(ALL, num_columns - wanted), (ALL, 0), self.decoder.windows[block]
                )
                rows = hidden[first * num_images : end * num_images]
                stored[block] = (first, *self._run_block(block, rows, rotary, wanted, mask))
            end += block in candidates
        return _Prefill(
            images, candidates, drafts, prompt_columns, layout, positions, hidden, group_of, stored
        )

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

    def _verify(self, prefill: _Prefill) -> list[_Row]:
        """Return every candidate's rows with what they answer as far as they follow the draft."""
        num_images = len(prefill.images)
        rows = []
        for candidate in prefill.candidates:  # one at a time: logits are (B, T + 1, V)
            start = prefill.group_of[candidate] * num_images
            answered = prefill.hidden[start : start + num_images, prefill.prompt_columns - 1 :]
            chosen, margins = self._best(self.decoder.logits(answered))
            for index, image in enumerate(prefill.images):
                row = _Row(image, candidate)
                row.num_accepted = verify(prefill.drafts[index], chosen[index])
                for position in range(row.num_accepted + 1):
                    if not row.is_done:
                        self._append(row, chosen[index][position], margins[index][position])
                rows.append(row)
        return rows

    def _append(self, row: _Row, token: int, margin: float) -> None:
        """Append one token to the row, and see whether that ends it."""
        # NaN makes it unsure as well: tokens of the draft that the row rejected can cause it.
        row.is_unsure = row.is_unsure or not margin >= 0
        if token in self.end_ids:
            row.has_ended = True
            return
        row.tokens.append(token)
        if len(row.tokens) == self.num_steps:
            row.has_ended = True
        elif self.is_decided is not None and self.is_decided(row.image, self._text(row.tokens)):
            row.has_ended, row.is_complete = True, False

    def _decode(self, rows: list[_Row], prefill: _Prefill) -> None:
        """Decode the rows token by token, each from where it left the draft."""
        positions, prompt_columns = prefill.positions, prefill.prompt_columns
        device = positions.device
        num_images, num_columns = positions.shape
        index = torch.tensor(
            [row.image - prefill.images.start for row in rows], device=device
        )  # (R,)
        accepted = torch.tensor([row.num_accepted for row in rows], device=device)
        room = self.num_steps - 1 - min(row.num_accepted for row in rows)
        end_columns = num_columns + room
        column = torch.arange(end_columns, device=device)
        # What a row may attend to: its prompt, the draft as far as it agreed, its own new tokens.
        is_its_own = (column < prompt_columns + accepted[:, None]) | (column >= num_columns)
        is_its_own[:, :num_columns] &= prefill.layout.is_real[index]
        new_positions = (
            positions[index, prompt_columns - 1][:, None]
            + accepted[:, None]
            + torch.arange(1, room + 1, device=device)
        )
        at = torch.cat((positions[index], new_positions), dim=1)  # (R, columns)

        keys: dict[int, Tensor] = {}
        values: dict[int, Tensor] = {}
        for block, (first, key, value) in prefill.stored.items():
            # Before a candidate joins, its entries are the trunk's. (In the block that it skips
            # they are never used.)
            group = [
                prefill.group_of[row.candidate]
                if row.candidate is None or row.candidate < block
                else 0
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
                if block not in prefill.stored:
                    continue
                run = [i for i, row in enumerate(rows) if row.candidate != block]
                if not run:
                    continue
                selected = (
                    slice(None) if len(run) == len(rows) else torch.tensor(run, device=device)
                )
                mask = masks[self.decoder.windows[block]][selected]
                cos, sin = (part[selected] for part in rotary)
                query, key, value = self.decoder.project(block, hidden[selected], (cos, sin))
                keys[block][selected, :, here : here + 1] = key
                values[block][selected, :, here : here + 1] = value
                hidden[selected] = self.decoder.finish_block(
                    block,
                    hidden[selected],
                    query,
                    keys[block][selected, :, : here + 1],
                    values[block][selected, :, : here + 1],
                    mask,
                )
            chosen, margins = self._best(self.decoder.logits(hidden))
            for row, ids, margin in zip(rows, chosen, margins, strict=True):
                if not row.is_done:
                    self._append(row, ids[0], margin[0])
            undone = [i for i, row in enumerate(rows) if not row.is_done]
            if not undone:
                return
            if 5 * len(undone) <= 4 * len(rows):  # copying all that is stored pays off
                rows = [rows[i] for i in undone]
                kept = torch.tensor(undone, device=device)
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

    def _answer_of(self, row: _Row) -> CandidateAnswer | None:
        if row.is_unsure:
            return None
        return CandidateAnswer(tuple(row.tokens), self._text(row.tokens), row.is_complete)

    def _text(self, tokens: list[int]) -> str:
        key = tuple(tokens)
        if key not in self.texts:
            self.texts[key] = self.tokenizer.decode(tokens)
        return self.texts[key]

    def _best(self, logits: Tensor) -> tuple[list[list[int]], list[list[float]]]:
        """Return the best tokens of logits (R, T, V), and their `tie_margins`."""
        best, ids = logits.float().topk(2, dim=-1)
        return ids[..., 0].tolist(), tie_margins(logits, best, self.near_tie).tolist()

    def _poll(self) -> None:
        if self.should_stop is not None and self.should_stop():
            raise Stopped('stopped before the answers were complete')


def _num_groups(candidates: Sequence[Candidate]) -> int:
    """Return how many rows of one image a walk has: the trunk's, and one for each block."""
    return 1 + sum(candidate is not None for candidate in candidates)
