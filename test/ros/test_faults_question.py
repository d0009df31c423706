"""Questions, and pauses that unload the model; docs/faults.md has the table."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest
from node_probe import PARAMETERS, Probe, keys, picture
from rclpy.qos import QoSProfile, ReliabilityPolicy
from ros_process import RosProcess, free_domain_id, ros_command, ros_env, ros_node
from std_msgs.msg import String

from gmskip_ros.ros.conversions import rgb_to_image

BRANCHES = ('skip', 'full')


class Passenger(Probe):
    """A probe that asks questions, with a publisher as rqt's (reliable, depth 10)."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        qos = QoSProfile(depth=10, reliability=ReliabilityPolicy.RELIABLE)
        self.asker = self.node.create_publisher(String, f'{self.name}/input/question', qos)
        for branch in BRANCHES:
            self.read(f'{self.name}/debug/{branch}/question/text', String)

    def question(self, text: str) -> None:
        self.wait(lambda: self.asker.get_subscription_count() > 0, 'the subscription')
        self.asker.publish(String(data=text))

    def answers(self, topic: str) -> list[Any]:
        """Return the messages on results or comparisons that answer questions."""
        return [m for m in self.on(topic) if m.status[0].name.startswith('question/')]

    def counter(self, name: str) -> int:
        return int(self.health()[f'questions_{name}'])


@pytest.fixture(scope='module')
def probe() -> Iterator[Passenger]:
    command = ros_command(
        'dual_vlm_node',
        rate_hz=1,
        unload_when_paused=True,
        **PARAMETERS,
        **{'max_new_tokens.question': 5},
    )
    with RosProcess(command) as process, ros_node() as node:
        probe = Passenger(node, process, '/dual_vlm', '/dual_vlm/input/image')
        probe.wait_for_state('ready')
        yield probe
        assert process.stop(signal.SIGINT) == 0
        assert 'Traceback' not in process.output()


def test_a_question_before_any_frame_is_refused(probe: Passenger) -> None:
    probe.question('What is there?')
    probe.wait(lambda: probe.counter('refused') == 1, 'the refusal')
    assert 'no image' in probe.health()['question_refused_reason']
    probe.process.wait_for_output('question refused: no image has arrived yet')


def test_a_question_is_answered_as_a_message_of_its_own(probe: Passenger) -> None:
    header = probe.ask()
    times = len(probe.on('debug/pipeline_latency_ms'))
    probe.question('Is the road wet?')
    probe.wait(lambda: probe.answers('output/comparison'), 'its comparison')
    for branch in BRANCHES:
        (result,) = probe.answers(f'output/{branch}/result')
        assert result.header == header
        (status,) = result.status
        values = keys(status)
        assert status.name == f'question/{branch}'
        assert values['question'] == 'Is the road wet?' and values['answer'] == status.message
        assert 0 <= int(values['tokens']) <= 5
        blocks = 3 if branch == 'skip' else 0  # of captioning's list
        assert len([b for b in values['skipped_blocks'].split(',') if b]) == blocks
        texts = probe.on(f'debug/{branch}/question/text')
        probe.wait(lambda texts=texts: texts, 'its text')
        assert texts[-1].data == status.message
    (comparison,) = probe.answers('output/comparison')
    values = keys(comparison.status[0])
    assert comparison.header == header and comparison.status[0].name == 'question/comparison'
    assert values['question'] == 'Is the road wet?' and 0 <= float(values['rouge_l']) <= 1
    assert probe.counter('answered') == 1
    assert len(probe.on('debug/pipeline_latency_ms')) <= max(times, 1)  # a frame's alone


@pytest.mark.parametrize(
    ('text', 'words'),
    [
        (' ', 'empty'),
        ('Where is <image>?', '<image>'),
        ('why ' * 300, '1200 characters'),
    ],
    ids=['empty', 'image_token', 'too_long'],
)
def test_a_question_that_cannot_be_asked_is_refused(
    probe: Passenger, text: str, words: str
) -> None:
    before = probe.counter('refused')
    probe.question(text)
    probe.wait(lambda: probe.counter('refused') == before + 1, 'the refusal')
    assert words in probe.health()['question_refused_reason']


def test_of_questions_that_come_at_once_the_newest_is_answered(probe: Passenger) -> None:
    health = probe.health()
    names = ('answered', 'replaced', 'refused')
    before = {name: int(health[f'questions_{name}']) for name in names}
    probe.ask()
    for number in range(20):
        probe.question(f'Question {number}?')
    probe.wait(
        lambda: any(
            keys(m.status[0])['question'] == 'Question 19?'
            for m in probe.answers('output/comparison')
        ),
        'the answer to the newest',
    )
    after = {name: probe.counter(name) for name in before}
    assert after['refused'] == before['refused']
    # The newest of them may be all that the middleware has handed over.
    assert after['answered'] > before['answered']
    assert sum(after.values()) - sum(before.values()) <= 20
    probe.ask()  # frames are answered as before


def test_a_pause_unloads_the_model_and_refuses_questions(probe: Passenger) -> None:
    probe.ask()
    assert probe.enable(False).success
    health = probe.wait_for_state('paused')
    probe.process.wait_for_output('the model is unloaded')
    probe.wait(lambda: probe.health()['num_blocks'] == '0', 'that nothing is loaded')
    before = probe.counter('refused')
    probe.question('Anybody there?')
    probe.wait(lambda: probe.counter('refused') == before + 1, 'the refusal')
    assert 'paused' in probe.health()['question_refused_reason']
    not_ready = int(health['frames_not_ready'])
    probe.publish(rgb_to_image(picture(), probe.header()))
    probe.wait(lambda: int(probe.health()['frames_not_ready']) > not_ready, 'a frame not taken')
    asked_s = time.monotonic()
    answer = probe.enable(True)
    assert time.monotonic() - asked_s < 2.0  # it does not wait for the model
    assert answer.success and answer.message == 'resumed: the model is being loaded'
    probe.wait_for_state('ready', 'no_frames')
    assert probe.process.output().count('runs with 32 blocks') == 2
    probe.second += 1
    probe.ask()


def test_started_disabled_nothing_is_loaded_until_it_is_enabled() -> None:
    command = ros_command(
        'dual_vlm_node',
        start_enabled=False,
        unload_when_paused=True,
        tasks=['single_object'],
        **PARAMETERS,
    )
    domain_id = free_domain_id() + 101  # the other node of this file is still there
    environment = ros_env(domain_id)
    with RosProcess(command, environment) as process, ros_node(domain_id=domain_id) as node:
        probe = Passenger(node, process, '/dual_vlm', '/dual_vlm/input/image')
        probe.wait_for_state('paused')
        assert probe.health()['num_blocks'] == '0' and 'runs with' not in process.output()
        assert probe.enable(True).success
        probe.wait_for_state('ready', 'no_frames')
        assert probe.health()['num_blocks'] == '32'
        probe.ask()
        assert process.stop(signal.SIGTERM) == 0
