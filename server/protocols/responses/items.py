"""The wire types of `input`: the items of a conversation."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import PlainValidator, TypeAdapter
from pydantic_core import PydanticCustomError

from server.protocols.unsupported import told_as_left_out
from server.schemas import WireRequest
from server.schemas.template import Name
from server.schemas.wire import Text, one_or_list, text_or_list

TEXT_PARTS = ("input_text", "output_text", "text", "summary_text")
PASSED_BY = frozenset({"reasoning"})
"""Types of items that say nothing to a model here: what a model thought is not handed on to the next turn."""


class Part(WireRequest):
    """A piece of text."""

    type: Literal["input_text", "output_text", "text", "summary_text", "refusal"]
    text: Text = ""
    refusal: Text = ""
    annotations: Any = None
    """Accepted, and without effect."""
    logprobs: Any = None
    """Accepted, and without effect."""
    prompt_cache_breakpoint: Any = None
    """Accepted, and without effect."""

    @property
    def said(self) -> str:
        """What the model reads."""
        return self.text or self.refusal


def _read_part(value: Any) -> Part:
    match value:
        case {"type": str(kind), "text": str()} if kind in TEXT_PARTS:
            return Part.model_validate(value)
        case {"type": "refusal", "refusal": str()}:
            return Part.model_validate(value)
        case {"type": str(kind)} if kind not in (*TEXT_PARTS, "refusal"):
            raise PydanticCustomError(
                "content", "must be a part of text: the model reads and writes text, no images, audio or files"
            )
    raise PydanticCustomError("content", 'must be a part of the form {"type": "input_text", "text": "..."}')


_PARTS = TypeAdapter(list[Annotated[Part, PlainValidator(_read_part)]])


def _texts_of(parts: list[Any]) -> Iterator[str]:
    return (part.said for part in _PARTS.validate_python(parts))


Content = Annotated[
    str, PlainValidator(text_or_list(_texts_of, "parts of text"), json_schema_input_type=str | list[Part])
]


class Item(WireRequest):
    """What items have in common: fields of answers, which clients send back."""

    id: Any = None
    """Accepted, and without effect."""
    status: Any = None
    """Accepted, and without effect."""


class InputMessage(Item):
    """A turn of the conversation."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: Content
    """A text, or a list of parts of type `input_text`, `output_text` or `refusal`."""
    phase: Any = None
    """Accepted, and without effect."""


class CallItem(Item):
    """What the model called."""

    type: Literal["function_call"]
    call_id: Name
    name: Name
    arguments: Text
    """The JSON text of an object."""


class LeftOutPart(WireRequest):
    """What a tool has found and the model cannot read, in whose place a text says so.

    Only of an output: the model has asked for it, may ask otherwise, and a client sends it again with each turn.
    """

    type: Literal["input_image", "input_file"]
    image_url: Any = None
    """Of an image: its place, or a data URL of it."""
    file_data: Any = None
    """Of a file: its bytes, in base64 or as a data URL."""
    file_id: Any = None
    """Accepted, and without effect."""
    file_url: Any = None
    """Accepted, and without effect."""
    filename: Any = None
    """Accepted, and without effect."""
    detail: Any = None
    """Accepted, and without effect."""
    prompt_cache_breakpoint: Any = None
    """Accepted, and without effect."""

    @property
    def said(self) -> str:
        """What the model reads instead."""
        kind, data = ("image", self.image_url) if self.type == "input_image" else ("file", self.file_data)
        told = data[:_MOST_OF_URL] if isinstance(data, str) and data.startswith("data:") else ""
        return told_as_left_out(kind, told.removeprefix("data:").partition(";")[0])


_MOST_OF_URL = 200
"""Characters of a data URL among which its media type is."""
OutputPart = Part | LeftOutPart


def _read_output_part(value: Any) -> OutputPart:
    match value:
        case {"type": "input_image" | "input_file"}:
            return LeftOutPart.model_validate(value)
    return _read_part(value)


_OUTPUT_PARTS = TypeAdapter(list[Annotated[OutputPart, PlainValidator(_read_output_part)]])


class CallOutputItem(Item):
    """The result of a call."""

    type: Literal["function_call_output"]
    call_id: Name
    output: Annotated[
        tuple[OutputPart, ...],
        PlainValidator(
            one_or_list(lambda text: Part(type="text", text=text), _OUTPUT_PARTS.validate_python, "parts of text"),
            json_schema_input_type=str | list[OutputPart],
        ),
    ]
    """A text, or a list of parts, whose texts are joined by line breaks."""


class OtherItem(Item):
    """An item of another type, which is passed by."""

    type: Text


AnyItem = InputMessage | CallItem | CallOutputItem | OtherItem


def _read_item(value: Any) -> AnyItem:
    """By hand, since a union would report what is wrong once for each branch."""
    match value:
        case {"type": "function_call"}:
            return CallItem.model_validate(value)
        case {"type": "function_call_output"}:
            return CallOutputItem.model_validate(value)
        case {"type": "item_reference"} | {"type": None, "id": str()}:
            raise PydanticCustomError("item", "refers to an item that is stored, and nothing is stored here: send it")
        case {"type": "message"} | {"role": _}:
            return InputMessage.model_validate(value)
        case {"type": str(kind)}:
            return OtherItem.model_validate({"type": kind})
    raise PydanticCustomError("item", "must be an item with a `type`, or a message with a `role` and a `content`")


ReadItem = Annotated[AnyItem, PlainValidator(_read_item, json_schema_input_type=AnyItem)]
