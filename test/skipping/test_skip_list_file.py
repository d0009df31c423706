"""The skip-list file: what is accepted, what is refused and how, and writing without loss."""

from __future__ import annotations

import dataclasses
import os
import random
import resource
import signal
from pathlib import Path

import pytest
import yaml

from gmskip_ros.skipping import (
    AXES,
    Baselines,
    ConstantBaseline,
    Prompt,
    Removal,
    SkipList,
    SkipListError,
    load_skip_list,
    save_skip_list,
    shipped_skip_lists,
)

# The example of the file format, with its comments.
EXAMPLE = """\
schema: gmskip/skip-list/1
model: llava-hf/llava-1.5-7b-hf   # or "not stated"
text_model_type: llama            # of the language decoder; null if not stated
num_blocks: 32
task: single_object
target: person                    # single_object only; null = any
method: gm-skip
phases: [prefill, decode]
metric: accuracy
prompt: {text: "What is the main object?", template_sha256: "0a1b", max_new_tokens: 8}
dtype: float16
min_score_ratio: 1.0
full_score: 0.42
removed:                          # in the order of removal
  - {block: 29, score: 0.55}
  - {block: 16, score: 0.50}
  - {block: 27, score: 0.42}
  - {block: 21, score: 0.41}
operating_points: {high_performance: 1, high_sparsity: 3}
calibration: {dataset: coco-train2017, images: 1000, sha256: "ff", seed: 0}
created: 2026-11-20T12:00:00Z
software: {gmskip_ros: 0.1.0, torch: 2.13.0, transformers: 5.17.0}
provenance: free text
"""
IN_PYTHON = SkipList(
    model='llava-hf/llava-1.5-7b-hf',
    text_model_type='llama',
    num_blocks=32,
    task='single_object',
    target='person',
    method='gm-skip',
    phases=('prefill', 'decode'),
    metric='accuracy',
    prompt=Prompt('What is the main object?', '0a1b', 8),
    dtype='float16',
    min_score_ratio=1.0,
    full_score=0.42,
    removed=(Removal(29, 0.55), Removal(16, 0.50), Removal(27, 0.42), Removal(21, 0.41)),
    operating_points={'high_performance': 1, 'high_sparsity': 3},
    calibration={'dataset': 'coco-train2017', 'images': 1000, 'sha256': 'ff', 'seed': 0},
    created='2026-11-20T12:00:00Z',
    software={'gmskip_ros': '0.1.0', 'torch': '2.13.0', 'transformers': '5.17.0'},
    provenance='free text',
)
NOT_NESTED = dataclasses.replace(
    IN_PYTHON, nested=False, removed=(), operating_points=None, sets={2: (3, 6), 3: (2, 4, 6)}
)
# The example of version 2, with its comments.
EXAMPLE_2 = (
    EXAMPLE.replace('skip-list/1', 'skip-list/2')
    .replace(
        'dtype:', 'kv: input\nimage_kv: none\nprotect: [1, 2]\nnear_tie_margin: 0.0003\ndtype:'
    )
    .replace(
        'removed: ',
        'baselines: {constant: {answer: person, score: 0.3}, empty: 0.0}\n'
        'warnings: ["round 1: all candidates tie"]\nremoved: ',
    )
    .replace('block: 16,', 'block: 16, phases: [decode],')
    .replace('block: 27,', 'block: 16, phases: [prefill, image],')
)
IN_PYTHON_2 = dataclasses.replace(
    IN_PYTHON,
    kv='input',
    image_kv='none',
    protect=(1, 2),
    near_tie_margin=0.0003,
    baselines=Baselines(ConstantBaseline('person', 0.3), empty=0.0),
    warnings=('round 1: all candidates tie',),
    removed=(
        Removal(29, 0.55),
        Removal(16, 0.50, ('decode',)),
        Removal(16, 0.42, ('prefill', 'image')),
        Removal(21, 0.41),
    ),
)
SCORED_SETS = dataclasses.replace(NOT_NESTED, set_scores={2: 0.5, 3: 0.42})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / 'example.skip.yaml'


