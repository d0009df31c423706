"""The files and the table of a calibration: the same figures everywhere, no network."""

from __future__ import annotations

import copy
import csv
import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import synthetic_results as made_up
from html_page import HtmlPage
from terminal import printed, printed_ascii

from gmskip_ros.report.calibration_report import calibration_table, write_calibration_report

FILES = ['trajectory.csv', 'trade_off.png', 'heat_map.png', 'report.html']
CASES = {
    'nested': made_up.calibration(),
    'not nested': made_up.fixed_interval(),
    'no test images': made_up.calibration(test=False),
    'joint': made_up.joint(),
    'cider': made_up.captioning(),
    'empty trajectory': made_up.calibration(num_removed=0),
    '80 blocks': made_up.calibration(num_blocks=80, num_removed=71),
}


def picture(path: Path) -> np.ndarray:
    image = cv2.imread(str(path))
    assert image is not None, path
    return image


def table_lines(result: dict, width: int) -> list[str]:
    return printed([calibration_table(result)], width).splitlines()


def read_csv(folder: Path) -> list[dict[str, str]]:
    with open(folder / 'trajectory.csv', encoding='utf-8', newline='') as file:
        return list(csv.DictReader(file))


def nothing_measured() -> dict:
    """Return a result in which every optional value is None, and some figures are NaN."""
    result = made_up.calibration(
        target=None,
        text_model_type=None,
        min_score_ratio=None,
        max_sparsity=None,
        machine={'cpu': 'AMD EPYC 9554', 'gpu': None},
        device='cpu',
        options={'seed': None},
    )
    for prefix in result['prefixes']:
        prefix['test'] = {**dict.fromkeys(prefix['test']), 'images': 5, 'score': float('nan')}
    return result


@pytest.fixture(scope='module', params=CASES)
def report(request, tmp_path_factory) -> tuple[dict, Path, list[Path]]:
    """Return a result, the folder of its report, and the paths that writing it returned."""
    result = CASES[request.param]
    before = copy.deepcopy(result)
    folder = tmp_path_factory.mktemp('report') / 'new' / 'folder'
    paths = write_calibration_report(result, folder)
    assert result == before
    return result, folder, paths


def test_every_kind_of_result_gives_its_files(report):
    result, folder, paths = report
    expected = [file for file in FILES if result['rounds'] or file != 'heat_map.png']
    assert [path.name for path in paths] == expected
    assert sorted(path.name for path in folder.iterdir()) == sorted(expected)
    for path in paths:
        if path.suffix == '.png':
            assert picture(path).std() > 10, f'{path.name} is blank'


def test_page_holds_its_pictures_and_loads_nothing(report):
    _, folder, paths = report
    page = HtmlPage(folder / 'report.html')
    assert page.tags.count('svg') == sum(path.suffix == '.png' for path in paths)
    assert page.links == []
    assert not {'script', 'link', 'iframe', 'object', 'embed'} & set(page.tags)
    assert not re.search(r'url\(|@import', page.styles)


def test_page_and_csv_have_the_figures_of_the_result(report):
    result, folder, _ = report
    rows = HtmlPage(folder / 'report.html').table('Calibration', 'Operating point')
    records = read_csv(folder)
    assert len(rows) == len(records) == len(result['prefixes'])
    for row, record, prefix in zip(rows, records, result['prefixes'], strict=True):
        test = prefix['test']
        assert record['blocks'].split() == [str(block) for block in prefix['blocks']]
        assert float(record['sparsity']) == prefix['sparsity']
        assert float(record['calibration_score']) == prefix['calibration_score']
        assert row['Sparsity, %'] == f'{100 * prefix["sparsity"]:.1f}'
        assert row['Calibration'] == f'{100 * prefix["calibration_score"]:.1f}'
        assert row['Test'] == (f'{100 * test["score"]:.1f}' if test else '-')
        assert row['ms per answer'] == (f'{test["latency_ms"]:.1f}' if test else '-')
        if test:
            assert float(record['test_score']) == test['score']
            assert float(record['test_latency_ms']) == test['latency_ms']
            for metric, score in test['scores'].items():
                assert float(record[f'test_scores.{metric}']) == score
            low, high = test['interval'] or ('', '')
            assert [record['test_interval_low'], record['test_interval_high']] == [
                str(low),
                str(high),
            ]
        else:
            assert 'test_score' not in record


