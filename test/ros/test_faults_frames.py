"""Faults of raw frames, clocks, cameras, subscribers and calls; see docs/faults.md."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray
from fault_probe import ONE_TASK, FaultProbe
from node_probe import keys, picture, quick_command
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.serialization import serialize_message
from ros_process import RosProcess, ros_node
from sensor_msgs.msg import CompressedImage, Image

from gmskip_ros.ros.conversions import image_to_rgb, rgb_to_image

INPUT = '/dual_vlm/input/image'
DEPTH_1 = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE)


@pytest.fixture(scope='module')
def probe() -> Iterator[FaultProbe]:
    """One node for all rows, each of which leaves it unchanged."""
    # Not warm: test_frames_while_it_loads needs a node that takes a while to load.
    with RosProcess(quick_command(**ONE_TASK)) as process, ros_node() as node:
        probe = FaultProbe(node, process, '/dual_vlm', INPUT)
        probe.wait_for_state('loading')
        # For test_frames_while_it_loads.
        probe.publish(rgb_to_image(picture(), probe.header()))
        probe.wait_for_state('ready')
        yield probe
        assert process.stop(signal.SIGTERM) == 0
        assert 'Traceback' not in process.output() and 'terminate' not in process.output()


def frame(probe: FaultProbe, rgb: np.ndarray | None = None, **fields: Any) -> Image:
    """Return the next due frame, with some of its fields changed."""
    message = rgb_to_image(picture() if rgb is None else rgb, probe.next_header())
    for name, value in fields.items():
        setattr(message, name, value)
    return message


def answer_to(probe: FaultProbe, message: Image) -> str:
    """Publish a frame and return the answer with skipping."""
    probe.publish(message)
    topic = 'output/skip/result'
    probe.wait(lambda: probe.results_of(message.header, topic), 'an answer')
    (result,) = probe.results_of(message.header, topic)
    return result.status[0].message


def test_frames_while_it_loads(probe: FaultProbe) -> None:
    assert probe.counts()['not_ready'] == 1
    assert probe.published == []
    probe.check_ready()


def test_silence(probe: FaultProbe) -> None:
    health = probe.wait_for_state('no_frames')
    assert 'no image for' in health['reason']
    probe.process.wait_for_output(f'waiting for {INPUT} (Image, best_effort)')
    probe.check_answered()
    probe.wait_for_state('ready')


@pytest.mark.parametrize(
    ('fields', 'words'),
    [
        pytest.param({'encoding': 'theora'}, ["'theora'", 'publish one of'], id='unknown_encoding'),
        pytest.param({'encoding': ''}, ["''", 'publish one of'], id='no_encoding'),
        pytest.param({'encoding': '16UC1'}, ["'16UC1'", 'publish one of'], id='depth'),
        pytest.param(
            {'encoding': 'bayer_rggb8', 'width': 2, 'height': 2, 'step': 2},
            ['2x2', '3 x 3'],
            id='bayer_too_small',
        ),
        pytest.param(
            {'encoding': 'yuv422', 'width': 479, 'step': 958}, ['479x360', 'even'], id='odd_width'
        ),
        pytest.param({'step': 1439}, ['step 1439', '1440'], id='step_too_small'),
        pytest.param({'data': bytes(1000)}, ['1000 bytes', '518400'], id='truncated'),
        pytest.param({'data': b''}, ['0 bytes', '518400'], id='no_data'),
        pytest.param({'width': 0, 'height': 0, 'step': 0, 'data': b''}, ['0x0'], id='zero_size'),
        pytest.param(
            {'width': 2**32 - 1, 'height': 2**32 - 1, 'step': 2**32 - 1},
            ['4294967295'],
            id='absurd_size',
        ),
    ],
)
def test_undecodable_frame(probe: FaultProbe, fields: dict[str, Any], words: list[str]) -> None:
    probe.check_lost(frame(probe, **fields), 'undecodable', ['no answer to this image', *words])


def serialized(probe: FaultProbe, old: bytes, new: bytes) -> bytes:
    """Return the next due frame in serialized form, with some of its bytes changed."""
    data = serialize_message(frame(probe))
    assert data.count(old) == 1 and len(old) == len(new)
    return data.replace(old, new)


def test_encoding_not_utf8(probe: FaultProbe) -> None:
    data = serialized(probe, b'rgb8', b'\xff\xfe\xfdb')
    probe.check_lost(data, 'undecodable', ['publish one of'])


def test_frame_id_not_utf8(probe: FaultProbe) -> None:
    """A driver's Latin-1: bytes that are not UTF-8 come back as the replacement character."""
    probe.check_answered()
    published = len(probe.published)
    probe.publish(serialized(probe, b'camera', b'cam\xe9ra'))
    probe.wait(lambda: len(probe.published) == published + 3, 'its answers')
    assert 'cam\ufffdra' in probe.published[-1].frame_id
    probe.check_ready()


