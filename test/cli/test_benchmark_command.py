"""`gmskip benchmark calibration` reports what the searches did, and notices a wrong one."""

from __future__ import annotations

import json
from dataclasses import replace
from fractions import Fraction
from types import SimpleNamespace

import pytest
from tiny_models import make_tiny_model

from gmskip_ros.benchmarks.calibration import difference
from gmskip_ros.calibration.answering import Answerer
from gmskip_ros.calibration.distributed import Ranks
from gmskip_ros.calibration.images import EncodedImages
from gmskip_ros.calibration.methods.gm_skip import GreedySearch
from gmskip_ros.calibration.objective import make_objective
from gmskip_ros.calibration.questions import choose_question_samples, make_questions
from gmskip_ros.calibration.scoring import Scorer
from gmskip_ros.calibration.settings import SearchSettings, TaskSettings
from gmskip_ros.calibration.trajectory import Cell, Round
from gmskip_ros.cli import main
from gmskip_ros.datasets import open_dataset, sample_hash, write_scenes
from gmskip_ros.vlm import Vlm, load_vlm

METHODS = ['exhaustive', 'batched', 'walk without abandonment', 'walk']
IMAGES, ROUNDS, SEED = 2, 2, 9100


@pytest.fixture
def benchmark(capsys, monkeypatch):
    """Run `gmskip benchmark calibration` and return its exit status, output and errors."""
    monkeypatch.setenv('COLUMNS', '200')

    def run(*arguments):
        status = main.main(['benchmark', 'calibration', *map(str, arguments)])
        return status, *capsys.readouterr()

    return run


@pytest.fixture(scope='module')
def scenes(tmp_path_factory):
    """A folder with the scenes that the command renders for this seed."""
    folder = tmp_path_factory.mktemp('benchmark') / 'scenes'
    write_scenes(folder, IMAGES, SEED)
    return folder


def test_the_figures_are_those_of_the_searches(benchmark, tmp_path, scenes):
    folder = str(make_tiny_model(tmp_path / 'model', num_blocks=6))
    path = tmp_path / 'figures.json'
    status, output, errors = benchmark(
        '--model',
        folder,
        '--tasks',
        'single_object,captioning',
        '--metric',
        'rouge_l',
        '--images',
        IMAGES,
        '--rounds',
        ROUNDS,
        '--seed',
        SEED,
        '--batch-size',
        40,
        '--json',
        path,
    )
    assert (status, errors) == (0, '')
    report = json.loads(path.read_text())
    assert report['format'] == 'gmskip/benchmark-calibration/1'
    assert (report['num_blocks'], report['rounds'], report['batch_size']) == (6, ROUNDS, 40)
    assert report['command'].startswith(f'gmskip benchmark calibration --model {folder} --tasks')
    dataset = open_dataset(scenes)
    vlm = load_vlm(folder)
    assert report['model'] == vlm.name
    tasks = [TaskSettings(figures['task']) for figures in report['tasks']]
    assert [task.name for task in tasks] == ['single_object', 'captioning']
    assert [figures['metric'] for figures in report['tasks']] == ['accuracy', 'rouge_l']
    samples, _ = choose_question_samples(dataset, tasks, IMAGES, 0, SEED)
    assert report['dataset'] == {
        'name': dataset.name,
        'images': IMAGES,
        'seed': SEED,
        'sha256': sample_hash(samples),
    }
    paths = [sample.image_path for sample in samples]
    images = EncodedImages(vlm, paths, 1 << 30, Ranks())
    images.encode_all()
    for task, figures in zip(tasks, report['tasks'], strict=True):
        questions = make_questions(samples, task, task.make_task(dataset.labels))
        check_task(figures, vlm, images, questions)
        assert f'{task.name}, {ROUNDS} rounds' in output
        for method in METHODS:
            assert f'│ {figures["methods"][method]["token_blocks"]:,} │' in ' '.join(output.split())


def check_task(one, vlm, images, questions):
    """Compare the figures of a task with a search of each method, made here."""
    assert list(one['methods']) == METHODS
    assert one['errors'] == []
    exhaustive = one['methods']['exhaustive']
    for name, way, abandon in zip(
        METHODS, ('alone', 'batched', 'walk', 'walk'), (False, False, False, True), strict=True
    ):
        figures = one['methods'][name]
        scorer = Scorer(
            make_objective([questions], [one['metric']], images.index_of, SEED),
            Answerer(vlm, images, Ranks(), way, batch_size=40),
            SearchSettings(min_score_ratio=0, rounds=ROUNDS),
        )
        GreedySearch(scorer, abandon=abandon).choose()
        assert one['full_score'] == float(scorer.full_score)
        assert 0 <= one['full_share'] <= 1
        assert figures['token_blocks'] == scorer.answerer.token_blocks
        for found, wanted in zip(figures['rounds'], scorer.state.rounds, strict=True):
            seconds = found.pop('seconds')
            assert seconds > 0
            assert found == {
                'removed': wanted.removed,
                'score': float(wanted.score),
                'token_blocks': wanted.token_blocks,
                'cells': len(wanted.cells),
                'exact_cells': sum(cell.is_exact for cell in wanted.cells),
            }
        in_rounds = sum(found['token_blocks'] for found in figures['rounds'])
        of_full = figures['token_blocks'] - in_rounds
        assert of_full > 0  # the full model's answers count too
        assert figures['times_less'] == exhaustive['seconds'] / figures['seconds']
        assert figures['share'] == figures['token_blocks'] / exhaustive['token_blocks']
    assert exhaustive['rounds'][0]['cells'] == vlm.num_blocks


