"""COCO's layouts: contents of samples, ignored entries and their notes, and errors."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from coco_mini import COCO_MINI, needs_coco_mini
from look_alikes import box, by_key, classes, image, note_about, write_images, write_json

from gmskip_ros.datasets import DatasetError, open_dataset

CLASSES = classes(person=1, car=3, dog=18)


def write_coco(folder: Path, boxes=(), *, images=None, split='val2017', categories=CLASSES):
    """Write images a.jpg to c.jpg with these boxes and return the folder."""
    listed = images or [image(1, 'a.jpg'), image(2, 'b.jpg'), image(3, 'c.jpg')]
    write_images(folder / split, sorted({entry['file_name'] for entry in listed}))
    content = {'images': listed, 'annotations': list(boxes), 'categories': categories}
    write_json(folder / 'annotations' / f'instances_{split}.json', content)
    return folder


def edit(folder: Path, change, name='instances_val2017.json') -> None:
    """Change the content of an annotation file in place."""
    path = folder / 'annotations' / name
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


# ------------------------------------------------------------------------- contents of samples


def test_labels_are_ordered_by_total_area_and_the_main_object_is_the_largest_single(tmp_path):
    folder = write_coco(
        tmp_path,
        [
            box(1, 1, 18, (0, 0, 10, 10)),
            box(2, 1, 18, (20, 0, 10, 10)),
            box(3, 1, 3, (0, 20, 15, 10)),
            box(4, 1, 1, (40, 20, 5, 5)),
        ],
    )
    dataset = open_dataset(folder)
    sample = by_key(dataset.samples)['val2017/a.jpg']
    assert sample.labels == ('dog', 'car', 'person')  # 200, 150 and 25 pixels
    assert sample.main_object == 'car'  # no single dog has more than 100
    assert sample.image_path == folder / 'val2017' / 'a.jpg'
    assert dataset.name == 'coco-val2017'
    assert dataset.labels == ('person', 'car', 'dog')
    assert dataset.warnings == ()


def test_the_area_is_the_mask_s_where_it_is_stated(tmp_path):
    folder = write_coco(
        tmp_path,
        [
            box(1, 1, 18, (0, 0, 40, 40), area=50.5),
            box(2, 1, 3, (0, 0, 10, 10)),
        ],
    )
    assert open_dataset(folder).samples[0].labels == ('car', 'dog')
    edit(folder, lambda content: content['annotations'][0].pop('area'))
    assert open_dataset(folder).samples[0].labels == ('dog', 'car')


def test_equal_areas_are_ordered_as_the_file_s_classes(tmp_path):
    boxes = [box(1, 1, 18, (0, 0, 10, 10)), box(2, 1, 1, (20, 0, 10, 10))]
    folder = write_coco(tmp_path, boxes)
    sample = open_dataset(folder).samples[0]
    assert (sample.labels, sample.main_object) == (('person', 'dog'), 'person')


def test_an_image_without_annotations_is_a_sample_without_labels(tmp_path):
    folder = write_coco(tmp_path, [box(1, 1, 3, (0, 0, 9, 9)), box(2, 3, 3, (0, 0, 9, 9))])
    dataset = open_dataset(folder)
    sample = by_key(dataset.samples)['val2017/b.jpg']
    assert (sample.labels, sample.main_object, sample.captions) == ((), None, ())
    assert note_about(dataset.notes, 'no labels') == '1 image has no labels: val2017/b.jpg'


def test_a_crowd_is_a_label_and_never_the_main_object(tmp_path):
    folder = write_coco(
        tmp_path,
        [
            box(1, 1, 1, (0, 0, 60, 40), iscrowd=1),
            box(2, 1, 3, (0, 0, 5, 5)),
            box(3, 2, 1, (0, 0, 60, 40), iscrowd=1),
        ],
    )
    dataset = open_dataset(folder)
    samples = by_key(dataset.samples)
    assert samples['val2017/a.jpg'].labels == ('person', 'car')
    assert samples['val2017/a.jpg'].main_object == 'car'
    assert samples['val2017/b.jpg'].labels == ('person',)
    assert samples['val2017/b.jpg'].main_object is None
    assert note_about(dataset.notes, 'crowd') == (
        '2 crowd regions count as labels, never as the main object: val2017/a.jpg, val2017/b.jpg'
    )


def test_captions_come_from_the_captions_of_the_split(tmp_path):
    folder = write_coco(tmp_path)
    images = [image(1, 'a.jpg'), image(2, 'b.jpg')]
    texts = [
        {'id': 1, 'image_id': 1, 'caption': ' A car. '},
        {'id': 2, 'image_id': 1, 'caption': 'A red car.'},
        {'id': 2, 'image_id': 1, 'caption': 'A red car.'},  # listed twice
        {'id': 3, 'image_id': 1, 'caption': 'A red car.'},  # by a different person
        {'id': 4, 'image_id': 99, 'caption': 'Nothing.'},
        {'id': 5, 'image_id': 2, 'caption': ' \n'},
        {'id': 6, 'image_id': 2, 'caption': '...'},
    ]
    content = {'images': images, 'annotations': texts}
    path = write_json(folder / 'annotations' / 'captions_val2017.json', content)
    dataset = open_dataset(folder)
    samples = by_key(dataset.samples)
    assert samples['val2017/a.jpg'].captions == ('A car.', 'A red car.', 'A red car.')
    assert samples['val2017/b.jpg'].captions == ()
    assert '1 caption is listed twice' in note_about(dataset.notes, 'caption is listed')
    assert note_about(dataset.notes, 'caption belongs').endswith(': image 99')
    assert note_about(dataset.notes, '2 captions have no word').endswith(': image 2, image 2')

    elsewhere = path.rename(tmp_path / 'mine.json')
    assert open_dataset(folder).samples[0].captions == ()
    assert open_dataset(folder, captions=elsewhere).samples == dataset.samples


def test_captions_alone_are_a_dataset_without_labels(tmp_path):
    write_images(tmp_path / 'images', ['a.jpg'])
    write_json(
        tmp_path / 'annotations' / 'captions_val2014.json',
        {
            'images': [image(1, 'a.jpg')],
            'annotations': [{'id': 1, 'image_id': 1, 'caption': 'A car.'}],
        },
    )
    dataset = open_dataset(tmp_path)
    assert (dataset.labels, dataset.samples[0].labels) == ((), ())
    assert dataset.samples[0].captions == ('A car.',)
    assert not [note for note in dataset.notes if 'labels' in note]


@pytest.mark.parametrize('place', ['{split}', 'images/{split}', 'images'])
@pytest.mark.parametrize(
    'split, name, stored',
    [
        ('val2017', '000000000042.jpg', '000000000042.jpg'),
        ('val2017', '000000000042.jpg', 'COCO_train2014_000000000042.jpg'),
        ('val2014', 'COCO_val2014_000000000042.jpg', 'COCO_val2014_000000000042.jpg'),
        ('val2014', 'COCO_val2014_000000000042.jpg', '000000000042.jpg'),
    ],
)
def test_the_layouts_of_2014_and_2017(tmp_path, place, split, name, stored):
    write_images(tmp_path / place.format(split=split), [stored])
    boxes = [box(1, 42, 3, (0, 0, 9, 9))]
    content = {'images': [image(42, name)], 'annotations': boxes, 'categories': CLASSES}
    write_json(tmp_path / 'annotations' / f'instances_{split}.json', content)
    (sample,) = open_dataset(tmp_path).samples
    assert sample.key == f'{split}/{name}'
    assert sample.image_path == tmp_path / place.format(split=split) / stored
    assert sample.labels == ('car',)


def test_train_images_are_flagged(tmp_path):
    for split in ('train2014', 'train2017', 'val2014', 'val2017'):
        write_coco(tmp_path, split=split)
    warnings = {
        split: open_dataset(tmp_path, split=split).warnings
        for split in ('train2014', 'train2017', 'val2014', 'val2017')
    }
    for split in ('train2014', 'train2017'):
        (warning,) = warnings[split]
        assert 'training data of LLaVA' in warning
    assert 'most COCO val2014 images' in warnings['val2014'][0]  # they are in train2017
    assert warnings['val2017'] == ()


def test_a_custom_split_is_not_called_coco(tmp_path):
    assert open_dataset(write_coco(tmp_path, split='garage')).name == 'garage'


# ------------------------------------------------------ ignored and corrected entries, and notes


def test_missing_images_are_ignored_and_counted(tmp_path):
    folder = write_coco(tmp_path)
    (folder / 'val2017' / 'b.jpg').unlink()
    dataset = open_dataset(folder)
    assert list(by_key(dataset.samples)) == ['val2017/a.jpg', 'val2017/c.jpg']
    assert note_about(dataset.notes, 'missing') == '1 image is missing, ignored: val2017/b.jpg'


def test_long_lists_are_counted_and_shortened(tmp_path):
    images = [image(number, f'{number:04d}.jpg') for number in range(1200)]
    folder = write_coco(tmp_path, images=images[:1])
    edit(folder, lambda content: content.update(images=images))
    note = note_about(open_dataset(folder).notes, 'missing')
    assert note.startswith('1,199 images are missing, ignored: val2017/0001.jpg, ')
    assert note.endswith('val2017/0005.jpg, ...')


def test_boxes_are_clipped_to_their_image(tmp_path):
    folder = write_coco(
        tmp_path,
        [
            box(1, 1, 18, (-90, 0, 100, 10)),  # 10 x 10 of it are inside
            box(2, 1, 3, (30, 10, 15, 10)),
            box(3, 1, 1, (-20, 5, 10, 10)),  # all outside
            box(4, 2, 1, (5, 5, 0, 10)),
            box(6, 3, 1, (0, 0, 64.4, 48.4)),  # rounding
        ],
    )
    dataset = open_dataset(folder)
    samples = by_key(dataset.samples)
    assert samples['val2017/a.jpg'].labels == ('car', 'dog')
    assert samples['val2017/b.jpg'].labels == ()
    assert samples['val2017/c.jpg'].labels == ('person',)
    assert note_about(dataset.notes, 'clipped') == '1 box is clipped to its image: val2017/a.jpg'
    assert note_about(dataset.notes, 'no area').startswith('2 boxes have no area')


def test_an_image_listed_twice_is_one_sample(tmp_path):
    images = [image(1, 'a.jpg'), image(1, 'a.jpg'), image(2, 'b.jpg'), image(9, 'b.jpg')]
    boxes = [box(1, 1, 3, (0, 0, 9, 9)), box(2, 2, 1, (0, 0, 9, 9)), box(3, 9, 18, (0, 0, 5, 5))]
    dataset = open_dataset(write_coco(tmp_path, boxes, images=images))
    samples = by_key(dataset.samples)
    assert list(samples) == ['val2017/a.jpg', 'val2017/b.jpg']
    assert samples['val2017/b.jpg'].labels == ('person', 'dog')  # of both its ids
    assert note_about(dataset.notes, 'listed twice') == '1 image is listed twice, used once: a.jpg'
    assert note_about(dataset.notes, 'two ids').endswith('which are merged: val2017/b.jpg')


def test_an_image_id_of_two_files_is_ignored(tmp_path):
    images = [image(1, 'a.jpg'), image(1, 'b.jpg'), image(2, 'c.jpg')]
    dataset = open_dataset(write_coco(tmp_path, [box(1, 1, 3, (0, 0, 9, 9))], images=images))
    assert list(by_key(dataset.samples)) == ['val2017/c.jpg']
    assert note_about(dataset.notes, 'two files').endswith(': id 1')


def test_a_box_listed_twice_counts_once_and_a_different_one_with_its_id_is_kept(tmp_path):
    dog = box(1, 1, 18, (0, 0, 10, 6))
    boxes = [dog, dog, box(2, 1, 3, (0, 0, 10, 9)), box(2, 1, 1, (0, 0, 5, 5))]
    dataset = open_dataset(write_coco(tmp_path, boxes))
    assert dataset.samples[0].labels == ('car', 'dog', 'person')  # 90, 60 (not 120) and 25
    assert note_about(dataset.notes, 'twice') == '1 box is listed twice, used once: id 1'


def test_boxes_of_unknown_images_and_classes_are_ignored(tmp_path):
    boxes = [box(1, 77, 3, (0, 0, 9, 9)), box(2, 1, 55, (0, 0, 9, 9)), box(3, 1, 3, (0, 0, 9, 9))]
    dataset = open_dataset(write_coco(tmp_path, boxes))
    assert dataset.samples[0].labels == ('car',)
    assert note_about(dataset.notes, 'image that').endswith(': image 77')
    assert note_about(dataset.notes, 'class that').endswith(': class 55')


# --------------------------------------------------------------------------------------- errors


def set_in(*path, value):
    """Return a change that sets the value at a path, or deletes it if the value is None."""

    def change(content):
        *way, last = path
        for step in way:
            content = content[step]
        if value is None:
            del content[last]
        else:
            content[last] = value

    return change


@pytest.mark.parametrize(
    'change, field',
    [
        (set_in('images', value=None), r'images is missing'),
        (set_in('images', value={}), r'images is an object; it must be a list'),
        (set_in('images', 0, value='a.jpg'), r'images\[0\] is a text'),
        (set_in('images', 1, 'file_name', value=None), r'images\[1\]\.file_name is missing'),
        (set_in('images', 1, 'file_name', value=7), r'images\[1\]\.file_name is 7'),
        (set_in('images', 1, 'id', value=True), r'images\[1\]\.id is true'),
        (set_in('images', 1, 'id', value=1.5), r'images\[1\]\.id is 1\.5'),
        (set_in('images', 0, 'width', value='wide'), r'images\[0\]\.width is "wide"'),
        (set_in('images', 0, 'height', value=0), r'images\[0\]\.height is 0'),
        (
            set_in('images', 0, 'width', value=10**400),
            r'images\[0\]\.width is 10{50,}\.\.\.; it must',
        ),
        (set_in('categories', value=None), r'categories is missing'),
        (set_in('categories', 0, 'name', value=' '), r'categories\[0\]\.name is " "'),
        (
            set_in('categories', 1, 'id', value=1),
            r'categories\[1\]\.id is 1, the id of two classes',
        ),
        (set_in('annotations', value=None), r'has no annotations, as the files of test splits'),
        (set_in('annotations', 0, value=[]), r'annotations\[0\] is a list'),
        (
            set_in('annotations', 0, 'image_id', value=None),
            r'annotations\[0\]\.image_id is missing',
        ),
        (
            set_in('annotations', 0, 'category_id', value=[3]),
            r'annotations\[0\]\.category_id is \[3\]',
        ),
        (set_in('annotations', 0, 'bbox', value=None), r'annotations\[0\]\.bbox is missing'),
        (
            set_in('annotations', 0, 'bbox', value=[1, 2, 3]),
            r'annotations\[0\]\.bbox is \[1, 2, 3\]',
        ),
        (set_in('annotations', 0, 'bbox', value=[1, 2, 3, float('nan')]), r'bbox is .*NaN'),
        (set_in('annotations', 0, 'bbox', value=[0, 0, 9, 10**400]), r'\.bbox is .*; it must'),
        (set_in('annotations', 0, 'area', value=10**400), r'annotations\[0\]\.area is 10{50,}'),
        (set_in('annotations', 0, 'area', value='big'), r'annotations\[0\]\.area is "big"'),
        (set_in('annotations', 0, 'iscrowd', value=2), r'annotations\[0\]\.iscrowd is 2'),
    ],
)
def test_a_bad_field_is_one_line_with_file_and_field(tmp_path, change, field):
    folder = write_coco(tmp_path, [box(1, 1, 3, (0, 0, 9, 9))])
    edit(folder, change)
    with pytest.raises(DatasetError) as error:
        open_dataset(folder)
    message = str(error.value)
    assert re.search(field, message)
    assert message.startswith(str(folder / 'annotations' / 'instances_val2017.json'))
    assert '\n' not in message
    assert re.search('; (it must|change|give)', message)  # the remedy


def test_boxes_need_the_size_of_their_image(tmp_path):
    folder = write_coco(tmp_path, [box(1, 1, 3, (0, 0, 9, 9))])

    def remove_size(content):
        del content['images'][0]['width'], content['images'][0]['height']

    edit(folder, remove_size)
    with pytest.raises(DatasetError, match=r'annotations\[0\]\.bbox .*a\.jpg.* width and height'):
        open_dataset(folder)


@pytest.mark.parametrize(
    'content, problem',
    [
        ('{"images": [', 'is not JSON'),
        ('[]', 'contains a list'),
        ('', 'is empty; fetch it again'),
        ('\n', 'is not JSON'),
        ('\xff', 'is not UTF-8 text'),
    ],
)
def test_a_broken_file_is_one_line(tmp_path, content, problem):
    path = tmp_path / 'annotations' / 'instances_val2017.json'
    path.parent.mkdir()
    path.write_bytes(content.encode('latin-1'))
    with pytest.raises(DatasetError, match=problem) as error:
        open_dataset(tmp_path)
    assert str(path) in str(error.value) and '\n' not in str(error.value)


def test_a_file_that_lists_no_images_is_refused(tmp_path):
    folder = write_coco(tmp_path)
    edit(folder, set_in('images', value=[]))
    with pytest.raises(DatasetError, match=r'instances_val2017\.json: images is empty'):
        open_dataset(folder)


def test_annotations_that_are_a_broken_link_are_named(tmp_path):
    folder = write_coco(tmp_path)
    path = folder / 'annotations' / 'instances_val2017.json'
    path.unlink()
    path.symlink_to(tmp_path / 'not_downloaded.json')
    with pytest.raises(DatasetError, match=r'instances_val2017\.json: cannot be read'):
        open_dataset(folder)


def test_the_error_without_images_names_the_folders_searched(tmp_path):
    folder = write_coco(tmp_path)
    (folder / 'val2017').rename(folder / 'elsewhere')
    with pytest.raises(DatasetError, match='none of 3 images was found') as error:
        open_dataset(folder)
    assert str(folder / 'val2017') in str(error.value)
    assert str(folder / 'images' / 'val2017') in str(error.value)


def test_the_error_about_the_split_names_all_splits(tmp_path):
    write_coco(tmp_path, split='train2017')
    write_coco(tmp_path, split='val2017')
    with pytest.raises(DatasetError, match='several splits; choose one of train2017, val2017'):
        open_dataset(tmp_path)
    with pytest.raises(
        DatasetError, match=r"no split 'test2017'; choose one of train2017, val2017"
    ):
        open_dataset(tmp_path, split='test2017')
    assert open_dataset(tmp_path, split='val2017').name == 'coco-val2017'


def test_the_error_about_the_layout_names_those_supported(tmp_path):
    (tmp_path / 'annotations').mkdir()
    file = tmp_path / 'data.yaml'
    file.write_text('names: [car]')
    for path in (tmp_path, file, tmp_path / 'nowhere', tmp_path / 'a\0b'):
        with pytest.raises(DatasetError, match=r'COCO.*CODA.*\.jsonl') as error:
            open_dataset(path)
        assert '\n' not in str(error.value) and '\0' not in str(error.value)


def test_the_error_about_missing_captions_names_the_formats(tmp_path):
    folder = write_coco(tmp_path)
    with pytest.raises(DatasetError, match='does not exist; captions are a file such as'):
        open_dataset(folder, captions=tmp_path / 'captions.json')


def test_captions_of_a_different_split_are_refused(tmp_path):
    folder = write_coco(tmp_path)
    texts = [{'id': 1, 'image_id': 500, 'caption': 'A car.'}]
    other = write_json(tmp_path / 'captions_val2014.json', {'images': [], 'annotations': texts})
    with pytest.raises(DatasetError, match='no captions for this split'):
        open_dataset(folder, captions=other)
    with pytest.raises(DatasetError, match='cannot be read'):
        open_dataset(folder, captions=folder)
    with pytest.raises(DatasetError, match='does not exist'):
        open_dataset(folder, captions=tmp_path / 'nothing.json')


# ------------------------------------------------------------------------------ Karpathy's split


def write_karpathy(path: Path) -> Path:
    """Write a file like dataset_coco.json about images 1 to 4, one in each split."""
    images = []
    for number, split in enumerate(('train', 'restval', 'val', 'test'), start=1):
        part = 'train2014' if split == 'train' else 'val2014'
        sentences = [{'raw': f'Caption {n} of {number} .', 'sentid': n} for n in (1, 2)]
        sentences += [{'raw': '.', 'sentid': 3}] if number == 4 else []
        images.append(
            {
                'filepath': part,
                'filename': f'COCO_{part}_{number:012d}.jpg',
                'imgid': number,
                'cocoid': number,
                'split': split,
                'sentids': [1, 2],
                'sentences': sentences,
            }
        )
    return write_json(path, {'dataset': 'coco', 'images': images})


def test_karpathy_s_splits_come_from_his_file(tmp_path):
    captions = write_karpathy(tmp_path / 'dataset_coco.json')
    write_images(tmp_path / 'val2014', [f'COCO_val2014_{n:012d}.jpg' for n in (2, 3, 4)])
    write_images(tmp_path / 'train2014', ['COCO_train2014_000000000001.jpg'])
    with pytest.raises(DatasetError, match='karpathy-restval, karpathy-test, karpathy-train, '):
        open_dataset(tmp_path, captions=captions)
    with pytest.raises(DatasetError, match="no split 'val2014'"):
        open_dataset(tmp_path, captions=captions, split='val2014')
    dataset = open_dataset(tmp_path, captions=captions, split='karpathy-test')
    assert dataset.name == 'coco-karpathy-test'
    (sample,) = dataset.samples
    assert sample.key == 'val2014/COCO_val2014_000000000004.jpg'  # as in COCO's own val2014
    assert sample.captions == ('Caption 1 of 4 .', 'Caption 2 of 4 .')
    assert (sample.labels, dataset.labels) == ((), ())  # no instances file
    assert 'val2014' in dataset.warnings[0]
    joined = open_dataset(tmp_path, captions=captions, split='train+restval')
    assert joined.name == 'coco-karpathy-train+restval'
    assert [sample.key.partition('/')[0] for sample in joined.samples] == ['train2014', 'val2014']
    train = open_dataset(tmp_path, captions=captions, split='karpathy-train')
    assert 'training data of LLaVA' in train.warnings[0]


@pytest.mark.parametrize('year', [2014, 2017])
def test_karpathy_s_captions_combine_with_labels_and_images_of_either_year(tmp_path, year):
    """Both years use the same ids; his test images are in train2017 or val2017."""
    captions = write_karpathy(tmp_path / 'karpathy' / 'dataset_coco.json')
    root = tmp_path / 'coco'
    if year == 2014:
        names = {'val2014': [image(4, 'COCO_val2014_000000000004.jpg')]}
    else:
        names = {
            'val2017': [image(9, '000000000009.jpg')],
            'train2017': [image(4, '000000000004.jpg')],
        }
    for split, images in names.items():
        boxes = [box(n, entry['id'], 3, (0, 0, 9, 9)) for n, entry in enumerate(images)]
        write_coco(root, boxes, images=images, split=split)
    dataset = open_dataset(root, captions=captions, split='karpathy-test')
    (sample,) = dataset.samples
    assert sample.key == 'val2014/COCO_val2014_000000000004.jpg'
    assert sample.image_path.is_file()
    assert (sample.labels, sample.main_object) == (('car',), 'car')
    assert dataset.labels == ('person', 'car', 'dog')
    (note,) = dataset.notes  # nothing about the other images
    assert note.startswith('1 caption has no word, ignored: COCO_val2014')


# ------------------------------------------------------------------------- COCO's own photographs


@needs_coco_mini
def test_labels_and_crowds_are_pycocotools_s():
    from pycocotools.coco import COCO

    reference = COCO(str(COCO_MINI / 'annotations' / 'instances_val2017.json'))
    names = {entry['id']: entry['name'] for entry in reference.dataset['categories']}
    dataset = open_dataset(COCO_MINI)
    samples = by_key(dataset.samples)
    assert len(samples) == len(reference.imgs) == 48
    assert dataset.labels == tuple(names.values())
    crowds = 0
    for number, entry in reference.imgs.items():
        boxes = reference.loadAnns(reference.getAnnIds(imgIds=[number]))
        crowds += sum(found['iscrowd'] for found in boxes)
        sample = samples[f'val2017/{entry["file_name"]}']
        assert set(sample.labels) == {names[found['category_id']] for found in boxes}
        single = [found for found in boxes if not found['iscrowd']]
        largest = max(single, key=lambda found: found['area'], default=None)
        assert sample.main_object == (largest and names[largest['category_id']])
    assert crowds == int(note_about(dataset.notes, 'crowd').split()[0]) == 7


@needs_coco_mini
def test_captions_are_pycocotools_s():
    from pycocotools.coco import COCO

    reference = COCO(str(COCO_MINI / 'annotations' / 'captions_val2017.json'))
    for sample in open_dataset(COCO_MINI).samples:
        found = reference.imgToAnns[int(Path(sample.key).stem)]
        assert list(sample.captions) == [entry['caption'].strip() for entry in found]
