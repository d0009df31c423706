"""Parts of the demo model before training: tokenizer, processor, untrained LLaVA."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from gmskip_ros.tasks import TASK_NAMES, make_task

IMAGE_SIZE = 140
PATCH_SIZE = 14
PATCHES = IMAGE_SIZE // PATCH_SIZE  # per side
NUM_BLOCKS = 32  # as in LLaVA-1.5-7B, so that the published skip lists fit
CORE_BLOCKS = 12  # trained first, without dropping; new blocks are inserted between them

CHAT_TEMPLATE = (
    '{% for message in messages %}'
    "{{ message['role'].upper() + ': ' }}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{{ ' ' }}"
    '{% endfor %}'
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)

# The tokenizer is trained on pieces (" ped" + "estrian") and never sees a whole label, so that
# every answer takes several decode steps.
_PIECES = (
    ' ped estrian| cyc list| c ar| tr uck| tri cycle| b us| traffic| cone| bar rier| light| d og'
)
_WORDS = ' dry wet foggy snowy road day dusk night by at on and a A,., USER ASSISTANT: the it is in'


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer: encodes any text, common words with few tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    pieces = [
        ' ' + p if not i else p for word in _PIECES.split('|') for i, p in enumerate(word.split())
    ]
    corpus = [make_task(name).prompt for name in TASK_NAMES] * 8 + [_WORDS] * 8 + pieces * 16
    trainer = trainers.BpeTrainer(
        vocab_size=640,
        min_frequency=8,
        special_tokens=['<s>', '</s>', '<pad>', '<image>'],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single='<s> $A', special_tokens=[('<s>', tokenizer.token_to_id('<s>'))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token='<s>',
        eos_token='</s>',
        pad_token='<pad>',
        extra_special_tokens={'image_token': '<image>'},
        padding_side='left',
        clean_up_tokenization_spaces=False,
        model_max_length=1024,
    )


def make_processor() -> LlavaProcessor:
    """Return the processor, which squashes any image to IMAGE_SIZE x IMAGE_SIZE."""
    image_processor = CLIPImageProcessorPil(
        size={'height': IMAGE_SIZE, 'width': IMAGE_SIZE}, do_center_crop=False
    )
    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=make_tokenizer(),
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy='default',
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def make_model(
    num_blocks: int, vocab_size: int, image_token_id: int
) -> LlavaForConditionalGeneration:
    """Return an untrained float32 LLaVA: CLIP tower, projector, Llama decoder."""
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=192,
            intermediate_size=576,
            num_hidden_layers=4,
            num_attention_heads=6,
            image_size=IMAGE_SIZE,
            patch_size=PATCH_SIZE,
            projection_dim=192,
        ),
        text_config=LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=128,
            intermediate_size=352,
            num_hidden_layers=num_blocks,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=1024,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=2,
        ),
        image_token_index=image_token_id,
        vision_feature_layer=-1,
        vision_feature_select_strategy='default',
        image_seq_length=PATCHES**2,
    )
    model = LlavaForConditionalGeneration(config)
    model.generation_config.update(bos_token_id=0, eos_token_id=1, pad_token_id=2, do_sample=False)
    return model.to(torch.float32)
