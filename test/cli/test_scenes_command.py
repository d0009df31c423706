"""`gmskip scenes` writes a dataset that the readers accept, and resumes where it was stopped."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from gmskip_ros.cli import main
from gmskip_ros.datasets import open_dataset, read_image, write_scenes
from gmskip_ros.datasets.scenes import CLASSES, render_scene


@pytest.fixture
def gmskip(capsys):
    """Run `gmskip scenes` and return its exit status, output and errors."""

    def run(*arguments):
        status = main.main(['scenes', *map(str, arguments)])
        return status, *capsys.readouterr()

    return run


def contents(folder: Path) -> dict[str, str]:
    """Return every file's hash by its name."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob('*'))
        if path.is_file()
    }


@pytest.fixture(scope='module')
def written(tmp_path_factory) -> Path:
    """A folder with the scenes of seeds 40 to 51."""
    folder = tmp_path_factory.mktemp('scenes') / 'out'
    assert write_scenes(folder, 12, 40)
    return folder


def test_what_is_read_back_is_what_was_rendered(written):
    dataset = open_dataset(written)
    assert (dataset.name, dataset.labels, dataset.notes) == ('scenes-40-12', CLASSES, ())
    assert [sample.key for sample in dataset.samples] == [
        f'scenes/{seed:012d}.jpg' for seed in range(40, 52)
    ]
    for seed, sample in enumerate(dataset.samples, start=40):
        scene = render_scene(seed)
        areas = {thing.name: thing.visible_area for thing in scene.objects}
        assert sample.labels == tuple(sorted(areas, key=lambda name: -areas[name]))
        assert sample.main_object == scene.main_object
        assert sample.captions == (scene.caption,)
        image = read_image(sample.image_path)
        assert image.shape == scene.image.shape
        assert cv2.PSNR(image, scene.image) > 30  # quality 95, on edges as sharp as vectors


def test_pycocotools_reads_it(written):
    from pycocotools.coco import COCO

    reference = COCO(str(written / 'annotations' / 'instances_scenes.json'))
    scene = render_scene(45)
    found = reference.loadAnns(reference.getAnnIds(imgIds=[45]))
    names = [entry['name'] for entry in reference.loadCats([box['category_id'] for box in found])]
    assert tuple(names) == scene.labels
    assert [box['bbox'] for box in found] == [list(thing.box) for thing in scene.objects]
    captions = COCO(str(written / 'annotations' / 'captions_scenes.json'))
    assert [entry['caption'] for entry in captions.imgToAnns[45]] == [scene.caption]


def test_the_command_writes_the_same_and_is_done_the_second_time(gmskip, tmp_path, written):
    folder = tmp_path / 'new' / 'out'
    status, output, _ = gmskip('--out', folder, '-n', 12, '--seed', 40)
    assert (status, output) == (0, f'12 scenes written to {folder}\n')
    assert contents(folder) == contents(written)
    times = {path: path.stat().st_mtime_ns for path in folder.rglob('*.jpg')}
    status, output, _ = gmskip('--out', folder, '-n', 12, '--seed', 40)
    assert (status, output) == (0, f'12 scenes already there in {folder}\n')
    assert {path: path.stat().st_mtime_ns for path in folder.rglob('*.jpg')} == times


@pytest.mark.parametrize('job', [(13, 40), (12, 41)])
def test_another_job_is_refused(gmskip, tmp_path, job):
    gmskip('--out', tmp_path, '-n', 12, '--seed', 40)
    before = contents(tmp_path)
    status, _, errors = gmskip('--out', tmp_path, '-n', job[0], '--seed', job[1])
    assert status == 2 and errors.count('\n') == 1 and 'different job' in errors
    assert contents(tmp_path) == before


def test_a_folder_with_other_files_is_refused(gmskip, tmp_path):
    (tmp_path / 'holiday.jpg').write_bytes(b'x')
    status, _, errors = gmskip('--out', tmp_path, '-n', 2)
    assert status == 2 and errors.count('\n') == 1 and 'is not empty' in errors
    assert list(contents(tmp_path)) == ['holiday.jpg']


@pytest.mark.parametrize('arguments', [('-n', 0), ('-n', 3, '--seed', -1)])
def test_numbers_that_cannot_be_are_refused(gmskip, tmp_path, arguments):
    status, _, errors = gmskip('--out', tmp_path / 'out', *arguments)
    assert status == 2 and errors.count('\n') == 1
    assert not (tmp_path / 'out').exists()


def test_a_place_that_cannot_be_written_to_is_one_line(gmskip, tmp_path):
    (tmp_path / 'file').write_text('')
    for out in (tmp_path / 'file', tmp_path / 'file' / 'out'):
        status, _, errors = gmskip('--out', out, '-n', 2)
        assert status == 2 and errors.count('\n') == 1 and 'cannot be written' in errors


def test_killed_and_started_again_it_completes(tmp_path, written):
    folder = tmp_path / 'out'
    command = [
        sys.executable,
        '-m',
        'gmskip_ros.cli.main',
        'scenes',
        '--out',
        str(folder),
        '-n',
        '12',
        '--seed',
        '40',
    ]
    killed = 0
    for done in (2, 5, 9):
        process = subprocess.Popen(command)
        while process.poll() is None and len(list(folder.rglob('0*.jpg'))) < done:
            time.sleep(0.002)
        os.kill(process.pid, signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
    assert killed
    made = {path: path.stat().st_mtime_ns for path in folder.rglob('0*.jpg')}
    subprocess.run(command, check=True)
    assert contents(folder) == contents(written)
    kept = [path for path in made if path.stat().st_mtime_ns == made[path]]
    assert len(kept) >= len(made) - 1  # at most the last one was not in the list yet


def test_half_a_line_of_the_list_is_dropped(tmp_path, written):
    folder = tmp_path / 'out'
    partial = folder / 'annotations' / 'scenes.partial.jsonl'

    class Stop(Exception):
        pass

    for last in (3, 7):

        def stop(done, last=last):
            if done == last:
                raise Stop

        with pytest.raises(Stop):
            write_scenes(folder, 12, 40, stop)
        partial.write_bytes(partial.read_bytes()[:-10])
    counts: list[int] = []
    assert write_scenes(folder, 12, 40, counts.append)
    assert counts == list(range(7, 13))
    assert contents(folder) == contents(written)


def test_the_annotations_are_written_last(tmp_path):
    """A folder with annotations is therefore a complete dataset."""
    seen: list[bool] = []
    instances = tmp_path / 'annotations' / 'instances_scenes.json'
    write_scenes(tmp_path, 3, 0, lambda done: seen.append(instances.exists()))
    assert seen == [False] * 3
    assert len(json.loads(instances.read_text())['images']) == 3
    assert not list(tmp_path.rglob('*.partial.jsonl')) and not list(tmp_path.rglob('.*.tmp'))


def test_images_of_different_seeds_have_different_keys(tmp_path, written):
    write_scenes(tmp_path, 3, 52)
    keys = {sample.key for sample in open_dataset(tmp_path).samples}
    assert not keys & {sample.key for sample in open_dataset(written).samples}
    assert np.array_equal(
        read_image(tmp_path / 'scenes' / f'{52:012d}.jpg').shape, render_scene(52).image.shape
    )
