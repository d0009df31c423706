"""The tables, the CSV, Markdown, LaTeX, pictures and page of `gmskip compare`."""

from __future__ import annotations

import copy
import csv
import re

import cv2
import numpy as np
import pytest
import synthetic_results as made_up
from html_page import HtmlPage
from terminal import printed, printed_ascii

from gmskip_ros.report import compare_pictures, compare_report
from gmskip_ros.report.compare_report import (
    compare_tables,
    latex_text,
    table_rows,
    write_compare_report,
)
from gmskip_ros.report.plotting import Picture

FILES = [
    'compare.csv',
    'compare.md',
    'compare.tex',
    'score_over_sparsity.png',
    'score_over_sparsity.svg',
    'score_over_speed.png',
    'score_over_speed.svg',
    'report.html',
]


@pytest.fixture
def undrawn(monkeypatch):
    """Write no pictures: drawing them takes a second."""
    picture = Picture(b'png', b'<svg width="684pt"></svg>')
    for name in ('draw_score_over_sparsity', 'draw_score_over_speed'):
        monkeypatch.setattr(compare_report, name, lambda result: picture)


@pytest.fixture
def figures(monkeypatch):
    """The figures of pictures, which are not rendered."""
    drawn = []

    def keep(figure):
        drawn.append(figure)
        return Picture(b'png', b'<svg width="684pt"></svg>')

    monkeypatch.setattr(compare_pictures, 'picture', keep)
    return drawn


def test_writes_its_files_and_a_page_that_loads_nothing(tmp_path):
    result = made_up.compared()
    before = copy.deepcopy(result)
    paths = write_compare_report(result, tmp_path / 'out')
    assert [path.name for path in paths] == FILES
    assert sorted((tmp_path / 'out').iterdir()) == sorted(paths)
    page = HtmlPage(tmp_path / 'out' / 'report.html')
    assert page.tags.count('svg') == 2 and page.links == []
    assert not {'script', 'link', 'iframe', 'object', 'embed'} & set(page.tags)
    assert not re.search(r'url\(|@import', page.styles)
    assert result == before
    for name in FILES:
        content = (tmp_path / 'out' / name).read_bytes()
        if name.endswith('.png'):
            image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
            assert image.std() > 10
        elif name.endswith('.svg'):
            assert b'<svg' in content and b'<script' not in content


def test_pictures_of_the_same_result_are_the_same_files(tmp_path):
    for folder in ('a', 'b'):
        write_compare_report(made_up.compared(), tmp_path / folder)
    for name in FILES:
        assert (tmp_path / 'a' / name).read_bytes() == (tmp_path / 'b' / name).read_bytes()


def test_rows_are_full_the_constant_answer_then_by_size_and_method():
    rows = table_rows(made_up.compared())
    assert [(row['name'], row['asked_sparsity']) for row in rows] == [
        ('Full model', None),
        ('Best constant answer', None),
        ('GM-Skip', 0.125),
        ('one-shot', 0.125),
        ('random, 3 lists', 0.125),
        ('fixed-interval', 0.125),
        ('GM-Skip', 0.25),
        ('one-shot', 0.25),
        ('random, 3 lists', 0.25),
        ('fixed-interval', 0.25),
    ]
    # The best of a size among those that have it.
    assert [row['emphasis'] for row in rows] == [
        *(False, False),
        *(True, True, False, False),
        *(True, False, False, True),
    ]
    assert rows[5]['marks'] == ['smaller set']
    assert rows[7]['marks'] == ['long', 'repeats']


def test_several_lists_have_mean_and_range(tmp_path, undrawn):
    result = made_up.compared()
    scores = [100 * result['sets'][index]['evaluation']['score'] for index in (4, 5, 6)]
    write_compare_report(result, tmp_path)
    page = HtmlPage(tmp_path / 'report.html')
    row = page.table('Score', 'McNemar p')[4]  # after full and the constant answer
    assert row['Method'] == 'random, 3 lists'
    assert row['Score'] == f'{sum(scores) / 3:.1f} ({min(scores):.1f} to {max(scores):.1f})'
    assert row['95 % interval'] == row['McNemar p'] == '-', 'not defined for several lists'
    assert row['Skipped blocks'] == '4'
    assert page.table('Shuffled score')[3]['Shuffled score'] == '12.1'
    assert f'{min(scores):.1f} to {max(scores):.1f}' in printed(compare_tables(result))


