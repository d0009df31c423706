"""The comparison of two runs: what is paired, what counts as the same, what is reported."""

from __future__ import annotations

import csv
import html
import json
import re
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import synthetic_replay as made_up
from html_page import HtmlPage
from terminal import printed, printed_ascii

from gmskip_ros.pipeline.rows import FrameRow
from gmskip_ros.report.comparison_report import (
    compare_runs,
    comparison_tables,
    write_comparison_report,
)

NAMES = ['runs/a/frames.jsonl', 'runs/b/frames.jsonl']
EVIL = '<script>alert("x")</script>$x^{$ &amp; \udcff'
POINT = ('high_sparsity',)


def changed(rows: list[FrameRow], every: int = 3, **changes: Any) -> list[FrameRow]:
    """Return the rows with a different answer in one of every `every` rows."""
    return [
        replace(
            row,
            answer=made_up.OTHER[row.task],
            raw_text=made_up.SAID[row.task],
            in_vocabulary=row.task != 'single_object',
            **changes,
        )
        if i % every == 0
        else row
        for i, row in enumerate(rows)
    ]


def one_task(task: str, a: str, b: str, *, known: tuple[bool, bool] = (True, True)) -> dict:
    """Return the only group of two runs of one frame with these answers from full."""
    [row] = [row for row in made_up.rows(1, (task,), POINT) if row.branch == 'full']
    runs = [
        [replace(row, answer=text if known_ else 'unknown', raw_text=text, in_vocabulary=known_)]
        for text, known_ in zip((a, b), known, strict=True)
    ]
    result = compare_runs(*runs)
    assert len(result['changes']) == 1 - result['groups'][0]['same']
    return result['groups'][0]


def write(folder: Path, result: dict) -> HtmlPage:
    paths = write_comparison_report(result, folder, NAMES)
    assert [path.name for path in paths] == ['changes.csv', 'comparison.json', 'report.html']
    return HtmlPage(folder / 'report.html')


def test_a_run_is_the_same_as_itself(tmp_path):
    rows = made_up.rows(9)
    result = compare_runs(rows, rows)
    assert result['frames'] == {'only_a': 0, 'only_b': 0, 'both': 9}
    assert result['differences'] == result['paired_points'] == result['unpaired'] == []
    assert result['changes'] == []
    names = [(g['task'], g['branch'], g['operating_point_a']) for g in result['groups']]
    assert names == [
        (task, branch, point)
        for task in made_up.TASKS
        for branch, point in (
            ('full', '0'),
            ('skip', 'high_performance'),
            ('skip', 'high_sparsity'),
        )
    ]
    for group in result['groups']:
        assert (group['compared'], group['same'], group['same_share']) == (9, 9, 1.0)
        assert group['time_ratio'] == 1.0
        assert group['gained'] == group['lost'] == 0
        assert group['agreement_a'] == group['agreement_b']
    page = write(tmp_path, result)
    assert 'Model, machine and skipped blocks are the same.' in page.text
    assert 'li' not in page.tags, 'no alert'
    assert (tmp_path / 'changes.csv').read_text().startswith('stamp_ns,frame_a,frame_b,task,branch')
    text = printed(comparison_tables(result))
    assert 'Changed answers' not in text and 'A and B: 81 of 81 answers the same' in text
    demo = [replace(row, model='demo') for row in rows]
    result = compare_runs(rows, demo)
    sentence = "The demo model's redundancy is by construction"
    assert sentence in write(tmp_path, result).text
    assert sentence in ' '.join(printed(comparison_tables(result)).split())


@pytest.mark.parametrize(
    ('a', 'b', 'known', 'same'),
    [
        ('car', 'car', (True, True), True),
        ('car', 'bus', (True, True), False),
        ('car', 'car', (True, False), False),
        ('A van.', 'a van', (False, False), True),
        ('A van.', 'a barn', (False, False), False),
    ],
)
def test_single_objects_are_the_same_by_label(a, b, known, same):
    group = one_task('single_object', a, b, known=known)
    assert group['same'] == same
    assert group['mean_jaccard'] is group['mean_rouge_l'] is None


@pytest.mark.parametrize(
    ('a', 'b', 'same', 'jaccard'),
    [
        ('car, traffic light', 'traffic light, car', True, 1.0),
        ('car, bus', 'car', False, 0.5),
        ('car, bus, dog', 'car, truck', False, 0.25),
    ],
)
def test_several_objects_are_the_same_by_set(a, b, same, jaccard):
    group = one_task('multi_object', a, b)
    assert (group['same'], group['mean_jaccard']) == (same, jaccard)


