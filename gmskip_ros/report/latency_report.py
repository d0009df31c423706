"""The report of `gmskip benchmark latency`: tables for the terminal, and a picture.

A result is the content of latency.json: 'models' (each with 'rows', 'floors', 'frames', ...),
'bars' and 'projections'. Times are in milliseconds; what was not measured is a dash.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from gmskip_ros.report import columns as col
from gmskip_ros.report import formatting as fmt
from gmskip_ros.report.columns import Column
from gmskip_ros.report.plotting import (
    BLUE,
    DASHED,
    GREY,
    ORANGE,
    PURPLE,
    add_label,
    literal,
    new_figure,
    png_bytes,
    report_style,
)

Row = Mapping[str, Any]
OWN, RIVAL = 'own', 'Hugging Face, '
PANEL_INCH = 3.6


def latency_tables(result: Mapping[str, Any]) -> list[Table]:
    """Return all tables: per model what was measured, then the bars, then the projected cards."""
    tables = [table for model in result['models'] for table in _model_tables(result, model)]
    return [*tables, *_bars_tables(result['bars']), _cards_table(result['projections'])]


def latency_notes(model: Mapping[str, Any]) -> list[str]:
    """Return what a reader of one model's figures has to know, a line each."""
    conditions = model['conditions']
    lines = fmt.demo_alert(model)
    if conditions['is_busy']:
        share = fmt.hundredths(conditions['other_share'])
        lines.append(
            f'The machine was busy: other processes used {share} % of its cores. Ratios are of '
            'times in turn; times themselves are too long.'
        )
    lines += model['notes']
    lines += [f'not run: {entry["name"]}: {entry["reason"]}' for entry in model['not_run']]
    return [fmt.one_line(line) for line in lines]


def draw_latency(result: Mapping[str, Any]) -> bytes:
    """Return a PNG: the time of an answer over the blocks that run, a panel per model.

    The ideal line goes from nothing to the own full answer: each block takes the same share.
    """
    models = result['models']
    with report_style():
        figure = new_figure(PANEL_INCH * len(models))
        panels = figure.subplots(len(models), 1, squeeze=False)[:, 0]
        for axis, model in zip(panels, models, strict=True):
            _draw_model(axis, model)
        return png_bytes(figure)


def _draw_model(axis: Any, model: Mapping[str, Any]) -> None:
    own = [row for row in model['rows'] if row['name'] == OWN]
    blocks = [row['blocks'] for row in own]
    full = max(own, key=lambda row: row['blocks'])
    axis.plot(blocks, [row['answer_ms']['p50'] for row in own], color=BLUE, marker='o')
    low, high = ([row['answer_ms'][key] for row in own] for key in ('least', 'p90'))
    axis.fill_between(blocks, low, high, color=BLUE, alpha=0.15, linewidth=0)
    at = (blocks[-1], own[-1]['answer_ms']['p50'])
    add_label(axis, 'own', at, (-6, 8), color=BLUE, ha='right')
    whole = full['answer_ms']['p50']
    axis.plot([0, full['blocks']], [0, whole], color=GREY, linestyle=DASHED, zorder=1)
    add_label(axis, 'ideal', (full['blocks'] / 8, whole / 8), (-6, 4), color=GREY, ha='right')
    floors: dict[int, float] = {}
    for floor in model['floors']:
        if floor['blocks'] is not None:
            floors[floor['blocks']] = floors.get(floor['blocks'], 0.0) + floor['floor_ms']
    axis.plot(list(floors), list(floors.values()), color=PURPLE, linewidth=1.2)
    least = min(floors)
    add_label(axis, 'floor', (least, floors[least]), (-6, -2), color=PURPLE, ha='right')
    rivals = [row for row in model['rows'] if row['name'].startswith(RIVAL)]
    for marker, name in zip('sD^', dict.fromkeys(row['name'] for row in rivals), strict=False):
        points = [(row['blocks'], row['answer_ms']['p50']) for row in rivals if row['name'] == name]
        label = f'HF {name.removeprefix(RIVAL).replace(" cache", "")}'
        style = {'color': ORANGE, 'markersize': 6, 'fillstyle': 'none'}  # they may coincide
        axis.plot(*zip(*points, strict=True), marker, label=label, **style)
    if rivals:
        axis.legend(loc='upper left', fontsize=8, frameon=False)
    axis.set_xlim(0, full['blocks'] * 1.04)
    axis.set_ylim(bottom=0)
    axis.set_xlabel('blocks of the decoder that run')
    axis.set_ylabel(f'prefill + {model["answer_tokens"] - 1} tokens, ms')
    axis.set_title(literal(_name(model)))


