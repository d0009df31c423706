"""Give memory back to the system after the last reference to a model is gone."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import sys


def release_memory() -> None:
    """Collect garbage and empty the allocators; a CUDA context stays. Does not import torch."""
    gc.collect()
    torch = sys.modules.get('torch')
    if torch is not None and torch.cuda.is_initialized():
        with contextlib.suppress(RuntimeError):  # an error of CUDA that lasts
            torch.cuda.empty_cache()
    trim_heap()


def trim_heap() -> None:
    """Return what was freed on the heap to the system, which glibc otherwise keeps."""
    with contextlib.suppress(OSError, AttributeError):  # glibc alone has it
        ctypes.CDLL(None).malloc_trim(0)
