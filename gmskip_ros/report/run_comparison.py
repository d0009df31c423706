"""Comparison of two runs that differ in skip list, machine or model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from gmskip_ros.pipeline.rows import SHARED, FrameRow
from gmskip_ros.tasks import caption_tokens, jaccard, rouge_l
from gmskip_ros.tasks.normalisation import normalise

FORMAT = 'gmskip/run-comparison/1'
CHANGE_FIELDS = (
    'stamp_ns',
    'frame_a',
    'frame_b',
    'task',
    'branch',
    'operating_point_a',
    'operating_point_b',
    'answer_a',
    'answer_b',
    'raw_text_a',
    'raw_text_b',
)

Key = tuple[int, int]  # a frame: its stamp, and how often that stamp came before
Answers = dict[Key, FrameRow]
GroupName = tuple[str, str, str]  # task, branch, operating point


def compare_runs(a: Sequence[FrameRow], b: Sequence[FrameRow]) -> dict[str, Any]:
    """Return what two runs have in common and where they differ, as plain JSON values.

    Rows are paired by stamp, task, branch and operating point. Where a task's skip branch has a
    single operating point in each run and the two differ, they are paired ('paired_points').

    - 'runs': models, machines and frames of 'a' and 'b'; 'frames': how many are in one or both.
    - 'differences': settings that differ, each with 'what', 'a' and 'b'.
    - 'unpaired': task, branch and operating point that only one run has.
    - 'groups': per task, branch and operating point
      - 'compared': number of frames; 'same': on how many the answers are equal; 'same_share'; and
        their similarity: 'mean_jaccard' (multi_object), 'mean_rouge_l' (captioning; of b against
        a). Answers are compared by label, by set, by raw text; outside the vocabulary by words.
      - for skip, on the frames where agreement with full is known in both: 'agreement_a' and
        'agreement_b'; 'agreement_frames', their number; 'gained' and 'lost', on how many of them
        only b, or only a, agrees.
      - 'skipped_blocks_a', 'skipped_blocks_b', 'machine_a', 'machine_b' (None: several).
      - 'total_ms_a', 'total_ms_b': medians over the compared frames; None for several machines or
        timings. 'time_ratio': median over the frames of a's / b's total time. If machines or
        timings differ, or the timing is shared, it is None and 'no_time_ratio' gives the reason.
    - 'changes': every answer that differs, by stamp (CHANGE_FIELDS).
    """
    groups_a, groups_b = _groups(a), _groups(b)
    pairs = {name: name for name in groups_a if name in groups_b}
    paired_points = []
    for task in dict.fromkeys(row.task for row in a):
        only_a, only_b = _points(groups_a, task), _points(groups_b, task)
        if len(only_a) == len(only_b) == 1 and only_a != only_b:
            pairs[task, 'skip', only_a[0]] = (task, 'skip', only_b[0])
            paired_points.append({'task': task, 'a': only_a[0], 'b': only_b[0]})
    groups, changes = [], []
    in_order = [name for name in groups_a if name in pairs]
    for name_a in in_order:
        name_b = pairs[name_a]
        group, changed = _compare(name_a, name_b, groups_a[name_a], groups_b[name_b])
        groups.append(group)
        changes += changed
    frames_a, frames_b = (
        {key for answers in groups.values() for key in answers} for groups in (groups_a, groups_b)
    )
    return {
        'format': FORMAT,
        'runs': {'a': _about(a, frames_a), 'b': _about(b, frames_b)},
        'frames': {
            'only_a': len(frames_a - frames_b),
            'only_b': len(frames_b - frames_a),
            'both': len(frames_a & frames_b),
        },
        'differences': _differences(a, b, groups),
        'paired_points': paired_points,
        'unpaired': [
            {'task': task, 'branch': branch, 'operating_point': point, 'only_in': run}
            for run, names, others in (
                ('a', groups_a, pairs.keys()),
                ('b', groups_b, pairs.values()),
            )
            for task, branch, point in names
            if (task, branch, point) not in others
        ],
        'groups': groups,
        'changes': sorted(changes, key=lambda change: change['stamp_ns']),
    }


def _groups(rows: Iterable[FrameRow]) -> dict[GroupName, Answers]:
    """Return the answers by task, branch and operating point; full before skip."""
    groups: dict[GroupName, Answers] = {}
    seen: Counter[tuple[GroupName, int]] = Counter()
    for row in rows:
        name = (row.task, row.branch, row.operating_point)
        groups.setdefault(name, {})[row.stamp_ns, seen[name, row.stamp_ns]] = row
        seen[name, row.stamp_ns] += 1
    tasks = list(dict.fromkeys(task for task, _, _ in groups))
    return dict(
        sorted(groups.items(), key=lambda item: (tasks.index(item[0][0]), item[0][1] != 'full'))
    )


def _points(groups: Iterable[GroupName], task: str) -> list[str]:
    return [point for name, branch, point in groups if (name, branch) == (task, 'skip')]


def _about(rows: Sequence[FrameRow], frames: set[Key]) -> dict[str, Any]:
    return {
        'models': list(dict.fromkeys(row.model for row in rows)),
        'machines': list(dict.fromkeys(row.machine for row in rows)),
        'frames': len(frames),
    }


def _compare(
    name_a: GroupName, name_b: GroupName, a: Answers, b: Answers
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return a group's figures and its changed answers."""
    task, branch, point = name_a
    pairs = [(a[key], b[key]) for key in sorted(a.keys() & b.keys())]
    similarities = [_compare_answers(row_a, row_b) for row_a, row_b in pairs]
    measure = {'multi_object': 'mean_jaccard', 'captioning': 'mean_rouge_l'}.get(task)
    changes = [
        {
            'stamp_ns': row_a.stamp_ns,
            'frame_a': row_a.frame,
            'frame_b': row_b.frame,
            'task': task,
            'branch': branch,
            'operating_point_a': point,
            'operating_point_b': name_b[2],
            'answer_a': row_a.answer,
            'answer_b': row_b.answer,
            'raw_text_a': row_a.raw_text,
            'raw_text_b': row_b.raw_text,
        }
        for (row_a, row_b), (same, _) in zip(pairs, similarities, strict=True)
        if not same
    ]
    agreements = [
        (row_a.agree, row_b.agree)
        for row_a, row_b in pairs
        if row_a.agree is not None and row_b.agree is not None
    ]
    means = {
        name: _mean([similarity for _, similarity in similarities]) if name == measure else None
        for name in ('mean_jaccard', 'mean_rouge_l')
    }
    group = {
        'task': task,
        'branch': branch,
        'operating_point_a': point,
        'operating_point_b': name_b[2],
        'compared': len(pairs),
        'same': len(pairs) - len(changes),
        'same_share': _mean([same for same, _ in similarities]),
        **means,
        'agreement_a': _mean([in_a for in_a, _ in agreements]),
        'agreement_b': _mean([in_b for _, in_b in agreements]),
        'agreement_frames': len(agreements),
        'gained': sum(in_b and not in_a for in_a, in_b in agreements),
        'lost': sum(in_a and not in_b for in_a, in_b in agreements),
        'skipped_blocks_a': list(next(iter(a.values())).skipped_blocks),
        'skipped_blocks_b': list(next(iter(b.values())).skipped_blocks),
        **_times(pairs),
    }
    return group, changes


