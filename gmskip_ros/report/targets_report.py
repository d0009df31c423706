"""The table of several calibrated targets: a row each, as papers print categories."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from gmskip_ros.report import columns as col
from gmskip_ros.report import formatting as fmt
from gmskip_ros.report.columns import Column, Row
from gmskip_ros.report.headlines import targets_headline
from gmskip_ros.report.writing import write_files
from gmskip_ros.skipping import OPERATING_POINTS

COLUMNS: tuple[Column, ...] = (
    Column('Target', lambda row: fmt.one_line(row['target']), is_words=True, min_chars=12),
    col.field('Constant', 'constant_score', fmt.hundredths),
    col.field('Full', 'full_score', fmt.hundredths),
    *(
        col.field(f'{point.replace("_", " ")} {title}', f'{point}_{key}', fmt.hundredths)
        for point in OPERATING_POINTS
        for title, key in (('score', 'score'), ('sparsity, %', 'sparsity'))
    ),
)


def write_targets_report(results: Sequence[Mapping[str, Any]], folder: Path) -> list[Path]:
    """Write targets.csv, with a row per target; return its path. Raises OSError."""
    return write_files(folder, {'targets.csv': col.csv_table(target_rows(results))})


def targets_table(results: Sequence[Mapping[str, Any]]) -> Table:
    """Return a row per target for the terminal."""
    images = 'test images' if _tested(results[0]) else 'images of the search'
    first = results[0]
    subject = f'{fmt.one_line(first["task"])}, {fmt.short_name(first["model"])}'
    rows = target_rows(results)
    notes = [
        targets_headline(rows),
        f'{fmt.score_label(first)}, on the {images}',
        *fmt.demo_alert(first),
    ]
    return col.rich_table(f'All targets: {subject}', COLUMNS, rows, '\n'.join(notes))


def target_rows(results: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Return a row per calibration; scores are of the test images, without any of the search's."""
    return [_row(result) for result in results]


def _row(result: Mapping[str, Any]) -> dict[str, Any]:
    of_length = {prefix['length']: prefix for prefix in result['prefixes']}
    baselines = (result['test_baselines'] if _tested(result) else result['baselines']) or {}
    full = of_length[0]
    row: dict[str, Any] = {
        'target': result['target'],
        'images': _images(result),
        'constant_score': (baselines.get('constant') or {}).get('score'),
        'full_score': _score(full),
    }
    for point, length in (result['operating_points'] or {}).items():
        prefix = of_length[length]
        row[f'{point}_score'] = _score(prefix)
        row[f'{point}_speed_up'] = col.speed_up_of(prefix['test'], full['test'])
        interval = (prefix['test'] or {}).get('speed_up_with_vision_interval') or (None, None)
        row[f'{point}_speed_up_low'], row[f'{point}_speed_up_high'] = interval
        row[f'{point}_sparsity'] = prefix['sparsity']
        row[f'{point}_blocks'] = ' '.join(map(str, prefix['blocks']))
    return row


def _tested(result: Mapping[str, Any]) -> bool:
    return any(prefix['test'] for prefix in result['prefixes'])


def _images(result: Mapping[str, Any]) -> int:
    return result['dataset']['test' if _tested(result) else 'calibration']['images']


def _score(prefix: Mapping[str, Any]) -> Any:
    return prefix['test']['score'] if prefix['test'] else prefix['calibration_score']
