"""`gmskip compare` end to end: what it calibrates, chooses, measures, writes and refuses."""

from __future__ import annotations

import csv
import json
import os
import signal

import pytest
from calibrate_process import BEFORE_A_SEARCH, without_reports
from redundant_pair import NUM_BLOCKS, PAIR, make_redundant_pair, write_questions

from gmskip_ros.cli import main
from gmskip_ros.cli.progress import ProgressBars
from gmskip_ros.skipping import load_skip_list
from gmskip_ros.vlm import Vlm

FILES = {
    'answers.jsonl',
    'checkpoint.json',
    'compare.json',
    'compare.csv',
    'compare.md',
    'compare.tex',
    'report.html',
    'score_over_sparsity.png',
    'score_over_sparsity.svg',
    'score_over_speed.png',
    'score_over_speed.svg',
}


@pytest.fixture
def gmskip(monkeypatch, capsys):
    """Run `gmskip compare`; return its exit status, output and errors (see without_reports)."""
    monkeypatch.setattr(main, 'COMMANDS', ('compare',))

    def run(*arguments):
        status = main.main(['compare', *map(str, arguments), '--device', 'cpu'])
        output, errors = capsys.readouterr()
        run.reports = BEFORE_A_SEARCH.findall(errors)
        return status, output, without_reports(errors)

    return run


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    return make_redundant_pair(tmp_path_factory.mktemp('model') / 'pair')


@pytest.fixture(scope='module')
def questions(tmp_path_factory):
    return write_questions(tmp_path_factory.mktemp('data'))


@pytest.fixture
def options(model, questions):
    """Options of a comparison that takes a second."""
    return (
        *('--task', 'generic', '--model', model, '--calibrate-on', questions),
        *('--images', 4, '--test-images', 3, '--max-new-tokens', 1),
        '--no-progress',
    )


def read(folder):
    return json.loads((folder / 'compare.json').read_text())


def rows_of(result, method, seed=None):
    """Return a method's rows with the figures of their sets, by the number of blocks asked for."""
    return {
        row['asked_blocks']: {**row, **result['sets'][row['set']]}
        for row in result['rows']
        if (row['method'], row['seed']) == (method, seed)
    }


def test_one_shot_fails_where_single_scores_do_not_add_up(gmskip, options, tmp_path):
    """Either of two blocks may go: one-shot removes both, GM-Skip looks again after the first."""
    status, out, err = gmskip(
        *('--methods', 'gm-skip,one-shot', '--sparsity', '0.2:0.4:0.2', '--latency-images', 0),
        *(*options, '--out', tmp_path / 'out'),
    )
    assert (status, err) == (0, '')
    result = read(tmp_path / 'out')
    assert result['sets'][0]['evaluation']['score'] == 1
    greedy, one_shot = rows_of(result, 'gm-skip'), rows_of(result, 'one-shot')
    assert greedy[1]['set'] == one_shot[1]['set']
    assert tuple(one_shot[2]['prefill']) == tuple(one_shot[2]['decode']) == PAIR
    assert len(set(greedy[2]['prefill']) & set(PAIR)) == 1
    assert greedy[2]['evaluation']['score'] == 1
    assert one_shot[2]['evaluation']['score'] == 0
    assert one_shot[2]['evaluation']['interval'] == [-1, -1]
    assert len(result['sets']) == 4, 'equal sets are measured once'
    for method in result['methods']:
        assert any('every candidate scored the same' in line for line in method['warnings'])
    assert 'one-shot' in out and 'GM-Skip' in out
    assert 'demo' not in out


