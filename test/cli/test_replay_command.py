"""The real `gmskip replay` on real bags: which frames, which answers, which files."""

from __future__ import annotations

import csv
import dataclasses
import errno
import functools
import importlib
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import pytest
from bag_files import (
    PERIOD_NS,
    START_NS,
    Recorded,
    jpeg_image,
    raw_image,
    read_metadata,
    text_message,
    write_bag,
)
from rosbags.highlevel import AnyReader
from tiny_models import make_tiny_model

from gmskip_ros.cli.main import main
from gmskip_ros.datasets.scenes import render_scene
from gmskip_ros.pipeline.rows import FrameRow, csv_bytes, read_json_lines
from gmskip_ros.skipping import SkipSet, load_skip_list, save_skip_list
from gmskip_ros.tasks import make_task
from gmskip_ros.vlm import Vlm, load_vlm

TOPIC = '/front/image_raw/compressed'
SECOND_NS = 1_000_000_000
JUMP_AT, BROKEN_AT = 22, 10  # frames 22 and later are stamped 30 s earlier
FIRST_SEED = 70_000_000


def scene(number: int) -> Any:
    """Return the image of frame `number`: a new one every half second; uint8 RGB."""
    return rendered(FIRST_SEED + number // 5)


@functools.cache
def rendered(seed: int) -> Any:
    return render_scene(seed).image


def stamp_ns(number: int) -> int:
    return START_NS + number * PERIOD_NS - (30 * SECOND_NS if number >= JUMP_AT else 0)


def drive(count: int = 40) -> list[Recorded]:
    """Return a camera's messages at 10 Hz, with a broken JPEG and a jump back in time."""
    return [
        Recorded(
            START_NS + number * PERIOD_NS,
            jpeg_image(scene(number), stamp_ns(number), broken=number == BROKEN_AT),
        )
        for number in range(count)
    ]


def due_frames(numbers: range, period_ns: int = SECOND_NS) -> list[int]:
    """Return the frames that the gate takes, by an independent implementation."""
    due, last, newest = [], None, None
    for number in numbers:
        stamp = stamp_ns(number)
        if newest is not None and newest - stamp > period_ns:
            last = None
        newest = stamp
        if last is None or stamp // period_ns > last // period_ns:
            due.append(number)
            last = stamp
    return due


def replay(*arguments: object) -> int:
    return main(['replay', *map(str, arguments), '--no-progress'])


def answers(rows: list[FrameRow]) -> list[tuple[object, ...]]:
    """Return what must be the same in every run: everything but the times."""
    return [
        (
            row.frame,
            row.stamp_ns,
            row.task,
            row.branch,
            row.operating_point,
            row.answer,
            row.raw_text,
            row.tokens,
            row.skipped_blocks,
            row.agree,
            row.jaccard,
            row.rouge_l,
        )
        for row in rows
    ]


@pytest.fixture(scope='module')
def bag(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('bags')
    return write_bag(folder / 'drive', {TOPIC: drive()}, storage='mcap')


@pytest.fixture(scope='module')
def out(bag: Path) -> Path:
    """Return the results of both branches on two tasks, with two operating points."""
    folder = bag.parent / 'out'
    status = replay(
        bag,
        '--out',
        folder,
        '--task',
        'single_object,captioning',
        '--labels',
        'scenes',
        '--operating-point',
        'high_performance,4',
    )
    assert status == 0
    return folder


@pytest.fixture(scope='module')
def tiny_model(bag: Path) -> Path:
    """Return a random model of four blocks, for tests that are not about the answers."""
    return make_tiny_model(bag.parent / 'tiny_model')


@pytest.fixture(scope='module')
def vlm() -> Vlm:
    return load_vlm('demo')


def test_how_frames_are_fitted_is_the_option_s_and_recorded(bag, tiny_model, tmp_path) -> None:
    template = tmp_path / 'chat.jinja'
    template.write_text("Q: <image> {{ messages[0]['content'][1]['text'] }} A:")
    texts = {}
    for fit, recorded in (('auto', 'pad'), ('squash', 'squash')):
        out = tmp_path / fit
        options = ('--out', out, '--model', tiny_model, '--task', 'captioning', '--limit', 1)
        status = replay(bag, *options, '--image-fit', fit, '--chat-template', template)
        rows = read_json_lines(out / 'frames.jsonl')
        assert (status, {row.image_fit for row in rows}) == (0, {recorded})
        assert {row.image_tokens for row in rows} == {4}
        assert json.loads((out / 'replay.json').read_text())['image_fit'] == recorded
        texts[fit] = [row.raw_text for row in rows]
    assert texts['auto'] != texts['squash']


def test_the_frames_are_those_of_the_gate(out: Path) -> None:
    due = due_frames(range(40))
    assert BROKEN_AT in due and JUMP_AT in due  # or this test would prove less
    rows = read_json_lines(out / 'frames.jsonl')
    expected = [number for number in due if number != BROKEN_AT]
    assert list(dict.fromkeys(row.stamp_ns for row in rows)) == [stamp_ns(n) for n in expected]
    assert {row.frame for row in rows} == set(range(1, len(expected) + 1))
    counts = json.loads((out / 'replay.json').read_text())['frames']
    assert counts == {
        'in_bag': 40,
        'gated': 40 - len(due),
        'out_of_order': 0,
        'unreadable': 0,
        'due': len(due),
        'answered': len(expected),
        'undecodable': 1,
        'failed': 0,
        'resets': 1,
    }


def test_the_answers_are_the_models_own(out: Path, vlm: Vlm) -> None:
    rows = read_json_lines(out / 'frames.jsonl')
    task = make_task('captioning')
    jpeg = jpeg_image(scene(0), stamp_ns(0)).data
    picture = cv2.cvtColor(cv2.imdecode(jpeg, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    first = {(row.task, row.branch, row.operating_point): row for row in rows if row.frame == 1}
    skip_list = load_skip_list('demo_captioning')
    for branch, point in (('skip', 'high_performance'), ('skip', '4'), ('full', '0')):
        row = first['captioning', branch, point]
        blocks = skip_list.blocks_at(point) if branch == 'skip' else ()
        answer = vlm.answer(picture, task.prompt, list(blocks), task.max_new_tokens)
        assert (row.raw_text, row.tokens) == (answer.text, len(answer.token_ids))
        assert row.skipped_blocks == tuple(blocks) and row.vision_shared
        assert row.sparsity == pytest.approx(len(blocks) / vlm.num_blocks, abs=1e-3)
        phases = row.preprocess_ms + row.vision_ms + row.prefill_ms + row.decode_ms
        assert row.total_ms == pytest.approx(phases, abs=0.01)


def test_a_list_that_skips_in_decode_only(bag: Path, tmp_path: Path, vlm: Vlm) -> None:
    made = dataclasses.replace(load_skip_list('gmskip_captioning'), phases=('decode',))
    save_skip_list(made, tmp_path / 'decode.skip.yaml')
    folder = tmp_path / 'out'
    given = f'captioning={tmp_path / "decode.skip.yaml"}'
    options = ('--task', 'captioning', '--skip-list', given, '--limit', 1)
    assert replay(bag, '--out', folder, *options, '--operating-point', 'high_sparsity') == 0
    skip, _ = read_json_lines(folder / 'frames.jsonl')
    jpeg = jpeg_image(scene(0), stamp_ns(0)).data
    picture = cv2.cvtColor(cv2.imdecode(jpeg, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    task, blocks = make_task('captioning'), made.blocks_at('high_sparsity')
    answer = vlm.answer(picture, task.prompt, SkipSet(decode=blocks), task.max_new_tokens)
    assert (skip.raw_text, skip.tokens) == (answer.text, len(answer.token_ids))
    assert skip.skipped_blocks == blocks
    (entry,) = json.loads((folder / 'replay.json').read_text())['skip_sets']
    assert (entry['blocks'], entry['skipped_in']) == (list(blocks), 'decode')
    assert 'Skipped in' in (folder / 'report.html').read_text()


def test_agreement_is_with_full_on_the_same_frame(out: Path) -> None:
    rows = read_json_lines(out / 'frames.jsonl')
    full = {(row.frame, row.task): row for row in rows if row.branch == 'full'}
    skips = [row for row in rows if row.branch == 'skip']
    assert len(skips) == 2 * len(full)
    for row in skips:
        other = full[row.frame, row.task]
        if row.task == 'single_object':
            assert row.agree is (row.answer == other.answer) and row.rouge_l is None
        else:
            assert row.agree is (row.raw_text == other.raw_text)
            assert row.rouge_l is not None and (row.rouge_l == 1.0) >= bool(row.agree)
    assert all(row.agree is None for row in full.values())


def test_table_and_lines_hold_the_same(out: Path) -> None:
    rows = read_json_lines(out / 'frames.jsonl')
    assert (out / 'frames.csv').read_bytes() == csv_bytes(rows)
    with (out / 'frames.csv').open(newline='') as file:
        assert len(list(csv.DictReader(file))) == len(rows)


def read_results(folder: Path) -> list[tuple[str, int, Any]]:
    """Return the topic, recording time and message of everything in a bag, by rosbags alone."""
    with AnyReader([folder]) as reader:
        return [
            (connection.topic, time_ns, reader.deserialize(raw, connection.msgtype))
            for connection, time_ns, raw in reader.messages()
        ]


def test_the_result_bag_holds_what_the_node_would_publish(out: Path) -> None:
    metadata = read_metadata(out / 'bag')
    assert metadata['version'] == 8 and metadata['storage_identifier'] == 'sqlite3'
    profiles = {
        entry['topic_metadata']['offered_qos_profiles']
        for entry in metadata['topics_with_message_count']
    }
    assert len(profiles) == 1 and 'reliability: 1' in profiles.pop()
    messages = read_results(out / 'bag')
    rows = read_json_lines(out / 'frames.jsonl')
    by_key = {(row.stamp_ns, f'{row.task}/{row.branch}', row.operating_point): row for row in rows}
    seen = 0
    for topic, _, message in messages:
        if not topic.endswith('/result'):
            continue
        stamp = message.header.stamp.sec * SECOND_NS + message.header.stamp.nanosec
        assert message.header.frame_id == 'camera'
        for status in message.status:
            values = {value.key: value.value for value in status.values}
            row = by_key[stamp, status.name, values['operating_point']]
            assert (values['raw_text'], status.message) == (row.raw_text, row.answer)
            assert float(values['total_ms']) == row.total_ms
            assert values['format'] == 'gmskip/result/1'
            seen += 1
    # Two namespaces, as two nodes would have, each with its own full branch.
    assert seen == sum(2 if row.branch == 'full' else 1 for row in rows)
    nodes = {topic.split('/dual_vlm/')[0] for topic, _, _ in messages}
    assert nodes == {'/high_performance', '/blocks_4'}


def test_one_operating_point_has_the_nodes_own_names(
    bag: Path, tmp_path: Path, probe_topics: set[str]
) -> None:
    assert replay(bag, '--out', tmp_path / 'out', '--limit', 1, '--task', 'captioning') == 0
    messages = read_results(tmp_path / 'out/bag')
    assert {topic for topic, _, _ in messages} <= probe_topics
    assert {
        '/dual_vlm/output/skip/result',
        '/dual_vlm/output/full/result',
        '/dual_vlm/output/comparison',
        '/dual_vlm/debug/image/compressed',
        '/dual_vlm/debug/skip/captioning/text',
        '/dual_vlm/debug/full/captioning/latency_ms',
    } <= {topic for topic, _, _ in messages}
    # Processing times are std_msgs/Float64 whatever a node would publish.
    times = {t: m for t, _, m in messages if t.endswith('/processing_time_ms')}
    assert {m.__msgtype__ for m in times.values()} == {'std_msgs/msg/Float64'}
    branches = [times[f'/dual_vlm/debug/{b}/processing_time_ms'].data for b in ('skip', 'full')]
    assert max(branches) < times['/dual_vlm/debug/processing_time_ms'].data < sum(branches) + 1e3
    (picture,) = [m for topic, _, m in messages if topic.endswith('/compressed')]
    drawn = cv2.imdecode(picture.data, cv2.IMREAD_COLOR)
    height = drawn.shape[0]
    original = cv2.cvtColor(scene(0), cv2.COLOR_RGB2BGR)
    assert drawn.shape == original.shape
    top, bottom = slice(0, height // 10), slice(height // 2, None)
    assert cv2.absdiff(drawn[top], original[top]).mean() > 20 > 10
    assert cv2.absdiff(drawn[bottom], original[bottom]).mean() < 10


@pytest.fixture(scope='session')
def probe_topics() -> set[str]:
    """Return the topics that the node's code names, with all tasks and branches."""
    from gmskip_ros.pipeline import records
    from gmskip_ros.tasks import TASK_NAMES

    patterns = [value for name, value in vars(records).items() if name.endswith('_TOPIC')]
    return {
        pattern.format(branch=branch, task=task).replace('~', '/dual_vlm', 1)
        for pattern in patterns
        for branch in ('skip', 'full')
        for task in TASK_NAMES
    }


def test_the_same_bag_gives_the_same_answers(out: Path, bag: Path, tmp_path: Path) -> None:
    again = tmp_path / 'again'
    assert (
        replay(
            bag,
            '--out',
            again,
            '--task',
            'single_object,captioning',
            '--labels',
            'scenes',
            '--operating-point',
            'high_performance,4',
            '--limit',
            2,
        )
        == 0
    )
    first = read_json_lines(out / 'frames.jsonl')
    second = read_json_lines(again / 'frames.jsonl')
    assert {row.frame for row in second} == {1, 2}
    assert answers(second) == answers(first)[: len(second)]


def test_raw_frames_with_padding_and_a_choice_of_topics(
    tmp_path: Path, vlm: Vlm, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = [
        Recorded(
            START_NS + i * SECOND_NS,
            raw_image(scene(i), START_NS + i * SECOND_NS, encoding='bgr8', padding=7),
        )
        for i in range(6)
    ]
    bag = write_bag(
        tmp_path / 'two',
        {'/a/image_raw': raw, TOPIC: drive(3)},
        empty_topics={'/tf': 'std_msgs/msg/String'},
    )
    assert replay(bag, '--out', tmp_path / 'x') == 2
    error = capsys.readouterr().err
    assert '/a/image_raw' in error and TOPIC in error and 'several' in error
    assert len(error.splitlines()) == 1
    options = ('--topic', '/a/image_raw', '--task', 'single_object', '--labels', 'scenes')
    window = ('--start', 1, '--duration', 3, '--rate', 0.5)
    assert replay(bag, '--out', tmp_path / 'y', *options, *window) == 0
    rows = read_json_lines(tmp_path / 'y/frames.jsonl')
    # From 1 s on for 3 s there are frames 1, 2 and 3; at 0.5 Hz the third is of the same period.
    stamps = list(dict.fromkeys(row.stamp_ns for row in rows))
    expected, last = [], None
    for number in (1, 2, 3):
        period = (START_NS + number * SECOND_NS) // (2 * SECOND_NS)
        if last is None or period > last:
            expected.append(number)
            last = period
    assert stamps == [START_NS + number * SECOND_NS for number in expected]
    task = make_task('single_object', labels=['scenes'])
    answer = vlm.answer(scene(expected[0]), task.prompt, [], task.max_new_tokens)
    full = next(row for row in rows if row.branch == 'full')
    assert full.raw_text == answer.text


def test_options_take_precedence_over_the_nodes_parameter_file(bag: Path, tmp_path: Path) -> None:
    file = tmp_path / 'my.param.yaml'
    file.write_text(
        '/**:\n  ros__parameters:\n    tasks: [captioning, single_object]\n    branches: [skip]\n'
        '    rate_hz: 5.0\n    operating_point: 3\n    max_new_tokens: {captioning: 4}\n'
        '    skip_list: {captioning: gmskip_captioning}\n    image_transport: raw\n'
        '    caption_agreement: 0.25\n'
    )
    assert (
        replay(
            bag,
            '--out',
            tmp_path / 'out',
            '--params-file',
            file,
            '--task',
            'captioning',
            '--match',
            'strict',
            '--limit',
            2,
        )
        == 0
    )
    rows = read_json_lines(tmp_path / 'out/frames.jsonl')
    assert [row.stamp_ns for row in rows[::2]] == [stamp_ns(0), stamp_ns(2)]
    assert {f'{row.task}/{row.branch}' for row in rows} == {'captioning/skip', 'captioning/full'}
    published = load_skip_list('gmskip_captioning').blocks_at(3)
    assert rows[0].skipped_blocks == tuple(published) and rows[0].operating_point == '3'
    assert all(row.tokens <= 4 for row in rows)
    run = json.loads((tmp_path / 'out/replay.json').read_text())
    assert run['skip_sets'][0]['skip_list'] == 'gmskip_captioning'
    assert run['source']['rate_hz'] == 5.0 and run['caption_agreement'] == 0.25
    assert 'captioning on a ROUGE-L of at least 0.25' in (tmp_path / 'out/report.html').read_text()
    assert {row.match for row in rows} == {run['tasks']['captioning']['match']} == {'strict'}


def replay_process(*arguments: object, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, '-m', 'gmskip_ros.cli.main', 'replay', *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


@pytest.mark.parametrize(('signum', 'status'), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_in_the_middle_it_leaves_a_valid_part(
    tmp_path: Path, bag: Path, out: Path, signum: int, status: int
) -> None:
    folder = tmp_path / 'part'
    process = replay_process(
        bag,
        '--out',
        folder,
        '--rate',
        10,
        '--labels',
        'scenes',
        '--task',
        'single_object,captioning',
        '--operating-point',
        'high_performance,4',
    )
    lines = folder / 'frames.jsonl'
    deadline = time.monotonic() + 120
    while not (lines.exists() and lines.stat().st_size):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signum)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == status, stderr
    assert 'stopped' in stderr and 'Traceback' not in stderr
    run = json.loads((folder / 'replay.json').read_text())
    assert not run['complete'] and run['stopped_by'] == signal.Signals(signum).name
    rows = read_json_lines(lines)
    assert rows and (folder / 'frames.csv').read_bytes() == csv_bytes(rows)
    assert run['frames']['answered'] == rows[-1].frame < 40
    page = (folder / 'report.html').read_text()
    assert signal.Signals(signum).name in page and re.search('partial|not complete|part', page)
    assert {
        message.header.stamp.sec
        for topic, _, message in read_results(folder / 'bag')
        if topic.endswith('/comparison')
    }
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        ['bag', 'frames.csv', 'frames.jsonl', 'latency.png', 'replay.json', 'report.html']
    )
    # The answers so far are those of the whole run (here at 10 Hz: on the same first frame).
    whole = [row for row in read_json_lines(out / 'frames.jsonl') if row.frame == 1]
    assert answers(rows)[: len(whole)] == answers(whole)


def test_a_full_disk_is_one_line_and_what_was_answered_stays(
    tmp_path: Path, bag: Path, tiny_model: Path
) -> None:
    size = 150_000  # bytes: the bag of results does not fit, the table does
    process = replay_process(
        bag,
        '--model',
        tiny_model,
        '--out',
        tmp_path / 'out',
        '--rate',
        10,
        '--task',
        'single_object',
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)),
    )
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 2 and 'Traceback' not in stderr
    assert str(tmp_path / 'out') in stderr.splitlines()[-1]
    rows = read_json_lines(tmp_path / 'out/frames.jsonl')
    assert 0 < rows[-1].frame < 40
    # The bag has whole frames only, as many as the disk had space for.
    topics = Counter(topic for topic, _, _ in read_results(tmp_path / 'out/bag'))
    assert set(topics.values()) == {rows[-1].frame - 1} and len(topics) == 11
    assert not list((tmp_path / 'out').glob('.*'))


WITHOUT_ROS = """
import sys
class NoRos:
    def find_spec(self, name, *_):
        if name.partition('.')[0] in ('rclpy', 'sensor_msgs', 'std_msgs', 'diagnostic_msgs',
                                      'cv_bridge', 'rcl_interfaces', 'std_srvs', 'rosgraph_msgs'):
            raise ModuleNotFoundError(f'No module named {name!r}', name=name)
sys.meta_path.insert(0, NoRos())
from gmskip_ros.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


def test_it_runs_without_ros(bag: Path, tmp_path: Path, tiny_model: Path) -> None:
    done = subprocess.run(
        [
            sys.executable,
            '-c',
            WITHOUT_ROS,
            'replay',
            bag,
            '--model',
            tiny_model,
            '--out',
            tmp_path / 'out',
            '--limit',
            '1',
            '--task',
            'single_object',
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert 'single_object' in done.stdout and str(tmp_path / 'out/report.html') in done.stdout


def test_earlier_results_are_kept_without_overwrite(
    out: Path, bag: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    before = (out / 'frames.jsonl').read_bytes()
    assert replay(bag, '--out', out) == 2
    error = capsys.readouterr().err
    assert '--overwrite' in error and str(out) in error and len(error.splitlines()) == 1
    assert (out / 'frames.jsonl').read_bytes() == before
    options = ('--task', 'single_object', '--limit', 1)
    assert replay(bag, '--out', tmp_path / 'out', *options) == 0
    assert replay(bag, '--out', tmp_path / 'out', *options, '--overwrite') == 0
    assert {row.frame for row in read_json_lines(tmp_path / 'out/frames.jsonl')} == {1}
    # A replay that fails early keeps the earlier results, and no bag is replaced by its own result.
    capsys.readouterr()
    assert replay(bag, '--out', tmp_path / 'out', '--operating-point', 30, '--overwrite') == 2
    assert '30' in capsys.readouterr().err
    results = tmp_path / 'out/bag'
    before = read_results(results)
    topic = '/dual_vlm/debug/image/compressed'
    assert replay(results, '--topic', topic, '--out', tmp_path / 'out', '--overwrite') == 2
    assert str(results) in capsys.readouterr().err
    assert len(read_results(results)) == len(before) > 0


def test_a_part_without_frames_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = {'/words': [Recorded(START_NS, text_message('hello'))]}
    empty = {TOPIC: 'sensor_msgs/msg/CompressedImage'}
    bag = write_bag(tmp_path / 'empty', words, empty_topics=empty)
    assert replay(bag, '--out', tmp_path / 'a', '--task', 'single_object') == 1
    assert f'the bag has none on {TOPIC}' in capsys.readouterr().err
    assert not list((tmp_path / 'a').iterdir())
    bag = write_bag(tmp_path / 'short', {TOPIC: drive(3)})
    options = ('--task', 'single_object', '--start', 9)
    assert replay(bag, '--out', tmp_path / 'b', *options) == 1
    assert 'none of the 3' in capsys.readouterr().err


@pytest.mark.parametrize('cause', ['no frame in the part', 'no space for the report'])
def test_a_replay_without_a_first_frame_keeps_earlier_results(
    tmp_path: Path,
    bag: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    cause: str,
) -> None:
    options = ('--task', 'single_object', '--limit', 1, '--out', tmp_path / 'out')
    assert replay(bag, *options) == 0
    before = {path: path.read_bytes() for path in (tmp_path / 'out').rglob('*') if path.is_file()}
    capsys.readouterr()
    if cause == 'no frame in the part':
        assert replay(bag, *options, '--overwrite', '--start', 1000) == 1
        assert 'nothing is written' in capsys.readouterr().err
    else:

        def full(*_: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, 'posix_fallocate', full)
        assert replay(bag, *options, '--overwrite') == 2
        assert 'No space left on device' in capsys.readouterr().err
    after = {path: path.read_bytes() for path in (tmp_path / 'out').rglob('*') if path.is_file()}
    assert after == before


def test_frames_without_a_stamp_use_the_recording_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frames = [Recorded(START_NS + i * SECOND_NS, jpeg_image(scene(i), 0)) for i in range(3)]
    bag = write_bag(tmp_path / 'drive', {TOPIC: frames})
    assert replay(bag, '--out', tmp_path / 'out', '--task', 'single_object') == 0
    assert capsys.readouterr().err.count('no stamp') == 1
    rows = read_json_lines(tmp_path / 'out/frames.jsonl')
    assert {row.stamp_ns for row in rows} == {frame.time_ns for frame in frames}


def test_damage_to_the_bag_is_reported_beside_any_number_of_broken_frames(
    tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frames = [
        Recorded(
            START_NS + i * SECOND_NS, jpeg_image(scene(0), START_NS + i * SECOND_NS, broken=i > 0)
        )
        for i in range(230)
    ]
    bag = write_bag(tmp_path / 'drive', {TOPIC: frames})
    (bag / 'metadata.yaml').unlink()
    options = ('--model', tiny_model, '--task', 'single_object')
    assert replay(bag, '--out', tmp_path / 'out', *options) == 0
    assert 'metadata.yaml: missing' in capsys.readouterr().err
    problems = json.loads((tmp_path / 'out/replay.json').read_text())['problems']
    assert 'metadata.yaml: missing' in problems[0] and problems[-1] == '29 more like these'
    assert len(problems) == 1 + 200 + 1


@pytest.mark.parametrize('moment', ['options', 'opening', 'loading', 'writing the report'])
def test_a_signal_outside_of_the_frames(
    tmp_path: Path,
    moment: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    where = {
        'options': 'gmskip_ros.pipeline.settings.load_skip_lists',
        'opening': 'gmskip_ros.bags.reading.open_camera_bag',
        'loading': 'gmskip_ros.runs.replay.load_vlm',
        'writing the report': 'gmskip_ros.runs.replay.write_run',
    }[moment]
    module, _, name = where.rpartition('.')
    real = getattr(importlib.import_module(module), name)

    def interrupted(*args: Any, **options: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return real(*args, **options)

    monkeypatch.setattr(where, interrupted)
    bag = write_bag(tmp_path / 'drive', {TOPIC: drive(1)})
    status = replay(bag, '--out', tmp_path / 'out', '--task', 'single_object')
    error = capsys.readouterr().err
    if moment == 'writing the report':  # too late to stop: the run is complete
        assert (status, error) == (0, '')
        assert json.loads((tmp_path / 'out/replay.json').read_text())['complete']
    else:
        # At once; while the model is loaded, the message says that there is no frame yet.
        assert status == 143 and len(error.splitlines()) == 1
        assert ('before the first frame' in error) is (moment == 'loading')
        assert not (tmp_path / 'out/frames.jsonl').exists()


def test_a_bag_of_broken_frames_ends_with_a_report_of_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frames = [
        Recorded(
            START_NS + i * SECOND_NS, jpeg_image(scene(i), START_NS + i * SECOND_NS, broken=True)
        )
        for i in range(30)
    ]
    bag = write_bag(tmp_path / 'broken', {TOPIC: frames})
    assert replay(bag, '--out', tmp_path / 'out', '--task', 'single_object') == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 20 + 2 and 'no frame was answered' in lines[-1]
    run = json.loads((tmp_path / 'out/replay.json').read_text())
    assert run['frames']['undecodable'] == 30 == len(run['problems'])
    assert '30' in (tmp_path / 'out/report.html').read_text()


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        (['no_such_bag'], ['no_such_bag']),
        (['BAG', '--topic', '/nowhere'], ['/nowhere', TOPIC]),
        (['BAG', '--topic', '/words'], ['/words', 'std_msgs/msg/String']),
        (['WORDS'], ['no sensor_msgs/msg/Image', '/words']),
        (['BAG', '--rate', '0'], ['rate_hz', '0']),
        (['BAG', '--start', '-1'], ['--start -1']),
        (['BAG', '--duration', 'nan'], ['--duration nan']),
        (['BAG', '--limit', '0'], ['--limit 0']),
        (['BAG', '--task', 'poetry'], ['poetry', 'single_object']),
        (['BAG', '--labels', 'car,car'], ['labels']),
        (['BAG', '--skip-list', 'demo_captioning'], ['demo_captioning', 'TASK=FILE']),
        (['BAG', '--skip-list', 'captioning=none.yaml'], ['skip_list.captioning', 'none.yaml']),
        (['BAG', '--operating-point', 'best'], ['best', 'high_performance']),
        (['BAG', '--operating-point', '8,8'], ['8,8', 'twice']),
        (['BAG', '--operating-point', '31'], ['31', 'single_object']),
        (['BAG', '--model', 'no/such/model'], ['no/such/model']),
        (['BAG', '--params-file', 'no.yaml'], ['no.yaml']),
        (['ROWS'], ['--against']),
        (['ROWS', '--against', 'none.jsonl'], ['none.jsonl']),
        (['ROWS', '--against', 'ROWS', '--rate', '2'], ['--rate', '--against']),
        (['ROWS', '--against', 'ROWS', '--overwrite'], ['--overwrite', '--out']),
        (
            ['ROWS', '--against', 'ROWS', '--out', 'RUN', '--overwrite'],
            ['--out', 'one of the runs'],
        ),
        (['BAG', '--out', '/proc/nowhere'], ['/proc/nowhere', '--out']),
    ],
)
def test_what_cannot_be_done_is_one_line(
    bag: Path,
    out: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    words: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    words_bag = [Recorded(START_NS, text_message('hello'))]
    both = {'/words': words_bag, TOPIC: drive(1)}
    named = {
        'BAG': lambda: write_bag(tmp_path / 'bag', both),
        'WORDS': lambda: write_bag(tmp_path / 'words', {'/words': words_bag}),
        'ROWS': lambda: out / 'frames.jsonl',
        'RUN': lambda: out,
    }
    status = main(['replay', *(str(named[a]()) if a in named else a for a in arguments)])
    error = capsys.readouterr().err
    assert status == 2 and len(error.splitlines()) == 1, error
    assert all(word in error for word in words), error


def test_two_runs_against_each_other(
    out: Path, bag: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / 'other'
    options = ('--task', 'single_object,captioning', '--labels', 'scenes', '--limit', 2)
    assert replay(bag, '--out', other, *options, '--operating-point', 'high_sparsity') == 0
    mine = tmp_path / 'mine'
    assert replay(bag, '--out', mine, *options, '--operating-point', 'high_performance') == 0
    capsys.readouterr()
    status = main(
        [
            'replay',
            str(mine),
            '--against',
            str(other / 'frames.jsonl'),
            '--out',
            str(tmp_path / 'compared'),
        ]
    )
    printed = capsys.readouterr()
    assert (status, printed.err) == (0, '')
    result = json.loads((tmp_path / 'compared/comparison.json').read_text())
    a, b = (
        {(r.stamp_ns, r.task, r.branch): r for r in read_json_lines(folder / 'frames.jsonl')}
        for folder in (mine, other)
    )
    changed = {key for key in a if a[key].raw_text != b[key].raw_text and key[1] == 'captioning'}
    changed |= {key for key in a if a[key].answer != b[key].answer and key[1] != 'captioning'}
    listed = {(c['stamp_ns'], c['task'], c['branch']) for c in result['changes']}
    assert listed == changed and all(branch == 'skip' for _, _, branch in changed)
    assert (tmp_path / 'compared/report.html').exists() and 'captioning' in printed.out
