"""The other end of `hugging_face.py`: starts the process, asks it, and ends it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

END_TIMEOUT_S = 5.0


class RivalError(Exception):
    """Hugging Face could not do what it was asked; the message is one line."""


class RivalProcess:
    """A process with Hugging Face's model and the features of one image. Use it in `with`.

    peak_bytes: the most memory that the process has held so far.
    """

    def __init__(self) -> None:
        self.peak_bytes = 0
        self._folder = tempfile.TemporaryDirectory(
            prefix='gmskip_latency_', ignore_cleanup_errors=True
        )
        self._errors = open(Path(self._folder.name) / 'stderr', 'w+', encoding='utf-8')
        self._process = subprocess.Popen(
            [sys.executable, '-m', 'gmskip_ros.benchmarks.hugging_face'],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            # What it compiles is removed with its folder, and its compilers end with it.
            start_new_session=True,
            env={'TORCHINDUCTOR_CACHE_DIR': f'{self._folder.name}/compiled', **os.environ},
        )

    def __enter__(self) -> RivalProcess:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        self._kill()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._errors.close()
        self._folder.cleanup()

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(END_TIMEOUT_S)

    @property
    def has_ended(self) -> bool:
        """Return whether the process is no more."""
        return self._process.poll() is not None

    def load(
        self,
        model: str,
        *,
        folder: str | None,
        image_size: int | None,
        seed: int,
        device: str,
        dtype: str,
        threads: int | None,
        features: torch.Tensor,
    ) -> None:
        """Load the model and the image's features (image tokens, hidden size).

        folder: of a checkpoint; image_size and seed: of random weights. Raises RivalError.
        """
        import torch

        path = Path(self._folder.name) / 'features.pt'
        torch.save(features.cpu(), path)
        self._ask(
            {
                'model': model,
                'folder': folder,
                'image_size': image_size,
                'seed': seed,
                'device': device,
                'dtype': dtype,
                'threads': threads,
                'features': str(path),
            }
        )

    def answer(
        self,
        input_ids: Sequence[int],
        length: int,
        *,
        cache: str,
        removed: Sequence[int] = (),
        end_ids: Sequence[int] = (),
    ) -> dict[str, Any]:
        """Return token_ids, prefill_ms, decode_ms and peak_bytes of an answer.

        cache: 'dynamic', 'static', or 'compiled': static, and all tokens but the first from a
        compiled model; the first such answer of a length waits for the compiler. removed: blocks
        taken out. end_ids: tokens that end the answer, which is returned with it; without, it has
        `length` tokens. Raises RivalError.
        """
        return self._ask(
            {
                'input_ids': list(input_ids),
                'length': length,
                'cache': cache,
                'removed': sorted(removed),
                'end_ids': sorted(end_ids),
            }
        )

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        try:
            stdin.write(json.dumps(request) + '\n')
            stdin.flush()
            line = stdout.readline()
        except BrokenPipeError:
            line = ''
        if not line:
            self._kill()
            raise RivalError(f"Hugging Face's process ended ({self._last_error()})")
        reply = json.loads(line)
        if 'error' in reply:
            raise RivalError(f'Hugging Face failed ({reply["error"]})')
        self.peak_bytes = max(self.peak_bytes, reply.get('peak_bytes', 0))
        return reply

    def _last_error(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read().strip().splitlines()
        return lines[-1] if lines else f'exit status {self._process.poll()}'
