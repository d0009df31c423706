"""`gmskip evaluate` end to end on the demo model: tables, JSON, files, one line for bad input."""

from __future__ import annotations

import csv
import json
import os
import socket
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import pytest
from coco_mini import COCO_MINI, needs_coco_mini
from tiny_models import make_tiny_model

from gmskip_ros.calibration.questions import choose_question_samples
from gmskip_ros.calibration.settings import task_settings
from gmskip_ros.cli import main
from gmskip_ros.cli.ask import read_photo
from gmskip_ros.datasets import open_dataset, sample_hash, write_scenes
from gmskip_ros.skipping import Removal, SkipSet, load_skip_list, save_skip_list
from gmskip_ros.tasks import make_task
from gmskip_ros.vlm import load_vlm

SPEED_UPS = [f'speed_up{of}{part}' for of in ('', '_with_vision') for part in ('', '_interval')]
QUICK = ('--images', 4, '--latency-images', 0, '--interval', 'none')


@pytest.fixture
def gmskip(monkeypatch, capsys):
    """Run `gmskip evaluate` and return its exit status, output and errors."""
    monkeypatch.setattr(main, 'COMMANDS', ('evaluate',))

    def run(*arguments):
        if '--task' not in arguments:
            arguments = ('--task', 'single_object', *arguments)
        status = main.main(['evaluate', *map(str, arguments), '--device', 'cpu'])
        return status, *capsys.readouterr()

    return run


@pytest.fixture(scope='module')
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp('scenes') / 'out'
    write_scenes(folder, 10, 300)
    return folder


def write_list(path, **changes):
    """Write a short skip list for the demo model and return its path."""
    made = replace(
        load_skip_list('demo_single_object'),
        removed=(Removal(31, 0.9), Removal(4, 0.8)),
        full_score=0.9,
        min_score_ratio=0.5,
        operating_points=None,
        **changes,
    )
    save_skip_list(made, path)
    return path


def test_tables_json_and_files(gmskip, scenes, tmp_path):
    made = write_list(tmp_path / 'my.skip.yaml')
    out = tmp_path / 'new' / 'out'
    options = (
        '--dataset',
        scenes,
        '--images',
        4,
        '--seed',
        7,
        '--latency-images',
        2,
        '--skip-list',
        made,
        '--interval',
        '10,15',
        '--operating-point',
        'high_sparsity,1',
    )
    status, output, errors = gmskip(*options, '--out', out, '--json')
    assert (status, errors) == (0, '')
    result = json.loads(output)
    assert json.loads((out / 'evaluation.json').read_text()) == result
    assert result['format'] == 'gmskip/evaluation/1'
    assert result['command'].startswith('gmskip evaluate --task single_object --dataset ')
    assert (result['model'], result['num_blocks'], result['metric']) == ('demo', 32, 'accuracy')
    dataset = open_dataset(scenes)
    _, samples = choose_question_samples(dataset, task_settings('single_object'), 0, 4, 7)
    test = {'images': 4, 'asked': 4, 'found': 10, 'sha256': sample_hash(samples), 'seed': 7}
    assert result['dataset']['test'] == test
    rows = [(row['name'], row['blocks'], row['source']) for row in result['rows']]
    assert rows == [
        ('Full', [], None),
        ('Fixed interval 10', [10, 20, 30], None),
        ('Fixed interval 15', [15, 30], None),
        ('GM-Skip high sparsity', [31, 4], str(made)),
        ('GM-Skip 1 block', [31], str(made)),
    ]
    for row in result['rows']:
        assert row['sparsity'] == len(row['blocks']) / 32
        assert row['evaluation']['images'] == 4
        assert row['evaluation']['language_ms'] > 0
    assert result['rows'][0]['evaluation']['latency_cut'] == 0
    [(_, count)] = Counter(sample.main_object for sample in samples).most_common(1)
    assert result['baselines']['constant']['score'] == count / 4
    assert result['baselines']['empty'] == 0

    table = list(csv.DictReader((out / 'evaluation.csv').open()))
    assert [row['name'] for row in table] == [row[0] for row in rows]
    assert table[1]['score'] == str(result['rows'][1]['evaluation']['score'])
    page = (out / 'report.html').read_text()
    assert 'Fixed interval 15' in page and 'AUROC' in page
    assert 'Best constant answer: ' in page