def refusal(file: Path, content: str | bytes) -> str:
    """Return the one-line error for a file with this content, without the file's name."""
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(SkipListError) as caught:
        load_skip_list(str(file))
    message = str(caught.value)
    assert message.startswith(f'{file}: ')
    assert '\n' not in message
    assert len(message) < len(str(file)) + 250
    return message.removeprefix(f'{file}: ')


def changed(old: str, new: str) -> str:
    assert EXAMPLE.count(old) == 1
    return EXAMPLE.replace(old, new)


def test_the_example_of_the_format(file: Path) -> None:
    file.write_text(EXAMPLE)
    assert load_skip_list(str(file)) == IN_PYTHON
    assert load_skip_list(file) == IN_PYTHON


def test_version_2_states_how_answers_were_read(file: Path) -> None:
    second = EXAMPLE.replace('skip-list/1', 'skip-list/2')
    file.write_text(second)  # all its own fields are optional
    assert load_skip_list(file) == IN_PYTHON
    file.write_text(second.replace('dtype:', 'match: content\ndtype:'))
    with_match = dataclasses.replace(IN_PYTHON, match='content')
    assert load_skip_list(file) == with_match
    for skip_list, version in ((IN_PYTHON, 1), (with_match, 2)):
        save_skip_list(skip_list, file)
        assert file.read_text().startswith(f'schema: gmskip/skip-list/{version}\n')
        assert load_skip_list(file) == skip_list


def test_version_2_states_what_the_model_saw_and_read(file: Path) -> None:
    rendered = 'USER: <image>\nWhat: "it"? ASSISTANT:'
    prompt = dataclasses.replace(IN_PYTHON.prompt, rendered=rendered)
    for changes in (
        {'image_fit': 'pad'},
        {'max_image_tokens': 0},
        {'prompt': prompt},
        {'quantization': 'int4'},
    ):
        skip_list = dataclasses.replace(IN_PYTHON, **changes)
        save_skip_list(skip_list, file)
        content = file.read_text()
        assert content.startswith('schema: gmskip/skip-list/2\n')
        # A field a line, even if the prompt has several: a difference of two files shows it whole.
        assert content.count('\n') <= EXAMPLE.count('\n') + 1
        assert load_skip_list(file) == skip_list


def test_version_2_states_how_blocks_are_skipped(file: Path) -> None:
    file.write_text(EXAMPLE_2)
    assert load_skip_list(file) == IN_PYTHON_2
    save_skip_list(IN_PYTHON_2, file)
    assert yaml.safe_load(file.read_text()) == yaml.safe_load(EXAMPLE_2)
    assert '  - {block: 16, phases: [decode], score: 0.5}\n' in file.read_text()


@pytest.mark.parametrize(
    'changes',
    [
        {'kv': 'none'},
        {'image_kv': 'input'},
        {'protect': (0, 0)},
        {'forced': 'captioning: CIDEr of "one" image'},
        {'baselines': Baselines()},
        {'baselines': Baselines(empty=0.0)},
        {'baselines': Baselines(ConstantBaseline('', 1.0))},
        {'warnings': ('round 1: a, "b"', 'round 2: c')},
        {'phases': ('image',)},
        {'removed': (Removal(3, 0.5, ('prefill', 'decode')),), 'operating_points': None},
    ],
)
def test_anything_that_version_2_added_makes_version_2(file: Path, changes: dict) -> None:
    skip_list = dataclasses.replace(IN_PYTHON, **changes)
    save_skip_list(skip_list, file)
    content = file.read_text()
    assert content.startswith('schema: gmskip/skip-list/2\n')
    assert load_skip_list(file) == skip_list
    older = refusal(file, content.replace('skip-list/2', 'skip-list/1'))
    assert 'gmskip/skip-list/1; write schema: gmskip/skip-list/2' in older


