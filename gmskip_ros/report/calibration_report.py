"""What `gmskip calibrate` leaves for people: a table, a CSV, two pictures and a page.

A result is the content of calibration.json: 'prefixes' (one entry per length of the trajectory, the
empty one included, with the score on the calibration images and the evaluation on the test images),
'rounds' (every block that was tried), 'operating_points', and what was calibrated on which machine.
Scores are shares, CIDEr's 0..10; all are shown x100. Whatever is None is shown as a dash.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from gmskip_ros.report import columns as col
from gmskip_ros.report import formatting as fmt
from gmskip_ros.report.calibration_pictures import (
    draw_heat_map,
    draw_trade_off,
    scores_are_comparable,
)
from gmskip_ros.report.columns import Column, Row
from gmskip_ros.report.plotting import data_uri
from gmskip_ros.report.writing import render_html, write_files

NOT_TESTED_NOTE = 'No test images: test score, visual gain and latency were not measured.'
CIDER_NOTE = (
    'CIDEr weighs words by how rare they are in the references in use. It is comparable between '
    'skip sets on the same images, but not between sets of images of different size.'
)


def write_calibration_report(result: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write trajectory.csv, trade_off.png, heat_map.png and report.html; return their paths.

    The page needs no other file and no network. A search without rounds (fixed interval, random)
    has no heat map; one that an earlier run left in the folder is removed. Raises OSError.
    """
    trade_off, heat_map = draw_trade_off(result), draw_heat_map(result)
    contents = {'trajectory.csv': _trajectory_csv(result), 'trade_off.png': trade_off}
    if heat_map is None:
        (folder / 'heat_map.png').unlink(missing_ok=True)
    else:
        contents['heat_map.png'] = heat_map
    contents['report.html'] = _page(result, trade_off, heat_map)
    return write_files(folder, contents)


def calibration_table(result: Mapping[str, Any]) -> Table:
    """Return the trajectory for the terminal: a row per prefix, the operating points in bold."""
    rows = _rows(result)
    notes = [f'Stopped: {fmt.one_line(result["stopped_by"])}']
    if col.any_timed(rows):
        notes.append(f'Latency: median of the test images on {fmt.machine_name(result)}')
    if not any(row['evaluation'] for row in rows):
        notes.append(NOT_TESTED_NOTE)
    if not scores_are_comparable(result):
        notes.append(CIDER_NOTE)
    if col.any_shorter(rows):
        notes.append(col.SHORTER_NOTE)
    title = f'{fmt.subject(result)}: {fmt.score_label(result)}'
    return col.rich_table(title, _terminal_columns(result), rows, '\n'.join(notes))


