"""How much memory a checkpoint needs, from its files alone: nothing is loaded.

    need = memory_need(Path('~/llava-1.5-7b-hf').expanduser(), 'float16', max_new_tokens=64)
    need.total_bytes

With b the bytes of a number in the target dtype:

weights     b x the elements of every stored floating-point tensor. Exact: the parameters of the
            model as it is loaded. (A tensor that is stored but not used counts as well; so do the
            vision tower's last layers, which are released if no features need them.) With a
            quantization, the decoder's linear layers as quantization.py stores them.
key/value   b x 2 x blocks x key/value heads x head size x S. Exact for a sequence of S tokens with
store       all blocks: S = image tokens + text tokens + max_new_tokens - 1, at most the model's
            context. One store at a time: the branches run one after the other. Where answers share
            a frame (Vlm.share_frame), at most one per skip set, the full one included, in which
            the questions of a branch go side by side: S = image tokens + text tokens of all
            questions + 3 x their max_new_tokens, for an answer and two drafts of it each.
activations the features of the image, which are kept for all answers, plus the larger of
            - encoding: pixels, the hidden states that the vision tower keeps (those that features
              are read from; where these are its last, Hugging Face keeps every layer's), and what
              its widest layer or the projector and the packing add;
            - prefill: of the whole sequence, one block's residuals, attention and feed-forward
              parts, masks where windows apply, and the last token's logits; with a quantization
              also a block's widest layer, dequantised.
            A deliberate overestimate: the kernels in use may need less.
reserve     a tenth of store and activations (allocators leave gaps), and RUNTIME_BYTES: on a GPU
            for kernels and workspaces that come with their first use, on the CPU for the libraries
            themselves. CUDA's context is not counted: it exists once a GPU's free memory is read.

Image tokens are those of the largest image: every image of LLaVA-1.5; the best-filled grid of
tiles for LLaVA-NeXT and OneVision.
"""

from __future__ import annotations

import json
import math
import re
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors

from gmskip_ros.numbers import numbers_in
from gmskip_ros.vlm.engine import SMALLER_WEIGHTS, smaller_dtype
from gmskip_ros.vlm.errors import ModelLoadError
from gmskip_ros.vlm.hub import INDEX_FILE, SINGLE_FILE, weight_files
from gmskip_ros.vlm.tiles import cap_image_tokens, grid_tokens, tile_tokens, tower_tokens

_AGAIN = 'fetch or copy the checkpoint again'