def test_equal_sets_of_several_lists_count_once_per_list_everywhere(figures):
    result = made_up.compared()
    for row in result['rows']:
        if row['seed'] == 2:  # draws what seed 1 drew
            row['set'] -= 1
    for kind in ('sparsity', 'speed'):
        getattr(compare_pictures, f'draw_score_over_{kind}')(result)
    rows = [row for row in table_rows(result) if row['name'] == 'random, 3 lists']
    shown = [100 * sum(row['scores']) / len(row['scores']) for row in rows]
    assert [len(row['scores']) for row in rows] == [3, 3]
    for figure in figures:
        for axis in figure.axes:
            (line,) = (line for line in axis.lines if line.get_label() == 'random')
            assert list(line.get_ydata()) == pytest.approx(shown)


def test_other_phases_than_prefill_and_decode_are_named(tmp_path, undrawn):
    result = made_up.compared()
    note = 'A method without phases in its name skips in prefill and decode.'
    assert not any('prefill' in row['name'] for row in table_rows(result))
    assert note not in printed(compare_tables(result), 200)
    result['methods'][0]['phases'] = ['prefill']
    result['methods'][2]['phases'] = ['decode']
    names = [
        'GM-Skip (prefill)',
        'one-shot',
        'random (decode), 3 lists',
        'fixed-interval',
    ]
    assert [row['name'] for row in table_rows(result)][2:] == names * 2
    write_compare_report(result, tmp_path)
    page = HtmlPage(tmp_path / 'report.html')
    for title in ('McNemar p', 'Shuffled score', 'Prefill ms'):
        assert [row['Method'] for row in page.table(title)][-4:] == names
    assert 'random (decode), seed 2' in [row['Method'] for row in page.table('Skipped in decode')]
    for file in ('compare.md', 'compare.tex'):
        assert all(name in (tmp_path / file).read_text() for name in names)
    with open(tmp_path / 'compare.csv', encoding='utf-8', newline='') as file:
        phases = {record['method']: record['phases'] for record in csv.DictReader(file)}
    assert phases == {
        'full': '',
        'gm-skip': 'prefill',
        'one-shot': 'prefill+decode',
        'random': 'decode',
        'fixed-interval': 'prefill+decode',
    }
    on_terminal = ' '.join(printed(compare_tables(result), 200).split())
    assert all(name in on_terminal for name in names)
    assert note in on_terminal and note in page.text


def test_legends_name_other_phases(figures):
    result = made_up.compared()
    result['methods'][0]['phases'] = ['prefill']
    for kind in ('sparsity', 'speed'):
        getattr(compare_pictures, f'draw_score_over_{kind}')(result)
    for figure in figures:
        texts = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
        assert texts[:2] == ['GM-Skip (prefill)', 'one-shot']
    assert len(figures) == 2


