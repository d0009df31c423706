"""The tasks: their prompts, and how answers are read and compared."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from gmskip_ros.numbers import is_whole_number
from gmskip_ros.tasks.errors import TaskError
from gmskip_ros.tasks.labels import resolve_labels
from gmskip_ros.tasks.metrics import jaccard, rouge_l
from gmskip_ros.tasks.normalisation import normalise, words
from gmskip_ros.tasks.vocabulary import Vocabulary, without_sense

TASK_NAMES = ('single_object', 'multi_object', 'captioning')  # of the node
PRESENCE = 'presence'  # offline only
DEFAULT_PROMPTS = {
    'single_object': 'What is the main object in this image? Answer with one word.',
    'multi_object': 'List all the objects in this image, separated by commas.',
    'captioning': 'Provide a one-sentence caption for the provided image.',
    PRESENCE: 'Is there a {label} in the image? Answer yes or no.',
}
DEFAULT_MAX_NEW_TOKENS = {'single_object': 8, 'multi_object': 32, 'captioning': 64, PRESENCE: 4}
UNKNOWN = 'unknown'
LABEL_FIELD = '{label}'  # in the prompt of presence
YES, NO = 'yes', 'no'


@dataclass(frozen=True)
class ParsedAnswer:
    """An answer: `text` for people, `labels` for scores, `raw_text` as the model gave it."""

    text: str
    labels: frozenset[str]
    in_vocabulary: bool
    raw_text: str


@dataclass(frozen=True)
class Agreement:
    """Whether the skip and the full branch agree, and measures of similarity (0..1)."""

    agree: bool
    values: dict[str, float] = field(default_factory=dict)


class Task(ABC):
    """A task with its settings; created by make_task."""

    name: str

    def __init__(
        self, prompt: str, max_new_tokens: int, labels: tuple[str, ...], match: str
    ) -> None:
        self.prompt = prompt
        self.max_new_tokens = max_new_tokens
        self.labels = labels
        self.match = match
        self.vocabulary = Vocabulary(labels, match)

    @abstractmethod
    def parse(self, raw_text: str) -> ParsedAnswer:
        """Read an answer from the model's text; never fails."""

    @abstractmethod
    def agreement(
        self,
        skip: ParsedAnswer,
        full: ParsedAnswer,
        skip_token_ids: Sequence[int],
        full_token_ids: Sequence[int],
    ) -> Agreement:
        """Return whether both branches' answers to one frame agree."""


class SingleObject(Task):
    """The main object: one label.

    Except under match='content' the whole answer must be the label: 'A car.' is car, and 'It is a
    car' and 'car, truck' are unknown. That is our reading of the paper's protocol, which does not
    say how answers are compared.
    """

    name = 'single_object'

    def parse(self, raw_text: str) -> ParsedAnswer:
        label = self.vocabulary.match(raw_text)
        if label is None and self.vocabulary.content is not None:
            label = self.vocabulary.content.main_object(raw_text)
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
        """Agree if the labels are equal or, without labels, the normalised texts."""
        return Agreement(_have_same_answer(skip, full))


class MultiObject(Task):
    """All objects: a set of labels; others are ignored.

    They are read from a list, of which each item must be a label, or under match='content' wherever
    the answer mentions them.
    """

    name = 'multi_object'
    _SEPARATORS = re.compile(r'[,;:\n]|\b\d+[.)]|\.(?=\s|$)')
    _AND = re.compile(r'\band\b|&', re.IGNORECASE)

    def parse(self, raw_text: str) -> ParsedAnswer:
        if self.vocabulary.content is not None:
            labels = dict.fromkeys(self.vocabulary.content.mentioned(raw_text))
        else:
            labels = dict.fromkeys(self._listed(raw_text))
        return ParsedAnswer(', '.join(labels) or UNKNOWN, frozenset(labels), bool(labels), raw_text)

    def _listed(self, raw_text: str) -> Iterator[str]:
        for item in self._SEPARATORS.split(raw_text):
            whole = self.vocabulary.match(item)  # a label may contain 'and'
            found = [whole] if whole else map(self.vocabulary.match, self._AND.split(item))
            yield from filter(None, found)

    def agreement(
        self,
        skip: ParsedAnswer,
        full: ParsedAnswer,
        skip_token_ids: Sequence[int],
        full_token_ids: Sequence[int],
    ) -> Agreement:
        """Agree if the sets are equal or, without labels, the normalised texts; value 'jaccard'."""
        agree = _have_same_answer(skip, full)
        has_labels = skip.labels or full.labels
        return Agreement(
            agree, {'jaccard': jaccard(skip.labels, full.labels) if has_labels else float(agree)}
        )


class Captioning(Task):
    """One sentence; its labels are those that it mentions."""

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
        """Agree if the tokens are equal; value 'rouge_l' of skip against full (1 if both empty)."""
        candidate, reference = words(skip.text), words(full.text)
        value = 1.0 if candidate == reference else rouge_l(candidate, [reference])
        return Agreement(tuple(skip_token_ids) == tuple(full_token_ids), {'rouge_l': value})


