"""Scores of answers under one metric, against the references of a fixed list of images."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence, Sized
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any, Protocol

from gmskip_ros.tasks.cider import Cider
from gmskip_ros.tasks.errors import TaskError
from gmskip_ros.tasks.metrics import rouge_l
from gmskip_ros.tasks.normalisation import ARTICLES, normalise, words
from gmskip_ros.tasks.task import Task
from gmskip_ros.tasks.tokenizer import caption_tokens

# A count or a ratio of counts is a Fraction, so that a tie is a tie; CIDEr and ROUGE-L are floats.
Score = Fraction | float

# Task -> its metrics; the first is the paper's. 'generic' is any question with reference texts.
METRICS: dict[str, tuple[str, ...]] = {
    'single_object': ('accuracy',),
    'multi_object': ('set_precision', 'set_recall', 'set_f1', 'set_exact_match'),
    'captioning': ('cider', 'rouge_l'),
    'generic': ('exact', 'vqa', 'relaxed', 'contains', 'rouge_l', 'cider'),
}

_REMEMBERED = 1 << 16  # answers whose score is kept, per scorer
_NOT_ASCII_AT_END = re.compile(r'[^\x00-\x7f]+\Z')
_VQA_REFERENCES = 10  # that VQA has for each question
_VQA_ENOUGH = 3  # equal ones, for a score of 1
_APOSTROPHE = re.compile("['\u2019]")
_DIGITS = {
    'none': '0',
    'zero': '0',
    'one': '1',
    'two': '2',
    'three': '3',
    'four': '4',
    'five': '5',
    'six': '6',
    'seven': '7',
    'eight': '8',
    'nine': '9',
    'ten': '10',
}
_RELAXED = Fraction(5, 100)
# Bounded, so that no text makes a number of a million digits.
_NUMBER = re.compile(
    r'([+-]?(?:[0-9]{1,30}(?:\.[0-9]{0,30})?|\.[0-9]{1,30})(?:[eE][+-]?[0-9]{1,2})?)(%?)\.?'
)


@dataclass(frozen=True)
class Absent:
    """The reference of an image that does not show `label`: any other answer is right."""

    label: str


class Scorer(Protocol):
    """One metric over one list of references; made by make_scorer. `index` is an image's place."""

    metric: str

    def score(self, index: int, raw_text: str) -> Score:
        """Return the score of the model's own words, in 0..best(index); any text has a score."""

    def best(self, index: int) -> Score:
        """Return a score that no text exceeds."""

    def is_decided(self, index: int, text_so_far: str) -> bool:
        """Return whether every text that begins so has the same score; False where not known.

        `text_so_far` is what a tokenizer makes of the first tokens of an answer. It may end
        within a word or a character: replacement characters and other characters outside ASCII
        at its end count as not yet said.
        """


def make_scorer(metric: str, references: Sequence[Any], task: Task | None = None) -> Scorer:
    """Return the scorer of a metric of a task (None: the generic task) for these references.

    references[i], of image i, is for single_object the right label, or Absent(label) where any
    answer but that label is right; for multi_object the labels in the image; for captioning and
    generic the texts that are right. A single label or text may stand for a list of one.

    - accuracy: 1 if the answer is the label, else 0.
    - set_precision, set_recall, set_f1, set_exact_match: see gmskip_ros.tasks.metrics. A label
      outside the task's label set stays among the references, and no answer finds it.
    - cider: CIDEr-D, 0..10 (see Cider); rouge_l: see there; both on caption_tokens.
    - exact: 1 if the answer equals a reference after normalisation, else 0.
    - contains: 1 if a normalised reference is in the normalised answer as whole words, else 0.
    - vqa: consensus accuracy of VQA (Antol et al. 2015, arXiv:1505.00468, as its evaluation code
      does it): min(equal references / 3, 1), averaged over the lists with one reference left
      out. With fewer than 10 references none is left out and the 3 is 3 or their number, the
      smaller. Texts are equal after normalisation, with 'zero' to 'ten' as digits ('none' is 0)
      and without articles and apostrophes.
    - relaxed: relaxed accuracy of ChartQA (Masry et al. 2022, arXiv:2203.10244): a number within
      5 % of a reference is right, 7 % is the number 0.07; other texts as under exact.

    Raises TaskError for a metric that the task does not have, no references, and references from
    which nothing could be scored.
    """
    name = 'generic' if task is None else task.name
    if metric not in METRICS[name]:
        raise TaskError(
            f'metric: {metric!r} is none of {name}; use one of {", ".join(METRICS[name])}'
        )
    if not references:
        raise TaskError('references: there is no image; give at least one')
    if task is not None and metric == 'accuracy':
        return _accuracy(references, task)
    if task is not None and metric in _SET_METRICS:
        return _set_metric(metric, references, task)
    texts = [_texts(index, reference) for index, reference in enumerate(references)]
    return _TEXT_METRICS[metric](texts)


