"""Every method's search: against brute force on tables, and interrupted anywhere."""

from __future__ import annotations

import copy
import itertools
import math
import random
from dataclasses import replace
from typing import Any

import pytest
from calibration_helpers import (
    Table,
    brute_force,
    is_enough,
    make_samples,
    random_settings,
    random_table,
    result_of,
    run_search,
)

from gmskip_ros.calibration.errors import CalibrationError
from gmskip_ros.calibration.methods import positional, random_order
from gmskip_ros.calibration.methods.fixed_interval import fixed_interval
from gmskip_ros.calibration.methods.registry import search_settings
from gmskip_ros.calibration.result import tie_warnings
from gmskip_ros.calibration.scoring import Scorer
from gmskip_ros.calibration.settings import Progress, SearchSettings
from gmskip_ros.calibration.trajectory import SearchState
from gmskip_ros.tasks import TASK_NAMES

JOINT_METRICS = 'accuracy,set_precision,cider'
OBJECTIVES = [
    ('single_object', 'accuracy'),
    ('single_object', 'balanced_accuracy'),
    ('single_object', 'visual_gain'),
    ('multi_object', 'set_precision'),
    ('multi_object', 'set_f1'),
    ('captioning', 'cider'),
    ('captioning', 'rouge_l'),
    ('captioning', 'visual_gain'),
    ('joint', JOINT_METRICS),
]
TABLES = 225  # of each objective


def search(table: Table, settings: SearchSettings, **options: Any) -> Scorer:
    """Return what a search is run on, by run_search."""
    return Scorer(table.objective(), options.pop('answerer', table.answerer()), settings, **options)


def check_rounds(state: SearchState, expected: list[Any], why: str, is_complete: bool) -> None:
    assert why in state.stopped_by
    assert len(state.rounds) == len(expected)
    for number, (found, (removed, best, scores)) in enumerate(
        zip(state.rounds, expected, strict=True)
    ):
        assert found.removed == removed
        assert [cell.block for cell in found.cells] == list(scores)
        for cell in found.cells:
            if cell.is_exact:
                assert cell.score == scores[cell.block]
                assert type(cell.score) is type(scores[cell.block])
            else:
                assert cell.score >= scores[cell.block]
            assert cell.is_exact or not (is_complete or number == 0)
        if removed is not None or is_complete:
            assert found.score == best
        else:
            assert found.score == max(cell.score for cell in found.cells) >= best


@pytest.mark.parametrize('task, metric', OBJECTIVES)
def test_it_finds_what_brute_force_finds(task, metric):
    less_work, cut, reasons, bounds, ties = 0, 0, set(), 0, 0
    for seed in range(TABLES):
        table = random_table(task, metric, seed)
        settings = random_settings(seed)
        score_of = table.score_of()
        expected, why = brute_force(score_of, table.num_blocks, settings)
        full = score_of(frozenset())
        asked = []
        for abandon in (False, True):
            one = search(table, random_settings(seed, abandon=abandon))
            state = run_search(one)
            assert one.full_score == full
            check_rounds(state, expected, why, is_complete=not abandon)
            asked.append([*one.answerer.asked])
            cut += one.answerer.num_cut
            # The shuffled images of visual_gain repeat questions.
            assert len(set(asked[-1])) == len(asked[-1]) or metric == 'visual_gain'
            assert len(state.trunk) == len(one.objective.items)
            for blocks in [(), (0,), (2, 1)]:
                assert one.score_of(blocks) == score_of(frozenset(blocks))
            of_trunk = [known.contribution for known in state.trunk]
            assert one.objective.overall(
                one.objective.part_scores(of_trunk), one.full_scores
            ) == score_of(frozenset(state.removed))
            if state.rounds and state.rounds[-1].removed is None:
                ratio = settings.min_score_ratio
                assert not is_enough(state.rounds[-1].score, full, ratio)
        assert len(asked[1]) <= len(asked[0])
        less_work += len(asked[1]) < len(asked[0])
        reasons.add(why)
        bounds += sum(not cell.is_exact for one in state.rounds for cell in one.cells)
        ties += sum(list(s.values()).count(b) > 1 for r, b, s in expected if r is not None)
    # The tables cover every case.
    assert less_work > TABLES / 10
    assert reasons == {'scores below', 'max_sparsity', 'rounds', 'one block'}
    assert bounds > TABLES
    assert ties > TABLES / 4
    assert (cut > 0) == (task in ('single_object', 'joint'))


