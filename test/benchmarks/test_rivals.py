"""Hugging Face beside the engine: same weights, prompt and tokens, and as many as asked for."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import psutil
import pytest
import torch
from tiny_models import make_tiny_model

from gmskip_ros.benchmarks import random_weights
from gmskip_ros.benchmarks.hugging_face import HuggingFace
from gmskip_ros.benchmarks.random_weights import RandomModel, make_config, make_processor, make_vlm
from gmskip_ros.benchmarks.rivals import RivalError, RivalProcess
from gmskip_ros.benchmarks.subject import Wanted, load_subject
from gmskip_ros.errors import UserError
from gmskip_ros.tasks import TASK_NAMES, make_task
from gmskip_ros.vlm import load_vlm

PROMPT = make_task('single_object').prompt
IMAGE = np.random.default_rng(0).integers(0, 256, (40, 70, 3), dtype=np.uint8)
LENGTH = 5


def request_for(vlm, tmp_path, **options):
    """Return what loads Hugging Face's copy, and the prompt's token ids."""
    features = vlm.encode(IMAGE)
    torch.save(features.tokens, tmp_path / 'features.pt')
    request = {
        'model': vlm.name,
        'folder': None,
        'image_size': None,
        'seed': 0,
        'device': 'cpu',
        'dtype': 'float32',
        'threads': None,
        'features': str(tmp_path / 'features.pt'),
        **options,
    }
    return request, features, vlm.input_ids(PROMPT, features)


def ask(rival, ids, **options):
    usual = {'length': LENGTH, 'cache': 'dynamic', 'removed': [], 'end_ids': []}
    return rival.answer({'input_ids': ids, **usual, **options})


@pytest.mark.parametrize(
    'family, text', [('llava', 'llama'), ('llava_next', 'mistral'), ('llava_onevision', 'qwen2')]
)
def test_its_tokens_are_the_engines(tmp_path, family, text) -> None:
    folder = str(make_tiny_model(tmp_path / 'model', family, text))
    vlm = load_vlm(folder, 'cpu')
    request, features, ids = request_for(vlm, tmp_path, folder=folder)
    rival = HuggingFace(request)
    for cache in ('dynamic', 'static'):
        for removed in ([], [1], [0, 2], []):
            found = ask(rival, ids, cache=cache, removed=removed)
            own = vlm.answer(features, PROMPT, removed, forced_length=LENGTH)
            assert tuple(found['token_ids']) == own.token_ids
            assert found['prefill_ms'] > 0 and found['decode_ms'] > 0
            assert found['peak_bytes'] > 0


def test_the_end_of_sequence_ends_an_answer_only_where_it_may(tmp_path) -> None:
    """A generation_config without one would take it from the model's own."""
    folder = make_tiny_model(tmp_path / 'model')
    vlm = load_vlm(folder, 'cpu')
    tokens = vlm.answer(IMAGE, PROMPT, forced_length=LENGTH).token_ids
    end = tokens[2]
    stop = tokens.index(end)
    make_tiny_model(tmp_path / 'model', eos_token_id=end)
    vlm = load_vlm(folder, 'cpu')
    request, _, ids = request_for(vlm, tmp_path, folder=str(folder))
    rival = HuggingFace(request)
    assert tuple(ask(rival, ids)['token_ids']) == tokens
    natural = ask(rival, ids, end_ids=[end])['token_ids']
    assert tuple(natural) == tokens[: stop + 1]
    assert vlm.answer(IMAGE, PROMPT, (), LENGTH).token_ids == tokens[:stop]


@pytest.fixture(params=['llava', 'llava_onevision'])
def tiny_random(request, monkeypatch) -> str:
    """The name of tiny random weights."""
    is_onevision = request.param == 'llava_onevision'
    text = {
        'model_type': 'qwen2' if is_onevision else 'llama',
        'vocab_size': 80,
        'hidden_size': 32,
        'intermediate_size': 48,
        'num_hidden_layers': 4,
        'num_attention_heads': 4,
        'num_key_value_heads': 2,
        'max_position_embeddings': 4096,
    }
    vision = {
        'model_type': 'siglip_vision_model' if is_onevision else 'clip_vision_model',
        'hidden_size': 16,
        'intermediate_size': 24,
        'num_hidden_layers': 2,
        'num_attention_heads': 2,
        'patch_size': 14,
    }
    if is_onevision:
        vision['vision_use_head'] = False
    models = {'random:tiny': RandomModel(request.param, text, vision, (28,))}
    monkeypatch.setattr(random_weights, 'MODELS', models)
    return 'random:tiny'


