"""The node's parameters in rclpy; pipeline/parameters.py defines them."""

from __future__ import annotations

from typing import Any

from rcl_interfaces.msg import ParameterDescriptor
from rclpy.node import Node

from gmskip_ros.pipeline.parameters import SPECS
from gmskip_ros.pipeline.settings import Settings, settings_from


def declare(node: Node) -> Settings:
    """Declare all parameters on the node and return their checked values."""
    for spec in SPECS.values():
        # rclpy takes no integer for a floating-point parameter; our own check of the type does,
        # and says for every parameter in one line what is wrong.
        descriptor = ParameterDescriptor(
            description=spec.description, read_only=spec.read_only, dynamic_typing=True
        )
        node.declare_parameter(spec.name, spec.default, descriptor)
    return read(node)


def unknown_names(node: Node) -> list[str]:
    """Return the names that were given on the command line or in a file, and that nobody knows."""
    given = getattr(node, '_parameter_overrides', {})  # rclpy has no public way to them
    return sorted(
        name
        for name in given
        if not node.has_parameter(name) and not name.startswith('qos_overrides.')
    )


def read(node: Node) -> Settings:
    """Return the checked snapshot of the node's parameters as they are now."""
    return settings_from(values(node))


def values(node: Node) -> dict[str, Any]:
    """Return the node's parameters by name."""
    return {name: node.get_parameter(name).value for name in SPECS}