def test_sets_with_scores_stand_beside_plain_ones(file: Path) -> None:
    save_skip_list(NOT_NESTED, file)
    assert 'sets: {2: [3, 6], 3: [2, 4, 6]}\n' in file.read_text()
    save_skip_list(SCORED_SETS, file)
    content = file.read_text()
    assert content.startswith('schema: gmskip/skip-list/2\n')
    sets = 'sets: {2: {blocks: [3, 6], score: 0.5}, 3: {blocks: [2, 4, 6], score: 0.42}}\n'
    assert sets in content
    assert load_skip_list(file) == SCORED_SETS
    older = refusal(file, content.replace('skip-list/2', 'skip-list/1'))
    assert older.startswith('sets.2: ') and 'write schema: gmskip/skip-list/2' in older
    unscored = content.replace('score: 0.5}', 'score: null}').replace('0.42}}', 'null}}')
    file.write_text(unscored.replace('{high_performance: 2, high_sparsity: 3}', '{}'))
    assert load_skip_list(file) == NOT_NESTED


@pytest.mark.parametrize(
    ('old', 'new', 'message'),
    [
        ('score: 0.5}', 'score: null}', 'sets.2.score: None is missing; score all sets or none'),
        ('{blocks: [3, 6], score: 0.5}', '[3, 6]', 'sets.2.score: None is missing; score all'),
        ('score: 0.5}', 'score: .nan}', 'sets.2.score: nan is not finite'),
        ('score: 0.5}', 'score: high}', "sets.2.score: 'high' is not a number"),
        ('score: 0.5}', 'scores: 0.5}', "sets.2.'scores': is not a field"),
        (', score: 0.5}', '}', 'sets.2.score: is missing; add it'),
        ('blocks: [3, 6]', 'blocks: 3', 'sets.2: 3 is not a list of block indices'),
        ('blocks: [3, 6]', 'blocks: [3]', 'sets.2: [3] has 1 blocks, not 2'),
        ('full_score: 0.42', 'full_score: null', 'full_score: None is missing, but sets have'),
        ('min_score_ratio: 1.0', 'min_score_ratio: null', 'min_score_ratio: None is missing'),
        ('high_sparsity: 3', 'high_sparsity: 2', 'high_sparsity: 2 does not follow from the sc'),
        ('high_performance: 2', 'high_performance: 3', 'does not follow from the scores; write 2'),
    ],
)
def test_one_error_of_sets_is_named(file: Path, old: str, new: str, message: str) -> None:
    save_skip_list(SCORED_SETS, file)
    content = file.read_text()
    assert content.count(old) == 1
    assert message in refusal(file, content.replace(old, new))


@pytest.mark.parametrize(
    ('old', 'new', 'message'),
    [
        ('kv: input\n', 'kv: keep\n', "kv: 'keep' is unknown; use none or input"),
        ('kv: none\n', 'kv: [none]\n', "image_kv: ['none'] is unknown; use input or none"),
        ('[1, 2]', '[1]', 'protect: [1] is not [first, last]; write two numbers of blocks'),
        ('[1, 2]', '3', 'protect: 3 is not [first, last]'),
        ('[1, 2]', '[1, -1]', 'protect[1]: -1 is too small; use 0 or more'),
        ('[1, 2]', '[a, 1]', "protect[0]: 'a' is not a whole number"),
        ('[1, 2]', '[20, 20]', 'protect: [20, 20] is more than the 32 blocks; use fewer'),
        ('[1, 2]', '[1, 3]', 'removed[0].block: 29 is protected (protect: [1, 3]); correct one'),
        ('[1, 2]', '[17, 2]', 'removed[1].block: 16 is protected (protect: [17, 2])'),
        ('{answer: person, score: 0.3}', 'person', "baselines.constant: 'person' is not {answer"),
        ('score: 0.3}', 'score: null}', 'baselines.constant.score: None is not a number'),
        ('score: 0.3}', 'score: .inf}', 'baselines.constant.score: inf is not finite'),
        (', score: 0.3}', '}', 'baselines.constant.score: is missing'),
        ('answer: person', 'answer: 3', 'baselines.constant.answer: 3 is not text; put it in'),
        ('empty: 0.0', 'empty: x', "baselines.empty: 'x' is not a number"),
        ('empty: 0.0', 'blank: 0.0', "baselines.'blank': is not a field"),
        ('{constant: {answer: person, score: 0.3}, empty: 0.0}', '3', 'baselines: 3 is not {const'),
        ('["round 1: all candidates tie"]', 'tie', "warnings: 'tie' is not a list of texts"),
        ('["round 1: all candidates tie"]', '[1]', 'warnings[0]: 1 is not text; put it in quotes'),
        ('["round 1: all candidates tie"]', '["a\\nb"]', 'has several lines; write one'),
        ('["round 1: all candidates tie"]', '[""]', "warnings[0]: '' is empty"),
        ('phases: [decode]', 'phases: [text]', "removed[1].phases[0]: 'text' is unknown; use one"),
        ('phases: [decode]', 'phases: decode', "removed[1].phases: 'decode' is not a list; write"),
        ('phases: [decode]', 'phases: []', 'removed[1].phases: [] is not a list'),
        ('phases: [decode]', 'phases: [image, image]', 'names a phase twice; name it once'),
        ('phases: [decode]', 'phases: [image]', 'removed[2].block: 16 is listed twice for image'),
        ('phases: [decode], ', '', 'removed[2].block: 16 is listed twice for prefill; list it'),
    ],
)
def test_one_error_of_version_2_is_named(file: Path, old: str, new: str, message: str) -> None:
    assert EXAMPLE_2.count(old) == 1
    assert message in refusal(file, EXAMPLE_2.replace(old, new))


