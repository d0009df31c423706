"""A skip list: the order in which blocks are removed, and where it came from."""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from gmskip_ros.errors import UserError
from gmskip_ros.numbers import is_number, is_whole_number
from gmskip_ros.skipping.errors import SkipListError, SkipListMismatchError
from gmskip_ros.skipping.skip_set import PHASES

OPERATING_POINTS = ('high_performance', 'high_sparsity')
NOT_STATED = 'not stated'
JOINT = 'joint'  # the task of a list that was calibrated for all tasks together
# A score computed as k/n and one computed as ratio x full may differ in the last bits.
_RATIO_TOLERANCE = 1e-12


@dataclass(frozen=True)
class Removal:
    """A removed block, and the score without it and all blocks removed before it."""

    block: int
    score: float | None = None


@dataclass(frozen=True)
class Prompt:
    """The prompt of the calibration; None = not stated."""

    text: str | None = None
    template_sha256: str | None = None
    max_new_tokens: int | None = None
    rendered: str | None = None  # the text in the chat template, as the model received it


def derive_operating_points(
    full_score: float, scores: Sequence[float], min_score_ratio: float
) -> dict[str, int]:
    """Return the operating points of a trajectory, as the lengths of two of its prefixes.

    high_performance: the longest of the prefixes with the best score, the empty prefix
    (full_score) included. high_sparsity: the longest prefix all of whose prefixes score at least
    min_score_ratio x full_score.
    """
    all_scores = [full_score, *scores]
    best = max(all_scores)
    high_performance = max(n for n, score in enumerate(all_scores) if score == best)
    high_sparsity = 0
    for n, score in enumerate(scores, start=1):
        if not meets_ratio(score, full_score, min_score_ratio):
            break
        high_sparsity = n
    return {'high_performance': high_performance, 'high_sparsity': high_sparsity}


def meets_ratio(score: float, full_score: float, min_score_ratio: float) -> bool:
    """Return whether a score is at least min_score_ratio x full_score, up to rounding."""
    return score >= min_score_ratio * full_score - _RATIO_TOLERANCE * abs(full_score)


