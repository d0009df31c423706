"""How the three tasks read an answer and compare two answers."""

from __future__ import annotations

import pytest

from gmskip_ros.tasks import (
    DEFAULT_MAX_NEW_TOKENS,
    DEFAULT_PROMPTS,
    LABEL_SETS,
    MATCHES,
    TASK_NAMES,
    TaskError,
    make_task,
    resolve_labels,
)
from gmskip_ros.tasks.synonyms import STAND_INS, SYNONYMS


def test_defaults_are_those_of_the_design() -> None:
    assert TASK_NAMES == ('single_object', 'multi_object', 'captioning')
    assert [make_task(name).max_new_tokens for name in TASK_NAMES] == [8, 32, 64]
    assert [make_task(name).prompt for name in TASK_NAMES] == [
        'What is the main object in this image? Answer with one word.',
        'List all the objects in this image, separated by commas.',
        'Provide a one-sentence caption for the provided image.',
    ]
    assert set(DEFAULT_PROMPTS) == set(DEFAULT_MAX_NEW_TOKENS) == {*TASK_NAMES, 'presence'}
    assert make_task('captioning').labels == LABEL_SETS['coda']


def test_settings_are_parameters() -> None:
    task = make_task('multi_object', prompt='What?', labels=['Cat', 'dog'], max_new_tokens=5)
    assert (task.name, task.prompt, task.labels, task.max_new_tokens) == (
        'multi_object',
        'What?',
        ('Cat', 'dog'),
        5,
    )


def test_label_sets() -> None:
    assert len(LABEL_SETS['coco']) == 80
    assert len(LABEL_SETS['scenes']) == 10
    assert set(LABEL_SETS['scenes']) < set(LABEL_SETS['coda'])
    for name, labels in LABEL_SETS.items():
        assert resolve_labels([name]) == labels
        assert resolve_labels(labels) == labels  # every set follows the rules for labels


@pytest.mark.parametrize('match', MATCHES)
@pytest.mark.parametrize('name', LABEL_SETS)
def test_every_label_is_recognised_in_every_spelling(name: str, match: str) -> None:
    task = make_task('single_object', labels=[name], match=match)
    several = make_task('multi_object', labels=[name], match=match)
    for label in LABEL_SETS[name]:
        spaced = label.replace('_', ' ')
        for written in (label, spaced, spaced.upper(), f' A {spaced}.', spaced.replace(' ', '-')):
            assert task.parse(written).text == label
        assert several.parse(f'nothing, the {spaced}').labels == {label}
    assert several.parse(', '.join(LABEL_SETS[name])).text == ', '.join(LABEL_SETS[name])


@pytest.mark.parametrize(
    ('answer', 'label'),
    [
        ('car', 'car'),
        ('Car', 'car'),
        ('A car.', 'car'),
        ('the  CAR!!', 'car'),
        ('"Cars"', 'car'),
        ('buses', 'bus'),
        ('busses', 'bus'),
        ('Bus', 'bus'),
        ('Sentry boxes', 'sentry_box'),
        ('traffic lights', 'traffic_light'),
        ('traffic_light', 'traffic_light'),
        ('traffic-light', 'traffic_light'),
        ('Traffic Light\n', 'traffic_light'),
        ('traffic_cones', 'traffic_cone'),
        ('debris', 'debris'),
        ('It is a car', None),
        ('car, truck', None),
        ('scar', None),
        ('bu', None),
        ('light', None),
        ('people', None),
        ('person', None),
        ('', None),
        ('...', None),
        ('a', None),
        ('车', None),
    ],
)
def test_single_object_with_coda(answer: str, label: str | None) -> None:
    parsed = make_task('single_object').parse(answer)
    assert parsed.raw_text == answer
    if label is None:
        assert (parsed.text, parsed.labels, parsed.in_vocabulary) == ('unknown', set(), False)
    else:
        assert (parsed.text, parsed.labels, parsed.in_vocabulary) == (label, {label}, True)


@pytest.mark.parametrize(
    ('answer', 'label'),
    [
        ('persons', 'person'),
        ('people', None),
        ('scissors', 'scissors'),
        ('skis', 'skis'),
        ('ski', 'skis'),
        ('wine glass', 'wine glass'),
        ('wine glasses', 'wine glass'),
        ('knives', 'knife'),
        ('mice', 'mouse'),
        ('sheep', 'sheep'),
        ('sandwiches', 'sandwich'),
        ('couches', 'couch'),
        ('teddy bears', 'teddy bear'),
        ('TVs', 'tv'),
        ('sports balls', 'sports ball'),
        ('man', None),
        ('glass', None),
    ],
)
def test_single_object_with_coco(answer: str, label: str | None) -> None:
    assert make_task('single_object', labels=['coco']).parse(answer).text == (label or 'unknown')


