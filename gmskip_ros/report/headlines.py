"""One sentence for each report: what skipping gains and what it costs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from gmskip_ros.report import columns as col
from gmskip_ros.report import formatting as fmt
from gmskip_ros.report.columns import Row
from gmskip_ros.report.replay_figures import point_name

HUGGING_FACE = 'against Hugging Face'  # how the names of such ratios begin
MAX_NAMED = 3  # of more, their number is said


class SpeedUp(NamedTuple):
    """A speed-up, its interval if there is one, and of what, if it is to be named."""

    value: Any
    interval: Sequence[float] | None = None
    of: str = ''

    @property
    def is_measurable(self) -> bool:
        """Return whether its interval, if there is one, leaves 1 out."""
        return not self.interval or not self.interval[0] <= 1 <= self.interval[1]


def calibration_headline(result: Mapping[str, Any]) -> str:
    """Return what the high-performance point of a calibration does; '' without one."""
    points = result['operating_points']
    if not points:
        return ''
    of_length = {prefix['length']: prefix for prefix in result['prefixes']}
    prefix, full = of_length[points['high_performance']], of_length.get(0)
    name = f'high_performance ({_blocks(prefix)})'
    if prefix['test'] and full and full['test']:
        return _headline(name, prefix['test'], full['test'], result) + ', on held-out images'
    scores = (
        {'score': result['full_score']},
        {'score': prefix['calibration_score']},
    )
    score = _score(*scores, result)
    return f'{name}: {score}, on the images of the search' if score else ''


def evaluation_headline(result: Mapping[str, Any]) -> str:
    """Return what the first skip list of an evaluation does, else the first set; '' without any."""
    rows = result['rows']
    skipping = [row for row in rows if row['blocks']]
    full = next((row for row in rows if not row['blocks']), None)
    if not skipping or full is None:
        return ''
    first = next((row for row in skipping if row['source']), skipping[0])
    name = f'{fmt.one_line(first["name"])} ({_blocks(first)})'
    return _headline(name, first['evaluation'], full['evaluation'], result)


def compare_headline(result: Mapping[str, Any]) -> str:
    """Return the best method at the largest sparsity at which one still keeps the full score.

    It keeps it unless the interval of its difference is all below zero. '' without scores.
    """
    sets, full = result['sets'], result['sets'][0]['evaluation']
    if not fmt.is_known(full['score']):
        return ''
    names = fmt.method_names(result)
    sizes = sorted({row['asked_blocks'] for row in result['rows']}, reverse=True)
    for size in sizes:
        found = [
            (sets[row['set']]['evaluation'], row)
            for row in result['rows']
            if row['asked_blocks'] == size and sets[row['set']]['num_skipped'] == size
        ]
        found = [each for each in found if fmt.is_known(each[0]['score'])]
        if not found:
            continue
        evaluation, row = max(found, key=lambda each: each[0]['score'])
        interval = evaluation.get('interval')
        if (interval and interval[1] < 0) or (not interval and evaluation['score'] < full['score']):
            continue
        speed = sets[row['set']]['speed'] or {}
        faster = _faster([SpeedUp(speed.get('speed_up'), speed.get('speed_up_interval'))])
        name = f'{names[row["method"]]}, {size} of {result["num_blocks"]} blocks skipped'
        return _sentence(name, [faster, _score(full, evaluation, result)])
    return 'No method keeps the score of the full model at any sparsity that was asked for'


def replay_headlines(summary: Sequence[Row]) -> list[str]:
    """Return a sentence per machine and operating point, over all tasks."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in summary:
        groups.setdefault((row['machine'], row['operating_point']), []).append(row)
    several = len({machine for machine, _ in groups}) > 1
    return [
        _sentence(
            f'{fmt.one_line(point_name(point))}{f" on {fmt.one_line(machine)}" if several else ""}',
            [
                _faster(
                    SpeedUp(
                        row['speedup']['median'],
                        row['speedup'].get('interval'),
                        fmt.one_line(row['task']),
                    )
                    for row in rows
                ),
                _agreeing(rows),
            ],
        )
        for (machine, point), rows in groups.items()
    ]


def comparison_headline(groups: Sequence[Row]) -> str:
    """Return how many answers two runs share; '' without a frame in both."""
    same, compared = (sum(group[key] for group in groups) for key in ('same', 'compared'))
    return f'A and B: {same} of {compared} answers the same' if compared else ''


def targets_headline(rows: Sequence[Row]) -> str:
    """Return what the high-performance points of all targets skip, and what they gain and cost."""
    skipped = [row['high_performance_sparsity'] for row in rows]
    kept = sum(row['high_performance_score'] >= row['full_score'] for row in rows)
    shares = ' to '.join(dict.fromkeys(fmt.hundredths(f(skipped)) for f in (min, max)))
    parts = [
        f'{shares} % of the blocks skipped',
        _faster(_speed_up_of_target(row) for row in rows),
        f'the score kept for {kept} of {fmt.count_of(len(rows), "target")}',
    ]
    return _sentence('high_performance', parts)


def _speed_up_of_target(row: Row) -> SpeedUp:
    name = 'high_performance_speed_up'
    interval = (row[f'{name}_low'], row[f'{name}_high'])
    return SpeedUp(row[name], None if None in interval else interval, fmt.one_line(row['target']))


