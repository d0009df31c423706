"""`gmskip soak`: a run without a fault, leaks that are found, frames that are counted."""

from __future__ import annotations

import csv
import json
import math
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import psutil
import pytest
from fake_vlm import FakeVlm
from live_command import LiveCommand
from ros_process import free_domain_id

from gmskip_ros.cli.soak import ALLOWED_GROWTH_MIB, print_result
from gmskip_ros.datasets.scenes import render_scene
from gmskip_ros.pipeline import records
from gmskip_ros.pipeline.health import FRAME_COUNTERS
from gmskip_ros.pipeline.pipeline import FramePipeline, plan_frame
from gmskip_ros.pipeline.settings import settings_from
from gmskip_ros.runs import soak as soak_run
from gmskip_ros.runs.live import FIRST_SCENE_SEED
from gmskip_ros.runs.soak import run_soak
from gmskip_ros.runs.soak_record import Answer, HealthReport, Recorder, process_use
from gmskip_ros.runs.soak_result import Sample, Seen, SoakOptions, make_result, memory_picture
from gmskip_ros.runs.soak_verdicts import (
    duration_by_state,
    end_verdict,
    flat_verdict,
    frame_problems,
    medians,
    states_verdict,
)
from gmskip_ros.signals import StopSignals
from gmskip_ros.tasks import TASK_NAMES, make_task

VERDICTS = ['memory', 'open files', 'threads', 'frames', 'states', 'end']
LEAKING_NODE = Path(__file__).with_name('leaking_node.py')
QUICK = {  # node parameters for short answers, often
    'labels': ['scenes'],
    'tasks': ['single_object'],
    'branches': ['skip'],
    'rate_hz': 5.0,
    'max_new_tokens.single_object': 1,
}


@pytest.fixture
def soak(tmp_path: Path) -> Iterator:
    started: list[LiveCommand] = []

    def start(*options: str) -> LiveCommand:
        started.append(LiveCommand('soak', tmp_path / 'out', *options))
        return started[-1]

    yield start
    for running in started:
        running.kill_all()


# ---- real runs


def test_a_short_soak_holds(soak, tmp_path):
    running = soak('--minutes', '0.25', '--json')
    status, stdout, stderr = running.wait()
    assert stderr == '' and not running.processes()
    result = json.loads(stdout)
    assert result == json.loads((tmp_path / 'out/soak.json').read_text())
    verdicts = {verdict['name']: verdict for verdict in result['verdicts']}
    assert list(verdicts) == VERDICTS
    assert status == (0 if all(verdict['holds'] for verdict in verdicts.values()) else 1)
    for name in ('memory', 'open files', 'threads', 'frames', 'states'):
        assert verdicts[name]['holds'], verdicts[name]
    assert result['end']['status'] == 0  # how fast depends on the machine
    assert result['complete'] and result['stopped_by'] == ''

    frames = result['frames']
    assert set(result['messages'].values()) == {frames['answered']} and frames['answered'] >= 3
    assert sum(frames.values()) == 2 * frames['received']
    assert result['pictures'] > 0
    assert sum(result['states_s'].values()) == pytest.approx(result['measured_s'], abs=0.01)
    assert result['model'] == 'demo' and result['rate_hz'] == 1.0
    assert result['command'].startswith('gmskip soak --out ')
    for name in ('skip', 'full', 'age'):
        window = result['latency_ms'][name]['end']
        assert 0 < window['p50'] <= window['p95']

    rows = list(csv.DictReader((tmp_path / 'out/samples.csv').open()))
    assert 4 < len(rows) <= 15
    elapsed_s = [float(row['elapsed_s']) for row in rows]
    assert elapsed_s == sorted(elapsed_s) and elapsed_s[-1] < 15
    for row in rows:
        assert 100 < float(row['own_mib']) < float(row['rss_mib'])
        assert int(row['open_files']) > 5 and int(row['threads']) > 1
    assert rows[-1]['state'] in result['states_s']
    picture = cv2.imread(str(tmp_path / 'out/memory.png'))
    assert picture is not None and picture.std() > 5
    assert 'publishing' in (tmp_path / 'out/camera.log').read_text()


