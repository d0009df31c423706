"""ROS cannot read its own graph for a while; the node is real, the errors are stand-ins."""

from __future__ import annotations

from pathlib import Path

from fault_probe import ONE_TASK, FaultProbe
from ros_process import RosProcess, ros_command, ros_node
from test_faults_health import INPUT, RATE_HZ, SHORT_TIMES, recover, warned

# The calls of rclpy that read the graph raise its own error as long as a file exists.
BROKEN_GRAPH = """
import os
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.node import Node

def wrap(name):
    read = getattr(Node, name)
    def call(*args):
        if os.path.exists({switch!r}):
            raise rclpy_implementation.RCLError('no graph\\nat rcl.c')
        return read(*args)
    setattr(Node, name, call)

for each in ('get_node_names_and_namespaces', 'get_publishers_info_by_topic', 'count_publishers'):
    wrap(each)
"""


def test_graph_that_cannot_be_read(tmp_path: Path) -> None:
    """The node goes on, logs it once, and looks again every second."""
    switch = tmp_path / 'broken'
    switch.touch()
    python, _, _, *arguments = ros_command('dual_vlm_node', rate_hz=RATE_HZ, **ONE_TASK)
    code = BROKEN_GRAPH.format(switch=str(switch)) + SHORT_TIMES
    with RosProcess([python, '-c', code, *arguments], warm=True) as process, ros_node() as node:
        probe = FaultProbe(node, process, '/dual_vlm', INPUT)
        probe.wait_for_state('ready', 'no_frames')
        warned(probe, 'no_frames', 'the ROS graph, which would show the reason, cannot be read')
        recover(probe)
        num_reports = len(probe.reports())
        probe.wait(lambda: len(probe.reports()) > num_reports + 5, 'some reports')
        line = 'the ROS graph cannot be read now: no graph'
        assert process.output().count(line) == 1 and 'at rcl.c' not in process.output()
        switch.unlink()
        warned(probe, 'no_frames', '1 publisher (/probe), but nothing is received')
        assert process.stop() == 0
        assert 'Traceback' not in process.output()
