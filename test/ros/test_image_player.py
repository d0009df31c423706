"""The player as others meet it: a process that publishes, waits, ends, and refuses."""

from __future__ import annotations

import signal
from pathlib import Path

import cv2
import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from PIL import Image as PilImage
from rclpy.qos import QoSProfile, ReliabilityPolicy
from ros_process import RosProcess, ros_command, ros_env, ros_node, wait_until
from sensor_msgs.msg import CompressedImage, Image

from gmskip_ros.ros import image_player
from gmskip_ros.ros.conversions import image_to_rgb

RELIABLE = QoSProfile(depth=50, reliability=ReliabilityPolicy.RELIABLE)
BEST_EFFORT = QoSProfile(depth=50, reliability=ReliabilityPolicy.BEST_EFFORT)
COLOURS = [(200, 30, 30), (30, 200, 30), (30, 30, 200)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three pictures of 64x48 in COLOURS by the order of their names, and what is no picture."""
    for name, index in (('c.png', 2), ('a.png', 0), ('b.JPG', 1)):
        picture = np.full((48, 64, 3), COLOURS[index], np.uint8)
        PilImage.fromarray(picture).save(tmp_path / name)
    (tmp_path / 'aa.txt').write_text('no picture')
    (tmp_path / 'bb.png').mkdir()
    return tmp_path


def diagnostics(node: str, state: str) -> DiagnosticArray:
    status = DiagnosticStatus(name=f'{node}: inference')
    status.values = [KeyValue(key='rate', value='1.0'), KeyValue(key='state', value=state)]
    return DiagnosticArray(status=[DiagnosticStatus(name='other: inference'), status])


class ReadyNode:
    """What the player waits for: a node that is subscribed and says again and again `state`."""

    def __init__(self, node, message_type=Image, topic='/image_raw', qos=RELIABLE, state='ready'):
        self.frames: list = []
        self.state = state
        if topic:
            node.create_subscription(message_type, topic, self.frames.append, qos)
        health = node.create_publisher(DiagnosticArray, '/diagnostics', 1)
        node.create_timer(0.1, lambda: health.publish(diagnostics(node.get_name(), self.state)))


def play_to_the_end(player: RosProcess, node) -> None:
    wait_until(lambda: player.returncode() is not None, node, what='the end of the player')
    assert player.wait() == 0, player.output()
    for _ in range(10):  # what has arrived but is not yet read
        node.executor.spin_once(timeout_sec=0.05)


def test_a_folder_is_played_in_order_again_and_again(folder):
    command = ros_command(
        'image_player', source=folder, count=7, rate_hz=20, frame_id='front',
        reliability='reliable', wait_for_node='/probe',
    )
    with ros_node() as node, RosProcess(command) as player:
        ready = ReadyNode(node)
        play_to_the_end(player, node)

    assert 'published 7 frames' in player.output()
    assert len(ready.frames) == 7
    for i, frame in enumerate(ready.frames):
        assert (frame.encoding, frame.width, frame.height) == ('rgb8', 64, 48)
        assert frame.header.frame_id == 'front'
        difference = image_to_rgb(frame).astype(int) - COLOURS[i % 3]
        assert np.abs(difference).max() <= (4 if i % 3 == 1 else 0)  # one of them is a JPEG
    stamps = [(f.header.stamp.sec, f.header.stamp.nanosec) for f in ready.frames]
    assert sorted(set(stamps)) == stamps
    assert stamps[0][0] > 1_500_000_000


def test_compressed_resized_remapped_and_without_loop(folder):
    """One remapping of the camera's name moves the compressed topic too."""
    command = ros_command(
        'image_player', source=folder, loop=False, width=32, image_transport='compressed',
        reliability='reliable', wait_for_node='vehicle/probe', rate_hz=20.0,
        remap={'image_raw': '/camera/image'},
    )
    env = ros_env()
    with ros_node(namespace='/vehicle') as node, RosProcess(command, env) as player:
        ready = ReadyNode(node, CompressedImage, '/camera/image/compressed')
        play_to_the_end(player, node)

    assert [image_to_rgb(f).shape for f in ready.frames] == [(24, 32, 3)] * 3
    for frame, colour in zip(ready.frames, COLOURS, strict=True):
        assert np.abs(image_to_rgb(frame).astype(int) - colour).max() <= 6


@pytest.mark.parametrize(('width', 'height'), [(640, 480), (1920, 1080)])
def test_best_effort_raw_images_arrive_with_the_fast_dds_profile(tmp_path, width, height):
    """Without the profile about one in seven does at 640x480."""
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    cv2.imwrite(str(tmp_path / 'noise.png'), noise[..., ::-1])
    command = ros_command(
        'image_player', source=tmp_path / 'noise.png', count=25, wait_for_node='/probe'
    )
    with ros_node() as node, RosProcess(command) as player:
        ready = ReadyNode(node, qos=BEST_EFFORT)
        play_to_the_end(player, node)

    assert len(ready.frames) >= 20
    np.testing.assert_array_equal(image_to_rgb(ready.frames[-1]), noise)


def test_it_waits_for_the_node_not_for_anybody_and_until_it_is_ready(folder):
    command = ros_command(
        'image_player', source=folder, count=2, reliability='reliable', wait_for_node='/dual_vlm'
    )
    with RosProcess(command) as player:
        with ros_node('recorder') as recorder:
            # Somebody else is subscribed, and somebody else is ready.
            other = ReadyNode(recorder)
            said = "waiting for /dual_vlm: not subscribed to /image_raw, state 'not heard of'"
            wait_until(lambda: said in player.output(), recorder, what=said, process=player)
            with ros_node('dual_vlm') as node:
                ready = ReadyNode(node, topic='')
                said = "waiting for /dual_vlm: not subscribed to /image_raw, state 'ready'"
                wait_until(lambda: said in player.output(), node, what=said, process=player)
                ready.state = 'loading'
                said = "waiting for /dual_vlm: not subscribed to /image_raw, state 'loading'"
                wait_until(lambda: said in player.output(), node, what=said, process=player)
                node.create_subscription(Image, '/image_raw', ready.frames.append, RELIABLE)
                said = "waiting for /dual_vlm: subscribed to /image_raw, state 'loading'"
                wait_until(lambda: said in player.output(), node, what=said, process=player)
                ready.state = 'paused'
                said = "state 'paused'"
                wait_until(lambda: said in player.output(), node, what=said, process=player)
                recorder.executor.spin_once(timeout_sec=0.2)
                assert ready.frames == other.frames == []
                assert 'publishing' not in player.output()

                # A node that was ready long before the player came has no frames by now.
                ready.state = 'no_frames'
                play_to_the_end(player, node)
                assert len(ready.frames) == 2


@pytest.mark.parametrize('stop_signal', [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    ('wait_for_node', 'sign'), [('', 'publishing 3 picture(s)'), ('/nobody', 'waiting for /nobody')]
)
def test_told_to_stop_it_ends_without_a_fuss(folder, stop_signal, wait_for_node, sign):
    command = ros_command('image_player', source=folder, rate_hz=1000, wait_for_node=wait_for_node)
    with RosProcess(command) as player:
        player.wait_for_output(sign)
        assert player.stop(stop_signal) == 0
    assert 'Traceback' not in player.output()
    assert 'rror' not in player.output()


def test_a_wrong_source_is_one_line_and_status_2(tmp_path):
    missing = tmp_path / 'missing'
    with RosProcess(ros_command('image_player', source=missing)) as player:
        assert player.wait() == 2
    assert player.output().splitlines() == [
        f'image_player: error: source {str(missing)!r}: not found; '
        'give a picture or a folder of pictures'
    ]


@pytest.mark.parametrize(
    ('parameters', 'words'),
    [
        ({'source': ''}, ['source', 'not found']),
        ({'source': '{tmp}'}, ['no pictures']),
        ({'source': '{tmp}/broken.png'}, ['broken.png', 'not a readable picture']),
        ({'source': '{tmp}/empty.jpg'}, ['empty.jpg', 'not a readable picture']),
        ({'rate_hz': 0.0}, ['rate_hz = 0.0', 'above 0']),
        ({'rate_hz': -1}, ['rate_hz = -1']),
        ({'rate_hz': '.nan'}, ['rate_hz', 'number']),
        ({'rate_hz': True}, ['rate_hz', 'number']),
        ({'image_transport': 'theora'}, ["image_transport = 'theora'", 'raw or compressed']),
        ({'reliability': 'some'}, ["reliability = 'some'", 'best_effort or reliable']),
        ({'count': -1}, ['count = -1']),
        ({'count': 2.5}, ['count', '2.5']),
        ({'width': 100_000}, ['width = 100000']),
        ({'height': -1}, ['height = -1']),
        ({'jpeg_quality': 0}, ['jpeg_quality = 0', '1 to 100']),
    ],
)
def test_wrong_parameters_are_one_line_and_status_2(
    parameters, words, tmp_path, monkeypatch, capfd
):
    monkeypatch.setenv('ROS_DOMAIN_ID', ros_env()['ROS_DOMAIN_ID'])
    picture = tmp_path / 'pictures' / 'a.png'
    picture.parent.mkdir()
    PilImage.new('RGB', (8, 8)).save(picture)
    if 'source' in parameters:
        folder = tmp_path / 'none'
        folder.mkdir()
        if parameters['source'] != '{tmp}':
            (folder / 'broken.png').write_bytes(picture.read_bytes()[:20])
            (folder / 'empty.jpg').touch()
        parameters = {'source': parameters['source'].format(tmp=folder)}
    command = ros_command('image_player', **{'source': picture, **parameters})

    assert image_player.main(command[command.index('--ros-args') :]) == 2

    printed = capfd.readouterr().err
    lines = [line for line in printed.splitlines() if line.startswith('image_player: error: ')]
    assert len(lines) == 1
    assert 'Traceback' not in printed
    for word in words:
        assert word in lines[0]


def test_wrong_ros_arguments_are_status_2(capfd):
    for arguments in (['-p', 'count:=['], ['--nonsense']):
        assert image_player.main(['--ros-args', *arguments]) == 2
        assert 'image_player: error: ROS arguments' in capfd.readouterr().err


def test_pictures_are_shown_upright_and_in_the_size_asked_for(tmp_path):
    exif = PilImage.Exif()
    exif[0x0112] = 6  # "rotate by 90 degrees to show"
    path = tmp_path / 'upright.jpg'
    PilImage.new('RGB', (64, 48)).save(path, exif=exif)
    for size, shape in [
        ((0, 0), (64, 48, 3)),
        ((96, 0), (128, 96, 3)),
        ((0, 32), (32, 24, 3)),
        ((10, 20), (20, 10, 3)),
    ]:
        assert image_player.read_picture(path, *size).shape == shape


def test_the_pictures_kept_in_memory_are_bounded(monkeypatch):
    """Two of three fit: they are made once and ahead, the third every time it is due."""
    made: list[str] = []

    def make_message(path: Path) -> Image:
        made.append(path.name)
        return Image(data=bytes(100))

    monkeypatch.setattr(image_player, 'CACHE_BYTES', 250)
    pictures = [Path('a'), Path('b'), Path('c')]
    messages = image_player.picture_messages(pictures, make_message, loop=True)
    assert made[:2] == ['a', 'b']
    made.clear()

    played = [next(messages) for _ in range(9)]

    assert made == ['c', 'c', 'c']
    assert played[0] is played[3] is played[6]
    assert played[2] is not played[5]
