"""The node publishes the topics that docs/topics.md names and that the replay writes."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ros_process import RosProcess, ros_command, ros_node, wait_until

from gmskip_ros.pipeline import records
from gmskip_ros.pipeline.pipeline import QUESTION
from gmskip_ros.tasks import TASK_NAMES

ROOT = Path(__file__).resolve().parents[2]
TOPICS_PAGE = (ROOT / 'docs/topics.md').read_text()
EVERY_NODES = {'/rosout', '/parameter_events'}


@pytest.fixture(scope='module')
def published(topics_of_node: tuple[set[str], set[str]]) -> set[str]:
    """Return the topics that a real node's process publishes."""
    return topics_of_node[0]


@pytest.fixture(scope='module')
def subscribed(topics_of_node: tuple[set[str], set[str]]) -> set[str]:
    """Return the topics that it subscribes to."""
    return topics_of_node[1]


@pytest.fixture(scope='module')
def topics_of_node() -> Iterator[tuple[set[str], set[str]]]:
    command = ros_command('dual_vlm_node', start_enabled=False)
    with RosProcess(command, warm=True) as process, ros_node() as node:

        def topics() -> set[str]:
            try:
                found = node.get_publisher_names_and_types_by_node('dual_vlm', '/')
            except Exception:  # not discovered yet
                return set()
            return {name for name, _ in found} - EVERY_NODES

        wait_until(lambda: '/diagnostics' in topics(), node, what='the node', process=process)
        seen: list[set[str]] = [set()]

        def settled() -> bool:  # discovery finds them one by one
            seen.append(topics())
            return len(seen) > 10 and len({frozenset(each) for each in seen[-10:]}) == 1

        wait_until(settled, node, what='all topics', process=process)
        names_and_types = node.get_subscriber_names_and_types_by_node('dual_vlm', '/')
        yield seen[-1], {name for name, _ in names_and_types}


def test_the_replay_writes_on_the_nodes_topics(published: set[str]) -> None:
    named = {
        pattern.format(branch=branch, task=task).replace('~', '/dual_vlm', 1)
        for name, pattern in vars(records).items()
        if name.endswith('_TOPIC')
        for branch in ('skip', 'full')
        for task in (*TASK_NAMES, QUESTION)
    }
    assert named | {'/diagnostics'} == published


def test_the_rqt_commands_of_the_docs_name_only_published_topics(published: set[str]) -> None:
    section = TOPICS_PAGE.split('## Looking at it', 1)[1].split('\n#', 1)[0]
    commands = [line for line in section.splitlines() if re.match(r'ros2 run rqt', line)]
    for tool in ('rqt_image_view', 'rqt_topic', 'rqt_plot', 'rqt_runtime_monitor'):
        assert any(tool in command for command in commands), tool
    # rqt_plot takes a message field after the topic's name.
    named = {
        re.sub(r'/data(\[\d+\])?$', '', name)
        for name in re.findall(r'/(?:dual_vlm|diagnostics)[\w/\[\]]*', '\n'.join(commands))
    }
    plotted = next(command for command in commands if 'rqt_plot' in command)
    assert {
        '/dual_vlm/debug/skip/captioning/latency_ms/data[4]',
        '/dual_vlm/debug/full/captioning/latency_ms/data[4]',
    } <= set(re.findall(r'/[\w/\[\]]+', plotted))
    assert records.LATENCY_PARTS[4] == 'total_ms'
    assert named and named <= published


# --- config/dual_vlm.perspective and config/foxglove_layout.json ---


def perspective_topics() -> set[str]:
    """Return what the plugins of the rqt perspective publish, subscribe to or plot."""
    document = json.loads((ROOT / 'config/dual_vlm.perspective').read_text())
    manager = document['groups']['pluginmanager']
    running = ast.literal_eval(manager['keys']['running-plugins']['repr'])
    names = {f'plugin__{p.replace("/", "__")}__{n}' for p, all in running.items() for n in all}
    assert names == set(manager['groups'])
    topics: set[str] = set()
    for group in manager['groups'].values():
        keys = group['groups'].get('plugin', {'keys': {}})['keys']
        values = {key: ast.literal_eval(value['repr']) for key, value in keys.items()}
        topics |= {values['topic']} if 'topic' in values else set()
        topics |= set(values.get('topics', ()))
        for publisher in ast.literal_eval(values.get('publishers', '[]')):
            topics.add(publisher['topic_name'])
            assert set(publisher['expressions']) == {publisher['topic_name'] + '/data'}
    return topics


def foxglove_topics() -> set[str]:
    """Return what the panels of the Foxglove layout name."""
    document = json.loads((ROOT / 'config/foxglove_layout.json').read_text())
    panels = document['configById']

    def placed(node: Any) -> Iterator[str]:
        if isinstance(node, str):
            yield node
        else:
            yield from placed(node['first'])
            yield from placed(node['second'])

    assert sorted(placed(document['layout'])) == sorted(panels)
    topics: set[str] = set()
    for panel in panels.values():
        for key in ('topicPath', 'topicToRender', 'topicName'):
            topics |= {panel[key]} if key in panel else set()
        topics |= {panel['imageMode']['imageTopic']} if 'imageMode' in panel else set()
        topics |= {path['value'] for path in panel.get('paths', ())}
    return topics


@pytest.mark.parametrize('named', [perspective_topics, foxglove_topics])
def test_the_shipped_screens_name_only_the_nodes_topics(
    published: set[str], subscribed: set[str], named: Callable[[], set[str]]
) -> None:
    # A plotted field: rqt has /data after the topic, Foxglove .data
    topics = {re.sub(r'[/.]data(\[\d+\])?$', '', name) for name in named()}
    assert topics <= published | subscribed
    shown = {name.removeprefix('/dual_vlm/') for name in topics}
    assert {'debug/processing_time_ms', 'debug/pipeline_latency_ms', 'input/question'} <= shown
    assert {f'debug/{b}/{t}/latency_ms' for b in ('skip', 'full') for t in TASK_NAMES} <= shown
    # Of both timings: the node publishes one or the other.
    for kind in ('', 'shared_'):
        assert {f'debug/{b}/{kind}processing_time_ms' for b in ('skip', 'full')} <= shown
    assert any(name.startswith('debug/image') for name in shown)
