"""A skip list: the order in which blocks are removed, and where it came from."""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from gmskip_ros.errors import UserError
from gmskip_ros.numbers import is_number, is_whole_number, score_ratio_problem
from gmskip_ros.skipping.errors import SkipListError, SkipListMismatchError
from gmskip_ros.skipping.skip_set import (
    AXES,
    IMAGE_KV_POLICIES,
    KV_POLICIES,
    PHASES,
    SkipSet,
)

OPERATING_POINTS = ('high_performance', 'high_sparsity')
NOT_STATED = 'not stated'
JOINT = 'joint'  # the task of a list that was calibrated for all tasks together
# A score computed as k/n and one computed as ratio x full may differ in the last bits.
_RATIO_TOLERANCE = 1e-12
_TEXT_FIELDS = (  # that may be null
    'text_model_type',
    'target',
    'metric',
    'dtype',
    'quantization',
    'image_fit',
    'match',
)


@dataclass(frozen=True)
class Removal:
    """A removed block, and the score without it and all blocks removed before it.

    phases (of AXES): where it is removed; None = in the list's phases.
    """

    block: int
    score: float | None = None
    phases: tuple[str, ...] | None = None


@dataclass(frozen=True)
class ConstantBaseline:
    """The answer that scores best if it is given to every question, and its score."""

    answer: str
    score: float


@dataclass(frozen=True)
class Baselines:
    """Scores that need no model, on the images of the calibration; None = not stated."""

    constant: ConstantBaseline | None = None
    empty: float | None = None  # of an empty answer to every question


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


def derive_operating_points_of_sets(
    full_score: float, scores: Mapping[int, float], min_score_ratio: float
) -> dict[str, int]:
    """Return the operating points of sets that are not prefixes of one another, as two sizes.

    `scores`: by size. high_performance: the best score, the empty set (full_score) included; ties:
    the larger set. high_sparsity: the largest set that scores at least min_score_ratio x
    full_score, 0 if none does.
    """
    all_scores = {0: full_score, **scores}
    best = max(all_scores.values())
    reaching = [n for n, score in scores.items() if meets_ratio(score, full_score, min_score_ratio)]
    return {
        'high_performance': max(n for n, score in all_scores.items() if score == best),
        'high_sparsity': max(reaching, default=0),
    }


def meets_ratio(score: float, full_score: float, min_score_ratio: float) -> bool:
    """Return whether a score is at least min_score_ratio x full_score, up to rounding."""
    return score >= min_score_ratio * full_score - _RATIO_TOLERANCE * abs(full_score)