def test_captions_are_the_same_by_raw_text_and_alike_by_rouge_l():
    assert one_task('captioning', 'A car.', 'A car.')['mean_rouge_l'] == 1.0
    group = one_task('captioning', 'A car.', 'a car')
    assert (group['same'], group['mean_rouge_l']) == (0, 1.0)
    group = one_task('captioning', 'a red car', 'a car')  # precision 1, recall 2/3
    assert group['mean_rouge_l'] == pytest.approx(2.44 * (2 / 3) / (2 / 3 + 1.44))
    assert one_task('captioning', '', 'a car')['mean_rouge_l'] == 0.0


def test_figures_are_those_of_the_pairs(tmp_path):
    """Computed here a second time, from the rows alone."""
    a = made_up.rows(12)
    b = [row for row in changed(made_up.rows(12, seed=0), 4) if row.frame > 2]
    b = [replace(row, total_ms=row.total_ms * (1 + row.frame / 10)) for row in b]
    result = compare_runs(a, b)
    assert result['frames'] == {'only_a': 2, 'only_b': 0, 'both': 10}
    of_a = {(r.stamp_ns, r.task, r.branch, r.operating_point): r for r in a}
    count = 0
    for group in result['groups']:
        name = (group['task'], group['branch'], group['operating_point_a'])
        pairs = [
            (of_a[(r.stamp_ns, *name)], r)
            for r in b
            if (r.task, r.branch, r.operating_point) == name
        ]
        same = [row_a.raw_text == row_b.raw_text for row_a, row_b in pairs]
        assert (group['compared'], group['same']) == (10, sum(same))
        assert group['same_share'] == pytest.approx(sum(same) / 10)
        assert group['total_ms_a'] == pytest.approx(statistics.median(o.total_ms for o, _ in pairs))
        assert group['total_ms_b'] == pytest.approx(statistics.median(o.total_ms for _, o in pairs))
        assert group['time_ratio'] == pytest.approx(
            statistics.median(one.total_ms / other.total_ms for one, other in pairs)
        )
        count += 10 - sum(same)
    assert len(result['changes']) == count > 10
    stamps = [change['stamp_ns'] for change in result['changes']]
    assert stamps == sorted(stamps)

    page = write(tmp_path, result)
    with open(tmp_path / 'changes.csv', encoding='utf-8', newline='') as file:
        records = list(csv.DictReader(file))
    assert [[str(value) for value in change.values()] for change in result['changes']] == [
        list(record.values()) for record in records
    ]
    content = json.loads((tmp_path / 'comparison.json').read_text())
    assert (content.pop('a'), content.pop('b')) == tuple(NAMES)
    assert content == result
    source = (tmp_path / 'report.html').read_text(encoding='utf-8')
    [text] = re.findall(r'<pre id="figures" hidden>(.*?)</pre>', source, re.DOTALL)
    embedded = json.loads(html.unescape(text))
    assert embedded.pop('num_changes') == count
    assert embedded == {key: value for key, value in result.items() if key != 'changes'}
    rows = page.table('Same, %', 'Alike x100')
    assert [row['Same, %'] for row in rows] == [
        f'{100 * group["same_share"]:.1f}' for group in result['groups']
    ]
    assert [row['A / B'] for row in page.table('A, ms', 'A / B')] == [
        f'{group["time_ratio"]:.2f}' for group in result['groups']
    ]
    assert len(page.table('A says', 'B says')) == count
    assert '2 frames are only in A' in page.text


def test_gained_and_lost_agreement():
    a = made_up.rows(4, ('captioning',), POINT)
    skip = [row for row in a if row.branch == 'skip']
    verdicts = [(True, True), (False, True), (True, False), (None, True)]
    result = compare_runs(
        [replace(row, agree=one) for row, (one, _) in zip(skip, verdicts, strict=True)],
        [replace(row, agree=other) for row, (_, other) in zip(skip, verdicts, strict=True)],
    )
    [group] = result['groups']
    assert (group['agreement_frames'], group['gained'], group['lost']) == (3, 1, 1)
    assert group['agreement_a'] == group['agreement_b'] == pytest.approx(2 / 3)


def test_times_of_two_machines_are_not_divided(tmp_path):
    a = made_up.rows(4)
    b = [replace(row, machine=made_up.CPU, total_ms=30 * row.total_ms) for row in a]
    result = compare_runs(a, b)
    assert result['differences'] == [{'what': 'machine', 'a': made_up.GPU, 'b': made_up.CPU}]
    for group in result['groups']:
        assert group['time_ratio'] is None
        assert group['no_time_ratio'] == f'different machines: {made_up.GPU}; {made_up.CPU}'
        assert group['total_ms_b'] == pytest.approx(30 * group['total_ms_a'])
    page = write(tmp_path, result)
    assert {row['A / B'] for row in page.table('A, ms', 'A / B')} == {'-'}
    assert f'No A / B: different machines: {made_up.GPU}; {made_up.CPU}' in page.text
    text = ' '.join(printed(comparison_tables(result)).split())
    assert f'A on {made_up.GPU} B on {made_up.CPU} No A / B' in text