def test_much_less_is_asked_where_the_full_model_is_nearly_always_right():
    samples = make_samples(100, random.Random(1))
    table = Table(
        'single_object',
        'accuracy',
        16,
        samples,
        seed=2,
        noise=2,
        harm=20,
        harmful=frozenset(range(10)),
    )
    complete, race = (search(table, search_settings(abandon=abandon)) for abandon in (False, True))
    states = run_search(complete), run_search(race)
    assert states[0].removed == states[1].removed
    assert len(states[0].removed) > 3
    assert len(race.answerer.asked) < 0.5 * len(complete.answerer.asked)
    # The first round and the full model are asked about completely.
    round_1 = 100 * 16
    assert sum(len(skip) == 1 for skip, _, _ in race.answerer.asked) == round_1
    assert sum(len(skip) == 0 for skip, _, _ in race.answerer.asked) == 100
    later = [sum(one.token_blocks for one in state.rounds[1:]) for state in states]
    assert later[1] < 0.35 * later[0]


@pytest.mark.parametrize('ratio', [0.9, 1.0, 1.1])
def test_a_full_score_of_zero_stops_nothing(ratio):
    table = Table(
        'single_object', 'accuracy', 4, make_samples(5, random.Random(0)), 0, 0, 0, right=()
    )
    state = run_search(search(table, search_settings(min_score_ratio=ratio)))
    assert state.removed == [3, 2, 1]
    assert [one.score for one in state.rounds] == [0, 0, 0]


@pytest.mark.parametrize('method', ['gm-skip', 'one-shot', 'random'])
def test_without_a_ratio_no_score_stops_a_search(method):
    """Ratio 0 allows no negative score, such as the visual gain of answers given by chance."""
    samples = make_samples(12, random.Random(3))
    table = Table('single_object', 'visual_gain', 5, samples, seed=18, noise=100, harm=0)
    limits = {'max_sparsity': 1.0, 'min_score_ratio': 0.0}
    stopped = run_search(search(table, search_settings(method, **limits)))
    assert 'scores below' in stopped.stopped_by and stopped.rounds[-1].score < 0
    every = search(table, search_settings(method, **limits, stops_at_ratio=False))
    state = run_search(every)
    assert state.stopped_by == 'one block is left'
    assert min(one.score for one in state.rounds) < 0
    assert state.rounds[0].score == max(cell.score for cell in state.rounds[0].cells)


def test_joint_leaves_out_tasks_without_a_score_and_needs_one_that_has_one():
    """Whether it may is for the user to say, with --force."""
    table = Table(
        'joint',
        JOINT_METRICS,
        4,
        make_samples(5, random.Random(0)),
        0,
        0,
        40,
        frozenset((1, 2)),
        right=('single_object', 'captioning'),
    )
    state = run_search(search(table, search_settings('gm-skip', min_score_ratio=0.5)))
    full = table.part_scores()
    assert full[1] == 0 < min(full[0], full[2])
    for done in state.rounds:
        for cell in done.cells:
            if cell.is_exact:
                removed = [each.removed for each in state.rounds[: state.rounds.index(done)]]
                parts = table.part_scores(frozenset((*removed, cell.block)))
                assert cell.score == min(parts[0] / full[0], parts[2] / full[2])
    assert len({cell.score for cell in state.rounds[0].cells}) > 1
    nothing = replace(table, right=())
    with pytest.raises(CalibrationError, match=r'scores 0 in single_object.* needs one above 0'):
        run_search(search(nothing, search_settings()))


# ---- interrupted and taken up again ----------------------------------------------------------


