"""Conversations as prompts, through the model's own chat template.

Control tokens are the template's alone: what people write like them is text. Else whoever writes a message could end
it, and go on in another's name.
"""

import asyncio
import inspect
from collections.abc import Mapping, Sequence
from itertools import chain, zip_longest
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from engine import InvalidRequest
from server.marks import Marks
from server.prompts import Prompt, PromptReader
from server.schemas import Message, TemplateRequest
from server.text import Tokenizer
from server.turns import changed, texts

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
        turns = [message.for_template for message in messages]
        for text in texts(turns):
            self._prompts.check_length(text, "messages")
        marks = Marks()
        turns = await self._marked(turns, marks)
        rendered, literals = marks.split(await asyncio.to_thread(self._render, turns, options, variables or {}))
        self._prompts.check_length("".join([*rendered, *literals]), "messages")
        return Prompt(ids=await self._encode(rendered, literals, add_special_tokens))

    async def _marked(self, turns: list[dict[str, Any]], marks: Marks) -> list[dict[str, Any]]:
        """The turns with marks in place of control tokens."""
        spans = iter(await self._tokenizer.special_spans(texts(turns)))
        marked: list[dict[str, Any]] = changed(turns, lambda text: marks.put(text, next(spans)))
        return marked

    async def _encode(self, rendered: Sequence[str], literals: Sequence[str], add_special_tokens: bool) -> list[int]:
        """What the template wrote, with literals between its pieces."""
        if not literals:
            [ids] = await self._tokenizer.encode(rendered, add_special_tokens=add_special_tokens)
            return ids
        before, behind = self._tokenizer.frame if add_special_tokens else ([], [])
        pieces = await self._tokenizer.encode(rendered, add_special_tokens=False)
        between = await self._tokenizer.encode_literally(literals)
        return [*before, *chain(*chain(*zip_longest(pieces, between, fillvalue=[]))), *behind]

    def _render(
        self, turns: Sequence[Mapping[str, Any]], options: TemplateRequest, variables: Mapping[str, Any]
    ) -> str:
        try:
            text = self._tokenizer.render(
                turns,
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
