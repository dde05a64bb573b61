"""The wire types of a conversation, and of what a request may tell the model's chat template."""

import json
import re
from itertools import accumulate
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, PlainValidator, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from server.schemas.tools import Tools
from server.schemas.wire import Text, WireRequest, check_unicode

MAX_MESSAGES = 1024
MAX_TOOL_CALLS = 128
MAX_KWARGS = 32
MAX_KWARGS_LENGTH = 8192
"""Characters of `chat_template_kwargs` as JSON."""

Role = Literal["developer", "system", "user", "assistant", "tool", "function"]
KNOWN_ROLES = {"developer": "system", "function": "tool"}
Name = Annotated[str, Field(max_length=256), AfterValidator(check_unicode)]


class TextPart(WireRequest):
    """A piece of a message's content. Images, audio and files are refused."""

    type: Literal["text"]
    text: Text
    prompt_cache_breakpoint: Any = None
    """Accepted, and without effect."""


class RefusalPart(WireRequest):
    """The assistant's words where it refused: text as any other."""

    type: Literal["refusal"]
    refusal: Text


def _read_content(value: Any, info: ValidationInfo) -> str | tuple[TextPart | RefusalPart, ...]:
    """By hand, for an error that names what is wrong with a part."""
    if isinstance(value, str):
        return check_unicode(value)
    is_answer = info.data.get("role") == "assistant"
    if not isinstance(value, list) or not (value or is_answer):
        raise PydanticCustomError("content", "must be a string or a list of text parts")
    return tuple(_read_part(part, is_answer) for part in value)


def _read_part(part: Any, is_answer: bool) -> TextPart | RefusalPart:
    match part:
        case {"type": "text", "text": str(text)}:
            check_unicode(text)
            return TextPart.model_validate(part)
        case {"type": "refusal", "refusal": str(text)} if is_answer:
            check_unicode(text)
            return RefusalPart.model_validate(part)
        case {"type": str(kind)} if kind not in ("text", "refusal"):
            message = "may hold parts of type `text` only: the model reads and writes text, no images, audio or files"
        case {"type": "refusal"} if not is_answer:
            message = "may hold parts of type `refusal` only in a message of the assistant"
        case {"type": "refusal"}:
            message = 'must hold refusals of the form {"type": "refusal", "refusal": "..."}'
        case _:
            message = 'must hold parts of the form {"type": "text", "text": "..."}'
    raise PydanticCustomError("content", message)


_AnyContent = str | list[TextPart | RefusalPart]


class FunctionCall(WireRequest):
    """What the assistant called."""

    name: Name
    arguments: Text = ""
    """The JSON text of an object; empty is an object without members. It is parsed where it is rendered."""


class ToolCall(WireRequest):
    """A call within a message of the assistant, as an application's history has it."""

    id: Name | None = None
    type: Literal["function"] = "function"
    function: FunctionCall


