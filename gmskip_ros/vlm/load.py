"""Load a checkpoint in Hugging Face format: the demo model, a local folder or a hub id."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import torch
import transformers

# From its own module: under its public name, transformers 5.17 refuses it without torchvision,
# even for the PIL backend.
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from gmskip_ros.errors import first_line
from gmskip_ros.numbers import is_whole_number, numbers_in
from gmskip_ros.vlm.decoder import TEXT_MODEL_TYPES
from gmskip_ros.vlm.engine import DTYPES, MAX_THREADS, QUANTIZATIONS
from gmskip_ros.vlm.errors import ModelLoadError
from gmskip_ros.vlm.hub import find_folder, find_local_folder, forget_folder, remember_folder
from gmskip_ros.vlm.image_fit import FittedImageProcessor, check_image_fit
from gmskip_ros.vlm.quantization import quantize_model
from gmskip_ros.vlm.recognition import refuse_known_formats
from gmskip_ros.vlm.release import release_memory
from gmskip_ros.vlm.tiles import cap_image_tokens, check_max_image_tokens
from gmskip_ros.vlm.vlm import Vlm, hash_weights, is_out_of_memory

# model_type in config.json -> the family's common name
FAMILIES = {
    'llava': 'LLaVA-1.5',
    'llava_next': 'LLaVA-NeXT',
    'llava_onevision': 'LLaVA-OneVision',
}
JSON_FILES = (  # beside config.json; any of them may be absent
    'generation_config.json',
    'preprocessor_config.json',
    'processor_config.json',
    'tokenizer_config.json',
)


def fetch_files(model: str, on_progress: Callable[[str], None]) -> None:
    """Download the checkpoint, if necessary, so that load_vlm needs no network; load nothing.

    Raises ModelLoadError, also if the model cannot be run.
    """
    with quiet_hugging_face():
        inspect = functools.partial(read_config, model)
        remember_folder(model, find_folder(model, on_progress, inspect))


def load_vlm(
    model: str | os.PathLike[str] = 'demo',
    device: str | torch.device = 'auto',
    dtype: str = 'auto',
    on_progress: Callable[[str], None] | None = None,
    *,
    image_fit: str = 'auto',
    max_image_tokens: int = 0,
    chat_template: str | None = None,
    quantization: str = 'none',
    threads: int = 0,
) -> Vlm:
    """Load a LLaVA-1.5, LLaVA-NeXT or LLaVA-OneVision checkpoint with safetensors weights.

    model: 'demo', a local folder, or a hub id: 'owner/name' or 'owner/name@revision'. device:
    'auto' (the first GPU, else the CPU), 'cpu', 'cuda' or 'cuda:N'. dtype: 'float32', 'float16',
    'bfloat16' or 'auto' (float32 on the CPU, on a GPU the checkpoint's own half precision: see
    resolve_dtype). on_progress receives each step in a few words. image_fit: how a frame becomes
    the model's square, one of IMAGE_FITS (see image_fit.py). max_image_tokens: use only those grids
    of tiles that make at most so many image tokens; 0: all. chat_template: Jinja text, or a file
    that contains it, in place of the checkpoint's own. quantization: how the weights of the
    decoder's linear layers are stored, one of QUANTIZATIONS (see quantization.py). threads: see
    set_threads. Code that comes with a checkpoint is never run. Raises ModelLoadError, whose one
    line says what to do.
    """
    model, device = os.fspath(model), str(device)
    report = on_progress or (lambda _: None)
    torch_device = resolve_device(device)
    # Wrong ones are refused before anything is downloaded.
    resolve_dtype(dtype, torch_device)
    check_quantization(quantization)
    check_image_fit(model, image_fit)
    check_max_image_tokens(max_image_tokens)
    set_threads(threads)
    with quiet_hugging_face():
        try:
            folder = find_folder(model, report, functools.partial(read_config, model))
            report('reading the configuration')
            config = read_config(model, folder)
            torch_dtype = resolve_dtype(dtype, torch_device, stored_dtype(config), quantization)
            report('loading the tokenizer and the image processor')
            tokenizer, image_processor, template = load_processor(model, folder, chat_template)
            _check_template(model, config, tokenizer, template)
            cap_image_tokens(model, config, image_processor, max_image_tokens)
            fitted = FittedImageProcessor(model, image_processor, image_fit)
            report('loading weights')
            weights_sha256 = None
            if quantization == 'none':
                hf_model = _load_weights(model, folder, config, torch_dtype)
            else:
                exact_dtype = stored_dtype(config) or torch_dtype  # weights are not rounded twice
                hf_model = _load_weights(model, folder, config, exact_dtype)
                weights_sha256 = hash_weights(hf_model)
                report(f'quantizing the decoder to {quantization}')
                with _refusals(model, f'quantization {quantization}'):
                    quantize_model(hf_model, quantization, torch_dtype)
            report(f'moving weights to {torch_device}')
            with _refusals(model, f'device {torch_device}', remedy='use device cpu'):
                hf_model.to(torch_device)
            with _refusals(model, f'its decoder on {torch_device}'):
                vlm = Vlm(
                    model,
                    hf_model,
                    fitted,
                    tokenizer,
                    template,
                    max_image_tokens,
                    quantization=quantization,
                    weights_sha256=weights_sha256,
                )
            if torch_dtype == stored_dtype(config):
                _leave_weight_files(hf_model)
            _try_out(vlm)
            release_memory()  # of the copies that loading made
            remember_folder(model, folder)
        except ModelLoadError:
            forget_folder(model)  # it may be repaired
            raise
    numbers = numbers_in(vlm.dtype, vlm.quantization)
    report(f'loaded {model}: {vlm.num_blocks} blocks, {numbers} on {vlm.device}')
    return vlm


def load_skeleton(
    model: str,
    *,
    image_fit: str = 'auto',
    max_image_tokens: int = 0,
    chat_template: str | None = None,
) -> Vlm:
    """Return a checkpoint's model without its weights, from files on this machine; see load_vlm.

    It knows num_blocks, text_model_type, template_sha256, prompts and how many tokens an image
    makes, but cannot answer. Raises ModelLoadError as load_vlm would, except for the weights.
    """
    with quiet_hugging_face():
        folder = find_local_folder(model)
        config = read_config(model, folder)
        tokenizer, image_processor, template = load_processor(model, folder, chat_template)
        _check_template(model, config, tokenizer, template)
        cap_image_tokens(model, config, image_processor, max_image_tokens)
        fitted = FittedImageProcessor(model, image_processor, image_fit)
        with _refusals(model, 'config.json'), torch.device('meta'):
            hf_model = transformers.AutoModelForImageTextToText.from_config(config).eval()
        if (folder / 'generation_config.json').is_file():
            with _refusals(model, 'generation_config.json'):
                hf_model.generation_config = transformers.GenerationConfig.from_pretrained(folder)
        vlm = Vlm(model, hf_model, fitted, tokenizer, template, max_image_tokens)
        _try_out(vlm)
    return vlm


def set_threads(threads: int) -> None:
    """Let the calling thread, and new ones, compute with so many; 0 leaves PyTorch's number.

    Raises ModelLoadError for anything but a whole number from 0 to MAX_THREADS.
    """
    if not is_whole_number(threads) or not 0 <= threads <= MAX_THREADS:
        raise ModelLoadError(
            f'threads is {threads!r}: give a whole number up to {MAX_THREADS}, '
            "0 for PyTorch's own choice"
        )
    if threads > 0:
        torch.set_num_threads(threads)


def resolve_device(device: str) -> torch.device:
    """Return the device for a name that load_vlm accepts; raises ModelLoadError."""
    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == 'auto':
        return torch.device('cuda:0' if num_gpus else 'cpu')
    if device == 'cpu':
        return torch.device('cpu')
    match = re.fullmatch(r'cuda(?::(\d+))?', device)
    if match is None:
        raise ModelLoadError(f"unknown device {device!r}: use 'auto', 'cpu' or 'cuda:N'")
    index = int(match[1] or 0)
    if index >= num_gpus:
        raise ModelLoadError(
            f'device {device!r} does not exist: PyTorch sees {num_gpus} CUDA GPUs; '
            "use 'cpu' or 'auto'"
        )
    return torch.device('cuda', index)


def resolve_dtype(
    dtype: str,
    device: torch.device,
    stored: torch.dtype | None = None,
    quantization: str = 'none',
) -> torch.dtype:
    """Return the dtype for a name that load_vlm accepts; raises ModelLoadError.

    'auto' is float32 on a CPU, or bfloat16 with a quantization, whose kernels take it. On a GPU it
    is the half precision in which the checkpoint is `stored`: bfloat16 if the GPU has it without
    emulation, else float16.
    """
    if dtype == 'auto':
        if device.type != 'cuda':
            return torch.float32 if quantization == 'none' else torch.bfloat16
        has_bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
        is_bfloat16 = stored == torch.bfloat16 and has_bfloat16
        return torch.bfloat16 if is_bfloat16 else torch.float16
    if dtype not in DTYPES:
        raise ModelLoadError(f"unknown dtype {dtype!r}: use 'auto', {', '.join(map(repr, DTYPES))}")
    return getattr(torch, dtype)


def check_quantization(quantization: str) -> None:
    """Raise ModelLoadError unless it is one of QUANTIZATIONS."""
    if quantization not in QUANTIZATIONS:
        raise ModelLoadError(
            f'quantization {quantization!r} is unknown: use {", ".join(QUANTIZATIONS)}'
        )


def stored_dtype(config: Any) -> torch.dtype | None:
    """Return the dtype in which a checkpoint's weights are stored; None if it does not say."""
    return config.dtype or config.text_config.dtype


