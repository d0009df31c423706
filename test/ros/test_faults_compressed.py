"""Faults of JPEG and PNG frames, old frames and QoS; the table is in docs/faults.md."""

from __future__ import annotations

import array
import os
import signal
import time
from collections.abc import Callable, Iterator

import cv2
import numpy as np
import pytest
from fault_probe import ONE_TASK, FaultProbe
from node_probe import picture, quick_command
from rclpy.qos import QoSProfile, ReliabilityPolicy
from ros_process import RosProcess, ros_node
from sensor_msgs.msg import CompressedImage

from gmskip_ros.pipeline.pixels import rgb_to_jpeg
from gmskip_ros.ros.conversions import rgb_to_compressed

INPUT = '/dual_vlm/input/image/compressed'
MAX_AGE_S = 3600.0  # longer than any good frame waits, however busy the machine


@pytest.fixture(scope='module')
def probe() -> Iterator[FaultProbe]:
    """One node for all rows: compressed images, reliable, at most MAX_AGE_S old."""
    command = quick_command(
        image_transport='compressed',
        input_reliability='reliable',
        max_frame_age_sec=MAX_AGE_S,
        **ONE_TASK,
    )
    with RosProcess(command, warm=True) as process, ros_node() as node:
        probe = FaultProbe(node, process, '/dual_vlm', INPUT)
        probe.wait_for_state('ready')
        yield probe
        assert process.stop(signal.SIGTERM) == 0
        assert 'Traceback' not in process.output() and 'terminate' not in process.output()


def frame(
    probe: FaultProbe, data: bytes, words: str = 'rgb8; jpeg compressed bgr8'
) -> CompressedImage:
    """Return the next due frame, with these bytes."""
    message = CompressedImage(header=probe.next_header(), format=words)
    message.data = array.array('B', data)
    return message


def jpeg() -> bytes:
    return rgb_to_jpeg(picture())


def png(shape: tuple[int, int] = (4, 4)) -> bytes:
    return cv2.imencode('.png', np.zeros((*shape, 3), np.uint8))[1].tobytes()


def jpeg_that_says(width: int, height: int) -> bytes:
    data = bytearray(jpeg())
    at = data.index(b'\xff\xc0')  # the frame header
    data[at + 5 : at + 9] = height.to_bytes(2, 'big') + width.to_bytes(2, 'big')
    return bytes(data)


def png_that_says(width: int, height: int) -> bytes:
    data = bytearray(png())
    data[16:24] = width.to_bytes(4, 'big') + height.to_bytes(4, 'big')
    return bytes(data)


def noise(size: int) -> bytes:
    return np.random.default_rng(1).bytes(size)


@pytest.mark.parametrize(
    ('make_data', 'text', 'words'),
    [
        pytest.param(lambda: jpeg()[:20_000], 'jpeg', ['end marker'], id='jpeg_cut_off'),
        pytest.param(
            lambda: jpeg()[:3] + noise(5000) + b'\xff\xd9',
            'jpeg',
            ['compressed image'],
            id='jpeg_garbage',
        ),
        pytest.param(
            lambda: jpeg_that_says(65_535, 65_535),
            'jpeg',
            ['says 65535x65535'],
            id='jpeg_absurd_size',
        ),
        pytest.param(lambda: jpeg_that_says(0, 0), 'jpeg', ['says 0x0'], id='jpeg_zero_size'),
        pytest.param(
            lambda: png()[:30] + noise(500) + png()[-12:],
            'png',
            ['cannot decode'],
            id='png_garbage',
        ),
        pytest.param(
            lambda: png_that_says(2**31 - 1, 2**31 - 1),
            'png',
            ['says 2147483647x2147483647'],
            id='png_absurd_size',
        ),
        pytest.param(lambda: b'', 'jpeg', ['0 bytes', 'neither JPEG nor PNG'], id='no_data'),
        pytest.param(
            lambda: b'\x00\x00\x00\x01\x67' + noise(5000),
            'h264',
            ['neither JPEG nor PNG'],
            id='video_packet',
        ),
        pytest.param(jpeg, '16UC1; compressedDepth', ['depth is not a colour image'], id='depth'),
    ],
)
def test_undecodable_file(
    probe: FaultProbe, make_data: Callable[[], bytes], text: str, words: list[str]
) -> None:
    message = frame(probe, make_data(), text)
    probe.check_lost(message, 'undecodable', ['no answer to this image', *words])


