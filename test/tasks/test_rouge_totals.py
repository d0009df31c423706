"""ROUGE-L of many texts at once, against one at a time."""

from __future__ import annotations

import random

import pytest

from gmskip_ros.tasks import rouge_l
from gmskip_ros.tasks.rouge_totals import RougeTotals


@pytest.mark.parametrize('seed', range(10))
def test_totals_are_the_sums_of_the_scores(seed: int) -> None:
    rng = random.Random(seed)

    def tokens(least: int, most: int) -> list[str]:
        return rng.choices('a a the dog runs on red street'.split(), k=rng.randint(least, most))

    references = [
        [tokens(1, 200 if seed % 2 else 12), *(tokens(0, 12) for _ in range(rng.randint(0, 4)))]
        for _ in range(rng.randint(1, 12))
    ]
    totals = RougeTotals(references)
    texts = [*(each for of_image in references for each in of_image), ['zebra'], tokens(9, 9)]
    for text in texts:
        expected = sum(rouge_l(text, of_image) for of_image in references)
        assert totals.total(text) == pytest.approx(expected, rel=1e-12, abs=1e-12)
