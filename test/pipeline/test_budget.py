"""The latency budget: which prefixes are chosen, from simulated frames and through the worker."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from fake_vlm import FakeVlm
from test_worker import Bench, make_benches

from gmskip_ros.pipeline.budget import (
    COST_WINDOW,
    HOLD_FRAMES,
    MIN_FRAMES,
    UNMEASURED,
    FrameTimes,
    Ladder,
    LatencyBudget,
    TaskTimes,
    Work,
    make_ladder,
)
from gmskip_ros.pipeline.gate import Frame
from gmskip_ros.pipeline.pipeline import BranchResult, TaskResult
from gmskip_ros.pipeline.worker import FrameResult
from gmskip_ros.skipping import Removal, SkipList, SkipSet, load_skip_list
from gmskip_ros.vlm import Answer, Timing

NUM_BLOCKS = 32
bench = pytest.fixture(name='bench')(make_benches)


def trajectory(
    scores: Sequence[float | None], full_score: float | None = 1.0, **fields: Any
) -> SkipList:
    """Return a skip list that removes the last block first, with these scores."""
    removed = tuple(Removal(31 - i, score) for i, score in enumerate(scores))
    if not scores or scores[0] is None:
        points = {'high_performance': 0, 'high_sparsity': len(scores)}
        return SkipList('fake', NUM_BLOCKS, 'captioning', removed, points, **fields)
    ratio = {'full_score': full_score, 'min_score_ratio': 0.9}
    return SkipList('fake', NUM_BLOCKS, 'captioning', removed, **{**ratio, **fields})


def lengths_of(ladder: Ladder) -> list[tuple[str | int, ...]]:
    return [rung.points for rung in ladder.rungs]


SCORED = trajectory([1.0, 1.1, 1.1, 1.05, 1.08, 1.0, 0.95, 0.92, 0.5])
UNSCORED = trajectory([None] * 12, None)


# --- which choices there are ---


def test_the_best_scores_come_first_and_of_equal_ones_the_longer() -> None:
    ladder = make_ladder([SCORED], 'high_sparsity', NUM_BLOCKS)
    assert lengths_of(ladder) == [(3,), (5,), (6,), (7,), (8,)]
    assert ladder.fallback.points == ('high_sparsity',)


@pytest.mark.parametrize(
    ('point', 'lengths'),
    [('high_performance', [3]), (2, [2]), (4, [3, 4]), (0, [0]), (9, [3, 5, 6, 7, 8, 9])],
)
def test_the_operating_point_is_the_upper_bound(point: str | int, lengths: list[int]) -> None:
    ladder = make_ladder([SCORED], point, NUM_BLOCKS)
    assert lengths_of(ladder) == [(length,) for length in lengths]
    fastest = 9 if point == 9 else 8  # high_sparsity, unless the bound skips more
    assert ladder.fallback.work == (Work.of(SCORED.skip_set_at(fastest), NUM_BLOCKS),)


def test_without_scores_every_prefix_is_a_choice_the_shortest_first() -> None:
    ladder = make_ladder([UNSCORED], 'high_sparsity', NUM_BLOCKS)
    assert lengths_of(ladder) == [(length,) for length in range(13)]


def test_several_lists_give_way_in_turn() -> None:
    """The one whose next prefix keeps more of its full score; lists without scores evenly."""
    other = trajectory([2.0, 1.98, 1.7], 2.0)
    both = make_ladder([trajectory([1.0, 0.96, 0.91]), other, None], 'high_sparsity', NUM_BLOCKS)
    assert lengths_of(both) == [(1, 1, 0), (1, 2, 0), (2, 2, 0), (3, 2, 0)]
    assert both.fallback.points == ('high_sparsity', 'high_sparsity', 0)
    assert both.rungs[0].work[2] == Work.of(SkipSet(), NUM_BLOCKS)
    even = make_ladder([UNSCORED, trajectory([None] * 13, None)], 2, NUM_BLOCKS)
    assert lengths_of(even) == [(0, 0), (1, 0), (1, 1), (2, 1), (2, 2)]


def test_a_list_that_several_tasks_have_gives_way_for_all() -> None:
    """Equal skip sets share the image's pass with `timing: shared`; a joint score is of all."""
    joint = trajectory([1.0, 0.96, 0.91])
    ladder = make_ladder([joint, trajectory([1.0, 0.96, 0.91]), None], 'high_sparsity', NUM_BLOCKS)
    assert lengths_of(ladder) == [(1, 1, 0), (2, 2, 0), (3, 3, 0)]
    assert ladder.fallback.points == ('high_sparsity', 'high_sparsity', 0)


