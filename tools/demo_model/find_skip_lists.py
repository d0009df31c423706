"""Find the demo model's skip lists: `python tools/demo_model/find_skip_lists.py`.

One-shot ranking on calibration scenes: every block is left out alone, the blocks are ranked by the
score without them (ties: the deepest first) and removed in that order while the score is at least
MIN_SCORE_RATIO of the full model's. Interim: the greedy search of GM-Skip ranks anew after every
removal.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
from architecture import NUM_BLOCKS
from measure import mean_scores
from train import REPOSITORY
from training_scenes import CALIBRATION_SEED

from gmskip_ros.datasets.scenes import Scene, render_scene
from gmskip_ros.skipping import Prompt, Removal, SkipList, save_skip_list
from gmskip_ros.tasks import TASK_NAMES, make_task, set_f1
from gmskip_ros.vlm import load_vlm

MIN_SCORE_RATIO = 0.95
MAX_REMOVED = 28
# Not the paper's set precision for several objects: naming one surely and no other is best for it.
METRICS = {'single_object': 'accuracy', 'multi_object': 'set_f1', 'captioning': 'rouge_l'}


def score(name: str, raw_text: str, scene: Scene) -> float:
    """Return one answer's score in the metric of METRICS."""
    task = make_task(name, labels=['scenes'])
    answer = task.parse(raw_text)
    if name == 'multi_object':
        return set_f1(answer.labels, frozenset(scene.labels))
    return task.score(answer, scene.main_object if name == 'single_object' else scene.caption)


def main() -> None:
    """Write demo_<task>.skip.yaml for every task asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--scenes', type=int, default=200)
    parser.add_argument('--tasks', nargs='+', choices=TASK_NAMES, default=TASK_NAMES)
    parser.add_argument('--processes', type=int, default=2, help='one per core')
    parser.add_argument('--out', type=Path, default=REPOSITORY / 'gmskip_ros/assets/skip_lists')
    args = parser.parse_args()

    def measured(skip_sets: dict[str, list[list[int]]]) -> dict[str, np.ndarray]:
        return mean_scores(
            skip_sets, score, 'demo', CALIBRATION_SEED, args.scenes, args.processes
        )

    full_and_alone: list[list[int]] = [[], *([block] for block in range(NUM_BLOCKS))]
    alone = measured({name: full_and_alone for name in args.tasks})
    ranking = {
        name: sorted(range(NUM_BLOCKS), key=lambda block: (-scores[block + 1], -block))
        for name, scores in alone.items()
    }
    prefixes = {
        name: [order[: n + 1] for n in range(MAX_REMOVED)] for name, order in ranking.items()
    }
    trajectories = measured(prefixes)
    pixels = hashlib.sha256()
    for index in range(args.scenes):
        pixels.update(render_scene(CALIBRATION_SEED + index).image.tobytes())

    vlm = load_vlm('demo', device='cpu')
    software = {
        name: importlib.metadata.version(name) for name in ('gmskip_ros', 'torch', 'transformers')
    }
    for name in args.tasks:
        full = float(alone[name][0])
        scores = trajectories[name].tolist()
        good = [score >= MIN_SCORE_RATIO * full for score in scores]
        kept = good.index(False) if False in good else len(good)
        task = make_task(name)
        skip_list = SkipList(
            model='demo',
            text_model_type=vlm.text_model_type,
            num_blocks=vlm.num_blocks,
            task=name,
            method='one-shot',
            metric=METRICS[name],
            prompt=Prompt(task.prompt, vlm.template_sha256, task.max_new_tokens),
            dtype=vlm.dtype,
            min_score_ratio=MIN_SCORE_RATIO,
            full_score=full,
            removed=tuple(
                Removal(block, value)
                for block, value in zip(ranking[name][:kept], scores[:kept], strict=True)
            ),
            calibration={
                'dataset': 'rendered driving scenes',
                'images': args.scenes,
                'sha256': pixels.hexdigest(),
                'seed': CALIBRATION_SEED,
            },
            created=datetime.now(timezone.utc).strftime('%Y-%m-%dT%H:%M:%SZ'),
            software=software,
            provenance='tools/demo_model/find_skip_lists.py: blocks ranked once by the score '
            'without each of them, removed in that order',
        )
        save_skip_list(skip_list, args.out / f'demo_{name}.skip.yaml')
        print(f'{name}: full {full:.3f}, removed {[r.block for r in skip_list.removed]}, '
              f'{dict(skip_list.operating_points or {})}')  # fmt: skip


if __name__ == '__main__':
    main()
