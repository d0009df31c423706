"""`gmskip soak`: does the node stay as it is, minute after minute, as a vehicle needs it?

The real node and a real camera, observed from outside; see soak_run and soak_verdicts.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from gmskip_ros.cli.options import positive_float
from gmskip_ros.errors import UserError
from gmskip_ros.report import formatting as fmt
from gmskip_ros.runs.live import LiveRunError
from gmskip_ros.signals import Interrupted, StopRequest

FOUND_COLUMNS = 88

# Memory moves in steps of a picture, with how many are on their way at once: 0.9 MiB at 640 x 480,
# 6 MiB at 1080p. In 30 minutes of the demo model it grew by 1.0 MiB, that is one. This allows for
# two or three large ones, and finds a leak of 16 KiB per answered frame in half an hour.
ALLOWED_GROWTH_MIB = 16.0


def add_parser(subparsers: Any) -> None:
    """Add `gmskip soak` and its options."""
    parser = subparsers.add_parser(
        'soak',
        help='node and camera for half an hour: memory and file handles flat, every frame answered',
        description='Run the real node beside a camera and observe it from outside: memory, open '
        'files and threads stay flat, every frame that it takes is answered exactly once, no '
        'error, and it ends when it is told to. Exit status 0 if all of it holds, 1 if not.',
    )
    parser.add_argument(
        '--minutes',
        type=positive_float,
        default=30.0,
        metavar='MIN',
        help='to measure, from the first answer on (default 30)',
    )
    parser.add_argument(
        '--rate-hz',
        type=positive_float,
        default=10.0,
        metavar='HZ',
        help='rate of the camera; the node takes what it takes (default 10)',
    )
    parser.add_argument('--model', help="'demo' (default), a folder or a hub id")
    parser.add_argument(
        '--params-file', metavar='FILE', help="the node's parameters; --model here wins"
    )
    parser.add_argument(
        '--source',
        type=_existing,
        metavar='PATH',
        help='pictures, a video or a bag for the camera (default: rendered driving scenes)',
    )
    parser.add_argument(
        '--allowed-growth-mib',
        type=positive_float,
        default=ALLOWED_GROWTH_MIB,
        metavar='MIB',
        help='how much higher the median memory of the last fifth of the time may be than that of '
        f'the second fifth (default {ALLOWED_GROWTH_MIB:g})',
    )
    parser.add_argument(
        '--out',
        type=Path,
        default=Path('out/soak'),
        metavar='FOLDER',
        help='where soak.json, samples.csv, memory.png and the logs go (default out/soak)',
    )
    parser.add_argument('--json', action='store_true', help='print soak.json, no table')
    parser.add_argument('--no-progress', action='store_true', help='no progress bar')
    parser.set_defaults(func=run)


def _existing(text: str) -> Path:
    if not Path(text).exists():
        raise argparse.ArgumentTypeError(f'{text!r} is not there: give pictures, a video or a bag')
    return Path(text).resolve()


def run(args: argparse.Namespace) -> int:
    """Run the soak; 0 if all verdicts hold, 1 if not, 128 + the signal that ended it."""
    from gmskip_ros.cli.progress import ProgressBar
    from gmskip_ros.runs.soak import SoakOptions, run_soak

    options = SoakOptions(
        minutes=args.minutes,
        camera_rate_hz=args.rate_hz,
        parameters=_parameters(args),
        source=args.source,
        out=args.out,
        allowed_growth_mib=args.allowed_growth_mib,
        command='gmskip ' + shlex.join(args.arguments),
    )
    stop = StopRequest()
    try:
        with ProgressBar(not args.no_progress) as bar:
            result = run_soak(options, stop, bar)
    except LiveRunError as error:
        print(f'gmskip soak: error: {error}', file=sys.stderr)
        return 1
    except Interrupted as interrupted:
        print(f'gmskip soak: ended by {interrupted} before the first answer', file=sys.stderr)
        return interrupted.exit_status
    finally:
        stop.release()
    if args.json:
        print(json.dumps(result, indent=1, ensure_ascii=False))
    else:
        print_result(result, args.out)
    return result['exit_status']


def _parameters(args: argparse.Namespace) -> dict[str, Any]:
    """Return the node's parameters by name: the file's, and what the options say."""
    from gmskip_ros.pipeline.settings import ParameterError, settings_from, values_from_file

    try:
        values = values_from_file(args.params_file) if args.params_file else {}
        if args.model is not None:
            values['model'] = args.model
        if values.get('model', 'demo') == 'demo':
            values.setdefault('labels', ['scenes'])
        settings_from(values)
    except ParameterError as error:
        raise UserError(str(error)) from error
    return values


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
