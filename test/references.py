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

from gmskip_ros.vlm.linear import DenseLinear
from gmskip_ros.vlm.quantization import num_parameters


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

    def whole_sequence(self, image: np.ndarray, prompt: str, ids: Sequence[int]):
        """Return the inputs of a prompt and the tokens after it, and the prompt's length."""
        inputs = self.inputs([image], [prompt])
        length = inputs['input_ids'].shape[1]
        given = torch.tensor([[*ids]], dtype=torch.long)
        inputs['input_ids'] = torch.cat((inputs['input_ids'], given), dim=1)
        inputs['attention_mask'] = torch.ones_like(inputs['input_ids'])
        inputs.pop('token_type_ids', None)
        return inputs, length

    def states(self, image: np.ndarray, prompt: str, ids: Sequence[int]):
        """Return the states before every block and after the last (each (T, H)), the attention
        (blocks, N, T, T), which of the T tokens are the image's, and the prompt's length.

        The last entry of output_hidden_states is after the final norm, so the last block is hooked.
        """
        inputs, length = self.whole_sequence(image, prompt, ids)
        left = []
        hook = self.model.model.language_model.layers[-1].register_forward_hook(
            lambda module, arguments, output: left.append(output)
        )
        usual = self.model.config._attn_implementation
        self.model.set_attn_implementation('eager')
        try:
            with torch.inference_mode():
                output = self.model(
                    **inputs, use_cache=False, output_hidden_states=True, output_attentions=True
                )
        finally:
            hook.remove()
            self.model.set_attn_implementation(usual)
        last = left[0][0] if isinstance(left[0], tuple) else left[0]
        states = [state[0] for state in output.hidden_states[:-1]] + [last[0]]
        is_image = inputs['input_ids'][0] == self.model.config.image_token_id
        return states, torch.stack(output.attentions)[:, 0], is_image, length

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


def stored_bytes_of_weights(vlm) -> int:
    """Return the bytes of a loaded model's weights: Hugging Face's, and what replaced some of them.

    Layers that the vision tower does not run count as well.
    """
    weights = list(vlm._model.parameters())
    linears = [vlm.decoder.lm_head]
    for block in vlm.decoder.blocks:
        linears += [block.qkv, block.o, block.gate_up, block.down]
    kept = sum(weight.nbytes for weight in weights if not weight.is_meta)
    replaced = sum(linear.nbytes for linear in linears if not isinstance(linear, DenseLinear))
    not_run = vlm.num_parameters - num_parameters(vlm._model)
    return kept + replaced + not_run * weights[0].itemsize


class Definition:
    """The design's definition of skipping, for one unpadded row: token by token, in float64."""

    def __init__(self, reference: HfReference) -> None:
        self.model = reference.model
        self.decoder = self.model.model.language_model
        self.config = self.decoder.config

    @torch.inference_mode()
    def greedy(
        self,
        inputs,
        steps: int,
        prefill: Sequence[int] = (),
        decode: Sequence[int] = (),
        image: Sequence[int] = (),
        kv: str = 'none',
        image_kv: str = 'input',
    ) -> tuple[list[int], np.ndarray]:
        """Return token ids and logits (steps, vocab) under the skip set of these fields."""
        ids = inputs['input_ids'][0]
        images = {key: inputs[key] for key in ('pixel_values', 'image_sizes') if key in inputs}
        features = torch.cat(list(self.model.get_image_features(**images).pooler_output))
        is_image = ids == self.model.config.image_token_id
        prompt = self.decoder.embed_tokens(ids)
        prompt[is_image] = features
        hidden = list(prompt.double())
        kinds = ['image' if found else 'text' for found in is_image]

        def runs(kind: str, block: int) -> bool:
            if kind == 'answer':
                return block not in decode
            return block not in prefill and not (kind == 'image' and block in image)

        def stores(kind: str, block: int) -> bool:
            if runs(kind, block):
                return True
            skips_as_image = kind == 'image' and block not in prefill
            return (image_kv if skips_as_image else kv) == 'input'

        chosen_ids, chosen_logits = [], []
        for _ in range(steps):
            last = self._run(hidden, kinds, runs, stores)[-1]
            logits = self.model.lm_head.weight.double() @ self._norm(last, self.decoder.norm)
            chosen_logits.append(logits.numpy())
            chosen_ids.append(int(logits.argmax()))
            newest = self.decoder.embed_tokens(torch.tensor(chosen_ids[-1]))
            hidden, kinds = [*hidden, newest.double()], [*kinds, 'answer']
        return chosen_ids, np.stack(chosen_logits)

    def _run(self, hidden: list, kinds: list[str], runs, stores) -> list[torch.Tensor]:
        """Return the tokens' states (H,) after all blocks; runs, stores: (kind, block) -> bool."""
        heads, kv_heads = self.config.num_attention_heads, self.config.num_key_value_heads
        for index, block in enumerate(self.decoder.layers):
            attention, mlp = block.self_attn, block.mlp
            keys, values = {}, {}  # by position: (heads, head size), each for a group of queries
            for position, (x, kind) in enumerate(zip(hidden, kinds, strict=True)):
                if stores(kind, index):
                    normed = self._norm(x, block.input_layernorm)
                    key = self._rotate(self._linear(attention.k_proj, normed), kv_heads, position)
                    value = self._linear(attention.v_proj, normed).view(kv_heads, -1)
                    keys[position] = key.repeat_interleave(heads // kv_heads, dim=0)
                    values[position] = value.repeat_interleave(heads // kv_heads, dim=0)
            after = []
            for position, (x, kind) in enumerate(zip(hidden, kinds, strict=True)):
                if not runs(kind, index):
                    after.append(x)
                    continue
                normed = self._norm(x, block.input_layernorm)
                query = self._rotate(self._linear(attention.q_proj, normed), heads, position)
                seen = [other for other in keys if self._sees(index, position, other)]
                scores = torch.stack([(query * keys[other]).sum(dim=-1) for other in seen])
                weights = (scores / query.shape[-1] ** 0.5).softmax(dim=0)  # (seen, heads)
                attended = (weights[..., None] * torch.stack([values[i] for i in seen])).sum(dim=0)
                x = x + self._linear(attention.o_proj, attended.flatten())
                normed = self._norm(x, block.post_attention_layernorm)
                gate, up = self._linear(mlp.gate_proj, normed), self._linear(mlp.up_proj, normed)
                after.append(x + self._linear(mlp.down_proj, gate * gate.sigmoid() * up))
            hidden = after
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

    def _norm(self, x: torch.Tensor, norm: torch.nn.Module) -> torch.Tensor:
        mean_square = x.square().mean(dim=-1, keepdim=True)
        return x / (mean_square + self.config.rms_norm_eps).sqrt() * norm.weight.double()

    @staticmethod
    def _linear(linear: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
        y = linear.weight.double() @ x
        return y if linear.bias is None else y + linear.bias.double()

    def _rotate(self, x: torch.Tensor, heads: int, position: int) -> torch.Tensor:
        """Return x as (heads, head size), pairs (d, d + half) rotated by position x frequency."""
        x = x.view(heads, -1)
        half = x.shape[-1] // 2
        theta = self.config.rope_parameters['rope_theta']
        angles = position * theta ** (-torch.arange(half, dtype=torch.float64) / half)
        first, second = x[:, :half], x[:, half:]
        return torch.cat(
            (
                first * angles.cos() - second * angles.sin(),
                second * angles.cos() + first * angles.sin(),
            ),
            dim=-1,
        )