@pytest.mark.parametrize('task, metric', OBJECTIVES)
@pytest.mark.parametrize('abandon', [True, False])
def test_interrupted_anywhere_it_ends_the_same(task, metric, abandon):
    for seed in range(8):
        table, settings = random_table(task, metric, seed), random_settings(seed, abandon=abandon)
        calls = 0

        def count(_: SearchState, is_round: bool) -> None:
            nonlocal calls
            calls += not is_round

        uninterrupted = search(table, settings, on_save=count)
        expected = result_of(run_search(uninterrupted))
        for answered in random.Random(seed).sample(range(calls), min(calls, 8)):
            saved = SearchState()

            def save(state: SearchState, is_round: bool) -> None:
                nonlocal saved
                saved = copy.deepcopy(state)

            first = search(table, settings, answerer=table.answerer(answered), on_save=save)
            with pytest.raises(KeyboardInterrupt):
                run_search(first)
            second = search(table, settings, state=saved)
            assert result_of(run_search(second)) == expected
            # Saved answers are not asked for again.
            asked = len(first.answerer.asked) + len(second.answerer.asked)
            assert asked == len(uninterrupted.answerer.asked)


def test_interrupted_again_and_again_it_ends_the_same():
    for seed in range(40):
        table, settings = random_table('joint', JOINT_METRICS, seed), random_settings(seed)
        expected = result_of(run_search(search(table, settings)))
        state, rng = SearchState(), random.Random(seed)
        for _ in itertools.count():
            answerer = table.answerer(calls=rng.randint(1, 6))
            try:
                run_search(search(table, settings, answerer=answerer, state=state))
                break
            except KeyboardInterrupt:
                state = copy.deepcopy(state)
        assert result_of(state) == expected


@pytest.mark.parametrize('method', ['gm-skip', 'one-shot', 'random'])
@pytest.mark.parametrize('task, metric', [OBJECTIVES[0], OBJECTIVES[5]])
def test_a_search_that_goes_on_ends_as_one_run_at_once(task, metric, method):
    """With more rounds and a lower ratio, cell for cell, having asked for no answer twice."""
    went_on = 0
    for seed in range(40):
        table, rng = random_table(task, metric, seed), random.Random(seed)
        tries = {'abandon': rng.random() < 0.7, 'method': method}
        ratio, rounds = rng.choice([0.8, 1.0]), rng.choice([None, rng.randint(1, 3)])
        narrow = random_settings(seed, **tries, min_score_ratio=ratio, rounds=rounds)
        wide = random_settings(
            seed,
            **tries,
            min_score_ratio=ratio - rng.choice([0, 0.1, 0.8]),
            rounds=None if rounds is None else rounds + rng.randint(0, 3),
        )
        first = run_search(search(table, narrow))
        num_rounds = len(first.removed)
        if wide.min_score_ratio != ratio:
            first.reopen()
        found = run_search(search(table, wide, state=first))
        expected = run_search(search(table, wide))
        assert [(one.removed, one.score, one.cells) for one in found.rounds] == [
            (one.removed, one.score, one.cells) for one in expected.rounds
        ]
        assert (found.trunk, found.stopped_by) == (expected.trunk, expected.stopped_by)
        went_on += len(found.removed) > num_rounds
        # With narrower limits again it has the beginning, and keeps the rest.
        again = search(table, replace(narrow, min_score_ratio=wide.min_score_ratio), state=found)
        run_search(again)
        assert not again.answerer.asked
        assert again.rounds == found.rounds[: narrow.num_removals(table.num_blocks)]
    assert went_on > 3


def test_a_finished_search_asks_nothing_more():
    table, saves = random_table('single_object', 'accuracy', 3), []
    state = run_search(search(table, search_settings()))
    before = result_of(state)
    again = search(table, search_settings(), state=state, on_save=lambda *call: saves.append(call))
    assert result_of(run_search(again)) == before
    assert not again.answerer.asked and not saves


