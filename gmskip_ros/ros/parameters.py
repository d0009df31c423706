"""A table of parameters (pipeline/parameter_kinds.py) on a node of rclpy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rcl_interfaces.msg import ParameterDescriptor
from rclpy.node import Node

from gmskip_ros.pipeline.parameter_kinds import Spec


def declare(node: Node, specs: Mapping[str, Spec]) -> None:
    """Declare the table's parameters on the node, unchecked."""
    for spec in specs.values():
        # rclpy accepts no integer for a floating-point parameter. With dynamic typing the type is
        # checked by the table, which accepts it and explains every bad value in one line.
        descriptor = ParameterDescriptor(
            description=spec.description, read_only=spec.read_only, dynamic_typing=True
        )
        node.declare_parameter(spec.name, spec.default, descriptor)


def values(node: Node, specs: Mapping[str, Spec]) -> dict[str, Any]:
    """Return the unchecked values of the table's parameters by name."""
    return {name: node.get_parameter(name).value for name in specs}


def unknown_names(node: Node) -> list[str]:
    """Return the names given on the command line or in a file that the node does not have."""
    given = getattr(node, '_parameter_overrides', {})  # rclpy has no public access to them
    return sorted(
        name
        for name in given
        if not node.has_parameter(name) and not name.startswith('qos_overrides.')
    )
