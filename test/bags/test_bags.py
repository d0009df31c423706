"""Camera frames of bags, whole and damaged."""

from __future__ import annotations

import os
import re
import resource
import shutil
import sqlite3
import struct
from pathlib import Path

import bag_files
import numpy as np
import pytest
from bag_files import (
    COMPRESSED,
    IMAGE,
    LATENCY_NS,
    PERIOD_NS,
    START_NS,
    TYPES,
    Recorded,
    camera_messages,
    cut,
    end_of_data,
    forget_types,
    kill_recording,
    picture,
    raw_image,
    read_metadata,
    storage_files,
    text_message,
    write_bag,
    write_metadata,
    write_split_bag,
)
from rosbags.rosbag2 import Reader
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from gmskip_ros.bags.mcap_salvage import McapScan
from gmskip_ros.bags.reading import BagError, BagFrame, CameraBag, is_bag, open_camera_bag
from gmskip_ros.bags.sqlite3_salvage import Sqlite3Scan
from gmskip_ros.pipeline.pixels import ConversionError, message_to_rgb

CAMERA = '/camera'
STORAGES = ('sqlite3', 'mcap')
COMPRESSIONS = [
    (storage, compression)
    for storage in STORAGES
    for compression in ('none', 'file', 'message', 'storage')
    if (storage, compression) != ('sqlite3', 'storage')
]
IN_PLACE = [both for both in COMPRESSIONS if both[1] != 'file']