BYTES_PER_NUMBER = {'float32': 4, 'float16': 2, 'bfloat16': 2}
GIB = 1 << 30
RUNTIME_BYTES = {'cpu': GIB, 'cuda': GIB // 4}
TEXT_TOKENS = 256  # allowed for a prompt with its chat template
RESERVE = 0.1  # of what is allocated anew for every answer


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes that a model needs, by part; `total_bytes` is their sum and a reserve."""

    weights_bytes: int
    kv_bytes: int
    activation_bytes: int
    total_bytes: int
    image_tokens: int  # at most
    sequence_tokens: int  # image, text and answer


@dataclass(frozen=True)
class Sharing:
    """How the answers to one frame share: skip sets of all branches, text and answers of one.

    text_tokens, answer_tokens: of all prompts together, and of the longest answers to all of them.
    """

    num_skip_sets: int
    answer_tokens: int
    text_tokens: int = TEXT_TOKENS


def memory_need(
    folder: Path,
    dtype: str,
    *,
    quantization: str = 'none',
    device: str = 'cpu',
    max_new_tokens: int = 64,
    text_tokens: int = TEXT_TOKENS,
    sharing: Sharing | None = None,
    max_image_tokens: int = 0,
) -> MemoryNeed:
    """Return what the checkpoint in `folder` needs to answer: one answer at a time, or `sharing`.

    dtype: 'float32', 'float16' or 'bfloat16'. quantization: 'none', 'int8' or 'int4'. device: 'cpu'
    or 'cuda:N', whose free_bytes the total is to be compared with. text_tokens: of the longest
    prompt, with its chat template. max_image_tokens: load_vlm's. The formulas are in this module's
    docstring. Raises ModelLoadError for a checkpoint that this engine cannot run or whose weight
    files are incomplete.
    """
    from gmskip_ros.vlm.load import check_quantization, quiet_hugging_face, read_config

    check_quantization(quantization)

    if dtype not in BYTES_PER_NUMBER:
        raise ModelLoadError(f'unknown dtype {dtype!r}: use {", ".join(BYTES_PER_NUMBER)}')
    with quiet_hugging_face():
        config = read_config(str(folder), folder)
    _cap_image_tokens(str(folder), config, max_image_tokens)
    weights = [tensor for tensor in read_weight_files(str(folder), folder) if tensor.is_weight]
    num_weights = sum(tensor.numel for tensor in weights)
    return _need(
        config, dtype, quantization, device, num_weights, max_new_tokens, text_tokens, sharing
    )


def _cap_image_tokens(model: str, config: Any, max_image_tokens: int) -> None:
    """Leave out of the configuration the grids that loading would leave out."""
    no_processor = types.SimpleNamespace()
    cap_image_tokens(model, config, no_processor, max_image_tokens)


def _need(
    config: Any,
    dtype: str,
    quantization: str,
    device: str,
    num_weights: float,
    max_new_tokens: int,
    text_tokens: int,
    sharing: Sharing | None,
) -> MemoryNeed:
    number_bytes = BYTES_PER_NUMBER[dtype]
    weights_bytes = round(number_bytes * num_weights)
    dense_bytes = 0  # of the widest layer while it is multiplied with many rows
    if quantization != 'none':
        weights_bytes -= _saved_bytes(config.text_config, quantization, number_bytes)
        # Beside the dequantised weights, their integers in one byte each, in two orders.
        widest = max(math.prod(shape) for shape in linear_shapes(config.text_config))
        dense_bytes = (number_bytes + 2) * widest
    num_tiles, image_tokens = _image_size(config)
    sequence_tokens = min(
        image_tokens + text_tokens + max_new_tokens - 1, config.text_config.max_position_embeddings
    )
    kv_bytes = number_bytes * sequence_tokens * _stored_per_token(config.text_config)
    pass_tokens = sequence_tokens
    if sharing is not None:
        beside = sharing.text_tokens + 3 * sharing.answer_tokens
        kv_bytes = kv_bytes // sequence_tokens * (image_tokens + beside) * sharing.num_skip_sets
        pass_tokens = max(pass_tokens, beside)
    activation_bytes = number_bytes * image_tokens * config.text_config.hidden_size + max(
        _encoding_bytes(config, num_tiles, image_tokens, number_bytes),
        _prefill_bytes(config.text_config, pass_tokens, number_bytes) + dense_bytes,
    )
    runtime_bytes = RUNTIME_BYTES['cpu' if device == 'cpu' else 'cuda']
    reserve_bytes = round(RESERVE * (kv_bytes + activation_bytes)) + runtime_bytes
    return MemoryNeed(
        weights_bytes=weights_bytes,
        kv_bytes=kv_bytes,
        activation_bytes=activation_bytes,
        total_bytes=weights_bytes + kv_bytes + activation_bytes + reserve_bytes,
        image_tokens=image_tokens,
        sequence_tokens=sequence_tokens,
    )


def free_bytes(device: str, proc: Path = Path('/proc')) -> int | None:
    """Return the free memory of 'cpu' or 'cuda:N'; None where it is unknown.

    On the CPU it is what new processes can have without swapping, according to the system. So it is
    on a GPU that shares the system's memory (Jetson), where CUDA counts cached files as used.
    """
    if device != 'cpu':
        import torch

        free = torch.cuda.mem_get_info(device)[0]
        if not torch.cuda.get_device_properties(device).is_integrated:
            return free
        return max(free, free_bytes('cpu', proc) or 0)
    try:
        available = re.search(r'MemAvailable:\s+(\d+) kB', (proc / 'meminfo').read_text())
    except OSError:
        return None
    return int(available[1]) << 10 if available else None


def check_memory(
    model: str,
    device: str,
    dtype: str,
    *,
    headroom_gib: float,
    quantization: str = 'none',
    max_new_tokens: int = 64,
    sharing: Sharing | None = None,
    max_image_tokens: int = 0,
    on_progress: Callable[[str], None] | None = None,
) -> None:
    """Raise ModelLoadError, with the figures, if the model would not fit into free memory.

    model, device, dtype, quantization, max_image_tokens and on_progress are load_vlm's; a hub id is
    downloaded if necessary, but its weights only if they would fit. `headroom_gib` must remain free
    on the device while it answers. Raises what load_vlm raises.
    """
    from gmskip_ros.vlm import load

    torch_device = load.resolve_device(device)
    # Wrong ones are refused before anything is downloaded.
    load.resolve_dtype(dtype, torch_device)
    load.check_quantization(quantization)

    device = str(torch_device)

    def name_of(stored: Any) -> str:
        resolved = load.resolve_dtype(dtype, torch_device, stored, quantization)
        return str(resolved).removeprefix('torch.')

    def check(folder: Path, sizes: Mapping[str, int]) -> None:
        """Judge by the JSON files and the sizes of the weight files."""
        config = load.read_config(model, folder, sizes)
        _cap_image_tokens(model, config, max_image_tokens)
        stored = load.stored_dtype(config)
        resolved = name_of(stored)
        stored_bytes = sum(sizes[name] for name in weight_files(folder, sizes))
        num_weights = stored_bytes / (stored.itemsize if stored else 2)
        need = _need(
            config,
            resolved,
            quantization,
            device,
            num_weights,
            max_new_tokens,
            TEXT_TOKENS,
            sharing,
        )
        _check_need(model, device, resolved, quantization, need, headroom_gib)

    with load.quiet_hugging_face():
        folder = load.find_folder(model, on_progress or (lambda _: None), check)
        stored = load.stored_dtype(load.read_config(model, folder))
    dtype = name_of(stored)
    need = memory_need(
        folder,
        dtype,
        quantization=quantization,
        device=device,
        max_new_tokens=max_new_tokens,
        sharing=sharing,
        max_image_tokens=max_image_tokens,
    )
    _check_need(model, device, dtype, quantization, need, headroom_gib)


def _check_need(
    model: str,
    device: str,
    dtype: str,
    quantization: str,
    need: MemoryNeed,
    headroom_gib: float,
) -> None:
    free = free_bytes(device)
    if free is None or need.total_bytes + headroom_gib * GIB <= free:
        return
    half = smaller_dtype(dtype, device)
    smaller = f'dtype {half}, ' if half else ''
    smaller += SMALLER_WEIGHTS[quantization]
    numbers = numbers_in(dtype, quantization)
    raise ModelLoadError(
        f'model {model} needs {need.total_bytes / GIB:.1f} GiB in {numbers} (weights '
        f'{need.weights_bytes / GIB:.1f}, key/value store {need.kv_bytes / GIB:.1f}, activations '
        f'{need.activation_bytes / GIB:.1f}, the rest reserve) and {headroom_gib:g} GiB '
        f'must remain free, but {device} has {free / GIB:.1f} GiB free: use {smaller}a smaller '
        'model, a different device or less memory_headroom_gib, or stop other programs that use '
        'memory'
    )


def _image_size(config: Any) -> tuple[int, int]:
    """Return the largest number of tiles and of image tokens that any image makes."""
    if config.model_type == 'llava':
        return 1, tile_tokens(config)
    grids = [tuple(grid) for grid in config.image_grid_pinpoints]
    image_size = config.vision_config.image_size
    num_tiles = max(1 + height // image_size * (width // image_size) for height, width in grids)
    return num_tiles, max(grid_tokens(config, *grid) for grid in grids)


def linear_shapes(text: Any) -> list[tuple[int, int]]:
    """Return the shapes (out, in) of a block's linear layers, fused as they are quantised.

    Query, key and value; output; gate and up; down.
    """
    heads = text.num_attention_heads + 2 * text.num_key_value_heads
    return [
        (heads * _head_size(text), text.hidden_size),
        (text.hidden_size, text.num_attention_heads * _head_size(text)),
        (2 * text.intermediate_size, text.hidden_size),
        (text.hidden_size, text.intermediate_size),
    ]


def _saved_bytes(text: Any, quantization: str, number_bytes: int) -> int:
    """Return how many bytes fewer the weights of all linear layers take when quantised."""
    from gmskip_ros.vlm.quantization import stored_as

    return text.num_hidden_layers * sum(
        number_bytes * math.prod(shape)
        - stored_as(quantization, *shape).num_bytes(*shape, number_bytes)
        for shape in linear_shapes(text)
    )


def _head_size(text: Any) -> int:
    return getattr(text, 'head_dim', None) or text.hidden_size // text.num_attention_heads


def _stored_per_token(text: Any) -> int:
    """Return how many numbers all blocks store per token."""
    return 2 * text.num_hidden_layers * text.num_key_value_heads * _head_size(text)


def _encoding_bytes(config: Any, num_tiles: int, image_tokens: int, number_bytes: int) -> int:
    from gmskip_ros.vlm.vision import num_states_kept

    vision, width = config.vision_config, config.text_config.hidden_size
    tokens = num_tiles * tower_tokens(config)
    pixels = 4 * num_tiles * 3 * vision.image_size**2  # the image processor's copies included
    hidden_states = tokens * vision.hidden_size * num_states_kept(config)
    layer = tokens * (2 * vision.hidden_size + 3 * max(vision.intermediate_size, width))
    packed = 2 * image_tokens * width
    return number_bytes * (pixels + hidden_states + layer + packed)


def _prefill_bytes(text: Any, tokens: int, number_bytes: int) -> int:
    from gmskip_ros.vlm.decoder import sliding_windows

    query_width = text.num_attention_heads * _head_size(text)
    stored_width = text.num_key_value_heads * _head_size(text)
    # The running block: its input and output, and the input of its attention.
    held = 5 * text.hidden_size + 2 * query_width + 2 * stored_width + 2 * _head_size(text)
    numbers = tokens * (held + 3 * text.intermediate_size) + text.vocab_size
    if any(window is not None and tokens > window for window in sliding_windows(text)):
        # A mask, and with it keys and values for every query head.
        numbers += 2 * tokens**2 + 2 * tokens * query_width
    return number_bytes * numbers


@dataclass(frozen=True)
class StoredTensor:
    """One weight as it is stored: its name, dtype ('F16', 'BF16', 'I64', ...) and shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def is_weight(self) -> bool:
        """Whether it is floating point: anything else is a buffer, not a weight."""
        return self.dtype.startswith(('F', 'BF'))

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


def read_weight_files(model: str, folder: Path) -> list[StoredTensor]:
    """Return every tensor of a checkpoint, from the headers of its files alone.

    Raises ModelLoadError for a file that is missing, not safetensors, or shorter or longer than its
    header says.
    """
    if (folder / SINGLE_FILE).exists():  # transformers prefers it as well, if there are both
        return _read_header(model, folder / SINGLE_FILE)
    if not (folder / INDEX_FILE).exists():
        raise ModelLoadError(
            f'model {model} has neither {SINGLE_FILE} nor {INDEX_FILE} in {folder}: {_AGAIN}'
        )
    file_of = _read_index(model, folder / INDEX_FILE)
    names = sorted(set(file_of.values()))
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        shown = ', '.join(missing[:2]) + (', ...' if len(missing) > 2 else '')
        raise ModelLoadError(
            f'model {model} lacks {len(missing)} of its {len(names)} weight files ({shown}) in '
            f'{folder}: {_AGAIN}'
        )
    tensors = [tensor for name in names for tensor in _read_header(model, folder / name)]
    lost = sorted(file_of.keys() - {tensor.name for tensor in tensors})
    if lost:
        raise ModelLoadError(
            f'model {model} lacks {len(lost)} of its weights ({lost[0]}): {_AGAIN}'
        )
    return tensors


def _read_index(model: str, path: Path) -> dict[str, str]:
    """Return the file of every tensor, by the tensor's name."""
    try:
        weight_map = json.loads(path.read_bytes())['weight_map']
        if not weight_map or not all(isinstance(name, str) for name in weight_map.values()):
            raise ValueError
        return dict(weight_map)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        raise ModelLoadError(
            f'model {model}: {path} is not an index of weight files: {_AGAIN}'
        ) from None


def _read_header(model: str, path: Path) -> list[StoredTensor]:
    """Return the tensors of one file, whose header must cover it exactly."""
    try:
        # 'np' maps the file read-only; 'pt' fails for files larger than main memory.
        with safetensors.safe_open(path, 'np') as file:
            slices = {name: file.get_slice(name) for name in file.keys()}
            return [
                StoredTensor(name, stored.get_dtype(), tuple(stored.get_shape()))
                for name, stored in slices.items()
            ]
    except (OSError, safetensors.SafetensorError) as error:
        raise ModelLoadError(
            f'model {model}: {path} ({path.stat().st_size} bytes) is not a complete safetensors '
            f'file ({error}): {_AGAIN}'
        ) from error
