"""`gmskip redundancy`: why blocks can be skipped, and which cheap measure predicts it."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from gmskip_ros.calibration.settings import CalibrationSettings
from gmskip_ros.cli.options import (
    add_dataset_options,
    add_model_options,
    add_task_options,
    load_model,
    make_folder,
    shared_settings,
)
from gmskip_ros.errors import UserError
from gmskip_ros.signals import StopSignals

DEFAULT_IMAGES = 50  # each takes about 3 passes of the prompt per block


def add_parser(subparsers: Any) -> None:
    """Add the command and its options to `gmskip`."""
    parser = subparsers.add_parser(
        'redundancy', help='measure why blocks can be skipped, and what predicts it'
    )
    add_task_options(parser)
    parser.add_argument(
        '--target', metavar='person', help='for single_object: use images that show it'
    )
    add_dataset_options(parser, DEFAULT_IMAGES)
    parser.add_argument('--out', required=True, metavar='DIR', help='folder for the results')
    add_model_options(parser)
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Measure, write and print the figures; return 0, or 130 or 143 when stopped."""
    stop = StopSignals(second_interrupts=True)
    with stop:  # before imports that take seconds
        settings = CalibrationSettings(
            **shared_settings(args), target=args.target, test_images=0, latency_images=0
        )

        from gmskip_ros.calibration.distributed import RankLostError, Ranks
        from gmskip_ros.calibration.redundancy import measure_redundancy
        from gmskip_ros.calibration.run import check
        from gmskip_ros.cli.progress import ProgressBars
        from gmskip_ros.datasets import open_dataset
        from gmskip_ros.vlm import Stopped

        def show_step(step: str) -> None:
            if stop.is_set():
                raise Stopped('stopped while loading the model')
            bars.status(step)

        ranks = Ranks(stop.is_set)
        folder = make_folder(Path(args.out).expanduser())
        with ProgressBars(is_shown=ranks.rank == 0 and not args.no_progress) as bars:
            try:
                dataset = open_dataset(args.dataset, split=args.split, captions=args.captions)
                if ranks.rank == 0:
                    for line in (*dataset.warnings, *dataset.notes):
                        bars.print(f'gmskip: {dataset.name}: {line}')
                check(dataset, settings)
                vlm = load_model(args, ranks, show_step)
                if ranks.rank == 0:
                    for warning in vlm.warnings:
                        bars.print(f'gmskip: warning: {warning}')
                result = measure_redundancy(
                    vlm,
                    dataset,
                    settings,
                    folder,
                    ranks=ranks,
                    listener=bars,
                    should_stop=stop.is_set,
                )
                bars.stop()
                if ranks.rank == 0:
                    write_and_print(result, folder)
                ranks.disconnect()
            except (Stopped, KeyboardInterrupt, RankLostError) as error:
                if isinstance(error, RankLostError) and not stop.is_set():
                    raise
                bars.stop()
                if ranks.rank == 0:
                    print(
                        f'gmskip: stopped. Progress is saved in {folder}; run the same command to '
                        'resume.',
                        file=sys.stderr,
                    )
                return stop.exit_code
    return 0


def write_and_print(result: dict[str, Any], folder: Path) -> None:
    """Write the figures, the plots and the page, and print the tables and the summary."""
    from rich.console import Console

    from gmskip_ros.files import write_atomically
    from gmskip_ros.report.redundancy_report import redundancy_tables, write_redundancy_report

    try:
        content = json.dumps(result, indent=1, ensure_ascii=False) + '\n'
        write_atomically(folder / 'redundancy.json', content.encode('utf-8', 'backslashreplace'))
        write_redundancy_report(result, folder)
    except OSError as error:
        raise UserError(
            f'{folder}: the report cannot be written ({error.strerror}): free some space and run '
            'the same command again'
        ) from error
    console = Console()
    for table in redundancy_tables(result):
        console.print(table)
    for line in result['summary']:
        print(line)
    for reason in result['unreadable']:
        print(f'gmskip: unreadable, skipped: {reason}', file=sys.stderr)
    print(f'report: {folder / "report.html"}')
