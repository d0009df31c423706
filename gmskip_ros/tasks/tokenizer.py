"""Tokens of captions as in COCO's caption scorer, without its Java tokenizer."""

from __future__ import annotations

import re

# COCO's scorer runs the PTB tokenizer of Stanford CoreNLP 3.4.1 (-preserveLines -lowerCase) and
# removes the tokens in its list PUNCTUATIONS. Entries in capitals ('-LRB-') never match the
# lower-cased tokens, so brackets remain, as do '&', '??' and '!!'.
_PUNCTUATION = frozenset(
    ("''", "'", '``', '`', '.', '?', '!', ',', ':', '-', '--', '...', ';', '"')
)
_BRACKETS = {
    '(': '-lrb-',
    ')': '-rrb-',
    '[': '-lsb-',
    ']': '-rsb-',
    '{': '-lcb-',
    '}': '-rcb-',
}
# One written word that counts as two.
_CONTRACTED = {
    'cannot': ('can', 'not'),
    'gonna': ('gon', 'na'),
    'gotta': ('got', 'ta'),
    'wanna': ('wan', 'na'),
    'gimme': ('gim', 'me'),
    'lemme': ('lem', 'me'),
}
# Abbreviations that keep their full stop; found by running the PTB tokenizer on all words of one
# to four letters and some longer ones.
_ABBREVIATIONS = frozenset(
    (
        'adj adm adv al ala alex apr ariz assn assoc asst atty attys aug ave bhd bldg blvd brig '
        'bros calif capt cf cie cmdr co col colo conn corp cos cpl ct dak dec dept det dr drs '
        'elec ens esq est etc ext feb fla fri ft ga gen gov govs hon inc ind insp intl invt jan '
        'jos jr jul jun kan kans ky lieut lt ltd maj mar md messrs mfg mich minn mlle mme mo mon '
        'mont mr mrs ms msgr mt mtg natl neb nev nov oct okla penn pfc ph ph.d plc pres prof '
        'profs pte pty pvt rd rep reps rev rt sen sens sep sept seq sfc sgt spc sq sr st ste supt '
        'supts sys tel tenn thu tue tues univ va vs vt wed wis wisc wm wyo'
    ).split()
)
_PLACES = frozenset('ark az del ill la mass miss ore pa tex wash'.split())  # 'Ill.'
_NUMBER_ABBREVIATIONS = frozenset('art ca fig figs no nos op pp prop'.split())  # 'No. 5'
_ACRONYM = re.compile(r'[^\W\d_](?:\.[^\W\d_])*')  # 'T.V', and single letters
_NUMBER_NEXT = re.compile(r'\s*\d')

_TOKEN = re.compile(
    '|'.join(
        (
            r'\d+(?:[,:/]\d+)+(?:\.\d+)?(?!\w)',  # 1,000.5; 8:25; 3/4
            r'\d+(?::\d+)+',  # the start of 8:25pm
            r'[A-Z]+(?:&[A-Z]+)+',  # AT&T
            # Words: t-shirt, and/or, dog's, 4x4, -5; may include a trailing full stop.
            r"(?:(?<!\S)[-+]?\.?(?=\d))?\w+(?:[-./']\w+)*(?:\.(?![\w.]))?",
            r'[@#][^\W\d]\w*',
            r"'\d+s?\b",  # '90s
            r"'(?:s|m|d|re|ve|ll)\b",
            r'\.\.\.|--|\'\'|``|[?!*]{2,}|\S',
        )
    )
)
# Letters of languages written without spaces between words: Chinese, Japanese (also of half width),
# Thai, Lao, Tibetan, Burmese, Khmer.
_UNSPACED = re.compile(
    '[\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff'
    '\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff]'
)
# What COCO's tokenizer drops, as if it were a space: control and format characters (but for the
# soft hyphen), the replacement character, and all beyond the first plane, such as emoji.
_UNTOKENIZABLE = re.compile(
    '[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\u0600-\u0605\u061c\u06dd\u070f\u180e\u200b-\u200f'
    '\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffd\U00010000-\U0010ffff]'
)
_CLITIC = re.compile(r"(.+?)('(?:s|m|d|re|ve|ll)|n't)")
_SAME_CHARACTER = str.maketrans(
    {
        '\u2018': "'",
        '\u2019': "'",
        '\u201c': '"',
        '\u201d': '"',
        '\u2026': '...',
        '\u2013': '--',
        '\u2014': '--',
        '\u00bd': '1/2',
        '\u00bc': '1/4',
        '\u00be': '3/4',
        '\u00ad': None,
    }
)


def is_without_spaces(text: str) -> bool:
    """Return whether most letters are of a language without spaces between words.

    Tokens are then whole sentences, which only an equal sentence shares.
    """
    return 2 * len(_UNSPACED.findall(text)) > sum(map(str.isalpha, text))


def caption_tokens(caption: str) -> list[str]:
    """Return the tokens of a caption: lower case, without punctuation.

    "The dog's red, isn't it?" gives the, dog, 's, red, is, n't, it. 'T.V.' and 'St.' keep their
    full stops; 't-shirt' and 'and/or' are one token.
    """
    caption = _UNTOKENIZABLE.sub(' ', caption.translate(_SAME_CHARACTER))
    tokens: list[str] = []
    for match in _TOKEN.finditer(caption):
        written = match[0]
        word = written.rstrip('.')
        if word and word != written and not _keeps_full_stop(word, caption, match.end()):
            written = word
        token = written.lower()
        if "'" in token and (clitic := _CLITIC.fullmatch(token)):
            tokens += clitic.groups()
        elif token in _CONTRACTED:
            tokens += _CONTRACTED[token]
        elif token not in _PUNCTUATION:
            tokens.append(_BRACKETS.get(token, token))
    return tokens


def _keeps_full_stop(word: str, caption: str, end: int) -> bool:
    lower = word.lower()
    if lower in _ABBREVIATIONS or (word[:1].isupper() and lower in _PLACES):
        return True
    if lower in _NUMBER_ABBREVIATIONS:
        return _NUMBER_NEXT.match(caption, end) is not None
    return _ACRONYM.fullmatch(word) is not None
