"""The reports in a real browser: they render, and request nothing from the network."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import cv2
import numpy as np
import pytest
import synthetic_replay
import synthetic_results
from chromium import Chromium, Page, chromium, find_chromium

from gmskip_ros.report.calibration_report import write_calibration_report
from gmskip_ros.report.compare_report import write_compare_report
from gmskip_ros.report.comparison_report import compare_runs, write_comparison_report
from gmskip_ros.report.evaluation_report import write_evaluation_report
from gmskip_ros.report.replay_report import write_replay_report

pytestmark = pytest.mark.skipif(
    find_chromium() is None, reason='Chromium is not installed (apt install chromium)'
)

WIDTHS = (1280, 640, 375)
HEADINGS = {
    'calibration': ['Result', 'Trajectory', 'Every block that was tried', 'Stability over seeds'],
    'evaluation': ['Score and cost: single_object (person)', 'Against full', 'Skip sets'],
    'replay': [
        'Result',
        'Where the time goes',
        'Speed-up',
        'Agreement along the drive',
        'Frames on which the branches disagree',
        'Which blocks ran',
        'Frames',
        'What was run',
    ],
    'replay, nothing answered': ['Result', 'Which blocks ran', 'What was run'],
    'comparison': ['What differs', 'Answers', 'Time', 'Changed answers'],
    'methods': ['Methods compared', 'Score at equal sparsity', 'Speed', 'Skip sets'],
}
FIGURES = {
    'calibration': 2,
    'evaluation': 1,
    'replay': 4,
    'replay, nothing answered': 0,
    'comparison': 1,
    'methods': 2,
}
IMAGES = {'replay': 2}
FACTS = """({
    headings: [...document.querySelectorAll('h1, h2')].map(each => each.textContent),
    rows: [...document.querySelectorAll('tbody tr')].filter(each => each.offsetHeight > 8).length,
    pictures: [...document.images].map(each => [each.naturalWidth, each.width, each.height]),
    figures: [...document.querySelectorAll('figure svg')].map(each => {
        const box = each.getBoundingClientRect();
        const hovered = each.querySelector('title')?.parentElement.getBoundingClientRect();
        return [box.width, box.height, hovered?.width ?? 0];
    }),
    overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    shown: document.body.innerText,
    ran: window.ran === true,
})"""


@pytest.fixture(scope='module')
def browser() -> Iterator[Chromium]:
    with chromium() as running:
        yield running


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
    """Return a folder with every kind of report, with synthetic figures."""
    folder = tmp_path_factory.mktemp('reports')
    rows = synthetic_replay.rows(12, ('single_object', 'captioning'))
    write_calibration_report(synthetic_results.calibration(), folder / 'calibration')
    write_evaluation_report(synthetic_results.evaluated(), folder / 'evaluation')
    write_compare_report(synthetic_results.compared(), folder / 'methods')
    write_replay_report(
        synthetic_replay.run(), rows, synthetic_replay.gallery(rows, 2), folder / 'replay'
    )
    write_replay_report(synthetic_replay.run(), [], [], folder / 'replay, nothing answered')
    others = [replace(row, answer='bus', raw_text='A bus.') for row in rows]
    result = compare_runs(rows, others)
    write_comparison_report(result, folder / 'comparison', ['a.jsonl', 'b.jsonl'])
    return folder


@pytest.fixture(scope='module')
def pages(browser: Chromium, folder: Path) -> dict[tuple[str, int], Page]:
    return {
        (name, width): browser.open(
            (folder / name / 'report.html').as_uri(), width=width, facts=FACTS
        )
        for name in HEADINGS
        for width in WIDTHS
    }


@pytest.fixture
def server() -> Iterator[tuple[str, list[str]]]:
    """Yield the address of a server on this machine, and the paths requested from it."""
    requested: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requested.append(self.path)
            self.send_response(404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(('127.0.0.1', 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, daemon=True)
        thread.start()
        yield f'http://127.0.0.1:{http.server_port}', requested
        http.shutdown()
        thread.join()


@pytest.mark.parametrize('name', HEADINGS)
@pytest.mark.parametrize('width', WIDTHS)
def test_page_renders(pages, name, width):
    page = pages[name, width]
    for heading in HEADINGS[name]:
        assert any(heading in shown for shown in page.facts['headings']), heading
    assert page.facts['rows'] >= 5, 'tables are laid out'
    assert len(page.facts['pictures']) == IMAGES.get(name, 0)
    for natural_width, shown_width, shown_height in page.facts['pictures']:
        assert natural_width > 0, 'a picture was not decoded'
        assert 0 < shown_width <= width and shown_height > 0
    assert len(page.facts['figures']) == FIGURES[name]
    for figure_width, figure_height, hovered_width in page.facts['figures']:
        assert figure_width >= 600, 'its text is too small to read'
        # But for two panels side by side.
        fits = figure_width <= width or width == 375 or name == 'methods'
        assert fits, 'a part has to be scrolled to'
        assert figure_height > 80 and hovered_width > 3, 'no value is shown on hover'
    assert page.facts['overflow'] <= 0, 'the page is wider than its window'
    shot = cv2.imdecode(np.frombuffer(page.screenshot, np.uint8), cv2.IMREAD_COLOR)
    assert shot.shape[1] == width and shot.shape[0] > 600
    assert shot.std() > 10, 'a blank page'


@pytest.mark.parametrize('name', HEADINGS)
@pytest.mark.parametrize('width', WIDTHS)
def test_page_requests_nothing_but_itself(pages, name, width):
    page = pages[name, width]
    assert page.requests[0] == page.url
    assert len(page.requests) >= 1 + IMAGES.get(name, 0)
    assert {url.partition(':')[0] for url in page.requests[1:]} <= {'data'}


def test_figures_for_programs_are_not_shown(pages):
    for name in ('replay', 'comparison'):
        page = pages[name, 1280]
        assert 'id="figures"' in page.dom
        assert 'gmskip/' not in page.facts['shown'].partition('What was run')[0]


def test_a_page_that_loads_something_is_detected(browser, server, tmp_path):
    address, requested = server
    path = tmp_path / 'page.html'
    path.write_text(
        f'<h1>A picture</h1><img src="{address}/picture.png"><script>window.ran = true</script>'
    )
    page = browser.open(path.as_uri(), facts=FACTS)
    assert f'{address}/picture.png' in page.requests
    assert requested == ['/picture.png']
    assert page.facts['pictures'][0][0] == 0, 'a missing picture is reported'
    assert page.facts['ran']


@pytest.mark.parametrize('name', ['calibration', 'replay', 'comparison', 'methods'])
def test_injected_html_can_neither_load_nor_run(browser, folder, server, tmp_path, name):
    """The page's own policy: answers are a model's words, and reports are passed on."""
    address, requested = server
    intruder = (
        f'<img src="{address}/a.png"><link rel="stylesheet" href="{address}/b.css">'
        f'<iframe src="{address}/c.html"></iframe><script>window.ran = true</script>'
        f'<script src="{address}/d.js"></script><h2>Intruder</h2>'
    )
    report = (folder / name / 'report.html').read_text(encoding='utf-8')
    assert '</h1>' in report
    path = tmp_path / 'report.html'
    path.write_text(report.replace('</h1>', '</h1>' + intruder, 1), encoding='utf-8')
    page = browser.open(path.as_uri(), facts=FACTS)
    assert 'Intruder' in page.facts['headings']
    assert requested == []
    assert not page.facts['ran']


def test_long_and_odd_words_stay_in_the_window(browser, tmp_path):
    word = 'W' * 500 + '\u202e\x07<script>window.ran = true</script>'
    rows = [
        replace(row, answer=word, raw_text=word, agree=False)
        for row in synthetic_replay.rows(2, ('captioning',), ('7',))
    ]
    run = synthetic_replay.run(
        points=('7',),
        command=word,
        problems=[word],
        source={'bag': word},
        model=word,
        machine={'gpu': word},
        complete=False,
        stopped_by=word,
        software={word: word},
    )
    run['skip_sets'][0]['skip_list'] = word
    write_replay_report(run, rows, synthetic_replay.gallery(rows, 1), tmp_path / 'replay')
    others = [replace(row, model=word, machine=word, answer='bus', raw_text='a') for row in rows]
    result = compare_runs(rows, others)
    write_comparison_report(result, tmp_path / 'comparison', [word, word])
    for name in ('replay', 'comparison'):
        url = (tmp_path / name / 'report.html').as_uri()
        page = browser.open(url, width=640, facts=FACTS)
        assert page.facts['overflow'] <= 0, name
        assert not page.facts['ran']
        assert 'W' * 300 in page.facts['shown'].replace('\n', '')


def test_a_page_that_is_too_wide_is_detected(browser, tmp_path):
    path = tmp_path / 'page.html'
    path.write_text('<p style="width: 2000px">wide</p>')
    assert browser.open(path.as_uri(), width=640, facts=FACTS).facts['overflow'] > 1000
