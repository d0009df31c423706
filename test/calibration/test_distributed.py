"""Several processes: how they connect where each has a GPU. (CPU: test_calibrate_ranks.)"""

from __future__ import annotations

import sys

import torch
from torch.distributed.distributed_c10d import BackendConfig

from gmskip_ros.calibration.distributed import Ranks


class FakeStore:
    """Reports every process as connected."""

    def set(self, key: str, value: str) -> None:
        pass

    def check(self, keys: list[str]) -> bool:
        return True


def test_objects_do_not_go_by_nccl_on_gpus(monkeypatch):
    """Within nccl a process handles no signal, and waits for days for one that has ended."""
    monkeypatch.setenv('RANK', '1')
    monkeypatch.setenv('WORLD_SIZE', '2')
    backends, gpus = [], []
    rendezvous = sys.modules['torch.distributed.rendezvous']  # a function has the same name
    monkeypatch.setattr(rendezvous, 'rendezvous', lambda _: iter([(FakeStore(), 1, 2)]))
    monkeypatch.setattr(
        'torch.distributed.init_process_group', lambda backend, **_: backends.append(backend)
    )
    monkeypatch.setattr('torch.cuda.set_device', gpus.append)
    Ranks().connect('cuda:1')
    assert gpus == [torch.device('cuda:1')]
    assert BackendConfig(backends[0]).get_device_backend_map() == {'cpu': 'gloo', 'cuda': 'nccl'}
