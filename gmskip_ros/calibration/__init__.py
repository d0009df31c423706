"""The search for blocks to skip, and how skip sets do on held-out images.

    from gmskip_ros.calibration import CalibrationSettings, calibrate, search_settings

docs/notebook.md shows it in use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gmskip_ros.calibration.baseline import best_constant_answer
    from gmskip_ros.calibration.compare import compare_methods
    from gmskip_ros.calibration.errors import CalibrationError
    from gmskip_ros.calibration.evaluate import evaluate_all, without_calibration_images
    from gmskip_ros.calibration.methods.registry import METHODS, search_settings
    from gmskip_ros.calibration.redundancy import measure_redundancy
    from gmskip_ros.calibration.result import Calibration
    from gmskip_ros.calibration.run import calibrate
    from gmskip_ros.calibration.settings import (
        CalibrationSettings,
        CompareSettings,
        EvaluationSettings,
        Listener,
        SearchSettings,
    )

_MODULE_OF = {
    'METHODS': 'methods.registry',
    'Calibration': 'result',
    'CalibrationError': 'errors',
    'CalibrationSettings': 'settings',
    'CompareSettings': 'settings',
    'EvaluationSettings': 'settings',
    'Listener': 'settings',
    'SearchSettings': 'settings',
    'best_constant_answer': 'baseline',
    'calibrate': 'run',
    'compare_methods': 'compare',
    'evaluate_all': 'evaluate',
    'measure_redundancy': 'redundancy',
    'search_settings': 'methods.registry',
    'without_calibration_images': 'evaluate',
}
__all__ = [
    'METHODS',
    'Calibration',
    'CalibrationError',
    'CalibrationSettings',
    'CompareSettings',
    'EvaluationSettings',
    'Listener',
    'SearchSettings',
    'best_constant_answer',
    'calibrate',
    'compare_methods',
    'evaluate_all',
    'measure_redundancy',
    'search_settings',
    'without_calibration_images',
]


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is first asked for (PEP 562)."""
    if name not in _MODULE_OF:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(importlib.import_module(f'{__name__}.{_MODULE_OF[name]}'), name)
