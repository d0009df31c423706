"""Where the prompt comes from: it is the checkpoint's own, or given, and never guessed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import transformers
from tiny_models import make_tiny_model

from gmskip_ros.vlm import ModelLoadError, load_vlm
from gmskip_ros.vlm.load import load_skeleton

IMAGE = np.full((40, 60, 3), 90, np.uint8)
PROMPT = 'What is {this}?'
# The text-only templates of the decoders' own tokenizers, shortened to the parts that matter.
LLAMA_3 = (
    "{{ '<s>' }}{% for message in messages %}{{ '<|start_header_id|>' + message['role'] + "
    "'<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}"
    '{% endif %}'
)
QWEN_2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != "
    "(loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% endfor %}"
)
ONEVISION = (  # llava-hf's, whose image parts come first
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + ' '}}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ '\\n' + content['text'] }}{% endfor %}{{'<|im_end|>'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def without_template(folder: Path, family: str = 'llava', text: str = 'llama') -> Path:
    return make_tiny_model(folder, family, text, 2, chat_template=None)


def give_tokenizer(folder: Path, template: str) -> None:
    """Write the template where tokenizers had it before transformers 5."""
    path = folder / 'tokenizer_config.json'
    path.write_text(json.dumps({**json.loads(path.read_text()), 'chat_template': template}))


def give_processor(folder: Path, template: str, name: str) -> None:
    """Write the template where the processors of 2024, of 2025 and of transformers 5 have it."""
    path = folder / name
    if name.endswith('.jinja'):
        path.write_text(template)
    else:
        content = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps({**content, 'chat_template': template}))


@pytest.mark.parametrize(
    ('family', 'text', 'template'),
    [
        ('llava_next', 'llama', LLAMA_3),
        ('llava_next', 'qwen2', QWEN_2),
        ('llava_next', 'mistral', MISTRAL),
        ('llava', 'llama', LLAMA_3),
    ],
    ids=['llama3', 'qwen2', 'mistral', 'llava on llama3'],
)
def test_a_text_only_template_of_the_tokenizer(tmp_path, family, text, template) -> None:
    folder = without_template(tmp_path, family, text)
    give_tokenizer(folder, template)
    vlm = load_vlm(folder, 'cpu')
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    expected = tokenizer.apply_chat_template(
        [{'role': 'user', 'content': f'<image>\n{PROMPT}'}],
        tokenize=False,
        add_generation_prompt=True,
    )
    assert vlm.render_prompt(PROMPT) == expected
    assert expected.count('<image>') == 1 and PROMPT in expected
    assert vlm.answer(IMAGE, PROMPT).token_ids


def test_a_multimodal_template_of_the_tokenizer(tmp_path) -> None:
    folder = without_template(tmp_path, 'llava_onevision', 'qwen2')
    give_tokenizer(folder, ONEVISION)
    expected = f'<|im_start|>user <image>\n{PROMPT}<|im_end|><|im_start|>assistant\n'
    assert load_skeleton(str(folder)).render_prompt(PROMPT) == expected


@pytest.mark.parametrize(
    'name', ['chat_template.jinja', 'chat_template.json', 'processor_config.json']
)
def test_the_processors_template_comes_before_the_tokenizers(tmp_path, name) -> None:
    folder = without_template(tmp_path, 'llava_next', 'qwen2')
    give_processor(folder, ONEVISION, name)
    give_tokenizer(folder, QWEN_2)
    assert 'helpful assistant' not in load_skeleton(str(folder)).render_prompt(PROMPT)


@pytest.mark.parametrize(
    ('family', 'text'),
    [
        ('llava', 'qwen2'),
        ('llava', 'mistral'),
        ('llava_next', 'llama'),
        ('llava_onevision', 'qwen2'),
    ],
)
def test_without_any_template_the_prompt_is_not_guessed(tmp_path, family, text) -> None:
    folder = without_template(tmp_path, family, text)
    for load in (lambda: load_vlm(folder, 'cpu'), lambda: load_skeleton(str(folder))):
        with pytest.raises(ModelLoadError, match=r'no chat template.*set chat_template') as caught:
            load()
        assert '\n' not in str(caught.value) and text in str(caught.value)


def test_other_special_tokens_than_vicunas_are_not_taken_for_vicuna(tmp_path) -> None:
    folder = without_template(tmp_path)
    assert load_skeleton(str(folder)).render_prompt('Hm?') == 'USER: <image>\nHm? ASSISTANT:'
    path = folder / 'tokenizer_config.json'
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, 'eos_token': '<pad>'}))
    with pytest.raises(ModelLoadError, match='set chat_template'):
        load_skeleton(str(folder))


@pytest.mark.parametrize('as_file', [False, True])
def test_a_template_that_is_given_comes_first(tmp_path, as_file) -> None:
    folder = make_tiny_model(tmp_path / 'model', 'llava_next', 'qwen2', 2)
    template = QWEN_2
    if as_file:
        (tmp_path / 'mine.jinja').write_text(QWEN_2)
        template = str(tmp_path / 'mine.jinja')
    vlm = load_vlm(folder, 'cpu', chat_template=template)
    assert 'helpful assistant' in vlm.render_prompt(PROMPT)
    assert vlm.template_sha256 == load_skeleton(str(folder), chat_template=template).template_sha256
    assert vlm.template_sha256 != load_skeleton(str(folder)).template_sha256


@pytest.mark.parametrize('template', ['/no/such/file.jinja', 'chatml'])
def test_a_file_that_cannot_be_read_is_named(tmp_path, template) -> None:
    folder = make_tiny_model(tmp_path, num_blocks=2)
    with pytest.raises(ModelLoadError, match=f'chat_template {template}: .* Jinja'):
        load_vlm(folder, 'cpu', chat_template=template)


@pytest.mark.parametrize('template', ['{% if', '{{ messages[0].role }}', '{{ 1 / 0 }}'])
def test_a_template_without_room_for_an_image_is_refused(tmp_path, template) -> None:
    folder = make_tiny_model(tmp_path, num_blocks=2)
    with pytest.raises(ModelLoadError, match='the chat template cannot be used') as caught:
        load_vlm(folder, 'cpu', chat_template=template)
    assert '\n' not in str(caught.value)


def test_the_demo_models_prompt_is_its_own() -> None:
    vlm = load_skeleton('demo')
    assert vlm.render_prompt('Hm?').count('<image>') == 1
