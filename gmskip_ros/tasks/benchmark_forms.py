"""How published benchmarks compare an answer with a reference.

Each function follows the code that its benchmark publishes; test/tasks/test_benchmark_metrics.py
holds them to values which that code gave.
"""

from __future__ import annotations

import re

from gmskip_ros.tasks.normalisation import ARTICLES, normalise

_VQA_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r'\d,\d')
_PERIOD = re.compile(r'\.(?!\d)')
_MOST_PERIODS = 32  # VQA's code removes no more: it passes re.UNICODE, 32, where the count belongs
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
# What VQA's code spells with an apostrophe: the part after it, and the words before it.
_CONTRACTIONS = {
    "'t": 'ain aren can couldn didn doesn don hadn hasn haven isn mightn mustn needn oughtn shan '
    'shouldn wasn weren won wouldn',
    "'ve": 'could might must not should they we what where who would you',
    "'d": 'he how it someone something there they where who you',
    "'s": 'he how somebody someone that there what when where who why',
    "'ll": 'how it somebody someone something they what who why you',
    "'re": 'there they what why you',
    "'am": 'ma',
    "'clock": 'o',
    "'all": 'y',
}
# The same for two apostrophes, of which one is missing.
_DOUBLE_CONTRACTIONS = {
    ("'d", "'ve"): 'he it she somebody someone something there they we who you',
    ("'t", "'ve"): 'couldn hadn mightn shouldn wouldn',
}
_RELAXED_TOLERANCE = 0.05
_NUMBER = re.compile(r'([+-]?)(\d{1,3}(?:,\d{3})+|\d*)(?:\.(\d+))?(%?)')


def _vqa_spellings() -> dict[str, str]:
    table = {
        'twas': "'twas",
        "somebody'd": 'somebodyd',
        **dict.fromkeys(("ow's'at", "'ows'at", "'ow'sat"), "'ow's'at"),
        **dict.fromkeys(("yall'll", "y'allll"), "y'all'll"),
        **dict.fromkeys(("yall'd've", "y'alld've", "y'all'dve"), "y'all'd've"),
    }
    for end, heads in _CONTRACTIONS.items():
        table.update({head + end[1:]: head + end for head in heads.split()})
    for (first, second), heads in _DOUBLE_CONTRACTIONS.items():
        for head in heads.split():
            both = head + first + second
            table[head + first[1:] + second] = both
            table[head + first + second[1:]] = both
    return table


_VQA_SPELLINGS = _vqa_spellings()


def vqa_form(text: str) -> str:
    """Return a text as VQA's evaluation code prepares it for comparison.

    Punctuation disappears where it stands beside a space and in a text with a comma between digits
    ('1,000' is '1000'), else it becomes a space; a period disappears unless a digit follows it
    ('u.s.a.' is 'usa', '.5' stays). Then lower case, 'none' and 'zero' to 'ten' as digits, no
    articles, and apostrophes in listed contractions. A text of articles alone keeps them (VQA's
    code makes it empty), so that labels such as 'A' and 'B' can be answered. Source:
    GT-Vision-Lab/VQA, vqaEvaluation/vqaEval.py, processPunctuation and processDigitArticle.
    """
    text = text.replace('\n', ' ').replace('\t', ' ').strip()
    has_comma_in_number = _COMMA_IN_NUMBER.search(text) is not None
    marks: dict[str, str | int | None] = {
        mark: '' if has_comma_in_number or f'{mark} ' in text or f' {mark}' in text else ' '
        for mark in _VQA_PUNCTUATION
    }
    plain = _PERIOD.sub('', text.translate(str.maketrans(marks)), count=_MOST_PERIODS)
    found = [_DIGITS.get(word, word) for word in plain.lower().split()]
    found = [word for word in found if word not in ARTICLES] or found
    return ' '.join(_VQA_SPELLINGS.get(word, word) for word in found)


def is_relaxed_correct(answer: str, reference: str) -> bool:
    """Return whether an answer has ChartQA's relaxed correctness against one reference.

    A number within 5 % of the reference is right; '7%' is 0.07, '1,000' is a text. Texts, and
    anything where the reference is 0, must be equal in lower case. White space around either does
    not count. Source: google-research/pix2struct, metrics.py, relaxed_correctness, which ChartQA's
    published scores are computed with.
    """
    answer, reference = answer.strip(), reference.strip()
    found, right = _as_float(answer), _as_float(reference)
    if found is not None and right:
        return abs(found - right) / abs(right) <= _RELAXED_TOLERANCE
    return answer.lower() == reference.lower()


def _as_float(text: str) -> float | None:
    try:
        return float(text.rstrip('%')) / 100 if text.endswith('%') else float(text)
    except ValueError:
        return None


def ocrbench_form(text: str, is_formula: bool) -> str:
    """Return a text as OCRBench's code prepares it; an answer must contain a reference's form.

    Lower case, with line breaks as spaces; a formula (HME100k) keeps its case and has no spaces.
    Source: Yuliang-Liu/MultimodalOCR, OCRBench/example.py.
    """
    text = text.strip().replace('\n', ' ')
    return text.replace(' ', '') if is_formula else text.lower()


def exact_form(text: str) -> str:
    """Return a text as the metric `exact` compares it; the rules are ours, not a benchmark's.

    A number keeps its sign, decimal point and percent sign ('.5' is '0.5', '1,000' is '1000');
    any other text is normalised.
    """
    match = _NUMBER.fullmatch(text.strip().removesuffix('.'))
    if match is None or not (match[2] or match[3]):
        return normalise(text)
    whole = match[2].replace(',', '')
    if match[3] is not None:
        decimals = match[3].rstrip('0')
        whole = (whole.lstrip('0') or '0') + (f'.{decimals}' if decimals else '')
    return f'{match[1].removeprefix("+")}{whole}{match[4]}'


def may_become_number(text_so_far: str) -> bool:
    """Return whether `exact_form` may read a text that begins like this as a number."""
    return not set(text_so_far.strip()) - set('0123456789.,+-%')
