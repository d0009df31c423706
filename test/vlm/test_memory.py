"""What a checkpoint's files say of its memory, against the model that is loaded from them."""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from references import stored_bytes_of_weights
from tiny_models import IMAGE_SIZE, make_tiny_model
from torch.profiler import ProfilerActivity, profile

from gmskip_ros.benchmarks.random_weights import make_config
from gmskip_ros.vlm import FrameQuestion, ModelLoadError, SkipSet, load_vlm, memory
from gmskip_ros.vlm.decoder import KeyValueStore
from gmskip_ros.vlm.engine import QUANTIZATIONS
from gmskip_ros.vlm.hub import INDEX_FILE, SINGLE_FILE, find_local_folder
from gmskip_ros.vlm.load import load_skeleton
from gmskip_ros.vlm.memory import (
    BYTES_PER_NUMBER,
    Sharing,
    memory_need,
    read_weight_files,
)

PROMPT = 'What is the main object in this image? Answer with one word.'
# The one of the largest grid, which LLaVA-NeXT and OneVision fill without padding.
LARGEST = np.full((2 * IMAGE_SIZE, 2 * IMAGE_SIZE, 3), 90, np.uint8)
FAMILIES = [('llava', 'llama'), ('llava_next', 'mistral'), ('llava_onevision', 'qwen2')]


def peak_bytes(run) -> int:
    """Return the most memory that PyTorch took at once while this ran."""
    run()  # libraries set up their own things
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        run()
    events = recorded.profiler.kineto_results.events()
    changes = sorted(
        (event.start_ns(), event.nbytes()) for event in events if event.name() == '[memory]'
    )
    assert changes
    return int(np.cumsum([nbytes for _, nbytes in changes]).max())


def check_against_the_loaded_model(model: str, dtype: str, image, monkeypatch) -> None:
    vlm = load_vlm(model, 'cpu', dtype)
    stores = []

    class Recorded(KeyValueStore):
        def __init__(self, *args) -> None:
            super().__init__(*args)
            stores.append(self)

    monkeypatch.setattr('gmskip_ros.vlm.generation.KeyValueStore', Recorded)
    features = vlm.encode(image)
    vlm.answer(features, PROMPT, forced_length=5)
    stored_bytes = sum(tensor.nbytes for store in stores for tensor in store.entries)
    image_tokens = len(features.tokens)
    text_tokens = len(vlm.input_ids(PROMPT, features)) - image_tokens
    need = memory_need(find_local_folder(model), dtype, max_new_tokens=5, text_tokens=text_tokens)

    assert need.weights_bytes == vlm.num_parameters * BYTES_PER_NUMBER[dtype]
    assert need.weights_bytes == stored_bytes_of_weights(vlm)
    assert (need.image_tokens, len(stores)) == (image_tokens, 1)
    assert need.kv_bytes == stored_bytes > 0
    parts = need.weights_bytes + need.kv_bytes + need.activation_bytes
    reserve = 0.1 * (need.kv_bytes + need.activation_bytes) + 2**30
    assert need.total_bytes == pytest.approx(parts + reserve, abs=1)

    # Some CPUs' convolution takes megabytes of its own, whatever the model: part of the reserve.
    with torch.backends.mkldnn.flags(enabled=False):
        encoding = peak_bytes(lambda: vlm.encode(image))
    prefill = peak_bytes(lambda: vlm.answer(features, PROMPT, forced_length=5)) - stored_bytes
    peak = features.tokens.nbytes + max(encoding, prefill)
    assert peak <= need.activation_bytes <= 4 * peak


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_the_demo_model_is_as_large_as_its_files_say(dtype, monkeypatch) -> None:
    image = np.full((480, 640, 3), 90, np.uint8)
    check_against_the_loaded_model('demo', dtype, image, monkeypatch)


@pytest.mark.parametrize(('family', 'text'), FAMILIES)
def test_every_family_is_as_large_as_its_files_say(family, text, tmp_path, monkeypatch) -> None:
    folder = make_tiny_model(tmp_path, family, text, num_blocks=3)
    check_against_the_loaded_model(str(folder), 'float32', LARGEST, monkeypatch)


