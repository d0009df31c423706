"""Several processes that share the pictures: started by torchrun, or alone."""

from __future__ import annotations

import os
from typing import Any, TypeVar

from gmskip_ros.calibration.errors import CalibrationError

Value = TypeVar('Value')


class RankLostError(CalibrationError):
    """Another process ended, so nothing can be put together any more."""


class Ranks:
    """The processes of this run; one alone unless torchrun started several.

    Attributes: rank (0 writes files and talks to people), world_size, local_rank (its GPU).
    """

    def __init__(self) -> None:
        self.rank = int(os.environ.get('RANK', '0'))
        self.world_size = int(os.environ.get('WORLD_SIZE', '1'))
        self.local_rank = int(os.environ.get('LOCAL_RANK', '0'))

    def connect(self, device: str) -> None:
        """Meet the other processes: gloo on the CPU, nccl on a GPU. Raises RankLostError."""
        if self.world_size == 1:
            return
        import torch

        on_gpu = device.startswith('cuda')
        if on_gpu:
            torch.cuda.set_device(torch.device(device))
        try:
            torch.distributed.init_process_group('nccl' if on_gpu else 'gloo')
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
        """Leave the other processes."""
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
            'message; start the same command again to go on'
        )
