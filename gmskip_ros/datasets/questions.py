"""Files of questions: custom ones, and benchmarks as they are published."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from gmskip_ros.datasets.errors import DatasetError
from gmskip_ros.datasets.image_finder import ImageFinder, coco_names
from gmskip_ros.datasets.json_file import Record, has_word, note, read_text
from gmskip_ros.datasets.sample import Dataset, Sample
from gmskip_ros.datasets.wrong_files import ASKS, QUESTION

# The names of the fields in: our own files, CODA-LM, OCRBench and TextVQA, ChartQA, LLaVA.
_IMAGE = ('image', 'imgname', 'image_path', 'image_id')
_ANSWER = ('references', 'answers', 'answer', 'label')
_CAPTIONS = ('captions', 'caption', 'annotations_captions')  # of datasets of captions on the hub
_SUFFIXES = ('', '.jpg', '.png')  # TextVQA names images without
# Where ChartQA, TextVQA and OCRBench have their images, beside the file of questions.
_FOLDERS = ('', 'images', 'png', 'train_images', 'test_images', 'OCRBench_Images')
_IMAGE_TOKEN = '<image>'  # of LLaVA's conversations; the chat template has its own
# OCRBench's script compares these without spaces; the hub's copy has other field names.
_FORMULA = 'Handwritten Mathematical Expression Recognition'
_FIRST_LINE = 1 << 20  # bytes
_CHOICES = (
    'has options to choose from, which are not part of the question; write the options into '
    '`question` and the right text into `references`'
)
_CODA_LM = 'vqa_anno'  # the folder that CODA-LM's converter writes, in that of a split


def is_lines(path: Path) -> bool:
    """Return whether the file has one JSON object per line, whatever it is called."""
    with open(path, 'rb') as file:
        first, more = file.readline(_FIRST_LINE), file.readline(_FIRST_LINE)
    try:
        return bool(more.strip()) and isinstance(json.loads(first), dict)
    except (ValueError, RecursionError):
        return False


def lines_of(path: Path) -> Iterator[Record]:
    """Yield the objects of a file with one per line."""
    for number, line in enumerate(read_text(path).split('\n'), start=1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DatasetError(
                f'{path}: line {number} is not JSON ({error}); write one object per line'
            ) from error
        yield Record(values, path, f'line {number}')


def entries_of(content: object, path: Path) -> list[Record] | None:
    """Return the questions in a JSON file: a list of them, or TextVQA's `data`; None for others."""
    place = ''
    if isinstance(content, dict):
        content, place = content.get('data'), 'data'
    if not isinstance(content, list) or not content or not isinstance(content[0], dict):
        return None
    if ASKS.isdisjoint(content[0]):
        return None
    return [Record(values, path, f'{place}[{index}]') for index, values in enumerate(content)]


def open_questions(
    path: Path, records: Iterable[Record], images_dir: Path | None, answers: Path | None
) -> Dataset:
    """Return the questions in a file, which is named after it.

    A record of our own format has `image` (a path relative to the file, or to `images_dir`),
    `question`, `references` (a text or a list of texts) and optionally `id` and `formula` (true:
    the references are formulae, whose spaces do not count in the metric `contains`). Without an id
    the key is '<image>:<line number>'. Those of benchmarks are read as they are: CODA-LM's
    converter (`question_id`, `answer`), OCRBench (`image_path`, `answers`), ChartQA (`imgname`,
    `query`, `label`), TextVQA (`image_id`, `answers`), LLaVA (`text`, without answers) and its
    training data (`conversations`). `answers`: a file with `question_id` and `text`, the answers to
    questions that have none.
    """
    folders = [path.parent / name for name in _FOLDERS] if images_dir is None else [images_dir]
    beside = ImageFinder(folders)
    # CODA-LM's converter writes paths relative to the folder of CODA, three levels up.
    above = ImageFinder([] if images_dir else path.absolute().parents[1:4])

    def find(record: Record) -> tuple[str, Path | None]:
        if not record.has_any(_IMAGE) and record.number_in_file is not None:
            raise record.error(
                'image',
                "is missing, as in files of a model's answers; give the file of questions that "
                'names their images',
            )
        image = record.text(record.first_of(_IMAGE))
        names = [name for suffix in _SUFFIXES for name in coco_names(image + suffix)]
        found = beside.find(names)
        return image, above.find(names) if found is None and '/' in image else found

    name = path.stem
    if path.parent.name == _CODA_LM:
        name = f'coda-lm-{path.absolute().parents[1].name.lower()}-{name}'
    return make_dataset(path, name, records, find, answers)


