"""POPE's files are read as they are; an image's questions are one sample."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from look_alikes import note_about, write_images

from gmskip_ros.datasets import (
    DatasetError,
    PresenceQuestion,
    may_share_pictures,
    open_dataset,
    sample_hash,
)

ALL = ('random', 'popular', 'adversarial')
FIRST = 'COCO_val2014_000000310196.jpg'
SECOND = 'COCO_val2014_000000210789.jpg'
# The first questions of coco_pope_<split>.json in RUCAIBox/POPE at 3df3ba1.
QUESTIONS = {
    'random': [(FIRST, 'snowboard', 'yes'), (FIRST, 'car', 'no'), (SECOND, 'truck', 'yes')],
    'popular': [
        (FIRST, 'snowboard', 'yes'),
        (FIRST, 'dining table', 'no'),
        (SECOND, 'truck', 'yes'),
    ],
    'adversarial': [(FIRST, 'snowboard', 'yes'), (FIRST, 'car', 'no'), (SECOND, 'truck', 'yes')],
}


def line(number: int, image: str, label: str, answer: str) -> dict[str, object]:
    text = f'Is there a {label} in the image?'
    return {'question_id': number, 'image': image, 'text': text, 'label': answer}


@pytest.fixture
def pope(tmp_path: Path) -> Path:
    write_images(tmp_path, [FIRST, 'val2017/000000210789.jpg'])
    for split, questions in QUESTIONS.items():
        lines = [json.dumps(line(n, *question)) for n, question in enumerate(questions, start=1)]
        (tmp_path / f'coco_pope_{split}.json').write_text('\n'.join(lines) + '\n')
    return tmp_path


def test_the_folder_is_all_three_splits(pope: Path) -> None:
    dataset = open_dataset(pope)
    assert (dataset.name, dataset.labels) == (
        'pope-coco',
        ('truck', 'snowboard', 'car', 'dining table'),
    )
    second, first = dataset.samples
    assert (first.key, first.image_path) == (f'pope-coco/{FIRST}', pope / FIRST)
    assert second.image_path == pope / 'val2017/000000210789.jpg'  # COCO 2017's name of it
    assert first.presence == (
        PresenceQuestion('snowboard', 'yes', ALL, 'Is there a snowboard in the image?', (1, 1, 1)),
        PresenceQuestion(
            'car', 'no', ('random', 'adversarial'), 'Is there a car in the image?', (2, 2)
        ),
        PresenceQuestion(
            'dining table', 'no', ('popular',), 'Is there a dining table in the image?', (2,)
        ),
    )
    assert 'val2014 images are in train2017' in dataset.warnings[0]
    assert may_share_pictures(dataset.name, 'coco-val2014')
    assert not may_share_pictures(dataset.name, 'coda-val')
    assert sample_hash([first]) != sample_hash(open_dataset(pope, split='random').samples[1:])


def test_one_split_by_name_or_file(pope: Path) -> None:
    for dataset in (
        open_dataset(pope, split='popular'),
        open_dataset(pope / 'coco_pope_popular.json'),
    ):
        assert dataset.name == 'pope-coco-popular'
        asked = [question for sample in dataset.samples for question in sample.presence]
        assert [(question.label, question.splits) for question in asked] == [
            ('truck', ('popular',)),
            ('snowboard', ('popular',)),
            ('dining table', ('popular',)),
        ]


def test_a_list_of_questions_under_any_name(tmp_path: Path) -> None:
    write_images(tmp_path, ['images/1.jpg'])
    questions = [line(1, '1.jpg', 'bird', 'yes'), line(2, '1.jpg', 'bird', 'yes')]
    path = tmp_path / 'mine.json'
    path.write_text(json.dumps(questions, indent=4))
    dataset = open_dataset(path)
    assert dataset.name == 'pope-mine' and not dataset.warnings
    (sample,) = dataset.samples
    (question,) = sample.presence
    assert (question.splits, question.ids) == (('mine', 'mine'), (1, 2))


def test_a_question_without_an_id_has_its_number(tmp_path: Path) -> None:
    write_images(tmp_path, ['1.jpg', '2.jpg'])
    lines = [line(7, '2.jpg', 'bird', 'yes'), line(8, '1.jpg', 'bird', 'yes')]
    for each in lines:
        del each['question_id']
    (tmp_path / 'mine.json').write_text('\n'.join(map(json.dumps, lines)))
    samples = open_dataset(tmp_path / 'mine.json').samples
    assert {each.image_name: each.presence[0].ids for each in samples} == {
        '1.jpg': (2,),
        '2.jpg': (1,),
    }


def test_images_of_another_folder(pope: Path, tmp_path_factory) -> None:
    images = tmp_path_factory.mktemp('coco')
    write_images(images, [f'val2014/{FIRST}'])
    (pope / 'val2017/000000210789.jpg').rename(images / '000000210789.jpg')
    for place in (pope, pope / 'coco_pope_random.json'):
        found = [sample.image_path for sample in open_dataset(place, images_dir=images).samples]
        assert found == [images / '000000210789.jpg', images / 'val2014' / FIRST]


def test_missing_images_are_ignored_and_counted(pope: Path) -> None:
    (pope / FIRST).unlink()
    dataset = open_dataset(pope)
    assert len(dataset.samples) == 1
    assert note_about(dataset.notes, 'missing') == f'1 image is missing, ignored: {FIRST}'


def test_what_is_refused(pope: Path) -> None:
    def refusal(*arguments, **options) -> str:
        with pytest.raises(DatasetError) as caught:
            open_dataset(*arguments, **options)
        return str(caught.value)

    path = pope / 'coco_pope_random.json'
    assert 'choose one of random, popular' in refusal(pope, split='hard')
    assert 'is the file of one split' in refusal(path, split='random')
    assert 'POPE has no captions' in refusal(pope, captions=pope)
    assert 'POPE has no captions' in refusal(path, captions=pope)
    good = path.read_text()
    path.write_text(good + json.dumps(line(4, FIRST, 'cat', 'maybe')))
    assert "line 4.label is 'maybe'" in refusal(path)
    path.write_text(good + '{"image": ')
    assert 'line 4 is not JSON' in refusal(path)
    path.write_text(good)
    (pope / FIRST).unlink()
    (pope / 'val2017/000000210789.jpg').unlink()
    assert 'none of 2 images was found' in refusal(pope)
    path.rename(pope / 'gqa_pope_random.json')
    assert 'has POPE files of coco and gqa' in refusal(pope)
