"""The node as its users see it: one real process with the demo model, on real topics."""

from __future__ import annotations

import dataclasses
import math
import signal
from collections.abc import Iterator
from datetime import datetime, timezone
from typing import Any

import numpy as np
import pytest
from coco_mini import COCO_MINI, needs_coco_mini
from diagnostic_msgs.msg import DiagnosticStatus
from node_probe import PARAMETERS, Probe, keys, picture, quick_command
from ros_process import RosProcess, ros_command, ros_node
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

from gmskip_ros.pipeline.overlay import OverlayTask, draw_overlay
from gmskip_ros.ros.conversions import image_to_rgb, rgb_to_image
from gmskip_ros.skipping import load_skip_list, save_skip_list
from gmskip_ros.tasks import DEFAULT_PROMPTS, TASK_NAMES

RESULT_KEYS = [
    'format',
    'answer',
    'raw_text',
    'tokens',
    'preprocess_ms',
    'vision_ms',
    'prefill_ms',
    'decode_ms',
    'total_ms',
    'vision_shared',
    'sparsity',
    'skipped_blocks',
    'operating_point',
    'full_branch',
    'timing',
    'schedule',
    'image_fit',
    'image_tokens',
    'match',
    'confidence_mean',
    'confidence_min',
]
PHASES = ('preprocess_ms', 'vision_ms', 'prefill_ms', 'decode_ms')
TITLE_HEIGHT = 16  # px, of the overlay on the probe's picture


@pytest.fixture(scope='module')
def probe(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Probe]:
    """One node, both branches, raw images, for all tests; they restore what they change."""
    # The published lists state no prompt; one that does makes a change of prompt visible.
    published = load_skip_list('gmskip_single_object')
    stated = dataclasses.replace(published.prompt, text=DEFAULT_PROMPTS['single_object'])
    path = tmp_path_factory.mktemp('skip_lists') / 'single_object.skip.yaml'
    save_skip_list(dataclasses.replace(published, prompt=stated), path)
    parameters = {**PARAMETERS, 'skip_list.single_object': path}
    command = quick_command(rate_hz=1, **parameters)
    with RosProcess(command) as process, ros_node() as node:
        probe = Probe(node, process, '/dual_vlm', '/dual_vlm/input/image')
        probe.wait_for_state('ready')
        yield probe
        # Ctrl-C while it waits for frames.
        assert process.stop(signal.SIGINT) == 0
        assert 'Traceback' not in process.output() and 'terminate' not in process.output()


def test_health_is_reported_from_the_first_second(probe: Probe) -> None:
    reports = probe.received['/diagnostics']
    states = [keys(report.status[0])['state'] for report in reports]
    assert states[0] == 'loading' and states.index('loading') < states.index('ready')
    status = reports[-1].status[0]
    assert status.name == 'dual_vlm: inference' and status.hardware_id == '/dual_vlm'
    assert status.level == DiagnosticStatus.OK
    facts = keys(status)
    assert facts['model'] == 'demo' and facts['num_blocks'] == '32'
    assert facts['operating_point.single_object'] == 'high_performance'
    assert facts['skipped_blocks.single_object'] == '11'


def test_a_frame_gets_both_branches_and_a_comparison_under_its_own_header(probe: Probe) -> None:
    header = probe.ask()
    (skip,) = probe.results_of(header, 'output/skip/result')
    (full,) = probe.results_of(header, 'output/full/result')
    (comparison,) = probe.results_of(header, 'output/comparison')
    for branch, result in (('skip', skip), ('full', full)):
        assert [status.name for status in result.status] == [f'{t}/{branch}' for t in TASK_NAMES]
        for status in result.status:
            values = keys(status)
            single = ['confidence_margin'] if status.name.startswith('single_object/') else []
            assert [entry.key for entry in status.values] == RESULT_KEYS + single
            assert 0 < float(values['confidence_min']) <= float(values['confidence_mean']) <= 1
            if values.get('confidence_margin'):  # empty where labels share their first token
                assert -1 <= float(values['confidence_margin']) <= 1
            assert values['format'] == 'gmskip/result/1'
            assert values['answer'] == status.message
            total_ms = sum(float(values[phase]) for phase in PHASES)
            assert float(values['total_ms']) == pytest.approx(total_ms, rel=0.02)
            assert values['vision_shared'] == 'true'
            assert values['full_branch'] == values['timing'] == 'isolated'
            assert values['schedule'] == 'skip_then_full'
            assert values['match'] == 'content'
            assert int(values['tokens']) >= 0
    for task, status, complete, compared in zip(
        TASK_NAMES, skip.status, full.status, comparison.status, strict=True
    ):
        blocks = load_skip_list(f'gmskip_{task}').blocks_at('high_performance')
        values = keys(status)
        assert values['skipped_blocks'] == ','.join(map(str, blocks))
        assert float(values['sparsity']) == pytest.approx(len(blocks) / 32, abs=1e-3)
        assert values['operating_point'] == 'high_performance'
        assert keys(complete)['skipped_blocks'] == '' and float(keys(complete)['sparsity']) == 0.0
        verdict = keys(compared)
        assert compared.name == f'{task}/comparison'
        assert verdict['skip_answer'] == status.message
        assert verdict['full_answer'] == complete.message
        assert verdict['agree'] == ('true' if compared.message == 'agree' else 'false')
        speedup = float(verdict['full_total_ms']) / float(verdict['skip_total_ms'])
        assert float(verdict['speedup']) == pytest.approx(speedup, abs=2e-3)
    assert 'jaccard' in keys(comparison.status[1]) and 'rouge_l' in keys(comparison.status[2])