def test_rounds_name_the_removed_blocks(tmp_path):
    result = made_up.calibration()
    write_calibration_report(result, tmp_path)
    rows = HtmlPage(tmp_path / 'report.html').table('Round', 'Block')
    removed = [(str(r['round']), str(r['removed'])) for r in result['rounds'][:-1]]
    assert [(row['Round'], row['Block']) for row in rows] == [('-', '-'), *removed]
    marks = {int(row['Round']): row['Operating point'] for row in rows[1:]}
    for point, length in result['operating_points'].items():
        assert marks[length] == point
    assert sorted(set(marks.values())) == ['-', 'high_performance', 'high_sparsity']


def test_sets_that_are_not_nested_are_listed(tmp_path):
    write_calibration_report(made_up.fixed_interval(), tmp_path)
    rows = HtmlPage(tmp_path / 'report.html').table('Skipped blocks', 'Blocks')
    assert rows[4]['Skipped blocks'] == '7'
    assert rows[4]['Blocks'] == '4, 8, 12, 16, 20, 24, 28'


def test_same_prefix_for_both_operating_points(tmp_path):
    result = made_up.calibration(operating_points={'high_performance': 3, 'high_sparsity': 3})
    write_calibration_report(result, tmp_path)
    rows = HtmlPage(tmp_path / 'report.html').table('Round', 'Block')
    assert [row['Operating point'] for row in rows if row['Operating point'] != '-'] == ['both']


def test_everything_is_escaped(tmp_path):
    evil = '<script>alert("x")</script>$x^{$'
    result = made_up.calibration(
        model=evil,
        target=evil,
        method=evil,
        command=evil,
        stopped_by=evil,
        metric=evil,
        options={evil: [evil]},
        unreadable=[evil, 'not-\udcffunicode.jpg'],
        prompt=evil,
        machine={'cpu': evil, 'gpu': evil},
    )
    result['dataset'].update(name=evil, notes=[evil], warnings=[evil])
    result['stability'] = {'seeds': [evil], 'points': {evil: {'jaccard': 1.0, 'sets': [[1]]}}}
    for prefix in result['prefixes']:
        prefix['test'].update(most_frequent_answer=evil, scores={evil: 0.5})
    write_calibration_report(result, tmp_path)
    page = HtmlPage(tmp_path / 'report.html')
    assert 'script' not in page.tags
    assert page.text.count(evil) > 15
    assert r'not-\udcffunicode.jpg' in page.text
    assert read_csv(tmp_path)[0]['test_most_frequent_answer'] == evil
    assert evil in ' '.join(table_lines(result, 400))


def test_unknown_values_are_dashes(tmp_path):
    result = nothing_measured()
    write_calibration_report(result, tmp_path)
    page = HtmlPage(tmp_path / 'report.html')
    texts = [page.text, (tmp_path / 'trajectory.csv').read_text()]
    texts += table_lines(result, 120)
    for text in texts:
        assert not re.search(r'\b(None|nan|null|inf)\b', text)
    [full, *_] = page.table('Shuffled score', 'AUROC, %')
    assert full['Shuffled score'] == full['AUROC, %'] == full['Most frequent answer'] == '-'
    assert read_csv(tmp_path)[3]['test_score'] == ''


def test_a_result_read_from_json_gives_the_same_report(tmp_path):
    result = made_up.calibration()
    write_calibration_report(result, tmp_path / 'a')
    write_calibration_report(json.loads(json.dumps(result)), tmp_path / 'b')
    for name in FILES:
        assert (tmp_path / 'a' / name).read_bytes() == (tmp_path / 'b' / name).read_bytes()


def test_cider_on_different_numbers_of_images_is_not_compared(tmp_path):
    different, same = made_up.captioning(), made_up.captioning()
    same['dataset']['test']['images'] = same['dataset']['calibration']['images']
    write_calibration_report(different, tmp_path / 'different')
    write_calibration_report(same, tmp_path / 'same')
    pages = {name: HtmlPage(tmp_path / name / 'report.html') for name in ('different', 'same')}
    gaps = {
        name: [row['Gap'] for row in page.table('Calibration', 'Gap')]
        for name, page in pages.items()
    }
    assert set(gaps['different']) == {'-'}
    assert '-' not in gaps['same']
    assert 'not comparable' in pages['different'].text
    assert 'not comparable' not in pages['same'].text
    # The test curve has its own panel.
    heights = {name: picture(tmp_path / name / 'trade_off.png').shape[0] for name in pages}
    assert heights['different'] > heights['same']
    for page in pages.values():
        assert 'CIDEr weighs words by how rare they are in the references in use' in page.text


def test_no_note_on_cider_without_cider(tmp_path):
    write_calibration_report(made_up.calibration(), tmp_path)
    assert 'CIDEr' not in HtmlPage(tmp_path / 'report.html').text


