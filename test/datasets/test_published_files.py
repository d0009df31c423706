"""Annotation files as they are published, given by their path; each test names what it imitates."""

from __future__ import annotations

import json
import tracemalloc

import pytest
from look_alikes import box, by_key, classes, image, note_about, write_images, write_json

from gmskip_ros.datasets import DatasetError, may_share_pictures, open_dataset

CLASSES = classes(person=1, car=3)


def coco(images, boxes, categories=CLASSES):
    """Return the content of an instances file."""
    return {'info': {}, 'images': images, 'annotations': boxes, 'categories': categories}


def captions(images, *texts):
    """Return the content of a captions file: text n is about image n."""
    entries = [{'id': n, 'image_id': n, 'caption': text} for n, text in enumerate(texts, start=1)]
    return {'info': {}, 'images': images, 'annotations': entries}


def test_a_file_as_roboflow_exports_it(tmp_path):
    """<split>/_annotations.coco.json of a COCO export: images beside it, ids and classes from 0."""
    names = ['a_jpg.rf.00d1.jpg', 'b_jpg.rf.02ce.jpg']
    content = coco(
        [image(n, name) for n, name in enumerate(names)],
        [{**box(0, 0, 1, (0, 0, 9, 9)), 'bbox': [0, 0, '9.0000', '9.5000'], 'segmentation': []}],
        [
            {'id': 0, 'name': 'plates', 'supercategory': 'none'},
            {'id': 1, 'name': 'plate', 'supercategory': 'plates'},
        ],
    )
    root = tmp_path / 'license-plates.v4i.coco'
    write_images(root / 'valid', names)
    path = write_json(root / 'valid' / '_annotations.coco.json', content)
    dataset = open_dataset(path)
    assert dataset.name == 'license-plates.v4i.coco/valid'
    samples = by_key(dataset.samples)
    assert samples['valid/a_jpg.rf.00d1.jpg'].labels == ('plate',)
    assert samples['valid/a_jpg.rf.00d1.jpg'].instances[0].area == 81  # a box as texts
    assert samples['valid/a_jpg.rf.00d1.jpg'].image_path == root / 'valid' / names[0]
    assert samples['valid/b_jpg.rf.02ce.jpg'].labels == ()
    with pytest.raises(DatasetError, match=r'give a file: .*valid/_annotations\.coco\.json'):
        open_dataset(root)


@pytest.mark.parametrize(
    'place, name',
    [
        ('train', 'a.jpg'),
        ('images/train', 'a.jpg'),
        ('images', 'a.jpg'),
        ('', 'a.jpg'),  # in the root
        ('data', 'a.jpg'),  # as FiftyOne exports
        ('', 'images/train/a.jpg'),
        ('', 'images\\train\\a.jpg'),  # as tools on Windows write it
        ('annotations', 'a.jpg'),
        ('images', 'camera_1/a.jpg'),
        ('images', '/data/project/frames/a.jpg'),  # of the machine that wrote the file
    ],
)
def test_annotations_train_json_with_images_wherever_tools_put_them(tmp_path, place, name):
    """annotations/train.json, as MMDetection's guide to custom datasets lays it out."""
    relative = 'a.jpg' if name.startswith('/') else name.replace('\\', '/')
    write_images(tmp_path / place, [relative])
    content = coco([image(1, name)], [box(1, 1, 3, (0, 0, 9, 9))])
    dataset = open_dataset(write_json(tmp_path / 'annotations' / 'train.json', content))
    (sample,) = dataset.samples
    assert dataset.name == f'{tmp_path.name}/train'
    assert sample.image_path == tmp_path / place / relative
    assert sample.labels == ('car',)