def test_message_cut_off(probe: FaultProbe) -> None:
    """Damaged, or with a different message definition: the middleware drops it."""
    probe.check_answered()
    before, published = probe.counts(), len(probe.published)
    for size in (6, 50, 200):
        probe.publish(serialize_message(frame(probe))[:size])
        probe.spin(0.2)
    assert probe.counts() == before and len(probe.published) == published
    probe.check_ready()


def test_padded_rows(probe: FaultProbe) -> None:
    probe.check_answered()
    height, width, _ = picture().shape
    rows = np.full((height, 3 * width + 17), 255, np.uint8)
    rows[:, : 3 * width] = picture().reshape(height, -1)
    padded = frame(probe, step=rows.shape[1], data=rows.tobytes())
    assert answer_to(probe, padded) == probe.answers['skip']
    probe.check_ready()


def test_one_pixel(probe: FaultProbe) -> None:
    """The overlay is drawn on it as well."""
    pictures = probe.read('/dual_vlm/debug/image', Image)
    drawn = probe.on('debug/image')
    probe.wait(lambda: probe.node.count_publishers('/dual_vlm/debug/image'), 'the overlay topic')
    probe.check_answered()
    probe.check_answered()
    tiny = frame(probe, np.zeros((1, 1, 3), np.uint8))
    answer_to(probe, tiny)
    probe.wait(lambda: any(m.header == tiny.header for m in drawn), 'the overlay of one pixel')
    probe.node.destroy_subscription(pictures)
    probe.check_ready()


def test_size_that_changes(probe: FaultProbe) -> None:
    for shape in ((1080, 1920, 3), (48, 64, 3)):
        answer_to(probe, frame(probe, np.full(shape, 90, np.uint8)))
    probe.check_ready()


def test_lens_covered(probe: FaultProbe) -> None:
    """A black image is a valid image: only the model could notice."""
    answer_to(probe, frame(probe, np.zeros_like(picture())))
    probe.check_ready()


def test_raw_8000x6000_in_process() -> None:
    data = bytes(8000 * 6000)
    message = Image(height=6000, width=8000, encoding='bayer_rggb8', step=8000)
    message.data = data
    assert image_to_rgb(message).shape == (6000, 8000, 3)


def test_60_hz(probe: FaultProbe) -> None:
    probe.check_answered()
    before = probe.counts()
    results = len(probe.on('output/comparison'))
    first = probe.next_header().stamp.sec
    for index in range(121):
        probe.publish(rgb_to_image(picture(), probe.header(index / 60)))
        probe.node.executor.spin_once(timeout_sec=1 / 60)
    probe.second += 2
    probe.check_answered()
    seconds = [message.header.stamp.sec for message in probe.on('output/comparison')[results:-1]]
    assert sorted(set(seconds)) == seconds and set(seconds) <= {first, first + 1, first + 2}
    after = probe.counts()
    assert after['gated'] > before['gated']
    assert after['answered'] == before['answered'] + len(seconds) + 1


