"""The machine and the software versions that measurements depend on; how PyTorch uses it."""

from __future__ import annotations

import importlib.metadata
import os
import platform

# Turns of waiting before one of PyTorch's threads sleeps, of some 15 ns each. Waking it costs more
# than a small layer takes, so they have to last from one layer to the next, and that takes longer
# on a slower core. OpenMP's default (300,000) outlasts the turn of a process that needs the core.
SPIN_COUNT = 10_000
SOFTWARE = ('gmskip_ros', 'torch', 'transformers')


def machine(device: str) -> dict[str, str | int | None]:
    """Return CPU, cores, GPU (None without one) and system, as recorded beside measured times."""
    gpu = None
    if device.startswith('cuda'):
        import torch

        gpu = torch.cuda.get_device_name(device)
    return {'cpu': _cpu_name(), 'cores': os.cpu_count(), 'gpu': gpu, 'system': platform.platform()}


def software() -> dict[str, str]:
    """Return the versions of the packages that answers depend on."""
    return {name: importlib.metadata.version(name) for name in SOFTWARE}


def tune_cpu() -> None:
    """Set how PyTorch waits and allocates, unless the environment says how; before it is loaded.

    OpenMP's threads spin only briefly; weights are in huge pages where the system has them, which
    makes them faster to read (Linux; by default it gives them only on request). Not on Intel's
    CPUs, where it gains nothing, and each layer in MKL's layout would take one page more.
    """
    if not {'OMP_WAIT_POLICY', 'GOMP_SPINCOUNT'} & os.environ.keys():
        os.environ['OMP_WAIT_POLICY'] = 'PASSIVE'  # other libraries than GNU's know only this
        os.environ['GOMP_SPINCOUNT'] = str(SPIN_COUNT)
    if not is_intel_cpu():
        os.environ.setdefault('THP_MEM_ALLOC_ENABLE', '1')


def _cpu_name() -> str:
    return _cpu_info('model name') or platform.processor() or platform.machine()


def _cpu_info(name: str) -> str:
    """Return what Linux says of the first core; '' if it says nothing."""
    try:
        with open('/proc/cpuinfo', encoding='utf-8') as lines:  # not all: it grows with the cores
            for line in lines:
                if line.startswith(name):
                    return line.partition(':')[2].strip()
    except OSError:
        pass
    return ''


def is_intel_cpu() -> bool:
    """Return whether the CPU is Intel's, as far as Linux says: MKL has its fastest code there."""
    return _cpu_info('vendor_id') == 'GenuineIntel'


def describe_run(
    model: str, device: str, dtype: str, quantization: str, num_blocks: int, image_fit: str
) -> dict[str, object]:
    """Return what every run writes into its JSON: which model ran, how, in which versions."""
    return {
        'model': model,
        'device': device,
        'dtype': dtype,
        'quantization': quantization,
        'num_blocks': num_blocks,
        'image_fit': image_fit,
        'machine': machine(device),
        'software': software(),
    }