def test_debug_topics_agree_with_the_result(probe: Probe) -> None:
    header = probe.ask()
    for branch in ('skip', 'full'):
        (result,) = probe.results_of(header, f'output/{branch}/result')
        for task, status in zip(TASK_NAMES, result.status, strict=True):
            topic = f'debug/{branch}/{task}'
            count = len(probe.on(f'output/{branch}/result'))
            probe.wait(lambda t=topic, n=count: len(probe.on(f'{t}/latency_ms')) >= n, topic)
            assert probe.on(f'{topic}/text')[-1].data == status.message
            latency = probe.on(f'{topic}/latency_ms')[-1]
            (dimension,) = latency.layout.dim
            names = dimension.label.split(',')
            assert names == [*PHASES, 'total_ms'] and dimension.size == len(latency.data) == 5
            for name, value in zip(names, latency.data, strict=True):
                assert float(keys(status)[name]) == pytest.approx(value, abs=1e-3)
    assert math.isfinite(probe.on('debug/pipeline_latency_ms')[-1].data)


def test_processing_times_are_published_per_frame_and_per_branch(probe: Probe) -> None:
    topics = [f'debug/{branch}processing_time_ms' for branch in ('', 'skip/', 'full/')]
    header = probe.ask()
    frames = len(probe.on('output/comparison'))
    probe.wait(
        lambda: all(len(probe.on(topic)) == frames for topic in topics),
        'one time of each frame and one of each branch',
    )
    frame_ms, skip_ms, full_ms = (probe.on(topic)[-1].data for topic in topics)
    assert max(skip_ms, full_ms) < frame_ms
    for branch, elapsed_ms in (('skip', skip_ms), ('full', full_ms)):
        (result,) = probe.results_of(header, f'output/{branch}/result')
        # A branch's time holds what its answers share once, and each answer's own.
        values = [keys(status) for status in result.status]
        own_ms = sum(float(v['prefill_ms']) + float(v['decode_ms']) for v in values)
        assert own_ms + float(values[0]['vision_ms']) < elapsed_ms
    assert probe.health()['debug_time_type'] == 'std_msgs/msg/Float64'
    assert 'debug times are published as std_msgs/msg/Float64' in probe.process.output()


def test_shared_timing_gives_the_same_answers_and_no_speedup(probe: Probe) -> None:
    def answers(header: Header) -> list[tuple[str, str]]:
        topics = ('output/skip/result', 'output/full/result', 'output/comparison')
        messages = [message for topic in topics for message in probe.results_of(header, topic)]
        assert len(messages) == 3
        return [(s.name, keys(s).get('raw_text', s.message)) for m in messages for s in m.status]

    isolated = probe.ask()
    assert probe.set_parameter('timing', 'shared').successful
    topics = [f'debug/{branch}processing_time_ms' for branch in ('', 'skip/', 'full/')]
    topics += [f'debug/{branch}/shared_processing_time_ms' for branch in ('skip', 'full')]

    def counts() -> list[int]:
        return [len(probe.on(topic)) for topic in topics]

    frames = len(probe.on('output/comparison'))
    probe.wait(lambda: counts() == [frames, frames, frames, 0, 0], 'the times of isolated frames')
    shared = probe.ask()
    # Times of whole branches have a topic of their own.
    expected = [frames + 1, frames, frames, 1, 1]
    probe.wait(lambda: counts() == expected, 'the times of a shared frame')
    assert answers(shared) == answers(isolated)
    frame_ms, skip_ms, full_ms = (probe.on(topics[index])[-1].data for index in (0, 3, 4))
    assert max(skip_ms, full_ms) < frame_ms
    for branch, elapsed_ms in (('skip', skip_ms), ('full', full_ms)):
        (result,) = probe.results_of(shared, f'output/{branch}/result')
        values = [keys(status) for status in result.status]
        assert {each['timing'] for each in values} == {'shared'}
        assert {each['full_branch'] for each in values} == {'verified'}
        assert ['shared_ms' in each for each in values] == [True, False, False]
        own_ms = sum(float(v['prefill_ms']) + float(v['decode_ms']) for v in values)
        shared_ms = float(values[0]['shared_ms'])
        assert shared_ms > 0 and own_ms + shared_ms + float(values[0]['vision_ms']) < elapsed_ms
        for each in values:
            assert float(each['total_ms']) == pytest.approx(
                sum(float(each[phase]) for phase in PHASES), rel=0.02
            )
    (comparison,) = probe.results_of(shared, 'output/comparison')
    for status in comparison.status:
        assert keys(status)['timing'] == 'shared'
        assert not {'speedup', 'skip_total_ms', 'full_total_ms'} & set(keys(status))
    assert probe.health()['timing'] == 'shared'
    assert probe.set_parameter('timing', 'isolated').successful


