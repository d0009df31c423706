"""Skip lists in Python: operating points, prefixes, and mismatches with the model in use."""

from __future__ import annotations

import dataclasses

import pytest

from gmskip_ros.skipping import (
    Baselines,
    Prompt,
    Removal,
    SkipList,
    SkipListError,
    SkipListMismatchError,
    SkipSet,
    derive_operating_points,
    derive_operating_points_of_sets,
    load_skip_list,
    shipped_skip_lists,
)

PUBLISHED = {
    'single_object': ([29, 16, 27, 21, 28, 24, 20, 17, 2, 6, 7, 25, 8, 11, 12, 26], 11),
    'multi_object': ([24, 28, 23, 13, 25, 6, 21, 17, 9, 18], 9),
    'captioning': ([13, 19, 12, 4, 10, 23, 21], 3),
}
IN_USE = {
    'num_blocks': 8,
    'text_model_type': 'llama',
    'prompt': 'What?',
    'template_sha256': 'abc',
    'dtype': 'float16',
    'quantization': 'int8',
    'max_new_tokens': 8,
    'task': 'single_object',
    'model': 'some/model',
    'image_fit': 'pad',
    'max_image_tokens': 1000,
    'match': 'content',
}


def scored(**changes: object) -> SkipList:
    fields = {
        'model': 'some/model',
        'num_blocks': 8,
        'task': 'single_object',
        'text_model_type': 'llama',
        'prompt': Prompt('What?', 'abc', 8),
        'dtype': 'float16',
        'quantization': 'int8',
        'image_fit': 'pad',
        'max_image_tokens': 1000,
        'match': 'content',
        'min_score_ratio': 0.9,
        'full_score': 0.5,
        'removed': (Removal(7, 0.5), Removal(3, 0.6), Removal(5, 0.6), Removal(0, 0.46)),
    }
    return SkipList(**{**fields, **changes})


def fixed_interval(**changes: object) -> SkipList:
    fields = {
        'model': 'some/model',
        'num_blocks': 8,
        'task': 'captioning',
        'method': 'fixed-interval',
        'nested': False,
        'sets': {2: [3, 6], 3: [2, 4, 6]},
    }
    return SkipList(**{**fields, **changes})


@pytest.mark.parametrize('task', PUBLISHED)
def test_published_lists(task: str) -> None:
    blocks, high_performance = PUBLISHED[task]
    skip_list = load_skip_list(f'gmskip_{task}')
    assert (skip_list.task, skip_list.num_blocks, skip_list.method) == (task, 32, 'gm-skip')
    assert skip_list.phases == ('prefill', 'decode')
    assert skip_list.blocks_at('high_sparsity') == tuple(blocks)
    assert skip_list.blocks_at('high_performance') == tuple(blocks[:high_performance])
    # Nothing is invented that the paper does not state.
    assert skip_list.model == 'not stated'
    assert skip_list.text_model_type is skip_list.target is skip_list.dtype is None
    assert skip_list.full_score is skip_list.min_score_ratio is None
    assert {removal.score for removal in skip_list.removed} == {None}
    assert 'arXiv:2508.18227' in skip_list.provenance
    assert skip_list.warnings_for(**{**IN_USE, 'num_blocks': 32, 'task': task}) == []


def test_shipped_names() -> None:
    names = shipped_skip_lists()
    assert {f'gmskip_{task}' for task in PUBLISHED} <= set(names)
    assert names == sorted(names)
    for name in names:
        assert load_skip_list(name).task in PUBLISHED


@pytest.mark.parametrize(
    ('full', 'scores', 'ratio', 'high_performance', 'high_sparsity'),
    [
        (0.5, [], 1.0, 0, 0),
        (0.5, [0.4], 1.0, 0, 0),
        (0.5, [0.5], 1.0, 1, 1),  # a tie with the full model: the longer prefix
        (0.5, [0.6, 0.7, 0.7, 0.5, 0.4], 1.0, 3, 4),
        (0.5, [0.4, 0.9], 1.0, 2, 0),  # below the ratio once ends high_sparsity
        (0.5, [0.4, 0.9], 0.8, 2, 2),
        (0.5, [0.45, 0.44, 0.45], 0.9, 0, 1),
        (0.1, [0.09, 0.08], 0.9, 0, 1),  # in floats, 0.9 * 0.1 is slightly above 0.09
        (40 / 48, [32 / 48, 31 / 48], 0.8, 0, 1),  # and 0.8 * (40/48) slightly above 32/48
        (1.0, [0.95 - 1e-6], 0.95, 0, 0),
        (0.0, [0.0, 0.0], 1.0, 2, 2),
        (0.5, [0.1, 0.0], 0.0, 0, 2),
        (-1.0, [-0.5, -2.0], 1.0, 1, 1),
    ],
)
def test_operating_points_follow_from_the_scores(
    full: float, scores: list[float], ratio: float, high_performance: int, high_sparsity: int
) -> None:
    assert derive_operating_points(full, scores, ratio) == {
        'high_performance': high_performance,
        'high_sparsity': high_sparsity,
    }