def test_what_is_saved_and_shown_on_the_way():
    table = Table(
        'single_object',
        'accuracy',
        6,
        make_samples(30, random.Random(0)),
        0,
        3,
        40,
        frozenset({1, 4}),
    )
    saves: list[tuple[int, bool]] = []
    shown: list[Progress] = []
    one = search(
        table,
        search_settings(min_score_ratio=0.5),
        on_save=lambda state, is_round: saves.append((len(state.rounds), is_round)),
        on_progress=shown.append,
    )
    state = run_search(one)
    asked = sum(not is_round for _, is_round in saves)
    assert asked < len(shown) <= 2 * asked  # after each, and before some
    # After the full model and after every round.
    ends = [rounds for rounds, is_round in saves if is_round]
    assert ends == [*range(len(state.rounds) + 1)]
    assert [p.round for p in shown] == sorted(p.round for p in shown)
    assert {p.round for p in shown} == set(range(len(state.rounds) + 1))
    assert {p.most_rounds for p in shown} == {5}
    # From the first answers of the full model on, the time left is known.
    assert all((p.seconds_left is not None) == (p.round > 1 or p.done > 0) for p in shown)
    assert shown[-1].seconds_left < max(filter(None, (p.seconds_left for p in shown)))
    fewer = 0
    for number, of_round in itertools.groupby(shown, key=lambda p: p.round):
        steps = list(of_round)
        assert [p.done for p in steps] == sorted(p.done for p in steps)
        last = steps[-1]
        if number > 1:  # pruned candidates reduce it
            totals = [p.total for p in steps]
            assert totals == sorted(totals, reverse=True)
            candidates = [p.candidates for p in steps]
            assert candidates == sorted(candidates, reverse=True)
            fewer += last.candidates < candidates[0]
        assert all(p.done <= p.total for p in steps)
        if number == 0:
            assert (last.done, last.total, last.best_block) == (30, 30, None)
        else:
            assert last.best_block == state.rounds[number - 1].removed
            assert last.best_score == float(state.rounds[number - 1].score)
        if number == 1:
            assert (last.done, last.total, last.candidates) == (180, 180, 6)
    assert fewer


# ---- other orders ------------------------------------------------------------------------------


@pytest.mark.parametrize('right', [(), TASK_NAMES])
def test_rounds_that_may_be_ties_are_named(right):
    """Of answers that are all right, round 1 is a tie; later rounds are cut short by pruning."""
    samples = make_samples(6, random.Random(1))
    table = Table('single_object', 'accuracy', 5, samples, 0, noise=0, harm=0, right=right)
    (line,) = tie_warnings(run_search(search(table, search_settings(rounds=3))).rounds)
    assert line.startswith(
        'round 1: every candidate scored the same (and in rounds 2, 3 none was found worse before '
        'it was pruned), so the answers do not tell '
        if right
        else 'rounds 1, 2, 3: every candidate scored the same, so the answers do not tell '
    )
    harmful = Table(
        'single_object', 'accuracy', 5, samples, 0, noise=0, harm=100, harmful=frozenset([0])
    )
    rounds = run_search(search(harmful, search_settings(rounds=3))).rounds
    assert len({cell.score for cell in rounds[1].cells}) == 1  # one is a bound: block 0 is worse
    assert tie_warnings(rounds) == []


@pytest.mark.parametrize('method', ['one-shot', 'positional', 'random'])
def test_other_methods_remove_in_their_order_as_long_as_it_is_good_enough(method):
    reasons, rankings_differ = set(), 0
    for seed in range(200):
        table = random_table('multi_object', 'set_precision', seed)
        start = random.Random(seed).choice(['0', '2', 'end'])
        settings = random_settings(seed, method=method, seed=seed, start=start)
        score_of, num_blocks = table.score_of(), table.num_blocks
        alone = {block: score_of(frozenset({block})) for block in range(num_blocks)}
        if method == 'one-shot':
            # Best score first; of equal ones the deepest (or, forward, the shallowest).
            sign = -1 if settings.options['tie_order'] == 'backward' else 1
            order = sorted(alone, key=lambda block: (-alone[block], sign * block))
            rankings_differ += order != sorted(order)
        elif method == 'positional':
            order = positional.deletion_order(start, num_blocks)
        else:
            order = random_order.deletion_order(seed, num_blocks)
        expected, why = brute_force(score_of, num_blocks, settings, order)
        if method == 'one-shot' and expected:
            expected[0] = (*expected[0][:2], alone)  # round 1 is what ranks them
        one = search(table, settings)
        check_rounds(run_search(one), expected, why, is_complete=True)
        reasons.add(why)
    assert reasons == {'scores below', 'max_sparsity', 'rounds', 'one block'}
    assert method != 'one-shot' or rankings_differ > 100