def test_times_of_two_timings_are_not_divided(tmp_path):
    a = made_up.rows(4, ('captioning',), POINT)
    shared = [replace(row, timing='shared') for row in a]
    result = compare_runs(a, shared)
    assert result['differences'] == [{'what': 'timing', 'a': 'isolated', 'b': 'shared'}]
    for group in result['groups']:
        assert group['time_ratio'] is None and group['total_ms_b'] == group['total_ms_a']
        assert group['no_time_ratio'] == 'different timing: isolated; shared'
    page = write(tmp_path, result)
    assert {row['A / B'] for row in page.table('A, ms', 'A / B')} == {'-'}
    for group in compare_runs(shared, shared)['groups']:
        assert group['no_time_ratio'].startswith('timing: shared, where the times leave out')
    mixed = [replace(row, timing='shared') if row.frame > 2 else row for row in a]
    for group in compare_runs(a, mixed)['groups']:
        assert (group['total_ms_b'], group['time_ratio']) == (None, None)
        assert group['no_time_ratio'] == 'different timing: isolated; both'


def test_rows_of_several_machines_in_one_run_give_no_median():
    a = made_up.rows(4, ('captioning',), POINT)
    b = [replace(row, machine=made_up.CPU) if row.frame > 2 else row for row in a]
    for group in compare_runs(a, b)['groups']:
        assert (group['machine_b'], group['total_ms_b'], group['time_ratio']) == (None, None, None)
        assert group['no_time_ratio'] == 'a run has rows from several machines'
        assert group['total_ms_a'] is not None


def test_two_lists_at_their_only_operating_points_are_compared(tmp_path):
    a = made_up.rows(3, points=('high_performance',))
    b = made_up.rows(3, points=('5',))
    result = compare_runs(a, b)
    assert result['paired_points'] == [
        {'task': task, 'a': 'high_performance', 'b': '5'} for task in made_up.TASKS
    ]
    assert result['unpaired'] == []
    skip = [group for group in result['groups'] if group['branch'] == 'skip']
    assert [len(group['skipped_blocks_b']) for group in skip] == [5, 5, 5]
    assert {group['compared'] for group in result['groups']} == {3}
    page = write(tmp_path, result)
    alert = (
        'high_performance of A is compared with 5 of B: single_object, multi_object, captioning.'
    )
    assert alert in page.text
    assert [(group['task'], group['branch']) for group in result['groups']] == [
        (task, branch) for task in made_up.TASKS for branch in ('full', 'skip')
    ]
    settings = {row['Setting']: (row['A'], row['B']) for row in page.table('Setting', 'A', 'B')}
    assert settings['skipped blocks for captioning'] == ('25, 27, 22', '25, 27, 22, 18, 29')
    [row] = [
        row
        for row in page.table('Same, %', 'Operating point')
        if (row['Task'], row['Branch']) == ('captioning', 'skip')
    ]
    assert row['Operating point'] == 'high_performance vs 5'


def test_what_only_one_run_has_is_reported(tmp_path):
    a = made_up.rows(3, made_up.TASKS[:2], ('high_performance', '5'))
    b = made_up.rows(3, made_up.TASKS[1:], ('high_performance', '7'), model='demo')
    result = compare_runs(a, b)
    assert {
        (e['task'], e['branch'], e['operating_point'], e['only_in']) for e in result['unpaired']
    } == {
        ('single_object', 'full', '0', 'a'),
        ('single_object', 'skip', 'high_performance', 'a'),
        ('single_object', 'skip', '5', 'a'),
        ('multi_object', 'skip', '5', 'a'),
        ('multi_object', 'skip', '7', 'b'),
        ('captioning', 'full', '0', 'b'),
        ('captioning', 'skip', 'high_performance', 'b'),
        ('captioning', 'skip', '7', 'b'),
    }
    page = write(tmp_path, result)
    assert 'Only in A, not compared: single_object/full, single_object/skip at hi' in page.text
    assert 'Only in B, not compared: multi_object/skip at 7, captioning/full, c' in page.text
    assert 'No skip branch is compared' not in page.text
    assert {'what': 'model', 'a': made_up.MODEL, 'b': 'demo'} in result['differences']
    assert made_up.MODEL in printed(comparison_tables(result)) and 'demo' in printed(
        comparison_tables(result)
    )