@pytest.mark.skipif(sys.platform != 'linux', reason='the parent-death signal is of Linux')
def test_killed_it_leaves_no_process_behind(soak, tmp_path):
    running = soak('--source', str(one_image(tmp_path)))

    def has_both() -> bool:
        commands = ' '.join(running.processes().values())
        return 'dual_vlm_node' in commands and 'image_player' in commands

    running.wait_until(has_both, 'node and camera')
    running.check_nothing_is_left_when_killed()


def one_image(folder: Path) -> Path:
    image = folder / 'scene.png'
    assert cv2.imwrite(str(image), render_scene(FIRST_SCENE_SEED).image)
    return image


class SendSignal:
    """A listener that sends SIGINT, after a time, to a child or, if none is named, to itself."""

    def __init__(self, after_s: float, command: str = '') -> None:
        self.after_s, self.command = after_s, command

    def status(self, text: str) -> None:
        pass

    def measured(self, elapsed_s: float, total_s: float, sample: Sample) -> None:
        if elapsed_s < self.after_s:
            return
        os.kill(child(self.command) if self.command else os.getpid(), signal.SIGINT)


def child(command: str) -> int:
    """Return the process id of this process's child with `command` in its command line."""
    for process in psutil.Process().children():
        if any(command in argument for argument in process.cmdline()):
            return process.pid
    raise AssertionError(f'no {command}')


def run_here(monkeypatch, tmp_path: Path, listener: SendSignal, *node_command: str) -> dict:
    """Run a soak of half an hour in this process, with one image for the camera."""
    monkeypatch.setenv('ROS_DOMAIN_ID', str(free_domain_id()))
    options = SoakOptions(
        minutes=30.0,
        camera_rate_hz=10.0,
        parameters=QUICK,
        source=one_image(tmp_path),
        out=tmp_path / 'out',
        allowed_growth_mib=ALLOWED_GROWTH_MIB,
        command='gmskip soak',
        node_command=node_command,
    )
    with StopSignals(hangup=True) as stop:
        return run_soak(options, stop, listener)


