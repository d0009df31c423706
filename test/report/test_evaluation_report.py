"""The tables, the CSV and the page of `gmskip evaluate`: the same figures everywhere."""

from __future__ import annotations

import copy
import csv
import re

import pytest
import synthetic_results as made_up
from html_page import HtmlPage
from terminal import printed

from gmskip_ros.report.evaluation_report import evaluation_tables, write_evaluation_report


def table_lines(result: dict, width: int) -> list[str]:
    return printed(evaluation_tables(result), width).splitlines()


def test_writes_a_csv_and_a_page_that_loads_nothing(tmp_path):
    result = made_up.evaluated()
    before = copy.deepcopy(result)
    paths = write_evaluation_report(result, tmp_path / 'out')
    assert [path.name for path in paths] == [
        'evaluation.csv',
        'score_over_latency.png',
        'report.html',
    ]
    assert sorted((tmp_path / 'out').iterdir()) == sorted(paths)
    page = HtmlPage(tmp_path / 'out' / 'report.html')
    assert page.links == []
    assert not {'script', 'link', 'iframe', 'object', 'embed', 'img'} & set(page.tags)
    assert not re.search(r'url\(|@import', page.styles)
    assert result == before


def test_long_names_leave_room_for_the_picture(tmp_path):
    result = made_up.evaluated()
    result['rows'][1]['name'] = ', '.join(f'list_{n}:high_performance' for n in range(20))
    pages = []
    for name in (result['rows'][1]['name'], result['rows'][1]['name'][:100]):
        result['rows'][1]['name'] = name
        write_evaluation_report(result, tmp_path)
        pages.append((tmp_path / 'score_over_latency.png').read_bytes())
    assert pages[0] == pages[1]


def test_page_and_csv_have_the_figures_of_the_result(tmp_path):
    result = made_up.evaluated()
    write_evaluation_report(result, tmp_path)
    page = HtmlPage(tmp_path / 'report.html')
    with open(tmp_path / 'evaluation.csv', encoding='utf-8', newline='') as file:
        records = list(csv.DictReader(file))
    cost = page.table('Sparsity, %', 'Parameters run')
    full = page.table('Difference', 'McNemar p')
    controls = page.table('Shuffled score', 'AUROC, %')
    sets = page.table('Blocks', 'Source')
    assert len(cost) == len(full) == len(controls) == len(sets) == len(result['rows'])
    for i, row in enumerate(result['rows']):
        evaluation = row['evaluation']
        assert {table[i]['Skip set'] for table in (cost, full, controls, sets)} == {row['name']}
        assert records[i]['name'] == row['name']
        assert records[i]['blocks'].split() == [str(block) for block in row['blocks']]
        assert float(records[i]['score']) == evaluation['score']
        assert (
            float(records[i]['scores.balanced_accuracy'])
            == (evaluation['scores']['balanced_accuracy'])
        )
        assert int(records[i]['parameters_run']) == evaluation['parameters_run']
        assert cost[i]['Sparsity, %'] == f'{100 * row["sparsity"]:.1f}'
        assert cost[i]['accuracy, %'] == f'{100 * evaluation["score"]:.1f}'
        assert cost[i]['Parameters run'] == f'{evaluation["parameters_run"] / 1e9:.2f} B'
        assert cost[i]['ms per answer'] == f'{evaluation["latency_ms"]:.1f}'
        assert cost[i]['ms per token'] == f'{evaluation["ms_per_token"]:.1f}'
        assert controls[i]['Shuffled score'] == '12.1'
        assert controls[i]['Visual gain'] == f'+{100 * evaluation["visual_gain"]:.1f}'
        assert controls[i]['AUROC, %'] == f'{100 * evaluation["auroc"]:.1f}'
        assert controls[i]['Most frequent answer'] == 'traffic light'
    assert full[0]['Difference'] == full[0]['95 % interval'] == full[0]['McNemar p'] == '-'
    low, high = result['rows'][3]['evaluation']['interval']
    assert full[3]['95 % interval'] == f'[{100 * low:+.1f}, {100 * high:+.1f}]'
    assert full[3]['McNemar p'] == '<0.001'
    assert sets[0] == {
        'Skip set': 'Full',
        'Skipped blocks': '0',
        'Sparsity, %': '0.0',
        'Blocks': '-',
        'Source': '-',
    }