def test_names_that_differ_in_case_or_in_how_accents_are_encoded(tmp_path):
    """A camera writes .JPG, an annotation tool .jpg; a Mac's archive takes accents apart."""
    files = ['IMG_1.JPG', 'cafe\u0301.jpg', 'b.jpg', 'B.jpg', 'c.JPG']
    write_images(tmp_path / 'train', files)
    write_images(tmp_path / 'images', ['C.jpg'])
    listed = ['IMG_1.jpg', 'caf\u00e9.jpg', 'B.jpg', 'B.JPG', 'C.jpg']
    path = write_json(
        tmp_path / 'annotations/train.json',
        coco([image(n, name) for n, name in enumerate(listed)], []),
    )
    dataset = open_dataset(path)
    found = {sample.key: sample.image_path for sample in dataset.samples}
    assert found == {
        'train/IMG_1.jpg': tmp_path / 'train/IMG_1.JPG',
        'train/caf\u00e9.jpg': tmp_path / 'train/cafe\u0301.jpg',
        'train/B.jpg': tmp_path / 'train/B.jpg',
        'train/C.jpg': tmp_path / 'images/C.jpg',  # as it is spelt, before one that is alike
    }
    assert any('B.JPG' in note for note in dataset.notes)  # b.jpg or B.jpg?


def test_images_are_only_looked_for_in_images_dir_if_it_is_given(tmp_path):
    content = coco([image(1, 'a.jpg')], [box(1, 1, 3, (0, 0, 9, 9))])
    path = write_json(tmp_path / 'labels' / 'mine.json', content)
    with pytest.raises(DatasetError, match=r'none of 1 images was found; .*--images-dir'):
        open_dataset(path)
    write_images(tmp_path / 'frames', ['a.jpg'])
    (sample,) = open_dataset(path, images_dir=tmp_path / 'frames').samples
    assert sample.image_path == tmp_path / 'frames' / 'a.jpg'
    write_images(tmp_path / 'labels', ['a.jpg'])
    with pytest.raises(DatasetError, match='none of 1 images was found'):
        open_dataset(path, images_dir=tmp_path)
    with pytest.raises(DatasetError, match='is not a folder; give the folder'):
        open_dataset(path, images_dir=path)


def test_a_name_in_two_folders_is_two_images(tmp_path):
    images = [image(1, 'left/a.jpg'), image(2, 'right/a.jpg')]
    path = write_json(tmp_path / 'train.json', coco(images, [box(1, 2, 3, (0, 0, 9, 9))]))
    write_images(tmp_path, ['left/a.jpg'])
    write_images(tmp_path, ['a.jpg'])  # it could be either of them
    dataset = open_dataset(path)
    assert list(by_key(dataset.samples)) == ['train/left/a.jpg']
    assert 'train/right/a.jpg' in note_about(dataset.notes, 'missing')


def test_the_keypoints_of_people(tmp_path):
    """annotations/person_keypoints_val2017.json: its only class has keypoints and a skeleton."""
    person = {**CLASSES[0], 'keypoints': ['nose'], 'skeleton': [[1, 1]]}
    content = coco(
        [image(1, 'a.jpg')], [{**box(1, 1, 1, (0, 0, 9, 9)), 'keypoints': [1, 1, 2]}], [person]
    )
    write_images(tmp_path / 'val2017', ['a.jpg'])
    path = write_json(tmp_path / 'annotations' / 'person_keypoints_val2017.json', content)
    dataset = open_dataset(path)
    assert (dataset.name, dataset.samples[0].labels) == ('coco-val2017', ('person',))
    assert 'labels only person' in dataset.warnings[0]
    for as_instances in (
        write_json(tmp_path / 'annotations' / 'instances_val2017.json', content),
        tmp_path,
    ):
        with pytest.raises(DatasetError, match=r'has the keypoints of people.*instances of all'):
            open_dataset(as_instances)