def test_a_list_with_scores_derives_its_operating_points() -> None:
    assert scored().operating_points == {'high_performance': 3, 'high_sparsity': 4}
    assert scored(min_score_ratio=1.0).operating_points['high_sparsity'] == 3
    assert scored(removed=()).operating_points == {'high_performance': 0, 'high_sparsity': 0}


@pytest.mark.parametrize(
    ('point', 'blocks'),
    [
        ('high_performance', (7, 3, 5)),
        ('high_sparsity', (7, 3, 5, 0)),
        (0, ()),
        ('0', ()),
        (2, (7, 3)),
        ('2', (7, 3)),
        (' 2 ', (7, 3)),
        (4, (7, 3, 5, 0)),
    ],
)
def test_blocks_at_an_operating_point(point: str | int, blocks: tuple[int, ...]) -> None:
    assert scored().blocks_at(point) == blocks


@pytest.mark.parametrize(
    'point', [5, '5', -1, '-1', 'best', '', 'high performance', True, 2.0, None, '9' * 50]
)
def test_an_unknown_operating_point_is_refused(point: object) -> None:
    with pytest.raises(SkipListError) as caught:
        scored().blocks_at(point)
    message = str(caught.value)
    assert message.startswith('operating_point: ')
    assert 'has 4 removed blocks; use high_performance (3), high_sparsity (4)' in message
    assert '0..4' in message
    assert '\n' not in message and len(message) < 300


def test_sets_that_are_not_prefixes_of_one_another() -> None:
    skip_list = fixed_interval(operating_points={'high_sparsity': 3})
    assert skip_list.blocks_at(2) == (3, 6)
    assert skip_list.blocks_at('3') == skip_list.blocks_at('high_sparsity') == (2, 4, 6)
    assert skip_list.blocks_at(0) == ()
    for point in (1, 4, 'high_performance'):
        with pytest.raises(SkipListError, match='0, 2, 3'):
            skip_list.blocks_at(point)


def mixed(**changes: object) -> SkipList:
    """Return a list whose removals differ in where they apply."""
    removed = (
        Removal(7, 0.5),
        Removal(3, 0.6, ('decode',)),
        Removal(5, 0.6, ('image',)),
        Removal(3, 0.46, ('prefill',)),
    )
    return scored(removed=removed, **changes)


def test_skip_sets_have_the_phases_and_the_policies_of_the_list() -> None:
    assert scored().skip_set_at(2) == SkipSet([7, 3], [7, 3])
    decode = scored(phases=('decode',), kv='input', image_kv='none')
    assert decode.skip_set_at('2') == SkipSet(decode=[7, 3], kv='input', image_kv='none')
    assert scored(phases=('image',)).skip_set_at(1) == SkipSet(image=[7])
    assert fixed_interval(phases=('prefill',)).skip_set_at(3) == SkipSet(prefill=[2, 4, 6])
    assert fixed_interval().skip_set_at(0) == scored().skip_set_at(0) == SkipSet()
    with pytest.raises(SkipListError, match='operating_point: 5 is not'):
        scored().skip_set_at(5)


def test_a_removal_may_have_its_own_phases() -> None:
    skip_list = mixed()
    assert skip_list.skip_set_at(1) == SkipSet([7], [7])
    assert skip_list.skip_set_at(2) == SkipSet([7], [7, 3])
    assert skip_list.skip_set_at('high_performance') == SkipSet([7], [7, 3], [5])
    assert skip_list.skip_set_at('high_sparsity') == SkipSet([7, 3], [7, 3], [5])
    # Operating points are numbers of removals; a block is named once.
    assert skip_list.operating_points == {'high_performance': 3, 'high_sparsity': 4}
    assert skip_list.blocks_at(4) == (7, 3, 5)
    first = Removal(2, phases=('prefill', 'image'))
    assert mixed(phases=('decode',)).skip_set_at(1) == SkipSet(decode=[7])
    assert scored(removed=[dataclasses.replace(first, score=1)]).skip_set_at(1).image == frozenset()


