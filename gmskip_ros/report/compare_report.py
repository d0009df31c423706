"""The report of `gmskip compare`: tables, a CSV, Markdown, LaTeX, two pictures and a page.

A result is the content of compare.json: 'sets' (every skip set that was measured, the full model
first, with its 'evaluation' and 'speed'), 'rows' (which of them a method has at which sparsity, per
seed), 'methods', and on which model, task and images they were measured. Scores are fractions
(CIDEr: 0..10) and are shown x100; None is shown as a dash.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.table import Table

from gmskip_ros.report import columns as col
from gmskip_ros.report import formatting as fmt
from gmskip_ros.report.baselines import baseline_alerts, baseline_lines, score_alerts
from gmskip_ros.report.columns import Column, Row
from gmskip_ros.report.compare_pictures import draw_score_over_sparsity, draw_score_over_speed
from gmskip_ros.report.headlines import compare_headline
from gmskip_ros.report.plotting import Picture
from gmskip_ros.report.writing import render_html, write_files

FULL_NAME = 'Full model'
CONSTANT_NAME = 'Best constant answer'
NOT_MEASURED = (  # of an evaluation: see speed
    'latency_ms',
    'ms_per_token',
    'language_ms',
    'latency_cut',
    'speed_up',
    'speed_up_interval',
    'speed_up_with_vision',
    'speed_up_with_vision_interval',
    'threads',
    'load',
    'answers_got_shorter',
)
# Over several lists.
NOT_AVERAGED = ('interval', 'mcnemar_p', 'most_frequent_answer', 'speed_up_interval')
SMALLER_MARK = 'smaller set'
MARK_NOTES = {
    SMALLER_MARK: 'the method has no set of this size; its nearest smaller one is shown',
    'long': 'the answers have more than twice as many tokens as the references',
    'repeats': 'more than 1 in 20 answers repeats the same tokens over and over',
}
MARK_LETTERS = {SMALLER_MARK: '<', 'long': 'L', 'repeats': 'R'}  # on the terminal
PHASES_NOTE = 'A method without phases in its name skips in prefill and decode.'
SEVERAL_NOTE = 'Several lists: the mean, and of the score also the range.'


def write_compare_report(result: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write compare.csv, .md and .tex, the pictures as PNG and SVG, and report.html.

    Return their paths. The page needs no other file and no network. Without measured times there
    is no picture of them; one left by an earlier run is removed. Raises OSError.
    """
    contents: dict[str, bytes] = {
        'compare.csv': _csv(result),
        'compare.md': _markdown(result),
        'compare.tex': _latex(result),
    }
    pictures = {
        'score_over_sparsity': draw_score_over_sparsity(result),
        'score_over_speed': draw_score_over_speed(result),
    }
    for name, picture in pictures.items():
        if picture is None:
            for suffix in ('png', 'svg'):
                (folder / f'{name}.{suffix}').unlink(missing_ok=True)
        else:
            contents[f'{name}.png'], contents[f'{name}.svg'] = picture.png, picture.svg
    contents['report.html'] = _page(result, pictures)
    return write_files(folder, contents)


def compare_tables(result: Mapping[str, Any]) -> list[Table]:
    """Return the tables for the terminal: scores, controls and, if they were measured, speeds."""
    rows = table_rows(result)
    asked = Column('Asked %', SPARSITY.text)
    scores = [
        Column('Saved %', _saved_text),
        Column('Score', lambda row: _mean_score(row['scores'])),
        Column('Range', _range_text),
        DIFFERENCE[1],
        Column('Marks', lambda row: ''.join(MARK_LETTERS[mark] for mark in row['marks']) or '-'),
    ]
    headline = [line for line in [compare_headline(result)] if line]
    score_notes = [*headline, *_notes(result, rows, MARK_LETTERS), *fmt.demo_alert(result)]
    if any(' ' in _saved_text(row) for row in rows):
        score_notes.insert(0, 'Saved: block multiplications in prefill / decode.')
    sections: list[tuple[str, Sequence[Column], Sequence[str]]] = [
        (f'{fmt.subject(result)}: {fmt.score_label(result)}', scores, score_notes),
        ('Does it still look at the picture?', [*col.CONTROLS[:2], *col.CONTROLS[5:]], []),
    ]
    if _any_timed(result):
        # Without answers/s, of which the speed-up is the ratio: it would be too wide.
        speed = [SPEED_UP, Column('95 % interval', _speed_up_interval), *SPEED[2:-1]]
        sections.append((f'Speed: {fmt.subject(result)}', speed, [_speed_note(result)]))
    return [
        col.rich_table(
            title,
            [asked, METHOD, *columns],
            rows if columns is scores else _of_models(rows),
            '\n'.join(notes),
        )
        for title, columns, notes in sections
    ]


