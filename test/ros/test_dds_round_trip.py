"""Frames between two real processes are counted, compared and acknowledged."""

from __future__ import annotations

import pytest
from ros_process import ros_env

from gmskip_ros.ros import dds_round_trip
from gmskip_ros.ros.dds_round_trip import RoundTripError, measure_round_trip


@pytest.fixture(autouse=True)
def own_domain(monkeypatch) -> None:
    for name, value in ros_env().items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ('transport', 'frame_bytes'), [('raw', 3 * 64 * 48), ('compressed', 64 * 48 // 4)]
)
def test_frames_arrive_whole_and_are_acknowledged(transport, frame_bytes) -> None:
    found = measure_round_trip(64, 48, transport, 'reliable', num_frames=5)
    assert (found.connected, found.sent, found.damaged) == (True, 5, 0)
    assert 1 <= found.arrived <= 5  # depth 1: a slow process keeps only the newest
    assert 1 <= found.acknowledged <= found.arrived
    assert found.frame_bytes == frame_bytes
    assert found.round_trip_ms > 0
    assert found.middleware == 'rmw_fastrtps_cpp'
    assert found.domain_id == int(ros_env()['ROS_DOMAIN_ID'])


def test_damaged_frames_are_counted_apart(monkeypatch) -> None:
    """The child's checksums are those of other pixels."""
    liar = 'import zlib; crc = zlib.crc32; zlib.crc32 = lambda data: crc(data) ^ 1; '
    monkeypatch.setattr(dds_round_trip, 'CAMERA_PROGRAM', liar + dds_round_trip.CAMERA_PROGRAM)
    found = measure_round_trip(64, 48, 'raw', 'reliable', num_frames=1)
    assert (found.sent, found.arrived, found.damaged, found.acknowledged) == (1, 0, 1, 0)
    assert found.round_trip_ms is None


@pytest.mark.parametrize('program', ['import os; os.abort()', 'print("no count")'])
def test_a_camera_that_fails_is_an_error(program, monkeypatch) -> None:
    monkeypatch.setattr(dds_round_trip, 'CAMERA_PROGRAM', program)
    with pytest.raises(RoundTripError, match='the publishing process exited'):
        measure_round_trip(64, 48, num_frames=1)
