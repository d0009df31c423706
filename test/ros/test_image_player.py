"""The player as its users see it: a process that publishes, waits, ends, and refuses."""

from __future__ import annotations

import signal
import sqlite3
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from bag_files import PERIOD_NS, START_NS, Recorded, camera_messages, kill_recording, write_bag
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from PIL import Image as PilImage
from rclpy.qos import QoSProfile, ReliabilityPolicy
from ros_process import RosProcess, ros_command, ros_env, ros_node, wait_until
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CompressedImage, Image

from gmskip_ros.bags.reading import BagError, open_camera_bag
from gmskip_ros.ros import camera_sources, image_player
from gmskip_ros.ros.camera_sources import MessageFormat, PlayerError, SourceFrame, open_source
from gmskip_ros.ros.conversions import image_to_rgb
from gmskip_ros.ros.cues import cues

RELIABLE = QoSProfile(depth=50, reliability=ReliabilityPolicy.RELIABLE)
BEST_EFFORT = QoSProfile(depth=50, reliability=ReliabilityPolicy.BEST_EFFORT)
COLOURS = [(200, 30, 30), (30, 200, 30), (30, 30, 200)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder of three 64x48 images in COLOURS, sorted by name, and other entries."""
    for name, index in (('c.png', 2), ('a.png', 0), ('b.JPG', 1)):
        picture = np.full((48, 64, 3), COLOURS[index], np.uint8)
        PilImage.fromarray(picture).save(tmp_path / name)
    (tmp_path / 'aa.txt').write_text('no picture')
    (tmp_path / 'bb.png').mkdir()
    return tmp_path


def nanoseconds(stamp) -> int:
    return stamp.sec * 1_000_000_000 + stamp.nanosec


def diagnostics(node: str, state: str) -> DiagnosticArray:
    status = DiagnosticStatus(name=f'{node}: inference')
    status.values = [KeyValue(key='rate', value='1.0'), KeyValue(key='state', value=state)]
    return DiagnosticArray(status=[DiagnosticStatus(name='other: inference'), status])


class ReadyNode:
    """What the player waits for: a subscribed node that keeps reporting `state`."""

    def __init__(
        self, node, message_type=Image, topic='/image_raw', qos=RELIABLE, state='ready', raw=False
    ):
        self.frames: list = []
        self.clock_ns: list[int] = []  # from /clock
        self.state = state
        if topic:
            node.create_subscription(message_type, topic, self.frames.append, qos, raw=raw)
        node.create_subscription(Clock, '/clock', self._on_clock, BEST_EFFORT)
        health = node.create_publisher(DiagnosticArray, '/diagnostics', 1)
        node.create_timer(0.1, lambda: health.publish(diagnostics(node.get_name(), self.state)))

    def _on_clock(self, msg: Clock) -> None:
        self.clock_ns.append(nanoseconds(msg.clock))


def play_to_the_end(player: RosProcess, node) -> None:
    wait_until(lambda: player.returncode() is not None, node, what='the end of the player')
    assert player.wait() == 0, player.output()
    for _ in range(10):  # read what has arrived
        node.executor.spin_once(timeout_sec=0.05)


def test_a_folder_is_played_in_order_again_and_again(folder):
    command = ros_command(
        'image_player',
        source=folder,
        count=7,
        rate_hz=20,
        frame_id='front',
        reliability='reliable',
        wait_for_node='/probe',
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
    """One remapping of the camera's name also moves the compressed topic."""
    command = ros_command(
        'image_player',
        source=folder,
        loop=False,
        width=32,
        image_transport='compressed',
        reliability='reliable',
        wait_for_node='vehicle/probe',
        rate_hz=20.0,
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


def test_it_waits_until_the_named_node_is_subscribed_and_ready(folder):
    command = ros_command(
        'image_player', source=folder, count=2, reliability='reliable', wait_for_node='/dual_vlm'
    )
    with RosProcess(command) as player:
        with ros_node('recorder') as recorder:
            # A different node is subscribed, and it is ready.
            other = ReadyNode(recorder)
            said = "waiting for /dual_vlm: not subscribed to /image_raw, state 'not reported'"
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

                # A node that was ready long before the player started is in state no_frames.
                ready.state = 'no_frames'
                play_to_the_end(player, node)
                assert len(ready.frames) == 2


@pytest.mark.parametrize('stop_signal', [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    ('wait_for_node', 'sign'), [('', 'publishing 3 image(s)'), ('/nobody', 'waiting for /nobody')]
)
def test_a_signal_ends_it_cleanly(folder, stop_signal, wait_for_node, sign):
    command = ros_command('image_player', source=folder, rate_hz=1000, wait_for_node=wait_for_node)
    with RosProcess(command) as player:
        player.wait_for_output(sign)
        assert player.stop(stop_signal) == 0
    assert 'Traceback' not in player.output()
    assert 'rror' not in player.output()


# ---- bags


def player_command(*flags: str, **options) -> list[str]:
    """Return the command with plain arguments before --ros-args."""
    command = ros_command('image_player', **options)
    at = command.index('--ros-args')
    return [*command[:at], *flags, *command[at:]]


def assert_are(frames: list[bytes], messages: list[Recorded]) -> None:
    """Compare serialized messages with recorded ones; DDS pads them to 4 bytes."""
    assert len(frames) == len(messages)
    for frame, recorded in zip(frames, messages, strict=True):
        cdr = recorded.cdr
        assert bytes(frame) in (cdr, cdr + bytes(-len(cdr) % 4))


@pytest.mark.parametrize(
    ('storage', 'raw'), [('sqlite3', True), ('mcap', False)], ids=['raw db3', 'jpeg mcap']
)
def test_a_bag_is_published_as_it_was_recorded(tmp_path, storage, raw):
    """Byte by byte, including padding, jumps and damage; with its own time on /clock."""
    messages = camera_messages(
        8, raw=raw, padding=5, jump={3: -5_000_000_000}, broken=[5], period_ns=60_000_000
    )
    other = camera_messages(3, raw=raw, start_ns=START_NS - 10**9)
    bag = write_bag(
        tmp_path / 'bag', {'/front/image': messages, '/rear/image': other}, storage=storage
    )
    command = player_command(
        '--clock',
        source=bag,
        topic='/front/image',
        loop=False,
        reliability='reliable',
        wait_for_node='/probe',
        remap={'image_raw': '/camera/image'},
    )
    topic = '/camera/image' if raw else '/camera/image/compressed'
    with ros_node() as node, RosProcess(command) as player:
        ready = ReadyNode(node, Image if raw else CompressedImage, topic, raw=True)
        play_to_the_end(player, node)

    assert_are(ready.frames, messages)
    assert 'publishing 8 frame(s) of /front/image (sensor_msgs/msg/' in player.output()
    assert f'of {bag} on {topic}, as recorded' in player.output()

    times = [m.time_ns for m in messages]
    assert ready.clock_ns == sorted(ready.clock_ns)
    assert len(set(times) & set(ready.clock_ns)) >= 4  # best effort
    between = {t for t in ready.clock_ns if times[0] < t < times[-1]} - set(times)
    assert len(between) >= 2  # it went on in between
    # The last frame holds for 0.1 s.
    assert times[0] <= ready.clock_ns[0] and ready.clock_ns[-1] <= times[-1] + 100_000_000


def test_a_bag_starts_over_and_so_does_its_clock(tmp_path):
    messages = camera_messages(3)
    bag = write_bag(tmp_path / 'bag', {'/camera': messages})
    command = ros_command(
        'image_player',
        source=bag,
        count=8,
        rate_hz=25,
        clock=True,
        reliability='reliable',
        wait_for_node='/probe',
    )
    with ros_node() as node, RosProcess(command) as player:
        ready = ReadyNode(node, CompressedImage, '/image_raw/compressed', raw=True)
        play_to_the_end(player, node)

    assert_are(ready.frames, [*messages, *messages, *messages[:2]])
    assert '/image_raw/compressed, 25 Hz' in player.output()
    clock = ready.clock_ns
    falls = [i for i in range(1, len(clock)) if clock[i] < clock[i - 1]]
    assert len(falls) == 2
    assert max(clock[i] for i in falls) < START_NS + PERIOD_NS
    # Three frames are 0.2 s of the bag's time, and the last one holds as long as the one before.
    assert START_NS <= min(clock) and max(clock) <= START_NS + 3 * PERIOD_NS


def test_a_killed_recording_is_played_as_far_as_it_goes(tmp_path):
    messages = camera_messages(4, start_ns=START_NS)
    bag = write_bag(tmp_path / 'bag', {'/camera': messages}, storage='mcap')
    kill_recording(bag)
    command = ros_command(
        'image_player',
        source=bag,
        loop=False,
        rate_hz=20,
        reliability='reliable',
        wait_for_node='/probe',
    )
    with ros_node() as node, RosProcess(command) as player:
        ready = ReadyNode(node, CompressedImage, '/image_raw/compressed', raw=True)
        play_to_the_end(player, node)

    assert_are(ready.frames, messages)
    assert player.output().count('metadata.yaml: missing') == 1
    assert player.output().count('damaged (cut off)') == 1
    assert ready.clock_ns == []


def test_the_clock_stands_while_the_player_waits(tmp_path):
    bag = write_bag(tmp_path / 'bag', {'/camera': camera_messages(3)})
    command = player_command('--clock', source=bag, wait_for_node='/nobody')
    with ros_node() as node, RosProcess(command) as player:
        ready = ReadyNode(node, CompressedImage, '/image_raw/compressed')
        wait_until(lambda: len(ready.clock_ns) >= 5, node, what='/clock', process=player)
        assert player.stop(signal.SIGTERM) == 0
    assert set(ready.clock_ns) == {START_NS}
    assert ready.frames == []


# ---- videos


@pytest.fixture
def video(tmp_path) -> Path:
    """Return a video of ten 64x48 frames, each brighter than the last, at 12.5 Hz."""
    path = tmp_path / 'film.avi'
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*'MJPG'), 12.5, (64, 48))
    for i in range(10):
        writer.write(np.full((48, 64, 3), 20 * i, np.uint8))
    writer.release()
    return path


def test_a_video_is_played_at_its_pace_with_its_time_on_the_clock(video):
    before_ns = time.time_ns()
    command = player_command(
        '--clock',
        source=video,
        loop=False,
        width=32,
        reliability='reliable',
        frame_id='film',
        wait_for_node='/probe',
    )
    with ros_node() as node, RosProcess(command) as player:
        ready = ReadyNode(node)
        play_to_the_end(player, node)

    assert f'publishing the video {video} on /image_raw, 12.5 Hz' in player.output()
    assert [image_to_rgb(f).shape for f in ready.frames] == [(24, 32, 3)] * 10
    for i, frame in enumerate(ready.frames):
        assert abs(int(image_to_rgb(frame)[12, 16, 0]) - 20 * i) <= 4
        assert frame.header.frame_id == 'film'
    stamps = [nanoseconds(frame.header.stamp) for frame in ready.frames]
    assert before_ns < stamps[0] < time.time_ns()
    assert np.diff(stamps).tolist() == [80_000_000] * 9
    assert ready.clock_ns == sorted(ready.clock_ns)
    assert len(set(stamps) & set(ready.clock_ns)) >= 5  # best effort
    assert stamps[0] <= ready.clock_ns[0] and ready.clock_ns[-1] <= stamps[-1] + 80_000_000


def write_video(path: Path, fourcc: str, num_frames: int = 40) -> Path:
    """Write a video of 160x120 frames at 10 Hz; about as many bytes for each frame."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*fourcc), 10.0, (160, 120))
    gradient = np.tile(np.arange(160, dtype=np.uint8), (120, 1))
    for i in range(num_frames):
        writer.write(np.roll(gradient, 2 * i, 1)[..., None].repeat(3, 2))
    writer.release()
    return path


def cut(path: Path, percent: int) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size * percent // 100])


@pytest.mark.parametrize('percent', [25, 50, 90])
@pytest.mark.parametrize('name', ['film.avi', 'film.mkv'])
def test_a_video_that_is_cut_off_is_played_as_far_as_it_goes_and_named(tmp_path, name, percent):
    path = write_video(tmp_path / name, 'MJPG')
    cut(path, percent)
    command = player_command(
        source=path, loop=False, rate_hz=50.0, reliability='reliable', wait_for_node='/probe'
    )
    with ros_node() as node, RosProcess(command) as player:
        ready = ReadyNode(node)
        play_to_the_end(player, node)  # status 0, as for a bag that is cut off
    num_read = len(ready.frames)
    assert 0 < num_read < 40
    problem = f'{path}: cut off or damaged: {num_read} of 40 frames can be read'
    assert player.output().count(problem) == 1


def with_index_first(mp4: bytes) -> bytes:
    """Return an mp4 of OpenCV (ftyp, free, mdat, moov) with moov before mdat, as for streaming."""
    mdat, moov = mp4.index(b'mdat') - 4, mp4.index(b'moov') - 4
    index = bytearray(mp4[moov:])
    table = index.index(b'stco') + 8  # count, then the position of each chunk
    for entry in range(int.from_bytes(index[table : table + 4], 'big')):
        at = table + 4 + 4 * entry
        position = int.from_bytes(index[at : at + 4], 'big') + len(index)
        index[at : at + 4] = position.to_bytes(4, 'big')
    return mp4[:mdat] + bytes(index) + mp4[mdat:moov]


@pytest.mark.parametrize('percent', [50, 90])
def test_an_mp4_that_is_cut_off_behind_its_index_is_named(tmp_path, percent):
    path = write_video(tmp_path / 'film.mp4', 'mp4v')
    path.write_bytes(with_index_first(path.read_bytes()))
    whole = open_source(str(path), MessageFormat(), '')
    assert len(list(whole.frames())) == 40 and not whole.problems
    cut(path, percent)
    source = open_source(str(path), MessageFormat(), '')
    num_read = len(list(source.frames()))
    assert 0 < num_read < 40
    list(source.frames())  # again, as in a loop: reported once
    assert source.problems == [f'{path}: cut off or damaged: {num_read} of 40 frames can be read']


@pytest.mark.parametrize('percent', [25, 50, 90])
@pytest.mark.parametrize('name', ['film.mp4', 'film.mov'])
def test_a_video_whose_index_is_cut_off_cannot_be_played(tmp_path, capfd, name, percent):
    path = write_video(tmp_path / name, 'mp4v')
    cut(path, percent)
    assert image_player.main(['--ros-args', '-p', f'source:={path}']) == 2
    assert capfd.readouterr().err.splitlines()[-1] == (
        f"image_player: error: source '{path}': cut off: no frame of it can be read; copy it "
        'again, or repair it'
    )


@pytest.mark.parametrize(
    ('name', 'fourcc'), [('film.avi', 'MJPG'), ('film.mkv', 'MJPG'), ('film.mp4', 'mp4v')]
)
def test_a_whole_video_is_not_called_cut_off(tmp_path, name, fourcc):
    source = open_source(str(write_video(tmp_path / name, fourcc)), MessageFormat(), '')
    assert len(list(source.frames())) == 40
    assert source.problems == []


def test_images_and_videos_go_on_in_time_when_they_start_over(folder, video):
    for source, num_frames in [(folder, 3), (video, 10)]:
        played = open_source(str(source), MessageFormat(), topic='')
        all_cues = list(
            cues(played, loop=True, count=2 * num_frames + 1, period_s=0.04, start_ns=1000)
        )
        assert len(all_cues) == 2 * num_frames + 1
        for i, cue in enumerate(all_cues):
            time_ns = 1000 + i * 40_000_000
            assert (cue.time_ns, cue.until_ns) == (time_ns, time_ns + 40_000_000)
            assert cue.hold_s == 0.04


# ---- the pace


class Recording:
    """A source of frames with times, in seconds."""

    def __init__(self, *times_s: float) -> None:
        self.frames = lambda: (SourceFrame(b'', round(t * 1e9)) for t in times_s)


def holds(source: Recording, **options) -> list[tuple[float, float, float]]:
    options = {'loop': False, 'count': 0, 'period_s': None, 'start_ns': 0, **options}
    return [(cue.time_ns / 1e9, cue.until_ns / 1e9, cue.hold_s) for cue in cues(source, **options)]


def test_as_recorded_each_frame_holds_until_the_next_ones_time():
    source = Recording(10.0, 10.5, 10.5, 13.5, 13.75)
    assert holds(source) == [
        (10.0, 10.5, 0.5),
        (10.5, 10.5, 0.0),
        (10.5, 13.5, 3.0),
        (13.5, 13.75, 0.25),
        (13.75, 14.0, 0.25),
    ]
    # With a rate, simulated time still ends at the next frame's.
    assert holds(source, period_s=2.0, count=3) == [
        (10.0, 10.5, 2.0),
        (10.5, 10.5, 2.0),
        (10.5, 10.6, 2.0),
    ]


def test_the_last_frame_of_a_pass_holds_for_a_moment():
    assert holds(Recording(5.0), loop=True, count=2) == [(5.0, 5.1, 0.1)] * 2
    assert holds(Recording(1.0, 61.0), loop=True, count=3) == [
        (1.0, 61.0, 60.0),
        (61.0, 62.0, 1.0),
        (1.0, 2.0, 1.0),
    ]
    assert holds(Recording(), loop=True) == []


# ---- errors


def test_help_and_unknown_arguments(capfd):
    assert image_player.main(['--help']) == 0
    usage = capfd.readouterr().out
    assert usage.startswith('usage: image_player [--clock]')
    for name in image_player.SPECS:
        assert f'  {name} ' in usage

    for arguments, wrong in [
        (['drive'], 'drive'),
        (['--clock', '--loop', '--ros-args', '-p', 'count:=1'], '--loop'),
        (['--ros-args', '-p', 'count:=1', '--', '40'], '40'),
    ]:
        assert image_player.main(arguments) == 2
        assert capfd.readouterr().err == (
            f'image_player: error: unknown argument {wrong!r}: give parameters as --ros-args -p, '
            'see --help\n'
        )


def test_a_wrong_source_is_one_line_and_status_2(tmp_path):
    missing = tmp_path / 'missing'
    with RosProcess(ros_command('image_player', source=missing)) as player:
        assert player.wait() == 2
    assert player.output().splitlines() == [
        f'image_player: error: source {str(missing)!r}: not found; '
        'give an image, a folder of images, a video or a bag'
    ]


@pytest.mark.parametrize(
    ('parameters', 'words'),
    [
        ({'source': ''}, ['source', 'not found']),
        ({'source': '{tmp}'}, ['no images']),
        ({'source': '{tmp}/broken.png'}, ['broken.png', 'not a readable image']),
        ({'source': '{tmp}/empty.jpg'}, ['empty.jpg', 'not a readable image']),
        ({'rate_hz': -1}, ['rate_hz: -1', 'give 0 to 1000']),
        ({'rate_hz': 1001}, ['rate_hz: 1001']),
        ({'rate_hz': '.nan'}, ['rate_hz', 'is not a number']),
        ({'rate_hz': True}, ['rate_hz', 'number']),
        ({'image_transport': 'theora'}, ["image_transport: 'theora'", 'raw, compressed']),
        ({'reliability': 'some'}, ["reliability: 'some'", 'best_effort, reliable']),
        ({'count': -1}, ['count: -1']),
        ({'count': 2.5}, ['count', '2.5']),
        ({'width': 100_000}, ['width: 100000']),
        ({'height': -1}, ['height: -1']),
        ({'jpeg_quality': 0}, ['jpeg_quality: 0', '1 to 100']),
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


def test_a_wrong_bag_or_video_is_one_line_and_status_2(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv('ROS_DOMAIN_ID', ros_env()['ROS_DOMAIN_ID'])
    PilImage.new('RGB', (8, 8)).save(tmp_path / 'a.png')
    (tmp_path / 'broken.mp4').write_bytes(b'no film' * 100)
    frames = camera_messages(2)
    bag = write_bag(tmp_path / 'bag', {'/a': frames, '/b': frames})
    empty = write_bag(tmp_path / 'empty', {}, empty_topics={'/a': 'sensor_msgs/msg/Image'})
    for options, words in [
        ({'source': bag}, [f'bag {str(bag)!r}', 'several camera topics', '/a', '/b']),
        ({'source': bag, 'topic': '/c'}, ["no topic '/c'", 'give one of /a']),
        ({'source': empty}, [f'source {str(empty)!r}: contains no messages on /a']),
        ({'source': tmp_path / 'missing.mcap'}, ['missing.mcap', 'not found']),
        ({'source': tmp_path / 'missing.mp4'}, ['missing.mp4', 'not found']),
        ({'source': tmp_path / 'broken.mp4'}, ['broken.mp4', 'not a readable video']),
        ({'source': tmp_path / 'a.png', 'topic': '/a'}, ["topic: '/a'", 'only a bag has topics']),
        ({'source': bag, 'width': 5}, ['width: 5', 'published as they were recorded']),
        ({'source': bag, 'height': 5}, ['height: 5', 'remove it']),
        ({'source': bag, 'frame_id': 'front'}, ["frame_id: 'front'"]),
        ({'source': bag, 'jpeg_quality': 80}, ['jpeg_quality: 80']),
        ({'source': bag, 'image_transport': 'compressed'}, ["image_transport: 'compressed'"]),
        ({'source': bag, 'clock': True, 'use_sim_time': True}, ['use_sim_time', '--clock']),
        ({'source': bag, 'clock': 1}, ['clock', '1']),
    ]:
        command = ros_command('image_player', **options)
        assert image_player.main(command[command.index('--ros-args') :]) == 2, options
        printed = capfd.readouterr().err.splitlines()
        assert len([li for li in printed if li.startswith('image_player: error: ')]) == 1, printed
        for word in words:
            assert word in printed[-1], (options, printed)


@pytest.mark.parametrize('name', ['ros1.bag', 'pointer.mcap', 'pointer.db3', 'folder', 'no.mcap'])
def test_it_says_about_a_bag_what_replay_says(tmp_path, monkeypatch, capfd, name):
    path = tmp_path / name
    if name == 'folder':
        path.mkdir()
        (path / 'ros1.bag').write_bytes(b'#ROSBAG V2.0\n')
    elif name == 'ros1.bag':
        path.write_bytes(b'#ROSBAG V2.0\n')
    elif name != 'no.mcap':
        path.write_bytes(b'version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n')
    with pytest.raises(BagError) as error:
        open_camera_bag(path)
    monkeypatch.setenv('ROS_LOG_DIR', str(tmp_path / 'log'))
    assert image_player.main(['--ros-args', '-p', f'source:={path}']) == 2
    assert f'image_player: error: source: {error.value}\n' in capfd.readouterr().err


def test_a_frame_that_replay_cannot_read_is_named(tmp_path):
    """It is published as recorded all the same."""
    messages = camera_messages(2)
    write_bag(tmp_path / 'bag', {'/camera/compressed': messages}, storage='sqlite3')
    (file,) = (tmp_path / 'bag').glob('*.db3')
    with sqlite3.connect(file) as database:
        database.execute('UPDATE messages SET data = substr(data, 1, 30) WHERE id = 2')
    source = open_source(str(tmp_path / 'bag'), MessageFormat(), '')
    for _ in range(2):
        assert len(list(source.frames())) == 2
    (problem,) = source.problems
    assert problem.startswith('frame at ') and 'not a readable sensor_msgs/msg/' in problem


def test_a_git_lfs_pointer_is_named(tmp_path):
    for name in ('a.jpg', 'a.mp4'):
        path = tmp_path / name
        path.write_bytes(b'version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n')
        with pytest.raises(PlayerError, match='a Git LFS pointer'):
            open_source(str(path), MessageFormat(), '')


def test_wrong_ros_arguments_are_status_2(capfd):
    for arguments in (['-p', 'count:=['], ['--nonsense']):
        assert image_player.main(['--ros-args', *arguments]) == 2
        assert 'image_player: error: ROS arguments' in capfd.readouterr().err


def test_images_are_upright_and_in_the_given_size(tmp_path):
    exif = PilImage.Exif()
    exif[0x0112] = 6  # "rotate by 90 degrees to show"
    path = tmp_path / 'upright.jpg'
    PilImage.new('RGB', (64, 48)).save(path, exif=exif)
    for (width, height), shape in [
        ((0, 0), (64, 48, 3)),
        ((96, 0), (128, 96, 3)),
        ((0, 32), (32, 24, 3)),
        ((10, 20), (20, 10, 3)),
    ]:
        source = open_source(str(path), MessageFormat(width=width, height=height), topic='')
        (frame,) = source.frames()
        assert image_to_rgb(frame.message).shape == shape


def test_the_images_kept_in_memory_are_bounded(folder, monkeypatch):
    """Two of three fit: they are made once in advance, the third each time it is due."""
    monkeypatch.setattr(camera_sources, 'CACHE_BYTES', 2 * 64 * 48 * 3)
    source = open_source(str(folder), MessageFormat(), topic='')
    (folder / 'a.png').unlink()
    (folder / 'b.JPG').unlink()

    first, second = list(source.frames()), list(source.frames())

    assert [a.message is b.message for a, b in zip(first, second, strict=True)] == [
        True,
        True,
        False,
    ]
    assert first[2].message == second[2].message
