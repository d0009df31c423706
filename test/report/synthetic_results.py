"""Synthetic results of calibrations and evaluations: no model and no images are needed."""

from __future__ import annotations

import math
from typing import Any

MACHINE = {'cpu': 'AMD EPYC 9554', 'gpu': 'NVIDIA H200', 'memory_gib': 128}
SOFTWARE = {'gmskip_ros': '0.1.0', 'torch': '2.13.0'}
COMMAND = 'gmskip calibrate --model demo --task single_object'


def evaluation(length: int = 0, **changes: Any) -> dict[str, Any]:
    """Return the evaluation of `length` skipped blocks: the score rises a little, then falls."""
    score = 0.942 + 0.004 * length - 0.00004 * length**3 if length < 16 else 0.1
    language_ms = 412.5 - 11.3 * length
    return {
        'images': 500,
        'score': score,
        'scores': {'accuracy': score, 'balanced_accuracy': score - 0.017},
        'shuffled_score': 0.121,
        'visual_gain': score - 0.121,
        'auroc': 0.953 - 0.004 * length,
        'score_without_target': 0.914,
        'most_frequent_answer': 'traffic light',
        'most_frequent_share': 0.134 + 0.01 * length,
        'in_vocabulary_share': 0.998,
        'tokens_per_answer': 2.35,
        'difference': score - 0.942 if length else None,
        'interval': [score - 0.942 - 0.018, score - 0.942 + 0.013] if length else None,
        'mcnemar_p': max(0.0002, 0.8 - 0.1 * length) if length else None,
        'latency_ms': 150.4 + language_ms,
        'ms_per_token': language_ms / 2.35,
        'language_ms': language_ms,
        'latency_cut': 1 - language_ms / 412.5 if length else None,
        'speed_up': 412.5 / language_ms,
        'speed_up_interval': [410.0 / language_ms, 415.0 / language_ms],
        'speed_up_with_vision': 562.9 / (150.4 + language_ms),
        'speed_up_with_vision_interval': [
            555.0 / (150.4 + language_ms),
            570.0 / (150.4 + language_ms),
        ],
        'threads': 8,
        'load': 1.25,
        'answers_got_shorter': False,
        'parameters_run': 6_740_000_000 - 202_000_000 * length,
        'token_agreement': 1 - 0.02 * length,
        **changes,
    }


def calibration(
    num_blocks: int = 32, num_removed: int = 14, *, test: bool = True, **changes: Any
) -> dict[str, Any]:
    """Return a nested trajectory: `num_removed` rounds, and one more in which it stops."""
    order = [(num_blocks - 3 - 7 * i) % num_blocks for i in range(num_blocks)]
    removed = list(dict.fromkeys([*order, *range(num_blocks)]))[:num_removed]
    prefixes = [
        {
            'length': length,
            'blocks': removed[:length],
            'sparsity': length / num_blocks,
            'calibration_score': evaluation(length)['score'] + 0.012 + 0.0005 * length,
            'test': evaluation(length) if test else None,
        }
        for length in range(num_removed + 1)
    ]
    scores = [prefix['calibration_score'] for prefix in prefixes]
    good = [all(score >= scores[0] for score in scores[: i + 1]) for i in range(len(scores))]
    result: dict[str, Any] = {
        'format': 'gmskip/calibration/1',
        'command': COMMAND,
        'created': '2026-11-20T12:00:00Z',
        'model': 'llava-hf/llava-1.5-7b-hf',
        'text_model_type': 'llama',
        'num_blocks': num_blocks,
        'device': 'cuda:0',
        'dtype': 'float16',
        'task': 'single_object',
        'target': 'person',
        'metric': 'accuracy',
        'method': 'gm-skip',
        'nested': True,
        'options': {'tie_order': 'backward', 'exhaustive': False},
        'min_score_ratio': 1.0,
        'max_sparsity': 0.9,
        'phases': ['prefill', 'decode'],
        'kv': 'none',
        'protect': [0, 0],
        'sparsities': [],
        'warnings': [],
        'ranking': None,
        'stopped_by': 'the best candidate of round 15 scores below 1.0 x full',
        'dataset': {
            'name': 'coco-val2017',
            'notes': ['3 crowd boxes skipped'],
            'warnings': [],
            'calibration': {'images': 1000, 'sha256': 'c0ffee' * 8, 'seed': 0},
            'test': {'images': 500, 'sha256': 'beef' * 12} if test else None,
        },
        'unreadable': [],
        'full_score': prefixes[0]['calibration_score'],
        'baselines': {'constant': {'answer': 'car', 'score': 0.888}, 'empty': 0.0},
        'test_baselines': {'constant': {'answer': 'car', 'score': 0.87}, 'empty': 0.0}
        if test
        else None,
        'rounds': [
            _round(number, num_blocks, removed, prefixes) for number in range(1, num_removed + 2)
        ],
        'operating_points': {
            'high_performance': scores.index(max(scores)),
            'high_sparsity': good.count(True) - 1,
        },
        'prefixes': prefixes,
        'stability': None,
        'machine': MACHINE,
        'software': SOFTWARE,
    }
    return {**result, **changes}


