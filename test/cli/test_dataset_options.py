"""The options for data, which all commands that read a dataset share."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from gmskip_ros.calibration.choosing import OF_FIRST
from gmskip_ros.calibration.distributed import Ranks
from gmskip_ros.cli.compare import open_datasets
from gmskip_ros.cli.main import build_parser, main
from gmskip_ros.cli.options import open_dataset_of
from gmskip_ros.errors import UserError

COMMANDS = {
    'calibrate': ['--dataset', '{}', '--out', 'out'],
    'evaluate': ['--dataset', '{}'],
    'redundancy': ['--dataset', '{}', '--out', 'out'],
    'compare': ['--calibrate-on', '{}', '--methods', 'random', '--out', 'out'],
}


def write_dataset(folder: Path) -> Path:
    """Write labels.json about images 1.png and 2.png, which are in the folders x and y."""
    images = [{'id': n, 'file_name': f'{n}.png', 'width': 8, 'height': 8} for n in (1, 2)]
    box = {'id': 1, 'image_id': 1, 'category_id': 1, 'bbox': [0, 0, 4, 4]}
    content = {'images': images, 'annotations': [box], 'categories': [{'id': 1, 'name': 'car'}]}
    path = folder / 'labels.json'
    path.write_text(json.dumps(content))
    for n, name in ((1, 'x'), (2, 'y')):
        (folder / name).mkdir()
        cv2.imwrite(str(folder / name / f'{n}.png'), np.zeros((8, 8, 3), np.uint8))
    return path


@pytest.mark.parametrize('command', COMMANDS)
def test_every_command_looks_for_images_in_images_dir(tmp_path, monkeypatch, capsys, command):
    path = write_dataset(tmp_path)
    monkeypatch.chdir(tmp_path)
    words = [word.format(path) for word in COMMANDS[command]]
    empty = tmp_path / 'empty'
    empty.mkdir()
    options = ['--task', 'single_object', '--images-dir', str(empty)]
    assert main([command, *words, *options]) == 2
    assert f'{empty}: none of 2 images was found' in capsys.readouterr().err.replace('\n', ' ')


def test_of_several_processes_only_the_first_reads_the_dataset(tmp_path, monkeypatch):
    path = write_dataset(tmp_path)
    options = [
        '--dataset',
        str(path),
        '--task',
        'single_object',
        '--images-dir',
        str(tmp_path / 'x'),
    ]
    args = build_parser().parse_args(['evaluate', *options])
    assert len(open_dataset_of(args, Ranks()).samples) == 1
    monkeypatch.setenv('RANK', '1')
    path.unlink()
    assert open_dataset_of(args, Ranks()) is OF_FIRST


def test_compare_has_a_folder_of_images_for_each_dataset(tmp_path):
    path = str(write_dataset(tmp_path))
    options = ['--methods', 'random', '--out', 'out', '--task', 'single_object']
    options += ['--calibrate-on', path, '--images-dir', str(tmp_path / 'x')]
    other = ['--evaluate-images-dir', str(tmp_path / 'y')]
    parser = build_parser()
    args = parser.parse_args(['compare', *options, '--evaluate-on', path, *other])
    dataset, test_dataset = open_datasets(args)
    assert [sample.image_path.name for sample in dataset.samples] == ['1.png']
    assert test_dataset is not None
    assert [sample.image_path.name for sample in test_dataset.samples] == ['2.png']
    with pytest.raises(UserError, match='--evaluate-images-dir has no effect without'):
        open_datasets(parser.parse_args(['compare', *options, *other]))