def make_dataset(
    path: Path,
    name: str,
    records: Iterable[Record],
    find: Callable[[Record], tuple[str, Path | None]],
    answers: Path | None,
) -> Dataset:
    """Return the questions of these records; `find` returns an image's name and its file."""
    given = {} if answers is None else _answers_by_question(answers)
    samples: dict[str, Sample] = {}
    places: dict[str, int] = {}
    missing: list[str] = []
    wordless: list[str] = []
    unanswered: list[str] = []
    without_image: list[str] = []
    longer: list[str] = []
    for number, record in enumerate(records, start=1):
        _refuse_choices(record)
        if record.has('conversations'):
            if not record.has_any(_IMAGE):  # LLaVA's training data has texts alone as well
                without_image.append(_key(record, None, f'entry {number}'))
                continue
            if len(_turns(record)) > 2:
                longer.append(_key(record, None, f'entry {number}'))
        image, image_path = find(record)
        question_id = record.identity('question_id') if record.has('question_id') else None
        key = _key(record, question_id, f'{image}:{record.number_in_file or number}')
        if key in places:
            if record.has('references'):
                raise record.error('id', f'is {key}, as on line {places[key]}; make it unique')
            key = f'{key}:{number}'
        places[key] = record.number_in_file or number
        captions = record.texts(record.first_of(_CAPTIONS)) if record.has_any(_CAPTIONS) else ()
        question, references = _question(record), _references(record, given.get(question_id))
        if references is None:
            if question_id is None and not captions:
                record.value('references', 'a text or a list of texts')  # raises
            if question is not None:
                unanswered.append(key)
        elif not any(map(has_word, references)):
            if record.has('references'):
                raise record.error('references', 'has no letter or digit; remove the line')
            wordless.append(key)
            continue
        if image_path is None:
            missing.append(image)
            continue
        samples[key] = Sample(
            key=key,
            image_path=image_path,
            captions=captions,
            question=question,
            references=references or (),
            is_formula=record.flag('formula') or _is_formula(record),
            question_id=question_id,
            image_name=image,
        )
    if not samples:
        problem = f'none of {len(places):,} images was found' if places else 'has no questions'
        raise DatasetError(
            f'{path}: {problem}; image is a path relative to this file, or to --images-dir'
        )
    notes = [
        *note(missing, 'image is missing, ignored', 'images are missing, ignored'),
        *note(
            without_image,
            'conversation has no image, ignored',
            'conversations have no image, ignored',
        ),
        *note(
            longer,
            'conversation is asked its first question only',
            'conversations are asked their first question only',
        ),
        *note(
            wordless,
            'question has no answer with a letter or digit, ignored',
            'questions have no answer with a letter or digit, ignored',
        ),
        *note(
            unanswered,
            'question has no answer and cannot be scored, only answered',
            'questions have no answers and cannot be scored, only answered',
        ),
    ]
    ordered = tuple(samples[key] for key in sorted(samples))
    return Dataset(name, ordered, (), tuple(notes), ())


def _key(record: Record, question_id: int | str | None, otherwise: str) -> str:
    if question_id is not None:
        return str(question_id)
    # OCRBench's id is one of the dataset that a question was taken from.
    if record.has('id') and not record.has('dataset_name'):
        return str(record.identity('id'))
    return otherwise


def _question(record: Record) -> str | None:
    if record.has('conversations'):
        return _turns(record)[0].text('value').replace(_IMAGE_TOKEN, '').strip()
    if record.has_any(_CAPTIONS) and not record.has_any(QUESTION):
        return None
    return record.text(record.first_of(QUESTION)).replace(_IMAGE_TOKEN, '').strip()


def _references(record: Record, given: tuple[str, ...] | None) -> tuple[str, ...] | None:
    """Return the right answers, None if the record has none."""
    if record.has('conversations'):
        return (_turns(record)[1].text('value'),)
    name = record.first_of(_ANSWER)
    if name == 'references' and name in record:
        value = record.value(name, 'a text or a list of texts')
        texts = [value] if isinstance(value, str) else value
        if (
            not isinstance(texts, list)
            or not texts
            or not all(isinstance(text, str) and text.strip() for text in texts)
        ):
            problem = 'must be a text or a list of texts; put numbers in quotes'
            raise record.error(name, problem)
        return tuple(texts)
    if record.has(name):
        return record.texts(name) or None
    return given


def _turns(record: Record) -> list[Record]:
    """Return the questions and answers of LLaVA's conversations in turn; a system's turn is none.

    Raises DatasetError if the first question has no answer.
    """
    turns = [
        turn
        for turn in record.objects('conversations')
        if not (turn.has('from') and turn.text('from') == 'system')
    ]
    if len(turns) < 2:
        raise record.error('conversations', 'has no answer; remove the entry')
    return turns


def _refuse_choices(record: Record) -> None:
    """Raise DatasetError for options to choose from: an answer to them is their letter or place."""
    if record.has('references'):
        return
    for name in ('choices', 'options'):
        if record.has(name) and record.value(name, 'a list'):
            raise record.error(name, _CHOICES)
    if record.has('A') and record.has('B'):
        raise record.error('A', _CHOICES)


def _is_formula(record: Record) -> bool:
    return any(
        record.has(name) and record.value(name, 'a text') == _FORMULA
        for name in ('type', 'question_type')
    )


def _answers_by_question(path: Path) -> Mapping[int | str | None, tuple[str, ...]]:
    """Return the answers of a file with one object per line, with `question_id` and `text`."""
    answers: dict[int | str | None, tuple[str, ...]] = {}
    for record in lines_of(path):
        name = record.first_of(('text', 'answer'))
        answers[record.identity('question_id')] = record.texts(name)
    return answers
