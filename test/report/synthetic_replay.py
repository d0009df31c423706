"""A synthetic run of `gmskip replay`: its replay.json, rows and gallery, without a model."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from gmskip_ros.pipeline.overlay import OverlayAnswer, OverlayTask, draw_overlay
from gmskip_ros.pipeline.rows import FrameRow
from gmskip_ros.report.replay_report import GalleryFrame

GPU = 'NVIDIA H200 (cuda:0, float16)'
CPU = 'AMD EPYC 9554 (cpu, float32)'
MODEL = 'llava-hf/llava-1.5-7b-hf'
TASKS = ('single_object', 'multi_object', 'captioning')
NUM_BLOCKS = 32
START_NS = 1_793_448_000_250_000_000
# The order in which blocks were removed; an operating point is a number of them.
REMOVED = {
    'single_object': (29, 16, 27, 21, 24, 14, 25, 19, 30, 23, 11, 26, 22, 18, 20, 28),
    'multi_object': (26, 15, 29, 22, 24, 18, 21, 27, 13, 23),
    'captioning': (25, 27, 22, 18, 29, 20, 23),
}
LENGTHS = {
    'high_performance': {'single_object': 11, 'multi_object': 9, 'captioning': 3},
    'high_sparsity': {'single_object': 16, 'multi_object': 10, 'captioning': 7},
}
SAME = {
    'single_object': ('car', 'truck', 'pedestrian', 'traffic light', 'bus', 'bicycle'),
    'multi_object': ('car, pedestrian', 'car', 'truck, car, traffic light', 'bus, bicycle, car'),
    'captioning': (
        'A red bus drives along a wet street while two pedestrians wait near a traffic light.',
        'A white truck stands on the right side of a road with trees in the background.',
        'Several cars drive on a highway on a sunny day.',
    ),
}
OTHER = {
    'single_object': 'unknown',
    'multi_object': 'bus',
    'captioning': 'A truck drives on a road past a house and some trees on a hill.',
}
SAID = {**OTHER, 'single_object': 'A van or a bus'}
PHASES_MS = {'preprocess_ms': 6.0, 'vision_ms': 14.0, 'prefill_ms': 62.0, 'decode_ms': 21.0}


def rows(
    frames: int = 29,
    tasks: Sequence[str] = TASKS,
    points: Sequence[str] = ('high_performance', 'high_sparsity'),
    *,
    machine: str = GPU,
    slower: float = 1.0,
    seed: int = 0,
    model: str = MODEL,
    differing: float = 0.15,
    period_s: float = 1.0,
) -> list[FrameRow]:
    """Return a run's rows in order: frame by frame, skip at each operating point, then full."""
    dice = random.Random(seed)
    made = []
    for frame in range(1, frames + 1):
        stamp_ns = START_NS + round((frame - 1) * period_s * 1e9) + dice.randrange(40_000_000)
        shared = {
            name: round(slower * PHASES_MS[name] * dice.lognormvariate(0, 0.12), 3)
            for name in ('preprocess_ms', 'vision_ms')
        }
        said = {task: dice.choice(SAME[task]) for task in tasks}
        for point in points:
            for task in tasks:
                blocks = blocks_of(task, point)
                chance = differing * (2.0 if point == 'high_sparsity' else 1.0)
                # The middle of the drive is harder.
                if frames / 2 < frame < 0.6 * frames:
                    chance *= 3
                agrees = dice.random() >= chance
                answer = said[task] if agrees else OTHER[task]
                raw = said[task] if agrees else SAID[task]
                made.append(
                    _row(
                        dice,
                        frame,
                        stamp_ns,
                        task,
                        'skip',
                        point,
                        answer,
                        raw,
                        shared,
                        blocks,
                        agrees,
                        machine,
                        slower,
                        model,
                    )
                )
        for task in tasks:
            made.append(
                _row(
                    dice,
                    frame,
                    stamp_ns,
                    task,
                    'full',
                    '0',
                    said[task],
                    said[task],
                    shared,
                    (),
                    None,
                    machine,
                    slower,
                    model,
                )
            )
    return made


def blocks_of(task: str, point: str) -> tuple[int, ...]:
    """Return the blocks that a task's list skips at an operating point, a name or a number."""
    length = LENGTHS[point][task] if point in LENGTHS else int(point)
    return REMOVED[task][:length]