def test_only_several_metrics_have_their_own_table(tmp_path):
    result = made_up.evaluated()
    titles = [str(table.title) for table in evaluation_tables(result)]
    assert [title.partition(':')[0] for title in titles] == [
        'Score and cost',
        'All scores',
        'Against full',
        'Does it still look at the picture?',
    ]
    for row in result['rows']:
        row['evaluation']['scores'] = {'rouge_l': 0.5}
    assert len(evaluation_tables(result)) == 3


def test_cider_is_shown_as_in_papers_with_its_note(tmp_path):
    note = 'Document frequencies come from the references of these 500 images.'
    result = made_up.evaluated(task='captioning', target=None, metric='cider', score_note=note)
    result['rows'][0]['evaluation']['score'] = 1.1974  # what COCO's scorer prints
    write_evaluation_report(result, tmp_path)
    page = HtmlPage(tmp_path / 'report.html')
    assert page.table('CIDEr x100')[0]['CIDEr x100'] == '119.7'
    assert note in page.text
    assert note in ' '.join(table_lines(result, 120))

    result['metric'] = 'rouge_l'  # CIDEr is then in the table of all scores
    for row in result['rows']:
        row['evaluation']['scores'] = {'cider': 0.9, 'rouge_l': 0.5}
    captions = [str(table.caption) for table in evaluation_tables(result)]
    assert [note in caption for caption in captions] == [False, True, False, False]


def test_everything_is_escaped(tmp_path):
    evil = '<script>alert("x")</script>'
    result = made_up.evaluated(
        model=evil,
        target=evil,
        metric=evil,
        command=evil,
        score_note=evil,
        machine={'cpu': evil, 'gpu': evil},
        unreadable=[evil],
    )
    result['dataset'].update(name=evil, notes=[evil], warnings=[evil])
    for row in result['rows']:
        row.update(name=evil, source=evil)
        row['evaluation']['most_frequent_answer'] = evil
    write_evaluation_report(result, tmp_path)
    page = HtmlPage(tmp_path / 'report.html')
    assert 'script' not in page.tags
    assert page.text.count(evil) > 15
    assert evil in ' '.join(table_lines(result, 400))


def test_unknown_values_are_dashes(tmp_path):
    result = made_up.evaluated(target=None, machine={'cpu': None, 'gpu': None})
    for row in result['rows']:
        row['evaluation'] = {**dict.fromkeys(row['evaluation']), 'score': float('nan')}
    write_evaluation_report(result, tmp_path)
    page = HtmlPage(tmp_path / 'report.html')
    texts = [page.text, (tmp_path / 'evaluation.csv').read_text(), *table_lines(result, 120)]
    for text in texts:
        assert not re.search(r'\b(None|nan|null|inf)\b', text)
    assert page.table('accuracy, %')[0]['accuracy, %'] == '-'
    assert page.table('In label set, %')[0]['In label set, %'] == '-'


def test_every_latency_has_its_machine(tmp_path):
    result = made_up.evaluated(device='cpu', dtype='float32')
    write_evaluation_report(result, tmp_path)
    text = HtmlPage(tmp_path / 'report.html').text
    for shown in (text, ' '.join(table_lines(result, 120))):
        notes = re.findall(r'Latency:[^\n]{0,60}', shown)
        assert len(notes) == 2  # of the two tables with latencies
        assert all('AMD EPYC 9554 (cpu, float32)' in note for note in notes)


def test_an_unmeasured_latency_is_not_mentioned():
    result = made_up.evaluated()
    for row in result['rows']:
        row['evaluation'].update(
            dict.fromkeys(('latency_ms', 'ms_per_token', 'language_ms', 'latency_cut'))
        )
    assert not any('Latency' in line or 'ms' in line.split() for line in table_lines(result, 80))


