"""The node's parameters: names, defaults, ranges, and one immutable snapshot of their values."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from gmskip_ros.errors import UserError
from gmskip_ros.pipeline.pipeline import BRANCHES
from gmskip_ros.pipeline.records import NODE_NAME
from gmskip_ros.skipping import SkipList, SkipListError, load_skip_list
from gmskip_ros.tasks import (
    DEFAULT_MAX_NEW_TOKENS,
    DEFAULT_PROMPTS,
    TASK_NAMES,
    Task,
    TaskError,
    make_task,
    resolve_labels,
)

if TYPE_CHECKING:
    pass

DTYPES = ('auto', 'float32', 'float16', 'bfloat16')
TRANSPORTS = ('raw', 'compressed')
RELIABILITIES = ('best_effort', 'reliable')
OVERLOAD_POLICIES = ('slow_down', 'drop_full')
AUTO = 'auto'  # of the skip lists
OPERATING_POINTS = ('high_performance', 'high_sparsity')
RATE_HZ_RANGE = (0.01, 60.0)
MAX_FRAME_AGE_SEC_RANGE = (0.0, 3600.0)
MAX_NEW_TOKENS_RANGE = (1, 512)
MEMORY_HEADROOM_GIB_RANGE = (0.0, 1024.0)
WATCHDOG_SEC_RANGE = (1.0, 3600.0)
NODE_SECTIONS = ('**', '*', NODE_NAME)  # of a parameter file, behind the namespace
ROS_PARAMETERS = ('use_sim_time',)  # every node's; a parameter file may set them
IMAGE_TOKEN = '<image>'  # of LLaVA's chat templates, which place it themselves


class ParameterError(UserError, ValueError):
    """A parameter has a value that it cannot have; one line: parameter, value, remedy."""

    def __init__(self, name: str, value: object, remedy: str) -> None:
        # An empty list in YAML has no type, so rcl hands over no value.
        shown = 'nothing' if value is None else repr(value)
        super().__init__(f'parameter {name}: {shown} {remedy}')


@dataclass(frozen=True)
class Settings:
    """All parameters at one moment, checked, each of its own type."""

    model: str
    device: str
    dtype: str
    tasks: tuple[str, ...]
    branches: tuple[str, ...]
    rate_hz: float
    max_frame_age_sec: float
    image_transport: str
    input_reliability: str
    skip_list: Mapping[str, str]  # by task; '' = none
    operating_point: str | int
    prompt: Mapping[str, str]  # by task
    labels: tuple[str, ...]
    max_new_tokens: Mapping[str, int]  # by task
    overload_policy: str
    memory_headroom_gib: float
    watchdog_sec: float
    start_enabled: bool

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
                max_new_tokens=self.max_new_tokens[name],
            )
            for name in self.tasks
        )


@dataclass(frozen=True)
class Spec:
    """One parameter: its default, what it is for, and what its value is checked with."""

    name: str
    default: Any
    description: str
    check: Callable[[str, Any], Any]  # (name, value) -> the value in its own type; ParameterError
    read_only: bool = True


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise ParameterError(name, value, 'is not a string')
    return value


def _filled_text(name: str, value: Any) -> str:
    if not _text(name, value).strip():
        raise ParameterError(name, value, 'is empty: give a text')
    return value


def _prompt(name: str, value: Any) -> str:
    if IMAGE_TOKEN in _filled_text(name, value):
        raise ParameterError(
            name, value, f'holds {IMAGE_TOKEN}: leave it out, the node places the image itself'
        )
    return value


def _one_of(options: tuple[str, ...]) -> Callable[[str, Any], str]:
    def check(name: str, value: Any) -> str:
        if value not in options:
            raise ParameterError(name, value, f'is not one of {", ".join(options)}')
        return value

    return check


def _some_of(options: tuple[str, ...]) -> Callable[[str, Any], tuple[str, ...]]:
    def check(name: str, value: Any) -> tuple[str, ...]:
        values = _texts(name, value)
        for entry in values:
            if entry not in options:
                raise ParameterError(
                    name, list(values), f'has {entry!r}, which is not one of {", ".join(options)}'
                )
        return values

    return check


def _texts(name: str, value: Any) -> tuple[str, ...]:
    is_list = isinstance(value, (list, tuple)) and all(isinstance(entry, str) for entry in value)
    if not is_list or not value:
        raise ParameterError(name, value, 'is not a list of at least one string')
    if len(set(value)) < len(value):
        raise ParameterError(name, list(value), 'names something twice')
    return tuple(value)


def _labels(name: str, value: Any) -> tuple[str, ...]:
    labels = _texts(name, value)
    try:
        resolve_labels(labels)
    except TaskError as error:
        raise ParameterError(name, list(labels), f'cannot be used: {error}') from None
    return labels


def _number(low: float, high: float) -> Callable[[str, Any], float]:
    def check(name: str, value: Any) -> float:
        # An integer is a number too; True and False are not.
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ParameterError(name, value, f'is not a number: give {low:g} to {high:g}')
        if not low <= value <= high:  # nor is NaN, nor an integer that no float can hold
            raise ParameterError(name, value, f'is out of range: give {low:g} to {high:g}')
        return float(value)

    return check


def _integer(low: int, high: int) -> Callable[[str, Any], int]:
    def check(name: str, value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise ParameterError(name, value, f'is not an integer: give {low} to {high}')
        if not low <= value <= high:
            raise ParameterError(name, value, f'is out of range: give {low} to {high}')
        return value

    return check


def _boolean(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise ParameterError(name, value, 'is not true or false')
    return value


def _device(name: str, value: Any) -> str:
    if not re.fullmatch(r'auto|cpu|cuda(:\d+)?', _text(name, value)):
        raise ParameterError(name, value, 'is not auto, cpu, cuda or cuda:N')
    return value


def _operating_point(name: str, value: Any) -> str | int:
    if value in OPERATING_POINTS:
        return value
    if isinstance(value, str) and re.fullmatch('[0-9]{1,4}', value):
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    raise ParameterError(
        name, value, f'is neither {" nor ".join(OPERATING_POINTS)} nor a number of blocks'
    )


def _specs() -> tuple[Spec, ...]:
    return (
        Spec('model', 'demo', 'demo, a folder in Hugging Face format, or a hub id', _filled_text),
        Spec('device', 'auto', 'auto (cuda:0 if there is one), cpu or cuda:N', _device),
        Spec(
            'dtype',
            'auto',
            'auto (float16 on a GPU, float32 on a CPU), or one of ' + ', '.join(DTYPES[1:]),
            _one_of(DTYPES),
        ),
        Spec('tasks', list(TASK_NAMES), 'what is asked about every frame', _some_of(TASK_NAMES)),
        Spec(
            'branches', list(BRANCHES), '[skip] in production; both to compare', _some_of(BRANCHES)
        ),
        Spec(
            'rate_hz',
            1.0,
            'frames answered per second of header time, Hz',
            _number(*RATE_HZ_RANGE),
            read_only=False,
        ),
        Spec(
            'max_frame_age_sec',
            0.0,
            'older frames are dropped, s; 0 = off',
            _number(*MAX_FRAME_AGE_SEC_RANGE),
        ),
        Spec('image_transport', 'raw', 'raw, or compressed (JPEG, PNG)', _one_of(TRANSPORTS)),
        Spec(
            'input_reliability', 'best_effort', 'of the image subscription', _one_of(RELIABILITIES)
        ),
        *(
            Spec(
                f'skip_list.{name}',
                AUTO,
                "absolute path or shipped name of a skip list; auto = the demo model's own for "
                "demo, else none; '' = leave nothing out",
                _text,
            )
            for name in TASK_NAMES
        ),
        Spec(
            'operating_point',
            'high_performance',
            'which prefix of the skip lists: high_performance, high_sparsity or a number of blocks',
            _operating_point,
            read_only=False,
        ),
        *(
            Spec(
                f'prompt.{name}',
                DEFAULT_PROMPTS[name],
                'the question of this task',
                _prompt,
                read_only=False,
            )
            for name in TASK_NAMES
        ),
        Spec(
            'labels',
            ['coda'],
            'the name of a label set (coda, coco, scenes), or the labels themselves',
            _labels,
        ),
        *(
            Spec(
                f'max_new_tokens.{name}',
                DEFAULT_MAX_NEW_TOKENS[name],
                'longest answer, tokens',
                _integer(*MAX_NEW_TOKENS_RANGE),
            )
            for name in TASK_NAMES
        ),
        Spec(
            'overload_policy',
            'slow_down',
            'slow_down: both branches run and the rate falls; drop_full: the full branch gives '
            'way as soon as a newer due frame waits',
            _one_of(OVERLOAD_POLICIES),
        ),
        Spec(
            'memory_headroom_gib',
            1.0,
            'of the device to leave free; a model that would not is refused, GiB',
            _number(*MEMORY_HEADROOM_GIB_RANGE),
        ),
        Spec(
            'watchdog_sec',
            60.0,
            'state error when inference makes no progress (no block, no token) for so long, s',
            _number(*WATCHDOG_SEC_RANGE),
        ),
        Spec('start_enabled', True, 'false: wait for ~/enable', _boolean),
    )


SPECS: Mapping[str, Spec] = {spec.name: spec for spec in _specs()}


def values_from_file(path: str | os.PathLike[str]) -> dict[str, Any]:
    """
    Return what a parameter file in ROS 2's format sets, by parameter name; for use without ROS.

    Taken are the sections of `/**` and of nodes named dual_vlm, in any namespace; where two set the
    same, the later one holds. Raises ParameterError for a file that cannot be read or has no such
    section, and for a name that the node does not have.
    """
    try:
        content = yaml.safe_load(Path(path).expanduser().read_text(encoding='utf-8'))
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = ' '.join((getattr(error, 'strerror', None) or str(error)).split())
        raise ParameterError('file', str(path), f'cannot be read: {reason}') from None
    values: dict[str, Any] = {}
    try:
        set_values = [entry for section in _sections_in(content) for entry in _flat(section)]
    except RecursionError:
        raise ParameterError('file', str(path), 'refers to itself: write it out') from None
    for name, value in set_values:
        if name not in SPECS and name not in ROS_PARAMETERS:
            raise ParameterError(name, value, f'in {path} is no parameter of the node')
        values[name] = value
    if not values:
        raise ParameterError(
            'file', str(path), f'has no ros__parameters of {" or ".join(NODE_SECTIONS)}'
        )
    return {name: value for name, value in values.items() if name in SPECS}


def _sections_in(content: Any, name: str = '') -> Iterator[Any]:
    """Yield what is below each ros__parameters that is for the node; `name` is the key above."""
    for key, value in content.items() if isinstance(content, dict) else ():
        if key != 'ros__parameters':
            yield from _sections_in(value, str(key))
        elif name.rpartition('/')[2] in NODE_SECTIONS:
            yield value


def _flat(section: Any, prefix: str = '') -> Iterator[tuple[str, Any]]:
    """Yield name and value of each parameter; nested names get dots."""
    for key, value in section.items() if isinstance(section, dict) else ():
        if isinstance(value, dict):
            yield from _flat(value, f'{prefix}{key}.')
        else:
            yield f'{prefix}{key}', value


def settings_from(values: Mapping[str, Any]) -> Settings:
    """
    Return the checked snapshot of these values by parameter name; what is missing has its default.

    Raises ParameterError.
    """
    checked: dict[str, Any] = {
        name: spec.check(name, values.get(name, spec.default)) for name, spec in SPECS.items()
    }
    for group in ('skip_list', 'prompt', 'max_new_tokens'):
        checked[group] = {task: checked.pop(f'{group}.{task}') for task in TASK_NAMES}
    return Settings(**checked)


def load_skip_lists(settings: Settings) -> dict[str, SkipList]:
    """Return the skip lists of the tasks that have one; raises ParameterError if one is bad."""
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
    """Return the file or shipped name of the tasks that have a skip list; 'auto' is resolved."""
    if 'skip' not in settings.branches:
        return {}
    own = {task: f'demo_{task}' if settings.model == 'demo' else '' for task in settings.tasks}
    names = {task: settings.skip_list[task] for task in settings.tasks}
    names = {task: own[task] if name == AUTO else name for task, name in names.items()}
    return {task: name for task, name in names.items() if name}


def check_operating_point(settings: Settings, skip_lists: Mapping[str, SkipList]) -> None:
    """Raise ParameterError if a skip list does not have the operating point."""
    for task, skip_list in skip_lists.items():
        try:
            skip_list.blocks_at(settings.operating_point)
        except SkipListError as error:
            raise ParameterError(
                'operating_point', settings.operating_point, f'does not fit {task}: {error}'
            ) from None
