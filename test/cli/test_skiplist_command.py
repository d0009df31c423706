"""`gmskip skiplist`: reselect gives what a search would find; show prints what is in the list."""

from __future__ import annotations

from dataclasses import replace

import pytest
from calibration_helpers import Table, random_table, run_search

from gmskip_ros.calibration.methods.registry import search_settings
from gmskip_ros.calibration.scoring import Scorer
from gmskip_ros.cli import main
from gmskip_ros.skipping import (
    Baselines,
    ConstantBaseline,
    Removal,
    SkipList,
    derive_operating_points,
    load_skip_list,
    save_skip_list,
)


@pytest.fixture
def skiplist(capsys, monkeypatch):
    """Run `gmskip skiplist` and return its exit status, output and errors."""
    monkeypatch.setenv('COLUMNS', '200')

    def run(*arguments):
        status = main.main(['skiplist', *map(str, arguments)])
        return status, *capsys.readouterr()

    return run


def found_by_search(table: Table, ratio: float, method: str) -> SkipList:
    """Return the list that a search writes."""
    settings = search_settings(method, min_score_ratio=ratio)
    scorer = Scorer(table.objective(), table.answerer(), settings)
    state = run_search(scorer)
    removed = [
        Removal(done.removed, float(done.score))
        for done in state.rounds
        if done.removed is not None
    ]
    full_score = float(scorer.full_score)
    return SkipList(
        model='a model',
        num_blocks=table.num_blocks,
        task=table.task,
        metric=table.metric,
        method=method,
        removed=tuple(removed),
        operating_points=derive_operating_points(full_score, [r.score for r in removed], ratio),
        min_score_ratio=ratio,
        full_score=full_score,
        created='2026-11-20T12:00:00Z',
        provenance='gmskip calibrate',
    )


@pytest.mark.parametrize('method', ['gm-skip', 'one-shot', 'random'])
@pytest.mark.parametrize(
    'task, metric',
    [
        ('single_object', 'accuracy'),
        ('multi_object', 'set_f1'),
        ('captioning', 'rouge_l'),
        ('captioning', 'cider'),
    ],
)
def test_it_writes_what_a_search_with_that_ratio_finds(skiplist, tmp_path, method, task, metric):
    found, chosen = tmp_path / 'found.skip.yaml', tmp_path / 'chosen.skip.yaml'
    num_cut = 0
    for seed in range(15):
        table = random_table(task, metric, seed)
        for less, more in ((0.0, 0.5), (0.0, 1.0), (0.9, 0.97), (1.0, 1.0), (0.8, 1.2)):
            before = found_by_search(table, less, method)
            save_skip_list(before, found)
            status, _, _ = skiplist('reselect', found, '--min-score-ratio', more, '--out', chosen)
            assert status == 0
            after = load_skip_list(chosen)
            said = f'gmskip calibrate; gmskip skiplist reselect --min-score-ratio {more}'
            assert after == replace(found_by_search(table, more, method), provenance=said)
            assert load_skip_list(found) == before
            num_cut += len(after.removed) < len(before.removed)
    assert num_cut > 15


def test_the_best_prefix_is_among_the_remaining_ones(skiplist, tmp_path):
    """A later prefix may score better, but a search with that ratio never reaches it."""
    path, out = tmp_path / 'a.skip.yaml', tmp_path / 'b.skip.yaml'
    removed = (Removal(3, 0.5), Removal(1, 0.4), Removal(2, 0.6))
    before = SkipList('m', 4, 'captioning', removed, min_score_ratio=0.0, full_score=0.5)
    assert before.operating_points == {'high_performance': 3, 'high_sparsity': 3}
    save_skip_list(before, path)
    assert skiplist('reselect', path, '--min-score-ratio', 1, '--out', out)[0] == 0
    after = load_skip_list(out)
    assert after.removed == removed[:1]
    assert after.operating_points == {'high_performance': 1, 'high_sparsity': 1}


SCORED = SkipList(
    'm', 8, 'captioning', (Removal(3, 0.5), Removal(1, 0.45)), min_score_ratio=0.9, full_score=0.5
)
POINTS = {'high_performance': 0, 'high_sparsity': 1}
UNSCORED = SkipList('m', 8, 'captioning', (Removal(3),), operating_points=POINTS)
SETS = SkipList(
    'm', 8, 'captioning', nested=False, sets={2: (3, 6)}, min_score_ratio=0.9, full_score=0.5
)


