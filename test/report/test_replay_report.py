"""The report of a run: its figures are those of frames.csv, whatever the run was like."""

from __future__ import annotations

import base64
import copy
import csv
import html
import json
import re
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import synthetic_replay as made_up
from html_page import HtmlPage
from terminal import printed, printed_ascii

from gmskip_ros.pipeline.rows import FrameRow, csv_bytes
from gmskip_ros.report import replay_pictures
from gmskip_ros.report.replay_figures import series_of
from gmskip_ros.report.replay_report import (
    GALLERY_FRAMES,
    Gallery,
    GalleryFrame,
    replay_tables,
    write_replay_report,
)

PHASES = ('preprocess', 'vision', 'prefill', 'decode', 'total')
TWO = made_up.TASKS[:2]
EVIL = '<script>alert("x")</script>$x^{$ &amp; \udcff'
JPEG = cv2.imencode('.jpg', np.full((24, 32, 3), 90, np.uint8))[1].tobytes()


def two_machines() -> list[FrameRow]:
    """Return the rows of two files, one after the other: from a GPU and from a slow CPU."""
    files = ((9, made_up.GPU, 1.0), (7, made_up.CPU, 40.0))
    return [
        row
        for frames, machine, slower in files
        for row in made_up.rows(frames, TWO, machine=machine, slower=slower, seed=frames)
    ]


CASES: dict[str, Callable[[], list[FrameRow]]] = {
    'three tasks': lambda: made_up.rows(29),
    'one task': lambda: made_up.rows(12, ('captioning',), ('high_sparsity',)),
    'numbers of blocks': lambda: made_up.rows(5, ('multi_object',), ('0', '1', '3', '7')),
    'one frame': lambda: made_up.rows(1, points=('high_sparsity',)),
    'all agree': lambda: few(8, differing=0.0),
    'ended within a frame': lambda: made_up.rows(6)[:-3],
    'two machines': two_machines,
    'stamps jump': lambda: [
        replace(row, stamp_ns=row.stamp_ns - (10**15 if row.frame > 3 else 0)) for row in few(6)
    ],
    'nothing answered': lambda: [],
}


def embedded(folder: Path) -> dict[str, Any]:
    """Return the figures that a page embeds for programs."""
    page = (folder / 'report.html').read_text(encoding='utf-8')
    [text] = re.findall(r'<pre id="figures" hidden>(.*?)</pre>', page, re.DOTALL)
    return json.loads(html.unescape(text))


def few(frames: int = 2, **changes: Any) -> list[FrameRow]:
    """Return the rows of one task at one operating point, for pictures with few panels."""
    return made_up.rows(frames, ('captioning',), ('high_sparsity',), **changes)


def write(folder: Path, rows: list[FrameRow], **changes: Any) -> HtmlPage:
    write_replay_report(made_up.run(**changes), rows, [], folder)
    return HtmlPage(folder / 'report.html')


def summary_text(rows: list[FrameRow], width: int) -> str:
    return printed(replay_tables(made_up.run(), rows), width)


@pytest.fixture(scope='module', params=CASES)
def report(request, tmp_path_factory) -> tuple[list[FrameRow], Path, list[Path]]:
    """Return rows, the folder of their report, and the paths that writing it returned."""
    rows, run = CASES[request.param](), made_up.run()
    before = copy.deepcopy(run)
    folder = tmp_path_factory.mktemp('report') / 'new' / 'folder'
    paths = write_replay_report(run, rows, made_up.gallery(rows, 2), folder)
    (folder / 'frames.csv').write_bytes(csv_bytes(rows))
    assert run == before
    return rows, folder, paths


def test_every_kind_of_run_gives_its_files(report):
    rows, folder, paths = report
    assert [path.name for path in paths] == (['latency.png'] if rows else []) + ['report.html']
    assert all(path.parent == folder and path.exists() for path in paths)
    if rows:
        assert cv2.imread(str(paths[0])).std() > 10, 'latency.png is blank'


