"""The report of `gmskip calibrate`: a table, a CSV, two pictures and a page.

A result is the content of calibration.json: 'prefixes' (one entry per length of the trajectory,
including the empty one, with the score on the calibration images and the evaluation on the test
images), 'rounds' (every block that was tried), 'operating_points', and what was calibrated on which
machine. Scores are fractions (CIDEr: 0..10) and are shown x100; None is shown as a dash.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from gmskip_ros.report import columns as col
from gmskip_ros.report import formatting as fmt
from gmskip_ros.report.baselines import (
    TEST_IMAGES,
    answer_lines,
    baseline_alerts,
    baseline_lines,
    score_alerts,
)
from gmskip_ros.report.calibration_pictures import (
    draw_heat_map,
    draw_trade_off,
    scores_are_comparable,
)
from gmskip_ros.report.columns import Column
from gmskip_ros.report.headlines import calibration_headline
from gmskip_ros.report.plotting import Picture
from gmskip_ros.report.writing import render_html, write_files

NOT_TESTED_NOTE = 'No test images: test score, visual gain and latency were not measured.'
CHOSEN_NOTE = 'The operating points were chosen on the calibration images only.'
CIDER_NOTE = (
    'CIDEr weighs words by how rare they are in the references in use. It is comparable between '
    'skip sets on the same images, but not between sets of images of different size.'
)


def write_calibration_report(result: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write trajectory.csv, trade_off.png, heat_map.png and report.html; return their paths.

    The page needs no other file and no network. Methods without rounds (fixed-interval) have no
    heat map; one left by an earlier run is removed. Raises OSError.
    """
    trade_off, heat_map = draw_trade_off(result), draw_heat_map(result)
    contents = {'trajectory.csv': _trajectory_csv(result), 'trade_off.png': trade_off.png}
    if heat_map is None:
        (folder / 'heat_map.png').unlink(missing_ok=True)
    else:
        contents['heat_map.png'] = heat_map.png
    contents['report.html'] = _page(result, trade_off, heat_map)
    return write_files(folder, contents)


def _tests_notes(rows: list[dict[str, Any]]) -> list[str]:
    notes = col.tests_note(rows)
    return [f'{note} {CHOSEN_NOTE}' for note in notes]


def calibration_table(result: Mapping[str, Any]) -> Table:
    """Return the trajectory for the terminal: a row per prefix, operating points in bold."""
    rows = _rows(result)
    notes = [calibration_headline(result)] if result['operating_points'] else []
    notes += [f'Stopped: {fmt.one_line(result["stopped_by"])}', *baseline_lines(result)]
    notes += [*answer_lines(result), *_tests_notes(rows)]
    if col.any_timed(rows):
        notes.append(f'Speed-up: in turns with the full model, on {fmt.machine_name(result)}')
        speed_up = col.speed_up(rows)
        notes += [
            f'{row["point"]}: {speed_up.text(row)}, {col.LATENCY.text(row)} ms per answer'
            for row in rows
            if row['point'] and row['length']
        ]
    if not any(row['evaluation'] for row in rows):
        notes.append(NOT_TESTED_NOTE)
    if not scores_are_comparable(result):
        notes.append(CIDER_NOTE)
    if col.any_shorter(rows):
        notes.append(col.SHORTER_NOTE)
    notes += fmt.demo_alert(result)
    title = f'{fmt.subject(result)}: {fmt.score_label(result)}'
    return col.rich_table(title, _terminal_columns(result, rows), rows, '\n'.join(notes))


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
    size = fmt.count_of(length) if length else 'Full'
    point = point_of.get(length)
    if point is None:
        return size
    return f'{size}: {"high_performance = high_sparsity" if point == "both" else point}'


def _trajectory_columns(result: Mapping[str, Any]) -> list[Column]:
    """Return the columns that identify a row: the round's block, or the set's blocks."""
    if result['nested']:
        return [
            col.field('Round', 'round', explanation='In each round one more block is removed.'),
            col.field('Block', 'block', explanation='The block removed in it, counted from 0.'),
        ]
    return [col.NUM_SKIPPED, col.BLOCKS]


CALIBRATION_SCORE = col.field(
    'Calibration',
    'calibration_score',
    fmt.hundredths,
    'The score on the images that the search chose the blocks by: the best of many, so optimistic.',
)
TEST_SCORE = Column(
    'Test',
    col.measured('score', fmt.hundredths),
    'The score on images that the search never saw: the one to cite.',
)
GAP = Column(
    'Gap',
    lambda row: fmt.points(row['gap']),
    'Calibration score minus test score. The search picks what suits the calibration images; a gap '
    'that grows along the trajectory means that it picked by luck.',
)
POINT = col.words(
    'Operating point',
    'point',
    'Which sets the node can use by name. high_performance: the best calibration score, the full '
    'model included; of equal ones, the most blocks. high_sparsity: the most blocks all of whose '
    'beginnings keep min_score_ratio x the full score.',
)


