"""`gmskip calibrate` killed, stopped and started again, in real processes with the demo model."""

from __future__ import annotations

import fcntl
import os
import pty
import random
import signal
import struct
import subprocess
import termios
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from calibrate_process import (
    CalibrateProcess,
    command_line,
    found,
    leftovers,
    read_json,
    start,
)

from gmskip_ros.calibration import checkpoint as checkpoint_module
from gmskip_ros.calibration.run import calibrate
from gmskip_ros.calibration.settings import CalibrationSettings, SearchSettings
from gmskip_ros.cli import main
from gmskip_ros.datasets import open_dataset, write_scenes
from gmskip_ros.files import write_atomically
from gmskip_ros.vlm import Stopped, load_vlm

OPTIONS = [
    '--task',
    'single_object',
    '--dataset',
    '../scenes',
    '--out',
    'out',
    '--images',
    '3',
    '--test-images',
    '2',
    '--rounds',
    '3',
    '--latency-images',
    '0',
]


@pytest.fixture(scope='module')
def root(tmp_path_factory) -> Path:
    """A folder with scenes in it; every run has its own folder beside them."""
    root = tmp_path_factory.mktemp('resume')
    write_scenes(root / 'scenes', 16, 9000)
    return root


@pytest.fixture(scope='module')
def uninterrupted(root) -> SimpleNamespace:
    """What a run finds that nothing disturbs, and how long it takes."""
    started = time.monotonic()
    with CalibrateProcess(root / 'uninterrupted', OPTIONS) as process:
        assert process.wait() == 0, process.stderr
    duration_s = time.monotonic() - started
    out = root / 'uninterrupted' / 'out'
    return SimpleNamespace(out=out, found=found(out), duration_s=duration_s)


@pytest.fixture(scope='module')
def vlm():
    return load_vlm('demo', 'cpu')


class Terminal:
    """A terminal that remembers what was printed."""

    def __init__(self) -> None:
        self._master, self._slave = pty.openpty()
        fcntl.ioctl(self._slave, termios.TIOCSWINSZ, struct.pack('HHHH', 40, 200, 0, 0))
        self.name = os.ttyname(self._slave)
        self.text = ''
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        while data := os.read(self._master, 4096):
            self.text += data.decode(errors='replace')

    def lines(self) -> list[str]:
        """Return the lines of ours, without what draws bars."""
        return [
            line[line.index('gmskip: ') :] for line in self.text.splitlines() if 'gmskip: ' in line
        ]


def wait_for_torch(process: subprocess.Popen[str]) -> None:
    """Wait until a process imports PyTorch, which takes it seconds."""
    while 'libtorch_cpu' not in Path(f'/proc/{process.pid}/maps').read_text():
        assert process.poll() is None
        time.sleep(0.01)


def on_terminal(folder: Path, terminal: Terminal, *options: str) -> CalibrateProcess:
    return CalibrateProcess(
        folder, [*OPTIONS, *options], terminal=terminal.name, environment={'TERM': 'xterm'}
    )


def test_killed_at_ten_moments_it_ends_with_the_same_file(root, uninterrupted):
    folder = root / 'killed'
    moments = random.Random(3)
    process = start(command_line(OPTIONS), folder)
    wait_for_torch(process)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not list((folder / 'out').glob('*'))
    kills = 1
    for _ in range(9):
        with CalibrateProcess(folder, OPTIONS, save_every_s=0) as process:
            time.sleep(moments.uniform(0, 0.7 * uninterrupted.duration_s))
            process.send_signal(signal.SIGKILL)
            kills += process.wait() == -signal.SIGKILL
    assert kills > 1
    with CalibrateProcess(folder, OPTIONS) as process:
        assert process.wait() == 0, process.stderr
    assert found(folder / 'out') == uninterrupted.found
    names = [path.name for path in (folder / 'out').iterdir()]
    assert sorted(names) == sorted(path.name for path in uninterrupted.out.iterdir())


def test_what_a_killed_process_left_aside_is_removed(root, uninterrupted, monkeypatch):
    folder = root / 'leftovers'
    (folder / 'out').mkdir(parents=True)

    def killed(*_: object, **__: object) -> None:
        raise SystemError

    # As if killed just before the file gets its name.
    with monkeypatch.context() as patched, pytest.raises(SystemError):
        patched.setattr(os, 'replace', killed)
        patched.setattr(Path, 'unlink', killed)
        write_atomically(folder / 'out' / 'checkpoint.json', b'half a check')
    assert len(leftovers(folder)) == 1
    (folder / 'out' / 'notes.tmp').write_text('of a person')
    with CalibrateProcess(folder, OPTIONS) as process:
        assert process.wait() == 0, process.stderr
    assert leftovers(folder) == ['notes.tmp']


