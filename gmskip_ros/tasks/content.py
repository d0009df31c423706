"""Reading by content: which labels a text mentions, and which of them is its main object."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from gmskip_ros.tasks.normalisation import ARTICLES, normalise, plurals
from gmskip_ros.tasks.synonyms import (
    ADJECTIVES,
    CAPTION_WORDS,
    HEAD_NOUNS,
    HEAD_NOUNS_AT_END,
    NOT_LABELS,
    SYNONYMS,
)

_SENTENCE = re.compile(r'[.!?;\n]')
# A word (with its apostrophes), a joint between words, or any other mark: a break between phrases.
_PIECE = re.compile(r"([^\W_]+(?:'[^\W_]+)*)|(?<=[^\W_])[-_](?=[^\W_])|[\s_]+|(.)")
_BREAK = ','
_NUMBERS = 'one two three four five six seven eight nine ten several some many few both'.split()
_DETERMINERS = frozenset((*ARTICLES, *_NUMBERS, 'his', 'her', 'their', 'its', 'another'))
_COPULAS = frozenset(
    "is are was were be being been isn't aren't wasn't weren't appears appear seems seem".split()
)
_PREPOSITIONS = frozenset(
    'in on at near behind beside besides next inside outside under above below over across along '
    'between among around from with through against towards toward by before'.split()
)
_NEGATORS = frozenset(
    'no not without cannot neither nor never zero 0 lacks lack lacking isnt arent dont doesnt'
    ' cant'.split()
)
_BEFORE_OBJECTS = _COPULAS | frozenset(
    'has have with see shows show contains contain features includes depicts'.split()
)
_ALL = frozenset('all every everyone everybody'.split())  # 'not all cars are moving': some are
_HARDLY = frozenset('hardly barely scarcely'.split())  # any
_EMPTY_OF = frozenset('free absence devoid empty absent void clear lack'.split())  # of, from
# 'no cars but a bus', 'not only a car', 'not sure, ...', 'no less than two cars'.
_END_OF_NEGATION = frozenset(
    'but just only merely simply instead however except although though while because rather it '
    "it's there there's this that these those sure certain clear know tell doubt than many so "
    'then where'.split()
)
_COLOURS = 'white black red blue green yellow brown gray grey silver pink'.split()
_NOTHING = frozenset('none no 0 zero absent'.split())  # 'Cars: none'
_NOT_APPLICABLE = re.compile(r'\bn/a\b')
_NO = re.compile(r'\s*no\b')  # 'Is there a dog? No.'
_INSTEAD = frozenset((('instead', 'of'), ('rather', 'than')))  # 'a cat instead of a dog'
# 'I am not sure if there is a dog', 'unclear whether a dog is present'; but not '... if the dog is
# asleep'.
_WHETHER = frozenset('whether if'.split())
_DOUBT = frozenset(
    'sure certain clear unclear uncertain unsure know tell determine say see doubt confirm'.split()
)
_SUPPOSED = frozenset('there a an any this that it'.split())
_UNSEEN = re.compile(
    r"(?: (?:is|are|was|were) not| (?:isn't|aren't|wasn't|weren't)| can ?not be| can't be)"
    r'(?: (?:(?!all )\w+ )?(?:visible|present|shown|seen|there|here'
    r'|pictured|depicted|detected|found'
    r'|in (?:the |this )?(?:image|picture|photo|scene|frame|view|sight))(?= |$)|(?= ,|$))'
    r'| (?:is|are) (?:absent|missing|nowhere)(?= |$)'
)
# 'a pair of skis', 'any of the cars': what follows 'of' is meant.
_MEASURES = frozenset(
    'any all none neither either each one both pair pairs couple group groups number lot lots row '
    'rows line lines kind kinds sort type types piece pieces slice slices bunch crowd flock herd '
    'sign signs trace traces'.split()
)
# 'Parked next to the bus is a truck', 'On the bench lies a cat', 'In front of it we see a car'.
_INVERTED = _COPULAS | frozenset(
    'lies lie sits sit stands stand hangs hang rests waits wait see'.split()
)
_CONCESSIONS = frozenset('although though while whereas despite unlike'.split())
_MAIN_OBJECT = re.compile(
    r'(?:the |this |its |my )?(?:\w+ ){0,3}?(?:object|subject|focus|item|thing|element|answer) '
)
_CYCLIST_LABELS = ('cyclist', 'bicyclist', 'biker', 'motorcyclist', 'rider')
_TWO_WHEELERS = 'bicycle bike motorcycle motorbike moped scooter cycle tandem vespa'.split()


@dataclass(eq=False)  # hashable: compared with sets of words
class _Mention:
    label: str | None  # None: names none of the labels after all
    spelling: str
    plural: bool


class ContentReader:
    """Finds the labels that a text means, by rules for English noun phrases.

    - Labels and their synonyms are found as whole words, from left to right, the longest first:
      'fire truck' is a truck, 'hot dog' not a dog. None extends across punctuation. Labels of
      several words may be written as one.
    - A noun describes the noun right after it, so of several in a row only the last counts: a 'bus
      driver' is a person, an 'orange car' a car; a 'bus stop', a 'car door' and an 'orange vest'
      are none of these. Three or more labels in a row are a list.
    - 'No', 'not', 'without' and the like, but not 'not all', exclude what follows: to the end of
      the clause or the next 'but', preposition or article after a comma. 'Cars: none' and 'cars are
      not visible' exclude cars; 'the owner of the dog is not visible' does not exclude the dog.
    - Somebody riding a bicycle or a motorcycle is a cyclist, if that is one of the labels.
    - The main object is the first one mentioned, which is the head of an English noun phrase: 'a
      bowl of oranges' is a bowl. An introduction is passed over: 'Next to the bus is a dog', 'The
      main object in front of the bus is a car'. The first sentence that mentions a label decides.
    """

    def __init__(self, labels: Sequence[str], forms: Mapping[str, str]) -> None:
        """Take the labels and all normalised spellings of them: form -> label."""
        known: dict[str, str | None] = dict(forms)
        self._plurals = {form for single in known for form in plurals(single) if form in known}
        self._plurals -= {form for form in known if form in plurals(form)}  # sheep
        self._plurals.update({'people', 'cattle', 'oxen', 'luggage', 'livestock'} & known.keys())
        for form in [form for form in known if ' ' in form]:
            known.setdefault(form.replace(' ', ''), known[form])
        for phrase in NOT_LABELS:
            for form in (phrase, *plurals(phrase)):
                known.setdefault(form, None)
        self._forms = known
        self._longest = max(len(form.split()) for form in known)
        own = {normalise(label): label for label in labels}
        self._cyclist = next((name for name in _CYCLIST_LABELS if name in own), None)

    def mentioned(self, text: str) -> tuple[str, ...]:
        """Return the labels that a text mentions, in order, each once."""
        found: dict[str, None] = {}
        for sentence in _sentences(_cleaned(text)):
            for item in self._read(sentence):
                if isinstance(item, _Mention) and item.label is not None:
                    found[item.label] = None
        return tuple(found)

    def main_object(self, text: str) -> str | None:
        """Return the label of a text's main object, or None."""
        for sentence in _sentences(_cleaned(text)):
            if (label := self._main_object_of(sentence)) is not None:
                return label
        return None

    def settled_main_object(self, text_so_far: str) -> str | None:
        """Return the main object of every text that begins like this, or None if that is open.

        It is settled once a sentence with a label has ended; within it a later word can change the
        reading ('car', 'car park'; 'cars', 'cars are not visible'), and after a question so can the
        next sentence.
        """
        cleaned = _cleaned(text_so_far)
        *ended, begun = _SENTENCE.split(cleaned)
        settled = cleaned[: len(cleaned) - len(begun)]
        if settled.endswith('?'):
            settled = settled[: len(settled) - len(ended[-1]) - 1]
        return next(filter(None, map(self._main_object_of, _sentences(settled))), None)

    def _main_object_of(self, sentence: str) -> str | None:
        items = self._read(sentence)
        start = _end_of_introduction(items)
        for item in (*items[start:], *items[:start]):
            if isinstance(item, _Mention) and item.label is not None:
                return item.label
        return None

    def _read(self, sentence: str) -> list[str | _Mention]:
        """Return the words and mentions of a sentence; excluded mentions have no label."""
        items = self._find(self._with_cyclists(_words_of(sentence)))
        _drop_modifiers(items)
        _exclude_negated(items)
        _exclude_unseen(items)
        return items

    def _find(self, words: Sequence[str]) -> list[str | _Mention]:
        items: list[str | _Mention] = []
        start = 0
        while start < len(words):
            for length in range(min(self._longest, len(words) - start), 0, -1):
                end = start + length
                form = ' '.join(words[start:end])
                if form not in self._forms:
                    form = form.removesuffix("'s")
                is_label = form in self._forms
                if form in ARTICLES:  # 'A' may be a label, but only on its own
                    is_label &= words[start - 1 : start] in ([], [_BREAK])
                    is_label &= words[end : end + 1] in ([], [_BREAK])
                if is_label:
                    items.append(_Mention(self._forms[form], form, form in self._plurals))
                    start = end
                    break
            else:
                items.append(words[start])
                start += 1
        return items

    def _with_cyclists(self, words: list[str]) -> list[str]:
        """Replace 'man riding a bicycle' with 'cyclist', if that is a label."""
        if self._cyclist is None:
            return words
        text = ' '.join(words)
        text = _RIDERS.sub(lambda m: f'{self._cyclist}{m["between"] or ""}', text)
        return _RIDING.sub(self._cyclist, text).split()


