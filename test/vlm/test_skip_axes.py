"""Any skip set, image tokens and policies included, gives what the definition written out gives."""

from __future__ import annotations

import itertools
import random
import re
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from references import Definition, HfReference
from tiny_models import make_tiny_model

from gmskip_ros.skipping import SkipSetError
from gmskip_ros.vlm import SkipSet, VlmError, load_vlm
from gmskip_ros.vlm.memory import read_weight_files

NUM_BLOCKS = 4
BLOCKS = range(NUM_BLOCKS)
STEPS = 4
PROMPT = 'Hm?'
CHECKPOINTS = [('llava', 'llama'), ('llava_next', 'mistral'), ('llava_onevision', 'qwen2')]
NUM_RANDOM = 14  # skip sets per checkpoint
# Of the engine's float32 against the definition's float64; a skip set changes logits by over 0.1.
TOLERANCE = 5e-4

BY_HAND = {
    'image only': {'image': BLOCKS},
    'image only, unseen': {'image': BLOCKS, 'image_kv': 'none'},
    'image in the last block': {'image': [3]},
    'image in the last block, unseen': {'image': [3], 'image_kv': 'none'},
    'the last block that is run is one of image': {'prefill': [3], 'image': [2]},
    'image and decode': {'image': [1, 2], 'decode': [1, 3]},
    'image and decode, unseen': {'image': [1, 2], 'decode': [1, 3], 'image_kv': 'none'},
    'prefill and image at once': {'prefill': [0, 2], 'image': [0, 1, 2], 'kv': 'input'},
    'everything': {'prefill': BLOCKS, 'decode': BLOCKS, 'image': BLOCKS},
    'everything in prefill': {'prefill': BLOCKS},
    'everything in prefill, stored': {'prefill': BLOCKS, 'kv': 'input'},
    'stored where a later block needs all rows': {'prefill': [1, 3], 'kv': 'input'},
    'stored where no phase runs it': {'prefill': [1, 3], 'decode': [3], 'kv': 'input'},
    'decode only, stored': {'decode': [0, 3], 'kv': 'input'},
}