def read_config(model: str, folder: Path, names: Collection[str] | None = None) -> Any:
    """Return the configuration of a checkpoint that this engine can run; refuse any other.

    `names` are its files, if they are not all in `folder` yet.
    """
    names = {path.name for path in folder.iterdir()} if names is None else names
    refuse_known_formats(model, folder, names)
    config_json = _read_json(model, folder / 'config.json')
    family = config_json.get('model_type')
    if family not in FAMILIES:
        names = ', '.join(f'{name} ({key})' for key, name in FAMILIES.items())
        raise ModelLoadError(f'model {model} is of type {family!r}: supported are {names}')
    for name in ('config.json', *JSON_FILES):
        if (folder / name).is_file() and 'auto_map' in _read_json(model, folder / name):
            raise ModelLoadError(
                f'model {model} requires code of its own (auto_map in {name}), which is never run: '
                'use a checkpoint in Hugging Face format without code'
            )
    if not any(name.endswith('.safetensors') for name in names):
        raise ModelLoadError(
            f'model {model} has no safetensors weights in {folder}: repeat an incomplete download'
        )
    with _refusals(model, 'config.json'):
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
        text_type = config.text_config.model_type
        vision_type = config.vision_config.model_type
    if text_type not in TEXT_MODEL_TYPES:
        raise ModelLoadError(
            f'model {model} has a language decoder of type {text_type!r}: supported are '
            f'{", ".join(TEXT_MODEL_TYPES)}'
        )
    if vision_type == 'pixtral':  # its image tokens have breaks between rows, unlike LLaVA's
        raise ModelLoadError(f"model {model} has a vision tower of type 'pixtral': not supported")
    return config