def _rows(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a table row per prefix, by length."""
    point_of = {}
    for name, length in (result['operating_points'] or {}).items():
        point_of[length] = 'both' if length in point_of else name
    round_of = {each['removed']: each['round'] for each in result['rounds']}
    rows = []
    for prefix in sorted(result['prefixes'], key=lambda prefix: prefix['length']):
        blocks, evaluation = prefix['blocks'], prefix['test']
        calibration = prefix['calibration_score']
        test = evaluation['score'] if evaluation else None
        comparable = scores_are_comparable(result) and fmt.is_known(calibration)
        last = blocks[-1] if blocks and result['nested'] else None
        rows.append(
            {
                'name': _prefix_name(prefix, point_of),
                'round': round_of.get(last) if last is not None else None,
                'block': last,
                'length': prefix['length'],
                'blocks': blocks,
                'sparsity': prefix['sparsity'],
                'calibration_score': calibration,
                'gap': calibration - test if comparable and fmt.is_known(test) else None,
                'evaluation': evaluation,
                'point': point_of.get(prefix['length']),
                'emphasis': prefix['length'] in point_of,
            }
        )
    return rows


def _prefix_name(prefix: Mapping[str, Any], point_of: Mapping[int, str]) -> str:
    length = prefix['length']
    name = {'both': 'high_performance = high_sparsity', None: ''}.get(
        point_of.get(length), point_of.get(length, '')
    )
    size = fmt.count_of(length) if length else 'Full'
    return f'{size}: {name}' if name else size


def _trajectory_columns(result: Mapping[str, Any]) -> list[Column]:
    """Return what tells the rows apart: the round's block, or the set's blocks."""
    if result['nested']:
        return [
            Column('Round', lambda row: fmt.one_line(row['round'])),
            Column('Block', lambda row: fmt.one_line(row['block'])),
        ]
    return [
        col.LEFT_OUT,
        Column('Blocks', lambda row: fmt.block_list(row['blocks']), is_words=True),
    ]


CALIBRATION_SCORE = Column('Calibration', lambda row: fmt.hundredths(row['calibration_score']))
TEST_SCORE = Column('Test', lambda row: fmt.hundredths((row['evaluation'] or {}).get('score')))
GAP = Column(
    'Gap',
    lambda row: fmt.points(row['gap']),
    'Calibration score minus test score. The search picked what suits the calibration images; a '
    'gap that grows along the trajectory is what it picked by luck.',
)
POINT = Column('Operating point', lambda row: fmt.one_line(row['point']), is_words=True)


def _terminal_columns(result: Mapping[str, Any]) -> list[Column]:
    def latency(row: Row) -> str:
        shorter = (row['evaluation'] or {}).get('answers_got_shorter')
        return col.LATENCY.text(row) + (col.SHORTER_MARK if shorter else '')

    return [
        *_trajectory_columns(result),
        col.SPARSITY,
        CALIBRATION_SCORE,
        TEST_SCORE,
        col.VISUAL_GAIN,
        Column(col.LATENCY.title, latency),
        POINT,
    ]


def _trajectory_csv(result: Mapping[str, Any]) -> bytes:
    records = []
    for row in _rows(result):
        test = {f'test_{k}': v for k, v in col.csv_evaluation(row['evaluation']).items()}
        records.append(
            {
                'length': row['length'],
                'round': row['round'],
                'block': row['block'],
                'blocks': ' '.join(map(str, row['blocks'])),
                'sparsity': row['sparsity'],
                'operating_point': row['point'],
                'metric': fmt.metric_name(result),
                'calibration_score': row['calibration_score'],
                **test,
                'machine': fmt.machine_name(result),
            }
        )
    return col.csv_table(records)


def _page(result: Mapping[str, Any], trade_off: bytes, heat_map: bytes | None) -> bytes:
    rows = _rows(result)
    points = [row for row in rows if row['point'] or row['length'] == 0]
    summary = [
        col.NAME,
        col.SPARSITY,
        CALIBRATION_SCORE,
        TEST_SCORE,
        GAP,
        *col.AGAINST_FULL[:2],
        col.VISUAL_GAIN,
        col.LATENCY,
        col.AGAINST_FULL[-1],
    ]
    trajectory = [
        *_trajectory_columns(result),
        col.SPARSITY,
        CALIBRATION_SCORE,
        TEST_SCORE,
        GAP,
        *col.AGAINST_FULL[:2],
        col.VISUAL_GAIN,
        *col.COST,
        col.AGAINST_FULL[-1],
        POINT,
    ]
    controls = [col.NAME, col.IMAGES, *col.score_columns(rows), *col.CONTROLS]
    against_full = [col.NAME, *col.AGAINST_FULL]
    titles = [fmt.score_label(result), *(column.title for column in controls)]
    uses_cider = any(fmt.metric_label('cider') in title for title in titles)
    return render_html(
        'calibration.html',
        title=f'Calibration: {fmt.subject(result)}',
        result=result,
        score_label=fmt.score_label(result),
        machine=fmt.machine_name(result),
        alerts=_alerts(result, rows),
        notes=result['dataset']['notes'],
        unreadable=result['unreadable'],
        summary=col.html_table(summary, points),
        trajectory=col.html_table(trajectory, rows),
        against_full=col.html_table(against_full, points),
        controls=col.html_table(controls, points),
        all_controls=col.html_table(controls, rows),
        explanations=[GAP, *col.AGAINST_FULL, *col.CONTROLS, *col.COST],
        balanced_explanation=col.BALANCED_EXPLANATION,
        stability=_stability(result),
        cider_note=CIDER_NOTE if uses_cider else '',
        facts=_facts(result),
        trade_off=data_uri(trade_off),
        heat_map=data_uri(heat_map) if heat_map else None,
        shorter_note=col.SHORTER_NOTE if col.any_shorter(rows) else '',
    )


def _alerts(result: Mapping[str, Any], rows: list[dict[str, Any]]) -> list[str]:
    """Return what a reader has to know before any figure, one line each."""
    alerts = [fmt.one_line(warning) for warning in result['dataset']['warnings']]
    if result['unreadable']:
        count = len(result['unreadable'])
        alerts.append(
            f'{count} image{"s" if count > 1 else ""} could not be read and were left '
            'out; they are listed below.'
        )
    if not any(row['evaluation'] for row in rows):
        alerts.append(NOT_TESTED_NOTE)
    if not scores_are_comparable(result):
        alerts.append(
            'Calibration and test scores are not comparable here: they are CIDEr on different '
            'numbers of images, so that their gap is not given.'
        )
    shorter = [row['name'] for row in rows if (row['evaluation'] or {}).get('answers_got_shorter')]
    if shorter:
        alerts.append(
            f'Answers got shorter at: {", ".join(shorter)}. Part of the time saved there '
            'is no gain of skipping.'
        )
    return alerts


def _stability(result: Mapping[str, Any]) -> dict[str, Any] | None:
    stability = result['stability']
    if not stability:
        return None
    return {
        'seeds': stability['seeds'],
        'points': [
            {
                'name': name,
                'jaccard': fmt.number(point['jaccard'], 2),
                'sets': [fmt.block_list(sorted(blocks)) for blocks in point['sets']],
            }
            for name, point in stability['points'].items()
        ],
    }


def _facts(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what was calibrated and how, as (name, value) lines."""
    names = (
        'model',
        'text_model_type',
        'num_blocks',
        'device',
        'dtype',
        'task',
        'target',
        'prompt',
        'metric',
        'method',
        'options',
        'min_score_ratio',
        'max_sparsity',
        'stopped_by',
    )
    shown = {**result, 'metric': fmt.metric_name(result)}
    facts = {name: shown[name] for name in names if name in shown}
    dataset = {
        name: value
        for name, value in result['dataset'].items()
        if name not in ('notes', 'warnings')
    }
    origin = {
        'dataset': dataset,
        'machine': result['machine'],
        'software': result['software'],
        'created': result['created'],
    }
    return list(col.flat_facts({**facts, **origin}))
