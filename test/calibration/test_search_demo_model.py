"""The search with the demo model: every way of answering finds the same, to the last bit."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
from calibration_helpers import make_all_questions

from gmskip_ros.calibration.answering import Answerer
from gmskip_ros.calibration.distributed import Ranks
from gmskip_ros.calibration.images import GIB, Pictures
from gmskip_ros.calibration.methods.gm_skip import Search
from gmskip_ros.calibration.objective import make_objective
from gmskip_ros.calibration.settings import SearchSettings
from gmskip_ros.calibration.trajectory import SearchState
from gmskip_ros.datasets import open_dataset, write_scenes
from gmskip_ros.tasks import LABEL_SETS, METRICS

IMAGES = 12
ROUNDS = 4
# A caption alone takes 14 passes; its first words tell skip sets apart as well.
CAPTION_TOKENS = 6
# Task -> batch size and memory of the race, so that its walks have another shape.
SHAPES = {
    'multi_object': (100, 4.0),
    'single_object': (40, 0.2),  # one picture at a time, and half of the candidates
    'captioning': (100, 4.0),
}


def search_all(task: str, folder: Path) -> dict[str, tuple[SearchState, int]]:
    """Return what each way of answering finds, and its token-blocks. Runs in its own process."""
    import torch

    from gmskip_ros.vlm import load_vlm

    torch.set_num_threads(1)
    vlm = load_vlm('demo', device='cpu')
    samples = open_dataset(folder).samples
    image_of = {sample.image_path: i for i, sample in enumerate(samples)}
    pictures = Pictures(vlm, list(image_of), GIB, Ranks())
    assert pictures.encode_all() == {}
    length = CAPTION_TOKENS if task == 'captioning' else None
    questions = make_all_questions(
        samples, task, labels=LABEL_SETS['scenes'], max_new_tokens=length
    )
    objective = make_objective(questions, [METRICS[task][0]], image_of)

    def search(method: str, abandon: bool, **limits: float) -> tuple[SearchState, int]:
        answerer = Answerer(vlm, pictures, Ranks(), method, **limits)
        settings = SearchSettings(min_score_ratio=0.9, rounds=ROUNDS, abandon=abandon)
        return Search(objective, answerer, settings).run(), answerer.token_blocks

    batch_size, memory_gib = SHAPES[task]
    return {
        'exhaustive': search('alone', False),
        'complete': search('walk', False),
        'race': search('walk', True, batch_size=batch_size, memory_gib=memory_gib),
    }


@pytest.fixture(scope='module')
def found(tmp_path_factory):
    """Task -> the future of what search_all returns; two at a time, one core each."""
    folder = tmp_path_factory.mktemp('scenes')
    write_scenes(folder, IMAGES, seed=5000)
    with ProcessPoolExecutor(2, multiprocessing.get_context('spawn')) as pool:
        yield {task: pool.submit(search_all, task, folder) for task in SHAPES}


# The exhaustive search asks 1464 times, one by one: minutes.
@pytest.mark.timeout(1800)
@pytest.mark.parametrize('task', SHAPES)
def test_the_walk_and_the_race_find_what_lone_answers_find(task, found):
    (exhaustive, most_work), (complete, less_work), (race, other_work) = (
        found[task].result().values()
    )
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
