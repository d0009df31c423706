"""CODA's layouts and CODA-LM, on imitations: the licence forbids redistribution."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from look_alikes import box, by_key, image, note_about, write_images, write_json

from gmskip_ros.datasets import DatasetError, open_dataset

# As in CODA's files, ids have gaps, one name is misspelt, and 'misc' names nothing.
CATEGORIES = [
    {'id': 1, 'name': 'pedestrian', 'supercategory': 'pedestrian'},
    {'id': 3, 'name': 'car', 'supercategory': 'vehicle'},
    {'id': 17, 'name': 'dog', 'supercategory': 'animal'},
    {'id': 29, 'name': 'suitcace', 'supercategory': 'obstruction'},
    {'id': 43, 'name': 'misc', 'supercategory': 'misc'},
]
FILES = {
    'base-val-1500': 'corner_case.json',
    'sample': 'corner_case.json',
    'val': 'annotations.json',
    'test': 'annotations.json',
}


def write_split(root: Path, split: str) -> Path:
    """Write images 0001.jpg to 0004.jpg of one split and return its folder."""
    names = [f'{number:04d}.jpg' for number in range(1, 5)]
    images = [image(number, name) for number, name in enumerate(names, start=1)]
    images[0] |= {'period': 'daytime', 'weather': 'rainy'}
    images[1] |= {'period': None, 'weather': ['whatever']}  # not read by the reader
    boxes = [
        box(1, 1, 29, (0, 0, 30, 20), iscrowd=False, corner_case=True),
        box(
            2, 1, 3, (-40, 0, 50, 10), iscrowd=False, corner_case=False
        ),  # extends beyond the image
        box(3, 2, 17, (0, 0, 20, 20), iscrowd=False, corner_case=True),  # no common class here
        box(4, 3, 43, (0, 0, 20, 20), iscrowd=False, corner_case=True),
        box(5, 3, 1, (0, 0, 60, 40), iscrowd=True, corner_case=False),
        box(6, 3, 3, (0, 0, 20, 10), iscrowd=False, corner_case=False),
        box(7, 4, 43, (0, 0, 20, 20), iscrowd=False, corner_case=True),
    ]
    write_images(root / split / 'images', names)
    content = {'info': {}, 'images': images, 'annotations': boxes, 'categories': CATEGORIES}
    write_json(root / split / FILES[split], content)
    return root / split


@pytest.mark.parametrize('split', list(FILES))
def test_the_layout_of_every_split_is_supported(tmp_path, split):
    folder = write_split(tmp_path, split)
    dataset = open_dataset(tmp_path)
    assert dataset == open_dataset(folder) == open_dataset(tmp_path, split=split)
    assert dataset == open_dataset(folder / FILES[split])
    assert dataset.name == f'coda-{split}'
    assert dataset.labels == ('pedestrian', 'car', 'dog', 'suitcase')
    samples = by_key(dataset.samples)
    assert list(samples) == [f'{split}/{number:04d}.jpg' for number in range(1, 5)]
    first, second, third, fourth = samples.values()
    assert first.image_path == folder / 'images' / '0001.jpg'
    assert (first.labels, first.main_object) == (('suitcase', 'car'), 'suitcase')
    assert second.labels == ('dog',)
    assert (third.labels, third.main_object) == (('pedestrian', 'car'), 'car')
    assert (fourth.labels, fourth.main_object) == ((), None)


@pytest.mark.parametrize(
    'name, place, images_dir',
    [
        ('annotations/val.json', 'images', None),
        ('annotations/val.json', 'val/images', 'val'),
        ('val/val.json', 'val', None),
        ('val/annotations.json', 'val', None),
        ('val/annotations/annotations.json', 'val/images', None),
    ],
)
def test_a_file_by_its_path_finds_images_where_any_file_in_coco_s_format_does(
    tmp_path, name, place, images_dir
):
    folder = write_split(tmp_path / 'as_published', 'val')
    for source, to in ((folder / 'images', place), (folder / FILES['val'], name)):
        (tmp_path / to).parent.mkdir(parents=True, exist_ok=True)
        source.rename(tmp_path / to)
    dataset = open_dataset(tmp_path / name, images_dir=images_dir and tmp_path / images_dir)
    assert dataset.name == 'coda-val'
    assert [sample.image_path for sample in dataset.samples] == [
        tmp_path / place / f'{number:04d}.jpg' for number in range(1, 5)
    ]
    assert 'suitcase' in dataset.labels


def test_ignored_and_corrected_entries_are_noted(tmp_path):
    notes = open_dataset(write_split(tmp_path, 'val')).notes
    assert note_about(notes, 'misc') == (
        '2 boxes have class misc, which no answer can name, ignored: val/0003.jpg, val/0004.jpg'
    )
    assert note_about(notes, 'clipped') == '1 box is clipped to its image: val/0001.jpg'
    assert note_about(notes, 'crowd').startswith('1 crowd region counts as a label')
    assert note_about(notes, 'no labels') == '1 image has no labels: val/0004.jpg'
    assert len(notes) == 4


def test_labels_of_corner_cases_only_give_a_warning(tmp_path):
    (warning,) = open_dataset(write_split(tmp_path, 'base-val-1500')).warnings
    assert 'only corner cases' in warning
    assert open_dataset(write_split(tmp_path, 'val')).warnings == ()


def test_val_and_test_share_file_names_and_no_keys(tmp_path):
    for split in ('val', 'test'):
        write_split(tmp_path, split)
    with pytest.raises(DatasetError, match='several splits; choose one of test, val'):
        open_dataset(tmp_path)
    val, test = (open_dataset(tmp_path, split=split).samples for split in ('val', 'test'))
    assert [sample.image_path.name for sample in val] == [sample.image_path.name for sample in test]
    assert not {sample.key for sample in val} & {sample.key for sample in test}


def test_a_linked_folder_keeps_the_name_of_the_link(tmp_path, monkeypatch):
    real = write_split(tmp_path / 'disk', 'val').rename(tmp_path / 'disk' / 'coda-2022-part-1')
    (tmp_path / 'CODA').mkdir()
    (tmp_path / 'CODA' / 'val').symlink_to(real)
    assert open_dataset(tmp_path / 'CODA').name == 'coda-val'
    assert open_dataset(tmp_path / 'CODA' / 'val').name == 'coda-val'
    monkeypatch.chdir(real)
    assert open_dataset('.').name == 'coda-coda-2022-part-1'


def test_the_error_about_the_split_names_all_splits(tmp_path):
    folder = write_split(tmp_path, 'val')
    for path in (tmp_path, folder):
        with pytest.raises(DatasetError, match=r"no split 'test'; choose one of val"):
            open_dataset(path, split='test')


def test_missing_images(tmp_path):
    folder = write_split(tmp_path, 'val')
    (folder / 'images' / '0002.jpg').unlink()
    dataset = open_dataset(folder)
    assert note_about(dataset.notes, 'missing') == '1 image is missing, ignored: val/0002.jpg'
    (folder / 'images').rename(folder / 'elsewhere')
    with pytest.raises(DatasetError, match=r'val/images or .*: none of 4 images was found'):
        open_dataset(folder)


# -------------------------------------------------------------------------------------- CODA-LM


def write_lm(root: Path, part: str, name: str, text: str | None) -> Path:
    """Write one of CODA-LM's files and return the folder CODA-LM."""
    general = {'vehicles': [{'description': 'd', 'explanation': 'e'}], 'traffic signs': []}
    if text is not None:
        general['description and explanation'] = text
    region = {
        '1': {'description and explanation': 'A dog.', 'box': [0, 0, 9, 9], 'category_name': 'dog'}
    }
    content = {
        'general_perception': general,
        'region_perception': region,
        'driving_suggestion': 'Slow down.',
    }
    write_json(root / 'CODA-LM' / part / name, content)
    return root / 'CODA-LM'