def test_lists_that_are_not_nested_give_their_sets() -> None:
    sets = {4: (1, 2, 3, 4), 8: tuple(range(10, 18)), 12: tuple(range(12))}
    scored = SkipList(
        'fake',
        NUM_BLOCKS,
        'captioning',
        nested=False,
        sets=sets,
        set_scores={4: 0.8, 8: 0.95, 12: 0.5},
        full_score=1.0,
        min_score_ratio=0.9,
    )
    assert lengths_of(make_ladder([scored], 12, NUM_BLOCKS)) == [(0,), (8,), (12,)]
    assert make_ladder([scored], 12, NUM_BLOCKS).fallback.points == (12,)
    assert make_ladder([scored], 8, NUM_BLOCKS).fallback.points == ('high_sparsity',)
    unscored = SkipList('fake', NUM_BLOCKS, 'captioning', nested=False, sets=sets)
    ladder = make_ladder([unscored], 8, NUM_BLOCKS)
    assert lengths_of(ladder) == [(0,), (4,), (8,)]
    assert ladder.fallback.points == (8,)  # such a list has no high_sparsity


def test_removals_of_one_phase_save_work_in_that_phase() -> None:
    removed = (
        Removal(9, None, ('decode',)),
        Removal(8, None, ('prefill', 'decode')),
        Removal(9, None, ('image',)),
    )
    points = {'high_performance': 0, 'high_sparsity': 3}
    skip_list = SkipList('fake', NUM_BLOCKS, 'captioning', removed, points)
    ladder = make_ladder([skip_list], 'high_sparsity', NUM_BLOCKS)
    decode = [rung.work[0].decode for rung in ladder.rungs]
    assert decode == [32, 31, 30, 30]
    prefill = [rung.work[0].prefill for rung in ladder.rungs]
    assert prefill[0] == prefill[1] > prefill[2] > prefill[3] > 30 - 1


# --- what is chosen ---


class Machine:
    """Answers simulated frames with a budget's choice; `speed` 0.5: everything takes twice as long.

    Each phase also costs what `overhead` blocks would.
    """

    def __init__(
        self, ladder: Ladder, limit_ms: float, overhead: float = 1.5, lengths: Sequence[int] = (10,)
    ) -> None:
        self.budget = LatencyBudget()
        self.ladder, self.overhead, self.lengths = ladder, overhead, lengths
        self.speed = 1.0
        self.random = np.random.default_rng(0)
        self.noise = 0.0
        self.num = 0
        self.budget.use(limit_ms, ladder)

    def times(self) -> FrameTimes:
        """Return the times of a frame: 10 ms apart from 1 ms a block and 0.5 ms a block a token."""
        assert self.budget.rung is not None
        length = self.lengths[self.num % len(self.lengths)]
        self.num += 1
        factor = (1.0 + self.noise * self.random.random()) / self.speed
        tasks = tuple(
            TaskTimes(
                1.0 * (work.prefill + self.overhead) * factor,
                0.5 * length * (work.decode + self.overhead) * factor,
                length,
            )
            for work in self.budget.rung.work
        )
        total_ms = 10.0 * factor + sum(task.prefill_ms + task.decode_ms for task in tasks)
        return FrameTimes(total_ms, tasks)

    def run(self, num_frames: int) -> list[tuple[str | int, ...]]:
        """Answer so many frames; return what each was answered with."""
        points = []
        for _ in range(num_frames):
            assert self.budget.rung is not None
            points.append(self.budget.rung.points)
            self.budget.note(self.times())
        return points


