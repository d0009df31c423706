"""Scorers: one metric over the references of a fixed list of images."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence, Sized
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any, Protocol

from gmskip_ros.tasks.benchmark_forms import (
    exact_form,
    is_relaxed_correct,
    may_become_number,
    ocrbench_form,
    vqa_form,
)
from gmskip_ros.tasks.cider import Cider
from gmskip_ros.tasks.errors import TaskError
from gmskip_ros.tasks.metrics import SET_METRICS, rouge_l
from gmskip_ros.tasks.normalisation import ARTICLES, normalise, words
from gmskip_ros.tasks.task import NO, PRESENCE, YES, Presence, Task
from gmskip_ros.tasks.tokenizer import caption_tokens

# Counts and ratios of counts are Fractions, so that ties are exact; CIDEr and ROUGE-L are floats.
Score = Fraction | float

# Task -> its metrics, the default first. 'generic' stands for any question with reference texts.
METRICS: dict[str, tuple[str, ...]] = {
    'single_object': ('accuracy',),
    # Not precision, the paper's: the least an answer may name is what scores best.
    'multi_object': ('set_f1', 'set_precision', 'set_recall', 'set_exact_match'),
    'captioning': ('cider', 'rouge_l'),
    PRESENCE: ('accuracy',),
    'generic': ('exact', 'vqa', 'relaxed', 'contains', 'rouge_l', 'cider'),
}

_MAX_CACHED = 1 << 16  # answers whose score is cached, per scorer
_NOT_ASCII_AT_END = re.compile(r'[^\x00-\x7f]+\Z')
_VQA_REFERENCES = 10  # per question in VQA
_VQA_ENOUGH = 3  # equal references for a score of 1


@dataclass(frozen=True)
class Absent:
    """Reference of an image without `label`: any other answer is right."""

    label: str


class Formula(str):
    """Reference text that is a formula: `contains` compares it without spaces."""


class Scorer(Protocol):
    """One metric over one list of references, indexed by image; created by make_scorer."""

    metric: str

    def score(self, index: int, raw_text: str) -> Score:
        """Return the score of a model's raw answer, in 0..best(index); any text has a score."""

    def best(self, index: int) -> Score:
        """Return an upper bound of the score of any text."""

    def is_decided(self, index: int, text_so_far: str) -> bool:
        """Return whether every text that begins like this has the same score; False if unknown.

        `text_so_far` is the decoded first tokens of an answer. It may end within a word or a
        character: trailing characters outside ASCII, replacement characters among them, are
        treated as not yet generated.
        """


def make_scorer(metric: str, references: Sequence[Any], task: Task | None = None) -> Scorer:
    """Return the scorer of a metric of a task (None: the generic task) for these references.

    references[i], of image i, is the right label for single_object, or Absent(label) if any
    answer except that label is right; the labels in the image for multi_object; 'yes' or 'no' for
    presence; the right texts for captioning and generic. A list of one label or text may be given
    as the label or text.

    - accuracy: 1 if the answer is the label, or yes or no as it is right, else 0.
    - set_precision, set_recall, set_f1, set_exact_match: see gmskip_ros.tasks.metrics. A label
      outside the task's label set remains among the references, and no answer can match it.
    - cider: CIDEr-D, 0..10 (see Cider); rouge_l: see there; both on caption_tokens.
    - exact: 1 if the answer equals a reference after normalisation (see exact_form), else 0; the
      rules are ours and claim no benchmark.
    - contains: OCRBench's score: 1 if the answer contains a reference, in any place and case, else
      0; a Formula is compared without spaces (see ocrbench_form).
    - vqa: consensus accuracy of VQA (Antol et al. 2015, arXiv:1505.00468, as in its evaluation
      code): min(equal references / 3, 1), averaged over the lists without one of the references.
      With fewer than 10 references all are used, and the 3 is their number if that is smaller.
      Texts are compared as that code prepares them (see vqa_form), which it does not do where all
      references are equal: there it finds 'Yes' different from ten times 'yes', and here it is the
      same, as it is for answers in lower case, which is how they are submitted.
    - relaxed: relaxed accuracy of ChartQA (Masry et al. 2022, arXiv:2203.10244), best of the
      references: see is_relaxed_correct.

    Raises TaskError for a metric that the task does not have, an empty list, and references that
    cannot be scored.
    """
    name = 'generic' if task is None else task.name
    if metric not in METRICS[name]:
        raise TaskError(f'metric: {name} has no {metric!r}; use one of {", ".join(METRICS[name])}')
    if not references:
        raise TaskError('references: the list is empty; give at least one image')
    if isinstance(task, Presence):
        return _presence(references, task)
    if task is not None and metric == 'accuracy':
        return _accuracy(references, task)
    if task is not None and metric in SET_METRICS:
        return _set_metric(metric, references, task)
    texts = [_texts(index, reference) for index, reference in enumerate(references)]
    return _TEXT_METRICS[metric](texts)