def random_skip_list(seed: int) -> SkipList:
    """Return a list in which any field may be stated, whatever it means together."""
    rng = random.Random(seed)

    def maybe(value: object) -> object:
        return value if rng.random() < 0.5 else None

    def phases() -> tuple[str, ...]:
        return tuple(rng.sample(AXES, rng.randint(1, 3)))

    num_blocks = rng.randint(2, 12)
    protect = maybe((rng.randint(0, 1), rng.randint(0, 1)))
    first, last = protect or (0, 0)
    blocks = list(range(first, num_blocks - last))[: num_blocks - 1]
    rng.shuffle(blocks)
    has_scores = rng.random() < 0.5
    changes: dict = {'num_blocks': num_blocks, 'protect': protect, 'phases': phases()}
    if rng.random() < 0.5:
        removed = [
            Removal(block, rng.random() if has_scores else None, maybe(phases()))
            for block in blocks
        ]
        points = {name: len(removed) for name in ('high_performance', 'high_sparsity')}
        scored = has_scores or not removed
        changes.update(removed=removed, operating_points=None if scored else points)
    else:
        sets = {n: tuple(rng.sample(blocks, n)) for n in range(1, len(blocks) + 1)}
        sets = sets or {1: (0,)}
        changes.update(
            nested=False,
            protect=protect if blocks else None,
            removed=(),
            sets=sets,
            set_scores={n: rng.random() for n in sets} if has_scores else {},
            operating_points=None,
        )
    constant = maybe(ConstantBaseline(rng.choice(NASTY_TEXTS), rng.random()))
    return dataclasses.replace(
        IN_PYTHON,
        kv=maybe(rng.choice(('none', 'input'))),
        image_kv=maybe(rng.choice(('none', 'input'))),
        baselines=maybe(Baselines(constant, maybe(rng.random()))),
        forced=maybe(rng.choice(ONE_LINE_TEXTS)),
        warnings=tuple(rng.sample(ONE_LINE_TEXTS, rng.choice((0, 0, 1, 3)))),
        match=maybe('content'),
        image_fit=maybe('pad'),
        quantization=maybe('int8'),
        **changes,
    )


def test_any_list_survives(file: Path) -> None:
    for seed in range(150):
        skip_list = random_skip_list(seed)
        save_skip_list(skip_list, file)
        assert load_skip_list(file) == skip_list, seed


def test_relative_paths_and_the_home_folder(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text(EXAMPLE)
    monkeypatch.chdir(file.parent)
    monkeypatch.setenv('HOME', str(file.parent))
    for path in ('example.skip.yaml', './example.skip.yaml', '~/example.skip.yaml'):
        assert load_skip_list(path) == IN_PYTHON


def test_a_shipped_name_is_not_shadowed_by_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / 'gmskip_captioning').write_text('not a skip list')
    monkeypatch.chdir(tmp_path)
    assert load_skip_list('gmskip_captioning').task == 'captioning'


