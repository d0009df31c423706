"""Loading: what is taken, and one clear line for everything that is not."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny_models import make_tiny_model
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from gmskip_ros.vlm import ModelLoadError, load_vlm

IMAGE = np.full((480, 640, 3), 90, np.uint8)


@pytest.fixture
def folder(tmp_path):
    return make_tiny_model(tmp_path / 'tiny', num_blocks=2)


def edit_json(path, **changes) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def refusal(model, *args) -> str:
    with pytest.raises(ModelLoadError) as caught:
        load_vlm(str(model), *args)
    message = str(caught.value)
    assert '\n' not in message
    return message


def test_importing_the_package_does_not_import_torch() -> None:
    program = (
        'import sys, gmskip_ros.vlm as vlm\n'
        'vlm.SkipSet.of([1])\n'
        'heavy = {"torch", "transformers"} & set(sys.modules)\n'
        'assert not heavy, heavy\n'
    )
    subprocess.run([sys.executable, '-c', program], check=True, timeout=120)


def test_the_demo_model_is_found_anywhere(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    vlm = load_vlm('demo', device='cpu')
    assert (vlm.name, vlm.num_blocks, vlm.text_model_type) == ('demo', 32, 'llama')
    full = vlm.answer(IMAGE, 'What is it?', forced_length=3, return_logits=True)
    skip = vlm.answer(IMAGE, 'What is it?', [29, 16], forced_length=3, return_logits=True)
    assert len(full.token_ids) == len(skip.token_ids) == 3
    assert not np.array_equal(full.logits[0], skip.logits[0])


def test_it_computes_with_as_many_threads_as_told(folder) -> None:
    before = torch.get_num_threads()
    try:
        load_vlm(str(folder), device='cpu', threads=before + 1)
        assert torch.get_num_threads() == before + 1
        load_vlm(str(folder), device='cpu', threads=0)  # as it is
        assert torch.get_num_threads() == before + 1
        for wrong in (-1, 1.5, True, '2', 1025):  # as many as fit into no process crash OpenMP
            with pytest.raises(ModelLoadError, match=f'threads is {wrong!r}: give a whole number'):
                load_vlm(str(folder), device='cpu', threads=wrong)
    finally:
        torch.set_num_threads(before)


def test_progress_is_told_and_nothing_is_printed(folder, capfd) -> None:
    steps: list[str] = []
    load_vlm(str(folder), device='cpu', on_progress=steps.append)
    assert 'loading weights' in steps and steps[-1].startswith('loaded ')
    assert capfd.readouterr() == ('', '')


def test_verbosity_of_the_libraries_is_restored(folder) -> None:
    before = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_info()
    try:
        load_vlm(str(folder), device='cpu')
        assert transformers.utils.logging.get_verbosity() == transformers.logging.INFO
    finally:
        transformers.utils.logging.set_verbosity(before)


def test_dtypes(folder) -> None:
    assert load_vlm(str(folder), 'cpu', 'float32').dtype == 'float32'
    assert load_vlm(str(folder), 'cpu', 'bfloat16').dtype == 'bfloat16'
    assert load_vlm(str(folder), 'cpu').dtype == 'float32'
    assert "unknown dtype 'int8'" in refusal(folder, 'cpu', 'int8')


def test_devices(folder) -> None:
    expected = 'cuda:0' if torch.cuda.is_available() else 'cpu'
    assert load_vlm(str(folder), 'auto').device == expected
    assert "unknown device 'tpu'" in refusal(folder, 'tpu')
    assert "unknown device 'cuda:x'" in refusal(folder, 'cuda:x')
    assert "device 'cuda:99' does not exist" in refusal(folder, 'cuda:99')


def test_the_pil_backend_is_used(folder, monkeypatch) -> None:
    """The torchvision backend, the default where it is installed, differs in the last bits."""
    backends = []
    from_pretrained = AutoImageProcessor.from_pretrained

    def spy(*args, **options):
        backends.append(options.get('backend'))
        return from_pretrained(*args, **options)

    monkeypatch.setattr(AutoImageProcessor, 'from_pretrained', spy)
    load_vlm(str(folder), device='cpu')
    assert backends == ['pil']


def test_paths_and_devices_as_objects(folder) -> None:
    vlm = load_vlm(folder, torch.device('cpu'))
    assert (vlm.name, vlm.device) == (str(folder), 'cpu')


@pytest.mark.parametrize(
    'error', [torch.OutOfMemoryError('CUDA out of memory'), MemoryError()], ids=['gpu', 'cpu']
)
@pytest.mark.parametrize('step', ['from_pretrained', 'to', 'get_image_features'])
def test_a_model_that_does_not_fit(folder, monkeypatch, step, error) -> None:
    def fail(*_args, **_options):
        raise error

    monkeypatch.setattr(transformers.LlavaForConditionalGeneration, step, fail)
    message = refusal(folder)
    assert 'does not fit into memory' in message and 'smaller model' in message
    assert 'again' not in message


def test_a_missing_library_is_named_with_its_own_remedy(folder) -> None:
    (folder / 'tokenizer.json').unlink()
    (folder / 'tokenizer.model').write_bytes(b'of another library')
    message = refusal(folder)
    assert 'pip install' in message and 'again' not in message


def test_an_import_error_keeps_all_its_lines(folder, monkeypatch) -> None:
    def fail(*_args, **_options):
        raise ImportError('\nIt requires a library.\nInstall it like this.\n')

    monkeypatch.setattr(transformers.AutoTokenizer, 'from_pretrained', fail)
    assert refusal(folder).endswith('It requires a library. Install it like this.')


def test_what_is_neither_a_folder_nor_a_hub_id(tmp_path) -> None:
    assert 'is neither a folder nor a hub id' in refusal(tmp_path / 'missing')
    assert 'is neither a folder nor a hub id' in refusal('nothing')
    assert 'is neither a folder nor a hub id' in refusal('../nothing')
    assert 'config.json' in refusal(tmp_path)  # an empty folder


def test_an_unreachable_hub_is_one_line_at_once(tmp_path) -> None:
    program = (
        'from gmskip_ros.vlm import load_vlm, ModelLoadError\n'
        'try:\n'
        '    load_vlm("owner/name")\n'
        'except ModelLoadError as error:\n'
        '    print(error)\n'
    )
    environment = {**os.environ, 'HF_ENDPOINT': 'http://127.0.0.1:9', 'HF_HOME': str(tmp_path)}
    environment.pop('HF_HUB_OFFLINE', None)
    result = subprocess.run(
        [sys.executable, '-c', program],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,  # a hub client that retries for minutes fails here
    )
    assert (result.returncode, result.stderr) == (0, '')
    assert result.stdout.count('\n') == 1
    assert 'HF_HUB_OFFLINE=1' in result.stdout and 'local folder' in result.stdout


def test_an_empty_cache_offline_is_one_line(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_CACHE', str(tmp_path))
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
    assert 'local folder' in refusal('owner/name')


def test_a_filled_cache_serves_a_hub_id_offline(folder, tmp_path, monkeypatch) -> None:
    commit = '0' * 40
    repository = tmp_path / 'cache' / 'models--owner--name'
    (repository / 'refs').mkdir(parents=True)
    (repository / 'refs' / 'main').write_text(commit)
    (repository / 'snapshots').mkdir()
    snapshot = folder.rename(repository / 'snapshots' / commit)
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_CACHE', str(repository.parent))
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
    assert load_vlm('owner/name', device='cpu').name == 'owner/name'
    (snapshot / 'model.safetensors').unlink()
    assert 'repeat an incomplete download' in refusal('owner/name')


def test_unknown_families_are_named(folder) -> None:
    edit_json(folder / 'config.json', model_type='idefics3')
    message = refusal(folder)
    assert "'idefics3'" in message
    assert all(name in message for name in ('LLaVA-1.5', 'LLaVA-NeXT', 'LLaVA-OneVision'))


def test_unknown_decoders_are_named(folder) -> None:
    text_config = transformers.AutoConfig.for_model('gemma', vocab_size=16, hidden_size=8)
    edit_json(folder / 'config.json', text_config=text_config.to_dict())
    message = refusal(folder)
    assert "'gemma'" in message and 'llama, mistral, qwen2' in message


def test_pickled_weights_are_refused(folder) -> None:
    weights = load_file(folder / 'model.safetensors')
    torch.save(weights, folder / 'pytorch_model.bin')
    (folder / 'model.safetensors').unlink()
    message = refusal(folder)
    assert 'no safetensors weights' in message and 'save_pretrained' in message


@pytest.mark.parametrize('name', ['config.json', 'processor_config.json', 'tokenizer_config.json'])
def test_code_of_a_checkpoint_is_never_run(folder, name) -> None:
    (folder / 'modeling_evil.py').write_text('raise SystemExit("this code was run")')
    edit_json(folder / name, auto_map={'AutoConfig': 'modeling_evil.Config'})
    assert f'auto_map in {name}' in refusal(folder)


@pytest.mark.parametrize(
    'template',
    ['{{ messages[0].content[1].text }}', '{% if', '{{ raise_exception("no") }}'],
    ids=['text-only', 'broken', 'refusing'],
)
def test_templates_that_cannot_carry_an_image_are_refused(folder, template) -> None:
    (folder / 'chat_template.jinja').write_text(template)
    assert 'the chat template cannot be used' in refusal(folder)


def test_an_image_processor_of_another_size_is_refused(folder) -> None:
    edit_json(folder / 'preprocessor_config.json', crop_size=56, size=56)  # the tower takes 28
    assert 'the image processor or the vision tower cannot be used' in refusal(folder)


@pytest.mark.parametrize('size', [0, 5, 2000])
def test_truncated_weights_are_refused(folder, size) -> None:
    path = folder / 'model.safetensors'
    path.write_bytes(path.read_bytes()[:size])
    assert 'the weights cannot be used' in refusal(folder)


def test_missing_weights_are_not_made_up(folder) -> None:
    path = folder / 'model.safetensors'
    weights = load_file(path)
    weights.pop(next(name for name in weights if 'layers.1.mlp.up_proj' in name))
    save_file(weights, path, metadata={'format': 'pt'})
    message = refusal(folder)
    assert 'lacks 1 of its weights' in message and 'layers.1.mlp.up_proj' in message


def test_weights_of_another_shape_are_refused(folder) -> None:
    path = folder / 'model.safetensors'
    weights = load_file(path)
    name = next(name for name in weights if 'layers.1.mlp.up_proj' in name)
    weights[name] = weights[name][:-1].contiguous()
    save_file(weights, path, metadata={'format': 'pt'})
    assert 'the weights cannot be used' in refusal(folder)


@pytest.mark.parametrize(
    ('name', 'says'),
    [
        ('tokenizer.json', 'the tokenizer cannot be used'),
        ('processor_config.json', 'processor_config.json'),
        ('preprocessor_config.json', 'preprocessor_config.json'),
        ('config.json', 'config.json'),
        ('generation_config.json', 'generation_config.json'),
    ],
)
@pytest.mark.parametrize('content', ['', '{"half": ', '[]', '\udcff'], ids=repr)
def test_broken_files_are_named(folder, name, says, content) -> None:
    (folder / name).write_bytes(content.encode(errors='surrogateescape'))
    assert says in refusal(folder)
