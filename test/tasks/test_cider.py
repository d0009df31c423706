"""CIDEr against COCO's official scorer and its definition; its bound against a search."""

from __future__ import annotations

import json
import math
import random
from collections import Counter

import numpy as np
import pytest
from coco_mini import COCO_MINI, load_goldens, needs_coco_mini

from gmskip_ros.tasks import Cider, TaskError, caption_tokens, make_scorer, make_task


@needs_coco_mini
def test_scores_are_those_of_the_official_scorer() -> None:
    goldens = load_goldens()
    images = goldens['per_image']
    cider = Cider([[text.split() for text in image['references']] for image in images])
    scores = []
    for index, image in enumerate(images):
        scores.append(cider.score(index, image['candidate'].split()))
        assert scores[-1] == pytest.approx(image['CIDEr'], rel=0, abs=1e-9), image['image_id']
        assert scores[-1] < cider.best(index) < 10
    assert len(scores) == 48
    assert math.fsum(scores) / 48 == pytest.approx(goldens['CIDEr'], rel=0, abs=1e-9)


@needs_coco_mini
@pytest.mark.parametrize(('metric', 'total'), [('cider', 'CIDEr'), ('rouge_l', 'ROUGE_L')])
def test_raw_captions_score_as_with_the_official_tokenizer(metric: str, total: str) -> None:
    goldens = load_goldens()
    records = json.loads((COCO_MINI / 'annotations/captions_val2017.json').read_text())
    captions: dict[int, list[str]] = {}
    for record in sorted(records['annotations'], key=lambda record: record['id']):
        captions.setdefault(record['image_id'], []).append(record['caption'])
    of_images = [captions[image['image_id']] for image in goldens['per_image']]
    for task in (make_task('captioning'), None):
        scorer = make_scorer(metric, [texts[1:] for texts in of_images], task)
        scores = [scorer.score(index, f' {texts[0]}\n') for index, texts in enumerate(of_images)]
        assert math.fsum(scores) / len(scores) == pytest.approx(goldens[total], rel=0.002)


def by_definition(references: list[list[list[str]]], index: int, candidate: list[str]) -> float:
    """CIDEr-D with dense vectors over all n-grams."""

    def grams(tokens: list[str], n: int) -> Counter:
        return Counter(zip(*(tokens[k:] for k in range(n)), strict=False))

    total = 0.0
    for n in range(1, 5):
        images = [set().union(*(grams(r, n) for r in image)) for image in references]
        axes = sorted(set().union(*images) | set(grams(candidate, n)))
        df = np.array([max(1, sum(axis in image for image in images)) for axis in axes])
        idf = np.log(len(references)) - np.log(df)
        vector = idf * [grams(candidate, n)[axis] for axis in axes]
        for tokens in references[index]:
            reference = idf * [grams(tokens, n)[axis] for axis in axes]
            norms = np.linalg.norm(vector) * np.linalg.norm(reference)
            if norms:
                delta = max(len(candidate) - 1, 0) - max(len(tokens) - 1, 0)
                clipped = np.minimum(vector, reference) @ reference / norms
                total += clipped * math.exp(-(delta**2) / 72) / len(references[index])
    return 10 * total / 4


def random_references(random_: random.Random, words: str = 'abcdef') -> list[list[list[str]]]:
    return [
        [random_.choices(words, k=random_.randrange(9)) for _ in range(random_.randrange(1, 4))]
        for _ in range(random_.randrange(1, 6))
    ]


def test_scores_follow_the_definition() -> None:
    random_ = random.Random(0)
    for _ in range(300):
        references = random_references(random_)
        cider = Cider(references)
        index = random_.randrange(len(references))
        candidate = random_.choices('abcdefx', k=random_.randrange(12))
        assert cider.score(index, candidate) == pytest.approx(
            by_definition(references, index, candidate), rel=1e-9, abs=1e-12
        )


