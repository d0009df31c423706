"""Checkpoints of other formats, recognised by their files, with what to use instead."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from gmskip_ros.vlm.errors import ModelLoadError

LFS_POINTER = b'version https://git-lfs.github.com/spec/'
# model_type of original LLaVA's configurations, whose code is not in transformers.
ORIGINAL_TYPES = ('llava_llama', 'llava_mistral', 'llava_qwen', 'llava_mpt')


def refuse_known_formats(model: str, folder: Path, names: Collection[str]) -> None:
    """Raise ModelLoadError for a checkpoint whose files show that it is something else.

    `names` are its files, of which the JSON files at least are in `folder`.

    A Git LFS pointer, a LoRA adapter, GGUF, an original LLaVA checkpoint, quantised weights, or
    PyTorch's .bin weights alone. Files that are missing or broken are left to whoever reads them.
    """
    for path in sorted(folder.iterdir()):
        if path.is_file() and _begins_with(path, LFS_POINTER):
            raise ModelLoadError(
                f'model {model}: {path.name} in {folder} is a Git LFS pointer, not the file '
                'itself: run `git lfs pull` there'
            )
    config = _json_object(folder / 'config.json')
    adapter = _json_object(folder / 'adapter_config.json')
    if adapter and not config:
        base = adapter.get('base_model_name_or_path') or 'its base model'
        raise ModelLoadError(
            f'model {model} is a LoRA adapter of {base}: merge it (peft: merge_and_unload, then '
            'save_pretrained) and give the merged folder'
        )
    if 'mm_vision_tower' in config or config.get('model_type') in ORIGINAL_TYPES:
        raise ModelLoadError(
            f'model {model} is in the format of the original LLaVA code (mm_vision_tower): use its '
            'conversion to Hugging Face format, such as llava-hf/llava-1.5-7b-hf'
        )
    method = _quantisation(config)
    if method:
        raise ModelLoadError(
            f'model {model} has weights quantised with {method} (quantization_config), which are '
            'not supported: use the checkpoint without quantisation'
        )
    suffixes = {Path(name).suffix for name in names}
    if '.safetensors' in suffixes:
        return
    if '.gguf' in suffixes:
        raise ModelLoadError(
            f'model {model} is in GGUF format: use the checkpoint in Hugging Face format that it '
            'was made from, such as llava-hf/llava-1.5-7b-hf'
        )
    if suffixes & {'.bin', '.pt', '.pth'}:
        raise ModelLoadError(
            f'model {model} has no safetensors weights, only pickled ones, which can run code when '
            'loaded: convert them with save_pretrained, or use a checkpoint with safetensors'
        )


def _quantisation(config: Mapping[str, Any]) -> str:
    """Return the method that the weights are quantised with, '' if they are not."""
    for part in (config, config.get('text_config')):
        quantisation = part.get('quantization_config') if isinstance(part, dict) else None
        if isinstance(quantisation, dict):
            return str(quantisation.get('quant_method') or 'an unnamed method')
    return ''


def _begins_with(path: Path, start: bytes) -> bool:
    try:
        with path.open('rb') as file:
            return file.read(len(start)) == start
    except OSError:
        return False


def _json_object(path: Path) -> dict[str, Any]:
    """Return a file's JSON object; {} if it is missing, broken or something else."""
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