def test_lists_files_and_speed(gmskip, options, tmp_path):
    folder = tmp_path / 'out'
    status, out, _ = gmskip(
        *('--methods', 'random,fixed-interval,gm-skip', '--sparsity', '0.2,0.6', '--seeds', 2),
        *('--latency-images', 2, '--latency-rounds', 2, *options, '--out', folder),
    )
    assert status == 0
    assert f'report: {folder / "report.html"}' in out
    assert {path.name for path in folder.iterdir() if path.is_file()} == FILES
    result = read(folder)
    assert result['format'] == 'gmskip/compare/1'
    assert result['dataset']['calibration']['images'] == 4
    assert result['dataset']['test']['images'] == 3
    lists = {method['name']: method['skip_lists'] for method in result['methods']}
    assert lists == {
        'random': [f'random/seed_{seed}/generic.skip.yaml' for seed in (0, 1)],
        'fixed-interval': ['fixed-interval/generic.skip.yaml'],
        'gm-skip': ['gm-skip/generic.skip.yaml'],
    }
    for method, paths in lists.items():
        for seed, path in enumerate(paths):
            skip_list = load_skip_list(folder / path)
            rows = rows_of(result, method, seed if method == 'random' else None)
            assert list(rows) == [1, 3]
            for row in rows.values():
                assert row['num_skipped'] <= row['asked_blocks']
                assert sorted(skip_list.blocks_at(row['num_skipped'])) == row['prefill']
                assert row['sparsity'] == {
                    phase: pytest.approx(len(row[phase]) / NUM_BLOCKS)
                    for phase in ('prefill', 'decode')
                }
    # Of five blocks intervals skip one or two: 3 are not there.
    assert [row['num_skipped'] for row in rows_of(result, 'fixed-interval').values()] == [1, 1]
    for found in result['sets']:
        speed = found['speed']
        assert (speed['questions'], speed['rounds'], speed['answers']) == (2, 2, 4)
        assert speed['speed_up_interval'][0] <= speed['speed_up'] <= speed['speed_up_interval'][1]
        assert speed['tokens'] == 4
        assert speed['decode_ms_per_token'] is None, 'answers of one token have no decode pass'
        assert speed['answers_per_s'] > speed['answers_per_s_with_vision'] > 0
    assert result['sets'][0]['speed']['speed_up'] == 1
    with open(folder / 'compare.csv', newline='') as file:
        records = list(csv.DictReader(file))
    assert len(records) == 1 + len(result['rows'])
    assert [record['method'] for record in records[:3]] == ['full', 'random', 'random']


def test_what_is_there_is_reused(gmskip, options, tmp_path, monkeypatch):
    folder = tmp_path / 'out'
    arguments = ('--latency-images', 1, *options, '--out', folder, '--sparsity', '0.2,0.4')
    assert gmskip('--methods', 'gm-skip,positional', *arguments)[0] == 0
    first = read(folder)

    def refuse(*_, **__):
        raise AssertionError('everything is known')

    with monkeypatch.context() as patched:
        for name in ('answer', 'answer_batch', 'answer_candidates'):
            patched.setattr(Vlm, name, refuse)
        assert gmskip('--methods', 'gm-skip,positional', *arguments)[0] == 0
    again = read(folder)
    assert {**again, 'created': None} == {**first, 'created': None}

    # One more method: only its own sets are calibrated and evaluated, but all are timed again.
    assert gmskip('--methods', 'gm-skip,positional,random', *arguments)[0] == 0
    more = read(folder)
    assert rows_of(more, 'gm-skip')[2]['evaluation'] == rows_of(first, 'gm-skip')[2]['evaluation']
    assert more['sets'][0]['speed'] != first['sets'][0]['speed']
    assert list(rows_of(more, 'random', 0)) == [1, 2]

    # Other sparsities: what is larger is searched from where it ended, the rest is there.
    sizes = ('--methods', 'gm-skip,random,fixed-interval', '--latency-images', 0, *options)
    for sparsities in ('0.2,0.4', '0.2,0.6', '0.4'):
        with monkeypatch.context() as patched:
            if sparsities == '0.4':
                patched.setattr(Vlm, 'answer_candidates', refuse)
            into = ('--out', folder, '--sparsity', sparsities)
            assert gmskip(*sizes, *into)[0] == 0
        fresh = tmp_path / sparsities
        assert gmskip(*sizes, '--out', fresh, '--sparsity', sparsities)[0] == 0
        for key in ('rows', 'sets'):
            assert read(folder)[key] == read(fresh)[key]

    # The same folder with a different seed of the images is refused.
    status, _, err = gmskip('--methods', 'gm-skip', *arguments, '--seed', 5)
    assert status == 2
    assert err.count('\n') == 1 and 'give a different --out' in err


