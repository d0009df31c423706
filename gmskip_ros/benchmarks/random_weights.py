"""Models at true shapes with seeded random weights, made in memory: latency depends on no value.

Shapes: `llava-1.5-7b` and `llava-onevision-7b` are those of llava-hf/llava-1.5-7b-hf and
llava-hf/llava-onevision-qwen2-7b-ov-hf; `llava-cpu` has 32 blocks of a size that a CPU answers with
in seconds. The tokenizer knows the words of the tasks' prompts, a token each.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gmskip_ros.errors import UserError
from gmskip_ros.tasks import TASK_NAMES, make_task

if TYPE_CHECKING:
    from gmskip_ros.vlm import Vlm
    from gmskip_ros.vlm.image_fit import FittedImageProcessor

PREFIX = 'random:'
SPECIAL_TOKENS = ('<unk>', '<s>', '</s>', '<pad>', '<image>', '<video>')
SURE = 1000.0  # times the length of other rows in the output head
OTHER_WORDS = ('USER', 'ASSISTANT', ':')
QWEN_TEMPLATE = (
    '{% for message in messages %}USER : {% for part in message.content %}'
    "{% if part.type == 'image' %}<image>\n{% else %}{{ part.text }}{% endif %}{% endfor %}"
    '{% endfor %} ASSISTANT :'
)


@dataclass(frozen=True)
class RandomModel:
    """One of MODELS: its family, its shapes, and the image sizes (pixels) that it comes in."""

    family: str  # model_type of Hugging Face's configuration
    text: dict[str, Any]
    vision: dict[str, Any]
    image_sizes: tuple[int, ...]


_CLIP_L = {
    'model_type': 'clip_vision_model',
    'hidden_size': 1024,
    'intermediate_size': 4096,
    'num_hidden_layers': 24,
    'num_attention_heads': 16,
    'patch_size': 14,
    'projection_dim': 768,
}
MODELS = {
    'random:llava-1.5-7b': RandomModel(
        'llava',
        {
            'model_type': 'llama',
            'vocab_size': 32064,
            'hidden_size': 4096,
            'intermediate_size': 11008,
            'num_hidden_layers': 32,
            'num_attention_heads': 32,
            'num_key_value_heads': 32,
            'max_position_embeddings': 4096,
        },
        _CLIP_L,
        (336,),
    ),
    'random:llava-onevision-7b': RandomModel(
        'llava_onevision',
        {
            'model_type': 'qwen2',
            'vocab_size': 152128,
            'hidden_size': 3584,
            'intermediate_size': 18944,
            'num_hidden_layers': 28,
            'num_attention_heads': 28,
            'num_key_value_heads': 4,
            'max_position_embeddings': 32768,
        },
        {
            'model_type': 'siglip_vision_model',
            'hidden_size': 1152,
            'intermediate_size': 4304,
            'num_hidden_layers': 26,
            'num_attention_heads': 16,
            'patch_size': 14,
            'vision_use_head': False,
        },
        (384,),
    ),
    'random:llava-cpu': RandomModel(
        'llava',
        {
            'model_type': 'llama',
            'vocab_size': 8192,
            'hidden_size': 1024,
            'intermediate_size': 2752,
            'num_hidden_layers': 32,
            'num_attention_heads': 16,
            'num_key_value_heads': 16,
            'max_position_embeddings': 2048,
        },
        {
            **_CLIP_L,
            'hidden_size': 256,
            'intermediate_size': 1024,
            'num_hidden_layers': 6,
            'num_attention_heads': 4,
        },
        (140, 336),  # 100 and 576 image tokens
    ),
}


def is_random(model: str) -> bool:
    """Return whether the name asks for random weights."""
    return model.startswith(PREFIX)


def random_model(model: str) -> RandomModel:
    """Return the shapes of a name. Raises UserError for an unknown one."""
    if model not in MODELS:
        raise UserError(f'model {model!r} is unknown: with random weights there are {_names()}')
    return MODELS[model]


def make_config(model: str, image_size: int) -> Any:
    """Return Hugging Face's configuration for images of `image_size` x `image_size` pixels."""
    import transformers

    shapes = random_model(model)
    ids = {name.strip('<>'): index for index, name in enumerate(SPECIAL_TOKENS)}
    text = dict(shapes.text)
    vision = {**shapes.vision, 'image_size': image_size}
    is_onevision = shapes.family == 'llava_onevision'
    arguments: dict[str, Any] = {
        'text_config': transformers.AutoConfig.for_model(
            text.pop('model_type'),
            **text,
            bos_token_id=ids['s'],
            eos_token_id=ids['/s'],
            pad_token_id=ids['pad'],
            tie_word_embeddings=False,
        ),
        'vision_config': transformers.AutoConfig.for_model(vision.pop('model_type'), **vision),
        'image_token_id': ids['image'],
        'vision_feature_layer': -1 if is_onevision else -2,
        'vision_feature_select_strategy': 'full' if is_onevision else 'default',
        'tie_word_embeddings': False,
    }
    if is_onevision:
        arguments['video_token_id'] = ids['video']
        arguments['vision_aspect_ratio'] = 'anyres_max_9'
        arguments['image_grid_pinpoints'] = _pinpoints(image_size)
    return transformers.AutoConfig.for_model(shapes.family, **arguments)