class _Scorer:
    """A Scorer made of a function and each image's best score.

    `spellings`, for each image: the texts that decide between the only two scores there are.
    """

    def __init__(
        self,
        metric: str,
        score: Callable[[int, str], Score],
        best: Sequence[Score],
        spellings: Sequence[_Spellings] | None = None,
    ) -> None:
        self.metric = metric
        self._score = lru_cache(maxsize=_REMEMBERED)(score)  # most candidates answer the same
        self._best = best
        self._spellings = spellings

    def score(self, index: int, raw_text: str) -> Score:
        return self._score(index, raw_text)

    def best(self, index: int) -> Score:
        return self._best[index]

    def is_decided(self, index: int, text_so_far: str) -> bool:
        if self._spellings is None:
            return False
        return not self._spellings[index].can_be_reached(text_so_far)


class _Spellings:
    """Normalised texts, and whether what is still being said can become one of them."""

    def __init__(self, spellings: Iterable[str]) -> None:
        self.all = frozenset(spellings)
        self._beginnings = frozenset(text[:n] for text in self.all for n in range(len(text) + 1))

    def can_be_reached(self, text_so_far: str) -> bool:
        # A tokenizer that falls back to bytes takes a character back when the next byte makes no
        # character with it; ASCII stays.
        said = _NOT_ASCII_AT_END.sub('', text_so_far)
        parts = words(said)
        while len(parts) > 1 and parts[0] in ARTICLES:
            parts = parts[1:]
        goes_on = said[-1:].isalnum()  # the last word may become a longer one
        if len(parts) < 2 and (
            not parts
            or parts[0] in ARTICLES
            or (goes_on and any(article.startswith(parts[0]) for article in ARTICLES))
        ):
            return True  # there may be nothing but an article yet: 't' becomes 'the car'
        beginning = ' '.join(parts)
        if goes_on:
            return beginning in self._beginnings
        return beginning in self.all or f'{beginning} ' in self._beginnings


def _accuracy(references: Sequence[str | Absent], task: Task) -> Scorer:
    truths: list[tuple[str, bool]] = []  # a label, and whether it is the right or the wrong one
    for index, reference in enumerate(references):
        name = reference.label if isinstance(reference, Absent) else reference
        label = task.vocabulary.match(name) if isinstance(name, str) else None
        if label is None:
            raise TaskError(
                f'reference of image {index}: {name!r} is not in the label set; '
                'add it to the labels or leave the image out'
            )
        truths.append((label, not isinstance(reference, Absent)))
    spellings = {
        label: _Spellings(task.vocabulary.spellings(label)) for label in {t[0] for t in truths}
    }

    def score(index: int, raw_text: str) -> Fraction:
        label, is_right = truths[index]
        return Fraction((label in task.parse(raw_text).labels) is is_right)

    return _Scorer(
        'accuracy', score, [Fraction(1)] * len(truths), [spellings[label] for label, _ in truths]
    )


# Labels right, labels answered, labels there -> score, as in gmskip_ros.tasks.metrics.
_SET_METRICS: dict[str, Callable[[int, int, int], Fraction]] = {
    'set_precision': lambda right, answered, there: Fraction(right, answered or 1),
    'set_recall': lambda right, answered, there: Fraction(right, there or 1),
    'set_f1': lambda right, answered, there: Fraction(2 * right, answered + there or 1),
    'set_exact_match': lambda right, answered, there: Fraction(right == answered == there),
}


def _set_metric(metric: str, references: Sequence[str | Iterable[str]], task: Task) -> Scorer:
    formula = _SET_METRICS[metric]
    truths = [
        frozenset(
            task.vocabulary.match(name) or normalise(name) for name in _listed(index, reference)
        )
        for index, reference in enumerate(references)
    ]
    labels = frozenset(task.labels)
    best = []
    for truth in truths:  # the best answer names the labels that are there and have a name
        nameable = len(truth & labels)
        best.append(formula(nameable, nameable, len(truth)))

    def score(index: int, raw_text: str) -> Fraction:
        answer, truth = task.parse(raw_text).labels, truths[index]
        return formula(len(answer & truth), len(answer), len(truth))

    return _Scorer(metric, score, best)


def _exact(references: Sequence[Sequence[str]]) -> Scorer:
    spellings = [_Spellings(filter(None, map(normalise, texts))) for texts in references]
    _check_usable(spelling.all for spelling in spellings)
    return _Scorer(
        'exact',
        lambda index, raw_text: Fraction(normalise(raw_text) in spellings[index].all),
        [Fraction(1)] * len(spellings),
        spellings,
    )