def test_ids_may_be_texts_and_an_area_of_0_is_not_stated(tmp_path):
    """Label Studio and CVAT write such files: text ids, area 0, a box missing or empty."""
    write_images(tmp_path, ['a.jpg', 'b.jpg'])
    content = coco(
        [image('1', 'a.jpg'), image('x7', 'b.jpg')],
        [
            box('1', 1, '3', (0, 0, 9, 9), area=0),
            box(2.0, 'x7', 1.0, (0, 0, 9, 9), area=None),  # as pandas writes numbers
            {'id': '3', 'image_id': 'x7', 'category_id': '3', 'segmentation': [[0, 0, 1, 1, 2, 2]]},
            box('4', 'x7', '3', (0, 0, 9, 9)) | {'bbox': []},
        ],
        [{'id': '1', 'name': 'person'}, {'id': '3', 'name': 'car'}],
    )
    dataset = open_dataset(write_json(tmp_path / 'result.json', content))
    samples = by_key(dataset.samples)
    assert samples['result/a.jpg'].labels == ('car',)
    assert samples['result/a.jpg'].instances[0].area == 81
    assert samples['result/b.jpg'].labels == ('person',)
    assert note_about(dataset.notes, 'cannot be used') == (
        '2 annotations cannot be used, skipped: annotations[2].bbox is missing, '
        'annotations[3].bbox is []'
    )


def test_lvis_names_images_by_their_url(tmp_path):
    """lvis_v1_val.json: no file_name, no iscrowd; most of its images are in train2017."""
    urls = {n: f'http://images.cocodataset.org/{n}' for n in ('train2017/1.jpg', 'val2017/2.jpg')}
    images = [
        {**image(n, ''), 'coco_url': url, 'neg_category_ids': [], 'file_name': None}
        for n, url in enumerate(urls.values(), start=1)
    ]
    annotation = {'id': 1, 'image_id': 1, 'category_id': 3, 'bbox': [0, 0, 9, 9], 'area': 40.5}
    path = tmp_path / 'annotations' / 'lvis_v1_val.json'
    for entry in images:
        del entry['file_name']
    write_json(path, coco(images, [annotation]))
    write_images(tmp_path, urls)
    dataset = open_dataset(path)
    assert [s.image_path.relative_to(tmp_path).as_posix() for s in dataset.samples] == [*urls]
    assert dataset.samples[0].labels == ('car',)
    assert may_share_pictures(dataset.name, 'coco-val2017')
    assert 'may show classes that are not among its labels' in dataset.warnings[0]
    only = open_dataset(path, images_dir=tmp_path / 'val2017')
    assert [sample.image_path.name for sample in only.samples] == ['2.jpg']


def test_nocaps(tmp_path):
    """nocaps_val_4500_captions.json: COCO's captions, with open_images_id and ids from 0."""
    images = [
        {**image(n, f'{n:016x}.jpg'), 'open_images_id': f'{n:016x}', 'coco_url': f'https://s3/{n}'}
        for n in (0, 1)
    ]
    content = captions(images, 'A baby.', 'A house.')
    for entry in content['annotations']:
        entry['image_id'] -= 1
    write_images(tmp_path / 'images', [entry['file_name'] for entry in images])
    path = write_json(tmp_path / 'nocaps_val_4500_captions.json', content)
    dataset = open_dataset(path)
    assert [sample.captions for sample in dataset.samples] == [('A baby.',), ('A house.',)]
    assert (dataset.labels, dataset.notes) == ((), ())
    del content['annotations']  # as in nocaps_test_image_info.json
    with pytest.raises(DatasetError, match='has no annotations, as the files of test splits'):
        open_dataset(write_json(path, content))


def test_boxes_and_captions_from_two_files(tmp_path):
    images = [image(1, 'a.jpg')]
    write_images(tmp_path, ['a.jpg'])
    boxes = write_json(tmp_path / 'boxes.json', coco(images, [box(1, 1, 3, (0, 0, 9, 9))]))
    texts = write_json(tmp_path / 'texts.json', captions(images, 'A car.'))
    (sample,) = open_dataset(boxes, captions=texts).samples
    assert (sample.labels, sample.captions) == (('car',), ('A car.',))


def flickr(split_of: dict[str, str], name: str = 'flickr8k'):
    """Return the content of Karpathy's file about Flickr: no cocoid and no filepath."""
    return {
        'images': [
            {
                'sentids': [n],
                'imgid': n,
                'sentences': [{'tokens': ['a'], 'raw': f'Text {n} .', 'imgid': n, 'sentid': n}],
                'split': split,
                'filename': file_name,
            }
            for n, (file_name, split) in enumerate(split_of.items())
        ],
        'dataset': name,
    }