@pytest.mark.parametrize('name', ['gmskip_captionin', '', ' ', 'gmskip_captioning.skip'])
def test_an_unknown_name_lists_the_shipped_ones(name: str) -> None:
    with pytest.raises(SkipListError) as caught:
        load_skip_list(name)
    message = str(caught.value)
    assert repr(name) in message and '\n' not in message
    for shipped in shipped_skip_lists():
        assert shipped in message


def test_any_yaml_reader_sees_the_same(file: Path) -> None:
    save_skip_list(IN_PYTHON, file)
    saved, example = yaml.safe_load(file.read_text()), yaml.safe_load(EXAMPLE)
    assert saved == example
    assert list(saved) == list(example)  # the order of the format


def test_one_removal_a_line(file: Path) -> None:
    save_skip_list(IN_PYTHON, file)
    lines = file.read_text().splitlines()
    assert '  - {block: 29, score: 0.55}' in lines
    assert len(lines) == len(EXAMPLE.splitlines())


NASTY_TEXTS = [
    'a: b # no comment',
    "it's",
    '"quoted"',
    'two\nlines\n',
    ' spaces ',
    'tab\there',
    '2.10',
    'null',
    'yes',
    '- a',
    '{a}',
    '日本語 🚗',
    'line\u2028separator',
    'next\x85line',
    'bell\x07',
    '%x',
    '@',
    'x' * 5000,
    '2026-11-20T12:00:00Z',
    '1e3',
    '~',
    '0x10',
    '\\n',
    'half\ud800',
]


ONE_LINE_TEXTS = [text for text in NASTY_TEXTS if len(text.splitlines()) == 1 and text.strip()]


@pytest.mark.parametrize('text', NASTY_TEXTS)
def test_any_text_survives(file: Path, text: str) -> None:
    skip_list = dataclasses.replace(
        IN_PYTHON,
        model=text,
        target=text,
        provenance=text,
        prompt=Prompt(text, text, 3),
        software={'torch': text, text: '1'},
        calibration={text: text, 'n': 0.1, 'none': None, 'yes': True},
        baselines=Baselines(ConstantBaseline(text, 0.5)),
    )
    save_skip_list(skip_list, file)
    assert load_skip_list(file) == skip_list


@pytest.mark.parametrize('score', [0, 1, 0.1, 1 / 3, 1e-17, 123456789.123456789, 1e300, -2.5])
def test_scores_survive_to_the_last_bit(file: Path, score: float) -> None:
    skip_list = dataclasses.replace(
        IN_PYTHON, full_score=score, removed=(Removal(3, score),), operating_points=None
    )
    save_skip_list(skip_list, file)
    loaded = load_skip_list(file)
    assert loaded == skip_list
    assert loaded.removed[0].score == score == loaded.full_score


@pytest.mark.parametrize(
    'skip_list',
    [
        NOT_NESTED,
        IN_PYTHON_2,
        SCORED_SETS,
        dataclasses.replace(NOT_NESTED, operating_points={'high_sparsity': 3}),
        dataclasses.replace(IN_PYTHON, removed=(), operating_points=None),
        dataclasses.replace(IN_PYTHON, phases=('decode',), created=None, calibration=None),
        *map(load_skip_list, shipped_skip_lists()),
    ],
)
def test_round_trip(file: Path, skip_list: SkipList) -> None:
    save_skip_list(skip_list, file)
    first = file.read_bytes()
    assert load_skip_list(file) == skip_list
    save_skip_list(load_skip_list(file), file)
    assert file.read_bytes() == first


def test_a_time_with_an_offset_is_converted_to_utc(file: Path) -> None:
    for written in ('2026-11-20T21:00:00+09:00', '2026-11-20 12:00:00 Z', '"2026-11-20T12:00:00Z"'):
        file.write_text(changed('2026-11-20T12:00:00Z', written))
        assert load_skip_list(file).created == '2026-11-20T12:00:00Z'


