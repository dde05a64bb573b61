"""The wire types of what decisions are about: messages, calls of tools and their outputs, and the parts of each."""

import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PlainValidator, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from server.schemas import WireRequest
from server.schemas.template import MAX_MESSAGES, Name
from server.schemas.wire import Text, check_unicode


class DecisionTextPart(WireRequest):
    """A piece of text."""

    type: Literal["input_text"]
    text: Text


class DecisionJsonPart(WireRequest):
    """An object, or a list of objects, which the model reads as JSON text."""

    type: Literal["input_json"]
    data: dict[str, Any] | list[dict[str, Any]]


class DecisionOutputTextPart(WireRequest):
    """A piece of what the assistant said."""

    type: Literal["output_text"]
    text: Text


class DecisionRefusalPart(WireRequest):
    """The assistant's words where it refused."""

    type: Literal["refusal"]
    refusal: Text


_AnyPart = DecisionTextPart | DecisionJsonPart | DecisionOutputTextPart | DecisionRefusalPart


def read_text(value: Any) -> str:
    """A text, or its parts joined by line breaks. By hand: a PydanticCustomError says what is wrong with one."""
    if isinstance(value, str):
        return check_unicode(value)
    if not isinstance(value, list) or not value:
        raise PydanticCustomError("content", "must be a string or a list of parts")
    return "\n".join(map(_read_part, value))


def _read_part(part: Any) -> str:
    match part:
        case {"type": "input_text" | "output_text", "text": str(text)} | {"type": "refusal", "refusal": str(text)}:
            return check_unicode(text)
        case {"type": "input_json", "data": dict(data) | list(data)} if _is_of_objects(data):
            return check_unicode(json.dumps(data, ensure_ascii=False))
        case {"type": "input_image"}:
            raise PydanticCustomError("content", "may hold no images: the model reads text alone")
    raise PydanticCustomError(
        "content",
        'must hold parts such as {"type": "input_text", "text": "..."} or {"type": "input_json", "data": {...}}',
    )


def _is_of_objects(data: Any) -> bool:
    return isinstance(data, dict) or all(isinstance(one, dict) for one in data)


Parts = Annotated[list[_AnyPart], Field(min_length=1)]
Content = Annotated[str, PlainValidator(read_text, json_schema_input_type=str | Parts)]


class DecisionItem(WireRequest):
    """A message, or a tool's call or its output."""

    type: Literal["message", "function_call", "function_call_output", "custom_tool_call", "custom_tool_call_output"] = (
        "message"
    )
    role: Annotated[Literal["user", "developer", "system", "assistant"] | None, Field(validate_default=True)] = None
    """Of a message."""
    content: Annotated[Content | None, Field(validate_default=True)] = None
    """Of a message."""
    call_id: Annotated[Name | None, Field(validate_default=True)] = None
    """Of a call and its output, which must come after the call."""
    name: Annotated[Name | None, Field(validate_default=True)] = None
    """Of a call: what is called."""
    arguments: Annotated[Text | None, Field(validate_default=True)] = None
    """Of a function's call: the JSON text of an object."""
    input: Annotated[Text | None, Field(validate_default=True)] = None
    """Of a custom tool's call."""
    output: Annotated[Content | None, Field(validate_default=True)] = None
    """Of an output."""

    @field_validator("role", "content", "call_id", "name", "arguments", "input", "output")
    @classmethod
    def _is_there(cls, value: str | None, info: ValidationInfo) -> str | None:
        kind = info.data.get("type", "")
        if value is None and info.field_name in _NEEDED.get(kind, ()):
            raise PydanticCustomError("item", "must be there in an item of type `{kind}`", {"kind": kind})
        return value


_NEEDED = {
    "message": ("role", "content"),
    "function_call": ("call_id", "name", "arguments"),
    "function_call_output": ("call_id", "output"),
    "custom_tool_call": ("call_id", "name", "input"),
    "custom_tool_call_output": ("call_id", "output"),
}


def _as_items(value: Any) -> Any:
    """A text is one message of the user."""
    return [{"role": "user", "content": value}] if isinstance(value, str) else value


def _check_calls(items: list[DecisionItem]) -> list[DecisionItem]:
    """Each output belongs to a call before it."""
    called: set[str] = set()
    for number, item in enumerate(items):
        if item.call_id and item.type.endswith("_call"):
            called.add(item.call_id)
        elif item.call_id and item.call_id not in called:
            raise PydanticCustomError(
                "call_id", "item {number} is the output of a call that is not before it", {"number": number}
            )
    return items


_ItemList = Annotated[list[DecisionItem], Field(min_length=1, max_length=MAX_MESSAGES)]
Items = Annotated[
    _ItemList, AfterValidator(_check_calls), BeforeValidator(_as_items, json_schema_input_type=str | _ItemList)
]
