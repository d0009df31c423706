"""Checkpoints of other formats are recognised, and what to use instead is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_models import make_tiny_model

from gmskip_ros.vlm import ModelLoadError, load_vlm
from gmskip_ros.vlm.load import load_skeleton
from gmskip_ros.vlm.memory import check_memory, memory_need

POINTER = (
    'version https://git-lfs.github.com/spec/v1\n'
    'oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\n'
    'size 4938985352\n'
)


@pytest.fixture
def folder(tmp_path) -> Path:
    return make_tiny_model(tmp_path / 'tiny', num_blocks=2)


def edit_json(path: Path, **changes) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def refusals(folder: Path) -> set[str]:
    """Return what every way of opening the checkpoint says; each is one line."""
    ways = (
        lambda: load_vlm(folder, 'cpu'),
        lambda: load_skeleton(str(folder)),
        lambda: memory_need(folder, 'float32'),
        lambda: check_memory(str(folder), 'cpu', 'auto', headroom_gib=0.0),
    )
    messages = set()
    for open_checkpoint in ways:
        with pytest.raises(ModelLoadError) as caught:
            open_checkpoint()
        assert '\n' not in str(caught.value)
        messages.add(str(caught.value))
    return messages


@pytest.mark.parametrize(
    'changes',
    [
        {'model_type': 'llava_llama', 'mm_vision_tower': 'openai/clip-vit-large-patch14-336'},
        {'model_type': 'llava', 'mm_vision_tower': 'openai/clip-vit-large-patch14-336'},
        {'model_type': 'llava_qwen', 'mm_vision_tower': 'google/siglip-so400m-patch14-384'},
        {'model_type': 'llava_mistral'},
    ],
    ids=['liuhaotian', 'early', 'lmms-lab', 'type alone'],
)
def test_original_llava_checkpoints(folder, changes) -> None:
    edit_json(folder / 'config.json', **changes)
    for message in refusals(folder):
        assert 'original LLaVA' in message and 'llava-hf/llava-1.5-7b-hf' in message


@pytest.mark.parametrize(
    ('quantisation', 'method'),
    [
        ({'quant_method': 'awq', 'bits': 4}, 'awq'),
        ({'quant_method': 'gptq', 'bits': 4}, 'gptq'),
        ({'quant_method': 'fp8', 'activation_scheme': 'dynamic'}, 'fp8'),
        ({'quant_method': 'bitsandbytes', 'load_in_4bit': True}, 'bitsandbytes'),
        ({'quant_method': 'compressed-tensors'}, 'compressed-tensors'),
        ({'bits': 4}, 'an unnamed method'),
    ],
    ids=str,
)
def test_quantised_weights(folder, quantisation, method) -> None:
    edit_json(folder / 'config.json', quantization_config=quantisation)
    for message in refusals(folder):
        assert f'quantised with {method}' in message and 'without quantisation' in message


def test_quantisation_of_the_language_decoder_alone(folder) -> None:
    config = json.loads((folder / 'config.json').read_text())
    config['text_config']['quantization_config'] = {'quant_method': 'awq'}
    (folder / 'config.json').write_text(json.dumps(config))
    assert all('quantised with awq' in message for message in refusals(folder))


def test_a_lora_adapter_names_its_base_model(tmp_path) -> None:
    (tmp_path / 'adapter_config.json').write_text(
        json.dumps({'base_model_name_or_path': 'liuhaotian/llava-v1.5-7b', 'peft_type': 'LORA'})
    )
    (tmp_path / 'adapter_model.safetensors').write_bytes(b'')
    for message in refusals(tmp_path):
        assert 'LoRA adapter of liuhaotian/llava-v1.5-7b' in message and 'merge' in message


def test_gguf(tmp_path) -> None:
    (tmp_path / 'ggml-model-q4_k.gguf').write_bytes(b'GGUF')
    (tmp_path / 'mmproj-model-f16.gguf').write_bytes(b'GGUF')
    assert all('GGUF' in message for message in refusals(tmp_path))


@pytest.mark.parametrize('name', ['config.json', 'model.safetensors', 'tokenizer.json'])
def test_git_lfs_pointers(folder, name) -> None:
    (folder / name).write_text(POINTER)
    for message in refusals(folder):
        assert f'{name} in {folder} is a Git LFS pointer' in message
        assert 'git lfs pull' in message and 'again' not in message


def test_pickled_weights_beside_safetensors_are_fine(folder) -> None:
    (folder / 'pytorch_model.bin').write_bytes(b'never read')
    assert load_vlm(folder, 'cpu').num_blocks == 2
