"""The best constant answer in tables and pages, marked where it is no worse than the full model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import synthetic_results as made_up
from html_page import HtmlPage
from terminal import printed

from gmskip_ros.report.baselines import baseline_alerts, baseline_lines
from gmskip_ros.report.calibration_report import calibration_table, write_calibration_report
from gmskip_ros.report.evaluation_report import evaluation_tables, write_evaluation_report

LOOKS = 'this score does not show that the model looks at the image'


def constant(answer: str, score: float | None, empty: float | None = 0.0) -> dict[str, Any]:
    return {'constant': {'answer': answer, 'score': score}, 'empty': empty}


def shown(result: dict[str, Any], folder: Path) -> list[str]:
    """Return the text of the terminal's tables and that of the page, on one line each."""
    if 'prefixes' in result:
        tables = [calibration_table(result)]
        write_calibration_report(result, folder)
    else:
        tables = evaluation_tables(result)
        write_evaluation_report(result, folder)
    texts = [printed(tables, 300), HtmlPage(folder / 'report.html').text]
    return [' '.join(text.split()) for text in texts]


def test_a_calibration_has_a_line_for_both_lists_of_images(tmp_path: Path) -> None:
    for text in shown(made_up.calibration(), tmp_path):
        assert (
            "Best constant answer on the calibration images: 'car' 88.8, below the full model "
            '(95.4); empty answer 0.0'
        ) in text
        assert (
            "Best constant answer on the test images: 'car' 87.0, below the full model (94.2)"
        ) in text
        assert LOOKS not in text


def test_an_evaluation_has_one_line(tmp_path: Path) -> None:
    for text in shown(made_up.evaluated(), tmp_path):
        assert (
            "Best constant answer: 'car' 88.8, below the full model (94.2); empty answer 1.3"
        ) in text
        assert LOOKS not in text


@pytest.mark.parametrize(('score', 'verb'), [(0.9421, 'BEATS'), (0.942, 'EQUALS')])
def test_it_is_marked_where_it_is_no_worse_than_the_full_model(
    tmp_path: Path, score: float, verb: str
) -> None:
    for result in (
        made_up.evaluated(baselines=constant('person', score)),
        made_up.calibration(test_baselines=constant('person', score)),
    ):
        terminal, page = shown(result, tmp_path)
        line = f"'person' 94.2, {verb} the full model (94.2)"
        assert line in terminal and line in page
        [alert] = baseline_alerts(result)
        assert LOOKS in alert and alert in page
        assert "'person' 94.2, needs no image" in alert


def test_a_joint_score_has_every_tasks_answer(tmp_path: Path) -> None:
    result = made_up.joint()
    del result['test_baselines']
    result['baselines'] = {
        **constant('single_object: car; captioning: A car.', 0.4),
        'tasks': {
            'single_object': constant('car', 0.7),
            'captioning': constant('A car.', 0.5),
        },
    }
    line = (
        "Best constant answer on the calibration images: single_object 'car' 70.0, captioning "
        "'A car.' 50.0, together 40.0, below the full model (100.0); empty answer 0.0"
    )
    assert baseline_lines(result) == [line]
    assert all(line in text for text in shown(result, tmp_path))


def test_what_is_unknown_is_a_dash_and_older_results_have_no_line(tmp_path: Path) -> None:
    result = made_up.evaluated(baselines=constant('', None, None))
    assert baseline_lines(result) == ["Best constant answer: '' -; empty answer -"]
    assert baseline_alerts(result) == []
    for older in (made_up.evaluated(), made_up.calibration(test=False)):
        older.pop('test_baselines', None)
        del older['baselines']
        assert all('constant answer' not in text for text in shown(older, tmp_path))


def test_answers_are_escaped_and_long_ones_cut_off(tmp_path: Path) -> None:
    result = made_up.evaluated(baselines=constant('<script>' + 'car, ' * 100, 0.5))
    page = shown(result, tmp_path)[1]
    assert "Best constant answer: '<script>car, car, " in page and "...' 50.0, below" in page
    assert 'script' not in HtmlPage(tmp_path / 'report.html').tags


def test_intervals_say_that_they_are_not_corrected_for_many_sets(tmp_path: Path) -> None:
    for result, count in ((made_up.calibration(), 14), (made_up.evaluated(), 3)):
        for text in shown(result, tmp_path):
            assert f'{count} skip sets are tested on the same images. Intervals and' in text
            is_calibration = 'prefixes' in result
            assert ('chosen on the calibration images only' in text) is is_calibration
    alone = made_up.calibration(num_removed=1)
    assert all('not corrected for their' not in text for text in shown(alone, tmp_path))
