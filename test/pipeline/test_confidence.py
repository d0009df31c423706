"""How sure an answer is: the keys of a result, and the margin between the labels."""

from __future__ import annotations

import math

import numpy as np
import pytest
from fake_vlm import FakeVlm

from gmskip_ros.pipeline import records
from gmskip_ros.pipeline.confidence import first_tokens
from gmskip_ros.pipeline.pipeline import BranchResult, FramePipeline, plan_frame
from gmskip_ros.tasks import TASK_NAMES, make_task
from gmskip_ros.vlm import Confidence, load_vlm

GREY = np.full((48, 64, 3), 128, dtype=np.uint8)


class Tokens(FakeVlm):
    """Has a token for each word, the space before it included, as sentencepiece has."""

    def __init__(self, **tokens: int) -> None:
        super().__init__()
        self.tokens = {word.replace('_', ' '): id for word, id in tokens.items()}

    def token_ids(self, text: str) -> tuple[int, ...]:
        return (self.tokens.get(text.strip(), 0),)


def full_values(vlm: FakeVlm, labels: list[str]) -> dict[str, str]:
    plan = plan_frame(vlm, [make_task('single_object', labels=labels)], {}, branches=['full'])
    (result,) = FramePipeline(vlm, plan).run(GREY)
    assert isinstance(result, BranchResult)
    (status,) = records.result_statuses(result, '')
    return status.values


def test_the_margin_is_to_the_best_other_label_in_either_case() -> None:
    vlm = Tokens(car=8, Car=18, truck=3, Truck=13, bus=4, Bus=14)
    vlm.confidence = Confidence(0.7, 0.6, 0.8)
    vlm.probabilities = {8: 0.8, 18: 0.1, 3: 0.01, 13: 0.05, 4: 0.02}
    values = full_values(vlm, ['car', 'truck', 'bus'])
    assert (values['confidence_mean'], values['confidence_min']) == ('0.700', '0.600')
    assert values['confidence_margin'] == '0.750'  # Truck is next; Car is the same label


@pytest.mark.parametrize(
    ('tokens', 'labels'),
    [
        ({'car': 8, 'cart': 8}, ['car', 'cart']),  # both begin with the same token
        ({'car': 8}, ['car']),  # there is no other label
    ],
)
def test_there_is_no_margin_without_a_first_token_of_its_own(
    tokens: dict[str, int], labels: list[str]
) -> None:
    vlm = Tokens(**tokens)
    vlm.probabilities = {8: 1.0}
    assert full_values(vlm, labels)['confidence_margin'] == ''


def test_an_answer_outside_the_labels_is_compared_with_all_of_them() -> None:
    vlm = Tokens(car=8, bus=4, Bus=14, truck=3, Truck=13)
    vlm.probabilities = {4: 0.25, 3: 0.5}
    assert full_values(vlm, ['bus', 'truck'])['confidence_margin'] == '0.500'


def test_what_was_not_measured_is_empty() -> None:
    vlm = FakeVlm()
    vlm.confidence = Confidence(math.nan, math.nan)
    values = full_values(vlm, ['car', 'bus'])
    keys = ('confidence_mean', 'confidence_min', 'confidence_margin')
    assert [values[key] for key in keys] == ['', '', '']


def test_the_demo_models_margin_is_that_of_its_first_logits() -> None:
    """Recomputed from the logits, for answers that begin with a space as the demo's do."""
    vlm = load_vlm('demo')
    labels = ['tricycle', 'bus', 'cow']
    task = make_task('single_object', labels=labels)
    (result,) = FramePipeline(vlm, plan_frame(vlm, [task], {}, branches=['full'])).run(GREY)
    assert isinstance(result, BranchResult)
    (answered,) = result.tasks
    alone = vlm.answer_batch([GREY], [task.prompt], (), task.max_new_tokens, return_logits=True)[0]
    assert alone.logits is not None and alone.token_ids == answered.answer.token_ids
    chances = np.exp(alone.logits[0] - np.logaddexp.reduce(alone.logits[0]))
    rivals = [
        vlm.token_ids(f' {word}')[0]
        for label in labels
        for word in (label, label.capitalize())
        if label not in answered.parsed.labels
    ]
    assert alone.token_ids[0] not in rivals
    expected = chances.max() - max(chances[token] for token in rivals)
    assert answered.confidence_margin == pytest.approx(expected, abs=1e-6)
    assert answered.answer.confidence.first == pytest.approx(chances.max(), abs=1e-6)


def test_no_further_pass_is_run_for_confidence() -> None:
    vlm = load_vlm('demo')
    tasks = [make_task(name) for name in TASK_NAMES]
    pipeline = FramePipeline(vlm, plan_frame(vlm, tasks, {}, branches=['full']))
    before = vlm.token_blocks
    list(pipeline.run(GREY))
    with_confidence = vlm.token_blocks - before
    for task in tasks:
        vlm.answer(GREY, task.prompt, (), task.max_new_tokens)
    assert vlm.token_blocks - before == 2 * with_confidence


def test_only_labels_that_are_asked_about_have_first_tokens() -> None:
    first = first_tokens(Tokens(stop_sign=5, Stop_sign=6), ['stop_sign'])
    assert first.all_ids == (5, 6)
