"""`gmskip calibrate`: find which blocks can be skipped, and write the skip list and a report.

On several GPUs or machines: `torchrun --nproc-per-node 4 -m gmskip_ros.cli.calibrate OPTIONS`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gmskip_ros.calibration.methods.registry import (
    METHODS,
    get_method,
    search_settings,
)
from gmskip_ros.calibration.settings import CalibrationSettings, SearchSettings
from gmskip_ros.cli.options import (
    add_dataset_options,
    add_force_option,
    add_method_options,
    add_model_options,
    add_task_options,
    given_method_options,
    open_dataset_of,
    parse_phases,
    parse_protect,
    parse_sparsities,
    share,
    shared_settings,
    split_list,
)
from gmskip_ros.cli.resumable import LongRun, run_resumable, write_results
from gmskip_ros.cli.tensorboard import add_tensorboard_option
from gmskip_ros.errors import UserError
from gmskip_ros.signals import StopSignals
from gmskip_ros.skipping import KV_POLICIES

if TYPE_CHECKING:  # these load numpy, torch or rich, which `gmskip --help` can do without
    from gmskip_ros.calibration.result import Calibration


def add_parser(subparsers: Any) -> None:
    """Add the command and its options to `gmskip`."""
    parser = subparsers.add_parser(
        'calibrate', help='find which blocks can be skipped for a model, a task and a dataset'
    )
    add_task_options(parser)
    parser.add_argument(
        '--target',
        metavar='person,car',
        help='for single_object and presence: use images that show it; several targets give one '
        'list each',
    )
    add_dataset_options(parser)
    parser.add_argument(
        '--test-images',
        type=int,
        metavar='N',
        help='held-out images to test on (default: as many as --images; 0: no test)',
    )
    parser.add_argument('--test-split', help='split to test on (default: the calibration split)')
    parser.add_argument('--out', required=True, metavar='DIR', help='folder for the results')

    search = parser.add_argument_group('search')
    search.add_argument(
        '--method',
        metavar='METHOD',
        default='gm-skip',
        help='; '.join(f'{method.name}: {method.summary}' for method in METHODS.values())
        + ' (default: gm-skip)',
    )
    search.add_argument(
        '--min-score-ratio',
        type=share,
        default=1.0,
        metavar='R',
        help='stop when every further removal would score below R x the full score (default: 1.0)',
    )
    search.add_argument(
        '--max-sparsity', type=share, metavar='S', help='stop at this sparsity (default: 0.9)'
    )
    search.add_argument(
        '--sparsity',
        metavar='R[,R...]',
        help='for methods without a search: choose this share of the blocks, whatever the score',
    )
    search.add_argument(
        '--phases',
        metavar='PHASES',
        help='skip the blocks in prefill, decode or prefill+decode (default: what the method does)',
    )
    search.add_argument(
        '--kv',
        choices=KV_POLICIES,
        default=KV_POLICIES[0],
        help='with --phases prefill: what a token leaves in a block that it skips for decode to '
        "attend to: nothing, or keys and values of the block's input (default: none)",
    )
    search.add_argument(
        '--protect',
        metavar='N,M',
        help='never remove the first N and the last M blocks (default: what the method does)',
    )
    search.add_argument('--rounds', type=int, metavar='N', help='stop after N removals')
    add_method_options(search)
    search.add_argument(
        '--seeds',
        type=int,
        default=1,
        metavar='N',
        help='repeat the search on the images of N seeds, to see how stable the list is',
    )
    search.add_argument(
        '--exhaustive',
        action='store_true',
        help='answer separately for every candidate: same result, many times slower',
    )
    add_force_option(search)

    add_model_options(parser)
    parser.add_argument(
        '--latency-images',
        type=int,
        default=8,
        metavar='N',
        help='images to measure latency on, one at a time (default: 8; 0: not measured)',
    )
    add_tensorboard_option(parser)
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Calibrate each target, write and print the results; return 0, or 130 or 143 when stopped."""
    stop = StopSignals(second_interrupts=True)
    with stop:  # before imports that take seconds
        settings = make_settings(args)
        targets: list[str] | list[None] = [None]
        if args.target is not None:
            targets = split_list('--target', args.target)
        if args.seeds < 1:
            raise UserError(f'--seeds {args.seeds} must be at least 1')

        return run_resumable(args, stop, lambda run: calibrate_all(args, settings, targets, run))