def redundancy_headline(result: Mapping[str, Any]) -> str:
    """Return how many blocks can be missed one at a time."""
    num_blocks = result['num_blocks']
    unmissed = num_blocks - result['blocks_that_change']['score_change']
    name = fmt.score_label(result).removesuffix(', %').removesuffix(' x100')
    return f"Skipped one at a time, {unmissed} of {num_blocks} blocks change no answer's {name}"


def soak_headline(result: Mapping[str, Any]) -> str:
    """Return whether a soak's verdicts hold, and over how many answers."""
    verdicts = result['verdicts']
    failing = [verdict['name'] for verdict in verdicts if not verdict['holds']]
    outcome = f'fails: {", ".join(failing)}' if failing else f'all {len(verdicts)} checks hold'
    rate = fmt.number(result['achieved_rate_hz'], 2)
    parts = [
        outcome,
        f'{fmt.count_of(result["frames"]["answered"], "frame")} answered at {rate} Hz',
    ]
    return _sentence(f'{result["measured_s"] / 60:.1f} min', parts)


def latency_headline(result: Mapping[str, Any]) -> str:
    """Return how answers stand against Hugging Face's, and how many bars hold."""
    speed_ups = [
        SpeedUp(1 / ratio['value'], [1 / end for end in reversed(ratio['interval'])])
        for model in result['models']
        for ratio in model['ratios']
        if ratio['name'].startswith(HUGGING_FACE)
    ]
    judged = [bar['holds'] for bar in result['bars'] if bar['holds'] is not None]
    parts = [
        _faster(speed_ups, rival='Hugging Face'),
        f'{sum(judged)} of {fmt.count_of(len(judged), "bar")} met' if judged else '',
    ]
    return _sentence('Prefill and decode', parts) if any(parts) else ''


def search_headline(tasks: Sequence[Row], walk: str) -> str:
    """Return whether a search finds what exhaustive search finds, and with which share of work."""
    work = [100 * task['methods'][walk]['share'] for task in tasks]
    shares = ' to '.join(dict.fromkeys(f'{f(work):.0f} %' for f in (min, max)))
    wrong = sum(bool(task['errors']) for task in tasks)
    same = 'the same result as exhaustive search'
    if wrong:
        same = f'NOT {same} in {wrong} of {len(tasks)} tasks'
    return f'{same}, with {shares} of its work'


def _headline(name: str, evaluation: Row, full: Row, result: Mapping[str, Any]) -> str:
    same = evaluation.get('token_agreement')
    count = evaluation.get('answers') or evaluation['images']  # older results: one answer each
    parts = [
        _faster(
            [
                SpeedUp(
                    col.speed_up_of(evaluation, full),
                    evaluation.get('speed_up_with_vision_interval'),
                )
            ]
        ),
        f'{round(same * count)} of {count} answers the same' if fmt.is_known(same) else '',
        _score(full, evaluation, result),
    ]
    return _sentence(name, parts)


def _sentence(name: str, parts: Sequence[str]) -> str:
    return f'{name}: {", ".join(part for part in parts if part)}'


def _faster(speed_ups: Iterable[SpeedUp], rival: str = '') -> str:
    """Return '2.5x faster', '1.90x to 2.60x faster than <rival>'; '' if nothing was measured.

    Those whose interval holds 1 stand apart: 'not measurably faster (0.90x to 1.20x)' if all are
    so, else what they are of, or how many they are.
    """
    known = [each for each in speed_ups if fmt.is_known(each.value)]
    if not known:
        return ''
    measurable = [each.value for each in known if each.is_measurable]
    if not measurable:
        ends = [end for each in known for end in each.interval or ()]
        than = f' than {rival}' if rival else ''
        return f'not measurably faster{than} ({min(ends):.2f}x to {max(ends):.2f}x)'
    digits = 1 if min(measurable) >= 2 else 2
    values = dict.fromkeys(f'{f(measurable):.{digits}f}x' for f in (min, max))
    word, than = ('faster', 'than') if min(measurable) >= 1 else ('as fast', 'as')
    faster = f'{" to ".join(values)} {word}' + (f' {than} {rival}' if rival else '')
    others = [each.of for each in known if not each.is_measurable]
    if not others:
        return faster
    are_named = len(others) <= MAX_NAMED and all(others)
    which = ', '.join(others) if are_named else f'{len(others)} of {len(known)}'
    return f'{faster} (no measurable difference: {which})'


def _score(full: Row, evaluation: Row, result: Mapping[str, Any]) -> str:
    """Return 'accuracy 97.5 -> 96.7 (not significant)'; '' without both scores."""
    if not (fmt.is_known(full.get('score')) and fmt.is_known(evaluation.get('score'))):
        return ''
    name = fmt.score_label(result).removesuffix(', %').removesuffix(' x100')
    change = f'{fmt.hundredths(full["score"])} -> {fmt.hundredths(evaluation["score"])}'
    interval = evaluation.get('interval')
    if not interval:
        return f'{name} {change}'
    verdict = 'significant' if interval[0] > 0 or interval[1] < 0 else 'not significant'
    return f'{name} {change} ({verdict})'


def _agreeing(rows: Sequence[Row]) -> str:
    agreeing, compared = (sum(row[key] for row in rows) for key in ('agreeing', 'compared'))
    return f'{agreeing} of {compared} answers agree' if compared else ''


def _blocks(row: Row) -> str:
    count = fmt.count_of(len(row['blocks']))
    return f'{count} skipped, {fmt.hundredths(row["sparsity"])} %'
