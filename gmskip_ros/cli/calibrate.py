"""`gmskip calibrate`: find which blocks may be left out, and write the skip list and a report.

On several GPUs or machines: `torchrun --nproc-per-node 4 -m gmskip_ros.cli.calibrate OPTIONS`.
"""

from __future__ import annotations

import argparse
import json
import shlex
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gmskip_ros.cli.options import (
    INTERVALS,
    add_dataset_options,
    add_model_options,
    add_task_options,
    file_stem,
    load_model,
    make_folder,
    split_list,
    split_numbers,
    task_options,
)
from gmskip_ros.errors import UserError
from gmskip_ros.signals import StopSignals

if TYPE_CHECKING:
    from gmskip_ros.calibration.distributed import Ranks
    from gmskip_ros.calibration.result import Calibration
    from gmskip_ros.calibration.settings import CalibrationSettings
    from gmskip_ros.cli.progress import ProgressBars
    from gmskip_ros.datasets import Dataset
    from gmskip_ros.vlm import Vlm

METHODS = ('gm-skip', 'one-shot', 'positional', 'random', 'fixed-interval')
TIE_ORDERS = ('backward', 'forward')
STARTS = ('0', '2', 'end')
# Options that only some methods have: option -> methods.
ONLY_FOR = {
    'tie_order': ('gm-skip', 'one-shot'),
    'start': ('positional',),
    'interval': ('fixed-interval',),
    'no_abandon': ('gm-skip',),
    'max_sparsity': METHODS[:-1],
    'rounds': METHODS[:-1],
}