class _Scorer:
    """A Scorer made from functions and each image's best score."""

    def __init__(
        self,
        metric: str,
        score: Callable[[int, str], Score],
        best: Sequence[Score],
        is_decided: Callable[[int, str], bool] | None = None,
    ) -> None:
        self.metric = metric
        self._score = lru_cache(maxsize=_MAX_CACHED)(score)  # most candidates answer the same
        self._best = best
        self._is_decided = is_decided

    def score(self, index: int, raw_text: str) -> Score:
        return self._score(index, raw_text)

    def best(self, index: int) -> Score:
        return self._best[index]

    def is_decided(self, index: int, text_so_far: str) -> bool:
        return self._is_decided is not None and self._is_decided(index, text_so_far)


class _Spellings:
    """Normalised texts, and whether an unfinished answer can still become one of them."""

    def __init__(self, spellings: Iterable[str]) -> None:
        self.all = frozenset(spellings)
        self._beginnings = frozenset(text[:n] for text in self.all for n in range(len(text) + 1))

    def can_be_reached(self, text_so_far: str) -> bool:
        # A byte-level tokenizer may change trailing characters outside ASCII with the next byte.
        certain = _NOT_ASCII_AT_END.sub('', text_so_far)
        parts = words(certain)
        while len(parts) > 1 and parts[0] in ARTICLES:
            parts = parts[1:]
        in_word = certain[-1:].isalnum()  # the last word may become longer
        if len(parts) < 2 and (
            not parts
            or parts[0] in ARTICLES
            or (in_word and any(article.startswith(parts[0]) for article in ARTICLES))
        ):
            return True  # perhaps only an article so far: 't' may become 'the car'
        beginning = ' '.join(parts)
        if in_word:
            return beginning in self._beginnings
        return beginning in self.all or f'{beginning} ' in self._beginnings


def _accuracy(references: Sequence[str | Absent], task: Task) -> Scorer:
    truths: list[tuple[str, bool]] = []  # (label, whether it is the right one or the wrong one)
    for index, reference in enumerate(references):
        name = reference.label if isinstance(reference, Absent) else reference
        label = task.vocabulary.label_named(name) if isinstance(name, str) else None
        if label is None:
            raise TaskError(
                f'reference of image {index}: {name!r} is not in the label set; '
                'add it to the labels or remove the image'
            )
        truths.append((label, not isinstance(reference, Absent)))

    def score(index: int, raw_text: str) -> Fraction:
        label, is_right = truths[index]
        return Fraction((label in task.parse(raw_text).labels) is is_right)

    return _Scorer(
        'accuracy', score, [Fraction(1)] * len(truths), _decided_label(task, [t[0] for t in truths])
    )


def _presence(references: Sequence[str], task: Presence) -> Scorer:
    for index, reference in enumerate(references):
        if reference not in (YES, NO):
            raise TaskError(f"reference of question {index}: {reference!r} is not 'yes' or 'no'")
    return _Scorer(
        'accuracy',
        lambda index, raw_text: Fraction(task.parse(raw_text).text == references[index]),
        [Fraction(1)] * len(references),
        lambda _, text: task.is_settled(text),
    )


def _decided_label(task: Task, truths: Sequence[str]) -> Callable[[int, str], bool]:
    """Return whether an unfinished answer, for an image with this label, can change its score."""
    spellings = {label: _Spellings(task.vocabulary.spellings(label)) for label in task.labels}
    content = task.vocabulary.content
    if content is None:
        return lambda index, text: not spellings[truths[index]].can_be_reached(text)

    def is_settled(_: int, text: str) -> bool:
        settled = content.settled_main_object(text)
        # A whole answer that spells a label is that label, even across the end of a sentence.
        return settled is not None and not any(
            spelt.can_be_reached(text) for label, spelt in spellings.items() if label != settled
        )

    return is_settled