@pytest.mark.parametrize('folder', ['Flicker8k_Dataset', 'flickr30k-images', '', 'elsewhere'])
def test_karpathy_s_flickr_files(tmp_path, folder):
    """dataset_flickr8k.json of caption_datasets.zip, beside the images' folder as it unpacks."""
    splits = {'1.jpg': 'train', '2.jpg': 'val', '3.jpg': 'test'}
    path = write_json(tmp_path / 'dataset_flickr8k.json', flickr(splits))
    write_images(tmp_path / folder, splits)
    options = {'images_dir': tmp_path / folder} if folder == 'elsewhere' else {}
    dataset = open_dataset(path, split='test', **options)
    assert dataset.name == 'flickr8k-karpathy-test'
    (sample,) = dataset.samples
    assert (sample.key, sample.captions) == ('3.jpg', ('Text 2 .',))
    assert sample.image_path == tmp_path / folder / '3.jpg'
    joined = open_dataset(path, split='train+val', **options)
    assert joined.name == 'flickr8k-karpathy-train+val'
    assert list(by_key(joined.samples)) == ['1.jpg', '2.jpg']
    assert may_share_pictures(joined.name, 'flickr8k-karpathy-val')
    assert not may_share_pictures(joined.name, dataset.name)
    with pytest.raises(DatasetError, match="no split 'restval'; choose one of karpathy-test"):
        open_dataset(path, split='train+restval', **options)


# ------------------------------------------------------------------- files given by mistake


PANOPTIC = {
    'images': [image(1, 'a.jpg')],
    'annotations': [{'segments_info': [{'id': 1}], 'file_name': 'a.png', 'image_id': 1}],
    'categories': [],
}
TOKENS = '1000092795.jpg#0\tTwo young guys .\n1000092795.jpg#1\tTwo men .\n'
POINTER = 'version https://git-lfs.github.com/spec/v1\noid sha256:c879\nsize 26366489\n'


@pytest.mark.parametrize(
    'name, content, problem',
    [
        ('panoptic_val2017.json', PANOPTIC, 'is a panoptic file.*give instances_'),
        (
            'captions_val2014_fakecap_results.json',  # of the repository coco-caption
            [{'image_id': 404464, 'caption': 'black and white photo of a man'}],
            "a list of a model's results.*give the file that they are compared with",
        ),
        (
            'instances_val2014_fakebbox100_results.json',  # of the repository cocoapi
            [{'image_id': 42, 'category_id': 18, 'bbox': [258, 41, 348, 243], 'score': 0.236}],
            "a list of a model's results",
        ),
        ('results_20130124.token', TOKENS, "Flickr's token file.*dataset_flickr30k.json"),
        ('Flickr8k.token.txt', TOKENS, "Flickr's token file"),
        ('dataset_flickr8k.json', POINTER, 'is a git-LFS pointer.*git lfs pull'),
        ('llava_bench.jsonl', POINTER, 'is a git-LFS pointer'),
        ('train-00000-of-00001.parquet', POINTER, 'is a git-LFS pointer'),
        ('image_info_test2017.json', {'images': [image(1, 'a.jpg')]}, 'has no annotations'),
        (
            'v2_OpenEnded_mscoco_val2014_questions.json',
            {'questions': [{'image_id': 1, 'question': 'How?', 'question_id': 1}]},
            "VQA's questions without answers",
        ),
        (
            'v2_mscoco_val2014_annotations.json',
            {'annotations': [{'question_id': 1, 'image_id': 1, 'answers': []}]},
            "VQA's answers without their questions",
        ),
        (
            'captions.txt.csv',
            'image,caption\n1000268201_693b08cb0e.jpg,A child\n',
            'is a table; give',
        ),
        ('mmbench_dev_20230712.tsv', 'index\tquestion\n', 'is a table; give'),
        ('captions.txt', 'image,caption\na.jpg,A child\n', 'is plain text; give'),
        ('Flickr_8k.trainImages.txt', 'a.jpg\n', 'is plain text; give'),
        (
            'v2_OpenEnded_mscoco_train2014_fake_results.json',  # of the repository VQA
            [{'question_id': 409380, 'answer': '4'}],
            "a list of a model's results.*or the questions",
        ),
        (
            'llava-v1.5-13b.jsonl',  # an answer file of LLaVA's model_vqa.py
            {'question_id': 0, 'prompt': 'What?', 'text': 'A car.', 'answer_id': 'x'},
            "line 1.image is missing, as in files of a model's answers; give the file of questions",
        ),
        ('2007_000027.xml', '<annotation></annotation>', 'is XML, as Pascal VOC has it; give'),
        ('instances_val2017.json', '', 'is empty; fetch it again'),
        ('coco_pope_random.json', POINTER, 'is a git-LFS pointer'),
        ('annotations_trainval2017.zip', 'PK', 'is an archive; unpack it'),
        ('000000000139.jpg', 'JFIF', 'is an image; give the file that says'),
    ],
)
def test_a_file_given_by_mistake_is_named_with_what_to_give_instead(
    tmp_path, name, content, problem
):
    """The published files of these names begin with such content."""
    path = tmp_path / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(DatasetError, match=problem) as error:
        open_dataset(path)
    assert str(error.value).startswith(f'{path}: ') and '\n' not in str(error.value)


