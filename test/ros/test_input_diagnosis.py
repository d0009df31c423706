"""What is said about the publishers of the input, with real publishers and subscriptions' QoS."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from ros_process import ros_node, wait_until
from sensor_msgs.msg import CompressedImage, Image

from gmskip_ros.ros.input_diagnosis import InputDiagnosis

BEST_EFFORT = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
RELIABLE = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE)
LATCHED = QoSProfile(
    depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL
)
WRONG_TYPE = (
    'type sensor_msgs/msg/CompressedImage, not sensor_msgs/msg/Image (set image_transport: '
    'compressed, or check the remapping)'
)
WRONG_RELIABILITY = (
    'best-effort reliability, which a reliable subscription never receives (set '
    'input_reliability: best_effort)'
)
DDS = 'for the DDS settings see docs/vehicle.md, and try them with gmskip doctor'


@pytest.fixture(scope='module')
def node() -> Iterator[Any]:
    with ros_node('camera') as node:
        yield node


@pytest.fixture(scope='module')
def jpeg_node() -> Iterator[Any]:
    """A participant of its own: Fast DDS allows each only one type per topic."""
    with ros_node('jpeg_camera') as node:
        yield node


@pytest.mark.parametrize(
    ('publishers', 'received', 'lost', 'expected'),
    [
        pytest.param(
            [(Image, RELIABLE)],
            0,
            0,
            '1 publisher (/camera), but nothing is received: it is idle, or its messages are lost; '
            + DDS,
            id='one_idle',
        ),
        pytest.param(
            [(Image, RELIABLE), (Image, RELIABLE)],
            7,
            3,
            '2 publishers (/camera), but nothing is received any longer: they are idle, or their '
            f'messages are lost (3 so far); {DDS}',
            id='two_idle',
        ),
        pytest.param(
            [(CompressedImage, RELIABLE)],
            0,
            None,
            f'the only publisher cannot be received: {WRONG_TYPE}',
            id='one_of_another_type',
        ),
        pytest.param(
            [(Image, BEST_EFFORT), (Image, BEST_EFFORT)],
            0,
            None,
            f'none of the 2 publishers can be received: {WRONG_RELIABILITY}',
            id='two_best_effort',
        ),
        pytest.param(
            [(CompressedImage, RELIABLE), (Image, BEST_EFFORT), (Image, BEST_EFFORT)],
            0,
            None,
            'none of the 3 publishers can be received: '
            f'2 with {WRONG_RELIABILITY}; 1 with {WRONG_TYPE}',
            id='several_reasons',
        ),
        pytest.param(
            [(Image, RELIABLE), (Image, BEST_EFFORT)],
            0,
            None,
            '1 publisher (/camera), but nothing is received: it is idle, or its messages are lost; '
            f'{DDS}; 1 other publisher cannot be received: {WRONG_RELIABILITY}',
            id='one_of_each',
        ),
    ],
)
def test_publishers(
    node: Any,
    jpeg_node: Any,
    publishers: list[tuple[type, QoSProfile]],
    received: int,
    lost: int | None,
    expected: str,
) -> None:
    topic = '/diagnosed'
    made = [
        (jpeg_node if kind is CompressedImage else node).create_publisher(kind, topic, qos)
        for kind, qos in publishers
    ]
    diagnosis = InputDiagnosis(node, topic, Image, RELIABLE)
    wait_until(lambda: node.count_publishers(topic) == len(made), node, what='the publishers')
    assert diagnosis.silence(received, lost) == expected
    for publisher in made:
        (jpeg_node if publisher.msg_type is CompressedImage else node).destroy_publisher(publisher)
    wait_until(lambda: not node.count_publishers(topic), node, what='their end')


def test_any_other_incompatibility_is_given_in_the_words_of_the_middleware(node: Any) -> None:
    """No parameter asks for durability: this is for a subscription that some day does."""
    topic = '/volatile'
    node.create_publisher(Image, topic, RELIABLE)
    diagnosis = InputDiagnosis(node, topic, Image, LATCHED)
    wait_until(lambda: node.count_publishers(topic) == 1, node, what='the publisher')
    (problem,) = diagnosis.bad_publishers().values()
    assert problem.startswith('incompatible quality of service: ')
    assert 'durab' in problem.lower() or 'transient' in problem.lower()
    assert not problem.endswith(';') and '\n' not in problem
    assert diagnosis.silence(0, None) == f'the only publisher cannot be received: {problem}'
    assert not InputDiagnosis(node, topic, Image, RELIABLE).bad_publishers()