@dataclass(frozen=True)
class SkipList:
    """A skip list: blocks in order of removal (or, if not nested, one set per size).

    The fields are those of the file (see load_skip_list) and have the same meaning; None = not
    stated. The scores of `sets`, which the file has beside their blocks, are in `set_scores`. The
    constructor checks them: SkipListError names the field, the value and the remedy.
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
    quantization: str | None = None  # of the decoder's linear layers: 'none', 'int8', 'int4'
    image_fit: str | None = None  # how frames became the model's square
    max_image_tokens: int | None = None  # the cap on tiles; 0 = none
    match: str | None = None  # how answers were read
    kv: str | None = None  # of SkipSet; None = its default
    image_kv: str | None = None  # of SkipSet; None = its default
    protect: tuple[int, int] | None = None  # how many first and last blocks were to stay
    min_score_ratio: float | None = None
    full_score: float | None = None
    near_tie_margin: float | None = None  # how close logits were asked about alone in the search
    forced: str | None = None  # why the calibration was refused before --force
    baselines: Baselines | None = None
    warnings: tuple[str, ...] = ()  # of the calibration; a line each
    calibration: Mapping[str, object] | None = None  # dataset, images, sha256, seed, ...
    created: str | None = None  # UTC, '2026-11-20T12:00:00Z'
    software: Mapping[str, str] = field(default_factory=dict)  # package: version
    provenance: str = ''
    nested: bool = True
    sets: Mapping[int, tuple[int, ...]] = field(default_factory=dict)  # only if not nested
    set_scores: Mapping[int, float] = field(default_factory=dict)  # by size; of all sets or none

    def __post_init__(self) -> None:
        for name in ('model', 'task', 'method'):
            _check_text(name, getattr(self, name))
        for name in _TEXT_FIELDS:
            _check_text(name, getattr(self, name), or_none=True)
        if not isinstance(self.provenance, str):
            raise _wrong('provenance', self.provenance, 'is not text; put it in quotes')
        _check_whole_number('num_blocks', self.num_blocks, least=1)
        self._set('phases', _checked_phases('phases', self.phases))
        _check_policy('kv', self.kv, KV_POLICIES)
        _check_policy('image_kv', self.image_kv, IMAGE_KV_POLICIES)
        if self.protect is not None:
            self._set('protect', _checked_protect(self.protect, self.num_blocks))
        _check_text('forced', self.forced, or_none=True)
        if self.forced is not None and len(self.forced.splitlines()) > 1:
            raise _wrong('forced', self.forced, 'has several lines; write one')
        _check_baselines(self.baselines)
        self._set('warnings', _checked_warnings(self.warnings))
        _check_prompt(self.prompt)
        if self.max_image_tokens is not None:
            _check_whole_number('max_image_tokens', self.max_image_tokens, least=0)
        _check_number('min_score_ratio', self.min_score_ratio)
        _check_number('near_tie_margin', self.near_tie_margin)
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
        for name in ('sets', 'set_scores'):
            if getattr(self, name):
                raise _wrong(
                    name, getattr(self, name), 'is allowed only with nested: false; remove it'
                )
        if not isinstance(self.removed, Sequence) or isinstance(self.removed, str):
            raise _wrong('removed', self.removed, 'is not a sequence of Removal')
        self._set(
            'removed',
            tuple(_checked_removal(f'removed[{i}]', entry) for i, entry in enumerate(self.removed)),
        )
        self._check_blocks(
            'removed',
            [
                (f'removed[{i}].block', removal.block, removal.phases or self.phases)
                for i, removal in enumerate(self.removed)
            ],
        )
        scores = [removal.score for removal in self.removed]
        known = [score for score in scores if score is not None]
        if len(known) not in (0, len(scores)):
            i = scores.index(None)
            raise _wrong(f'removed[{i}].score', None, 'is missing; score all removals or none')
        derived: dict[str, int] | None = None
        if not self.removed:
            derived = dict.fromkeys(OPERATING_POINTS, 0)
        elif known:
            full_score, ratio = self._needed_by_scores('removals')
            derived = derive_operating_points(full_score, known, ratio)
        self._choose_operating_points(range(len(self.removed) + 1), derived)
        points = self.operating_points or {}
        if set(points) != set(OPERATING_POINTS):
            raise _wrong('operating_points', points, f'must give {" and ".join(OPERATING_POINTS)}')

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
            self._check_blocks(
                f'sets.{size}',
                [(f'sets.{size}[{i}]', block, self.phases) for i, block in enumerate(blocks)],
            )
            if len(blocks) != size:
                raise _wrong(f'sets.{size}', list(blocks), f'has {len(blocks)} blocks, not {size}')
            sets[size] = tuple(blocks)
        self._set('sets', sets)
        scores = self._checked_set_scores()
        self._set('set_scores', scores)
        derived: dict[str, int] | None = None
        if scores:
            full_score, ratio = self._needed_by_scores('sets')
            derived = derive_operating_points_of_sets(full_score, scores, ratio)
        self._choose_operating_points([0, *sets], derived)

    def _checked_set_scores(self) -> dict[int, float]:
        if not isinstance(self.set_scores, Mapping):
            raise _wrong('set_scores', self.set_scores, 'is not a mapping {size: score, ...}')
        scores = {size: score for size, score in self.set_scores.items() if score is not None}
        for size, score in scores.items():
            if size not in self.sets:
                raise _wrong('set_scores', size, 'is not the size of a set; remove it')
            _check_number(f'sets.{size}.score', score)
        if scores:
            for size in self.sets:
                if size not in scores:
                    raise _wrong(f'sets.{size}.score', None, 'is missing; score all sets or none')
        return scores

    def _needed_by_scores(self, scored: str) -> tuple[float, float]:
        """Return full_score and min_score_ratio, without which scores mean nothing."""
        missing = f'is missing, but {scored} have scores; add it'
        if self.full_score is None:
            raise _wrong('full_score', None, missing)
        if self.min_score_ratio is None:
            raise _wrong('min_score_ratio', None, missing)
        return self.full_score, self.min_score_ratio

    def _choose_operating_points(
        self, lengths: Iterable[int], derived: Mapping[str, int] | None
    ) -> None:
        """Set the operating points: the stated ones, which must be those derived, if any."""
        if self.operating_points is None and derived is not None:
            self._set('operating_points', derived)
        points = self._checked_operating_points(lengths)
        for name, length in (derived or {}).items():
            if name in points and points[name] != length:
                raise _wrong(
                    f'operating_points.{name}',
                    points[name],
                    f'does not follow from the scores; write {length} or correct the scores',
                )
        # Sets may state some points or none: the others follow from the scores as well.
        self._set('operating_points', {**(derived or {}), **points} if not self.nested else points)

    def _check_blocks(self, name: str, places: Sequence[tuple[str, int, tuple[str, ...]]]) -> None:
        """Check blocks that are skipped together: (where it stands, block, its phases)."""
        first, last = self.protect or (0, 0)
        skipped: dict[str, set[int]] = {axis: set() for axis in AXES}
        for where, block, phases in places:
            _check_whole_number(where, block, least=0)
            count = self.num_blocks
            if block >= count:
                raise _wrong(where, block, f'is not one of the {count} blocks; use 0..{count - 1}')
            if block < first or block >= count - last:
                problem = f'is protected (protect: [{first}, {last}]); correct one of the two'
                raise _wrong(where, block, problem)
            for phase in phases:
                if block in skipped[phase]:
                    raise _wrong(where, block, f'is listed twice for {phase}; list it once')
                skipped[phase].add(block)
        for phase in PHASES:  # `image` may have all blocks: text tokens run them
            if len(skipped[phase]) >= self.num_blocks:
                raise SkipListError(
                    f'{name}: all {self.num_blocks} blocks are removed in {phase}; '
                    'keep at least one'
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

    @property
    def cautions(self) -> tuple[str, ...]:
        """What whoever uses the list should know: that it was forced, then its `warnings`."""
        if self.forced is None:
            return self.warnings
        return (f'calibrated with --force, although {self.forced}', *self.warnings)

    def blocks_at(self, operating_point: str | int) -> tuple[int, ...]:
        """Return the blocks skipped at an operating point in any phase, in the order of removal.

        `operating_point` is 'high_performance', 'high_sparsity' or a number of blocks (8 or '8');
        of removals, where a block is listed for one phase and later for another: it is returned
        once. Raises SkipListError if the list has no such point.
        """
        return tuple(dict.fromkeys(block for block, _ in self._removals_at(operating_point)))

    def skip_set_at(self, operating_point: str | int) -> SkipSet:
        """Return what is skipped at an operating point, with the list's phases and policies.

        Argument and error are those of `blocks_at`.
        """
        axes: dict[str, list[int]] = {axis: [] for axis in AXES}
        for block, phases in self._removals_at(operating_point):
            for phase in phases:
                axes[phase].append(block)
        return SkipSet(
            prefill=axes['prefill'],
            decode=axes['decode'],
            image=axes['image'],
            kv=self.kv or KV_POLICIES[0],
            image_kv=self.image_kv or IMAGE_KV_POLICIES[0],
        )

    def _removals_at(self, operating_point: str | int) -> list[tuple[int, tuple[str, ...]]]:
        """Return the blocks removed at an operating point, each with its phases."""
        length = self._length_at(operating_point)
        if self.nested:
            return [(entry.block, entry.phases or self.phases) for entry in self.removed[:length]]
        return [(block, self.phases) for block in (self.sets[length] if length else ())]

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
        quantization: str | None = None,
        max_new_tokens: int,
        task: str | None = None,
        model: str | None = None,
        image_fit: str | None = None,
        max_image_tokens: int | None = None,
        match: str | None = None,
    ) -> list[str]:
        """Return one line for each setting in use that differs from the calibration's.

        The list's own `cautions` come first. Settings that the list does not state, and arguments
        that are None, are not compared. Raises SkipListMismatchError if the model has a different
        number of blocks.
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
            ('quantization', self.quantization, quantization),
            ('image_fit', self.image_fit, image_fit),
            ('max_image_tokens', self.max_image_tokens, max_image_tokens),
            ('match', self.match, match),
        ]
        differences = [
            f'calibrated with {name} {stated!r}, running with {used!r}'
            for name, stated, used in pairs
            if stated not in (None, NOT_STATED) and used is not None and stated != used
        ]
        return [f'skip list for {self.task}: {line}' for line in (*self.cautions, *differences)]


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


