"""Parameters: the table, the files made from it and the code agree; bad values are refused."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from gmskip_ros.pipeline.parameter_kinds import ParameterError
from gmskip_ros.pipeline.parameters import SPECS
from gmskip_ros.pipeline.settings import (
    check_operating_point,
    load_skip_lists,
    settings_from,
    values_from_file,
)
from gmskip_ros.tasks import TASK_NAMES

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = json.loads((ROOT / 'schema/dual_vlm.schema.json').read_text())
PARAM_FILE = yaml.safe_load((ROOT / 'config/dual_vlm.param.yaml').read_text())
PARAMETER_FILES = runpy.run_path(str(ROOT / 'tools/parameter_files.py'))['FILES']
DEFAULTS = {name: spec.default for name, spec in SPECS.items()}


def flat(tree: dict[str, Any], prefix: str = '') -> dict[str, Any]:
    """Return the leaves of nested mappings by dotted name, as ROS does."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            leaves.update(flat(value, f'{prefix}{key}.'))
        else:
            leaves[prefix + key] = value
    return leaves


def schema_leaves(properties: dict[str, Any], prefix: str = '') -> dict[str, dict[str, Any]]:
    leaves: dict[str, dict[str, Any]] = {}
    for key, entry in properties.items():
        if entry.get('type') == 'object':
            leaves.update(schema_leaves(entry['properties'], f'{prefix}{key}.'))
        else:
            leaves[prefix + key] = entry
    return leaves


LEAVES = schema_leaves(SCHEMA['definitions']['dual_vlm']['properties'])


def param_file_with(name: str, value: Any) -> dict[str, Any]:
    """Return the parameter file's content with one value changed."""
    document = json.loads(json.dumps(PARAM_FILE))
    node = document['/**']['ros__parameters']
    *groups, key = name.split('.')
    for group in groups:
        node = node[group]
    node[key] = value
    return document


@pytest.mark.parametrize('path', PARAMETER_FILES)
def test_the_committed_files_are_made_from_the_table(path: str) -> None:
    assert (ROOT / path).read_text() == PARAMETER_FILES[path](), 'run tools/parameter_files.py'


def test_the_parameter_file_fits_the_schema() -> None:
    jsonschema.Draft7Validator.check_schema(SCHEMA)
    jsonschema.validate(PARAM_FILE, SCHEMA)


def test_code_parameter_file_and_schema_have_the_same_names_and_defaults() -> None:
    assert flat(PARAM_FILE['/**']['ros__parameters']) == DEFAULTS
    assert {name: entry['default'] for name, entry in LEAVES.items()} == DEFAULTS


def test_the_schema_says_which_parameters_can_be_changed_at_run_time() -> None:
    properties = SCHEMA['definitions']['dual_vlm']['properties']
    for name, spec in SPECS.items():
        description = properties[name.split('.')[0]]['description']
        assert ('Read-only.' in description) == spec.read_only, name
        assert ('May be changed at run time.' in description) != spec.read_only, name
    changeable = {name for name, spec in SPECS.items() if not spec.read_only}
    own = {'rate_hz', 'operating_point', 'latency_budget_ms', 'timing', 'caption_agreement'}
    assert changeable == own | {f'prompt.{task}' for task in TASK_NAMES}


