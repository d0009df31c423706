"""`gmskip redundancy`, with a tiny model whose blocks are known by construction."""

from __future__ import annotations

import csv
import html
import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr
from tiny_models import make_tiny_model
from weight_edits import make_identity

from gmskip_ros.calibration.redundancy import (
    CHEAP_MEASURES,
    TARGETS,
    rank_correlations,
    summary,
)
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
    return load_vlm(make_identity(folder, *IDENTITIES), 'cpu')


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
    # Three blocks do anything at all, which is too few to correlate.
    assert result['blocks_that_change']['kl'] == 3
    assert result['summary'][0].startswith('Skipped alone, 3 of 5 blocks make a difference')
    assert result['baselines']['constant']['score'] >= result['full_score']
    assert 'BEATS' in output or 'EQUALS' in output
    assert all(line in output for line in result['summary'])

    page = (out / 'report.html').read_text()
    assert 'What predicts skippability' in page and result['summary'][-1] in html.unescape(page)
    with (out / 'blocks.csv').open() as file:
        assert [int(row['block']) for row in csv.DictReader(file)] == list(range(NUM_BLOCKS))
    with (out / 'correlations.csv').open() as file:
        assert len(list(csv.DictReader(file))) == len(result['correlations'])
    assert (out / 'redundancy.png').stat().st_size > 10_000


def made_up(num_images: int, num_blocks: int, seed: int) -> tuple[dict, np.ndarray]:
    """Return measures and changes of the score that have nothing to do with each other."""
    rng = np.random.default_rng(seed)
    names = [name for name in CHEAP_MEASURES if name != 'depth']
    measured = {name: rng.random((num_images, num_blocks)) for name in [*names, 'kl']}
    return measured, rng.choice([-1.0, 0.0, 1.0], (num_images, num_blocks))


def test_noise_predicts_nothing():
    """The best of eleven measures always correlates somehow: p says how often chance does it."""
    claims = 0
    for seed in range(20):
        found = rank_correlations(*made_up(50, 32, seed))
        lines = summary(found, {'frozen': None, 'unseen': None}, dict.fromkeys(TARGETS, 32), 32)
        claims += sum('is best predicted by' in line for line in lines)
    assert claims <= 6  # of 40, at p = 0.05


def test_a_measure_that_orders_the_blocks_is_found():
    measured, changes = made_up(50, 32, 0)
    measured['kl'] = np.tile(np.arange(32.0), (50, 1))
    measured['visual_attention'] = measured['kl'] ** 3
    found = rank_correlations(measured, changes)
    (row,) = [
        each for each in found if (each['measure'], each['target']) == ('visual_attention', 'kl')
    ]
    assert row['spearman'] == pytest.approx(1)
    assert row['p'] < 0.01 and row['interval'] == pytest.approx([1, 1])
    lines = summary(found, {'frozen': None, 'unseen': None}, dict.fromkeys(TARGETS, 32), 32)
    assert 'is best predicted by visual attention' in lines[0]


def test_a_score_that_one_block_changes_is_no_evidence():
    measured, changes = made_up(50, 32, 0)
    changes = np.zeros_like(changes)
    changes[0, 3] = -1.0
    found = rank_correlations(measured, changes)
    assert {each['interval'] is None for each in found if each['target'] == 'score_change'} == {
        True
    }
    num_changing = {'kl': 32, 'score_change': 1}
    lines = summary(found, {'frozen': None, 'unseen': None}, num_changing, 32)
    assert 'too few to say what predicts it' in lines[1]


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