def load_processor(
    model: str, folder: Path, chat_template: str | None = None
) -> tuple[Any, Any, str | None]:
    """Return tokenizer, image processor and chat template; raises ModelLoadError.

    The template is the one given (Jinja text or a file), else the processor's, else the
    tokenizer's; None if there is none.

    Not the whole processor: OneVision's requires a video processor, and that torchvision.
    """
    with _refusals(model, 'the tokenizer'):
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    with _refusals(model, 'the image processor'):
        # The torchvision backend differs in the last bits, and an answer must not depend on
        # whether torchvision is installed.
        image_processor = AutoImageProcessor.from_pretrained(
            folder, backend='pil', trust_remote_code=False
        )
    if chat_template:
        return tokenizer, image_processor, _read_template(chat_template)
    with _refusals(model, 'the chat template'):
        processor_config, _ = transformers.ProcessorMixin.get_processor_dict(folder)
    for template in (processor_config.get('chat_template'), tokenizer.chat_template):
        if isinstance(template, dict):
            template = template.get('default')
        if template:
            return tokenizer, image_processor, template
    return tokenizer, image_processor, None


def _read_template(template: str) -> str:
    """Return a chat template given as Jinja text or as a file; raises ModelLoadError."""
    if '{' in template:
        return template
    path = Path(template).expanduser()
    try:
        return path.read_text(encoding='utf-8')
    except (OSError, ValueError) as error:
        raise ModelLoadError(
            f'chat_template {template}: is not Jinja text and cannot be read as a file '
            f'({first_line(error)}): give one of the two'
        ) from error


