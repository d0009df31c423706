"""Start and stop: transports, namespaces, signals, wrong models and parameters."""

from __future__ import annotations

import math
import signal
import sys
from pathlib import Path

import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from node_probe import PARAMETERS, Probe, keys, picture, quick_command
from ros_process import RosProcess, ros_command, ros_node
from rosgraph_msgs.msg import Clock
from tiny_models import make_tiny_model

from gmskip_ros.ros.conversions import rgb_to_compressed, rgb_to_image


def test_compressed_images_under_a_namespace_with_the_production_branch_alone() -> None:
    command = quick_command(
        '-r',
        '__ns:=/front',
        remap={'~/input/image': '/cam/image_raw'},
        image_transport='compressed',
        input_reliability='reliable',
        branches=['skip'],
        tasks=['single_object'],
        operating_point='3',
        **PARAMETERS,
    )
    with RosProcess(command, warm=True) as process, ros_node() as node:
        # Remapping the image's name also moves the compressed topic.
        probe = Probe(node, process, '/front/dual_vlm', '/cam/image_raw/compressed')
        probe.wait_for_state('ready', 'no_frames')
        assert probe.received['/diagnostics'][-1].status[0].hardware_id == '/front/dual_vlm'
        header = probe.ask(wait_for='output/skip/result')
        (result,) = probe.results_of(header, 'output/skip/result')
        (status,) = result.status
        assert keys(status)['schedule'] == 'skip_only'
        assert keys(status)['skipped_blocks'] == '29,16,27'
        assert node.count_publishers('/front/dual_vlm/output/full/result') == 0
        # A JPEG that is cut off in the middle.
        broken = rgb_to_compressed(picture(), probe.header())
        broken.data = broken.data[: len(broken.data) // 2]
        probe.publish(broken)
        assert int(probe.wait_for_state('degraded')['frames_undecodable']) == 1
        assert not probe.results_of(broken.header, 'output/skip/result')
        assert process.stop(signal.SIGTERM) == 0
        assert 'Traceback' not in process.output() and 'terminate' not in process.output()


def test_simulated_time_before_the_first_clock_message() -> None:
    command = quick_command(use_sim_time=True, tasks=['single_object'], **PARAMETERS)
    with RosProcess(command, warm=True) as process, ros_node() as node:
        probe = Probe(node, process, '/dual_vlm', '/dual_vlm/input/image')
        probe.wait_for_state('ready', 'no_frames')  # /diagnostics does not wait for /clock
        probe.ask()
        assert math.isnan(float(probe.health()['input_age_ms']))
        assert not probe.on('debug/pipeline_latency_ms')  # unknown until then
        clock = node.create_publisher(Clock, '/clock', 1)
        header = probe.header(offset_s=1.5)
        probe.wait(lambda: clock.get_subscription_count() > 0, 'the subscription of /clock')

        def has_time() -> bool:
            clock.publish(Clock(clock=header.stamp))  # best effort: one may be lost
            return probe.health()['input_age_ms'] != 'nan'

        probe.wait(has_time, 'simulated time')
        probe.ask(offset_s=1.0)
        probe.wait(lambda: probe.on('debug/pipeline_latency_ms'), 'the latency')
        (latency,) = probe.on('debug/pipeline_latency_ms')
        assert latency.data == pytest.approx(500.0)


@pytest.mark.parametrize('stop_signal', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_the_model_loads(stop_signal: int) -> None:
    with RosProcess(ros_command('dual_vlm_node', **PARAMETERS)) as process:
        process.wait_for_output(': loading')
        assert process.stop(stop_signal) == 0
        assert 'Traceback' not in process.output() and 'terminate' not in process.output()


def test_a_skip_list_for_another_model_is_an_error_and_nothing_runs(tmp_path: Path) -> None:
    model = make_tiny_model(tmp_path / 'tiny', num_blocks=4)
    command = quick_command(model=model, tasks=['captioning'], **PARAMETERS)
    with RosProcess(command, warm=True) as process, ros_node() as node:
        probe = Probe(node, process, '/dual_vlm', '/dual_vlm/input/image')
        health = probe.wait_for_state('error')
        assert '32' in health['last_error'] and '4' in health['last_error']
        assert probe.received['/diagnostics'][-1].status[0].level == DiagnosticStatus.ERROR
        header = probe.header()
        probe.publish(rgb_to_image(picture(), header))
        probe.wait(lambda: probe.health()['frames_not_ready'] == '1', 'a frame not taken')
        assert not probe.results_of(header, 'output/skip/result')
        # Off and on tries again and fails for the same reason.
        assert probe.enable(False).success and probe.enable(True).success
        probe.wait_for_state('error')
        assert process.stop(signal.SIGTERM) == 0
        assert 'Traceback' not in process.output()


def test_a_misspelt_parameter_is_named() -> None:
    command = quick_command(start_enabled=False, rate_Hz=5.0, **PARAMETERS)
    with RosProcess(command, warm=True) as process:
        process.wait_for_output('rate_Hz')
        process.wait_for_output(': loading')
        assert process.output().count('check its spelling') == 1
        assert process.stop() == 0


WITHOUT_ENGINE = """
import sys
class NoEngine:
    def find_spec(self, name, *_):
        if name.partition('.')[0] in ('transformers', 'huggingface_hub'):
            raise ModuleNotFoundError(f'No module named {name!r}', name=name)
sys.meta_path.insert(0, NoEngine())
from gmskip_ros.ros.dual_vlm_node import main
sys.exit(main())
"""


def test_a_python_without_the_engine_is_reported_with_the_remedy() -> None:
    with RosProcess([sys.executable, '-c', WITHOUT_ENGINE, '--ros-args']) as process:
        process.wait_for_output(f'is not installed for {sys.executable}: activate the virtual')
        assert process.stop() == 0
        assert 'Traceback' not in process.output()
