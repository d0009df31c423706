"""`gmskip calibrate`: what it writes and prints, and what it refuses in one line."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path
from unittest.mock import Mock

import pytest
import yaml
from calibrate_process import found, leftovers, read_json, without_reports
from coco_mini import COCO_MINI, needs_coco_mini
from thin_demo import make_thin_demo

from gmskip_ros.calibration.errors import CalibrationError
from gmskip_ros.calibration.methods.method import Method, Option
from gmskip_ros.calibration.methods.registry import METHODS
from gmskip_ros.calibration.scoring import Scorer
from gmskip_ros.calibration.trajectory import ChosenSets
from gmskip_ros.cli import main
from gmskip_ros.datasets import choose_samples, open_dataset, read_image, write_scenes
from gmskip_ros.datasets.scenes import CLASSES
from gmskip_ros.skipping import OPERATING_POINTS, SkipSet, load_skip_list
from gmskip_ros.tasks import make_task
from gmskip_ros.tasks.scoring import make_scorer
from gmskip_ros.vlm import load_vlm

NUM_BLOCKS = 32
NO_SEARCH = '--method random --sparsity 0.05'
QUICK = {'--images': 3, '--test-images': 2, '--rounds': 2, '--latency-images': 0}
REPORT = [
    'answers.jsonl',
    'calibration.json',
    'heat_map.png',
    'report.html',
    'rounds.jsonl',
    'trade_off.png',
    'trajectory.csv',
]


@pytest.fixture(scope='module')
def vlm():
    return load_vlm('demo', 'cpu')


@pytest.fixture(scope='module')
def thin_vlm(tmp_path_factory):
    return load_vlm(make_thin_demo(tmp_path_factory.mktemp('thin') / 'demo'), 'cpu')


@pytest.fixture(scope='module')
def scenes(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('scenes') / 'scenes'
    write_scenes(folder, 24, 9000)
    return folder


@pytest.fixture
def gmskip(vlm, scenes, monkeypatch, capsys, tmp_path):
    """Run `gmskip calibrate` with the demo model, loaded once, and quick options.

    Returns its status, output and errors (see without_reports). An option of None is not passed.
    """
    monkeypatch.setattr('gmskip_ros.cli.resumable.load_model', lambda *_: vlm)
    monkeypatch.setenv('COLUMNS', '160')

    def run(options: str = '', **changed):
        named = {'--dataset': scenes, '--out': tmp_path / 'out', **QUICK}
        named.update({f'--{name.replace("_", "-")}': value for name, value in changed.items()})
        arguments = [str(part) for pair in named.items() if pair[1] is not None for part in pair]
        status = main.main(['calibrate', *arguments, *options.split(), '--no-progress'])
        output, errors = capsys.readouterr()
        return status, output, without_reports(errors)

    return run


@pytest.fixture
def thin_demo(gmskip, thin_vlm, monkeypatch):
    """Let `gmskip` search a model of fewer blocks."""
    monkeypatch.setattr('gmskip_ros.cli.resumable.load_model', lambda *_: thin_vlm)


def contents(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def is_refused(result, *parts: str) -> bool:
    """Check that a command ended with status 2 and one line that contains all the parts."""
    status, output, errors = result
    assert (status, output) == (2, ''), (status, output, errors)
    assert errors.startswith('gmskip: error: ') and errors.count('\n') == 1, errors
    assert all(part in errors for part in parts), errors
    return True


# What is written


def test_what_is_written(gmskip, vlm, scenes, tmp_path):
    status, output, errors = gmskip(task='single_object', latency_images=1)
    out = tmp_path / 'out'
    assert (status, errors) == (0, '')
    assert contents(out) == sorted([*REPORT, 'checkpoint.json', 'single_object.skip.yaml'])
    skip_list = load_skip_list(out / 'single_object.skip.yaml')
    task = make_task('single_object', labels=CLASSES)
    assert (
        skip_list.warnings_for(
            num_blocks=vlm.num_blocks,
            text_model_type=vlm.text_model_type,
            prompt=task.prompt,
            template_sha256=vlm.template_sha256,
            dtype=vlm.dtype,
            max_new_tokens=task.max_new_tokens,
            task='single_object',
            model='demo',
            match='content',
        )
        == []
    )
    assert [len(skip_list.blocks_at(name)) for name in OPERATING_POINTS] == list(
        skip_list.operating_points.values()
    )
    assert (skip_list.method, skip_list.metric, skip_list.nested) == ('gm-skip', 'accuracy', True)
    assert skip_list.calibration['images'] == 3
    assert skip_list.calibration['dataset'] == open_dataset(scenes).name

    result = read_json(out / 'calibration.json')
    assert result['match'] == skip_list.match == 'content'
    assert 'Strict' in output and 'Forms' in output
    assert all(
        set(one['test']['match_scores']) == {'strict', 'forms'} for one in result['prefixes']
    )
    assert result['format'] == 'gmskip/calibration/1'
    assert result['command'].startswith(f'gmskip calibrate --dataset {scenes}')
    assert result['command'].endswith('--task single_object --no-progress')
    assert [len(one['cells']) for one in result['rounds']] == [32, 31]
    assert all(cell['exact'] for cell in result['rounds'][0]['cells'])
    removed = [one.block for one in skip_list.removed]
    assert [one['removed'] for one in result['rounds']] == removed
    assert [one['blocks'] for one in result['prefixes']] == [[], removed[:1], removed]
    assert [one['test']['images'] for one in result['prefixes']] == [2, 2, 2]
    assert result['operating_points'] == skip_list.operating_points
    assert result['dataset']['calibration']['images'] == 3
    assert result['dataset']['test']['images'] == 2
    for name, images in (('baselines', 3), ('test_baselines', 2)):
        constant = result[name]['constant']
        assert constant['answer'] in task.labels and result[name]['empty'] == 0
        assert round(constant['score'] * images, 9) in (1, 2, 3)
        assert f"'{constant['answer']}' {100 * constant['score']:.1f}" in ' '.join(output.split())
    stated, constant = skip_list.baselines, result['baselines']['constant']
    assert (stated.constant.answer, stated.empty) == (constant['answer'], 0)
    assert stated.constant.score == constant['score']
    # The table, the page and the CSV agree.
    for block, prefix in zip(removed, result['prefixes'][1:], strict=True):
        score, speed_up = 100 * prefix['calibration_score'], prefix['test']['speed_up_with_vision']
        row = rf'{block} +{speed_up:.2f} +{100 * prefix["sparsity"]:.1f} +{score:.1f} '
        assert re.search(row, output), (row, output)
    assert f'skip list: {out / "single_object.skip.yaml"}\n' in output
    with open(out / 'trajectory.csv', newline='') as file:
        assert [row['block'] for row in csv.DictReader(file)] == ['', *map(str, removed)]
    page = (out / 'report.html').read_text()
    assert page.count('<svg') == 2 and not re.search(r'(src|href)=.http', page)
    assert (out / 'trade_off.png').read_bytes().startswith(b'\x89PNG')


@pytest.mark.usefixtures('thin_demo')
def test_synonyms_is_the_old_name_of_a_match(gmskip, tmp_path):
    status, _, errors = gmskip('--synonyms', task='single_object')
    assert status == 0
    assert errors == 'gmskip: warning: --synonyms is deprecated: use --match synonyms\n'
    out = tmp_path / 'out'
    assert load_skip_list(out / 'single_object.skip.yaml').match == 'synonyms'
    status, _, errors = gmskip('--match synonyms', task='single_object')  # resumes
    assert (status, errors) == (0, '')
    assert is_refused(gmskip('--match forms', task='single_object'), 'match')


@pytest.mark.usefixtures('thin_demo')
def test_calibration_and_test_images_are_different(gmskip, thin_vlm, monkeypatch):
    """Each is encoded once, as many as requested."""
    encoded = []
    encode = thin_vlm.encode
    monkeypatch.setattr(
        thin_vlm, 'encode', lambda image: encoded.append(image.tobytes()) or encode(image)
    )
    status, _, errors = gmskip(task='single_object', images=4, test_images=4, rounds=1)
    assert (status, errors) == (0, '')
    assert len(encoded) == len(set(encoded)) == 8


@pytest.mark.usefixtures('thin_demo')
def test_the_search_of_everything_finds_the_same(gmskip, tmp_path):
    for name, option in (('quick', ''), ('alone', '--exhaustive'), ('all', '--no-abandon')):
        options = {'out': tmp_path / name, 'images': 2, 'test_images': 0}
        assert gmskip(option, task='single_object', **options)[0] == 0
    quick, alone, complete = (found(tmp_path / name) for name in ('quick', 'alone', 'all'))
    for one in (quick, alone, complete):
        one['skip list'].pop('provenance')
    # Where every answer is given alone, there is no batch whose rounding would matter.
    margins = [one['skip list'].pop('near_tie_margin', None) for one in (quick, alone, complete)]
    assert margins[1] is None and margins[0] == margins[2] is not None
    assert quick['skip list'] == alone['skip list'] == complete['skip list']
    scores = [
        [[cell['score'] for cell in one['cells']] for one in run['rounds']]
        for run in (alone, complete)
    ]
    assert scores[0] == scores[1]
    assert all(cell['exact'] for one in complete['rounds'] for cell in one['cells'])
    assert quick['rounds'][0]['cells'] == alone['rounds'][0]['cells']


@pytest.mark.usefixtures('thin_demo')
def test_each_target_has_a_list_of_its_own(gmskip, tmp_path):
    options = {'task': 'single_object', 'rounds': 1}
    status, output, errors = gmskip(target='traffic light,pedestrian', **options)
    # A target whose score cannot guide a search does not stop the others.
    refused = 'traffic light: this score cannot guide a search: single_object: every answer of'
    assert status == 2
    assert f'gmskip: warning: {refused}' in errors
    error = 'gmskip: error: not searched, for the reasons above: traffic light; --force searches'
    assert errors.splitlines()[-1].startswith(error)
    assert output.count('skip list: ') == 1
    assert (tmp_path / 'out' / 'pedestrian' / 'report.html').exists()

    status, output, errors = gmskip('--force', target='pedestrian,traffic light', **options)
    assert status == 0
    # Only images that show the target count, so its name scores 100 %. And the demo model never
    # takes a traffic light for the main object of a scene.
    lines = [line.removeprefix('gmskip: warning: ') for line in errors.splitlines()]
    lowest = 'single_object: every answer of the full model has the lowest accuracy'
    beginnings = (
        "single_object: the best constant answer 'pedestrian' scores 100.0",
        f'on the test images: {lowest}',
        f'calibrated with --force, although {lowest}',
        "single_object: the best constant answer 'traffic_light' scores 100.0",
        'round 1: every candidate scored the same',
    )
    assert len(lines) == len(beginnings)
    assert all(map(str.startswith, lines, beginnings)), lines
    for target in ('pedestrian', 'traffic light'):
        folder = target.replace(' ', '_')
        out = tmp_path / 'out' / folder
        path = out / f'single_object_{folder}.skip.yaml'
        assert contents(out) == sorted([*REPORT, 'checkpoint.json', path.name])
        skip_list = load_skip_list(path)
        assert (skip_list.task, skip_list.target) == ('single_object', target)
        result = read_json(out / 'calibration.json')
        assert result['target'] == target
        # Images without the target are asked about as well, but not scored or counted.
        assert result['dataset']['calibration']['images'] == 3
        assert skip_list.calibration['images'] == 3
        assert result['prefixes'][0]['test']['auroc'] is not None
        assert f'skip list: {path}\n' in output


@pytest.mark.usefixtures('thin_demo')
def test_seeds_show_how_stable_the_list_is(gmskip, tmp_path):
    status, _, errors = gmskip(task='single_object', seeds=2)
    assert (status, errors) == (0, '')
    result = read_json(tmp_path / 'out' / 'calibration.json')
    other = load_skip_list(tmp_path / 'out' / 'seed_1' / 'single_object.skip.yaml')
    first = load_skip_list(tmp_path / 'out' / 'single_object.skip.yaml')
    assert (first.calibration['seed'], other.calibration['seed']) == (0, 1)
    assert first.calibration['sha256'] != other.calibration['sha256']
    assert result['stability']['seeds'] == [0, 1]
    for name, point in result['stability']['points'].items():
        sets = [set(one.blocks_at(name)) for one in (first, other)]
        assert point['sets'] == [sorted(one) for one in sets]
        union = len(sets[0] | sets[1])
        assert point['jaccard'] == (len(sets[0] & sets[1]) / union if union else 1)
    assert 'Stability' in (tmp_path / 'out' / 'report.html').read_text()


def test_one_list_for_all_tasks(gmskip, tmp_path, vlm):
    status, _, errors = gmskip(task='joint', rounds=1, images=2, test_images=2)
    assert (status, errors) == (0, '')
    skip_list = load_skip_list(tmp_path / 'out' / 'joint.skip.yaml')
    assert (skip_list.task, skip_list.full_score, skip_list.prompt.text) == ('joint', 1.0, None)
    assert skip_list.metric == 'accuracy, set_f1, cider'
    task = make_task('captioning')
    assert (
        skip_list.warnings_for(
            num_blocks=32,
            text_model_type='llama',
            prompt=task.prompt,
            template_sha256=vlm.template_sha256,
            dtype='float32',
            max_new_tokens=task.max_new_tokens,
            task='captioning',
            model='demo',
        )
        == []
    )


def test_presence(gmskip, tmp_path, vlm):
    options = {'task': 'presence', 'rounds': None, 'images': 3, 'test_images': 2}
    assert gmskip(NO_SEARCH, **options)[0] == 0
    skip_list = load_skip_list(tmp_path / 'out' / 'presence.skip.yaml')
    assert (skip_list.metric, skip_list.match, skip_list.calibration['images']) == (
        'accuracy',
        None,
        3,
    )
    assert (skip_list.prompt.text, skip_list.prompt.max_new_tokens) == (
        'Is there a {label} in the image? Answer yes or no.',
        4,
    )
    # The demo model, trained on other questions, answers with a label: POPE reads that as yes.
    assert (skip_list.full_score, skip_list.baselines.constant.score) == (0.5, 0.5)
    result = read_json(tmp_path / 'out' / 'calibration.json')
    scores = result['prefixes'][0]['test']['scores']
    assert scores['recall'] == scores['adversarial.yes_share'] == 1
    assert result['dataset']['test']['images'] == result['prefixes'][0]['test']['images'] == 2
    task = make_task('captioning')
    warnings = skip_list.warnings_for(
        num_blocks=32,
        text_model_type='llama',
        prompt=task.prompt,
        template_sha256=vlm.template_sha256,
        dtype='float32',
        max_new_tokens=task.max_new_tokens,
        task='captioning',
    )
    assert any("task 'presence', running with 'captioning'" in line for line in warnings)
    again = gmskip(NO_SEARCH, **options, seed=1)  # other images, other questions
    assert is_refused(again, 'checkpoint.json')


def test_a_joint_list_of_chosen_tasks(gmskip, tmp_path):
    status, _, errors = gmskip(
        NO_SEARCH,
        task='joint',
        joint_tasks='presence,single_object',
        rounds=None,
        images=2,
        test_images=2,
    )
    assert status == 0
    # As many labels are absent as present, and the model says yes to all.
    presence = "presence: the best constant answer 'yes' scores 50.0, no less than the full model"
    assert errors.startswith(f'gmskip: warning: {presence}') and errors.count('\n') == 1
    skip_list = load_skip_list(tmp_path / 'out' / 'joint.skip.yaml')
    assert (skip_list.task, skip_list.metric) == ('joint', 'accuracy, accuracy')
    result = read_json(tmp_path / 'out' / 'calibration.json')
    scores = result['prefixes'][0]['test']['scores']
    assert scores['presence.accuracy'] == scores['presence.popular.accuracy'] == 0.5
    assert scores['single_object.accuracy'] == 1 and 'captioning.cider' not in scores


def write_questions(scenes: Path, path: Path, reference: str | None = None) -> None:
    """Write a .jsonl file of questions."""
    questions = ('What is the main object in this image? Answer with one word.', 'What is there?')
    with open(path, 'w') as file:
        for number, sample in enumerate(open_dataset(scenes).samples[:4]):
            line = {
                'image': str(sample.image_path),
                'question': questions[number % 2],
                'references': [reference or sample.main_object],
            }
            file.write(json.dumps(line) + '\n')


@pytest.mark.usefixtures('thin_demo')
@pytest.mark.parametrize('metric', ['exact', 'rouge_l'])
def test_questions_of_a_file(gmskip, scenes, tmp_path, metric):
    write_questions(scenes, tmp_path / 'questions.jsonl')
    status, _, errors = gmskip(
        task='generic',
        dataset=tmp_path / 'questions.jsonl',
        metric=metric,
        max_new_tokens=4,
        images=4,
        test_images=0,
    )
    assert status == 0 and 'error' not in errors
    skip_list = load_skip_list(tmp_path / 'out' / 'generic.skip.yaml')
    assert (skip_list.task, skip_list.metric) == ('generic', metric)
    assert (skip_list.prompt.text, skip_list.prompt.max_new_tokens) == (None, 4)


@pytest.mark.parametrize(
    ('options', 'method', 'blocks'),
    [
        ('--method positional', 'positional-from-0', [0, 1]),
        ('--method positional --start 2', 'positional-from-2', [2, 3]),
        ('--method positional --start end', 'positional-from-end', [31, 30]),
        ('--method random', 'random-0', None),
        ('--method one-shot', 'one-shot', None),
        ('--method one-shot --tie-order forward', 'one-shot-forward-ties', None),
        ('--tie-order forward', 'gm-skip-forward-ties', None),
    ],
)
def test_ablations(gmskip, tmp_path, options, method, blocks):
    status, _, errors = gmskip(
        options, task='single_object', min_score_ratio=0, images=2, test_images=0
    )
    assert status == 0 and 'error' not in errors
    skip_list = load_skip_list(tmp_path / 'out' / 'single_object.skip.yaml')
    result = read_json(tmp_path / 'out' / 'calibration.json')
    removed = [one.block for one in skip_list.removed]
    assert skip_list.method == result['method'] == method and len(removed) == 2
    assert blocks in (None, removed)
    assert result['prefixes'][0]['test'] is None
    first = result['rounds'][0]['cells']
    if 'shot' in method or 'gm' in method:
        best = [cell['block'] for cell in first if cell['score'] == first_best(first)]
        assert len(first) == 32
        assert removed[0] == (min(best) if 'forward' in method else max(best))
    if method.startswith('one-shot'):
        sign = -1 if 'forward' in method else 1
        order = sorted(first, key=lambda cell: (cell['score'], sign * cell['block']))
        assert removed == [order[-1]['block'], order[-2]['block']]


def first_best(cells) -> float:
    return max(cell['score'] for cell in cells)


def test_a_method_is_registered_in_one_place(gmskip, tmp_path, monkeypatch, capsys):
    """The command line offers it with its own options; the list and the record name them."""

    def choose(scorer: Scorer) -> ChosenSets:
        step = scorer.settings.options['step']
        sets = [(), tuple(range(0, 4, step))]
        return ChosenSets(tuple(map(scorer.scored_set, sets)), nested=False, stopped_by='one set')

    dummy = Method(
        'dummy',
        choose,
        summary='every n-th of the first blocks',
        options=(Option('step', '--dummy-step', default=1, help='n', parse=int),),
        uses_seed=True,
        list_name=lambda settings: f'dummy-{settings.options["step"]}',
    )
    assert is_refused(gmskip('--method gm-skip', task='single_object', start=2), '--start')
    monkeypatch.setitem(METHODS, 'dummy', dummy)
    with pytest.raises(SystemExit):
        main.main(['calibrate', '--help'])
    assert 'dummy: every n-th of the first blocks' in ' '.join(capsys.readouterr().out.split())
    assert is_refused(gmskip('--dummy-step 2', task='single_object'), '--dummy-step', 'gm-skip')
    status, _, errors = gmskip(
        '--method dummy --dummy-step 2', task='single_object', images=2, test_images=0
    )
    assert (status, errors) == (0, '')
    skip_list = load_skip_list(tmp_path / 'out' / 'single_object.skip.yaml')
    assert (skip_list.method, dict(skip_list.sets)) == ('dummy-2', {2: (0, 2)})
    result = read_json(tmp_path / 'out' / 'calibration.json')
    assert (result['method'], result['stopped_by']) == ('dummy-2', 'one set')
    assert result['options'] == {'exhaustive': False, 'step': 2, 'seed': 0, 'rounds': 2}
    assert (len(result['prefixes']), result['rounds']) == (2, [])
    assert 'dummy-2' in (tmp_path / 'out' / 'report.html').read_text()


def test_a_search_in_one_phase_of_unprotected_blocks(gmskip, vlm, scenes, tmp_path):
    """Against answers to every candidate, one by one."""
    options = '--phases decode --protect 20,6'
    named = {'task': 'captioning', 'images': 2, 'test_images': 1, 'rounds': 1}
    assert gmskip(options, min_score_ratio=0, **named)[0] == 0
    out = tmp_path / 'out'
    skip_list = load_skip_list(out / 'captioning.skip.yaml')
    result = read_json(out / 'calibration.json')
    assert skip_list.phases == ('decode',) and result['phases'] == ['decode']
    assert (result['protect'], result['kv']) == ([20, 6], 'none')
    cells = {cell['block']: cell['score'] for cell in result['rounds'][0]['cells']}
    assert list(cells) == list(range(20, 26))

    dataset = open_dataset(str(scenes))
    samples, _ = choose_samples(
        [sample for sample in dataset.samples if sample.captions], 2, 1, seed=0
    )
    task = make_task('captioning')
    scorer = make_scorer('cider', [sample.captions for sample in samples], task)
    images = [read_image(sample.image_path) for sample in samples]
    for block, score in cells.items():
        answers = [
            vlm.answer(image, task.prompt, SkipSet(decode=[block]), task.max_new_tokens)
            for image in images
        ]
        scores = [float(scorer.score(i, answer.text)) for i, answer in enumerate(answers)]
        assert score == pytest.approx(sum(scores) / 2, abs=1e-9)
    best = max(cells.values())
    assert [removal.block for removal in skip_list.removed] == [
        max(block for block, score in cells.items() if score == best)
    ]
    page = (out / 'report.html').read_text()
    assert 'gm-skip (decode)' in page


@pytest.mark.usefixtures('thin_demo')
def test_rounds_in_which_every_candidate_ties_are_a_warning(gmskip, tmp_path):
    """Answers of one token have no decode phase, so nothing that is skipped there changes them."""
    status, _, errors = gmskip(
        '--phases decode --force', task='single_object', max_new_tokens=1, images=2, rounds=4
    )
    assert status == 0
    warnings = read_json(tmp_path / 'out' / 'calibration.json')['warnings']
    *_, no_effect, ties = warnings
    assert no_effect.startswith('phases decode: no answer of the full model on the calibration')
    assert ties.startswith('rounds 1, 2, 3, 4: every candidate scored the same, so ')
    page = (tmp_path / 'out' / 'report.html').read_text()
    for warning in (no_effect, ties):
        assert f'gmskip: warning: {warning}' in errors
        assert warning.split(':')[1] in page
    skip_list = load_skip_list(tmp_path / 'out' / 'single_object.skip.yaml')
    assert list(skip_list.cautions) == warnings


@pytest.mark.parametrize('method', ['one-shot', 'random', 'positional'])
def test_a_method_without_a_search_goes_to_the_size_asked_for(gmskip, tmp_path, method):
    """Whatever the score; the smaller sizes come with it, and protected blocks stay."""
    named = {'task': 'single_object', 'images': 2, 'test_images': 0, 'rounds': None}
    options = f'--method {method} --sparsity 0.1,0.25 --protect 1,2'
    assert gmskip(options, min_score_ratio=2, **named)[0] == 0
    skip_list = load_skip_list(tmp_path / 'out' / 'single_object.skip.yaml')
    removed = [removal.block for removal in skip_list.removed]
    assert len(removed) == 8 and not {0, 30, 31} & set(removed)
    result = read_json(tmp_path / 'out' / 'calibration.json')
    assert result['stopped_by'] == 'sparsity 0.25 is reached'
    assert len(result['prefixes']) == 9


@pytest.mark.parametrize(
    ('options', 'parts'),
    [
        ('--protect 20,20', ('protect 20,20', 'none of 32')),
        ('--protect 10,10 --method random --sparsity 0.5', ('sparsity 0.5 is 16', '12')),
        ('--method uidl --sparsity 0.01', ('0.01 of 32 blocks is less than one', 'larger')),
        ('--method random --sparsity 0', ('0 of 32 blocks is less than one', 'larger')),
    ],
)
def test_what_does_not_suit_the_model(gmskip, monkeypatch, options, parts):
    monkeypatch.delattr('gmskip_ros.vlm.Vlm.encode')  # before images are encoded
    result = gmskip(options, task='single_object', rounds=None, images=1, test_images=0)
    assert is_refused(result, *parts)


def test_fixed_intervals(gmskip, vlm, tmp_path):
    status, output, errors = gmskip(
        '--method fixed-interval', task='single_object', images=2, test_images=1, rounds=None
    )
    assert (status, errors) == (0, '')
    skip_list = load_skip_list(tmp_path / 'out' / 'single_object.skip.yaml')
    assert (skip_list.nested, skip_list.method) == (False, 'fixed-interval')
    # Skip-MLLM's shares of 32 blocks: 31.25, 21.88, 15.63, 12.50, 9.38 %.
    expected = {
        len(blocks): blocks
        for interval in (3, 4, 6, 7, 10)
        if (blocks := tuple(i for i in range(1, 31) if i % interval == 0))
    }
    assert sorted(expected) == [3, 4, 5, 7, 10]
    assert {size: tuple(blocks) for size, blocks in skip_list.sets.items()} == expected
    assert skip_list.blocks_at(7) == expected[7]
    assert set(skip_list.operating_points) == set(OPERATING_POINTS)
    for share in ('9.4', '12.5', '15.6', '21.9', '31.2'):
        assert share in output


@pytest.mark.usefixtures('thin_demo')
def test_another_split_is_tested_on(gmskip, scenes, tmp_path):
    data = tmp_path / 'data'
    shutil.copytree(scenes, data)
    write_scenes(tmp_path / 'more', 4, 9100)
    for kind in ('instances', 'captions'):
        shutil.move(
            tmp_path / 'more' / 'annotations' / f'{kind}_scenes.json',
            data / 'annotations' / f'{kind}_other.json',
        )
    shutil.move(tmp_path / 'more' / 'scenes', data / 'other')
    status, _, errors = gmskip(
        task='single_object', dataset=data, split='scenes', test_split='other', rounds=1
    )
    assert (status, errors) == (0, '')
    result = read_json(tmp_path / 'out' / 'calibration.json')
    names = result['dataset']['name'], result['dataset']['test']['name']
    assert names[0] != names[1] and 'other' in names[1]
    assert result['dataset']['test']['images'] == 2


# What is refused, and the message


@pytest.mark.parametrize(
    ('options', 'parts'),
    [
        ('--images 0', ('--images 0', 'at least 1')),
        ('--images -3', ('--images -3', 'at least 1')),
        ('--test-images -1', ('--test-images -1', 'at least 0')),
        ('--latency-images -1', ('--latency-images -1', 'at least 0')),
        ('--batch-size 0', ('--batch-size 0', 'at least 1')),
        ('--memory-gib 0', ('--memory-gib 0', 'above 0')),
        ('--memory-gib nan', ('--memory-gib nan', 'above 0')),
        ('--max-new-tokens 0', ('--max-new-tokens 0', 'at least 1')),
        ('--seeds 0', ('--seeds 0', 'at least 1')),
        ('--rounds 0', ('rounds 0', '1 or more')),
        ('--rounds -2', ('rounds -2', '1 or more')),
        ('--max-sparsity 0', ('max sparsity 0', 'above 0')),
        ('--max-sparsity 1.5', ('max sparsity 1.5', 'at most 1')),
        ('--max-sparsity nan', ('max sparsity nan', 'at most 1')),
        ('--min-score-ratio -1', ('min score ratio -1', '0 or more')),
        ('--min-score-ratio nan', ('min score ratio nan', '0 or more')),
        ('--min-score-ratio 95', ('min score ratio 95', 'at most 2', 'did you mean 0.95?')),
        ('--max-sparsity 50', ('max sparsity 50', 'did you mean 0.5?')),
        ('--method random --sparsity 0.1,25%', ("'0.1,25%'", 'did you mean 0.25?')),
        ('--method random --sparsity 25,50', ("'25,50'", '25', 'did you mean 0.25?')),
        ('--start 2', ('--start', '--method gm-skip')),
        ('--interval 3', ('--interval', '--method gm-skip')),
        ('--method one-shot --start 2', ('--start', '--method one-shot')),
        ('--method one-shot --no-abandon', ('--no-abandon', '--method one-shot')),
        ('--method positional --tie-order forward', ('--tie-order', '--method positional')),
        ('--method positional --interval 3', ('--interval', '--method positional')),
        ('--method random --tie-order backward', ('--tie-order', '--method random')),
        ('--method random --no-abandon', ('--no-abandon', '--method random')),
        ('--method random --start end', ('--start', '--method random')),
        ('--method fixed-interval --rounds 2', ('--rounds', '--method fixed-interval')),
        ('--method fixed-interval --max-sparsity 0.5', ('--max-sparsity', 'fixed-interval')),
        ('--method fixed-interval --tie-order forward', ('--tie-order', 'fixed-interval')),
        ('--exhaustive --no-abandon', ('--exhaustive', '--no-abandon')),
        ('--method nonsense', ("'nonsense'", 'gm-skip', 'one-shot', 'fixed-interval')),
        ('--phases image', ("--phases 'image'", 'prefill, decode or prefill+decode')),
        ('--phases prefill,decode', ("--phases 'prefill,decode'",)),
        ('--phases decode+decode', ("--phases 'decode+decode'",)),
        ('--kv input', ("kv 'input'", 'prefill')),
        ('--kv input --phases decode', ("kv 'input'", 'prefill')),
        ('--protect 3', ("--protect '3'", '1,1')),
        ('--protect=-1,1', ("--protect '-1,1'", '1,1')),
        ('--sparsity 0.5', ('--sparsity', '--method gm-skip', '--rounds')),
        ('--method fixed-interval --sparsity 0.5', ('--sparsity', 'fixed-interval')),
        ('--method random --sparsity 1', ("--sparsity '1'", '[0, 1)')),
        ('--method random --sparsity=-0.5', ("--sparsity '-0.5'", '[0, 1)')),
        ('--method random --sparsity nan', ("--sparsity 'nan'", '0.25,0.5')),
        ('--method random --sparsity half', ("--sparsity 'half'",)),
        ('--method random --sparsity 0.5 --max-sparsity 0.5', ('--max-sparsity', '--sparsity')),
        ('--method random --sparsity 0.5 --rounds 2', ('--rounds', '--sparsity')),
        ('--test-split x --test-images 0', ('--test-split', '--test-images 0')),
        ('--target person,person', ('--target', 'different names')),
        ('--target person,', ('--target', 'different names')),
        ('--target dragon', ("target 'dragon'", 'label set', 'bus', 'choose one')),
        ('--target car,dragon', ("target 'dragon'",)),
        ('--metric beauty', ("metric 'beauty'", 'single_object', 'accuracy')),
        ('--task captioning --labels car', ('--labels', 'captioning')),
        ('--task captioning --synonyms', ('--synonyms', 'captioning')),
        ('--task captioning --match forms', ('--match', 'captioning')),
        ('--synonyms --match forms', ('--match forms', '--synonyms')),
        ('--task captioning --target car', ('--target', 'captioning')),
        ('--task joint --prompt What?', ('--prompt', 'joint')),
        ('--joint-tasks captioning,presence', ('--joint-tasks', '--task joint')),
        ('--task joint --joint-tasks captioning', ('--joint-tasks', 'two or more')),
        ('--task joint --joint-tasks captioning,generic', ('--joint-tasks', 'presence')),
        ('--task presence --match forms', ('--match', 'presence')),
        ('--task presence --prompt What?', ('presence', "'What?'", '{label}')),
        ('--task presence --labels car', ('presence', 'no image lacks a label')),
        ('--task presence --metric f1', ("metric 'f1'", 'presence', 'accuracy')),
        ('--task generic', ('scenes', 'generic', 'choose a different split')),
        ('--split nowhere', ('nowhere',)),
        ('--dataset /nowhere', ('/nowhere',)),
    ],
)
def test_what_is_refused(gmskip, tmp_path, monkeypatch, options, parts):
    """Before the model is loaded, which may take minutes."""
    monkeypatch.delattr('gmskip_ros.cli.resumable.load_model')
    has_limits = any(word in options for word in ('--rounds', 'fixed-interval', '--sparsity'))
    rounds = None if has_limits else 2
    assert is_refused(gmskip(options, task='single_object', rounds=rounds), *parts)
    assert not list(tmp_path.glob('out/*'))


@pytest.mark.parametrize(
    ('intervals', 'part'),
    [
        ('1', 'interval 1'),
        ('40', 'none of 32'),
        ('3,x', 'whole numbers'),
        ('16,17', 'another interval'),
    ],
)
def test_intervals_that_cannot_be(gmskip, monkeypatch, intervals, part):
    monkeypatch.delattr(
        'gmskip_ros.vlm.Vlm.encode'
    )  # before images are encoded, which may take minutes
    result = gmskip(
        '--method fixed-interval',
        task='single_object',
        interval=intervals,
        rounds=None,
        images=1,
        test_images=0,
    )
    assert is_refused(result, part)


def test_what_cannot_be_tested_is_refused_before_the_search(gmskip, tmp_path):
    result = gmskip(task='single_object', metric='visual_gain', test_images=1)
    assert is_refused(result, 'a single image cannot be shuffled')
    assert not list(tmp_path.glob('out/*'))


@pytest.mark.parametrize('task', ['captioning', 'multi_object', 'single_object'])
def test_a_dataset_without_what_the_task_needs(gmskip, scenes, tmp_path, task):
    data = tmp_path / 'data'
    shutil.copytree(scenes, data)
    if task == 'captioning':
        (data / 'annotations' / 'captions_scenes.json').unlink()
    else:
        path = data / 'annotations' / 'instances_scenes.json'
        path.write_text(json.dumps({**read_json(path), 'annotations': []}))
    status, output, errors = gmskip(task=task, dataset=data)
    notes, _, error = errors.rpartition('gmskip: error: ')
    assert is_refused((status, output, 'gmskip: error: ' + error), f'no image for {task}')
    assert ('24 images have no labels' in notes) == (task != 'captioning')


def test_unreadable_images_are_skipped_and_named(gmskip, tmp_path):
    data = tmp_path / 'data'
    write_scenes(data, 5, 9200)
    broken = sorted((data / 'scenes').glob('*.jpg'))[::3]
    for path in broken:
        path.write_bytes(b'not an image')
    status, _, errors = gmskip(
        task='single_object', dataset=data, images=5, test_images=0, rounds=1
    )
    assert status == 0 and len(broken) == 2
    result = read_json(tmp_path / 'out' / 'calibration.json')
    assert result['unreadable'] == [str(path) for path in broken]
    named = [line for line in errors.splitlines() if 'unreadable' in line]
    assert [line.rpartition(' ')[2] for line in named] == result['unreadable']
    assert result['dataset']['calibration']['images'] == 3
    page = (tmp_path / 'out' / 'report.html').read_text()
    assert all(path.name in page for path in broken)


def test_only_unreadable_images_are_an_error(gmskip, scenes, tmp_path):
    data = tmp_path / 'data'
    shutil.copytree(scenes, data)
    for path in (data / 'scenes').glob('*.jpg'):
        path.write_bytes(b'not an image')
    result = gmskip(task='single_object', dataset=data)
    assert is_refused(result, 'scenes', 'can be read', str(data / 'scenes'))


def test_a_full_model_that_scores_nothing_is_refused_unless_forced(
    gmskip, scenes, tmp_path, monkeypatch
):
    write_questions(scenes, tmp_path / 'questions.jsonl', 'xyzzy')
    options = {
        'task': 'generic',
        'dataset': tmp_path / 'questions.jsonl',
        'max_new_tokens': 2,
        'rounds': 1,
    }
    out = tmp_path / 'out'
    with monkeypatch.context() as searching:  # it is refused before the search
        stopped = Mock(side_effect=CalibrationError('stopped'))
        searching.setattr('gmskip_ros.calibration.methods.removal.RemovalSearch.run_round', stopped)
        result = gmskip(**options)
    status, output, errors = result
    assert (status, output) == (2, '')
    error = errors.splitlines()[-1]
    lowest = 'generic: every answer of the full model has the lowest exact there is (0.0): '
    assert error.startswith(f'gmskip: error: this score cannot guide a search: {lowest}')
    assert 'use a different --metric' in error and '--force searches all the same' in error
    assert contents(out) == ['checkpoint.json']  # from which --force goes on

    status, _, errors = gmskip('--force', **options)
    assert status == 0
    forced = 'calibrated with --force, although generic: every answer of the full model has'
    assert f'gmskip: warning: {forced}' in errors
    skip_list = load_skip_list(out / 'generic.skip.yaml')
    assert skip_list.forced is not None and skip_list.forced.startswith('generic: every answer')
    result = read_json(out / 'calibration.json')
    assert result['forced'] == skip_list.forced
    assert result['guidance'][0]['reasons'] == [skip_list.forced]
    page = (out / 'report.html').read_text()
    assert page.index(forced) < page.index('<h2 id="summary">')


@pytest.mark.usefixtures('thin_demo')
def test_joint_with_a_task_that_scores_nothing_is_refused_unless_forced(gmskip, scenes, tmp_path):
    data = tmp_path / 'data'
    shutil.copytree(scenes, data)
    path = data / 'annotations' / 'captions_scenes.json'
    captions = read_json(path)
    for annotation in captions['annotations']:
        annotation['caption'] = 'xyzzy'
    path.write_text(json.dumps(captions))
    options = {'task': 'joint', 'dataset': data, 'images': 2, 'test_images': 0, 'rounds': 1}
    result = gmskip(**options)
    assert is_refused(result, 'guide a search: captioning: no answer can score above 0', '--force')
    status, _, errors = gmskip('--force', **options)
    assert status == 0
    assert 'captioning: the cider of the full model is 0.0, so the joint score leaves' in errors
    skip_list = load_skip_list(tmp_path / 'out' / 'joint.skip.yaml')
    assert skip_list.forced is not None and skip_list.forced.startswith('captioning: no answer')
    assert skip_list.full_score == 1 and len(skip_list.removed) == 1
    assert (tmp_path / 'out' / 'report.html').exists()


def test_weights_that_are_no_numbers(scenes, tmp_path, capsys):
    from safetensors.torch import load_file, save_file

    from gmskip_ros import assets

    model = tmp_path / 'model'
    shutil.copytree(Path(assets.__path__[0]) / 'demo', model)
    weights = load_file(model / 'model.safetensors')
    name = next(name for name in weights if 'layers.7.' in name and 'language' in name)
    weights[name][:] = float('nan')
    save_file(weights, model / 'model.safetensors', {'format': 'pt'})
    status = main.main(
        [
            'calibrate',
            '--task',
            'single_object',
            '--dataset',
            str(scenes),
            '--model',
            str(model),
            '--device',
            'cpu',
            '--out',
            str(tmp_path / 'out'),
            '--images',
            '2',
            '--test-images',
            '0',
        ]
    )
    captured = capsys.readouterr()
    assert is_refused((status, *captured), 'finite')


@pytest.mark.parametrize('kind', ['file', 'below a file', 'not writable'])
def test_a_folder_that_cannot_be_written_to(gmskip, tmp_path, kind):
    (tmp_path / 'file').write_text('')
    out = {
        'file': tmp_path / 'file',
        'below a file': tmp_path / 'file' / 'out',
        'not writable': Path('/proc/self'),  # to root too
    }[kind]
    assert is_refused(gmskip(task='single_object', out=out, rounds=1), str(out))


# Real photographs


@pytest.mark.usefixtures('thin_demo')
@needs_coco_mini
@pytest.mark.parametrize('task', ['single_object', 'multi_object', 'captioning'])
def test_photographs_of_coco_about_which_the_demo_model_knows_nothing(gmskip, tmp_path, task):
    status, output, errors = gmskip(
        '--force',
        task=task,
        dataset=COCO_MINI,
        images=4,
        test_images=3,
        rounds=1,
        max_new_tokens=6,
    )
    assert status == 0, errors
    skip_list = load_skip_list(tmp_path / 'out' / f'{task}.skip.yaml')
    assert skip_list.calibration['dataset'] == 'coco-val2017'
    assert skip_list.forced or skip_list.warnings[0].startswith(f'{task}: the best constant answer')
    result = read_json(tmp_path / 'out' / 'calibration.json')
    assert result['dataset']['test']['images'] == 3
    assert output and leftovers(tmp_path / 'out') == []
    assert yaml.safe_load((tmp_path / 'out' / f'{task}.skip.yaml').read_text())['task'] == task
