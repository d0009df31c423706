"""The search on the demo model: every way of answering finds the same, to the last bit.

Each search starts where the task's shipped list has removed 18 of 32 blocks. There an answer and
the number of candidates cost little, and answers differ more than near the full model. (From the
full model on: test_calibrate_command.)
"""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from calibration_helpers import make_all_questions

from gmskip_ros.calibration.answering import Answerer
from gmskip_ros.calibration.distributed import Ranks
from gmskip_ros.calibration.images import EncodedImages
from gmskip_ros.calibration.methods.gm_skip import GreedySearch
from gmskip_ros.calibration.objective import make_objective
from gmskip_ros.calibration.scoring import Scorer
from gmskip_ros.calibration.settings import GIB, SearchSettings
from gmskip_ros.calibration.trajectory import FULL, Round, SearchState
from gmskip_ros.datasets import open_dataset, write_scenes
from gmskip_ros.skipping import load_skip_list
from gmskip_ros.tasks import LABEL_SETS, METRICS
from gmskip_ros.vlm import load_vlm

IMAGES = 10
START, ROUNDS = 18, 3
# A whole caption takes 14 passes; its first words distinguish skip sets as well.
CAPTION_TOKENS = 6
# Task -> batch size and memory of the race, so that its walks have a different shape.
SHAPES = {
    'multi_object': (100, 4 * GIB),
    'single_object': (40, GIB // 5),  # one image at a time, and half of the candidates
    'captioning': (100, 4 * GIB),
}


@pytest.fixture(scope='module')
def demo(tmp_path_factory):
    """The demo model on one thread, samples and their encoded images."""
    folder = tmp_path_factory.mktemp('scenes')
    write_scenes(folder, IMAGES, seed=5000)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    vlm = load_vlm('demo', device='cpu')
    samples = open_dataset(folder).samples
    images = EncodedImages(vlm, [sample.image_path for sample in samples], GIB, Ranks())
    assert images.encode_all() == {}
    yield SimpleNamespace(vlm=vlm, samples=samples, images=images)
    torch.set_num_threads(threads)


@pytest.mark.parametrize('task', SHAPES)
def test_the_walk_and_the_race_find_what_lone_answers_find(task, demo):
    questions = make_all_questions(
        demo.samples,
        task,
        labels=LABEL_SETS['scenes'],
        max_new_tokens=CAPTION_TOKENS if task == 'captioning' else None,
    )
    objective = make_objective(questions, [METRICS[task][0]], demo.images.index_of)

    def make_search(
        method: str, state: SearchState, abandon: bool = False, **limits: int
    ) -> GreedySearch:
        answerer = Answerer(demo.vlm, demo.images, Ranks(), method, **limits)
        settings = SearchSettings(min_score_ratio=0.5, rounds=START + ROUNDS)
        return GreedySearch(Scorer(objective, answerer, settings, state), abandon=abandon)

    state = SearchState()
    scorer = make_search('alone', state).scorer
    scorer.score_full()
    removed = load_skip_list(f'demo_{task}').blocks_at(START)
    state.rounds = [Round(block, scorer.full_score, (), 0.0, 0) for block in removed]
    scorer.answer_items([FULL], range(IMAGES))
    state.trunk = scorer.answers_of(FULL)
    state.shortfall = [0.0] * IMAGES
    state.begin_round()

    exhaustive = make_search('alone', copy.deepcopy(state))
    complete = make_search('walk', copy.deepcopy(state))
    assert exhaustive.run_round() and complete.run_round()
    # A race asks about everything in its first round: it takes this one over.
    batch_size, memory_bytes = SHAPES[task]
    race = make_search(
        'walk',
        copy.deepcopy(complete.state),
        abandon=True,
        batch_size=batch_size,
        memory_bytes=memory_bytes,
    )
    for search in (exhaustive, complete, race):
        while search.run_round():
            pass

    rounds = [search.state.rounds[START:] for search in (exhaustive, complete, race)]
    assert len(exhaustive.state.removed) == START + ROUNDS
    assert len({search.state.stopped_by for search in (exhaustive, complete, race)}) == 1
    scores = [[cell.score for cell in alone.cells] for alone in rounds[0]]
    assert len(set().union(*scores)) > 4
    assert any(of_round.count(max(of_round)) > 1 for of_round in scores)  # a tie for the best
    for alone, walked, raced in zip(*rounds, strict=True):
        assert walked.cells == alone.cells and all(cell.is_exact for cell in alone.cells)
        assert walked.removed == raced.removed == alone.removed
        assert walked.score == raced.score == alone.score
        for exact, cell in zip(alone.cells, raced.cells, strict=True):
            assert cell == exact if cell.is_exact else cell.score >= exact.score
    contributions = [
        [answer.contribution for answer in search.state.trunk]
        for search in (exhaustive, complete, race)
    ]
    assert contributions[0] == contributions[1] == contributions[2]
    most_work, less_work = (
        search.scorer.answerer.token_blocks for search in (exhaustive, complete)
    )
    raced_work = sum(raced.token_blocks for raced in rounds[2][1:])
    later_work = sum(alone.token_blocks for alone in rounds[0][1:])
    assert less_work < 0.6 * most_work and raced_work < 0.6 * later_work
