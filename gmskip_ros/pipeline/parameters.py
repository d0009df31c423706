"""The table of the node's parameters: an entry declares, checks and documents its parameter.

`tools/parameter_files.py` writes the parameter file, its schema and docs/parameters.md from it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from gmskip_ros.numbers import is_whole_number
from gmskip_ros.pipeline.parameter_kinds import (
    Kind,
    Spec,
    boolean,
    check_filled_text,
    check_text,
    check_texts,
    filled_text,
    integer,
    number,
    one_of,
    some_of,
    text,
)
from gmskip_ros.pipeline.pipeline import BRANCHES, QUESTION
from gmskip_ros.pipeline.timing import ISOLATED, TIMINGS
from gmskip_ros.skipping import OPERATING_POINTS
from gmskip_ros.tasks import (
    DEFAULT_MATCH,
    DEFAULT_MAX_NEW_TOKENS,
    DEFAULT_PROMPTS,
    MATCHES,
    TASK_NAMES,
    TaskError,
    resolve_labels,
)
from gmskip_ros.vlm.engine import DTYPES, IMAGE_FITS, MAX_THREADS, QUANTIZATIONS

QUESTION_MAX_NEW_TOKENS = 64
AUTO = 'auto'  # as a skip list: the demo model's own
AUTOWARE_DEBUG_MSGS = ('autoware_internal_debug_msgs', 'tier4_debug_msgs')  # with Float64Stamped
IMAGE_TOKEN = '<image>'  # LLaVA's chat templates place it themselves


def _device(value: Any) -> str:
    if not re.fullmatch(r'auto|cpu|cuda(:\d+)?', check_text(value)):
        raise ValueError('is not auto, cpu, cuda or cuda:N')
    return value


def _labels(value: Any) -> tuple[str, ...]:
    labels = check_texts(value)
    try:
        resolve_labels(labels)
    except TaskError as error:
        raise ValueError(f'cannot be used: {error}') from None
    return labels


def _operating_point(value: Any) -> str | int:
    if value in OPERATING_POINTS:
        return value
    if isinstance(value, str) and re.fullmatch('[0-9]{1,4}', value):
        return int(value)
    if is_whole_number(value) and value >= 0:
        return value
    raise ValueError(f'is not {", ".join(OPERATING_POINTS)} or a number of blocks')


def _prompt(value: Any) -> str:
    if IMAGE_TOKEN in check_filled_text(value):
        raise ValueError(f'contains {IMAGE_TOKEN}: remove it, the node places the image itself')
    return value


DEVICE = Kind({'type': 'string', 'pattern': '^(auto|cpu|cuda(:[0-9]+)?)$'}, _device)
LABELS = Kind(
    {'type': 'array', 'items': {'type': 'string'}, 'minItems': 1, 'uniqueItems': True}, _labels
)
OPERATING_POINT = Kind(
    {
        'anyOf': [
            {'type': 'string', 'pattern': f'^({"|".join(OPERATING_POINTS)}|[0-9]{{1,4}})$'},
            {'type': 'integer', 'minimum': 0},
        ]
    },
    _operating_point,
)
PROMPT = Kind({'type': 'string', 'pattern': r'\S', 'not': {'pattern': IMAGE_TOKEN}}, _prompt)


# --- the table


def _per_task(
    group: str,
    defaults: Mapping[str, Any],
    kind: Kind,
    description: str,
    *,
    read_only: bool = True,
) -> list[Spec]:
    """Return one entry per task: `<group>.<task>`."""
    return [
        Spec(f'{group}.{task}', defaults[task], kind, description, read_only) for task in TASK_NAMES
    ]


_TABLE = (
    Spec(
        'model',
        'demo',
        filled_text(),
        'demo (ships with the package), a folder in Hugging Face format, or a hub id.',
    ),
    Spec(
        'device',
        'auto',
        DEVICE,
        'auto (cuda:0 if there is one, else cpu), cpu, cuda or cuda:N.',
    ),
    Spec(
        'dtype',
        'auto',
        one_of(['auto', *DTYPES]),
        "Type of weights and activations; auto: float32 on a CPU, the checkpoint's own half "
        'precision on a GPU.',
    ),
    Spec(
        'quantization',
        'none',
        one_of(QUANTIZATIONS),
        "How the weights of the decoder's linear layers are stored: none (as dtype), int8 or int4, "
        'for cards with little memory. Both branches use them; dtype auto on a CPU is then '
        'bfloat16.',
    ),
    Spec(
        'threads',
        0,
        integer(0, MAX_THREADS),
        'CPU threads that compute an answer; 0: as many as PyTorch chooses, one per core. Set '
        'fewer where other processes keep cores busy: threads that wait for one another are slow.',
    ),
    Spec(
        'image_fit',
        'auto',
        one_of(IMAGE_FITS),
        "How a frame becomes the model's square. checkpoint: as the checkpoint's own processor "
        'says, which for LLaVA-1.5 crops the centre; pad: padded to a square; squash: resized to a '
        'square; auto: pad where the processor would crop a camera frame, else checkpoint.',
    ),
    Spec(
        'max_image_tokens',
        0,
        integer(0, 100_000),
        'Most image tokens of a frame: LLaVA-NeXT and OneVision then cut it into fewer tiles; '
        '0 = no limit.',
    ),
    Spec(
        'chat_template',
        '',
        text(),
        "Jinja chat template, or a file that contains it, in place of the checkpoint's own; empty: "
        "the processor's, else the tokenizer's. A model without any is refused.",
    ),
    Spec(
        'tasks',
        list(TASK_NAMES),
        some_of(TASK_NAMES),
        'The tasks to answer for every frame, in this order.',
    ),
    Spec(
        'branches',
        list(BRANCHES),
        some_of(BRANCHES),
        'skip: some blocks skipped; full: every block. Use [skip] alone in production, both to '
        'compare; skip always runs first.',
    ),
    Spec(
        'rate_hz',
        1.0,
        number(0.01, 60.0),
        'Frames answered per second of header time, Hz.',
        read_only=False,
    ),
    Spec(
        'max_frame_age_sec',
        0.0,
        number(0.0, 3600.0),
        'Frames with an older stamp are dropped, s; 0 = off.',
    ),
    Spec(
        'overload_policy',
        'slow_down',
        one_of(['slow_down', 'drop_full']),
        'What gives way when both branches take longer than a period. slow_down: both run and the '
        'rate falls. drop_full: the full branch of a frame is not started, or is abandoned at its '
        'next block, as soon as a newer due frame is waiting.',
    ),
    Spec(
        'memory_headroom_gib',
        1.0,
        number(0.0, 1024.0),
        'Memory of the device to keep free for others, GiB. Before loading, the need of the model '
        '(weights, key/value store, activations, reserve) is compared with the free memory; a '
        'model that would leave less is refused.',
    ),
    Spec(
        'watchdog_sec',
        60.0,
        number(1.0, 3600.0),
        'State error when inference makes no progress (no block, no token) for this long, s.',
    ),
    Spec(
        'start_enabled',
        True,
        boolean(),
        'false: load the model, then wait for the service ~/enable.',
    ),
    Spec(
        'unload_when_paused',
        False,
        boolean(),
        'true: a pause (~/enable false) gives the memory of the model back, all but the CUDA '
        'context; ~/enable true loads it again, without a network. With start_enabled false, files '
        'are downloaded at the start, and nothing is loaded until then.',
    ),
    Spec(
        'image_transport',
        'raw',
        one_of(['raw', 'compressed']),
        'raw: sensor_msgs/Image on ~/input/image; compressed: sensor_msgs/CompressedImage (JPEG, '
        'PNG) on the resolved name of ~/input/image + /compressed.',
    ),
    Spec(
        'input_reliability',
        'best_effort',
        one_of(['best_effort', 'reliable']),
        'Quality of service of the image subscription, depth 1.',
    ),
    *_per_task(
        'skip_list',
        dict.fromkeys(TASK_NAMES, AUTO),
        text(),
        'Skip list of the task: an absolute path, or the name of one that ships with the package '
        "(demo_<task>, gmskip_<task>); auto: the demo model's own for demo, none for any other "
        'model; empty: the skip branch skips nothing. For question (see ~/input/question), auto: a '
        "joint list among those of the tasks, else captioning's.",
    ),
    Spec(
        f'skip_list.{QUESTION}',
        AUTO,
        text(),
        'Skip list for questions on ~/input/question, as for a task; auto: a joint list among '
        "those of the tasks, else captioning's.",
    ),
    Spec(
        'operating_point',
        'high_performance',
        OPERATING_POINT,
        'Which prefix of the skip lists is skipped: high_performance, high_sparsity or a number of '
        'blocks.',
        read_only=False,
    ),
    Spec(
        'latency_budget_ms',
        0.0,
        number(0.0, 3_600_000.0),
        'How long the skip branch may take for all tasks of a frame, image decoding included, ms. '
        'Up to operating_point, the best-scoring prefix of each skip list that fits by the times '
        'measured is skipped (without scores the shortest); if none fits, high_sparsity or the '
        'operating point, whichever skips more. A frame that takes longer is still answered, and '
        'counted. 0 = off.',
        read_only=False,
    ),
    Spec(
        'timing',
        ISOLATED,
        one_of(TIMINGS),
        'isolated: every answer is made, and timed, as if alone, so that times can be compared. '
        'shared: least time for the frame; answers share the image, and the full branch checks the '
        "skip branch's answers in one pass. The answers are the same; there is no speed-up.",
        read_only=False,
    ),
    *_per_task('prompt', DEFAULT_PROMPTS, PROMPT, 'The question of the task.', read_only=False),
    Spec(
        'labels',
        ['coda'],
        LABELS,
        'The name of a label set (coda, coco, scenes), or the labels themselves.',
    ),
    Spec(
        'match',
        DEFAULT_MATCH,
        one_of(MATCHES),
        'How answers are read. strict: the whole answer is the label; forms: or its plural or '
        'singular; synonyms: or a synonym; content: the answer mentions the label or a synonym, '
        'and does not negate it.',
    ),
    *_per_task(
        'max_new_tokens',
        DEFAULT_MAX_NEW_TOKENS,
        integer(1, 512),
        'Longest answer to the task, tokens.',
    ),
    Spec(
        f'max_new_tokens.{QUESTION}',
        QUESTION_MAX_NEW_TOKENS,
        integer(1, 512),
        'Longest answer to a question, tokens.',
    ),
    Spec(
        'caption_agreement',
        1.0,
        number(0.0, 1.0),
        'Captions agree when the ROUGE-L of skip against full is at least this; 1.0: only when '
        'their tokens are equal.',
        read_only=False,
    ),
    Spec(
        'debug_time_type',
        'auto',
        one_of(['auto', 'std_msgs', *AUTOWARE_DEBUG_MSGS]),
        'Package of the messages on ~/debug/processing_time_ms, '
        '~/debug/{skip,full}/{,shared_}processing_time_ms and ~/debug/pipeline_latency_ms. '
        "std_msgs: Float64; the others: Autoware's Float64Stamped; auto: the first of these that "
        'can be imported, else std_msgs.',
    ),
)

SPECS: Mapping[str, Spec] = {spec.name: spec for spec in _TABLE}
