"""Two nodes in two namespaces on one camera: both work and can be told apart everywhere."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from diagnostic_msgs.msg import DiagnosticArray
from node_probe import PARAMETERS, Probe, keys, quick_command
from ros_process import RosProcess, ros_node

from gmskip_ros.tasks import TASK_NAMES

NAMESPACES = ('/front', '/rear')
CAMERA = '/cam/image_raw'
SHARED_TOPICS = {'/diagnostics', '/parameter_events', '/rosout'}


class Pair:
    """Everything around both nodes, played by a single node in the test's own process."""

    def __init__(self, node: Any, processes: dict[str, RosProcess]) -> None:
        self.node, self.processes = node, processes
        self.probes = {
            namespace: Probe(node, process, f'{namespace}/dual_vlm', f'{CAMERA}/compressed')
            for namespace, process in processes.items()
        }

    def reports(self) -> list[DiagnosticArray]:
        return self.probes['/front'].received['/diagnostics']

    def states(self) -> dict[str, str]:
        """Return the newest state of each node, by the status's hardware_id."""
        statuses = [status for report in self.reports() for status in report.status]
        return {status.hardware_id: keys(status)['state'] for status in statuses}

    def topics(self, namespace: str) -> set[str]:
        found = self.node.get_publisher_names_and_types_by_node('dual_vlm', namespace)
        return {name for name, _ in found}

    def services(self, namespace: str) -> set[str]:
        found = self.node.get_service_names_and_types_by_node('dual_vlm', namespace)
        return {name for name, _ in found}

    def cameras(self, namespace: str) -> dict[str, list[str]]:
        found = self.node.get_subscriber_names_and_types_by_node('dual_vlm', namespace)
        return {name: types for name, types in found if name not in SHARED_TOPICS}


@pytest.fixture(scope='module')
def pair() -> Iterator[Pair]:
    with ExitStack() as stack:
        processes = {
            namespace: stack.enter_context(
                RosProcess(
                    quick_command(
                        '-r',
                        f'__ns:={namespace}',
                        remap={'~/input/image': CAMERA},
                        image_transport='compressed',
                        branches=['skip'],
                        tasks=['single_object'] if namespace == '/front' else list(TASK_NAMES),
                        **PARAMETERS,
                    ),
                    warm=True,
                )
            )
            for namespace in NAMESPACES
        }
        pair = Pair(stack.enter_context(ros_node()), processes)
        for namespace, probe in pair.probes.items():
            name = f'{namespace}/dual_vlm'
            probe.wait(
                lambda name=name: pair.states().get(name) in ('ready', 'no_frames'), f'{name} ready'
            )
        yield pair
        for process in processes.values():
            assert process.stop(signal.SIGINT) == 0
            assert 'Traceback' not in process.output()


def test_every_node_name_exists_once(pair: Pair) -> None:
    # A duplicate name blocks Autoware's autonomous mode.
    names = Counter(pair.node.get_node_names_and_namespaces())
    assert {('dual_vlm', namespace) for namespace in NAMESPACES} <= set(names)
    assert set(names.values()) == {1}


def test_topics_and_services_are_under_the_nodes_own_name(pair: Pair) -> None:
    for namespace in NAMESPACES:
        own = f'{namespace}/dual_vlm/'
        topics, services = pair.topics(namespace), pair.services(namespace)
        assert {topic for topic in topics if not topic.startswith(own)} == SHARED_TOPICS
        assert f'{own}output/skip/result' in topics
        assert f'{own}enable' in services
        assert all(service.startswith(own) for service in services)


def test_both_take_the_compressed_images_of_the_remapped_camera(pair: Pair) -> None:
    for namespace in NAMESPACES:
        expected = {f'{CAMERA}/compressed': ['sensor_msgs/msg/CompressedImage']}
        assert pair.cameras(namespace) == expected


def test_both_answer_one_frame_under_its_header(pair: Pair) -> None:
    front, rear = pair.probes.values()
    header = front.ask(wait_for='output/skip/result')
    rear.wait(lambda: rear.results_of(header, 'output/skip/result'), 'the answer of /rear')
    for probe, tasks in ((front, ['single_object']), (rear, list(TASK_NAMES))):
        (result,) = probe.results_of(header, 'output/skip/result')
        assert [status.name for status in result.status] == [f'{task}/skip' for task in tasks]
        assert {status.hardware_id for status in result.status} == {probe.name}


def test_pausing_one_leaves_the_other_running(pair: Pair) -> None:
    front, rear = pair.probes.values()
    assert front.enable(False).success
    rear.wait(lambda: pair.states()['/front/dual_vlm'] == 'paused', '/front to pause')
    rear.second = front.second  # a frame that is new to both
    header = rear.ask(wait_for='output/skip/result')
    assert not front.results_of(header, 'output/skip/result')
    assert pair.states()['/rear/dual_vlm'] != 'paused'
    assert front.enable(True).success


def test_their_health_can_be_told_apart(pair: Pair) -> None:
    statuses = [status for report in pair.reports() for status in report.status]
    told = {status.hardware_id: status.name for status in statuses}
    assert set(told) == {f'{namespace}/dual_vlm' for namespace in NAMESPACES}
    assert all(name.endswith('dual_vlm: inference') for name in told.values())