def test_random_weights_are_those_of_the_seed(tiny_random, tmp_path) -> None:
    config = make_config(tiny_random, 28)
    processor = make_processor(tiny_random, config)
    vlm, again, other = (
        make_vlm(tiny_random, config, processor, 'cpu', 'float32', seed) for seed in (0, 0, 1)
    )
    assert vlm.weights_sha256() == again.weights_sha256() != other.weights_sha256()
    request, features, ids = request_for(vlm, tmp_path, image_size=28)
    own = vlm.answer(features, PROMPT, forced_length=LENGTH)
    assert tuple(ask(HuggingFace(request), ids)['token_ids']) == own.token_ids
    for task in TASK_NAMES:  # every word of the prompts is known
        prompt = make_task(task).prompt
        assert 0 not in vlm.input_ids(prompt, features)


def test_a_cap_on_image_tokens_holds_for_random_weights(monkeypatch, tiny_random) -> None:
    def image_tokens(cap: int) -> int:
        options = {'max_image_tokens': cap}
        subject = load_subject(Wanted(tiny_random, 28), 'cpu', 'float32', options, 0)
        return subject.features.num_tokens

    if 'llava' == random_weights.MODELS[tiny_random].family:  # always the same number
        assert image_tokens(4) == 4
        with pytest.raises(UserError, match='max_image_tokens 3'):
            image_tokens(3)
    else:  # one tile for the whole image, and a grid of 1 x 2 of them
        assert image_tokens(0) > 20 >= image_tokens(20)


def test_every_image_size_gives_the_tokens_it_is_for() -> None:
    counts = []
    for size in random_weights.MODELS['random:llava-cpu'].image_sizes:
        vision = make_config('random:llava-cpu', size).vision_config
        counts.append((vision.image_size // vision.patch_size) ** 2)
    assert counts == [100, 576]


def test_an_unknown_random_model_is_one_line() -> None:
    with pytest.raises(UserError, match="'random:x' is unknown: with random weights there are ran"):
        random_weights.random_model('random:x')


def test_the_process_answers_and_ends(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv('CXX', str(tmp_path / 'no_compiler'))
    monkeypatch.delenv('TORCHINDUCTOR_CACHE_DIR', raising=False)
    folder = str(make_tiny_model(tmp_path / 'model'))
    vlm = load_vlm(folder, 'cpu')
    features = vlm.encode(IMAGE)
    options = {
        'image_size': None,
        'seed': 0,
        'device': 'cpu',
        'dtype': 'float32',
        'threads': 1,
        'features': features.tokens,
    }
    with RivalProcess() as rival:
        (process,) = [
            each
            for each in psutil.Process().children()
            if 'gmskip_ros.benchmarks.hugging_face' in each.cmdline()
        ]
        rival.load(folder, folder=folder, **options)
        ids = vlm.input_ids(PROMPT, features)
        with pytest.raises(RivalError, match=r'^Hugging Face failed \(Inductor'):
            rival.answer(ids, LENGTH, cache='compiled')
        for cache in ('static', 'dynamic'):
            found = rival.answer(ids, LENGTH, cache=cache)
        assert tuple(found['token_ids']) == vlm.answer(IMAGE, PROMPT, forced_length=5).token_ids
        assert rival.peak_bytes == found['peak_bytes']
        with pytest.raises(RivalError, match='Hugging Face failed'):
            rival.answer([10**9], LENGTH, cache='dynamic')
        process.kill()
        with pytest.raises(RivalError, match="Hugging Face's process ended"):
            rival.answer(ids, LENGTH, cache='dynamic')
    assert not psutil.pid_exists(process.pid)


def test_the_process_ends_with_its_input() -> None:
    command = [sys.executable, '-m', 'gmskip_ros.benchmarks.hugging_face']
    done = subprocess.run(command, input='', capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, '')