def test_every_format_has_the_figures_of_the_result(tmp_path, undrawn):
    result = made_up.compared()
    write_compare_report(result, tmp_path)
    page = HtmlPage(tmp_path / 'report.html')
    with open(tmp_path / 'compare.csv', encoding='utf-8', newline='') as file:
        records = list(csv.DictReader(file))
    assert len(records) == 1 + len(result['rows'])
    for record, row in zip(records[1:], result['rows'], strict=True):
        found = result['sets'][row['set']]
        assert record['method'] == row['method']
        assert record['seed'] == ('' if row['seed'] is None else str(row['seed']))
        assert float(record['score']) == found['evaluation']['score']
        assert float(record['speed_tokens_per_s']) == found['speed']['tokens_per_s']
        assert float(record['speed_up_interval_high']) == found['speed']['speed_up_interval'][1]
        assert record['prefill_blocks'].split() == [str(block) for block in found['prefill']]
        assert record['is_smaller'] == str(row['num_skipped'] < row['asked_blocks'])
        assert record['marks'] == ' '.join(found['marks'])
        assert float(record['constant_score']) == 0.312
        assert 'latency_ms' not in record, 'times are those of all sets in turn only'
    scores, speed = page.table('Score', 'McNemar p'), page.table('Prefill ms')
    markdown = (tmp_path / 'compare.md').read_text()
    latex = (tmp_path / 'compare.tex').read_text()
    assert len(scores) == len(speed) + 1 == len(table_rows(result))
    speed = [speed[0], {}, *speed[1:]]  # of the constant answer only a score is known
    found = result['sets'][3]
    assert scores[7]['Method'] == speed[7]['Method'] == 'one-shot'
    assert scores[7]['Marks'] == 'long, repeats'
    figures = {
        'Score': f'{100 * found["evaluation"]["score"]:.1f}',
        'Prefill, %': '25.0',
        'Decode, %': '25.0',
        'Difference': f'{100 * found["evaluation"]["difference"]:+.1f}',
    }
    times = {
        'Prefill ms': f'{found["speed"]["prefill_ms"]:.1f}',
        'Decode ms per token': f'{found["speed"]["decode_ms_per_token"]:.1f}',
        'Tokens/s': f'{found["speed"]["tokens_per_s"]:.1f}',
        'Answers/s': f'{found["speed"]["answers_per_s"]:.2f}',
        'Speed-up': f'{found["speed"]["speed_up"]:.2f}',
        'Speed-up, 95 % interval': '{:.2f} to {:.2f}'.format(*found['speed']['speed_up_interval']),
    }
    line = next(line for line in markdown.splitlines() if 'long, repeats' in line)
    tex_line = next(line for line in latex.splitlines() if 'long, repeats' in line)
    for name, text in figures.items():
        assert scores[7][name] == text
    for name, text in times.items():
        assert speed[7][name] == text
    for text in [*figures.values(), *times.values()]:
        assert f'| {text} |' in line
        assert f'& {text} &' in tex_line
    assert scores[1]['Method'] == 'Best constant answer'
    assert scores[1]['Score'] == '31.2'
    assert "Best constant answer: 'person' 31.2, below the full model" in page.text


def test_cider_has_its_note(tmp_path, undrawn):
    note = 'CIDEr: document frequencies are those of the references of these 500 images'
    result = made_up.compared(metric='cider', task='captioning', score_note=note)
    write_compare_report(result, tmp_path)
    assert note in HtmlPage(tmp_path / 'report.html').text
    assert note in (tmp_path / 'compare.md').read_text()
    assert note in ' '.join(printed(compare_tables(result)).split())


def test_tables_fit_a_terminal():
    result = made_up.compared()
    for line in printed(compare_tables(result), 80).splitlines():
        assert '…' not in line
    text = printed_ascii(compare_tables(result))
    for expected in ('GM-Skip', 'fixed-interval', 'random, 3 lists', 'Prefill', 'LR', '< ='):
        assert expected in text, expected


def test_different_sparsity_in_the_two_phases_is_shown():
    result = made_up.compared()
    for found in result['sets']:
        found['prefill'], found['sparsity']['prefill'] = [], 0.0
    text = printed(compare_tables(result))
    assert '0.0 / 25.0' in text
    assert 'Saved: block multiplications in prefill / decode.' in text


def test_speeds_stand_beside_the_length_of_the_answers_that_were_timed(tmp_path, undrawn):
    result = made_up.compared()
    for found in result['sets']:
        found['evaluation']['tokens_per_answer'] = 7.25
        found['speed']['tokens_per_answer'] = 1.75
    write_compare_report(result, tmp_path)
    page = HtmlPage(tmp_path / 'report.html')
    (title,) = (name for name in page.table('Prefill ms')[0] if 'Tokens per' in name)
    assert {row[title] for row in page.table('Prefill ms')} == {'1.8'}
    assert {row['Tokens per answer'] for row in page.table('Shuffled score')} == {'7.2'}
    header, _, full = (tmp_path / 'compare.md').read_text().splitlines()[2:5]
    cells = dict(zip(header.split(' | '), full.split(' | '), strict=True))
    assert (cells['Tokens per answer'], cells[title]) == ('7.2', '1.8')
    assert ' 7.2 ' not in printed(compare_tables(result)[2:])