def test_skip_branches_without_a_common_point_are_not_called_the_same(tmp_path):
    a = made_up.rows(3, ('captioning',), ('high_performance', '5'))
    page = write(tmp_path, compare_runs(a, made_up.rows(3, ('captioning',), ('7', '6'))))
    assert 'Model and machine are the same.' in page.text and 'blocks are the same' not in page.text
    assert 'No skip branch is compared' in page.text


@pytest.mark.parametrize('apart', [True, False])
def test_runs_without_a_common_frame(tmp_path, apart):
    a = made_up.rows(3, ('captioning',), POINT)
    b = [replace(row, stamp_ns=row.stamp_ns + 1) for row in a] if apart else []
    result = compare_runs(a, b)
    assert result['frames'] == {'only_a': 3, 'only_b': 3 if apart else 0, 'both': 0}
    page = write(tmp_path, result)
    assert 'No frame is in both runs' in page.text
    assert 'No frame is in both runs' in ' '.join(printed(comparison_tables(result)).split())
    assert page.links == []
    assert compare_runs([], [])['groups'] == []
    write(tmp_path, compare_runs([], []))


def test_a_bag_played_twice_is_paired_in_its_order():
    first = made_up.rows(2, ('captioning',), POINT)
    twice = [*first, *(replace(row, frame=row.frame + 2, raw_text='!') for row in first)]
    result = compare_runs(twice, twice)
    assert result['frames']['both'] == 4
    assert [group['same'] for group in result['groups']] == [4, 4]


def test_page_holds_its_picture_and_loads_nothing(tmp_path):
    page = write(tmp_path, compare_runs(made_up.rows(6), changed(made_up.rows(6))))
    assert page.tags.count('svg') == 1 and page.links == []
    assert not {'script', 'link', 'iframe', 'object', 'embed'} & set(page.tags)
    assert not re.search(r'url\(|@import', page.styles)
    for name in NAMES:
        assert name in page.text


def test_many_changes_are_truncated_only_on_the_page(tmp_path):
    a = made_up.rows(400, ('captioning',), POINT)
    result = compare_runs(a, [replace(row, raw_text='x') for row in a])
    page = write(tmp_path, result)
    assert '800 in total; the first 500 are shown' in page.text
    assert len(page.table('A says', 'B says')) == 500
    assert len((tmp_path / 'changes.csv').read_text().splitlines()) == 801
    assert 'Changed answers: 800, the first 10' in printed(comparison_tables(result))


def test_everything_is_escaped(tmp_path):
    a = [
        replace(row, task=EVIL, operating_point=EVIL, model=EVIL, machine=EVIL, answer=EVIL)
        for row in made_up.rows(2, ('captioning',), ('3',))
    ]
    b = [replace(row, answer='x' + EVIL, model='x') for row in a]
    result = compare_runs(a, b)
    write_comparison_report(result, tmp_path, [EVIL, EVIL])
    page = HtmlPage(tmp_path / 'report.html')
    shown = EVIL.replace('\udcff', '\\udcff')
    assert 'script' not in page.tags
    assert page.text.count(shown) > 15
    assert shown in printed(comparison_tables(result), 500)
    json.loads((tmp_path / 'comparison.json').read_text())


def test_changes_keep_line_ends_of_every_kind(tmp_path):
    a = made_up.rows(1, ('captioning',), POINT)
    write(tmp_path, compare_runs(a, [replace(row, raw_text='a\rb') for row in a]))
    with open(tmp_path / 'changes.csv', encoding='utf-8', newline='') as file:
        assert [record['raw_text_b'] for record in csv.DictReader(file)] == ['a\rb', 'a\rb']


@pytest.mark.parametrize('text', ['', 'x' * 20_000, '一辆公交车 🚌', '\u202eabc\x00\x07\n\n'])
def test_any_answer_can_be_shown(tmp_path, text):
    a = made_up.rows(1, ('captioning',), POINT)
    page = write(tmp_path, compare_runs(a, [replace(row, answer=text, raw_text=text) for row in a]))
    for row in page.table('A says', 'B says'):
        assert row['B says'] and row['B says'].isprintable()


def test_tables_fit_the_terminal():
    b = [replace(row, machine=made_up.CPU) for row in changed(made_up.rows(9))]
    text = printed(comparison_tables(compare_runs(made_up.rows(9), b)))
    assert max(map(len, text.splitlines())) <= 80
    for title in ('A against B', 'Agreement with full', 'Median total time', 'Changed answers'):
        assert title in text


def test_table_prints_on_an_ascii_terminal():
    result = compare_runs(made_up.rows(3), changed(made_up.rows(3)))
    assert 'high_sparsity' in printed_ascii(comparison_tables(result))
