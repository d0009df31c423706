"""The embedded model without blocks that none of its tasks needs: a quick model that still answers.

A search asks about every block, so its work grows with the square of their number.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

from weight_edits import edit_weights

from gmskip_ros.skipping import load_skip_list
from gmskip_ros.tasks import TASK_NAMES
from gmskip_ros.vlm.hub import find_local_folder

_BLOCK = re.compile(r'(?<=language_model\.model\.layers\.)\d+')


def make_thin_demo(folder: Path) -> str:
    """Save the checkpoint; return its folder as text."""
    lists = [load_skip_list(f'demo_{task}') for task in TASK_NAMES]
    unneeded = set.intersection(*(set(one.blocks_at('high_performance')) for one in lists))
    kept = [block for block in range(lists[0].num_blocks) if block not in unneeded]
    shutil.copytree(find_local_folder('demo'), folder)
    config = json.loads((folder / 'config.json').read_text())
    config['text_config']['num_hidden_layers'] = len(kept)
    (folder / 'config.json').write_text(json.dumps(config))

    def keep(weights) -> None:
        renumbered = {}
        for name in sorted(weights):
            if block := _BLOCK.search(name):
                weight = weights.pop(name)
                if int(block[0]) in kept:
                    renumbered[_BLOCK.sub(str(kept.index(int(block[0]))), name)] = weight
        weights.update(renumbered)

    return edit_weights(folder, keep)
