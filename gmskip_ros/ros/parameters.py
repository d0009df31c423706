"""A table of parameters (pipeline/parameter_kinds.py) on a node of rclpy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.node import Node

from gmskip_ros.pipeline.parameter_kinds import Spec

SIMILAR = 0.85  # of difflib: rate_Hz and rate_hz, but not device_id and device
LEAST_LETTERS = 5  # `type` is a parameter of many nodes, and no misspelt `dtype`


def declare(node: Node, specs: Mapping[str, Spec]) -> None:
    """Declare the table's parameters on the node; raises ParameterError for an unusable override.

    Only overrides are checked here: rclpy's own message about a range does not explain it.
    """
    given = _overrides(node)
    for spec in specs.values():
        if spec.name in given:
            spec.check(given[spec.name].value)
        # rclpy accepts no integer for a floating-point parameter. With dynamic typing the type is
        # checked by the table, which accepts it and explains every bad value in one line.
        descriptor = ParameterDescriptor(
            description=spec.description, read_only=spec.read_only, dynamic_typing=True
        )
        low, high = spec.kind.schema.get('minimum'), spec.kind.schema.get('maximum')
        if low is not None and high is not None:
            if spec.kind.schema['type'] == 'integer':
                descriptor.integer_range = [IntegerRange(from_value=low, to_value=high)]
            else:
                float_range = FloatingPointRange(from_value=float(low), to_value=float(high))
                descriptor.floating_point_range = [float_range]
        node.declare_parameter(spec.name, spec.default, descriptor)


def values(node: Node, specs: Mapping[str, Spec]) -> dict[str, Any]:
    """Return the unchecked values of the table's parameters by name."""
    return {name: node.get_parameter(name).value for name in specs}


def given_names(node: Node) -> list[str]:
    """Return the names that the command line and parameter files set for the node."""
    return sorted(name for name in _overrides(node) if not name.startswith('qos_overrides.'))


def similar_name(name: str, names: Iterable[str]) -> str:
    """Return the one of `names` that this looks like a misspelling of; '' if none."""
    if len(name) < LEAST_LETTERS:
        return ''
    names = list(names)
    for each in names:
        if each.startswith(f'{name}.'):  # the name of a group
            return each
    by_lower = {each.lower(): each for each in names}
    found = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=SIMILAR)
    return by_lower[found[0]] if found else ''


def _overrides(node: Node) -> Mapping[str, Any]:
    return getattr(node, '_parameter_overrides', {})  # rclpy has no public access to them
