"""Give memory back to the system after the last reference to a model is gone."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import sys


def release_memory() -> None:
    """Collect garbage and empty the allocators; a CUDA context stays. Does not import torch."""
    gc.collect()
    empty_allocators()


def empty_allocators() -> None:
    """Return what was freed to the system; glibc and PyTorch's allocator on a GPU keep it.

    On a GPU not only for others: the pieces of a freed weight are no room for a larger one.
    """
    torch = sys.modules.get('torch')
    if torch is not None and torch.cuda.is_initialized():
        with contextlib.suppress(RuntimeError):  # an error of CUDA that lasts
            torch.cuda.empty_cache()
    with contextlib.suppress(OSError, AttributeError):  # glibc alone has it
        ctypes.CDLL(None).malloc_trim(0)