def test_page_holds_its_pictures_and_loads_nothing(report):
    rows, folder, _ = report
    page = HtmlPage(folder / 'report.html')
    assert not {'script', 'link', 'iframe', 'object', 'embed'} & set(page.tags)
    assert not re.search(r'url\(|@import', page.styles)
    kinds = [re.match(r'data:image/jpeg;base64,|#place-', link) for link in page.links]
    assert all(kinds)
    pictures = [
        base64.b64decode(link.partition(',')[2], validate=True)
        for link in page.links
        if not link.startswith('#')
    ]
    for content in pictures:
        image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
        assert image.std() > 5
    assert page.tags.count('svg') >= bool(rows)


def percentile_95(values: list[float]) -> float:
    if len(values) == 1:
        return values[0]
    return statistics.quantiles(values, n=20, method='inclusive')[-1]


def of_csv(folder: Path) -> list[dict[str, str]]:
    with open(folder / 'frames.csv', encoding='utf-8', newline='') as file:
        return list(csv.DictReader(file))


def test_embedded_times_are_those_of_the_csv(report):
    _, folder, _ = report
    groups: dict[tuple[str, ...], list[dict[str, str]]] = {}
    for record in of_csv(folder):
        key = [record[name] for name in ('machine', 'task', 'branch', 'operating_point')]
        groups.setdefault(tuple(key), []).append(record)
    entries = embedded(folder)['latency']
    keys = [(e['machine'], e['task'], e['branch'], e['operating_point']) for e in entries]
    assert sorted(keys) == sorted(groups)
    for key, entry in zip(keys, entries, strict=True):
        assert entry['frames'] == len(groups[key])
        assert entry['tokens'] == pytest.approx(
            statistics.mean(int(record['tokens']) for record in groups[key])
        )
        for phase in PHASES:
            times = [float(record[f'{phase}_ms']) for record in groups[key]]
            assert entry[f'{phase}_ms'] == {
                'median': pytest.approx(statistics.median(times)),
                'p95': pytest.approx(percentile_95(times)),
            }


def test_embedded_summary_is_that_of_the_csv(report):
    _, folder, _ = report
    records = of_csv(folder)
    full_ms = {
        (record['machine'], record['frame'], record['task']): float(record['total_ms'])
        for record in records
        if record['branch'] == 'full'
    }
    found = []
    for entry in embedded(folder)['summary']:
        mine = [
            record
            for record in records
            if record['branch'] == 'skip'
            and all(record[name] == entry[name] for name in ('machine', 'task', 'operating_point'))
        ]
        found += mine
        assert entry['frames'] == len(mine)
        compared = [record for record in mine if record['agree']]
        agreeing = [record for record in compared if record['agree'] == 'true']
        assert (entry['compared'], entry['agreeing']) == (len(compared), len(agreeing))
        assert entry['agreement'] == pytest.approx(len(agreeing) / len(compared))
        for measure in ('jaccard', 'rouge_l'):
            known = [float(record[measure]) for record in compared if record[measure]]
            assert entry[f'mean_{measure}'] == (
                pytest.approx(statistics.mean(known)) if known else None
            )
        skip = [float(record['total_ms']) for record in mine]
        assert entry['skip_total_ms']['median'] == pytest.approx(statistics.median(skip))
        assert entry['skip_total_ms']['p95'] == pytest.approx(percentile_95(skip))
        pairs = [
            (full_ms[key], float(record['total_ms']))
            for record in mine
            if (key := (record['machine'], record['frame'], record['task'])) in full_ms
        ]
        assert entry['speedup']['frames'] == len(pairs)
        assert entry['speedup']['median'] == pytest.approx(
            statistics.median(full / skip for full, skip in pairs)
        )
        assert entry['sparsity'] == float(mine[0]['sparsity'])
        assert entry['skipped_blocks'] == [int(b) for b in mine[0]['skipped_blocks'].split()]
    assert len(found) == sum(record['branch'] == 'skip' for record in records)


