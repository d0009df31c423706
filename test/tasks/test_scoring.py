"""Scorers against the definitions of their metrics, their bounds, and decided answers."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from fractions import Fraction

import pytest

from gmskip_ros.tasks import (
    LABEL_SETS,
    METRICS,
    TASK_NAMES,
    Absent,
    Scorer,
    TaskError,
    make_scorer,
    make_task,
    rouge_l,
    set_exact_match,
    set_f1,
    set_precision,
    set_recall,
)
from gmskip_ros.tasks.vocabulary import Vocabulary

ODD_TEXTS = (
    '',
    ' \n',
    '...',
    '\ufffd',
    'caf\ufffd',
    '\x00',
    '\ud800',
    'a' * 5000,
    '1' * 5000,
    '1e999999999',
    'İ\u0307',
    '車',
    '😀',
    'car, ' * 500,
    '-',
    '%',
    '1_000',
    '١٢',
    'nan',
    'inf',
    '5..',
    'the a an',
)


def every_scorer() -> Iterator[Scorer]:
    references = {
        'single_object': ['car', Absent('bus')],
        'multi_object': [['car', 'bus'], []],
        'captioning': [['A red car.', ''], ['Two dogs']],
        'presence': ['yes', 'no'],
        'generic': [['42', 'forty two'], ['a bus']],
    }
    for name, metrics in METRICS.items():
        for metric in metrics:
            task = None if name == 'generic' else make_task(name)
            yield make_scorer(metric, references[name], task)


def test_every_task_has_its_metrics() -> None:
    assert tuple(METRICS) == (*TASK_NAMES, 'presence', 'generic')
    assert [metrics[0] for metrics in METRICS.values()] == [
        'accuracy',
        'set_f1',
        'cider',
        'accuracy',
        'exact',
    ]
    made = [scorer.metric for scorer in every_scorer()]
    assert made == list(itertools.chain(*METRICS.values()))


def test_any_text_has_a_score_between_zero_and_the_best() -> None:
    for scorer in every_scorer():
        for index, text in itertools.product((0, 1), (*ODD_TEXTS, 'a red car', 'car, bus', '42')):
            score = scorer.score(index, text)
            assert 0 <= score <= scorer.best(index)
            assert isinstance(score, float if scorer.metric in ('cider', 'rouge_l') else Fraction)
            assert type(scorer.best(index)) is type(score)
            assert scorer.is_decided(index, text) in (True, False)


def test_accuracy() -> None:
    task = make_task('single_object')
    scorer = make_scorer('accuracy', ['car', Absent('car'), 'Traffic lights'], task)
    answers = ('A car.', 'cars', 'bus', 'tree', '')
    assert [scorer.score(0, text) for text in answers] == [1, 1, 0, 0, 0]
    assert [scorer.score(1, text) for text in answers] == [0, 0, 1, 1, 1]
    assert scorer.score(2, 'traffic_light') == 1
    assert [scorer.best(index) for index in range(3)] == [1, 1, 1]


def test_set_metrics_are_exact_and_their_best_is_the_best_of_all_answers() -> None:
    labels = ['car', 'bus', 'dog', 'tram']
    task = make_task('multi_object', labels=labels)
    functions = {
        'set_precision': set_precision,
        'set_recall': set_recall,
        'set_f1': set_f1,
        'set_exact_match': set_exact_match,
    }
    # 'misc' is in the image but not in the label set, so no answer can name it.
    truths = [
        set(truth)
        for n in range(5)
        for truth in itertools.combinations(['car', 'bus', 'dog', 'misc'], n)
    ]
    for metric, function in functions.items():
        scorer = make_scorer(metric, truths, task)
        for index, truth in enumerate(truths):
            best = Fraction(0)
            for n in range(5):
                for answer in itertools.combinations(labels, n):
                    score = scorer.score(index, ', '.join(answer) or 'nothing')
                    assert isinstance(score, Fraction)
                    assert float(score) == pytest.approx(function(set(answer), truth), rel=1e-15)
                    best = max(best, score)
            assert scorer.best(index) == best
    thirds = make_scorer('set_precision', [['car']], task)
    assert thirds.score(0, 'car, bus, dog') == Fraction(1, 3)
    assert make_scorer('set_recall', ['Cars'], task).score(0, 'a car') == 1  # one label, as read


def test_rouge_l() -> None:
    scorer = make_scorer('rouge_l', [["The dog's red ball.", 'a ball']], make_task('captioning'))
    references = ['the', 'dog', "'s", 'red', 'ball'], ['a', 'ball']
    assert scorer.score(0, ' the red ball\n') == rouge_l(['the', 'red', 'ball'], references)
    assert scorer.score(0, 'A BALL!') == scorer.best(0) == 1.0


def test_exact() -> None:
    scorer = make_scorer('exact', [['The traffic-light', 'stop'], 'Yes'])
    for index, texts in enumerate(
        [('traffic light.', 'STOP', 'a stop sign', ''), ('yes', 'Yes!', 'yes it is', 'no')]
    ):
        assert [scorer.score(index, text) for text in texts] == [1, 1, 0, 0]


def official_vqa(answer: str, references: list[str]) -> Fraction:
    """The loop of VQA's evaluation code: leave out each reference once."""
    scores = []
    for left_out in range(len(references)):
        others = references[:left_out] + references[left_out + 1 :]
        scores.append(min(Fraction(1), Fraction(others.count(answer), 3)))
    return sum(scores, Fraction(0)) / len(scores)


