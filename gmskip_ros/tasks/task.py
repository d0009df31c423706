"""The three tasks: what is asked, how an answer is read, compared and scored."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from gmskip_ros.tasks.errors import TaskError
from gmskip_ros.tasks.labels import resolve_labels
from gmskip_ros.tasks.metrics import accuracy, jaccard, rouge_l, set_precision
from gmskip_ros.tasks.normalisation import normalise, words
from gmskip_ros.tasks.vocabulary import Vocabulary

TASK_NAMES = ('single_object', 'multi_object', 'captioning')
DEFAULT_PROMPTS = {
    'single_object': 'What is the main object in this image? Answer with one word.',
    'multi_object': 'List all the objects in this image, separated by commas.',
    'captioning': 'Provide a one-sentence caption for the provided image.',
}
DEFAULT_MAX_NEW_TOKENS = {'single_object': 8, 'multi_object': 32, 'captioning': 64}
UNKNOWN = 'unknown'


@dataclass(frozen=True)
class ParsedAnswer:
    """One answer, read: `text` is for people, `labels` for scores, `raw_text` is what was said."""

    text: str
    labels: frozenset[str]
    in_vocabulary: bool
    raw_text: str


@dataclass(frozen=True)
class Agreement:
    """Whether the skip and the full branch said the same, and how near they came (0..1)."""

    agree: bool
    values: dict[str, float] = field(default_factory=dict)


class Task(ABC):
    """One of the three tasks with its settings; made by make_task."""

    name: str

    def __init__(
        self, prompt: str, max_new_tokens: int, labels: tuple[str, ...], synonyms: bool
    ) -> None:
        self.prompt = prompt
        self.max_new_tokens = max_new_tokens
        self.labels = labels
        self.vocabulary = Vocabulary(labels, synonyms)

    @abstractmethod
    def parse(self, raw_text: str) -> ParsedAnswer:
        """Return the answer as read from the model's text; any text can be read."""

    @abstractmethod
    def agreement(
        self,
        skip: ParsedAnswer,
        full: ParsedAnswer,
        skip_token_ids: Sequence[int],
        full_token_ids: Sequence[int],
    ) -> Agreement:
        """Return whether both branches' answers to one frame agree."""

    @abstractmethod
    def score(self, answer: ParsedAnswer, references: str | Iterable[str]) -> float:
        """Return the task's default metric for one answer, in 0..1.

        `references` are single_object: the label, or several that are all right; multi_object:
        the labels in the image; captioning: one or more captions. Labels are read as answers are.
        Raises TaskError where a task needs a reference and has none.
        """

    def _reference_labels(self, references: str | Iterable[str]) -> frozenset[str]:
        """Return the references as labels; one outside the set stays, and no answer equals it."""
        listed = [references] if isinstance(references, str) else references
        return frozenset(self.vocabulary.match(text) or normalise(text) for text in listed)


class SingleObject(Task):
    """The main object: one label, matched exactly after normalisation (the paper's protocol).

    'A car.' and 'Cars' are car; 'It is a car' and 'car, truck' are unknown.
    """

    name = 'single_object'

    def parse(self, raw_text: str) -> ParsedAnswer:
        label = self.vocabulary.match(raw_text)
        if label is None:
            return ParsedAnswer(UNKNOWN, frozenset(), False, raw_text)
        return ParsedAnswer(label, frozenset((label,)), True, raw_text)

    def agreement(
        self,
        skip: ParsedAnswer,
        full: ParsedAnswer,
        skip_token_ids: Sequence[int],
        full_token_ids: Sequence[int],
    ) -> Agreement:
        """Agree on the same label; two answers outside the set, if they say the same."""
        return Agreement(_name_the_same(skip, full))

    def score(self, answer: ParsedAnswer, references: str | Iterable[str]) -> float:
        """Return the accuracy: 1.0 or 0.0."""
        truths = self._reference_labels(references)
        if not truths:
            raise TaskError('references: there is none; single_object needs the right label')
        return max(
            (accuracy(label, truth) for label in answer.labels for truth in truths), default=0.0
        )


