"""Tokens of captions against the PTB tokenizer of COCO's scorer."""

from __future__ import annotations

import json
import random

import pytest
from coco_mini import COCO_MINI, load_goldens, needs_coco_mini

from gmskip_ros.tasks import caption_tokens
from gmskip_ros.tasks.tokenizer import is_without_spaces

PUNCTUATION = {"''", "'", '``', '`', '.', '?', '!', ',', ':', '-', '--', '...', ';'}


@needs_coco_mini
def test_real_captions_give_the_official_tokens() -> None:
    goldens = load_goldens()
    annotations = json.loads((COCO_MINI / 'annotations/captions_val2017.json').read_text())
    captions: dict[int, list[str]] = {}
    for annotation in sorted(annotations['annotations'], key=lambda record: record['id']):
        captions.setdefault(annotation['image_id'], []).append(annotation['caption'])
    for image in goldens['per_image']:
        official = [text.split() for text in (image['candidate'], *image['references'])]
        assert [caption_tokens(raw) for raw in captions[image['image_id']]] == official


@pytest.mark.parametrize(
    ('caption', 'tokens'),
    # The output of Stanford CoreNLP 3.4.1 (-preserveLines -lowerCase) without COCO's punctuation.
    [
        ('A red Car.', 'a red car'),
        ('', ''),
        (' \n\t', ''),
        ('...', ''),
        ("The dog's bone", "the dog 's bone"),
        ("the boys' toys.", 'the boys toys'),
        ("Don't, can't, won't, isn't", "do n't ca n't wo n't is n't"),
        ('don’t it’s', "do n't it 's"),
        ("it'd he'll they've we're I'm", "it 'd he 'll they 've we 're i 'm"),
        ("o'clock O'Brien d'oeuvre ma'am ho'ohu", "o'clock o'brien d'oeuvre ma'am ho'ohu"),
        ("the '90s, the 90's", "the '90s the 90 's"),
        ('Cannot gonna gotta gimme', 'can not gon na got ta gim me'),
        ('upside-down T-shirt, wi-fi', 'upside-down t-shirt wi-fi'),
        ('a -- b a --- b a - b a–b a — b', 'a b a b a b a b a b'),
        ("\"quoted\" 'single' ``x'' “curly” ‘curly’", 'quoted single x curly curly'),
        ('(paren) [bracket] {curly}', '-lrb- paren -rrb- -lsb- bracket -rsb- -lcb- curly -rcb-'),
        ('a/b 1/2 24/7 and/or w/o', 'a/b 1/2 24/7 and/or w/o'),
        ('1,000 1,000,000 3.5 .5 5. 5% $5.00', '1,000 1,000,000 3.5 .5 5 5 % $ 5.00'),
        ('8:25 8:25pm 10am 12/25/2009', '8:25 8:25 pm 10am 12/25/2009'),
        ('A & B AT&T #5 #hash @home', 'a & b at&t # 5 #hash @home'),
        ('wait... wait.. wait!! what?? what?', 'wait wait wait !! what ?? what'),
        ('sink,toilet a;b a:b 2,b', 'sink toilet a b a b 2 b'),
        ('a sink.outside, end.Start', 'a sink.outside end.start'),
        ('T.V. t.v. tv. U.K p.m. e.g. Ph.D. tee', 't.v. t.v. tv u.k p.m. e.g. ph.d. tee'),
        ('St. Louis, Main St. and Mr. X', 'st. louis main st. and mr. x'),
        ('an ill. man in Ill. now', 'an ill man in ill. now'),
        ('No. 5 is no. It', 'no. 5 is no it'),
        ('café naïve 日本語 45°', 'café naïve 日本語 45 °'),
        ('soft\u00adhyphen, nbsp\u00a0here', 'softhyphen nbsp here'),
        ('-5 +5 4x4 747-400 B-52', '-5 +5 4x4 747-400 b-52'),
        ('line\nbreak\ttab', 'line break tab'),
        ('a cat\ufffddog \ufffd\ufffd', 'a cat dog'),
        ('two dogs \U0001f436\U0001f436. zero\u200bwidth', 'two dogs zero width'),
        ('a\x07 bell\x1b[0m', 'a bell -lsb- 0m'),
    ],
)
def test_tokens(caption: str, tokens: str) -> None:
    assert caption_tokens(caption) == tokens.split()


@pytest.mark.parametrize(
    ('text', 'expected'),
    [
        ('道路を走る赤い車', True),  # as in STAIR captions
        ('ｺｰﾋｰとパン', True),
        ('รถสีแดงบนถนน', True),
        ('ឡានក្រហម', True),
        ('빨간 차가 도로에 있다', False),
        ('Красная машина на дороге', False),
        ('a sign that says 止まれ', False),
        ('12 : 30', False),
    ],
)
def test_languages_without_spaces_between_words(text: str, expected: bool) -> None:
    assert is_without_spaces(text) == expected


def test_any_text_has_tokens_that_are_words() -> None:
    random_ = random.Random(0)
    pieces = ['a', 'É', 'ß', 'İ', '1', '.', "'", '"', '-', ' ', '\n', '\u2028', '\u0301', '\ufffd']
    pieces += ['\u200d', '😀', '\x00', '/', '&', '(', '!', '*', 'T', 'n', 's', ',', ':', '½', '\\']
    for _ in range(3000):
        text = ''.join(random_.choices(pieces, k=random_.randrange(12)))
        for token in caption_tokens(text):
            assert token == token.lower() and token.split() == [token], text
            assert token not in PUNCTUATION, text
