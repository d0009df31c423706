"""How far the answered label is ahead of the other labels, by the probabilities of first tokens.

The decoder gives those probabilities with the first token of the answer: nothing is run for them.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gmskip_ros.tasks import ParsedAnswer

if TYPE_CHECKING:
    from gmskip_ros.vlm import Answer, Engine

# What stands before the first word depends on the chat template and the tokenizer.
BEFORE_FIRST_WORD = ('', ' ')


@dataclass(frozen=True)
class FirstTokens:
    """The first tokens of each label: in lower case and capitalised, by BEFORE_FIRST_WORD."""

    of_labels: Mapping[str, tuple[frozenset[int], ...]]

    @property
    def all_ids(self) -> tuple[int, ...]:
        """Every first token once: what to ask the engine for."""
        return tuple(sorted({id for sets in self.of_labels.values() for id in _union(sets)}))


def first_tokens(engine: Engine, labels: Iterable[str]) -> FirstTokens:
    """Return the first tokens of these labels in the model's own vocabulary."""
    return FirstTokens(
        {
            label: tuple(
                frozenset(engine.token_ids(before + spelling)[0] for spelling in _spellings(label))
                for before in BEFORE_FIRST_WORD
            )
            for label in labels
        }
    )


def margin(
    engine: Engine, first: FirstTokens, parsed: ParsedAnswer, answer: Answer
) -> float | None:
    """Return the first token's probability less that of the best first token of another label.

    None for an empty answer, if there is no other label, and if one begins with the same token.
    `answer` was made with `first.all_ids` as its `first_token_ids`.
    """
    if not answer.token_ids or not answer.first_probabilities:
        return None
    own_token = answer.token_ids[0]
    kind = _kind_of_first_token(engine, answer.text, own_token)
    rivals = {
        token
        for label, sets in first.of_labels.items()
        if label not in parsed.labels
        for token in (_union(sets) if kind is None else sets[kind])
    }
    if not rivals or own_token in rivals:
        return None
    probabilities = dict(zip(first.all_ids, answer.first_probabilities, strict=True))
    value = answer.confidence.first - max(probabilities[token] for token in rivals)
    return None if math.isnan(value) else value


def _kind_of_first_token(engine: Engine, text: str, token: int) -> int | None:
    """Return which of BEFORE_FIRST_WORD the answer's first token has; None if neither fits."""
    for kind, before in enumerate(BEFORE_FIRST_WORD):
        if engine.token_ids(before + text.strip())[:1] == (token,):
            return kind
    return None


def _spellings(label: str) -> tuple[str, str]:
    words = label.replace('_', ' ')
    return words, words[:1].upper() + words[1:]


def _union(sets: Collection[frozenset[int]]) -> frozenset[int]:
    return frozenset().union(*sets)