def test_coda_lm_describes_the_images_of_its_source_split(tmp_path):
    """CODA-LM's Train is about CODA2022's val; its Val, Test and Mini are about test."""
    for split in ('val', 'test'):
        write_split(tmp_path, split)
    write_lm(tmp_path, 'Train', 'val_0001.json', 'A suitcase lies on the road.')
    write_lm(tmp_path, 'Train', 'val_0002.json', None)
    write_lm(tmp_path, 'Train', 'val_0003.json', ' ')
    write_lm(tmp_path, 'Train', 'val_0099.json', 'No such image.')
    write_lm(tmp_path, 'Val', 'test_0001.json', 'From Val.')
    write_lm(tmp_path, 'Test', 'test_0002.json', 'From Test.')
    folder = write_lm(tmp_path, 'Mini', 'test_0001.json', 'From Mini.')
    (folder / 'Val' / 'vqa_anno').mkdir()  # written by the authors' converter
    (folder / 'Val' / 'vqa_anno' / 'general_perception.json').write_text('{}\n{}\n')

    dataset = open_dataset(tmp_path, split='val', captions=folder)
    samples = by_key(dataset.samples)
    assert samples['val/0001.jpg'].captions == ('A suitcase lies on the road.',)
    assert samples['val/0002.jpg'].captions == samples['val/0003.jpg'].captions == ()
    without_text = note_about(dataset.notes, 'CODA-LM files have')
    assert without_text.endswith(': val_0002.json, val_0003.json')
    assert note_about(dataset.notes, 'CODA-LM file describes').endswith(': val_0099.json')

    samples = by_key(open_dataset(tmp_path, split='test', captions=folder).samples)
    captions = [sample.captions for sample in samples.values()]
    assert captions == [('From Val.',), ('From Test.',), (), ()]
    mini = open_dataset(tmp_path, split='test', captions=folder / 'Mini').samples
    assert mini[0].captions == ('From Mini.',)


