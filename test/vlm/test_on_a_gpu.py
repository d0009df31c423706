"""The engine's path on a GPU, on one that is pretended: every tensor is where it belongs."""

from __future__ import annotations

from collections.abc import Iterator
from unittest import mock

import numpy as np
import pytest
import torch
from pretend_gpu import pretended_gpu
from tiny_models import make_tiny_model

from gmskip_ros.doctor.model_trials import examine_torch
from gmskip_ros.vlm import FrameQuestion, ModelLoadError, SkipSet, Vlm, load_vlm
from gmskip_ros.vlm.memory import free_bytes
from gmskip_ros.vlm.vlm import is_out_of_memory

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


def test_the_doctor_s_computation_is_right_there(waits) -> None:
    found = {key: value for part in examine_torch('cuda:0') for key, value in part.items()}
    assert (found['works'], found['free_bytes']) == (True, 20 << 30)


def test_loading_gives_back_what_it_needed_for_a_moment(folder, waits, monkeypatch) -> None:
    """Freed weights are no room for the larger fused ones: each block's is given back at once."""
    emptied: list[str] = []
    monkeypatch.setattr(torch.cuda, 'empty_cache', lambda: emptied.append(''))
    vlm = load_vlm(folder, 'cuda:0', 'float32')
    assert len(emptied) == vlm.num_blocks + 1


def test_attention_that_plans_for_every_shape_is_off(folder, waits) -> None:
    torch.backends.cuda.enable_cudnn_sdp(True)
    load_vlm(folder, 'cuda:0', 'float32')
    assert not torch.backends.cuda.cudnn_sdp_enabled()


def test_a_gpu_without_memory_of_its_own_has_the_system_s(waits, monkeypatch, tmp_path) -> None:
    """On a Jetson CUDA counts the cached files of a checkpoint as used."""
    (tmp_path / 'meminfo').write_text('MemFree: 1 kB\nMemAvailable: 29360128 kB\n')
    assert free_bytes('cuda:0', tmp_path) == 20 << 30
    integrated = mock.Mock(is_integrated=True)
    monkeypatch.setattr(torch.cuda, 'get_device_properties', lambda device: integrated)
    assert free_bytes('cuda:0', tmp_path) == 28 << 30
    assert free_bytes('cuda:0', tmp_path / 'no') == 20 << 30


@pytest.mark.parametrize(
    'error, is_one',
    [
        (torch.OutOfMemoryError('CUDA out of memory.'), True),
        (RuntimeError('CUDA error: out of memory'), True),
        (RuntimeError('CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`'), True),
        (RuntimeError('CUDA error: an illegal memory access was encountered'), False),
        (ValueError('CUDA error: out of memory'), False),
    ],
)
def test_the_ways_to_run_out_of_memory(error, is_one) -> None:
    assert is_out_of_memory(error) == is_one


def test_running_out_of_memory_while_fusing_is_said_in_one_line(folder, waits, monkeypatch) -> None:
    def fuse(layers: object) -> None:
        raise torch.OutOfMemoryError('CUDA out of memory.')

    monkeypatch.setattr('gmskip_ros.vlm.block.fuse', fuse)
    with pytest.raises(ModelLoadError, match='does not fit into memory with its decoder on cuda:0'):
        load_vlm(folder, 'cuda:0', 'float32')