def test_tables_show_the_embedded_figures(report):
    _, folder, _ = report
    page, figures = HtmlPage(folder / 'report.html'), embedded(folder)
    machines = list(dict.fromkeys(entry['machine'] for entry in figures['latency']))
    shown = [table for table in page.tables if 'Agree, %' in table[0]]
    assert len(shown) == len(machines)
    head = shown[0][0] if shown else []
    rows = [dict(zip(head, row, strict=True)) for table in shown for row in table[1:]]
    for row, entry in zip(rows, figures['summary'], strict=True):
        assert (row['Task'], row['Operating point']) == (entry['task'], entry['operating_point'])
        assert row['Agree, %'] == f'{100 * entry["agreement"]:.1f}'
        assert row['Differ'] == str(entry['compared'] - entry['agreeing'])
        assert row['Skip, median ms'] == f'{entry["skip_total_ms"]["median"]:.1f}'
        assert row['Full, p95 ms'] == f'{entry["full_total_ms"]["p95"]:.1f}'
        speed_up, ends = entry['speedup'], entry['speedup']['interval']
        text = f'{speed_up["median"]:.2f}'
        if speed_up['frames'] > 1:
            assert speed_up['min'] <= ends[0] <= speed_up['median'] <= ends[1] <= speed_up['max']
            text += f' [{ends[0]:.2f}, {ends[1]:.2f}]'
        assert row['Speed-up'].rstrip(' *') == text
    latencies = [table for table in page.tables if 'Decode, p95' in table[0]]
    rows = [dict(zip(t[0], row, strict=True)) for t in latencies for row in t[1:]]
    for row, entry in zip(rows, figures['latency'], strict=True):
        assert (row['Task'], row['Branch']) == (entry['task'], entry['branch'])
        assert row['Decode, p95'] == f'{entry["decode_ms"]["p95"]:.1f}'
        assert row['Total, median'] == f'{entry["total_ms"]["median"]:.1f}'


def test_times_of_two_machines_are_never_in_one_figure(tmp_path):
    page = write(tmp_path, two_machines())
    figures = embedded(tmp_path)
    for kind in ('summary', 'latency'):
        assert [entry['machine'] for entry in figures[kind]] == sorted(
            (entry['machine'] for entry in figures[kind]), reverse=True
        )
    gpu, cpu = (
        [e['total_ms']['median'] for e in figures['latency'] if e['machine'] == machine]
        for machine in (made_up.GPU, made_up.CPU)
    )
    assert 10 * max(gpu) < max(cpu) and 10 * min(gpu) < min(cpu)
    alert = f'The answers come from {made_up.GPU}; {made_up.CPU}: no figure mixes them.'
    assert alert in page.text
    captions = re.findall(r'Times of one answer, on ([^\n]*)', page.text)
    assert captions == [made_up.GPU, made_up.CPU]
    heights = []
    for rows in (few(), [*few(), *few(machine=made_up.CPU)]):
        write(tmp_path, rows)
        heights.append(cv2.imread(str(tmp_path / 'latency.png')).shape[0])
    assert heights[1] > 1.8 * heights[0], 'each machine has a panel of its own'
    text = summary_text(two_machines(), 100)
    assert text.count('Skip against full') == 2
    assert made_up.GPU in text and made_up.CPU in text


def as_shared(rows: list[FrameRow], after: int = 0) -> list[FrameRow]:
    """Return the rows, with the timing `shared` from the frame after this one on.

    5 ms are shared by the answers of a branch.
    """
    seen: set[tuple[int, str]] = set()
    made = []
    for row in rows:
        if row.frame > after:
            key = (row.frame, row.branch)
            row = replace(row, timing='shared', shared_ms=None if key in seen else 5.0)
            seen.add(key)
        made.append(row)
    return made


def test_shared_frames_have_times_and_no_speed_up(tmp_path):
    rows = as_shared(made_up.rows(4, TWO, ('high_sparsity',)))
    page = write(tmp_path, rows)
    figures = embedded(tmp_path)
    assert {entry['timing'] for entry in figures['summary']} == {'shared'}
    for entry in figures['summary']:
        assert entry['speedup']['frames'] == 0 and entry['speedup']['median'] is None
        assert entry['skip_total_ms']['median'] > 0 and not entry['answers_got_shorter']
    assert {row['Speed-up'] for row in page.table('Speed-up')} == {'-'}
    top, _, rest = page.text.partition('Result')
    assert top.count('No speed-up with timing: shared: the times leave out what') == 1
    assert 'None with timing: shared.' in rest
    skip, full = sorted(page.table('Shared, median'), key=lambda row: row['Branch'] != 'skip')
    assert (skip['Frames'], skip['Shared, median'], full['Shared, p95']) == ('4', '5.0', '5.0')
    branch_ms = [
        5.0
        + mine[0].preprocess_ms
        + mine[0].vision_ms
        + sum(row.prefill_ms + row.decode_ms for row in mine)
        for frame in range(1, 5)
        if (mine := [row for row in rows if (row.frame, row.branch) == (frame, 'full')])
    ]
    assert full['Branch, median'] == f'{statistics.median(branch_ms):.1f}'
    text = summary_text(rows, 80)
    assert ' '.join(text.split()).count('No speed-up with timing: shared') == 1
    assert 'timing: shared' not in summary_text(made_up.rows(4), 80)