def test_the_demo_has_its_own_list_and_equal_sets_are_one_row(gmskip, scenes):
    length = load_skip_list('demo_single_object').operating_points['high_performance']
    points = f'high_performance,{length}'
    status, output, errors = gmskip('--dataset', scenes, *QUICK, '--operating-point', points)
    assert (status, errors) == (0, '')
    names = {line.strip() for line in output.splitlines()}
    assert any(name.startswith('Full') for name in names)
    assert 'Does it still look at the picture?' in names
    output = gmskip('--dataset', scenes, *QUICK, '--json', '--operating-point', points)[1]
    assert f'GM-Skip high performance, GM-Skip {length} blocks' in ' '.join(output.split())


def test_calibration_images_are_skipped(gmskip, scenes, tmp_path):
    dataset = open_dataset(scenes)
    settings = task_settings('single_object')
    calibrated, _ = choose_question_samples(dataset, settings, 6, 0, 7)
    assert dataset.name == 'scenes-300-10'
    made_on = {'dataset': dataset.name, 'images': 6, 'seed': 7, 'sha256': sample_hash(calibrated)}
    options = ('--dataset', scenes, '--latency-images', 0, '--interval', 'none', '--json')
    made = write_list(tmp_path / 'a.skip.yaml', calibration=made_on)
    status, output, errors = gmskip(*options, '--skip-list', made)
    assert (status, errors) == (
        0,
        f'gmskip: 6 images that {made} was calibrated on are skipped\n'
        'gmskip: scenes-300-10: 4 of 4 images suit single_object; used: 4 of 1,000 asked for to '
        'test on\n',
    )
    rest = {sample.key for sample in dataset.samples} - {sample.key for sample in calibrated}
    test = json.loads(output)['dataset']['test']
    assert test['images'] == 4
    # With the same seed they are the images that calibration would test on.
    _, tested = choose_question_samples(dataset, settings, 6, 4, 7)
    assert {sample.key for sample in tested} == rest
    _, output, _ = gmskip(*options, '--skip-list', made, '--seed', 7)
    assert json.loads(output)['dataset']['test']['sha256'] == sample_hash(tested)

    # With different files or options it cannot be determined.
    unknown = write_list(tmp_path / 'b.skip.yaml', calibration={**made_on, 'sha256': '0' * 64})
    status, output, errors = gmskip(*options, '--skip-list', unknown, '--images', 4)
    assert status == 0 and 'some of them may be evaluated' in errors
    for elsewhere, is_reported in (('scenes-0-300', False), ('scenes-0-301', True)):
        other = write_list(tmp_path / 'c.skip.yaml', calibration={**made_on, 'dataset': elsewhere})
        errors = gmskip(*options, '--skip-list', other, '--images', 4)[2]
        assert (
            bool(errors) == (f'calibrated on images of {elsewhere}; which' in errors) == is_reported
        )

    every, _ = choose_question_samples(dataset, settings, 10, 0, 7)
    made_on = {**made_on, 'images': 10, 'sha256': sample_hash(every)}
    made = write_list(tmp_path / 'd.skip.yaml', calibration=made_on)
    status, _, errors = gmskip(*options, '--skip-list', made)
    assert status == 2 and 'every image was calibrated on' in errors


def test_a_list_made_for_something_else_is_warned_about(gmskip, scenes, tmp_path):
    made = write_list(
        tmp_path / 'bus.skip.yaml', target='bus', match='forms', metric='balanced_accuracy'
    )
    status, output, errors = gmskip(
        '--dataset',
        scenes,
        *QUICK,
        '--skip-list',
        made,
        '--target',
        'car',
        '--json',
        '--prompt',
        'Name it.',
        '--out',
        tmp_path / 'out',
    )
    assert status == 0
    assert json.loads(output)['match'] == 'content'
    by_metric = 'calibrated by balanced_accuracy, evaluated by accuracy: the scores in the list are'
    assert by_metric in errors
    page = (tmp_path / 'out' / 'report.html').read_text()
    for warning in json.loads(output)['warnings']:
        assert f'gmskip: warning: {warning}' in errors
    assert len(json.loads(output)['warnings']) == 4 and by_metric in page
    assert "calibrated with match 'forms', running with 'content'" in errors
    assert "calibrated for target 'bus', evaluated with target 'car'" in errors
    assert "running with 'Name it.'" in errors
    assert json.loads(output)['prompt'] == 'Name it.'
    assert json.loads(output)['rows'][0]['evaluation']['auroc'] is not None


