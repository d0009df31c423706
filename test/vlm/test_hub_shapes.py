"""Checkpoints laid out as on the hub, tiny and random: the engine answers as Hugging Face does.

Each shape changes a tiny checkpoint's files the way that published ones differ: names of weights,
shards, processor files of different years, special tokens, output heads, vision layers, rotary
scaling, windows. Prompt ids and answers, with and without skipped blocks, are compared with Hugging
Face's own model and processor on the very same folder.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import transformers
from references import HfReference
from safetensors.torch import load_file, save_file
from tiny_models import IMAGE_SIZE, make_tiny_model

from gmskip_ros.vlm import load_vlm
from gmskip_ros.vlm.memory import memory_need

STEPS = 5
PROMPT = 'What is the main object in this image? Answer with one word.'
IMAGE = np.random.default_rng(0).integers(0, 256, (40, 70, 3), dtype=np.uint8)
OPENAI_MEAN = [0.48145466, 0.4578275, 0.40821073]
OPENAI_STD = [0.26862954, 0.26130258, 0.27577711]


def edit_json(path: Path, **changes) -> None:
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**content, **changes}))


def edit_text_config(folder: Path, **changes) -> None:
    config = json.loads((folder / 'config.json').read_text())
    config['text_config'].update(changes)
    (folder / 'config.json').write_text(json.dumps(config))


def rename_weights(folder: Path, *rules: tuple[str, str]) -> None:
    weights = load_file(folder / 'model.safetensors')
    renamed = {}
    for name, weight in weights.items():
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        renamed[name] = weight
    assert len(renamed) == len(weights) and renamed.keys() != weights.keys()
    save_file(renamed, folder / 'model.safetensors', metadata={'format': 'pt'})


# --- shapes: what a folder on the hub looks like ---


def weight_names_of_2023(folder: Path) -> None:
    """`language_model.model.layers`, `vision_tower.vision_model`: llava-hf's first uploads."""
    rename_weights(folder, (r'^vision_tower\.(?!vision_model)', 'vision_tower.vision_model.'))
    assert any(
        name.startswith('language_model.model.layers.0.')
        for name in load_file(folder / 'model.safetensors')
    )


def weight_names_of_2025(folder: Path) -> None:
    """`model.language_model.layers`, `lm_head`: saved by transformers 4.52 and later."""
    rename_weights(
        folder,
        (r'^language_model\.lm_head', 'lm_head'),
        (r'^language_model\.model', 'model.language_model'),
        (r'^(vision_tower|multi_modal_projector|image_newline)', r'model.\1'),
    )


def shards(folder: Path) -> None:
    model = transformers.AutoModelForImageTextToText.from_pretrained(folder)
    (folder / 'model.safetensors').unlink()
    model.save_pretrained(folder, max_shard_size='100KB')
    assert (folder / 'model.safetensors.index.json').exists()


def processor_files_of_2023(folder: Path) -> None:
    """One preprocessor_config.json with CLIP's class, no processor_config.json, as llava-1.5."""
    (folder / 'processor_config.json').unlink()
    (folder / 'preprocessor_config.json').write_text(
        json.dumps(
            {
                'crop_size': {'height': IMAGE_SIZE, 'width': IMAGE_SIZE},
                'do_center_crop': True,
                'do_convert_rgb': True,
                'do_normalize': True,
                'do_rescale': True,
                'do_resize': True,
                'image_mean': OPENAI_MEAN,
                'image_std': OPENAI_STD,
                'feature_extractor_type': 'CLIPFeatureExtractor',
                'image_processor_type': 'CLIPImageProcessor',
                'processor_class': 'LlavaProcessor',
                'resample': 3,
                'rescale_factor': 0.00392156862745098,
                'size': {'shortest_edge': IMAGE_SIZE},
            }
        )
    )


def processor_files_of_transformers_5(folder: Path) -> None:
    """The image processor inside processor_config.json, as `processor.save_pretrained` writes."""
    reference = HfReference(folder)
    (folder / 'preprocessor_config.json').unlink()
    reference.processor.save_pretrained(folder)
    assert 'image_processor' in json.loads((folder / 'processor_config.json').read_text())
    assert not (folder / 'preprocessor_config.json').exists()


def template_in_chat_template_json(folder: Path) -> None:
    template = (folder / 'chat_template.jinja').read_text()
    (folder / 'chat_template.jinja').unlink()
    edit_json(folder / 'chat_template.json', chat_template=template)


def template_in_processor_config(folder: Path) -> None:
    template = (folder / 'chat_template.jinja').read_text()
    (folder / 'chat_template.jinja').unlink()
    edit_json(folder / 'processor_config.json', chat_template=template)


def template_in_the_tokenizer(folder: Path) -> None:
    template = (folder / 'chat_template.jinja').read_text()
    (folder / 'chat_template.jinja').unlink()
    edit_json(folder / 'tokenizer_config.json', chat_template=template)


def several_end_tokens(folder: Path) -> None:
    """Llama-3 ends an answer with either of two tokens."""
    edit_json(folder / 'generation_config.json', eos_token_id=[2, 0])


def end_tokens_of_the_model_alone(folder: Path) -> None:
    (folder / 'generation_config.json').unlink()
    edit_text_config(folder, eos_token_id=[2, 0])


def tied_embeddings(folder: Path) -> None:
    """No `lm_head` in the file: the small Qwen2 checkpoints share it with the embedding.

    The image token's row is zero, so that no answer contains that token: the reference, which runs
    the whole sequence again at every step, would look for another image.
    """
    weights = load_file(folder / 'model.safetensors')
    del weights['language_model.lm_head.weight']
    config = json.loads((folder / 'config.json').read_text())
    weights['language_model.model.embed_tokens.weight'][config['image_token_index']] = 0
    save_file(weights, folder / 'model.safetensors', metadata={'format': 'pt'})
    edit_json(folder / 'config.json', tie_word_embeddings=True)
    edit_text_config(folder, tie_word_embeddings=True)