def _set_metric(metric: str, references: Sequence[str | Iterable[str]], task: Task) -> Scorer:
    score_sets = SET_METRICS[metric]
    truths = [
        frozenset(
            task.vocabulary.label_named(name) or normalise(name)
            for name in _listed(index, reference)
        )
        for index, reference in enumerate(references)
    ]
    # The best answer names all labels in the image that are in the label set.
    best = [score_sets(truth & frozenset(task.labels), truth) for truth in truths]

    def score(index: int, raw_text: str) -> Fraction:
        return score_sets(task.parse(raw_text).labels, truths[index])

    return _Scorer(metric, score, best)


def _exact(references: Sequence[Sequence[str]]) -> Scorer:
    spellings = [_Spellings(filter(None, map(exact_form, texts))) for texts in references]
    _check_usable(spelling.all for spelling in spellings)
    has_number = [any(map(may_become_number, spelling.all)) for spelling in spellings]

    def is_decided(index: int, text: str) -> bool:
        if has_number[index] and may_become_number(_NOT_ASCII_AT_END.sub('', text)):
            return False
        return not spellings[index].can_be_reached(text)

    return _Scorer(
        'exact',
        lambda index, raw_text: Fraction(exact_form(raw_text) in spellings[index].all),
        [Fraction(1)] * len(spellings),
        is_decided,
    )


def _contains(references: Sequence[Sequence[str]]) -> Scorer:
    _check_usable([text for text in texts if normalise(text)] for texts in references)
    wanted = [
        {(isinstance(text, Formula), form) for text in texts if (form := _contained_form(text))}
        for texts in references
    ]

    def score(index: int, raw_text: str) -> Fraction:
        return Fraction(
            any(form in ocrbench_form(raw_text, is_formula) for is_formula, form in wanted[index])
        )

    return _Scorer('contains', score, [Fraction(1)] * len(wanted))


def _contained_form(text: str) -> str:
    return ocrbench_form(text, isinstance(text, Formula))


def _vqa(references: Sequence[Sequence[str]]) -> Scorer:
    tables: list[dict[str, Fraction]] = []  # per image: answers that score above 0
    for texts in references:
        counts = Counter(map(vqa_form, texts))
        tables.append({form: _consensus(n, len(texts)) for form, n in counts.items() if form})
    _check_usable(tables)
    return _Scorer(
        'vqa',
        lambda index, raw_text: tables[index].get(vqa_form(raw_text), Fraction(0)),
        [max(table.values()) for table in tables],
    )


def _consensus(equal: int, references: int) -> Fraction:
    """Return VQA's score of an answer that equals `equal` of the references."""
    if references < _VQA_REFERENCES:
        return min(Fraction(equal, min(_VQA_ENOUGH, references)), Fraction(1))
    without_equal = min(Fraction(equal - 1, _VQA_ENOUGH), Fraction(1))
    without_other = min(Fraction(equal, _VQA_ENOUGH), Fraction(1))
    return (equal * without_equal + (references - equal) * without_other) / references


def _relaxed(references: Sequence[Sequence[str]]) -> Scorer:
    _check_usable([text for text in texts if normalise(text)] for texts in references)
    wanted = [[text for text in texts if text.strip()] for texts in references]

    def score(index: int, raw_text: str) -> Fraction:
        return Fraction(any(is_relaxed_correct(raw_text, text) for text in wanted[index]))

    return _Scorer('relaxed', score, [Fraction(1)] * len(wanted))


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
        [1.0] * len(tokens),  # the score of a reference
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
    """Return a reference as a list of texts; a single text becomes a list of one."""
    listed = [reference] if isinstance(reference, str) else reference
    if not isinstance(listed, Iterable) or not all(isinstance(text, str) for text in listed):
        raise TaskError(
            f'references of image {index}: {reference!r} is neither a text nor a list of texts'
        )
    return list(listed)


def _texts(index: int, reference: object) -> list[str]:
    texts = _listed(index, reference)
    if not texts:
        raise TaskError(f'references of image {index}: the list is empty; remove the image')
    return texts


def _check_usable(references: Iterable[Sized]) -> None:
    for index, of_image in enumerate(references):
        if not of_image:
            raise TaskError(
                f'references of image {index}: none has a letter or digit; remove the image'
            )