def test_unreadable_images_are_skipped_and_listed(gmskip, tmp_path):
    folder = tmp_path / 'scenes'
    write_scenes(folder, 5, 300)
    broken = folder / 'scenes' / '000000000302.jpg'
    broken.write_bytes(broken.read_bytes()[:500])
    status, output, errors = gmskip('--dataset', folder, *QUICK, '--images', 5, '--json')
    result = json.loads(output)
    assert status == 0
    assert result['unreadable'] == [str(broken)]
    assert str(broken) in errors and 'unreadable' in errors
    assert result['rows'][0]['evaluation']['images'] == 4
    for path in (folder / 'scenes').iterdir():
        path.write_bytes(b'not an image')
    status, output, errors = gmskip('--dataset', folder, *QUICK)
    assert status == 2 and 'none of the images' in errors.splitlines()[-1]


def test_a_note_names_the_references_of_cider(gmskip, scenes):
    for task, options, has_note in (
        ('captioning', ('--metric', 'rouge_l'), True),
        ('single_object', (), False),
    ):
        options = (*options, '--images', 2, '--latency-images', 0, '--interval', 'none', '--json')
        status, output, _ = gmskip(
            '--task', task, '--dataset', scenes, *options, '--operating-point', 1
        )
        note = json.loads(output)['score_note']
        assert status == 0 and has_note == (note is not None and 'of these 2 images' in note)


def test_a_score_that_means_nothing_is_a_warning(gmskip, scenes, tmp_path):
    status, _, errors = gmskip(
        *('--dataset', scenes, *QUICK, '--prompt', 'b', '--max-new-tokens', 1, '--out', tmp_path)
    )
    lowest = 'single_object: every answer of the full model has the lowest accuracy there is (0.0)'
    assert status == 0 and f'gmskip: warning: {lowest}' in errors
    assert f'This score may mean nothing: {lowest}' in (tmp_path / 'report.html').read_text()


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (['--dataset', '/nowhere'], 'does not exist'),
        (['--target', 'unicorn'], "target 'unicorn' is not in the label set"),
        (['--task', 'captioning', '--target', 'car'], '--target is for'),
        (['--metric', 'cider'], "metric 'cider' is not defined for single_object"),
        (['--interval', '3,x'], "--interval '3,x'"),
        (['--interval', '1'], 'interval 1 skips every inner block'),
        (['--operating-point', '99'], 'operating_point'),
        (['--skip-list', 'nowhere.yaml'], 'nowhere.yaml'),
        (['--images', '0'], '--images 0'),
        (['--latency-images', '-1'], '--latency-images -1'),
        (['--task', 'generic'], 'no image for generic'),
        (['--task', 'joint', '--prompt', 'What?'], '--prompt'),
        (['--labels', 'car,,bus'], 'labels'),
        (['--out', '/dev/null/x'], '--out /dev/null/x'),
    ],
    ids=lambda value: ' '.join(value) if isinstance(value, list) else None,
)
def test_bad_input_is_one_line(gmskip, scenes, options, message):
    given = ['--dataset', scenes] if '--dataset' not in options else []
    status, output, errors = gmskip(*given, *QUICK, *options)
    assert (status, output) == (2, '')
    assert errors.startswith('gmskip: error: ') and errors.count('\n') == 1
    assert message in errors