def changes(points: Iterable[tuple[str | int, ...]]) -> list[tuple[str | int, ...]]:
    """Return the points without repetitions of the one before."""
    kept: list[tuple[str | int, ...]] = []
    for each in points:
        if not kept or kept[-1] != each:
            kept.append(each)
    return kept


LADDER = make_ladder([UNSCORED], 'high_sparsity', NUM_BLOCKS)  # 212 ms with 0 blocks, 140 with 12


def test_until_enough_is_measured_the_operating_point_is_used() -> None:
    machine = Machine(LADDER, 1000.0)
    first = machine.run(UNMEASURED + MIN_FRAMES + 1)
    assert first == [(12,)] * (UNMEASURED + MIN_FRAMES) + [(0,)]
    assert machine.budget.facts()['over_budget'] == 0


def test_the_slow_first_frames_are_not_measured() -> None:
    machine = Machine(LADDER, 1000.0)
    machine.speed = 0.01
    machine.run(UNMEASURED)
    machine.speed = 1.0
    assert machine.run(MIN_FRAMES + 1)[-1] == (0,)


def test_the_prefix_grows_with_a_slowdown_and_shrinks_after_it() -> None:
    machine = Machine(LADDER, 240.0)
    machine.noise = 0.05
    assert machine.run(200)[-1] == (0,)
    machine.speed = 0.8
    slow = machine.run(200)
    (shortest, *_) = slow[-1]
    assert 0 < int(shortest) < 12
    assert machine.times().total_ms <= 240.0
    assert len(changes(slow)) <= 4
    first_change = next(i for i, each in enumerate(slow) if each != (0,))
    assert first_change <= COST_WINDOW  # and not after a single slow frame
    assert first_change > 1
    machine.speed = 1.0
    calm = machine.run(200)
    assert calm[-1] == (0,)
    lengths = [int(each[0]) for each in calm]
    assert lengths == sorted(lengths, reverse=True)


def test_a_single_slow_frame_changes_nothing() -> None:
    machine = Machine(LADDER, 240.0)
    machine.run(100)
    for _ in range(20):
        machine.speed = 0.1
        machine.run(1)
        machine.speed = 1.0
        assert set(machine.run(9)) == {(0,)}
    assert machine.budget.facts()['over_budget'] == 20


@pytest.mark.parametrize('limit_ms', [150.0, 170.0, 190.0, 205.0])
@pytest.mark.parametrize('overhead', [-0.5, 0.0, 1.5, 8.0])
def test_noise_does_not_make_it_flap(limit_ms: float, overhead: float) -> None:
    machine = Machine(LADDER, limit_ms, overhead, lengths=(10, 9, 10, 8, 10))
    machine.noise = 0.1
    machine.run(300)
    later = machine.run(1000)
    assert len(changes(later)) <= 4


def test_a_slower_rung_that_proves_too_slow_is_tried_ever_more_rarely() -> None:
    """Whatever is wrong with the estimate: here longer prefixes answer in fewer words."""
    machine = Machine(LADDER, 150.0)
    frames = []
    for _ in range(3000):
        rung = machine.budget.rung
        assert rung is not None
        is_short = rung.points in [(12,), ('high_sparsity',)]
        half_ms = 50.0 if is_short else 100.0
        machine.budget.note(FrameTimes(2 * half_ms, (TaskTimes(half_ms, half_ms, 5),)))
        frames.append(is_short)
    tries = sum(a and not b for a, b in itertools.pairwise(frames))
    assert 2 <= tries <= 9
    assert sum(frames) > 2900


