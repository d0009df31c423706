"""What a vehicle pays for a frame: preprocess, vision, and both branches' answers to all tasks."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gmskip_ros.benchmarks.ratios import percentiles
from gmskip_ros.benchmarks.subject import FRAME_LENGTHS, Subject
from gmskip_ros.errors import UserError

if TYPE_CHECKING:
    from gmskip_ros.vlm import ImageFeatures

ISOLATED = 'isolated'  # every answer on its own
FULL = 'full'  # the branch that skips nothing
PERIOD_S = 1.0
PACED_LENGTH = FRAME_LENGTHS['single_object']


def measure_frames(
    subject: Subject,
    sets: Mapping[str, Mapping[str, Sequence[int]]],
    rounds: int,
    on_step: Callable[[], None] = lambda: None,
) -> list[dict[str, Any]]:
    """Return a row per skip set and timing mode: percentiles of the parts and of the whole frame.

    A frame is encoded once; then branches answer all tasks, with answers of FRAME_LENGTHS: the full
    branch, which is the same for every set, and the skip branch with each set, in an order that is
    reversed from frame to frame. The parts sum to the whole.
    """
    branches: dict[str, Mapping[str, Sequence[int]]] = {**sets, FULL: {}}
    frames: dict[str, list[dict[str, float]]] = {name: [] for name in sets}
    for number in range(rounds + 1):
        features = subject.vlm.encode(subject.frame)
        times_ms: dict[str, float] = {}
        for name in list(branches) if number % 2 == 0 else reversed(list(branches)):
            times_ms[name] = _answer_all(subject, features, branches[name])
            on_step()
        for name in sets if number > 0 else ():  # the first is the warm-up
            parts = {
                'preprocess': features.preprocess_ms,
                'vision': features.vision_ms,
                'skip': times_ms[name],
                'full': times_ms[FULL],
            }
            frames[name].append({**parts, 'whole': sum(parts.values())})
    rows = []
    for name, measured in frames.items():
        parts_ms = {part: percentiles([f[part] for f in measured]) for part in measured[0]}
        blocks = {task: list(skipped) for task, skipped in sets[name].items()}
        rows.append(
            {'skip_sets': name, 'timing': ISOLATED, 'skipped': blocks, 'parts_ms': parts_ms}
        )
    return rows


def _answer_all(
    subject: Subject, features: ImageFeatures, skipped: Mapping[str, Sequence[int]]
) -> float:
    """Answer all tasks of one branch; return the milliseconds without those of the image."""
    total_ms = 0.0
    for task, length in FRAME_LENGTHS.items():
        blocks = skipped.get(task, ())
        answer = subject.vlm.answer(features, subject.prompts[task], blocks, forced_length=length)
        check_count(len(answer.token_ids), length, f'own, {task}')
        total_ms += answer.timing.total_ms - features.preprocess_ms - features.vision_ms
    return total_ms


def measure_paced(
    subject: Subject, frames: int, on_step: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    """Return the times of full one-word answers begun on every full second, as a vehicle asks.

    A pause lets caches and clocks cool down, which a hot loop hides. `late`: how many could not
    begin on the next second.
    """
    times_ms: list[float] = []
    late = 0
    due = time.perf_counter()
    for _ in range(frames):
        time.sleep(max(0.0, due - time.perf_counter()))
        answer = subject.vlm.answer(subject.frame, subject.prompt, forced_length=PACED_LENGTH)
        check_count(len(answer.token_ids), PACED_LENGTH, 'own, paced')
        times_ms.append(answer.timing.total_ms)
        due += PERIOD_S
        now = time.perf_counter()
        if now > due:
            late += 1
            due = now
        on_step()
    return {'period_s': PERIOD_S, 'tokens': PACED_LENGTH, 'late': late, 'ms': percentiles(times_ms)}


def check_count(found: int, wanted: int, who: str) -> None:
    """Raise UserError unless an answer has the tokens that it was asked for."""
    if found != wanted:
        raise UserError(
            f'{who}: an answer has {found} tokens, {wanted} were asked for: its times cannot be '
            'compared; report this as a fault'
        )
