"""The columns of the tables: made once, shown on the terminal and in HTML with the same figures.

A table's row is a mapping with 'name', 'blocks', 'sparsity' and 'evaluation' (None where the set
was not evaluated); see `gmskip_ros.report.calibration_report` for what an evaluation holds.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from gmskip_ros.files import csv_bytes
from gmskip_ros.report import formatting as fmt

Row = Mapping[str, Any]
SHORTER_MARK = ' *'
MIN_TITLE_CHARS = 6  # per line of a column's title on the terminal
SHORTER_NOTE = (
    "* answers got shorter: the language model's time fell by more than the skipped share of it."
)


@dataclass(frozen=True)
class Column:
    """One column: its title (with the unit), the text of a row's cell, and what it tells."""

    title: str
    text: Callable[[Row], str]
    explanation: str = ''
    is_words: bool = False  # set flush left; figures are set flush right


def _measured(key: str, show: Callable[[Any], str]) -> Callable[[Row], str]:
    return lambda row: show(row['evaluation'].get(key)) if row['evaluation'] else fmt.DASH


def _language_cut(row: Row) -> str:
    evaluation = row['evaluation'] or {}
    mark = SHORTER_MARK if evaluation.get('answers_got_shorter') else ''
    return fmt.hundredths(evaluation.get('latency_cut')) + mark


NAME = Column('Skip set', lambda row: fmt.one_line(row['name']), is_words=True)
LEFT_OUT = Column('Blocks left out', lambda row: str(len(row['blocks'])))
SPARSITY = Column('Sparsity, %', lambda row: fmt.hundredths(row['sparsity']))
IMAGES = Column('Images', _measured('images', fmt.one_line))
SHUFFLED = Column(
    'Shuffled score',
    _measured('shuffled_score', fmt.hundredths),
    'The score of the same skip set when every question is asked about another image: what it '
    'gets right without seeing.',
)
VISUAL_GAIN = Column(
    'Visual gain',
    _measured('visual_gain', fmt.points),
    'Score minus shuffled score: what looking at the picture adds. A score that rises while the '
    'visual gain does not is a matter of answer prior or format, not of perception.',
)
LATENCY = Column(
    'ms per answer',
    _measured('latency_ms', fmt.number),
    'Median time of one answer, alone (batch 1), from the picture to the last token.',
)

COST = (
    Column(
        'Parameters run',
        _measured('parameters_run', fmt.parameters),
        'Parameters that take part in an answer: the skipped blocks are not counted.',
    ),
    LATENCY,
    Column(
        'ms per token',
        _measured('ms_per_token', fmt.number),
        'Median time per token of the answer.',
    ),
    Column(
        'Tokens per answer',
        _measured('tokens_per_answer', fmt.number),
        'Mean length of an answer. A shorter answer is quicker, and may match a short reference '
        'better, without more having been seen.',
    ),
)

AGAINST_FULL = (
    Column(
        'Difference',
        _measured('difference', fmt.points),
        "Score minus the full model's score on the same images, x100.",
    ),
    Column(
        '95 % interval',
        _measured('interval', fmt.interval),
        'Paired bootstrap over the images. If 0 lies inside, this many images do not tell the '
        'skip set from full.',
    ),
    Column(
        'McNemar p',
        _measured('mcnemar_p', fmt.p_value),
        'Accuracies only: how likely so uneven a split of the images that just one of the two '
        'gets right would be if both were equally good.',
    ),
    Column(
        'Same tokens, %',
        _measured('token_agreement', fmt.hundredths),
        'Share of answers that are token for token those of full.',
    ),
    Column(
        'Language ms',
        _measured('language_ms', fmt.number),
        'Median time of prefill and decode: the part of an answer that skipping shortens.',
    ),
    Column(
        'Language time cut, %',
        _language_cut,
        'How much less of it than full needs. Where that is more than the skipped share of the '
        'language model and the answers have fewer tokens, it is marked with *: a part of it is '
        'no gain of skipping.',
    ),
)

CONTROLS = (
    SHUFFLED,
    VISUAL_GAIN,
    Column(
        'AUROC, %',
        _measured('auroc', fmt.hundredths),
        "How often the target's name is more probable on an image with the target than on one "
        'without; 50 is guessing. An answer prior cannot raise it.',
    ),
    Column(
        'Right without target, %',
        _measured('score_without_target', fmt.hundredths),
        'Share answered right of images that do not show the target. Whoever always names the '
        'target scores 0 here.',
    ),
    Column(
        'Most frequent answer',
        _measured('most_frequent_answer', fmt.one_line),
        'The answer given most often.',
        is_words=True,
    ),
    Column(
        'Its share, %',
        _measured('most_frequent_share', fmt.hundredths),
        'How often it was given. Far above that of full it is a habit (answer prior), not a '
        'reading of the picture.',
    ),
    Column(
        'In label set, %',
        _measured('in_vocabulary_share', fmt.hundredths),
        'Share of answers inside the vocabulary of the task. A score that rises with it and no '
        'more than it was a matter of format: the model saw as much before and said it in other '
        'words.',
    ),
)

