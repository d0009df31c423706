"""What a score rests on: the best constant answer, the full model's answers, and alerts.

Results of earlier versions have no baselines: they get no line.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from gmskip_ros.report import formatting as fmt

MAX_ANSWER_CHARS = 80
CALIBRATION_IMAGES = ' on the calibration images'
TEST_IMAGES = ' on the test images'


def baseline_lines(result: Mapping[str, Any]) -> list[str]:
    """Return one line for each list of images of a calibration's or an evaluation's result."""
    lines = []
    for images, baselines, full_score in _measured(result):
        score = baselines['constant']['score']
        line = f'Best constant answer{images}: {_answers(baselines)}'
        if fmt.is_known(score) and fmt.is_known(full_score):
            verb = 'BEATS' if score > full_score else 'EQUALS' if score == full_score else 'below'
            line += f', {verb} the full model ({fmt.hundredths(full_score)})'
        lines.append(f'{line}; empty answer {fmt.hundredths(baselines["empty"])}')
    return lines


def answer_lines(result: Mapping[str, Any]) -> list[str]:
    """Return a line about the full model's answers to the calibration images, for each task."""
    return [
        f"Full model's answers on the calibration images ({fmt.one_line(part['task'])}): "
        f'{part["distinct_answers"]} different of {part["answers"]}; '
        f'{fmt.number(part["answer_words"])} words on average, the references '
        f'{fmt.number(part["reference_words"])}'
        for part in result.get('guidance') or ()
    ]


def score_alerts(evaluation: Mapping[str, Any] | None, images: str = '') -> list[str]:
    """Return why the score of the full model, in an evaluation of it, may mean nothing.

    `images`: which ones, as ' on the test images'.
    """
    return [
        f'This score may mean nothing{images}: {fmt.one_line(line)}'
        for line in (evaluation or {}).get('score_warnings') or ()
    ]


def baseline_alerts(result: Mapping[str, Any]) -> list[str]:
    """Return an alert for each list of images on which a constant answer is no worse than full.

    Calibrations that judged their score ('guidance') have that of their own images as a warning.
    """
    return [
        f'The best constant answer{images}, {_answers(baselines)}, needs no image and is no worse '
        f'than the full model ({fmt.hundredths(full_score)}): this score does not show that the '
        'model looks at the image.'
        for images, baselines, full_score in _measured(result)
        if not ('guidance' in result and images == CALIBRATION_IMAGES)
        and fmt.is_known(baselines['constant']['score'])
        and fmt.is_known(full_score)
        and baselines['constant']['score'] >= full_score
    ]


def _measured(result: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any], Any]]:
    """Yield which images (for a sentence), their baselines, and the full model's score on them."""
    found: list[tuple[str, Any, Any]]
    if 'prefixes' in result:
        full: Mapping[str, Any] = next(
            (prefix for prefix in result['prefixes'] if not prefix['blocks']), {}
        )
        calibration = {'score': result['full_score']}
        found = [
            (CALIBRATION_IMAGES, result.get('baselines'), calibration),
            (TEST_IMAGES, result.get('test_baselines'), full.get('test')),
        ]
    elif 'full_score' in result:
        found = [('', result['baselines'], {'score': result['full_score']})]
    else:
        found = [('', result.get('baselines'), result['rows'][0]['evaluation'])]
    for images, baselines, evaluation in found:
        if baselines is not None:
            yield images, baselines, evaluation['score'] if evaluation else None


def _answers(baselines: Mapping[str, Any]) -> str:
    """Return the answer with its score; for a joint score, each task's, then the joint one."""
    shown = [
        f'{fmt.one_line(name)} {_answer(of_task["constant"])}, '
        for name, of_task in baselines.get('tasks', {}).items()
    ]
    constant = baselines['constant']
    return ''.join(shown) + (
        f'together {fmt.hundredths(constant["score"])}' if shown else _answer(constant)
    )


def _answer(constant: Mapping[str, Any]) -> str:
    answer = fmt.one_line(constant['answer'], MAX_ANSWER_CHARS)
    return f"'{answer}' {fmt.hundredths(constant['score'])}"