SCORED_SETS = replace(SETS, set_scores={2: 0.4}, min_score_ratio=1.0, operating_points=None)


def test_points_move_where_the_search_did_not_stop_at_the_ratio(skiplist, tmp_path):
    """Lists of given sizes, and sets: all blocks stay, with a higher ratio or a lower one."""
    path, out = tmp_path / 'a.skip.yaml', tmp_path / 'b.skip.yaml'
    removed = (Removal(3, 0.5), Removal(1, 0.4), Removal(2, 0.3))
    beyond = replace(SCORED, removed=removed, min_score_ratio=0.8, operating_points=None)
    for skip_list, ratio, points in (
        (beyond, 1.0, (1, 1)),
        (beyond, 0.8, (1, 2)),
        (beyond, 0.1, (1, 3)),
        (SCORED_SETS, 1.0, (0, 0)),
        (SCORED_SETS, 0.8, (0, 2)),
    ):
        save_skip_list(skip_list, path)
        assert skiplist('reselect', path, '--min-score-ratio', ratio, '--out', out)[0] == 0
        after = load_skip_list(out)
        assert (after.removed, after.sets) == (skip_list.removed, skip_list.sets)
        assert tuple(after.operating_points.values()) == points


@pytest.mark.parametrize(
    'skip_list, ratio, said',
    [
        (SCORED, 0.89, 'stopped at 0.9'),
        (SCORED, float('inf'), '--min-score-ratio inf'),
        (SCORED, float('nan'), '--min-score-ratio nan'),
        (UNSCORED, 1, 'does not record the score'),
        (replace(UNSCORED, full_score=0.5, min_score_ratio=0.9), 1, 'does not record the score'),
        (SkipList('m', 8, 'captioning'), 1, 'does not record the score'),
        (SETS, 1, 'does not record the score'),
        (SCORED_SETS, -1, '--min-score-ratio -1: must be 0 or more'),
        (SCORED_SETS, float('nan'), '--min-score-ratio nan: must be 0 or more'),
        (SCORED_SETS, 95, '--min-score-ratio 95: must be at most 2: did you mean 0.95?'),
    ],
)
def test_what_cannot_be_chosen_is_one_line(skiplist, tmp_path, skip_list, ratio, said):
    path, out = tmp_path / 'a.skip.yaml', tmp_path / 'b.skip.yaml'
    save_skip_list(skip_list, path)
    status, output, errors = skiplist('reselect', path, '--min-score-ratio', ratio, '--out', out)
    assert (status, output, errors.count('\n')) == (2, '', 1)
    assert said in errors
    assert 'calibrate' in errors or ' must be ' in errors
    assert not out.exists()


def test_the_list_itself_is_never_overwritten(skiplist, tmp_path):
    path, link = tmp_path / 'a.skip.yaml', tmp_path / 'link.skip.yaml'
    save_skip_list(SCORED, path)
    link.symlink_to(path)
    for out in (path, link):
        status, _, errors = skiplist('reselect', path, '--min-score-ratio', 1, '--out', out)
        assert status == 2 and 'give a different file' in errors
    assert load_skip_list(path) == SCORED


def test_a_missing_list_is_one_line(skiplist, tmp_path):
    for action in (('show',), ('reselect', '--min-score-ratio', 1, '--out', tmp_path / 'b')):
        status, output, errors = skiplist(*action, tmp_path / 'none.skip.yaml')
        assert (status, output, errors.count('\n')) == (2, '', 1)


def rows(output: str) -> list[list[str]]:
    """Return the cells of the printed table, without its heading."""
    return [
        [cell.strip() for cell in line.strip('│').split('│')]
        for line in output.splitlines()
        if line.startswith('│')
    ]


def test_a_list_is_shown(skiplist, tmp_path):
    path = tmp_path / 'a.skip.yaml'
    save_skip_list(
        replace(SCORED, target='person', provenance='by [hand]', calibration={'images': 12}), path
    )
    status, output, _ = skiplist('show', path)
    assert status == 0
    for line in (
        'model: m, 8 blocks',
        'task: captioning of person',
        'provenance: by [hand]',
        'min score ratio: 0.9',
        'calibrated on: images 12',
    ):
        assert line in output.splitlines()
    assert 'phases' not in output  # both: the usual case
    assert rows(output) == [
        ['0', '0.0 %', '', '0.5000', ''],
        ['1', '12.5 %', '3', '0.5000', 'high_performance'],
        ['2', '25.0 %', '1', '0.4500', 'high_sparsity'],
    ]