def _round(
    number: int, num_blocks: int, removed: list[int], prefixes: list[dict[str, Any]]
) -> dict[str, Any]:
    """Return round `number` (from 1): the removed block scores best, some others are bounds."""
    is_last = number > len(removed)
    best = 0.4 if is_last else prefixes[number]['calibration_score']
    left = [block for block in range(num_blocks) if block not in removed[: number - 1]]
    cells = []
    for block in left:
        is_removed = not is_last and block == removed[number - 1]
        ripple = 0.28 * abs(math.sin(1.7 * block + 0.3 * number)) + 0.3 * (block < 2) + 0.004
        cells.append(
            {
                'block': block,
                'score': best if is_removed else best - ripple,
                'exact': number == 1 or is_removed or (block + number) % 3 > 0,
            }
        )
    return {
        'round': number,
        'removed': None if is_last else removed[number - 1],
        'score': best,
        'seconds': 12.5,
        'token_blocks': 123456,
        'cells': cells,
    }


def fixed_interval() -> dict[str, Any]:
    """Return a result whose sets are not prefixes of one another."""
    prefixes = []
    for interval in (0, 10, 7, 6, 4, 3):
        blocks = [i for i in range(1, 31) if interval and i % interval == 0]
        prefixes.append(
            {
                'length': len(blocks),
                'blocks': blocks,
                'sparsity': len(blocks) / 32,
                'calibration_score': evaluation(len(blocks))['score'],
                'test': evaluation(len(blocks)),
            }
        )
    points = {'high_performance': 3, 'high_sparsity': 5}
    return calibration(
        nested=False, method='fixed-interval', rounds=[], prefixes=prefixes, operating_points=points
    )


def captioning(**changes: Any) -> dict[str, Any]:
    """Return a result guided by CIDEr, with a different number of test images."""
    result = calibration(task='captioning', target=None, metric='cider', **changes)
    result['full_score'] *= 1.2
    for prefix in result['prefixes']:
        prefix['calibration_score'] *= 1.2
        score = 0.9 * prefix['test']['score']
        prefix['test'].update(
            {
                'score': score,
                'scores': {'cider': score, 'rouge_l': 0.55},
                'auroc': None,
                'score_without_target': None,
                'most_frequent_answer': None,
                'most_frequent_share': None,
                'in_vocabulary_share': None,
                'mcnemar_p': None,
                'difference': score - 0.866,
                'interval': [score - 0.89, score - 0.85],
            }
        )
    return result


JOINT_EVALUATION = {
    'scores': {
        'single_object.accuracy': 0.9,
        'single_object.balanced_accuracy': 0.88,
        'multi_object.set_precision': 0.8,
        'multi_object.set_recall': 0.7,
        'multi_object.set_f1': 0.75,
        'multi_object.set_exact_match': 0.5,
        'captioning.cider': 1.1,
        'captioning.rouge_l': 0.55,
    },
    **dict.fromkeys(
        (
            'auroc',
            'score_without_target',
            'most_frequent_answer',
            'most_frequent_share',
            'interval',
            'mcnemar_p',
        )
    ),
}


def joint() -> dict[str, Any]:
    """Return a result for several tasks: its score is the lowest score / full score."""
    result = calibration(
        task='joint',
        target=None,
        metric='accuracy, set_precision, cider',
        full_score=1.0,
    )
    for prefix in result['prefixes']:
        prefix['calibration_score'] = 1 - 0.004 * prefix['length']
        prefix['test'].update(
            JOINT_EVALUATION,
            score=1 - 0.006 * prefix['length'],
            visual_gain=None,
            shuffled_score=None,
        )
    return result


def evaluated(**changes: Any) -> dict[str, Any]:
    """Return an evaluation of four skip sets."""
    base = calibration()
    rows = []
    for name, source, length in (
        ('Full', None, 0),
        ('Fixed interval 4', None, 7),
        ('GM-Skip high performance', 'person.skip.yaml', 6),
        ('GM-Skip high sparsity', 'person.skip.yaml', 11),
    ):
        rows.append(
            {
                'name': name,
                'source': source,
                'blocks': list(range(3, 3 + length)),
                'sparsity': length / 32,
                'evaluation': evaluation(length),
            }
        )
    keys = (
        'model',
        'text_model_type',
        'num_blocks',
        'device',
        'dtype',
        'task',
        'target',
        'metric',
        'machine',
        'software',
        'created',
    )
    return {
        'format': 'gmskip/evaluation/1',
        'command': 'gmskip evaluate --model demo',
        **{key: base[key] for key in keys},
        'dataset': {
            'name': 'coco-val2017',
            'notes': [],
            'warnings': [],
            'test': {'images': 500, 'sha256': 'beef' * 12},
        },
        'score_note': None,
        'baselines': {'constant': {'answer': 'car', 'score': 0.888}, 'empty': 0.013},
        'rows': rows,
        **changes,
    }


