"""Conversations as prompts, through the model's own chat template.

Only the template writes control tokens: the name of one in a message is ordinary text. Otherwise a message could end
itself and continue in another role.
"""

import inspect
import json
from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any

from transformers import PreTrainedTokenizerBase

from engine import InvalidRequest
from server.prompts.prompts import Prompt, PromptReader
from server.schemas import Message, TemplateRequest, Tool
from server.text.encoder import TooLong
from server.text.hermes import RESULT_ROLE
from server.text.tokenizer import Tokenizer
from server.text.turns import NoObject, texts

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
        tools: Sequence[Tool] = (),
        variables: Mapping[str, Any] | None = None,
    ) -> Prompt:
        """The conversation as a prompt. `tools`: those that the model sees.

        `variables`: for the template; `chat_template_kwargs` overrides them.

        Raises InvalidRequest if the model has no template, a variable has a reserved name, the arguments of a call are
        no object, an answer would go on behind a call, or the template fails, and ContextLengthExceeded for too many
        characters.
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
        if options.continue_final_message and ("tool_calls" in turns[-1] or turns[-1]["role"] == RESULT_ROLE):
            raise InvalidRequest(
                "`continue_final_message` goes on with a text; the last message ends with a call, or is a result.",
                "continue_final_message",
            )
        shown = [tool.for_template for tool in tools]
        shown_texts = [json.dumps(tool, ensure_ascii=False) for tool in shown]
        self._prompts.check_length(shown_texts, "tools")
        self._prompts.check_length([*texts(turns), *shown_texts], "messages")
        try:
            ids = await self._tokenizer.converse(
                turns,
                {**(variables or {}), **options.chat_template_kwargs},
                max_characters=self._prompts.max_characters,
                tools=shown,
                add_generation_prompt=options.opens_answer,
                continue_final_message=options.continue_final_message,
                add_special_tokens=add_special_tokens,
            )
        except NoObject as error:
            called = f"tool_calls.{error.call}.function" if messages[error.turn].tool_calls else "function_call"
            path = f"messages.{error.turn}.{called}.arguments"
            raise InvalidRequest(f"`{path}` must be the JSON text of an object.", path) from None
        except TooLong as error:
            raise self._prompts.too_long(error.characters, "messages") from None
        return Prompt(ids=ids)

    async def count_before_last(
        self,
        ids: Sequence[int],
        messages: Sequence[Message],
        options: TemplateRequest,
        *,
        add_special_tokens: bool,
        tools: Sequence[Tool] = (),
        variables: Mapping[str, Any] | None = None,
    ) -> int:
        """How many first tokens of the conversation `ids` are the same without the last message of the user, and all
        behind it: 0 where there is none, or where the template takes no such conversation."""
        last = max((place for place, message in enumerate(messages) if message.role == "user"), default=0)
        if not last:
            return 0
        closed = options.model_copy(update={"add_generation_prompt": False, "continue_final_message": False})
        try:
            before = await self.read(
                messages[:last], closed, add_special_tokens=add_special_tokens, tools=tools, variables=variables
            )
        except InvalidRequest:
            return 0
        return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(ids, before.ids, strict=False)))