@dataclass(frozen=True)
class SkipList:
    """A skip list: blocks in order of removal (or, if not nested, one set per size).

    The fields are those of the file (see load_skip_list) and have the same meaning; None = not
    stated. The constructor checks them: SkipListError names the field, the value and the remedy.
    """

    model: str
    num_blocks: int
    task: str
    removed: tuple[Removal, ...] = ()
    operating_points: Mapping[str, int] | None = None  # lengths; None = derived from the scores
    method: str = 'gm-skip'
    phases: tuple[str, ...] = PHASES
    text_model_type: str | None = None
    target: str | None = None
    metric: str | None = None
    prompt: Prompt = field(default_factory=Prompt)
    dtype: str | None = None
    image_fit: str | None = None  # how frames became the model's square
    max_image_tokens: int | None = None  # the cap on tiles; 0 = none
    match: str | None = None  # how answers were read
    min_score_ratio: float | None = None
    full_score: float | None = None
    calibration: Mapping[str, object] | None = None  # dataset, images, sha256, seed, ...
    created: str | None = None  # UTC, '2026-11-20T12:00:00Z'
    software: Mapping[str, str] = field(default_factory=dict)  # package: version
    provenance: str = ''
    nested: bool = True
    sets: Mapping[int, tuple[int, ...]] = field(default_factory=dict)  # only if not nested

    def __post_init__(self) -> None:
        for name in ('model', 'task', 'method'):
            _check_text(name, getattr(self, name))
        for name in ('text_model_type', 'target', 'metric', 'dtype', 'image_fit', 'match'):
            _check_text(name, getattr(self, name), or_none=True)
        if not isinstance(self.provenance, str):
            raise _wrong('provenance', self.provenance, 'is not text; put it in quotes')
        _check_whole_number('num_blocks', self.num_blocks, least=1)
        self._set('phases', _checked_phases(self.phases))
        _check_prompt(self.prompt)
        if self.max_image_tokens is not None:
            _check_whole_number('max_image_tokens', self.max_image_tokens, least=0)
        _check_number('min_score_ratio', self.min_score_ratio)
        if self.min_score_ratio is not None and self.min_score_ratio < 0:
            raise _wrong('min_score_ratio', self.min_score_ratio, 'is negative; use 0 or more')
        _check_number('full_score', self.full_score)
        _check_created(self.created)
        if self.calibration is not None:
            self._set('calibration', _checked_mapping('calibration', self.calibration))
            for name, value in self.calibration.items():
                if value is not None and not isinstance(value, (str, int, float)):
                    problem = 'is not text, a number or null; put it in quotes'
                    raise _wrong(f'calibration.{short(name)}', value, problem)
        self._set('software', _checked_mapping('software', self.software))
        for name, version in self.software.items():
            _check_text(f'software.{short(name)}', version)
        if not isinstance(self.nested, bool):
            raise _wrong('nested', self.nested, 'is neither true nor false')
        if self.nested:
            self._check_trajectory()
        else:
            self._check_sets()

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    def _check_trajectory(self) -> None:
        if self.sets:
            raise _wrong('sets', self.sets, 'is allowed only with nested: false; remove it')
        if not isinstance(self.removed, Sequence) or isinstance(self.removed, str):
            raise _wrong('removed', self.removed, 'is not a sequence of Removal')
        self._set('removed', tuple(self.removed))
        for i, removal in enumerate(self.removed):
            if not isinstance(removal, Removal):
                raise _wrong(f'removed[{i}]', removal, 'is not a Removal')
            _check_number(f'removed[{i}].score', removal.score)
        self._check_blocks('removed', [removal.block for removal in self.removed], '].block')
        scores = [removal.score for removal in self.removed]
        known = [score for score in scores if score is not None]
        if len(known) not in (0, len(scores)):
            i = scores.index(None)
            raise _wrong(f'removed[{i}].score', None, 'is missing; score all removals or none')
        derived: dict[str, int] | None = None
        if not self.removed:
            derived = dict.fromkeys(OPERATING_POINTS, 0)
        elif known:
            missing = 'is missing, but removals have scores; add it'
            if self.full_score is None:
                raise _wrong('full_score', None, missing)
            if self.min_score_ratio is None:
                raise _wrong('min_score_ratio', None, missing)
            derived = derive_operating_points(self.full_score, known, self.min_score_ratio)
        if self.operating_points is None and derived is not None:
            self._set('operating_points', derived)
        points = self._checked_operating_points(range(len(self.removed) + 1))
        if set(points) != set(OPERATING_POINTS):
            raise _wrong('operating_points', points, f'must give {" and ".join(OPERATING_POINTS)}')
        for name, length in (derived or {}).items():
            if points[name] != length:
                raise _wrong(
                    f'operating_points.{name}',
                    points[name],
                    f'does not follow from the scores; write {length} or correct the scores',
                )
        self._set('operating_points', points)

    def _check_sets(self) -> None:
        if self.removed:
            raise SkipListError('removed: allowed only with nested: true; remove it')
        if not isinstance(self.sets, Mapping) or not self.sets:
            raise _wrong('sets', self.sets, 'holds no set; write {8: [...], 16: [...]}')
        sets: dict[int, tuple[int, ...]] = {}
        for size, blocks in self.sets.items():
            _check_whole_number('sets', size, least=1)
            if not isinstance(blocks, Sequence) or isinstance(blocks, str):
                raise _wrong(f'sets.{size}', blocks, 'is not a list of block indices')
            self._check_blocks(f'sets.{size}', blocks)
            if len(blocks) != size:
                raise _wrong(f'sets.{size}', list(blocks), f'has {len(blocks)} blocks, not {size}')
            sets[size] = tuple(blocks)
        self._set('sets', sets)
        self._set('operating_points', self._checked_operating_points([0, *sets]))

    def _check_blocks(self, name: str, blocks: Sequence[int], suffix: str = ']') -> None:
        seen: set[int] = set()
        for i, block in enumerate(blocks):
            where = f'{name}[{i}{suffix}'
            _check_whole_number(where, block, least=0)
            if block >= self.num_blocks:
                count = self.num_blocks
                raise _wrong(where, block, f'is not one of the {count} blocks; use 0..{count - 1}')
            if block in seen:
                raise _wrong(where, block, 'is listed twice; list it once')
            seen.add(block)
        if len(seen) >= self.num_blocks:
            raise SkipListError(
                f'{name}: all {self.num_blocks} blocks are removed; keep at least one'
            )

    def _checked_operating_points(self, lengths: Iterable[int]) -> dict[str, int]:
        stated = _checked_mapping('operating_points', self.operating_points or {})
        for name in stated:
            if name not in OPERATING_POINTS:
                raise SkipListError(
                    f'operating_points: {short(name)} is unknown; '
                    f'use {" and ".join(OPERATING_POINTS)}'
                )
        lengths = list(lengths)
        points: dict[str, int] = {}
        for name in OPERATING_POINTS:
            if name in stated:
                length = _check_whole_number(f'operating_points.{name}', stated[name], least=0)
                if length not in lengths:
                    raise _wrong(
                        f'operating_points.{name}',
                        length,
                        f'is not a length of this list; use {_range_text(lengths)}',
                    )
                points[name] = length
        return points

    def blocks_at(self, operating_point: str | int) -> tuple[int, ...]:
        """Return the blocks skipped at an operating point, in the order of removal.

        `operating_point` is 'high_performance', 'high_sparsity' or a number of blocks (8 or '8').
        Raises SkipListError if the list has no such point.
        """
        length = self._length_at(operating_point)
        if self.nested:
            return tuple(removal.block for removal in self.removed[:length])
        return self.sets[length] if length else ()

    def _length_at(self, operating_point: str | int) -> int:
        lengths = range(len(self.removed) + 1) if self.nested else sorted([0, *self.sets])
        points = self.operating_points or {}
        point = operating_point.strip() if isinstance(operating_point, str) else operating_point
        if isinstance(point, str):
            if point in points:
                return points[point]
            if re.fullmatch(r'[0-9]{1,9}', point):
                point = int(point)
        if type(point) is int and point in lengths:
            return point
        known = ''.join(f'{name} ({length}), ' for name, length in points.items())
        size = f'{len(self.removed)} removed blocks' if self.nested else f'{len(self.sets)} sets'
        raise SkipListError(
            f'operating_point: {short(operating_point)} is not in the skip list for {self.task}, '
            f'which has {size}; use {known}or a number of blocks: {_range_text(lengths)}'
        )

    def warnings_for(
        self,
        *,
        num_blocks: int,
        text_model_type: str | None,
        prompt: str,
        template_sha256: str | None,
        dtype: str,
        max_new_tokens: int,
        task: str | None = None,
        model: str | None = None,
        image_fit: str | None = None,
        max_image_tokens: int | None = None,
        match: str | None = None,
    ) -> list[str]:
        """Return one line for each setting in use that differs from the calibration's.

        Settings that the list does not state, and arguments that are None, are not compared.
        Raises SkipListMismatchError if the model has a different number of blocks.
        """
        if num_blocks != self.num_blocks:
            raise SkipListMismatchError(
                f'num_blocks: the skip list for {self.task} is for a model with {self.num_blocks} '
                f'blocks ({self.model}), the loaded model has {num_blocks}; '
                'use a list calibrated for this model'
            )
        pairs: list[tuple[str, object, object]] = [
            ('model', self.model, model),
            ('task', None if self.task == JOINT else self.task, task),
            ('text_model_type', self.text_model_type, text_model_type),
            ('prompt', self.prompt.text, prompt),
            ('chat template (sha256)', self.prompt.template_sha256, template_sha256),
            ('max_new_tokens', self.prompt.max_new_tokens, max_new_tokens),
            ('dtype', self.dtype, dtype),
            ('image_fit', self.image_fit, image_fit),
            ('max_image_tokens', self.max_image_tokens, max_image_tokens),
            ('match', self.match, match),
        ]
        return [
            f'skip list for {self.task}: calibrated with {name} {stated!r}, running with {used!r}'
            for name, stated, used in pairs
            if stated not in (None, NOT_STATED) and used is not None and stated != used
        ]


