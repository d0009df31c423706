"""Any skip set gives the tokens and logits of Hugging Face's model with those layers removed."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
import torch
from references import Definition, HfReference
from tiny_models import SLIDING_WINDOW, make_tiny_model

from gmskip_ros.vlm import SkipSet, load_vlm
from gmskip_ros.vlm.block import LONG, TILE
from gmskip_ros.vlm.decoder import ALL, KeyValueStore

NUM_BLOCKS = 6
STEPS = 5
PROMPT = 'What is it?'
OF_FLOAT64 = 5e-4  # tolerance of logits in float32 against the definition's, which are in float64
CHECKPOINTS = [
    ('llava', 'llama'),
    ('llava', 'mistral'),
    ('llava', 'qwen2'),
    ('llava_next', 'mistral'),
    ('llava_onevision', 'qwen2'),
]


def make_image(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


IMAGE = make_image(40, 70)


def larger_skip_sets() -> list[tuple[int, ...]]:
    """Return 30 seeded sets of two blocks or more, the complete one among them."""
    every = [
        blocks
        for size in range(2, NUM_BLOCKS + 1)
        for blocks in itertools.combinations(range(NUM_BLOCKS), size)
    ]
    chosen = random.Random(0).sample(every[:-1], 29)
    return [*chosen, every[-1]]


@pytest.fixture(scope='module', params=CHECKPOINTS, ids='-'.join)
def pair(request, tmp_path_factory):
    """The engine and Hugging Face's model over the same checkpoint."""
    folder = make_tiny_model(tmp_path_factory.mktemp('tiny'), *request.param, NUM_BLOCKS)
    return load_vlm(str(folder), device='cpu'), HfReference(folder)


def assert_same(answer, token_ids, logits, tolerance: float = 1e-4) -> None:
    assert list(answer.token_ids) == list(token_ids)
    np.testing.assert_allclose(answer.logits, logits, rtol=0, atol=tolerance)


def test_the_sets_hold_the_ends_and_the_complete_set() -> None:
    sets = larger_skip_sets()
    assert len(set(sets)) == 30
    assert any(0 in blocks for blocks in sets) and any(NUM_BLOCKS - 1 in blocks for blocks in sets)
    assert tuple(range(NUM_BLOCKS)) in sets


@pytest.mark.parametrize(
    'skip_sets',
    [[()], [(block,) for block in range(NUM_BLOCKS)], larger_skip_sets()],
    ids=['none', 'one-block', '30-larger'],
)
def test_equal_sets_match_removed_layers(pair, skip_sets) -> None:
    vlm, reference = pair
    features = vlm.encode(IMAGE)
    inputs = reference.inputs([IMAGE], [PROMPT])
    full = vlm.answer(features, PROMPT, forced_length=STEPS, return_logits=True)
    for skip in skip_sets:
        with reference.blocks_removed(skip):
            token_ids, logits = reference.greedy(inputs, STEPS)
        answer = vlm.answer(features, PROMPT, skip, forced_length=STEPS, return_logits=True)
        assert_same(answer, token_ids[0], logits[0])
        if skip:  # or the comparison would be blind
            assert np.abs(answer.logits[0] - full.logits[0]).max() > 0.1


@pytest.mark.parametrize('size', [(20, 20), (30, 100), (100, 30), (56, 56), (333, 500)], ids=str)
def test_every_image_shape_matches(pair, size) -> None:
    """NeXT and OneVision cut an image into tiles by its shape."""
    vlm, reference = pair
    image = make_image(*size)
    token_ids, logits = reference.greedy(reference.inputs([image], [PROMPT]), STEPS)
    answer = vlm.answer(image, PROMPT, forced_length=STEPS, return_logits=True)
    assert_same(answer, token_ids[0], logits[0])


