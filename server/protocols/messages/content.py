"""The wire types of conversations: messages, and the blocks of their content."""

import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, PlainValidator, TypeAdapter
from pydantic_core import PydanticCustomError

from server.schemas import WireRequest
from server.schemas.template import Name
from server.schemas.wire import Text, check_json, check_unicode, text_or_list

UNREADABLE = ("image", "document", "search_result", "container_upload", "file", "audio", "video")
PASSED_BY = frozenset({"thinking", "redacted_thinking"})
"""Types of blocks that say nothing to a model here: what a model thought is not handed on to the next turn."""


class Block(WireRequest):
    """What blocks have in common."""

    cache_control: Any = None
    """Accepted, and without effect."""


class TextBlock(Block):
    """A text."""

    type: Literal["text"]
    text: Text
    citations: Any = None
    """Accepted, and without effect."""


class ToolUseBlock(Block):
    """What the model called."""

    type: Literal["tool_use"]
    id: Name
    name: Name
    input: Annotated[dict[str, Any], AfterValidator(check_json)]
    caller: Any = None
    """Accepted, and without effect."""


def _read_text_block(value: Any) -> TextBlock:
    match value:
        case {"type": "tool_reference", "tool_name": str(name)}:
            return TextBlock(type="text", text=check_unicode(name))
        case {"type": str(kind)} if kind != "text":
            raise PydanticCustomError(
                "content", "must be a block of text: the model reads and writes text, no images or documents"
            )
    return TextBlock.model_validate(value)


_TEXTS = TypeAdapter(list[Annotated[TextBlock, PlainValidator(_read_text_block)]])


def _texts_of(blocks: list[Any]) -> Iterator[str]:
    return (block.text for block in _TEXTS.validate_python(blocks))


Texts = Annotated[
    str, PlainValidator(text_or_list(_texts_of, "blocks of text"), json_schema_input_type=str | list[TextBlock])
]
"""A text, or a list of blocks of text, which are joined by line breaks."""


class LeftOutBlock(Block):
    """What a tool has found and the model cannot read, in whose place a text says so.

    Only of a result: the model has asked for it, may ask otherwise, and a client sends it again with each turn.
    """

    type: Literal["image", "document"]
    source: dict[str, Any]

    @property
    def text(self) -> str:
        """What the model reads instead."""
        told = self.source.get("media_type")
        kind = f" ({told})" if isinstance(told, str) and _MEDIA_TYPE.fullmatch(told) else ""
        return f"[This {self.type}{kind} was left out: only text can be read here.]"


_MEDIA_TYPE = re.compile(r"[\w.+-]{1,64}/[\w.+-]{1,64}", re.ASCII)
ResultBlock = TextBlock | LeftOutBlock


def _read_result_block(value: Any) -> ResultBlock:
    match value:
        case {"type": "image" | "document"}:
            return LeftOutBlock.model_validate(value)
    return _read_text_block(value)


_RESULT_BLOCKS = TypeAdapter(list[Annotated[ResultBlock, PlainValidator(_read_result_block)]])


def _read_result(value: Any) -> tuple[ResultBlock, ...]:
    if isinstance(value, str):
        return (TextBlock(type="text", text=check_unicode(value)),)
    if not isinstance(value, list):
        raise PydanticCustomError("content", "must be a string or a list of blocks of text")
    return tuple(_RESULT_BLOCKS.validate_python(value))


class ToolResultBlock(Block):
    """The result of a call."""

    type: Literal["tool_result"]
    tool_use_id: Name
    content: Annotated[
        tuple[ResultBlock, ...], PlainValidator(_read_result, json_schema_input_type=str | list[ResultBlock])
    ] = ()
    """A text, or a list of blocks, whose texts are joined by line breaks."""
    is_error: Any = None
    """Accepted, and without effect: the text says it."""


class OtherBlock(Block):
    """A block of another type, which is passed by."""

    type: Text


AnyBlock = TextBlock | ToolUseBlock | ToolResultBlock | OtherBlock


def _read_block(value: Any) -> AnyBlock:
    """By hand, since a union would report what is wrong once for each branch."""
    match value:
        case {"type": "text"}:
            return TextBlock.model_validate(value)
        case {"type": "tool_use"}:
            return ToolUseBlock.model_validate(value)
        case {"type": "tool_result"}:
            return ToolResultBlock.model_validate(value)
        case {"type": str(kind)} if kind in UNREADABLE:
            raise PydanticCustomError("content", "may not be of this type: the model reads and writes text alone")
        case {"type": str(kind)}:
            return OtherBlock.model_validate({"type": kind})
    raise PydanticCustomError("content", 'must be a block of the form {"type": "text", "text": "..."}')


_BLOCKS = TypeAdapter(list[Annotated[AnyBlock, PlainValidator(_read_block)]])


def _read_blocks(value: Any) -> tuple[AnyBlock, ...]:
    if isinstance(value, str):
        return (TextBlock(type="text", text=check_unicode(value)),)
    if not isinstance(value, list):
        raise PydanticCustomError("content", "must be a string or a list of blocks")
    return tuple(_BLOCKS.validate_python(value))


class InputTurn(WireRequest):
    """A turn of the conversation."""

    role: Literal["user", "assistant", "system"]
    content: Annotated[tuple[AnyBlock, ...], PlainValidator(_read_blocks, json_schema_input_type=str | list[AnyBlock])]
    """A text, or a list of blocks: `text`, `tool_use` of the assistant, `tool_result` of the user."""