FIELDS = [line.split(':')[0] for line in EXAMPLE.splitlines() if not line.startswith(' ')]


@pytest.mark.parametrize('name', FIELDS)
def test_a_missing_field_is_named(file: Path, name: str) -> None:
    data = yaml.safe_load(EXAMPLE)
    del data[name]
    assert refusal(file, yaml.safe_dump(data)).startswith(f'{name}: ')


@pytest.mark.parametrize(
    ('old', 'new', 'message'),
    [
        # the file as a whole
        ('skip-list/1', 'skip-list/3', "schema: 'gmskip/skip-list/3' is unknown; this version"),
        ('dtype:', 'match: forms\ndtype:', 'match: is not a field of gmskip/skip-list/1; write'),
        ('dtype:', 'quantization: int8\ndtype:', 'quantization: is not a field of gmskip/skip'),
        ('dtype:', 'image_fit: pad\ndtype:', 'image_fit: is not a field of gmskip/skip-list/1'),
        ('max_new_tokens: 8', 'max_new_tokens: 8, rendered: a', 'prompt.rendered: is not a field'),
        ('gmskip/skip-list/1', '1', 'schema: 1 is unknown; this version reads gmskip'),
        ('metric: accuracy', 'metrics: accuracy', "'metrics': is not a field"),
        ('metric: accuracy', 'metric: accuracy\n1: 2', '1: is not a field'),
        ('metric: accuracy', 'metric: a\nmetric: b', "line 10: 'metric' is given twice"),
        ('{block: 29,', '{block: 29, block: 3,', "line 15: 'block' is given twice"),
        ('metric: accuracy', 'metric: "open', 'is not valid YAML'),
        ('metric: accuracy', 'metric: !!python/name:os.system', 'is not valid YAML'),
        ('metric: accuracy', 'metric: a: b', 'line 9, column 10: is not valid YAML'),
        # blocks
        ('block: 16', 'block: 29', 'removed[1].block: 29 is listed twice'),
        ('block: 16', 'block: -1', 'removed[1].block: -1 is too small; use 0 or more'),
        ('block: 16', 'block: 32', 'removed[1].block: 32 is not one of the 32 blocks; use 0..31'),
        ('block: 16', 'block: 16.0', 'removed[1].block: 16.0 is not a whole number'),
        ('block: 16', 'block: true', 'removed[1].block: True is not a whole number'),
        ('block: 16', 'block: "16"', "removed[1].block: '16' is not a whole number"),
        ('block: 16', 'block: null', 'removed[1].block: None is not a whole number'),
        ('{block: 16, score: 0.50}', '16', 'removed[1]: 16 is not {block, score'),
        ('{block: 16, score: 0.50}', '{block: 16}', 'removed[1].score: is missing'),
        ('score: 0.50', 'score: 0.50, x: 1', "removed[1].'x': is not a field"),
        ('num_blocks: 32', 'num_blocks: 4', 'removed[0].block: 29 is not one of the 4 blocks'),
        ('num_blocks: 32', 'num_blocks: 0', 'num_blocks: 0 is too small'),
        ('num_blocks: 32', 'num_blocks: 32.0', 'num_blocks: 32.0 is not a whole number'),
        # scores and operating points
        ('score: 0.50', 'score: high', "removed[1].score: 'high' is not a number"),
        ('score: 0.50', 'score: .nan', 'removed[1].score: nan is not finite'),
        ('score: 0.50', 'score: true', 'removed[1].score: True is not a number'),
        ('score: 0.50', 'score: null', 'removed[1].score: None is missing; score all removals'),
        ('full_score: 0.42', 'full_score: null', 'full_score: None is missing'),
        ('full_score: 0.42', 'full_score: .inf', 'full_score: inf is not finite'),
        ('min_score_ratio: 1.0', 'min_score_ratio: -1', 'min_score_ratio: -1 is negative'),
        ('high_performance: 1', 'high_performance: 2', 'operating_points.high_performance: 2 does'),
        ('high_sparsity: 3', 'high_sparsity: 4', 'does not follow from the scores; write 3 or'),
        (
            'high_sparsity: 3',
            'high_sparsity: 5',
            'high_sparsity: 5 is not a length of this list; use 0..4',
        ),
        ('high_sparsity: 3', 'high_sparsity: -1', 'points.high_sparsity: -1 is too small'),
        ('high_sparsity: 3', 'high_sparsity: x', "operating_points.high_sparsity: 'x' is not a"),
        ('high_sparsity: 3', 'highest: 3', "operating_points: 'highest' is unknown"),
        ('{high_performance: 1, high_sparsity: 3}', 'null', 'operating_points: null'),
        ('{high_performance: 1, high_sparsity: 3}', '[1, 3]', 'operating_points: [1, 3] is not'),
        # the rest
        ('[prefill, decode]', '[prefill, train]', "phases[1]: 'train' is unknown; use one or more"),
        (
            '[prefill, decode]',
            '[]',
            'phases: [] is not a list; write one or more of prefill,',
        ),
        ('[prefill, decode]', 'decode', "phases: 'decode' is not a list"),
        ('[prefill, decode]', '[decode, decode]', 'names a phase twice'),
        ('metric: accuracy', 'metric: 3', 'metric: 3 is not text; put it in quotes'),
        ('metric: accuracy', 'metric: ""', "metric: '' is empty; write null"),
        ('task: single_object', 'task: null', 'task: None is not text'),
        ('max_new_tokens: 8', 'max_new_tokens: 0', 'prompt.max_new_tokens: 0 is too small'),
        ('max_new_tokens: 8', 'max_tokens: 8', "prompt.'max_tokens': is not a field"),
        ('torch: 2.13.0', 'torch: 2.13', "software.'torch': 2.13 is not text; put it in quotes"),
        ('seed: 0', 'seed: [0]', "calibration.'seed': [0] is not text, a number or null"),
        ('2026-11-20T12:00:00Z', '2026-11-20', 'is not a time in UTC like'),
        ('2026-11-20T12:00:00Z', '2026-11-20T12:00:00', 'is not a time in UTC like'),
        ('provenance: free text', 'provenance: [a]', "provenance: ['a'] is not text"),
        (
            'provenance: free text',
            'provenance: x\nsets: {1: [1]}',
            'sets: allowed only with nested: false',
        ),
        ('provenance: free text', 'provenance: x\nnested: no way', "nested: 'no way' is neither"),
        ('provenance: free text', 'provenance: x\nnested: false', 'sets: is missing'),
    ],
)
def test_one_error_is_named(file: Path, old: str, new: str, message: str) -> None:
    assert message in refusal(file, changed(old, new))


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (b'', 'is not a skip list; the first field must be schema: gmskip/skip-list/2'),
        (b'just text', 'is not a skip list'),
        (b'- a\n- b\n', 'is not a skip list'),
        (b'a: b\n\xff\xfe', 'line 2: is not UTF-8 text'),
        (b'\x89PNG\r\n\x1a\n\x00\x00', 'is not UTF-8 text'),
        (b'a: \x00', 'is not valid YAML'),
        (b'a: [1, 2\nb: 3\n', 'line 2, column 2: is not valid YAML'),
        (b'a: b\n---\nc: d\n', 'is not valid YAML'),
        (b'schema: &a [*a]\n', 'is unknown'),
        (b'[' * 20000, 'is not valid YAML'),
        (b'schema: ' + b'x' * 100000, 'is unknown'),
        (b'? [a]\n: b\n', 'is not valid YAML'),
    ],
)
def test_not_a_skip_list_at_all(file: Path, content: bytes, message: str) -> None:
    assert message in refusal(file, content)