def _cleaned(text: str) -> str:
    return _NOT_APPLICABLE.sub('none', text.casefold().replace('\u2019', "'"))


def _sentences(text: str) -> list[str]:
    """Return the sentences of a cleaned text, without questions that are answered by 'no'."""
    sentences = _SENTENCE.split(text)
    ends = _SENTENCE.findall(text)
    kept = []
    is_denied = False
    for sentence, end, following in zip(sentences, [*ends, ''], [*sentences[1:], ''], strict=True):
        was_denied, is_denied = is_denied, end == '?' and bool(_NO.match(following))
        if not is_denied:
            kept.append(_NO.sub('', sentence, count=1) if was_denied else sentence)
    return kept


def _words_of(sentence: str) -> list[str]:
    """Return the words of a sentence, with ',' for each break between phrases."""
    words: list[str] = []
    for piece in _PIECE.finditer(sentence):
        word = piece[1] or ('and' if piece[2] == '&' else piece[2] and _BREAK)
        if word and not (word == _BREAK and words[-1:] == [_BREAK]):
            words.append(word)
    return words


def _drop_modifiers(items: list[str | _Mention]) -> None:
    """Take the label from mentions that describe the noun after them."""
    for start, end in _rows_of_mentions(items):
        row = [item for item in items[start:end] if isinstance(item, _Mention)]
        following, after_it = [*items[end : end + 2], _BREAK, _BREAK][:2]
        last = row[-1]
        assert isinstance(following, str)
        if not last.plural and (
            following in HEAD_NOUNS
            or (
                following in HEAD_NOUNS_AT_END
                and after_it == _BREAK
                and (last.spelling == 'pedestrian' or last.spelling not in _PEOPLE)
            )
            or (
                last.spelling in ADJECTIVES
                and (_is_noun(following) or (following == 'and' and after_it in _COLOURS))
            )
        ):
            last.label = None
        elif last.spelling in ADJECTIVES and _is_predicate(items, start):
            last.label = None
        if len({mention.label for mention in row}) > 2:
            continue
        for mention, after in itertools.pairwise(row):
            is_verb = after.plural and mention.spelling in _PEOPLE  # 'a man skis'
            if is_verb and mention.label != after.label:
                after.label = None
            elif not mention.plural and mention.label != after.label:
                mention.label = None