def test_caption_agreement_can_be_changed_at_run_time(probe: Probe) -> None:
    def captions(least: float) -> dict[str, str]:
        assert probe.set_parameter('caption_agreement', least).successful
        (comparison,) = probe.results_of(probe.ask(), 'output/comparison')
        (values,) = (keys(s) for s in comparison.status if s.name == 'captioning/comparison')
        assert float(values['caption_agreement']) == least
        return values

    assert captions(0.0)['agree'] == 'true'
    values = captions(0.5)
    assert (values['agree'] == 'true') == (float(values['rouge_l']) >= 0.5)
    captions(1.0)
    assert not probe.set_parameter('caption_agreement', 1.5).successful


def test_the_overlay_is_made_while_it_has_subscribers(probe: Probe) -> None:
    raw = probe.read('/dual_vlm/debug/image', Image)
    jpeg = probe.read('/dual_vlm/debug/image/compressed', CompressedImage)
    probe.wait(lambda: probe.node.count_publishers('/dual_vlm/debug/image'), 'the overlay topic')

    def drawn() -> bool:
        # A frame may be finished before the node sees the new subscriptions: then try the next.
        probe.ask()
        for _ in range(20):
            probe.node.executor.spin_once(timeout_sec=0.05)
        return bool(probe.on('debug/image') and probe.on('debug/image/compressed'))

    probe.wait(drawn, 'the overlay pictures')
    shown = image_to_rgb(probe.on('debug/image')[-1])
    assert shown.shape == picture().shape and not np.array_equal(shown, picture())
    stamp = probe.on('debug/image')[-1].header.stamp
    time_of_day = datetime.fromtimestamp(stamp.sec, timezone.utc).strftime('%H:%M:%S')
    title = f'dual_vlm  {time_of_day}.{str(stamp.nanosec).zfill(9)[0]}'
    rows = [OverlayTask(task, None, None, None, (), 32) for task in TASK_NAMES]
    titled = draw_overlay(picture(), rows, title=title)
    assert np.array_equal(shown[:TITLE_HEIGHT], titled[:TITLE_HEIGHT])
    assert image_to_rgb(probe.on('debug/image/compressed')[-1]).shape == picture().shape
    probe.node.destroy_subscription(raw)
    probe.node.destroy_subscription(jpeg)


def test_the_first_frame_of_each_second_of_a_10_hz_camera_is_answered(probe: Probe) -> None:
    before = len(probe.on('output/skip/result'))
    gated = int(probe.health()['frames_gated'])
    firsts = []
    for phase_s in (0.03, 0.0, 0.09):  # the camera's clock drifts over the second's beginning
        firsts.append(probe.ask(phase_s))
        for tenth in range(1, 10):
            probe.publish(rgb_to_image(picture(), probe.header(phase_s + tenth / 10 - 1.0)))
            probe.node.executor.spin_once(timeout_sec=0.05)
    probe.wait(lambda: int(probe.health()['frames_gated']) > gated, 'the gated frames')
    probe.ask()
    answered = [message.header for message in probe.on('output/skip/result')[before:]]
    assert answered[:-1] == firsts


