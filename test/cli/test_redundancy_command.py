"""`gmskip redundancy`, with a tiny model whose blocks are known by construction."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from tiny_models import make_tiny_model

from gmskip_ros.cli import main
from gmskip_ros.datasets import write_scenes
from gmskip_ros.vlm import load_vlm

NUM_BLOCKS = 5
IDENTITIES = (2, 4)  # these two do nothing to any token


@pytest.fixture(scope='module')
def scenes(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('scenes') / 'scenes'
    write_scenes(folder, 8, 9000)
    return folder


@pytest.fixture(scope='module')
def vlm(tmp_path_factory):
    folder = make_tiny_model(tmp_path_factory.mktemp('tiny') / 'model', num_blocks=NUM_BLOCKS)
    vlm = load_vlm(str(folder), 'cpu')
    with torch.no_grad():
        for index in IDENTITIES:
            vlm.decoder.blocks[index].self_attn.o_proj.weight.zero_()
            vlm.decoder.blocks[index].mlp.down_proj.weight.zero_()
    return vlm


@pytest.fixture
def gmskip(vlm, scenes, monkeypatch, capsys, tmp_path):
    """Run `gmskip redundancy` with the tiny model; return its status, output and errors."""
    monkeypatch.setattr('gmskip_ros.cli.resumable.load_model', lambda *_: vlm)
    monkeypatch.setenv('COLUMNS', '160')

    def run(*options: str):
        named = ['--dataset', str(scenes), '--out', str(tmp_path / 'out'), '--images', '4']
        named += ['--task', 'captioning', '--max-new-tokens', '6']
        status = main.main(['redundancy', *named, *options])
        return status, *capsys.readouterr()

    return run


def test_what_the_blocks_are_known_to_do(gmskip, tmp_path):
    status, output, errors = gmskip()
    assert (status, 'error' in errors) == (0, False)
    out = tmp_path / 'out'
    result = json.loads((out / 'redundancy.json').read_text())
    blocks = result['blocks']
    assert [row['block'] for row in blocks] == list(range(NUM_BLOCKS))
    for row in blocks:
        is_identity = row['block'] in IDENTITIES
        for kind in ('image', 'text', 'decode'):
            assert (abs(row[f'cosine_{kind}'] - 1) < 1e-6) == is_identity
            assert (row[f'angle_{kind}'] < 1e-6) == is_identity
            assert (abs(row[f'norm_ratio_{kind}'] - 1) < 1e-6) == is_identity
        assert (row['kl'] < 1e-9) == is_identity
        assert 0 < row['visual_attention'] < 1
        assert not is_identity or row['score_change'] == 0
    # Figures of the table, by somebody else's code.
    (found,) = [
        each['spearman']
        for each in result['correlations']
        if (each['measure'], each['target']) == ('cosine_text', 'kl')
    ]
    cosines, divergences = ([row[name] for row in blocks] for name in ('cosine_text', 'kl'))
    assert found == pytest.approx(spearmanr(cosines, [-value for value in divergences])[0])
    for each in result['correlations']:
        if each['interval']:
            low, high = each['interval']
            assert -1 <= low <= high <= 1
    # The last block does nothing, so image tokens do not matter there; in block 3 they are seen.
    no_matter = result['image_tokens_no_longer_matter_from']
    assert no_matter['unseen'] == 4 and no_matter['frozen'] <= 4
    same = [row['same_frozen'] for row in result['image_tokens']]
    assert min(same[no_matter['frozen'] :]) >= 0.99
    assert no_matter['frozen'] == 0 or same[no_matter['frozen'] - 1] < 0.99
    assert len(result['image_tokens']) == NUM_BLOCKS + 1
    assert result['image_tokens'][-1]['kl_unseen'] == 0
    assert any('From block 4 of 5 on' in line for line in result['summary'])
    assert all(line in output for line in result['summary'])

    page = (out / 'report.html').read_text()
    assert 'What predicts skippability' in page and result['summary'][-1] in page
    with (out / 'blocks.csv').open() as file:
        assert [int(row['block']) for row in csv.DictReader(file)] == list(range(NUM_BLOCKS))
    with (out / 'correlations.csv').open() as file:
        assert len(list(csv.DictReader(file))) == len(result['correlations'])
    assert (out / 'redundancy.png').stat().st_size > 10_000


def test_it_resumes(gmskip, tmp_path, vlm, monkeypatch):
    """What is measured is kept: the same command measures nothing twice."""
    assert gmskip()[0] == 0
    first = json.loads((tmp_path / 'out' / 'redundancy.json').read_text())
    monkeypatch.delattr('gmskip_ros.vlm.Vlm.continuation_logits')
    monkeypatch.delattr('gmskip_ros.vlm.Vlm.block_states')
    assert gmskip()[0] == 0
    again = json.loads((tmp_path / 'out' / 'redundancy.json').read_text())
    assert {**again, 'created': ''} == {**first, 'created': ''}


def test_answers_without_decoded_tokens(gmskip, tmp_path):
    """Answers of one token: there is nothing to say about decode, and that is no failure."""
    assert gmskip('--max-new-tokens', '1')[0] == 0
    result = json.loads((tmp_path / 'out' / 'redundancy.json').read_text())
    assert {row['cosine_decode'] for row in result['blocks']} == {None}
    by_decode = [each for each in result['correlations'] if each['measure'] == 'cosine_decode']
    assert {(each['spearman'], each['interval']) for each in by_decode} == {(None, None)}
    assert np.isfinite([row['cosine_image'] for row in result['blocks']]).all()


@pytest.mark.parametrize(
    ('options', 'parts'),
    [
        (['--task', 'joint', '--max-new-tokens', '6'], ['joint']),
        (['--images', '0'], ['--images 0']),
        (['--metric', 'beauty'], ["metric 'beauty'"]),
        (['--target', 'car'], ['--target', 'captioning']),
    ],
)
def test_what_is_refused(gmskip, options, parts):
    status, output, errors = gmskip(*options)
    assert (status, output) == (2, '')
    assert errors.startswith('gmskip: error: ') and errors.count('\n') == 1
    assert all(part in errors for part in parts)
