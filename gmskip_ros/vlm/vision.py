"""Hugging Face's vision tower, run only as deep as the image features need."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling


def cut_vision_tower(model: Any) -> None:
    """Take out the layers behind those that the features are read from, and keep those states only.

    model: Hugging Face's LlavaForConditionalGeneration or a sibling. LLaVA-1.5 reads the states
    before its tower's last layer. A tower of which the last states are read stays as it is.
    """
    tower = model.model.vision_tower
    encoders = [
        module for name, module in tower.named_modules() if name.rpartition('.')[2] == 'encoder'
    ]
    chosen = model.config.vision_feature_layer
    chosen = [chosen] if isinstance(chosen, int) else list(chosen)
    if len(encoders) != 1 or not isinstance(getattr(encoders[0], 'layers', None), nn.ModuleList):
        return
    layers = encoders[0].layers
    # The states by Hugging Face's index: 0 before the first layer, 1 after it, and so on.
    after = {index: index % (len(layers) + 1) for index in chosen}
    depth = max(after.values())
    if depth == len(layers) or 0 in after.values():
        return
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
