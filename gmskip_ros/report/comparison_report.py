"""What `gmskip replay A --against B` shows of two runs: tables, changes.csv and a page."""

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
from gmskip_ros.report.plotting import data_uri
from gmskip_ros.report.run_comparison import CHANGE_FIELDS, compare_runs
from gmskip_ros.report.writing import render_html, write_files

__all__ = ['compare_runs', 'comparison_tables', 'write_comparison_report']

CHANGES_PRINTED = 10
MAX_CHANGES_SHOWN = 500  # on the page; changes.csv has them all
MAX_ANSWER_CHARS = 4000
DEFINITIONS = (
    (
        'Same, %',
        'Share of the frames on which both runs answer the same: single_object by label, '
        'multi_object by set, captioning by every character of the raw text.',
    ),
    (
        'Alike x100',
        'How near the answers are, mean over the frames: multi_object by the Jaccard '
        'index, captioning by ROUGE-L of B against A.',
    ),
    (
        'Agree with full, %',
        'Share of the frames on which skip and full agree within the run. '
        'Gained, lost: on so many frames only B agrees, only A agrees.',
    ),
    ('Time, ms', 'Median of the total time of an answer over the compared frames.'),
    (
        'A / B',
        'Total time of A divided by that of B on the same frame, then the median over the '
        'frames: above 1 B is quicker. Only of one and the same machine.',
    ),
)


def write_comparison_report(
    result: Mapping[str, Any], folder: Path, names: Sequence[str]
) -> list[Path]:
    """Write changes.csv, comparison.json and report.html; return their paths.

    `names` are what the two runs are called, for example their files. The page needs no other file
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
    tables = [col.rich_table('A against B', _SETTINGS, settings, '\n'.join(_alerts(result)))]
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
        shown = [column for column in _CHANGES if several_points or column is not _POINT]
        tables.append(col.rich_table(title, shown, changes[:CHANGES_PRINTED]))
    return tables


def _alike(row: Row) -> str:
    known = [row[key] for key in ('mean_jaccard', 'mean_rouge_l') if row[key] is not None]
    return fmt.hundredths(known[0] if known else None)


_TASK = Column('Task', lambda row: fmt.one_line(row['task']), is_words=True)
_BRANCH = Column('Branch', lambda row: fmt.one_line(row['branch']), is_words=True)
_POINT = Column('Operating point', fmt.point_of_both, is_words=True)
_SETTINGS = (
    Column('Setting', lambda row: fmt.one_line(row['what']), is_words=True),
    Column('A', lambda row: fmt.one_line(row['a']), is_words=True),
    Column('B', lambda row: fmt.one_line(row['b']), is_words=True),
)
_ANSWERS = (
    _TASK,
    _BRANCH,
    _POINT,
    Column('Frames', lambda row: str(row['compared'])),
    Column('Same, %', lambda row: fmt.hundredths(row['same_share'])),
    Column('Changed', lambda row: str(row['compared'] - row['same'])),
    Column('Alike x100', _alike),
)
_AGREEMENT = (
    _TASK,
    _POINT,
    Column('Frames', lambda row: str(row['agreement_frames'])),
    Column('Agree with full, A, %', lambda row: fmt.hundredths(row['agreement_a'])),
    Column('Agree with full, B, %', lambda row: fmt.hundredths(row['agreement_b'])),
    Column('Gained', lambda row: str(row['gained'])),
    Column('Lost', lambda row: str(row['lost'])),
)
_TIME = (
    _TASK,
    _BRANCH,
    _POINT,
    Column('A, ms', lambda row: fmt.number(row['total_ms_a'])),
    Column('B, ms', lambda row: fmt.number(row['total_ms_b'])),
    Column('A / B', lambda row: fmt.number(row['time_ratio'], 2)),
)
_CHANGES = (
    Column('Frame', lambda row: str(row['frame_a'])),
    _TASK,
    _BRANCH,
    _POINT,
    Column('A says', lambda row: _said(row, 'a'), is_words=True),
    Column('B says', lambda row: _said(row, 'b'), is_words=True),
)


def _said(change: Row, run: str) -> str:
    """Return an answer for people; where both runs' are the same, what was said in full."""
    key = 'answer' if change['answer_a'] != change['answer_b'] else 'raw_text'
    return fmt.one_line(change[f'{key}_{run}'], MAX_ANSWER_CHARS) or '(empty answer)'


