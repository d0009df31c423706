"""Text to token ids and back, with the checkpoint's own tokenizer and chat template."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from gmskip_ros.vlm.errors import PromptError

VICUNA_TEMPLATE = 'USER: <image>\n{prompt} ASSISTANT:'  # LLaVA-1.5's, on a Vicuna
PROBE = 'What is this?'


class ChatTokenizer:
    """One checkpoint's tokenizer and chat template.

    Attributes: image_token and image_token_id (the placeholder that the image's features replace),
    template_sha256 (hash of the chat template in use).
    """

    def __init__(
        self, model_name: str, tokenizer: Any, chat_template: str | None, image_token_id: int
    ) -> None:
        """tokenizer: Hugging Face's; chat_template: Jinja, or None for LLaVA-1.5's on a Vicuna.

        Most templates take a message's content as a list of parts, image and text. Those of text
        models take a string: then the image placeholder stands before the text, on its own line.
        """
        self._model_name = model_name
        self._tokenizer = tokenizer
        self._chat_template = chat_template
        self.image_token_id = image_token_id
        self.image_token: str = tokenizer.convert_ids_to_tokens(image_token_id)
        template = VICUNA_TEMPLATE if chat_template is None else chat_template
        self.template_sha256 = hashlib.sha256(template.encode()).hexdigest()
        self._takes_parts = chat_template is not None and self._takes_content(self._parts_of(PROBE))

    def render(self, prompt: str) -> str:
        """Return `prompt` in the chat template, with exactly one image placeholder in it.

        Raises PromptError.
        """
        self.check_text('prompt', prompt)
        if self._chat_template is None:
            text = VICUNA_TEMPLATE.format(prompt=prompt).replace('<image>', self.image_token, 1)
        elif self._takes_parts:
            text = self._apply_template(self._parts_of(prompt))
        else:
            text = self._apply_template(f'{self.image_token}\n{prompt}')
        if text.count(self.image_token) != 1:
            raise PromptError(
                f'the chat template of {self._model_name} gives {text.count(self.image_token)} '
                'image placeholders instead of 1: use a checkpoint with a template for images'
            )
        return text

    @staticmethod
    def _parts_of(prompt: str) -> list[dict[str, str]]:
        return [{'type': 'image'}, {'type': 'text', 'text': prompt}]

    def _takes_content(self, content: list[dict[str, str]]) -> bool:
        """Return whether the template writes one image and the text of a content of parts."""
        try:
            text = self._apply_template(content)
        except Exception:  # whatever Jinja or the template raises over a list
            return False
        return text.count(self.image_token) == 1 and PROBE in text

    def _apply_template(self, content: str | list[dict[str, str]]) -> str:
        return self._tokenizer.apply_chat_template(
            [{'role': 'user', 'content': content}],
            chat_template=self._chat_template,
            add_generation_prompt=True,
            tokenize=False,
        )

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