def test_a_shared_frame_fits_its_estimate(tmp_path) -> None:
    """Two questions of each branch, a skip set each, with drafts that do not help."""
    folder = make_tiny_model(tmp_path, num_blocks=3)
    vlm = load_vlm(str(folder), 'cpu')
    features = vlm.encode(LARGEST)
    questions = [
        FrameQuestion(prompt, SkipSet.of(blocks), 6)
        for blocks_of in (((0,), (1,)), ((), ()))
        for prompt, blocks in zip((PROMPT, PROMPT + ' And why?'), blocks_of, strict=True)
    ]
    drafts = {index: [(5,) * 6, (6,) * 6] for index in range(4)}
    frames = []

    def run() -> None:
        frame = vlm.share_frame(features, questions)
        frame.answer([0, 1], drafts=drafts)
        frame.answer([2, 3], drafts=drafts)
        frames.append(frame)

    texts = [len(vlm.input_ids(q.prompt, features)) - features.num_tokens for q in questions[:2]]
    sharing = Sharing(num_skip_sets=3, answer_tokens=12, text_tokens=sum(texts))
    alone = memory_need(folder, 'float32', max_new_tokens=6, text_tokens=max(texts))
    need = memory_need(folder, 'float32', max_new_tokens=6, text_tokens=max(texts), sharing=sharing)
    peak = peak_bytes(run)
    stored = frames[0]._packed.stored.values()
    stored_bytes = sum(tensor.nbytes for each in stored for tensor in (each.keys, each.values))
    assert alone.kv_bytes < stored_bytes <= need.kv_bytes <= 4 * stored_bytes
    assert peak <= need.kv_bytes + need.activation_bytes
    assert need.weights_bytes == alone.weights_bytes and need.total_bytes > alone.total_bytes


@pytest.mark.parametrize('family', ['llava_next', 'llava_onevision'])
def test_no_picture_has_more_tokens(family, tmp_path) -> None:
    folder = make_tiny_model(tmp_path, family)
    vlm = load_skeleton(str(folder))
    most = memory_need(folder, 'float32').image_tokens
    side = IMAGE_SIZE
    shapes = [(1, 1), (side, side), (side, 9 * side), (9 * side, side), (1080, 1920), (70, 50)]
    tokens = [len(vlm.encode(np.zeros((*shape, 3), np.uint8)).tokens) for shape in shapes]
    assert max(tokens) <= most == len(vlm.encode(LARGEST).tokens)


def test_a_cap_on_image_tokens_needs_less(tmp_path) -> None:
    folder = make_tiny_model(tmp_path, 'llava_next')
    whole = memory_need(folder, 'float32')
    capped = memory_need(folder, 'float32', max_image_tokens=whole.image_tokens - 1)
    vlm = load_skeleton(str(folder), max_image_tokens=whole.image_tokens - 1)
    assert len(vlm.encode(LARGEST).tokens) <= capped.image_tokens < whole.image_tokens
    assert capped.total_bytes < whole.total_bytes
    with pytest.raises(ModelLoadError, match='max_image_tokens 1: the fewest'):
        memory_need(folder, 'float32', max_image_tokens=1)


def test_the_check_before_loading_knows_the_cap(tmp_path, monkeypatch) -> None:
    folder = make_tiny_model(tmp_path, 'llava_next')
    whole = memory_need(folder, 'float32')
    monkeypatch.setattr(memory, 'free_bytes', lambda device: whole.total_bytes - 1)
    with pytest.raises(ModelLoadError, match='GiB free'):
        memory.check_memory(str(folder), 'cpu', 'float32', headroom_gib=0)
    cap = whole.image_tokens - 1
    memory.check_memory(str(folder), 'cpu', 'float32', headroom_gib=0, max_image_tokens=cap)


def test_onevisions_largest_grids_are_shrunk(tmp_path) -> None:
    """At most so many tiles' worth of tokens stay; the tower sees all of them all the same."""
    folder = make_tiny_model(tmp_path, 'llava_onevision')
    for name in ('config.json', 'preprocessor_config.json'):
        path = folder / name
        content = json.loads(path.read_text())
        content['image_grid_pinpoints'] = [[6 * IMAGE_SIZE, 6 * IMAGE_SIZE]]
        path.write_text(json.dumps(content))
    vlm = load_skeleton(str(folder))
    need = memory_need(folder, 'float32')
    for shape in ((600, 600), (300, 600), (600, 300)):
        tokens = len(vlm.encode(np.zeros((*shape, 3), np.uint8)).tokens)
        assert 0.5 * need.image_tokens < tokens <= need.image_tokens


def test_a_sequence_ends_with_the_context(tmp_path) -> None:
    folder = make_tiny_model(tmp_path)  # 512 positions
    assert memory_need(folder, 'float32', max_new_tokens=10_000).sequence_tokens == 512


