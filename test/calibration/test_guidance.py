"""Whether a score can guide a search: every way in which it cannot, and scores that can."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from calibration_helpers import TableAnswerer, make_all_questions, make_samples

from gmskip_ros.calibration.baseline import baselines
from gmskip_ros.calibration.errors import CalibrationError
from gmskip_ros.calibration.guidance import (
    Guidance,
    constant_warnings,
    guidance_lines,
    guidance_of,
    refuse,
)
from gmskip_ros.calibration.methods.registry import search_settings
from gmskip_ros.calibration.objective import make_objective
from gmskip_ros.calibration.scoring import Scorer
from gmskip_ros.datasets import Sample
from gmskip_ros.tasks import Cider, caption_tokens

WORDS = 'road car bus tree lane sign wet dark left right far near turn stop crowd light'.split()


def samples_of(count: int, **fields: Callable[[int], Any]) -> list[Sample]:
    """Return samples whose fields follow from their number."""
    return [
        Sample(f'{i}', Path(f'{i}.jpg'), **{name: value(i) for name, value in fields.items()})
        for i in range(count)
    ]


def shows(*labels: str) -> list[Sample]:
    """Return samples that each show these labels, separated by spaces, the first one largest."""
    names = [text.split() for text in labels]
    return samples_of(
        len(names), labels=lambda i: tuple(names[i]), main_object=lambda i: names[i][0]
    )


def captioned(*captions: str) -> list[Sample]:
    return samples_of(len(captions), captions=lambda i: (captions[i],))


def asked(*references: str) -> list[Sample]:
    return samples_of(
        len(references), question=lambda i: 'What?', references=lambda i: (references[i],)
    )


def judged(
    samples: Sequence[Sample], task: str, metric: str, answers: Sequence[str], **options: Any
) -> tuple[list[Guidance], dict[str, Any] | None]:
    """Return what is known before a search of a model with these answers, and the baselines.

    `metric`: several separated by commas; `answers`: about each image, to every task.
    """
    questions = make_all_questions(samples, task, **options)
    metrics = metric.split(',')
    image_of = {sample.image_path: i for i, sample in enumerate(samples)}
    scorer = Scorer(
        make_objective(questions, metrics, image_of),
        TableAnswerer(3, lambda skip, image, prompt: answers[image]),
        search_settings('gm-skip'),
    )
    scorer.score_full()
    return guidance_of(scorer), baselines(questions, metrics, scorer.full_scores)


def reasons(*arguments: Any, **options: Any) -> list[str]:
    return [reason for part in judged(*arguments, **options)[0] for reason in part.reasons]


def test_long_descriptions_and_an_answer_of_one_sentence() -> None:
    """As with CODA-LM: CIDEr is not 0, and all of it is rounding noise."""
    rng = random.Random(3)
    long = [' '.join(rng.choices(WORDS, k=rng.randint(115, 142))) for _ in range(6)]
    answers = ['A car waits at the stop sign on a wet road.', *['A bus on the road, far left.'] * 5]
    [part], known = judged(captioned(*long), 'captioning', 'cider', answers)
    cider = Cider([[caption_tokens(text)] for text in long])
    scores = [cider.score(i, caption_tokens(text)) for i, text in enumerate(answers)]
    assert 0 < part.full_score == pytest.approx(fmean(scores), rel=1e-12)
    assert part.full_score < 1e-45
    assert (part.answers, part.distinct_answers) == (6, 2)
    assert part.answer_words == pytest.approx((11 + 5 * 7) / 6)
    assert part.reference_words == pytest.approx(fmean(len(text.split()) for text in long))
    lowest, length = part.reasons
    shown = f'{100 * part.full_score:.1e}'
    assert lowest.startswith(
        f'captioning: every answer of the full model has the lowest cider there is ({shown}): '
    )
    assert length.startswith('captioning: the references have 1') and ' the answers 7.7' in length
    [line] = guidance_lines([part], known)
    assert line.startswith(f'captioning: cider of the full model {shown}, best constant answer ')
    assert "...' " in line and len(line) < 300  # a constant answer of 115 words or more
    assert line.endswith('(references: ' + f'{part.reference_words:.1f})')


@pytest.mark.parametrize(('reference', 'is_refused'), [(8, False), (9, True)])
def test_references_of_more_than_four_times_the_length_are_refused(
    reference: int, is_refused: bool
) -> None:
    samples = captioned(*(' '.join(WORDS[i : i + reference]) for i in (0, 4)))
    found = reasons(samples, 'captioning', 'rouge_l', ['road car', 'lane car'])
    assert [reason.partition(' words')[0] for reason in found] == (
        ['captioning: the references have 9.0'] if is_refused else []
    )
    # Names of many objects are no text to be matched word for word.
    many = shows('car truck bus dog', 'dog car bus truck')
    assert reasons(many, 'multi_object', 'set_f1', ['car, bus', 'dog']) == []


@pytest.mark.parametrize(
    ('samples', 'task', 'metric', 'answers', 'reason'),
    [
        # A full score of 0.
        (shows('car', 'bus'), 'single_object', 'accuracy', ['dog', ''], 'the lowest accuracy'),
        (shows('car', 'bus'), 'single_object', 'balanced_accuracy', ['dog', ''], 'the lowest bala'),
        (
            shows('car', 'bus'),
            'multi_object',
            'set_f1',
            ['dog', ''],
            'lowest set_f1 there is (0.0)',
        ),
        (asked('12', 'red'), 'generic', 'exact', ['13', 'blue'], 'the lowest exact'),
        # One image.
        (captioned('a red car'), 'captioning', 'cider', ['a red car'], 'CIDEr of a single image'),
        (asked('a red car'), 'generic', 'cider', ['a red car'], 'CIDEr of a single image is 0'),
        (shows('car bus'), 'multi_object', 'set_f1', ['car'], 'only one answer is scored'),
        # Equal scores: no block can be told from another by them.
        (shows('car', 'bus'), 'multi_object', 'set_precision', ['car, dog', 'bus, dog'], 'all 2 '),
        (captioned('a b', 'c d'), 'captioning', 'rouge_l', ['a', 'c'], 'score the same rouge_l'),
        # Answers that do not depend on the image gain nothing from it, nor do wrong ones.
        (shows('car', 'bus', 'car'), 'single_object', 'visual_gain', ['car'] * 3, 'visual_gain of'),
        (shows('car', 'bus'), 'single_object', 'visual_gain', ['bus', 'car'], 'the lowest visual'),
        # References that no answer can match.
        (captioned('a car', 'a car'), 'captioning', 'cider', ['a car', 'a'], 'no answer can score'),
        (shows('tram', 'cow'), 'multi_object', 'set_f1', ['tram', 'car'], 'no answer can score ab'),
    ],
)
def test_a_score_that_cannot_guide(
    samples: list[Sample], task: str, metric: str, answers: list[str], reason: str
) -> None:
    [found] = reasons(samples, task, metric, answers)
    assert found.startswith(f'{task}: ') and reason in found
    assert 'use ' in found and '--metric' in found and '\n' not in found


@pytest.mark.parametrize(
    ('samples', 'task', 'metric', 'answers'),
    [
        # All right, where all answers score the same.
        (shows('car', 'bus'), 'single_object', 'accuracy', ['car', 'a bus']),
        (shows('car'), 'single_object', 'accuracy', ['car']),
        (shows('car tram', 'bus dog'), 'multi_object', 'set_recall', ['car', 'bus, dog']),
        (asked('a red car'), 'generic', 'exact', ['a red car']),
        (shows('car', 'bus'), 'single_object', 'visual_gain', ['car', 'bus']),
        # Some are right.
        (shows('car', 'bus'), 'single_object', 'balanced_accuracy', ['car', 'dog']),
        (captioned('a red car', 'a bus'), 'captioning', 'cider', ['a car', 'road']),
        (shows('car', 'bus', 'dog'), 'single_object', 'visual_gain', ['car', 'bus', 'car']),
    ],
)
def test_a_score_that_can_guide(
    samples: list[Sample], task: str, metric: str, answers: list[str]
) -> None:
    assert reasons(samples, task, metric, answers) == []


def test_every_task_of_a_joint_score_is_judged() -> None:
    samples = make_samples(4, random.Random(5))
    answers = [sample.captions[0] for sample in samples]
    metrics = 'accuracy,set_precision,rouge_l'
    parts, known = judged(samples, 'joint', metrics, answers)
    assert [part.task for part in parts] == ['single_object', 'multi_object', 'captioning']
    assert [len(line) > 80 for line in guidance_lines(parts, known)] == [True] * 3
    one = [part for part in parts if part.task == 'captioning']
    assert known is not None
    # Each has its own constant answer.
    answer = known['tasks']['captioning']['constant']['answer']
    assert f'best constant answer {answer!r}' in guidance_lines(one, known)[0]
    samples = samples_of(
        2,
        labels=lambda i: ('car', 'dog')[: i + 1],
        main_object=lambda i: 'car',
        captions=lambda i: (' '.join(['car', *WORDS[i:]]),),
    )
    [found] = reasons(samples, 'joint', metrics, ['car', 'car, dog'])
    assert found.startswith(
        'captioning: the references have 16.5 words on average, the answers 1.5'
    )


def test_positives_only_is_a_warning_and_no_refusal() -> None:
    """The paper's single-object protocol: of images that all show a person, 19 of 100 are right."""
    labels = ('person', 'car')
    samples = shows(*['person'] * 100, 'car', 'car')
    answers = [*['A person.'] * 19, *['A man'] * 81, 'car', 'car']
    [part], known = judged(
        samples, 'single_object', 'accuracy', answers, labels=labels, target='person', match='forms'
    )
    assert (part.full_score, part.answers, part.reasons) == (0.19, 100, ())
    assert constant_warnings([part], known) == [
        "single_object: the best constant answer 'person' scores 100.0, no less than the full "
        'model (19.0): this accuracy does not show that the model looks at the image'
    ]
    assert guidance_lines([part], known) == [
        "single_object (person): accuracy of the full model 19.0, best constant answer 'person' "
        '100.0, empty answer 0.0 (x100); answers: 2 different of 100, 2.0 words (references: 1.0)'
    ]


