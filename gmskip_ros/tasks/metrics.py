"""Scores of one answer against its references, all in 0..1; higher is better."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from fractions import Fraction

from gmskip_ros.tasks.errors import TaskError


def accuracy(answer: str, truth: str) -> float:
    """Return 1.0 if the two labels are equal, else 0.0."""
    return float(answer == truth)


# (answered labels, labels in the image) -> score; exact, so that equal scores compare as equal.
SET_METRICS: dict[str, Callable[[AbstractSet[str], AbstractSet[str]], Fraction]] = {
    'set_precision': lambda answer, truth: Fraction(len(answer & truth), len(answer) or 1),
    'set_recall': lambda answer, truth: Fraction(len(answer & truth), len(truth) or 1),
    'set_f1': lambda answer, truth: Fraction(
        2 * len(answer & truth), len(answer) + len(truth) or 1
    ),
    'set_exact_match': lambda answer, truth: Fraction(answer == truth),
}


def set_precision(answer: AbstractSet[str], truth: AbstractSet[str]) -> float:
    """Return |P & G| / |P|; an empty answer scores 0."""
    return float(SET_METRICS['set_precision'](answer, truth))


def set_recall(answer: AbstractSet[str], truth: AbstractSet[str]) -> float:
    """Return |P & G| / |G|; an empty truth scores 0."""
    return float(SET_METRICS['set_recall'](answer, truth))


def set_f1(answer: AbstractSet[str], truth: AbstractSet[str]) -> float:
    """Return 2 |P & G| / (|P| + |G|); 0 if both are empty, like precision and recall."""
    return float(SET_METRICS['set_f1'](answer, truth))


def set_exact_match(answer: AbstractSet[str], truth: AbstractSet[str]) -> float:
    """Return 1.0 if the two sets are equal (both empty included), else 0.0."""
    return float(SET_METRICS['set_exact_match'](answer, truth))


def yes_no_figures(answers: Sequence[str], truths: Sequence[str]) -> dict[str, float | None]:
    """Return accuracy, precision, recall and F1 of 'yes', and the share of 'yes', as POPE does.

    `answers` and `truths` are 'yes' or 'no', as many of each. None for a precision without an
    answer 'yes', and a recall without a right 'yes'; F1 is 2 TP / (2 TP + FP + FN).
    """
    pairs = Counter(zip(answers, truths, strict=True))
    hits, false_alarms, misses = pairs['yes', 'yes'], pairs['yes', 'no'], pairs['no', 'yes']
    total, said, true = len(answers), hits + false_alarms, hits + misses
    return {
        'accuracy': (hits + pairs['no', 'no']) / total,
        'precision': hits / said if said else None,
        'recall': hits / true if true else None,
        'f1': 2 * hits / (said + true) if said + true else None,
        'yes_share': said / total,
    }


def jaccard(a: AbstractSet[str], b: AbstractSet[str]) -> float:
    """Return |A & B| / |A | B|; 1 if both are empty."""
    union = len(a | b)
    return len(a & b) / union if union else 1.0


def rouge_l(
    candidate: Sequence[str], references: Sequence[Sequence[str]], beta: float = 1.2
) -> float:
    """Return ROUGE-L of a token sequence, as COCO's caption scorer computes it.

    It is the F-measure of the longest common subsequence with recall weighted by beta; the best
    precision and the best recall over the references are taken separately (Lin 2004; Chen et al.
    2015, arXiv:1504.00325). 0 if the candidate or every reference is empty. Raises TaskError
    without references.
    """
    if not references:
        raise TaskError('references: the list is empty; ROUGE-L needs at least one')
    if not candidate:
        return 0.0
    precision = recall = 0.0
    for reference in references:
        common = _longest_common_subsequence(candidate, reference)
        if common:
            precision = max(precision, common / len(candidate))
            recall = max(recall, common / len(reference))
    if precision == 0.0:
        return 0.0
    return (1 + beta**2) * precision * recall / (recall + beta**2 * precision)


def _longest_common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    lengths = [0] * (len(b) + 1)  # of the tokens of a so far and each prefix of b
    for token in a:
        diagonal = 0
        for j, other in enumerate(b, start=1):
            above = lengths[j]
            lengths[j] = diagonal + 1 if token == other else max(above, lengths[j - 1])
            diagonal = above
    return lengths[-1]