def test_clock_jumps_forward(probe: FaultProbe) -> None:
    probe.check_answered()
    probe.second += 100_000
    probe.check_answered()  # without waiting for the skipped time
    probe.second -= 200_000
    probe.check_ready()


def test_clock_jumps_back(probe: FaultProbe) -> None:
    probe.check_answered()
    before = probe.counts()
    probe.second -= 1000
    probe.ask()
    assert probe.counts()['out_of_order'] == before['out_of_order']
    probe.check_ready()


def test_frames_out_of_order(probe: FaultProbe) -> None:
    before = probe.counts()
    header = probe.check_answered()
    probe.second = header.stamp.sec
    late = probe.header(-0.5)
    probe.publish(rgb_to_image(picture(), late))
    probe.wait(lambda: probe.counts()['out_of_order'] > before['out_of_order'], 'the counter')
    assert late not in probe.published
    probe.check_ready()


def test_zero_stamps(probe: FaultProbe) -> None:
    probe.second = int(time.time()) - 1000  # makes the time of arrival due
    probe.ask()
    received = probe.counts()['received']
    message = frame(probe)
    message.header.stamp.sec = message.header.stamp.nanosec = 0

    def three_have_come() -> bool:
        for _ in range(3):
            probe.publish(message)
            probe.spin(0.1)
        return probe.counts()['received'] >= received + 3

    probe.wait(three_have_come, 'three frames')
    assert message.header in probe.published
    health = probe.health()
    assert 0.0 <= float(health['input_age_ms']) < 60_000.0
    assert probe.process.output().count('images have no stamp') == 1
    probe.second = int(time.time()) + 2
    probe.check_ready()


@pytest.mark.parametrize(
    ('seconds', 'nanoseconds'),
    [
        pytest.param(-5, 0, id='negative'),
        pytest.param(2**31 - 1, 2**32 - 1, id='year_2038'),
    ],
)
def test_nonsense_stamp(probe: FaultProbe, seconds: int, nanoseconds: int) -> None:
    probe.check_answered()
    message = frame(probe)
    message.header.stamp.sec, message.header.stamp.nanosec = seconds, nanoseconds
    answer_to(probe, message)  # under its own header; the stamp blocks nothing
    probe.check_ready()


def test_simulated_time_without_a_clock(probe: FaultProbe) -> None:
    assert probe.set_parameter('use_sim_time', True).successful
    probe.check_answered()
    probe.wait_for_state('ready')  # health is still reported
    assert probe.set_parameter('use_sim_time', False).successful
    probe.check_ready()


def test_publisher_of_another_type(probe: FaultProbe) -> None:
    before = probe.counts()
    with ros_node('other') as node:
        other = node.create_publisher(CompressedImage, INPUT, DEPTH_1)
        probe.process.wait_for_output('/other publishes on ' + INPUT)
        for _ in range(3):
            other.publish(CompressedImage(header=probe.next_header(), format='jpeg', data=b'123'))
        assert probe.counts()['received'] == before['received']
    lines = probe.process.output().splitlines()
    (line,) = [line for line in lines if '/other publishes on' in line]  # not once a second
    assert 'sensor_msgs/msg/CompressedImage, not sensor_msgs/msg/Image' in line
    probe.check_ready()


def test_two_cameras_on_one_topic(probe: FaultProbe) -> None:
    before = probe.counts()
    header = probe.check_answered()
    rear = probe.node.create_publisher(Image, INPUT, DEPTH_1)
    probe.wait(lambda: rear.get_subscription_count(), 'the subscription')
    message = rgb_to_image(picture(), probe.header())
    message.header.stamp.sec, message.header.stamp.nanosec = header.stamp.sec - 1, 900_000_000

    def counted() -> bool:
        rear.publish(message)
        return probe.counts()['out_of_order'] > before['out_of_order']

    probe.wait(counted, 'the counter')
    assert message.header not in probe.published
    probe.node.destroy_publisher(rear)
    probe.check_ready()


