"""Label sets: the words that count as answers."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

from gmskip_ros.tasks.errors import TaskError
from gmskip_ros.tasks.normalisation import normalise
from gmskip_ros.tasks.synonyms import CAPTION_WORDS, STAND_INS, SYNONYMS

LABEL_SETS: dict[str, tuple[str, ...]] = {
    # The classes of CODA and CODA2022, except 'misc', which no answer can name, and the rare
    # classes of CODA's base split (phone_booth, basket, ...).
    # CODA spells 'suitcace'; a model answers 'suitcase', so the spelling is corrected here.
    'coda': (
        'pedestrian',
        'cyclist',
        'car',
        'truck',
        'tram',
        'tricycle',
        'bus',
        'bicycle',
        'moped',
        'motorcycle',
        'stroller',
        'cart',
        'construction_vehicle',
        'dog',
        'barrier',
        'bollard',
        'warning_sign',
        'traffic_sign',
        'sentry_box',
        'traffic_box',
        'traffic_cone',
        'traffic_island',
        'traffic_light',
        'debris',
        'suitcase',
        'dustbin',
        'concrete_block',
        'machinery',
        'garbage',
        'plastic_bag',
        'stone',
    ),
    'coco': (
        'person',
        'bicycle',
        'car',
        'motorcycle',
        'airplane',
        'bus',
        'train',
        'truck',
        'boat',
        'traffic light',
        'fire hydrant',
        'stop sign',
        'parking meter',
        'bench',
        'bird',
        'cat',
        'dog',
        'horse',
        'sheep',
        'cow',
        'elephant',
        'bear',
        'zebra',
        'giraffe',
        'backpack',
        'umbrella',
        'handbag',
        'tie',
        'suitcase',
        'frisbee',
        'skis',
        'snowboard',
        'sports ball',
        'kite',
        'baseball bat',
        'baseball glove',
        'skateboard',
        'surfboard',
        'tennis racket',
        'bottle',
        'wine glass',
        'cup',
        'fork',
        'knife',
        'spoon',
        'bowl',
        'banana',
        'apple',
        'sandwich',
        'orange',
        'broccoli',
        'carrot',
        'hot dog',
        'pizza',
        'donut',
        'cake',
        'chair',
        'couch',
        'potted plant',
        'bed',
        'dining table',
        'toilet',
        'tv',
        'laptop',
        'mouse',
        'remote',
        'keyboard',
        'cell phone',
        'microwave',
        'oven',
        'toaster',
        'sink',
        'refrigerator',
        'book',
        'clock',
        'vase',
        'scissors',
        'teddy bear',
        'hair drier',
        'toothbrush',
    ),
    # The classes in the scenes that this package renders.
    'scenes': (
        'pedestrian',
        'cyclist',
        'car',
        'truck',
        'tricycle',
        'bus',
        'traffic_cone',
        'barrier',
        'traffic_light',
        'dog',
    ),
}


def resolve_labels(labels: Sequence[str]) -> tuple[str, ...]:
    """Return the labels of a named set (['coda'], ['coco'], ['scenes']), or the given labels.

    Raises TaskError for an empty list, a label without a letter or digit, a label that is listed
    twice (after normalisation: 'traffic_light' and 'Traffic light'), a label that contains
    several labels, the name of a set among labels, and a single name that is not a known label
    and resembles the name of a set ('coda2').
    """
    if isinstance(labels, str) or not isinstance(labels, Sequence):
        raise TaskError(f"labels: {labels!r} is not a list; write ['coda'] or ['car', 'bus', ...]")
    if len(labels) == 1 and isinstance(labels[0], str) and labels[0] in LABEL_SETS:
        return LABEL_SETS[labels[0]]
    if len(labels) == 1 and isinstance(labels[0], str) and _is_misspelt_set(labels[0]):
        raise TaskError(
            f'labels: {labels[0]!r} alone is neither a label set ({", ".join(LABEL_SETS)}) nor a '
            'label of one: correct it, or list several labels'
        )
    if not labels:
        raise TaskError(
            f'labels: the list is empty; name a set ({", ".join(LABEL_SETS)}) or list the labels'
        )
    seen: dict[str, str] = {}
    for label in labels:
        if not isinstance(label, str):
            raise TaskError(f'labels: {label!r} is not a string; put it in quotes')
        if label in LABEL_SETS:
            raise TaskError(
                f'labels: {label!r} names a whole set; give it alone, or list the labels themselves'
            )
        if any(separator in label for separator in ',;\n'):
            raise TaskError(f'labels: {label!r} contains several labels; make each one an entry')
        normal = normalise(label)
        if not normal:
            raise TaskError(f'labels: {label!r} has no letter or digit; remove it')
        if normal in seen:
            raise TaskError(f'labels: {label!r} is listed twice (as {seen[normal]!r}); remove one')
        seen[normal] = label
    return tuple(labels)


def _is_misspelt_set(name: str) -> bool:
    """Return whether a name resembles that of a label set and is not a known label."""
    normal = normalise(name)
    known = {label for labels in LABEL_SETS.values() for label in labels}
    known.update(
        word
        for words, labels in (*SYNONYMS, *STAND_INS, *CAPTION_WORDS)
        for word in (*words, *labels)
    )
    if normal in {normalise(word) for word in known}:
        return False
    begins_with_set = any(re.match(rf'{each}(\W|\d|_)', name.lower()) for each in LABEL_SETS)
    return begins_with_set or bool(difflib.get_close_matches(normal, LABEL_SETS, cutoff=0.8))
