"""The real node in a process of its own, with the demo model, whose answers go wrong on demand.

    python fault_node.py FOLDER --ros-args ...

The upper left pixel of a frame says what happens to it (FAULTS); any other frame is answered as
ever. What hangs does so until FOLDER/go exists.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from gmskip_ros.pipeline import gate
from gmskip_ros.pipeline.settings import Settings
from gmskip_ros.pipeline.worker import load_engine
from gmskip_ros.ros import node
from gmskip_ros.signals import StopSignals
from gmskip_ros.vlm import SkipSet, Stopped, VlmOutOfMemoryError

FAULTS = {  # upper left pixel (RGB) -> what happens
    (255, 0, 1): 'an exception',
    (255, 0, 2): 'an exception in the full branch',
    (255, 0, 3): 'no memory once',
    (255, 0, 4): 'no memory',
    (255, 0, 5): 'NaN',
    (255, 0, 6): 'slow',
    (255, 0, 7): 'hangs',
    (255, 0, 8): 'a panic',
    (255, 0, 9): 'the GPU is lost',
}
PIXELS = {fault: pixel for pixel, fault in FAULTS.items()}
REPORT_S = 0.1  # between health reports, which tests wait for
SETTLE_S = 0.3  # until a warning is over
UNSTEADY_NS = 300_000_000  # within which a second jump back of stamps limits the rate
SLOW_S = 0.6  # per answer; a frame has two, and the period is 1 s


class Panic(BaseException):
    """Not an Exception, like the panics of the Rust parts of tokenizers and safetensors."""


class FaultyVlm:
    """A Vlm that misbehaves on the frames of FAULTS."""

    def __init__(self, vlm: Any, folder: Path) -> None:
        self._vlm = vlm
        self._folder = folder
        self._fault = ''  # of the current frame
        self._out_of_memory = False  # the current frame has had its 'no memory once'

    def __getattr__(self, name: str) -> Any:
        return getattr(self._vlm, name)

    def encode(self, image: np.ndarray) -> Any:
        self._fault = FAULTS.get(tuple(image[0, 0].tolist()), '')
        self._out_of_memory = False
        features = self._vlm.encode(image)
        if self._fault == 'NaN':
            return dataclasses.replace(features, tokens=features.tokens * float('nan'))
        return features

    def answer(
        self,
        features: Any,
        prompt: str,
        skip: SkipSet = SkipSet(),  # noqa: B008 (frozen)
        max_new_tokens: int = 16,
        *,
        should_stop: Callable[[], bool] | None = None,
        **options: Any,
    ) -> Any:
        fault = self._fault
        if fault == 'an exception' or (fault == 'an exception in the full branch' and not skip):
            raise RuntimeError('the device is gone\nand this is a second line')
        if fault == 'no memory' or (fault == 'no memory once' and not self._out_of_memory):
            self._out_of_memory = True
            raise VlmOutOfMemoryError('demo ran out of memory: use a smaller model')
        if fault == 'the GPU is lost':
            raise RuntimeError('CUDA error: an illegal memory access was encountered')
        if fault == 'a panic':
            raise Panic('index out of bounds')
        if fault == 'slow':
            until_s = time.monotonic() + SLOW_S
            while time.monotonic() < until_s:
                if should_stop is not None and should_stop():
                    raise Stopped('asked to')
                time.sleep(0.01)
        while fault == 'hangs' and not (self._folder / 'go').exists():
            time.sleep(0.01)
        return self._vlm.answer(
            features, prompt, skip, max_new_tokens, should_stop=should_stop, **options
        )


def main() -> int:
    stop = StopSignals().listen()
    folder = Path(sys.argv.pop(1))

    def load(settings: Settings, on_progress: Callable[[str], None]) -> Any:
        return FaultyVlm(load_engine(settings, on_progress), folder)

    node.DIAGNOSTICS_PERIOD_S = REPORT_S
    node.settle_s = lambda rate_hz: SETTLE_S
    gate.UNSTEADY_NS = UNSTEADY_NS
    return node.run(stop, load=load)


if __name__ == '__main__':
    sys.exit(main())