def test_a_finished_one_ends_with_the_same_files_without_any_answer(
    root, uninterrupted, vlm, monkeypatch, capsys
):
    monkeypatch.chdir(root / 'uninterrupted')
    monkeypatch.setattr('gmskip_ros.cli.calibrate.load_model', lambda *_: vlm)
    text = ('single_object.skip.yaml', 'calibration.json', 'trajectory.csv', 'checkpoint.json')
    before = {name: (uninterrupted.out / name).read_bytes() for name in text}
    work = vlm.token_blocks
    assert main.main(['calibrate', *OPTIONS]) == 0
    assert vlm.token_blocks == work
    assert {name: (uninterrupted.out / name).read_bytes() for name in text} == before
    assert 'Calibration' in capsys.readouterr().out


def test_going_on_within_a_round_does_not_begin_it_anew(root, tmp_path, vlm, monkeypatch):
    dataset = open_dataset(root / 'scenes')
    settings = CalibrationSettings(
        'single_object', images=10, test_images=0, search=SearchSettings(rounds=1)
    )
    monkeypatch.setattr(checkpoint_module, 'SAVE_EVERY_S', 0.0)

    def run(folder: Path, should_stop=lambda: False):
        folder.mkdir(exist_ok=True)
        before = vlm.token_blocks
        try:
            calibration = calibrate(vlm, dataset, settings, folder, should_stop=should_stop)
        except Stopped:
            calibration = None
        return calibration, vlm.token_blocks - before

    whole, whole_work = run(tmp_path / 'whole')
    folder = tmp_path / 'stopped'

    def is_in_second_chunk() -> bool:
        """So the first chunk was saved within the round: nothing else has saved it."""
        path = folder / 'checkpoint.json'
        return path.exists() and any(
            len(one) >= 8
            for one in read_json(path)['search']['answered'].values()
            if len(read_json(path)['search']['full']) == 10
        )

    none, first_work = run(folder, is_in_second_chunk)
    assert none is None
    state = read_json(folder / 'checkpoint.json')['search']
    assert state['rounds'] == []
    assert [len(one) for one in state['answered'].values()] == [8] * 32
    gone_on, rest = run(folder)
    assert rest < 0.5 * whole_work
    # What the interrupted pass through the blocks had done is lost, and nothing else.
    assert whole_work <= first_work + rest < 1.2 * whole_work
    cells = [one['cells'] for one in whole.result['rounds']]
    assert [one['cells'] for one in gone_on.result['rounds']] == cells
    work = [one['token_blocks'] for one in whole.result['rounds']]
    assert [one['token_blocks'] for one in gone_on.result['rounds']] == work


