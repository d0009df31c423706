"""Metrics against their definitions, and ROUGE-L against COCO's official scorer."""

from __future__ import annotations

import pytest
from coco_mini import load_goldens, needs_coco_mini

from gmskip_ros.tasks import (
    TaskError,
    accuracy,
    jaccard,
    rouge_l,
    set_exact_match,
    set_f1,
    set_precision,
    set_recall,
)


@needs_coco_mini
def test_rouge_l_is_that_of_the_official_scorer() -> None:
    goldens = load_goldens()
    scores = []
    for image in goldens['per_image']:
        references = [reference.split() for reference in image['references']]
        scores.append(rouge_l(image['candidate'].split(), references))
        assert scores[-1] == pytest.approx(image['ROUGE_L'], rel=0, abs=1e-9), image['image_id']
    assert len(scores) == goldens['images'] == 48
    assert sum(scores) / len(scores) == pytest.approx(goldens['ROUGE_L'], rel=0, abs=1e-9)


@pytest.mark.parametrize(
    ('answer', 'truth', 'precision', 'recall', 'f1', 'exact', 'overlap'),
    [
        ('ab', 'ab', 1, 1, 1, 1, 1),
        ('ab', 'bcd', 1 / 2, 1 / 3, 2 / 5, 0, 1 / 4),
        ('a', 'abcd', 1, 1 / 4, 2 / 5, 0, 1 / 4),
        ('ab', 'cd', 0, 0, 0, 0, 0),
        ('', 'ab', 0, 0, 0, 0, 0),
        ('ab', '', 0, 0, 0, 0, 0),
        ('', '', 0, 0, 0, 1, 1),
    ],
)
def test_set_metrics(
    answer: str,
    truth: str,
    precision: float,
    recall: float,
    f1: float,
    exact: float,
    overlap: float,
) -> None:
    p, g = set(answer), set(truth)
    assert set_precision(p, g) == precision
    assert set_recall(p, g) == pytest.approx(recall)
    assert set_f1(p, g) == pytest.approx(f1)
    assert set_exact_match(p, g) == exact
    assert jaccard(p, g) == jaccard(g, p) == overlap


def test_accuracy() -> None:
    assert accuracy('car', 'car') == 1.0
    assert accuracy('car', 'bus') == 0.0


def test_rouge_l_takes_precision_and_recall_from_different_references() -> None:
    # Precision 1 from the long reference (lcs 2 of 2), recall 1 from the short one (lcs 1 of 1).
    assert rouge_l(['a', 'b'], [['a', 'x', 'b', 'y'], ['b']]) == pytest.approx(1.0)


def test_rouge_l_counts_a_subsequence_not_a_substring() -> None:
    p, r = 3 / 4, 3 / 5
    expected = (1 + 1.44) * p * r / (r + 1.44 * p)
    assert rouge_l(list('axbc'), [list('abyzc')]) == pytest.approx(expected)
    assert rouge_l(list('axbc'), [list('abyzc')], beta=1.0) == pytest.approx(2 * p * r / (p + r))


@pytest.mark.parametrize(
    ('candidate', 'references'), [('', ['abc']), ('abc', ['']), ('', ['']), ('abc', ['xyz', ''])]
)
def test_rouge_l_of_disjoint_texts_is_zero(candidate: str, references: list[str]) -> None:
    assert rouge_l(candidate, references) == 0.0


def test_rouge_l_needs_a_reference() -> None:
    with pytest.raises(TaskError, match='references'):
        rouge_l(['a'], [])