def test_all_blocks_removed(file: Path) -> None:
    removed = ''.join(f'  - {{block: {block}, score: 1.0}}\n' for block in range(4))
    start, end = EXAMPLE.index('  - {block: 29'), EXAMPLE.index('operating_points')
    content = EXAMPLE[:start] + removed + EXAMPLE[end:]
    assert 'all 4 blocks are removed in prefill; keep at least one' in refusal(
        file, content.replace('num_blocks: 32', 'num_blocks: 4')
    )


def test_a_byte_order_mark_and_crlf_are_accepted(file: Path) -> None:
    file.write_bytes(b'\xef\xbb\xbf' + EXAMPLE.replace('\n', '\r\n').encode())
    assert load_skip_list(file) == IN_PYTHON


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('.', 'is a folder'),
        ('absent.skip.yaml', 'does not exist'),
        ('pipe', 'is not a regular file'),
        ('loop', 'does not exist'),
        ('example.skip.yaml/x', 'does not exist'),
        ('nul\x00', "nul\\x00': "),
        ('two\nlines', "two\\nlines': does not exist"),
        ('x' * 300, 'cannot be read'),
    ],
)
def test_paths_that_cannot_be_read(file: Path, name: str, message: str) -> None:
    file.write_text(EXAMPLE)
    os.mkfifo(file.parent / 'pipe')
    (file.parent / 'loop').symlink_to('loop')
    with pytest.raises(SkipListError) as caught:
        load_skip_list(f'{file.parent}/{name}')
    assert message in str(caught.value) and '\n' not in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason='root may read and write everywhere')
