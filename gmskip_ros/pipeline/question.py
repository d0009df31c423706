"""A question about the current frame: one waits at a time, and each is counted once.

It is asked about the newest frame of the moment at which it arrives, not of the moment at which the
worker is free: what it is about may be gone by then.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gmskip_ros.pipeline.gate import Frame
from gmskip_ros.pipeline.parameters import PROMPT
from gmskip_ros.pipeline.pipeline import BRANCHES, FramePlan, TaskPlan
from gmskip_ros.skipping import SkipList, SkipListError, SkipSet
from gmskip_ros.vlm.engine import settings_in_use

if TYPE_CHECKING:
    from gmskip_ros.pipeline.settings import Settings
    from gmskip_ros.vlm import Engine

MAX_CHARS = 1000


def refusal_of_text(text: str) -> str:
    """Return why a question with this text is refused; '' if it is not."""
    if len(text) > MAX_CHARS:
        return f'the question has {len(text)} characters: ask in {MAX_CHARS} or fewer'
    try:
        PROMPT.check(text)
    except ValueError as error:
        return f'the question {error}'
    return ''


@dataclass(frozen=True, eq=False)
class Question:
    """A question that waits or is being answered."""

    text: str
    frame: Frame


class Questions:
    """The newest frame, the question that waits, the one being answered, and the counters.

    The executor's thread asks and notes frames, the worker's thread takes and finishes.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._newest: Frame | None = None
        self._arrived_s = 0.0
        self._waiting: Question | None = None
        self._taken: Question | None = None
        self._counts = dict.fromkeys(('answered', 'replaced', 'refused'), 0)
        self._reason = ''  # of the last refusal

    def note_frame(self, frame: Frame, now_s: float) -> None:
        """Keep the frame as the newest; `now_s` is of a steady clock."""
        with self._lock:
            self._newest, self._arrived_s = frame, now_s

    def newest(self) -> tuple[Frame | None, float]:
        """Return the newest frame and when it arrived."""
        with self._lock:
            return self._newest, self._arrived_s

    def put(self, question: Question) -> None:
        """Let the question wait; it replaces one that waits already."""
        with self._lock:
            if self._waiting is not None:
                self._counts['replaced'] += 1
            self._waiting = question

    def take(self) -> Question | None:
        """Return the question that waits, if any: it is being answered from now on."""
        with self._lock:
            self._taken, self._waiting = self._waiting, None
            return self._taken

    def holds(self, question: Question) -> bool:
        """Return whether this question is still to be answered; after `close` it is not."""
        with self._lock:
            return self._taken is question

    def finish(self, question: Question) -> None:
        """Count the question as answered."""
        with self._lock:
            if self._taken is question:
                self._taken = None
                self._counts['answered'] += 1

    def refuse(self, reason: str, question: Question | None = None) -> None:
        """Count a question as refused: one that has not been put, or the one being answered."""
        with self._lock:
            if question is not None and self._taken is not question:
                return  # `close` has counted it
            self._taken = None if question is not None else self._taken
            self._refuse(reason)

    def close(self, reason: str) -> None:
        """Refuse the questions that wait or are being answered, and forget the frame."""
        with self._lock:
            for question in (self._waiting, self._taken):
                if question is not None:
                    self._refuse(reason)
            self._newest = self._waiting = self._taken = None

    def _refuse(self, reason: str) -> None:
        self._counts['refused'] += 1
        self._reason = reason

    def facts(self) -> dict[str, object]:
        """Return the keys of /diagnostics."""
        with self._lock:
            counts = {f'questions_{name}': count for name, count in self._counts.items()}
            return {**counts, 'question_refused_reason': self._reason}


def plan_question(
    engine: Engine, text: str, settings: Settings, skip_list: SkipList | None, *, is_own: bool
) -> FramePlan:
    """Return the plan that answers one question, by the branches in use.

    `is_own`: the list is that of the parameter skip_list.question. A list of another task serves
    as far as it goes: made for a different number of blocks, or without the operating point in use,
    it skips nothing. Raises SkipListError for the question's own list that is so.
    """
    task = settings.make_question(text)
    plan = TaskPlan(task, SkipSet(), (), '0')
    warnings: list[str] = []
    if skip_list is not None and 'skip' in settings.branches:
        try:
            found = skip_list.warnings_for(
                **settings_in_use(engine),
                prompt=skip_list.prompt.text or '',  # any question is asked with it
                max_new_tokens=skip_list.prompt.max_new_tokens or task.max_new_tokens,
            )
            blocks = skip_list.blocks_at(settings.operating_point)
        except SkipListError:
            if is_own:
                raise
        else:
            warnings = found if is_own else []  # those of other tasks are logged for the task
            skip_set = skip_list.skip_set_at(settings.operating_point)
            plan = TaskPlan(task, skip_set, blocks, str(settings.operating_point))
    ordered = tuple(branch for branch in BRANCHES if branch in settings.branches)
    return FramePlan((plan,), ordered, tuple(warnings), settings.caption_agreement, settings.timing)
