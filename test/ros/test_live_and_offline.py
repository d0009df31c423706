"""A bag played to the real node, and replayed offline, gives the same answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from bag_files import LATENCY_NS, PERIOD_NS, START_NS, Recorded, jpeg_image, raw_image, write_bag
from diagnostic_msgs.msg import DiagnosticArray
from ros_process import RosProcess, ros_command, ros_node, wait_until
from std_msgs.msg import Float64

from gmskip_ros.cli.main import main
from gmskip_ros.datasets.scenes import render_scene
from gmskip_ros.pipeline.rows import read_json_lines

TASKS = ['single_object', 'captioning']
# Answers so short that even on a busy machine the node is free when a frame is due.
PARAMETERS = """
/**:
  ros__parameters:
    tasks: [single_object, captioning]
    labels: [scenes]
    rate_hz: 1.0
    max_new_tokens: {single_object: 4, captioning: 4}
"""
NUM_FRAMES = 40  # 4 s
Answers = dict[tuple[int, str], tuple[str, str, str]]


def drive(transport: str) -> list[Recorded]:
    messages = []
    for number in range(NUM_FRAMES):
        time_ns = START_NS + number * PERIOD_NS
        rgb, stamp_ns = render_scene(80_000_000 + number // 5).image, time_ns - LATENCY_NS
        message = (
            jpeg_image(rgb, stamp_ns, broken=number == 10)
            if transport == 'compressed'
            else raw_image(rgb, stamp_ns, encoding='bgr8', padding=4)
        )
        messages.append(Recorded(time_ns, message))
    return messages


def offline(bag: Path, folder: Path, parameters: Path) -> Answers:
    assert (
        main(
            [
                'replay',
                str(bag),
                '--out',
                str(folder),
                '--params-file',
                str(parameters),
                '--no-progress',
            ]
        )
        == 0
    )
    return {
        (row.stamp_ns, f'{row.task}/{row.branch}'): (
            row.answer,
            row.raw_text,
            ','.join(map(str, row.skipped_blocks)),
        )
        for row in read_json_lines(folder / 'frames.jsonl')
    }


def live(bag: Path, transport: str, parameters: Path) -> tuple[Answers, list[float]]:
    """Return the answers, and the pipeline's latencies (ms), of a node that follows the bag."""
    name = '/front/dual_vlm'
    node_command = ros_command(
        'dual_vlm_node',
        remap={'~/input/image': '/camera', '__ns': '/front'},
        params_file=parameters,
        use_sim_time=True,
        image_transport=transport,
    )
    player_command = ros_command(
        'image_player',
        '-p',
        'clock:=true',
        remap={'image_raw': '/camera'},
        source=str(bag),
        loop=False,
        wait_for_node=name,
    )
    answers: Answers = {}
    latencies_ms: list[float] = []

    def take(message: DiagnosticArray) -> None:
        stamp_ns = message.header.stamp.sec * 1_000_000_000 + message.header.stamp.nanosec
        assert message.header.frame_id == 'camera'
        for status in message.status:
            values: dict[str, Any] = {entry.key: entry.value for entry in status.values}
            answers[stamp_ns, status.name] = (
                values['answer'],
                values['raw_text'],
                values['skipped_blocks'],
            )

    with RosProcess(node_command, warm=True) as node_process, ros_node() as probe:
        for branch in ('skip', 'full'):
            probe.create_subscription(DiagnosticArray, f'{name}/output/{branch}/result', take, 10)
        probe.create_subscription(
            Float64,
            f'{name}/debug/pipeline_latency_ms',
            lambda message: latencies_ms.append(message.data),
            10,
        )
        with RosProcess(player_command, warm=True) as player:
            # It ends by itself; the node may still be answering its last frame.
            wait_until(
                lambda: player.returncode() is not None,
                probe,
                what='the end of the bag',
                process=node_process,
            )
            assert player.returncode() == 0
        wait_until(
            lambda: len(answers) % 4 == 0 and len(answers) >= 8,
            probe,
            what='all answers to the frames taken',
            process=node_process,
        )
        assert node_process.stop() == 0
    return answers, latencies_ms


@pytest.mark.parametrize('transport', ['compressed', 'raw'])
def test_live_and_offline_give_the_same_answers(tmp_path: Path, transport: str) -> None:
    bag = write_bag(tmp_path / 'drive', {'/front/image_raw': drive(transport)}, storage='mcap')
    parameters = tmp_path / 'my.param.yaml'
    parameters.write_text(PARAMETERS)
    of_bag = offline(bag, tmp_path / 'out', parameters)
    of_node, latencies_ms = live(bag, transport, parameters)
    both = sorted(of_bag.keys() & of_node.keys())
    assert len({stamp for stamp, _ in both}) >= 2, (sorted(of_bag), sorted(of_node))
    assert [of_node[key] for key in both] == [of_bag[key] for key in both]
    assert {name for _, name in both} == {f'{t}/{b}' for t in TASKS for b in ('skip', 'full')}
    # In the bag's time; by the wall clock the frames would be years old.
    assert latencies_ms and all(0 <= ms <= NUM_FRAMES * PERIOD_NS / 1e6 for ms in latencies_ms)