def test_camera_restarted(probe: FaultProbe) -> None:
    """The camera disappears and returns, the first time with its clock near zero."""
    for second in (10, int(time.time()) + 1000):
        probe.node.destroy_publisher(probe.camera)
        probe.wait(lambda: not probe.node.count_publishers(INPUT), 'no camera')
        probe.camera = probe.node.create_publisher(Image, INPUT, DEPTH_1)
        probe.second = second
        probe.ask()
    probe.check_ready()


def test_subscriber_that_never_reads(probe: FaultProbe) -> None:
    with ros_node('lazy') as lazy:  # never spun
        for topic, kind in (('output/skip/result', DiagnosticArray), ('debug/image', Image)):
            lazy.create_subscription(kind, f'/dual_vlm/{topic}', lambda _: None, DEPTH_1)
        topic = '/dual_vlm/debug/image'
        probe.wait(lambda: probe.node.count_subscribers(topic), 'the subscription')
        failed = probe.counts()['failed']
        for _ in range(5):
            probe.check_answered()
    assert probe.counts()['failed'] == failed
    probe.check_ready()


READER = """
import time, rclpy
from rclpy.qos import QoSProfile, ReliabilityPolicy
from diagnostic_msgs.msg import DiagnosticArray
from sensor_msgs.msg import Image
rclpy.init()
node = rclpy.create_node('reader')
def read(message):
    print('read', flush=True)
    time.sleep(1.0)
qos = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE)
node.create_subscription(Image, '/dual_vlm/debug/image', read, qos)
node.create_subscription(DiagnosticArray, '/dual_vlm/output/skip/result', read, qos)
rclpy.spin(node)
"""


@pytest.fixture(scope='module')
def reader(probe: FaultProbe) -> Iterator[RosProcess]:
    """A process that needs a second for every image and every result."""
    with RosProcess([sys.executable, '-c', READER], warm=True) as reader:
        probe.wait(lambda: 'reader' in probe.node.get_node_names(), 'the reader')
        while 'read' not in reader.output():
            probe.check_answered()
        yield reader


def test_slow_reader_of_the_overlay(probe: FaultProbe, reader: RosProcess) -> None:
    results = len(probe.on('output/comparison'))
    for _ in range(10):
        probe.check_answered()
    assert len(probe.on('output/comparison')) == results + 10
    probe.wait(lambda: reader.output().count('read') >= 2, 'what the slow one reads')


def test_subscriber_that_hangs(probe: FaultProbe, reader: RosProcess) -> None:
    os.kill(reader.pid, signal.SIGSTOP)
    try:
        failed = probe.counts()['failed']
        for _ in range(10):
            probe.check_answered()
        assert probe.counts()['failed'] == failed
    finally:
        os.kill(reader.pid, signal.SIGCONT)
    probe.check_ready()


@pytest.mark.parametrize(
    ('name', 'value', 'words'),
    [
        pytest.param('rate_hz', 'fast', ["'fast'", 'not a number'], id='wrong_type'),
        pytest.param('rate_hz', 1e9, ['1000000000.0', 'Min: 0.01, Max: 60.0'], id='out_of_range'),
        pytest.param('operating_point', 31, ['31', '0..26'], id='operating_point'),
        pytest.param('latency_budget_ms', -1.0, ['-1.0', 'Min: 0.0'], id='latency_budget'),
        pytest.param('timing', 'fast', ["'fast'", 'isolated, shared'], id='timing'),
        pytest.param('model', 'other', ['read-only', 'model'], id='read_only'),
        pytest.param('rate', 2.0, ['undeclared'], id='unknown_name'),
    ],
)
def test_bad_change_at_run_time(probe: FaultProbe, name: str, value: Any, words: list[str]) -> None:
    result = probe.set_parameter(name, value)
    assert not result.successful and '\n' not in result.reason
    for word in words:
        assert word in result.reason
    probe.check_answered()
    health = probe.wait_for_state('ready')
    assert float(health['rate_hz']) == 1.0
    assert health['operating_point.single_object'] == 'high_performance'