def test_deletion_orders():
    assert list(positional.deletion_order('0', 6)) == [0, 1, 2, 3, 4, 5]
    assert list(positional.deletion_order('2', 6)) == [2, 3, 4, 5, 1, 0]
    assert list(positional.deletion_order('end', 6)) == [5, 4, 3, 2, 1, 0]
    random_orders = {tuple(random_order.deletion_order(seed, 6)) for seed in range(50)}
    assert len(random_orders) > 40
    assert {tuple(sorted(order)) for order in random_orders} == {(0, 1, 2, 3, 4, 5)}
    assert random_order.deletion_order(7, 6) == random_order.deletion_order(7, 6)


def test_fixed_intervals_skip_the_shares_of_the_paper():
    shares = [
        round(100 * len(fixed_interval(32, interval)) / 32, 2) for interval in (3, 4, 6, 7, 10)
    ]
    # 31.25, 21.88, 15.63, 12.50 and 9.38 %, with halves rounded up.
    assert shares == [31.25, 21.88, 15.62, 12.5, 9.38]
    assert fixed_interval(32, 10) == (10, 20, 30)
    assert fixed_interval(8, 2) == (2, 4, 6)
    assert fixed_interval(7, 2) == (2, 4)  # the last block stays, and so does the first


@pytest.mark.parametrize('interval', [-1, 0, 1, 31, 100])
def test_an_interval_that_skips_nothing_or_everything_is_refused(interval):
    with pytest.raises(CalibrationError, match=rf'^interval {interval} skips .*: use .*$'):
        fixed_interval(32, interval)


@pytest.mark.parametrize(
    'num_blocks, settings, most',
    [
        (32, {}, 28),
        (8, {}, 7),
        (10, {'max_sparsity': 0.7}, 7),  # 0.7 x 10 is less than 7 in floating point
        (10, {'max_sparsity': 0.69}, 6),
        (10, {'max_sparsity': 1.0}, 9),
        (10, {'max_sparsity': 0.05}, 0),
        (10, {'rounds': 3}, 3),
        (10, {'rounds': 100}, 9),
        (2, {'max_sparsity': 1}, 1),
    ],
)
def test_how_many_blocks_may_go(num_blocks, settings, most):
    assert SearchSettings(**settings).num_removals(num_blocks) == most


@pytest.mark.parametrize(
    'wrong, word',
    [
        ({'method': 'greedy'}, "method 'greedy' is unknown: use gm-skip, "),
        ({'tie_order': 'up'}, "tie order 'up' is unknown: use backward, forward"),
        ({'method': 'positional', 'start': '3'}, "start '3' is unknown: use 0, 2, end"),
        ({'min_score_ratio': -0.1}, 'min score ratio -0.1 '),
        ({'min_score_ratio': math.nan}, 'min score ratio nan '),
        ({'min_score_ratio': math.inf}, 'min score ratio inf '),
        ({'max_sparsity': 0}, 'max sparsity 0 '),
        ({'max_sparsity': 1.1}, 'max sparsity 1.1 '),
        ({'max_sparsity': math.nan}, 'max sparsity nan '),
        ({'rounds': 0}, 'rounds 0 '),
    ],
)
def test_senseless_settings_are_refused_in_one_line(wrong, word):
    with pytest.raises(CalibrationError) as error:
        search_settings(**wrong)
    assert str(error.value).startswith(word) and '\n' not in str(error.value)
