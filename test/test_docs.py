"""The documentation names only what exists: links, commands, topics, parameters, code."""

from __future__ import annotations

import argparse
import ast
import contextlib
import io
import itertools
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_vlm import FakeVlm

from gmskip_ros.cli.main import COMMANDS, build_parser
from gmskip_ros.pipeline import health, records
from gmskip_ros.pipeline.pipeline import FramePipeline, plan_frame
from gmskip_ros.pipeline.question import plan_question
from gmskip_ros.pipeline.settings import settings_from
from gmskip_ros.tasks import TASK_NAMES, make_task

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / 'gmskip_ros'
PAGES = sorted([ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', *(ROOT / 'docs').glob('*.md')])
OTHER_OPTIONS = {'--symlink-install', '--clock', '--ros-args'}  # of colcon, image_player, ROS

pages = pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)


def text_of(name: str) -> str:
    return (ROOT / name).read_text()


def code_blocks(text: str, language: str) -> str:
    blocks = re.findall(rf'^```{language}\n(.*?)^```', text, re.MULTILINE | re.DOTALL)
    return ''.join(blocks)


def prose(text: str) -> str:
    """Return the text without its code blocks."""
    return re.sub(r'^```.*?^```\n', '', text, flags=re.MULTILINE | re.DOTALL)


def inline_code(text: str) -> list[str]:
    return [' '.join(code.split()) for code in re.findall(r'`([^`]+)`', prose(text))]


def table_rows(section: str) -> list[list[str]]:
    """Return the cells of every table row, without headers and rulers."""
    rows = [
        [cell.strip() for cell in line.strip().strip('|').split('|')]
        for line in section.splitlines()
        if line.startswith('|')
    ]
    rulers = [index for index, row in enumerate(rows) if set(''.join(row)) <= set('-')]
    return [row for index, row in enumerate(rows) if not {index, index + 1}.intersection(rulers)]


# --- links ---


def anchors(page: Path) -> set[str]:
    """Return the fragments that GitHub makes of a page's headings."""
    headings = re.findall(r'^#+ (.+)$', prose(page.read_text()), re.MULTILINE)
    return {re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-') for heading in headings}


@pages
def test_every_relative_link_has_a_target(page: Path) -> None:
    links = re.findall(r'\]\(([^)\s]+)\)', prose(page.read_text()))
    for link in links:
        if re.match(r'https?:', link):
            continue
        file, _, anchor = link.partition('#')
        target = (page.parent / file).resolve() if file else page
        assert target.is_file(), link
        assert target.is_relative_to(ROOT), link
        assert not anchor or anchor in anchors(target), link


def test_every_page_that_the_code_names_exists() -> None:
    for path in [*PACKAGE.rglob('*.py'), *(ROOT / 'config').iterdir(), ROOT / 'package.xml']:
        for page in re.findall(r'\bdocs/\w+\.md\b', path.read_text()):
            assert (ROOT / page).is_file(), f'{path} names {page}'


def test_every_page_can_be_reached_from_the_readme() -> None:
    linked = re.findall(r'\]\(([^)#\s]+)', text_of('README.md'))
    assert {ROOT / link for link in linked if not link.startswith('http')} >= set(PAGES) - {
        ROOT / 'README.md'
    }


# --- commands ---


def commands(text: str) -> list[list[str]]:
    """Return the words of every command in the shell blocks, comments removed."""
    lines = code_blocks(text, 'sh').replace('\\\n', ' ').splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def gmskip_arguments(words: list[str]) -> list[str] | None:
    """Return what a command hands to gmskip; None if it does not run gmskip."""
    if 'gmskip_ros.cli.calibrate' in words:
        return ['calibrate', *words[words.index('gmskip_ros.cli.calibrate') + 1 :]]
    if words[:4] == ['ros2', 'run', 'gmskip_ros', 'gmskip']:
        return words[4:]
    return words[1:] if Path(words[0]).name == 'gmskip' else None


def check_arguments(arguments: list[str]) -> None:
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            build_parser().parse_args(arguments)
    except SystemExit:
        pytest.fail(f'gmskip {shlex.join(arguments)}: {complaint.getvalue()}')


@pages
def test_every_command_is_one_that_gmskip_accepts(page: Path) -> None:
    text = page.read_text()
    written = [*commands(text)]
    written += [shlex.split(code) for code in inline_code(text) if code.startswith('gmskip ')]
    for words in written:
        arguments = gmskip_arguments(words)
        if arguments is None:
            continue
        assert arguments[0] in COMMANDS, words
        if len(arguments) > 1:  # in prose, a command may stand for itself
            check_arguments(arguments)


def test_commands_are_found() -> None:
    found = [gmskip_arguments(words) for page in PAGES for words in commands(page.read_text())]
    names = {arguments[0] for arguments in found if arguments}
    assert names >= {'ask', 'calibrate', 'doctor', 'evaluate', 'replay', 'scenes'}


def options_of(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        yield from action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                yield from options_of(child)


@pages
def test_every_option_in_the_text_is_one_of_gmskips(page: Path) -> None:
    known = {*options_of(build_parser()), *OTHER_OPTIONS}
    named = {
        word
        for code in inline_code(page.read_text())
        if code.startswith('--')
        for word in code.split()
        if word.startswith('--')
    }
    assert named <= known


@pages
def test_every_make_target_exists(page: Path) -> None:
    targets = set(re.findall(r'^([\w-]+):', text_of('Makefile'), re.MULTILINE))
    text = page.read_text()
    written = [*commands(text), *(code.split() for code in inline_code(text))]
    named = {words[-1] for words in written if words[0] == 'make' and len(words) > 1}
    assert named <= targets


@pages
def test_every_launch_argument_exists(page: Path) -> None:
    declared = text_of('launch/dual_vlm.launch.py')
    for words in commands(page.read_text()):
        if words[:2] == ['ros2', 'launch']:
            for word in words[4:]:
                assert f"'{word.partition(':=')[0]}'" in declared, word


@pages
def test_every_parameter_of_the_image_player_exists(page: Path) -> None:
    declared = text_of('gmskip_ros/ros/image_player.py')
    for words in commands(page.read_text()):
        if 'image_player' in words:
            for flag, word in itertools.pairwise(words):
                if flag == '-p':
                    assert f"'{word.partition(':=')[0]}'" in declared, word


def test_every_path_in_the_makefile_exists() -> None:
    for path in re.findall(r'\btest/[\w./]+', text_of('Makefile')):
        assert (ROOT / path).exists(), path


def test_continuous_integration_and_hooks_run_the_same_commands() -> None:
    assert 'make PYTHON=python test' in text_of('.github/workflows/ci.yml')
    assert re.findall(r'entry: (.+)', text_of('.pre-commit-config.yaml')) == [
        'make lint',
        'make check',
    ]
    assert 'ruff format --check' in text_of('Makefile')


def test_the_readmes_python_example_runs() -> None:
    names: dict[str, Any] = {'image': np.zeros((64, 64, 3), np.uint8)}
    exec(code_blocks(text_of('README.md'), 'python'), names)
    assert names['answer'].timing.total_ms > 0


# --- topics and their keys ---


def expand(pattern: str) -> set[str]:
    """Return the topics of a name with {skip,full} and {task} in it."""
    branches = ('skip', 'full') if '{skip,full}' in pattern else ('',)
    tasks = TASK_NAMES if '{task}' in pattern else ('',)
    return {
        pattern.replace('{skip,full}', branch).replace('{task}', task)
        for branch in branches
        for task in tasks
    }


@pytest.mark.parametrize('name', ['README.md', 'docs/topics.md'])
def test_the_tables_of_topics_are_those_of_the_node(name: str) -> None:
    first_cells = ' '.join(row[0] for row in table_rows(text_of(name)))
    documented = {
        topic
        for pattern in re.findall(r'`(~/(?:output|debug)/[^`]+|/diagnostics)`', first_cells)
        for topic in expand(pattern)
    }
    published = {
        pattern.format(branch=branch, task=task)
        for constant, pattern in vars(records).items()
        if constant.endswith('_TOPIC')
        for branch in ('skip', 'full')
        for task in TASK_NAMES
    }
    assert documented == published | {'/diagnostics'}
    assert {'`~/input/image`', '`~/enable`'} <= {row[0] for row in table_rows(text_of(name))}


def documented_keys(start: str, end: str) -> set[str]:
    """Return the keys in the first column of docs/topics.md between two texts."""
    section = text_of('docs/topics.md').split(start, 1)[1].split(end, 1)[0]
    return {key for row in table_rows(section) for key in re.findall(r'`([^`]+)`', row[0])}


def test_the_keys_of_results_and_comparisons_are_documented() -> None:
    vlm = FakeVlm()
    tasks = [make_task(name) for name in TASK_NAMES]
    results, compared = [], []
    for plan in (
        plan_frame(vlm, tasks, {}),
        plan_frame(vlm, tasks, {}, timing='shared'),
        plan_question(vlm, 'What?', settings_from({}), None, is_own=False),
    ):
        skip, full, comparison = FramePipeline(vlm, plan).run(np.zeros((8, 8, 3), np.uint8))
        results += [*records.result_statuses(skip, ''), *records.result_statuses(full, '')]
        compared += records.comparison_statuses(comparison, '')
    assert documented_keys('**Result.**', '**Comparison.**') == {
        key for status in results for key in status.values
    }
    assert documented_keys('**Comparison.**', '\n## ') == {
        key for status in compared for key in status.values
    }


def test_states_and_counters_are_documented() -> None:
    section = text_of('docs/topics.md').split('\n## Health', 1)[1].split('\n## ', 1)[0]
    levels = {
        state: row[1]
        for row in table_rows(section)
        if len(row) == 3
        for state in re.findall(r'`([^`]+)`', row[0])
    }
    assert levels == health.LEVELS
    counters = {row[0].strip('`') for row in table_rows(section) if len(row) == 2}
    assert counters == {f'frames_{counter}' for counter in health.FRAME_COUNTERS}


# --- parameters ---


def schema_leaves(properties: dict[str, Any], prefix: str = '') -> dict[str, dict[str, Any]]:
    leaves: dict[str, dict[str, Any]] = {}
    for name, entry in properties.items():
        if entry.get('type') == 'object':
            leaves.update(schema_leaves(entry['properties'], f'{prefix}{name}.'))
        else:
            leaves[prefix + name] = entry
    return leaves


def test_the_readmes_parameters_have_the_schemas_defaults() -> None:
    schema = json.loads(text_of('schema/dual_vlm.schema.json'))
    parameters = schema_leaves(schema['definitions']['dual_vlm']['properties'])
    section = text_of('README.md').split('| parameter | default |', 1)[1].split('\n\n', 1)[0]
    rows = table_rows('| parameter | default |' + section)
    assert len(rows) > 5
    for name, default, _ in rows:
        entry = parameters[name.strip('`')]['default']
        shown = entry if isinstance(entry, str) else json.dumps(entry)
        assert default == f'`{shown}`', name


# --- code ---


def definitions(path: Path) -> set[str]:
    """Return the names that a module defines, with `Class.method` for methods."""
    names: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign):
            names.update(target.id for target in node.targets if isinstance(target, ast.Name))
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
        elif isinstance(node, ast.FunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.ClassDef):
            names.add(node.name)
            names.update(
                f'{node.name}.{member.name}'
                for member in node.body
                if isinstance(member, ast.FunctionDef)
            )
    return names


def code_references() -> list[tuple[str, str]]:
    """Return the path and the name ('' for none) of every reference in CONTRIBUTING.md."""
    found = []
    for code in inline_code(text_of('CONTRIBUTING.md')):
        if match := re.fullmatch(r'(?:python )?([\w/]+\.py)(?::([\w.]+))?', code):
            found.append((match[1], match[2] or ''))
    return found


def test_references_to_code_are_found() -> None:
    assert len(code_references()) > 30


@pytest.mark.parametrize('path, name', sorted(set(code_references())))
def test_every_reference_to_code_exists(path: str, name: str) -> None:
    file = next((base / path for base in (PACKAGE, ROOT) if (base / path).is_file()), None)
    assert file is not None, f'CONTRIBUTING.md names {path}'
    assert not name or name in definitions(file), f'CONTRIBUTING.md names {path}:{name}'


def test_the_drawing_of_the_rooms_is_that_of_the_contracts() -> None:
    section = text_of('CONTRIBUTING.md').split('## The rooms', 1)[1].split('\n## ', 1)[0]
    drawing = section.split('```')[1]
    first_lines = re.findall(r'^\+[-+]+\n\|(.+)\|$', drawing, re.MULTILINE)
    drawn = [{cell.split()[0] for cell in line.split('|')} for line in first_lines]
    layers = re.search(r'^layers = \[\n(.*?)^\]', text_of('pyproject.toml'), re.M | re.S)
    assert layers is not None
    assert drawn == [set(re.findall(r'\w+', line)) for line in layers[1].splitlines()]


def test_the_way_of_a_frame_has_at_most_eight_stops() -> None:
    section = text_of('CONTRIBUTING.md').split('## The way of a frame', 1)[1].split('\n## ', 1)[0]
    assert 1 < len(re.findall(r'^\d+\. ', section, re.MULTILINE)) <= 8