def test_a_window_that_binds_wants_masks(tmp_path) -> None:
    folder = make_tiny_model(tmp_path / 'tiny', 'llava_next', 'mistral')
    config = json.loads((folder / 'config.json').read_text())
    needs = []
    for window in (None, 8):
        config['text_config']['sliding_window'] = window
        (folder / 'config.json').write_text(json.dumps(config))
        needs.append(memory_need(folder, 'float16', max_new_tokens=3000, text_tokens=500))
    tokens = needs[0].sequence_tokens
    assert needs[1].activation_bytes - needs[0].activation_bytes > 2 * 2 * tokens**2 / 2


def test_a_model_that_leaves_too_little_free_is_refused_with_the_figures(monkeypatch) -> None:
    total = memory_need(find_local_folder('demo'), 'float32').total_bytes
    monkeypatch.setattr(memory, 'free_bytes', lambda device: total + 2 * memory.GIB)
    memory.check_memory('demo', 'cpu', 'float32', headroom_gib=2.0)
    with pytest.raises(ModelLoadError, match=r'needs 1\.0 GiB in float32 .* 2\.1 GiB must'):
        memory.check_memory('demo', 'cpu', 'float32', headroom_gib=2.1)
    monkeypatch.setattr(memory, 'free_bytes', lambda device: None)
    memory.check_memory('demo', 'cpu', 'float32', headroom_gib=1e6)


@pytest.fixture(scope='module')
def large(tmp_path_factory) -> Path:
    """LLaVA-1.5-7B's configuration, and its weights' names and shapes; its numbers are a hole."""
    folder = tmp_path_factory.mktemp('large')
    config = make_config('random:llava-1.5-7b', 336)
    config.save_pretrained(folder)
    with torch.device('meta'):
        model = transformers.AutoModelForImageTextToText.from_config(config)
    header, end = {}, 0
    for name, weight in model.named_parameters():
        start, end = end, end + 2 * weight.numel()
        header[name] = {'dtype': 'F16', 'shape': [*weight.shape], 'data_offsets': [start, end]}
    content = json.dumps(header).encode()
    (folder / SINGLE_FILE).write_bytes(len(content).to_bytes(8, 'little') + content)
    os.truncate(folder / SINGLE_FILE, 8 + len(content) + end)
    return folder


def test_a_model_of_seven_billion_on_a_card_of_16_gib(large, monkeypatch) -> None:
    """Of 16 GiB, 15.6 are free once CUDA's context exists, and 1 GiB is to stay free."""
    needs = {
        quantization: memory_need(large, 'float16', quantization=quantization, device='cuda:0')
        for quantization in QUANTIZATIONS
    }
    sizes = {name: need.weights_bytes / memory.GIB for name, need in needs.items()}
    assert sizes['none'] == 2 * 7_063_427_072 / memory.GIB  # of llava-hf/llava-1.5-7b-hf
    assert (round(sizes['int8'], 1), round(sizes['int4'], 1)) == (7.1, 4.5)
    for need in needs.values():
        assert need.total_bytes + memory.GIB < 15.6 * memory.GIB
    on_cpu = memory_need(large, 'float16', device='cpu')
    assert on_cpu.total_bytes - needs['none'].total_bytes == 0.75 * memory.GIB

    monkeypatch.setattr(memory, 'free_bytes', lambda device: 12 * memory.GIB)
    check = functools.partial(memory.check_memory, str(large), 'cpu', 'bfloat16', headroom_gib=1.0)
    with pytest.raises(ModelLoadError, match='free: use quantization int8 or int4, a smaller'):
        check()
    check(quantization='int8')


def test_unknown_dtypes_are_refused(tmp_path) -> None:
    with pytest.raises(ModelLoadError, match="unknown dtype 'auto'"):
        memory_need(tmp_path, 'auto')
    with pytest.raises(ModelLoadError, match="quantization 'int3' is unknown"):
        memory_need(tmp_path, 'float32', quantization='int3')


def test_a_skeleton_knows_what_the_model_knows(tmp_path) -> None:
    folder = make_tiny_model(tmp_path, 'llava_next', 'qwen2')
    skeleton, vlm = load_skeleton(str(folder)), load_vlm(str(folder), 'cpu')
    for name in ('num_blocks', 'text_model_type', 'template_sha256', 'num_parameters'):
        assert getattr(skeleton, name) == getattr(vlm, name)
    ids = [each.input_ids(PROMPT, each.encode(LARGEST)) for each in (skeleton, vlm)]
    assert ids[0] == ids[1]
    (folder / 'chat_template.jinja').write_text('{{ messages[0].content[1].text }}')
    with pytest.raises(ModelLoadError, match='the chat template cannot be used'):
        load_skeleton(str(folder))


