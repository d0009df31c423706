"""One model under measurement: loaded, with a camera frame, the tasks' prompts and skip sets."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from gmskip_ros.benchmarks.architecture import DecoderShape, VisionShape
from gmskip_ros.benchmarks.random_weights import (
    is_random,
    make_config,
    make_processor,
    make_vlm,
    random_model,
)
from gmskip_ros.datasets.scenes import render_scene
from gmskip_ros.errors import UserError
from gmskip_ros.skipping import load_skip_list
from gmskip_ros.tasks import TASK_NAMES, make_task

if TYPE_CHECKING:
    from gmskip_ros.vlm import ImageFeatures, Vlm
    from gmskip_ros.vlm.image_fit import FittedImageProcessor

FRAME_SIZE = (1920, 1080)  # width, height
FRAME_LENGTHS = {'single_object': 3, 'multi_object': 16, 'captioning': 20}  # tokens of an answer
HALF_OF_32, TWO_THIRDS_OF_32 = 16, 21  # retained blocks that the bars are about
SWEEP_OF_32 = (32, 24, TWO_THIRDS_OF_32, HALF_OF_32, 8)  # retained blocks, for the plot
GIB = 1 << 30
FREE_GIB = 1.0  # that remains for everything but weights
PUBLISHED = 'gmskip_{task}'  # shipped skip lists for 32 blocks
RANDOM_DTYPE = 'bfloat16'  # that random weights count as stored in


@dataclass(frozen=True)
class Wanted:
    """A model to measure: its name and, for random weights, the side of its images in pixels."""

    model: str
    image_size: int | None = None


@dataclass(frozen=True)
class Subject:
    """A loaded model and what it is asked; first_ms: of the first frame after loading."""

    wanted: Wanted
    vlm: Vlm
    processor: FittedImageProcessor
    folder: str | None  # of a checkpoint
    frame: np.ndarray  # uint8 RGB
    features: ImageFeatures
    prompts: Mapping[str, str]  # by task
    input_ids: Mapping[str, Sequence[int]]
    decoder: DecoderShape
    vision: VisionShape
    load_s: float
    first_ms: float

    @property
    def title(self) -> str:
        """What messages call it."""
        return f'{self.wanted.model}, {self.features.num_tokens} image tokens'

    @property
    def prompt(self) -> str:
        """The prompt of the rounds."""
        return self.prompts[TASK_NAMES[0]]

    @property
    def prompt_ids(self) -> Sequence[int]:
        """The token ids of image and prompt in the rounds."""
        return self.input_ids[TASK_NAMES[0]]

    @property
    def rows(self) -> int:
        """Tokens of image and prompt in the rounds."""
        return len(self.prompt_ids)

    @property
    def is_exact(self) -> bool:
        """Whether answers are the same however they are computed.

        In half precision a rounding can grow into a different token.
        """
        return self.vlm.dtype == 'float32'

    @property
    def weights_bytes(self) -> int:
        """Bytes of one copy of all parameters."""
        shape = self.decoder
        saved = shape.num_blocks * (shape.number_bytes * shape.block_weights - shape.block_bytes)
        return self.vlm.num_parameters * shape.number_bytes - saved

    def retained(self, of_32: int) -> int:
        """Return a number of blocks of 32 as the same share of this model's."""
        return max(1, round(of_32 * self.vlm.num_blocks / 32))


def what_to_measure(model: str | None) -> list[Wanted]:
    """Return the model in every image size it comes in; without one, demo and random:llava-cpu."""
    if model is None:
        return [*what_to_measure('demo'), *what_to_measure('random:llava-cpu')]
    if is_random(model):
        return [Wanted(model, size) for size in random_model(model).image_sizes]
    return [Wanted(model)]


def load_subject(
    wanted: Wanted, device: str, dtype: str, load_options: Mapping[str, Any], seed: int
) -> Subject:
    """Load a model and answer the first frame. Raises UserError and what load_vlm raises."""
    import torch

    from gmskip_ros.benchmarks.architecture import decoder_shape, vision_shape

    started = time.perf_counter()
    load = _load_checkpoint if wanted.image_size is None else _make_random
    vlm, processor, config, folder = load(wanted, device, dtype, load_options, seed)
    load_s = time.perf_counter() - started
    number_bytes = getattr(torch, vlm.dtype).itemsize
    frame = render_scene(seed, *FRAME_SIZE).image
    prompts = {name: make_task(name).prompt for name in TASK_NAMES}
    started = time.perf_counter()
    features = vlm.encode(frame)
    vlm.answer(features, prompts[TASK_NAMES[0]], forced_length=1)
    first_ms = 1e3 * (time.perf_counter() - started)
    return Subject(
        wanted,
        vlm,
        processor,
        folder,
        frame,
        features,
        prompts,
        {name: vlm.input_ids(prompt, features) for name, prompt in prompts.items()},
        decoder_shape(config.text_config, number_bytes, vlm.quantization),
        vision_shape(config, number_bytes),
        load_s,
        first_ms,
    )