@pytest.mark.parametrize(
    ('labels', 'answer', 'expected'),
    [
        (['glass', 'glasses'], 'glasses', 'glasses'),  # a label's own spelling takes precedence
        (['glass', 'glasses'], 'Glass', 'glass'),
        (['glass'], 'glasses', 'glass'),
        (['Cars'], 'car', 'Cars'),  # labels given in the plural
        (['buses'], 'bus', 'buses'),
        (['cherries'], 'cherry', 'cherries'),
        (['women'], 'woman', 'women'),
        (['policeman'], 'policemen', 'policeman'),
        (['human'], 'humans', 'human'),
        (['bus'], 'bu', 'unknown'),
        (['potato'], 'potatoes', 'potato'),
        (['A', 'B'], 'a', 'A'),  # nothing but an article
        (['unknown', 'car'], 'unknown', 'unknown'),
    ],
)
def test_plurals_of_own_labels(labels: list[str], answer: str, expected: str) -> None:
    assert make_task('single_object', labels=labels).parse(answer).text == expected


def test_a_label_named_unknown_is_in_the_vocabulary() -> None:
    assert make_task('single_object', labels=['unknown']).parse('Unknown.').in_vocabulary
    assert not make_task('single_object', labels=['car']).parse('unknown').in_vocabulary


@pytest.mark.parametrize(
    ('labels', 'answer', 'expected'),
    [
        ('coco', 'A man', 'person'),
        ('coco', 'women', 'person'),
        ('coco', 'people', 'person'),
        ('coco', 'cyclist', 'person'),
        ('coco', 'sofa', 'couch'),
        ('coda', 'person', 'pedestrian'),
        ('coda', 'people', 'pedestrian'),
        ('coda', 'motorbike', 'motorcycle'),
        ('coda', 'scooter', 'moped'),
        ('coco', 'scooter', 'motorcycle'),
        ('coda', 'stoplights', 'traffic_light'),
    ],
)
def test_synonyms_only_if_enabled(labels: str, answer: str, expected: str) -> None:
    with_them = make_task('single_object', labels=[labels], synonyms=True)
    without = make_task('single_object', labels=[labels])
    assert with_them.parse(answer).text == expected
    assert without.parse(answer).text == 'unknown'


PUBLISHED_CLASSES = {  # of data sets that have no label set here
    'Waymo': 'vehicle, pedestrian, cyclist, sign',
    'Autoware': 'CAR, TRUCK, BUS, TRAILER, MOTORCYCLE, BICYCLE, PEDESTRIAN, ANIMAL',
    'BDD100K': 'bike, bus, car, motor, person, rider, traffic light, traffic sign, train, truck',
    'Cityscapes': 'person, rider, car, truck, bus, train, motorcycle, bicycle, traffic light',
    'KITTI': 'Car, Van, Truck, Pedestrian, Person_sitting, Cyclist, Tram',
    'nuScenes': 'car, truck, bus, trailer, construction_vehicle, pedestrian, motorcycle, bicycle, '
    'traffic_cone, barrier',
    'Pascal VOC': 'aeroplane, bicycle, bird, boat, bottle, bus, car, cat, chair, cow, diningtable, '
    'dog, horse, motorbike, person, pottedplant, sheep, sofa, train, tvmonitor',
}


def published_labels(name: str) -> list[str]:
    return PUBLISHED_CLASSES[name].split(', ')


def test_every_synonym_stands_for_a_label_of_some_set() -> None:
    known = {label for labels in LABEL_SETS.values() for label in labels}
    known.update(label for name in PUBLISHED_CLASSES for label in published_labels(name))
    for group, candidates in (*SYNONYMS, *STAND_INS):
        assert group
        assert known.issuperset(candidates) or candidates == ('animal',), candidates