def _rows_of_mentions(items: Sequence[str | _Mention]) -> list[tuple[int, int]]:
    rows: list[tuple[int, int]] = []
    for index, item in enumerate(items):
        if isinstance(item, _Mention):
            if rows and rows[-1][1] == index:
                rows[-1] = (rows[-1][0], index + 1)
            else:
                rows.append((index, index + 1))
    return rows


def _is_noun(word: str) -> bool:
    """Return whether a word after an adjective may be the noun that it describes."""
    return word.isalpha() and not (
        word in _PREPOSITIONS
        or word in _COPULAS
        or word
        in ('and', 'or', 'of', 'to', 'that', 'which', 'who', 'not', 'for', 'has', 'have', 'can')
        or word in ('slice', 'slices', 'segment', 'segments', 'fruit', 'fruits')
        or word.endswith(('ed', 'ly'))
        or _is_participle(word)
    )


def _is_predicate(items: Sequence[str | _Mention], index: int) -> bool:
    """Return whether a colour is said of something: 'the car is orange', 'a bright orange'."""
    before = items[index - 1] if index else None
    return before in ('is', 'are', 'bright', 'dark', 'light', 'in', 'painted', 'color', 'colour')


def _exclude_negated(items: Sequence[str | _Mention]) -> None:
    """Take the label from mentions within the reach of a negation or a doubt."""
    for start in range(len(items)):
        end = max(_end_of_negation(items, start), _end_of_doubt(items, start))
        for item in items[start:end]:
            if isinstance(item, _Mention):
                item.label = None


