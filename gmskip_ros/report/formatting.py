"""How figures are written in reports: units, digits, and a dash for what was not measured.

Everything is ASCII, so that a table prints on any terminal.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from gmskip_ros.files import DEMO_FOLDER
from gmskip_ros.numbers import numbers_in

DASH = '-'
DEMO = 'demo'  # the model whose redundancy is by construction
MAX_TEXT_CHARS = 400
MAX_NAME_CHARS = 40  # in a title

# Scores are fractions (CIDEr: 0..10), shown x100 as papers print them.
_METRIC_LABELS = {
    'accuracy': 'accuracy, %',
    'balanced_accuracy': 'balanced accuracy, %',
    'set_precision': 'set precision, %',
    'set_recall': 'set recall, %',
    'set_f1': 'set F1, %',
    'set_exact_match': 'set exact match, %',
    'cider': 'CIDEr x100',
    'rouge_l': 'ROUGE-L x100',
    'exact': 'exact match, %',
    'vqa': 'VQA accuracy, %',
    'relaxed': 'relaxed accuracy, %',
    'contains': 'contains, %',
    'precision': 'precision, %',
    'recall': 'recall, %',
    'f1': 'F1, %',
    'yes_share': 'answered yes, %',
    'visual_gain': 'visual gain x100',
}


def metric_label(metric: object) -> str:
    """Return a metric's name with the unit of `hundredths`; 'captioning.cider' names its task."""
    task, _, name = one_line(metric).rpartition('.')
    label = _METRIC_LABELS.get(name, name.replace('_', ' ') + ' x100')
    return f'{task} {label}' if task else label


def score_label(result: Mapping[str, Any]) -> str:
    """Return the name of a result's score, with its unit."""
    if result['task'] == 'joint':  # the lowest score / full score of the tasks
        return 'least score/full, %'
    return metric_label(result['metric'])


def metric_name(result: Mapping[str, Any]) -> str:
    """Return the metric of a result's score; for a joint result, how it is made of the tasks'."""
    name = one_line(result['metric'])
    return f'least of score / full score: {name}' if result['task'] == 'joint' else name


def is_known(value: object) -> bool:
    """Return whether `value` is a finite number, so that it can be shown."""
    return isinstance(value, (int, float)) and math.isfinite(value)


def number(value: Any, digits: int = 1, sign: bool = False) -> str:
    """Return a number with this many digits after the point, or a dash."""
    if not is_known(value):
        return DASH
    text = f'{value:{"+" if sign else ""}.{digits}f}'
    # A difference that rounds to zero has no sign.
    return text.lstrip('+-') if float(text) == 0 else text


def hundredths(value: Any) -> str:
    """Return a score or a fraction x100: 0.981 as '98.1'."""
    return number(value * 100) if is_known(value) else DASH


def points(value: Any) -> str:
    """Return a difference of two scores x100, with its sign: -0.01 as '-1.0'."""
    return number(value * 100, sign=True) if is_known(value) else DASH


def interval(value: Any) -> str:
    """Return an interval of differences x100: '[-2.0, +0.5]'."""
    return f'[{points(value[0])}, {points(value[1])}]' if value else DASH


def ratio_interval(ends: Sequence[Any]) -> str:
    """Return an interval of ratios: '[1.09, 1.25]'."""
    return f'[{number(ends[0], 2)}, {number(ends[1], 2)}]'


def p_value(value: Any) -> str:
    """Return a probability: '0.031', or '<0.001'."""
    if not is_known(value):
        return DASH
    return '<0.001' if value < 0.001 else f'{value:.3f}'


def parameters(value: Any) -> str:
    """Return a number of parameters: '8.2 M', '6.74 B'."""
    if not is_known(value):
        return DASH
    for size, unit, digits in ((1e9, 'B', 2), (1e6, 'M', 1), (1e3, 'k', 1)):
        if value >= size:
            return f'{value / size:.{digits}f} {unit}'
    return str(value)


