"""The embedded model without blocks that none of its tasks needs: a quick model that still answers.

A search asks about every block, so its work grows with the square of their number.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

from gmskip_ros import assets
from gmskip_ros.skipping import load_skip_list
from gmskip_ros.tasks import TASK_NAMES

_LAYER = re.compile(r'(?<=language_model\.model\.layers\.)\d+')


def make_thin_demo(folder: Path) -> Path:
    """Save the checkpoint and return its folder."""
    lists = [load_skip_list(f'demo_{task}') for task in TASK_NAMES]
    unneeded = set.intersection(*(set(one.blocks_at('high_performance')) for one in lists))
    kept = [block for block in range(lists[0].num_blocks) if block not in unneeded]
    shutil.copytree(Path(assets.__path__[0]) / 'demo', folder)
    config = json.loads((folder / 'config.json').read_text())
    config['text_config']['num_hidden_layers'] = len(kept)
    (folder / 'config.json').write_text(json.dumps(config))
    weights = {}
    for name, weight in load_file(folder / 'model.safetensors').items():
        if layer := _LAYER.search(name):
            if int(layer[0]) in unneeded:
                continue
            name = _LAYER.sub(str(kept.index(int(layer[0]))), name)
        weights[name] = weight
    save_file(weights, folder / 'model.safetensors', {'format': 'pt'})
    return folder