@pytest.mark.parametrize('skip', [(), (0, 3), (NUM_BLOCKS - 1,)], ids=str)
def test_a_long_prompt_matches(pair, skip) -> None:
    """Attention of many queries over as many keys takes another way.

    Not so where a window binds: in every block of Mistral's here, in every second one of Qwen2's.
    """
    vlm, reference = pair
    prompt = ' '.join(f'Is it {number}?' for number in range(LONG // 7))
    inputs = reference.inputs([IMAGE], [prompt])
    num_tokens = inputs['input_ids'].shape[1]
    assert num_tokens > LONG + TILE and num_tokens % TILE
    with reference.blocks_removed(skip):
        token_ids, logits = reference.greedy(inputs, STEPS)
    answer = vlm.answer(IMAGE, prompt, skip, forced_length=STEPS, return_logits=True)
    assert_same(answer, token_ids[0], logits[0])


@pytest.mark.parametrize(
    'skip',
    [(), (0,), (NUM_BLOCKS - 1,), (0, 3, 5), (1, 2, 4), tuple(range(NUM_BLOCKS))],
    ids=str,
)
def test_rows_of_a_padded_batch_equal_their_own_runs(pair, skip) -> None:
    vlm, reference = pair
    images = [IMAGE, make_image(90, 30, seed=1), make_image(28, 28, seed=2)]
    prompts = ['Hm?', 'A much longer question, so that the other rows are padded: what?', PROMPT]
    batch = reference.inputs(images, prompts)
    assert not batch['attention_mask'].all(), 'nothing is padded: the test would be blind'
    answers = vlm.answer_batch(images, prompts, skip, forced_length=STEPS, return_logits=True)
    with reference.blocks_removed(skip):
        batch_ids, batch_logits = reference.greedy(batch, STEPS)
        for row, answer in enumerate(answers):
            assert_same(answer, batch_ids[row], batch_logits[row])
            alone = reference.inputs([images[row]], [prompts[row]])
            token_ids, logits = reference.greedy(alone, STEPS)
            assert_same(answer, token_ids[0], logits[0])


@pytest.mark.parametrize(
    ('prefill', 'decode'),
    [
        ((), (0,)),
        ((), (NUM_BLOCKS - 1,)),
        ((0,), ()),
        ((0, 5), (1, 2)),
        ((2, 3, 4), (3,)),
        ((), tuple(range(NUM_BLOCKS))),
        (tuple(range(NUM_BLOCKS)), ()),
        ((0, 1, 2), (3, 4, 5)),
    ],
    ids=str,
)
def test_differing_sets_match_the_definition(pair, prefill, decode) -> None:
    vlm, reference = pair
    inputs = reference.inputs([IMAGE], [PROMPT])
    token_ids, logits = Definition(reference).greedy(inputs, STEPS, prefill, decode)
    skip = SkipSet(prefill=prefill, decode=decode)
    answer = vlm.answer(IMAGE, PROMPT, skip, forced_length=STEPS, return_logits=True)
    assert_same(answer, token_ids, logits, OF_FLOAT64)
    equal = vlm.answer(IMAGE, PROMPT, prefill, forced_length=STEPS, return_logits=True)
    assert np.abs(answer.logits[1:] - equal.logits[1:]).max() > 0.1  # the decode set matters

    other = make_image(28, 28, seed=3)  # and in a padded batch
    long_prompt = 'A longer question than the other one, is it not?'
    row, _ = vlm.answer_batch(
        [IMAGE, other], [PROMPT, long_prompt], skip, forced_length=STEPS, return_logits=True
    )
    assert_same(row, token_ids, logits, OF_FLOAT64)


def test_windows_slide_over_decoded_tokens_alone(pair) -> None:
    """Blocks that only decoding runs store only its tokens; here more than a window of them."""
    vlm, reference = pair
    steps = SLIDING_WINDOW + 4
    inputs = reference.inputs([IMAGE], [PROMPT])
    skip = SkipSet(prefill=range(1, NUM_BLOCKS))
    token_ids, logits = Definition(reference).greedy(inputs, steps, skip.prefill, ())
    answer = vlm.answer(IMAGE, PROMPT, skip, forced_length=steps, return_logits=True)
    assert_same(answer, token_ids, logits, OF_FLOAT64)


def test_positions_and_masks_of_a_padded_batch() -> None:
    """Rotary attention sees only differences of positions, so tokens alone do not show these."""
    is_real = torch.tensor([[False, False, True, True], [True, True, True, True]])
    store = KeyValueStore(is_real, max_columns=6, num_blocks=1)
    assert store.advance(4).tolist() == [[0, 0, 0, 1], [0, 1, 2, 3]]
    mask = store.mask(range(4), (ALL, 0), window=None)
    assert mask.any(dim=-1).all(), 'a fully masked row: softmax would give NaN'
    assert mask[0, 0, 3].tolist() == [False, False, True, True]
    assert store.advance(1).tolist() == [[2], [4]]
    assert store.advance(1).tolist() == [[3], [5]]
    assert store.mask([5], (ALL, 0), window=None)[0, 0, 0].tolist() == [False, False] + [True] * 4
    assert store.mask([5], (ALL, 0), window=2)[1, 0, 0].tolist() == [False] * 4 + [True] * 2


def test_the_definition_itself_matches_removed_layers(pair) -> None:
    _, reference = pair
    inputs = reference.inputs([IMAGE], [PROMPT])
    for skip in [(), (0, 3), (1, 5)]:
        with reference.blocks_removed(skip):
            token_ids, logits = reference.greedy(inputs, STEPS)
        own_ids, own_logits = Definition(reference).greedy(inputs, STEPS, skip, skip)
        assert own_ids == token_ids[0]
        np.testing.assert_allclose(own_logits, logits[0], rtol=0, atol=OF_FLOAT64)


def test_generate_gives_the_same_tokens(pair) -> None:
    """Hugging Face's own generation, cache included, with a layer removed."""
    vlm, reference = pair
    inputs = reference.inputs([IMAGE], [PROMPT])
    with reference.blocks_removed([0]):
        output = reference.model.generate(
            **inputs, do_sample=False, max_new_tokens=STEPS, min_new_tokens=STEPS
        )
    answer = vlm.answer(IMAGE, PROMPT, [0], forced_length=STEPS)
    assert list(answer.token_ids) == output[0, inputs['input_ids'].shape[1] :].tolist()
