"""One run at a time in a folder of `--out`: a second is refused, a killed one leaves no lock."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from redundant_pair import write_questions

from gmskip_ros.cli import main
from gmskip_ros.datasets import write_scenes
from gmskip_ros.errors import UserError
from gmskip_ros.files import FolderLock

DATA = {
    'calibrate': ('--dataset',),
    'compare': ('--methods', 'gm-skip', '--calibrate-on'),
    'evaluate': ('--dataset',),
    'redundancy': ('--dataset',),
}


@pytest.fixture(scope='module')
def questions(tmp_path_factory) -> Path:
    return write_questions(tmp_path_factory.mktemp('data'))


@pytest.mark.parametrize('command', DATA)
def test_a_second_run_in_a_folder_is_refused(command, questions, tmp_path, capsys):
    out = tmp_path / 'out'
    out.mkdir()
    options = ['--task', 'generic', *DATA[command], str(questions), '--out', str(out)]
    with FolderLock() as first:
        first.acquire(out)
        assert main.main([command, *options, '--images', '2', '--model', '/nowhere']) == 2
    errors = capsys.readouterr().err
    assert errors.startswith(f'gmskip: error: --out {out}: process {os.getpid()} on ')
    assert errors.count('\n') == 1 and 'give a different folder' in errors
    # Once the first has ended, the second gets as far as the model.
    assert main.main([command, *options, '--images', '2', '--model', '/nowhere']) == 2
    assert '/nowhere' in capsys.readouterr().err
    assert not list(out.iterdir())


@pytest.mark.parametrize(
    'command', [['benchmark', 'latency'], ['demo'], ['soak'], ['scenes', '-n', '2'], ['replay']]
)
def test_other_commands_keep_out_of_each_others_folder_as_well(command, tmp_path, capsys):
    out = tmp_path / 'out'
    if command == ['replay']:
        assert main.main(['scenes', '--bag', str(tmp_path / 'bag'), '-n', '2']) == 0
        command = ['replay', str(tmp_path / 'bag')]
    if command[0] == 'scenes':  # begun, and not finished
        write_scenes(out, 2, 0)
        (out / 'annotations' / 'instances_scenes.json').unlink()
    out.mkdir(exist_ok=True)
    with FolderLock() as first:
        first.acquire(out)
        assert main.main([*command, '--out', str(out)]) in (1, 2)
    errors = capsys.readouterr().err
    option = '' if command[0] == 'scenes' else '--out '  # write_scenes can be called without
    assert f'error: {option}{out}: process {os.getpid()} on ' in errors
    assert errors.startswith('gmskip') and errors.count('\n') == 1


def test_a_killed_process_leaves_no_lock(tmp_path):
    holding = (
        'from pathlib import Path; from gmskip_ros.files import FolderLock; lock = FolderLock(); '
        f'lock.acquire(Path({str(tmp_path)!r})); print(); input()'
    )
    pipes = {'stdin': subprocess.PIPE, 'stdout': subprocess.PIPE}
    with subprocess.Popen([sys.executable, '-uc', holding], **pipes) as process:
        process.stdout.readline()
        with FolderLock() as lock:
            with pytest.raises(UserError, match=f'process {process.pid} on .* is working there'):
                lock.acquire(tmp_path)
            process.kill()
            process.wait()
            lock.acquire(tmp_path)
