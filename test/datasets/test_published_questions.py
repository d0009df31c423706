"""Files of questions as benchmarks publish them; each test names the file that it imitates."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from look_alikes import by_key, note_about, write_images, write_json

from gmskip_ros.datasets import Dataset, DatasetError, choose_samples, open_dataset


def write_lines(path: Path, *lines: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(''.join(json.dumps(line) + '\n' for line in lines))
    return path


def content_of(dataset: Dataset) -> list[tuple[str | None, tuple[str, ...]]]:
    return [(sample.question, sample.references) for sample in dataset.samples]


def test_coda_lm_s_converter(tmp_path):
    """CODA-LM/Mini/vqa_anno/*.jsonl of convert2vqa.py: images relative to the folder of CODA."""
    names = ['test/images/0003.jpg', 'test/images/0014.jpg']
    write_images(tmp_path, names)
    lines = [
        {'question_id': n, 'image': name, 'question': 'Describe each object.', 'answer': f'A {n}.'}
        for n, name in enumerate(names)
    ]
    folder = tmp_path / 'CODA-LM' / 'Mini' / 'vqa_anno'
    dataset = open_dataset(write_lines(folder / 'general_perception.jsonl', *lines))
    assert dataset.name == 'coda-lm-mini-general_perception'
    assert content_of(dataset) == [('Describe each object.', (f'A {n}.',)) for n in (0, 1)]
    assert dataset.samples[1].image_path == tmp_path / names[1]
    assert (dataset.samples[1].question_id, dataset.samples[1].image_name) == (1, names[1])
    elsewhere = write_lines(tmp_path / 'a' / 'b' / 'c' / 'd' / 'mine.jsonl', *lines)
    with pytest.raises(DatasetError, match='none of 2 images was found'):
        open_dataset(elsewhere)
    assert len(open_dataset(elsewhere, images_dir=tmp_path).samples) == 2
    del lines[0]['answer']  # as in the converter's files of Test
    lines[1]['answer'] = float('nan')  # as pandas writes it
    dataset = open_dataset(write_lines(folder / 'general_perception.jsonl', *lines))
    assert content_of(dataset) == [('Describe each object.', ())] * 2
    assert note_about(dataset.notes, 'only answered').startswith('2 questions have no answers')


def test_ocrbench(tmp_path):
    """OCRBench/OCRBench.json of MultimodalOCR: a list; `id` repeats between its datasets."""
    formula = 'Handwritten Mathematical Expression Recognition'
    questions = [
        ('IIIT5K', 54, 'IIIT5K/test/918_1.png', 'CENTRE', 'Regular Text Recognition'),
        ('ctw', 54, 'ctw/imgs/55.jpg', ['ANTONIOS', "ANTONIO'S"], 'Irregular Text Recognition'),
        ('HME100K', 7, 'HME100K/train_1.jpg', 'x ^ { 2 }', formula),
    ]
    fields = ('dataset_name', 'id', 'image_path', 'answers', 'type')
    content = [
        {**dict(zip(fields, entry, strict=True)), 'question': 'what is written?'}
        for entry in questions
    ]
    write_images(tmp_path / 'OCRBench_Images', [entry['image_path'] for entry in content])
    dataset = open_dataset(write_json(tmp_path / 'OCRBench.json', content))
    samples = by_key(dataset.samples)
    assert list(samples) == [
        'HME100K/train_1.jpg:3',
        'IIIT5K/test/918_1.png:1',
        'ctw/imgs/55.jpg:2',
    ]
    assert samples['ctw/imgs/55.jpg:2'].references == ('ANTONIOS', "ANTONIO'S")
    assert [sample.is_formula for sample in samples.values()] == [True, False, False]


def test_chartqa(tmp_path):
    """ChartQA Dataset/test/test_human.json: `query`, `label`, and images in png/ beside it."""
    content = [
        {'imgname': '41699051005347.png', 'query': 'How many food item?', 'label': '14'},
        {'imgname': '41699051005347.png', 'query': 'What is the difference?', 'label': '0.57'},
    ]
    write_images(tmp_path / 'png', ['41699051005347.png'])
    dataset = open_dataset(write_json(tmp_path / 'test_human.json', content))
    assert content_of(dataset) == [
        ('How many food item?', ('14',)),
        ('What is the difference?', ('0.57',)),
    ]
    assert len({sample.image_path for sample in dataset.samples}) == 1


def test_textvqa(tmp_path):
    """TextVQA_0.5.1_val.json: `data`, ten answers, image ids without a suffix."""
    answers = ['nokia', 'nokia', 'toshiba', '', *['nokia'] * 6]
    data = [
        {
            'question_id': 34602,
            'question': 'what is the brand of this camera?',
            'image_id': '003a8ae2ef43b901',
            'answers': answers,
            'set_name': 'val',
        },
        {
            'question_id': 34603,
            'question': 'what does the white sign say?',
            'image_id': '003a8ae2ef43b901',
            'answers': ['?'] * 10,
        },
    ]
    content = {'dataset_type': 'val', 'dataset_name': 'textvqa', 'data': data}
    write_images(tmp_path / 'train_images', ['003a8ae2ef43b901.jpg'])
    dataset = open_dataset(write_json(tmp_path / 'TextVQA_0.5.1_val.json', content))
    (sample,) = dataset.samples
    assert (sample.key, len(sample.references)) == ('34602', 9)
    assert sample.image_path.name == '003a8ae2ef43b901.jpg'
    assert note_about(dataset.notes, 'letter or digit').endswith(': 34603')


def test_llava_s_questions_and_answers(tmp_path):
    """qa90_questions.jsonl of LLaVA's playground, and qa90_gpt4_answer.jsonl with its answers."""
    questions = [
        {'question_id': n, 'image': 'a.jpg', 'text': text, 'category': 'conv'}
        for n, text in enumerate(('What is it?\nAnswer briefly.', '<image>\nWhy?'))
    ]
    write_images(tmp_path, ['a.jpg'])
    path = write_lines(tmp_path / 'question.jsonl', *questions)
    dataset = open_dataset(path)
    texts = ['What is it?\nAnswer briefly.', 'Why?']
    assert content_of(dataset) == [(text, ()) for text in texts]
    answers = [{'question_id': 1, 'text': 'Because.', 'category': 'conv'}]
    given = write_lines(tmp_path / 'answers.jsonl', *answers)
    dataset = open_dataset(path, captions=given)
    assert content_of(dataset) == [(texts[0], ()), (texts[1], ('Because.',))]
    assert note_about(dataset.notes, 'only answered') == (
        '1 question has no answer and cannot be scored, only answered: 0'
    )


@pytest.mark.parametrize('stored', ['000000441147.jpg', 'COCO_val2014_000000441147.jpg'])
@pytest.mark.parametrize(
    'asked', ['000000441147', '000000441147.jpg', 'COCO_val2014_000000441147.jpg']
)
def test_coco_s_images_are_found_under_the_names_of_both_years(tmp_path, asked, stored):
    """qa90_questions.jsonl has the shorter name, the folder val2014 that it is about the longer."""
    write_images(tmp_path / 'val2014', [stored])
    line = {'question_id': 0, 'image': asked, 'text': 'What is it?', 'answer': 'A suitcase.'}
    path = write_lines(tmp_path / 'qa90_questions.jsonl', line)
    (sample,) = open_dataset(path, images_dir=tmp_path / 'val2014').samples
    assert (sample.image_path.name, sample.image_name) == (stored, asked)


def test_llava_s_training_data(tmp_path):
    """llava_instruct_150k.json: conversations, whose first question has the token <image>."""
    turns = [
        {'from': 'human', 'value': '<image>\nWhat is on the road?'},
        {'from': 'gpt', 'value': 'A car.'},
        {'from': 'human', 'value': 'And beside it?'},
        {'from': 'gpt', 'value': 'A tree.'},
    ]
    write_images(tmp_path, ['a.jpg'])
    content = [{'id': '000000033471', 'image': 'a.jpg', 'conversations': turns}]
    dataset = open_dataset(write_json(tmp_path / 'train.json', content))
    assert content_of(dataset) == [('What is on the road?', ('A car.',))]
    content[0]['conversations'] = [{'from': 'system', 'value': 'Be brief.'}, *turns[:2]]
    content.append({'id': 'text_only', 'conversations': turns})
    dataset = open_dataset(write_json(tmp_path / 'mix.json', content))
    assert content_of(dataset) == [('What is on the road?', ('A car.',))]
    assert any('conversation has no image, ignored' in note for note in dataset.notes)
    assert not any('first question only' in note for note in dataset.notes)
    content[0]['conversations'] = turns
    dataset = open_dataset(write_json(tmp_path / 'mix.json', content))
    assert any('asked its first question only' in note for note in dataset.notes)
    content[0]['conversations'] = turns[:1]
    with pytest.raises(DatasetError, match=r'\[0\]\.conversations has no answer'):
        open_dataset(write_json(tmp_path / 'train.json', content))


@pytest.mark.parametrize(
    'options', [{'choices': ['a', 'b']}, {'options': ['a', 'b']}, {'A': 'a', 'B': 'b', 'C': 'c'}]
)
def test_multiple_choice_is_refused(tmp_path, options):
    """ScienceQA, AI2D, MMBench: an answer is a place or a letter; the options are not asked."""
    write_images(tmp_path, ['a.jpg'])
    line = {'image': 'a.jpg', 'question': 'Which?', 'answer': '1', 'question_id': 1, **options}
    with pytest.raises(DatasetError, match='has options to choose from'):
        open_dataset(write_lines(tmp_path / 'q.jsonl', line))
    line = {'image': 'a.jpg', 'question': 'Which? a or b', 'references': 'b', **options}
    assert len(open_dataset(write_lines(tmp_path / 'q.jsonl', line)).samples) == 1


def test_lines_may_be_in_a_json_file_and_answers_may_be_numbers(tmp_path):
    write_images(tmp_path, ['a.jpg'])
    line = {'image': 'a.jpg', 'question': 'How many?', 'question_id': 'q', 'answer': 2}
    objects = [{'answer': '2', 'answer_id': 1}, {'answer': 'two', 'answer_id': 2}]  # VQA's
    path = write_lines(tmp_path / 'lines.json', line, {**line, 'answer': objects})
    dataset = open_dataset(path)
    assert [sample.key for sample in dataset.samples] == ['q', 'q:2']
    assert [references for _, references in content_of(dataset)] == [('2',), ('2', 'two')]


# ------------------------------------------------------------------------------- Parquet files


@pytest.fixture
def write_parquet():
    """Return a function that writes rows as `datasets` does: images as bytes and path."""
    reason = 'the extra parquet is not installed'
    pyarrow = pytest.importorskip('pyarrow', reason=reason)
    parquet = pytest.importorskip('pyarrow.parquet', reason=reason)

    def write(path: Path, rows: list[dict]) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=2)
        return path

    return write


def picture(folder: Path, name: str, path: str | None = None) -> dict[str, object]:
    """Return the value of a column of images."""
    write_images(folder, [name])
    return {'bytes': (folder / name).read_bytes(), 'path': path}


def test_a_parquet_file_of_the_hub(tmp_path, write_parquet):
    """lmms-lab/textvqa: data/<split>-00000-of-0000N.parquet; a row repeats its image's bytes."""
    from gmskip_ros.datasets import read_image, sample_hash

    images = [picture(tmp_path / 'jpg', f'{n}.jpg') for n in range(3)]
    rows = [
        {
            'image_id': f'id{n % 3}',
            'question_id': 34602 + n,
            'question': f'What is {n}?',
            'answers': ['nokia', f'{n}'],
            'image': images[n % 3],
        }
        for n in range(5)
    ]
    data = tmp_path / 'textvqa' / 'data'
    write_parquet(data / 'validation-00000-of-00002.parquet', rows[:4])
    write_parquet(data / 'validation-00001-of-00002.parquet', rows[4:])
    write_parquet(data / 'test-00000-of-00001.parquet', rows[:1])
    with pytest.raises(DatasetError, match='several splits; choose one of test, validation'):
        open_dataset(data.parent)
    dataset = open_dataset(data.parent, split='validation')
    assert dataset.name == 'textvqa/validation'
    assert content_of(dataset)[1] == ('What is 1?', ('nokia', '1'))
    paths = [sample.image_path for sample in dataset.samples]
    assert len(set(paths)) == 3 and paths[4] == paths[1]  # the same image_id
    for sample, n in zip(dataset.samples, (0, 1, 2, 0, 1), strict=True):
        expected = read_image(tmp_path / 'jpg' / f'{n}.jpg')
        assert (read_image(sample.image_path) == expected).all()
    assert sample_hash(dataset.samples[:1]) != sample_hash(dataset.samples[1:2])
    alone = open_dataset(data / 'test-00000-of-00001.parquet')
    assert (alone.name, len(alone.samples)) == ('test-00000-of-00001', 1)


def test_an_image_of_a_parquet_file_is_known_by_its_content(tmp_path, write_parquet):
    """`datasets` stores base names, so images of several folders share one; or there are none."""
    first, second = (picture(tmp_path / 'jpg', f'{n}.jpg') for n in range(2))
    images = [{**first, 'path': '1.jpg'}, {**second, 'path': '1.jpg'}, first, second, first]
    rows = [
        {'question': f'{n}?', 'answer': 'yes', 'image': image} for n, image in enumerate(images)
    ]
    path = write_parquet(tmp_path / 'test-00000-of-00001.parquet', rows)
    samples = open_dataset(path).samples
    assert [sample.image_path.name for sample in samples] == ['0', '1', '0', '1', '0']
    chosen, others = choose_samples(samples, 3, 2, 0)
    assert not {s.image_path for s in chosen} & {s.image_path for s in others}


def test_pope_in_a_parquet_file(tmp_path, write_parquet):
    """lmms-lab/POPE: a row for each question, with its split in `category`."""
    image = picture(tmp_path, '1.jpg')
    rows = [
        {
            'id': str(n),
            'question_id': '1',
            'question': 'Is there a snowboard in the image?',
            'answer': 'yes',
            'image_source': 'COCO_val2014_000000310196',
            'image': image,
            'category': category,
        }
        for n, category in enumerate(('adversarial', 'popular', 'random'))
    ]
    path = write_parquet(tmp_path / 'POPE' / 'data' / 'test-00000-of-00001.parquet', rows)
    dataset = open_dataset(path.parent.parent)
    assert dataset.name == 'pope-POPE/test' and dataset.labels == ('snowboard',)
    (sample,) = dataset.samples
    assert sample.image_path == path / '0'
    (question,) = sample.presence
    assert (question.label, question.answer) == ('snowboard', 'yes')
    assert question.splits == ('adversarial', 'popular', 'random')
    # Its configuration Full has the same rows in a file for each split.
    for row in rows:
        write_parquet(tmp_path / 'Full' / f'{row["category"]}-00000-of-00001.parquet', [row])
    (sample,) = open_dataset(tmp_path / 'Full').samples
    assert sorted(sample.presence[0].splits) == ['adversarial', 'popular', 'random']
    (sample,) = open_dataset(tmp_path / 'Full', split='popular').samples
    assert sample.presence[0].splits == ('popular',)


def test_captions_in_a_parquet_file(tmp_path, write_parquet):
    """lmms-lab/flickr30k: `caption` is a list of five, `image` has the name of its file."""
    image = picture(tmp_path, '1.jpg', path='1007129816.jpg')
    rows = [{'image': image, 'caption': ['A man .', 'A hat .'], 'filename': '1007129816.jpg'}]
    dataset = open_dataset(write_parquet(tmp_path / 'test.parquet', rows))
    (sample,) = dataset.samples
    assert dataset.notes == ()
    assert (sample.captions, sample.question) == (('A man .', 'A hat .'), None)
    assert sample.key == '1007129816.jpg:1'


def test_parts_of_a_split_whose_names_have_a_hash(tmp_path, write_parquet):
    """HuggingFaceM4/ChartQA: `label` is a list, and the older names of parts have a hash."""
    rows = [
        {'image': picture(tmp_path, f'{n}.jpg'), 'query': 'How many?', 'label': [str(n)]}
        for n in range(2)
    ]
    for n, (row, name) in enumerate(
        zip(rows, ('49492f364babfa44', '7302bae5e425bbc7'), strict=True)
    ):
        write_parquet(tmp_path / 'data' / f'train-{n:05d}-of-00002-{name}.parquet', [row])
    dataset = open_dataset(tmp_path)
    assert content_of(dataset) == [('How many?', ('0',)), ('How many?', ('1',))]
    assert dataset.name == f'{tmp_path.name}/train'


def test_parquet_files_that_cannot_be_used(tmp_path, write_parquet):
    path = tmp_path / 'a.parquet'
    path.write_bytes(b'PAR0')
    with pytest.raises(DatasetError, match='is not a Parquet file'):
        open_dataset(path)
    for option in ('captions', 'images_dir'):
        with pytest.raises(DatasetError, match='has its texts and images inside; remove --'):
            open_dataset(path, **{option: tmp_path})
    write_parquet(tmp_path / 'b.parquet', [{'question': 'Why?', 'answer': 'So.'}])
    with pytest.raises(DatasetError, match='has no column of images'):
        open_dataset(tmp_path / 'b.parquet')


def test_without_pyarrow_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'pyarrow', None)
    path = tmp_path / 'c.parquet'
    path.write_bytes(b'PAR1')
    with pytest.raises(DatasetError, match=r"install gmskip_ros's extra parquet: pip install"):
        open_dataset(path)