@pytest.mark.parametrize(
    ('options', 'field', 'then', 'now'),
    [
        (['--rounds', '2'], 'search rounds', '3', '2'),
        (['--min-score-ratio', '0.9'], 'search min_score_ratio', '1.0', '0.9'),
        (['--tie-order', 'forward'], 'search tie_order', "'backward'", "'forward'"),
        (['--prompt', 'What is it?'], 'prompts', 'main object', "['What is it?']"),
        (
            [
                '--exhaustive',
            ],
            'exhaustive',
            'False',
            'True',
        ),
        (['--images', '4'], 'calibration pictures (sha256)', '', ''),
        (['--task', 'multi_object'], 'labels', '', ''),
    ],
)
def test_a_checkpoint_of_other_settings_is_refused(
    root, uninterrupted, vlm, monkeypatch, capsys, options, field, then, now
):
    monkeypatch.chdir(root / 'uninterrupted')
    monkeypatch.setattr('gmskip_ros.cli.calibrate.load_model', lambda *_: vlm)
    before = (uninterrupted.out / 'checkpoint.json').read_bytes()
    assert main.main(['calibrate', *OPTIONS, *options]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith('gmskip: error: out/checkpoint.json: was made with ')
    assert errors.count('\n') == 1
    if field != 'labels':  # another task differs in several ways
        assert f'made with {field} ' in errors
    made, _, this = errors.partition(', and this run has ')
    assert then in made and now in this and made != this
    assert (uninterrupted.out / 'checkpoint.json').read_bytes() == before


def test_a_checkpoint_of_the_model_before_more_training_is_refused(
    root, uninterrupted, monkeypatch, capsys
):
    trained = load_vlm('demo', 'cpu')
    with torch.no_grad():
        trained.decoder.blocks[-1].mlp.down_proj.weight.mul_(1.001)
    monkeypatch.chdir(root / 'uninterrupted')
    monkeypatch.setattr('gmskip_ros.cli.calibrate.load_model', lambda *_: trained)
    assert main.main(['calibrate', *OPTIONS]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith('gmskip: error: out/checkpoint.json: was made with weights (sha256) ')
    assert errors.count('\n') == 1


@pytest.mark.parametrize('content', [b'', b'{"format": ', b'[]', b'{"format": "other/1"}', None])
def test_a_broken_checkpoint_is_one_line(
    root, uninterrupted, vlm, monkeypatch, capsys, tmp_path, content
):
    whole = (uninterrupted.out / 'checkpoint.json').read_bytes()
    (tmp_path / 'out').mkdir()
    broken = whole[: len(whole) // 2] if content is None else content
    (tmp_path / 'out' / 'checkpoint.json').write_bytes(broken)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr('gmskip_ros.cli.calibrate.load_model', lambda *_: vlm)
    dataset = ['--dataset', str(root / 'scenes')]
    assert main.main(['calibrate', *OPTIONS, *dataset]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith('gmskip: error: out/checkpoint.json: is not a checkpoint (')
    assert errors.count('\n') == 1 and 'remove the file to begin anew' in errors
    assert (tmp_path / 'out' / 'checkpoint.json').read_bytes() == broken


@pytest.mark.parametrize(
    ('stage', 'number', 'status'),
    [
        ('loading', signal.SIGINT, 130),
        ('encoding images', signal.SIGINT, 130),
        ('32 candidates', signal.SIGINT, 130),
        ('testing skip sets', signal.SIGINT, 130),
        ('32 candidates', signal.SIGTERM, 143),
    ],
)
def test_stopped_by_a_signal_it_keeps_what_was_found(root, uninterrupted, stage, number, status):
    folder = root / f'{number}_{stage.split()[0]}'
    terminal = Terminal()
    with on_terminal(folder, terminal) as process:
        process.wait_until(lambda: stage in terminal.text)
        process.send_signal(number)
        assert process.wait() == status, terminal.text
    line = 'gmskip: stopped; out keeps what was found: the same command goes on'
    assert terminal.lines() == [line]
    assert 'Traceback' not in terminal.text
    if stage in ('32 candidates', 'testing skip sets'):
        state = read_json(folder / 'out' / 'checkpoint.json')
        assert len(state['search']['full']) == 3
        assert bool(state['search']['stopped_by']) == (stage == 'testing skip sets')
    if stage == 'testing skip sets':
        with CalibrateProcess(folder, OPTIONS) as process:
            assert process.wait() == 0, process.stderr
        assert found(folder / 'out') == uninterrupted.found


def test_interrupted_while_it_starts_it_says_so_in_one_line(root):
    process = start(command_line(OPTIONS), root / 'interrupted')
    wait_for_torch(process)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=100)
    assert (process.returncode, output) == (130, '')
    assert errors == 'gmskip: stopped; out keeps what was found: the same command goes on\n'


def test_progress_is_shown_on_a_terminal(root):
    terminal = Terminal()
    with on_terminal(root / 'terminal', terminal) as process:
        assert process.wait() == 0, terminal.text
    for shown in (
        'encoding images',
        'rounds',
        'answers',
        '32 candidates',
        'full model',
        '0:00:',
        '1/3',
        'best so far 1.0000 without 31',
        'testing skip sets',
    ):
        assert shown in terminal.text


@pytest.mark.parametrize('options', [[], ['--no-progress']])
def test_nothing_of_it_without_a_terminal_or_when_it_is_not_wanted(root, options):
    terminal = Terminal()
    folder = root / f'quiet_{len(options)}'
    if options:
        with on_terminal(folder, terminal, *options) as process:
            assert process.wait() == 0, terminal.text
        assert terminal.text == ''
    else:
        with CalibrateProcess(folder, OPTIONS) as process:
            assert process.wait() == 0
        assert process.stderr == ''


def test_a_full_disk_is_one_line_and_the_older_checkpoint_stays(root, uninterrupted):
    folder = root / 'full_disk'
    state = folder / 'out' / 'checkpoint.json'
    with CalibrateProcess(folder, OPTIONS) as process:
        process.wait_until(state.exists)
        process.send_signal(signal.SIGKILL)
        process.wait()
    before = state.read_bytes()
    # So small that the next state is too large.
    with CalibrateProcess(folder, OPTIONS, file_size=len(before) + 100) as process:
        assert process.wait() == 2
    assert process.stderr.startswith('gmskip: error: out/checkpoint.json: cannot be written (')
    assert process.stderr.count('\n') == 1
    assert state.read_bytes() == before and leftovers(folder) == []
    with CalibrateProcess(folder, OPTIONS) as process:
        assert process.wait() == 0, process.stderr
    assert found(folder / 'out') == uninterrupted.found


def test_a_report_that_does_not_fit_is_one_line(root, uninterrupted):
    folder = root / 'full_disk_report'
    subprocess.run(['cp', '-r', root / 'uninterrupted', folder], check=True)
    for name in ('report.html', 'calibration.json', 'single_object.skip.yaml'):
        (folder / 'out' / name).unlink()
    with CalibrateProcess(folder, OPTIONS, file_size=30_000) as process:
        assert process.wait() == 2
    assert process.stderr.startswith('gmskip: error: out: the report cannot be written (')
    assert process.stderr.count('\n') == 1 and leftovers(folder) == []
    assert not (folder / 'out' / 'report.html').exists()