def test_how_much_was_timed_is_questions_and_rounds():
    result = made_up.compared()
    assert '8 questions x 3 rounds per skip set' in printed(compare_tables(result))
    result['sets'][0]['speed'].update(questions=1, rounds=1, answers=1)
    for found in result['sets']:
        found['speed']['speed_up_interval'] = None
    assert '1 question x 1 round per skip set' in printed(compare_tables(result))


def test_without_times(tmp_path):
    write_compare_report(made_up.compared(), tmp_path)
    result = made_up.compared(timed=False)
    assert len(compare_tables(result)) == 2
    paths = write_compare_report(result, tmp_path)
    assert not any('speed' in path.name for path in [*paths, *tmp_path.iterdir()])
    page = HtmlPage(tmp_path / 'report.html')
    assert page.tags.count('svg') == 1
    assert '--latency-images 0' in page.text
    assert 'Tokens/s' not in (tmp_path / 'compare.md').read_text()


def test_without_baselines_and_scores(tmp_path):
    """A joint score may be unknown, and so is the score of a constant answer."""
    result = made_up.compared(baselines=None)
    for found in result['sets']:
        found['evaluation'].update(score=None, difference=None, interval=None, visual_gain=None)
    write_compare_report(result, tmp_path)
    rows = HtmlPage(tmp_path / 'report.html').table('Score')
    assert {row['Score'] for row in rows} == {'-'}
    assert not any('constant' in row['Method'] for row in rows)
    printed(compare_tables(result))


def test_the_demo_model_is_named_as_what_it_is(tmp_path, undrawn):
    result = made_up.compared(model='demo')
    write_compare_report(result, tmp_path)
    alert = "The demo model's redundancy is by construction"
    assert alert in HtmlPage(tmp_path / 'report.html').text
    assert alert in ' '.join(printed(compare_tables(result)).split())
    for name in ('compare.md', 'compare.tex'):
        assert alert in (tmp_path / name).read_text()
    assert alert not in printed(compare_tables(made_up.compared()))


def test_warnings_of_data_and_methods_are_alerts(tmp_path, undrawn):
    result = made_up.compared(unreadable=['a.jpg: broken'])
    result['dataset']['warnings'] = ['images of the training data']
    result['methods'][0]['warnings'] = ['round 1: every candidate scored the same']
    write_compare_report(result, tmp_path)
    text = HtmlPage(tmp_path / 'report.html').text
    for expected in (
        'images of the training data',
        'GM-Skip: round 1: every candidate scored the same',
        '1 image could not be read',
    ):
        assert expected in text


def test_everything_is_escaped(tmp_path):
    evil = '<script>alert("x")</script> | % & \\x $y$ _z_'
    result = made_up.compared(
        model=evil,
        target=evil,
        command=evil,
        machine={'cpu': evil, 'gpu': evil},
        unreadable=[evil],
        baselines={'constant': {'answer': evil, 'score': 0.3}, 'empty': 0.0},
    )
    result['dataset'].update(name=evil, notes=[evil], warnings=[evil])
    for method in result['methods']:
        method.update(title=evil, stopped_by=evil, skip_lists=[evil], warnings=[evil])
    for found in result['sets']:
        found['evaluation']['most_frequent_answer'] = evil
    write_compare_report(result, tmp_path)
    page = HtmlPage(tmp_path / 'report.html')
    assert 'script' not in page.tags
    assert '<script>' in page.text
    table = [
        line for line in (tmp_path / 'compare.md').read_text().splitlines() if line.startswith('|')
    ]
    assert len({len(re.findall(r'(?<!\\)\|', line)) for line in table}) == 1
    printed(compare_tables(result))


def test_latex_text_is_literal():
    assert latex_text(r'50 % & a_b $ # {x} \y ~ ^ <>|"') == (
        r'50 \% \& a\_b \$ \# \{x\} \textbackslash{}y \textasciitilde{} \textasciicircum{} '
        r'\textless{}\textgreater{}\textbar{}\textquotedbl{}'
    )
