"""Metrics named after a benchmark give what the code that the benchmark publishes gives.

The recorded values were obtained by running that code, outside this repository, on 2026-11-29:
VQA: vqaEval.py of GT-Vision-Lab/VQA at a013f00 (made Python 3); ChartQA: relaxed_correctness of
google-research/pix2struct's metrics.py at 5b086ef; OCRBench: the loop at the end of
OCRBench/example.py of Yuliang-Liu/MultimodalOCR at f5cbec6.
"""

from __future__ import annotations

from fractions import Fraction

import pytest

from gmskip_ros.tasks import make_scorer
from gmskip_ros.tasks.scoring import Formula


def most(reference: str, other: str = 'x') -> list[str]:
    return [reference] * 9 + [other]


@pytest.mark.parametrize(
    ('answer', 'references', 'percent'),
    [
        ('1,000', most('1000'), 100),
        ('$1,000-2,000', most('$10002000'), 100),
        ('u.s.a.', ['USA'] * 3 + ['america'] * 7, 90),
        ('.5', most('5'), 0),
        ('5.', most('5'), 100),
        ('0.5', most('.5'), 0),
        ('2.50', most('2.5'), 0),
        ('50%', most('50'), 0),
        ('11:30', most('11 30'), 0),
        ('Two', ['2'] * 2 + ['3'] * 8, 60),
        ('none', ['0'] + ['3'] * 9, 30),
        ('a man, on the bus.', ['man on bus'] * 4 + ['bus'] * 6, 100),
        ('dont walk', most("don't walk", 'walk'), 100),
        ('its red', most("it's red"), 0),
        ("somebody'd", most('somebodyd'), 100),
        ('red,white', most('red white'), 100),
        ('red, white', most('red white'), 100),
        ('t-shirt', most('t shirt'), 100),
        ('t-shirt', most('tshirt'), 0),
        ('left\nside', most('left side'), 100),
        ('Yes', most('yes', 'no'), 100),
        ('yes', ['yes'] * 10, 100),
    ],
)
def test_vqa(answer: str, references: list[str], percent: int) -> None:
    scorer = make_scorer('vqa', [references])
    assert scorer.score(0, answer) == Fraction(percent, 100)


def test_where_vqa_differs_from_its_code_on_purpose() -> None:
    # The code compares unprepared texts where all references are equal (here: 0), and reads a text
    # of articles alone as an empty one (here: 100, and for an empty answer as well).
    assert make_scorer('vqa', [['yes'] * 10]).score(0, 'Yes') == 1
    scorer = make_scorer('vqa', [most('the')])
    assert [scorer.score(0, text) for text in ('a', '', 'The')] == [0, 0, 1]


@pytest.mark.parametrize(
    ('reference', 'answer', 'is_right'),
    [
        ('100', '105', True),
        ('100', '95', True),
        ('100', '105.01', False),
        ('1.00', '1.05', False),  # 0.05000000000000004 in its floats
        ('-20', '-21', True),
        ('-20', '20', False),
        ('1e3', '1000', True),
        ('.5', '0.5', True),
        ('5', '.5', False),
        ('5', '5.', True),
        ('0', '0', True),
        ('0', '0.0', False),
        ('0', '0.001', False),
        ('7%', '0.07', True),
        ('7%', '7.3%', True),
        ('0.07', '7.2%', True),
        ('7%', '7', False),
        ('5', '5%.', False),
        ('1,000', '1,000', True),
        ('1,000', '1000', False),
        ('$5', '5', False),
        ('Yes', 'yes', True),
        ('Yes', 'Yes.', False),
        ('Yes', 'The yes', False),
        ('[Yes, No]', '[yes, no]', True),
        ('5', 'five', False),
        ('nan', 'nan', False),
    ],
)
def test_relaxed(reference: str, answer: str, is_right: bool) -> None:
    assert make_scorer('relaxed', [[reference]]).score(0, answer) == is_right


def test_relaxed_takes_the_best_of_the_references() -> None:
    scorer = make_scorer('relaxed', [['the left one', '7']])
    assert [scorer.score(0, text) for text in ('7.2', ' The left one\n', '9')] == [1, 1, 0]


@pytest.mark.parametrize(
    ('references', 'answer', 'is_right'),
    [
        (['cat'], 'concatenate', True),
        (['stop'], 'STOPPED', True),
        (['Bar & Grill'], 'It says BAR & GRILL!', True),
        (['Bar & Grill'], 'bar and grill', False),
        (['The stop'], 'stop', False),
        (['1,000'], '1000', False),
        (['1000'], 'The total is 1000.50', True),
        (['5'], '.5', True),
        (['two lines'], 'two\nlines', True),
        (['two lines'], 'twolines', False),
        (['a', 'b'], 'B', True),
        ([' x-ray '], 'X-RAY', True),
        ([Formula('x ^ { 2 } + 1')], 'x^{2}+1', True),
        ([Formula('x ^ { 2 } + 1')], 'So: x^{2} + 1.', True),
        ([Formula('X + 1')], 'x+1', False),
        ([Formula('\\frac { 1 } { 2 }')], '$\\frac{1}{2}$', True),
        (['\\frac { 1 } { 2 }'], '$\\frac{1}{2}$', False),
    ],
)
def test_contains_is_that_of_ocrbench(references: list[str], answer: str, is_right: bool) -> None:
    assert make_scorer('contains', [references]).score(0, answer) == is_right


def test_exact_does_not_confuse_numbers() -> None:
    # Ours: no benchmark's code.
    scorer = make_scorer('exact', [['5'], ['.5'], ['1000'], ['-3'], ['12%']])
    for index, (right, wrong) in enumerate(
        [
            (('5', ' 5.', '+5', '$5'), ('.5', '-5', '5%', '0.5')),
            (('.5', '0.5', '0.50'), ('5', '50')),
            (('1000', '1,000', '1,000.0'), ('1,00', '1.000', '1 000')),
            (('-3', '-3.'), ('3',)),
            (('12%', '12.0%'), ('12', '0.12')),
        ]
    ):
        assert [scorer.score(index, text) for text in right + wrong] == (
            [1] * len(right) + [0] * len(wrong)
        )
        for text in right:
            assert not any(scorer.is_decided(index, text[:end]) for end in range(len(text)))
    assert scorer.is_decided(0, 'car')
