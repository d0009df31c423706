"""`gmskip ask` on a tiny model: both branches about one picture, and one line for bad input."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from tiny_models import make_tiny_model

from gmskip_ros.cli import main
from gmskip_ros.cli.ask import read_photo
from gmskip_ros.vlm import load_vlm


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


def test_a_list_for_another_model_is_refused(gmskip, photo, tmp_path) -> None:
    small = make_tiny_model(tmp_path, num_blocks=2)
    status, _, errors = gmskip(photo, '--model', small, '--skip-list', 'gmskip_captioning')
    assert status == 2 and '32' in errors and '2' in errors


@pytest.mark.parametrize(
    ('options', 'says'),
    [
        (['--skip', '29,29'], 'block 29 is named twice'),
        (['--skip', '32'], 'block 32 does not exist'),
        (['--skip', '-1'], 'block -1 is negative'),
        (['--skip', '1;2'], "'1;2' is not a list"),
        (['--skip-list', 'no_such_list'], 'no_such_list'),
        (['--skip-list', 'gmskip_captioning', '--operating-point', '99'], '99'),
        ([], 'use --skip 29,16 or --skip-list'),
        (['--skip', '1', '--max-new-tokens', '0'], '0'),
        (['--skip', '1', '--prompt', 'an <image>'], '<image>'),
        (['--skip', '1', '--model', '/nowhere'], '/nowhere'),
        (['--skip', '1', '--dtype', 'int3'], 'int3'),
    ],
)
def test_bad_options_are_one_line(gmskip, photo, options, says) -> None:
    if '-1' in options:
        options = ['--skip=-1']
    status, output, errors = gmskip(photo, *options)
    assert status == 2 and output == ''
    assert errors.startswith('gmskip: error: ') and errors.count('\n') == 1
    assert says in errors


@pytest.mark.parametrize('kind', ['missing', 'text', 'empty', 'cut', 'folder'])
def test_unreadable_pictures_are_one_line(gmskip, photo, tmp_path, kind) -> None:
    path = tmp_path / 'photo.png'
    if kind == 'text':
        path.write_text('no picture')
    elif kind == 'empty':
        path.touch()
    elif kind == 'cut':
        path.write_bytes(photo.read_bytes()[:2000])
    elif kind == 'folder':
        path.mkdir()
    status, _, errors = gmskip(path, '--skip', '1')
    assert status == 2
    assert errors.count('\n') == 1 and str(path) in errors and 'cannot read picture' in errors


def test_pictures_are_turned_as_people_see_them(tmp_path) -> None:
    pixels = np.zeros((8, 16, 3), np.uint8)
    pixels[:, :8] = (255, 0, 0)  # red on the left
    path = tmp_path / 'phone.png'
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turn clockwise by 90 degrees to show
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