def table_rows(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of all tables: full, the best constant answer, then by size and method."""
    sets = result['sets']
    rows: list[dict[str, Any]] = [
        _row(FULL_NAME, None, [sets[0]], {'asked_blocks': 0}),
    ]
    constant = (result['baselines'] or {}).get('constant')
    if constant:
        rows.append(
            {
                **_row(CONSTANT_NAME, None, [], {}),
                'scores': [constant['score']],
                'evaluation': {'score': constant['score']},
            }
        )
    names = fmt.method_names(result)
    sizes = sorted({row['asked_blocks'] for row in result['rows']})
    for size in sizes:
        of_size = []
        for method in result['methods']:
            found = [
                row
                for row in result['rows']
                if row['asked_blocks'] == size and row['method'] == method['name']
            ]
            if found:
                name = names[method['name']]
                if len(found) > 1:
                    name += f', {len(found)} lists'
                of_size.append(_row(name, found[0], [sets[row['set']] for row in found], found[0]))
        _emphasise_best(of_size)
        rows += of_size
    return rows


def _row(
    name: str, found: Row | None, sets: Sequence[Mapping[str, Any]], asked: Mapping[str, Any]
) -> dict[str, Any]:
    size = asked.get('asked_blocks')
    is_smaller = size is not None and any(each['num_skipped'] < size for each in sets)
    marks = [SMALLER_MARK] if is_smaller else []
    marks += [mark for mark in MARK_NOTES if any(mark in each['marks'] for each in sets)]
    return {
        'name': name,
        'method': None if found is None else found['method'],
        'asked_sparsity': None if found is None else found['asked_sparsity'],
        'num_skipped': _mean([each['num_skipped'] for each in sets]),
        'sparsity': _mean_figures([each['sparsity'] for each in sets]),
        'scores': [each['evaluation']['score'] for each in sets],
        'evaluation': _mean_figures([each['evaluation'] for each in sets]),
        'speed': _mean_figures([each['speed'] for each in sets]),
        'marks': marks,
        'is_smaller': is_smaller,
        'emphasis': False,
    }


def _emphasise_best(rows: Sequence[dict[str, Any]]) -> None:
    """Mark the best score among the sets that have the size asked for."""
    scores = [
        row['evaluation']['score']
        for row in rows
        if not row['is_smaller'] and fmt.is_known(row['evaluation']['score'])
    ]
    for row in rows:
        is_best = bool(scores) and row['evaluation']['score'] == max(scores)
        row['emphasis'] = is_best and not row['is_smaller']


def _mean(values: Sequence[Any]) -> Any:
    """Return the mean of numbers, and the common value of anything else; None if there is none."""
    if not values or any(value != values[0] for value in values):
        known = [value for value in values if fmt.is_known(value) and not isinstance(value, bool)]
        return statistics.fmean(known) if values and len(known) == len(values) else None
    return values[0]


def _mean_figures(figures: Sequence[Mapping[str, Any] | None]) -> dict[str, Any] | None:
    """Return the means of the figures of several sets, those of one set as they are."""
    if not figures or any(each is None for each in figures):
        return None
    given = [dict(each) for each in figures if each is not None]
    if len(given) == 1:
        return given[0]
    means: dict[str, Any] = {}
    for key, first in given[0].items():
        values = [each.get(key) for each in given]
        if key in NOT_AVERAGED:
            means[key] = None
        elif isinstance(first, Mapping):
            means[key] = _mean_figures(values)
        else:
            means[key] = _mean(values)
    return means


def _score_text(row: Row) -> str:
    """Return the score; of several lists the mean and the range."""
    score, of_several = _mean_score(row['scores']), _range_text(row)
    return score if of_several == fmt.DASH else f'{score} ({of_several})'


def _mean_score(scores: Sequence[Any]) -> str:
    if not scores or not all(map(fmt.is_known, scores)):
        return fmt.DASH
    return fmt.hundredths(statistics.fmean(scores))


def _range_text(row: Row) -> str:
    """Return the least and the largest score of several lists; a dash for a single one."""
    scores = row['scores']
    if len(scores) < 2 or not all(map(fmt.is_known, scores)):
        return fmt.DASH
    return f'{fmt.hundredths(min(scores))} to {fmt.hundredths(max(scores))}'


def _timed(key: str, digits: int = 1) -> Callable[[Row], str]:
    return lambda row: fmt.number(row['speed'].get(key), digits) if row['speed'] else fmt.DASH


def _speed_up_interval(row: Row) -> str:
    ends = row['speed'] and row['speed'].get('speed_up_interval')
    return f'{fmt.number(ends[0], 2)} to {fmt.number(ends[1], 2)}' if ends else fmt.DASH


def _speed_up_text(row: Row) -> str:
    """Return the speed-up with its interval: '1.18 [1.09, 1.25]'."""
    text = SPEED_UP.text(row)
    ends = row['speed'] and row['speed'].get('speed_up_interval')
    return f'{text} {fmt.ratio_interval(ends)}' if ends and row['num_skipped'] else text


def _share(phase: str) -> Callable[[Row], str]:
    return lambda row: fmt.hundredths(row['sparsity'][phase]) if row['sparsity'] else fmt.DASH


def _saved_text(row: Row) -> str:
    prefill, decode = PREFILL_SHARE.text(row), DECODE_SHARE.text(row)
    return prefill if prefill == decode else f'{prefill} / {decode}'


def _count(row: Row) -> str:
    count = row['num_skipped']
    return str(count) if isinstance(count, int) else fmt.number(count)


SPARSITY = Column(
    'Sparsity, %',
    lambda row: fmt.hundredths(row['asked_sparsity']),
    'The share of the blocks that was asked for, rounded down to whole blocks.',
)
METHOD = Column('Method', lambda row: fmt.one_line(row['name']), is_words=True, min_chars=12)
SKIPPED = Column(
    'Skipped blocks', _count, 'How many blocks the set skips, in one phase or in both.'
)
PREFILL_SHARE = Column(
    'Prefill, %',
    _share('prefill'),
    'True sparsity in prefill: the share of the block multiplications of image and prompt that is '
    'saved.',
)
DECODE_SHARE = Column(
    'Decode, %',
    _share('decode'),
    'True sparsity in decode: the same for every token after the first.',
)
SCORE = Column(
    'Score',
    _score_text,
    'On images that no method was calibrated on. In bold: the best one of its size.',
)
MARKS = Column('Marks', lambda row: ', '.join(row['marks']) or fmt.DASH, is_words=True)
DIFFERENCE = col.AGAINST_FULL[:3]  # difference, its interval, McNemar's p
REPEATING = Column(
    'Repeating, %',
    col.measured('repeating_share', fmt.hundredths),
    'Share of the answers in which the same tokens come three or more times in a row, over six or '
    'more tokens.',
)
TOKENS = Column(
    'Tokens per answer',
    col.measured('tokens_per_answer', fmt.number),
    'Mean over the answers about all test images, without the end-of-sequence token.',
)
SPEED_UP = Column(
    'Speed-up',
    _timed('speed_up', 2),
    "The full model's time of prefill and decode / this set's, on the same questions.",
)
SPEED = (
    SPEED_UP,
    Column(
        'Speed-up, 95 % interval',
        _speed_up_interval,
        'Paired bootstrap over the timed questions, each with all its rounds. It does not cover '
        'what a different machine or day changes; with few questions it is too narrow.',
    ),
    Column('Prefill ms', _timed('prefill_ms'), 'Median time of the pass over image and prompt.'),
    Column(
        'Decode ms per token',
        _timed('decode_ms_per_token'),
        'Median over the answers of the time per pass after the first token.',
    ),
    Column(
        'Tokens per timed answer',
        _timed('tokens_per_answer'),
        'Mean over the timed answers, to which all figures of speed belong.',
    ),
    Column(
        'Tokens/s',
        _timed('tokens_per_s'),
        'All tokens / all time of prefill and decode. Longer answers spread prefill over more '
        'tokens, so this rises with length alone.',
    ),
    Column('Answers/s', _timed('answers_per_s', 2), 'Answers / all time of prefill and decode.'),
)
MORE_SPEED = (
    Column(
        'Tokens/s, mean of ratios',
        _timed('tokens_per_s_mean_of_ratios'),
        "The mean of each answer's own tokens/s, in which short answers weigh as much as long "
        'ones.',
    ),
    Column(
        'Answers/s, mean of ratios',
        _timed('answers_per_s_mean_of_ratios', 2),
        "The mean of each answer's own 1 / time.",
    ),
    Column(
        'Tokens/s with vision',
        _timed('tokens_per_s_with_vision'),
        'All tokens / all time of whole answers: preparing and encoding the image included.',
    ),
    Column(
        'Answers/s with vision', _timed('answers_per_s_with_vision', 2), 'The same for answers.'
    ),
    Column(
        'Tokens/s with vision, mean of ratios',
        _timed('tokens_per_s_with_vision_mean_of_ratios'),
        'The mean over the answers.',
    ),
    Column(
        'Answers/s with vision, mean of ratios',
        _timed('answers_per_s_with_vision_mean_of_ratios', 2),
        'The mean over the answers.',
    ),
    Column(
        'Speed-up with vision',
        _timed('speed_up_with_vision', 2),
        'The same of whole answers.',
    ),
    Column('Prefill total ms', _timed('prefill_total_ms', 0), 'Sum over the timed answers.'),
    Column('Decode total ms', _timed('decode_total_ms', 0), 'Sum over the timed answers.'),
)
PLACE = (SPARSITY, METHOD, SKIPPED, PREFILL_SHARE, DECODE_SHARE)


def _of_models(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows without that of the constant answer, of which only the score is known."""
    return [row for row in rows if row['sparsity']]


def _of_full(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the lines about baselines need: these, and the full model's evaluation."""
    return {'baselines': result['baselines'], 'rows': result['sets'][:1]}


def _any_timed(result: Mapping[str, Any]) -> bool:
    return any(each['speed'] for each in result['sets'])


def _notes(
    result: Mapping[str, Any], rows: Sequence[Row], letters: Mapping[str, str] | None = None
) -> list[str]:
    """Return what a reader of the scores has to know, a line each.

    `letters` stand for the marks, if any.
    """
    notes = [*baseline_lines(_of_full(result)), *col.tests_note(result['sets'])]
    if result['score_note']:
        notes.append(fmt.one_line(result['score_note']))
    if any(len(row['scores']) > 1 for row in rows):
        notes.append(SEVERAL_NOTE)
    if len({tuple(method['phases']) for method in result['methods']}) > 1:
        notes.append(PHASES_NOTE)
    used = {mark for row in rows for mark in row['marks']}
    for mark, note in MARK_NOTES.items():
        if mark in used:
            name = f'{letters[mark]} = {mark}' if letters else mark
            notes.append(f'{name}: {note}.')
    return notes


def _speed_note(result: Mapping[str, Any]) -> str:
    timed = result['sets'][0]['speed']
    questions = fmt.count_of(timed['questions'], 'question')
    rounds = fmt.count_of(timed['rounds'], 'round')
    return (
        f'{questions} x {rounds} per skip set, all sets in turn, on {fmt.machine_name(result)}. '
        'Times of prefill and decode, vision not included.'
    )


# --- CSV, Markdown, LaTeX ---


def _csv(result: Mapping[str, Any]) -> bytes:
    """Return a record per method, sparsity and seed, with every figure; the full model first."""
    constant = (result['baselines'] or {}).get('constant') or {}
    phases = {method['name']: '+'.join(method['phases']) for method in result['methods']}
    full = {'method': 'full', 'asked_blocks': 0, 'set': 0}
    records = []
    for row in [full, *result['rows']]:
        found = result['sets'][row['set']]
        speed = dict(found['speed'] or {})
        low, high = speed.pop('speed_up_interval', None) or (None, None)
        records.append(
            {
                'method': row['method'],
                'seed': row.get('seed'),
                'asked_sparsity': row.get('asked_sparsity'),
                'asked_blocks': row['asked_blocks'],
                'num_skipped': found['num_skipped'],
                'is_smaller': found['num_skipped'] < row['asked_blocks'],
                'prefill_blocks': ' '.join(map(str, found['prefill'])),
                'decode_blocks': ' '.join(map(str, found['decode'])),
                'phases': phases.get(row['method']),
                'kv': found['kv'],
                'sparsity_prefill': found['sparsity']['prefill'],
                'sparsity_decode': found['sparsity']['decode'],
                'marks': ' '.join(found['marks']),
                'metric': fmt.metric_name(result),
                'calibration_score': row.get('calibration_score'),
                **col.csv_evaluation(
                    {
                        key: value
                        for key, value in found['evaluation'].items()
                        if key not in NOT_MEASURED
                    }
                ),
                'constant_score': constant.get('score'),
                **{f'speed_{name}': value for name, value in speed.items()},
                'speed_up_interval_low': low,
                'speed_up_interval_high': high,
                'machine': fmt.machine_name(result),
            }
        )
    return col.csv_table(records)


def _text_columns(result: Mapping[str, Any]) -> list[Column]:
    """Return the columns of the tables for papers."""
    columns = [*PLACE, Column(fmt.score_label(result), SCORE.text), *DIFFERENCE[:2]]
    columns += [col.VISUAL_GAIN, TOKENS]
    return [*columns, *(SPEED if _any_timed(result) else ()), MARKS]


def _markdown(result: Mapping[str, Any]) -> bytes:
    rows = table_rows(result)
    columns = _text_columns(result)

    def line(cells: Sequence[str]) -> str:
        return '| ' + ' | '.join(cell.replace('|', r'\|') for cell in cells) + ' |'

    lines = [f'**{fmt.subject(result)}**', '', line([column.title for column in columns])]
    lines.append(line([':--' if column.is_words else '--:' for column in columns]))
    for row in rows:
        cells = [column.text(row) for column in columns]
        lines.append(line([f'**{cell}**' for cell in cells] if row['emphasis'] else cells))
    notes = [*fmt.demo_alert(result), *_notes(result, rows)]
    if _any_timed(result):
        notes.append(_speed_note(result))
    for note in notes:
        lines += ['', note]
    return ('\n'.join(lines) + '\n').encode('utf-8', 'backslashreplace')


_LATEX = {
    '\\': r'\textbackslash{}',
    '~': r'\textasciitilde{}',
    '^': r'\textasciicircum{}',
    '<': r'\textless{}',
    '>': r'\textgreater{}',
    '|': r'\textbar{}',
    '"': r'\textquotedbl{}',
    **{letter: '\\' + letter for letter in '&%$#_{}'},
}


def latex_text(text: str) -> str:
    """Return text that LaTeX prints as it is."""
    return re.sub(r'[\\~^<>|"&%$#_{}]', lambda found: _LATEX[found[0]], text)


def _latex(result: Mapping[str, Any]) -> bytes:
    r"""Return a tabular; it needs booktabs, and \usepackage[T1]{fontenc} for quotes."""
    rows = table_rows(result)
    columns = _text_columns(result)

    def line(cells: Sequence[str]) -> str:
        return ' & '.join(cells) + r' \\'

    notes = [*fmt.demo_alert(result), *_notes(result, rows)]
    if _any_timed(result):
        notes.append(_speed_note(result))
    lines = [f'% {fmt.subject(result)}', *(f'% {note}' for note in notes)]
    lines.append(r'\begin{tabular}{' + ''.join('l' if c.is_words else 'r' for c in columns) + '}')
    lines += [r'\toprule', line([latex_text(column.title) for column in columns]), r'\midrule']
    previous = None
    for row in rows:
        if row['asked_sparsity'] != previous:
            lines.append(r'\midrule')
        previous = row['asked_sparsity']
        cells = [latex_text(column.text(row)) for column in columns]
        lines.append(line([rf'\textbf{{{c}}}' for c in cells] if row['emphasis'] else cells))
    lines += [r'\bottomrule', r'\end{tabular}']
    return ('\n'.join(lines) + '\n').encode('utf-8', 'backslashreplace')


# --- the page ---


def _page(result: Mapping[str, Any], pictures: Mapping[str, Picture | None]) -> bytes:
    rows = table_rows(result)
    with_interval = replace(SPEED_UP, text=_speed_up_text)
    speed_up = [with_interval] if _any_timed(result) else []
    scores = [*PLACE[:2], *speed_up, *PLACE[2:], SCORE, *DIFFERENCE, col.VISUAL_GAIN, MARKS]
    controls = [
        SPARSITY,
        METHOD,
        *col.score_columns(rows),
        *col.match_columns(rows),
        *col.CONTROLS,
        TOKENS,
        REPEATING,
        col.AGAINST_FULL[3],  # same tokens as full
    ]
    unreadable, of_models = result['unreadable'], _of_models(rows)
    explained = dict.fromkeys([*PLACE, SCORE, *DIFFERENCE, *controls[2:], *SPEED, *MORE_SPEED])
    return render_html(
        'compare.html',
        title=f'Methods compared: {fmt.subject(result)}',
        result=result,
        score_label=fmt.score_label(result),
        headline=compare_headline(result),
        alerts=_alerts(result),
        score_notes=_notes(result, rows),
        scores=col.html_table(scores, rows),
        controls=col.html_table(controls, of_models),
        speed=col.html_table([SPARSITY, METHOD, *SPEED], of_models) if _any_timed(result) else None,
        more_speed=col.html_table([SPARSITY, METHOD, *MORE_SPEED], of_models),
        speed_note=_speed_note(result) if _any_timed(result) else '',
        methods=_methods_table(result),
        sets=_sets_table(result),
        pictures={name: picture and picture.element for name, picture in pictures.items()},
        explanations=[column for column in explained if column.explanation],
        balanced_explanation=col.BALANCED_EXPLANATION,
        notes=fmt.dataset_notes(result),
        unreadable=unreadable,
        facts=_facts(result),
    )


def _alerts(result: Mapping[str, Any]) -> list[str]:
    alerts = fmt.demo_alert(result)
    alerts += [fmt.one_line(warning) for warning in result['dataset']['warnings']]
    common = [
        line
        for line in result['methods'][0]['warnings']
        if all(line in method['warnings'] for method in result['methods'])
    ]
    alerts += map(fmt.one_line, common)
    for method in result['methods']:
        alerts += [
            f'{fmt.one_line(method["title"])}: {fmt.one_line(line)}'
            for line in method['warnings']
            if line not in common
        ]
    alerts += fmt.unreadable_alert(result['unreadable'])
    alerts += score_alerts(result['sets'][0]['evaluation'])
    return alerts + baseline_alerts(_of_full(result))


def _methods_table(result: Mapping[str, Any]) -> dict[str, Any]:
    rows = [
        {
            'name': method['title'],
            'phases': '+'.join(method['phases']),
            'kv': method['kv'],
            'protect': '{}, {}'.format(*method['protect']),
            'seeds': ', '.join(map(str, method['seeds'])) or fmt.DASH,
            'options': ', '.join(f'{k}: {v}' for k, v in method['options'].items()) or fmt.DASH,
            'stopped': method['stopped_by'],
            'files': ', '.join(method['skip_lists']),
        }
        for method in result['methods']
    ]
    columns = (
        METHOD,
        col.words('Phases', 'phases'),
        col.words('kv', 'kv'),
        col.words('Protected first, last', 'protect'),
        col.words('Seeds', 'seeds'),
        col.words('Options', 'options'),
        col.words('Stopped', 'stopped'),
        col.words('Skip lists', 'files'),
    )
    return col.html_table(columns, rows)


def _sets_table(result: Mapping[str, Any]) -> dict[str, Any]:
    names = fmt.method_names(result)
    several = {method['name'] for method in result['methods'] if len(method['seeds']) > 1}
    rows = []
    for row in result['rows']:
        found = result['sets'][row['set']]
        name = names[row['method']]
        if row['method'] in several:
            name = f'{name}, seed {row["seed"]}'
        rows.append(
            {
                'name': name,
                'asked_sparsity': row['asked_sparsity'],
                'num_skipped': found['num_skipped'],
                'prefill': fmt.block_list(found['prefill']),
                'decode': 'the same'
                if found['decode'] == found['prefill']
                else fmt.block_list(found['decode']),
                'calibration_score': row['calibration_score'],
                'score': found['evaluation']['score'],
            }
        )
    columns = (
        SPARSITY,
        METHOD,
        SKIPPED,
        col.words('Skipped in prefill', 'prefill'),
        col.words('Skipped in decode', 'decode'),
        col.field('Calibration score', 'calibration_score', fmt.hundredths),
        col.field('Score', 'score', fmt.hundredths),
    )
    return col.html_table(columns, rows)


def _facts(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what was compared and how, as (name, value) lines."""
    shown_elsewhere = (
        'format',
        'command',
        'dataset: notes',
        'dataset: warnings',
        'unreadable',
        'score_note',
        'baselines',
        'methods',
        'sets',
        'rows',
    )
    return col.flat_facts({**result, 'metric': fmt.metric_name(result)}, shown_elsewhere)
