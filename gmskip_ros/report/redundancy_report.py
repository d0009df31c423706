"""The report of `gmskip redundancy`: tables, CSV files, a picture and a page.

A result is the content of redundancy.json: 'blocks' (the measures of every block), 'correlations'
(of every cheap measure with what skipping really does), 'image_tokens' (what happens if image
tokens are left alone from a block on) and 'summary'. Scores are fractions and are shown x100; None
is shown as a dash.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from rich.table import Table

from gmskip_ros.report import columns as col
from gmskip_ros.report import formatting as fmt
from gmskip_ros.report.baselines import baseline_alerts, baseline_lines, score_alerts
from gmskip_ros.report.columns import Column
from gmskip_ros.report.headlines import redundancy_headline
from gmskip_ros.report.plotting import (
    BLUE,
    GREEN,
    ORANGE,
    PURPLE,
    Picture,
    add_hover,
    literal,
    new_figure,
    picture,
    report_style,
    set_heading,
)
from gmskip_ros.report.writing import render_html, write_files

KINDS = {'image': BLUE, 'text': ORANGE, 'decode': GREEN}
MEASURES = {
    'cosine': 'Cosine of what enters and what leaves',
    'angle': 'Angle between them, as a share of pi',
    'norm_ratio': 'Norm of what leaves / of what enters',
}
P_EXPLANATION = (
    'How often the best of all measures would correlate as well if the blocks were in a random '
    'order: corrected for the number of measures.'
)
TARGET_NAMES = {'kl': 'next-token KL', 'score_change': 'change of the score'}


def write_redundancy_report(result: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write blocks.csv, correlations.csv, redundancy.png and report.html; return their paths.

    The page needs no other file and no network. Raises OSError.
    """
    drawn = _draw(result)
    contents = {
        'blocks.csv': col.csv_table(result['blocks']),
        'correlations.csv': _correlations_csv(result),
        'redundancy.png': drawn.png,
        'report.html': _page(result, drawn),
    }
    return write_files(folder, contents)


def redundancy_tables(result: Mapping[str, Any]) -> list[Table]:
    """Return the tables for the terminal: the correlations, and every block's main measures."""
    title = f'What predicts skippability: {fmt.subject(result)}'
    headline = redundancy_headline(result)
    return [
        col.rich_table(title, _correlation_columns(), result['correlations'], headline),
        col.rich_table(
            f'Every block, {result["dataset"]["images"]} images',
            _block_columns(result, brief=True),
            result['blocks'],
            '\n'.join([*baseline_lines(result), *fmt.demo_alert(result)]),
        ),
    ]


def _number(value: Any) -> str:
    """Return a figure with four significant digits."""
    return f'{value:.4g}' if fmt.is_known(value) else fmt.DASH


def _block_columns(result: Mapping[str, Any], brief: bool = False) -> list[Column]:
    columns = [col.field('Block', 'block')]
    if brief:
        chosen = ['cosine_image', 'cosine_text', 'cosine_decode', 'visual_attention', 'kl']
    else:
        chosen = [name for name in result['blocks'][0] if name not in ('block', 'score_change')]
    columns += [col.field(_title(name), name, _number) for name in chosen]
    return [*columns, col.field('Change of score', 'score_change', fmt.points)]


def _title(name: str) -> str:
    return 'KL' if name == 'kl' else name.replace('_', ' ').capitalize()


def _correlation_columns() -> list[Column]:
    return [
        Column('Measure', lambda row: row['measure'].replace('_', ' '), is_words=True),
        Column('Predicts', lambda row: TARGET_NAMES[row['target']], is_words=True),
        Column('Rank correlation', lambda row: fmt.number(row['spearman'], 2)),
        Column('95 % interval', _interval),
        Column('p', lambda row: fmt.p_value(row['p']), P_EXPLANATION),
    ]


def _interval(row: Mapping[str, Any]) -> str:
    if not row['interval']:
        return fmt.DASH
    low, high = row['interval']
    return f'{low:.2f} to {high:.2f}'


def _correlations_csv(result: Mapping[str, Any]) -> bytes:
    records = []
    for row in result['correlations']:
        low, high = row['interval'] or (None, None)
        plain = {name: row[name] for name in ('measure', 'target', 'spearman')}
        records.append({**plain, 'interval_low': low, 'interval_high': high, 'p': row['p']})
    return col.csv_table(records)


