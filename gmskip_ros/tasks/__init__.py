"""Tasks: prompts, how answers are read, and how they are scored. Standard library only."""

from gmskip_ros.tasks.errors import TaskError
from gmskip_ros.tasks.labels import LABEL_SETS, resolve_labels
from gmskip_ros.tasks.metrics import (
    accuracy,
    jaccard,
    rouge_l,
    set_exact_match,
    set_f1,
    set_precision,
    set_recall,
)
from gmskip_ros.tasks.task import (
    DEFAULT_MAX_NEW_TOKENS,
    DEFAULT_PROMPTS,
    TASK_NAMES,
    Agreement,
    ParsedAnswer,
    Task,
    make_task,
)

__all__ = [
    'DEFAULT_MAX_NEW_TOKENS',
    'DEFAULT_PROMPTS',
    'LABEL_SETS',
    'TASK_NAMES',
    'Agreement',
    'ParsedAnswer',
    'Task',
    'TaskError',
    'accuracy',
    'jaccard',
    'make_task',
    'resolve_labels',
    'rouge_l',
    'set_exact_match',
    'set_f1',
    'set_precision',
    'set_recall',
]
