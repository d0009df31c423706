"""The columns of the tables, shown on the terminal and in HTML with the same figures.

A row of a calibration or an evaluation is a mapping with 'name', 'blocks', 'sparsity' and
'evaluation' (None for a set that was not evaluated).
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from gmskip_ros.files import csv_bytes
from gmskip_ros.report import formatting as fmt

Row = Mapping[str, Any]
SHORTER_MARK = ' *'
NESTED = (
    'scores',
    'match_scores',
    'interval',
    'speed_up_interval',
    'speed_up_with_vision_interval',
    'score_warnings',
)  # of an evaluation; all but the warnings have CSV fields of their own
MIN_TITLE_CHARS = 6  # per line of a column's title on the terminal
SHORTER_NOTE = (
    "* answers got shorter: the language model's time fell by more than the share of skipped "
    'blocks, so part of the time saved is not due to skipping.'
)


@dataclass(frozen=True)
class Column:
    """A column: its title (with the unit), the text of a row's cell, and what it means."""

    title: str
    text: Callable[[Row], str]
    explanation: str = ''
    is_words: bool = False  # aligned left; figures are aligned right
    min_chars: int = 0  # of words: never folded into less on a narrow terminal


def field(
    title: str, key: str, show: Callable[[Any], str] = fmt.one_line, explanation: str = ''
) -> Column:
    """Return a column of figures that shows a row's `key`."""
    return Column(title, lambda row: show(row[key]), explanation)


def words(title: str, key: str, explanation: str = '') -> Column:
    """Return a column of text that shows a row's `key`."""
    return Column(title, lambda row: fmt.one_line(row[key]), explanation, is_words=True)


def measured(key: str, show: Callable[[Any], str]) -> Callable[[Row], str]:
    """Return the text of a cell that shows `key` of a row's evaluation."""
    return lambda row: show(row['evaluation'].get(key)) if row['evaluation'] else fmt.DASH


def _language_cut(row: Row) -> str:
    evaluation = row['evaluation'] or {}
    text = measured('latency_cut', fmt.hundredths)(row)
    if interval := evaluation.get('speed_up_interval'):
        low, high = (fmt.hundredths(1 - 1 / end) for end in interval)
        text += f' [{low}, {high}]' if row['blocks'] else ''
    return text + shorter_mark(row)


def shorter_mark(row: Row) -> str:
    """Return the mark of SHORTER_NOTE where it applies to the row's evaluation, else ''."""
    return SHORTER_MARK if any_shorter([row]) else ''


def _similarity(row: Row) -> str:
    """Return the one of the two similarities that the row's task has."""
    known = [row[key] for key in ('mean_jaccard', 'mean_rouge_l') if row[key] is not None]
    return fmt.hundredths(known[0] if known else None)


def _blocks(row: Row) -> str:
    """Return the skipped blocks, with the phases where these are not prefill and decode."""
    by_phases = row.get('phases') or {}
    if set(by_phases) <= {'prefill+decode'}:
        return fmt.block_list(row['blocks'])
    return '; '.join(
        f'{fmt.one_line(phases)}: {fmt.block_list(blocks)}' for phases, blocks in by_phases.items()
    )


def _saved(phase: str) -> Column:
    return Column(
        f'{phase.capitalize()} saved, %',
        lambda row: fmt.hundredths(row['saved'][phase]),
        "The share of the blocks' multiplications that the skip set saves in this phase.",
    )


NAME = words('Skip set', 'name', 'The blocks that are skipped together; Full skips none.')
NUM_SKIPPED = Column(
    'Skipped blocks', lambda row: str(len(row['blocks'])), 'How many blocks the set skips.'
)
SPARSITY = field(
    'Sparsity, %',
    'sparsity',
    fmt.hundredths,
    'Skipped blocks / all blocks of the language decoder.',
)
SAVED = (_saved('prefill'), _saved('decode'))
BLOCKS = Column('Blocks', _blocks, 'Their numbers, from 0, in the order of removal.', is_words=True)
IMAGES = Column('Images', measured('images', fmt.one_line), 'Different images in the score.')
SIMILARITY = Column(
    'Alike x100',
    _similarity,
    'Similarity of the two answers, mean over the frames: of sets the Jaccard index, of captions '
    'ROUGE-L.',
)
TASK = words('Task', 'task', 'What the model was asked.')
BRANCH = words('Branch', 'branch', 'skip: with skipped blocks; full: with all.')
SHUFFLED = Column(
    'Shuffled score',
    measured('shuffled_score', fmt.hundredths),
    'The score of the same skip set when each question is paired with a different image: what it '
    'gets right without seeing the image.',
)
VISUAL_GAIN = Column(
    'Visual gain',
    measured('visual_gain', fmt.points),
    'Score minus shuffled score: what looking at the image adds. A score that rises while the '
    'visual gain does not reflects answer prior or format, not perception.',
)
LATENCY = Column(
    'ms per answer',
    measured('latency_ms', fmt.number),
    'Median time of a single answer (batch size 1), from the image to the last token. Rows were '
    'measured one after the other, perhaps under different load: compare them by their speed-up.',
)