def texts(count: int = 30) -> list[Recorded]:
    """Return the messages of another topic: they start a second before the camera's."""
    return [Recorded(START_NS + (i - 20) * PERIOD_NS // 2, text_message('x')) for i in range(count)]


def read(path: Path, **options) -> tuple[CameraBag, list[BagFrame]]:
    with open_camera_bag(path, **options) as bag:
        return bag, list(bag.frames())


def assert_equal(frames: list[BagFrame], messages: list[Recorded]) -> None:
    assert [frame.time_ns for frame in frames] == [m.time_ns for m in messages]
    assert [frame.stamp_ns for frame in frames] == [m.stamp_ns for m in messages]
    assert [frame.raw for frame in frames] == [m.cdr for m in messages]
    for frame, recorded in zip(frames, messages, strict=True):
        assert frame.problem == ''
        assert frame.message.header.frame_id == 'camera'
        np.testing.assert_array_equal(frame.message.data, recorded.message.data)


# ---- whole bags


@pytest.mark.parametrize('version', [8, 9])
@pytest.mark.parametrize(('storage', 'compression'), COMPRESSIONS)
def test_what_was_recorded_is_what_is_read(tmp_path, storage, compression, version):
    messages = camera_messages(12, jump={4: -3_000_000_000, 8: 10_000_000_000}, broken=[6])
    bag_path = write_bag(
        tmp_path / 'bag',
        {CAMERA: messages, '/chatter': texts()},
        storage=storage,
        version=version,
        compression=compression,
    )

    bag, frames = read(bag_path)

    assert_equal(frames, messages)
    assert (bag.topic, bag.message_type, bag.storage) == (CAMERA, COMPRESSED, storage)
    assert (bag.num_frames, bag.problems) == (12, [])
    assert (bag.start_ns, bag.end_ns) == (START_NS - PERIOD_NS * 10, messages[-1].time_ns)
    for i, frame in enumerate(frames):
        if i == 6:
            with pytest.raises(ConversionError, match='ends before its end marker'):
                message_to_rgb(frame.message)
        else:
            rgb = message_to_rgb(frame.message).astype(int)
            assert np.abs(rgb - picture(i)).mean() < 20  # it is a JPEG


@pytest.mark.parametrize('storage', STORAGES)
def test_raw_images_with_padding(tmp_path, storage):
    messages = camera_messages(5, raw=True, encoding='bgr8', padding=7)
    bag, frames = read(write_bag(tmp_path / 'bag', {CAMERA: messages}, storage=storage))

    assert bag.message_type == IMAGE
    assert frames[0].message.step == 64 * 3 + 7
    for i, frame in enumerate(frames):
        np.testing.assert_array_equal(message_to_rgb(frame.message), picture(i))


@pytest.mark.parametrize('storage', STORAGES)
@pytest.mark.parametrize('compression', ['none', 'file'])
def test_several_files_are_one_bag_in_order_of_time(tmp_path, storage, compression):
    messages = camera_messages(30)
    bag_path = write_split_bag(
        tmp_path / 'bag',
        {CAMERA: messages, '/chatter': texts()},
        num_files=3,
        storage=storage,
        compression=compression,
    )
    info = read_metadata(bag_path)
    info['relative_file_paths'].reverse()
    write_metadata(bag_path, info)

    bag, frames = read(bag_path)

    assert_equal(frames, messages)
    assert (bag.num_frames, bag.problems) == (30, [])
    assert bag.end_ns == messages[-1].time_ns


@pytest.mark.parametrize('storage', STORAGES)
def test_a_part_is_by_recording_time_from_the_start_of_the_bag(tmp_path, storage):
    messages = camera_messages(40, raw=True, width=320, height=240)  # several chunks of mcap
    bag_path = write_bag(tmp_path / 'bag', {CAMERA: messages, '/chatter': texts()}, storage=storage)
    with open_camera_bag(bag_path) as bag:
        for start_s, duration_s, expected in [
            (1.0, None, messages),  # the chatter began a second earlier
            (1.25, None, messages[3:]),
            (1.3, 0.2, messages[3:5]),
            (0.0, 1.0, []),
            (0.0, 1.000000001, messages[:1]),
            (9.0, 1.0, []),
        ]:
            frames = list(bag.frames(start_s, duration_s))
            assert [f.time_ns for f in frames] == [m.time_ns for m in expected]


def test_one_file_of_a_bag_is_a_bag(tmp_path):
    messages = camera_messages(30)
    for storage in STORAGES:
        bag_path = write_split_bag(
            tmp_path / storage, {CAMERA: messages}, num_files=2, storage=storage
        )
        bag, frames = read(storage_files(bag_path)[1])
        assert_equal(frames, messages[15:])
        assert bag.problems == []


def test_special_characters_of_uris_are_part_of_the_name(tmp_path):
    messages = camera_messages(3)
    for storage in STORAGES:
        bag_path = write_bag(tmp_path / 'bag', {CAMERA: messages}, storage=storage)
        bag, frames = read(bag_path.rename(tmp_path / f'a?b#c%41 {storage}'))
        assert_equal(frames, messages)
        assert bag.problems == []


def test_frames_are_not_all_in_memory(tmp_path):
    """Two hundred frames of a megabyte each: reading them takes less than 60 MB."""
    data = np.zeros(1_000_000, np.uint8)
    image = raw_image(np.zeros((1, 1, 3), np.uint8), START_NS)
    image.data = data
    messages = [Recorded(START_NS + i, image) for i in range(200)]
    paths = [write_bag(tmp_path / s, {CAMERA: messages}, storage=s) for s in STORAGES]
    for path in paths:
        with open_camera_bag(path) as bag:
            before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            assert sum(len(frame.message.data) for frame in bag.frames()) == 200_000_000
            grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib
            assert grown_kib < 60_000


def test_a_second_pass_reads_the_same(tmp_path):
    for storage in STORAGES:
        messages = camera_messages(5)
        bag_path = write_bag(tmp_path / storage, {CAMERA: messages}, storage=storage)
        with open_camera_bag(bag_path) as bag:
            half = bag.frames()
            assert_equal([next(half), next(half)], messages[:2])
            half.close()
            assert_equal(list(bag.frames()), messages)
            assert_equal(list(bag.frames()), messages)


def test_without_a_stamp_the_recording_time_counts(tmp_path):
    messages = camera_messages(2, start_ns=START_NS)
    messages[1].message.header.stamp = TYPES.types['builtin_interfaces/msg/Time'](0, 0)
    _, frames = read(write_bag(tmp_path / 'bag', {CAMERA: messages}))
    assert [f.stamp_ns for f in frames] == [START_NS - LATENCY_NS, START_NS + PERIOD_NS]


@pytest.mark.parametrize('storage', STORAGES)
def test_a_message_that_is_damaged_is_a_frame_without_a_message(tmp_path, storage):
    messages = camera_messages(6, raw=True)
    raws = [m.cdr for m in messages]
    raws[1] = raws[1][:40]
    raws[2] = b''
    raws[3] = b'\x28\xb5\x2f\xfd not zstd'
    raws[4] = os.urandom(100)

    class Damaged(Recorded):
        cdr = property(lambda self: raws[messages.index(self)])  # type: ignore[assignment]

    # The writer sees other bytes and the same topics.
    damaged = [Damaged(*m) for m in messages]
    bag, frames = read(write_bag(tmp_path / 'bag', {CAMERA: damaged}, storage=storage))

    assert [f.raw for f in frames] == raws
    assert [f.message is None for f in frames] == [False, True, True, True, True, False]
    assert [f.stamp_ns for f in frames[1:5]] == [m.time_ns for m in messages[1:5]]
    for frame in frames[1:5]:
        assert frame.problem.startswith('not a readable sensor_msgs/msg/Image (')
        assert '\n' not in frame.problem
    assert bag.problems == []


# ---- message definitions


@pytest.mark.parametrize('distro', ['humble', 'jazzy'])
def test_definitions_of_the_distribution_where_the_bag_has_none(tmp_path, distro):
    messages = camera_messages(3)
    for i, ros_distro in enumerate([None, 'humble', 'jazzy', 'rolling']):
        bag_path = write_bag(tmp_path / str(i), {CAMERA: messages})
        forget_types(bag_path, ros_distro)
        bag, frames = read(bag_path, default_distro=distro)
        assert_equal(frames, messages)
        assert bag.problems == []


def test_definitions_of_the_bag_are_used(tmp_path):
    """The bag's definition has one more field."""
    definition = TYPES.generate_msgdef(COMPRESSED, ros_version=2)[0]
    definition = definition.replace('string format', 'int64 exposure\nstring format')
    types = get_typestore(Stores.EMPTY)
    types.register(get_types_from_msg(definition, COMPRESSED))
    usual = camera_messages(1)[0].message
    message = types.types[COMPRESSED](usual.header, 27, usual.format, usual.data)

    class Longer(Recorded):
        cdr = property(lambda self: bytes(types.serialize_cdr(self.message, COMPRESSED)))

    for storage in STORAGES:
        bag_path = write_bag(
            tmp_path / storage,
            {CAMERA: [Longer(START_NS, message)]},
            storage=storage,
            typestore=types,
        )
        bag, frames = read(bag_path)
        assert frames[0].message.exposure == 27
        assert bag.problems == []


def test_definitions_that_are_not_readable_are_replaced(tmp_path):
    messages = camera_messages(3)
    bag_path = write_bag(tmp_path / 'bag', {CAMERA: messages})
    database = sqlite3.connect(storage_files(bag_path)[0])
    database.execute("UPDATE message_definitions SET encoded_message_definition = 'int32 ? ?'")
    database.commit()
    database.close()

    bag, frames = read(bag_path)

    assert_equal(frames, messages)
    assert len(bag.problems) == 1
    assert 'its definition of sensor_msgs/msg/CompressedImage is not readable' in bag.problems[0]
    assert "Jazzy's is used" in bag.problems[0]


# ---- the topic


def test_the_topic_may_be_left_out_or_given(tmp_path):
    front, rear = camera_messages(3), camera_messages(4, raw=True)
    bag_path = write_bag(
        tmp_path / 'bag', {'/front/compressed': front, '/rear': rear, '/chatter': texts()}
    )
    for topic, expected in [('/front/compressed', front), ('/rear', rear), ('rear', rear)]:
        bag, frames = read(bag_path, topic=topic)
        assert_equal(frames, expected)
        assert bag.topic.endswith(topic)

    with pytest.raises(BagError) as error:
        open_camera_bag(bag_path)
    assert str(error.value) == (
        f'bag {str(bag_path)!r}: several camera topics; give one as the topic: '
        f'/front/compressed ({COMPRESSED}, 3), /rear ({IMAGE}, 4)'
    )


def test_the_nodes_own_overlay_is_not_taken_for_a_camera(tmp_path):
    front, overlay = camera_messages(3), camera_messages(2)
    names = ('/front/compressed', '/dual_vlm/debug/image/compressed')
    both = write_bag(tmp_path / 'bag', dict(zip(names, (front, overlay), strict=True)))
    bag, frames = read(both)
    assert bag.topic == names[0]
    assert_equal(frames, front)
    assert read(write_bag(tmp_path / 'overlay', {names[1]: overlay}))[0].topic == names[1]
    cameras = {names[0]: front, '/camera/debug/image_rect': overlay}
    with pytest.raises(BagError, match='several camera topics'):
        read(write_bag(tmp_path / 'cameras', cameras))


@pytest.mark.parametrize(
    ('topic', 'words'),
    [
        (None, ['no sensor_msgs/msg/Image or CompressedImage in it', '/chatter', '30']),
        ('/chatter', ["topic '/chatter' is std_msgs/msg/String", 'give a camera topic']),
        ('/front', ["no topic '/front'", 'give one of /chatter (std_msgs/msg/String, 30)']),
    ],
)
def test_without_images_the_error_lists_the_topics(tmp_path, topic, words):
    for storage in STORAGES:
        bag_path = write_bag(tmp_path / storage, {'/chatter': texts()}, storage=storage)
        with pytest.raises(BagError) as error:
            open_camera_bag(bag_path, topic=topic)
        assert all(word in str(error.value) for word in words)
        assert str(bag_path) in str(error.value)


@pytest.mark.parametrize('storage', STORAGES)
def test_a_topic_without_messages_is_a_bag_of_no_frames(tmp_path, storage):
    bag_path = write_bag(
        tmp_path / 'bag', {'/chatter': texts()}, storage=storage, empty_topics={CAMERA: IMAGE}
    )
    bag, frames = read(bag_path)
    assert (bag.topic, bag.message_type, bag.num_frames) == (CAMERA, IMAGE, 0)
    assert (frames, bag.problems) == ([], [])

    empty = write_bag(tmp_path / 'empty', {}, storage=storage, empty_topics={CAMERA: IMAGE})
    bag, frames = read(empty)
    assert (frames, bag.problems, bag.start_ns, bag.end_ns) == ([], [], 0, 0)

    nothing = write_bag(tmp_path / 'nothing', {}, storage=storage)
    with pytest.raises(BagError, match='record a camera topic; it has no topics'):
        open_camera_bag(nothing)


def test_other_serializations_are_refused(tmp_path):
    bag_path = write_bag(tmp_path / 'bag', {CAMERA: camera_messages(2)})
    database = sqlite3.connect(storage_files(bag_path)[0])
    database.execute("UPDATE topics SET serialization_format = 'json'")
    database.commit()
    database.close()
    with pytest.raises(BagError, match=r"/camera is stored as 'json'; record it"):
        open_camera_bag(bag_path)


# ---- what is not a bag


def test_what_is_not_a_bag_is_one_line(tmp_path):
    (tmp_path / 'folder').mkdir()
    (tmp_path / 'text.txt').write_text('no bag')
    (tmp_path / 'ros1.bag').write_bytes(b'#ROSBAG V2.0\n')
    (tmp_path / 'garbage.db3').write_bytes(os.urandom(5000))
    (tmp_path / 'empty.db3').touch()
    (tmp_path / 'garbage.mcap').write_bytes(os.urandom(5000))
    (tmp_path / 'empty.mcap').touch()
    (tmp_path / 'garbage.mcap.zstd').write_bytes(os.urandom(5000))
    other = sqlite3.connect(tmp_path / 'other.db3')
    other.execute('CREATE TABLE songs(id)')
    other.commit()
    other.close()
    for name, words in [
        ('missing', 'not found; give a bag folder'),
        ('folder', 'no .db3 or .mcap file in it'),
        ('text.txt', 'not a bag; give a bag folder'),
        ('ros1.bag', 'a ROS 1 bag; convert it with rosbags-convert'),
        ('garbage.db3', 'nothing readable: garbage.db3: file is not a database'),
        ('empty.db3', 'nothing readable: empty.db3: '),
        ('other.db3', 'nothing readable: other.db3: '),
        ('garbage.mcap', 'nothing readable: garbage.mcap: File magic is invalid'),
        ('empty.mcap', 'nothing readable: empty.mcap: '),
        ('garbage.mcap.zstd', 'nothing readable: garbage.mcap.zstd: '),
    ]:
        with pytest.raises(BagError) as error:
            open_camera_bag(tmp_path / name)
        message = str(error.value)
        assert message.startswith(f'bag {str(tmp_path / name)!r}: ')
        assert words in message
        assert '\n' not in message


def test_what_looks_like_a_bag(tmp_path):
    bag_path = write_bag(tmp_path / 'bag', {CAMERA: camera_messages(1)})
    assert is_bag(bag_path) and is_bag(str(storage_files(bag_path)[0]))
    assert is_bag(tmp_path / 'not_there.mcap')
    kill_recording(bag_path)
    assert is_bag(bag_path)
    assert not is_bag(tmp_path) and not is_bag(tmp_path / 'film.mp4')


# ---- damaged recordings


@pytest.mark.parametrize(('storage', 'compression'), IN_PLACE)
def test_a_killed_recording_is_read_without_metadata(tmp_path, storage, compression):
    messages = camera_messages(40, raw=True, width=320, height=240)
    bag_path = write_split_bag(
        tmp_path / 'bag',
        {CAMERA: messages, '/chatter': texts()},
        num_files=2,
        storage=storage,
        compression=compression,
    )
    kill_recording(bag_path)

    bag, frames = read(bag_path)

    assert_equal(frames, messages)
    assert bag.num_frames == 40
    assert (bag.start_ns, bag.end_ns) == (START_NS - PERIOD_NS * 10, messages[-1].time_ns)
    assert bag.problems[0].startswith('metadata.yaml: missing (was the recording killed?)')
    assert bag.problems[1:] == [
        f'{file.name}: damaged (cut off); read as far as it goes'
        for file in storage_files(bag_path)
        if storage == 'mcap'
    ]


@pytest.mark.parametrize('content', ['', '{', 'a: b', 'rosbag2_bagfile_information: 5', '\x00\xff'])
def test_broken_metadata_are_not_needed(tmp_path, content):
    messages = camera_messages(3)
    bag_path = write_bag(tmp_path / 'bag', {CAMERA: messages})
    (bag_path / 'metadata.yaml').write_text(content, encoding='latin-1')
    bag, frames = read(bag_path)
    assert_equal(frames, messages)
    assert [p.partition(' (')[0] for p in bag.problems] == ['metadata.yaml: not readable']


@pytest.mark.parametrize('storage', STORAGES)
def test_the_other_files_are_read_if_some_are_missing_or_unusable(tmp_path, storage):
    messages = camera_messages(40)
    bag_path = write_split_bag(tmp_path / 'bag', {CAMERA: messages}, num_files=4, storage=storage)
    files = storage_files(bag_path)
    files[1].unlink()
    files[2].write_bytes(b'')

    bag, frames = read(bag_path)

    assert_equal(frames, messages[:10] + messages[30:])
    assert bag.num_frames == 20
    assert [p.partition(':')[0] for p in bag.problems] == [files[1].name, files[2].name]
    assert 'named by metadata.yaml but missing' in bag.problems[0]

    # Renamed files: the metadata name none of them.
    for i in (0, 3):
        files[i].rename(bag_path / f'renamed_{i}{files[i].suffix}')
    files[2].unlink()
    bag, frames = read(bag_path)
    assert_equal(frames, messages[:10] + messages[30:])


def assert_is_beginning(frames: list[BagFrame], messages: list[Recorded]) -> None:
    assert_equal(frames, messages[: len(frames)])


@pytest.mark.parametrize('part', [0.0005, 0.02, 0.2, 0.5, 0.73, 0.97, 0.9999])
@pytest.mark.parametrize(('storage', 'compression'), COMPRESSIONS)
def test_a_truncated_file_is_read_to_its_end(tmp_path, storage, compression, part):
    messages = camera_messages(60, raw=True, width=320, height=240)  # of noise: 13 MB
    rng = np.random.default_rng(0)
    for recorded in messages:
        recorded.message.data = rng.integers(0, 256, recorded.message.data.size, np.uint8)
    bag_path = write_bag(
        tmp_path / 'bag',
        {CAMERA: messages, '/chatter': texts()},
        storage=storage,
        compression=compression,
    )
    file = storage_files(bag_path)[0]
    cut(file, part)

    if part == 0.0005:  # 7 kB: before the first picture, and perhaps before the topics
        try:
            _, frames = read(bag_path)
            assert frames == []
        except BagError as error:
            assert f'nothing readable: {file.name}: ' in str(error)
        return
    bag, frames = read(bag_path)

    assert_is_beginning(frames, messages)
    # A chunk, or what the compressor had not flushed, is lost.
    assert part * 60 - 7 <= len(frames) <= 60
    if part <= 0.97:
        assert len(frames) < 60
    assert len(bag.problems) == 1
    assert re.fullmatch(rf'{file.name}: damaged \(.+\); read as far as it goes', bag.problems[0])


@pytest.mark.parametrize('compression', ['none', 'storage'])
def test_the_first_messages_of_a_chunk_that_is_cut_off_are_read(tmp_path, compression):
    messages = camera_messages(400)  # less than a megabyte: one chunk for all of them
    bag_path = write_bag(
        tmp_path / 'bag', {CAMERA: messages}, storage='mcap', compression=compression
    )
    file = storage_files(bag_path)[0]
    cut(file, end_of_data(file) // 2)

    bag, frames = read(bag_path)

    assert_is_beginning(frames, messages)
    assert 100 < len(frames) < 300
    assert bag.num_frames == len(frames)
    assert (bag.start_ns, bag.end_ns) == (START_NS, frames[-1].time_ns)


def test_all_messages_of_a_chunk_whose_index_is_cut_off_are_read(tmp_path):
    """Cut after the index of another topic: the chunk holds more than that."""
    messages = camera_messages(10)
    topics = {'/words': texts(), CAMERA: messages}
    bag = write_bag(tmp_path / 'bag', topics, storage='mcap', compression='storage')
    (file,) = storage_files(bag)
    content, at, indices = file.read_bytes(), 8, []
    while content[at] != 0x0F:  # DataEnd
        size = 9 + struct.unpack_from('<Q', content, at + 1)[0]
        if content[at] == 0x07:  # MessageIndex
            indices.append(at)
        at += size
    assert len(indices) == 2  # one chunk, two topics
    for end in indices:
        file.write_bytes(content[:end])
        assert_equal(read(bag)[1], messages)


def test_if_a_name_has_two_types_the_one_with_more_messages_is_read(tmp_path):
    few, many = camera_messages(3), camera_messages(7, raw=True)
    bag = write_bag(tmp_path / 'bag', {CAMERA: few, '/other': many})
    (file,) = storage_files(bag)
    with sqlite3.connect(file) as database:
        database.execute('UPDATE topics SET name = ? WHERE name = ?', (CAMERA, '/other'))
    database.close()
    (bag / 'metadata.yaml').unlink()
    camera, frames = read(bag, topic=CAMERA)
    assert camera.message_type == IMAGE and camera.num_frames == 7
    assert_equal(frames, many)


def test_every_length_of_an_mcap_is_read_or_refused(tmp_path):
    messages = camera_messages(4, width=16, height=16)
    bag_path = write_bag(tmp_path / 'bag', {CAMERA: messages}, storage='mcap')
    file = storage_files(bag_path)[0]
    content = file.read_bytes()
    counts = []
    for size in range(0, len(content), 41):
        file.write_bytes(content[:size])
        try:
            _, frames = read(bag_path)
        except BagError as error:
            assert 'nothing readable' in str(error) or 'it has no topics' in str(error)
            continue
        assert_is_beginning(frames, messages)
        counts.append(len(frames))
    assert counts == sorted(counts)
    assert set(counts) == {0, 1, 2, 3, 4}


def test_every_page_count_of_a_db3_is_read_or_refused(tmp_path):
    messages = camera_messages(8)
    bag_path = write_bag(tmp_path / 'bag', {CAMERA: messages})
    file = storage_files(bag_path)[0]
    content = file.read_bytes()
    counts = []
    for size in [*range(0, len(content), 4096), *range(2000, len(content), 4096)]:
        file.write_bytes(content[:size])
        try:
            bag, frames = read(bag_path)
        except BagError as error:
            assert 'nothing readable' in str(error)
            continue
        assert bag.problems
        assert_is_beginning(frames, messages)
        counts.append(len(frames))
    assert max(counts) >= 6


@pytest.mark.parametrize('compression', ['none', 'storage'])
def test_damage_in_the_middle_of_an_mcap_costs_what_is_damaged(tmp_path, compression):
    messages = camera_messages(40, raw=True, width=320, height=240)
    rng = np.random.default_rng(0)
    for recorded in messages:
        recorded.message.data = rng.integers(0, 256, recorded.message.data.size, np.uint8)
    bag_path = write_bag(
        tmp_path / 'bag', {CAMERA: messages}, storage='mcap', compression=compression
    )
    file = storage_files(bag_path)[0]
    with file.open('r+b') as stream:
        stream.seek(file.stat().st_size // 2)
        stream.write(b'\xff' * 300_000)

    with open_camera_bag(bag_path) as bag:
        assert bag.problems == []  # not seen yet: the index is whole
        frames = list(bag.frames())
        again = [frame.time_ns for frame in bag.frames()]

    times = [frame.time_ns for frame in frames]
    assert times == sorted(set(times)) == again
    if compression == 'storage':  # a whole chunk, at most two, of five messages
        assert 28 <= len(frames) < 40
    assert times[:15] == [m.time_ns for m in messages[:15]]
    assert times[-13:] == [m.time_ns for m in messages[-13:]]
    assert len(bag.problems) == 1
    assert re.fullmatch(r'bag\.mcap: damaged \(.*\); read as far as it goes', bag.problems[0])


def test_damage_in_the_middle_of_a_db3_costs_what_is_damaged(tmp_path):
    messages = camera_messages(40)
    bag_path = write_bag(tmp_path / 'bag', {CAMERA: messages})
    file = storage_files(bag_path)[0]
    content = bytearray(file.read_bytes())
    pages = len(content) // 4096
    for page in range(pages // 2, pages // 2 + 3):
        content[page * 4096 : (page + 1) * 4096] = b'\xff' * 4096
    file.write_bytes(content)

    bag, frames = read(bag_path)

    good = [f for f in frames if f.raw in {m.cdr for m in messages}]
    assert 25 <= len(good) < 40
    assert frames[0].time_ns == messages[0].time_ns
    assert frames[-1].time_ns == messages[-1].time_ns
    assert bag.problems


@pytest.mark.parametrize(
    ('storage', 'compression'), [('sqlite3', 'none'), ('sqlite3', 'file'), ('mcap', 'storage')]
)
def test_whatever_is_damaged_it_ends_and_is_one_line_each(tmp_path, storage, compression):
    """Bytes changed at random, which may make a tree of sqlite circular."""
    messages = camera_messages(12, width=32, height=32)
    bag_path = write_split_bag(
        tmp_path / 'bag',
        {CAMERA: messages, '/chatter': texts()},
        storage=storage,
        compression=compression,
    )
    contents = {p: p.read_bytes() for p in bag_path.iterdir()}
    rng = np.random.default_rng(0)
    num_read = 0
    for _ in range(60):
        for file, content in contents.items():
            file.write_bytes(content)
        file = list(contents)[rng.integers(len(contents))]
        damaged = np.frombuffer(contents[file], np.uint8).copy()
        places = rng.integers(0, damaged.size, 30)
        damaged[places] = rng.integers(0, 256, 30)
        file.write_bytes(damaged.tobytes())
        try:
            bag, frames = read(bag_path, topic=CAMERA)
        except BagError as error:
            assert '\n' not in str(error)
            continue
        assert len(frames) <= 12
        assert not any('\n' in problem for problem in bag.problems)
        num_read += len(frames) > 0
    assert num_read > 40


def test_a_recording_with_its_write_ahead_log_is_read_with_it(tmp_path):
    """`ros2 bag record --storage-preset-profile resilient`, killed."""
    messages = camera_messages(20)
    bag_path = write_bag(tmp_path / 'closed', {CAMERA: messages[:10]})
    name = storage_files(bag_path)[0].name
    recorder = sqlite3.connect(bag_path / name)
    recorder.execute('PRAGMA journal_mode=WAL')
    recorder.execute('PRAGMA wal_autocheckpoint=0')
    for recorded in messages[10:]:
        recorder.execute(
            'INSERT INTO messages (topic_id, timestamp, data) VALUES (1, ?, ?)',
            (recorded.time_ns, recorded.cdr),
        )
    recorder.commit()
    killed = shutil.copytree(bag_path, tmp_path / 'killed')
    recorder.close()
    (killed / f'{name}-shm').unlink()
    before = {p.name: p.read_bytes() for p in killed.iterdir()}

    bag, frames = read(killed)

    assert_equal(frames, messages)
    assert bag.problems == ['closed.db3: not closed by its recorder; it is read with its -wal file']
    assert {p.name: p.read_bytes() for p in killed.iterdir()} == before


# ---- mcap files of other writers


def record(opcode: int, content: bytes) -> bytes:
    return struct.pack('<BQ', opcode, len(content)) + content


def string(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return struct.pack('<I', len(data)) + data


def mcap_message(recorded: Recorded) -> bytes:
    header = struct.pack('<HIQQ', 1, 0, recorded.time_ns, recorded.time_ns)
    return record(5, header + recorded.cdr)


MCAP_START = (
    b'\x89MCAP0\r\n'
    + record(1, string('ros2') + string('a test'))
    + record(3, struct.pack('<H', 1) + string(COMPRESSED) + string('') + string(''))
    + record(4, struct.pack('<HH', 1, 1) + string(CAMERA) + string('cdr') + string(b''))
)
MCAP_END = record(15, bytes(4)) + record(2, bytes(20)) + b'\x89MCAP0\r\n'


def mcap_chunk(messages: list[Recorded], compression: str) -> bytes:
    from lz4.frame import compress

    data = b''.join(map(mcap_message, messages))
    packed = compress(data) if compression == 'lz4' else data
    times = [m.time_ns for m in messages]
    head = struct.pack('<QQQI', min(times), max(times), len(data), 0) + string(compression)
    return record(6, head + struct.pack('<Q', len(packed)) + packed)


@pytest.mark.parametrize('compression', ['', 'lz4', 'no chunks'])
@pytest.mark.parametrize('end', [MCAP_END, b''], ids=['closed', 'killed'])
def test_mcap_without_an_index_and_out_of_order(tmp_path, compression, end):
    messages = camera_messages(9)
    shuffled = [messages[i] for i in (1, 0, 2, 5, 4, 3, 8, 6, 7)]
    if compression == 'no chunks':
        body = b''.join(map(mcap_message, shuffled))
    else:
        body = b''.join(mcap_chunk(shuffled[i : i + 3], compression) for i in (0, 3, 6))
    file = tmp_path / 'a.mcap'
    file.write_bytes(MCAP_START + body + end)

    bag, frames = read(file)

    assert_equal(frames, messages)
    assert bag.num_frames == 9
    assert len(bag.problems) == (end == b'')
    with open_camera_bag(file) as bag:
        assert_equal(list(bag.frames(0.2, 0.3)), messages[2:5])


def test_an_mcap_that_is_damaged_between_its_records_is_read_up_to_there(tmp_path):
    messages = camera_messages(4)
    file = tmp_path / 'a.mcap'
    body = b''.join(map(mcap_message, messages))
    for damage in (bytes(100), b'\x06' + b'\xff' * 100, b'\x03' + struct.pack('<Q', 1) + b'x'):
        file.write_bytes(MCAP_START + body + damage + body + MCAP_END)
        bag, frames = read(file)
        assert_equal(frames, messages)
        assert len(bag.problems) == 1


# ---- recordings of other systems


def foreign_mcap(profile: str, name: str, encoding: str, schema_encoding: str = '') -> bytes:
    """Return an mcap file with three frames on CAMERA, of a type of this name and encoding."""
    start = (
        b'\x89MCAP0\r\n'
        + record(1, string(profile) + string('a test'))
        + record(3, struct.pack('<H', 1) + string(name) + string(schema_encoding) + string(''))
        + record(4, struct.pack('<HH', 1, 1) + string(CAMERA) + string(encoding) + string(b''))
    )
    return start + b''.join(map(mcap_message, camera_messages(3))) + MCAP_END


@pytest.mark.parametrize('profile', ['', 'foxglove', 'ros2'])
def test_an_mcap_without_the_profile_of_ros_2_is_not_damaged(tmp_path, profile):
    file = tmp_path / 'a.mcap'
    file.write_bytes(foreign_mcap(profile, COMPRESSED, 'cdr'))
    bag, frames = read(file)
    assert_equal(frames, camera_messages(3))
    assert bag.problems == []


@pytest.mark.parametrize('given', [None, CAMERA])
@pytest.mark.parametrize(
    ('profile', 'name', 'encoding', 'words'),
    [
        ('ros1', 'sensor_msgs/CompressedImage', 'ros1', 'ROS 1 messages; convert it with rosbags'),
        ('', 'sensor_msgs/msg/Image', 'ros1', 'ROS 1 messages; convert it with rosbags'),
        ('ros2', 'sensor_msgs/Image', 'cdr', "the type's old name"),
        ('', 'foxglove.CompressedImage', 'protobuf', "Foxglove's own type"),
        ('', 'foxglove.CompressedVideo', 'protobuf', "Foxglove's own type"),
        ('ros2', 'foxglove_msgs/msg/RawImage', 'cdr', "Foxglove's own type"),
    ],
)
def test_images_of_other_systems_are_named(tmp_path, profile, name, encoding, words, given):
    file = tmp_path / 'a.mcap'
    file.write_bytes(foreign_mcap(profile, name, encoding))
    with pytest.raises(BagError) as error:
        open_camera_bag(file, given)
    message = str(error.value)
    assert f'{CAMERA} ' in message and words in message and 'damaged' not in message
    assert '\n' not in message


@pytest.mark.parametrize('name', ['bag.mcap', 'bag.db3', 'bag.db3.zstd', 'bag.bag', 'folder'])
def test_a_git_lfs_pointer_is_named(tmp_path, name):
    pointer = b'version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 900\n'
    path = tmp_path / name
    if name == 'folder':
        path.mkdir()
        (path / 'a_0.mcap').write_bytes(pointer)
        (path / 'metadata.yaml').write_bytes(pointer)
    else:
        path.write_bytes(pointer)
    with pytest.raises(BagError, match=r"Git LFS pointer, .* 'git lfs pull'"):
        open_camera_bag(path)


def test_a_folder_with_a_ros_1_bag_is_named(tmp_path):
    (tmp_path / 'drive.bag').write_bytes(b'#ROSBAG V2.0\n')
    assert is_bag(tmp_path) and is_bag(tmp_path / 'drive.bag')
    with pytest.raises(BagError, match=r'a ROS 1 bag in it \(drive.bag\); convert it'):
        open_camera_bag(tmp_path)


# ---- the scan against rosbags: on whole files both read the same


@pytest.mark.parametrize(('storage', 'compression'), IN_PLACE)
def test_the_scan_reads_what_rosbags_reads(tmp_path, storage, compression):
    topics = {CAMERA: camera_messages(40, raw=True, width=320, height=240), '/chatter': texts()}
    bag_path = write_bag(tmp_path / 'bag', topics, storage=storage, compression=compression)
    file = storage_files(bag_path)[0]
    scan = (Sqlite3Scan if storage == 'sqlite3' else McapScan)(file)
    scan.open()

    with Reader(file) as reader:
        expected = [(t, raw) for c, t, raw in reader.messages() if c.topic == CAMERA]
        theirs = [(c.topic, c.msgtype, c.msgdef, c.msgcount) for c in reader.connections]
        span = (reader.start_time, reader.end_time, reader.message_count)
    ours = [(c.topic, c.msgtype, c.msgdef, c.msgcount) for c in scan.connections]
    connections = [c for c in scan.connections if c.topic == CAMERA]
    assert [(t, raw) for _, t, raw in scan.messages(connections)] == expected
    assert ours == theirs
    metadata = scan.metadata
    assert (metadata.start_time, metadata.end_time, metadata.message_count) == span
    scan.close()


def test_bags_need_no_ros():
    """Neither rclpy nor a message package is imported."""
    import subprocess
    import sys

    code = (
        'import sys, gmskip_ros.bags.reading\n'
        "bad = {'rclpy', 'sensor_msgs', 'std_msgs', 'cv_bridge'} & sys.modules.keys()\n"
        'assert not bad, bad'
    )
    subprocess.run([sys.executable, '-c', code], check=True)
    assert bag_files.TYPES is TYPES