def test_stopped_and_resumed(gmskip, options, tmp_path, monkeypatch):
    folder = tmp_path / 'out'
    arguments = ('--methods', 'gm-skip,one-shot', '--latency-images', 0, '--sparsity', '0.4')
    begin = ProgressBars.begin

    def interrupt(self, target, seed):
        begin(self, target, seed)
        if target == 'one-shot':
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patched:
        patched.setattr(ProgressBars, 'begin', interrupt)
        status, out, err = gmskip(*arguments, *options, '--out', folder)
    assert (status, out) == (130, '')
    assert err == (
        f'gmskip: stopped. Progress is saved in {folder}; run the same command to resume.\n'
    )
    assert (folder / 'gm-skip' / 'generic.skip.yaml').is_file()
    assert gmskip(*arguments, *options, '--out', folder)[0] == 0
    assert gmskip(*arguments, *options, '--out', tmp_path / 'undisturbed')[0] == 0
    resumed, undisturbed = read(folder), read(tmp_path / 'undisturbed')
    assert resumed['sets'] == undisturbed['sets']
    assert resumed['rows'] == undisturbed['rows']


def test_one_phase_for_all(gmskip, options, tmp_path):
    status, out, _ = gmskip(
        *('--methods', 'gm-skip,positional', '--sparsity', '0.2', '--phases', 'decode'),
        *('--latency-images', 0, *options, '--max-new-tokens', 2, '--force', '--out', tmp_path),
    )
    assert status == 0
    result = read(tmp_path)
    assert [method['phases'] for method in result['methods']] == [['decode'], ['decode']]
    for row in result['rows']:
        found = result['sets'][row['set']]
        assert found['prefill'] == [] and len(found['decode']) == 1
        assert found['sparsity'] == {'prefill': 0, 'decode': pytest.approx(1 / NUM_BLOCKS)}
    assert load_skip_list(tmp_path / 'positional/generic.skip.yaml').phases == ('decode',)
    assert '0.0 / 20.0' in out


def test_options_of_some_methods(gmskip, options, tmp_path):
    status, _, _ = gmskip(
        *('--methods', 'positional,fixed-interval,random', '--start', 'end', '--interval', 2),
        *('--sparsity', '0.2,0.4', '--latency-images', 0, *options, '--out', tmp_path),
    )
    assert status == 0
    result = read(tmp_path)
    assert [row['prefill'] for row in rows_of(result, 'positional').values()] == [[4], [3, 4]]
    assert [row['prefill'] for row in rows_of(result, 'fixed-interval').values()] == [[2], [2]]
    assert result['methods'][0]['options'] == {'exhaustive': False, 'start': 'end'}
    assert result['methods'][1]['options'] == {'exhaustive': False, 'intervals': [2]}