def test_a_run_in_which_the_timing_was_changed_is_in_two_parts(tmp_path):
    rows = as_shared(few(9), after=5)
    page = write(tmp_path, rows)
    figures = embedded(tmp_path)
    isolated, shared = figures['summary']
    assert [(e['timing'], e['frames'], e['speedup']['frames']) for e in (isolated, shared)] == [
        ('isolated', 5, 5),
        ('shared', 4, 0),
    ]
    for kind, branch in (('full_total_ms', 'full'), ('skip_total_ms', 'skip')):
        for entry, frames in ((isolated, range(1, 6)), (shared, range(6, 10))):
            times = [r.total_ms for r in rows if r.branch == branch and r.frame in frames]
            assert entry[kind]['median'] == pytest.approx(statistics.median(times))
    assert [(e['timing'], e['frames']) for e in figures['latency']] == [
        (timing, frames) for timing, frames in (('isolated', 5), ('shared', 4)) for _ in 'ab'
    ]
    assert [row['Frames with both'] for row in page.table('Frames with both')] == ['5']
    assert 'The timing was changed during the run: no figure mixes the two.' in page.text
    captions = re.findall(r'Times of one answer, on ([^\n]*)', page.text)
    assert captions == [made_up.GPU, f'{made_up.GPU}, timing: shared']
    heights = []
    for each in (few(), rows):
        write(tmp_path, each)
        heights.append(cv2.imread(str(tmp_path / 'latency.png')).shape[0])
    assert heights[1] > 1.8 * heights[0], 'each timing has a panel of its own'
    assert summary_text(rows, 100).count('Skip against full') == 2


def test_rows_of_two_models_are_not_pooled(tmp_path):
    write(tmp_path, [*few(3), *few(4, model='demo')])
    frames = {entry['machine']: entry['frames'] for entry in embedded(tmp_path)['summary']}
    assert frames == {f'{made_up.MODEL}, {made_up.GPU}': 3, f'demo, {made_up.GPU}': 4}


def test_speed_up_is_paired_by_frame(tmp_path):
    """Also for a bag that was played twice: the same stamps recur, with different times."""
    first = made_up.rows(2, ('single_object',), ('8',))
    again = [replace(row, frame=row.frame + 2) for row in first]
    totals = {
        ('skip', 1): 10,
        ('full', 1): 20,
        ('skip', 2): 10,
        ('full', 2): 30,
        ('skip', 3): 10,
        ('full', 3): 50,
        ('skip', 4): 10,
        ('full', 4): 70,
    }
    rows = [replace(r, total_ms=totals[r.branch, r.frame]) for r in [*first, *again]]
    write(tmp_path, rows)
    [entry] = embedded(tmp_path)['summary']
    assert entry['speedup'] == {
        'frames': 4,
        'median': 4.0,
        'min': 2.0,
        'p5': pytest.approx(2.15),
        'p95': pytest.approx(6.7),
        'max': 7.0,
        'interval': [2.0, 7.0],
        'slower_share': 0.0,
    }


def test_frames_beyond_the_axis_are_counted(monkeypatch):
    """One frame of forty was a hundred times as fast: it lies beyond the axis, and is counted."""
    rows = [replace(r, total_ms=10.0) for r in made_up.rows(40, ('captioning',), ('3', '7'))]
    rows[-1] = replace(rows[-1], total_ms=1000.0)  # full's
    texts = []

    def look(figure):
        texts.extend(text.get_text() for text in figure.axes[0].texts)

    monkeypatch.setattr(replay_pictures, 'picture', look)
    replay_pictures.draw_speedup(series_of(rows))
    assert texts == ['1.00 x', '1 beyond', '1.00 x', '1 beyond']
    texts.clear()
    replay_pictures.draw_speedup(series_of(rows[:-1]))
    assert texts == ['1.00 x', '1.00 x']