def _compare_answers(a: FrameRow, b: FrameRow) -> tuple[bool, float]:
    """Return whether two answers are the same, and their similarity, 0..1."""
    if a.task == 'captioning':
        tokens_a, tokens_b = caption_tokens(a.raw_text), caption_tokens(b.raw_text)
        similarity = 1.0 if tokens_a == tokens_b else rouge_l(tokens_b, [tokens_a])
        return a.raw_text == b.raw_text, similarity
    labels_a, labels_b = _labels(a), _labels(b)
    if not labels_a and not labels_b:  # compare the words, as between skip and full
        same = normalise(a.raw_text) == normalise(b.raw_text)
        return same, float(same)
    return labels_a == labels_b, jaccard(labels_a, labels_b)


def _labels(row: FrameRow) -> frozenset[str]:
    if not row.in_vocabulary:
        return frozenset()
    return frozenset(row.answer.split(', ') if row.task == 'multi_object' else [row.answer])


def _times(pairs: Sequence[tuple[FrameRow, FrameRow]]) -> dict[str, Any]:
    """Return each run's median total time, and their ratio if the two can be compared.

    That is, if both ran on the same machine, with the timing `isolated`.
    """
    sides = [row_a for row_a, _ in pairs], [row_b for _, row_b in pairs]
    machine_a, machine_b = (_only_one(row.machine for row in side) for side in sides)
    timing_a, timing_b = (_only_one(row.timing for row in side) for side in sides)
    total_a, total_b = (
        np.array([[row_a.total_ms, row_b.total_ms] for row_a, row_b in pairs]).reshape(-1, 2).T
    )
    reason = ''
    if not pairs:
        reason = 'no frame is in both runs'
    elif machine_a is None or machine_b is None:
        reason = 'a run has rows from several machines'
    elif machine_a != machine_b:
        reason = f'different machines: {machine_a}; {machine_b}'
    elif timing_a != timing_b or timing_a is None:
        reason = f'different timing: {timing_a or "both"}; {timing_b or "both"}'
    elif timing_a == SHARED:
        reason = 'timing: shared, where the times leave out what the answers share'
    return {
        'machine_a': machine_a,
        'machine_b': machine_b,
        'total_ms_a': _median(total_a) if None not in (machine_a, timing_a) else None,
        'total_ms_b': _median(total_b) if None not in (machine_b, timing_b) else None,
        'time_ratio': None if reason else _median(total_a / np.maximum(total_b, 1e-9)),
        'no_time_ratio': reason,
    }


def _differences(
    a: Sequence[FrameRow], b: Sequence[FrameRow], groups: Sequence[dict[str, Any]]
) -> list[dict[str, str]]:
    """Return the settings in which the runs differ, as text."""
    differences = []
    for what in ('model', 'machine', 'timing'):
        values = [', '.join(sorted({getattr(row, what) for row in rows})) for rows in (a, b)]
        if values[0] != values[1] and all(values):
            differences.append({'what': what, 'a': values[0], 'b': values[1]})
    for group in groups:
        blocks = [group['skipped_blocks_a'], group['skipped_blocks_b']]
        points = [group['operating_point_a'], group['operating_point_b']]
        if blocks[0] != blocks[1]:
            same_set = sorted(blocks[0]) == sorted(blocks[1])
            what = 'order of removal' if same_set else 'skipped blocks'
            what += f' for {group["task"]}'
            if points[0] == points[1]:
                what += f' at {points[0]}'
            texts = [', '.join(map(str, each)) or 'none' for each in blocks]
            differences.append({'what': what, 'a': texts[0], 'b': texts[1]})
    return differences


def _median(values: np.ndarray) -> float:
    return float(np.median(values))


def _only_one(values: Iterable[str]) -> str | None:
    """Return the value that all are; None if there are several, or none."""
    different = set(values)
    return different.pop() if len(different) == 1 else None


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