def test_vqa_is_the_consensus_of_ten() -> None:
    random_ = random.Random(0)
    for size in (10, 11, 15):
        for _ in range(50):
            references = random_.choices(['red', 'blue', 'green', 'pink'], [6, 3, 1, 1], k=size)
            scorer = make_scorer('vqa', [references])
            scores = {word: scorer.score(0, word) for word in ('red', 'blue', 'green', 'pink', 'x')}
            assert scores == {word: official_vqa(word, references) for word in scores}
            assert scorer.best(0) == max(scores.values())
    three_of_ten = make_scorer('vqa', [['red'] * 3 + ['blue'] * 7])
    assert three_of_ten.score(0, 'red') == Fraction(9, 10)


def test_vqa_with_fewer_references() -> None:
    references = [['red'], ['red', 'blue'], ['red', 'red', 'blue'], ['red'] * 4 + ['blue'] * 2]
    scorer = make_scorer('vqa', references)
    assert [scorer.score(i, 'red') for i in range(4)] == [1, Fraction(1, 2), Fraction(2, 3), 1]
    assert [scorer.score(i, 'blue') for i in range(4)] == [
        0,
        Fraction(1, 2),
        Fraction(1, 3),
        Fraction(2, 3),
    ]
    assert [scorer.best(i) for i in range(4)] == [1, Fraction(1, 2), Fraction(2, 3), 1]


def test_vqa_reads_numbers_articles_and_apostrophes() -> None:
    scorer = make_scorer('vqa', [['2'], ["don't walk"], ['man on the bus'], ['A'], ['none']])
    answers = ['Two.', 'DONT WALK', 'a man on bus', 'a', '0']
    assert [scorer.score(index, text) for index, text in enumerate(answers)] == [1] * 5
    assert scorer.score(0, 'twenty') == 0


def beginnings(text: str) -> set[str]:
    """Unfinished texts as a tokenizer may decode them: cut within words or characters, stripped."""
    coded = text.encode('utf-8')
    shown = {coded[:end].decode('utf-8', errors='replace') for end in range(len(coded) + 1)}
    return shown | {part.strip() for part in shown} | {part + '\ufffd' for part in shown}


@pytest.mark.parametrize('match', ['strict', 'forms', 'synonyms'])
@pytest.mark.parametrize('name', LABEL_SETS)
def test_an_answer_that_can_become_right_is_undecided(name: str, match: str) -> None:
    task = make_task('single_object', labels=[name], match=match)
    vocabulary = Vocabulary(LABEL_SETS[name], match)
    for label in LABEL_SETS[name]:
        scorer = make_scorer('accuracy', [label, Absent(label)], task)
        spellings = vocabulary.spellings(label)
        assert label.replace('_', ' ') in spellings
        for spelling in spellings:
            written = (spelling, f' The {spelling.upper()}.', '“an__' + spelling.replace(' ', '-'))
            for text in written:
                assert (scorer.score(0, text), scorer.score(1, text)) == (1, 0)
                for part in beginnings(text):
                    assert not scorer.is_decided(0, part) and not scorer.is_decided(1, part)


