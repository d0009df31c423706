"""Hugging Face's vision tower, run only as deep as the image features need."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling


def layers_before_features(config: Any) -> dict[int, int]:
    """Return what the features are read from: Hugging Face's index of states -> layers before it.

    States are counted from 0, before the first layer; negative indices count from the end.
    """
    chosen = config.vision_feature_layer
    chosen = [chosen] if isinstance(chosen, int) else list(chosen)
    num_states = config.vision_config.num_hidden_layers + 1
    return {index: index % num_states for index in chosen}


def can_be_cut(config: Any) -> bool:
    """Return whether no features are read from the tower's first states or its last ones."""
    read = set(layers_before_features(config).values())
    return read.isdisjoint({0, config.vision_config.num_hidden_layers})


def num_states_kept(config: Any) -> int:
    """Return how many layers' states a tower keeps until the features are read; cut or not."""
    if can_be_cut(config):
        return len(set(layers_before_features(config).values()))
    return config.vision_config.num_hidden_layers + 1


def cut_vision_tower(model: Any) -> None:
    """Take out the layers behind those that the features are read from, and keep those states only.

    model: Hugging Face's LlavaForConditionalGeneration or a sibling. LLaVA-1.5 reads the states
    before its tower's last layer. A tower of which the last states are read stays as it is.
    """
    tower = model.model.vision_tower
    encoders = [
        module for name, module in tower.named_modules() if name.rpartition('.')[2] == 'encoder'
    ]
    after = layers_before_features(model.config)
    if not can_be_cut(model.config) or len(encoders) != 1:
        return
    layers = getattr(encoders[0], 'layers', None)
    if not isinstance(layers, nn.ModuleList):
        return
    depth = max(after.values())
    encoders[0].layers = nn.ModuleList(layers[:depth])
    run_tower = tower.forward
    states: dict[int, Tensor] = {}

    def keep(number: int, output: Any) -> None:
        states[number] = output[0] if isinstance(output, tuple) else output

    for number in set(after.values()):
        layers[number - 1].register_forward_hook(
            lambda layer, arguments, output, number=number: keep(number, output)
        )

    def forward(pixel_values: Tensor, **_: Any) -> BaseModelOutputWithPooling:
        """Return the states that are read, by their index, and nothing else."""
        run_tower(pixel_values)
        found = {index: states[number] for index, number in after.items()}
        states.clear()
        return BaseModelOutputWithPooling(hidden_states=found)

    tower.forward = forward