def add_parser(subparsers: Any) -> None:
    """Add the command and its options to `gmskip`."""
    parser = subparsers.add_parser(
        'calibrate', help='find which blocks may be left out for a model, a task and a dataset'
    )
    add_task_options(parser)
    parser.add_argument(
        '--target',
        metavar='person,car',
        help='for single_object: pictures that show it; several give one list each',
    )
    add_dataset_options(parser)
    parser.add_argument(
        '--test-images',
        type=int,
        metavar='N',
        help='other pictures, to test on (default: as many as --images; 0: no test)',
    )
    parser.add_argument(
        '--test-split', help='split to test on (default: the one that is calibrated on)'
    )
    parser.add_argument('--out', required=True, metavar='DIR', help='folder for what is found')

    search = parser.add_argument_group('search')
    search.add_argument(
        '--min-score-ratio',
        type=float,
        default=1.0,
        metavar='R',
        help='stop when no block can go without falling below R x the full score (default: 1.0)',
    )
    search.add_argument(
        '--max-sparsity', type=float, metavar='S', help='stop at this share (default: 0.9)'
    )
    search.add_argument('--rounds', type=int, metavar='N', help='stop after N removals')
    search.add_argument(
        '--method',
        choices=METHODS,
        default='gm-skip',
        help='gm-skip (default), or an ablation: one-shot (the ranking of round 1), positional, '
        'random (by --seed), fixed-interval (Skip-MLLM)',
    )
    search.add_argument(
        '--tie-order',
        choices=TIE_ORDERS,
        help='of equally good blocks the deepest goes (backward, default) or the shallowest',
    )
    search.add_argument(
        '--start', choices=STARTS, help='of positional deletion (default: 0; end: backwards)'
    )
    search.add_argument(
        '--interval', metavar='3,4', help=f'for fixed-interval (default: {INTERVALS})'
    )
    search.add_argument(
        '--seeds',
        type=int,
        default=1,
        metavar='N',
        help='search N times on pictures of other seeds, to see how stable the list is',
    )
    search.add_argument(
        '--exhaustive',
        action='store_true',
        help='answer for every candidate alone: the same result, many times slower',
    )
    search.add_argument(
        '--no-abandon',
        action='store_true',
        help='score every candidate in full, also those that cannot win any more',
    )

    add_model_options(parser)
    parser.add_argument(
        '--latency-images',
        type=int,
        default=8,
        metavar='N',
        help='pictures that latency is measured on, each alone (default: 8; 0: not measured)',
    )
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Calibrate each target, write and print what was found; 0, or 130 and 143 when stopped."""
    stop = StopSignals(second_interrupts=True)
    with stop:  # before anything that takes long to import
        settings = make_settings(args)
        targets = [None] if args.target is None else split_list('--target', args.target)
        if args.seeds < 1:
            raise UserError(f'--seeds {args.seeds} must be at least 1')

        from gmskip_ros.calibration.distributed import RankLostError, Ranks
        from gmskip_ros.cli.progress import ProgressBars
        from gmskip_ros.vlm import Stopped

        ranks = Ranks(stop.is_set)
        folder = Path(args.out).expanduser()
        with ProgressBars(is_shown=ranks.rank == 0 and not args.no_progress) as bars:
            try:
                calibrate_all(args, settings, targets, folder, ranks, bars, stop)
            except (Stopped, KeyboardInterrupt, RankLostError) as error:
                if isinstance(error, RankLostError) and not stop.is_set():
                    raise
                bars.stop()
                tell_stopped(folder, ranks, stop)
                return stop.exit_code
    return 0


def tell_stopped(folder: Path, ranks: Ranks, stop: StopSignals) -> None:
    """Print one line that says what is kept; of several processes the first one does."""
    why = 'stopped'
    if ranks.world_size > 1 and stop.exit_code == 128 + signal.SIGTERM:
        # Who was not stopped but lost another process may be any of them.
        why = (
            f'process {ranks.rank} of {ranks.world_size}: stopped by SIGTERM, which torchrun '
            'sends when it is stopped or another process has ended'
        )
    elif ranks.rank != 0:
        return
    print(
        f'gmskip: {why}; {folder} keeps what was found: the same command goes on',
        file=sys.stderr,
    )


def calibrate_all(
    args: argparse.Namespace,
    settings: CalibrationSettings,
    targets: list[Any],
    folder: Path,
    ranks: Ranks,
    bars: ProgressBars,
    stop: StopSignals,
) -> None:
    """Load what is needed once, and calibrate for every target."""
    from gmskip_ros.calibration.run import check
    from gmskip_ros.datasets import open_dataset
    from gmskip_ros.vlm import Stopped

    def show_step(step: str) -> None:
        if stop.is_set():
            raise Stopped('stopped while the model was loaded')
        bars.status(step)

    dataset = open_dataset(args.dataset, split=args.split, captions=args.captions)
    test_dataset = None
    if args.test_split is not None:
        test_dataset = open_dataset(args.dataset, split=args.test_split, captions=args.captions)
    make_folder(folder)
    if ranks.rank == 0:
        for one in filter(None, (dataset, test_dataset)):
            for line in (*one.warnings, *one.notes):
                bars.print(f'gmskip: {one.name}: {line}')
    for target in targets:  # all of them before hours are spent on the first one
        check(dataset, replace(settings, target=target), test_dataset)
    vlm = load_model(args, ranks, show_step)
    for target in targets:
        into = folder if len(targets) == 1 else folder / file_stem(target)
        of_target = replace(settings, target=target)
        calibrate_one(args, of_target, vlm, dataset, test_dataset, into, ranks, bars, stop)
    ranks.disconnect()


def calibrate_one(
    args: argparse.Namespace,
    settings: CalibrationSettings,
    vlm: Vlm,
    dataset: Dataset,
    test_dataset: Dataset | None,
    folder: Path,
    ranks: Ranks,
    bars: ProgressBars,
    stop: StopSignals,
) -> None:
    """Calibrate for one target with every seed; write and print the first seed's list."""
    from gmskip_ros.calibration.result import stability
    from gmskip_ros.calibration.run import calibrate
    from gmskip_ros.files import remove_leftovers

    found: list[Calibration] = []
    for number in range(args.seeds):
        seed = settings.seed + number
        bars.begin(settings.target, None if args.seeds == 1 else seed)
        into = folder
        of_seed = settings
        if number:
            into = folder / f'seed_{seed}'
            search = replace(settings.search, seed=seed)
            of_seed = replace(settings, seed=seed, test_images=0, search=search)
        make_folder(into)
        if ranks.rank == 0:
            remove_leftovers(into)
        found.append(
            calibrate(
                vlm,
                dataset,
                of_seed,
                into,
                test_dataset=test_dataset,
                ranks=ranks,
                listener=bars,
                should_stop=stop.is_set,
            )
        )
        if ranks.rank == 0:
            save(found[-1], into)
    bars.stop()
    if ranks.rank != 0:
        return
    if len(found) > 1:
        found[0].result['stability'] = stability(found)
    write_and_print(found[0], folder)


