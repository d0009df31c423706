"""What a person sees of a soak: a bar with the time left, then the verdicts and the figures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from gmskip_ros.report import formatting as fmt
from gmskip_ros.runs.soak import Sample, Watcher

FOUND_COLUMNS = 88


class ProgressBar(Watcher):
    """A bar on stderr, of use in a `with`; silent where nobody looks."""

    def __init__(self, is_shown: bool) -> None:
        console = Console(stderr=True)
        self._bar = Progress(
            TextColumn('{task.description}'),
            BarColumn(),
            TextColumn('{task.fields[left]}'),
            console=console,
            transient=True,
            disable=not (is_shown and console.is_terminal),
        )
        self._task = self._bar.add_task('starting', total=None, left='')

    def __enter__(self) -> ProgressBar:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def status(self, text: str) -> None:
        self._bar.update(self._task, description=escape(fmt.one_line(text, 60)), left='')

    def measured(self, elapsed_s: float, total_s: float, sample: Sample) -> None:
        values = sample.report.values
        self._bar.update(
            self._task,
            completed=elapsed_s,
            total=total_s,
            description=(
                f'{escape(sample.report.state)}, {values["frames_answered"]} answered, '
                f'{sample.use.own_mib:.0f} MiB'
            ),
            left=f'{clock(total_s - elapsed_s)} left',
        )


def clock(seconds: float) -> str:
    """Return '29:07' of seconds."""
    whole = max(0, round(seconds))
    return f'{whole // 60}:{whole % 60:02d}'


def print_result(result: Mapping[str, Any], out: Path) -> None:
    """Print the verdicts, the figures and where all of it is."""
    console = Console(highlight=False, markup=False, emoji=False)
    minutes = result['measured_s'] / 60
    console.print(
        f'{fmt.one_line(result["model"])} on {result["device"]}, {minutes:.1f} min, camera at '
        f'{result["camera"]["rate_hz"]:g} Hz, answers at {_hz(result["achieved_rate_hz"])}',
        soft_wrap=True,
    )
    if not result['complete']:
        console.print(
            f'not complete: {minutes:.1f} of {result["minutes_asked"]:g} min were measured; '
            f'stopped by {fmt.one_line(result["stopped_by"])}',
            soft_wrap=True,
        )
    console.print('')
    table = Table.grid(padding=(0, 2, 0, 0))
    for verdict in result['verdicts']:
        colour = 'green' if verdict['holds'] else 'bold red'
        table.add_row(
            Text('holds' if verdict['holds'] else 'FAILS', style=colour),
            verdict['name'],
            Text(fmt.one_line(verdict['found'])),
        )
    console.print(table)
    console.print('')
    console.print(_latencies(result))
    console.print('')
    console.print(f'figures: {out / "soak.json"}', soft_wrap=True)
    console.print(f'second by second: {out / "samples.csv"}, {out / "memory.png"}', soft_wrap=True)
    console.print(f'logs: {out / "node.log"}, {out / "camera.log"}', soft_wrap=True)


def _hz(rate_hz: float | None) -> str:
    return fmt.DASH if rate_hz is None else f'{rate_hz:.2f} Hz'


def _latencies(result: Mapping[str, Any]) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    titles = ('latency, ms', 'p50 at the beginning', 'p95', 'p50 at the end', 'p95')
    for title in titles:
        table.add_column(justify='left' if title == titles[0] else 'right')
    table.add_row(*(Text(title, style='bold') for title in titles))
    for name, windows in result['latency_ms'].items():
        table.add_row(
            'from stamp to skip' if name == 'age' else f'{name} branch',
            *(
                fmt.number(windows[window][percentile], 0)
                for window in ('beginning', 'end')
                for percentile in ('p50', 'p95')
            ),
        )
    return table