def test_the_answer_car_beats_a_model_in_precision_and_not_in_f1() -> None:
    """On CODA's validation set, 88.8 % of the images show a car."""
    texts = [*['car truck bus'] * 111, *['truck bus dog'] * 14]
    samples = shows(*texts)
    answers = [text.replace(' ', ', ') for text in texts]
    answers[:20] = ['dog'] * 20
    [part], known = judged(samples, 'multi_object', 'set_precision', answers)
    [line] = constant_warnings([part], known)
    assert part.full_score == pytest.approx(105 / 125)
    assert "'truck' scores 100.0, no less than the full model (84.0)" in line
    fewer = [text.replace('truck ', '') for text in texts]
    fewer[::2] = [text.replace('bus', 'truck') for text in fewer[::2]]
    samples = shows(*fewer)
    [part], known = judged(samples, 'multi_object', 'set_precision', answers)
    assert known is not None and known['constant'] == {'answer': 'car', 'score': 0.888}
    assert "'car' scores 88.8" in constant_warnings([part], known)[0]
    _, known = judged(samples, 'multi_object', 'set_f1', answers)
    assert known is not None and known['constant']['score'] < 0.8


def test_it_is_refused_in_one_line_unless_forced() -> None:
    parts, _ = judged(captioned('a red car'), 'captioning', 'cider', ['a car'])
    with pytest.raises(CalibrationError) as error:
        refuse(parts, force=False)
    message = str(error.value)
    assert message.startswith('this score cannot guide a search: captioning: CIDEr of a single ')
    assert 'use more images' in message and '--force' in message and '\n' not in message
    assert refuse(parts, force=True) == parts[0].reasons[0]
    parts, _ = judged(shows('car', 'bus'), 'single_object', 'accuracy', ['car', 'dog'])
    assert refuse(parts, force=False) is None and refuse(parts, force=True) is None