def short(value: object) -> str:
    """Return a value for an error message: one short line, however broken the file is."""
    return reprlib.repr(value)


def _range_text(lengths: Iterable[int]) -> str:
    """Return '0..4' for consecutive lengths from 0, '0, 2, 3' for others."""
    lengths = list(lengths)
    if len(lengths) > 1 and lengths == list(range(lengths[-1] + 1)):
        return f'0..{lengths[-1]}'
    return ', '.join(map(str, lengths))


def _wrong(name: str, value: object, problem: str) -> SkipListError:
    return SkipListError(f'{name}: {short(value)} {problem}')


def _check_text(name: str, value: object, or_none: bool = False) -> None:
    if value is None and or_none:
        return
    if not isinstance(value, str):
        raise _wrong(name, value, 'is not text; put it in quotes')
    if not value.strip():
        raise _wrong(name, value, f'is empty; write {"null" if or_none else repr(NOT_STATED)}')


def _check_whole_number(name: str, value: object, least: int) -> int:
    if not is_whole_number(value):
        raise _wrong(name, value, 'is not a whole number')
    if value < least:
        raise _wrong(name, value, f'is too small; use {least} or more')
    return value


def _check_number(name: str, value: object) -> None:
    if value is None:
        return
    if not is_number(value):
        raise _wrong(name, value, 'is not a number; write a number or null')
    try:
        finite = math.isfinite(value)
    except OverflowError:  # a whole number too large for a float
        finite = False
    if not finite:
        raise _wrong(name, value, 'is not finite; write a number or null')