def test_agreement_is_drawn_where_it_is(monkeypatch):
    """Frames 3 and 4 of twelve differ: they have marks, and lower the share around them."""
    rows = [
        replace(row, agree=row.frame not in (3, 4)) if row.branch == 'skip' else row
        for row in few(12)
    ]
    lines, texts = [], []

    def look(figure):
        [axis] = figure.axes
        lines.extend((line.get_xdata(), line.get_ydata()) for line in axis.lines)
        texts.extend(text.get_text() for text in axis.texts)

    monkeypatch.setattr(replay_pictures, 'picture', look)
    replay_pictures.draw_agreement(series_of(rows))
    seconds = [(row.stamp_ns - rows[0].stamp_ns) / 1e9 for row in rows if row.branch == 'skip']
    (marks, _), (xs, share), *_ = lines
    assert list(marks) == pytest.approx(seconds[2:4])
    assert list(xs) == pytest.approx(seconds)
    window = [[n in (3, 4) for n in range(max(1, i - 2), min(12, i + 2) + 1)] for i in range(1, 13)]
    assert list(share) == pytest.approx([100 * (1 - statistics.mean(w)) for w in window])
    assert texts == ['83.3 % of 12\n2 differ']


def test_what_was_run_is_at_the_top(tmp_path):
    page = write(tmp_path, few())
    top = page.text.partition('Result')[0]
    for expected in (
        '29 frames of bag /data/drives/2026-10-31/drive_07, topic /camera/front',
        'tasks: single_object, multi_object, captioning;',
        f'full model: {made_up.MODEL}, 32 blocks',
        'skip at high_performance, high_sparsity',
        'NVIDIA H200 (cuda:0, float16)',
        '2026-11-20T12:00:00Z',
    ):
        assert expected in top


@pytest.mark.parametrize(
    ('changes', 'words', 'note'),
    [
        pytest.param({}, 'captioning on the token ids.', False, id='earlier_version'),
        pytest.param({'caption_agreement': 1.0}, 'captioning on the token ids.', False, id='equal'),
        pytest.param(
            {'caption_agreement': 0.85},
            'captioning on a ROUGE-L of at least 0.85.',
            True,
            id='alike',
        ),
    ],
)
def test_what_captions_are_compared_by_is_reported(tmp_path, changes, words, note):
    rows = made_up.rows(2, ('single_object', 'captioning'), ('high_sparsity',))
    page = write(tmp_path, rows, **changes)
    assert f'multi_object on the set, {words}' in page.text
    run = made_up.run(2, **changes)
    line = 'Captions agree if their ROUGE-L is at least 0.85'
    assert (line in printed(replay_tables(run, rows), 100)) is note
    others = [row for row in rows if row.task != 'captioning']
    assert line not in printed(replay_tables(run, others), 100)


def test_the_source_may_be_a_camera(tmp_path):
    page = write(tmp_path, few(1), source={'camera': 'rendered scenes'}, frames={})
    assert '1 frame of rendered scenes; tasks' in page.text


def test_alerts_come_first(tmp_path):
    sets = made_up.run()['skip_sets']
    sets[0]['blocks'] = []
    sets[2]['skip_list'] = sets[3]['skip_list'] = ''
    rows = [
        replace(row, tokens=1, decode_ms=0.0, prefill_ms=1.0)
        if (row.task, row.operating_point) == ('captioning', 'high_sparsity')
        else row
        for row in made_up.rows(9, differing=0.0)
    ]
    frames = {**made_up.run()['frames'], 'undecodable': 3, 'due': 12, 'resets': 2}
    page = write(tmp_path, rows, skip_sets=sets, frames=frames, complete=False, stopped_by='SIGINT')
    top = page.text.partition('Result')[0]
    assert 'Partial result: the run was stopped by SIGINT' in top
    assert 'could not be decoded: 3 of 12 due frames (25.0 %)' in top
    assert 'time stamps jumped back: 2.' in top
    assert 'single_object at high_performance skips no blocks' in top
    assert top.count('multi_object has no skip list') == 1
    assert 'Answers got shorter: captioning at high_sparsity.' in top
    assert 'captioning has no skip list' not in top
    [marked] = [row for row in page.table('Speed-up') if row['Speed-up'].endswith('*')]
    assert (marked['Task'], marked['Operating point']) == ('captioning', 'high_sparsity')


