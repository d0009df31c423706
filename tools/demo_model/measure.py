"""Mean scores of skip sets on rendered scenes, over several processes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial

import numpy as np
import torch
from rich.progress import track

from gmskip_ros.datasets.scenes import Scene, render_scene
from gmskip_ros.tasks import make_task
from gmskip_ros.vlm import Vlm, load_vlm

BATCH = 25  # scenes answered together by one process

Score = Callable[[str, str, Scene], float]  # (task, raw answer, scene) -> 0 to 1


@cache
def _load(model: str) -> Vlm:
    torch.set_num_threads(1)
    return load_vlm(model, device='cpu')


def _scores_of_batch(
    skip_sets: Mapping[str, Sequence[Sequence[int]]], score: Score, model: str, first_seed: int
) -> dict[str, np.ndarray]:
    """Return the scores of BATCH scenes by task: float64 (skip sets, BATCH)."""
    vlm = _load(model)
    scenes = [render_scene(first_seed + i) for i in range(BATCH)]
    features = [vlm.encode(scene.image) for scene in scenes]
    scores = {}
    for name, sets in skip_sets.items():
        task = make_task(name)
        scores[name] = np.array(
            [
                [
                    score(name, answer.text, scene)
                    for answer, scene in zip(
                        vlm.answer_batch(
                            features, [task.prompt] * BATCH, skip, task.max_new_tokens
                        ),
                        scenes,
                        strict=True,
                    )
                ]
                for skip in sets
            ]
        )
    return scores


def mean_scores(
    skip_sets: Mapping[str, Sequence[Sequence[int]]],
    score: Score,
    model: str,
    first_seed: int,
    num_scenes: int,
    processes: int,
) -> dict[str, np.ndarray]:
    """Return the mean score of each skip set by task: float64 (skip sets,)."""
    if num_scenes % BATCH:
        raise SystemExit(f'--scenes {num_scenes}: use a multiple of {BATCH}')
    seeds = range(first_seed, first_seed + num_scenes, BATCH)
    with ProcessPoolExecutor(processes) as pool:
        jobs = pool.map(partial(_scores_of_batch, skip_sets, score, model), seeds)
        parts = list(track(jobs, 'answering', total=len(seeds)))
    return {
        name: np.concatenate([part[name] for part in parts], axis=1).mean(axis=1)
        for name in skip_sets
    }
