"""`gmskip compare`: methods side by side, at the same sparsities on the same held-out images.

On several GPUs or machines: `torchrun --nproc-per-node 4 -m gmskip_ros.cli.compare OPTIONS`.
"""

from __future__ import annotations

import argparse
import json
import sys
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gmskip_ros.calibration.methods.registry import METHODS, get_method
from gmskip_ros.calibration.settings import CompareSettings
from gmskip_ros.cli.calibrate import parse_phases, parse_protect, print_stopped
from gmskip_ros.cli.options import (
    add_captions_option,
    add_images_options,
    add_method_options,
    add_model_options,
    add_task_options,
    given_method_options,
    load_model,
    make_folder,
    shared_settings,
    split_list,
)
from gmskip_ros.errors import UserError
from gmskip_ros.signals import StopSignals
from gmskip_ros.skipping import KV_POLICIES

if TYPE_CHECKING:  # these load numpy, torch or rich, which `gmskip --help` can do without
    from gmskip_ros.calibration.distributed import Ranks
    from gmskip_ros.cli.progress import ProgressBars
    from gmskip_ros.datasets import Dataset

MOST_SPARSITIES = 1000


def add_parser(subparsers: Any) -> None:
    """Add the command and its options to `gmskip`."""
    parser = subparsers.add_parser(
        'compare', help='put methods side by side at the same sparsities, on held-out images'
    )
    parser.add_argument(
        '--methods',
        required=True,
        metavar='a,b,c',
        help='; '.join(f'{method.name}: {method.summary}' for method in METHODS.values()),
    )
    parser.add_argument(
        '--sparsity',
        default='0.05:0.5:0.05',
        metavar='START:STOP:STEP',
        help='shares of the blocks to skip, the last one included, or numbers separated by commas '
        '(default: 0.05:0.5:0.05)',
    )
    add_task_options(parser)
    parser.add_argument(
        '--target', metavar='person', help='for single_object: use images that show it'
    )
    parser.add_argument(
        '--calibrate-on',
        required=True,
        metavar='DIR[:SPLIT]',
        help="COCO's or CODA's folder, or a .jsonl file of questions; its split, if it has several",
    )
    parser.add_argument(
        '--evaluate-on',
        metavar='DIR[:SPLIT]',
        help='likewise (default: different images of --calibrate-on)',
    )
    add_captions_option(parser)
    parser.add_argument(
        '--evaluate-captions',
        metavar='FILE',
        help='likewise, for --evaluate-on (default: the same as --captions)',
    )
    add_images_options(parser)
    parser.add_argument(
        '--test-images',
        type=int,
        metavar='N',
        help='most images to evaluate on (default: as many as --images)',
    )
    parser.add_argument(
        '--out', required=True, metavar='DIR', help='folder for the results and all skip lists'
    )

    search = parser.add_argument_group('search')
    search.add_argument(
        '--phases',
        metavar='PHASES',
        help='all methods skip their blocks in prefill, decode or prefill+decode (default: each '
        "method's own)",
    )
    search.add_argument(
        '--kv',
        choices=KV_POLICIES,
        default=KV_POLICIES[0],
        help='with --phases prefill: see gmskip calibrate (default: none)',
    )
    search.add_argument(
        '--protect',
        metavar='N,M',
        help="no method removes the first N and the last M blocks (default: each method's own)",
    )
    add_method_options(search)
    search.add_argument(
        '--seeds',
        type=int,
        default=1,
        metavar='N',
        help='for methods that draw (random): N lists, of which mean and range are shown',
    )

    add_model_options(parser)
    parser.add_argument(
        '--latency-images',
        type=int,
        default=8,
        metavar='N',
        help='questions to measure speed on, one answer at a time (default: 8; 0: not measured)',
    )
    parser.add_argument(
        '--latency-rounds',
        type=int,
        default=3,
        metavar='N',
        help='how often each of them is answered under every skip set, in turn (default: 3)',
    )
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Compare, write and print the results; return 0, or 130 or 143 when stopped."""
    stop = StopSignals(second_interrupts=True)
    with stop:  # before imports that take seconds
        settings = make_settings(args)

        from gmskip_ros.calibration.distributed import RankLostError, Ranks
        from gmskip_ros.cli.progress import ProgressBars
        from gmskip_ros.vlm import Stopped

        ranks = Ranks(stop.is_set)
        folder = Path(args.out).expanduser()
        is_shown = ranks.rank == 0 and not args.no_progress
        with ProgressBars(is_shown, has_one_full_score=True) as bars:
            try:
                compare_and_report(args, settings, folder, ranks, bars, stop)
            except (Stopped, KeyboardInterrupt, RankLostError) as error:
                if isinstance(error, RankLostError) and not stop.is_set():
                    raise
                bars.stop()
                print_stopped(folder, ranks, stop)
                return stop.exit_code
    return 0


def compare_and_report(
    args: argparse.Namespace,
    settings: CompareSettings,
    folder: Path,
    ranks: Ranks,
    bars: ProgressBars,
    stop: StopSignals,
) -> None:
    """Open the data, load the model, compare, and write and print the results."""
    from gmskip_ros.calibration.compare import check, compare
    from gmskip_ros.vlm import Stopped

    def show_step(step: str) -> None:
        if stop.is_set():
            raise Stopped('stopped while loading the model')
        bars.status(step)

    dataset, test_dataset = open_datasets(args)
    check(dataset, settings, test_dataset)
    make_folder(folder)
    if ranks.rank == 0:
        for opened in filter(None, (dataset, test_dataset)):
            for line in (*opened.warnings, *opened.notes):
                bars.print(f'gmskip: {opened.name}: {line}')
    vlm = load_model(args, ranks, show_step)
    if ranks.rank == 0:
        for warning in vlm.warnings:
            bars.print(f'gmskip: warning: {warning}')
    result = compare(
        vlm,
        dataset,
        settings,
        folder,
        test_dataset=test_dataset,
        ranks=ranks,
        listener=bars,
        should_stop=stop.is_set,
    )
    bars.stop()
    if ranks.rank == 0:
        write_and_print(result, folder)
    ranks.disconnect()


def open_datasets(args: argparse.Namespace) -> tuple[Dataset, Dataset | None]:
    """Return the datasets to calibrate and to evaluate on; None where they are the same one."""
    from gmskip_ros.datasets import open_dataset

    place, split = place_and_split(args.calibrate_on)
    dataset = open_dataset(place, split=split, captions=args.captions)
    if args.evaluate_on is None:
        if args.evaluate_captions is not None:
            raise UserError('--evaluate-captions has no effect without --evaluate-on: remove it')
        return dataset, None
    place, split = place_and_split(args.evaluate_on)
    captions = args.captions if args.evaluate_captions is None else args.evaluate_captions
    test_dataset = open_dataset(place, split=split, captions=captions)
    is_same = test_dataset.samples == dataset.samples
    return dataset, None if is_same else test_dataset


def place_and_split(text: str) -> tuple[str, str | None]:
    """Return the path and the split of 'DIR' or 'DIR:SPLIT'; a path that exists is only a path."""
    place, colon, split = text.rpartition(':')
    if not colon or not split or not place or Path(text).expanduser().exists():
        return text, None
    return place, split


def write_and_print(result: dict[str, Any], folder: Path) -> None:
    """Write the figures, tables, plots and the page, and print the tables."""
    from rich.console import Console

    from gmskip_ros.files import write_atomically
    from gmskip_ros.report.compare_report import compare_tables, write_compare_report

    try:
        content = json.dumps(result, indent=1, ensure_ascii=False) + '\n'
        write_atomically(folder / 'compare.json', content.encode('utf-8', 'backslashreplace'))
        write_compare_report(result, folder)
    except OSError as error:
        raise UserError(
            f'{folder}: the report cannot be written ({error.strerror}): free some space and run '
            'the same command again'
        ) from error
    console = Console()
    for table in compare_tables(result):
        console.print(table)
        console.print()
    for path in result['unreadable']:
        print(f'gmskip: unreadable, skipped: {path}', file=sys.stderr)
    print(f'report: {folder / "report.html"}')


def make_settings(args: argparse.Namespace) -> CompareSettings:
    """Return the settings. Raises UserError for options that cannot be used."""
    methods = split_list('--methods', args.methods)
    for name in methods:
        get_method(name)
    sparsities = parse_sparsities(args.sparsity)
    for name, least in (('seeds', 1), ('latency_images', 0), ('latency_rounds', 1)):
        if getattr(args, name) < least:
            flag = name.replace('_', '-')
            raise UserError(f'--{flag} {getattr(args, name)} must be at least {least}')
    if args.test_images is not None and args.test_images < 1:
        raise UserError(f'--test-images {args.test_images} must be at least 1')
    if args.seeds > 1 and not any(METHODS[name].uses_seed for name in methods):
        raise UserError(
            f'--seeds {args.seeds} has no effect with --methods {args.methods}, none of which '
            'draws: remove it'
        )
    return CompareSettings(
        **shared_settings(args),
        target=args.target,
        methods=tuple(methods),
        sparsities=sparsities,
        phases=None if args.phases is None else parse_phases(args.phases),
        kv=args.kv,
        protect=None if args.protect is None else parse_protect(args.protect),
        num_seeds=args.seeds,
        method_options=given_method_options(
            args, [METHODS[name] for name in methods], f'--methods {args.methods}'
        ),
        test_images=args.test_images,
        latency_images=args.latency_images,
        latency_rounds=args.latency_rounds,
    )


def parse_sparsities(text: str) -> tuple[float, ...]:
    """Return the numbers of '0.05:0.5:0.05' (both ends included) or '0.25,0.5', ascending.

    Raises UserError for anything else and for numbers outside [0, 1).
    """
    parts = text.split(':' if ':' in text else ',')
    try:
        numbers = [Decimal(part.strip()) for part in parts]
    except InvalidOperation:
        numbers = []
    usage = f'--sparsity {text!r}: give START:STOP:STEP, such as 0.05:0.5:0.05, or 0.25,0.5'
    if not numbers or not all(number.is_finite() for number in numbers):
        raise UserError(usage)
    if ':' in text:
        if len(numbers) != 3 or numbers[2] <= 0 or numbers[0] > numbers[1]:
            raise UserError(usage)
        start, stop, step = numbers
        if stop - start > step * MOST_SPARSITIES:
            raise UserError(f'--sparsity {text!r}: more than {MOST_SPARSITIES} steps: give fewer')
        numbers = [start + step * i for i in range(int((stop - start) / step) + 1)]
    for number in numbers:
        if not 0 <= number < 1:
            raise UserError(f'--sparsity {text!r}: {number} is not in [0, 1): give smaller shares')
    return tuple(sorted({float(number) for number in numbers}))


if __name__ == '__main__':
    from gmskip_ros.cli.main import main

    sys.exit(main(['compare', *sys.argv[1:]]))