def _row(
    dice: random.Random,
    frame: int,
    stamp_ns: int,
    task: str,
    branch: str,
    point: str,
    answer: str,
    raw: str,
    shared: dict[str, float],
    blocks: tuple[int, ...],
    agrees: bool | None,
    machine: str,
    slower: float,
    model: str,
) -> FrameRow:
    tokens = max(1, len(raw) // 4)
    run = slower * (1 - 0.95 * len(blocks) / NUM_BLOCKS)
    prefill_ms = round(run * PHASES_MS['prefill_ms'] * dice.lognormvariate(0, 0.05), 3)
    decode_ms = round(run * PHASES_MS['decode_ms'] * (tokens - 1) * dice.lognormvariate(0, 0.1), 3)
    return FrameRow(
        frame=frame,
        stamp_ns=stamp_ns,
        task=task,
        branch=branch,
        operating_point=point,
        answer=answer,
        raw_text=raw,
        tokens=tokens,
        **shared,
        prefill_ms=prefill_ms,
        decode_ms=decode_ms,
        total_ms=round(sum(shared.values()) + prefill_ms + decode_ms, 3),
        vision_shared=True,
        in_vocabulary=answer != 'unknown',
        sparsity=round(len(blocks) / NUM_BLOCKS, 3),
        skipped_blocks=blocks,
        agree=agrees,
        jaccard=None if agrees is None or task != 'multi_object' else (1.0 if agrees else 0.333),
        rouge_l=None if agrees is None or task != 'captioning' else (1.0 if agrees else 0.412),
        model=model,
        machine=machine,
    )


def run(
    answered: int = 29,
    asked: Sequence[str] = TASKS,
    points: Sequence[str] = ('high_performance', 'high_sparsity'),
    **changes: Any,
) -> dict[str, Any]:
    """Return the content of replay.json for such rows."""
    return {
        'format': 'gmskip/replay/1',
        'complete': True,
        'stopped_by': '',
        'created': '2026-11-20T12:00:00Z',
        'command': 'gmskip replay drive_07 --model llava-hf/llava-1.5-7b-hf --device cuda:0',
        'source': {
            'bag': '/data/drives/2026-10-31/drive_07',
            'topic': '/camera/front/image_rect_color',
            'message_type': 'sensor_msgs/msg/CompressedImage',
            'storage': 'mcap',
            'start_s': 0.0,
            'duration_s': None,
            'limit': None,
            'rate_hz': 1.0,
        },
        'model': MODEL,
        'device': 'cuda:0',
        'dtype': 'float16',
        'num_blocks': NUM_BLOCKS,
        'machine': {'cpu': 'AMD EPYC 9554', 'cores': 16, 'gpu': 'NVIDIA H200', 'system': 'Linux'},
        'software': {'gmskip_ros': '0.1.0', 'torch': '2.13.0'},
        'tasks': {
            task: {'prompt': f'Prompt of {task}?', 'max_new_tokens': 8, 'labels': ['car', 'bus']}
            for task in asked
        },
        'skip_sets': [
            {
                'task': task,
                'operating_point': point,
                'blocks': list(blocks_of(task, point)),
                'skip_list': f'gmskip_{task}',
            }
            for task in asked
            for point in points
        ],
        'frames': {
            'in_bag': 10 * answered + 11,
            'due': answered + 1,
            'answered': answered,
            'gated': 9 * answered + 10,
            'out_of_order': 0,
            'undecodable': 1,
            'resets': 0,
        },
        'problems': ['frame 17 (stamp 1793448016.25): a broken JPEG; skipped'],
        'gallery': {'disagreeing': 12, 'shown': 12},
        **changes,
    }


def gallery(frame_rows: Sequence[FrameRow], limit: int = 12) -> list[GalleryFrame]:
    """Return the first frames on which the branches disagree, with their overlays."""
    shown = {row.frame: row.stamp_ns for row in frame_rows if row.agree is False}
    pictures = []
    for frame, stamp_ns in list(shown.items())[:limit]:
        of_frame = [row for row in frame_rows if row.frame == frame]
        drawn = draw_overlay(road(frame), overlay_tasks(of_frame), title=f'frame {frame}')
        jpeg = cv2.imencode('.jpg', drawn[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 70])[1].tobytes()
        pictures.append(GalleryFrame(frame, stamp_ns, jpeg))
    return pictures


def overlay_tasks(of_frame: Sequence[FrameRow]) -> list[OverlayTask]:
    """Return the contents of a frame's overlay: the first operating point of each task."""
    tasks = []
    for task in dict.fromkeys(row.task for row in of_frame):
        skip, full = (
            next(row for row in of_frame if (row.task, row.branch) == (task, branch))
            for branch in ('skip', 'full')
        )
        answers = [
            OverlayAnswer(task, row.branch, row.raw_text, row.total_ms, row.in_vocabulary)
            for row in (skip, full)
        ]
        tasks.append(OverlayTask(task, *answers, skip.agree, skip.skipped_blocks, NUM_BLOCKS))
    return tasks


def road(seed: int = 0, height: int = 480, width: int = 640) -> np.ndarray:
    """Return an image of a sky, a road and some boxes, uint8 RGB (height, width, 3)."""
    dice = random.Random(seed)
    image = np.empty((height, width, 3), np.uint8)
    horizon = round(height * 0.48)
    image[:horizon] = np.linspace((120, 160, 205), (205, 215, 225), horizon)[:, None]
    image[horizon:] = (88, 112, 74)
    road_shape = [(0.46, 0.48), (0.54, 0.48), (1.0, 1.0), (0.0, 1.0)]
    corners = np.array([(x * width, y * height) for x, y in road_shape], np.int32)
    cv2.fillPoly(image, [corners], (92, 93, 98))
    line = np.array([(0.5, 0.5), (0.52, 1.0), (0.48, 1.0)]) * (width, height)
    cv2.fillPoly(image, [line.astype(np.int32)], (235, 235, 225))
    for _ in range(4):
        left, size = dice.uniform(0.05, 0.85), dice.uniform(0.05, 0.14)
        low = (round(left * width), round((0.5 + size) * height))
        high = (round((left + size) * width), round(0.5 * height))
        cv2.rectangle(image, low, high, [dice.randrange(40, 230) for _ in range(3)], -1)
    return image