Loaded: TypeAlias = 'tuple[Vlm, FittedImageProcessor, Any, str | None]'


def _load_checkpoint(
    wanted: Wanted, device: str, dtype: str, load_options: Mapping[str, Any], seed: int
) -> Loaded:
    """Return engine, image processor, configuration and folder of a checkpoint."""
    from gmskip_ros.vlm.hub import find_local_folder
    from gmskip_ros.vlm.image_fit import FittedImageProcessor
    from gmskip_ros.vlm.load import load_processor, load_vlm, quiet_hugging_face, read_config
    from gmskip_ros.vlm.tiles import cap_image_tokens

    vlm = load_vlm(wanted.model, device, dtype, **load_options)
    folder = find_local_folder(wanted.model)
    with quiet_hugging_face():
        config = read_config(wanted.model, folder)
        _, image_processor, _ = load_processor(wanted.model, folder)
        cap_image_tokens(
            wanted.model, config, image_processor, load_options.get('max_image_tokens', 0)
        )
    processor = FittedImageProcessor(wanted.model, image_processor, vlm.image_fit)
    return vlm, processor, config, str(folder)


def check_options(wanted: Wanted, load_options: Mapping[str, Any]) -> None:
    """Raise UserError for an option that random weights cannot have, as `load_subject` does."""
    if wanted.image_size is not None:
        _configure(wanted, load_options)


def _configure(wanted: Wanted, load_options: Mapping[str, Any]) -> tuple[Any, FittedImageProcessor]:
    """Return configuration and image processor of random weights. Raises UserError."""
    from gmskip_ros.vlm.load import check_quantization, quiet_hugging_face
    from gmskip_ros.vlm.tiles import cap_image_tokens

    assert wanted.image_size is not None
    if load_options.get('chat_template'):
        raise UserError(f'--chat-template has no effect with --model {wanted.model}: remove it')
    check_quantization(load_options.get('quantization', 'none'))
    max_image_tokens = load_options.get('max_image_tokens', 0)
    with quiet_hugging_face():
        config = make_config(wanted.model, wanted.image_size)
        processor = make_processor(wanted.model, config, load_options.get('image_fit', 'auto'))
        cap_image_tokens(wanted.model, config, processor.processor, max_image_tokens)
    return config, processor


def _make_random(
    wanted: Wanted, device: str, dtype: str, load_options: Mapping[str, Any], seed: int
) -> Loaded:
    """Return engine, image processor and configuration of random weights. Raises UserError."""
    import torch

    from gmskip_ros.vlm.load import (
        quiet_hugging_face,
        resolve_device,
        resolve_dtype,
        set_threads,
    )

    set_threads(load_options.get('threads', 0))
    config, processor = _configure(wanted, load_options)
    torch_device = resolve_device(device)
    quantization = load_options.get('quantization', 'none')
    resolved = resolve_dtype(dtype, torch_device, getattr(torch, RANDOM_DTYPE), quantization)
    name = str(resolved).removeprefix('torch.')
    with quiet_hugging_face():
        _check_memory(wanted.model, config, str(torch_device), name)
        vlm = make_vlm(wanted.model, config, processor, str(torch_device), name, seed, quantization)
    return vlm, processor, config, None


def _check_memory(model: str, config: Any, device: str, dtype: str) -> None:
    """Raise UserError if random weights would not fit into free memory."""
    import torch
    import transformers

    from gmskip_ros.vlm.engine import smaller_dtype
    from gmskip_ros.vlm.memory import free_bytes

    with torch.device('meta'):
        skeleton = transformers.AutoModelForImageTextToText.from_config(config)
    numbers = sum(weight.numel() for weight in skeleton.parameters())
    needed = numbers * getattr(torch, dtype).itemsize / GIB + FREE_GIB
    free = free_bytes(device)
    if free is not None and needed > free / GIB:
        half = smaller_dtype(dtype, device)
        half = f'--dtype {half}, ' if half else ''
        raise UserError(
            f'--model {model}: its weights need {needed:.1f} GiB in {dtype} on {device}, '
            f'and {free / GIB:.1f} are free: use {half}a GPU, or random:llava-cpu'
        )


def spread(num_blocks: int, removed: int) -> tuple[int, ...]:
    """Return `removed` blocks of num_blocks, evenly spread."""
    return tuple((2 * i + 1) * num_blocks // (2 * removed) for i in range(removed))


def skip_sets(num_blocks: int) -> dict[str, dict[str, tuple[int, ...]]]:
    """Return the blocks skipped per task: published lists (32 blocks only), and one joint list."""
    joint = spread(num_blocks, num_blocks // 2)
    sets = {f'one joint list of {len(joint)}': dict.fromkeys(TASK_NAMES, joint)}
    if num_blocks == 32:
        lists = {name: load_skip_list(PUBLISHED.format(task=name)) for name in TASK_NAMES}
        published = {name: found.blocks_at('high_sparsity') for name, found in lists.items()}
        sets = {'published lists': published, **sets}
    return sets
