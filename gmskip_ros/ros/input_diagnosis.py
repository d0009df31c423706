"""Why no image arrives: what the ROS graph shows about the publishers of the input topic."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from rclpy.node import Node
from rclpy.qos import QoSCompatibility, QoSProfile, ReliabilityPolicy, qos_check_compatible
from rclpy.utilities import get_rmw_implementation_identifier

if TYPE_CHECKING:
    from rclpy.qos_event import SubscriptionEventCallbacks
    from rclpy.topic_endpoint_info import TopicEndpointInfo

UNKNOWN_NODE = '_NODE_NAME_UNKNOWN_'  # rmw's placeholder until discovery completes
COMPRESSED = '/compressed'
TRANSPORTS = {'sensor_msgs/msg/Image': 'raw', 'sensor_msgs/msg/CompressedImage': 'compressed'}


class InputDiagnosis:
    """Looks at the publishers of one subscription's topic."""

    def __init__(self, node: Node, topic: str, message_type: type, qos: QoSProfile) -> None:
        """`topic`: the resolved name; `qos`: the subscription's."""
        self._node = node
        self._topic = topic
        self._type = f'sensor_msgs/msg/{message_type.__name__}'
        self._qos = qos

    def bad_publishers(self) -> dict[str, str]:
        """Return what keeps each publisher's messages from arriving, by the name of its node."""
        problems = ((self._name(info), self._problem(info)) for info in self._publishers())
        return {name: problem for name, problem in problems if problem and name != UNKNOWN_NODE}

    def silence(self, num_received: int, num_lost: int | None) -> str:
        """Return why no image arrives, as far as the graph shows it; '' if it shows nothing.

        `num_lost`: messages that the middleware has counted as lost; None if it counts none.
        """
        publishers = list(self._publishers())
        problems = [problem for info in publishers if (problem := self._problem(info))]
        good = [info for info in publishers if not self._problem(info)]
        if not publishers:
            return '; '.join([f'no publisher on {self._topic}', *self._sibling(), self._others()])
        if not good and len(problems) == 1:
            return f'the only publisher cannot be received: {problems[0]}'
        if not good:
            return f'none of the {len(problems)} publishers can be received: {_grouped(problems)}'
        nodes = ', '.join(sorted({self._name(info) for info in good}))
        cause = 'it is idle, or its messages are lost'
        if len(good) > 1:
            cause = 'they are idle, or their messages are lost'
        text = (
            f'{_count(len(good), "publisher")} ({nodes}), but nothing is received'
            f'{" any longer" if num_received else ""}: {cause}'
            f'{f" ({num_lost} so far)" if num_lost else ""}; for the DDS settings see '
            'docs/vehicle.md, and try them with gmskip doctor'
        )
        if problems:
            others = _count(len(problems), 'other publisher')
            text += f'; {others} cannot be received: {_grouped(problems)}'
        return text

    def _publishers(self) -> Iterator[TopicEndpointInfo]:
        yield from self._node.get_publishers_info_by_topic(self._topic)

    @staticmethod
    def _name(info: TopicEndpointInfo) -> str:
        if info.node_name == UNKNOWN_NODE:
            return UNKNOWN_NODE
        return f'{info.node_namespace.rstrip("/")}/{info.node_name}'

    def _problem(self, info: TopicEndpointInfo) -> str:
        """Return why this publisher's messages cannot be received, with the remedy; else ''."""
        if info.topic_type != self._type:
            transport = TRANSPORTS.get(info.topic_type)
            remedy = 'check image_transport and the remapping'
            if transport:
                remedy = f'set image_transport: {transport}, or check the remapping'
            return f'type {info.topic_type}, not {self._type} ({remedy})'
        compatibility, reason = qos_check_compatible(info.qos_profile, self._qos)
        if compatibility != QoSCompatibility.ERROR:
            return ''
        if (
            self._qos.reliability == ReliabilityPolicy.RELIABLE
            and info.qos_profile.reliability == ReliabilityPolicy.BEST_EFFORT
        ):
            return (
                'best-effort reliability, which a reliable subscription never receives (set '
                'input_reliability: best_effort)'
            )
        return f'incompatible quality of service: {reason.strip().rstrip(";")}'

    def _sibling(self) -> Iterator[str]:
        """Yield where the other transport's topic has publishers."""
        if self._topic.endswith(COMPRESSED):
            sibling, transport = self._topic.removesuffix(COMPRESSED), 'raw'
        else:
            sibling, transport = self._topic + COMPRESSED, 'compressed'
        count = self._node.count_publishers(sibling) if sibling else 0
        if count and transport == TRANSPORTS[self._type]:
            yield f'{_count(count, "publisher")} on {sibling}: remap the input to it'
        elif count:
            yield f'{_count(count, "publisher")} on {sibling}: set image_transport: {transport}'

    def _others(self) -> str:
        """Return how many other nodes are seen, and with which settings."""
        seen = [f'{ns.rstrip("/")}/{n}' for n, ns in self._node.get_node_names_and_namespaces()]
        count = max(len(seen) - 1, 0)
        settings = ', '.join(
            [
                get_rmw_implementation_identifier(),
                f'domain {self._node.context.get_domain_id()}',
                *_discovery_settings(),
            ]
        )
        if count:
            return f'{_count(count, "other node")} seen ({settings})'
        return f'no other node is seen ({settings}): do the other processes have the same settings?'


def _discovery_settings() -> Iterator[str]:
    """Yield the environment's settings of who is found."""
    environment = os.environ
    if environment.get('ROS_LOCALHOST_ONLY') == '1':
        yield 'this machine only (ROS_LOCALHOST_ONLY)'
    elif environment.get('ROS_DISTRO') != 'humble':
        discovery_range = environment.get('ROS_AUTOMATIC_DISCOVERY_RANGE') or 'SUBNET'
        is_off = discovery_range.upper() == 'OFF'
        yield f'discovery range {discovery_range}' + (', which finds no one' if is_off else '')
    for name in ('ROS_STATIC_PEERS', 'ROS_DISCOVERY_SERVER'):
        if environment.get(name):
            yield f'{name} {environment[name]}'


def _count(number: int, what: str) -> str:
    return f'{number} {what}{"" if number == 1 else "s"}'


def _grouped(problems: list[str]) -> str:
    """Return each problem once, in a fixed order; of several, how many publishers have each."""
    distinct = sorted(set(problems))
    if len(distinct) == 1:
        return distinct[0]
    return '; '.join(f'{problems.count(problem)} with {problem}' for problem in distinct)


def message_lost_callbacks(
    on_lost: Callable[[int], None],
) -> SubscriptionEventCallbacks | None:
    """Return callbacks that pass on how many messages were lost so far; None if rclpy has none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # Humble's name for it, deprecated in later ones
            from rclpy.qos_event import SubscriptionEventCallbacks
    except ImportError:
        return None

    def pass_on(status: Any) -> None:
        on_lost(status.total_count)

    return SubscriptionEventCallbacks(message_lost=pass_on)
