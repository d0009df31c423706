"""`gmskip calibrate` killed, stopped and started again, in real processes with the demo model."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import random
import re
import shutil
import signal
import struct
import subprocess
import termios
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from calibrate_process import (
    CalibrateProcess,
    command_line,
    found,
    leftovers,
    read_json,
    start,
    without_reports,
)
from tiny_models import make_tiny_model
from weight_edits import edit_weights, of_decoder

from gmskip_ros.calibration import checkpoint as checkpoint_module
from gmskip_ros.calibration.errors import CalibrationError
from gmskip_ros.calibration.run import calibrate
from gmskip_ros.calibration.settings import CalibrationSettings, SearchSettings
from gmskip_ros.cli import main
from gmskip_ros.datasets import open_dataset, read_image, write_scenes
from gmskip_ros.files import write_atomically
from gmskip_ros.skipping import load_skip_list
from gmskip_ros.vlm import Stopped, load_vlm
from gmskip_ros.vlm.hub import find_local_folder

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
    """A folder with scenes in it; every run has its own folder next to them."""
    root = tmp_path_factory.mktemp('resume')
    write_scenes(root / 'scenes', 16, 9000)
    return root


@pytest.fixture(scope='module')
def uninterrupted(root) -> SimpleNamespace:
    """What an undisturbed run finds, and how long it takes."""
    started = time.monotonic()
    with CalibrateProcess(root / 'uninterrupted', OPTIONS) as process:
        assert process.wait() == 0, process.stderr
    duration_s = time.monotonic() - started
    out = root / 'uninterrupted' / 'out'
    return SimpleNamespace(out=out, found=found(out), duration_s=duration_s, stderr=process.stderr)


@pytest.fixture(scope='module')
def vlm():
    return load_vlm('demo', 'cpu')


class Terminal:
    """A terminal that records what is printed."""

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
        """Return our own lines, without progress bars and those of without_reports."""
        lines = without_reports(self.text).splitlines()
        return [line[line.index('gmskip: ') :] for line in lines if 'gmskip: ' in line]


def wait_for_torch(process: subprocess.Popen[str]) -> None:
    """Wait until a process imports PyTorch, which takes seconds."""
    while 'libtorch_cpu' not in Path(f'/proc/{process.pid}/maps').read_text():
        assert process.poll() is None
        time.sleep(0.01)


def on_terminal(folder: Path, terminal: Terminal, *options: str) -> CalibrateProcess:
    return CalibrateProcess(
        folder, [*OPTIONS, *options], terminal=terminal.name, environment={'TERM': 'xterm'}
    )


def test_killed_at_ten_moments_it_finds_the_same(root, uninterrupted):
    folder = root / 'killed'
    moments = random.Random(3)
    process = start(command_line(OPTIONS), folder)
    wait_for_torch(process)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert {path.name for path in (folder / 'out').glob('*')} <= {'.lock'}  # free once it is dead
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
    answers = [(out / 'answers.jsonl').read_text() for out in (folder / 'out', uninterrupted.out)]
    assert answers[0] == answers[1]
    names = [path.name for path in (folder / 'out').iterdir()]
    assert sorted(names) == sorted(path.name for path in uninterrupted.out.iterdir())


def test_temporary_files_of_a_killed_process_are_removed(root, uninterrupted, monkeypatch):
    folder = root / 'leftovers'
    shutil.copytree(root / 'uninterrupted', folder)

    def killed(*_: object, **__: object) -> None:
        raise SystemError

    # As if killed just before the file is renamed.
    with monkeypatch.context() as patched, pytest.raises(SystemError):
        patched.setattr(os, 'replace', killed)
        patched.setattr(Path, 'unlink', killed)
        write_atomically(folder / 'out' / 'checkpoint.json', b'half a check')
    assert len(leftovers(folder)) == 1
    (folder / 'out' / 'notes.tmp').write_text('of a person')
    with CalibrateProcess(folder, OPTIONS) as process:
        assert process.wait() == 0, process.stderr
    assert leftovers(folder) == ['notes.tmp']


def test_a_finished_run_writes_the_same_files_without_an_answer(
    root, uninterrupted, vlm, monkeypatch, capsys
):
    monkeypatch.chdir(root / 'uninterrupted')
    monkeypatch.setattr('gmskip_ros.cli.resumable.load_model', lambda *_: vlm)
    # The margin of the search is kept, and not measured again.
    margin = read_json(uninterrupted.out / 'calibration.json')['near_tie_margin']
    skip_list = load_skip_list(uninterrupted.out / 'single_object.skip.yaml')
    known = read_json(uninterrupted.out / 'checkpoint.json')['evaluations']['near tie margin']
    assert margin == skip_list.near_tie_margin == known > 0
    text = ('single_object.skip.yaml', 'calibration.json', 'trajectory.csv', 'checkpoint.json')
    before = {name: (uninterrupted.out / name).read_bytes() for name in text}
    work = vlm.token_blocks
    assert main.main(['calibrate', *OPTIONS]) == 0
    assert vlm.token_blocks == work
    assert {name: (uninterrupted.out / name).read_bytes() for name in text} == before
    assert 'Calibration' in capsys.readouterr().out


def test_resuming_within_a_round_does_not_start_it_over(root, tmp_path, monkeypatch):
    vlm = load_vlm(make_tiny_model(tmp_path / 'model', num_blocks=8), 'cpu')
    dataset = open_dataset(root / 'scenes')
    settings = CalibrationSettings(
        'captioning',
        images=10,
        test_images=0,
        max_new_tokens=6,
        search=SearchSettings(rounds=1),
        force=True,  # a model with random weights is never right
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
        """Return whether the first chunk was saved within the round."""
        path = folder / 'checkpoint.json'
        if not path.exists():
            return False
        search = read_json(path)['search']
        return len(search['full']) == 10 and any(
            len(answers) >= 8 for answers in search['answered'].values()
        )

    none, first_work = run(folder, is_in_second_chunk)
    assert none is None
    state = read_json(folder / 'checkpoint.json')['search']
    assert state['rounds'] == []
    assert [len(answers) for answers in state['answered'].values()] == [8] * vlm.num_blocks
    resumed, rest = run(folder)
    assert rest < 0.5 * whole_work
    # Only the interrupted pass through the blocks is lost.
    assert whole_work <= first_work + rest < 1.2 * whole_work
    for key in ('cells', 'token_blocks'):
        of_rounds = [[done[key] for done in run.result['rounds']] for run in (whole, resumed)]
        assert of_rounds[0] == of_rounds[1]


@pytest.mark.parametrize(
    ('options', 'field', 'then', 'now'),
    [
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
def test_a_checkpoint_of_different_settings_is_refused(
    root, uninterrupted, vlm, monkeypatch, capsys, options, field, then, now
):
    monkeypatch.chdir(root / 'uninterrupted')
    monkeypatch.setattr('gmskip_ros.cli.resumable.load_model', lambda *_: vlm)
    before = (uninterrupted.out / 'checkpoint.json').read_bytes()
    assert main.main(['calibrate', *OPTIONS, *options]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith('gmskip: error: out/checkpoint.json: was made with ')
    assert errors.count('\n') == 1
    if field != 'labels':  # a different task differs in several ways
        assert f'made with {field} ' in errors
    made, _, this = errors.partition(', this run has ')
    assert then in made and now in this and made != this
    assert (uninterrupted.out / 'checkpoint.json').read_bytes() == before


def test_a_finished_search_goes_on(root, tmp_path):
    """More rounds, a lower ratio, more test images: the same as one run at once, and less work."""
    model = make_tiny_model(tmp_path / 'model', num_blocks=6)
    edit_weights(model, make_blocks_weak)
    vlm = load_vlm(model, 'cpu')
    lines = []
    for sample in open_dataset(root / 'scenes').samples:  # the model's own answers are right
        text = vlm.answer(read_image(sample.image_path), 'Which?', max_new_tokens=3).text
        if any(character.isalnum() for character in text):
            of_image = {'image': str(sample.image_path), 'question': 'Which?'}
            lines.append(json.dumps({**of_image, 'references': [text]}))
    (tmp_path / 'questions.jsonl').write_text('\n'.join(lines))
    dataset = open_dataset(tmp_path / 'questions.jsonl')

    def run(folder: str, **changes):
        (tmp_path / folder).mkdir(exist_ok=True)
        limits = {name: changes.pop(name) for name in ('rounds', 'min_score_ratio')}
        options = {'max_new_tokens': 3, 'latency_images': 0, 'images': 4, **changes}
        search = SearchSettings(**limits)
        settings = CalibrationSettings('generic', metric='exact', search=search, **options)
        before = vlm.token_blocks
        result = calibrate(vlm, dataset, settings, tmp_path / folder).result
        kept = {key: result[key] for key in ('prefixes', 'stopped_by', 'operating_points')}
        cells = [[done[key] for key in ('removed', 'score', 'cells')] for done in result['rounds']]
        return {**kept, 'cells': cells}, vlm.token_blocks - before

    (first, _), (second, _) = (
        run('out', rounds=rounds, min_score_ratio=ratio, test_images=2)
        for rounds, ratio in ((1, 0.0), (4, 0.5))
    )
    assert second['cells'][-1][0] is None, 'stopped by the ratio'
    wide = {'rounds': 4, 'min_score_ratio': 0.0, 'test_images': 3}
    more, work = run('out', **wide)
    whole, whole_work = run('whole', **wide)
    assert more == whole and len(whole['cells']) == 4
    assert work < whole_work and first['cells'] == whole['cells'][:1]
    # Narrower limits give the beginning, and the rest is kept.
    fewer, work = run('out', **{**wide, 'rounds': 2})
    assert fewer['cells'] == whole['cells'][:2] and work == 0
    assert run('out', **wide) == (whole, 0)
    # The figures of a version that computed them differently are not kept.
    checkpoint = tmp_path / 'out' / 'checkpoint.json'
    older, count = re.subn(r'"test \d+ without', '"test without', checkpoint.read_text())
    checkpoint.write_text(older)
    again, work = run('out', **wide)
    assert count and again == whole and work > 0
    # Unless the ratio keeps what an earlier run has removed.
    ratio = fewer['cells'][1][1]
    assert ratio > whole['cells'][2][1]
    assert run('out', **{**wide, 'rounds': 2, 'min_score_ratio': ratio})[0] == fewer
    with pytest.raises(CalibrationError, match=r'below .* x the full score: give a different'):
        run('out', **{**wide, 'rounds': 3, 'min_score_ratio': ratio})


def make_blocks_weak(weights) -> None:
    """Let a block change an answer only now and then."""
    for name in weights:
        if 'language_model' in name and ('o_proj' in name or 'down_proj' in name):
            weights[name] = weights[name] * 0.03


def test_a_checkpoint_of_the_model_before_more_training_is_refused(
    root, uninterrupted, monkeypatch, capsys, tmp_path
):
    def train(weights) -> None:
        of_decoder(weights, 'layers.31.mlp.down_proj').mul_(1.001)

    folder = shutil.copytree(find_local_folder('demo'), tmp_path / 'trained')
    trained = load_vlm(edit_weights(folder, train), 'cpu')
    trained.name = 'demo'
    monkeypatch.chdir(root / 'uninterrupted')
    monkeypatch.setattr('gmskip_ros.cli.resumable.load_model', lambda *_: trained)
    assert main.main(['calibrate', *OPTIONS]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith('gmskip: error: out/checkpoint.json: was made with weights (sha256) ')
    assert errors.count('\n') == 1


def test_settings_that_only_an_older_version_recorded_are_ignored(tmp_path):
    file = checkpoint_module.CheckpointFile(tmp_path)
    checkpoint = file.load({'search method': 'gm-skip'})
    checkpoint.settings['search start'] = '0'
    file.save(checkpoint)
    assert file.load({'search method': 'gm-skip'}).created == checkpoint.created
    with pytest.raises(CalibrationError, match='made with search new None, this run has 1: '):
        file.load({'search method': 'gm-skip', 'search new': 1})


@pytest.mark.parametrize('content', [b'', b'{"format": ', b'[]', b'{"format": "other/1"}', None])
def test_a_broken_checkpoint_is_one_line(
    root, uninterrupted, vlm, monkeypatch, capsys, tmp_path, content
):
    whole = (uninterrupted.out / 'checkpoint.json').read_bytes()
    (tmp_path / 'out').mkdir()
    broken = whole[: len(whole) // 2] if content is None else content
    (tmp_path / 'out' / 'checkpoint.json').write_bytes(broken)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr('gmskip_ros.cli.resumable.load_model', lambda *_: vlm)
    dataset = ['--dataset', str(root / 'scenes')]
    assert main.main(['calibrate', *OPTIONS, *dataset]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith('gmskip: error: out/checkpoint.json: is not a checkpoint (')
    assert errors.count('\n') == 1 and 'remove the file to start over' in errors
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
def test_stopped_by_a_signal_it_saves_its_progress(root, uninterrupted, stage, number, status):
    folder = root / f'{number}_{stage.split()[0]}'
    terminal = Terminal()
    with on_terminal(folder, terminal) as process:
        process.wait_until(lambda: stage in terminal.text)
        process.send_signal(number)
        assert process.wait() == status, terminal.text
    line = 'gmskip: stopped. Progress is saved in out; run the same command to resume.'
    *rounds, last = terminal.lines()
    assert last == line
    assert len(rounds) == (3 if stage == 'testing skip sets' else 0)
    assert 'Traceback' not in terminal.text
    if stage in ('32 candidates', 'testing skip sets'):
        state = read_json(folder / 'out' / 'checkpoint.json')
        assert len(state['search']['full']) == 3
        assert bool(state['search']['stopped_by']) == (stage == 'testing skip sets')
    if stage == 'testing skip sets':
        with CalibrateProcess(folder, OPTIONS) as process:
            assert process.wait() == 0, process.stderr
        assert found(folder / 'out') == uninterrupted.found


def test_interrupted_while_starting_is_one_line(root):
    process = start(command_line(OPTIONS), root / 'interrupted')
    wait_for_torch(process)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=100)
    assert (process.returncode, output) == (130, '')
    assert errors == 'gmskip: stopped. Progress is saved in out; run the same command to resume.\n'


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


def test_a_round_is_a_line(root, uninterrupted):
    """On a terminal above the bars; without one, or in a log, alone; not with --no-progress."""
    rounds = uninterrupted.found['rounds']
    lines = uninterrupted.stderr.splitlines()
    assert len(lines) == len(rounds) == 3
    for number, (line, done) in enumerate(zip(lines, rounds, strict=True), start=1):
        assert line.startswith(
            f'gmskip: round {number} of at most 3: block {done["removed"]} removed, '
            f'score {done["score"]:.4f} (full 1.0000), sparsity {100 * number / 32:.1f} %'
        )
        assert ('left' in line) == (number < 3)
    terminal = Terminal()
    with on_terminal(root / 'quiet', terminal, '--no-progress') as process:
        assert process.wait() == 0, terminal.text
    assert without_reports(terminal.text) == ''


def test_statistics_can_be_computed_from_the_answers(uninterrupted):
    lines = (uninterrupted.out / 'answers.jsonl').read_text().splitlines()
    of_set: dict[tuple[int, ...], list[dict]] = {}
    for line in map(json.loads, lines):
        prefill = line['skip_set'].partition(';')[0].removeprefix('prefill ')
        of_set.setdefault(tuple(map(int, filter(None, prefill.split(',')))), []).append(line)
    prefixes = uninterrupted.found['prefixes']
    assert set(of_set) == {tuple(sorted(prefix['blocks'])) for prefix in prefixes}
    full = {line['question']: line for line in of_set[()] if not line['is_shuffled']}
    assert len(full) == 2
    for prefix in prefixes:
        own = [line for line in of_set[tuple(sorted(prefix['blocks']))] if not line['is_shuffled']]
        test = prefix['test']
        right = [line['answer'].lower() == line['references'] for line in own]
        assert test['score'] == sum(right) / len(own)
        tokens = [line['token_ids'] for line in own]
        assert test['tokens_per_answer'] == sum(map(len, tokens)) / len(own)
        same = [line['token_ids'] == full[line['question']]['token_ids'] for line in own]
        assert test['token_agreement'] == sum(same) / len(own)
        assert all((uninterrupted.out.parent / line['image']).exists() for line in own)


def test_rounds_are_in_a_file_once_whatever_was_killed(root, uninterrupted):
    folder = root / 'rounds'
    path = folder / 'out' / 'rounds.jsonl'
    with CalibrateProcess(folder, OPTIONS, save_every_s=0) as process:
        process.wait_until(path.exists)
        process.send_signal(signal.SIGKILL)
        process.wait()
    with CalibrateProcess(folder, OPTIONS) as process:
        assert process.wait() == 0, process.stderr
    if len(process.stderr.splitlines()) > 1:
        assert 'gmskip: resumed at round 2 of at most 3\n' in process.stderr
    both = [
        [json.loads(line) for line in (out / 'rounds.jsonl').read_text().splitlines()]
        for out in (folder / 'out', uninterrupted.out)
    ]
    for rounds in both:
        assert [done['round'] for done in rounds] == [1, 2, 3]
        assert [done['sparsity'] for done in rounds] == [1 / 32, 2 / 32, 3 / 32]
    plain = [[{**done, 'seconds': None} for done in rounds] for rounds in both]
    assert plain[0] == plain[1]
    cells = [done['cells'] for done in uninterrupted.found['rounds']]
    assert [done['cells'] for done in plain[1]] == cells


def test_a_full_disk_is_one_line_and_keeps_the_older_checkpoint(root, uninterrupted):
    folder = root / 'full_disk'
    state = folder / 'out' / 'checkpoint.json'
    with CalibrateProcess(folder, OPTIONS) as process:
        process.wait_until(state.exists)
        process.send_signal(signal.SIGKILL)
        process.wait()
    before = state.read_bytes()
    # Too small for the next state.
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
    shutil.copytree(root / 'uninterrupted', folder)
    for name in ('report.html', 'calibration.json', 'single_object.skip.yaml'):
        (folder / 'out' / name).unlink()
    with CalibrateProcess(folder, OPTIONS, file_size=30_000) as process:
        assert process.wait() == 2
    assert process.stderr.startswith('gmskip: error: out: the report cannot be written (')
    assert process.stderr.count('\n') == 1 and leftovers(folder) == []
    assert not (folder / 'out' / 'report.html').exists()
