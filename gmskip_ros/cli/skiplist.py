"""`gmskip skiplist`: show a skip list, or select from its scores again."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gmskip_ros.cli.options import share
from gmskip_ros.errors import UserError
from gmskip_ros.skipping import PHASES
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
        'reselect', help='write what a search with a different --min-score-ratio would have found'
    )
    for action_parser in (show_parser, reselect_parser):
        action_parser.add_argument('file', help='a *.skip.yaml file, or the name of a shipped list')
    reselect_parser.add_argument(
        '--min-score-ratio',
        type=share,
        required=True,
        metavar='R',
        help="least share of the full model's score; at least the list's own ratio, if the search "
        'stopped at that',
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
        'quantization': skip_list.quantization,
        'prompt': skip_list.prompt.text,
        'method': skip_list.method,
        'phases': None if set(skip_list.phases) == set(PHASES) else ', '.join(skip_list.phases),
        'kv': skip_list.kv,
        'image_kv': skip_list.image_kv,
        'protected': _protected(skip_list),
        'metric': skip_list.metric,
        'min score ratio': skip_list.min_score_ratio,
        **_baselines(skip_list),
        'calibrated on': ', '.join(
            f'{name} {value}' for name, value in (skip_list.calibration or {}).items()
        ),
        'created': skip_list.created,
        'provenance': skip_list.provenance,
    }
    for name, value in about.items():
        if value not in (None, ''):
            console.print(f'{name}: {value}', markup=False, highlight=False, soft_wrap=True)
    for warning in skip_list.cautions:
        console.print(f'warning: {warning}', markup=False, highlight=False, soft_wrap=True)
    points: dict[int, list[str]] = {}
    for name, length in (skip_list.operating_points or {}).items():
        points.setdefault(length, []).append(name)
    table = Table()
    blocks = [removal.block for removal in skip_list.removed]
    length_title = 'blocks skipped' if len(set(blocks)) == len(blocks) else 'removals'
    for name in (length_title, 'sparsity', 'block' if skip_list.nested else 'which', 'score'):
        table.add_column(name, justify='right')
    table.add_column('operating point')
    has_phases = any(removal.phases for removal in skip_list.removed)
    if has_phases:
        table.add_column('phases')
    # Sets without scores are those of version 1: calibration.json has the scores.
    no_score = 'not published' if skip_list.nested else 'not in the list'
    for length, block, score in rows_of(skip_list):
        sparsity = f'{100 * len(skip_list.blocks_at(length)) / skip_list.num_blocks:.1f} %'
        phases = ''
        if has_phases and length:
            phases = ', '.join(skip_list.removed[length - 1].phases or skip_list.phases)
        table.add_row(
            str(length),
            sparsity,
            block,
            no_score if score is None else f'{score:.4f}',
            ', '.join(points.get(length, [])),
            *([phases] if has_phases else []),
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
            score = skip_list.set_scores.get(length)
            rows.append((length, ', '.join(map(str, blocks)), score))
    return rows


def _protected(skip_list: SkipList) -> str | None:
    if skip_list.protect is None:
        return None
    first, last = skip_list.protect
    return f'first {first}, last {last} blocks'


def _baselines(skip_list: SkipList) -> dict[str, str]:
    """Return the lines of the answers that need no model."""
    found = {}
    baselines = skip_list.baselines
    if baselines is not None and baselines.constant is not None:
        constant = baselines.constant
        found['best constant answer'] = f'{constant.answer!r} scores {constant.score:.4f}'
    if baselines is not None and baselines.empty is not None:
        found['empty answer'] = f'scores {baselines.empty:.4f}'
    return found
