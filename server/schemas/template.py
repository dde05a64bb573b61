"""The wire types of a conversation, and of what a request may tell the model's chat template."""

import json
import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, PlainValidator, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from server.schemas.wire import WireRequest, check_unicode

MAX_MESSAGES = 1024
MAX_KWARGS = 32
MAX_KWARGS_LENGTH = 8192
"""Characters of `chat_template_kwargs` as JSON."""

Role = Literal["developer", "system", "user", "assistant", "tool", "function"]
Text = Annotated[str, AfterValidator(check_unicode)]


class TextPart(WireRequest):
    """A piece of a message's content. Images, audio and files are refused."""

    type: Literal["text"]
    text: Text


def _read_content(value: Any) -> str:
    """By hand, for an error that names what is wrong with a part."""
    if isinstance(value, str):
        return check_unicode(value)
    if not isinstance(value, list) or not value:
        raise PydanticCustomError("content", "must be a string or a list of text parts")
    return "\n".join(map(_read_part, value))


def _read_part(part: Any) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if isinstance(kind, str) and kind != "text":
        message = "may hold parts of type `text` only: the model reads and writes text, no images, audio or files"
        raise PydanticCustomError("content", message)
    if kind != "text" or not isinstance(part.get("text"), str):
        raise PydanticCustomError("content", 'must hold parts of the form {"type": "text", "text": "..."}')
    return check_unicode(part["text"])


_AnyContent = str | Annotated[list[TextPart], Field(min_length=1)]


class Message(WireRequest):
    """One turn of a conversation. `developer` is read as `system`, which is what models know."""

    role: Role
    content: Annotated[str, PlainValidator(_read_content, json_schema_input_type=_AnyContent)] = ""
    """A text, or a list of text parts, which are joined by line breaks. Only the assistant may have none."""
    name: Annotated[str, Field(max_length=256), AfterValidator(check_unicode)] | None = None
    """For templates that show it."""
    tool_call_id: Annotated[str, Field(max_length=256), AfterValidator(check_unicode)] | None = None
    """For templates that show it."""
    tool_calls: Annotated[list[Any], Field(max_length=0)] = Field(default_factory=list)
    """Not supported: only an empty list."""
    function_call: None = None
    """Not supported: only null."""

    @model_validator(mode="after")
    def _has_content(self) -> "Message":
        if self.role != "assistant" and "content" not in self.model_fields_set:
            raise PydanticCustomError("content", "needs `content`")
        return self

    @property
    def for_template(self) -> dict[str, str]:
        """As templates expect it."""
        role = "system" if self.role == "developer" else self.role
        given = {"name": self.name, "tool_call_id": self.tool_call_id}
        return {"role": role, "content": self.content, **{key: text for key, text in given.items() if text is not None}}


Messages = Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)]


def _check_kwargs(kwargs: dict[str, Any]) -> dict[str, Any]:
    if len(kwargs) > MAX_KWARGS or not all(re.fullmatch(r"[A-Za-z_]\w{0,63}", key, re.ASCII) for key in kwargs):
        raise PydanticCustomError("kwargs", f"may hold {MAX_KWARGS} values under names of up to 64 letters")
    try:
        length = len(json.dumps(kwargs, allow_nan=False))
    except (ValueError, RecursionError):
        raise PydanticCustomError("kwargs", "must hold finite numbers, and not be nested deeply") from None
    if length > MAX_KWARGS_LENGTH:
        raise PydanticCustomError("kwargs", f"must not be longer than {MAX_KWARGS_LENGTH} characters")
    return kwargs


class TemplateRequest(WireRequest):
    """What a request may tell the chat template, which is always the model's own."""

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