def one_line(value: object, max_chars: int = MAX_TEXT_CHARS) -> str:
    """Return any text on one line, with control characters escaped and a long end cut off."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return DASH
    text = ' '.join(str(value).split())
    if len(text) > max_chars:
        text = text[: max_chars - 3] + '...'
    return ''.join(
        letter if letter.isprintable() else letter.encode('unicode_escape').decode('ascii')
        for letter in text
    )


def block_list(blocks: Sequence[int]) -> str:
    """Return blocks as '29, 16, 27', in the given order."""
    return ', '.join(map(str, blocks)) or DASH


def machine_name(result: Mapping[str, Any]) -> str:
    """Return the machine on which all latencies were measured: 'CPU X (cpu, float32)'.

    A quantization stands behind the dtype. Every table with latencies names the machine, so that
    GPU and CPU figures are never mixed.
    """
    machine = result['machine']
    device = str(result['device'])
    name = machine.get('gpu' if device.startswith('cuda') else 'cpu')
    numbers = numbers_in(result['dtype'], result.get('quantization', 'none'))
    return f'{one_line(name or "unknown machine")} ({device}, {numbers})'


def short_name(name: object) -> str:
    """Return a model or a file for a one-line title: the end of a long path."""
    text = one_line(name)
    return text if len(text) <= MAX_NAME_CHARS else '...' + text[3 - MAX_NAME_CHARS :]


def utc(stamp_ns: int) -> str:
    """Return a time stamp as '2026-11-20 12:00:16.123 UTC'."""
    moment = datetime(1970, 1, 1) + timedelta(microseconds=stamp_ns // 1000)
    return moment.isoformat(sep=' ', timespec='milliseconds') + ' UTC'


def subject(result: Mapping[str, Any]) -> str:
    """Return the task and the model of a result: 'single_object (person), llava-1.5-7b'."""
    target = f' ({result["target"]})' if result.get('target') else ''
    return f'{one_line(result["task"] + target)}, {short_name(result["model"])}'


def count_of(count: int, thing: str = 'block') -> str:
    """Return '1 block', '2 blocks'."""
    return f'{count} {thing}' if count == 1 else f'{count} {thing}s'


def point_of_both(row: Mapping[str, Any]) -> str:
    """Return the operating point of two runs: 'high_sparsity', '8 vs 5', or a dash for full."""
    if row['branch'] == 'full':
        return DASH
    points = [one_line(row[f'operating_point_{run}']) for run in 'ab']
    return ' vs '.join(dict.fromkeys(points))


def method_names(result: Mapping[str, Any]) -> dict[str, str]:
    """Return the titles of compared methods by name, with other phases than prefill and decode.

    Such as 'ShortGPT' and 'ShortGPT (prefill)'.
    """
    names = {}
    for method in result['methods']:
        phases = '+'.join(method['phases'])
        remark = '' if phases == 'prefill+decode' else f' ({one_line(phases)})'
        names[method['name']] = one_line(method['title']) + remark
    return names


def demo_alert(result: Mapping[str, Any]) -> list[str]:
    """Return the alert about figures of the demo model; none for other models."""
    model = str(result['model'])
    if model != DEMO and Path(model).resolve() != DEMO_FOLDER:
        return []
    return [
        "The demo model's redundancy is by construction: these figures show that the code runs, "
        'never that a method works.'
    ]


def unreadable_alert(unreadable: Sequence[str]) -> list[str]:
    """Return the alert about images that could not be read; none if all could."""
    if not unreadable:
        return []
    if len(unreadable) == 1:
        return ['1 image could not be read and was skipped; it is listed below.']
    return [f'{len(unreadable)} images could not be read and were skipped; they are listed below.']


def shorter_alert(names: Sequence[str]) -> list[str]:
    """Return the alert about skip sets whose answers got shorter; none without any."""
    if not names:
        return []
    return [
        f'Answers got shorter: {", ".join(names)}. '
        'Part of the time saved there is not due to skipping.'
    ]


def dataset_notes(result: Mapping[str, Any]) -> list[str]:
    """Return how many images were asked for, found and used, and the notes of the dataset."""
    dataset = result['dataset']
    return [*filter(None, [dataset.get('chosen')]), *dataset['notes']]
