"""The engine's path on a GPU, on one that is pretended: every tensor is where it belongs."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from pretend_gpu import pretended_gpu
from tiny_models import make_tiny_model

from gmskip_ros.vlm import FrameQuestion, SkipSet, Vlm, load_vlm

IMAGE = np.random.default_rng(0).integers(0, 256, (40, 70, 3), dtype=np.uint8)
PROMPTS = ('What is it?', 'Which objects are there, and where?')
SKIP_SETS = (
    SkipSet(),
    SkipSet.of([1]),
    SkipSet(prefill=[0], decode=[2]),
    SkipSet(image=[1, 2]),
    SkipSet(image=[3], image_kv='none', kv='input'),
)
LENGTH = 5
FAMILIES = [('llava', 'llama'), ('llava_next', 'mistral'), ('llava_onevision', 'qwen2')]


@pytest.fixture(scope='module', params=FAMILIES, ids='-'.join)
def folder(request, tmp_path_factory) -> str:
    return str(make_tiny_model(tmp_path_factory.mktemp('gpu') / 'model', *request.param))


@pytest.fixture
def waits() -> Iterator[list[str]]:
    """The GPU is there; these are the calls that wait for it."""
    with pretended_gpu() as waits:
        yield waits


def answers_of(vlm: Vlm) -> tuple[list[tuple[int, ...]], float]:
    """Return the tokens that a model gives at each of its doors, and a text's log probability."""
    features = vlm.encode(IMAGE)
    alone = [vlm.answer(features, PROMPTS[0], skip, forced_length=LENGTH) for skip in SKIP_SETS]
    draft = [*alone[0].token_ids[:2], 3]
    drafted = vlm.answer(features, PROMPTS[0], draft=draft, forced_length=LENGTH)
    batch = vlm.answer_batch([IMAGE, IMAGE[:, ::-1].copy()], PROMPTS, [1], max_new_tokens=LENGTH)
    questions = [
        FrameQuestion(prompt, skip) for prompt in PROMPTS for skip in (SKIP_SETS[0], SKIP_SETS[1])
    ]
    shared = vlm.share_frame(features, questions).answer([0, 1, 2, 3], drafts={0: [draft]})
    [walked] = vlm.answer_candidates([features], PROMPTS[:1], [0], [1, 2], LENGTH)
    [likelihood] = vlm.log_probabilities([features], PROMPTS[:1], ['a car'], [1])
    answers = (*alone, drafted, *batch, *shared, *walked)
    return [tuple(answer.token_ids) for answer in answers], likelihood


def test_answers_are_those_of_the_cpu(folder, waits) -> None:
    expected, expected_likelihood = answers_of(load_vlm(folder, 'cpu', 'float32'))
    vlm = load_vlm(folder, 'cuda:0', 'float32')
    assert (vlm.device, vlm.device_memory_bytes()) == ('cuda:0', 1 << 30)
    answers, likelihood = answers_of(vlm)
    assert answers == expected
    assert likelihood == pytest.approx(expected_likelihood, abs=1e-4)
    vlm.free_memory()


@pytest.mark.parametrize('dtype', ['auto', 'bfloat16'])
def test_half_precision_runs_everywhere(folder, waits, dtype) -> None:
    vlm = load_vlm(folder, 'auto', dtype)
    assert vlm.dtype == ('float16' if dtype == 'auto' else dtype)
    answers_of(vlm)


def test_the_cpu_waits_for_a_token_once(folder, waits) -> None:
    vlm = load_vlm(folder, 'cuda:0', 'float32')
    features = vlm.encode(IMAGE)
    for skip in SKIP_SETS:
        counts = []
        for length in (4, 5, 9):
            waits.clear()
            vlm.answer(features, PROMPTS[0], skip, forced_length=length)
            counts.append(len(waits))
        assert counts == [counts[0], counts[0] + 1, counts[0] + 5], skip


def test_tensors_of_both_devices_are_refused_as_by_a_gpu(waits) -> None:
    there, here = torch.ones(3, device='cuda:0'), torch.ones(3)
    assert (there.device.type, (there + there).device.type) == ('cuda', 'cuda')
    assert there.cpu().device.type == here.to('cpu').device.type == 'cpu'
    for mixed in (
        lambda: there + here,
        lambda: torch.cat([here, there]),
        lambda: here.add_(there),
        lambda: torch.nn.functional.linear(there, torch.ones(2, 3)),
        lambda: here[torch.tensor([0], device='cuda')],
    ):
        with pytest.raises(RuntimeError, match='same device'):
            mixed()
    with pytest.raises(TypeError, match='numpy'):
        there.numpy()
    waits.clear()
    there.add_(1).mul(torch.tensor(2.0))
    assert waits == []
    assert there.tolist() == [2, 2, 2] and here.tolist() == [1, 1, 1]
    mask = torch.tensor([True, False, True], device='cuda:0')
    there[mask] = 0
    there.copy_(here)
    assert there[[0, 1]].shape == there[mask].shape == (2,)
    seen = ['tolist', 'tensor', '__setitem__', 'copy_', '__getitem__', '__getitem__']
    assert waits == seen