def test_no_alert_without_a_reason(tmp_path):
    frames = {**made_up.run()['frames'], 'undecodable': 0}
    page = write(tmp_path, few(9, differing=0.0), frames=frames, problems=[])
    assert 'li' not in page.tags
    assert 'No problems.' in page.text


def test_no_answered_frame_is_reported(tmp_path):
    write(tmp_path, few())
    frames = {**made_up.run()['frames'], 'due': 5, 'answered': 0, 'undecodable': 5}
    page = write(tmp_path, [], frames=frames)
    assert 'No frame was answered: there are no figures.' in page.text
    assert '5 of 5 due frames (100.0 %)' in page.text
    assert not (tmp_path / 'latency.png').exists(), 'an earlier picture was not removed'
    assert page.links == []
    assert summary_text([], 80) == ''


def test_gallery_shows_frames_with_both_answers(tmp_path):
    rows = [
        replace(row, agree=row.task == 'captioning') if row.branch == 'skip' else row
        for row in made_up.rows(3, points=('high_sparsity',), differing=1.0)
    ]
    shown = [
        GalleryFrame(r.frame, r.stamp_ns, JPEG)
        for r in rows
        if r.task == 'captioning' and r.branch == 'full' and r.frame != 2
    ]
    write_replay_report(made_up.run(gallery={'disagreeing': 3, 'shown': 2}), rows, shown, tmp_path)
    page = HtmlPage(tmp_path / 'report.html')
    jpegs = [link for link in page.links if link.startswith('data:image/jpeg')]
    assert [base64.b64decode(link.partition(',')[2]) for link in jpegs] == [JPEG, JPEG]
    assert 'The branches disagree on 3 frames. Shown: 2 of them.' in page.text
    seconds = (rows[-1].stamp_ns - rows[0].stamp_ns) / 1e9
    assert f'Frame 3, {seconds:.1f} s into the drive, 2026-10-31 12:00:02.' in page.text
    tables = [table for table in page.tables if 'Verdict' in table[0]]
    assert len(tables) == 2
    for table, number in zip(tables, (1, 3), strict=True):
        found = [dict(zip(table[0], row, strict=True)) for row in table[1:]]
        for row in found:
            skip, full = (
                next(r for r in rows if (r.frame, r.task, r.branch) == (number, row['Task'], b))
                for b in ('skip', 'full')
            )
            assert row['Operating point'] == 'high_sparsity'
            assert row['Verdict'] == ('agrees' if row['Task'] == 'captioning' else 'DIFFERS')
            assert row['Full says'] == full.answer
            words = '' if skip.in_vocabulary else f', said: "{skip.raw_text}"'
            assert row['Skip says'] == skip.answer + words
        assert [row['Task'] for row in found] == list(made_up.TASKS)


def test_gallery_keeps_some_frames_of_the_whole_drive():
    gallery = Gallery()
    for frame in range(1, 1001):
        if gallery.wants_next():
            gallery.add(GalleryFrame(frame, frame, JPEG))
    frames = [each.frame for each in gallery.frames]
    assert gallery.seen == 1000 and GALLERY_FRAMES / 2 <= len(frames) <= GALLERY_FRAMES
    assert frames[0] == 1 and len(set(np.diff(frames))) == 1 and frames[-1] + frames[1] > 1000


def test_no_disagreement_is_reported(tmp_path):
    page = write(tmp_path, few(4, differing=0.0), gallery={'disagreeing': 0, 'shown': 0})
    assert 'None: the branches agree on every frame that both answered.' in page.text


def test_block_map_shows_what_ran_and_the_order_of_removal(tmp_path):
    sets = made_up.run(points=('high_sparsity',))['skip_sets']
    page = write(tmp_path, few(1), skip_sets=sets)
    [blocks] = [table for table in page.tables if table[0][0] == 'Block']
    assert blocks[0][1:] == [str(i) for i in range(32)]
    for row, each in zip(blocks[1:], sets, strict=True):
        assert row[0] == f'{each["task"]}, high_sparsity'
        order = {int(place): block for block, place in enumerate(row[1:]) if place}
        assert [order[i + 1] for i in range(len(order))] == each['blocks']
    listed = page.table('In the order of removal')
    assert [row['In the order of removal'] for row in listed] == [
        ', '.join(map(str, each['blocks'])) for each in sets
    ]
    assert listed[0]['Sparsity, %'] == '50.0'


