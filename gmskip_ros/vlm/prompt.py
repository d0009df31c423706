"""Text to token ids and back, with the checkpoint's own tokenizer and chat template."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from gmskip_ros.vlm.errors import PromptError

# LLaVA-1.5's prompt, for checkpoints whose processor has no chat template.
FALLBACK_TEMPLATE = 'USER: <image>\n{prompt} ASSISTANT:'


class ChatTokenizer:
    """One checkpoint's tokenizer and chat template.

    Attributes: image_token and image_token_id (the placeholder that the image's features replace),
    template_sha256 (hash of the chat template in use).
    """

    def __init__(
        self, model_name: str, tokenizer: Any, chat_template: str | None, image_token_id: int
    ) -> None:
        """tokenizer: Hugging Face's; chat_template None: LLaVA-1.5's prompt."""
        self._model_name = model_name
        self._tokenizer = tokenizer
        self._chat_template = chat_template
        self.image_token_id = image_token_id
        self.image_token: str = tokenizer.convert_ids_to_tokens(image_token_id)
        template = FALLBACK_TEMPLATE if chat_template is None else chat_template
        self.template_sha256 = hashlib.sha256(template.encode()).hexdigest()

    def render(self, prompt: str) -> str:
        """Return `prompt` in the chat template, with exactly one image placeholder in it.

        Raises PromptError.
        """
        self.check_text('prompt', prompt)
        if self._chat_template is None:
            text = FALLBACK_TEMPLATE.format(prompt=prompt).replace('<image>', self.image_token, 1)
        else:
            content = [{'type': 'image'}, {'type': 'text', 'text': prompt}]
            text = self._tokenizer.apply_chat_template(
                [{'role': 'user', 'content': content}],
                chat_template=self._chat_template,
                add_generation_prompt=True,
                tokenize=False,
            )
        if text.count(self.image_token) != 1:
            raise PromptError(
                f'the chat template of {self._model_name} gives {text.count(self.image_token)} '
                'image placeholders instead of 1: use a checkpoint with a template for images'
            )
        return text

    def input_ids(self, prompt: str, num_image_tokens: int) -> list[int]:
        """Return the whole prompt's token ids, the image token `num_image_tokens` times."""
        text = self.render(prompt)
        # Expanded as text, as Hugging Face's processors do, so that tokenization is theirs as well.
        text = text.replace(self.image_token, self.image_token * num_image_tokens)
        start = self._tokenizer.bos_token  # some templates contain it already
        adds_start = start is None or not text.startswith(start)
        return self._tokenizer(text, add_special_tokens=adds_start)['input_ids']

    def token_ids(self, text: str) -> tuple[int, ...]:
        """Return the token ids of a text alone, without special tokens around it."""
        return tuple(self._tokenizer(text, add_special_tokens=False)['input_ids'])

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of an answer's tokens."""
        return self._tokenizer.decode(list(token_ids), skip_special_tokens=True).strip()

    def check_text(self, name: str, text: str) -> None:
        """Raise PromptError unless `text`, called `name` in the message, is usable text."""
        if not isinstance(text, str):
            raise PromptError(f'{name} is a {type(text).__name__}: give text')
        if self.image_token in text:
            raise PromptError(
                f'{name} contains {self.image_token!r}, which stands for the image: remove it'
            )
        try:
            text.encode()
        except UnicodeEncodeError:
            raise PromptError(f'{name} {text!r} is not valid Unicode text') from None


def end_of_sequence_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """Return the tokens that end an answer: the generation config's, else the model's."""
    for source in (model.generation_config, model.config.text_config, tokenizer):
        ids = getattr(source, 'eos_token_id', None)
        if ids is not None:
            return frozenset(ids if isinstance(ids, (list, tuple)) else [ids])
    return frozenset()
