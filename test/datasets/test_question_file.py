"""A .jsonl file of questions is a dataset; errors name the line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from look_alikes import note_about, write_images

from gmskip_ros.datasets import DatasetError, open_dataset, sample_hash


def write_lines(folder: Path, *lines: object) -> Path:
    """Write the images a.jpg and b/c.jpg and a file with these lines."""
    write_images(folder, ['a.jpg', 'b/c.jpg'])
    path = folder / 'my-benchmark.jsonl'
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text('\n'.join(texts) + '\n', encoding='utf-8')
    return path


def question(**more: object) -> dict[str, object]:
    return {'image': 'a.jpg', 'question': 'How many?', 'references': ['2', 'two'], **more}


def test_a_line_is_a_sample(tmp_path):
    path = write_lines(
        tmp_path,
        question(id='q1'),
        '',
        question(image='b/c.jpg', references='été', topic='x'),
        question(id=7),
    )
    dataset = open_dataset(path)
    assert (dataset.name, dataset.labels, dataset.notes) == ('my-benchmark', (), ())
    last, first, second = dataset.samples[1], dataset.samples[2], dataset.samples[0]
    assert (first.key, second.key, last.key) == ('q1', '7', 'b/c.jpg:3')
    assert first.image_path == tmp_path / 'a.jpg' and last.image_path == tmp_path / 'b' / 'c.jpg'
    assert (first.question, first.references) == ('How many?', ('2', 'two'))
    assert last.references == ('été',)


def test_the_references_of_a_line_may_be_formulae(tmp_path):
    path = write_lines(tmp_path, question(id='a', formula=True), question(id='b'))
    dataset = open_dataset(path)
    assert [sample.is_formula for sample in dataset.samples] == [True, False]
    other = open_dataset(write_lines(tmp_path, question(id='a'), question(id='b')))
    assert sample_hash(dataset.samples[1:]) == sample_hash(other.samples[1:])
    assert sample_hash(dataset.samples) != sample_hash(other.samples)


def test_a_byte_order_mark_and_windows_line_ends_are_accepted(tmp_path):
    path = write_lines(tmp_path, question(), question())
    path.write_bytes(b'\xef\xbb\xbf' + path.read_bytes().replace(b'\n', b'\r\n'))
    assert [sample.key for sample in open_dataset(path).samples] == ['a.jpg:1', 'a.jpg:2']


def test_missing_images_are_ignored_and_counted(tmp_path):
    path = write_lines(tmp_path, question(), question(image='z.jpg'))
    dataset = open_dataset(path)
    assert len(dataset.samples) == 1
    assert note_about(dataset.notes, 'missing') == '1 image is missing, ignored: z.jpg'


@pytest.mark.parametrize(
    'line, problem',
    [
        ('{"image": ', 'line 2 is not JSON'),
        ([1], 'line 2 is a list'),
        ({'question': 'How?', 'references': 'x'}, r'line 2\.image is missing'),
        (question(question=' '), r'line 2\.question is " "'),
        (question(references=[]), r'line 2\.references must be'),
        (question(references=[3]), r'line 2\.references must be .* quotes'),
        (question(references=''), r'line 2\.references must be'),
        (question(references=['?', '...']), r'line 2\.references has no letter or digit; remove'),
        ({'image': 'a.jpg', 'question': 'How?'}, r'line 2\.references is missing'),
        (question(id=['x']), r'line 2\.id is \["x"\]'),
        (question(id='first'), r'line 2\.id is first, as on line 1'),
    ],
)
def test_the_error_about_a_line_names_its_number(tmp_path, line, problem):
    path = write_lines(tmp_path, question(id='first'), line)
    with pytest.raises(DatasetError, match=problem) as error:
        open_dataset(path)
    assert str(error.value).startswith(str(path)) and '\n' not in str(error.value)


def test_a_file_without_questions_is_refused(tmp_path):
    with pytest.raises(DatasetError, match='has no questions'):
        open_dataset(write_lines(tmp_path, ''))
    with pytest.raises(DatasetError, match='none of 1 images was found'):
        open_dataset(write_lines(tmp_path, question(image='z.jpg')))
    path = write_lines(tmp_path, question())
    path.write_bytes(b'\xff\xfe')
    with pytest.raises(DatasetError, match='UTF-8'):
        open_dataset(path)


def test_question_files_have_no_splits(tmp_path):
    path = write_lines(tmp_path, question())
    with pytest.raises(DatasetError, match="is the file of one split; remove the split 'val'"):
        open_dataset(path, split='val')
