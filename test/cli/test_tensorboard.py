"""`--tensorboard`: what is written can be read back; without the package it is one line."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest

from gmskip_ros.calibration.settings import RoundDone
from gmskip_ros.cli import main
from gmskip_ros.cli.tensorboard import TensorBoard

DONE = RoundDone(1, 3, 7, 0.5, 0.75, 0.25, 2.0, 4.0, True)


def test_the_package_is_named_where_it_is_missing(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, 'torch.utils.tensorboard', None)
    options = ['--task', 'generic', '--dataset', '/nowhere', '--out', str(tmp_path / 'out')]
    assert main.main(['calibrate', *options, '--tensorboard', str(tmp_path / 'runs')]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith('gmskip: error: --tensorboard needs the package tensorboard')
    assert errors.count('\n') == 1 and not list(tmp_path.iterdir())


def test_a_resumed_search_replaces_what_was_written(tmp_path):
    pytest.importorskip('tensorboard', reason='tensorboard is an extra that CI does not install')
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    second = replace(DONE, number=2, score=0.4)
    for known in ([], [replace(DONE, is_new=False)]):
        board = TensorBoard(tmp_path)
        board.begin('car', 3)
        board.full_score(0.75)
        for done in known or [DONE]:
            board.round_done(done)
        if known:
            board.round_done(second)
    board.close()
    events = EventAccumulator(str(tmp_path / 'car' / 'seed_3'))
    events.Reload()
    scores = [(event.step, event.value) for event in events.Scalars('score')]
    assert scores == [(0, 0.75), (1, 0.5), (2, pytest.approx(0.4))]
    assert [event.value for event in events.Scalars('sparsity')] == [0, 0.25, 0.25]
