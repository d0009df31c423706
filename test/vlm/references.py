"""What the engine is held against: Hugging Face's own model, and the definition written out.

Neither uses a key/value cache: every step recomputes the whole sequence.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import transformers
from PIL import Image
from tiny_models import IMAGE_SIZE, PATCH_SIZE
from transformers.models.auto.image_processing_auto import AutoImageProcessor


class HfReference:
    """Hugging Face's model and processor of one checkpoint.

    LLaVA-1.5's processor is set to pad to a square, as `image_fit: auto` does for it, unless the
    images are to be fitted as the checkpoint says.
    """

    def __init__(self, folder: Path, image_fit: str = 'auto') -> None:
        self.model = transformers.AutoModelForImageTextToText.from_pretrained(
            folder, dtype=torch.float32
        ).eval()
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder, padding_side='left')
        image_processor = AutoImageProcessor.from_pretrained(folder, backend='pil')
        if self.model.config.model_type == 'llava' and image_fit != 'checkpoint':
            settings = {**image_processor.to_dict(), 'do_pad': True}
            image_processor = transformers.LlavaImageProcessorPil(**settings)
        arguments = {'image_processor': image_processor, 'tokenizer': self.tokenizer}
        options = {'patch_size': PATCH_SIZE, 'vision_feature_select_strategy': 'default'}
        options['num_additional_image_tokens'] = 1
        if self.model.config.model_type == 'llava':
            self.processor = transformers.LlavaProcessor(**arguments, **options)
        elif self.model.config.model_type == 'llava_next':
            self.processor = transformers.LlavaNextProcessor(**arguments, **options)
        else:  # its constructor wants a video processor, which wants torchvision
            cls = transformers.LlavaOnevisionProcessor
            self.processor = cls.__new__(cls)
            options = {
                'num_image_tokens': (IMAGE_SIZE // PATCH_SIZE) ** 2,
                'vision_feature_select_strategy': 'full',
                'vision_aspect_ratio': 'anyres_max_9',
                'image_token': '<image>',
                'image_token_id': self.tokenizer.convert_tokens_to_ids('<image>'),
                'video_token': '<video>',
                'video_token_id': self.tokenizer.convert_tokens_to_ids('<video>'),
                'chat_template': None,
            }
            for name, value in {**arguments, **options}.items():
                setattr(self.processor, name, value)

    def adopt_vision_strategy(self) -> None:
        """Take over which tokens of the vision tower the checkpoint's config.json uses."""
        strategy = self.model.config.vision_feature_select_strategy
        self.processor.vision_feature_select_strategy = strategy

    def inputs(self, images: Sequence[np.ndarray], prompts: Sequence[str]):
        """Return the processor's own batch, left-padded, of prompts in LLaVA-1.5's template."""
        texts = [f'USER: <image>\n{prompt} ASSISTANT:' for prompt in prompts]
        pictures = [[Image.fromarray(image)] for image in images]
        return self.processor(text=texts, images=pictures, padding=True, return_tensors='pt')

    @contextlib.contextmanager
    def blocks_removed(self, removed: Sequence[int]) -> Iterator[None]:
        """Take blocks out of the ModuleList; renumber layer_idx; keep the others' layer types."""
        decoder = self.model.model.language_model
        config = decoder.config
        blocks, count = decoder.layers, config.num_hidden_layers
        kinds = getattr(config, 'layer_types', None)
        kept = [index for index in range(count) if index not in set(removed)]
        try:
            decoder.layers = torch.nn.ModuleList(blocks[index] for index in kept)
            for position, index in enumerate(kept):
                blocks[index].self_attn.layer_idx = position
            config.num_hidden_layers = len(kept)
            if kinds is not None:
                config.layer_types = [kinds[index] for index in kept]
            yield
        finally:
            decoder.layers, config.num_hidden_layers = blocks, count
            for index, block in enumerate(blocks):
                block.self_attn.layer_idx = index
            if kinds is not None:
                config.layer_types = kinds

    @torch.inference_mode()
    def greedy(self, inputs, steps: int) -> tuple[list[list[int]], np.ndarray]:
        """Return the next `steps` token ids of each row and their logits (rows, steps, vocab)."""
        ids, mask = inputs['input_ids'], inputs['attention_mask']
        images = {key: inputs[key] for key in ('pixel_values', 'image_sizes') if key in inputs}
        prompt_length, chosen = ids.shape[1], []
        for _ in range(steps):
            positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
            logits = self.model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                use_cache=False,
                logits_to_keep=1,
                **images,
            ).logits[:, -1]
            chosen.append(logits.numpy())
            ids = torch.cat((ids, logits.argmax(dim=-1, keepdim=True)), dim=1)
            mask = torch.cat((mask, mask.new_ones(len(mask), 1)), dim=1)
        return ids[:, prompt_length:].tolist(), np.stack(chosen, axis=1)