def test_bytes_damaged_inside(probe: FaultProbe) -> None:
    """The damage cannot be detected in a complete JPEG, but it must not break anything."""
    damaged = bytearray(jpeg())
    damaged[10_000:10_300] = noise(300)
    message = frame(probe, bytes(damaged))
    before = probe.counts()
    probe.publish(message)
    probe.wait(
        lambda: sum(probe.counts()[key] - before[key] for key in ('answered', 'undecodable')) == 1,
        'an answer or a refusal',
    )
    probe.check_ready()


def test_wrong_format_text(probe: FaultProbe) -> None:
    """The bytes decide how it is decoded, not the text."""
    probe.check_answered()
    for words in ('png', '', 'bgr8; tiff compressed'):
        message = frame(probe, jpeg(), words)
        probe.publish(message)
        probe.wait(lambda m=message: m.header in probe.published, 'an answer')
    (result,) = probe.results_of(message.header, 'output/skip/result')
    assert result.status[0].message == probe.answers['skip']
    probe.check_ready()


@pytest.mark.parametrize(
    'shape', [pytest.param((6000, 8000), id='8000x6000'), pytest.param((1, 1), id='1x1')]
)
def test_unusual_size(probe: FaultProbe, shape: tuple[int, int]) -> None:
    message = rgb_to_compressed(np.full((*shape, 3), 90, np.uint8), probe.next_header())
    probe.publish(message)
    probe.wait(lambda: message.header in probe.published, 'an answer')
    probe.check_ready()


def test_frames_that_stop(probe: FaultProbe) -> None:
    probe.check_answered()
    health = probe.wait_for_state('no_frames')
    assert 'no image for' in health['reason']
    probe.process.wait_for_output(f'waiting for {INPUT} (CompressedImage, reliable)')
    probe.check_answered()
    probe.wait_for_state('ready')


def test_all_frames_too_old(probe: FaultProbe) -> None:
    """A bag without use_sim_time: yesterday's stamps."""
    probe.check_answered()
    before, published = probe.counts(), len(probe.published)
    second = probe.second
    probe.second = int(time.time()) - 86_400

    def hinted() -> bool:
        probe.publish(rgb_to_compressed(picture(), probe.header()))
        probe.second += 1
        health = probe.health()
        if int(health['frames_stale']) < before['stale'] + 3:
            return False
        return health['state'] == 'no_frames' and 'use_sim_time' in health['reason']

    probe.wait(hinted, 'three stale frames and a hint at use_sim_time')
    assert len(probe.published) == published
    probe.second = second
    probe.check_answered()
    probe.wait_for_state('ready')


def test_stopped_until_frames_are_old(probe: FaultProbe) -> None:
    """SIGSTOP: waiting frames are too old by the time of SIGCONT."""
    probe.check_answered()
    before, published = probe.counts(), len(probe.published)
    os.kill(probe.process.pid, signal.SIGSTOP)
    probe.second = int(time.time()) - int(MAX_AGE_S) + 1
    for _ in range(2):
        probe.publish(rgb_to_compressed(picture(), probe.header()))
        probe.spin(1.2)
    os.kill(probe.process.pid, signal.SIGCONT)
    probe.wait(lambda: probe.counts()['stale'] > before['stale'], 'a stale frame')
    assert len(probe.published) == published
    probe.check_ready()


def test_best_effort_publisher_to_a_reliable_subscription(probe: FaultProbe) -> None:
    before = probe.counts()
    qos = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
    with ros_node('driver') as driver:
        camera = driver.create_publisher(CompressedImage, INPUT, qos)
        probe.process.wait_for_output('/driver publishes on ' + INPUT)
        camera.publish(rgb_to_compressed(picture(), probe.next_header()))
        assert probe.counts()['received'] == before['received']
    assert 'set input_reliability: best_effort' in probe.process.output()
    probe.check_ready()