def test_cider_is_shown_as_in_papers(tmp_path):
    result = made_up.captioning()
    result['prefixes'][0]['calibration_score'] = 1.1974  # what COCO's scorer prints
    write_calibration_report(result, tmp_path)
    [full, *_] = HtmlPage(tmp_path / 'report.html').table('Calibration')
    assert full['Calibration'] == '119.7'
    assert any('CIDEr x100' in line for line in table_lines(result, 80))


def test_every_latency_has_its_machine(tmp_path):
    on_cpu = made_up.calibration(device='cpu', dtype='float32')
    for result, name, other in (
        (made_up.calibration(), 'NVIDIA H200 (cuda:0, float16)', 'EPYC'),
        (on_cpu, 'AMD EPYC 9554 (cpu, float32)', 'H200'),
    ):
        write_calibration_report(result, tmp_path)
        lines = ' '.join(' '.join(table_lines(result, 120)).split())
        assert name in lines
        assert other not in lines
        assert {record['machine'] for record in read_csv(tmp_path)} == {name}
        page = HtmlPage(tmp_path / 'report.html')
        latency_notes = re.findall(r'Latency[^\n]*', page.text)
        # One per table with latencies, and the picture's.
        assert sum(name in note for note in latency_notes) == 4
        assert not any(other in note for note in latency_notes)


def test_alerts_come_first(tmp_path):
    result = made_up.calibration(unreadable=['a/broken.jpg'])
    result['dataset']['warnings'] = ['COCO train images are in the training data']
    result['prefixes'][4]['test']['answers_got_shorter'] = True
    write_calibration_report(result, tmp_path)
    page = HtmlPage(tmp_path / 'report.html')
    top = page.text.partition('Result')[0]
    assert 'COCO train images' in top
    assert '1 image could not be read' in top
    assert 'Answers got shorter: 4 blocks' in top
    assert 'a/broken.jpg' in page.text
    assert page.table('Round', 'Block')[4]['Language time cut, %'].endswith('*')
    lines = table_lines(result, 80)
    assert [line for line in lines if ' * ' in line and ' 8 ' in line]  # round 4 removed block 8
    assert any('answers got shorter' in line for line in lines)


def test_no_alert_without_a_reason(tmp_path):
    write_calibration_report(made_up.calibration(), tmp_path)
    top = HtmlPage(tmp_path / 'report.html').text.partition('Result')[0]
    assert 'could not be read' not in top
    assert 'shorter' not in top
    assert 'No test images' not in top


def test_stability_over_seeds(tmp_path):
    point = {'jaccard': 0.755, 'sets': [[16, 29], [29, 15], [29, 16]]}
    result = made_up.calibration(stability={'seeds': [0, 1, 7], 'points': {'high_sparsity': point}})
    write_calibration_report(result, tmp_path)
    rows = HtmlPage(tmp_path / 'report.html').table('Jaccard', 'Seed')
    assert [row['Seed'] for row in rows] == ['0', '1', '7']
    assert [row['Skipped blocks'] for row in rows] == ['16, 29', '15, 29', '16, 29']
    assert rows[0]['Jaccard'] in ('0.75', '0.76')


def test_the_settings_are_on_the_page(tmp_path):
    result = made_up.calibration(prompt={'text': 'What is it?', 'max_new_tokens': 8})
    write_calibration_report(result, tmp_path)
    text = HtmlPage(tmp_path / 'report.html').text
    for expected in (
        made_up.COMMAND,
        'What is it?',
        'llava-hf/llava-1.5-7b-hf',
        'coco-val2017',
        'c0ffee' * 8,
        'beef' * 12,
        'tie_order',
        'backward',
        '2.13.0',
        'AMD EPYC 9554',
        '2026-11-20T12:00:00Z',
    ):
        assert expected in text


def test_heat_map_marks_one_cell(tmp_path):
    """A bound and a removal change the picture only in their own cell."""
    plain = made_up.calibration(num_removed=3)
    for each in plain['rounds']:
        for cell in each['cells']:
            cell['exact'] = True
    hatched, unmarked = copy.deepcopy(plain), copy.deepcopy(plain)
    hatched['rounds'][1]['cells'][10]['exact'] = False  # block 10
    assert unmarked['rounds'][0]['removed'] == 29
    unmarked['rounds'][0]['removed'] = None
    images = {}
    for name, result in (('plain', plain), ('hatched', hatched), ('unmarked', unmarked)):
        write_calibration_report(result, tmp_path / name)
        images[name] = picture(tmp_path / name / 'heat_map.png').astype(int)
    centres = {}
    for name in ('hatched', 'unmarked'):
        ys, xs = np.nonzero(np.abs(images[name] - images['plain']).max(axis=2) > 20)
        assert 5 < np.ptp(xs) <= images['plain'].shape[1] / 32
        assert 5 < np.ptp(ys) <= images['plain'].shape[0] / len(plain['rounds'])
        centres[name] = int(ys.mean()), int(xs.mean())
    (bound_y, bound_x), (ring_y, ring_x) = centres['hatched'], centres['unmarked']
    assert ring_y < bound_y  # round 1 above round 2
    assert (ring_x - bound_x) / images['plain'].shape[1] == pytest.approx(19 / 35, abs=0.05)
    # The cell of a block that was removed before is empty.
    assert (images['plain'][bound_y, ring_x] == 255).all()
    assert (images['plain'][bound_y, bound_x] < 255).any()