@pytest.mark.parametrize('phase', ['prefill', 'decode'])
def test_a_block_runs_in_each_pass(phase: str) -> None:
    every = [Removal(block, 0.5, (phase, 'image')) for block in range(8)]
    assert scored(removed=every[:7]).skip_set_at(7).blocks == tuple(range(7))
    with pytest.raises(SkipListError, match=f'all 8 blocks are removed in {phase}; keep'):
        scored(removed=every)
    other = 'decode' if phase == 'prefill' else 'prefill'
    halves = [Removal(block, 0.5, ((phase, other)[block % 2],)) for block in range(8)]
    assert scored(removed=halves).blocks_at(8) == tuple(range(8))  # each pass runs half of them
    # Text tokens run the blocks of `image`.
    images = [Removal(block, 0.5, ('image',)) for block in range(8)]
    assert scored(removed=images).skip_set_at(8).image == frozenset(range(8))


@pytest.mark.parametrize(
    ('full', 'scores', 'ratio', 'high_performance', 'high_sparsity'),
    [
        (0.5, {2: 0.4, 3: 0.6}, 1.0, 3, 3),
        (0.5, {2: 0.6, 3: 0.6, 5: 0.1}, 1.0, 3, 3),  # ties: the larger
        (0.5, {2: 0.1, 3: 0.1, 5: 0.5}, 1.0, 5, 5),  # any set that reaches the ratio counts
        (0.5, {5: 0.5, 2: 0.6}, 1.0, 2, 5),  # in whatever order
        (0.5, {2: 0.4, 3: 0.3}, 1.0, 0, 0),
        (0.5, {2: 0.4, 3: 0.3}, 0.7, 0, 2),
        (0.1, {2: 0.09}, 0.9, 0, 2),  # in floats, 0.9 * 0.1 is slightly above 0.09
    ],
)
def test_operating_points_of_sets_follow_from_their_scores(
    full: float, scores: dict, ratio: float, high_performance: int, high_sparsity: int
) -> None:
    points = {'high_performance': high_performance, 'high_sparsity': high_sparsity}
    assert derive_operating_points_of_sets(full, scores, ratio) == points
    sets = {size: range(size) for size in scores}
    skip_list = fixed_interval(sets=sets, set_scores=scores, full_score=full, min_score_ratio=ratio)
    assert skip_list.operating_points == points
    assert skip_list.blocks_at('high_sparsity') == tuple(range(high_sparsity))


def test_sets_without_scores_have_only_numbers() -> None:
    assert fixed_interval(full_score=0.5, min_score_ratio=1.0).operating_points == {}


def test_the_lists_own_warnings_come_first() -> None:
    noted = scored(warnings=['round 1: all candidates tie', 'round 2: as well'])
    found = noted.warnings_for(**{**IN_USE, 'dtype': 'float32'})
    assert found[:2] == [f'skip list for single_object: {line}' for line in noted.warnings]
    assert len(found) == 3 and 'dtype' in found[2]


def test_a_list_that_was_forced_is_a_warning() -> None:
    forced = scored(forced='captioning: CIDEr of a single image is 0', warnings=['round 1: a tie'])
    line = 'calibrated with --force, although captioning: CIDEr of a single image is 0'
    assert forced.cautions == (line, 'round 1: a tie')
    found = forced.warnings_for(**IN_USE)
    assert found == [f'skip list for single_object: {each}' for each in forced.cautions]
    for wrong in ('', 'two\nlines', 3):
        with pytest.raises(SkipListError, match=r'^forced: '):
            scored(forced=wrong)


def test_a_model_with_a_different_number_of_blocks_is_refused() -> None:
    with pytest.raises(SkipListMismatchError) as caught:
        scored().warnings_for(**{**IN_USE, 'num_blocks': 24})
    message = str(caught.value)
    assert '8' in message and '24' in message and 'some/model' in message
    assert '\n' not in message


@pytest.mark.parametrize(
    ('name', 'used'),
    [
        ('text_model_type', 'qwen2'),
        ('prompt', 'Which?'),
        ('template_sha256', 'abd'),
        ('dtype', 'float32'),
        ('quantization', 'none'),
        ('max_new_tokens', 16),
        ('task', 'captioning'),
        ('model', 'another/model'),
        ('image_fit', 'checkpoint'),
        ('max_image_tokens', 0),
        ('match', 'forms'),
    ],
)
def test_any_other_difference_is_one_warning(name: str, used: object) -> None:
    assert scored().warnings_for(**IN_USE) == []
    warnings = scored().warnings_for(**{**IN_USE, name: used})
    assert len(warnings) == 1
    assert repr(used) in warnings[0] and repr(IN_USE[name]) in warnings[0]
    assert '\n' not in warnings[0]


