"""Conversations as prompts, through the model's own chat template."""

import asyncio
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from engine import InvalidRequest
from server.prompts import Prompt, PromptReader
from server.schemas import Message, TemplateRequest
from server.text import Tokenizer

RESERVED = frozenset(inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters) | {"messages"}
"""Names that steer the renderer itself (`chat_template`, `tokenize`, ...) and are no variables of a template."""


class ConversationReader:
    """Renders and tokenises conversations in a thread: a template is a program."""

    def __init__(self, tokenizer: Tokenizer, prompts: PromptReader) -> None:
        self._tokenizer = tokenizer
        self._prompts = prompts

    async def read(
        self,
        messages: Sequence[Message],
        options: TemplateRequest,
        *,
        add_special_tokens: bool,
        variables: Mapping[str, Any] | None = None,
    ) -> Prompt:
        """Raises InvalidRequest if the model has no template or the template refuses."""
        if not self._tokenizer.has_chat_template:
            raise InvalidRequest("This model has no chat template; use /v1/completions.", "messages")
        for name in options.chat_template_kwargs:
            if name in RESERVED:
                raise InvalidRequest(
                    f"`chat_template_kwargs` may hold variables of the template only, not `{name}`.",
                    "chat_template_kwargs",
                )
        for message in messages:
            self._prompts.check_length(message.content, "messages")
        text = await asyncio.to_thread(self._render, messages, options, variables or {})
        self._prompts.check_length(text, "messages")
        [ids] = await self._tokenizer.encode([text], add_special_tokens=add_special_tokens)
        return Prompt(ids=ids)

    def _render(self, messages: Sequence[Message], options: TemplateRequest, variables: Mapping[str, Any]) -> str:
        try:
            text = self._tokenizer.render(
                [message.for_template for message in messages],
                add_generation_prompt=options.opens_answer,
                continue_final_message=options.continue_final_message,
                variables={**variables, **options.chat_template_kwargs},
            )
            text.encode()
        except TemplateError as error:  # its words are the template's author's
            raise InvalidRequest(f"The model's chat template refuses this: {error!s:.200}", "messages") from None
        except Exception as error:
            raise InvalidRequest("The model's chat template cannot render this.", "messages") from error
        return text