def _skips(groups: Sequence[Row]) -> list[Row]:
    return [group for group in groups if group['agreement_frames']]


def _no_ratio(groups: Sequence[Row]) -> list[str]:
    reasons = dict.fromkeys(group['no_time_ratio'] for group in groups if group['no_time_ratio'])
    return [f'No A / B: {fmt.one_line(reason)}' for reason in reasons]


def _alerts(result: Mapping[str, Any]) -> list[str]:
    """Return what a reader has to know before any figure, one line each."""
    frames, alerts = result['frames'], []
    if not frames['both']:
        alerts.append('No frame is in both runs: nothing can be compared.')
    for run, key in (('A', 'only_a'), ('B', 'only_b')):
        if frames[key]:
            verb = 'frame is' if frames[key] == 1 else 'frames are'
            alerts.append(f'{frames[key]} {verb} only in {run}, and not compared.')
    paired: dict[tuple[str, str], list[str]] = {}
    for each in result['paired_points']:
        paired.setdefault((each['a'], each['b']), []).append(each['task'])
    for (a, b), tasks in paired.items():
        points = f'{fmt.one_line(a)} of A is compared with {fmt.one_line(b)} of B'
        alerts.append(f'{points}: {fmt.one_line(", ".join(tasks))}.')
    alone: dict[str, list[str]] = {}
    for each in result['unpaired']:
        task, branch, point = (
            fmt.one_line(each[key]) for key in ('task', 'branch', 'operating_point')
        )
        name = f'{task}/{branch}' + ('' if branch == 'full' else f' at {point}')
        alone.setdefault(each['only_in'].upper(), []).append(name)
    for run, names in alone.items():
        alerts.append(f'Only in {run}, and not compared: {", ".join(names)}.')
    if result['groups'] and all(group['branch'] == 'full' for group in result['groups']):
        alerts.append(
            'No skip branch is compared: the runs have no task and operating point in common.'
        )
    return alerts


def _page(result: Mapping[str, Any], names: Sequence[str]) -> bytes:
    groups, changes = result['groups'], result['changes']
    when = Column('Stamp', lambda row: fmt.utc(row['stamp_ns']))
    shown = (_CHANGES[0], when, *_CHANGES[1:])
    runs = [
        {
            'name': fmt.one_line(name),
            'frames': about['frames'],
            'models': fmt.one_line(', '.join(about['models'])),
            'machines': fmt.one_line(', '.join(about['machines'])),
        }
        for name, about in zip(names, result['runs'].values(), strict=True)
    ]
    picture = draw_comparison(groups)
    figures = {key: value for key, value in result.items() if key != 'changes'}
    return render_html(
        'comparison.html',
        title='Two runs: what changed',
        runs=runs,
        frames=result['frames'],
        alerts=_alerts(result),
        differences=col.html_table(_SETTINGS, result['differences']),
        compares_skip=any(group['branch'] == 'skip' for group in groups),
        picture=data_uri(picture) if picture else '',
        answers=col.html_table(_ANSWERS, groups),
        agreement=col.html_table(_AGREEMENT, _skips(groups)),
        time=col.html_table(_TIME, groups),
        no_ratio=_no_ratio(groups),
        num_changes=len(changes),
        max_changes=MAX_CHANGES_SHOWN,
        changes=col.html_table(shown, changes[:MAX_CHANGES_SHOWN]),
        definitions=DEFINITIONS,
        figures=json.dumps({**figures, 'num_changes': len(changes)}),
    )