def test_what_is_not_stated_gives_no_warning() -> None:
    unstated = dict.fromkeys(('dtype', 'quantization', 'image_fit', 'max_image_tokens', 'match'))
    silent = scored(model='not stated', text_model_type='not stated', prompt=Prompt(), **unstated)
    other = {**IN_USE, 'text_model_type': 'qwen2', 'prompt': 'Which?', 'template_sha256': 'x'}
    assert silent.warnings_for(**{**other, 'dtype': 'float32', 'max_new_tokens': 99}) == []
    assert scored().warnings_for(**{**IN_USE, 'template_sha256': None, 'task': None}) == []


def test_a_list_for_all_tasks_together_fits_each_task() -> None:
    joint = scored(task='joint', prompt=Prompt())
    for task in ('single_object', 'captioning'):
        assert joint.warnings_for(**{**IN_USE, 'task': task, 'prompt': 'Which?'}) == []


def test_a_skip_list_does_not_change_with_its_arguments() -> None:
    blocks, software = [Removal(1)], {'torch': '2.13.0'}
    skip_list = SkipList(
        model='m',
        num_blocks=2,
        task='t',
        removed=blocks,
        operating_points={'high_performance': 1, 'high_sparsity': 1},
        software=software,
    )
    blocks.append(Removal(0))
    software['torch'] = '0'
    assert skip_list.blocks_at('high_sparsity') == (1,)
    assert skip_list.software == {'torch': '2.13.0'}
    with pytest.raises(dataclasses.FrozenInstanceError):
        skip_list.task = 'captioning'


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'num_blocks': 0}, 'num_blocks: 0 is too small; use 1'),
        ({'num_blocks': True}, 'num_blocks: True is not a whole number'),
        ({'removed': [29, 16]}, 'removed[0]: 29 is not a Removal'),
        ({'removed': 'abc'}, "removed: 'abc' is not a sequence of Removal"),
        ({'prompt': {'text': 'What?'}}, 'is not a Prompt'),
        ({'full_score': None}, 'full_score: None is missing, but removals have scores'),
        ({'min_score_ratio': None}, 'min_score_ratio: None is missing'),
        ({'created': 'yesterday'}, "created: 'yesterday' is not a time in UTC like 2026"),
        ({'operating_points': {'high_performance': 3}}, 'high_performance and high_sparsity'),
        ({'full_score': 10**400}, 'is not finite'),
        ({'baselines': {'empty': 0}}, 'is not a Baselines'),
        ({'baselines': Baselines(constant=0.5)}, 'baselines.constant: 0.5 is not a ConstantBase'),
        ({'set_scores': {2: 0.5}}, 'set_scores: {2: 0.5} is allowed only with nested: false'),
    ],
)
def test_a_list_made_in_python_is_checked(changes: dict, message: str) -> None:
    with pytest.raises(SkipListError) as caught:
        scored(**changes)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'sets': {}}, 'sets: {} holds no set'),
        ({'sets': {2: [1]}}, 'sets.2: [1] has 1 blocks, not 2'),
        ({'sets': {2: [1, 1]}}, 'sets.2[1]: 1 is listed twice'),
        ({'sets': {2: [1, 8]}}, 'sets.2[1]: 8 is not one of the 8 blocks; use 0..7'),
        ({'sets': {2: '12'}}, "sets.2: '12' is not a list"),
        ({'sets': {True: [1]}}, 'sets: True is not a whole number'),
        ({'sets': {0: []}}, 'sets: 0 is too small'),
        ({'sets': {8: range(8)}}, 'all 8 blocks are removed'),
        ({'protect': (4, 0)}, 'sets.2[0]: 3 is protected (protect: [4, 0])'),
        ({'set_scores': {2: 0.5, 4: 0.5}}, 'set_scores: 4 is not the size of a set; remove it'),
        ({'set_scores': [0.5]}, 'set_scores: [0.5] is not a mapping'),
        ({'removed': [Removal(1)]}, 'removed: allowed only with nested: true'),
        ({'operating_points': {'high_sparsity': 4}}, 'operating_points.high_sparsity: 4'),
        ({'nested': True}, 'sets: '),
        ({'nested': 0}, 'nested: 0 is neither true nor false'),
    ],
)
def test_sets_are_checked(changes: dict, message: str) -> None:
    with pytest.raises(SkipListError) as caught:
        fixed_interval(**changes)
    assert message in str(caught.value)
