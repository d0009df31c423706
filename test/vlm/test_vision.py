"""The vision tower runs only as deep as the features need, and gives the same features."""

from __future__ import annotations

import pytest
import torch
import transformers
from tiny_models import make_tiny_model

from gmskip_ros.vlm import load_vlm
from gmskip_ros.vlm.vision import cut_vision_tower

FAMILIES = ('llava', 'llava_next', 'llava_onevision')
# Layers of features -> layers of the tower (of 2) that have to run.
LAYERS = [(-2, 1), (1, 1), (-1, 2), (2, 2), (0, 2), ([-2], 1), ([1, -2], 1), ([-2, -1], 2)]


def layers_of(model) -> list[str]:
    return [name for name, _ in model.model.vision_tower.named_modules() if name.endswith('mlp')]


@pytest.fixture(scope='module', params=FAMILIES)
def folder(request, tmp_path_factory):
    return make_tiny_model(tmp_path_factory.mktemp('tiny'), request.param, num_blocks=1)


def test_features_are_hugging_faces_bit_for_bit(folder) -> None:
    model = transformers.AutoModelForImageTextToText.from_pretrained(folder).eval()
    tower, projector = model.model.vision_tower, model.model.multi_modal_projector
    encoder = next(part for name, part in tower.named_modules() if name.endswith('encoder'))
    whole, forward, usual = encoder.layers, tower.forward, projector.linear_1
    random = torch.Generator().manual_seed(0)
    is_single = model.config.model_type == 'llava'
    arguments = {'pixel_values': torch.randn(3, 3, 28, 28, generator=random)}
    if not is_single:
        arguments['pixel_values'] = arguments['pixel_values'][None]
        arguments['image_sizes'] = torch.tensor([[56, 28]])
    for chosen, depth in LAYERS:
        model.config.vision_feature_layer = chosen
        count = len(chosen) if isinstance(chosen, list) else 1
        projector.linear_1 = torch.nn.Linear(count * usual.in_features, usual.out_features)
        with torch.inference_mode():
            expected = model.get_image_features(**arguments).pooler_output
            cut_vision_tower(model)
            assert len(layers_of(model)) == depth
            for _ in range(2):
                found = model.get_image_features(**arguments).pooler_output
                assert len(found) == len(expected)
                assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
        encoder.layers, tower.forward = whole, forward


def test_a_loaded_model_runs_no_layer_more(folder) -> None:
    vlm = load_vlm(str(folder), 'cpu')
    assert len(layers_of(vlm._model)) == (2 if 'onevision' in vlm._model.config.model_type else 1)
    whole = transformers.AutoModelForImageTextToText.from_pretrained(folder)
    assert vlm.num_parameters == sum(weight.numel() for weight in whole.parameters())
