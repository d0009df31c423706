"""The report of `gmskip evaluate`: the paper's table, the controls, a CSV and a page.

A result is the content of evaluation.json: 'rows' with one skip set each ('name', 'blocks',
'sparsity', 'evaluation'), and on which model, task and images they were evaluated. Scores are
fractions (CIDEr: 0..10) and are shown x100; None is shown as a dash.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from gmskip_ros.report import columns as col
from gmskip_ros.report import formatting as fmt
from gmskip_ros.report.baselines import baseline_alerts, baseline_lines, score_alerts
from gmskip_ros.report.columns import Column, Row
from gmskip_ros.report.evaluation_pictures import draw_score_over_latency
from gmskip_ros.report.headlines import evaluation_headline
from gmskip_ros.report.plotting import Picture
from gmskip_ros.report.writing import render_html, write_files


def write_evaluation_report(result: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write evaluation.csv, score_over_latency.png and report.html; return their paths.

    The page needs no other file and no network. Without measured times there is no picture; one
    left by an earlier run is removed. Raises OSError.
    """
    drawn = draw_score_over_latency(result)
    contents = {'evaluation.csv': _evaluation_csv(result)}
    if drawn is None:
        (folder / 'score_over_latency.png').unlink(missing_ok=True)
    else:
        contents['score_over_latency.png'] = drawn.png
    contents['report.html'] = _page(result, drawn)
    return write_files(folder, contents)


def evaluation_tables(result: Mapping[str, Any]) -> list[Table]:
    """Return the tables for the terminal: the paper's, the difference to full, the controls.

    A task with several metrics has one more table, with all of them.
    """
    return [
        col.rich_table(title, columns, result['rows'], '\n'.join(notes))
        for title, columns, notes in _sections(result)
    ]


def _sections(result: Mapping[str, Any]) -> list[tuple[str, Sequence[Column], list[str]]]:
    """Return each table's title, columns and notes."""
    rows: list[Row] = result['rows']
    latency = [f'Latency: median, on {fmt.machine_name(result)}'] if col.any_timed(rows) else []
    score = Column(fmt.score_label(result), col.measured('score', fmt.hundredths))
    paper = (col.NAME, col.speed_up(rows), *col.sparsity_columns(rows), score, *col.COST)
    headline = [line for line in [evaluation_headline(result)] if line]
    sections: list[tuple[str, Sequence[Column], list[str]]] = [
        (
            f'Score and cost: {fmt.subject(result)}',
            paper,
            [*headline, *baseline_lines(result), *latency, *fmt.demo_alert(result)],
        )
    ]
    for task, metrics in col.score_columns_by_task(rows).items():
        if not task:
            metrics = [*metrics, *col.match_columns(rows)]
        if task or len(metrics) > 1:
            title = f'All scores: {fmt.one_line(task)}' if task else 'All scores'
            sections.append((title, (col.NAME, col.IMAGES, *metrics), []))
    shorter = [col.SHORTER_NOTE] if col.any_shorter(rows) else []
    notes = [*col.tests_note(rows), *latency, *shorter]
    sections.append(('Against full', (col.NAME, *col.AGAINST_FULL), notes))
    sections.append(('Does it still look at the picture?', (col.NAME, *col.CONTROLS), []))
    if result['score_note']:  # below the first table that shows CIDEr
        cider = fmt.metric_label('cider')
        with_cider = [s for s in sections if any(cider == column.title for column in s[1])]
        (with_cider or sections)[0][2].append(fmt.one_line(result['score_note']))
    return sections


def _evaluation_csv(result: Mapping[str, Any]) -> bytes:
    return col.csv_table(
        [
            {
                'name': row['name'],
                'source': row['source'],
                'blocks': ' '.join(map(str, row['blocks'])),
                'phases': ','.join(row.get('phases') or ()),
                'sparsity': row['sparsity'],
                **{f'{phase}_saved': share for phase, share in (row.get('saved') or {}).items()},
                'metric': fmt.metric_name(result),
                **col.csv_evaluation(row['evaluation']),
                'machine': fmt.machine_name(result),
            }
            for row in result['rows']
        ]
    )


def _page(result: Mapping[str, Any], drawn: Picture | None) -> bytes:
    rows = result['rows']
    alerts = fmt.demo_alert(result)
    alerts += [fmt.one_line(warning) for warning in result['dataset']['warnings']]
    alerts += map(fmt.one_line, result.get('warnings', ()))  # absent in older results
    alerts += score_alerts(rows[0]['evaluation'])
    alerts += baseline_alerts(result)
    unreadable = result.get('unreadable') or []
    sparsity = col.sparsity_columns(rows)
    sets = [col.NAME, col.NUM_SKIPPED, *sparsity, col.BLOCKS, col.words('Source', 'source')]
    return render_html(
        'evaluation.html',
        title=f'Evaluation: {fmt.subject(result)}',
        result=result,
        headline=evaluation_headline(result),
        alerts=alerts + fmt.unreadable_alert(unreadable),
        notes=fmt.dataset_notes(result),
        unreadable=unreadable,
        sections=[
            (title, col.html_table(columns, rows), notes)
            for title, columns, notes in _sections(result)
        ],
        picture=drawn and drawn.element,
        sets=col.html_table(sets, rows),
        explanations=[
            col.speed_up(rows),
            col.SPARSITY,
            *col.COST,
            *col.AGAINST_FULL,
            *col.CONTROLS,
        ],
        balanced_explanation=col.BALANCED_EXPLANATION,
        facts=_facts(result),
    )


def _facts(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what was evaluated and how, as (name, value) lines."""
    shown_elsewhere = (
        'format',
        'command',
        'dataset: notes',
        'dataset: warnings',
        'unreadable',
        'score_note',
        'baselines',
        'warnings',
        'rows',
    )
    return col.flat_facts({**result, 'metric': fmt.metric_name(result)}, shown_elsewhere)