GOOD = [
    ('rate_hz', 1),  # an integer where a number is expected
    ('rate_hz', 0.01),
    ('rate_hz', 60.0),
    ('max_frame_age_sec', 0),
    ('max_frame_age_sec', 0.5),
    ('operating_point', 'high_sparsity'),
    ('operating_point', '3'),
    ('operating_point', 0),
    ('latency_budget_ms', 0),
    ('latency_budget_ms', 62.5),
    ('timing', 'shared'),
    ('tasks', ['captioning']),
    ('branches', ['full']),
    ('device', 'cuda:1'),
    ('labels', ['car', 'traffic cone']),
    ('labels', ['coco']),
    ('skip_list.captioning', ''),
    ('max_new_tokens.captioning', 512),
]
BAD = [
    ('rate_hz', 0),
    ('rate_hz', -1.0),
    ('rate_hz', 61.0),
    ('rate_hz', True),
    ('rate_hz', 'fast'),
    ('max_frame_age_sec', -0.1),
    ('max_frame_age_sec', 3601),
    ('operating_point', 'high'),
    ('operating_point', -1),
    ('operating_point', 1.5),
    ('operating_point', True),
    pytest.param('operating_point', '9' * 5000, id='operating_point-endless'),
    ('latency_budget_ms', -1.0),
    ('latency_budget_ms', True),
    ('latency_budget_ms', 'fast'),
    ('timing', 'fast'),
    ('timing', True),
    ('tasks', []),
    ('tasks', ['walking']),
    ('tasks', ['captioning', 'captioning']),
    ('tasks', 'captioning'),
    ('branches', []),
    ('branches', ['skip', 'verify']),
    ('model', ''),
    ('model', '  '),
    ('model', 7),
    ('device', 'gpu'),
    ('device', 'cuda:'),
    ('dtype', 'int8'),
    ('quantization', 'int2'),
    ('threads', -1),
    ('threads', 1.5),
    ('image_transport', 'theora'),
    ('input_reliability', 'sometimes'),
    ('overload_policy', 'drop'),
    ('start_enabled', 1),
    ('start_enabled', 'true'),
    ('labels', []),
    ('labels', [1, 2]),
    ('prompt.captioning', ''),
    ('prompt.captioning', 5),
    ('prompt.captioning', 'What is in\n<image>?'),
    ('max_new_tokens.captioning', 0),
    ('max_new_tokens.captioning', 513),
    ('max_new_tokens.captioning', 8.5),
    ('max_new_tokens.captioning', True),
    ('skip_list.captioning', 3),
]


@pytest.mark.parametrize(('name', 'value'), GOOD)
def test_good_values_pass_the_schema_and_the_code(name: str, value: Any) -> None:
    jsonschema.validate(param_file_with(name, value), SCHEMA)
    settings_from({**DEFAULTS, name: value})


@pytest.mark.parametrize(('name', 'value'), BAD)
def test_bad_values_fail_the_schema_and_the_code(name: str, value: Any) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(param_file_with(name, value), SCHEMA)
    with pytest.raises(ParameterError) as caught:
        settings_from({**DEFAULTS, name: value})
    message = str(caught.value)
    assert message.startswith(f'parameter {name}: ')  # the thing
    assert repr(value) in message  # the value
    assert '\n' not in message


@pytest.mark.parametrize('value', [float('nan'), float('inf'), None])
def test_values_that_json_cannot_express_are_refused(value: Any) -> None:
    with pytest.raises(ParameterError, match='parameter rate_hz: '):
        settings_from({**DEFAULTS, 'rate_hz': value})


def test_the_snapshot_holds_values_of_their_own_types() -> None:
    settings = settings_from({**DEFAULTS, 'rate_hz': 4, 'operating_point': '7'})
    assert settings.rate_hz == 4.0 and isinstance(settings.rate_hz, float)
    assert settings.period_ns == 250_000_000
    assert settings.operating_point == 7
    assert settings.max_new_tokens == {
        'single_object': 8,
        'multi_object': 32,
        'captioning': 64,
        'question': 64,
    }
    with pytest.raises(AttributeError):
        settings.rate_hz = 2.0  # type: ignore[misc]


def test_tasks_are_made_with_their_own_prompts_and_lengths() -> None:
    settings = settings_from(
        {
            **DEFAULTS,
            'tasks': ['multi_object'],
            'prompt.multi_object': 'What do you see?',
            'labels': ['car', 'dog'],
            'match': 'synonyms',
            'max_new_tokens.multi_object': 5,
        }
    )
    (task,) = settings.make_tasks()
    assert (task.name, task.prompt, task.max_new_tokens) == ('multi_object', 'What do you see?', 5)
    assert task.labels == ('car', 'dog')
    assert task.match == 'synonyms'
    assert settings_from(DEFAULTS).make_tasks()[0].match == 'content'