def _negates(items: Sequence[str | _Mention], index: int) -> bool:
    item = items[index]
    before = items[index - 1] if index else None
    following = items[index + 1] if index + 1 < len(items) else None
    return isinstance(item, str) and (
        item in _NEGATORS
        or item.endswith("n't")
        or (before, item) in _INSTEAD
        or (item in _EMPTY_OF and following in ('of', 'from'))
        or (item in _HARDLY and following == 'any')
    )


def _end_of_negation(items: Sequence[str | _Mention], start: int) -> int:
    """Return where what a negator at `start` excludes ends; `start` if it excludes nothing.

    The next negator has a reach of its own.
    """
    if not _negates(items, start):
        return start
    negator, *rest = items[start : start + 2]
    if negator == 'not' and not _ALL.isdisjoint(rest):
        return start
    wears = negator == 'without' or (negator == 'not' and rest == ['wearing'])
    # 'There are no cars and people are walking', 'The train is not moving and people are waiting';
    # but 'No cars and trucks are visible', 'I don't think cars and trucks are visible'.
    before = items[start - 1] if start else None
    is_of_verb = negator in _COPULAS or before in (
        _COPULAS if negator == 'not' else _BEFORE_OBJECTS
    )
    has_article = False
    for index in range(start + 1, len(items)):
        item = items[index]
        if isinstance(item, _Mention):
            continue
        at_once = index == start + 1
        has_article = has_article or item in _DETERMINERS
        if _negates(items, index):
            return index
        if item == _BREAK:
            if at_once or not _goes_on(items[index + 1 :]):
                return index
        elif item == 'and':
            is_complement = not _WHETHER.isdisjoint(items[start:index])
            if _begins_anew(items, index + 1) or (
                is_of_verb and not is_complement and _is_subject(items, index + 1)
            ):
                return index
        elif wears and has_article and (_is_participle(item) or item in _COPULAS):
            return index  # 'a shirt holding a dog'
        elif item in _END_OF_NEGATION or (item in _PREPOSITIONS and not at_once):
            if not (item == 'from' and items[index - 1] in _EMPTY_OF):
                return index
    return len(items)


def _end_of_doubt(items: Sequence[str | _Mention], start: int) -> int:
    """Return the end of the clause that 'whether' at `start` begins; `start` if there is none."""
    if (
        items[start] in _WHETHER
        and start + 1 < len(items)
        and items[start + 1] in _SUPPOSED
        and not _DOUBT.isdisjoint(items[:start])
    ):
        return next(
            (index for index in range(start, len(items)) if items[index] in (_BREAK, 'but')),
            len(items),
        )
    return start


def _is_participle(word: str) -> bool:
    return word.endswith('ing') and word not in ('building', 'railing', 'ceiling', 'clothing')


def _begins_anew(items: Sequence[str | _Mention], index: int) -> bool:
    item = items[index] if index < len(items) else None
    return isinstance(item, str) and (
        item in _DETERMINERS or item in _END_OF_NEGATION or item.isdigit()
    )


def _is_subject(items: Sequence[str | _Mention], index: int) -> bool:
    """Return whether a clause begins here: 'is not moving and people are waiting'."""
    mention, *verb = items[index : index + 2]
    return isinstance(mention, _Mention) and bool(verb) and verb[0] in _COPULAS


def _goes_on(items: Sequence[str | _Mention]) -> bool:
    """Return whether a negation continues after a comma: 'no cars, trucks or buses'."""
    if _begins_anew(items, 0):
        return False
    for item in items:
        if item in ('or', 'nor'):
            return True
        if isinstance(item, str) and (item in _NEGATORS or item in _END_OF_NEGATION):
            return False
    return False


def _exclude_unseen(items: Sequence[str | _Mention]) -> None:
    """Take the label from mentions said to be absent: 'cars: none', 'cars are not visible'."""
    words = [item if isinstance(item, str) else '@' for item in items]
    for index, item in enumerate(items):
        following = words[index + 1 : index + 7]
        if isinstance(item, _Mention):
            after = following[1:] if following[:1] == [_BREAK] else following
            if after and after[0] in _NOTHING and after[1:2] in ([], [_BREAK]):
                item.label = None
        elif _UNSEEN.match(' '.join(('', item, *following))):
            for mention in _subjects(items[:index]):
                mention.label = None