def test_the_rate_can_be_changed_at_run_time(probe: Probe) -> None:
    probe.ask()
    gated = int(probe.health()['frames_gated'])
    probe.second -= 1  # half a second after the frame just answered
    half = probe.header(0.5)
    probe.publish(rgb_to_image(picture(), half))
    probe.wait(lambda: int(probe.health()['frames_gated']) > gated, 'a gated frame')
    assert not probe.results_of(half, 'output/skip/result')
    probe.second += 1
    assert probe.set_parameter('rate_hz', 2).successful  # an integer where a number is expected
    probe.ask()
    probe.second -= 1
    probe.ask(0.5)
    assert float(probe.health()['rate_hz']) == 2.0
    assert probe.set_parameter('rate_hz', 1.0).successful


def test_operating_point_and_prompt_can_be_changed_at_run_time(probe: Probe) -> None:
    assert probe.set_parameter('operating_point', 2).successful
    header = probe.ask()
    (skip,) = probe.results_of(header, 'output/skip/result')
    assert [keys(status)['operating_point'] for status in skip.status] == ['2', '2', '2']
    assert keys(skip.status[0])['skipped_blocks'] == '29,16'
    assert probe.set_parameter('operating_point', 'high_performance').successful
    prompt = 'Which one of these is the largest thing that you can see?'
    assert probe.set_parameter('prompt.single_object', prompt).successful
    probe.ask()
    # The skip list was calibrated with a different prompt: a warning names the new one.
    probe.process.wait_for_output(prompt)


@pytest.mark.parametrize(
    ('name', 'value', 'words'),
    [
        ('rate_hz', 0.0, ['rate_hz', '0.0', '0.01', '60']),
        ('rate_hz', 'fast', ['rate_hz', "'fast'"]),
        ('operating_point', 99, ['operating_point', '99']),
        ('operating_point', 'most', ['operating_point', "'most'", 'high_sparsity']),
        ('prompt.captioning', '', ['prompt.captioning', 'empty']),
        ('prompt.captioning', 'Is <image> wet?', ['prompt.captioning', '<image>', 'remove it']),
        ('device', 'cpu', ['read-only', 'device']),
        ('model', 'other', ['read-only', 'model']),
    ],
)
def test_a_bad_change_is_refused_with_the_reason(
    probe: Probe, name: str, value: Any, words: list[str]
) -> None:
    result = probe.set_parameter(name, value)
    assert not result.successful
    for word in words:
        assert word in result.reason
    assert '\n' not in result.reason


def test_an_undecodable_image_is_reported_and_never_answered(probe: Probe) -> None:
    header = probe.header()
    probe.publish(Image(header=header, height=2, width=2, encoding='theora', step=6, data=[0] * 12))
    health = probe.wait_for_state('degraded')
    assert int(health['frames_undecodable']) == 1 and 'theora' in health['last_error']
    assert probe.received['/diagnostics'][-1].status[0].level == DiagnosticStatus.WARN
    probe.second += 1
    probe.ask()
    assert not probe.results_of(header, 'output/skip/result')
    probe.wait_for_state('ready', 'no_frames')


def test_pause_and_resume(probe: Probe) -> None:
    assert probe.enable(False).success
    assert probe.enable(False).message == 'already paused'
    not_ready = int(probe.wait_for_state('paused')['frames_not_ready'])
    header = probe.header()
    probe.publish(rgb_to_image(picture(), header))
    probe.wait(lambda: int(probe.health()['frames_not_ready']) > not_ready, 'a frame not taken')
    assert not probe.results_of(header, 'output/skip/result')
    assert probe.enable(True).success
    probe.second += 1
    probe.ask()


def test_a_bag_that_starts_over_is_answered_again(probe: Probe) -> None:
    newest = probe.second
    probe.second -= 1000
    probe.ask()
    probe.second = newest + 1
    probe.ask()


@needs_coco_mini
def test_real_photographs_at_10_hz(probe: Probe) -> None:
    before = len(probe.on('output/comparison'))
    player = ros_command(
        'image_player',
        source=COCO_MINI / 'val2017',
        rate_hz=10.0,
        count=48,
        loop=False,
        wait_for_node='/dual_vlm',
        remap={'image_raw': '/dual_vlm/input/image'},
    )
    with RosProcess(player) as camera:
        probe.wait(lambda: len(probe.on('output/comparison')) >= before + 3, 'three comparisons')
        probe.wait(lambda: camera.returncode() is not None, 'the end of the photographs')
        assert camera.returncode() == 0, camera.output()
    stamps = [message.header.stamp for message in probe.on('output/comparison')[before:]]
    seconds = [stamp.sec for stamp in stamps]
    assert sorted(set(seconds)) == seconds  # one per second of header time, in order
    assert all(m.header.frame_id == 'camera' for m in probe.on('output/comparison')[before:])
    probe.second = seconds[-1] + 2
