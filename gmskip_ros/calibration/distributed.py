"""Several processes that share the images: started by torchrun, or a single one."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

from gmskip_ros.calibration.errors import CalibrationError
from gmskip_ros.vlm import Stopped

Value = TypeVar('Value')

# A process that ends is noticed because its connections close. A slow one, with a larger share of
# the work or a model to load over a network, is no reason to stop.
PATIENCE = timedelta(days=7)


class RankLostError(CalibrationError):
    """Another process ended, so results can no longer be put together."""


class Ranks:
    """The processes of this run: a single one unless torchrun started several.

    Attributes: rank (0 writes files and prints), world_size, local_rank (its GPU).
    """

    def __init__(self, should_stop: Callable[[], bool] = lambda: False) -> None:
        """`should_stop` is polled while this process waits for the others to connect."""
        self._should_stop = should_stop
        self.rank = int(os.environ.get('RANK', '0'))
        self.world_size = int(os.environ.get('WORLD_SIZE', '1'))
        self.local_rank = int(os.environ.get('LOCAL_RANK', '0'))

    def connect(self, device: str) -> None:
        """Connect to the other processes: by gloo on the CPU, by nccl for tensors on a GPU.

        Answers are not tensors on a GPU, so everything is passed by gloo: a process within nccl
        handles no signal and does not notice that another one has ended.

        Raises RankLostError, and Stopped when `should_stop` is true.
        """
        if self.world_size == 1:
            return
        import torch
        from torch.distributed.rendezvous import rendezvous

        on_gpu = device.startswith('cuda')
        if on_gpu:
            torch.cuda.set_device(torch.device(device))
        try:
            store, _, _ = next(rendezvous('env://'))
            # Wait here: init_process_group handles no signal, and torchrun sends SIGTERM if another
            # process has ended.
            store.set(f'gmskip {self.rank}', 'here')
            while not store.check([f'gmskip {rank}' for rank in range(self.world_size)]):
                if self._should_stop():
                    raise Stopped('stopped before all processes had connected')
                time.sleep(0.1)
            torch.distributed.init_process_group(
                'cpu:gloo,cuda:nccl' if on_gpu else 'gloo',
                timeout=PATIENCE,
                store=store,
                rank=self.rank,
                world_size=self.world_size,
            )
        except (RuntimeError, ValueError) as error:
            raise self._lost(error) from error

    def gather(self, value: Value) -> list[Value]:
        """Return every process's value, by rank, in every process. Raises RankLostError."""
        if self.world_size == 1:
            return [value]
        import torch

        values: list[Any] = [None] * self.world_size
        try:
            torch.distributed.all_gather_object(values, value)
        except RuntimeError as error:
            raise self._lost(error) from error
        return values

    def of_first(self, value: Value) -> Value:
        """Return rank 0's value in every process. Raises RankLostError."""
        return self.gather(value if self.rank == 0 else None)[0]  # type: ignore[return-value]

    def disconnect(self) -> None:
        """Disconnect from the other processes."""
        if self.world_size == 1:
            return
        import torch

        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()

    def _lost(self, error: Exception) -> RankLostError:
        reason = str(error).strip().splitlines()
        return RankLostError(
            f'process {self.rank} of {self.world_size} cannot reach the others '
            f'({reason[0] if reason else type(error).__name__}): one of them ended, see its '
            'message; run the same command to resume'
        )
