"""The parameters' values as one immutable snapshot, from ROS or from a parameter file."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from gmskip_ros.pipeline.parameter_kinds import ParameterError, flat_parameters
from gmskip_ros.pipeline.parameters import AUTO, SPECS
from gmskip_ros.pipeline.pipeline import QUESTION
from gmskip_ros.pipeline.records import NODE_NAME
from gmskip_ros.pipeline.timing import SHARED
from gmskip_ros.skipping import JOINT, SkipList, SkipListError, load_skip_list
from gmskip_ros.tasks import Task, make_task

NODE_SECTIONS = ('**', '*', NODE_NAME)  # of a parameter file, after the namespace
ROS_PARAMETERS = ('use_sim_time',)  # every node has it, so a parameter file may set it


@dataclass(frozen=True)
class Settings:
    """All parameters at one moment, checked: a field for each entry and each group of SPECS."""

    model: str
    device: str
    dtype: str
    quantization: str
    threads: int  # CPU threads that compute an answer; 0 = PyTorch's choice
    image_fit: str
    max_image_tokens: int
    chat_template: str  # '' = the checkpoint's own
    tasks: tuple[str, ...]
    branches: tuple[str, ...]
    rate_hz: float
    max_frame_age_sec: float
    image_transport: str
    input_reliability: str
    skip_list: Mapping[str, str]  # by task; '' = none
    operating_point: str | int
    latency_budget_ms: float  # of the skip branch's whole frame; 0 = none
    timing: str  # one of TIMINGS
    prompt: Mapping[str, str]  # by task
    labels: tuple[str, ...]
    match: str
    max_new_tokens: Mapping[str, int]  # by task
    overload_policy: str
    memory_headroom_gib: float
    watchdog_sec: float
    start_enabled: bool
    unload_when_paused: bool
    caption_agreement: float
    debug_time_type: str

    @property
    def model_options(self) -> dict[str, Any]:
        """How load_vlm stores weights and prepares images and prompts: its keyword arguments."""
        return {
            'quantization': self.quantization,
            'image_fit': self.image_fit,
            'max_image_tokens': self.max_image_tokens,
            'chat_template': self.chat_template or None,
        }

    @property
    def sharing(self) -> dict[str, int]:
        """What answers to a frame share at most: the fields of memory.py's Sharing, {} for none."""
        if self.timing != SHARED:
            return {}
        num_skipping = len(self.tasks) if 'skip' in self.branches else 0
        return {
            'num_skip_sets': num_skipping + ('full' in self.branches),
            'answer_tokens': sum(self.max_new_tokens[task] for task in self.tasks),
        }

    @property
    def period_ns(self) -> int:
        return round(1e9 / self.rate_hz)

    def make_tasks(self) -> tuple[Task, ...]:
        """Return the tasks to run, with their prompts, labels and answer lengths."""
        return tuple(
            make_task(
                name,
                prompt=self.prompt[name],
                labels=self.labels,
                match=self.match,
                max_new_tokens=self.max_new_tokens[name],
            )
            for name in self.tasks
        )

    def make_question(self, text: str) -> Task:
        """Return the task of a question about the current frame; it is answered as a caption is."""
        task = make_task(
            'captioning',
            prompt=text,
            labels=self.labels,
            match=self.match,
            max_new_tokens=self.max_new_tokens[QUESTION],
        )
        task.name = QUESTION
        return task


