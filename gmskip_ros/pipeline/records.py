"""What is published about a frame, as plain values: topic names, statuses, keys, latencies.

Nothing here imports ROS: the node publishes these values, a replay writes them to bags and tables.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gmskip_ros.pipeline.health import OK, WARN, Report
from gmskip_ros.pipeline.overlay import OverlayAnswer, OverlayTask
from gmskip_ros.pipeline.pipeline import (
    BranchResult,
    Comparison,
    FramePlan,
    TaskComparison,
    TaskResult,
)
from gmskip_ros.pipeline.timing import ISOLATED, SHARED

NODE_NAME = 'dual_vlm'
# Relative to the node.
QUESTION_INPUT = '~/input/question'
RESULT_TOPIC = '~/output/{branch}/result'
COMPARISON_TOPIC = '~/output/comparison'
TEXT_TOPIC = '~/debug/{branch}/{task}/text'
LATENCY_TOPIC = '~/debug/{branch}/{task}/latency_ms'
PIPELINE_LATENCY_TOPIC = '~/debug/pipeline_latency_ms'
PROCESSING_TIME_TOPIC = '~/debug/processing_time_ms'  # of a frame
BRANCH_PROCESSING_TIME_TOPIC = '~/debug/{branch}/processing_time_ms'  # timing: isolated
SHARED_PROCESSING_TIME_TOPIC = '~/debug/{branch}/shared_processing_time_ms'  # timing: shared
PICTURE_TOPIC = '~/debug/image'
JPEG_TOPIC = '~/debug/image/compressed'

RESULT_FORMAT = 'gmskip/result/1'
COMPARISON_FORMAT = 'gmskip/comparison/1'
# By timing. isolated: the full branch is a run of its own; verified: it checks guesses of its
# answer in one pass and goes on from there, to the answer that it would have given by itself.
FULL_BRANCH = {ISOLATED: 'isolated', SHARED: 'verified'}
LATENCY_PARTS = ('preprocess_ms', 'vision_ms', 'prefill_ms', 'decode_ms', 'total_ms')
# The one dimension of a latency message's layout: fields of std_msgs/MultiArrayDimension.
LATENCY_DIMENSION: dict[str, Any] = {
    'label': ','.join(LATENCY_PARTS),
    'size': len(LATENCY_PARTS),
    'stride': len(LATENCY_PARTS),
}


@dataclass(frozen=True)
class Status:
    """A diagnostic_msgs/DiagnosticStatus; `level` is OK, WARN or ERROR of health.py."""

    level: str
    name: str
    message: str
    hardware_id: str
    values: dict[str, str]


@dataclass(frozen=True)
class DiagnosticTypes:
    """The message classes of diagnostic_msgs, rclpy's or rosbags', and the values of `level`."""

    array: Any
    status: Any
    key_value: Any
    levels: Mapping[str, Any]  # by OK, WARN and ERROR of health.py


def diagnostic_array(types: DiagnosticTypes, header: Any, statuses: Sequence[Status]) -> Any:
    """Return the statuses as one DiagnosticArray with this header."""
    return types.array(
        header=header,
        status=[
            types.status(
                level=types.levels[status.level],
                name=status.name,
                message=status.message,
                hardware_id=status.hardware_id,
                values=[
                    types.key_value(key=key, value=text) for key, text in status.values.items()
                ],
            )
            for status in statuses
        ],
    )


def result_statuses(result: BranchResult, hardware_id: str) -> list[Status]:
    """Return one branch's answers on one frame: a status per task.

    What the answers share (`shared_ms`) is in the first one only, so that the times of all of them
    can be added up.
    """
    statuses = [
        _result_status(task, result.schedule, result.timing, hardware_id) for task in result.tasks
    ]
    if result.timing == SHARED:
        statuses[0].values['shared_ms'] = _text(result.shared_ms)
    return statuses


def _result_status(result: TaskResult, schedule: str, timing: str, hardware_id: str) -> Status:
    return Status(
        level=OK if result.parsed.in_vocabulary else WARN,
        name=f'{result.task}/{result.branch}',
        message=result.parsed.text,
        hardware_id=hardware_id,
        values=_texts(
            {
                'format': RESULT_FORMAT,
                'answer': result.parsed.text,
                'raw_text': result.answer.text,
                'tokens': len(result.answer.token_ids),
                **dict(zip(LATENCY_PARTS, latencies_ms(result), strict=True)),
                'vision_shared': result.answer.vision_shared,
                'sparsity': result.sparsity,
                'skipped_blocks': ','.join(str(block) for block in result.removed_blocks),
                'operating_point': result.operating_point,
                'full_branch': FULL_BRANCH[timing],
                'timing': timing,
                'schedule': schedule,
                'image_fit': result.image_fit,
                'image_tokens': result.image_tokens,
                'match': result.match,
                **_confidence(result),
                **_question(result),
            }
        ),
    )


def _confidence(result: TaskResult) -> dict[str, float | str]:
    """Return the keys of confidence, '' where a value does not exist."""
    values: dict[str, float | None] = {
        'confidence_mean': result.answer.confidence.mean,
        'confidence_min': result.answer.confidence.min,
    }
    if result.task == 'single_object':
        values['confidence_margin'] = result.confidence_margin
    return {
        key: '' if value is None or math.isnan(value) else value for key, value in values.items()
    }


def _question(result: TaskResult) -> dict[str, str]:
    """Return the key of a question, for the answer to one."""
    return {'question': result.question} if result.question else {}


def comparison_statuses(comparison: Comparison, hardware_id: str) -> list[Status]:
    """Return agreement on one frame, with the timing `isolated` also the speed-up, per task."""
    return [_comparison_status(task, comparison.timing, hardware_id) for task in comparison.tasks]


def _comparison_status(comparison: TaskComparison, timing: str, hardware_id: str) -> Status:
    skip, full = comparison.skip, comparison.full
    times: dict[str, float] = {}
    if timing == ISOLATED:
        times = {
            'skip_total_ms': skip.answer.timing.total_ms,
            'full_total_ms': full.answer.timing.total_ms,
            'speedup': comparison.speedup,
        }
    return Status(
        level=OK,  # a difference is a finding, not a fault of the node
        name=f'{skip.task}/comparison',
        message='agree' if comparison.agreement.agree else 'differ',
        hardware_id=hardware_id,
        values=_texts(
            {
                'format': COMPARISON_FORMAT,
                'agree': comparison.agreement.agree,
                **comparison.agreement.values,  # jaccard, or rouge_l
                'skip_answer': skip.parsed.text,
                'full_answer': full.parsed.text,
                'timing': timing,
                **times,
                'sparsity': skip.sparsity,
                **_question(skip),
            }
        ),
    )


def latencies_ms(result: TaskResult) -> list[float]:
    """Return the times of LATENCY_PARTS, in that order."""
    return [float(getattr(result.answer.timing, part)) for part in LATENCY_PARTS]


def health_status(
    report: Report,
    *,
    name: str,
    hardware_id: str,
    facts: Mapping[str, object],
    plan: FramePlan | None,
) -> Status:
    """Return the node's health for /diagnostics.

    `facts` has the values that are not in the report (model, device, rates, ages), by key.
    """
    values: dict[str, object] = {'state': report.state, 'reason': report.reason, **facts}
    values['input_rate_hz'] = report.input_rate_hz
    values['achieved_rate_hz'] = report.achieved_rate_hz
    values.update({f'frames_{counter}': count for counter, count in report.frames.items()})
    for branch, (p50_ms, p95_ms) in report.latency_ms.items():
        values[f'latency_p50_ms.{branch}'] = p50_ms
        values[f'latency_p95_ms.{branch}'] = p95_ms
    for task in plan.tasks if plan is not None else ():
        values[f'operating_point.{task.task.name}'] = task.operating_point
        values[f'skipped_blocks.{task.task.name}'] = len(task.removed_blocks)
    values['last_error'] = report.last_error
    return Status(
        level=report.level,
        name=name,
        message=f'{report.state}: {report.reason}' if report.reason else report.state,
        hardware_id=hardware_id,
        values=_texts(values),
    )


def overlay_title(name: str, stamp_ns: int, timing: str = ISOLATED) -> str:
    """Return the overlay's title: name and the frame's time of day (UTC), 'x  12:03:04.5'.

    With the timing `shared` that is said, because the times of the answers then leave out a part.
    """
    seconds, rest_ns = divmod(stamp_ns, 1_000_000_000)
    time_of_day = time.strftime('%H:%M:%S', time.gmtime(seconds))
    note = '' if timing == ISOLATED else f'  timing: {timing}'
    return f'{name}  {time_of_day}.{rest_ns // 100_000_000}{note}'


def overlay_tasks(
    results: Sequence[BranchResult], comparison: Comparison | None
) -> list[OverlayTask]:
    """Return what the overlay shows: one entry per task, with the branches that ran."""
    by_branch = {result.branch: result.tasks for result in results}
    agreements = [task.agreement.agree for task in comparison.tasks] if comparison else None
    entries = []
    for index, any_branch in enumerate(results[0].tasks):
        skip = by_branch['skip'][index] if 'skip' in by_branch else None
        full = by_branch['full'][index] if 'full' in by_branch else None
        entries.append(
            OverlayTask(
                task=any_branch.task,
                skip=_overlay_answer(skip),
                full=_overlay_answer(full),
                agree=agreements[index] if agreements else None,
                skipped_blocks=skip.removed_blocks if skip is not None else (),
                num_blocks=any_branch.num_blocks,
            )
        )
    return entries


def _overlay_answer(result: TaskResult | None) -> OverlayAnswer | None:
    if result is None:
        return None
    return OverlayAnswer(
        task=result.task,
        branch=result.branch,
        text=result.parsed.text if result.parsed.in_vocabulary else result.parsed.raw_text,
        total_ms=result.answer.timing.total_ms,
        in_vocabulary=result.parsed.in_vocabulary,
        confidence=result.answer.confidence.mean,
    )


def _texts(values: Mapping[str, object]) -> dict[str, str]:
    return {key: _text(value) for key, value in values.items()}


def _text(value: object) -> str:
    if isinstance(value, bool):
        return 'true' if value else 'false'
    return f'{value:.3f}' if isinstance(value, float) else str(value)