def test_shorter_answers_are_marked(tmp_path):
    result = made_up.evaluated()
    assert not any('shorter' in line for line in table_lines(result, 120))
    result['rows'][2]['evaluation']['answers_got_shorter'] = True
    write_evaluation_report(result, tmp_path)
    page = HtmlPage(tmp_path / 'report.html')
    cuts = [row['Language time cut, %'] for row in page.table('Language time cut, %')]
    assert [cut.endswith('*') for cut in cuts] == [False, False, True, False]
    assert '* answers got shorter' in page.text
    assert any('* answers got shorter' in line for line in table_lines(result, 120))


def test_warnings_and_unreadable_images_come_first(tmp_path):
    result = made_up.evaluated(unreadable=['a/x.jpg', 'b/y.jpg'])
    result['dataset']['warnings'] = ['COCO train images are in the training data']
    write_evaluation_report(result, tmp_path)
    text = HtmlPage(tmp_path / 'report.html').text
    top, _, rest = text.partition('Score and cost')
    assert 'COCO train images' in top
    assert '2 images could not be read' in top
    assert 'a/x.jpg' in rest
    assert 'b/y.jpg' in rest


@pytest.mark.parametrize('width', [80, 120])
def test_tables_fit_the_terminal(width):
    result = made_up.evaluated()
    lines = table_lines(result, width)
    assert max(map(len, lines)) <= width
    for row in result['rows']:
        evaluation = row['evaluation']
        figures = [f'{100 * evaluation["score"]:.1f}', f'{evaluation["latency_ms"]:.1f}']
        assert any(set(figures) <= set(line.split()) for line in lines), figures
    for word in ('performance', 'sparsity', 'Parameters', 'Difference', '[-0.3, +2.8]'):
        assert any(word in line for line in lines), word


def joint() -> dict:
    result = made_up.evaluated(task='joint', target=None, metric='accuracy, set_precision, cider')
    for row in result['rows']:
        row['evaluation'].update(made_up.JOINT_EVALUATION)
    return result


def test_each_task_of_a_joint_evaluation_has_a_table_of_scores(tmp_path):
    result = joint()
    lines = table_lines(result, 80)
    assert max(map(len, lines)) <= 80 and not any('\u2026' in line for line in lines)
    titles = [str(table.title) for table in evaluation_tables(result)]
    assert [title for title in titles if 'All scores' in title] == [
        'All scores: single_object',
        'All scores: multi_object',
        'All scores: captioning',
    ]
    write_evaluation_report(result, tmp_path)
    page = HtmlPage(tmp_path / 'report.html')
    for title, shown in (('set exact match, %', '50.0'), ('CIDEr x100', '110.0')):
        assert [row[title] for row in page.table(title)] == [shown] * len(result['rows'])


def test_the_parts_of_a_joint_score_are_named(tmp_path):
    write_evaluation_report(joint(), tmp_path)
    name = 'least of score / full score: accuracy, set_precision, cider'
    with open(tmp_path / 'evaluation.csv', encoding='utf-8', newline='') as file:
        assert {record['metric'] for record in csv.DictReader(file)} == {name}
    assert name in HtmlPage(tmp_path / 'report.html').text


def test_a_column_without_values_is_dropped_on_the_terminal(tmp_path):
    result = made_up.evaluated(target=None)
    for row in result['rows'][1:]:
        row['evaluation'].update(auroc=None, score_without_target=None)
    assert any('AUROC' in line for line in table_lines(result, 80))  # full has it
    result['rows'][0]['evaluation'].update(auroc=None, score_without_target=None)
    lines = table_lines(result, 80)
    assert not any('AUROC' in line or 'target' in line for line in lines)
    assert any('Most frequent' in line for line in lines)
    write_evaluation_report(result, tmp_path)
    assert 'AUROC, %' in HtmlPage(tmp_path / 'report.html').text


def test_table_shows_names_as_they_are():
    result = made_up.evaluated()
    result['rows'][1]['name'] = '[red]x[/red]'
    assert any('[red]x[/red]' in line for line in table_lines(result, 120))
