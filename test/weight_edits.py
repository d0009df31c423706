"""Changes to the weights of a checkpoint on disk."""

from __future__ import annotations

import re

import torch
from safetensors.torch import load_file, save_file


def edit_weights(folder, edit) -> str:
    """Let edit change the checkpoint's tensors, by name; return its folder as text."""
    path = folder / 'model.safetensors'
    weights = load_file(path)
    edit(weights)
    save_file(weights, path, metadata={'format': 'pt'})
    return str(folder)


def of_decoder(weights, name: str):
    """Return the tensor of the language decoder with that name, as in 'layers.0.mlp.down_proj'."""
    [found] = [
        known for known in weights if re.search(rf'language_model.*\.{name}\.weight$', known)
    ]
    return weights[found]


def make_identity(folder, *blocks: int) -> str:
    """Let these blocks add exactly nothing; return the checkpoint's folder as text."""

    def edit(weights) -> None:
        for block in blocks:
            for name in ('self_attn.o_proj', 'mlp.down_proj'):
                of_decoder(weights, f'layers.{block}.{name}').zero_()

    return edit_weights(folder, edit)


def with_twins(weights) -> None:
    """Give every byte's token a twin whose logit is the same but for its last bits."""
    [name] = [name for name in weights if name.endswith('lm_head.weight')]
    rows = weights[name]
    noise = torch.randn(rows[5:133].shape, generator=torch.Generator().manual_seed(0))
    rows[133:261] = rows[5:133] * (1 + 1e-7 * noise)