class MultiObject(Task):
    """All objects: a set of labels, read from a list; what is not in the label set is left out."""

    name = 'multi_object'
    _SEPARATORS = re.compile(r'[,;:\n]|\b\d+[.)]|\.(?=\s|$)')
    _AND = re.compile(r'\band\b|&', re.IGNORECASE)

    def parse(self, raw_text: str) -> ParsedAnswer:
        labels: dict[str, None] = {}  # in the order answered, each once
        for item in self._SEPARATORS.split(raw_text):
            whole = self.vocabulary.match(item)  # a label may contain an 'and' of its own
            found = [whole] if whole else map(self.vocabulary.match, self._AND.split(item))
            labels.update((label, None) for label in found if label)
        return ParsedAnswer(', '.join(labels) or UNKNOWN, frozenset(labels), bool(labels), raw_text)

    def agreement(
        self,
        skip: ParsedAnswer,
        full: ParsedAnswer,
        skip_token_ids: Sequence[int],
        full_token_ids: Sequence[int],
    ) -> Agreement:
        """Agree on the same set; without any label, if they say the same; value 'jaccard'."""
        agree = _name_the_same(skip, full)
        has_labels = skip.labels or full.labels
        return Agreement(
            agree, {'jaccard': jaccard(skip.labels, full.labels) if has_labels else float(agree)}
        )

    def score(self, answer: ParsedAnswer, references: str | Iterable[str]) -> float:
        """Return the set precision; an empty answer scores 0."""
        return set_precision(answer.labels, self._reference_labels(references))


class Captioning(Task):
    """One sentence; its labels are those of the set that it mentions."""

    name = 'captioning'

    def parse(self, raw_text: str) -> ParsedAnswer:
        text = raw_text.strip()
        return ParsedAnswer(text, self.vocabulary.find(text), bool(text), raw_text)

    def agreement(
        self,
        skip: ParsedAnswer,
        full: ParsedAnswer,
        skip_token_ids: Sequence[int],
        full_token_ids: Sequence[int],
    ) -> Agreement:
        """Agree on the same tokens; value 'rouge_l' of skip against full (1 if both are empty)."""
        said, reference = words(skip.text), words(full.text)
        value = 1.0 if said == reference else rouge_l(said, [reference])
        return Agreement(tuple(skip_token_ids) == tuple(full_token_ids), {'rouge_l': value})

    def score(self, answer: ParsedAnswer, references: str | Iterable[str]) -> float:
        """Return ROUGE-L over lower-case words without punctuation."""
        listed = [references] if isinstance(references, str) else references
        return rouge_l(words(answer.text), [words(reference) for reference in listed])


def _name_the_same(skip: ParsedAnswer, full: ParsedAnswer) -> bool:
    if skip.labels or full.labels:
        return skip.labels == full.labels
    return normalise(skip.raw_text) == normalise(full.raw_text)


_TASKS: dict[str, type[Task]] = {
    'single_object': SingleObject,
    'multi_object': MultiObject,
    'captioning': Captioning,
}


def make_task(
    name: str,
    *,
    prompt: str | None = None,
    labels: Sequence[str] = ('coda',),
    max_new_tokens: int | None = None,
    synonyms: bool = False,
) -> Task:
    """Return the task of that name; None stands for the task's default.

    `labels` is the name of a set or the labels themselves (see resolve_labels); `synonyms` also
    accepts other words for a label. Raises TaskError for settings that cannot work.
    """
    if name not in _TASKS:
        raise TaskError(f'task: {name!r} is unknown; use one of {", ".join(TASK_NAMES)}')
    if prompt is None:
        prompt = DEFAULT_PROMPTS[name]
    if not isinstance(prompt, str) or not prompt.strip():
        raise TaskError(f'prompt of {name}: {prompt!r} is empty; write a question or leave it out')
    if max_new_tokens is None:
        max_new_tokens = DEFAULT_MAX_NEW_TOKENS[name]
    if type(max_new_tokens) is not int or max_new_tokens < 1:
        raise TaskError(
            f'max_new_tokens of {name}: {max_new_tokens!r} must be a whole number of at least 1'
        )
    return _TASKS[name](prompt, max_new_tokens, resolve_labels(labels), synonyms)