class Message(WireRequest):
    """One turn of a conversation. `developer` is read as `system`, and `function` as `tool`, which models know."""

    role: Role
    text_or_parts: Annotated[
        str | tuple[TextPart | RefusalPart, ...], PlainValidator(_read_content, json_schema_input_type=_AnyContent)
    ] = Field(default=(), alias="content")
    """A text, or a list of text parts, which are joined by line breaks. Only the assistant may have none."""
    name: Name | None = None
    """For templates that show it."""
    tool_call_id: Name | None = None
    """Of a tool: the call that this is the result of. For templates that show it."""
    tool_calls: Annotated[list[ToolCall], Field(max_length=MAX_TOOL_CALLS)] = Field(default_factory=list)
    """Of the assistant: what it called."""
    function_call: FunctionCall | None = None
    """The older form of a single one of `tool_calls`."""
    reasoning_content: Text | None = None
    """Of the assistant, for templates that show it."""
    reasoning: Text | None = None
    """The newer name of `reasoning_content`."""
    refusal: Text | None = None
    """Of the assistant: its words where it has no `content`."""
    annotations: Any = None
    """Accepted, and without effect."""
    audio: None = None
    """Not supported: only null."""

    @field_validator("tool_calls", "function_call", "refusal")
    @classmethod
    def _only_of_the_assistant(cls, value: Any, info: ValidationInfo) -> Any:
        if value and info.data.get("role") != "assistant":
            raise PydanticCustomError("role", "is only for messages of the assistant")
        return value

    @model_validator(mode="after")
    def _has_content(self) -> "Message":
        if self.role != "assistant" and self.text_or_parts == ():
            raise PydanticCustomError("content", "needs `content`")
        return self

    @property
    def content(self) -> str:
        if isinstance(self.text_or_parts, str):
            return self.text_or_parts
        texts = [part.text if isinstance(part, TextPart) else part.refusal for part in self.text_or_parts]
        return "\n".join(texts) if texts else self.refusal or ""

    @property
    def for_template(self) -> dict[str, Any]:
        """As templates expect it, but for the arguments of calls, which are texts (`server.text.turns`)."""
        role = KNOWN_ROLES.get(self.role, self.role)
        reasoning = self.reasoning_content or self.reasoning
        given = {
            "name": self.name,
            "tool_call_id": self.tool_call_id,
            "tool_calls": self._calls or None,
            "reasoning_content": reasoning,
            "reasoning": reasoning,
        }
        return {
            "role": role,
            "content": self.content,
            **{key: value for key, value in given.items() if value is not None},
        }

    @property
    def _calls(self) -> list[dict[str, Any]]:
        calls = self.tool_calls or [ToolCall(function=call) for call in (self.function_call,) if call]
        return [
            {
                "id": call.id or "",
                "type": call.type,
                "function": {"name": call.function.name, "arguments": call.function.arguments},
            }
            for call in calls
        ]


Messages = Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)]


def _check_kwargs(kwargs: dict[str, Any]) -> dict[str, Any]:
    if len(kwargs) > MAX_KWARGS or not all(re.fullmatch(r"[A-Za-z_]\w{0,63}", key, re.ASCII) for key in kwargs):
        raise PydanticCustomError("kwargs", f"may hold {MAX_KWARGS} values under names of up to 64 letters")
    try:
        # Piece by piece, which ends where it is too long.
        pieces = accumulate(map(len, json.JSONEncoder(allow_nan=False).iterencode(kwargs)))
        is_short = all(length <= MAX_KWARGS_LENGTH for length in pieces)
    except (ValueError, RecursionError):
        raise PydanticCustomError("kwargs", "must hold finite numbers, and not be nested deeply") from None
    if not is_short:
        raise PydanticCustomError("kwargs", f"must not be longer than {MAX_KWARGS_LENGTH} characters")
    return kwargs


class TemplateRequest(WireRequest):
    """What a request may tell the chat template, which is always the model's own."""

    tools: Tools = Field(default_factory=list)
    """Functions that the model may call; at most 128, each of its own name."""
    continue_final_message: bool = False
    """Leave the last message open, for the answer to go on with it."""
    add_generation_prompt: bool | None = None
    """End the prompt with the beginning of the assistant's turn; absent is true unless `continue_final_message` is."""
    chat_template_kwargs: Annotated[dict[str, Any], AfterValidator(_check_kwargs)] = Field(default_factory=dict)
    """Variables for the template, such as `enable_thinking`; at most 32, and 8192 characters of JSON."""

    @field_validator("add_generation_prompt")
    @classmethod
    def _either_or(cls, add: bool | None, info: ValidationInfo) -> bool | None:
        if add and info.data.get("continue_final_message"):
            raise PydanticCustomError("template", "cannot be true together with `continue_final_message`")
        return add

    @property
    def opens_answer(self) -> bool:
        """Whether the prompt ends with the beginning of the assistant's turn."""
        return not self.continue_final_message if self.add_generation_prompt is None else self.add_generation_prompt