def test_presence_on_pope_and_on_scenes(gmskip, scenes, tmp_path):
    """Whatever the demo model answers, it names a label: POPE's script reads that as yes."""
    images = sorted((scenes / 'scenes').glob('*.jpg')) or sorted(scenes.rglob('*.jpg'))
    answers = {'random': ('yes', 'no', 'no', 'no'), 'popular': ('yes', 'no')}
    for split, of_split in answers.items():
        lines = [
            {'question_id': n, 'image': images[n].name, 'text': f'Is there a {n} in the image?'}
            for n in range(len(of_split))
        ]
        path = tmp_path / f'mine_pope_{split}.json'
        path.write_text(
            '\n'.join(
                json.dumps({**line, 'label': label})
                for line, label in zip(lines, of_split, strict=True)
            )
        )
    (tmp_path / 'images').symlink_to(images[0].parent)
    judged = tmp_path / 'answers'
    arguments = ('--task', 'presence', '--dataset', tmp_path, *QUICK, '--json')
    status, output, _ = gmskip(*arguments, '--answers', judged)
    assert status == 0
    for split, of_split in answers.items():  # POPE's script takes answers line by line
        path = judged / 'full' / f'{tmp_path.name}_{split}_answer.jsonl'
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        numbers = range(len(of_split))
        assert [line['question_id'] for line in lines] == list(numbers)
        assert [line['image'] for line in lines] == [images[n].name for n in numbers]
        assert [line['question'] for line in lines] == [
            f'Is there a {n} in the image?' for n in numbers
        ]
    result = json.loads(output)
    evaluation = result['rows'][0]['evaluation']
    assert result['prompt'] == 'Is there a {label} in the image?'
    assert result['dataset']['name'] == 'pope-mine'
    assert (evaluation['images'], evaluation['answers']) == (4, 4)
    assert evaluation['score'] == evaluation['scores']['accuracy'] == (1 / 4 + 1 / 2) / 2
    assert evaluation['scores']['random.precision'] == 1 / 4
    assert evaluation['scores']['popular.f1'] == pytest.approx(2 / 3)
    assert evaluation['scores']['yes_share'] == 1 and evaluation['in_vocabulary_share'] == 0
    assert result['baselines']['constant'] == {'answer': 'no', 'score': (3 / 4 + 1 / 2) / 2}

    path = tmp_path / 'mine_pope_random.json'
    arguments = ('--task', 'presence', '--dataset', path, *QUICK, '--answers', judged)
    assert gmskip(*arguments)[0] == 0
    assert (judged / 'full' / 'mine_pope_random_answer.jsonl').is_file()

    arguments = ('--task', 'presence', '--dataset', scenes, *QUICK, '--images', 2)
    status, output, _ = gmskip(*arguments, '--answers', judged)
    assert status == 0
    path = judged / 'full' / f'{scenes.name}_popular_answer.jsonl'
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line['question_id'] for line in lines] == [*range(1, 1 + len(lines))]
    assert 'All scores: adversarial' in output and 'answered' in output


def test_lists_skip_in_their_phases(gmskip, scenes, tmp_path):
    """Of two lists with the same blocks; the figures are those of answers one at a time."""
    blocks = list(range(8, 24))
    lists = {}
    for phases in (('decode',), ('prefill', 'decode')):
        lists[phases] = tmp_path / f'{len(phases)}.skip.yaml'
        removed = tuple(Removal(block, 1.0) for block in blocks)
        made = replace(
            load_skip_list('demo_captioning'),
            removed=removed,
            phases=phases,
            full_score=1.0,
            min_score_ratio=1.0,
            operating_points=None,
            warnings=('round 1: all candidates tie',),
        )
        save_skip_list(made, lists[phases])
    out = tmp_path / 'out'
    options = ['--skip-list', lists['decode',], '--skip-list', lists['prefill', 'decode']]
    options += ['--operating-point', 'high_sparsity']
    status, output, errors = gmskip(
        '--task', 'captioning', '--dataset', scenes, *QUICK, *options, '--json', '--out', out
    )
    assert status == 0
    assert errors.count('skip list for captioning: round 1: all candidates tie') == 2
    full, decode, both = json.loads(output)['rows']
    assert decode['name'] == 'GM-Skip high sparsity (decode; 1.skip.yaml)'
    assert both['name'] == 'GM-Skip high sparsity (prefill+decode; 2.skip.yaml)'
    assert decode['blocks'] == both['blocks'] == blocks
    assert (full['phases'], both['phases']) == ({}, {'prefill+decode': blocks})
    assert (decode['phases'], decode['kv']) == ({'decode': blocks}, 'none')
    assert decode['sparsity'] == both['sparsity'] == 16 / 32
    assert full['saved'] == {'prefill': 0, 'decode': 0}
    assert decode['saved'] == {'prefill': 0, 'decode': 0.5}
    assert both['saved'] == {'prefill': 0.5, 'decode': 0.5}
    page = (out / 'report.html').read_text()
    assert 'Prefill saved, %' in page and 'Decode saved, %' in page

    vlm, task = load_vlm('demo'), make_task('captioning')
    _, samples = choose_question_samples(open_dataset(scenes), task_settings('captioning'), 0, 4, 0)
    images = [read_photo(str(sample.image_path)) for sample in samples]
    for row, skip_set in ((decode, SkipSet(decode=blocks)), (both, SkipSet.of(blocks))):
        answers = [
            vlm.answer(image, task.prompt, skip_set, task.max_new_tokens) for image in images
        ]
        mean = sum(len(answer.token_ids) for answer in answers) / 4
        assert row['evaluation']['tokens_per_answer'] == mean
    assert decode['evaluation']['tokens_per_answer'] != both['evaluation']['tokens_per_answer']
    page = (out / 'report.html').read_text()
    assert 'decode: 8, 9' in page and 'high sparsity (decode; 1.skip.yaml)' in page
    table = list(csv.DictReader((out / 'evaluation.csv').open()))
    assert [row['phases'] for row in table] == ['', 'decode', 'prefill+decode']