def several_vision_layers(folder: Path) -> None:
    """Features of two layers, concatenated; the projector takes twice the width."""
    config = json.loads((folder / 'config.json').read_text())
    weights = load_file(folder / 'model.safetensors')
    name = 'multi_modal_projector.linear_1.weight'
    weights[name] = weights[name].repeat(1, 2).contiguous()
    save_file(weights, folder / 'model.safetensors', metadata={'format': 'pt'})
    config['vision_feature_layer'] = [-2, -1]
    (folder / 'config.json').write_text(json.dumps(config))


def all_tokens_of_the_last_vision_layer(folder: Path) -> None:
    """`full` and -1, as with SigLIP."""
    edit_json(
        folder / 'config.json', vision_feature_layer=-1, vision_feature_select_strategy='full'
    )


def rope(**scaling) -> Callable[[Path], None]:
    def shape(folder: Path) -> None:
        config = json.loads((folder / 'config.json').read_text())
        theta = config['text_config'].pop('rope_parameters', {}).get('rope_theta', 10000.0)
        config['text_config'].update(rope_theta=theta, rope_scaling=scaling)
        (folder / 'config.json').write_text(json.dumps(config))

    return shape


LLAMA_3_ROPE = {
    'rope_type': 'llama3',
    'factor': 8.0,
    'low_freq_factor': 1.0,
    'high_freq_factor': 4.0,
    'original_max_position_embeddings': 64,
}
SHAPES: dict[str, tuple[str, str, int, Callable[[Path], None]]] = {
    'weights_2023_llava': ('llava', 'llama', 4, weight_names_of_2023),
    'weights_2023_next': ('llava_next', 'mistral', 4, weight_names_of_2023),
    'weights_2025_llava': ('llava', 'llama', 4, weight_names_of_2025),
    'weights_2025_onevision': ('llava_onevision', 'qwen2', 4, weight_names_of_2025),
    'shards': ('llava_next', 'mistral', 4, shards),
    'processor_2023': ('llava', 'llama', 4, processor_files_of_2023),
    'processor_transformers_5': ('llava', 'llama', 4, processor_files_of_transformers_5),
    'template_json': ('llava_next', 'mistral', 4, template_in_chat_template_json),
    'template_processor': ('llava_onevision', 'qwen2', 4, template_in_processor_config),
    'template_tokenizer': ('llava_next', 'llama', 4, template_in_the_tokenizer),
    'several_end_tokens': ('llava_next', 'llama', 4, several_end_tokens),
    'end_tokens_of_the_model': ('llava', 'llama', 4, end_tokens_of_the_model_alone),
    'tied_embeddings': ('llava_onevision', 'qwen2', 4, tied_embeddings),
    'forty_blocks': ('llava', 'llama', 40, lambda folder: None),
    'several_vision_layers': ('llava', 'llama', 4, several_vision_layers),
    'full_vision_tokens': ('llava', 'llama', 4, all_tokens_of_the_last_vision_layer),
    'rope_linear': ('llava', 'llama', 4, rope(type='linear', factor=2.0)),
    'rope_llama3': ('llava_next', 'llama', 4, rope(**LLAMA_3_ROPE)),
    'rope_yarn': (
        'llava_onevision',
        'qwen2',
        4,
        rope(type='yarn', factor=4.0, original_max_position_embeddings=128),
    ),
    'sliding_window': ('llava_next', 'mistral', 4, lambda folder: None),
}


@pytest.mark.parametrize(
    ('shape', 'image_fit'),
    [*((shape, 'auto') for shape in SHAPES), ('processor_2023', 'checkpoint')],
)
def test_a_checkpoint_of_the_hub_answers_as_hugging_face_does(tmp_path, shape, image_fit) -> None:
    family, text, num_blocks, change = SHAPES[shape]
    folder = make_tiny_model(tmp_path, family, text, num_blocks)
    change(folder)
    vlm = load_vlm(folder, 'cpu', image_fit=image_fit)
    reference = HfReference(folder, image_fit)
    reference.adopt_vision_strategy()
    assert (vlm.num_blocks, vlm.text_model_type) == (num_blocks, text)
    assert memory_need(folder, 'float32').weights_bytes <= 4 * vlm.num_parameters

    inputs = reference.inputs([IMAGE], [PROMPT])
    features = vlm.encode(IMAGE)
    assert vlm.input_ids(PROMPT, features) == inputs['input_ids'][0].tolist()
    for skip in ((), (1,), (0, num_blocks - 1)):
        with reference.blocks_removed(skip):
            token_ids, logits = reference.greedy(inputs, STEPS)
        answer = vlm.answer(features, PROMPT, skip, forced_length=STEPS, return_logits=True)
        assert list(answer.token_ids) == token_ids[0]
        tolerance = 1e-4 if num_blocks < 40 else 5e-4  # rounding adds up over the blocks
        np.testing.assert_allclose(answer.logits, logits[0], rtol=0, atol=tolerance)


@pytest.mark.parametrize('shape', ['several_end_tokens', 'end_tokens_of_the_model'])
def test_every_end_token_ends_an_answer(tmp_path, shape) -> None:
    family, text, num_blocks, change = SHAPES[shape]
    folder = make_tiny_model(tmp_path, family, text, num_blocks)
    change(folder)
    assert load_vlm(folder, 'cpu').end_ids == {0, 2}
