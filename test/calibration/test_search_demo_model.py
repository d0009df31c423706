"""The search with the demo model: every way of answering finds the same, to the last bit."""

from __future__ import annotations

import pytest
from calibration_helpers import make_all_questions

from gmskip_ros.calibration.answering import GIB, Answerer, Pictures
from gmskip_ros.calibration.distributed import Ranks
from gmskip_ros.calibration.objective import make_objective
from gmskip_ros.calibration.search import Search, SearchSettings, SearchState
from gmskip_ros.datasets import open_dataset, write_scenes
from gmskip_ros.tasks import LABEL_SETS, METRICS
from gmskip_ros.vlm import load_vlm

IMAGES = 12
ROUNDS = 4
# A caption alone takes 14 passes; its first words tell skip sets apart as well.
CAPTION_TOKENS = 6


@pytest.fixture(scope='module')
def samples(tmp_path_factory):
    folder = tmp_path_factory.mktemp('scenes')
    write_scenes(folder, IMAGES, seed=5000)
    return open_dataset(folder).samples


@pytest.fixture(scope='module')
def vlm():
    return load_vlm('demo', device='cpu')


@pytest.fixture(scope='module')
def pictures(vlm, samples):
    made = Pictures(vlm, [sample.image_path for sample in samples], GIB, Ranks())
    assert made.encode_all() == {}
    return made


# The exhaustive search asks 1464 times, one by one: minutes.
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    'task, batch_size, memory_gib',
    [
        ('single_object', 40, 0.2),  # one picture at a time, and half of the candidates
        ('multi_object', 100, 4.0),
        ('captioning', 100, 4.0),
    ],
)
def test_the_walk_and_the_race_find_what_lone_answers_find(
    task, batch_size, memory_gib, vlm, samples, pictures
):
    length = CAPTION_TOKENS if task == 'captioning' else None
    questions = make_all_questions(
        samples, task, labels=LABEL_SETS['scenes'], max_new_tokens=length
    )
    image_of = {sample.image_path: i for i, sample in enumerate(samples)}
    objective = make_objective(questions, [METRICS[task][0]], image_of)

    def search(method: str, abandon: bool, **limits: float) -> tuple[SearchState, int]:
        answerer = Answerer(vlm, pictures, Ranks(), method, **limits)
        settings = SearchSettings(min_score_ratio=0.9, rounds=ROUNDS, abandon=abandon)
        return Search(objective, answerer, settings).run(), answerer.token_blocks

    exhaustive, most_work = search('alone', False)
    complete, less_work = search('walk', False)
    # In walks of another shape.
    race, other_work = search('walk', True, batch_size=batch_size, memory_gib=memory_gib)

    assert len(exhaustive.removed) == ROUNDS
    assert exhaustive.stopped_by == complete.stopped_by == race.stopped_by
    assert len({cell.score for one in exhaustive.rounds for cell in one.cells}) > 4
    for alone, walked, raced in zip(exhaustive.rounds, complete.rounds, race.rounds, strict=True):
        assert walked.cells == alone.cells and all(cell.is_exact for cell in alone.cells)
        assert walked.removed == raced.removed == alone.removed
        assert walked.score == raced.score == alone.score
        for exact, cell in zip(alone.cells, raced.cells, strict=True):
            assert cell == exact if cell.is_exact else cell.score >= exact.score
    contributions = [
        [known.contribution for known in state.trunk] for state in (exhaustive, complete, race)
    ]
    assert contributions[0] == contributions[1] == contributions[2]
    assert max(less_work, other_work) < 0.6 * most_work