class Presence(Task):
    """Whether the image shows a label: yes or no, read as POPE's evaluation script reads answers.

    Its prompt is a template with {label}. Not a task of the node.
    """

    name = PRESENCE
    _ARTICLE = re.compile(r'\b([Aa])n?(?=\s+' + re.escape(LABEL_FIELD) + ')')

    def __init__(
        self, prompt: str, max_new_tokens: int, labels: tuple[str, ...], match: str
    ) -> None:
        if LABEL_FIELD not in prompt:
            raise TaskError(
                f'prompt of presence: {prompt!r} has no {LABEL_FIELD}; write it where the label is '
                'asked about'
            )
        super().__init__(prompt, max_new_tokens, labels, match)

    def question(self, label: str) -> str:
        """Return the question about a label, with 'an' before a, e, i, o and u, as in POPE.

        For LVIS's 'car_(automobile)' it asks about 'car', unless that may mean another label.
        """
        if self.vocabulary.label_named(without_sense(label)) == label:
            label = without_sense(label)
        article = r'\1n' if label[:1].lower() in tuple('aeiou') else r'\1'
        template = self._ARTICLE.sub(article, self.prompt)
        return template.replace(LABEL_FIELD, label.replace('_', ' '))

    def template_of(self, question: str, label: str) -> str:
        """Return the template of a question about a label, with {label} in its place."""
        template = re.sub(rf'\b{re.escape(label)}\b', LABEL_FIELD, question, count=1)
        return self._ARTICLE.sub(r'\1', template)

    def parse(self, raw_text: str) -> ParsedAnswer:
        """Read 'yes' or 'no'; `in_vocabulary` says whether the answer has such a word.

        No if the words of the first sentence, without commas, contain 'No', 'no' or 'not'; anything
        else, an empty answer included, is yes. Source: RUCAIBox/POPE, evaluate.py.
        """
        first_words = raw_text.strip().split('.')[0].replace(',', '').split(' ')
        is_no = not _NEGATIONS.isdisjoint(first_words)
        text = NO if is_no else YES
        return ParsedAnswer(text, frozenset((text,)), is_no or YES in words(raw_text), raw_text)

    def is_settled(self, text_so_far: str) -> bool:
        """Return whether every answer that begins like this is read alike."""
        sentence, period, _ = text_so_far.lstrip().partition('.')
        complete = sentence.replace(',', '').split(' ')[:-1]  # the last word may become longer
        return bool(period) or not _NEGATIONS.isdisjoint(complete)

    def agreement(
        self,
        skip: ParsedAnswer,
        full: ParsedAnswer,
        skip_token_ids: Sequence[int],
        full_token_ids: Sequence[int],
    ) -> Agreement:
        """Agree if both are yes or both are no."""
        return Agreement(skip.text == full.text)


_NEGATIONS = frozenset(('No', 'no', 'not'))


def _have_same_answer(skip: ParsedAnswer, full: ParsedAnswer) -> bool:
    if skip.labels or full.labels:
        return skip.labels == full.labels
    return normalise(skip.raw_text) == normalise(full.raw_text)


_TASKS: dict[str, type[Task]] = {
    'single_object': SingleObject,
    'multi_object': MultiObject,
    'captioning': Captioning,
    PRESENCE: Presence,
}


def make_task(
    name: str,
    *,
    prompt: str | None = None,
    labels: Sequence[str] = ('coda',),
    max_new_tokens: int | None = None,
    match: str | None = None,
    synonyms: bool = False,
) -> Task:
    """Return the task of this name; None selects the task's default.

    `labels` is the name of a set or the labels themselves (see resolve_labels). `match` is how
    answers are read:

    - strict: the whole answer is the label (case, punctuation, underscores, hyphens and a leading
      article do not count);
    - forms (default): or its plural or singular;
    - synonyms: or a synonym, 'person' for pedestrian;
    - content: the answer mentions the label or a synonym, and does not negate it; the main object
      is the head noun, else the first label mentioned (see gmskip_ros.tasks.content).

    `synonyms=True` is the older way to write match='synonyms'. Raises TaskError for invalid
    settings.
    """
    if name not in _TASKS:
        raise TaskError(f'task: {name!r} is unknown; use one of {", ".join(_TASKS)}')
    if prompt is None:
        prompt = DEFAULT_PROMPTS[name]
    if not isinstance(prompt, str) or not prompt.strip():
        raise TaskError(
            f'prompt of {name}: {prompt!r} is not a question; write one, or omit it for the default'
        )
    if max_new_tokens is None:
        max_new_tokens = DEFAULT_MAX_NEW_TOKENS[name]
    if not is_whole_number(max_new_tokens) or max_new_tokens < 1:
        raise TaskError(
            f'max_new_tokens of {name}: {max_new_tokens!r} is not a whole number of 1 or more'
        )
    if match is None:
        match = 'synonyms' if synonyms else 'forms'
    elif synonyms and match != 'synonyms':
        raise TaskError(f"match: {match!r} contradicts synonyms=True, which is match='synonyms'")
    return _TASKS[name](prompt, max_new_tokens, resolve_labels(labels), match)