def test_skip_lists_are_loaded_for_the_tasks_that_run() -> None:
    values = {**DEFAULTS, **{f'skip_list.{task}': f'gmskip_{task}' for task in DEFAULTS['tasks']}}
    settings = settings_from({**values, 'tasks': ['captioning'], 'skip_list.multi_object': '/none'})
    assert set(load_skip_lists(settings)) == {'captioning'}
    full_only = settings_from({**values, 'branches': ['full'], 'skip_list.captioning': '/none'})
    assert load_skip_lists(full_only) == {}
    without = settings_from({**values, 'skip_list.captioning': ''})
    assert 'captioning' not in load_skip_lists(without)


def test_only_the_demo_model_gets_the_demo_models_skip_lists() -> None:
    demo = load_skip_lists(settings_from(DEFAULTS))
    assert {skip_list.model for skip_list in demo.values()} == {'demo'} and len(demo) == 3
    other = settings_from({**DEFAULTS, 'model': 'llava-hf/llava-1.5-7b-hf'})
    assert load_skip_lists(other) == {}


def test_a_missing_skip_list_is_named_with_its_parameter() -> None:
    settings = settings_from({**DEFAULTS, 'skip_list.captioning': '/nowhere/x.skip.yaml'})
    with pytest.raises(ParameterError, match=r'skip_list\.captioning.*/nowhere/x\.skip\.yaml'):
        load_skip_lists(settings)


def test_an_operating_point_beyond_a_skip_list_is_refused_with_its_range() -> None:
    # GM-Skip's list for captioning has 7 blocks, the others more.
    published = {f'skip_list.{task}': f'gmskip_{task}' for task in DEFAULTS['tasks']}
    settings = settings_from({**DEFAULTS, **published, 'operating_point': 8})
    with pytest.raises(ParameterError, match=r'operating_point: 8 .*captioning.*7'):
        check_operating_point(settings, load_skip_lists(settings))


def test_a_parameter_file_is_read_without_ros_as_ros_reads_it(tmp_path: Path) -> None:
    assert values_from_file(ROOT / 'config/dual_vlm.param.yaml') == DEFAULTS
    file = tmp_path / 'my.param.yaml'
    file.write_text(
        '/**:\n  ros__parameters:\n    rate_hz: 2.0\n    use_sim_time: true\n'
        'camera_driver:\n  ros__parameters:\n    rate_hz: 30.0\n    exposure: 5\n'
        'front:\n  dual_vlm:\n    ros__parameters:\n      start_enabled: false\n'
        '/front/dual_vlm:\n  ros__parameters:\n    rate_hz: 4\n    prompt.captioning: What?\n'
        '    skip_list: {captioning: gmskip_captioning}\n'
    )
    values = values_from_file(file)
    assert values == {
        'rate_hz': 4,
        'prompt.captioning': 'What?',
        'skip_list.captioning': 'gmskip_captioning',
        'start_enabled': False,
    }
    settings = settings_from(values)
    assert settings.rate_hz == 4.0 and settings.prompt['captioning'] == 'What?'
    assert settings.tasks == tuple(SPECS['tasks'].default)


@pytest.mark.parametrize(
    ('content', 'words'),
    [
        ('/**: {ros__parameters: {rate: 2.0}}', ('rate', 'is not a parameter')),
        ('/**: {rate_hz: 2.0}', ('ros__parameters',)),
        ('just words', ('ros__parameters',)),
        ('/**: {ros__parameters: &b {prompt: *b}}', ('refers to itself',)),
        ('camera: {ros__parameters: {rate_hz: 2.0}}', ('ros__parameters', 'dual_vlm')),
        ('', ('ros__parameters',)),
        ('/**: [', ('cannot be read',)),
        (None, ('cannot be read', 'No such file')),
    ],
)
def test_an_unusable_parameter_file_is_refused_in_one_line(
    tmp_path: Path, content: str | None, words: tuple[str, ...]
) -> None:
    file = tmp_path / 'x.yaml'
    if content is not None:
        file.write_text(content)
    with pytest.raises(ParameterError) as refusal:
        values_from_file(file)
    message = str(refusal.value)
    assert str(file) in message and '\n' not in message
    assert all(word in message for word in words)