BALANCED_EXPLANATION = (
    'Balanced accuracy is the mean over the classes (with a target: over images with and without '
    'it) of the share answered right: always giving one answer cannot raise it.'
)


def score_columns(rows: Sequence[Row]) -> tuple[Column, ...]:
    """Return one column per metric that any of the rows has, in their order."""
    return tuple(_score_column(name, fmt.metric_label(name)) for name in _metrics(rows))


def score_columns_by_task(rows: Sequence[Row]) -> dict[str, list[Column]]:
    """Return the columns of several tasks' metrics by task; one task's are all under ''."""
    columns: dict[str, list[Column]] = {}
    for name in _metrics(rows):
        task, _, metric = name.rpartition('.')
        columns.setdefault(task, []).append(_score_column(name, fmt.metric_label(metric)))
    return columns


def _metrics(rows: Sequence[Row]) -> list[str]:
    return list({name: None for row in rows for name in _scores(row)})


def _score_column(metric: str, title: str) -> Column:
    return Column(title, lambda row: fmt.hundredths(_scores(row).get(metric)))


def _scores(row: Row) -> Mapping[str, Any]:
    return (row['evaluation'] or {}).get('scores') or {}


def any_timed(rows: Sequence[Row]) -> bool:
    """Return whether a latency was measured in any of the rows."""
    return any(LATENCY.text(row) != fmt.DASH for row in rows)


def any_shorter(rows: Sequence[Row]) -> bool:
    """Return whether an evaluation of the rows is marked 'answers got shorter'."""
    return any((row['evaluation'] or {}).get('answers_got_shorter') for row in rows)


def rich_table(
    title: str, columns: Sequence[Column], rows: Sequence[Row], caption: str = ''
) -> Table:
    """Return a table for the terminal; texts are shown as they are, never read as markup.

    Columns that are a dash in every row, as AUROC without a target, are left out.
    """
    columns = [column for column in columns if any(column.text(row) != fmt.DASH for row in rows)]
    table = Table(
        title=Text(title),
        caption=Text(caption),
        box=box.SIMPLE_HEAD,
        title_justify='left',
        caption_justify='left',
        padding=(0, 1, 0, 0),
        show_edge=False,
    )
    for column in columns:
        if column.is_words:  # folded where the terminal is narrow
            table.add_column(Text(column.title), overflow='fold')
        else:  # figures are never broken
            widest = max([MIN_TITLE_CHARS, *(len(column.text(row)) for row in rows)])
            title_lines = textwrap.wrap(column.title, widest, break_long_words=False)
            table.add_column(Text('\n'.join(title_lines)), justify='right', no_wrap=True)
    for row in rows:
        style = 'bold' if row.get('emphasis') else None
        table.add_row(*(Text(column.text(row)) for column in columns), style=style)
    return table


def html_table(columns: Sequence[Column], rows: Sequence[Row]) -> dict[str, Any]:
    """Return a table as the templates take it: 'columns', and 'rows' with 'cells' of text."""
    return {
        'columns': columns,
        'rows': [
            {
                'cells': [column.text(row) for column in columns],
                'emphasis': bool(row.get('emphasis')),
            }
            for row in rows
        ],
    }


def csv_table(records: Sequence[Mapping[str, Any]], names: Sequence[str] = ()) -> bytes:
    """Return records as CSV in UTF-8: all digits, scores as in the result, None as an empty field.

    NaN and infinities are left empty, too. `names` are the columns that come first, and are there
    without any record.
    """
    names = list(dict.fromkeys([*names, *(name for record in records for name in record)]))
    rows = [
        [
            '' if isinstance(value, float) and not fmt.is_known(value) else value
            for value in (record.get(name) for name in names)
        ]
        for record in records
    ]
    return csv_bytes([names, *rows])


def csv_evaluation(evaluation: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return an evaluation as flat CSV fields: every metric and both ends of the interval."""
    if not evaluation:
        return {}
    fields = {key: value for key, value in evaluation.items() if key not in ('scores', 'interval')}
    for metric, score in (evaluation.get('scores') or {}).items():
        fields[f'scores.{metric}'] = score
    low, high = evaluation.get('interval') or (None, None)
    return {**fields, 'interval_low': low, 'interval_high': high}


def flat_facts(facts: Mapping[str, Any], parent: str = '') -> list[tuple[str, str]]:
    """Return nested settings as lines: {'test': {'images': 5}} as [('test: images', '5')]."""
    lines: list[tuple[str, str]] = []
    for key, value in facts.items():
        name = f'{parent}{fmt.one_line(key)}'
        if isinstance(value, Mapping) and value:
            lines += flat_facts(value, f'{name}: ')
        elif isinstance(value, (list, tuple)):
            lines.append((name, ', '.join(map(fmt.one_line, value)) or fmt.DASH))
        else:
            lines.append((name, fmt.DASH if value == {} else fmt.one_line(value)))
    return lines
