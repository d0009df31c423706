"""The folder of a checkpoint: on this machine, in the hub's cache, or downloaded from the hub.

Of a hub id the small JSON files come first. What they and the list of files say is checked before
the weights, many gigabytes, are on their way. A finished download is found in the cache and not
repeated; `owner/name@revision` takes a branch, tag or commit.
"""

from __future__ import annotations

import fnmatch
import json
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub.errors import DryRunError
from tqdm import tqdm

from gmskip_ros.errors import first_line
from gmskip_ros.files import DEMO_FOLDER
from gmskip_ros.vlm.errors import ModelLoadError

JSON_FILES = ['*.json', '*.jinja']
SMALL_FILES = [*JSON_FILES, '*.model', '*.txt']
SINGLE_FILE = 'model.safetensors'
INDEX_FILE = 'model.safetensors.index.json'
PROGRESS_EVERY_S = 1.0
_remembered: dict[str, Path] = {}  # folders of hub ids whose checkpoints are whole, by model

# Sees the folder with the JSON files and the size in bytes of every file of the repository; raises
# ModelLoadError to refuse the checkpoint before its weights are downloaded.
Inspect = Callable[[Path, Mapping[str, int]], None]


def find_local_folder(model: str) -> Path:
    """Return the folder on this machine that holds the checkpoint; nothing is downloaded.

    Raises ModelLoadError if it is neither a folder nor in the cache of the Hugging Face hub.
    """
    folder = _folder_of(model)
    if folder is not None:
        return folder
    name, revision = _name_and_revision(model)
    try:
        return Path(
            huggingface_hub.snapshot_download(
                name,
                revision=revision,
                allow_patterns=[*SMALL_FILES, '*.safetensors'],
                local_files_only=True,
            )
        )
    except Exception as error:  # the hub client raises its own, ValueError, the system's errors
        raise ModelLoadError(
            f'model {model!r} is neither a local folder nor in the cache of the Hugging Face hub '
            f'({huggingface_hub.constants.HF_HUB_CACHE}): download it while there is a network '
            f'connection (`hf download {name}`), or give a local folder'
        ) from error


def remember_folder(model: str, folder: Path) -> None:
    """Let `find_folder` return this folder, as long as it exists, without asking the hub again."""
    _remembered[model] = folder


def forget_folder(model: str) -> None:
    """Let `find_folder` ask the hub again."""
    _remembered.pop(model, None)


def find_folder(
    model: str, on_progress: Callable[[str], None], inspect: Inspect | None = None
) -> Path:
    """Return the folder that holds the checkpoint; it is downloaded if necessary.

    `inspect` is called before weights are downloaded. Raises ModelLoadError, and what it raises.
    """
    folder = _folder_of(model)
    if folder is None and model in _remembered and _remembered[model].is_dir():
        folder = _remembered[model]
    if folder is not None:
        return folder
    on_progress(f'looking for {model} in the cache and on the hub')
    try:
        return _download(model, on_progress, inspect)
    except ModelLoadError:
        raise
    except Exception as error:  # the hub client raises its own, httpx's and the system's errors
        raise ModelLoadError(
            f'model {model!r} is not a local folder and cannot be downloaded from the Hugging Face '
            f'hub ({first_line(error)}): check the name and the network, give a local folder, or '
            'set HF_HUB_OFFLINE=1 if the cache already contains it'
        ) from error


def _download(model: str, on_progress: Callable[[str], None], inspect: Inspect | None) -> Path:
    name, revision = _name_and_revision(model)
    try:
        files = huggingface_hub.snapshot_download(name, revision=revision, dry_run=True)
    except DryRunError:  # the hub cannot be reached: then only what is in the cache
        patterns = [*SMALL_FILES, '*.safetensors']
        return Path(
            huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=patterns)
        )
    sizes = {file.filename: file.file_size or 0 for file in files}
    folder = Path(
        huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=JSON_FILES)
    )
    if inspect is not None:
        inspect(folder, sizes)
    weights = weight_files(folder, sizes)
    wanted = [
        file
        for file in sizes
        if file in weights or any(fnmatch.fnmatch(file, pattern) for pattern in SMALL_FILES)
    ]
    missing = [f for f in files if f.will_download and f.filename in wanted]
    if missing:
        num_bytes = sum(sizes[file.filename] for file in missing)
        on_progress(f'downloading {model}: {num_bytes / 1e9:.1f} GB')
    return Path(
        huggingface_hub.snapshot_download(
            name,
            revision=revision,
            allow_patterns=wanted,
            tqdm_class=_progress_class(model, on_progress),
        )
    )


def weight_files(folder: Path, names: Mapping[str, int]) -> set[str]:
    """Return the files that transformers reads the weights from, of those that exist."""
    if SINGLE_FILE in names:
        return {SINGLE_FILE}
    try:
        weight_map = json.loads((folder / INDEX_FILE).read_bytes())['weight_map']
        return {name for name in weight_map.values() if name in names}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {name for name in names if name.endswith('.safetensors')}


def _folder_of(model: str) -> Path | None:
    """Return the folder of 'demo' or of a path, None for a hub id; refuse anything else."""
    if model == 'demo':
        return DEMO_FOLDER
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    if not re.fullmatch(r'[\w.-]+/[\w.-]+(@[\w./-]+)?', model) or model.startswith('.'):
        raise ModelLoadError(
            f"model {model!r} is neither a folder nor a hub id: give 'demo', a folder, "
            "'owner/name' or 'owner/name@revision'"
        )
    return None


def _name_and_revision(model: str) -> tuple[str, str | None]:
    name, _, revision = model.partition('@')
    return name, revision or None


def _progress_class(model: str, on_progress: Callable[[str], None]) -> type:
    """Return a class that the hub client uses as a progress bar; it prints nothing."""

    class DownloadProgress(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs.pop('name', None)
            self._counts_bytes = kwargs.get('unit') == 'B'
            self._reported_s = time.monotonic()
            super().__init__(*args, **{**kwargs, 'disable': False})

        def display(self, *args: Any, **kwargs: Any) -> None:
            """Print nothing: progress goes to `on_progress`."""

        def update(self, n: float | None = 1) -> bool | None:
            shown = super().update(n)
            now_s = time.monotonic()
            if self._counts_bytes and self.total and now_s - self._reported_s > PROGRESS_EVERY_S:
                self._reported_s = now_s
                on_progress(f'downloading {model}: {self.n / 1e9:.1f} of {self.total / 1e9:.1f} GB')
            return shown

    return DownloadProgress
