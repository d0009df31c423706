"""Does an answer repeat itself? Models with too many blocks skipped often end in a loop."""

from __future__ import annotations

from collections.abc import Sequence

LEAST_TIMES, LEAST_TOKENS = 3, 6


def repeats(token_ids: Sequence[int]) -> bool:
    """Return whether the same tokens come LEAST_TIMES or more in a row somewhere in an answer.

    That is an n-gram of any length n that is followed directly by itself, again and again, over at
    least LEAST_TOKENS tokens in all: one token six times, two tokens three times, ...
    """
    length = len(token_ids)
    for n in range(1, length // LEAST_TIMES + 1):
        needed = max(LEAST_TIMES * n, LEAST_TOKENS) - n  # tokens that equal the one n before
        equal = 0
        for i in range(n, length):
            equal = equal + 1 if token_ids[i] == token_ids[i - n] else 0
            if equal >= needed:
                return True
    return False
