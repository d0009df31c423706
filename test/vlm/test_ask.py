"""`gmskip ask` on a tiny model: both branches about one image, and one line for bad input."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from tiny_models import make_tiny_model

from gmskip_ros.cli import main
from gmskip_ros.cli.ask import read_photo
from gmskip_ros.errors import UserError
from gmskip_ros.machine import is_intel_cpu
from gmskip_ros.skipping import SkipSet, load_skip_list, save_skip_list
from gmskip_ros.vlm import Vlm, load_vlm

CELLS = re.compile('[│┃|]')  # between the cells of the table


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return make_tiny_model(tmp_path_factory.mktemp('tiny'), num_blocks=32)


@pytest.fixture(scope='module')
def photo(tmp_path_factory):
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    path = tmp_path_factory.mktemp('photo') / 'street.png'
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def gmskip(folder, monkeypatch, capsys):
    """Run `gmskip ask` and return its exit status, output and errors."""
    monkeypatch.setattr(main, 'COMMANDS', ('ask',))

    def run(*arguments):
        argv = ['ask', *map(str, arguments), '--device', 'cpu']
        if '--model' not in argv:
            argv += ['--model', str(folder)]
        status = main.main(argv)
        return status, *capsys.readouterr()

    return run


def test_json_holds_both_branches(gmskip, folder, photo) -> None:
    prompt = 'What is it?'
    status, output, _ = gmskip(
        photo, '--prompt', prompt, '--skip', '29,16', '--max-new-tokens', 5, '--json'
    )
    assert status == 0
    report = json.loads(output)
    vlm = load_vlm(str(folder), device='cpu')
    image = read_photo(str(photo))
    for branch, skip in [('skip', [29, 16]), ('full', [])]:
        result = report['branches'][branch]
        assert result['raw_text'] == vlm.answer(image, prompt, skip, max_new_tokens=5).text
        assert result['skipped_blocks'] == sorted(skip)
        assert result['sparsity'] == len(skip) / 32
        assert result['tokens'] == 5
        phases = [result[f'{phase}_ms'] for phase in ('preprocess', 'vision', 'prefill', 'decode')]
        assert sum(phases) == pytest.approx(result['total_ms'], rel=0.02)
    assert report['agree'] == (
        report['branches']['skip']['raw_text'] == report['branches']['full']['raw_text']
    )


def test_shared_answers_are_those_of_isolated_ones_without_a_speed_up(gmskip, photo) -> None:
    options = (photo, '--prompt', 'What is it?', '--skip', '29,16', '--max-new-tokens', 5)
    reports = {}
    for timing in ('isolated', 'shared'):
        status, output, _ = gmskip(*options, '--timing', timing, '--json')
        assert status == 0
        reports[timing] = json.loads(output)
        assert reports[timing]['timing'] == timing
    isolated, shared = reports['isolated'], reports['shared']
    assert 'speed_up' in isolated and 'speed_up' not in shared
    assert shared['agree'] == isolated['agree']
    for branch in ('skip', 'full'):
        one, other = (report['branches'][branch] for report in (isolated, shared))
        assert other['raw_text'] == one['raw_text'] and other['tokens'] == one['tokens']
        assert other['shared_ms'] > 0 and 'shared_ms' not in one
    _, output, _ = gmskip(*options, '--timing', 'shared')
    assert 'shared (ms)' in output and 'no speed-up with --timing shared' in output


def test_a_quantised_model_answers(gmskip, folder, photo) -> None:
    options = (photo, '--prompt', 'Why?', '--skip', '3', '--max-new-tokens', 3)
    status, output, _ = gmskip(*options, '--quantization', 'int4', '--json')
    report = json.loads(output)
    assert (status, report['dtype'], report['quantization']) == (0, 'bfloat16', 'int4')
    vlm = load_vlm(str(folder), 'cpu', quantization='int4')
    for branch, skip in (('skip', [3]), ('full', [])):
        answer = vlm.answer(read_photo(str(photo)), 'Why?', skip, max_new_tokens=3)
        assert report['branches'][branch]['raw_text'] == answer.text
    assert 'bfloat16, int4 on cpu' in gmskip(*options, '--quantization', 'int4')[1]


def test_json_shows_what_the_model_saw_and_read(gmskip, folder, photo, tmp_path) -> None:
    template = tmp_path / 'chat.jinja'
    template.write_text("Q: <image> {{ messages[0]['content'][1]['text'] }} A:")
    options = (photo, '--prompt', 'Why?', '--skip', '3', '--max-new-tokens', 2, '--json')
    for fit, resolved in [('auto', 'pad'), ('checkpoint', 'checkpoint'), ('squash', 'squash')]:
        status, output, _ = gmskip(*options, '--image-fit', fit, '--chat-template', template)
        report = json.loads(output)
        assert (status, report['image_fit'], report['image_tokens']) == (0, resolved, 4)
        assert report['rendered_prompt'] == 'Q: <image> Why? A:'
        vlm = load_vlm(str(folder), 'cpu', image_fit=fit, chat_template=str(template))
        answer = vlm.answer(read_photo(str(photo)), 'Why?', (), max_new_tokens=2)
        full = report['branches']['full']
        assert full['raw_text'] == answer.text
        assert full['confidence_mean'] == pytest.approx(answer.confidence.mean)
        assert full['confidence_min'] == pytest.approx(answer.confidence.min)


@pytest.mark.parametrize(
    ('option', 'value', 'message'),
    [
        ('--quantization', 'int3', "quantization 'int3' is unknown: use none, int8, int4"),
        ('--image-fit', 'crop', "image_fit 'crop' is unknown: use auto, checkpoint, pad, squash"),
        ('--max-image-tokens', '-1', 'max_image_tokens -1 is not a whole number of 0 or more'),
        ('--max-image-tokens', '3', 'the fewest that'),
        ('--chat-template', '/nowhere', 'chat_template /nowhere: is not Jinja text'),
    ],
)
def test_wrong_options_of_the_model_are_one_line(gmskip, photo, option, value, message) -> None:
    status, output, errors = gmskip(photo, '--skip', '3', option, value)
    assert (status, output) == (2, '')
    assert errors.count('\n') == 1 and message in errors


def test_the_table_names_both_branches_and_their_times(gmskip, photo) -> None:
    status, output, _ = gmskip(photo, '--skip', '29,16', '--task', 'single_object')
    assert status == 0
    for word in ('What is the main object', 'skip', 'full', '16, 29', 'prefill', 'total'):
        assert word in output


def test_a_shipped_skip_list_gives_the_blocks(gmskip, photo) -> None:
    options = ('--skip-list', 'gmskip_captioning', '--max-new-tokens', 1, '--json')
    blocks = {}
    for point in ('high_performance', 'high_sparsity', '2'):
        status, output, _ = gmskip(photo, *options, '--operating-point', point)
        assert status == 0
        blocks[point] = json.loads(output)['branches']['skip']['skipped_blocks']
    assert blocks['high_performance'] == sorted([13, 19, 12])
    assert blocks['high_sparsity'] == sorted([13, 19, 12, 4, 10, 23, 21])
    assert blocks['2'] == [13, 19]


def test_a_list_skips_in_its_phases_and_says_so(gmskip, folder, photo, tmp_path) -> None:
    published = load_skip_list('gmskip_captioning')
    made = dataclasses.replace(
        published, phases=('prefill',), kv='input', warnings=('round 1: all candidates tie',)
    )
    save_skip_list(made, tmp_path / 'a.skip.yaml')
    options = ('--prompt', 'What is it?', '--max-new-tokens', 4)
    given = ('--skip-list', tmp_path / 'a.skip.yaml', *options)
    status, output, errors = gmskip(photo, *given, '--json')
    assert status == 0 and 'captioning: round 1: all candidates tie' in errors
    branches = json.loads(output)['branches']
    blocks = made.blocks_at('high_performance')
    assert branches['skip']['skipped_blocks'] == sorted(blocks)
    in_use = [branch['skipped_in'] for branch in branches.values()]
    assert in_use == ['prefill; kv input', '']
    vlm = load_vlm(str(folder), device='cpu')
    skip_set = SkipSet(blocks, kv='input')
    answer = vlm.answer(read_photo(str(photo)), 'What is it?', skip_set, max_new_tokens=4)
    assert branches['skip']['raw_text'] == answer.text
    assert 'prefill; kv input' in gmskip(photo, *given)[1]
    assert 'skipped in' not in gmskip(photo, '--skip-list', 'gmskip_captioning', *options)[1]


def test_a_list_for_a_different_task_is_a_warning(gmskip, photo) -> None:
    options = ('--skip-list', 'gmskip_single_object', '--max-new-tokens', 1)
    _, _, errors = gmskip(photo, *options, '--task', 'captioning')
    assert "warning: skip list for single_object: calibrated with task 'single_object'" in errors
    assert "running with 'captioning'" in errors
    for own in (['--task', 'single_object'], ['--prompt', 'What is it?']):
        assert 'warning' not in gmskip(photo, *options, *own)[2]


@pytest.mark.parametrize(
    ('options', 'answer', 'raw_is_shown'),
    [
        (['--task', 'single_object'], 'unknown', True),
        (['--task', 'single_object', '--labels', 'coco'], 'zebra', True),
        (['--task', 'single_object', '--labels', 'car, zebra'], 'zebra', True),
        (['--task', 'captioning'], 'A [/zebra].', False),
        (['--prompt', 'What is it?'], 'A [/zebra].', False),
    ],
)
def test_the_answer_and_the_raw_text(
    gmskip, photo, monkeypatch, options, answer, raw_is_shown
) -> None:
    give_answer = Vlm.answer

    def answer_zebra(*args, **settings):
        return dataclasses.replace(give_answer(*args, **settings), text='A [/zebra].')

    monkeypatch.setattr(Vlm, 'answer', answer_zebra)
    status, output, _ = gmskip(photo, '--skip', '', '--max-new-tokens', 1, *options)
    assert status == 0
    rows = {
        cells[1].strip(): cells[2].strip()
        for cells in map(CELLS.split, output.splitlines())
        if len(cells) > 2
    }
    assert rows['answer'] == answer
    assert rows.get('raw text') == ('A [/zebra].' if raw_is_shown else None)


@pytest.mark.parametrize(
    ('options', 'match', 'answer'),
    [([], 'content', 'car'), (['--match', 'forms'], 'forms', 'unknown')],
)
def test_match_decides_how_an_answer_is_read(
    gmskip, photo, monkeypatch, options, match, answer
) -> None:
    give_answer = Vlm.answer

    def answer_car(*args, **settings):
        return dataclasses.replace(give_answer(*args, **settings), text='It is a red car.')

    monkeypatch.setattr(Vlm, 'answer', answer_car)
    status, output, _ = gmskip(photo, '--task', 'single_object', '--skip', '1', *options, '--json')
    report = json.loads(output)
    assert (status, report['match']) == (0, match)
    assert report['branches']['full']['answer'] == answer


def test_names_with_markup_are_names(gmskip, folder, photo, tmp_path) -> None:
    odd = tmp_path / 'm[' / 'v2]'
    odd.parent.mkdir()
    odd.symlink_to(folder)
    status, output, _ = gmskip(photo, '--skip', '1', '--max-new-tokens', 1, '--model', odd)
    assert status == 0 and '[/v2]' in output.replace('\n', '')


HUGE_PAGES = None if is_intel_cpu() else '1'


@pytest.mark.parametrize(
    ('given', 'expected'),
    [
        ({}, f'PASSIVE 10000 {HUGE_PAGES}'),
        ({'OMP_WAIT_POLICY': 'ACTIVE'}, f'ACTIVE None {HUGE_PAGES}'),
        ({'GOMP_SPINCOUNT': '7', 'THP_MEM_ALLOC_ENABLE': '0'}, 'None 7 0'),
    ],
    ids=str,
)
def test_the_cpu_is_tuned_before_torch_is_loaded(photo, given, expected) -> None:
    program = (
        'import os, sys\n'
        'from gmskip_ros.cli.main import main\n'
        f'assert main(["ask", {str(photo)!r}, "--skip", "x"]) == 2\n'
        'assert "torch" not in sys.modules\n'
        'names = "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "THP_MEM_ALLOC_ENABLE"\n'
        'print(*map(os.environ.get, names))\n'
    )
    tuned = ('OMP_', 'GOMP_', 'THP_')
    environment = {key: value for key, value in os.environ.items() if not key.startswith(tuned)}
    result = subprocess.run(
        [sys.executable, '-c', program],
        env={**environment, **given},
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.stdout == f'{expected}\n'


def test_a_list_for_a_different_model_is_refused(gmskip, photo, tmp_path) -> None:
    small = make_tiny_model(tmp_path, num_blocks=2)
    status, _, errors = gmskip(photo, '--model', small, '--skip-list', 'gmskip_captioning')
    assert status == 2 and '32' in errors and '2' in errors


@pytest.mark.parametrize(
    ('options', 'words'),
    [
        (['--skip', '29,29'], 'block 29 is named twice'),
        (['--skip=-1'], 'block -1 is negative'),
        (['--skip', '1;2'], "'1;2' is not a list"),
        (['--skip', '1', '--operating-point', '8'], 'remove it or --skip'),
        (['--skip-list', 'no_such_list'], 'no_such_list'),
        (['--skip-list', 'gmskip_captioning', '--operating-point', '99'], '99'),
        (['--operating-point', '8'], 'add --skip-list'),
        (['--skip', '1', '--max-new-tokens', '0'], '0'),
        (['--skip', '1', '--prompt', 'Why?', '--max-new-tokens', '0'], '0'),
        (['--task', 'multi_object', '--labels', 'car,car'], "'car' is listed twice"),
        (['--labels', 'coda', '--prompt', 'Why?'], '--labels is for --task'),
        (['--labels', 'coda'], '--labels is for --task'),
        (['--match', 'forms'], '--match is for --task'),
        (['--match', 'forms', '--prompt', 'Why?'], '--match is for --task'),
    ],
)
def test_bad_options_are_one_line_before_the_model_is_loaded(gmskip, photo, options, words) -> None:
    status, output, errors = gmskip(photo, *options, '--model', '/nowhere')
    assert status == 2 and output == ''
    assert errors.startswith('gmskip: error: ') and errors.count('\n') == 1
    assert words in errors


def test_without_blocks_to_skip_both_branches_are_full_with_a_warning(gmskip, photo) -> None:
    """The demo model has a skip list for each task, and none for --prompt."""
    status, output, errors = gmskip(photo, '--prompt', 'Why?', '--max-new-tokens', 1, '--json')
    assert status == 0
    assert 'no blocks are skipped: add --skip 29,16 or --skip-list FILE' in errors
    assert json.loads(output)['branches']['skip']['skipped_blocks'] == []


@pytest.mark.parametrize(
    ('options', 'words'),
    [
        (['--skip', '32'], 'block 32 does not exist'),
        (['--skip', '1', '--prompt', 'an <image>'], '<image>'),
        (['--skip', '1', '--model', '/nowhere'], '/nowhere'),
        (['--skip', '1', '--dtype', 'int3'], 'int3'),
    ],
)
def test_what_the_model_refuses_is_one_line(gmskip, photo, options, words) -> None:
    status, output, errors = gmskip(photo, *options)
    assert status == 2 and output == ''
    assert errors.startswith('gmskip: error: ') and errors.count('\n') == 1
    assert words in errors


@pytest.mark.parametrize('kind', ['missing', 'text', 'empty', 'cut', 'folder'])
def test_unreadable_images_are_one_line(gmskip, photo, tmp_path, kind) -> None:
    path = tmp_path / 'photo.png'
    if kind == 'text':
        path.write_text('not an image')
    elif kind == 'empty':
        path.touch()
    elif kind == 'cut':
        path.write_bytes(photo.read_bytes()[:2000])
    elif kind == 'folder':
        path.mkdir()
    status, _, errors = gmskip(path, '--skip', '1')
    assert status == 2
    assert errors.count('\n') == 1 and str(path) in errors and 'cannot read image' in errors


def test_the_exif_orientation_is_applied(tmp_path) -> None:
    pixels = np.zeros((8, 16, 3), np.uint8)
    pixels[:, :8] = (255, 0, 0)  # red on the left
    path = tmp_path / 'phone.png'
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: rotate clockwise by 90 degrees to display
    Image.fromarray(pixels).save(path, exif=exif)
    image = read_photo(str(path))
    assert image.shape == (16, 8, 3) and image.dtype == np.uint8
    assert (image[:8] == (255, 0, 0)).all() and (image[8:] == 0).all()


@pytest.mark.parametrize('mode', ['L', 'RGBA', 'P', 'CMYK'])
def test_any_colour_mode_becomes_rgb(tmp_path, mode) -> None:
    path = tmp_path / ('photo.jpg' if mode == 'CMYK' else 'photo.png')
    Image.new('RGB', (6, 4), (204, 204, 204)).convert(mode).save(path)
    image = read_photo(str(path))
    assert image.shape == (4, 6, 3)
    assert np.abs(image.astype(int) - 204).max() <= 2


@pytest.mark.parametrize(
    ('name', 'dtype', 'mode'),
    [('a.png', np.uint16, 'I;16'), ('a.tif', np.int32, 'I'), ('a.tif', np.float32, 'F')],
)
def test_more_than_8_bits_are_refused(tmp_path, name, dtype, mode) -> None:
    path = tmp_path / name
    Image.fromarray(np.full((4, 6), 1000, dtype)).save(path)
    with pytest.raises(
        UserError, match=f'a.*mode {mode} has more than 8 bits.*give a .* 8-bit image'
    ):
        read_photo(str(path))