def make_image(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


IMAGE = make_image(28, 28)


def random_skip_sets(seed: int, count: int = NUM_RANDOM) -> list[SkipSet]:
    """Return sets over all axes and policies."""
    chooser = random.Random(seed)
    sets = []
    for _ in range(count):
        axes = {
            axis: [block for block in BLOCKS if chooser.random() < share]
            for axis, share in (('prefill', 0.35), ('decode', 0.35), ('image', 0.6))
        }
        kv, image_kv = (chooser.choice(['none', 'input']) for _ in range(2))
        sets.append(SkipSet(**axes, kv=kv, image_kv=image_kv))
    return sets


@pytest.fixture(scope='module', params=CHECKPOINTS, ids='-'.join)
def pair(request, tmp_path_factory):
    """The engine, and the definition over the same checkpoint."""
    folder = make_tiny_model(tmp_path_factory.mktemp('tiny'), *request.param, NUM_BLOCKS)
    return load_vlm(str(folder), device='cpu'), HfReference(folder)


@pytest.fixture(scope='module')
def vlm(tmp_path_factory):
    """One whose images take different numbers of tokens."""
    folder = make_tiny_model(tmp_path_factory.mktemp('tiny'), *CHECKPOINTS[2], NUM_BLOCKS)
    return load_vlm(str(folder), device='cpu')


def run(vlm, image, prompt: str, skip) -> tuple[tuple[int, ...], np.ndarray]:
    answer = vlm.answer(image, prompt, skip, forced_length=STEPS, return_logits=True)
    return answer.token_ids, answer.logits


def assert_is_defined(pair, fields: dict) -> None:
    vlm, reference = pair
    inputs = reference.inputs([IMAGE], [PROMPT])
    expected_ids, expected = Definition(reference).greedy(inputs, STEPS, **fields)
    token_ids, logits = run(vlm, IMAGE, PROMPT, SkipSet(**fields))
    assert list(token_ids) == expected_ids
    np.testing.assert_allclose(logits, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize('fields', BY_HAND.values(), ids=BY_HAND)
def test_skip_sets_by_hand_match_the_definition(pair, fields) -> None:
    assert_is_defined(pair, fields)


@pytest.mark.parametrize('skip', random_skip_sets(0), ids=range(NUM_RANDOM))
def test_random_skip_sets_match_the_definition(pair, skip) -> None:
    assert_is_defined(pair, asdict(skip))


@pytest.mark.parametrize(
    ('one', 'other'),
    [
        ({'image': [1]}, {}),
        ({'image': [0, 1]}, {'image': [0, 1], 'image_kv': 'none'}),
        ({'image': [1]}, {'prefill': [1]}),
        ({'prefill': [1]}, {'prefill': [1], 'kv': 'input'}),
        ({'prefill': [3]}, {'prefill': [3], 'kv': 'input'}),
    ],
    ids=str,
)
def test_axes_and_policies_matter(vlm, one, other) -> None:
    """Or the comparisons would be blind."""
    image = make_image(56, 56)
    first, second = (run(vlm, image, PROMPT, SkipSet(**fields))[1] for fields in (one, other))
    assert np.abs(first - second).max() > 0.1


@pytest.mark.parametrize(
    ('one', 'other'),
    [
        ({'prefill': [1], 'image': [1, 2]}, {'prefill': [1], 'image': [2]}),
        ({'prefill': [1], 'decode': [1], 'kv': 'input'}, {'prefill': [1], 'decode': [1]}),
        ({'decode': [1], 'kv': 'input'}, {'decode': [1]}),
    ],
    ids=str,
)
def test_what_has_no_effect_makes_no_work(vlm, one, other) -> None:
    results, work = [], []
    for fields in (one, other):
        before = vlm.token_blocks
        results.append(run(vlm, IMAGE, PROMPT, SkipSet(**fields))[1])
        work.append(vlm.token_blocks - before)
    assert work[0] == work[1]
    assert (results[0] == results[1]).all()


@pytest.mark.parametrize('text', ['llama', 'mistral', 'qwen2'])
def test_rows_of_a_padded_batch_equal_their_own_runs(tmp_path, text) -> None:
    """Columns mix text, image and padding; memory that nothing was written to holds NaN."""
    folder = make_tiny_model(tmp_path, 'llava_onevision', text, NUM_BLOCKS)
    vlm = load_vlm(str(folder), device='cpu')
    images = [make_image(28, 28), make_image(90, 30, seed=1), make_image(56, 56, seed=2)]
    features = [vlm.encode(image) for image in images]
    prompts = [
        'A longer question, so that text stands under images: what?',
        PROMPT,
        'What is it?',
    ]
    rows = [vlm.input_ids(*pair) for pair in zip(prompts, features, strict=True)]
    is_image = [[token == vlm.tokenizer.image_token_id for token in row] for row in rows]
    columns = list(itertools.zip_longest(*map(reversed, is_image)))  # None is padding
    mixed = {frozenset(column) for column in columns}
    assert {frozenset({True, False}), frozenset({True, None})} <= mixed
    assert {frozenset({False, None}), frozenset({True, False, None})} & mixed
    sets = [*random_skip_sets(1, 8), *(SkipSet(**fields) for fields in BY_HAND.values())]
    torch.use_deterministic_algorithms(True)
    try:
        for skip in sets:
            answers = vlm.answer_batch(
                features, prompts, skip, forced_length=STEPS, return_logits=True
            )
            for row, answer in enumerate(answers):
                token_ids, logits = run(vlm, features[row], prompts[row], skip)
                assert np.isfinite(answer.logits).all()
                assert answer.token_ids == token_ids, skip
                np.testing.assert_allclose(answer.logits, logits, rtol=0, atol=TOLERANCE)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize('image_kv', ['input', 'none'])
@pytest.mark.parametrize('image', [[3], [1, 3], BLOCKS], ids=str)
def test_a_prompt_that_ends_in_its_image(tmp_path, image, image_kv) -> None:
    """The one row that is wanted is an image token, which the last block leaves as it came."""
    template = (
        "{% for part in messages[0].content | reverse %}{{ part.text or '<image>' }}{% endfor %}"
    )
    folder = make_tiny_model(tmp_path, num_blocks=NUM_BLOCKS, chat_template=template)
    vlm, reference = load_vlm(str(folder), device='cpu'), HfReference(folder)
    features = vlm.encode(IMAGE)
    ids = vlm.input_ids(PROMPT, features)
    assert ids[-1] == vlm.tokenizer.image_token_id
    inputs = {**reference.inputs([IMAGE], [PROMPT]), 'input_ids': torch.tensor([ids])}
    expected_ids, expected = Definition(reference).greedy(
        inputs, STEPS, image=image, image_kv=image_kv
    )
    token_ids, logits = run(vlm, features, PROMPT, SkipSet(image=image, image_kv=image_kv))
    assert list(token_ids) == expected_ids
    np.testing.assert_allclose(logits, expected, rtol=0, atol=TOLERANCE)


def test_rows_of_one_length_equal_their_own_runs(vlm) -> None:
    """No column is padding, and some hold an image token in one row, text in the other."""
    features = [vlm.encode(make_image(28, 28)), vlm.encode(make_image(56, 56))]
    longer = features[1].num_tokens - features[0].num_tokens
    assert longer > 0
    prompts = ['x' * (longer + len(PROMPT)), PROMPT]
    rows = [vlm.input_ids(*pair) for pair in zip(prompts, features, strict=True)]
    assert len(rows[0]) == len(rows[1])
    for skip in [*random_skip_sets(2, 6), SkipSet(image=[0, 1, 3], image_kv='none')]:
        answers = vlm.answer_batch(features, prompts, skip, forced_length=STEPS, return_logits=True)
        for row, answer in enumerate(answers):
            token_ids, logits = run(vlm, features[row], prompts[row], skip)
            assert answer.token_ids == token_ids, skip
            np.testing.assert_allclose(answer.logits, logits, rtol=0, atol=TOLERANCE)


# ---- the work ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('fields', 'whole', 'text', 'single'),
    [
        ({}, 3, 0, 1),
        ({'prefill': [3]}, 2, 0, 1),
        ({'prefill': [3], 'kv': 'input'}, 3, 0, 0),  # block 3 stores of every row
        ({'prefill': [3], 'kv': 'input', 'decode': [3]}, 2, 0, 1),  # nothing would read it
        ({'prefill': [1], 'kv': 'input'}, 2, 0, 1),
        ({'image': [0, 1]}, 1, 2, 1),
        ({'image': [2, 3], 'image_kv': 'none'}, 2, 1, 1),
        ({'image': BLOCKS, 'prefill': [3], 'kv': 'input'}, 0, 3, 0),
        ({'prefill': BLOCKS}, 0, 0, 0),
    ],
    ids=str,
)
def test_the_last_block_of_a_prefill_runs_for_the_last_row(vlm, fields, whole, text, single):
    """Blocks that run all tokens, text tokens, one token."""
    features = vlm.encode(IMAGE)
    num_tokens = len(vlm.input_ids(PROMPT, features))
    before = vlm.token_blocks
    vlm.answer(features, PROMPT, SkipSet(**fields), forced_length=1)
    num_text = num_tokens - features.num_tokens
    assert vlm.token_blocks - before == whole * num_tokens + text * num_text + single


def multiplications(folder: Path) -> tuple[int, int]:
    """Return how many a token takes in a block's linear layers, and in key and value of these."""
    weights = {
        stored.name.removesuffix('_proj.weight').rpartition('.')[2]: stored.numel
        for stored in read_weight_files(str(folder), folder)
        if re.search(r'language_model.*\.layers\.0\..*proj\.weight$', stored.name)
    }
    assert len(weights) == 7
    return sum(weights.values()), weights['k'] + weights['v']


def test_sparsity_is_the_share_of_multiplications_saved(vlm) -> None:
    block, stored = multiplications(Path(vlm.name))
    kept = stored / block  # of a block whose keys and values are projected all the same
    for fields, prefill, decode in [
        ({}, 0, 0),
        ({'prefill': [1], 'decode': [1]}, 1, 1),
        ({'prefill': [1, 2], 'decode': [3]}, 2, 1),
        ({'prefill': [1, 2], 'kv': 'input'}, 2 * (1 - kept), 0),
        ({'prefill': [1, 2], 'decode': [2], 'kv': 'input'}, 2 - kept, 1),
        ({'image': [0, 3]}, 2 * 0.75 * (1 - kept), 0),
        ({'image': [0, 3], 'image_kv': 'none', 'decode': [3]}, 2 * 0.75, 1),
        ({'image': BLOCKS, 'prefill': [0], 'image_kv': 'none'}, 1 + 3 * 0.75, 0),
        ({'prefill': BLOCKS, 'decode': BLOCKS}, 4, 4),
    ]:
        found = vlm.sparsity(SkipSet(**fields), num_image_tokens=30, num_tokens=40)
        assert found == pytest.approx((prefill / NUM_BLOCKS, decode / NUM_BLOCKS), abs=1e-12)
    assert vlm.sparsity([0, 2], 30, 40) == (0.5, 0.5)
    assert vlm.sparsity([0, 2], *np.array([30, 40])) == (0.5, 0.5)


@pytest.mark.parametrize(
    ('arguments', 'error', 'words'),
    [
        (([NUM_BLOCKS], 3, 4), SkipSetError, 'does not exist'),
        (([0], 3, 0), VlmError, 'num_tokens is 0: give a whole number of tokens, 1 or more'),
        (([0], 5, 4), VlmError, 'num_image_tokens is 5: give a whole number from 0 to 4'),
        (([0], -1, 4), VlmError, 'num_image_tokens is -1: give a whole number from 0 to 4'),
        (([0], 1.5, 4), VlmError, 'num_image_tokens is 1.5: give a whole number from 0 to 4'),
    ],
    ids=str,
)
def test_sparsity_refuses_wrong_numbers_in_one_line(vlm, arguments, error, words) -> None:
    with pytest.raises(error, match=words):
        vlm.sparsity(*arguments)