# --- weight files ---


@pytest.fixture
def sharded(tmp_path) -> Path:
    """A checkpoint in three weight files."""
    from transformers import AutoModelForImageTextToText

    folder = make_tiny_model(tmp_path / 'sharded')
    model = AutoModelForImageTextToText.from_pretrained(folder)
    (folder / SINGLE_FILE).unlink()
    model.save_pretrained(folder, max_shard_size='100KB')
    assert len(list(folder.glob('*.safetensors'))) == 3
    return folder


def refusal(folder: Path) -> str:
    with pytest.raises(ModelLoadError) as caught:
        read_weight_files('mine', folder)
    message = str(caught.value)
    assert '\n' not in message and 'mine' in message and 'again' in message
    return message


def test_shards_are_read_as_one(sharded) -> None:
    vlm = load_vlm(str(sharded), 'cpu')
    assert memory_need(sharded, 'float32').weights_bytes == 4 * vlm.num_parameters
    tensors = read_weight_files('mine', sharded)
    assert {tensor.dtype for tensor in tensors} == {'F32'}


def test_missing_shards_are_named(sharded) -> None:
    shard = sorted(sharded.glob('*.safetensors'))[1]
    shard.unlink()
    assert f'lacks 1 of its 3 weight files ({shard.name})' in refusal(sharded)
    shard.symlink_to(sharded / 'gone')  # the hub's cache without its blob
    assert shard.name in refusal(sharded)


@pytest.mark.parametrize('size', [0, 5, 300, -1])
def test_truncated_files_are_named(sharded, size) -> None:
    shard = sorted(sharded.glob('*.safetensors'))[2]
    shard.write_bytes(shard.read_bytes()[:size])
    assert shard.name in refusal(sharded)


def test_longer_files_are_named(sharded) -> None:
    shard = sorted(sharded.glob('*.safetensors'))[0]
    shard.write_bytes(shard.read_bytes() + b'0')
    assert 'is not a complete safetensors file' in refusal(sharded)


@pytest.mark.parametrize(
    'header', [b'[]', b'{"a": 1}', b'{"a": {"dtype": "F32"}}', b'{', b'\xff'], ids=repr
)
def test_headers_that_are_none(tmp_path, header) -> None:
    (tmp_path / SINGLE_FILE).write_bytes(len(header).to_bytes(8, 'little') + header)
    assert 'is not a complete safetensors file' in refusal(tmp_path)


@pytest.mark.parametrize('index', ['', '[]', '{"weight_map": {}}', '{"weight_map": {"a": 1}}'])
def test_indices_that_are_none(tmp_path, index) -> None:
    assert 'neither' in refusal(tmp_path)
    (tmp_path / INDEX_FILE).write_text(index)
    assert 'is not an index' in refusal(tmp_path)


def test_an_index_of_another_checkpoint(sharded) -> None:
    index = json.loads((sharded / INDEX_FILE).read_text())
    index['weight_map']['model.extra.weight'] = sorted(sharded.glob('*.safetensors'))[0].name
    (sharded / INDEX_FILE).write_text(json.dumps(index))
    assert 'lacks 1 of its weights (model.extra.weight)' in refusal(sharded)


def test_buffers_are_no_weights(tmp_path) -> None:
    from safetensors.torch import load_file, save_file

    folder = make_tiny_model(tmp_path)
    before = memory_need(folder, 'float32').weights_bytes
    tensors = load_file(folder / SINGLE_FILE)
    tensors['vision_tower.vision_model.embeddings.position_ids'] = torch.arange(5)
    save_file(tensors, folder / SINGLE_FILE, metadata={'format': 'pt'})
    assert memory_need(folder, 'float32').weights_bytes == before


# --- the folder, without a network ---


def test_a_hub_id_is_found_in_the_cache_or_refused(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_CACHE', str(tmp_path))
    monkeypatch.setattr('huggingface_hub.constants.ENDPOINT', 'http://127.0.0.1:9')
    with pytest.raises(ModelLoadError, match='hf download owner/name'):
        find_local_folder('owner/name')
    repository = tmp_path / 'models--owner--name'
    (repository / 'refs').mkdir(parents=True)
    (repository / 'refs' / 'main').write_text('0' * 40)
    snapshot = repository / 'snapshots' / ('0' * 40)
    snapshot.mkdir(parents=True)
    (snapshot / 'config.json').write_text('{}')
    assert find_local_folder('owner/name') == snapshot
    with pytest.raises(ModelLoadError, match='neither a folder nor a hub id'):
        find_local_folder(str(tmp_path / 'gone'))