@pytest.mark.parametrize('name', ['corner_case.json', 'coco_pope_popular.json'])
@pytest.mark.parametrize(
    'content, problem', [(POINTER, 'is a git-LFS pointer'), ('', 'is empty; fetch it again')]
)
def test_a_damaged_file_in_the_folder_that_is_given_is_named(tmp_path, name, content, problem):
    """CODA's and POPE's folders are known by the files in them."""
    (tmp_path / name).write_text(content)
    with pytest.raises(DatasetError, match=f'{name}: {problem}'):
        open_dataset(tmp_path)


def test_captions_given_by_mistake_are_named(tmp_path):
    write_images(tmp_path / 'val2017', ['a.jpg'])
    content = coco([image(1, 'a.jpg')], [box(1, 1, 3, (0, 0, 9, 9))])
    write_json(tmp_path / 'annotations' / 'instances_val2017.json', content)
    tokens = tmp_path / 'results_20130124.token'
    tokens.write_text(TOKENS)
    with pytest.raises(DatasetError, match="Flickr's token file"):
        open_dataset(tmp_path, captions=tokens)
    pointer = tmp_path / 'captions.json'
    pointer.write_text(POINTER)
    with pytest.raises(DatasetError, match='is a git-LFS pointer'):
        open_dataset(tmp_path, captions=pointer)
    with pytest.raises(DatasetError, match=r'folder of the annotations alone.*instances_val'):
        open_dataset(tmp_path / 'annotations')
    with pytest.raises(DatasetError, match=r'is a folder of images; give .*--images-dir'):
        open_dataset(tmp_path / 'val2017')


# ---------------------------------------------------------------------------------- memory


def test_coco_s_training_images_fit_into_their_memory(tmp_path):
    """1.5 GiB for 118,287 images, each with 7 boxes, whose outlines are most of the file."""
    count = 300
    images = [image(n, f'{n:012d}.jpg') for n in range(count)]
    outline = [round(0.01 * n, 2) for n in range(70)]
    boxes = [
        {'segmentation': [outline], **box(n, n % count, 3, (0.5, 0.5, 9.25, 9.75))}
        for n in range(7 * count)
    ]
    write_json(tmp_path / 'annotations' / 'instances_train.json', coco(images, boxes))
    texts = ['A man riding on the back of a motorcycle.'] * 5
    entries = [
        {'id': 5 * n + k, 'image_id': n, 'caption': text}
        for n in range(count)
        for k, text in enumerate(texts)
    ]
    content = {'images': images, 'annotations': entries}
    write_json(tmp_path / 'annotations' / 'captions_train.json', content)
    for entry in images:
        (tmp_path / entry['file_name']).touch()
    tracemalloc.start()
    dataset = open_dataset(tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert all(len(s.instances) == 7 and len(s.captions) == 5 for s in dataset.samples)
    assert peak / count < (1.5 * 2**30) / 118_287