def _name(model: Mapping[str, Any]) -> str:
    return (
        f'{fmt.short_name(model["model"])}, {model["image_tokens"]} image tokens, '
        f'{model["prompt_tokens"]} with the prompt'
    )


def _model_tables(result: Mapping[str, Any], model: Mapping[str, Any]) -> list[Table]:
    where = fmt.machine_name({**model, 'machine': result['machine']})
    threads = fmt.count_of(result['threads'], 'thread')
    tokens = model['answer_tokens']
    heading = f'{_name(model)}: {where}, {threads}; answers of {tokens} tokens'
    floors = f'Floors: no engine can be faster here (decode: {tokens - 1} tokens)'
    tables = [
        col.rich_table(heading, _row_columns(), model['rows'], '\n'.join(latency_notes(model))),
        col.rich_table('Ratios, of times in turn', _ratio_columns(), model['ratios']),
        col.rich_table(floors, _floor_columns(), model['floors']),
    ]
    if model['natural']:
        title = 'Answers that end by themselves, prefill + decode'
        tables.append(col.rich_table(title, _natural_columns(), model['natural']))
    title = 'Whole frames: three tasks, both branches'
    return [*tables, col.rich_table(title, _frame_columns(), _frame_rows(model))]


def _time(key: str, quantile: str) -> Any:
    return lambda row: _ms(row[key][quantile]) if row[key] else fmt.DASH


def _ms(value: Any) -> str:
    """Return milliseconds with about three significant digits."""
    if not fmt.is_known(value):
        return fmt.DASH
    return fmt.number(value, 0 if value >= 100 else 1 if value >= 10 else 2)


def _row_columns() -> list[Column]:
    return [
        Column('ms', lambda row: row['name'], is_words=True, min_chars=12),
        col.field('Blocks', 'blocks', str),
        _quantiles('Prefill', 'prefill_ms'),
        _quantiles('Decode per token', 'decode_ms_per_token'),
        Column('Answer, p50', _time('answer_ms', 'p50')),
    ]


def _quantiles(title: str, key: str) -> Column:
    """Return a column with three quantiles side by side: it fits a terminal of 80 columns."""
    times = [_time(key, quantile) for quantile in ('p50', 'p90', 'p99')]

    def text(row: Row) -> str:
        return ' / '.join(time(row) for time in times) if row[key] else fmt.DASH

    return Column(f'{title}, p50 / p90 / p99', text)


def _ratio_columns() -> list[Column]:
    return [
        col.words('Ratio', 'name'),
        Column('Median', lambda row: fmt.number(row['value'], 3)),
        Column('95 % interval', _interval),
        Column('Pairs', lambda row: str(row['pairs'])),
    ]


def _interval(row: Row) -> str:
    if not row['interval']:
        return fmt.DASH
    low, high = row['interval']
    return f'{low:.3f} to {high:.3f}'


def _floor_columns() -> list[Column]:
    return [
        col.words('Phase', 'phase'),
        col.field('Blocks', 'blocks', lambda value: fmt.DASH if value is None else str(value)),
        Column('GFLOP', lambda row: fmt.number(row['flops'] / 1e9, 2)),
        Column('MB', lambda row: fmt.number(row['bytes'] / 1e6, 1)),
        Column('TFLOP/s', lambda row: fmt.number(row['tflops_per_s'], 3)),
        Column('GB/s', lambda row: fmt.number(row['gb_per_s'], 1)),
        Column('Floor, ms', lambda row: _ms(row['floor_ms'])),
        Column('Own, ms', lambda row: _ms(row['measured_ms'])),
        Column('Own / floor', lambda row: fmt.number(row['measured_ms'] / row['floor_ms'], 2)),
    ]


def _natural_columns() -> list[Column]:
    return [
        col.words('Task', 'task'),
        col.field('Tokens', 'tokens', str),
        Column('Own, p50', _time('own_ms', 'p50')),
        Column('Hugging Face, p50', _time('rival_ms', 'p50')),
        Column('Ratio', lambda row: fmt.number(row['ratio']['value'], 3) if row['ratio'] else '-'),
        col.field('Different answers', 'differing', str),
    ]


