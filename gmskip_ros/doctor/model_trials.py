"""Trials of PyTorch and of a checkpoint, which the doctor runs in child processes."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from gmskip_ros.ros.trials import TrialError, first_line
from gmskip_ros.vlm.memory import free_bytes


def examine_torch(device: str) -> Iterator[dict[str, Any]]:
    """Yield the versions, the GPUs that PyTorch sees, and whether `device` computes.

    `torch`; `cuda` (the version PyTorch was built for, None for a CPU build); `gpus` (names);
    `warning` (PyTorch's about the driver); `gpu` (the index that `device` means, absent for the
    CPU); `capability`; `free_bytes`; `works`; `transformers` or `transformers_problem`.
    """
    import torch

    yield {'torch': torch.__version__, 'cuda': torch.version.cuda}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        gpus = []
        if torch.cuda.is_available():
            gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    yield {'gpus': gpus, 'warning': first_line(caught[0].message) if caught else ''}
    try:
        import transformers

        yield {'transformers': transformers.__version__}
    except Exception as error:  # the GPU can be examined all the same
        yield {'transformers_problem': first_line(error)}
    index = int(device.partition(':')[2] or 0)
    if device == 'cpu' or index >= len(gpus):
        return
    yield {'gpu': index}
    yield {'capability': '{}.{}'.format(*torch.cuda.get_device_capability(index))}
    numbers = torch.ones(64, 64, dtype=torch.float16, device=f'cuda:{index}')
    if not bool((numbers @ numbers == 64).all()):
        raise TrialError(f'cuda:{index} gives wrong results')
    yield {'works': True, 'free_bytes': free_bytes(f'cuda:{index}')}


def examine_model(
    model: str,
    device: str,
    dtype: str,
    prompts: Sequence[str],
    max_new_tokens: int,
    options: Mapping[str, Any],
    frame_size: Sequence[int],
    sharing: Mapping[str, int],
) -> Iterator[dict[str, Any]]:
    """Yield what a checkpoint is, what is wrong with its files, and its memory; load no weights.

    `device` and `dtype` as they will be; `folder`; `num_blocks`; `text_model_type`;
    `template_sha256`; `warnings` and `refusals` (lines); without refusals `prompt` (the first one
    in the chat template), `view` (of a frame of `frame_size`: image_fit, share, tiles, tokens) and
    `need` (see MemoryNeed). `options` are load_vlm's keyword arguments, `sharing` the
    fields of memory.py's Sharing but for the text, if answers share.
    """
    import numpy as np

    from gmskip_ros.vlm import ModelLoadError
    from gmskip_ros.vlm import load as loading
    from gmskip_ros.vlm.memory import Sharing, memory_need, read_weight_files

    options = dict(options)
    quantization = options.pop('quantization')  # of weights, which are not loaded
    refusals: list[str] = []
    try:
        torch_device = loading.resolve_device(device)
    except ModelLoadError:  # reported by the GPU check; the files can be examined all the same
        torch_device = loading.resolve_device('cpu')
    yield {'device': str(torch_device)}
    try:
        folder = loading.find_local_folder(model)
        yield {'folder': str(folder)}
        with loading.quiet_hugging_face():
            config = loading.read_config(model, folder)
        stored = loading.stored_dtype(config)
        resolved = loading.resolve_dtype(dtype, torch_device, stored, quantization)
        dtype = str(resolved).removeprefix('torch.')
        yield {
            'dtype': dtype,
            'num_blocks': config.text_config.num_hidden_layers,
            'text_model_type': config.text_config.model_type,
        }
    except ModelLoadError as error:
        yield {'refusals': [str(error)]}
        return
    num_stored = None
    try:
        tensors = read_weight_files(model, folder)
        num_stored = sum(tensor.numel for tensor in tensors if tensor.is_weight)
    except ModelLoadError as error:
        refusals.append(str(error))
    try:
        skeleton = loading.load_skeleton(model, **options)
        yield {'template_sha256': skeleton.template_sha256, 'warnings': list(skeleton.warnings)}
        if num_stored is not None and num_stored < skeleton.num_parameters:
            refusals.append(
                f'model {model} holds {num_stored} of the {skeleton.num_parameters} parameters of '
                'its config.json: fetch or copy the checkpoint again'
            )
    except ModelLoadError as error:
        refusals.append(str(error))
    yield {'refusals': refusals}
    if refusals:
        return
    width, height = frame_size
    features = skeleton.encode(np.zeros((height, width, 3), np.uint8))
    yield {
        'prompt': skeleton.render_prompt(prompts[0]),
        'view': {
            'image_fit': skeleton.image_fit,
            'share': skeleton.visible_box(width, height).share,
            'tiles': features.num_tiles,
            'tokens': features.num_tokens,
        },
    }
    # The image placeholder counts one token too many, which makes up for the missing start token.
    texts = [len(skeleton.token_ids(skeleton.render_prompt(prompt))) for prompt in prompts]
    need = memory_need(
        folder,
        dtype,
        quantization=quantization,
        device=str(torch_device),
        max_new_tokens=max_new_tokens,
        text_tokens=max(texts),
        sharing=Sharing(**sharing, text_tokens=sum(texts)) if sharing else None,
        max_image_tokens=options['max_image_tokens'],
    )
    yield {'need': asdict(need)}