def test_answers_of_different_lengths_are_planned_for_by_the_long_ones() -> None:
    machine = Machine(LADDER, 200.0, lengths=(5, 5, 5, 5, 15))
    points = machine.run(400)
    last = points[-100:]
    assert len(changes(last)) == 1
    over = machine.budget.facts()['over_budget']
    machine.run(100)
    assert machine.budget.facts()['over_budget'] == over


def test_no_prefix_fits() -> None:
    ladder = make_ladder([trajectory([1.0, 1.1, 1.05, 1.0])], 'high_performance', NUM_BLOCKS)
    assert lengths_of(ladder) == [(2,)]
    machine = Machine(ladder, 5.0)
    points = machine.run(100)
    facts = machine.budget.facts()
    assert changes(points) == [(2,), ('high_sparsity',)]
    assert facts['budget_unmet'] == points.count(('high_sparsity',))
    assert facts['over_budget'] == 100
    machine.speed = 100.0
    assert machine.run(100)[-1] == (2,)
    assert machine.budget.facts()['over_budget'] == 100


@pytest.mark.parametrize('share', [1.06, 1.08, 1.11])
def test_what_only_just_fits_is_taken_again_after_a_slowdown(share) -> None:
    ladder = make_ladder([trajectory([1.0, 1.1, 1.05, 1.0])], 'high_performance', NUM_BLOCKS)
    [rung] = ladder.rungs
    machine = Machine(ladder, share * Machine(ladder, 1000.0).times().total_ms)
    assert set(machine.run(50)) == {rung.points}
    machine.speed = 0.5
    assert machine.run(50)[-1] == ladder.fallback.points
    assert machine.budget.is_unmet
    machine.speed = 1.0
    assert machine.run(50)[-1] == rung.points


@pytest.mark.parametrize('share', [1.02, 1.06, 1.2])
def test_a_fallback_that_fits_because_it_is_the_last_rung_is_not_counted(share) -> None:
    last = LADDER.rungs[-1]
    assert last.work == LADDER.fallback.work
    machine = Machine(LADDER, 1000.0)
    needed_ms = machine.times().total_ms  # with the last rung, which is the first one used
    machine = Machine(LADDER, share * needed_ms)
    machine.speed = 0.5
    assert machine.run(50)[-1] == LADDER.fallback.points
    assert machine.budget.is_unmet
    machine.speed = 1.0
    machine.run(50)
    unmet = machine.budget.facts()['budget_unmet']
    machine.run(100)
    assert not machine.budget.is_unmet
    assert machine.budget.facts()['budget_unmet'] == unmet


def test_a_raised_limit_that_just_fits_is_met() -> None:
    ladder = make_ladder([trajectory([1.0, 1.1, 1.05, 1.0])], 'high_performance', NUM_BLOCKS)
    needed_ms = Machine(ladder, 1000.0).times().total_ms
    machine = Machine(ladder, 0.5 * needed_ms)
    machine.run(50)
    assert machine.budget.is_unmet
    machine.budget.use(1.06 * needed_ms, ladder)
    assert machine.run(50)[-1] == ladder.rungs[-1].points
    assert not machine.budget.is_unmet


def test_all_tasks_share_the_budget() -> None:
    ladder = make_ladder([UNSCORED, UNSCORED, None], 'high_sparsity', NUM_BLOCKS)
    machine = Machine(ladder, 560.0)
    first, second, third = machine.run(200)[-1]
    assert 0 < int(second) <= int(first) <= int(second) + 1 and third == 0
    assert 560.0 * 0.85 < machine.times().total_ms <= 560.0


def test_a_restart_measures_anew_and_keeps_the_choice() -> None:
    machine = Machine(LADDER, 240.0)
    machine.run(100)
    assert machine.budget.expected_ms > 0
    machine.budget.restart()
    assert math.isnan(machine.budget.expected_ms)
    machine.speed = 0.1  # the first frames after a pause
    machine.run(UNMEASURED)
    machine.speed = 1.0
    assert set(machine.run(100)) == {(0,)}


