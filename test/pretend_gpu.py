"""A GPU for machines without one: every tensor on it is a CPU tensor that says it is on cuda:0.

Code takes its GPU path, and what a GPU refuses is refused here: operations on tensors of both
devices, and NumPy's view of a tensor on the GPU. Kernels are the CPU's, so figures and rounding are
not a GPU's, and what only CUDA has (graphs, streams) is not here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

GPU, CPU = torch.device('cuda', 0), torch.device('cpu')
READS = ('tolist', 'item', '__bool__', '__int__', '__index__', '__float__', 'equal')
SIZED_BY_VALUES = ('nonzero', 'masked_select', 'unique')  # so the CPU has to know these first
SENDS = ('tensor', 'as_tensor', 'new_tensor')
MAY_MIX = ('copy_', '__setitem__', '__get__', '__set__')  # a copy from device to device, or none
OF_CUDA: Mapping[str, Callable[..., Any]] = {
    'is_available': lambda: True,
    'is_initialized': lambda: True,
    'device_count': lambda: 1,
    'current_device': lambda: 0,
    'get_device_name': lambda device=None: 'a pretended GPU',
    'get_device_capability': lambda device=None: (8, 6),
    'get_device_properties': lambda device=None: mock.Mock(is_integrated=False),
    'is_bf16_supported': lambda including_emulation=True: True,
    'mem_get_info': lambda device=None: (20 << 30, 24 << 30),
    'memory_reserved': lambda device=None: 1 << 30,
    'memory_allocated': lambda device=None: 1 << 30,
    'max_memory_allocated': lambda device=None: 1 << 30,
    'reset_peak_memory_stats': lambda device=None: None,
    'synchronize': lambda device=None: None,
    'empty_cache': lambda: None,
}


class OnGpu(Tensor):
    """A tensor of the pretended GPU."""

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            return _call(func, args, kwargs or {}, [])


class _PretendedGpu(TorchFunctionMode):
    """Sees every call; notes in `waits` those for which the CPU waits for the GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            return _call(func, args, kwargs or {}, self.waits)


@contextlib.contextmanager
def pretended_gpu() -> Iterator[list[str]]:
    """Give PyTorch one GPU, cuda:0. Yields the names of calls that wait for it, as they come."""
    # Modules move by new parameters: an old one's data cannot become another kind of tensor.
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        with mock.patch.multiple(torch.cuda, **OF_CUDA), _PretendedGpu() as gpu:
            yield gpu.waits
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(before)


def _call(func: Any, args: Sequence[Any], kwargs: dict[str, Any], waits: list[str]) -> Any:
    name = getattr(func, '__name__', '')
    first = args[0] if args else None
    on_gpu = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, OnGpu)]
    if name == '__get__' and isinstance(first, OnGpu):
        attribute = getattr(func.__self__, '__name__', '')
        if attribute in ('device', 'is_cuda'):
            return GPU if attribute == 'device' else True
    if name == '_has_compatible_shallow_copy_type' and on_gpu:
        return False
    if name in ('cpu', 'to') and isinstance(first, Tensor):
        return _moved(func, args, kwargs, waits)
    is_made_there = _is(kwargs.get('device'), GPU)
    if not on_gpu and not is_made_there:
        return func(*args, **kwargs)
    _check(name, args, kwargs)
    if name in (*READS, *SIZED_BY_VALUES, *SENDS) or _crosses(name, args):
        waits.append(name)
    found = func(*tree_map(_held, tuple(args)), **tree_map(_held, kwargs))
    is_in_place = name.endswith('_') and not name.endswith('__')
    if is_in_place or name in ('__setitem__', '__iadd__', '__imul__', '__iand__'):
        return first
    if 'out' in kwargs:
        return kwargs['out']
    return tree_map(lambda leaf: _on_gpu(leaf) if isinstance(leaf, Tensor) else leaf, found)


def _check(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Raise what PyTorch raises for tensors of both devices; a number may be on either."""
    if name in ('numpy', '__array__') and isinstance(args[0], OnGpu):
        raise TypeError("can't convert cuda:0 device type tensor to numpy")
    leaves = tree_leaves((args, kwargs))
    on_cpu = [
        leaf
        for leaf in leaves
        if isinstance(leaf, Tensor) and not isinstance(leaf, OnGpu) and leaf.dim()
    ]
    if name == '__getitem__' and isinstance(args[0], OnGpu):
        on_cpu = []  # it may be indexed from the CPU
    if on_cpu and name not in MAY_MIX:
        raise RuntimeError(f'{name}: Expected all tensors to be on the same device: cuda:0 and cpu')


def _moved(func: Any, args: Sequence[Any], kwargs: dict[str, Any], waits: list[str]) -> Tensor:
    """Return what `cpu` and `to` do: a copy if the device changes."""
    source: Tensor = args[0]
    goes_to_gpu = isinstance(source, OnGpu) and func.__name__ == 'to'
    for wanted in (*args[1:], *kwargs.values()):
        if _is(wanted, GPU) or isinstance(wanted, OnGpu):
            goes_to_gpu = True
        elif _is(wanted, CPU) or isinstance(wanted, Tensor):
            goes_to_gpu = False
    moved: Tensor = func(*map(_held, args), **{key: _held(kwargs[key]) for key in kwargs})
    if isinstance(source, OnGpu) != goes_to_gpu:
        waits.append(f'to {"cuda" if goes_to_gpu else "cpu"}')
        moved = moved.clone()
    elif moved.dtype == source.dtype:
        return source
    return _on_gpu(moved) if goes_to_gpu else moved


def _crosses(name: str, args: Sequence[Any]) -> bool:
    """Return whether a copy or an index takes values from one device to the other."""
    if name == 'copy_':
        return isinstance(args[0], OnGpu) != isinstance(args[1], OnGpu)
    if name not in ('__getitem__', '__setitem__'):
        return False
    target, index, *values = args
    if any(isinstance(value, Tensor) and value.dim() for value in values):
        if isinstance(target, OnGpu) != isinstance(values[0], OnGpu):
            return True
    # How much a mask selects depends on its values.
    return any(
        isinstance(part, list)
        or (isinstance(part, Tensor) and (part.dtype == torch.bool or not isinstance(part, OnGpu)))
        for part in (index if isinstance(index, tuple) else (index,))
    )


def _is(wanted: Any, device: torch.device) -> bool:
    is_name = isinstance(wanted, (str, torch.device))
    return is_name and str(wanted).partition(':')[0] == device.type


def _held(value: Any) -> Any:
    """Return what a tensor of the GPU holds, and the CPU for the GPU."""
    if isinstance(value, OnGpu):
        return value.as_subclass(Tensor)
    return CPU if _is(value, GPU) else value


def _on_gpu(tensor: Tensor) -> Tensor:
    return tensor if isinstance(tensor, OnGpu) else tensor.detach().as_subclass(OnGpu)