def speed_up_of(evaluation: Row | None, full: Row | None) -> float | None:
    """Return full's time / the skip set's, of whole answers; None where one was not measured.

    Results of earlier versions only have medians, measured at different times.
    """
    if not (evaluation and full):
        return None
    if 'speed_up_with_vision' in evaluation:
        paired: float | None = evaluation['speed_up_with_vision']
        return paired
    skip_ms, full_ms = evaluation.get('latency_ms'), full.get('latency_ms')
    if not (fmt.is_known(skip_ms) and fmt.is_known(full_ms)) or not skip_ms:
        return None
    return full_ms / skip_ms


def speed_up(rows: Sequence[Row], with_interval: bool = True) -> Column:
    """Return the column of the speed-up over the row without skipped blocks."""
    full = next((row['evaluation'] for row in rows if not row['blocks']), None)

    def text(row: Row) -> str:
        shown = fmt.number(speed_up_of(row['evaluation'], full), 2)
        interval = (row['evaluation'] or {}).get('speed_up_with_vision_interval')
        if with_interval and interval and row['blocks']:
            shown += f' {fmt.ratio_interval(interval)}'
        return shown + shorter_mark(row)

    return Column(
        'Speed-up',
        text,
        "The full model's time of whole answers / the skip set's, to the same questions in turns, "
        'with its paired 95 % interval. A * marks savings that shorter answers explain in part.',
    )


COST = (
    Column(
        'Parameters run',
        measured('parameters_run', fmt.parameters),
        'Parameters used for an answer; those of skipped blocks are not counted.',
    ),
    LATENCY,
    Column(
        'ms per token',
        measured('ms_per_token', fmt.number),
        'Median time per token of the answer.',
    ),
    Column(
        'Tokens per answer',
        measured('tokens_per_answer', fmt.number),
        'Mean length of an answer. A shorter answer is faster, and may match a short reference '
        'better, although the model saw no more.',
    ),
)

AGAINST_FULL = (
    Column(
        'Difference',
        measured('difference', fmt.points),
        "Score minus the full model's score on the same images, x100.",
    ),
    Column(
        '95 % interval',
        measured('interval', fmt.interval),
        'Paired bootstrap over the images. If it contains 0, this many images cannot distinguish '
        'the skip set from the full model. Not corrected for how many skip sets are tested.',
    ),
    Column(
        'McNemar p',
        measured('mcnemar_p', fmt.p_value),
        'Accuracies only: probability of a split at least this uneven, among images only one of '
        'the two gets right, if both were equally good. An image with several questions counts as '
        'a whole.',
    ),
    Column(
        'Same tokens, %',
        measured('token_agreement', fmt.hundredths),
        "Share of answers identical to the full model's, token for token.",
    ),
    Column(
        'Language ms',
        measured('language_ms', fmt.number),
        'Median time of prefill and decode: the part of an answer that skipping shortens.',
    ),
    Column(
        'Language time cut, %',
        _language_cut,
        'Share of the prefill and decode time that is saved against the full model, which answered '
        'the same questions in turns, with its paired 95 % interval. A * marks '
        'savings larger than the skipped share of the language model where the answers also have '
        'fewer tokens: part of the saving is not due to skipping.',
    ),
)

CONTROLS = (
    SHUFFLED,
    VISUAL_GAIN,
    Column(
        'AUROC, %',
        measured('auroc', fmt.hundredths),
        "How often the target's name is more probable on an image with the target than on one "
        'without; 50 is guessing. An answer prior cannot raise it.',
    ),
    Column(
        'Right without target, %',
        measured('score_without_target', fmt.hundredths),
        'Share of the images without the target that are answered correctly. A model that always '
        'names the target scores 0 here.',
    ),
    Column(
        'Most frequent answer',
        measured('most_frequent_answer', fmt.one_line),
        'The answer given most often.',
        is_words=True,
    ),
    Column(
        'Its share, %',
        measured('most_frequent_share', fmt.hundredths),
        "How often it was given. Far above the full model's share, it is a habit (answer prior), "
        'not a reading of the image.',
    ),
    Column(
        'In label set, %',
        measured('in_vocabulary_share', fmt.hundredths),
        "Share of answers inside the task's vocabulary. Where the score rises by no more than "
        'this share, the gain is format: the model saw as much before, but worded it differently.',
    ),
)

BALANCED_EXPLANATION = (
    'Mean over the classes (with a target: over images with and without it) of the share answered '
    'correctly. Always giving the same answer cannot raise it.'
)


