"""Conversations as prompts, through the model's own chat template.

Only the template writes control tokens: the name of one in a message is ordinary text. Otherwise a message could end
itself and continue in another role.
"""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from engine import InvalidRequest
from server.prompts.prompts import Prompt, PromptReader
from server.schemas import Message, TemplateRequest
from server.text.encoder import TooLong
from server.text.tokenizer import Tokenizer
from server.text.turns import texts

RESERVED = frozenset(inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters) | {"messages"}
"""Names that control the renderer itself (`chat_template`, `tokenize`, ...) and are no variables of a template."""


class ConversationReader:
    """Checks conversations before rendering them, because a template is a program."""

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
        """The conversation as a prompt. `variables`: for the template; `chat_template_kwargs` overrides them.

        Raises InvalidRequest if the model has no template, a variable has a reserved name, or the template fails, and
        ContextLengthExceeded for too many characters.
        """
        if not self._tokenizer.has_chat_template:
            raise InvalidRequest("This model has no chat template; use /v1/completions.", "messages")
        for name in options.chat_template_kwargs:
            if name in RESERVED:
                raise InvalidRequest(
                    f"`chat_template_kwargs` may hold variables of the template only, not `{name}`.",
                    "chat_template_kwargs",
                )
        turns = [message.for_template for message in messages]
        self._prompts.check_length(texts(turns), "messages")
        try:
            ids = await self._tokenizer.converse(
                turns,
                {**(variables or {}), **options.chat_template_kwargs},
                max_characters=self._prompts.max_characters,
                add_generation_prompt=options.opens_answer,
                continue_final_message=options.continue_final_message,
                add_special_tokens=add_special_tokens,
            )
        except TooLong as error:
            raise self._prompts.too_long(error.characters, "messages") from None
        return Prompt(ids=ids)