def values_from_file(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return what a parameter file in ROS 2's format sets, by parameter name; works without ROS.

    Reads the sections of `/**` and of nodes named dual_vlm in any namespace; if two set the same
    parameter, the later one applies. Raises ParameterError for a file that cannot be read or has no
    such section, and for a name that the node does not have.
    """
    try:
        content = yaml.safe_load(Path(path).expanduser().read_text(encoding='utf-8'))
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = ' '.join((getattr(error, 'strerror', None) or str(error)).split())
        raise ParameterError('file', str(path), f'cannot be read: {reason}') from None
    values: dict[str, Any] = {}
    try:
        set_values = [
            entry for section in _sections_in(content) for entry in flat_parameters(section)
        ]
    except RecursionError:
        raise ParameterError('file', str(path), 'refers to itself: write the values out') from None
    for name, value in set_values:
        if name not in SPECS and name not in ROS_PARAMETERS:
            raise ParameterError(name, value, f'in {path} is not a parameter of the node')
        values[name] = value
    if not values:
        raise ParameterError(
            'file', str(path), f'has no ros__parameters of {" or ".join(NODE_SECTIONS)}'
        )
    return {name: value for name, value in values.items() if name in SPECS}


def _sections_in(content: Any, name: str = '') -> Iterator[Any]:
    """Yield the content of each ros__parameters meant for the node; `name` is the key above."""
    for key, value in content.items() if isinstance(content, dict) else ():
        if key != 'ros__parameters':
            yield from _sections_in(value, str(key))
        elif name.rpartition('/')[2] in NODE_SECTIONS:
            yield value


def settings_from(values: Mapping[str, Any]) -> Settings:
    """Return the checked snapshot of these values by parameter name; the others have defaults.

    Raises ParameterError.
    """
    checked: dict[str, Any] = {}
    for name, spec in SPECS.items():
        value = spec.check(values.get(name, spec.default))
        group, _, task = name.rpartition('.')
        if group:
            checked.setdefault(group, {})[task] = value
        else:
            checked[name] = value
    return Settings(**checked)


def load_skip_lists(settings: Settings) -> dict[str, SkipList]:
    """Return the skip list of each task that has one; raises ParameterError for an unusable one."""
    skip_lists = {}
    for task, name_or_path in skip_list_names(settings).items():
        try:
            skip_lists[task] = load_skip_list(name_or_path)
        except (SkipListError, OSError) as error:
            raise ParameterError(
                f'skip_list.{task}', name_or_path, f'cannot be used: {error}'
            ) from None
    return skip_lists


def skip_list_names(settings: Settings) -> dict[str, str]:
    """Return the path or shipped name of each task's skip list, 'auto' resolved, '' left out.

    A question has one only if it is named: see `question_skip_list`.
    """
    if 'skip' not in settings.branches:
        return {}
    own = {task: f'demo_{task}' if settings.model == 'demo' else '' for task in settings.tasks}
    names = {task: settings.skip_list[task] for task in settings.tasks}
    if settings.skip_list[QUESTION] != AUTO:
        names[QUESTION] = settings.skip_list[QUESTION]
    names = {task: own[task] if name == AUTO else name for task, name in names.items()}
    return {task: name for task, name in names.items() if name}


def question_skip_list(settings: Settings, skip_lists: Mapping[str, SkipList]) -> SkipList | None:
    """Return the skip list of questions: their own, a joint one, captioning's, or None.

    `skip_lists`: those of `load_skip_lists`.
    """
    if settings.skip_list[QUESTION] != AUTO or 'skip' not in settings.branches:
        return skip_lists.get(QUESTION)
    for skip_list in skip_lists.values():
        if skip_list.task == JOINT:
            return skip_list
    if 'captioning' not in settings.tasks:
        settings = replace(settings, tasks=('captioning',))
        try:
            skip_lists = load_skip_lists(settings)
        except ParameterError:  # a list that no task uses stops nothing
            return None
    return skip_lists.get('captioning')


def check_operating_point(settings: Settings, skip_lists: Mapping[str, SkipList]) -> None:
    """Raise ParameterError if a skip list does not have the operating point."""
    for task, skip_list in skip_lists.items():
        try:
            skip_list.blocks_at(settings.operating_point)
        except SkipListError as error:
            raise ParameterError(
                'operating_point', settings.operating_point, f'does not fit {task}: {error}'
            ) from None
