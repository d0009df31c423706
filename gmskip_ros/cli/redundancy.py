"""`gmskip redundancy`: why blocks can be skipped, and which cheap measure predicts it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from gmskip_ros.calibration.settings import CalibrationSettings
from gmskip_ros.cli.options import (
    add_dataset_options,
    add_model_options,
    add_task_options,
    open_dataset_of,
    shared_settings,
)
from gmskip_ros.cli.resumable import LongRun, run_resumable, write_results
from gmskip_ros.signals import StopSignals

DEFAULT_IMAGES = 50  # each takes about 3 passes of the prompt per block


def add_parser(subparsers: Any) -> None:
    """Add the command and its options to `gmskip`."""
    parser = subparsers.add_parser(
        'redundancy', help='measure why blocks can be skipped, and what predicts it'
    )
    add_task_options(parser)
    parser.add_argument(
        '--target', metavar='person', help='for single_object and presence: use images that show it'
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

        return run_resumable(args, stop, lambda run: measure_and_report(args, settings, run))


def measure_and_report(
    args: argparse.Namespace, settings: CalibrationSettings, run: LongRun
) -> None:
    """Open the data, load the model, measure, and write and print the figures."""
    from gmskip_ros.calibration.redundancy import check, measure_redundancy

    dataset = open_dataset_of(args, run.ranks)
    if run.is_first:
        check(dataset, settings)
    run.open_folder()
    run.show_notes(dataset)
    vlm = run.load_model(args)
    result = measure_redundancy(
        vlm,
        dataset,
        settings,
        run.folder,
        ranks=run.ranks,
        listener=run.bars,
        should_stop=run.stop.is_set,
    )
    run.bars.stop()
    if run.is_first:
        write_and_print(result, run.folder)


def write_and_print(result: dict[str, Any], folder: Path) -> None:
    """Write the figures, the plots and the page, and print the tables and the summary."""
    from rich.console import Console

    from gmskip_ros.report.redundancy_report import redundancy_tables, write_redundancy_report

    write_results(result, folder, 'redundancy.json', write_redundancy_report)
    console = Console()
    print(result['dataset']['chosen'])
    for table in redundancy_tables(result):
        console.print(table)
    for line in result['summary']:
        print(line)
    for reason in result['unreadable']:
        print(f'gmskip: unreadable, skipped: {reason}', file=sys.stderr)
    print(f'report: {folder / "report.html"}')