def test_without_permission(file: Path) -> None:
    file.write_text(EXAMPLE)
    file.chmod(0)
    with pytest.raises(SkipListError, match=r'cannot be read.*ermission'):
        load_skip_list(file)
    file.chmod(0o600)
    file.parent.chmod(0o500)
    try:
        with pytest.raises(SkipListError, match=r'cannot be written.*ermission'):
            save_skip_list(NOT_NESTED, file)
        assert file.read_text() == EXAMPLE
    finally:
        file.parent.chmod(0o700)


def assert_nothing_was_lost(file: Path) -> None:
    assert file.read_text() == EXAMPLE
    assert [entry.name for entry in file.parent.iterdir()] == [file.name]  # no temporary files


def test_a_full_disk_leaves_the_older_file(file: Path) -> None:
    file.write_text(EXAMPLE)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))  # bytes, fewer than needed
    try:
        with pytest.raises(SkipListError) as caught:
            save_skip_list(NOT_NESTED, file)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert str(caught.value).startswith(f'{file}: cannot be written (')
    assert 'space' in str(caught.value) and '\n' not in str(caught.value)
    assert_nothing_was_lost(file)


@pytest.mark.parametrize('step', ['fsync', 'replace'])
@pytest.mark.parametrize('error', [OSError(28, 'No space left on device'), KeyboardInterrupt()])
def test_an_interrupted_save_leaves_the_older_file(
    file: Path, monkeypatch: pytest.MonkeyPatch, step: str, error: BaseException
) -> None:
    file.write_text(EXAMPLE)

    def fail(*args: object) -> None:
        raise error

    monkeypatch.setattr(os, step, fail)
    with pytest.raises((SkipListError, KeyboardInterrupt)):
        save_skip_list(NOT_NESTED, file)
    monkeypatch.undo()
    assert_nothing_was_lost(file)


@pytest.mark.parametrize('where', ['absent/x.skip.yaml', '.', 'nul\x00', 'x' * 300])
def test_paths_that_cannot_be_written(file: Path, where: str) -> None:
    file.write_text(EXAMPLE)
    with pytest.raises(SkipListError) as caught:
        save_skip_list(IN_PYTHON, f'{file.parent}/{where}')
    assert 'cannot be written' in str(caught.value) and '\n' not in str(caught.value)
    assert_nothing_was_lost(file)


def test_saving_replaces_a_file_and_keeps_a_link(file: Path) -> None:
    link = file.parent / 'link.skip.yaml'
    link.symlink_to(file.name)
    save_skip_list(NOT_NESTED, link)
    save_skip_list(IN_PYTHON, str(link))
    assert link.is_symlink()
    assert load_skip_list(file) == IN_PYTHON
    assert file.stat().st_mode & 0o777 == 0o666 & ~_umask()
    assert sorted(entry.name for entry in file.parent.iterdir()) == [file.name, link.name]


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
