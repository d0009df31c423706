"""Faults inside the model, caused by fault_node.py; the table is in docs/faults.md."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import fault_node
import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from fault_probe import ONE_TASK, FaultProbe
from node_probe import picture
from ros_process import RosProcess, ros_command, ros_node
from sensor_msgs.msg import Image
from std_msgs.msg import Header

from gmskip_ros.ros.conversions import rgb_to_image


def start(folder: Path) -> RosProcess:
    python, _, _, *arguments = ros_command('dual_vlm_node', watchdog_sec=1.0, **ONE_TASK)
    return RosProcess([python, fault_node.__file__, str(folder), *arguments], warm=True)


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp('faults')


@pytest.fixture(scope='module')
def probe(folder: Path) -> Iterator[FaultProbe]:
    """One node for all rows, with a watchdog of one second; the last row stops it."""
    with start(folder) as process, ros_node() as node:
        probe = FaultProbe(node, process, '/dual_vlm', '/dual_vlm/input/image')
        probe.wait_for_state('ready')
        yield probe


def frame(probe: FaultProbe, fault: str) -> Image:
    """Return the next due frame, with this fault."""
    rgb = picture()
    rgb[0, 0] = fault_node.PIXELS[fault]
    return rgb_to_image(rgb, probe.next_header())


def send(probe: FaultProbe, fault: str) -> Header:
    message = frame(probe, fault)
    probe.publish(message)
    return message.header


def recover(probe: FaultProbe) -> None:
    """Switch `~/enable` off and on; a good frame is then answered."""
    assert probe.enable(False).success
    assert probe.enable(True).message == 'resumed after an error'
    probe.check_answered()
    probe.wait_for_state('ready')


def test_exception_once(probe: FaultProbe) -> None:
    words = ['inference failed: RuntimeError: the device is gone']
    probe.check_lost(frame(probe, 'an exception'), 'failed', words)
    probe.wait_for_state('ready')


def test_exception_in_the_full_branch(probe: FaultProbe) -> None:
    """The answer of the skip branch stands; there is no comparison."""
    message = frame(probe, 'an exception in the full branch')
    probe.check_lost(message, 'failed', ['RuntimeError: the device is gone'], published=1)
    assert len(probe.results_of(message.header, 'output/skip/result')) == 1


def test_nan_logits(probe: FaultProbe) -> None:
    probe.check_lost(frame(probe, 'NaN'), 'failed', ['NaN or infinite logits'])


def test_panic(probe: FaultProbe) -> None:
    """Rust panics are not Exceptions; the inference thread must survive them as well."""
    probe.check_lost(frame(probe, 'a panic'), 'failed', ['Panic: index out of bounds'])


def test_ten_exceptions_in_a_row(probe: FaultProbe) -> None:
    probe.check_answered()
    before, published = probe.counts(), len(probe.published)

    def in_error() -> bool:
        for _ in range(20):
            send(probe, 'an exception')
            probe.spin(0.05)
        return probe.health()['state'] == 'error'

    probe.wait(in_error, 'state error')
    (report,) = probe.reports()[-1:]
    assert report['level'] == DiagnosticStatus.ERROR
    assert report['reason'].startswith('10 frames in a row: inference failed')
    assert int(report['frames_failed']) == before['failed'] + 10
    assert int(report['frames_not_ready']) > before['not_ready']  # no frame is tried any more
    assert len(probe.published) == published
    assert not probe.enable(True).success  # it must be switched off first
    recover(probe)


def test_no_memory_once(probe: FaultProbe) -> None:
    """Memory is freed, and the frame is retried and answered."""
    probe.check_answered()
    before = probe.counts()
    header = send(probe, 'no memory once')
    probe.wait(lambda: probe.published.count(header) == 3, 'its answers')
    after = probe.counts()
    assert after['failed'] == before['failed'] and after['answered'] == before['answered'] + 1
    probe.check_ready()


def test_no_memory(probe: FaultProbe) -> None:
    probe.check_answered()
    before, published = probe.counts(), len(probe.published)
    send(probe, 'no memory')
    health = probe.wait_for_state('error')
    assert 'ran out of memory' in health['reason'] and 'use a smaller model' in health['reason']
    assert probe.reports()[-1]['level'] == DiagnosticStatus.ERROR
    assert int(health['frames_failed']) == before['failed'] + 1
    assert len(probe.published) == published
    recover(probe)


def test_slower_than_its_period(probe: FaultProbe) -> None:
    """Answered late; the newest of the frames that came meanwhile is next."""
    header = send(probe, 'slow')
    probe.spin(0.3)
    waits = [send(probe, 'slow') for _ in range(2)]
    health = probe.wait_for_state('overload')
    assert 'ms it has' in health['reason']
    assert probe.reports()[-1]['level'] == DiagnosticStatus.WARN
    probe.wait(lambda: waits[-1] in probe.published, 'the newest')
    assert header in probe.published and waits[0] not in probe.published
    probe.check_answered()
    probe.wait_for_state('ready')


def test_hangs_and_comes_back(probe: FaultProbe, folder: Path) -> None:
    probe.check_answered()
    published = len(probe.published)
    send(probe, 'hangs')
    health = probe.wait_for_state('error')
    assert 'hangs' in health['reason'] and 'watchdog_sec' in health['reason']
    assert probe.reports()[-1]['level'] == DiagnosticStatus.ERROR
    send(probe, 'slow')  # any frame: it is not accepted
    assert probe.enable(False).success
    answer = probe.enable(True)
    assert not answer.success and 'restart the node' in answer.message
    assert probe.wait_for_state('error')
    (folder / 'go').touch()
    probe.wait(lambda: probe.counts()['abandoned'] >= 1, 'that it has come back')
    (folder / 'go').unlink()
    assert len(probe.published) == published  # the frame that hung is not published late
    recover(probe)


def test_hangs_for_good(probe: FaultProbe) -> None:
    """`~/enable` cannot help; SIGTERM still stops the process cleanly."""
    probe.check_answered()
    published = len(probe.published)
    send(probe, 'hangs')
    probe.wait_for_state('error')
    assert probe.enable(False).success
    assert 'restart the node' in probe.enable(True).message
    assert len(probe.published) == published
    assert probe.process.stop(signal.SIGTERM) == 0
    output = probe.process.output()
    assert 'Traceback' not in output and 'terminate' not in output


def test_gpu_is_lost(folder: Path) -> None:
    """Nothing in this process can use the GPU again: `~/enable` says what helps."""
    with start(folder) as process, ros_node() as node:
        probe = FaultProbe(node, process, '/dual_vlm', '/dual_vlm/input/image')
        probe.wait_for_state('ready')
        send(probe, 'the GPU is lost')
        probe.wait_for_state('error')
        (report,) = probe.reports()[-1:]
        assert report['level'] == DiagnosticStatus.ERROR
        assert report['reason'].startswith('the GPU is lost to this process: restart the node')
        assert 'an illegal memory access' in report['reason']
        assert not probe.published
        assert 'restart the node' in probe.enable(False).message
        assert process.stop(signal.SIGTERM) == 0
        assert 'Traceback' not in process.output()
