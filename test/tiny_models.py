"""Tiny random LLaVA checkpoints in Hugging Face format, made offline in a second.

Their weights are large enough that leaving a block out changes the answer: with Hugging Face's
usual initialisation every block is nearly an identity, and a test of skipping would see nothing.
"""

from __future__ import annotations

import json
from pathlib import Path

# The families' own chat templates write the same, with more roles.
CHAT_TEMPLATE = (
    '{% for message in messages %}{{ message.role | upper }}: '
    "{% for part in message.content %}{% if part.type == 'image' %}<image>\n"
    '{% else %}{{ part.text }}{% endif %}{% endfor %} {% endfor %}'
    '{% if add_generation_prompt %}ASSISTANT:{% endif %}'
)
IMAGE_SIZE = 28  # pixels; four patches
PATCH_SIZE = 14
HIDDEN_SIZE = 32
SLIDING_WINDOW = 7  # tokens: shorter than any prompt, so it matters


def make_tiny_model(
    folder: Path | str,
    family: str = 'llava',
    text: str = 'llama',
    num_blocks: int = 4,
    *,
    chat_template: str | None = CHAT_TEMPLATE,
    eos_token_id: int | list[int] | None = None,
    seed: int = 0,
) -> Path:
    """Save a random checkpoint with tokenizer and image processor; return its folder.

    family: 'llava', 'llava_next', 'llava_onevision'. text: 'llama', 'mistral', 'qwen2'. Mistral's
    blocks all have a sliding window; of Qwen2's, every second one.
    """
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _byte_tokenizer()
    torch.manual_seed(seed)
    config = _config(family, text, num_blocks, tokenizer)
    model = transformers.AutoModelForImageTextToText.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2:
                scale = 1.0 if 'embed' in name else 2.0 / parameter[0].numel() ** 0.5
                parameter.normal_(0.0, scale)
            elif name.endswith('bias'):
                parameter.normal_(0.0, 0.3)
        # A random model must not choose special tokens: it would stop anywhere.
        model.lm_head.weight[tokenizer.all_special_ids] = 0.0
    model.generation_config = transformers.GenerationConfig(
        eos_token_id=tokenizer.eos_token_id if eos_token_id is None else eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    image_processor, processor_config = _processor(family)
    image_processor.save_pretrained(folder)
    (folder / 'processor_config.json').write_text(json.dumps(processor_config))
    if chat_template is not None:
        (folder / 'chat_template.jinja').write_text(chat_template)
    return folder


def _byte_tokenizer():
    """Every byte is a token, so any prompt can be written; a start token leads, as Llama's does."""
    import tokenizers
    import transformers
    from tokenizers import decoders, models, pre_tokenizers, processors

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ['<pad>', '<s>', '</s>', '<image>', '<video>']
    vocabulary = {token: index for index, token in enumerate(special + alphabet)}
    core = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(special)
    core.post_processor = processors.TemplateProcessing(
        single='<s> $A', special_tokens=[('<s>', vocabulary['<s>'])]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token='<pad>',
        bos_token='<s>',
        eos_token='</s>',
        additional_special_tokens=['<image>', '<video>'],
    )


def _config(family: str, text: str, num_blocks: int, tokenizer):
    import transformers

    text_arguments = {
        'vocab_size': len(tokenizer),
        'hidden_size': HIDDEN_SIZE,
        'intermediate_size': 48,
        'num_hidden_layers': num_blocks,
        'num_attention_heads': 4,
        'num_key_value_heads': 2,
        'max_position_embeddings': 512,
        'bos_token_id': tokenizer.bos_token_id,
        'eos_token_id': tokenizer.eos_token_id,
        'pad_token_id': tokenizer.pad_token_id,
        'tie_word_embeddings': False,
    }
    if text == 'mistral':
        text_arguments.update(sliding_window=SLIDING_WINDOW)
    if text == 'qwen2':
        kinds = ['sliding_attention' if i % 2 else 'full_attention' for i in range(num_blocks)]
        text_arguments.update(
            use_sliding_window=True, sliding_window=SLIDING_WINDOW, layer_types=kinds
        )
    text_config = transformers.AutoConfig.for_model(text, **text_arguments)
    is_siglip = family == 'llava_onevision'
    vision_config = transformers.AutoConfig.for_model(
        'siglip_vision_model' if is_siglip else 'clip_vision_model',
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        **({'vision_use_head': False} if is_siglip else {'projection_dim': 16}),
    )
    arguments = {
        'text_config': text_config,
        'vision_config': vision_config,
        'image_token_id': tokenizer.convert_tokens_to_ids('<image>'),
        'vision_feature_layer': -1 if is_siglip else -2,
        'vision_feature_select_strategy': 'full' if is_siglip else 'default',
        'tie_word_embeddings': False,
    }
    if family != 'llava':
        arguments['image_grid_pinpoints'] = _pinpoints()
    if is_siglip:
        arguments['video_token_id'] = tokenizer.convert_tokens_to_ids('<video>')
    return transformers.AutoConfig.for_model(family, **arguments)


def _processor(family: str):
    """Return the image processor (PIL backend) and the rest of processor_config.json."""
    import transformers

    size = {'height': IMAGE_SIZE, 'width': IMAGE_SIZE}
    common = {'patch_size': PATCH_SIZE, 'image_token': '<image>'}
    if family == 'llava':
        image_processor = transformers.CLIPImageProcessorPil(
            size={'shortest_edge': IMAGE_SIZE}, crop_size=size
        )
        extra = {
            **common,
            'processor_class': 'LlavaProcessor',
            'vision_feature_select_strategy': 'default',
            'num_additional_image_tokens': 1,
        }
    elif family == 'llava_next':
        image_processor = transformers.LlavaNextImageProcessorPil(
            size={'shortest_edge': IMAGE_SIZE}, crop_size=size, image_grid_pinpoints=_pinpoints()
        )
        extra = {
            **common,
            'processor_class': 'LlavaNextProcessor',
            'vision_feature_select_strategy': 'default',
            'num_additional_image_tokens': 1,
        }
    else:
        image_processor = transformers.LlavaOnevisionImageProcessorPil(
            size=size, image_grid_pinpoints=_pinpoints()
        )
        extra = {
            'processor_class': 'LlavaOnevisionProcessor',
            'image_token': '<image>',
            'video_token': '<video>',
            'num_image_tokens': (IMAGE_SIZE // PATCH_SIZE) ** 2,
            'vision_feature_select_strategy': 'full',
            'vision_aspect_ratio': 'anyres_max_9',
        }
    return image_processor, extra


def _pinpoints() -> list[list[int]]:
    return [[IMAGE_SIZE * rows, IMAGE_SIZE * columns] for rows in (1, 2) for columns in (1, 2)]