def _frame_rows(model: Mapping[str, Any]) -> list[dict[str, Any]]:
    paced, parts = model['paced'], ('preprocess', 'vision', 'shared', 'skip', 'full', 'whole')
    rows = [{'name': frame['name'], **frame['parts_ms']} for frame in model['frames']]
    pace = {'name': f'one full answer of {paced["tokens"]} tokens at 1 Hz', 'whole': paced['ms']}
    if paced['late']:
        pace['name'] += f' ({paced["late"]} of {paced["ms"]["count"]} took longer)'
    return [{**dict.fromkeys(parts), **row} for row in (*rows, pace)]


def _frame_columns() -> list[Column]:
    titles = {
        'preprocess': 'Preprocess',
        'vision': 'Vision',
        'shared': 'Shared',
        'skip': 'Skip',
        'full': 'Full',
        'whole': 'Whole',
    }
    return [
        Column('ms, p50', lambda row: row['name'], is_words=True, min_chars=16),
        *(Column(title, _time(part, 'p50')) for part, title in titles.items()),
        Column('Whole, p90', _time('whole', 'p90')),
    ]


def _bars_tables(bars: Sequence[Row]) -> list[Table]:
    """Return a table of the bars that the run decides, and one of the others."""
    decided = [
        col.words('Bar', 'name'),
        Column('Model', _bar_model, is_words=True),
        Column('Required', lambda row: f'{">=" if row["is_least"] else "<="} {row["bar"]:g}'),
        Column('Measured', lambda row: fmt.number(row['value'], 3)),
        Column('95 % interval', _interval),
        Column('Verdict', _verdict, is_words=True),
    ]
    open_bars = [
        col.words('Bars that this run does not decide', 'name'),
        Column('Not measured', _why_not, is_words=True),
    ]
    tables = [
        ('Bars', decided, [row for row in bars if row['holds'] is not None]),
        ('', open_bars, [row for row in bars if row['holds'] is None]),
    ]
    return [col.rich_table(title, columns, rows) for title, columns, rows in tables if rows]


def _verdict(row: Row) -> str:
    if row['holds']:
        return 'holds'
    at_floor = row['at_floor']
    is_out_of_reach = at_floor is not None and at_floor > row['bar']
    return f'missed; the floor itself has {at_floor:.3f}' if is_out_of_reach else 'missed'


def _why_not(row: Row) -> str:
    names_model = row['model'] in row['reason']
    return fmt.one_line(row['reason'] if names_model else f'{_bar_model(row)}: {row["reason"]}')


def _bar_model(row: Row) -> str:
    tokens = row['image_tokens']
    return row['model'] if tokens is None else f'{row["model"]}, {tokens}'


def _cards_table(cards: Sequence[Row]) -> Table:
    times = {
        'vision': 'Vision',
        'prefill': 'Prefill',
        'decode_per_token': 'Decode per token',
        'one_word': 'One word',
        'frame': 'Three full answers',
        'shared_frame': 'Whole frame, shared',
    }
    rows: list[dict[str, Any]] = []
    for card in cards:
        shares = card['assumed_share_of_rate'], card['assumed_share_of_bandwidth']
        for name, (of_rate, of_bandwidth), figures in (
            (card['card'], (1.0, 1.0), 'floor_ms'),
            ('  at {:.0%} / {:.0%}'.format(*shares), shares, 'assumed_ms'),
        ):
            rates = card['tflops_per_s'] * of_rate, card['gb_per_s'] * of_bandwidth
            rows.append({'name': name, 'rates': rates, **card[figures]})
    columns = [
        Column('Card', lambda row: row['name'], is_words=True, min_chars=16),
        Column('TFLOP/s', lambda row: fmt.number(row['rates'][0])),
        Column('GB/s', lambda row: fmt.number(row['rates'][1], 0)),
        *(col.field(title, key, _ms) for key, title in times.items()),
    ]
    title = 'PROJECTION, not measured: LLaVA-1.5-7B, half precision, ms'
    caption = (
        "The floor at the data sheet's peak rates, and at a share of them that good kernels reach. "
        'Whole frame: both branches, published lists, full agreement; the rest skips and shares '
        'nothing.'
    )
    for card in cards:
        goals = [f'{times[key].lower()} {_ms(ms)} ms' for key, ms in card['wanted_ms'].items()]
        if goals:
            caption += f' Wanted on an {card["card"]}: {"; ".join(goals)}.'
    return col.rich_table(title, columns, rows, caption)