@pytest.mark.parametrize(
    ('classes', 'answer', 'expected'),
    [
        ('Waymo', 'A car, two pickups and an SUV', 'vehicle'),
        ('Waymo', 'a bus, a man on a bicycle and a stop sign', 'vehicle, cyclist, sign'),
        ('Waymo', 'a construction vehicle', 'vehicle'),
        ('Autoware', 'A deer, a dog and a car', 'ANIMAL, CAR'),
        ('Autoware', 'vans and lorries', 'CAR, TRUCK'),
        ('BDD100K', 'a bicycle, a motorcyclist and a scooter', 'bike, rider, motor'),
        ('BDD100K', 'The motorcycles are parked', 'motor'),
        ('Cityscapes', 'a man riding a bike, a woman', 'rider, person'),
        ('KITTI', 'a van, a taxi and a person', 'Van, Car, Pedestrian'),
        ('nuScenes', 'a trailer, a tram, a bike', 'trailer, bicycle'),
        ('Pascal VOC', 'A couch, a TV and a dining table', 'sofa, tvmonitor, diningtable'),
        ('Pascal VOC', 'planes, houseplants, a motorcycle', 'aeroplane, pottedplant, motorbike'),
    ],
)
def test_answers_are_read_with_the_classes_of_other_data_sets(
    classes: str, answer: str, expected: str
) -> None:
    task = make_task('multi_object', labels=published_labels(classes), match='content')
    assert task.parse(answer).text == expected


def test_a_wider_label_is_the_last_choice() -> None:
    task = make_task('multi_object', labels=['vehicle', 'car', 'motorcycle'], match='content')
    assert task.parse('a sedan').text == 'car'
    assert task.parse('a moped').text == 'motorcycle'
    assert task.parse('a lorry').text == 'vehicle'
    forms = make_task('multi_object', labels=['vehicle'], match='forms')
    assert forms.parse('a car').text == 'unknown'


def test_a_synonym_of_a_label_that_the_set_lacks_is_unknown() -> None:
    task = make_task('single_object', labels=['scenes'], synonyms=True)
    assert task.parse('luggage').text == 'unknown'


def test_a_label_is_never_read_as_a_synonym_of_another_label() -> None:
    task = make_task('single_object', labels=['person', 'man', 'pedestrian'], synonyms=True)
    assert task.parse('man').text == 'man'
    assert task.parse('men').text == 'man'
    assert task.parse('pedestrian').text == 'pedestrian'
    assert task.parse('woman').text == 'person'


@pytest.mark.parametrize(
    ('answer', 'text'),
    [
        ('car, bus, dog', 'car, bus, dog'),
        ('dog, car', 'dog, car'),  # in the order answered
        ('Car, a car, cars', 'car'),
        ('a car and a bus', 'car, bus'),
        ('car, bus, and two dogs', 'car, bus'),
        ('car AND bus & dog', 'car, bus, dog'),
        ('1. Car\n2. Traffic lights\n3. Tree', 'car, traffic_light'),
        ('1) car 2) bus', 'car, bus'),
        ('- car\n- bus\r\n* dog', 'car, bus, dog'),
        ('car; bus;\n\ndog.', 'car, bus, dog'),
        ('Car. Bus. Dog', 'car, bus, dog'),
        ('The objects in this image are: car, bus', 'car, bus'),
        ('tree, car, sky', 'car'),
        ('sandcar, carbus', None),
        ('tree, sky', None),
        (', , ,', None),
        ('', None),
    ],
)
def test_multi_object(answer: str, text: str | None) -> None:
    parsed = make_task('multi_object').parse(answer)
    assert parsed.raw_text == answer
    assert parsed.text == (text or 'unknown')
    assert parsed.labels == (set(text.split(', ')) if text else set())
    assert parsed.in_vocabulary is (text is not None)


def test_a_label_with_and_in_it() -> None:
    task = make_task('multi_object', labels=['salt and pepper', 'salt', 'car'])
    assert task.parse('salt and pepper, car').text == 'salt and pepper, car'
    assert task.parse('salt and car').text == 'salt, car'


@pytest.mark.parametrize(
    ('sentence', 'labels'),
    [
        ('A car waits at a traffic light.', {'car', 'traffic_light'}),
        ('Two cars and three buses', {'car', 'bus'}),
        ('A scary cartoon of trucking', set()),
        ('Traffic-light, pedestrians; dogs!', {'traffic_light', 'pedestrian', 'dog'}),
        ('A man in traffic. Light rain.', set()),
        ('A road', set()),
    ],
)
def test_captioning_labels_are_whole_words(sentence: str, labels: set[str]) -> None:
    parsed = make_task('captioning').parse(f'  {sentence}\n')
    assert (parsed.text, parsed.raw_text) == (sentence, f'  {sentence}\n')
    assert parsed.labels == labels
    assert parsed.in_vocabulary