def nonsense(answers):
    """Return the answers with different text."""
    return [replace(answer, text='nonsense') for answer in answers]


@pytest.mark.parametrize(
    'block, said', [(31, 'round 1 removes block'), (30, 'round 1: the score without block 30 is')]
)
def test_wrong_answers_of_the_walk_are_noticed(benchmark, monkeypatch, scenes, block, said):
    """With the block to remove, and with one that stays, where the trajectory is still right."""
    honest = Vlm.answer_candidates

    def dishonest(self, features, prompts, removed, candidates, *rest, **options):
        found = honest(self, features, prompts, removed, candidates, *rest, **options)
        if block in candidates:
            for answers in found:
                [answers[candidates.index(block)]] = nonsense([answers[candidates.index(block)]])
        return found

    monkeypatch.setattr(Vlm, 'answer_candidates', dishonest)
    status, output, errors = benchmark(
        '--tasks', 'single_object', '--dataset', scenes, '--images', 1, '--rounds', 1
    )
    assert status == 1
    assert 'single_object, 1 rounds' in output
    for line, name in zip(errors.splitlines(), METHODS[2:], strict=True):
        assert line.startswith(f'gmskip: wrong: single_object: {name}: {said}')


def test_a_wrong_bound_is_noticed():
    def search(*cells):
        rounds = [Round(7, 1, tuple(cells), 1.0, 1)]
        return SimpleNamespace(
            scorer=SimpleNamespace(full_score=1), state=SimpleNamespace(rounds=rounds)
        )

    winner = Cell(7, 1, True)
    exhaustive = search(Cell(6, Fraction(3, 4), True), winner)
    for score, is_exact, said in (
        (Fraction(3, 4), True, None),
        (Fraction(3, 4), False, None),
        (1, False, None),
        (1, True, 'round 1: the score without block 6 is 1, exhaustive: 3/4'),
        (Fraction(1, 2), False, 'round 1: the upper bound without block 6 is 1/2, exhaustive: 3/4'),
    ):
        assert difference(exhaustive, search(Cell(6, score, is_exact), winner)) == said


def test_a_difference_of_a_batch_is_only_reported(benchmark, monkeypatch, scenes):
    """It has no guard against near ties."""
    honest = Vlm.answer_batch

    def answer_batch(self, features, *rest, **options):
        answers = honest(self, features, *rest, **options)
        return nonsense(answers) if len(features) > 1 else answers

    monkeypatch.setattr(Vlm, 'answer_batch', answer_batch)
    alone, batched = ('alone', False), ('batched', False)
    ways = {'exhaustive': alone, 'batched': batched, 'walk': alone}
    monkeypatch.setattr('gmskip_ros.benchmarks.calibration.METHODS', ways)
    status, output, errors = benchmark(
        '--tasks', 'single_object', '--dataset', scenes, '--images', IMAGES, '--rounds', 1
    )
    assert (status, errors) == (0, '')
    assert 'single_object: batched: the full score is 0, exhaustive: 1' in output
    assert output.startswith('the same result as exhaustive search, with 100 % of its work\n')


def test_a_whole_trajectory_of_a_model_that_is_never_right(benchmark, tmp_path, scenes):
    folder = make_tiny_model(tmp_path / 'model', num_blocks=4)
    path = tmp_path / 'figures.json'
    status, _, _ = benchmark(
        '--model',
        folder,
        '--tasks',
        'single_object',
        '--images',
        IMAGES,
        '--dataset',
        scenes,
        '--threads',
        1,
        '--max-sparsity',
        0.95,
        '--json',
        path,
    )
    assert status == 0
    report = json.loads(path.read_text())
    assert (report['num_blocks'], report['threads']) == (4, 1)
    [figures] = report['tasks']
    assert (figures['full_score'], figures['full_share']) == (0, 0)
    assert [len(figures['methods'][name]['rounds']) for name in METHODS] == [3] * 4


@pytest.mark.parametrize(
    'arguments, said',
    [
        (['--tasks', 'single_object,generic'], "'generic' is unknown"),
        (
            ['--tasks', 'captioning', '--metric', 'accuracy'],
            "'accuracy' is not defined for captioning",
        ),
        (['--images', 0], '--images 0'),
        (['--batch-size', 0], '--batch-size 0'),
        (['--memory-gib', 0], '--memory-gib 0'),
        (['--rounds', 0], 'rounds 0'),
        (['--max-sparsity', 0], 'max sparsity 0'),
        (['--split', 'val2017'], '--split'),
        (['--dataset', 'no-such-folder'], 'no-such-folder'),
    ],
)
def test_bad_input_is_one_line(benchmark, arguments, said):
    status, output, errors = benchmark(*arguments)
    assert (status, output, errors.count('\n')) == (2, '', 1)
    assert said in errors


def test_a_negative_number_of_threads_is_refused(benchmark, capsys):
    with pytest.raises(SystemExit):
        benchmark('--threads', -1)
    assert "argument --threads: '-1' is not a whole number of at least 0" in capsys.readouterr().err


def test_a_file_that_cannot_be_written_is_refused_before_the_work(benchmark, tmp_path):
    status, output, errors = benchmark('--json', tmp_path / 'none' / 'figures.json')
    assert (status, output, errors.count('\n')) == (2, '', 1)
    assert 'figures.json' in errors
