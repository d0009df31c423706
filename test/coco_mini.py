"""48 photographs of COCO with their annotations, stored beside the repository."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

COCO_MINI = Path(__file__).resolve().parents[2] / 'shared/data/coco-mini'
needs_coco_mini = pytest.mark.skipif(
    not COCO_MINI.is_dir(), reason=f'{COCO_MINI} does not exist: it is beside the repository only'
)


def load_goldens() -> dict[str, Any]:
    """Return what COCO's official scorers give for captions of these photographs."""
    goldens: dict[str, Any] = json.loads((COCO_MINI / 'caption_metric_goldens.json').read_text())
    return goldens
