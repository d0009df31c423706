"""Hugging Face's `generate` over its own copy of the weights, in a process of its own.

    python -m gmskip_ros.benchmarks.hugging_face

Each line on stdin is a request, each line on stdout its reply, both JSON; the process ends with its
input. `rivals.RivalProcess` is the other end. Timed like the engine's own answers: prefill is
embedding, the pass over image and prompt and the choice of the first token; decode all the rest.
Image features are given, because the engine runs Hugging Face's vision tower itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import transformers

from gmskip_ros.benchmarks.conditions import peak_bytes, wake_cores
from gmskip_ros.benchmarks.random_weights import is_random, make_config, make_hf_model


class HuggingFace:
    """One loaded model and one prompt about one image; answers as often as asked."""

    def __init__(self, request: dict[str, Any]) -> None:
        """request: see rivals.RivalProcess.load."""
        if request['threads'] is not None:
            torch.set_num_threads(request['threads'])
        device, dtype = request['device'], request['dtype']
        if is_random(request['model']):
            config = make_config(request['model'], request['image_size'])
            self._model = make_hf_model(config, device, dtype, request['seed'])
        else:
            self._model = transformers.AutoModelForImageTextToText.from_pretrained(
                request['folder'],
                dtype=getattr(torch, dtype),
                use_safetensors=True,
                trust_remote_code=False,
            )
            self._model = self._model.to(device).eval().requires_grad_(False)
        # `generate` takes what a given generation_config leaves open, such as the end of sequence,
        # from the model's own.
        self._model.generation_config = transformers.GenerationConfig()
        for config in (self._model.config, self._model.config.text_config):
            config.eos_token_id = None
        self._device = device
        self._features = torch.load(request['features'], weights_only=True).to(device)

    @torch.inference_mode()
    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Return token ids (an end-of-sequence token included), prefill and decode times."""
        length, end_ids, cache = request['length'], request['end_ids'], request['cache']
        is_compiled = cache == 'compiled'
        settings = transformers.GenerationConfig(
            max_new_tokens=length,
            do_sample=False,
            eos_token_id=end_ids or None,
            pad_token_id=0,
            cache_implementation=None if cache == 'dynamic' else 'static',
            compile_config=_compile_on_any_device() if is_compiled else None,
            disable_compile=not is_compiled,
        )
        wake_cores()
        with _blocks_removed(self._model.model.language_model, request['removed']):
            first = _FirstToken(self._clock_ms)
            start_ms = self._clock_ms()
            ids = torch.tensor([request['input_ids']], device=self._device)
            embedded = self._model.get_input_embeddings()(ids)
            is_image = ids == self._model.config.image_token_id
            embedded[is_image] = self._features
            chosen = self._model.generate(
                inputs_embeds=embedded,
                attention_mask=torch.ones_like(ids),
                generation_config=settings,
                stopping_criteria=transformers.StoppingCriteriaList([first]),
            )[0].tolist()
            done_ms = self._clock_ms()
        if is_compiled and not hasattr(self._model, '_compiled_call'):
            raise RuntimeError('generate did not compile the model')
        return {
            'token_ids': chosen,
            'prefill_ms': first.at_ms - start_ms,
            'decode_ms': done_ms - first.at_ms,
            'peak_bytes': peak_bytes(),
        }

    def _clock_ms(self) -> float:
        if self._device.startswith('cuda'):
            torch.cuda.synchronize(self._device)
        return time.perf_counter() * 1e3


class _FirstToken(transformers.StoppingCriteria):
    """Stops nothing; notes when the first token was there."""

    def __init__(self, clock_ms: Any) -> None:
        self._clock_ms = clock_ms
        self.at_ms = float('nan')
        self._is_first = True

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        if self._is_first:
            self.at_ms, self._is_first = self._clock_ms(), False
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def _compile_on_any_device() -> transformers.CompileConfig:
    """Return Hugging Face's own settings; without the second line it compiles on GPUs only."""
    settings = transformers.CompileConfig()
    settings._compile_all_devices = True
    return settings


@contextlib.contextmanager
def _blocks_removed(decoder: Any, removed: Sequence[int]) -> Iterator[None]:
    """Take blocks out of the ModuleList and renumber layer_idx, within the block."""
    config, blocks = decoder.config, decoder.layers
    kinds = getattr(config, 'layer_types', None)
    kept = [index for index in range(len(blocks)) if index not in set(removed)]
    try:
        decoder.layers = torch.nn.ModuleList(blocks[index] for index in kept)
        for position, index in enumerate(kept):
            blocks[index].self_attn.layer_idx = position
        config.num_hidden_layers = len(kept)
        if kinds is not None:
            config.layer_types = [kinds[index] for index in kept]
        yield
    finally:
        decoder.layers, config.num_hidden_layers = blocks, len(blocks)
        for index, block in enumerate(blocks):
            block.self_attn.layer_idx = index
        if kinds is not None:
            config.layer_types = kinds


def main() -> None:
    """Answer requests until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the other end ends this process
    replies = os.fdopen(os.dup(1), 'w', encoding='utf-8')
    os.dup2(2, 1)  # what libraries print is not a reply
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    rival: HuggingFace | None = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if rival is None:
                rival, reply = HuggingFace(request), {}
            else:
                reply = rival.answer(request)
        except Exception as error:  # whatever the libraries raise: the other end reports it
            lines = str(error).strip().splitlines() or ['']
            reply = {'error': f'{type(error).__name__}: {lines[0]}'}
        print(json.dumps(reply), file=replies, flush=True)


if __name__ == '__main__':
    main()
