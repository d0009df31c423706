"""`gmskip compare`: methods side by side, at the same sparsities on the same held-out images.

On several GPUs or machines: `torchrun --nproc-per-node 4 -m gmskip_ros.cli.compare OPTIONS`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gmskip_ros.calibration.methods.registry import METHODS, get_method
from gmskip_ros.calibration.settings import CompareSettings
from gmskip_ros.cli.options import (
    DATASET_HELP,
    add_captions_option,
    add_force_option,
    add_images_dir_option,
    add_images_options,
    add_method_options,
    add_model_options,
    add_task_options,
    given_method_options,
    parse_phases,
    parse_protect,
    parse_sparsities,
    shared_settings,
    split_list,
)
from gmskip_ros.cli.resumable import LongRun, run_resumable, write_results
from gmskip_ros.cli.tensorboard import add_tensorboard_option
from gmskip_ros.errors import UserError
from gmskip_ros.signals import StopSignals
from gmskip_ros.skipping import KV_POLICIES

if TYPE_CHECKING:  # these load numpy, torch or rich, which `gmskip --help` can do without
    from gmskip_ros.datasets import Dataset


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
        metavar='PATH[:SPLIT]',
        help=f'{DATASET_HELP}; its split, if it has several',
    )
    parser.add_argument(
        '--evaluate-on',
        metavar='PATH[:SPLIT]',
        help='likewise (default: different images of --calibrate-on)',
    )
    add_captions_option(parser)
    parser.add_argument(
        '--evaluate-captions',
        metavar='FILE',
        help='likewise, for --evaluate-on (default: the same as --captions)',
    )
    add_images_dir_option(parser)
    parser.add_argument(
        '--evaluate-images-dir',
        metavar='DIR',
        help='likewise, for --evaluate-on (default: the same as --images-dir)',
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
    add_force_option(search)

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
    add_tensorboard_option(parser)
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Compare, write and print the results; return 0, or 130 or 143 when stopped."""
    stop = StopSignals(second_interrupts=True)
    with stop:  # before imports that take seconds
        settings = make_settings(args)

        return run_resumable(args, stop, lambda run: compare_and_report(args, settings, run))


def compare_and_report(args: argparse.Namespace, settings: CompareSettings, run: LongRun) -> None:
    """Open the data, load the model, compare, and write and print the results."""
    from gmskip_ros.calibration.choosing import OF_FIRST
    from gmskip_ros.calibration.compare import check, compare_methods

    dataset, test_dataset = OF_FIRST, None
    if run.is_first:
        dataset, test_dataset = open_datasets(args)
        check(dataset, settings, test_dataset)
    run.open_folder()
    run.show_notes(dataset, test_dataset)
    vlm = run.load_model(args)
    result = compare_methods(
        vlm,
        dataset,
        settings,
        run.folder,
        test_dataset=test_dataset,
        ranks=run.ranks,
        listener=run.bars,
        should_stop=run.stop.is_set,
    )
    run.bars.stop()
    if run.is_first:
        write_and_print(result, run.folder)


def open_datasets(args: argparse.Namespace) -> tuple[Dataset, Dataset | None]:
    """Return the datasets to calibrate and to evaluate on; None where they are the same one."""
    from gmskip_ros.datasets import open_dataset

    place, split = place_and_split(args.calibrate_on)
    dataset = open_dataset(place, split=split, captions=args.captions, images_dir=args.images_dir)
    if args.evaluate_on is None:
        for option in ('captions', 'images_dir'):
            if getattr(args, f'evaluate_{option}') is not None:
                flag = option.replace('_', '-')
                raise UserError(f'--evaluate-{flag} has no effect without --evaluate-on: remove it')
        return dataset, None
    place, split = place_and_split(args.evaluate_on)
    captions = args.captions if args.evaluate_captions is None else args.evaluate_captions
    images_dir = args.images_dir if args.evaluate_images_dir is None else args.evaluate_images_dir
    test_dataset = open_dataset(place, split=split, captions=captions, images_dir=images_dir)
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

    from gmskip_ros.report.compare_report import compare_tables, write_compare_report

    write_results(result, folder, 'compare.json', write_compare_report)
    console = Console()
    print(result['dataset']['chosen'])
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
        force=args.force,
    )


if __name__ == '__main__':
    from gmskip_ros.cli.main import main

    sys.exit(main(['compare', *sys.argv[1:]]))