def save(calibration: Calibration, folder: Path) -> Path:
    """Write the skip list, and return its path."""
    from gmskip_ros.skipping import save_skip_list

    skip_list = calibration.skip_list
    stem = file_stem(skip_list.task, skip_list.target)
    path = folder / f'{stem}.skip.yaml'
    save_skip_list(skip_list, path)
    return path


def write_and_print(calibration: Calibration, folder: Path) -> None:
    """Write figures, pictures and page, and print the table."""
    from rich.console import Console

    from gmskip_ros.files import write_atomically
    from gmskip_ros.report.calibration_report import calibration_table, write_calibration_report

    path = save(calibration, folder)
    try:
        content = json.dumps(calibration.result, indent=1, ensure_ascii=False) + '\n'
        write_atomically(folder / 'calibration.json', content.encode('utf-8', 'backslashreplace'))
        write_calibration_report(calibration.result, folder)
    except OSError as error:
        raise UserError(
            f'{folder}: the report cannot be written ({error.strerror}): make room and start the '
            'same command again'
        ) from error
    console = Console()
    console.print(calibration_table(calibration.result))
    for line in calibration.result['unreadable']:
        print(f'gmskip: unreadable, left out: {line}', file=sys.stderr)
    print(f'skip list: {path}')
    print(f'report: {folder / "report.html"}')


def make_settings(args: argparse.Namespace) -> CalibrationSettings:
    """Return the settings of all targets; options that would do nothing are refused."""
    for option, methods in ONLY_FOR.items():
        if getattr(args, option) not in (None, False) and args.method not in methods:
            name = option.replace('_', '-')
            raise UserError(f'--{name} has no use with --method {args.method}: leave it out')
    if args.exhaustive and args.no_abandon:
        raise UserError('--exhaustive gives up no candidate anyway: leave --no-abandon out')
    for name in ('test_images', 'latency_images'):
        value = getattr(args, name)
        if value is not None and value < 0:
            raise UserError(f'--{name.replace("_", "-")} {value} must be at least 0')
    if args.test_split is not None and args.test_images == 0:
        raise UserError('--test-split has no use with --test-images 0: leave one of them out')
    options = task_options(args)

    from gmskip_ros.calibration.settings import CalibrationSettings, SearchSettings

    intervals: tuple[int, ...] = ()
    method = args.method
    if method == 'fixed-interval':
        intervals = tuple(split_numbers('--interval', args.interval or INTERVALS))
        method = 'gm-skip'
    search = SearchSettings(
        method=method,
        tie_order=args.tie_order or 'backward',
        start=args.start or '0',
        seed=args.seed,
        min_score_ratio=args.min_score_ratio,
        max_sparsity=0.9 if args.max_sparsity is None else args.max_sparsity,
        rounds=args.rounds,
        abandon=not (args.no_abandon or args.exhaustive),
    )
    return CalibrationSettings(
        task=args.task,
        metric=args.metric,
        images=args.images,
        test_images=args.test_images,
        seed=args.seed,
        search=search,
        intervals=intervals,
        exhaustive=args.exhaustive,
        batch_size=args.batch_size,
        memory_gib=args.memory_gib,
        latency_images=args.latency_images,
        command='gmskip ' + shlex.join(args.arguments),
        **options,
    )


if __name__ == '__main__':
    from gmskip_ros.cli.main import main

    sys.exit(main(['calibrate', *sys.argv[1:]]))
