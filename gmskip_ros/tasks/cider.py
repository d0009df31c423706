"""CIDEr as COCO's caption scorer computes it (the variant that the literature calls CIDEr-D)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from gmskip_ros.tasks.errors import TaskError

_LONGEST = 4  # n-grams of 1 to 4 tokens
_SIGMA = 6.0  # of the length penalty, in tokens
_SCALE = 10.0

NGram = tuple[str, ...]


@dataclass(frozen=True)
class _Reference:
    counts: Mapping[NGram, int]
    norms: tuple[float, ...]  # of the tf-idf vector, one for each length of n-gram
    length: int  # tokens


class Cider:
    """CIDEr-D of captions against fixed references (Vedantam et al. 2015, arXiv:1411.5726).

    A caption and a reference are compared by the tf-idf vectors of their n-grams, n = 1..4: the
    cosine, with the caption's counts clipped to the reference's, times exp(-d^2 / (2 x 6^2)) if
    their lengths differ by d tokens. The score is 10 times the mean over n and the references.
    The document frequency of an n-gram is the number of images with a reference that contains it.
    Scores therefore depend on the set of images, and scores from lists of different size must not
    be compared.
    """

    def __init__(self, references: Sequence[Sequence[Sequence[str]]]) -> None:
        """Take the tokens of each image's references; raise TaskError if an image has none."""
        if not references:
            raise TaskError('references: the list is empty; CIDEr needs at least one image')
        for index, of_image in enumerate(references):
            if not of_image:
                raise TaskError(
                    f'references of image {index}: the list is empty; CIDEr needs at least one'
                )
        counted = [[_ngrams(tokens) for tokens in of_image] for of_image in references]
        frequency = Counter(ngram for image in counted for ngram in {g for r in image for g in r})
        # An n-gram that is in no reference is weighted as if it were in those of one image.
        self._rarest = math.log(len(references))
        self._idf = {ngram: self._rarest - math.log(n) for ngram, n in frequency.items()}
        self._references = [
            [
                _Reference(counts, self._norms(counts), len(tokens))
                for counts, tokens in zip(counted_image, of_image, strict=True)
            ]
            for counted_image, of_image in zip(counted, references, strict=True)
        ]
        self._best = [self._upper_bound(image) for image in self._references]

    def score(self, index: int, candidate_tokens: Sequence[str]) -> float:
        """Return CIDEr-D of a caption for image `index`, in 0..10."""
        counts = _ngrams(candidate_tokens)
        norms = self._norms(counts)
        # COCO's code counts bigrams: the same difference, except for empty texts, which score 0.
        length = len(candidate_tokens)
        references = self._references[index]
        total = 0.0
        for reference in references:
            products = [0.0] * _LONGEST
            for ngram, count in counts.items():
                reference_count = reference.counts.get(ngram)
                if reference_count:
                    weight = self._idf[ngram]
                    clipped = min(count, reference_count)
                    products[len(ngram) - 1] += clipped * reference_count * weight * weight
            similarity = sum(
                product / (norm * reference_norm)
                for product, norm, reference_norm in zip(
                    products, norms, reference.norms, strict=True
                )
                if product
            )
            total += similarity * math.exp(-((length - reference.length) ** 2) / (2 * _SIGMA**2))
        # Rounding could lift a perfect caption above the bound.
        return min(_SCALE * total / (_LONGEST * len(references)), self._best[index])

    def best(self, index: int) -> float:
        """Return an upper bound of the score of any caption for image `index`.

        The bound is 10 x mean_n |mean_r r_n|, where r_n is the unit-length tf-idf vector of
        reference r for n-grams of length n. Clipping and the length penalty only lower a score;
        without them it is the mean over n of the dot product of the caption's unit vector with
        mean_r r_n.
        """
        return self._best[index]

    def totals(self, candidates: Sequence[Sequence[str]]) -> list[float]:
        """Return, for each caption, the sum of its scores over all images, up to rounding.

        The time does not depend on captions x references, as it does with `score`: for an n-gram,
        references of equal length with an equal count of it are one term of the sum.
        """
        # n-gram -> (reference's length, its count of the n-gram) -> sum over such references
        shares: dict[NGram, dict[tuple[int, int], float]] = {}
        for of_image in self._references:
            for reference in of_image:
                for ngram, count in reference.counts.items():
                    norm = reference.norms[len(ngram) - 1]
                    if norm:
                        of_ngram = shares.setdefault(ngram, {})
                        key = (reference.length, count)
                        share = self._idf[ngram] ** 2 * count / (norm * len(of_image))
                        of_ngram[key] = of_ngram.get(key, 0.0) + share

        @cache
        def product(ngram: NGram, count: int, length: int) -> float:
            return sum(
                min(count, reference_count)
                * share
                * math.exp(-((length - reference_length) ** 2) / (2 * _SIGMA**2))
                for (reference_length, reference_count), share in shares[ngram].items()
            )

        totals = []
        for tokens in candidates:
            counts, products = _ngrams(tokens), [0.0] * _LONGEST
            for ngram, count in counts.items():
                if ngram in shares:
                    products[len(ngram) - 1] += product(ngram, count, len(tokens))
            parts = zip(products, self._norms(counts), strict=True)
            totals.append(_SCALE / _LONGEST * sum(p / norm for p, norm in parts if p))
        return totals

    def _norms(self, counts: Mapping[NGram, int]) -> tuple[float, ...]:
        squares = [0.0] * _LONGEST
        for ngram, count in counts.items():
            squares[len(ngram) - 1] += (count * self._idf.get(ngram, self._rarest)) ** 2
        return tuple(map(math.sqrt, squares))

    def _upper_bound(self, references: Sequence[_Reference]) -> float:
        sums: dict[NGram, float] = {}
        for reference in references:
            for ngram, count in reference.counts.items():
                norm = reference.norms[len(ngram) - 1]
                if norm:
                    unit = count * self._idf[ngram] / norm
                    sums[ngram] = sums.get(ngram, 0.0) + unit
        squares = [0.0] * _LONGEST
        for ngram, value in sums.items():
            squares[len(ngram) - 1] += value * value
        return _SCALE * sum(map(math.sqrt, squares)) / (_LONGEST * len(references))


def _ngrams(tokens: Sequence[str]) -> Counter[NGram]:
    return Counter(
        tuple(tokens[start : start + n])
        for n in range(1, _LONGEST + 1)
        for start in range(len(tokens) - n + 1)
    )
