"""Measure the demo model on held-out scenes, optionally with each block skipped alone.

python tools/demo_model/evaluate.py                # the three tasks, 1,000 scenes each
python tools/demo_model/evaluate.py --each-block   # and the loss for each block (half an hour)
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from architecture import NUM_BLOCKS
from measure import mean_scores
from rich.console import Console
from rich.table import Table
from training_scenes import TEST_SEED

from gmskip_ros.datasets.scenes import Scene
from gmskip_ros.tasks import TASK_NAMES, make_task, set_f1

MEANING = {
    'single_object': 'accuracy',
    'multi_object': 'set F1',
    'captioning': 'all objects correct',
}


def score(name: str, raw_text: str, scene: Scene) -> float:
    """Return one answer's score, 0 to 1, as described by MEANING."""
    answer = make_task(name, labels=['scenes']).parse(raw_text)
    if name == 'single_object':
        return float(answer.text == scene.main_object)
    if name == 'multi_object':
        return set_f1(answer.labels, frozenset(scene.labels))
    return float(answer.labels == frozenset(scene.labels))


def main() -> None:
    """Print the tables, and write them with --json."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--scenes', type=int, default=1000)
    parser.add_argument('--each-block', action='store_true')
    parser.add_argument('--model', default='demo')
    parser.add_argument('--processes', type=int, default=2, help='one per core')
    parser.add_argument('--json', type=Path, help='also write the figures to this file')
    args = parser.parse_args()

    skip_sets: list[list[int]] = [[]]
    if args.each_block:
        skip_sets += [[block] for block in range(NUM_BLOCKS)]
    means = mean_scores(
        dict.fromkeys(TASK_NAMES, skip_sets),
        score,
        args.model,
        TEST_SEED,
        args.scenes,
        args.processes,
    )

    console = Console()
    table = Table('task', 'score', 'mean', title=f'{args.model}, {args.scenes} held-out scenes')
    for name in TASK_NAMES:
        table.add_row(name, MEANING[name], f'{means[name][0]:.3f}')
    console.print(table)
    if args.each_block:
        table = Table('block', *TASK_NAMES, title='points lost when one block is skipped')
        lost = {name: 100 * (means[name][0] - means[name][1:]) for name in TASK_NAMES}
        for block in range(NUM_BLOCKS):
            table.add_row(str(block), *(f'{lost[name][block]:.1f}' for name in TASK_NAMES))
        console.print(table)
        worst = np.max([lost[name] for name in TASK_NAMES], axis=0)
        console.print(
            f'{(worst > 2).sum()} blocks cost more than 2 points on some task, '
            f'{(worst < 0.5).sum()} less than half a point on every task'
        )
    if args.json:
        figures = {name: means[name].tolist() for name in TASK_NAMES}
        content = {'scenes': args.scenes, 'skip_sets': skip_sets, 'scores': figures}
        args.json.write_text(json.dumps(content, indent=1) + '\n')


if __name__ == '__main__':
    main()