def _contains(references: Sequence[Sequence[str]]) -> Scorer:
    wanted = [{f' {normal} ' for normal in map(normalise, t) if normal} for t in references]
    _check_usable(wanted)

    def score(index: int, raw_text: str) -> Fraction:
        answer = f' {normalise(raw_text)} '
        return Fraction(any(reference in answer for reference in wanted[index]))

    return _Scorer('contains', score, [Fraction(1)] * len(wanted))


def _vqa(references: Sequence[Sequence[str]]) -> Scorer:
    tables: list[dict[str, Fraction]] = []  # of the answers that score, per image
    for texts in references:
        counts = Counter(map(_vqa_form, texts))
        tables.append({form: _consensus(n, len(texts)) for form, n in counts.items() if form})
    _check_usable(tables)
    return _Scorer(
        'vqa',
        lambda index, raw_text: tables[index].get(_vqa_form(raw_text), Fraction(0)),
        [max(table.values()) for table in tables],
    )


def _consensus(equal: int, references: int) -> Fraction:
    """Return VQA's score of an answer that `equal` of the references give."""
    if references < _VQA_REFERENCES:
        return min(Fraction(equal, min(_VQA_ENOUGH, references)), Fraction(1))
    left_out_is_equal = min(Fraction(equal - 1, _VQA_ENOUGH), Fraction(1))
    left_out_is_other = min(Fraction(equal, _VQA_ENOUGH), Fraction(1))
    return (equal * left_out_is_equal + (references - equal) * left_out_is_other) / references


def _vqa_form(text: str) -> str:
    parts = words(_APOSTROPHE.sub('', text))
    parts = [word for word in parts if word not in ARTICLES] or parts
    return ' '.join(_DIGITS.get(word, word) for word in parts)


def _relaxed(references: Sequence[Sequence[str]]) -> Scorer:
    wanted = [[(_number(text), normalise(text)) for text in texts] for texts in references]
    _check_usable({normal for _, normal in of_image if normal} for of_image in wanted)

    def score(index: int, raw_text: str) -> Fraction:
        number, normal = _number(raw_text), normalise(raw_text)
        for right_number, right_normal in wanted[index]:
            if number is None or right_number is None:
                if normal and normal == right_normal:
                    return Fraction(1)
            elif abs(number - right_number) <= _RELAXED * abs(right_number):
                return Fraction(1)
        return Fraction(0)

    return _Scorer('relaxed', score, [Fraction(1)] * len(wanted))


def _number(text: str) -> Fraction | None:
    """Return the number that a text is: '12', '-1.5e3', '.5', '7%' (0.07) and '12.', or None."""
    match = _NUMBER.fullmatch(text.strip())
    if match is None:
        return None
    number = Fraction(match[1])
    return number / 100 if match[2] else number


def _cider(references: Sequence[Sequence[str]]) -> Scorer:
    tokens = _tokenised(references)
    cider = Cider(tokens)
    return _Scorer(
        'cider',
        lambda index, raw_text: cider.score(index, caption_tokens(raw_text)),
        [cider.best(index) for index in range(len(tokens))],
    )


def _rouge_l(references: Sequence[Sequence[str]]) -> Scorer:
    tokens = _tokenised(references)
    return _Scorer(
        'rouge_l',
        lambda index, raw_text: rouge_l(caption_tokens(raw_text), tokens[index]),
        [1.0] * len(tokens),  # of a reference itself
    )


_TEXT_METRICS: dict[str, Callable[[Sequence[Sequence[str]]], Scorer]] = {
    'exact': _exact,
    'vqa': _vqa,
    'relaxed': _relaxed,
    'contains': _contains,
    'rouge_l': _rouge_l,
    'cider': _cider,
}


def _tokenised(references: Sequence[Sequence[str]]) -> list[list[list[str]]]:
    tokens = [[caption_tokens(text) for text in texts] for texts in references]
    _check_usable([list(filter(None, of_image)) for of_image in tokens])
    return tokens


def _listed(index: int, reference: object) -> list[str]:
    """Return a reference as a list of texts; one text alone is a list of one."""
    listed = [reference] if isinstance(reference, str) else reference
    if not isinstance(listed, Iterable) or not all(isinstance(text, str) for text in listed):
        raise TaskError(f'references of image {index}: {reference!r} is no text or list of texts')
    return list(listed)


def _texts(index: int, reference: object) -> list[str]:
    texts = _listed(index, reference)
    if not texts:
        raise TaskError(f'references of image {index}: there is none; leave the image out')
    return texts


def _check_usable(references: Iterable[Sized]) -> None:
    for index, of_image in enumerate(references):
        if not of_image:
            raise TaskError(
                f'references of image {index}: none has a letter or digit; leave the image out'
            )