def test_an_old_heat_map_is_removed_for_a_result_without_one(tmp_path):
    write_calibration_report(made_up.calibration(), tmp_path)
    write_calibration_report(made_up.fixed_interval(), tmp_path)
    assert not (tmp_path / 'heat_map.png').exists()
    assert 'so there is no heat map' in HtmlPage(tmp_path / 'report.html').text


@pytest.mark.parametrize(
    'objective, rows',
    [
        (
            {
                'name': 'negative log-likelihood',
                'full': 0.25,
                'rounds': [
                    {'best': 4, 'candidates': [{'block': 3, 'value': 2}, {'block': 4, 'value': 1}]},
                    {'best': 3, 'candidates': [{'block': 3, 'value': 3.5}]},
                ],
            },
            [('0', '-', '0.25'), ('1', '4', '1'), ('2', '4, 3', '3.5')],
        ),
        (
            {'name': 'KL', 'sets': [{'blocks': [2, 3], 'value': 1.23456e-7, 'generations': []}]},
            [('2', '2, 3', '1.235e-07')],
        ),
    ],
    ids=['rounds', 'sets'],
)
def test_what_a_search_compared_stands_in_place_of_a_heat_map(tmp_path, objective, rows):
    write_calibration_report({**made_up.fixed_interval(), 'objective': objective}, tmp_path)
    page = HtmlPage(tmp_path / 'report.html')
    found = page.table('Blocks', 'Skipped', 'Value')
    assert [(row['Blocks'], row['Skipped'], row['Value']) for row in found] == rows
    assert f'The search compared: {objective["name"]}.' in page.text
    assert 'no heat map' not in page.text and 'generations' not in page.text


def test_folder_that_cannot_be_made(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(OSError, match='file'):
        write_calibration_report(made_up.calibration(), tmp_path / 'file')


@pytest.mark.parametrize('width', [80, 120])
@pytest.mark.parametrize('name', CASES)
def test_table_fits_the_terminal(name, width):
    result = CASES[name]
    lines = table_lines(result, width)
    assert max(map(len, lines)) <= width
    for prefix in result['prefixes']:
        figures = [f'{100 * prefix["sparsity"]:.1f}', f'{100 * prefix["calibration_score"]:.1f}']
        if prefix['test']:
            figures += [f'{100 * prefix["test"]["score"]:.1f}']
            figures += [f'{prefix["test"]["speed_up_with_vision"]:.2f}']
        if result['nested'] and prefix['blocks']:
            figures.append(str(prefix['blocks'][-1]))
        assert any(set(figures) <= set(line.split()) for line in lines), figures


def test_an_unmeasured_latency_is_not_mentioned():
    result = made_up.calibration()
    for prefix in result['prefixes']:
        unmeasured = ('latency_ms', 'language_ms', 'speed_up', 'speed_up_with_vision')
        prefix['test'].update(dict.fromkeys(unmeasured))
    text = '\n'.join(table_lines(result, 80))
    assert 'Speed' not in text and 'faster' not in text and 'ms' not in text.split()
    lines = text.splitlines()
    assert not any('No test images' in line for line in lines)


def test_table_shows_names_as_they_are():
    result = made_up.calibration(model='[red]m[/red]', stopped_by='[bold]end')
    text = '\n'.join(table_lines(result, 120))
    assert '[red]m[/red]' in text
    assert '[bold]end' in text


def test_long_model_path_keeps_its_end_in_titles(tmp_path):
    path = '/models/' + 'folder/' * 30 + 'llava-1.5-7b'
    result = made_up.calibration(model=path)
    write_calibration_report(result, tmp_path)
    text = ' '.join(' '.join(table_lines(result, 80)).split())
    assert 'folder/llava-1.5-7b: accuracy, %' in text and path not in text
    page = HtmlPage(tmp_path / 'report.html')
    assert path in page.text  # in full among the facts
    assert path not in page.text.partition('Result')[0]


def test_table_prints_on_an_ascii_terminal():
    assert 'high_sparsity' in printed_ascii([calibration_table(made_up.calibration())])
