"""Scenes rendered before training: input pixels, answers, and the classes in each patch."""

from __future__ import annotations

import json
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import cv2
import numpy as np
from architecture import IMAGE_SIZE, PATCHES
from PIL import Image
from rich.progress import track

from gmskip_ros.datasets.scenes import CLASSES, Scene, render_scene

# These ranges of seeds are used for nothing else: a held-out scene is never a training scene. The
# skip lists are calibrated on the seeds from 20,000,000 on (Makefile).
TRAIN_SEED, TEST_SEED = 10_000_000, 30_000_000
SIZES = ((640, 480), (320, 240), (426, 240), (320, 320), (480, 270))  # cameras differ
CHUNK = 500


def answers(scene: Scene) -> dict[str, str]:
    """Return the correct answer to each task's prompt."""
    names = [name.replace('_', ' ') for name in scene.labels]
    return {
        'single_object': scene.main_object.replace('_', ' '),
        'multi_object': ', '.join(names),
        'captioning': scene.caption,
    }


def patch_shares(scene: Scene) -> np.ndarray:
    """Return how much of each patch each class covers: uint8 (PATCHES, PATCHES, classes)."""
    shares = np.zeros((PATCHES, PATCHES, len(CLASSES)), np.uint8)
    for number, thing in enumerate(scene.objects, start=1):
        mask = (scene.instances == number).astype(np.float32) * 255
        small = cv2.resize(mask, (PATCHES, PATCHES), interpolation=cv2.INTER_AREA)
        shares[..., CLASSES.index(thing.name)] = small.astype(np.uint8)
    return shares


def _render_chunk(folder: Path, chunk: int) -> None:
    path = folder / f'{chunk:04d}.npz'
    if path.exists():
        return
    images, patches, texts = [], [], []
    for index in range(chunk * CHUNK, (chunk + 1) * CHUNK):
        scene = render_scene(TRAIN_SEED + index, *SIZES[index % len(SIZES)])
        resized = Image.fromarray(scene.image).resize((IMAGE_SIZE,) * 2, Image.Resampling.BICUBIC)
        images.append(np.asarray(resized))
        patches.append(patch_shares(scene))
        texts.append(json.dumps(answers(scene)))
    aside = path.with_suffix('.part')
    with aside.open('wb') as file:
        np.savez(file, images=np.stack(images), patches=np.stack(patches), texts=np.array(texts))
    aside.replace(path)


def render_training_scenes(folder: Path, count: int, processes: int) -> None:
    """Render `count` scenes into `folder`; scenes of an earlier run are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    chunks = range(-(-count // CHUNK))
    with ProcessPoolExecutor(processes) as pool:
        jobs = [pool.submit(_render_chunk, folder, chunk) for chunk in chunks]
        for job in track(jobs, 'rendering scenes'):
            job.result()


def load_training_scenes(
    folder: Path, count: int
) -> tuple[np.ndarray, np.ndarray, list[dict[str, str]]]:
    """Return (images uint8 (N, S, S, 3), patch shares uint8 (N, P, P, classes), answers)."""
    loaded = [np.load(folder / f'{chunk:04d}.npz') for chunk in range(-(-count // CHUNK))]
    images = np.concatenate([part['images'] for part in loaded])[:count]
    patches = np.concatenate([part['patches'] for part in loaded])[:count]
    texts = np.concatenate([part['texts'] for part in loaded])[:count]
    return images, patches, [json.loads(text) for text in texts]
