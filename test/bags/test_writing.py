"""A rendered drive as a bag: read back by this package's own reader and by rosbags."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from rosbags.highlevel import AnyReader

from gmskip_ros.bags.reading import open_camera_bag
from gmskip_ros.bags.writing import NewBag
from gmskip_ros.cli import main
from gmskip_ros.datasets.scenes import render_scene
from gmskip_ros.errors import UserError

TOPIC = '/camera/image_raw/compressed'


def test_scenes_as_a_bag(tmp_path, capsys):
    bag = tmp_path / 'new' / 'drive'
    assert main.main(['scenes', '--bag', str(bag), '-n', '3', '--seed', '7', '--rate-hz', '5']) == 0
    assert capsys.readouterr().out == f'3 scenes written to {bag}, topic {TOPIC}\n'
    with AnyReader([bag]) as reader:
        assert [(c.topic, c.msgtype, c.msgcount) for c in reader.connections] == [
            (TOPIC, 'sensor_msgs/msg/CompressedImage', 3)
        ]
        messages = [
            (time_ns, reader.deserialize(content, connection.msgtype))
            for connection, time_ns, content in reader.messages()
        ]
    for index, (time_ns, message) in enumerate(messages):
        stamp = message.header.stamp
        assert time_ns == stamp.sec * 1_000_000_000 + stamp.nanosec
        assert time_ns - messages[0][0] == index * 200_000_000
        image = cv2.imdecode(message.data, cv2.IMREAD_COLOR)[..., ::-1].astype(int)
        assert np.abs(image - render_scene(7 + index).image).mean() < 3, 'a different scene'
    with open_camera_bag(bag) as opened:
        assert opened.topic == TOPIC


@pytest.mark.parametrize(
    'arguments, reason',
    [
        ((), 'nothing to write: give --out DIR for a dataset, or --bag DIR'),
        (('--bag', '{here}'), 'already exists: give a new folder'),
        (('--bag', '{here}/file/drive'), 'cannot be written'),
        (('--bag', '{here}/drive', '-n', '0'), '0 scenes from seed 0: use 1 or more'),
    ],
)
def test_refusals_are_one_line(tmp_path, capsys, arguments, reason):
    (tmp_path / 'file').touch()
    given = [argument.format(here=tmp_path) for argument in arguments]
    assert main.main(['scenes', *given]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert reason in line
    assert [path.name for path in tmp_path.iterdir()] == ['file']


@pytest.mark.parametrize('name', ['w#x', 'w?x', 'w%20x'])
def test_a_path_that_sqlite_reads_as_a_uri_is_refused(tmp_path, name, capsys):
    status = main.main(['scenes', '--bag', str(tmp_path / name), '-n', '2'])
    assert (status, capsys.readouterr().out) == (2, '')
    with pytest.raises(UserError, match=r'with \?, # or %: choose a different folder'):
        NewBag(tmp_path / name / 'bag')
    assert not list(tmp_path.iterdir())


def test_a_discarded_bag_leaves_what_is_in_its_place(tmp_path):
    (tmp_path / 'bag').mkdir()
    (tmp_path / 'bag' / 'bag.db3').write_text('an earlier one')
    with NewBag(tmp_path / 'bag') as bag:
        bag.discard()
    assert [path.name for path in tmp_path.rglob('*')] == ['bag', 'bag.db3']