def test_leaks_are_found_and_a_signal_keeps_what_was_measured(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(soak_run, 'SAMPLE_PERIOD_S', 0.2)
    node = (sys.executable, str(LEAKING_NODE))
    result = run_here(monkeypatch, tmp_path, SendSignal(6.0), *node)
    holds = {verdict['name']: verdict['holds'] for verdict in result['verdicts']}
    assert not holds['memory'] and not holds['GPU memory'] and not holds['open files']
    assert holds['threads'] and holds['frames'] and holds['states']
    assert not result['complete'] and result['stopped_by'] == 'SIGINT'
    assert result['exit_status'] == 130
    assert 6 <= result['measured_s'] < result['minutes_asked'] * 60
    use = result['use']
    assert use['open_files']['end'] - use['open_files']['beginning'] >= 5
    assert result['messages'] == {'skip': result['frames']['answered'], 'comparison': 0}
    assert json.loads((tmp_path / 'out/soak.json').read_text()) == result
    assert (tmp_path / 'out/memory.png').stat().st_size > 0

    print_result(result, tmp_path / 'out')
    printed = capsys.readouterr().out
    assert 'not complete: 0.1 of 30 min were measured; stopped by SIGINT' in printed
    lines = [line.split() for line in printed.splitlines()]
    assert [line[0] for line in lines if line and line[0] in ('holds', 'FAILS')] == [
        'holds' if value else 'FAILS' for value in holds.values()
    ]
    assert str(tmp_path / 'out/soak.json') in printed


def test_a_node_that_exits_is_reported_with_what_was_measured(monkeypatch, tmp_path):
    result = run_here(monkeypatch, tmp_path, SendSignal(1.0, 'dual_vlm_node'))
    assert not result['complete']
    assert result['stopped_by'].startswith('dual_vlm_node exited unexpectedly (exit status 0); ')
    assert result['exit_status'] == 1
    verdicts = {verdict['name']: verdict for verdict in result['verdicts']}
    assert not verdicts['end']['holds'] and 'exited unexpectedly' in verdicts['end']['found']
    assert not verdicts['memory']['holds'] and 'too short' in verdicts['memory']['found']
    assert len((tmp_path / 'out/samples.csv').read_text().splitlines()) >= 2


def test_a_signal_before_the_first_answer(soak, tmp_path):
    running = soak('--minutes', '30', '--source', str(one_image(tmp_path)))
    running.wait_until(running.processes, 'a process')
    running.wait_until((tmp_path / 'out/node.log').exists, 'the log of the node')
    running.send_signal(signal.SIGINT)
    status, stdout, stderr = running.wait()
    assert (status, stdout) == (130, '')
    assert stderr == 'gmskip soak: stopped by SIGINT before the first answer\n'
    assert not running.processes()
    assert not (tmp_path / 'out/soak.json').exists()


def test_a_model_that_cannot_be_loaded_is_one_line(soak, tmp_path):
    (tmp_path / 'no_model').mkdir()
    picture = str(one_image(tmp_path))
    running = soak('--model', str(tmp_path / 'no_model'), '--source', picture)
    status, _, stderr = running.wait()
    assert status == 1
    assert stderr.startswith('gmskip soak: error: the node reports an error: ')
    assert 'no_model' in stderr and len(stderr.splitlines()) == 1
    assert not running.processes()


@pytest.mark.parametrize(
    ('options', 'words'),
    [
        (['--minutes', '0'], "argument --minutes: '0' is not"),
        (['--rate-hz', 'nan'], "argument --rate-hz: 'nan' is not"),
        (
            ['--source', '/no/such/pictures'],
            "argument --source: '/no/such/pictures' does not exist",
        ),
        (['--params-file', '/no/such/file'], '/no/such/file'),
    ],
)
def test_bad_options_are_named(soak, options, words):
    status, _, stderr = soak(*options).wait()
    assert status == 2
    assert words in stderr.splitlines()[-1]


# ---- how long did a branch take?


def test_the_time_of_a_shared_branch_counts_what_its_answers_share_once():
    vlm = FakeVlm()  # claims a millisecond per phase, and four of sharing
    tasks = [make_task(name) for name in TASK_NAMES]
    recorder = Recorder()
    for timing in ('isolated', 'shared'):
        pipeline = FramePipeline(vlm, plan_frame(vlm, tasks, {}, timing=timing))
        skip, _, comparison = pipeline.run(np.zeros((8, 8, 3), np.uint8))
        recorder.frame('skip', 0, records.result_statuses(skip, ''))
        recorder.frame('comparison', 0, records.comparison_statuses(comparison, ''))
    assert [(answer.timing, answer.busy_ms) for answer in recorder.answers] == [
        ('isolated', 8.0),
        ('isolated', 0.0),
        ('shared', 12.0),
        ('shared', 0.0),
    ]


def test_no_percentile_mixes_two_timings(tmp_path):
    recorder = Recorder()
    recorder.answers = [
        Answer('skip', index, index / 10, 100.0, busy_ms, timing)
        for index in range(100)
        for timing, busy_ms in (('isolated', 90.0), ('shared', 30.0))
    ]
    facts = {'model': 'demo', 'device': 'cpu', 'dtype': 'float32', 'quantization': 'none'}
    facts['num_blocks'] = '32'
    counted = {f'frames_{name}': '0' for name in FRAME_COUNTERS}
    values = {**facts, **counted, 'image_fit': 'pad', 'state': 'ready', 'reason': ''}
    recorder.reports = [HealthReport(0.0, values)]
    parameters = {**QUICK, 'timing': 'shared'}
    options = SoakOptions(1.0, 10.0, parameters, None, tmp_path, 16.0, 'gmskip soak')
    seen = Seen(recorder, measured_s=10.0)
    result = make_result(options, settings_from(parameters), seen)
    assert result['timing'] == 'shared'
    for window in ('beginning', 'end'):
        assert result['latency_ms']['skip'][window] == {'p50': 30.0, 'p95': 30.0}
    content = np.frombuffer(memory_picture(seen, {**result, 'model': 'long name ' * 15}), np.uint8)
    assert (cv2.imdecode(content, 0)[:, -1] == 255).all()  # the heading ends before the edge


# ---- is every frame answered once?

PERIOD_NS = 1_000_000_000
FIRST_NS = 1_795_000_000 * PERIOD_NS


def answers_to(*seconds: float, topics: tuple[str, ...] = ('skip', 'full', 'comparison')):
    """Return what a node publishes on frames of these seconds, 300 ms after their stamps."""
    return [
        Answer(topic, FIRST_NS + round(second * 1e9), second + 0.3, age_ms=300.0, busy_ms=200.0)
        for second in seconds
        for topic in topics
    ]


def counters(**some: int) -> dict[str, int]:
    """Return consistent counters, with ten frames gated."""
    values = {**dict.fromkeys(FRAME_COUNTERS, 0), 'gated': 10, **some}
    return {**values, 'received': sum(values.values())}


def problems(answers, counted, branches=('skip', 'full'), **options) -> list[str]:
    return frame_problems(
        answers, counted, branches=branches, period_ns=PERIOD_NS, stale_after_s=2.0, **options
    )


def test_frames_that_are_answered_once_are_not_a_problem():
    assert problems(answers_to(0, 1, 2), counters(answered=3, replaced=2)) == []
    assert problems(answers_to(0, 1, topics=('full',)), counters(answered=2), ('full',)) == []


def test_an_answer_that_comes_twice_is_found():
    for topic in ('skip', 'full', 'comparison'):
        answers = [*answers_to(0, 1, 2), *answers_to(2, topics=(topic,))]
        (problem,) = problems(answers, counters(answered=3))
        assert problem.startswith(f'{topic}: 1 frame (1795000002.000) answered more than once')


def test_an_answer_that_is_missing_is_found():
    for topic in ('skip', 'full', 'comparison'):
        answers = [a for a in answers_to(0, 1, 2) if (a.topic, a.arrived_s) != (topic, 1.3)]
        found = problems(answers, counters(answered=3))
        assert any(f'{topic}: no answer to 1 frame (1795000001.000)' in text for text in found)
        assert any('counts 3 frames as answered, its topics show 2' in text for text in found)


def test_a_frame_that_was_taken_and_never_answered_is_found():
    (problem,) = problems(answers_to(0, 1), counters(answered=3))
    assert problem == 'the node counts 3 frames as answered, its topics show 2'
    for name in ('undecodable', 'failed', 'abandoned'):
        (problem,) = problems(answers_to(0, 1), counters(answered=2, **{name: 1}))
        assert problem == f'1 taken but {name}'
    lost = {**counters(answered=2), 'received': 13}
    assert problems(answers_to(0, 1), lost) == ['of 13 frames received, 12 are accounted for']
    assert problems([], counters()) == ['no frame was answered']


def test_the_full_branch_may_give_way_only_where_the_node_says_so():
    answers = [*answers_to(0, 2), *answers_to(1, topics=('skip',))]
    answers.sort(key=lambda answer: answer.stamp_ns)
    assert problems(answers, counters(answered=2, full_dropped=1)) == []
    assert len(problems(answers, counters(answered=3))) == 3


def test_answers_out_of_order_are_found():
    found = problems(answers_to(0, 2, 1), counters(answered=3))
    assert [text.partition(':')[0] for text in found] == ['skip', 'full', 'comparison']
    assert all('1 frame (1795000001.000) out of order' in text for text in found)


def test_unexpected_answers_are_found():
    found = problems(answers_to(0, 1), counters(answered=2), branches=('skip',))
    assert len(found) == 4 and 'a message on full' in found[0]


def test_stale_answers_are_found():
    late = Answer('skip', FIRST_NS + 3 * PERIOD_NS, 8.0, age_ms=5000.0, busy_ms=200.0)
    answers = [*answers_to(0, 1), late, *answers_to(3, topics=('full', 'comparison'))]
    (problem,) = problems(answers, counters(answered=3))
    assert problem == ('1 frame (1795000003.000) stale: up to 4800 ms old when work on it began')
    slow = Answer('skip', late.stamp_ns, 8.0, age_ms=5000.0, busy_ms=4900.0)
    assert (
        problems(
            [*answers_to(0, 1), slow, *answers_to(3, topics=('full', 'comparison'))],
            counters(answered=3),
        )
        == []
    )


def test_a_bag_starts_over_with_the_same_stamps():
    twice = [*answers_to(0, 1, 2), *answers_to(0, 1, 2)]
    assert problems(twice, counters(answered=6), repeats=True) == []
    assert problems(twice, counters(answered=6)) != []
    (problem,) = problems(
        [*twice, *answers_to(2, topics=('full',))], counters(answered=6), repeats=True
    )
    assert problem.startswith('full: 1 frame') and 'more than once' in problem


def test_counters_are_not_compared_before_they_are_final():
    (problem,) = problems(answers_to(0, 1), counters(answered=1), at_rest=False)
    assert 'not come to rest' in problem


# ---- flat series, states, the end


def test_flat_is_judged_by_the_second_and_the_last_fifth():
    times_s = list(range(100))
    warm_up = [min(time_s, 20) * 50.0 for time_s in times_s]  # steep, then flat
    both = medians(times_s, warm_up, 100.0)
    assert both == (1000.0, 1000.0)
    assert flat_verdict('memory', both, 0.0, 'MiB').holds
    slow = [1000.0 + 0.5 * time_s for time_s in times_s]
    verdict = flat_verdict('memory', medians(times_s, slow, 100.0), 16.0, 'MiB')
    assert not verdict.holds and '+29.8 (allowed +16)' in verdict.found
    spike = [1000.0 + 500.0 * (time_s == 95) for time_s in times_s]
    assert flat_verdict('memory', medians(times_s, spike, 100.0), 0.0).holds
    less = flat_verdict('open files', (20.0, 18.0), 0.0)
    assert less.holds and less.found == ('20 at the beginning, 18 at the end: -2 (allowed +0)')
    assert medians([0.0, 1.0], [1.0, 1.0], 2.0) is None
    assert medians(times_s, [math.nan] * 100, 100.0) is None


def test_states_and_their_time():
    states = [(0.0, 'no_frames'), (1.0, 'ready'), (2.0, 'ready'), (3.5, 'overload'), (7.0, 'error')]
    reports = [HealthReport(arrived_s, {'state': state}) for arrived_s, state in states]
    states_s, silence_s = duration_by_state(reports, 0.0, 5.0)
    assert states_s == {'no_frames': 1.0, 'ready': 2.5, 'overload': 1.5} and silence_s == 1.5
    assert states_verdict(states_s, '', silence_s).holds
    assert not states_verdict({**states_s, 'error': 1.0}, '', silence_s).holds
    assert not states_verdict(states_s, 'error: NaN', silence_s).holds
    assert duration_by_state(reports, 1.5, 3.0) == ({'ready': 1.5}, 1.0)
    states_s, silence_s = duration_by_state(reports[:4], 0.0, 60.0)
    silent = states_verdict(states_s, '', silence_s)
    assert not silent.holds and 'silent on /diagnostics for 56.5 s' in silent.found


def test_the_end():
    assert end_verdict(0, 0.3).holds
    assert not end_verdict(0, 2.1).holds
    assert not end_verdict(134, 0.3).holds
    assert 'killed' in end_verdict(None, 10.0).found and not end_verdict(None, 10.0).holds


def test_the_use_of_a_process_is_read_from_outside():
    pid = os.getpid()
    before = process_use(pid)
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    block = b'\x01' * (128 << 20)
    with open(os.devnull):
        after = process_use(pid)
    stop.set()
    thread.join()
    assert len(block) and after.own_mib - before.own_mib > 100
    assert after.rss_mib - before.rss_mib > 100 and after.rss_mib > after.own_mib
    assert after.open_files == before.open_files + 1
    assert after.threads == before.threads + 1
    ended = subprocess.Popen(['true'])
    ended.wait()
    with pytest.raises(psutil.Error):
        process_use(ended.pid)
