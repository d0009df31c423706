"""Floors: the least time that a phase can take on this machine, from rates measured on the spot.

    floor = max(operations / matrix rate, bytes / read bandwidth)

Rates are those of the fastest kernel known to the run, over as many distinct weights as the model
has (up to WORKING_SET_BYTES or READING_SET_BYTES), so that a small model's cache counts for both
sides. The matrix rate is measured at the phase's number of rows with the linear layers of one
block. Like answers, rates are measured with all cores awake.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gmskip_ros.benchmarks.architecture import Cost
from gmskip_ros.benchmarks.conditions import wake_cores

if TYPE_CHECKING:
    import torch

    Kernel = Callable[[torch.Tensor], torch.Tensor]

WORKING_SET_BYTES = 256 << 20  # of products that reuse each weight for many rows
READING_SET_BYTES = 512 << 20  # for one row: more than a server's cache of 480 MiB
TRIES = 3  # of each kernel, to find the fastest
RUNS = 3  # of a probe per measurement
Layers = Sequence[tuple[int, int]]  # (in, out) of the linear layers of one block


@dataclass(frozen=True)
class Rates:
    """What the machine does: operations per second at some number of rows, bytes per second."""

    flops_per_s: float
    bytes_per_s: float

    def floor_ms(self, cost: Cost) -> float:
        """Return the least time for a cost, in milliseconds."""
        return 1e3 * max(cost.flops / self.flops_per_s, cost.bytes / self.bytes_per_s)

    def best(self, other: Rates) -> Rates:
        """Return the higher of both rates."""
        return Rates(
            max(self.flops_per_s, other.flops_per_s), max(self.bytes_per_s, other.bytes_per_s)
        )


class MatrixProbe:
    """Multiplies `rows` rows with distinct weights of a block's shapes, with the fastest kernel.

    Attributes: kernel (its name), flops and bytes (of the weights) of one run.
    """

    def __init__(
        self,
        layouts: Sequence[Layers],
        rows: int,
        num_blocks: int,
        device: str,
        dtype: str,
        quantization: str = 'none',
        working_set_bytes: int | None = None,
    ) -> None:
        """layouts: ways to split the same block into linear layers, of which the fastest counts.

        quantization: of weights that are tried besides dense ones. working_set_bytes: None for
        what suits the number of rows.
        """
        import torch

        number_bytes = getattr(torch, dtype).itemsize
        numbers = sum(wide * out for wide, out in layouts[0])
        most_bytes = working_set_bytes or (READING_SET_BYTES if rows == 1 else WORKING_SET_BYTES)
        copies = max(1, min(num_blocks, most_bytes // (number_bytes * numbers)))
        self.flops = 2 * rows * copies * numbers
        self.bytes = number_bytes * copies * numbers
        self._device = device
        self._candidates = functools.partial(
            _candidates, layouts, rows, copies, device, dtype, quantization
        )
        self.choose()

    def choose(self) -> None:
        """Look for the fastest kernel."""
        self._steps: list[Callable[[], Any]] = []  # of an earlier choice: its memory is needed
        best_s = float('inf')
        wake_cores()
        for name, steps in self._candidates():
            seconds = min(self._timed(steps) for _ in range(1 + TRIES))
            if seconds < best_s:
                best_s, self.kernel, self._steps = seconds, name, steps

    def seconds(self) -> float:
        """Run once; return the time that it took."""
        return self._timed(self._steps)

    def _timed(self, steps: list[Callable[[], Any]]) -> float:
        import torch

        with torch.inference_mode():
            _synchronize(self._device)
            started = time.perf_counter()
            for step in steps:
                step()
            _synchronize(self._device)
            return time.perf_counter() - started


def _synchronize(device: str) -> None:
    if device.startswith('cuda'):
        import torch

        torch.cuda.synchronize(device)


def _candidates(
    layouts: Sequence[Layers],
    rows: int,
    copies: int,
    device: str,
    dtype: str,
    quantization: str,
) -> Iterator[tuple[str, list[Callable[[], Any]]]]:
    """Yield every known way to run the layers, its weights made anew, and its name."""
    import torch

    def random(*shape: int) -> torch.Tensor:  # made in its dtype: half of a GPU may be full
        return torch.empty(shape, dtype=getattr(torch, dtype), device=device).uniform_()

    if rows == 1:  # it is limited by reading the weights, which a sum does as well
        numbers = sum(wide * out for wide, out in layouts[0])
        buffers = [random(numbers) for _ in range(copies)]
        yield 'sum', [buffer.sum for buffer in buffers]
        del buffers
    kernels = {name: kernel for name, kernel in KERNELS.items() if name == DENSE or device == 'cpu'}
    if quantization != 'none':
        kernels[quantization] = functools.partial(_quantized, quantization)
    for name, make_kernel in kernels.items():
        for layers in layouts:
            inputs = {wide: random(rows, wide) for wide, _ in layers}
            steps: list[Callable[[], Any]] = []
            try:
                for _ in range(copies):
                    for wide, out in layers:
                        weight = random(out, wide)
                        kernel = make_kernel(weight, rows)
                        kernel(inputs[wide])
                        steps.append(_bound(kernel, inputs[wide]))
            except torch.OutOfMemoryError:
                raise
            except (AttributeError, NotImplementedError, RuntimeError):
                continue  # this build of PyTorch or this dtype does not have it
            yield name, steps


def _bound(kernel: Kernel, rows: torch.Tensor) -> Callable[[], torch.Tensor]:
    return lambda: kernel(rows)


def _dense(weight: torch.Tensor, rows: int) -> Kernel:
    from torch.nn.functional import linear

    return lambda states: linear(states, weight)


def _quantized(quantization: str, weight: torch.Tensor, rows: int) -> Kernel:
    from gmskip_ros.vlm.quantization import quantize

    return quantize(weight, None, quantization, weight.dtype)


def _packed(weight: torch.Tensor, rows: int) -> Kernel:
    """oneDNN's layout for this number of rows, as PyTorch's compiler uses it; private operators."""
    import torch

    operators: Any = torch.ops.mkldnn
    packed = operators._reorder_linear_weight(weight, rows)
    return lambda states: operators._linear_pointwise(states, packed, None, 'none', [], '')


def _packed_mkl(weight: torch.Tensor, rows: int) -> Kernel:
    """MKL's packed layout, float32 only; private operators."""
    import torch

    operators: Any = torch.ops.mkl
    packed = operators._mkl_reorder_linear_weight(weight, rows)
    return lambda states: operators._mkl_linear(states, packed, weight, None, rows)