def test_budget_that_nothing_fits(probe: FaultProbe) -> None:
    before, results = probe.health(), len(probe.on('output/skip/result'))
    assert (before['latency_budget_ms'], before['over_budget']) == ('0.000', '0')
    assert probe.set_parameter('latency_budget_ms', 0.01).successful
    for _ in range(8):
        answer_to(probe, frame(probe))
    values = [keys(result.status[0]) for result in probe.on('output/skip/result')[results:]]
    points = [each['operating_point'] for each in values]
    assert points == ['20'] * 7 + ['high_sparsity']  # the only prefix up to the operating point
    assert len(values[-1]['skipped_blocks'].split(',')) == 26
    health = probe.wait_for_state('ready')
    assert (health['latency_budget_ms'], health['over_budget']) == ('0.010', '8')
    assert health['budget_unmet'] == '1' and float(health['budget_expected_ms']) > 0.01
    assert health['operating_point.single_object'] == 'high_sparsity'
    assert health['skipped_blocks.single_object'] == '26'
    probe.process.wait_for_output('nothing fits latency_budget_ms')
    assert probe.set_parameter('latency_budget_ms', 0.0).successful
    probe.check_answered()
    assert probe.health()['operating_point.single_object'] == 'high_performance'


def test_prompt_longer_than_the_context(probe: FaultProbe) -> None:
    probe.check_answered()
    failed, published = probe.counts()['failed'], len(probe.published)
    good = 'What is the main object in this image? Answer with one word.'
    assert probe.set_parameter('prompt.single_object', 'long ' * 3000).successful
    probe.publish(frame(probe))
    health = probe.wait_for_state('degraded')
    assert int(health['frames_failed']) == failed + 1
    assert 'tokens' in health['last_error'] and 'shorten the prompt' in health['last_error']
    assert len(probe.published) == published
    assert probe.set_parameter('prompt.single_object', good).successful
    probe.check_answered()
    probe.wait_for_state('ready')


def test_parameters_changed_all_the_time(probe: FaultProbe) -> None:
    before, results = probe.counts(), len(probe.on('output/skip/result'))
    for index in range(40):
        assert probe.set_parameter('operating_point', index % 20).successful
        probe.publish(frame(probe))
    assert probe.set_parameter('operating_point', 'high_performance').successful
    probe.check_answered()
    for result in probe.on('output/skip/result')[results:-1]:
        values = keys(result.status[0])
        blocks = list(filter(None, values['skipped_blocks'].split(',')))
        assert len(blocks) == int(values['operating_point'])  # of one change, not of two
    assert probe.counts()['failed'] == before['failed']


def test_enable_toggled_100_times(probe: FaultProbe) -> None:
    before, published = probe.counts(), len(probe.published)
    sent = []
    for index in range(100):
        message = frame(probe)
        sent.append(message.header.frame_id)
        probe.publish(message)
        assert probe.enable(index % 2 == 1).success
    sent.append(probe.check_answered().frame_id)
    after = probe.counts()
    frames = [header.frame_id for header in probe.published[published:]]
    assert set(frames) <= set(sent) and frames[-1] == sent[-1]
    assert max(frames.count(frame_id) for frame_id in frames) <= 3  # skip, full, comparison
    assert after['failed'] == before['failed']
    probe.wait_for_state('ready')


def test_stopped_and_continued(probe: FaultProbe) -> None:
    """Without max_frame_age_sec a waiting frame may be answered late, under its own stamp."""
    probe.check_answered()
    published = len(probe.published)
    os.kill(probe.process.pid, signal.SIGSTOP)
    sent = [frame(probe) for _ in range(3)]
    for message in sent:
        probe.publish(message)
        probe.spin(0.3)
    assert len(probe.published) == published
    os.kill(probe.process.pid, signal.SIGCONT)
    good = probe.check_answered()
    assert {header.frame_id for header in probe.published[published:]} <= {
        header.frame_id for header in (*(message.header for message in sent), good)
    }
    probe.wait_for_state('ready')