def test_a_new_limit_applies_to_what_was_measured_and_other_parameters_change_nothing() -> None:
    machine = Machine(LADDER, 1000.0)
    machine.run(100)
    machine.budget.use(1000.0, make_ladder([UNSCORED], 'high_sparsity', NUM_BLOCKS))
    assert set(machine.run(20)) == {(0,)}
    machine.budget.use(180.0, LADDER)
    before, after = machine.run(2)
    assert before == (0,) and after != (0,)
    machine.budget.use(1000.0, LADDER)
    assert machine.run(UNMEASURED + MIN_FRAMES + 1)[-1] == (0,)
    machine.budget.use(0.0, LADDER)
    assert machine.budget.rung is None and machine.budget.facts()['latency_budget_ms'] == 0.0


def test_a_slower_rung_waits_longer_than_a_faster_one() -> None:
    machine = Machine(LADDER, 240.0)
    machine.run(100)
    machine.speed = 0.8
    machine.run(100)
    held = machine.run(1)
    machine.budget.restart()
    machine.speed = 1.0
    assert set(machine.run(UNMEASURED + HOLD_FRAMES)) == set(held)


# --- the worker ---


class TimedVlm(FakeVlm):
    """Claims `block_ms` of prefill for every block that runs: far more than the test takes."""

    block_ms = 1000.0

    def answer(self, image_or_features: Any, prompt: str, skip: Any = (), *a: Any, **k: Any) -> Any:
        answer: Answer = super().answer(image_or_features, prompt, skip, *a, **k)
        prefill_ms = self.block_ms * (self.num_blocks - len(skip.prefill))
        timing = Timing(1.0, 1.0, prefill_ms, 1.0, 3.0 + prefill_ms)
        return replace(answer, timing=timing)


class BudgetBench:
    """A worker that answers single_object with the published list; frames one after the other."""

    def __init__(self, make: Callable[..., Bench], **settings: Any) -> None:
        self.skips: list[TaskResult] = []
        self.vlm = TimedVlm()
        settings = {'operating_point': 'high_sparsity', **settings}
        self.bench = make(self.vlm, **settings)
        self.bench.publish = self._publish
        self.bench.start()
        self.bench.wait(lambda: self.bench.state() == 'ready')
        self.num = 0

    def _publish(self, frame: Frame, result: FrameResult) -> None:
        if isinstance(result, BranchResult) and result.branch == 'skip':
            self.skips.append(result.tasks[0])

    def run(self, num_frames: int) -> list[TaskResult]:
        """Return the skip branch's results of so many more frames."""
        for _ in range(num_frames):
            self.num += 1
            self.bench.send(float(self.num))
            self.bench.wait_for_answers(self.num)
        return self.skips[-num_frames:]

    def set(self, **settings: Any) -> None:
        self.bench.settings = replace(self.bench.settings, **settings)

    def facts(self) -> dict[str, object]:
        return self.bench.worker.budget.facts()


