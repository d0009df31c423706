"""The real `gmskip demo`: its table, files and errors, and that no process stays behind."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import cv2
import numpy as np
import pytest
from live_command import LiveCommand
from rosbags.highlevel import AnyReader

from gmskip_ros.cli.demo import Screen
from gmskip_ros.cli.main import main
from gmskip_ros.datasets.scenes import render_scene
from gmskip_ros.pipeline.overlay import AGREES_RGB, DIFFERS_RGB, MAX_PANEL_FRACTION, RAN_RGB
from gmskip_ros.pipeline.rows import csv_bytes, read_json_lines
from gmskip_ros.runs import demo as demo_run
from gmskip_ros.runs.demo import _write
from gmskip_ros.runs.demo_frames import Frame
from gmskip_ros.runs.live import END_WITH_PARENT, FIRST_SCENE_SEED, LiveRunError
from gmskip_ros.tasks import TASK_NAMES

NODE_REPORTS = r's  (loading|warming_up|ready)'


@pytest.fixture
def demo(tmp_path: Path) -> Iterator:
    started: list[LiveCommand] = []

    def start(*options: str) -> LiveCommand:
        started.append(LiveCommand('demo', tmp_path / 'out', *options))
        return started[-1]

    yield start
    for running in started:
        running.kill_all()


@pytest.fixture
def one_image(tmp_path: Path) -> str:
    """Return a folder with one image for the camera: it needs no time to render."""
    (tmp_path / 'images').mkdir()
    assert cv2.imwrite(str(tmp_path / 'images/0.png'), np.full((60, 80, 3), 127, np.uint8))
    return str(tmp_path / 'images')


def test_three_frames(demo, tmp_path):
    running = demo('--frames', '3')
    status, stdout, stderr = running.wait()
    assert (status, stderr) == (0, '')
    assert not running.processes()

    # The node's states (those of less than a second may be missing) and the table.
    order = ['loading', 'warming_up', 'ready', 'overload']
    states = [
        state for state in re.findall(r'^ *[\d.]+ s  (\w+)', stdout, re.MULTILINE) if state in order
    ]
    assert 'ready' in states and states == sorted(states, key=order.index)
    lines = stdout.splitlines()
    header = next(line for line in lines if line.startswith('frame'))
    assert header.split() == ['frame', 'task', 'skip', 'ms', 'full', 'ms', 'verdict', 'answer']
    pattern = re.compile(r'^ +(\d*) +(\w+) +(\d+) +(\d+)  (agrees|DIFFERS) +(both|skip): ')
    rows = [found.groups() for found in map(pattern.match, lines) if found]
    assert [row[0] for row in rows] == ['1', '', '', '2', '', '', '3', '', '']
    assert [row[1] for row in rows] == list(TASK_NAMES) * 3

    # The same in the file, with numbers as numbers.
    records = read_json_lines(tmp_path / 'out/frames.jsonl')
    assert len(records) == 18
    both = {(row.frame, row.task, row.branch): row for row in records}
    for index, (_, task, skip_ms, full_ms, verdict, who) in enumerate(rows):
        skip, full = (both[1 + index // 3, task, branch] for branch in ('skip', 'full'))
        assert round(skip.total_ms) == int(skip_ms) and round(full.total_ms) == int(full_ms)
        assert skip.agree is (verdict == 'agrees') and full.agree is None
        assert 0 < skip.sparsity < 1 and full.sparsity == 0
        if who == 'both':
            assert skip.agree and skip.answer == full.answer
    stamps = [row.stamp_ns for row in records[::6]]
    assert stamps == sorted(set(stamps))
    assert csv_bytes(records) == (tmp_path / 'out/frames.csv').read_bytes()

    # The summary and the report are about these very frames.
    for task in TASK_NAMES:
        of_task = [both[frame, task, 'skip'] for frame in (1, 2, 3)]
        agreeing = sum(bool(row.agree) for row in of_task)
        skip_median = sorted(row.total_ms for row in of_task)[1]
        assert re.search(
            rf'^{task} +{agreeing}/3 +{skip_median:.0f} +\d+ +[\d.]+x +\d+ %$', stdout, re.MULTILINE
        )
    for name in (
        'report.html',
        'overlay.png',
        'frames.csv',
        'frames.jsonl',
        'node.log',
        'camera.log',
    ):
        assert str(tmp_path / 'out' / name) in stdout
        assert (tmp_path / 'out' / name).stat().st_size > 0
    run = json.loads((tmp_path / 'out/replay.json').read_text())
    assert run['complete'] and run['frames'] == {'answered': 3} and run['num_blocks'] == 32
    assert run['gallery']['disagreeing'] == len(
        {row.frame for row in records if row.agree is False}
    )
    assert {each['skip_list'] for each in run['skip_sets']} == {f'demo_{t}' for t in TASK_NAMES}

    # The overlay is an image of the camera, with the panel of three tasks on top.
    picture = cv2.cvtColor(cv2.imread(str(tmp_path / 'out/overlay.png')), cv2.COLOR_BGR2RGB)
    below = int(picture.shape[0] * MAX_PANEL_FRACTION)
    scenes = [render_scene(FIRST_SCENE_SEED + index).image for index in range(3)]
    assert any((picture[below:] == scene[below:]).all() for scene in scenes)
    stripe = [
        any((pixel == rgb).all() for rgb in (AGREES_RGB, DIFFERS_RGB))
        for pixel in picture[:below, 0]
    ]
    assert int(np.diff(np.array(stripe, int), prepend=0).clip(min=0).sum()) == 3
    assert (picture[:below] == RAN_RGB).all(axis=2).any()


def test_the_timing_reaches_the_node(monkeypatch, capsys, tmp_path):
    def start_node(parameters, log):
        raise LiveRunError(f'the node was started with {parameters}')

    monkeypatch.setattr(demo_run, 'start_node', start_node)
    monkeypatch.setattr(demo_run, 'set_ros_environment', lambda: None)
    monkeypatch.setattr(demo_run, 'no_shared_memory_left', nullcontext)
    for options, timing in (((), 'isolated'), (('--timing', 'shared'), 'shared')):
        assert main(['demo', '--out', str(tmp_path), *options]) == 1
        assert f"'timing': '{timing}'" in capsys.readouterr().err


def test_the_summary_has_no_speed_up_of_shared_frames(capsys):
    def frame(timing: str, full_ms: float) -> Frame:
        def values(total_ms: float) -> dict[str, dict[str, str]]:
            return {'captioning': {'total_ms': str(total_ms), 'sparsity': '0.5'}}

        compared = {'captioning': {'agree': 'true', 'timing': timing}}
        return Frame(0, values(10.0), values(full_ms), compared)

    frames = [frame('isolated', 20.0), frame('isolated', 20.0), frame('shared', 4.0)]
    Screen(show_progress=False).summary(frames)
    isolated, shared = re.split(
        r'(?=^task.*(?<!\w)skip ms +full ms +spars)', capsys.readouterr().out, flags=re.M
    )
    assert re.search(r'^captioning +2/2 +10 +20 +2\.00x +50 %$', isolated, re.MULTILINE)
    assert re.search(r'^captioning +1/1 +10 +4 +50 %$', shared, re.MULTILINE)
    assert (
        'no speed-up with timing: shared' in shared and 'speed-up' not in shared.split('no sp')[0]
    )


@pytest.mark.parametrize(('signum', 'expected'), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_everything(demo, one_image, tmp_path, signum, expected):
    running = demo('--frames', '50', '--source', one_image, '--record')
    running.wait_for_line(NODE_REPORTS)
    assert len(running.processes()) >= 2
    running.send_signal(signum)
    status, _, stderr = running.wait()
    assert status == expected
    assert stderr == f'gmskip demo: stopped by {signal.Signals(signum).name}\n'
    assert not running.processes()
    with AnyReader([tmp_path / 'out' / 'bag']) as recorded:
        assert '/diagnostics' in recorded.topics


def test_a_run_without_frames_removes_nothing(demo, one_image, tmp_path):
    out = tmp_path / 'out'
    (out / 'bag').mkdir(parents=True)
    kept = ['frames.jsonl', 'report.html', 'bag/bag.db3', 'bag/metadata.yaml']
    for name in kept:
        (out / name).write_text('of an earlier run')
    running = demo('--source', one_image, '--model', '/no/model', '--record')
    assert running.wait()[0] == 1
    assert all((out / name).read_text() == 'of an earlier run' for name in kept)
    assert not list(out.glob('.bag.*'))


@pytest.mark.parametrize('record', [False, True])
def test_a_recorded_drive_in_the_folder_stays(demo, one_image, tmp_path, record):
    drive = tmp_path / 'out' / 'bag'
    drive.mkdir(parents=True)
    for name in ('metadata.yaml', 'drive_0.db3'):
        (drive / name).write_text('of a drive')
    running = demo('--frames', '1', '--source', one_image, *(['--record'] if record else []))
    status, _, stderr = running.wait()
    assert status == record
    assert ('is not what demo --record writes' in stderr) == record
    assert sorted(path.name for path in drive.iterdir()) == ['drive_0.db3', 'metadata.yaml']


@pytest.mark.skipif(sys.platform != 'linux', reason='the parent-death signal is of Linux')
@pytest.mark.parametrize('when', [NODE_REPORTS, r's  ready', r'^ +1 '])
def test_killed_it_leaves_no_process_behind(demo, one_image, when):
    running = demo('--frames', '5000', '--source', one_image)
    running.wait_for_line(when)
    running.wait_until(lambda: len(running.processes()) >= 3, 'node and camera')
    running.check_nothing_is_left_when_killed()


@pytest.mark.skipif(sys.platform != 'linux', reason='the parent-death signal is of Linux')
def test_child_does_not_start_without_its_parent():
    for parent, expected in ((os.getpid(), ('started\n', '', 0)), (1, ('', '', 1))):
        command = [sys.executable, '-I', '-S', str(END_WITH_PARENT), str(parent), 'echo', 'started']
        run = subprocess.run(command, capture_output=True, text=True)
        assert (run.stdout, run.stderr, run.returncode) == expected


def test_node_that_exits_is_one_clear_line(demo, one_image):
    running = demo('--frames', '50', '--source', one_image)
    running.wait_for_line(NODE_REPORTS)
    node = [pid for pid, command in running.processes().items() if 'dual_vlm_node' in command]
    assert len(node) == 1
    os.kill(node[0], signal.SIGTERM)  # SIGKILL would leave its shared memory behind
    status, _, stderr = running.wait()
    assert status == 1
    first, *log = stderr.splitlines()
    assert first.startswith('gmskip demo: error: dual_vlm_node exited unexpectedly (exit status 0)')
    assert 'node.log' in first and log and all(line.startswith('  ') for line in log)
    assert not running.processes()


def test_images_that_cannot_be_read_are_named(demo, tmp_path):
    (tmp_path / 'photos').mkdir()
    (tmp_path / 'photos/broken.jpg').write_bytes(b'not an image')
    running = demo('--source', str(tmp_path / 'photos'))
    status, _, stderr = running.wait()
    assert status == 1
    assert 'error: image_player exited unexpectedly (exit status 2)' in stderr
    assert 'broken.jpg' in stderr
    assert not running.processes()


def test_model_that_cannot_be_loaded_is_named(demo, one_image, tmp_path):
    (tmp_path / 'no_model').mkdir()
    running = demo('--model', str(tmp_path / 'no_model'), '--source', one_image)
    status, _, stderr = running.wait()
    assert status == 1
    assert stderr.startswith('gmskip demo: error: the node reports an error: ')
    assert 'no_model' in stderr and len(stderr.splitlines()) == 1
    assert not running.processes()


def test_silence_has_a_deadline(demo, one_image):
    running = demo('--deadline-sec', '0.01', '--no-progress', '--source', one_image)
    status, stdout, stderr = running.wait()
    assert status == 1
    assert stdout == ''
    assert 'error: nothing new from the node' in stderr and '--deadline-sec' in stderr
    assert not running.processes()


def test_folder_that_cannot_be_written_to(demo, tmp_path):
    (tmp_path / 'out').write_text('a file where the folder should be')
    status, _, stderr = demo('--frames', '1').wait()
    assert status == 1
    assert stderr.startswith(f'gmskip demo: error: --out {tmp_path / "out"}: ')


def test_folder_in_which_nothing_can_be_created(demo):
    status, _, stderr = demo('--frames', '1', '--out', '/sys').wait()
    assert status == 1
    assert stderr.startswith('gmskip demo: error: --out /sys: ') and len(stderr.splitlines()) == 1


def test_folder_that_is_gone_at_the_end(tmp_path):
    with pytest.raises(LiveRunError, match=r'/gone/frames\.jsonl: .*--out'):
        _write(tmp_path / 'gone/frames.jsonl', b'')


@pytest.mark.parametrize(
    ('option', 'value'),
    [
        ('--frames', '0'),
        ('--frames', '1.5'),
        ('--rate-hz', 'nan'),
        ('--rate-hz', '-1'),
        ('--deadline-sec', '0'),
        ('--source', '/no/such/folder'),
    ],
)
def test_bad_options_are_named(demo, option, value):
    status, _, stderr = demo(option, value).wait()
    assert status == 2
    last_line = stderr.splitlines()[-1]
    assert f'argument {option}: {value!r} is not' in last_line