def test_a_decided_answer_keeps_its_score() -> None:
    random_ = random.Random(0)
    labels = ['car', 'cart', 'traffic_light', 'A', 'Straße', 'théière', 'the bus', 'an art']
    task = make_task('single_object', labels=labels)
    generic = [[label, f'{label} {label}'] for label in labels]
    scorers = [
        make_scorer('accuracy', labels, task),
        make_scorer('accuracy', [Absent(label) for label in labels], task),
        make_scorer('exact', generic),
    ]
    pieces = [*labels, 's', 'c', ' ', ' ', 'a', 'the ', 'an ', '-', '.', 'ß', 'SS', 'é', '\u0301']
    decided = 0
    for _ in range(250):
        text = ''.join(random_.choices(pieces, k=random_.randrange(1, 6)))
        parts = beginnings(text)
        for scorer, index in itertools.product(scorers, range(len(labels))):
            for part in parts:
                if scorer.is_decided(index, part):
                    decided += 1
                    assert scorer.score(index, text) == scorer.score(index, part), (part, text)
    assert decided > 20_000


def test_an_answer_is_decided_exactly_if_its_score_cannot_change() -> None:
    # All texts of up to 7 of these 4 characters: long enough for any text of up to 3 to continue to
    # each reference, if it can.
    texts = [''.join(t) for n in range(8) for t in itertools.product('and ', repeat=n)]
    scorer = make_scorer('exact', [['nan'], ['an a'], ['dad'], ['d a'], ['and', 'add']])
    for index in range(5):
        reachable = set()  # beginnings of texts that are right
        wrong = set()
        for text in texts:
            parts = {text[:end] for end in range(len(text) + 1)}
            (reachable if scorer.score(index, text) else wrong).update(parts)
        for text in texts:
            if len(text) <= 3:
                assert text in wrong
                assert scorer.is_decided(index, text) is (text not in reachable), text


def test_examples_of_what_is_decided() -> None:
    task = make_task('single_object')
    scorer = make_scorer('accuracy', ['car', 'traffic_light'], task)
    for text in ('', 'c', 'The', 't', 'th', 'a', 'ca', 'car', 'car ', 'cars', 'C', '\ufffd'):
        assert not scorer.is_decided(0, text)
    for text in ('bus', 'b', 'cart', 'carx', 'car b', 'It', 'the b', 'tr', 'two ', 'th '):
        assert scorer.is_decided(0, text)
    assert not scorer.is_decided(1, 'A traffic_')
    assert scorer.is_decided(1, 'traffic sign')
    assert scorer.is_decided(1, 'Traffic, s')
    # The two bytes of 'é' and an invalid next one become three replacement characters.
    assert not scorer.is_decided(0, 'é') and scorer.score(0, '\ufffd\ufffd\ufffdcar') == 1
    assert scorer.is_decided(0, 'één')


@pytest.mark.parametrize(
    ('metric', 'references', 'task', 'message'),
    [
        ('cider', ['car'], 'single_object', "single_object has no 'cider'; use one of acc"),
        ('accuracy', ['car'], None, "metric: generic has no 'accuracy'; use one of exact, vqa"),
        ('bleu', [['a']], 'captioning', "metric: captioning has no 'bleu'; use one of cider"),
        ('accuracy', [], 'single_object', 'references: the list is empty'),
        ('accuracy', ['car', 'tree'], 'single_object', "reference of image 1: 'tree' is not in"),
        ('accuracy', [Absent('tree')], 'single_object', "reference of image 0: 'tree' is not in"),
        ('accuracy', [['car']], 'single_object', "reference of image 0: ['car'] is not in the"),
        ('set_f1', [None], 'multi_object', 'references of image 0: None is neither a text'),
        ('set_f1', [['car', 3]], 'multi_object', "references of image 0: ['car', 3] is neither"),
        ('cider', [['a'], []], 'captioning', 'references of image 1: the list is empty'),
        ('cider', [['...']], 'captioning', 'references of image 0: none has a letter or digit'),
        ('rouge_l', [['a'], ['', ' ']], 'captioning', 'references of image 1: none has a letter'),
        ('exact', [['a'], ['?']], None, 'references of image 1: none has a letter or digit'),
        ('contains', [['?', '']], None, 'references of image 0: none has a letter or digit'),
        ('vqa', [['?', '']], None, 'references of image 0: none has a letter or digit'),
        ('relaxed', [['?', '']], None, 'references of image 0: none has a letter or digit'),
        ('exact', [5], None, 'references of image 0: 5 is neither a text'),
    ],
)
def test_references_that_cannot_be_used(
    metric: str, references: list, task: str | None, message: str
) -> None:
    with pytest.raises(TaskError) as caught:
        make_scorer(metric, references, make_task(task) if task else None)
    assert message in str(caught.value)
    assert '\n' not in str(caught.value)