def speed(length: int = 0, **changes: Any) -> dict[str, Any]:
    """Return the times of `length` skipped blocks, as calibration.speed gives them."""
    language_ms = 412.5 - 11.3 * length
    return {
        'questions': 8,
        'rounds': 3,
        'answers': 24,
        'prefill_ms': 0.6 * language_ms,
        'decode_ms': 0.4 * language_ms,
        'vision_ms': 150.4,
        'latency_ms': 150.4 + language_ms,
        'decode_ms_per_token': 0.3 * language_ms,
        'decode_ms_per_token_of_sums': 0.31 * language_ms,
        'prefill_total_ms': 14.4 * language_ms,
        'decode_total_ms': 9.6 * language_ms,
        'vision_total_ms': 24 * 150.4,
        'tokens': 56,
        'tokens_per_answer': 2.35,
        'tokens_per_s': 2350 / language_ms,
        'tokens_per_s_mean_of_ratios': 2300 / language_ms,
        'answers_per_s': 1000 / language_ms,
        'answers_per_s_mean_of_ratios': 1010 / language_ms,
        'tokens_per_s_with_vision': 2350 / (150.4 + language_ms),
        'tokens_per_s_with_vision_mean_of_ratios': 2300 / (150.4 + language_ms),
        'answers_per_s_with_vision': 1000 / (150.4 + language_ms),
        'answers_per_s_with_vision_mean_of_ratios': 1010 / (150.4 + language_ms),
        'speed_up': 412.5 / language_ms,
        'speed_up_interval': [400 / language_ms, 425 / language_ms],
        'speed_up_with_vision': (412.5 + 150.4) / (150.4 + language_ms),
        **changes,
    }


def compared(timed: bool = True, **changes: Any) -> dict[str, Any]:
    """Return a comparison at 4 and 8 of 32 blocks.

    GM-Skip; one-shot, whose answers repeat; random with three lists; fixed-interval, which has no
    set of 4 blocks.
    """
    base = evaluated()

    def found(length: int, change: float = 0.0, *marks: str, first: int = 3) -> dict[str, Any]:
        blocks = list(range(first, first + length))
        figures = evaluation(length, repeating_share=0.3 if 'repeats' in marks else 0.0)
        for name in ('score', 'visual_gain', 'difference'):
            if figures[name] is not None:
                figures[name] += change
        return {
            'prefill': blocks,
            'decode': blocks,
            'kv': 'none',
            'num_skipped': length,
            'sparsity': {'prefill': length / 32, 'decode': length / 32},
            'evaluation': figures,
            'speed': speed(length) if timed else None,
            'marks': list(marks),
        }

    sets = [
        found(0),
        found(4),
        found(8),
        found(8, -0.4, 'long', 'repeats', first=20),
        *(found(4, -0.1 * seed, first=10 + seed) for seed in (1, 2, 3)),
        *(found(8, -0.2 * seed, first=10 + seed) for seed in (1, 2, 3)),
        found(3, -0.02, first=7),
    ]
    chosen = {
        ('gm-skip', None): (1, 2),
        ('one-shot', None): (1, 3),
        ('random', 0): (4, 7),
        ('random', 1): (5, 8),
        ('random', 2): (6, 9),
        ('fixed-interval', None): (10, 2),
    }
    rows = [
        {
            'method': method,
            'seed': seed,
            'asked_sparsity': size / 32,
            'asked_blocks': size,
            'num_skipped': sets[index]['num_skipped'],
            'calibration_score': sets[index]['evaluation']['score'] + 0.01,
            'set': index,
        }
        for (method, seed), pair in chosen.items()
        for size, index in zip((4, 8), pair, strict=True)
    ]
    methods = [
        {
            'name': name,
            'title': {'gm-skip': 'GM-Skip'}.get(name, name),
            'phases': ['prefill', 'decode'],
            'kv': 'none',
            'protect': [0, 0],
            'options': {'tie_order': 'backward'},
            'nested': name != 'fixed-interval',
            'seeds': seeds,
            'skip_lists': [f'{name}/single_object_person.skip.yaml'],
            'stopped_by': 'max_sparsity 0.25 is reached',
            'warnings': [],
        }
        for name, seeds in {
            'gm-skip': [],
            'one-shot': [],
            'random': [0, 1, 2],
            'fixed-interval': [],
        }.items()
    ]
    for name in ('rows', 'score_note', 'format', 'dataset'):
        del base[name]
    return {
        **base,
        'format': 'gmskip/compare/1',
        'command': 'gmskip compare --methods gm-skip,one-shot,random,fixed-interval',
        'dataset': {
            'name': 'coco-train2017 and coco-val2017',
            'notes': ['3 crowd boxes skipped'],
            'warnings': [],
            'calibration': {'name': 'coco-train2017', 'images': 1000, 'sha256': 'c0', 'seed': 0},
            'test': {'name': 'coco-val2017', 'images': 500, 'sha256': 'beef'},
        },
        'unreadable': [],
        'score_note': None,
        'sparsities': [0.125, 0.25],
        'tokens_per_reference': 1.2,
        'baselines': {'constant': {'answer': 'person', 'score': 0.312}, 'empty': 0.0},
        'methods': methods,
        'sets': sets,
        'rows': rows,
        **changes,
    }
