"""`gmskip skiplist`: show a skip list, or select from its scores again."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gmskip_ros.errors import UserError
from gmskip_ros.skipping.skip_list import reselect

if TYPE_CHECKING:
    from gmskip_ros.skipping import SkipList


def add_parser(subparsers: Any) -> None:
    """Add the command and its options to `gmskip`."""
    parser = subparsers.add_parser(
        'skiplist', help='show a skip list, or select from its scores again'
    )
    actions = parser.add_subparsers(dest='action', required=True, metavar='action')
    show_parser = actions.add_parser('show', help='print a skip list as a table')
    show_parser.set_defaults(func=run_show)
    reselect_parser = actions.add_parser(
        'reselect', help='write what a search with a higher --min-score-ratio would have found'
    )
    for action_parser in (show_parser, reselect_parser):
        action_parser.add_argument('file', help='a *.skip.yaml file, or the name of a shipped list')
    reselect_parser.add_argument(
        '--min-score-ratio',
        type=float,
        required=True,
        metavar='R',
        help="least share of the full model's score; at least the list's own ratio",
    )
    reselect_parser.add_argument(
        '--out', required=True, metavar='FILE', help='file for the new list'
    )
    reselect_parser.set_defaults(func=run_reselect)


def run_show(args: argparse.Namespace) -> int:
    """Print the list and return 0."""
    from gmskip_ros.skipping import load_skip_list

    print_skip_list(load_skip_list(args.file))
    return 0


def run_reselect(args: argparse.Namespace) -> int:
    """Write the new list, print it, and return 0."""
    from gmskip_ros.skipping import load_skip_list, save_skip_list

    skip_list = load_skip_list(args.file)
    if Path(args.out).expanduser().resolve() == Path(args.file).expanduser().resolve():
        raise UserError(
            f'--out {args.out}: this is the list itself, and the blocks cut from it would be lost: '
            'give a different file'
        )
    chosen = reselect(skip_list, args.min_score_ratio, args.file)
    save_skip_list(chosen, args.out)
    print_skip_list(chosen)
    print(f'skip list: {args.out}')
    return 0


def print_skip_list(skip_list: SkipList) -> None:
    """Print where a list comes from, and its blocks as a table."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    about = {
        'model': f'{skip_list.model}, {skip_list.num_blocks} blocks',
        'task': ' of '.join(filter(None, (skip_list.task, skip_list.target))),
        'prompt': skip_list.prompt.text,
        'method': skip_list.method,
        'phases': None if len(skip_list.phases) == 2 else ', '.join(skip_list.phases),
        'metric': skip_list.metric,
        'min score ratio': skip_list.min_score_ratio,
        'calibrated on': ', '.join(
            f'{name} {value}' for name, value in (skip_list.calibration or {}).items()
        ),
        'created': skip_list.created,
        'provenance': skip_list.provenance,
    }
    for name, value in about.items():
        if value not in (None, ''):
            console.print(f'{name}: {value}', markup=False, highlight=False, soft_wrap=True)
    points: dict[int, list[str]] = {}
    for name, length in (skip_list.operating_points or {}).items():
        points.setdefault(length, []).append(name)
    table = Table()
    for name in ('blocks skipped', 'sparsity', 'block' if skip_list.nested else 'which', 'score'):
        table.add_column(name, justify='right')
    table.add_column('operating point')
    # A list of sets records no scores: calibration.json has them.
    no_score = 'not published' if skip_list.nested else 'not in the list'
    for length, block, score in rows_of(skip_list):
        sparsity = f'{100 * length / skip_list.num_blocks:.1f} %'
        table.add_row(
            str(length),
            sparsity,
            block,
            no_score if score is None else f'{score:.4f}',
            ', '.join(points.get(length, [])),
        )
    console.print(table)


def rows_of(skip_list: SkipList) -> list[tuple[int, str, float | None]]:
    """Return each prefix's (or set's) length, the block that it adds (or all), and its score."""
    rows: list[tuple[int, str, float | None]] = [(0, '', skip_list.full_score)]
    if skip_list.nested:
        for length, removal in enumerate(skip_list.removed, start=1):
            rows.append((length, str(removal.block), removal.score))
    else:
        for length, blocks in sorted(skip_list.sets.items()):
            rows.append((length, ', '.join(map(str, blocks)), None))
    return rows