def score_columns(rows: Sequence[Row]) -> tuple[Column, ...]:
    """Return a column for each metric of any of the rows, in their order."""
    return tuple(_score_column(name, fmt.metric_label(name)) for name in _metrics(rows))


def match_columns(rows: Sequence[Row]) -> list[Column]:
    """Return a column for each other way of reading the answers, where it was scored."""
    names = {name: None for row in rows for name in _match_scores(row)}
    return [_match_column(name) for name in names]


def _match_column(match: str) -> Column:
    return Column(
        match.capitalize(),
        lambda row: fmt.hundredths(_match_scores(row).get(match)),
        f'The score if the same answers were read with --match {match}.',
    )


def _match_scores(row: Row) -> Mapping[str, Any]:
    return (row['evaluation'] or {}).get('match_scores') or {}


def score_columns_by_task(rows: Sequence[Row]) -> dict[str, list[Column]]:
    """Return the metrics' columns by task; those of a result for a single task are under ''."""
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


def sparsity_columns(rows: Sequence[Row]) -> list[Column]:
    """Return the sparsity, and what each phase saves if that is something else in some row."""
    is_plain = all(
        abs(saved - row['sparsity']) < 1e-9
        for row in rows
        for saved in (row.get('saved') or {}).values()
    )
    return [SPARSITY, *(() if is_plain else SAVED)]


def any_timed(rows: Sequence[Row]) -> bool:
    """Return whether a latency was measured in any of the rows."""
    return any(LATENCY.text(row) != fmt.DASH for row in rows)


def tests_note(rows: Sequence[Row]) -> list[str]:
    """Return a note if more than one skip set was tested: what their intervals do not cover."""
    count = sum(
        bool(row['evaluation'] and (row.get('blocks') or row.get('num_skipped'))) for row in rows
    )
    if count < 2:
        return []
    return [
        f'{count} skip sets are tested on the same images. Intervals and p-values are those of '
        'each one alone, not corrected for their number: the best of many looks better than it is.'
    ]


def any_shorter(rows: Sequence[Row]) -> bool:
    """Return whether SHORTER_NOTE applies to any of the rows' evaluations."""
    return any((row['evaluation'] or {}).get('answers_got_shorter') for row in rows)


def rich_table(
    title: str, columns: Sequence[Column], rows: Sequence[Row], caption: str = ''
) -> Table:
    """Return a table for the terminal; texts are shown literally, never parsed as markup.

    Columns with a dash in every row, such as AUROC without a target, are dropped.
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
        if column.is_words:  # folded on a narrow terminal
            table.add_column(
                Text(column.title), overflow='fold', min_width=column.min_chars or None
            )
        else:  # figures are never folded
            widest = max([MIN_TITLE_CHARS, *(len(column.text(row)) for row in rows)])
            title_lines = textwrap.wrap(column.title, widest, break_long_words=False)
            table.add_column(Text('\n'.join(title_lines)), justify='right', no_wrap=True)
    for row in rows:
        style = 'bold' if row.get('emphasis') else None
        table.add_row(*(Text(column.text(row)) for column in columns), style=style)
    return table


def html_table(columns: Sequence[Column], rows: Sequence[Row]) -> dict[str, Any]:
    """Return a table for the templates: 'columns', and 'rows' with 'cells' of text."""
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
    """Return records as CSV in UTF-8, with all digits and scores as in the result.

    None, NaN and infinities are empty fields. `names` are the columns that come first; they are
    written even without any record.
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
    fields = {key: value for key, value in evaluation.items() if key not in NESTED}
    for metric, score in (evaluation.get('scores') or {}).items():
        fields[f'scores.{metric}'] = score
    for match, score in (evaluation.get('match_scores') or {}).items():
        fields[f'match_scores.{match}'] = score
    low, high = evaluation.get('interval') or (None, None)
    for name in ('speed_up_interval', 'speed_up_with_vision_interval'):
        if name in evaluation:
            fields[f'{name}_low'], fields[f'{name}_high'] = evaluation[name] or (None, None)
    return {**fields, 'interval_low': low, 'interval_high': high}


def flat_facts(
    facts: Mapping[str, Any], without: Collection[str] = (), parent: str = ''
) -> list[tuple[str, str]]:
    """Return nested settings as lines: {'test': {'images': 5}} as [('test: images', '5')].

    `without` are names to drop, nested ones as 'test: images'.
    """
    lines: list[tuple[str, str]] = []
    for key, value in facts.items():
        name = f'{parent}{fmt.one_line(key)}'
        if name in without:
            continue
        if isinstance(value, Mapping) and value:
            lines += flat_facts(value, without, f'{name}: ')
        elif isinstance(value, (list, tuple)):
            lines.append((name, ', '.join(map(fmt.one_line, value)) or fmt.DASH))
        else:
            lines.append((name, fmt.DASH if value == {} else fmt.one_line(value)))
    return lines
