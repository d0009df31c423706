"""`gmskip soak`: checks the node for leaks and lost frames over time, with a real camera."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gmskip_ros.cli.options import locked, positive_float
from gmskip_ros.errors import UserError
from gmskip_ros.signals import StopSignals

if TYPE_CHECKING:
    from gmskip_ros.cli.progress import Bars

# Memory moves in steps of an image, with how many are in flight: 0.9 MiB at 640 x 480, 6 MiB at
# 1080p. In 30 minutes of the demo model it grew by 1.0 MiB, that is one. This allows for two or
# three large images, and finds a leak of 16 KiB per answered frame in half an hour.
ALLOWED_GROWTH_MIB = 16.0


def add_parser(subparsers: Any) -> None:
    """Add `gmskip soak` and its options."""
    parser = subparsers.add_parser(
        'soak',
        help='check the node for leaks and lost frames over half an hour',
        description='Run the real node beside a camera and observe it from outside: memory, open '
        'files and threads stay flat, every frame that it takes is answered exactly once, no '
        'error, and it stops when told to. Exit status 0 if all of this holds, 1 if not.',
    )
    parser.add_argument(
        '--minutes',
        type=positive_float,
        default=30.0,
        metavar='MIN',
        help='minutes to measure, from the first answer on (default 30)',
    )
    parser.add_argument(
        '--rate-hz',
        type=positive_float,
        default=10.0,
        metavar='HZ',
        help='rate of the camera; the node answers at its own rate (default 10)',
    )
    parser.add_argument('--model', help="'demo' (default), a folder or a hub id")
    parser.add_argument(
        '--params-file', metavar='FILE', help="the node's parameters; --model takes precedence"
    )
    parser.add_argument(
        '--source',
        type=_existing,
        metavar='PATH',
        help='images, a video or a bag for the camera (default: rendered driving scenes)',
    )
    parser.add_argument(
        '--allowed-growth-mib',
        type=positive_float,
        default=ALLOWED_GROWTH_MIB,
        metavar='MIB',
        help='by how much the median memory of the last fifth of the time may exceed that of the '
        f'second fifth (default {ALLOWED_GROWTH_MIB:g})',
    )
    parser.add_argument(
        '--out',
        type=Path,
        default=Path('out/soak'),
        metavar='FOLDER',
        help='folder for soak.json, samples.csv, memory.png and the logs (default out/soak)',
    )
    parser.add_argument('--json', action='store_true', help='print soak.json instead of the table')
    parser.add_argument('--no-progress', action='store_true', help='no progress bar')
    parser.set_defaults(func=run)


def _existing(text: str) -> Path:
    if not Path(text).exists():
        raise argparse.ArgumentTypeError(f'{text!r} does not exist: give images, a video or a bag')
    return Path(text).resolve()


def run(args: argparse.Namespace) -> int:
    """Run the soak; 0 if all verdicts hold, 1 if not, 128 + the signal that stopped it."""
    with StopSignals(hangup=True) as stop:
        from gmskip_ros.cli.progress import Bars
        from gmskip_ros.runs.soak import run_soak
        from gmskip_ros.runs.soak_result import SoakOptions

        options = SoakOptions(
            minutes=args.minutes,
            camera_rate_hz=args.rate_hz,
            parameters=_parameters(args),
            source=args.source,
            out=args.out,
            allowed_growth_mib=args.allowed_growth_mib,
            command='gmskip ' + shlex.join(args.arguments),
        )
        try:
            with locked(args.out), Bars(not args.no_progress) as bars:
                result = run_soak(options, stop, _Screen(bars))
        except UserError as error:  # LiveRunError, or --out
            print(f'gmskip soak: error: {error}', file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print(f'gmskip soak: stopped by {stop.name} before the first answer', file=sys.stderr)
            return stop.exit_code
        if args.json:
            print(json.dumps(result, indent=1, ensure_ascii=False))
        else:
            print_result(result, args.out)
        return result['exit_status']


def _parameters(args: argparse.Namespace) -> dict[str, Any]:
    """Return the node's parameters by name, from the file and the options."""
    from gmskip_ros.pipeline.settings import settings_from, values_from_file

    values = values_from_file(args.params_file) if args.params_file else {}
    if args.model is not None:
        values['model'] = args.model
    if values.get('model', 'demo') == 'demo':
        values.setdefault('labels', ['scenes'])
    settings_from(values)
    return values


class _Screen:
    """Shows a soak (runs/soak.py: SoakListener) on stderr."""

    def __init__(self, bars: Bars) -> None:
        self._bars = bars
        self.status = bars.status

    def measured(self, elapsed_s: float, total_s: float, sample: Mapping[str, Any]) -> None:
        description = (
            f'{sample["state"]}, {sample["frames_answered"]} answered, {sample["own_mib"]:.0f} MiB'
        )
        self._bars.show('measuring', elapsed_s, total_s, description=description)


def print_result(result: Mapping[str, Any], out: Path) -> None:
    """Print the verdicts and where the figures are."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from gmskip_ros.report import formatting as fmt
    from gmskip_ros.report.headlines import soak_headline

    console = Console(highlight=False, markup=False, emoji=False)
    minutes = result['measured_s'] / 60
    lines = [
        soak_headline(result),
        *fmt.demo_alert(result),
        f'{fmt.one_line(result["model"])} on {result["device"]}, camera at '
        f'{result["camera"]["rate_hz"]:g} Hz, timing: {result["timing"]}',
    ]
    if not result['complete']:
        lines.append(
            f'not complete: {minutes:.1f} of {result["minutes_asked"]:g} min were measured; '
            f'stopped by {fmt.one_line(result["stopped_by"])}'
        )
    lines += [
        f'{name}, ms: {_percentiles(windows["beginning"])} at the beginning, '
        f'{_percentiles(windows["end"])} at the end'
        for name, windows in result['latency_ms'].items()
    ]
    table = Table.grid(padding=(0, 2, 0, 0))
    for verdict in result['verdicts']:
        word, style = ('holds', 'green') if verdict['holds'] else ('FAILS', 'bold red')
        table.add_row(Text(word, style=style), verdict['name'], fmt.one_line(verdict['found']))
    console.print('\n'.join(lines), soft_wrap=True)
    console.print('')
    console.print(table)
    console.print('')
    for label, names in (
        ('figures', ('soak.json',)),
        ('second by second', ('samples.csv', 'memory.png')),
        ('logs', ('node.log', 'camera.log')),
    ):
        paths = ', '.join(str(out / name) for name in names)
        console.print(f'{label}: {paths}', soft_wrap=True)


def _percentiles(values: Mapping[str, float | None]) -> str:
    from gmskip_ros.report import formatting as fmt

    return f'p50 {fmt.number(values["p50"], 0)}, p95 {fmt.number(values["p95"], 0)}'
