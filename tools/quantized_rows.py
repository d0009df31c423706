"""Processor time of one linear layer by rows: dense, and both ways of each quantisation.

    python tools/quantized_rows.py

One thread, bfloat16 activations, as many distinct weights as leave the caches. It is what
QuantizedLinear.kernel_rows and the table in docs/performance.md are taken from.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from gmskip_ros.vlm.linear import DenseLinear, fastest
from gmskip_ros.vlm.quantization import quantize

OUTPUTS, INPUTS, COPIES, TRIES = 2752, 1024, 12, 5
ROWS = (1, 16, 32, 64, 128, 600)


def milliseconds(layers: Sequence[Callable[[Tensor], Tensor]], rows: Tensor) -> float:
    """Return the processor time of a layer: the least, after a first time, of TRIES."""
    times = []
    for _ in range(1 + TRIES):
        started = time.thread_time()
        for layer in layers:
            layer(rows)
        times.append(time.thread_time() - started)
    return 1e3 * min(times[1:]) / len(layers)


@torch.inference_mode()
def main() -> None:
    torch.set_num_threads(1)
    dense = [0.02 * torch.randn(OUTPUTS, INPUTS) for _ in range(COPIES)]
    layers: list[Any] = [fastest(DenseLinear(weight.bfloat16(), None)) for weight in dense]
    ways: dict[str, list[Callable[[Tensor], Tensor]]] = {'bfloat16': layers}
    for kind in ('int8', 'int4'):
        layers = [quantize(weight, None, kind, torch.bfloat16) for weight in dense]
        ways[f'{kind} kernel'] = [layer._by_kernel for layer in layers]
        ways[f'{kind} dequantised'] = [layer._by_dense_product for layer in layers]
    print('rows', *ways, sep=' | ')
    for num_rows in ROWS:
        rows = torch.randn(num_rows, INPUTS).bfloat16()
        spent = [milliseconds(way, rows) for way in ways.values()]
        print(num_rows, *(f'{each:.2f}' for each in spent), sep=' | ')


if __name__ == '__main__':
    main()
