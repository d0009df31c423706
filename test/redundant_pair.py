"""A tiny model in which two blocks do the same: either one may go, but not both.

Every image is answered with 'c', in one token, as long as one of the last two blocks runs, and with
'd' without them. All other blocks do nothing. So no single removal changes an answer, and a ranking
by single removals cannot know that the two must not go together.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image
from tiny_models import HIDDEN_SIZE, make_tiny_model

NUM_BLOCKS = 5
PAIR = (3, 4)


def make_redundant_pair(folder: Path) -> Path:
    """Save the checkpoint and return its folder."""
    import torch
    import transformers

    make_tiny_model(folder, num_blocks=NUM_BLOCKS)
    model = transformers.AutoModelForImageTextToText.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    decoder = model.model.language_model
    with torch.no_grad():
        # Every token is nearly the same unit vector e1; nothing is read from other tokens.
        decoder.embed_tokens.weight.mul_(0.001)
        decoder.embed_tokens.weight[:, 1] = 1.0
        for index, block in enumerate(decoder.layers):
            block.self_attn.o_proj.weight.zero_()
            block.mlp.down_proj.weight.zero_()
            if index in PAIR:  # adds a positive number along e0
                block.mlp.gate_proj.weight.zero_()
                block.mlp.up_proj.weight.zero_()
                block.mlp.gate_proj.weight[0, 1] = block.mlp.up_proj.weight[0, 1] = 1.0
                block.mlp.down_proj.weight[0, 0] = 1 / HIDDEN_SIZE
        model.lm_head.weight.zero_()
        model.lm_head.weight[tokenizer('c', add_special_tokens=False).input_ids[0], 0] = 10.0
        model.lm_head.weight[tokenizer('d', add_special_tokens=False).input_ids[0], 1] = 1.0
    model.save_pretrained(folder)
    return folder


def write_questions(folder: Path, count: int = 8) -> Path:
    """Write images of noise and a file of questions whose right answer is 'c'; return the file."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 255, (28, 28, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f'{number}.png')
        lines.append({'image': f'{number}.png', 'question': 'Which?', 'references': ['c']})
    path = folder / 'questions.jsonl'
    path.write_text(''.join(json.dumps(line) + '\n' for line in lines))
    return path