def _draw(result: Mapping[str, Any]) -> Picture:
    """Return a picture with a panel per measure over the blocks."""
    blocks = [row['block'] for row in result['blocks']]
    with report_style():
        figure = new_figure(14.5)
        axes = figure.subplots(6, 1)
        set_heading(figure, f'What every block does: {fmt.subject(result)}')
        for axis, (measure, title) in zip(axes, MEASURES.items(), strict=False):
            axis.set_title(title)
            for kind, colour in KINDS.items():
                values = [row[f'{measure}_{kind}'] for row in result['blocks']]
                _line(axis, blocks, values, colour, f'{kind} tokens')
            axis.legend(loc='best', fontsize=8)
        axes[3].set_title('Attention of the answer to image tokens')
        _line(
            axes[3], blocks, [row['visual_attention'] for row in result['blocks']], PURPLE, 'share'
        )
        axes[4].set_title('Without the block: KL of the next token (nats)')
        _line(axes[4], blocks, [row['kl'] for row in result['blocks']], BLUE, 'KL')
        axes[5].set_title('Image tokens left alone from this block on: answer tokens that stay, %')
        firsts = [row['from_block'] for row in result['image_tokens']]
        for name, label, colour in (
            ('same_frozen', 'not processed', BLUE),
            ('same_unseen', 'not seen either', ORANGE),
        ):
            values = [
                None if row[name] is None else 100 * row[name] for row in result['image_tokens']
            ]
            _line(axes[5], firsts, values, colour, label)
        axes[5].legend(loc='best', fontsize=8)
        axes[5].set_xlabel(literal(f'block, of {result["num_blocks"]}'))
        return picture(figure)


def _line(
    axis: Axes, xs: Sequence[int], values: Sequence[float | None], colour: str, label: str
) -> None:
    known = [(x, value) for x, value in zip(xs, values, strict=True) if value is not None]
    if known:
        at, shown = zip(*known, strict=True)
        axis.plot(at, shown, marker='o', markersize=3, color=colour, label=label)
        texts = [f'{label}, block {x}: {value:.4g}' for x, value in known]
        add_hover(axis, at, shown, texts, size_points=8)
    else:
        axis.plot([], [], color=colour, label=f'{label}: none')


def _page(result: Mapping[str, Any], drawn: Picture) -> bytes:
    image_columns = [
        col.field('From block', 'from_block'),
        col.field('KL, not processed', 'kl_frozen', _number),
        Column('Same tokens, %', lambda row: fmt.hundredths(row['same_frozen'])),
        col.field('KL, not seen either', 'kl_unseen', _number),
        Column('Same tokens, %', lambda row: fmt.hundredths(row['same_unseen'])),
    ]
    alerts = [*fmt.demo_alert(result), *score_alerts(result), *baseline_alerts(result)]
    alerts += [fmt.one_line(warning) for warning in result['dataset']['warnings']]
    return render_html(
        'redundancy.html',
        title=f'Redundancy: {fmt.subject(result)}',
        result=result,
        score_label=fmt.score_label(result),
        headline=redundancy_headline(result),
        alerts=alerts + fmt.unreadable_alert(result['unreadable']),
        notes=fmt.dataset_notes(result),
        unreadable=result['unreadable'],
        summary=result['summary'],
        baselines=baseline_lines(result),
        correlations=col.html_table(_correlation_columns(), result['correlations']),
        blocks=col.html_table(_block_columns(result), result['blocks']),
        image_tokens=col.html_table(image_columns, result['image_tokens']),
        picture=drawn.element,
        facts=_facts(result),
    )


def _facts(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what was measured and how, as (name, value) lines."""
    shown_elsewhere = (
        'format',
        'command',
        'dataset: notes',
        'dataset: warnings',
        'unreadable',
        'blocks',
        'correlations',
        'image_tokens',
        'image_tokens_no_longer_matter_from',
        'score_warnings',
        'baselines',
        'summary',
    )
    return col.flat_facts({**result, 'metric': fmt.metric_name(result)}, shown_elsewhere)
