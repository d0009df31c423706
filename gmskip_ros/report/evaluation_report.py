"""What `gmskip evaluate` leaves for people: the paper's table, the controls, a CSV and a page.

A result is the content of evaluation.json: 'rows' with one skip set each ('name', 'blocks',
'sparsity', 'evaluation'), and which model, task and images they were evaluated on. Scores are
shares, CIDEr's 0..10; all are shown x100. Whatever is None is shown as a dash.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from gmskip_ros.report import columns as col
from gmskip_ros.report import formatting as fmt
from gmskip_ros.report.columns import Column, Row
from gmskip_ros.report.writing import render_html, write_files


def write_evaluation_report(result: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write evaluation.csv and report.html, which needs no other file and no network.

    Return their paths. Raises OSError.
    """
    return write_files(
        folder, {'evaluation.csv': _evaluation_csv(result), 'report.html': _page(result)}
    )


def evaluation_tables(result: Mapping[str, Any]) -> list[Table]:
    """Return the tables for the terminal: the paper's, the difference to full, the controls.

    Tasks with several metrics have one more table each, of all of them.
    """
    tables = []
    for title, columns, notes in _sections(result):
        tables.append(col.rich_table(title, columns, result['rows'], '\n'.join(notes)))
    return tables


def _sections(result: Mapping[str, Any]) -> list[tuple[str, Sequence[Column], list[str]]]:
    """Return each table's title, columns and notes."""
    rows: list[Row] = result['rows']
    machine = []
    if col.any_timed(rows):
        machine.append(f'Latency: median, on {fmt.machine_name(result)}')
    score = Column(
        fmt.score_label(result), lambda row: fmt.hundredths((row['evaluation'] or {}).get('score'))
    )
    paper = (col.NAME, col.SPARSITY, score, *col.COST)
    sections: list[tuple[str, Sequence[Column], list[str]]] = [
        (f'Score and cost: {fmt.subject(result)}', paper, [*machine])
    ]
    for task, metrics in col.score_columns_by_task(rows).items():
        if task or len(metrics) > 1:
            title = f'All scores: {fmt.one_line(task)}' if task else 'All scores'
            sections.append((title, (col.NAME, col.IMAGES, *metrics), []))
    shorter = [col.SHORTER_NOTE] if col.any_shorter(rows) else []
    sections.append(('Against full', (col.NAME, *col.AGAINST_FULL), [*machine, *shorter]))
    sections.append(('Does it still look?', (col.NAME, *col.CONTROLS), []))
    if result['score_note']:  # below the first table that it is about
        cider = fmt.metric_label('cider')
        about = [s for s in sections if any(cider == column.title for column in s[1])]
        (about or sections)[0][2].append(fmt.one_line(result['score_note']))
    return sections


def _evaluation_csv(result: Mapping[str, Any]) -> bytes:
    return col.csv_table(
        [
            {
                'name': row['name'],
                'source': row['source'],
                'blocks': ' '.join(map(str, row['blocks'])),
                'sparsity': row['sparsity'],
                'metric': fmt.metric_name(result),
                **col.csv_evaluation(row['evaluation']),
                'machine': fmt.machine_name(result),
            }
            for row in result['rows']
        ]
    )


def _page(result: Mapping[str, Any]) -> bytes:
    rows = result['rows']
    alerts = [fmt.one_line(warning) for warning in result['dataset']['warnings']]
    unreadable = result.get('unreadable') or []
    if unreadable:
        count = len(unreadable)
        alerts.append(
            f'{count} image{"s" if count > 1 else ""} could not be read and were left '
            'out; they are listed below.'
        )
    sources = [Column('Source', lambda row: fmt.one_line(row['source']), is_words=True)]
    sets = [
        col.NAME,
        col.LEFT_OUT,
        col.SPARSITY,
        Column('Blocks', lambda row: fmt.block_list(row['blocks']), is_words=True),
        *sources,
    ]
    return render_html(
        'evaluation.html',
        title=f'Evaluation: {fmt.subject(result)}',
        result=result,
        alerts=alerts,
        notes=result['dataset']['notes'],
        unreadable=unreadable,
        sections=[
            (title, col.html_table(columns, rows), notes)
            for title, columns, notes in _sections(result)
        ],
        sets=col.html_table(sets, rows),
        explanations=[*col.COST, *col.AGAINST_FULL, *col.CONTROLS],
        balanced_explanation=col.BALANCED_EXPLANATION,
        facts=col.flat_facts(
            {
                name: value
                for name, value in {**result, 'metric': fmt.metric_name(result)}.items()
                if name not in ('format', 'command', 'rows', 'unreadable', 'score_note')
            }
        ),
    )