def _checked_phases(name: str, phases: object) -> tuple[str, ...]:
    known = ', '.join(AXES)
    if not isinstance(phases, Sequence) or isinstance(phases, str) or not phases:
        raise _wrong(name, phases, f'is not a list; write one or more of {known}')
    for i, phase in enumerate(phases):
        if phase not in AXES:
            raise _wrong(f'{name}[{i}]', phase, f'is unknown; use one or more of {known}')
    if len(set(phases)) != len(phases):
        raise _wrong(name, list(phases), 'names a phase twice; name it once')
    return tuple(phases)


def _checked_removal(name: str, removal: object) -> Removal:
    if not isinstance(removal, Removal):
        raise _wrong(name, removal, 'is not a Removal')
    _check_number(f'{name}.score', removal.score)
    if removal.phases is None:
        return removal
    return replace(removal, phases=_checked_phases(f'{name}.phases', removal.phases))


def _check_policy(name: str, policy: object, known: tuple[str, ...]) -> None:
    if policy is not None and policy not in known:
        raise _wrong(name, policy, f'is unknown; use {" or ".join(known)}')


def _checked_protect(protect: object, num_blocks: int) -> tuple[int, int]:
    if not isinstance(protect, Sequence) or isinstance(protect, str) or len(protect) != 2:
        raise _wrong('protect', protect, 'is not [first, last]; write two numbers of blocks')
    first, last = (
        _check_whole_number(f'protect[{i}]', count, least=0) for i, count in enumerate(protect)
    )
    if first + last > num_blocks:
        raise _wrong('protect', [first, last], f'is more than the {num_blocks} blocks; use fewer')
    return first, last


