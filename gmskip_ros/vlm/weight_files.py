"""What a checkpoint's safetensors files say of themselves, read without their weights."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gmskip_ros.vlm.errors import ModelLoadError

SINGLE_FILE = 'model.safetensors'
INDEX_FILE = 'model.safetensors.index.json'
_AGAIN = 'fetch or copy the checkpoint again'
_MAX_HEADER_BYTES = 100_000_000  # as the format has it


@dataclass(frozen=True)
class StoredTensor:
    """One weight as it is stored: its name, dtype ('F16', 'BF16', 'I64', ...) and shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def is_weight(self) -> bool:
        """Whether it is of floating point: anything else is a buffer, and becomes no weight."""
        return self.dtype.startswith(('F', 'BF'))

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


def read_weight_files(model: str, folder: Path) -> list[StoredTensor]:
    """Return every tensor of a checkpoint, from the headers of its files alone.

    Raises ModelLoadError for a file that is missing, not safetensors or not whole (its header says
    how long it is).
    """
    if (folder / SINGLE_FILE).exists():  # the one that transformers takes, too, if there are both
        return _read_header(model, folder / SINGLE_FILE)
    if not (folder / INDEX_FILE).exists():
        raise ModelLoadError(
            f'model {model} has neither {SINGLE_FILE} nor {INDEX_FILE} in {folder}: {_AGAIN}'
        )
    file_of = _read_index(model, folder / INDEX_FILE)
    names = sorted(set(file_of.values()))
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise ModelLoadError(
            f'model {model} lacks {len(missing)} of its {len(names)} weight files '
            f'({_some(missing)}) in {folder}: {_AGAIN}'
        )
    tensors = [tensor for name in names for tensor in _read_header(model, folder / name)]
    lost = sorted(file_of.keys() - {tensor.name for tensor in tensors})
    if lost:
        raise ModelLoadError(
            f'model {model} lacks {len(lost)} of its weights ({lost[0]}): {_AGAIN}'
        )
    return tensors


def _read_index(model: str, path: Path) -> dict[str, str]:
    """Return the file of every tensor, by the tensor's name."""
    try:
        weight_map = json.loads(path.read_bytes())['weight_map']
        if not weight_map or not all(isinstance(name, str) for name in weight_map.values()):
            raise ValueError
        return dict(weight_map)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        raise ModelLoadError(
            f'model {model}: {path} is no index of weight files: {_AGAIN}'
        ) from None


def _read_header(model: str, path: Path) -> list[StoredTensor]:
    """Return the tensors of one file; refuse a file whose length is not what its header says."""
    try:
        size = path.stat().st_size  # follows the links of the hub's cache
        with path.open('rb') as file:
            length = int.from_bytes(file.read(8), 'little')
            header = file.read(length) if length <= min(size, _MAX_HEADER_BYTES) else b''
        tensors, data_bytes = _parse_header(json.loads(header))
    except OSError as error:
        raise ModelLoadError(
            f'model {model}: {path} cannot be read ({error.strerror}): {_AGAIN}'
        ) from error
    except (ValueError, LookupError, TypeError, AttributeError):
        raise ModelLoadError(
            f'model {model}: {path} ({size} bytes) has no header of safetensors, or not all of '
            f'it: {_AGAIN}'
        ) from None
    if size != 8 + length + data_bytes:
        raise ModelLoadError(
            f'model {model}: {path} has {size} bytes where its header says '
            f'{8 + length + data_bytes}: it is not whole; {_AGAIN}'
        )
    return tensors


def _parse_header(header: Any) -> tuple[list[StoredTensor], int]:
    """Return the tensors and the bytes of all their data; raises what broken ones make it."""
    tensors, data_bytes = [], 0
    for name, entry in header.items():
        if name != '__metadata__':
            data_bytes = max(data_bytes, int(entry['data_offsets'][1]))
            shape = tuple(int(length) for length in entry['shape'])
            tensors.append(StoredTensor(name, str(entry['dtype']), shape))
    return tensors, data_bytes


def _some(names: list[str]) -> str:
    return ', '.join(names[:2]) + (', ...' if len(names) > 2 else '')
