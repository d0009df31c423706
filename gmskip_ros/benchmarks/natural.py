"""Answers that end where the model ends them, beside Hugging Face's."""

from __future__ import annotations

from typing import Any

from gmskip_ros.benchmarks.conditions import wake_cores
from gmskip_ros.benchmarks.ratios import paired_ratio, percentiles
from gmskip_ros.benchmarks.rivals import RivalProcess
from gmskip_ros.benchmarks.subject import Subject
from gmskip_ros.tasks import TASK_NAMES, make_task

Timed = tuple[float, tuple[int, ...]]  # prefill and decode (ms), tokens without the end's


def measure_natural(
    subject: Subject, rival: RivalProcess | None, rounds: int
) -> list[dict[str, Any]]:
    """Return a row per task: full answers to its prompt, in turns with the rival's.

    Answers that differ from Hugging Face's (near ties in the last bits) are counted and not
    compared: they may have different lengths.
    """
    return [_measure_task(subject, rival, task, rounds) for task in TASK_NAMES]


def _measure_task(
    subject: Subject, rival: RivalProcess | None, task: str, rounds: int
) -> dict[str, Any]:
    own: list[float] = []
    theirs: list[float] = []
    num_tokens = differing = 0
    for number in range(rounds):
        if rival is None:
            own_ms, tokens = _own(subject, task)
        else:
            if number % 2 == 0:
                own_ms, tokens = _own(subject, task)
            rival_ms, rival_tokens = _hugging_face(subject, rival, task)
            if number % 2 == 1:
                own_ms, tokens = _own(subject, task)
            if tokens != rival_tokens:
                differing += 1
                continue
            theirs.append(rival_ms)
        own.append(own_ms)
        num_tokens = len(tokens)
    return {
        'task': task,
        'tokens': num_tokens,
        'differing': differing,
        'own_ms': percentiles(own) if own else None,
        'rival_ms': percentiles(theirs) if theirs else None,
        'ratio': paired_ratio(own, theirs) if theirs else None,
    }


def _own(subject: Subject, task: str) -> Timed:
    limit = make_task(task).max_new_tokens
    wake_cores()
    found = subject.vlm.answer(subject.features, subject.prompts[task], (), limit)
    return found.timing.prefill_ms + found.timing.decode_ms, found.token_ids


def _hugging_face(subject: Subject, rival: RivalProcess, task: str) -> Timed:
    end_ids = subject.vlm.end_ids
    limit = make_task(task).max_new_tokens
    found = rival.answer(subject.input_ids[task], limit, cache='dynamic', end_ids=sorted(end_ids))
    tokens = tuple(token for token in found['token_ids'] if token not in end_ids)
    return found['prefill_ms'] + found['decode_ms'], tokens