def test_a_full_model_that_is_never_right_is_refused_unless_forced(gmskip, options, tmp_path):
    options = [{1: 2}.get(option, option) for option in options]  # 'cc' is no right answer
    arguments = (
        *('--methods', 'positional,random', '--sparsity', '0.2', '--latency-images', 0),
        *(*options, '--out', tmp_path),
    )
    lowest = 'generic: every answer of the full model has the lowest exact there is (0.0)'
    status, out, err = gmskip(*arguments)
    assert (status, out) == (2, '')
    assert err.startswith(f'gmskip: error: this score cannot guide a search: {lowest}')
    [line] = gmskip.reports  # once for all methods
    assert line == (
        "gmskip: generic: exact of the full model 0.0, best constant answer 'c' 100.0, empty "
        'answer 0.0 (x100); answers: 1 different of 4, 1.0 words (references: 1.0)\n'
    )
    assert not list(tmp_path.rglob('*.skip.yaml')) and not (tmp_path / 'compare.json').exists()

    status, _, err = gmskip(*arguments, '--force')
    assert status == 0
    assert gmskip.reports == [line]
    assert err.startswith(f'gmskip: warning: on the images evaluated: {lowest}')
    forced = load_skip_list(tmp_path / 'positional' / 'generic.skip.yaml').forced
    assert forced is not None and forced.startswith(lowest)
    assert (tmp_path / 'report.html').read_text().count('calibrated with --force') == 1
    assert rows_of(read(tmp_path), 'random', 0)[1]['marks'] == []
    assert read(tmp_path)['tokens_per_reference'] == 1


def test_different_datasets(gmskip, model, tmp_path):
    """The images evaluated are all of the second dataset; those calibrated on are all others."""
    a, b = write_questions(tmp_path / 'a', 3), write_questions(tmp_path / 'b', 5)
    for questions in (a, b):
        text = questions.read_text().replace('Which?', questions.parent.name)
        questions.write_text(text)
    status, _, _ = gmskip(
        *('--methods', 'positional', '--sparsity', '0.2', '--task', 'generic', '--model', model),
        *('--calibrate-on', a, '--evaluate-on', b, '--latency-images', 0, '--max-new-tokens', 1),
        *('--out', tmp_path / 'out'),
    )
    assert status == 0
    dataset = read(tmp_path / 'out')['dataset']
    assert (dataset['calibration']['images'], dataset['test']['images']) == (3, 5)
    assert dataset['calibration']['sha256'] != dataset['test']['sha256']


@pytest.mark.parametrize(
    'arguments, message',
    [
        (('--methods', 'gm-skip,best'), "method 'best' is unknown: use gm-skip, one-shot, "),
        (('--methods', 'gm-skip,gm-skip'), 'give different names separated by commas'),
        (('--sparsity', '0.5:1:0.25'), "'0.5:1:0.25': 1.00 is not in [0, 1)"),
        (('--sparsity', '-0.1'), 'is not in [0, 1)'),
        (('--sparsity', '0.5:0.1:0.1'), 'give START:STOP:STEP, such as 0.05:0.5:0.05'),
        (('--sparsity', '0.1:0.5'), 'give START:STOP:STEP'),
        (('--sparsity', 'nan'), 'give START:STOP:STEP'),
        (('--sparsity', '0:0.9:1e-400000'), 'more than 1000 steps'),
        (('--sparsity', '0.1'), 'sparsity 0.1 of 5 blocks is less than one block'),
        (('--phases', 'image'), 'use prefill, decode or prefill+decode'),
        (('--kv', 'input'), "kv 'input' matters only where prefill skips"),
        (('--protect', '3,2'), 'protect 3,2 leaves none of 5 blocks'),
        (('--start', 'end'), '--start has no effect with --methods gm-skip: remove it'),
        (('--seeds', 0), '--seeds 0 must be at least 1'),
        (('--seeds', 3), '--seeds 3 has no effect with --methods gm-skip'),
        (('--latency-rounds', 0), '--latency-rounds 0 must be at least 1'),
        (('--latency-images', -1), '--latency-images -1 must be at least 0'),
        (('--test-images', 0), '--test-images 0 must be at least 1'),
        (('--evaluate-captions', 'x.json'), 'no effect without --evaluate-on'),
        (('--evaluate-on', '/nowhere:val'), '/nowhere: does not exist'),
    ],
)
def test_one_line_for_what_cannot_be_compared(gmskip, options, tmp_path, arguments, message):
    status, out, err = gmskip('--methods', 'gm-skip', *options, *arguments, '--out', tmp_path)
    assert (status, out) == (2, '')
    assert err.startswith('gmskip: error: ') and err.count('\n') == 1
    assert message in err
