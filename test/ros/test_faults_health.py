"""What the node says about its input, its parameters and its name; docs/faults.md has the table."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from fault_node import REPORT_S
from fault_probe import ONE_TASK, FaultProbe
from node_probe import picture
from rcl_interfaces.srv import DescribeParameters
from rclpy.qos import QoSProfile, ReliabilityPolicy
from ros_process import RosProcess, ros_command, ros_env, ros_node
from sensor_msgs.msg import CompressedImage, Image

from gmskip_ros.pipeline.parameters import SPECS
from gmskip_ros.ros.conversions import rgb_to_image

INPUT = '/dual_vlm/input/image'
RATE_HZ = 2.0
RELIABLE = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE)
BEST_EFFORT = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
# The real node with short times; a warning settles more slowly than silence is noticed.
SHORT_TIMES = (
    'import sys; from gmskip_ros.pipeline import gate; from gmskip_ros.ros import node; '
    f'node.DIAGNOSTICS_PERIOD_S = {REPORT_S}; node.NO_FRAMES_AFTER_S = 1.0; '
    'node.settle_s = lambda rate_hz: 1.5; node.SAME_NAME_AFTER_S = 0.5; '
    'gate.UNSTEADY_NS = 3_000_000_000; '
    'from gmskip_ros.ros.dual_vlm_node import main; sys.exit(main())'
)


@pytest.fixture(scope='module')
def probe() -> Iterator[FaultProbe]:
    """One node for most rows, reliable; they leave it ready."""
    python, _, _, *arguments = ros_command(
        'dual_vlm_node', rate_hz=RATE_HZ, input_reliability='reliable', **ONE_TASK
    )
    with (
        RosProcess([python, '-c', SHORT_TIMES, *arguments], warm=True) as process,
        ros_node() as node,
    ):
        probe = FaultProbe(node, process, '/dual_vlm', INPUT)
        probe.wait_for_state('ready', 'no_frames')
        yield probe
        assert process.stop(signal.SIGTERM) == 0
        assert 'Traceback' not in process.output() and 'terminate' not in process.output()


def play(probe: FaultProbe, offset_s: float = 0.0) -> None:
    """Publish a frame with the time of now plus `offset_s` as its stamp."""
    now_ns = time.time_ns() + round(offset_s * 1e9)
    message = rgb_to_image(picture(), probe.header())
    message.header.stamp.sec, message.header.stamp.nanosec = divmod(now_ns, 1_000_000_000)
    probe.publish(message)
    probe.spin(0.05)


def recover(probe: FaultProbe) -> None:
    """A camera that runs is all it takes for the state to be ready, with level OK."""

    def is_ready() -> bool:
        play(probe)
        return bool(probe.reports()[-1]['state'] == 'ready')

    probe.wait(is_ready, 'state ready')
    assert probe.reports()[-1]['level'] == DiagnosticStatus.OK


def warned(probe: FaultProbe, state: str, *words: str, offset_s: float | None = None) -> str:
    """Wait for this state, level WARN, with these words; return the reason."""

    def is_said() -> bool:
        if offset_s is not None:
            play(probe, offset_s)
        else:
            probe.spin(REPORT_S)
        last = probe.reports()[-1]
        return last['state'] == state and all(word in last['reason'] for word in words)

    probe.wait(is_said, f'{state} with {words}')
    last = probe.reports()[-1]
    assert last['level'] == DiagnosticStatus.WARN
    return str(last['reason'])


def test_two_cameras_seconds_apart(probe: FaultProbe) -> None:
    recover(probe)
    before, start_s = probe.counts(), time.monotonic()
    for _ in range(30):
        play(probe)
        play(probe, -3.0)
    warned(probe, 'degraded', 'stamps go back and forth', 'two cameras', offset_s=-3.0)
    answered = probe.counts()['answered'] - before['answered']
    elapsed_s = time.monotonic() - start_s
    assert 2 <= answered <= 5 + elapsed_s * RATE_HZ
    probe.process.wait_for_output('degraded: stamps go back and forth')
    recover(probe)


def test_stamps_that_never_change(probe: FaultProbe) -> None:
    recover(probe)
    message = rgb_to_image(picture(), probe.header())
    now_s = time.time() + 1.0
    message.header.stamp.sec = int(now_s)

    def is_named() -> bool:
        probe.publish(message)
        probe.spin(0.05)
        return 'has not advanced' in probe.reports()[-1]['reason']

    probe.wait(is_named, 'the warning')
    last = probe.reports()[-1]
    assert last['state'] == 'no_frames' and last['level'] == DiagnosticStatus.WARN
    assert 'images arrive' in last['reason']
    recover(probe)


def test_no_publisher(probe: FaultProbe) -> None:
    recover(probe)
    probe.node.destroy_publisher(probe.camera)
    reason = warned(probe, 'no_frames', 'no publisher on ' + INPUT)
    assert re.search(
        r'1 other node seen \(rmw_\w+, domain \d+, discovery range LOCALHOST\)', reason
    )
    sibling = probe.node.create_publisher(CompressedImage, INPUT + '/compressed', RELIABLE)
    warned(
        probe, 'no_frames', f'1 publisher on {INPUT}/compressed: set image_transport: compressed'
    )
    probe.node.destroy_publisher(sibling)
    other = probe.node.create_publisher(CompressedImage, INPUT, RELIABLE)
    warned(probe, 'no_frames', 'type sensor_msgs/msg/CompressedImage, not sensor_msgs/msg/Image')
    probe.node.destroy_publisher(other)
    best_effort = probe.node.create_publisher(Image, INPUT, BEST_EFFORT)
    warned(
        probe,
        'no_frames',
        'the only publisher',
        'best-effort',
        'set input_reliability: best_effort',
    )
    probe.node.destroy_publisher(best_effort)
    probe.camera = probe.node.create_publisher(Image, INPUT, RELIABLE)
    recover(probe)


def test_idle_publisher(probe: FaultProbe) -> None:
    recover(probe)
    warned(probe, 'no_frames', '1 publisher (/probe), but nothing is received', 'idle')
    recover(probe)
    assert float(probe.reports()[-1]['input_rate_hz']) > 0.0


def test_messages_lost_by_the_middleware(probe: FaultProbe) -> None:
    """A publisher of depth 1 keeps none of what comes while the node is stopped but the last."""
    recover(probe)
    before = int(probe.reports()[-1]['message_lost'])
    message = rgb_to_image(picture(), probe.header())
    # Of now: the one that arrives must not be the first with an old stamp, which is logged once.
    message.header.stamp.sec, message.header.stamp.nanosec = divmod(time.time_ns(), 1_000_000_000)
    os.kill(probe.process.pid, signal.SIGSTOP)
    for _ in range(300):
        probe.publish(message)
    os.kill(probe.process.pid, signal.SIGCONT)

    def lost() -> int:
        play(probe)
        return int(probe.reports()[-1]['message_lost'])

    probe.wait(lambda: lost() > before, 'the count')
    num_lost = lost()
    assert num_lost <= before + 300
    warned(probe, 'no_frames', f'its messages are lost ({num_lost} so far)')
    recover(probe)


@pytest.mark.parametrize(
    ('offset_s', 'check', 'words'),
    [
        pytest.param(-7200.0, 'old', '7200 s old: a bag', id='old'),
        pytest.param(3600.0, 'future', 's in the future', id='future'),
        pytest.param(100.0 - time.time(), 'since_boot', 'from its own start', id='since_boot'),
    ],
)
def test_stamps_of_another_clock(
    probe: FaultProbe, offset_s: float, check: str, words: str
) -> None:
    """The level stays OK: a bag without --clock is daily work."""
    recover(probe)
    assert probe.reports()[-1]['stamp_check'] == 'ok'

    def is_checked() -> bool:
        play(probe, offset_s)
        return bool(probe.reports()[-1]['stamp_check'] == check)

    probe.wait(is_checked, check)
    for _ in range(5):
        play(probe, offset_s)
    probe.wait(lambda: words in probe.process.output(), 'the line in the log')
    assert probe.process.output().count(words) == 1
    assert probe.reports()[-1]['state'] in ('ready', 'no_frames')
    recover(probe)


def test_frames_that_come_and_go(probe: FaultProbe) -> None:
    """One line in the log, and the warning stays until images have come for a while."""
    recover(probe)
    first = probe.process.output().count('no_frames: no image for')
    for _ in range(3):
        warned(probe, 'no_frames', 'no image for', 'idle')
        play(probe)
    assert 'ready' not in [report['state'] for report in probe.reports()[-8:]]
    warned(probe, 'no_frames', '(good for', offset_s=0.0)
    assert probe.process.output().count('no_frames: no image for') == first + 1
    recover(probe)


def test_second_node_of_the_same_name(probe: FaultProbe) -> None:
    recover(probe)
    with ros_node('dual_vlm'):
        warned(probe, 'degraded', '2 nodes are named /dual_vlm', offset_s=0.0)
        probe.process.wait_for_output('degraded: 2 nodes are named /dual_vlm')
        probe.enable(False)
        probe.process.wait_for_output(
            'paused: call ~/enable with true to resume; 2 nodes are named'
        )
        probe.enable(True)
    recover(probe)


def test_parameters_carry_their_ranges(probe: FaultProbe) -> None:
    client = probe.node.create_client(DescribeParameters, '/dual_vlm/describe_parameters')
    answer = probe.call(client, DescribeParameters.Request(names=list(SPECS)))
    for spec, descriptor in zip(SPECS.values(), answer.descriptors, strict=True):
        ranges = [*descriptor.floating_point_range, *descriptor.integer_range]
        bounds = [(each.from_value, each.to_value) for each in ranges]
        schema = spec.kind.schema
        expected = [(schema['minimum'], schema['maximum'])] if 'minimum' in schema else []
        assert bounds == expected, spec.name
    result = probe.set_parameter('operating_point', '8')
    assert result.successful and probe.set_parameter('operating_point', 'high_performance')
    assert not probe.set_parameter('rate_hz', 100.0).successful


# --- starts ---


def param_file(folder: Path, text: str) -> Path:
    path = folder / 'my.param.yaml'
    path.write_text(text)
    return path


MISSES: dict[str, tuple[str, str]] = {  # content, words of the one line
    'empty': ('# nothing yet\n', 'is empty'),
    'another_name': ('dual_vlm_node: {ros__parameters: {rate_hz: 2.0}}', "'dual_vlm_node'"),
    'another_namespace': ('/rear/dual_vlm: {ros__parameters: {model: demo}}', "'/rear/dual_vlm'"),
    'without_namespace': ('dual_vlm: {ros__parameters: {use_sim_time: true}}', "'dual_vlm'"),
    'among_others': (
        '/**: {ros__parameters: {use_sim_time: true}}\nvlm: {ros__parameters: {prompt: '
        '{captioning: Hello}, model: demo}}',
        "'vlm'",
    ),
}


@pytest.mark.parametrize('name', MISSES)
def test_parameter_file_that_misses_the_node(tmp_path: Path, name: str) -> None:
    content, words = MISSES[name]
    path = param_file(tmp_path, content)
    command = ros_command('dual_vlm_node', '-r', '__ns:=/front', params_file=path)
    with RosProcess(command, warm=True) as process:
        assert process.wait() == 2
    (line,) = [line for line in process.output().splitlines() if 'dual_vlm]' in line]
    assert '[FATAL]' in line and str(path) in line and words in line
    assert '/front/dual_vlm' in line


# Name, arguments, and lines of the log of a node that starts.
STARTS: dict[str, tuple[dict[str, Any], list[str], list[str]]] = {
    'file_for_other_nodes': (
        {
            'params_file': '/**: {ros__parameters: {use_sim_time: false, wheel_radius: 0.4, '
            'wheel_base: 2.8}}\ncamera: {ros__parameters: {device: /dev/video0, gain: 1, fps: 30}}'
        },
        ['parameters that this node does not have: wheel_base, wheel_radius'],
        ['did you mean'],
    ),
    'file_beside_another_parameter': (
        {'params_file': '/rear/dual_vlm: {ros__parameters: {rate_hz: 2.0}}', 'rate_hz': 3.0},
        ["sets nothing here: its key '/rear/dual_vlm' does not match"],
        [],
    ),
    'misspelt_parameters': (
        {'rate_Hz': 5.0, 'skip_lists.captioning': 'auto'},
        [
            'unknown parameter rate_Hz: did you mean rate_hz?',
            'skip_lists.captioning: did you mean skip_list.captioning?',
        ],
        ['parameters that this node does not have'],
    ),
    'compressed_topic_named_in_full': (
        {'remap': {'~/input/image': '/x/compressed'}, 'image_transport': 'compressed'},
        ['images are taken from /x/compressed (CompressedImage'],
        ['/compressed/compressed'],
    ),
    'one_label': ({'labels': ['car']}, ['loading'], ['FATAL']),
}


@pytest.mark.parametrize('name', STARTS)
def test_start_that_is_explained(tmp_path: Path, name: str) -> None:
    arguments, lines, absent = STARTS[name]
    arguments = dict(arguments)
    if 'params_file' in arguments:
        arguments['params_file'] = param_file(tmp_path, arguments['params_file'])
    with RosProcess(ros_command('dual_vlm_node', **arguments), warm=True) as process:
        process.wait_for_output(': loading')
        for line in lines:
            process.wait_for_output(line)
        assert process.stop() == 0
    for words in absent:
        assert words not in process.output()


def test_label_set_that_is_misspelt() -> None:
    with RosProcess(ros_command('dual_vlm_node', labels=['coda2']), warm=True) as process:
        assert process.wait() == 2
    (line,) = [line for line in process.output().splitlines() if '[dual_vlm]' in line]
    for word in ('[FATAL]', 'labels', "'coda2'", 'coda, coco, scenes'):
        assert word in line


def test_the_demo_model_is_called_a_toy(probe: FaultProbe) -> None:
    assert probe.process.output().count('the model demo is a toy') == 1


def test_help() -> None:
    command = [*ros_command('dual_vlm_node')[:3], '--help']
    with RosProcess(command) as process:
        assert process.wait() == 0
    assert all(name in process.output() for name in SPECS)
    assert 'usage: dual_vlm_node' in process.output() and '[dual_vlm]' not in process.output()


def test_discovery_switched_off() -> None:
    """The node itself says so: its own /diagnostics cannot be heard then."""
    env = ros_env(ROS_AUTOMATIC_DISCOVERY_RANGE='OFF')
    python, _, _, *arguments = ros_command('dual_vlm_node', **ONE_TASK)
    with RosProcess([python, '-c', SHORT_TIMES, *arguments], env) as process:
        process.wait_for_output('discovery range OFF, which finds no one')
        assert 'no other node is seen' in process.output()
        assert process.stop() == 0
