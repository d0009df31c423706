"""One checkpoint, one copy of the weights, any skip set.

    from gmskip_ros.vlm import load_vlm
    vlm = load_vlm('demo')
    vlm.answer(image, 'What is the main object in this image?', skip=[29, 16]).text

Importing this package does not import torch, which takes seconds; using load_vlm or Vlm does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gmskip_ros.skipping.errors import SkipSetError
from gmskip_ros.skipping.skip_set import SkipSet
from gmskip_ros.vlm.answer import (
    Answer,
    BlockStates,
    CandidateAnswer,
    Confidence,
    FrameQuestion,
    ImageFeatures,
    Timing,
)
from gmskip_ros.vlm.engine import CalibrationEngine, Engine, SharedFrame
from gmskip_ros.vlm.errors import (
    ImageError,
    ModelLoadError,
    NonFiniteLogitsError,
    PromptError,
    Stopped,
    VlmError,
    VlmOutOfMemoryError,
)

if TYPE_CHECKING:
    from gmskip_ros.vlm.load import load_vlm
    from gmskip_ros.vlm.vlm import Vlm

__all__ = [
    'Answer',
    'BlockStates',
    'CalibrationEngine',
    'CandidateAnswer',
    'Confidence',
    'Engine',
    'FrameQuestion',
    'ImageError',
    'ImageFeatures',
    'ModelLoadError',
    'NonFiniteLogitsError',
    'PromptError',
    'SharedFrame',
    'SkipSet',
    'SkipSetError',
    'Stopped',
    'Timing',
    'Vlm',
    'VlmError',
    'VlmOutOfMemoryError',
    'load_vlm',
]


def __getattr__(name: str) -> Any:
    """Import what needs torch when it is first asked for (PEP 562)."""
    if name == 'load_vlm':
        from gmskip_ros.vlm.load import load_vlm

        return load_vlm
    if name == 'Vlm':
        from gmskip_ros.vlm.vlm import Vlm

        return Vlm
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