def test_no_caption_exceeds_the_bound() -> None:
    random_ = random.Random(1)
    nearest = 0.0
    for _ in range(30):
        references = random_references(random_, 'abc')
        cider, index = Cider(references), random_.randrange(len(references))
        candidate: list[str] = []
        score = 0.0
        for _ in range(150):  # hill climbing over small changes of the caption
            changed = list(candidate)
            place = random_.randrange(len(changed) + 1)
            changed[place : place + random_.randrange(3)] = random_.choices(
                'abcx', k=random_.randrange(3)
            )
            if random_.random() < 0.1:
                changed = list(random_.choice(references[index]))
            changed_score = cider.score(index, changed)
            assert 0 <= changed_score <= cider.best(index)
            if changed_score >= score:
                # The definition is slow. A caption above the bound would get here: its score is
                # clipped to the bound.
                defined_score = by_definition(references, index, changed)
                assert defined_score <= cider.best(index) * (1 + 1e-12)
                candidate, score = changed, changed_score
        if cider.best(index):
            nearest = max(nearest, score / cider.best(index))
    assert nearest == pytest.approx(1)


def test_the_best_score_is_the_length_of_the_mean_reference() -> None:
    # With three images a word in one of them weighs ln 3. The n-grams of two disjoint references
    # are orthogonal unit vectors, whose mean has length 1/sqrt(2).
    others = [['x'] * 5], [['y'] * 5]
    disjoint = Cider([[list('abcde'), list('fghij')], *others])
    assert disjoint.best(0) == pytest.approx(10 / math.sqrt(2))
    assert disjoint.score(0, list('abcde')) == pytest.approx(5)
    # A single reference, or several equal ones, is the best caption.
    for count in (1, 3):
        alone = Cider([[list('abcde')] * count, *others])
        assert alone.best(0) == pytest.approx(10)
        assert alone.score(0, list('abcde')) == alone.best(0)
    # Two words have no 3-grams and no 4-grams.
    assert Cider([[list('ab')], *others]).best(0) == pytest.approx(5)


def test_scores_of_zero() -> None:
    cider = Cider([[list('abcd')], [list('abcd'), []], [[]]])
    assert cider.score(0, []) == 0
    assert cider.score(0, list('wxyz')) == 0
    assert cider.score(2, list('abcd')) == cider.best(2) == 0
    assert cider.best(1) == pytest.approx(
        cider.best(0) / 2
    )  # an empty reference counts in the mean
    everywhere = Cider([[list('abcd')]])  # n-grams of all images have weight 0
    assert everywhere.score(0, list('abcd')) == everywhere.best(0) == 0


def test_rounding_does_not_lift_a_caption_above_the_bound() -> None:
    random_ = random.Random(2)
    for _ in range(300):
        reference = random_.choices('abcdefgh', k=random_.randrange(4, 14))
        cider = Cider([[reference], [['a', 'c'], ['x']], [['b', 'f', 'y']]])
        assert cider.score(0, reference) == pytest.approx(10)
        assert cider.score(0, reference) <= cider.best(0)


def test_the_length_penalty() -> None:
    cider = Cider([[['a']], [['b']]])
    assert cider.score(0, ['a']) == pytest.approx(2.5)
    assert cider.score(0, ['a', 'a']) == pytest.approx(2.5 / 2 * math.exp(-1 / 72))


def test_missing_references() -> None:
    with pytest.raises(TaskError, match='references: the list is empty'):
        Cider([])
    with pytest.raises(TaskError, match='references of image 1: the list is empty'):
        Cider([[['a']], []])


def test_candidates_are_tokenised_as_the_references_are() -> None:
    raw = ["The dog's bone isn't in T.V. (yet)!", 'A car.', 'Two men']
    scorer = make_scorer('cider', [[text] for text in raw])
    cider = Cider([[caption_tokens(text)] for text in raw])
    for index, text in enumerate(raw):
        assert scorer.score(index, text.upper()) == cider.best(index) == scorer.best(index)


def test_totals_of_many_captions_are_the_sums_of_their_scores() -> None:
    rng = random.Random(11)
    for _ in range(10):
        references = [
            [rng.choices('a a dog runs on the red street'.split(), k=rng.randint(1, 12))] * 2
            + [rng.choices('a a bus by the street at night'.split(), k=rng.randint(0, 12))]
            for _ in range(rng.randint(1, 9))
        ]
        cider = Cider(references)
        captions = [*(tokens for of_image in references for tokens in of_image), [], ['zebra']]
        scores = [math.fsum(cider.score(i, c) for i in range(len(references))) for c in captions]
        assert cider.totals(captions) == pytest.approx(scores, rel=1e-12, abs=1e-12)
        assert cider.totals([]) == []