def _terminal_columns(result: Mapping[str, Any], rows: list[dict[str, Any]]) -> list[Column]:
    point = Column(
        'Point', lambda row: fmt.one_line(row['point']).removeprefix('high_'), is_words=True
    )
    return [
        *_trajectory_columns(result)[result['nested'] :],  # rows are in the order of rounds
        col.speed_up(rows, with_interval=False),  # the notes have it: it would be too wide
        col.SPARSITY,
        CALIBRATION_SCORE,
        TEST_SCORE,
        *col.match_columns(rows),
        col.VISUAL_GAIN,
        point,
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


def _page(result: Mapping[str, Any], trade_off: Picture, heat_map: Picture | None) -> bytes:
    rows = _rows(result)
    points = [row for row in rows if row['point'] or row['length'] == 0]
    speed_up = col.speed_up(rows)
    summary = [
        col.NAME,
        speed_up,
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
        *_trajectory_columns(result)[:2],
        speed_up,
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
    controls = [
        col.NAME,
        col.IMAGES,
        *col.score_columns(rows),
        *col.match_columns(rows),
        *col.CONTROLS,
    ]
    against_full = [col.NAME, *col.AGAINST_FULL]
    titles = [fmt.score_label(result), *(column.title for column in controls)]
    uses_cider = any(fmt.metric_label('cider') in title for title in titles)
    return render_html(
        'calibration.html',
        title=f'Calibration: {fmt.subject(result)}',
        result=result,
        score_label=fmt.score_label(result),
        machine=fmt.machine_name(result),
        headline=calibration_headline(result),
        alerts=_alerts(result, rows),
        baselines=[*baseline_lines(result), *answer_lines(result)],
        notes=fmt.dataset_notes(result),
        unreadable=result['unreadable'],
        summary=col.html_table(summary, points),
        trajectory=col.html_table(trajectory, rows),
        against_full=col.html_table(against_full, points),
        controls=col.html_table(controls, points),
        all_controls=col.html_table(controls, rows),
        explanations=[
            speed_up,
            col.SPARSITY,
            CALIBRATION_SCORE,
            TEST_SCORE,
            GAP,
            *col.match_columns(rows),
            *col.AGAINST_FULL,
            *col.CONTROLS,
            *col.COST,
            POINT,
        ],
        balanced_explanation=col.BALANCED_EXPLANATION,
        stability=_stability(result),
        ranking=_ranking(result),
        objective=_objective(result),
        cider_note=CIDER_NOTE if uses_cider else '',
        facts=_facts(result),
        trade_off=trade_off.element,
        heat_map=heat_map and heat_map.element,
        shorter_note=col.SHORTER_NOTE if col.any_shorter(rows) else '',
        tests_notes=_tests_notes(rows),
    )


def _alerts(result: Mapping[str, Any], rows: list[dict[str, Any]]) -> list[str]:
    """Return what a reader must know before reading any figure, one line each."""
    alerts = fmt.demo_alert(result)
    alerts += [fmt.one_line(warning) for warning in result['dataset']['warnings']]
    alerts += map(fmt.one_line, result['warnings'])
    alerts += fmt.unreadable_alert(result['unreadable'])
    alerts += score_alerts(rows[0]['evaluation'], TEST_IMAGES)
    alerts += baseline_alerts(result)
    if not any(row['evaluation'] for row in rows):
        alerts.append(NOT_TESTED_NOTE)
    if not scores_are_comparable(result):
        alerts.append(
            'Calibration and test scores are not comparable: they are CIDEr on different numbers '
            'of images. Their gap is not shown.'
        )
    return alerts + fmt.shorter_alert([row['name'] for row in rows if col.any_shorter([row])])


def _stability(result: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the seeds and a table with a row per operating point and seed; None for one seed."""
    stability = result['stability']
    if not stability:
        return None
    rows = [
        {
            'name': name if index == 0 else '',
            'jaccard': fmt.number(point['jaccard'], 2) if index == 0 else '',
            'seed': seed,
            'blocks': fmt.block_list(sorted(blocks)),
        }
        for name, point in stability['points'].items()
        for index, (seed, blocks) in enumerate(zip(stability['seeds'], point['sets'], strict=False))
    ]
    columns = (
        col.words('Operating point', 'name'),
        col.field('Jaccard', 'jaccard'),
        col.field('Seed', 'seed'),
        col.words('Skipped blocks', 'blocks'),
    )
    return {'seeds': stability['seeds'], 'table': col.html_table(columns, rows)}


def _ranking(result: Mapping[str, Any]) -> Any:
    """Return a table of every block and the value that ordered them; None without a ranking."""
    if not result['ranking']:
        return None
    value = col.field('Value', 'value', lambda value: f'{value:.4g}')
    columns = (col.field('Block', 'block'), value)
    return col.html_table(columns, result['ranking'])


def _objective(result: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return what a search compared in place of the score, and a table of the chosen sets' values.

    None where it compared the score, and for results of earlier versions, which name nothing else.
    """
    objective = result.get('objective')
    if not objective:
        return None
    sets: list[tuple[list[int], float]] = []
    if 'full' in objective:
        sets.append(([], objective['full']))
    removed: list[int] = []
    for each in objective.get('rounds', ()):
        values = {cell['block']: cell['value'] for cell in each['candidates']}
        removed.append(each['best'])
        sets.append((list(removed), values[each['best']]))
    sets += [(each['blocks'], each['value']) for each in objective.get('sets', ())]
    rows = [
        {'size': len(blocks), 'blocks': fmt.block_list(blocks), 'value': value}
        for blocks, value in sets
    ]
    columns = (
        col.field('Blocks', 'size'),
        col.words('Skipped', 'blocks'),
        col.field('Value', 'value', lambda value: f'{value:.4g}'),
    )
    return {'name': objective['name'], 'table': col.html_table(columns, rows)}


def _facts(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what was calibrated and how, as (name, value) lines."""
    shown_elsewhere = (
        'format',
        'command',
        'nested',
        'dataset: notes',
        'dataset: warnings',
        'unreadable',
        'full_score',
        'forced',
        'guidance',
        'baselines',
        'test_baselines',
        'rounds',
        'operating_points',
        'prefixes',
        'ranking',
        'objective',
        'stability',
        'warnings',
    )
    return col.flat_facts({**result, 'metric': fmt.metric_name(result)}, shown_elsewhere)
