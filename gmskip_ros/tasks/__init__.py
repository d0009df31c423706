"""Tasks: their prompts, and how answers are read, compared and scored.

Uses the standard library only, except gmskip_ros.tasks.statistics, which needs NumPy and must be
imported by its full name.
"""

from gmskip_ros.tasks.cider import Cider
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
from gmskip_ros.tasks.scoring import METRICS, Absent, Score, Scorer, make_scorer
from gmskip_ros.tasks.task import (
    DEFAULT_MAX_NEW_TOKENS,
    DEFAULT_PROMPTS,
    PRESENCE,
    TASK_NAMES,
    Agreement,
    ParsedAnswer,
    Task,
    make_task,
)
from gmskip_ros.tasks.tokenizer import caption_tokens
from gmskip_ros.tasks.vocabulary import DEFAULT_MATCH, MATCHES

__all__ = [
    'DEFAULT_MATCH',
    'DEFAULT_MAX_NEW_TOKENS',
    'DEFAULT_PROMPTS',
    'LABEL_SETS',
    'MATCHES',
    'METRICS',
    'PRESENCE',
    'TASK_NAMES',
    'Absent',
    'Agreement',
    'Cider',
    'ParsedAnswer',
    'Score',
    'Scorer',
    'Task',
    'TaskError',
    'accuracy',
    'caption_tokens',
    'jaccard',
    'make_scorer',
    'make_task',
    'resolve_labels',
    'rouge_l',
    'set_exact_match',
    'set_f1',
    'set_precision',
    'set_recall',
]