def test_many_blocks_have_fewer_numbers(tmp_path):
    page = write(tmp_path, few(1), num_blocks=80)
    [head, *rows] = next(table for table in page.tables if table[0][0] == 'Block')
    assert [title for title in head[1:] if title] == [str(i) for i in range(0, 80, 5)]
    assert {len(row) for row in rows} == {81}


def test_counts_problems_machine_and_command_are_on_the_page(tmp_path):
    problems = [f'frame {i}: a broken JPEG' for i in range(30)]
    page = write(tmp_path, few(2), problems=problems)
    for expected in (
        'out_of_order',
        'gated',
        '271',
        '30 problems',
        'frame 29: a broken JPEG',
        'AMD EPYC 9554',
        '2.13.0',
        'gmskip replay drive_07',
        'Prompt of captioning?',
        'sensor_msgs/msg/Compressed',
    ):
        assert expected in page.text


def test_everything_is_escaped(tmp_path):
    rows = [
        replace(row, task=EVIL, answer=EVIL, raw_text=EVIL, operating_point=EVIL, machine=EVIL)
        for row in few()
    ]
    run = made_up.run(
        tasks={EVIL: {'prompt': EVIL}},
        command=EVIL,
        stopped_by=EVIL,
        complete=False,
        source={EVIL: EVIL},
        model=EVIL,
        machine={'gpu': EVIL},
        problems=[EVIL],
        skip_sets=[{'task': EVIL, 'operating_point': EVIL, 'blocks': [1], 'skip_list': EVIL}],
    )
    write_replay_report(run, rows, [GalleryFrame(1, rows[0].stamp_ns, JPEG)], tmp_path)
    page = HtmlPage(tmp_path / 'report.html')
    assert 'script' not in page.tags
    assert page.text.count(EVIL.replace('\udcff', '\\udcff')) > 20
    assert EVIL.replace('\udcff', '\\udcff') in summary_text(rows, 400)
    assert embedded(tmp_path)['summary'][0]['task'] == EVIL


@pytest.mark.parametrize(
    'text', ['', 'x' * 20_000, 'A long sentence. ' * 900, '一辆公交车 🚌', '\u202eabc\x00\x07\n\n']
)
def test_any_answer_can_be_shown(tmp_path, text):
    rows = [replace(r, answer=text, raw_text=text, agree=False) for r in few()]
    write_replay_report(made_up.run(), rows, [GalleryFrame(1, rows[0].stamp_ns, JPEG)], tmp_path)
    shown = HtmlPage(tmp_path / 'report.html').table('Verdict')[0]['Skip says']
    assert shown and len(shown) <= 5000
    assert shown.isprintable()


def test_a_long_drive_gives_a_small_page(tmp_path):
    write(tmp_path, made_up.rows(5000, ('single_object',), ('8',), period_s=1.0))
    assert (tmp_path / 'report.html').stat().st_size < 1_000_000
    [entry] = embedded(tmp_path)['summary']
    assert entry['frames'] == 5000


@pytest.mark.parametrize('name', [name for name in CASES if name != 'nothing answered'])
def test_table_fits_the_terminal(name):
    rows = CASES[name]()
    lines = summary_text(rows, 80).splitlines()
    assert max(map(len, lines)) <= 80
    for task in {row.task for row in rows}:
        totals: dict[tuple[str, str], list[float]] = {}
        for row in rows:
            if row.task == task and row.branch == 'skip':
                totals.setdefault((row.machine, row.operating_point), []).append(row.total_ms)
        for (_, point), values in totals.items():
            wanted = {task, point, f'{statistics.median(values):.1f}'}
            assert any(wanted <= set(line.split()) for line in lines), wanted


def test_table_prints_on_an_ascii_terminal():
    assert 'high_sparsity' in printed_ascii(replay_tables(made_up.run(), made_up.rows(3)))


def test_folder_that_cannot_be_made(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(OSError, match='file'):
        write_replay_report(made_up.run(), few(1), [], tmp_path / 'file')