def _subjects(items: Sequence[str | _Mention]) -> list[_Mention]:
    """Return the mentions that are the subject of a verb after these items, last first.

    In 'the owner of the dog' and 'the bus behind the car' it is the noun before the preposition. An
    earlier clause has none: 'There is a man on a bus and the dog is not visible'.
    """
    found: list[_Mention] = []
    after_and: int | None = None  # how many follow the nearest 'and'
    after_break: int | None = None  # and the farthest comma
    is_plain = False  # a noun that names no label, as in 'cars on the road'
    items = _with_short_prepositions(items)
    for index in range(len(items) - 1, -1, -1):
        item = items[index]
        before = items[index - 1] if index else None
        of_this_clause = after_and if after_break is None else after_break
        if isinstance(item, _Mention):
            if is_plain:
                break  # 'the car's number plate'
            found.append(item)
        elif item == 'of' and before in _MEASURES:
            continue
        elif item == 'of' or item in _PREPOSITIONS:
            if of_this_clause is not None or (item != 'of' and not isinstance(before, _Mention)):
                return found[:of_this_clause]
            found, is_plain = [], False
            if not isinstance(before, _Mention):
                break
        elif item in (_BREAK, 'and', 'or'):
            if is_plain:
                break
            if item == _BREAK:
                after_break = len(found)
            elif item == 'and' and after_and is None:
                after_and = len(found)
        elif item in _BEFORE_OBJECTS:
            return found[:of_this_clause]
        elif item in _NEGATORS or item in _END_OF_NEGATION:
            break
        elif not (item in _DETERMINERS or item in _MEASURES):
            if found:
                break
            is_plain = True
    return found


def _with_short_prepositions(items: Sequence[str | _Mention]) -> list[str | _Mention]:
    """Return the items with 'in front of' and the like as one preposition."""
    short: list[str | _Mention] = []
    for item in items:
        if item == 'of' and short[-2:] in (['in', 'front'], ['on', 'top']):
            short[-2:] = ['before']
        elif not (item == 'of' and short and short[-1] in _PREPOSITIONS):  # 'outside of'
            short.append(item)
    return short


def _end_of_introduction(items: Sequence[str | _Mention]) -> int:
    """Return where the statement itself starts; 0 without an introduction."""
    if not items or isinstance(items[0], _Mention):
        return 0
    of_main_object = _MAIN_OBJECT.match(
        ' '.join(item if isinstance(item, str) else '@' for item in items)
    )
    of_place = any(item == 'to' or item in _PREPOSITIONS for item in items[:2])
    if not (of_main_object or of_place or items[0] in _CONCESSIONS):
        return 0
    for index, item in enumerate(items):
        following = items[index + 1] if index + 1 < len(items) else None
        if item in (_BREAK, 'there', "there's") or (
            item in (_COPULAS if of_main_object else _INVERTED)
            and (of_main_object or (isinstance(following, str) and following in _DETERMINERS))
        ):
            return index + 1
    return 0


def _with_plurals(nouns: Iterable[str]) -> set[str]:
    return {form for noun in nouns for form in (noun, *plurals(noun))}


def _any_of(phrases: Iterable[str]) -> str:
    return '|'.join(sorted(map(re.escape, phrases), key=lambda phrase: (-len(phrase), phrase)))


_PEOPLE = _with_plurals(
    word for group, labels in (*SYNONYMS, *CAPTION_WORDS) for word in group if labels[0] == 'person'
)
_PERSON = rf'(?:{_any_of(_PEOPLE | _with_plurals(_CYCLIST_LABELS) | {"he", "she", "they"})})'
_SOME_PEOPLE = rf'\b{_PERSON}(?: (?:and|or|,) (?:(?:an?|the|two) )?{_PERSON}){{0,3}}\b'
_BIKE = (
    rf'(?:{_any_of(_with_plurals(_TWO_WHEELERS))})\b'
    rf'(?! (?:{_any_of(HEAD_NOUNS | HEAD_NOUNS_AT_END)})\b)'  # 'on a bike lane'
)
_RIDE = (
    r"(?<!\bnot )(?<!n't )(?:riding|rides|ride|rode|pedaling|pedalling|driving)(?: on)?"
    rf'(?: (?!(?:past|and|{_any_of(_PREPOSITIONS)}) )[^ ,]+){{0,2}}? {_BIKE}'
)
_RIDERS = re.compile(
    rf'{_SOME_PEOPLE}(?:'
    rf'(?P<between>(?: (?!{_PERSON}\b)[^ ,]+){{0,6}}?) {_RIDE}'
    r'|(?: (?:who|that|is|are|was|were|sitting|seated)){0,3} on'
    rf' (?:an? |the |his |her |their |its |two )?(?:\w+ )?{_BIKE}'
    r'|(?: (?:who|that|is|are|was|were)){0,2} (?:cycling|bicycling|biking|motorcycling)\b)'
)
_RIDING = re.compile(rf'\b{_RIDE}|^(?:cycling|bicycling|biking)\b')