def _check_prompt(prompt: object) -> None:
    if not isinstance(prompt, Prompt):
        raise _wrong('prompt', prompt, 'is not a Prompt')
    _check_text('prompt.text', prompt.text, or_none=True)
    _check_text('prompt.template_sha256', prompt.template_sha256, or_none=True)
    _check_text('prompt.rendered', prompt.rendered, or_none=True)
    if prompt.max_new_tokens is not None:
        _check_whole_number('prompt.max_new_tokens', prompt.max_new_tokens, least=1)


def _checked_phases(phases: object) -> tuple[str, ...]:
    if not isinstance(phases, Sequence) or isinstance(phases, str) or not phases:
        raise _wrong('phases', phases, f'is not a list of {" and ".join(PHASES)}')
    for i, phase in enumerate(phases):
        if phase not in PHASES:
            raise _wrong(f'phases[{i}]', phase, f'is unknown; use {" and ".join(PHASES)}')
    if len(set(phases)) != len(phases):
        raise _wrong('phases', list(phases), 'names a phase twice')
    return tuple(phases)


def _check_created(created: object) -> None:
    if created is None:
        return
    if not isinstance(created, str) or not re.fullmatch(
        r'\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ', created, re.ASCII
    ):
        raise _wrong('created', created, 'is not a time in UTC like 2026-11-20T12:00:00Z')


def _checked_mapping(name: str, value: object) -> dict[str, object]:
    if not isinstance(value, Mapping):
        raise _wrong(name, value, 'is not a mapping {name: value, ...}')
    for key in value:
        if not isinstance(key, str):
            raise _wrong(name, key, 'is not a text key; put it in quotes')
    return dict(value)


def reselect(skip_list: SkipList, min_score_ratio: float, name: str) -> SkipList:
    """Return the list that the same search would have found with a higher min_score_ratio.

    That search removes the same blocks in the same order, and stops before the first block whose
    removal makes the score too low. `name` names the list in errors. Raises UserError if the list
    does not hold the scores that this needs.
    """
    scores = [removal.score for removal in skip_list.removed if removal.score is not None]
    has_scores = skip_list.nested and len(scores) == len(skip_list.removed)
    full_score, least = skip_list.full_score, skip_list.min_score_ratio
    if not has_scores or full_score is None or least is None:
        raise UserError(
            f'{name}: does not record the score after each removal; calibrate with '
            f'--min-score-ratio {min_score_ratio}'
        )
    if not least <= min_score_ratio < float('inf'):
        raise UserError(
            f'--min-score-ratio {min_score_ratio}: the search for {name} stopped at {least} and '
            f'records nothing below it; give {least} or more, or calibrate again'
        )
    points = derive_operating_points(full_score, scores, min_score_ratio)
    command = f'gmskip skiplist reselect --min-score-ratio {min_score_ratio}'
    removed = skip_list.removed[: points['high_sparsity']]
    return replace(
        skip_list,
        removed=removed,
        min_score_ratio=min_score_ratio,
        operating_points=None,  # derived from the remaining scores
        provenance='; '.join(filter(None, (skip_list.provenance, command))),
    )