def _check_template(model: str, config: Any, tokenizer: Any, template: str | None) -> None:
    """Refuse to guess a prompt: only LLaVA-1.5 on a Vicuna has a known one without a template."""
    is_vicuna = (
        config.model_type == 'llava'
        and config.text_config.model_type == 'llama'
        and (tokenizer.bos_token, tokenizer.eos_token) == ('<s>', '</s>')
    )
    if template is None and not is_vicuna:
        raise ModelLoadError(
            f'model {model} has no chat template, and the prompt of a {FAMILIES[config.model_type]}'
            f' with a {config.text_config.model_type} decoder is not guessed: set chat_template to '
            'the Jinja template that it was trained with, or to a file that contains it'
        )


def _try_out(vlm: Vlm) -> None:
    """Try a prompt and an image now, so that a broken checkpoint is refused before any frame."""
    with _refusals(vlm.name, 'the chat template'):
        vlm.render_prompt('What is this?')
    remedy = 'fetch or copy the checkpoint again, or use image_fit pad'
    with _refusals(vlm.name, 'the image processor or the vision tower', remedy):
        vlm.encode(np.zeros((36, 64, 3), np.uint8))  # as wide as a camera's


def _load_weights(model: str, folder: Path, config: Any, dtype: torch.dtype) -> Any:
    with _refusals(model, 'the weights'):
        hf_model, info = transformers.AutoModelForImageTextToText.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    missing = sorted(info['missing_keys'])
    if missing:  # Hugging Face fills them with random numbers
        raise ModelLoadError(
            f'model {model} lacks {len(missing)} of its weights ({missing[0]}, ...): '
            'fetch or copy the checkpoint again'
        )
    return hf_model.eval().requires_grad_(False)


def _leave_weight_files(hf_model: Any) -> None:
    """Copy what the engine did not convert, if it did convert, so that no file stays mapped.

    Weights of the dtype in which they are stored are parts of the mapped files, which stay in
    memory as a whole while one part is in use.
    """
    weights = list(hf_model.parameters())
    if any(weight.is_meta for weight in weights):
        for weight in weights:
            is_view = weight.untyped_storage().nbytes() > weight.nbytes  # of layers fused as is
            if not weight.is_meta and not is_view:
                weight.data = weight.data.clone()


def _read_json(model: str, path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError) as error:
        raise ModelLoadError(
            f'model {model} cannot be read: {path}: {first_line(error)}; give a folder in '
            'Hugging Face format'
        ) from error
    if not isinstance(content, dict):
        raise ModelLoadError(f'model {model} cannot be read: {path} does not hold a JSON object')
    return content


@contextlib.contextmanager
def _refusals(
    model: str, part: str, remedy: str = 'fetch or copy the checkpoint again'
) -> Iterator[None]:
    """Turn what a library raises, mostly about a broken checkpoint, into one line."""
    try:
        yield
    except ModelLoadError:  # says what it is
        raise
    except Exception as error:  # OSError, ValueError, SafetensorError, ImportError, ...
        if is_out_of_memory(error):
            raise ModelLoadError(
                f'model {model} does not fit into memory with {part}: '
                'use a smaller model, dtype float16, quantization int8 or int4, or device cpu'
            ) from error
        if isinstance(error, ImportError) or 'is required' in str(error):  # names its own remedy
            raise ModelLoadError(
                f'model {model}: {part} cannot be used: {" ".join(str(error).split())}'
            ) from error
        raise ModelLoadError(
            f'model {model}: {part} cannot be used ({type(error).__name__}: '
            f'{first_line(error)}); {remedy}'
        ) from error


@contextlib.contextmanager
def quiet_hugging_face() -> Iterator[None]:
    """Silence the libraries' warnings and progress bars within the block."""
    logs, hub = transformers.utils.logging, huggingface_hub.utils
    verbosity, had_bars = logs.get_verbosity(), logs.is_progress_bar_enabled()
    hub_had_bars = not hub.are_progress_bars_disabled()
    logs.set_verbosity_error()
    logs.disable_progress_bar()
    if hub_had_bars:
        hub.disable_progress_bars()
    try:
        yield
    finally:
        logs.set_verbosity(verbosity)
        if had_bars:
            logs.enable_progress_bar()
        if hub_had_bars:
            hub.enable_progress_bars()
