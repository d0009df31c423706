"""The report of `gmskip replay A --against B`: tables, changes.csv and a page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from gmskip_ros.report import columns as col
from gmskip_ros.report import formatting as fmt
from gmskip_ros.report.columns import Column, Row
from gmskip_ros.report.comparison_pictures import draw_comparison
from gmskip_ros.report.headlines import comparison_headline
from gmskip_ros.report.run_comparison import CHANGE_FIELDS, compare_runs
from gmskip_ros.report.writing import render_html, write_files

__all__ = ['compare_runs', 'comparison_tables', 'write_comparison_report']

CHANGES_PRINTED = 10
MAX_CHANGES_SHOWN = 500  # on the page; changes.csv has them all
MAX_ANSWER_CHARS = 4000
DEFINITIONS = (
    (
        'Same, %',
        'Share of the frames on which both runs give the same answer: single_object by label, '
        'multi_object by set, captioning by every character of the raw text.',
    ),
    (
        'Alike x100',
        'Similarity of the answers, mean over the frames: multi_object by the Jaccard index, '
        'captioning by ROUGE-L of B against A.',
    ),
    (
        'Agree with full, %',
        'Share of the frames on which skip and full agree within the run. '
        'Gained, lost: number of frames on which only B, or only A, agrees.',
    ),
    ('Time, ms', 'Median total time of an answer over the compared frames.'),
    (
        'A / B',
        "A's total time divided by B's on the same frame, median over the frames: above 1, B is "
        'faster. Only for runs on the same machine.',
    ),
)


def write_comparison_report(
    result: Mapping[str, Any], folder: Path, names: Sequence[str]
) -> list[Path]:
    """Write changes.csv, comparison.json and report.html; return their paths.

    `names` are the names of the two runs, for example their files. The page needs no other file
    and no network. Raises OSError.
    """
    content = json.dumps({'a': names[0], 'b': names[1], **result}, indent=1) + '\n'
    return write_files(
        folder,
        {
            'changes.csv': col.csv_table(result['changes'], CHANGE_FIELDS),
            'comparison.json': content.encode('ascii'),
            'report.html': _page(result, names),
        },
    )


def comparison_tables(result: Mapping[str, Any]) -> list[Table]:
    """Return the tables for the terminal: settings, answers, agreement, time, first changes."""
    groups, changes = result['groups'], result['changes']
    runs = result['runs']
    settings = [
        {'what': what, 'a': show(runs['a']), 'b': show(runs['b'])}
        for what, show in (
            ('frames', lambda run: str(run['frames'])),
            ('model', lambda run: ', '.join(run['models'])),
            ('machine', lambda run: ', '.join(run['machines'])),
        )
    ]
    settings += [each for each in result['differences'] if each['what'] not in ('model', 'machine')]
    notes = [*filter(None, [comparison_headline(groups)]), *_alerts(result)]
    tables = [col.rich_table('A against B', _SETTINGS, settings, '\n'.join(notes))]
    if not result['frames']['both']:
        return tables
    tables.append(col.rich_table('Answers', _ANSWERS, groups))
    if _skips(groups):
        tables.append(col.rich_table('Agreement with full', _AGREEMENT, _skips(groups)))
    machines = [fmt.one_line(', '.join(runs[run]['machines'])) for run in 'ab']
    notes = [f'A on {machines[0]}', f'B on {machines[1]}', *_no_ratio(groups)]
    tables.append(col.rich_table('Median total time of an answer', _TIME, groups, '\n'.join(notes)))
    if changes:
        title = f'Changed answers: {len(changes)}'
        if len(changes) > CHANGES_PRINTED:
            title += f', the first {CHANGES_PRINTED}'
        skip_tasks = [group['task'] for group in groups if group['branch'] == 'skip']
        several_points = len(set(skip_tasks)) < len(skip_tasks)
        columns = [column for column in _CHANGES if several_points or column is not _POINT]
        tables.append(col.rich_table(title, [_FRAME, *columns], changes[:CHANGES_PRINTED]))
    return tables


_POINT = Column('Operating point', fmt.point_of_both, is_words=True)
_SETTINGS = (col.words('Setting', 'what'), col.words('A', 'a'), col.words('B', 'b'))
_ANSWERS = (
    col.TASK,
    col.BRANCH,
    _POINT,
    col.field('Frames', 'compared'),
    col.field('Same, %', 'same_share', fmt.hundredths),
    Column('Changed', lambda row: str(row['compared'] - row['same'])),
    col.SIMILARITY,
)
_AGREEMENT = (
    col.TASK,
    _POINT,
    col.field('Frames', 'agreement_frames'),
    col.field('Agree with full, A, %', 'agreement_a', fmt.hundredths),
    col.field('Agree with full, B, %', 'agreement_b', fmt.hundredths),
    col.field('Gained', 'gained'),
    col.field('Lost', 'lost'),
)
_TIME = (
    col.TASK,
    col.BRANCH,
    _POINT,
    col.field('A, ms', 'total_ms_a', fmt.number),
    col.field('B, ms', 'total_ms_b', fmt.number),
    Column('A / B', lambda row: fmt.number(row['time_ratio'], 2)),
)
_FRAME = col.field('Frame', 'frame_a')
_CHANGES = (
    col.TASK,
    col.BRANCH,
    _POINT,
    Column('A says', lambda row: _answer_text(row, 'a'), is_words=True),
    Column('B says', lambda row: _answer_text(row, 'b'), is_words=True),
)
_RUNS = (
    col.words('Run', 'run'),
    col.words('Rows', 'name'),
    col.field('Frames', 'frames'),
    col.words('Model', 'models'),
    col.words('Machine', 'machines'),
)


def _answer_text(change: Row, run: str) -> str:
    """Return a run's answer, or its raw text where the two runs' answers are equal."""
    key = 'answer' if change['answer_a'] != change['answer_b'] else 'raw_text'
    return fmt.one_line(change[f'{key}_{run}'], MAX_ANSWER_CHARS) or '(empty answer)'


def _skips(groups: Sequence[Row]) -> list[Row]:
    return [group for group in groups if group['agreement_frames']]


def _no_ratio(groups: Sequence[Row]) -> list[str]:
    reasons = dict.fromkeys(group['no_time_ratio'] for group in groups if group['no_time_ratio'])
    return [f'No A / B: {fmt.one_line(reason)}' for reason in reasons]


def _alerts(result: Mapping[str, Any]) -> list[str]:
    """Return what a reader must know before reading any figure, one line each."""
    frames = result['frames']
    alerts: list[str] = []
    models = {model for run in result['runs'].values() for model in run['models']}
    alerts += dict.fromkeys(line for model in models for line in fmt.demo_alert({'model': model}))
    if not frames['both']:
        alerts.append('No frame is in both runs; nothing can be compared.')
    for run, key in (('A', 'only_a'), ('B', 'only_b')):
        if frames[key]:
            only = 'frame is' if frames[key] == 1 else 'frames are'
            alerts.append(f'{frames[key]} {only} only in {run} and not compared.')
    paired: dict[tuple[str, str], list[str]] = {}
    for each in result['paired_points']:
        paired.setdefault((each['a'], each['b']), []).append(each['task'])
    for (a, b), tasks in paired.items():
        points = f'{fmt.one_line(a)} of A is compared with {fmt.one_line(b)} of B'
        alerts.append(f'{points}: {fmt.one_line(", ".join(tasks))}.')
    unpaired: dict[str, list[str]] = {}
    for each in result['unpaired']:
        task, branch, point = (
            fmt.one_line(each[key]) for key in ('task', 'branch', 'operating_point')
        )
        name = f'{task}/{branch}' + ('' if branch == 'full' else f' at {point}')
        unpaired.setdefault(each['only_in'].upper(), []).append(name)
    for run, names in unpaired.items():
        alerts.append(f'Only in {run}, not compared: {", ".join(names)}.')
    if result['groups'] and all(group['branch'] == 'full' for group in result['groups']):
        alerts.append('No skip branch is compared: no task has an operating point in both runs.')
    return alerts


def _page(result: Mapping[str, Any], names: Sequence[str]) -> bytes:
    groups, changes = result['groups'], result['changes']
    runs = [
        {
            'run': run.upper(),
            'name': name,
            'frames': about['frames'],
            'models': ', '.join(about['models']),
            'machines': fmt.one_line(', '.join(about['machines'])),
        }
        for name, (run, about) in zip(names, result['runs'].items(), strict=True)
    ]
    stamp = col.field('Stamp', 'stamp_ns', fmt.utc)
    picture = draw_comparison(groups)
    figures = {key: value for key, value in result.items() if key != 'changes'}
    return render_html(
        'comparison.html',
        title='Two runs: what changed',
        runs=col.html_table(_RUNS, runs),
        machines=[run['machines'] for run in runs],
        frames=result['frames'],
        headline=comparison_headline(groups),
        alerts=_alerts(result),
        differences=col.html_table(_SETTINGS, result['differences']),
        compares_skip=any(group['branch'] == 'skip' for group in groups),
        picture=picture and picture.element,
        answers=col.html_table(_ANSWERS, groups),
        agreement=col.html_table(_AGREEMENT, _skips(groups)),
        time=col.html_table(_TIME, groups),
        no_ratio=_no_ratio(groups),
        num_changes=len(changes),
        max_changes=MAX_CHANGES_SHOWN,
        changes=col.html_table([_FRAME, stamp, *_CHANGES], changes[:MAX_CHANGES_SHOWN]),
        definitions=DEFINITIONS,
        figures=json.dumps({**figures, 'num_changes': len(changes)}),
    )