class Definition:
    """The design's definition of skipping, for one unpadded row, written out in plain tensors."""

    def __init__(self, reference: HfReference) -> None:
        self.model = reference.model
        self.decoder = self.model.model.language_model
        self.config = self.decoder.config

    @torch.inference_mode()
    def greedy(
        self, inputs, steps: int, prefill: Sequence[int], decode: Sequence[int]
    ) -> tuple[list[int], np.ndarray]:
        """Return token ids and logits (steps, vocab) with each phase's own skip set."""
        ids = inputs['input_ids'][0]
        images = {key: inputs[key] for key in ('pixel_values', 'image_sizes') if key in inputs}
        features = torch.cat(list(self.model.get_image_features(**images).pooler_output))
        prompt = self.decoder.embed_tokens(ids)
        prompt[ids == self.model.config.image_token_id] = features
        skipped = [set(prefill)] * len(prompt)  # per token, by the phase that processes it
        hidden, chosen_ids, chosen_logits = prompt, [], []
        for _ in range(steps):
            last = self._run(hidden, skipped)[-1]
            logits = self._norm(last, self.decoder.norm.weight) @ self.model.lm_head.weight.T
            chosen_logits.append(logits.numpy())
            chosen_ids.append(int(logits.argmax()))
            newest = self.decoder.embed_tokens(torch.tensor(chosen_ids[-1:]))
            hidden, skipped = torch.cat((hidden, newest)), [*skipped, set(decode)]
        return chosen_ids, np.stack(chosen_logits)

    def _run(self, hidden: torch.Tensor, skipped: list[set[int]]) -> torch.Tensor:
        """Run a whole sequence (tokens, hidden size), whose tokens skip their own blocks."""
        hidden = hidden.clone()
        for index, block in enumerate(self.decoder.layers):
            runs = [token for token, blocks in enumerate(skipped) if index not in blocks]
            if not runs:
                continue
            attention, x = block.self_attn, hidden[runs]
            normed = self._norm(x, block.input_layernorm.weight)
            heads, kv_heads = self.config.num_attention_heads, self.config.num_key_value_heads
            query = self._rotate(self._heads(attention.q_proj, normed, heads), runs)
            key = self._rotate(self._heads(attention.k_proj, normed, kv_heads), runs)
            value = self._heads(attention.v_proj, normed, kv_heads)
            sees = torch.tensor([[self._sees(index, i, j) for j in runs] for i in runs])
            key = key.repeat_interleave(heads // kv_heads, dim=1)  # each serves a group of heads
            value = value.repeat_interleave(heads // kv_heads, dim=1)
            scores = torch.einsum('qhd,khd->hqk', query, key) / query.shape[-1] ** 0.5
            weights = scores.masked_fill(~sees, -torch.inf).softmax(dim=-1)
            attended = torch.einsum('hqk,khd->qhd', weights, value)
            x = x + attention.o_proj(attended.flatten(1))
            normed = self._norm(x, block.post_attention_layernorm.weight)
            gate, up, down = block.mlp.gate_proj, block.mlp.up_proj, block.mlp.down_proj
            hidden[runs] = x + down(torch.nn.functional.silu(gate(normed)) * up(normed))
        return hidden

    def _sees(self, block: int, token: int, other: int) -> bool:
        if self.config.model_type == 'mistral':
            window = self.config.sliding_window
        elif self.config.model_type == 'qwen2':
            sliding = self.config.layer_types[block] == 'sliding_attention'
            window = self.config.sliding_window if sliding else None
        else:
            window = None
        return other <= token and (window is None or token - other < window)

    def _norm(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        mean_square = x.square().mean(dim=-1, keepdim=True)
        return x / (mean_square + self.config.rms_norm_eps).sqrt() * weight

    @staticmethod
    def _heads(projection: torch.nn.Module, x: torch.Tensor, heads: int) -> torch.Tensor:
        return projection(x).view(len(x), heads, -1)  # (tokens, heads, head size)

    def _rotate(self, x: torch.Tensor, positions: list[int]) -> torch.Tensor:
        """Rotate pairs (d, d + half) of x (tokens, heads, head size) by position x frequency."""
        half = x.shape[-1] // 2
        theta = self.config.rope_parameters['rope_theta']
        frequencies = theta ** (-torch.arange(half) / half)
        angles = torch.tensor(positions)[:, None, None] * frequencies
        first, second = x[..., :half], x[..., half:]
        return torch.cat(
            (
                first * angles.cos() - second * angles.sin(),
                second * angles.cos() + first * angles.sin(),
            ),
            dim=-1,
        )