def test_two_processes_find_the_same(gmskip, scenes):
    """Started as torchrun does; this process alone has a different batch size."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    options = (
        '--target',
        'car',
        '--dataset',
        str(scenes),
        '--images',
        '2',
        '--interval',
        '4',
        '--operating-point',
        'high_sparsity',
        '--latency-images',
        '1',
        '--json',
    )
    command = [sys.executable, '-m', 'gmskip_ros.cli.main', 'evaluate', '--task', 'single_object']

    def start(rank):
        environment = {
            **os.environ,
            'OMP_NUM_THREADS': '1',
            'MASTER_ADDR': '127.0.0.1',
            'MASTER_PORT': str(port),
            'RANK': str(rank),
            'WORLD_SIZE': '2',
            'LOCAL_RANK': str(rank),
        }
        return subprocess.Popen(
            [*command, *options, '--device', 'cpu'],
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    together = [start(0), start(1)]
    status, alone, _ = gmskip(*options, '--batch-size', 1)
    (output, errors), (silence, _) = (process.communicate(timeout=200) for process in together)
    assert [status, *(process.returncode for process in together)] == [0] * 3, errors
    assert silence == ''
    results = [json.loads(text)['rows'] for text in (output, alone)]
    for row in (row for rows in results for row in rows):
        for key in ('latency_ms', 'ms_per_token', 'language_ms'):
            assert row['evaluation'].pop(key) > 0
        for key in ('latency_cut', 'answers_got_shorter', 'load', *SPEED_UPS):
            del row['evaluation'][key]
    assert results[0] == results[1]


def test_help_needs_no_torch():
    code = (
        'import sys; from gmskip_ros.cli import main; main.build_parser(); '
        'import gmskip_ros.calibration.errors; '
        'print(sorted({"torch", "numpy", "cv2", "rich"} & set(sys.modules)))'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ('[]\n', '')


@needs_coco_mini
def test_a_list_made_under_another_view_is_a_warning(gmskip, monkeypatch, tmp_path, capsys):
    """What a LLaVA-1.5 that crops does not see is left out of the truth; its list says so."""
    model = make_tiny_model(tmp_path / 'model', 'llava', 'llama', 4)
    common = ['--dataset', COCO_MINI, '--model', model, '--task', 'multi_object']
    common += ['--latency-images', 0, '--no-progress']
    calibrate = [*common, '--images', 3, '--test-images', 0, '--rounds', 1, '--force']
    out = tmp_path / 'out'
    monkeypatch.setattr(main, 'COMMANDS', ('calibrate', 'evaluate'))
    arguments = ['calibrate', *calibrate, '--image-fit', 'checkpoint', '--out', out]
    arguments += ['--quantization', 'int8', '--dtype', 'float32']
    assert main.main([*map(str, arguments), '--device', 'cpu']) == 0
    outside = '16 of 169 labels of images lie wholly outside what the model sees'
    assert capsys.readouterr().err.count(outside) == 1
    path = out / 'multi_object.skip.yaml'
    made = load_skip_list(path)
    assert (made.image_fit, made.max_image_tokens, made.quantization) == ('checkpoint', 0, 'int8')
    assert made.prompt.rendered == f'USER: <image>\n{made.prompt.text} ASSISTANT:'
    record = json.loads((out / 'calibration.json').read_text())
    assert (record['image_fit'], record['quantization']) == ('checkpoint', 'int8')
    assert '(cpu, float32, int8)' in (out / 'report.html').read_text()
    assert record['rendered_prompt'] == made.prompt.rendered
    assert record['dataset']['labels_outside_view'] == 16
    assert outside in (out / 'report.html').read_text()

    options = (*common, '--images', 3, '--interval', 'none', '--skip-list', path, '--json')
    other = "calibrated with image_fit 'checkpoint', running with 'pad'"
    status, output, errors = gmskip(*options)
    result = json.loads(output)
    assert (status, result['image_fit'], result['max_image_tokens']) == (0, 'pad', 0)
    assert result['quantization'] == 'none'
    assert result['dataset']['labels_outside_view'] == 0
    assert other in errors and outside not in errors
    assert "calibrated with quantization 'int8', running with 'none'" in errors
    status, output, errors = gmskip(*options, '--image-fit', 'checkpoint')
    assert json.loads(output)['dataset']['labels_outside_view'] == 16
    assert 'image_fit' not in errors.replace('image_fit pad shows', '') and outside in errors
    assert '3 images that' in errors  # what the list was calibrated on is left out