def calibrate_all(
    args: argparse.Namespace,
    settings: CalibrationSettings,
    targets: Sequence[str | None],
    run: LongRun,
) -> None:
    """Open the data, load the model, calibrate, and report each target's calibration."""
    from rich.console import Console

    from gmskip_ros.calibration.errors import UnguidedError
    from gmskip_ros.calibration.run import check
    from gmskip_ros.calibration.series import calibrate_targets
    from gmskip_ros.report.targets_report import targets_table, write_targets_report

    dataset = open_dataset_of(args, run.ranks)
    test_dataset = None
    if args.test_split is not None:
        test_dataset = open_dataset_of(args, run.ranks, args.test_split)
    run.open_folder()
    run.show_notes(dataset, test_dataset)
    for target in targets if run.is_first else ():  # all, before spending hours on the first
        check(dataset, replace(settings, target=target), test_dataset)
    vlm = run.load_model(args)
    results: list[dict[str, Any]] = []
    unguided: UnguidedError | None = None
    try:
        for calibration, target_folder in calibrate_targets(
            vlm,
            dataset,
            settings,
            targets,
            args.seeds,
            run.folder,
            test_dataset=test_dataset,
            ranks=run.ranks,
            listener=run.bars,
            should_stop=run.stop.is_set,
        ):
            run.bars.stop()
            results.append(calibration.result)
            if run.is_first:
                write_and_print(calibration, target_folder)
    except UnguidedError as error:  # after the others, which are reported first
        run.bars.stop()
        unguided = error
    if run.is_first and len(results) > 1:
        write_targets_report(results, run.folder)
        Console().print(targets_table(results))
    if unguided is not None:
        raise unguided


def write_and_print(calibration: Calibration, folder: Path) -> None:
    """Write the figures, plots and page, and print the table."""
    from rich.console import Console

    from gmskip_ros.calibration.series import skip_list_path
    from gmskip_ros.report.calibration_report import calibration_table, write_calibration_report

    write_results(calibration.result, folder, 'calibration.json', write_calibration_report)
    console = Console()
    print(calibration.result['dataset']['chosen'])
    console.print(calibration_table(calibration.result))
    for warning in calibration.result['warnings']:
        print(f'gmskip: warning: {warning}', file=sys.stderr)
    for path in calibration.result['unreadable']:
        print(f'gmskip: unreadable, skipped: {path}', file=sys.stderr)
    print(f'skip list: {skip_list_path(calibration.skip_list, folder)}')
    print(f'report: {folder / "report.html"}')


def make_settings(args: argparse.Namespace) -> CalibrationSettings:
    """Return the settings of all targets. Raises UserError for options that have no effect."""
    for name in ('test_images', 'latency_images'):
        value = getattr(args, name)
        if value is not None and value < 0:
            raise UserError(f'--{name.replace("_", "-")} {value} must be at least 0')
    if args.test_split is not None and args.test_images == 0:
        raise UserError('--test-split has no effect with --test-images 0: remove one of them')
    return CalibrationSettings(
        **shared_settings(args),
        latency_images=args.latency_images,
        test_images=args.test_images,
        search=make_search_settings(args),
        exhaustive=args.exhaustive,
        force=args.force,
    )


def make_search_settings(args: argparse.Namespace) -> SearchSettings:
    """Return the settings of the method. Raises UserError for options of other methods."""
    method = get_method(args.method)
    own = {option.name for option in method.options}
    options = given_method_options(args, [method], f'--method {args.method}')
    for name in ('max_sparsity', 'rounds'):
        if getattr(args, name) is not None:
            flag = name.replace('_', '-')
            if not method.has_limits:
                raise UserError(f'--{flag} has no effect with --method {args.method}: remove it')
            if args.sparsity is not None:
                raise UserError(f'--{flag} has no effect with --sparsity: remove one of them')
    if args.sparsity is not None:
        if not method.takes_sparsity:
            raise UserError(
                f'--sparsity has no effect with --method {args.method}: '
                + ('use --max-sparsity or --rounds' if method.has_limits else 'remove it')
            )
        options['sparsities'] = parse_sparsities(args.sparsity)
    if args.phases is not None:
        options['phases'] = parse_phases(args.phases)
    if args.protect is not None:
        options['protect'] = parse_protect(args.protect)
    if args.exhaustive and 'abandon' in own:
        if 'abandon' in options:
            raise UserError('--no-abandon has no effect with --exhaustive; remove it')
        options['abandon'] = False
    return search_settings(
        args.method,
        seed=args.seed,
        min_score_ratio=args.min_score_ratio,
        max_sparsity=0.9 if args.max_sparsity is None else args.max_sparsity,
        rounds=args.rounds,
        kv=args.kv,
        **options,
    )


if __name__ == '__main__':
    from gmskip_ros.cli.main import main

    sys.exit(main(['calibrate', *sys.argv[1:]]))