DENSE = 'linear'
KERNELS: dict[str, Callable[[torch.Tensor, int], Kernel]] = {
    DENSE: _dense,
    'packed by oneDNN': _packed,
    'packed by MKL': _packed_mkl,
}


class PhaseProbe:
    """The rates of one phase: its rows for operations, one row for bytes; `best` so far."""

    def __init__(self, of_operations: MatrixProbe, of_bytes: MatrixProbe) -> None:
        """of_operations: with the phase's rows. of_bytes: with one row, which reads."""
        self._of_operations = of_operations
        self._of_bytes = of_bytes
        self.best = Rates(0.0, 0.0)
        self.measure()

    def measure(self) -> Rates:
        """Return both rates now, over RUNS runs; the best of them counts for `best`."""
        rates, fastest = [], []
        for work, probe in (
            (self._of_operations.flops, self._of_operations),
            (self._of_bytes.bytes, self._of_bytes),
        ):
            wake_cores()
            probe.seconds()  # the first run after something else is slower
            seconds = [probe.seconds() for _ in range(RUNS)]
            rates.append(work * RUNS / sum(seconds))
            fastest.append(work / min(seconds))
        self.best = Rates(*fastest).best(self.best)
        return Rates(*rates)

    def choose_again(self) -> None:
        """Look for the fastest kernels once more: other load may have hidden them."""
        self._of_operations.choose()
        if self._of_bytes is not self._of_operations:
            self._of_bytes.choose()
        self.measure()

    def describe(self) -> dict[str, Any]:
        """Return the best rates and the kernels in use, as JSON values."""
        return {
            'tflops_per_s': self.best.flops_per_s / 1e12,
            'gb_per_s': self.best.bytes_per_s / 1e9,
            'kernel': self._of_operations.kernel,
            'read_kernel': self._of_bytes.kernel,
        }