def test_the_worker_answers_with_what_fits(
    bench: Callable[..., Bench], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    b = BudgetBench(bench, latency_budget_ms=30_000.0)
    results = b.run(40)
    assert results[0].operating_point == '16'  # the operating point, until there are times
    lengths = [int(result.operating_point) for result in results]
    assert lengths == sorted(lengths, reverse=True)
    assert 2 <= lengths[-1] <= 6  # 30 of 32 blocks fit, 27 well within
    skip_list = load_skip_list('gmskip_single_object')
    for result in results:
        assert result.removed_blocks == skip_list.blocks_at(int(result.operating_point))
    skipped = [call[2] for call in b.vlm.calls if call[0] == 'answer' and call[2]]
    assert [skip.blocks for skip in skipped[-40:]] == [
        tuple(sorted(result.removed_blocks)) for result in results
    ]
    plan = b.bench.worker.plan
    assert plan is not None and plan.tasks[0].operating_point == results[-1].operating_point
    assert any('latency_budget_ms 30000: single_object' in r.message for r in caplog.records)
    b.vlm.block_ms = 1200.0
    assert int(b.run(20)[-1].operating_point) > lengths[-1]
    assert b.facts()['over_budget'] == 0  # by the clock, not by what the stand-in claims


def test_a_budget_that_nothing_fits_is_counted_and_frames_are_answered(
    bench: Callable[..., Bench], caplog: pytest.LogCaptureFixture
) -> None:
    b = BudgetBench(bench, latency_budget_ms=1e-3, operating_point='high_performance')
    results = b.run(20)
    assert [result.operating_point for result in results[-5:]] == ['high_sparsity'] * 5
    assert len(results[-1].removed_blocks) == 16
    facts = b.facts()
    assert facts['over_budget'] == 20 and facts['latency_budget_ms'] == 1e-3
    num_unmet = sum(result.operating_point == 'high_sparsity' for result in results)
    assert facts['budget_unmet'] == num_unmet > 0
    assert len([r for r in caplog.records if 'nothing fits' in r.message]) == 1
    assert b.bench.frames()['answered'] == 20


def test_the_budget_can_be_changed_between_frames(bench: Callable[..., Bench]) -> None:
    b = BudgetBench(bench)
    assert b.run(1)[0].operating_point == 'high_sparsity'  # no budget
    b.set(latency_budget_ms=1e6)
    assert b.run(20)[-1].operating_point == '0'
    b.set(rate_hz=2.0)  # nothing of the budget
    assert b.run(2)[-1].operating_point == '0'
    b.set(operating_point=3)
    assert b.run(1)[0].operating_point == '3'  # a new upper bound starts anew
    assert b.run(20)[-1].operating_point == '0'
    b.set(latency_budget_ms=0.0)
    assert b.run(1)[0].operating_point == '3'


def test_a_pause_keeps_the_choice(bench: Callable[..., Bench]) -> None:
    b = BudgetBench(bench, latency_budget_ms=1e6)
    assert b.run(20)[-1].operating_point == '0'
    b.bench.worker.set_enabled(False)
    b.bench.worker.set_enabled(True)
    b.vlm.block_ms = 1e6  # the first frames after it
    b.run(UNMEASURED)
    b.vlm.block_ms = 1000.0
    assert {result.operating_point for result in b.run(MIN_FRAMES + 2)} == {'0'}


def test_tasks_bear_what_their_answers_share_by_their_blocks(
    bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    noted: list[FrameTimes] = []
    note = LatencyBudget.note

    def keep(budget: LatencyBudget, times: FrameTimes) -> None:
        noted.append(times)
        note(budget, times)

    monkeypatch.setattr(LatencyBudget, 'note', keep)
    b = bench(
        timing='shared',
        tasks=['single_object', 'captioning'],
        operating_point='high_sparsity',
        latency_budget_ms=1e-3,
    ).start()
    b.wait(lambda: b.state() == 'ready')
    b.send(1.0)
    b.wait_for_answers()
    [times] = noted
    own_ms = [1.0, 1.0]  # the stand-in's prefill; it claims 4 ms of sharing
    shared = [task.prefill_ms - own for task, own in zip(times.tasks, own_ms, strict=True)]
    assert sum(shared) == pytest.approx(4.0)
    work = [
        Work.of(load_skip_list(f'gmskip_{task}').skip_set_at('high_sparsity'), 32).prefill
        for task in ('single_object', 'captioning')
    ]
    assert work[0] < work[1]
    assert shared[0] / shared[1] == pytest.approx(work[0] / work[1])


def test_without_the_skip_branch_a_budget_has_no_effect(
    bench: Callable[..., Bench], caplog: pytest.LogCaptureFixture
) -> None:
    b = bench(latency_budget_ms=1.0, branches=['full']).start()
    b.wait(lambda: b.state() == 'ready')
    b.send(1.0)
    b.wait_for_answers()
    assert [r.message for r in caplog.records if 'latency_budget_ms has no effect' in r.message]
    assert b.worker.budget.facts()['over_budget'] == 0