def test_points_of_one_length_share_a_row(skiplist, tmp_path):
    path = tmp_path / 'a.skip.yaml'
    save_skip_list(replace(SCORED, removed=SCORED.removed[:1], operating_points=None), path)
    assert rows(skiplist('show', path)[1])[1][-1] == 'high_performance, high_sparsity'


def test_lists_without_scores_and_sets_are_shown(skiplist, tmp_path):
    path = tmp_path / 'a.skip.yaml'
    save_skip_list(replace(UNSCORED, phases=('decode',)), path)
    status, output, _ = skiplist('show', path)
    assert status == 0 and 'phases: decode' in output
    assert rows(output) == [
        ['0', '0.0 %', '', 'not published', 'high_performance'],
        ['1', '12.5 %', '3', 'not published', 'high_sparsity'],
    ]
    save_skip_list(SETS, path)
    status, output, _ = skiplist('show', path)
    assert status == 0
    assert rows(output) == [
        ['0', '0.0 %', '', '0.5000', ''],
        ['2', '25.0 %', '3, 6', 'not in the list', ''],
    ]


def test_what_version_2_states_is_shown(skiplist, tmp_path):
    path = tmp_path / 'a.skip.yaml'
    stated = {
        'quantization': 'int4',
        'kv': 'input',
        'image_kv': 'none',
        'protect': (1, 2),
        'baselines': Baselines(ConstantBaseline('car', 0.25), 0.0),
        'forced': 'accuracy of 0',
        'warnings': ('round 1: all [candidates] tie', 'round 2: as well'),
    }
    save_skip_list(replace(SCORED, **stated), path)
    status, output, _ = skiplist('show', path)
    assert status == 0
    for line in (
        'quantization: int4',
        'kv: input',
        'image_kv: none',
        'protected: first 1, last 2 blocks',
        "best constant answer: 'car' scores 0.2500",
        'empty answer: scores 0.0000',
        'warning: calibrated with --force, although accuracy of 0',
        'warning: round 1: all [candidates] tie',
        'warning: round 2: as well',
    ):
        assert line in output.splitlines()
    assert 'phases' not in output

    removed = (Removal(3, 0.5), Removal(1, 0.45, ('decode',)), Removal(1, 0.45, ('image',)))
    save_skip_list(replace(SCORED, removed=removed, operating_points=None), path)
    status, output, _ = skiplist('show', path)
    assert status == 0 and 'removals' in output and 'blocks skipped' not in output
    assert rows(output) == [
        ['0', '0.0 %', '', '0.5000', '', ''],
        ['1', '12.5 %', '3', '0.5000', 'high_performance', 'prefill, decode'],
        ['2', '25.0 %', '1', '0.4500', '', 'decode'],
        ['3', '25.0 %', '1', '0.4500', 'high_sparsity', 'image'],
    ]
    save_skip_list(SCORED_SETS, path)
    assert rows(skiplist('show', path)[1]) == [
        ['0', '0.0 %', '', '0.5000', 'high_performance, high_sparsity'],
        ['2', '25.0 %', '3, 6', '0.4000', ''],
    ]


def test_shipped_lists_are_found_by_name(skiplist):
    shipped = load_skip_list('demo_captioning')
    status, output, _ = skiplist('show', 'demo_captioning')
    assert status == 0
    assert [row[2] for row in rows(output)[1:]] == [
        str(removal.block) for removal in shipped.removed
    ]


@pytest.mark.parametrize(
    ('text', 'meant'), [('95%', '0.95'), ('0,98', '0.98'), ('87.5 %', '0.875')]
)
def test_a_share_in_other_words_is_refused_with_what_was_meant(capsys, text, meant):
    with pytest.raises(SystemExit):
        main.main(['skiplist', 'reselect', 'x', '--out', 'y', '--min-score-ratio', text])
    assert f'{text!r} is not a number: did you mean {meant}?' in capsys.readouterr().err
