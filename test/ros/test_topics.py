"""The node publishes the topics that docs/topics.md names and that the replay writes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from ros_process import RosProcess, ros_command, ros_node, wait_until

from gmskip_ros.pipeline import records
from gmskip_ros.tasks import TASK_NAMES

TOPICS_PAGE = (Path(__file__).resolve().parents[2] / 'docs/topics.md').read_text()
EVERY_NODES = {'/rosout', '/parameter_events'}


@pytest.fixture(scope='module')
def published() -> Iterator[set[str]]:
    """Return the topics of a real node's process."""
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
        yield seen[-1]


def test_the_replay_writes_on_the_nodes_topics(published: set[str]) -> None:
    named = {
        pattern.format(branch=branch, task=task).replace('~', '/dual_vlm', 1)
        for name, pattern in vars(records).items()
        if name.endswith('_TOPIC')
        for branch in ('skip', 'full')
        for task in TASK_NAMES
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
        for name in re.findall(r'/(?:dual_vlm|diagnostics)[\w/\[\]]*', section)
    }
    plotted = next(command for command in commands if 'rqt_plot' in command)
    assert {
        '/dual_vlm/debug/skip/captioning/latency_ms/data[4]',
        '/dual_vlm/debug/full/captioning/latency_ms/data[4]',
    } <= set(re.findall(r'/[\w/\[\]]+', plotted))
    assert records.LATENCY_PARTS[4] == 'total_ms'
    assert named and named <= published