def _check_baselines(baselines: object) -> None:
    if baselines is None:
        return
    if not isinstance(baselines, Baselines):
        raise _wrong('baselines', baselines, 'is not a Baselines')
    _check_number('baselines.empty', baselines.empty)
    constant = baselines.constant
    if constant is None:
        return
    if not isinstance(constant, ConstantBaseline):
        raise _wrong('baselines.constant', constant, 'is not a ConstantBaseline')
    if not isinstance(constant.answer, str):  # it may be empty
        raise _wrong('baselines.constant.answer', constant.answer, 'is not text; put it in quotes')
    if constant.score is None:
        raise _wrong('baselines.constant.score', None, 'is not a number; write one')
    _check_number('baselines.constant.score', constant.score)


def _checked_warnings(warnings: object) -> tuple[str, ...]:
    if not isinstance(warnings, Sequence) or isinstance(warnings, str):
        raise _wrong('warnings', warnings, 'is not a list of texts; write [...]')
    for i, warning in enumerate(warnings):
        _check_text(f'warnings[{i}]', warning)
        if len(warning.splitlines()) > 1:
            raise _wrong(f'warnings[{i}]', warning, 'has several lines; write one')
    return tuple(warnings)


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
    """Return the list that the same search would have found with a different min_score_ratio.

    A search that stopped at the ratio removes, with a higher one, the same blocks in the same
    order, and stops before the first block whose removal makes the score too low. A list that goes
    on beyond its ratio (calibrated for given sizes) and sets that are not prefixes of one another
    keep all blocks with any ratio; only the operating points change. `name` names the list in
    errors. Raises UserError if the list does not hold the scores that this needs.
    """
    if problem := score_ratio_problem(min_score_ratio):
        raise UserError(f'--min-score-ratio {min_score_ratio:g}: {problem}')
    scores = [removal.score for removal in skip_list.removed if removal.score is not None]
    has_scores = bool(skip_list.set_scores)
    if skip_list.nested:
        has_scores = len(scores) == len(skip_list.removed)
    full_score, least = skip_list.full_score, skip_list.min_score_ratio
    if not has_scores or full_score is None or least is None:
        raise UserError(
            f'{name}: does not record the score after each removal; calibrate with '
            f'--min-score-ratio {min_score_ratio}'
        )
    removed = skip_list.removed
    own_points = derive_operating_points(full_score, scores, least)
    stopped_at_ratio = skip_list.nested and own_points['high_sparsity'] == len(removed)
    if stopped_at_ratio:
        if min_score_ratio < least:
            raise UserError(
                f'--min-score-ratio {min_score_ratio}: the search for {name} stopped at {least} '
                f'and records nothing below it; give {least} or more, or calibrate again'
            )
        points = derive_operating_points(full_score, scores, min_score_ratio)
        removed = removed[: points['high_sparsity']]
    command = f'gmskip skiplist reselect --min-score-ratio {min_score_ratio}'
    return replace(
        skip_list,
        removed=removed,
        min_score_ratio=min_score_ratio,
        operating_points=None,  # derived from the scores
        provenance='; '.join(filter(None, (skip_list.provenance, command))),
    )