def make_hf_model(config: Any, device: str, dtype: str, seed: int = 0) -> Any:
    """Return Hugging Face's model with seeded weights, in memory that is allocated once.

    The same arguments give the same weights in every process. Matrices are scaled so that states
    keep their size through the blocks in half precision as well. Two tokens, opposite in the output
    head, win by far: of a plain random head's tokens many would be near ties, which drafts and
    shared frames answer once more, alone.
    """
    import torch
    import transformers
    from transformers.initialization import no_init_weights

    torch_dtype = getattr(torch, dtype)
    with torch.device(device), no_init_weights():
        model = transformers.AutoModelForImageTextToText.from_config(config, dtype=torch_dtype)
    random = torch.Generator(device).manual_seed(seed)
    with torch.inference_mode():
        for name, weight in model.named_parameters():
            if weight.ndim < 2:  # norms and biases
                weight.fill_(0.0 if name.endswith('bias') else 1.0)
            else:
                scale = 1.0 if 'embed' in name else weight[0].numel() ** -0.5
                weight.normal_(0.0, scale, generator=random)
        model.lm_head.weight[-1] *= SURE
        model.lm_head.weight[-2] = -model.lm_head.weight[-1]
    return model.eval().requires_grad_(False)


def make_processor(model: str, config: Any, image_fit: str = 'auto') -> FittedImageProcessor:
    """Return the image processor (PIL backend) of a family behind an image fit."""
    import transformers

    from gmskip_ros.vlm.image_fit import FittedImageProcessor

    side = config.vision_config.image_size
    size = {'height': side, 'width': side}
    if config.model_type == 'llava_onevision':
        processor = transformers.LlavaOnevisionImageProcessorPil(
            size=size, image_grid_pinpoints=config.image_grid_pinpoints
        )
    else:
        processor = transformers.CLIPImageProcessorPil(size={'shortest_edge': side}, crop_size=size)
    return FittedImageProcessor(model, processor, image_fit)


def make_vlm(
    model: str,
    config: Any,
    processor: FittedImageProcessor,
    device: str,
    dtype: str,
    seed: int = 0,
    quantization: str = 'none',
) -> Vlm:
    """Return the engine over seeded random weights; see make_hf_model."""
    from gmskip_ros.vlm.quantization import quantize_model
    from gmskip_ros.vlm.release import release_memory
    from gmskip_ros.vlm.vlm import Vlm, hash_weights

    hf_model = make_hf_model(config, device, dtype, seed)
    weights_sha256 = hash_weights(hf_model)
    if quantization != 'none':
        quantize_model(hf_model, quantization, hf_model.dtype)
    vlm = Vlm(
        model,
        hf_model,
        processor,
        _tokenizer(config.text_config.vocab_size),
        QWEN_TEMPLATE if config.model_type == 'llava_onevision' else None,
        quantization=quantization,
        weights_sha256=weights_sha256,
    )
    release_memory()  # of the copies that this made
    return vlm


def _pinpoints(image_size: int) -> list[list[int]]:
    """Return OneVision's grids of 1 to 6 x 1 to 6 tiles, as height and width in pixels."""
    sides = [image_size * count for count in range(1, 7)]
    return [[height, width] for height in sides for width in sides]


def _tokenizer(vocab_size: int) -> Any:
    """Return a tokenizer of words and marks, filled up to the vocabulary's size."""
    import tokenizers
    import transformers
    from tokenizers import models, pre_tokenizers, processors

    prompts = ' '.join(make_task(name).prompt for name in TASK_NAMES)
    words = dict.fromkeys([*OTHER_WORDS, *re.findall(r'\w+|[^\w\s]+', prompts)])
    known = [*SPECIAL_TOKENS, *words]
    known += [f'word{index}' for index in range(len(known), vocab_size)]
    vocabulary = {word: index for index, word in enumerate(known)}
    core = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token='<unk>'))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.add_special_tokens(list(SPECIAL_TOKENS))
    core.post_processor = processors.TemplateProcessing(
        single='<s> $A', special_tokens=[('<s>', vocabulary['<s>'])]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token='<unk>',
        bos_token='<s>',
        eos_token='</s>',
        pad_token='<pad>',
    )


def _names() -> str:
    return ', '.join(MODELS)