def test_coda_lm_that_does_not_describe_the_split_is_refused(tmp_path):
    base = write_split(tmp_path, 'base-val-1500')
    folder = write_lm(tmp_path, 'Train', 'val_0001.json', 'A suitcase lies on the road.')
    with pytest.raises(DatasetError, match='describes no image of base-val-1500'):
        open_dataset(base, captions=folder)
    with pytest.raises(DatasetError, match='is not a folder'):
        open_dataset(base, captions=folder / 'Train' / 'val_0001.json')


@pytest.mark.parametrize(
    'content, problem',
    [
        ('{', 'is not JSON'),
        ('{}', 'general_perception is missing'),
        ('{"general_perception": []}', 'general_perception is a list'),
        ('{"general_perception": {"description and explanation": 5}}', 'explanation is 5'),
    ],
)
def test_a_broken_file_of_coda_lm_is_one_line(tmp_path, content, problem):
    split = write_split(tmp_path, 'val')
    folder = write_lm(tmp_path, 'Train', 'val_0001.json', 'A suitcase.')
    path = folder / 'Train' / 'val_0002.json'
    path.write_text(content)
    with pytest.raises(DatasetError, match=problem) as error:
        open_dataset(split, captions=folder)
    assert str(path) in str(error.value) and '\n' not in str(error.value)


def test_broken_annotations_name_their_place(tmp_path):
    folder = write_split(tmp_path, 'val')
    content = json.loads((folder / 'annotations.json').read_text())
    content['annotations'][2]['iscrowd'] = 'no'
    write_json(folder / 'annotations.json', content)
    note = note_about(open_dataset(folder).notes, 'cannot be used')
    assert note == '1 annotation cannot be used, skipped: annotations[2].iscrowd is "no"'
    content['annotations'] = content['annotations'][2:3]
    content['annotations'] *= 3
    write_json(folder / 'annotations.json', content)
    with pytest.raises(DatasetError, match=r'val/annotations\.json: annotations\[0\]\.iscrowd'):
        open_dataset(folder)
    content['categories'][0]['name'] = ['car']
    path = write_json(folder / 'mine.json', content)
    with pytest.raises(DatasetError, match=r'mine\.json: categories\[0\]\.name is \["car"\]'):
        open_dataset(path)