def test_captioning_uses_the_longest_label() -> None:
    task = make_task('captioning', labels=['light', 'traffic light', 'traffic', 'light pole'])
    assert task.parse('a traffic light').labels == {'traffic light'}
    assert task.parse('a light in traffic').labels == {'light', 'traffic'}
    assert task.parse('a traffic light and a light').labels == {'traffic light', 'light'}


def test_an_empty_caption_is_not_an_answer() -> None:
    parsed = make_task('captioning').parse(' \n')
    assert (parsed.text, parsed.in_vocabulary) == ('', False)


@pytest.mark.parametrize(
    ('skip', 'full', 'agree'),
    [
        ('car', 'A car.', True),
        ('car', 'bus', False),
        ('car', 'tree', False),
        ('tree', 'A Tree', True),  # outside the vocabulary, but the same
        ('tree', 'sky', False),
        ('', '', True),
    ],
)
def test_single_object_agreement(skip: str, full: str, agree: bool) -> None:
    task = make_task('single_object')
    result = task.agreement(task.parse(skip), task.parse(full), [1], [2])
    assert (result.agree, result.values) == (agree, {})


@pytest.mark.parametrize(
    ('skip', 'full', 'agree', 'value'),
    [
        ('car, bus', 'bus, cars', True, 1.0),
        ('car, bus', 'bus, dog', False, 1 / 3),
        ('car', '', False, 0.0),
        ('tree', 'A Tree', True, 1.0),  # outside the vocabulary, but the same
        ('tree', 'sky', False, 0.0),
        ('', '', True, 1.0),
    ],
)
def test_multi_object_agreement(skip: str, full: str, agree: bool, value: float) -> None:
    task = make_task('multi_object')
    result = task.agreement(task.parse(skip), task.parse(full), [1], [2])
    assert (result.agree, result.values) == (agree, {'jaccard': value})


@pytest.mark.parametrize(
    ('skip', 'full', 'skip_ids', 'full_ids', 'agree', 'value'),
    [
        ('A car.', 'A car.', (1, 2), [1, 2], True, 1.0),
        ('A car.', 'a car', (1, 2), (3, 2), False, 1.0),  # the tokens decide
        ('a red car', 'a blue car', (1, 2, 3), (1, 4, 3), False, 2 / 3),
        ('', '', (), (), True, 1.0),
        ('', 'a car', (), (1,), False, 0.0),
        ('a car', '', (1,), (), False, 0.0),
    ],
)
def test_captioning_agreement(
    skip: str, full: str, skip_ids: list[int], full_ids: list[int], agree: bool, value: float
) -> None:
    task = make_task('captioning')
    result = task.agreement(task.parse(skip), task.parse(full), skip_ids, full_ids)
    assert result.agree is agree
    assert result.values == {'rouge_l': pytest.approx(value)}


@pytest.mark.parametrize(
    ('name', 'settings', 'message'),
    [
        ('counting', {}, "'counting' is unknown; use one of single_object, multi_object"),
        ('captioning', {'prompt': ''}, 'prompt of captioning'),
        ('captioning', {'prompt': ' \n'}, 'prompt of captioning'),
        ('captioning', {'prompt': 3}, 'prompt of captioning'),
        ('multi_object', {'max_new_tokens': 0}, 'max_new_tokens of multi_object: 0'),
        ('multi_object', {'max_new_tokens': -1}, 'max_new_tokens of multi_object: -1'),
        ('multi_object', {'max_new_tokens': True}, 'max_new_tokens of multi_object: True'),
        ('multi_object', {'max_new_tokens': 8.0}, 'max_new_tokens of multi_object: 8.0'),
        ('single_object', {'labels': []}, 'labels: the list is empty'),
        ('single_object', {'labels': ['']}, 'no letter or digit'),
        ('single_object', {'labels': ['car', '_-_']}, 'no letter or digit'),
        ('single_object', {'labels': ['car', 'car']}, "'car' is listed twice"),
        ('single_object', {'labels': ['traffic_light', 'Traffic light']}, "(as 'traffic_light')"),
        ('single_object', {'labels': ['car, bus']}, "'car, bus' contains several labels"),
        ('single_object', {'labels': ['coda', 'cat']}, "'coda' names a whole set"),
        ('single_object', {'labels': 'coda'}, "'coda' is not a list"),
        ('single_object', {'labels': [1]}, '1 is not a string'),
        ('single_object', {'labels': None}, 'None is not a list'),
    ],
)
def test_invalid_settings(name: str, settings: dict, message: str) -> None:
    with pytest.raises(TaskError) as caught:
        make_task(name, **settings)
    assert message in str(caught.value)
    assert '\n' not in str(caught.value)
