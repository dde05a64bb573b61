"""The wire types of conversations: messages, and the blocks of their content."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, PlainValidator, TypeAdapter
from pydantic_core import PydanticCustomError

from server.protocols.unsupported import told_as_left_out
from server.schemas import WireRequest
from server.schemas.template import Name
from server.schemas.wire import Text, check_json, check_unicode, one_or_list, text_or_list

UNREADABLE = ("image", "search_result", "container_upload", "file", "audio", "video")
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


def _is_of(value: Any, *kinds: str) -> bool:
    return isinstance(value, dict) and value.get("type") in kinds


def _text_block(text: str) -> TextBlock:
    return TextBlock(type="text", text=text)


class LeftOutBlock(Block):
    """What a tool has found and the model cannot read, in whose place a text says so.

    Only of a result: the model has asked for it, may ask otherwise, and a client sends it again with each turn.
    """

    type: Literal["image", "document"]
    source: dict[str, Any]

    @property
    def text(self) -> str:
        """What the model reads instead."""
        return told_as_left_out(self.type, self.source.get("media_type"))


class TextSource(WireRequest):
    """A document that is a text."""

    type: Literal["text"]
    media_type: Any = None
    """Accepted, and without effect: of what type a text is, the text shows."""
    data: Text

    @property
    def blocks(self) -> tuple[TextBlock | LeftOutBlock, ...]:
        """The text, as a source of blocks has it."""
        return (_text_block(self.data),)


def _read_piece(value: Any) -> TextBlock | LeftOutBlock:
    return LeftOutBlock.model_validate(value) if _is_of(value, "image") else _read_text_block(value)


_PIECES = TypeAdapter(list[Annotated[TextBlock | LeftOutBlock, PlainValidator(_read_piece)]])


class ContentSource(WireRequest):
    """A document that is made of blocks."""

    type: Literal["content"]
    blocks: Annotated[
        tuple[TextBlock | LeftOutBlock, ...],
        PlainValidator(
            one_or_list(_text_block, _PIECES.validate_python, "blocks of text"),
            json_schema_input_type=str | list[TextBlock | LeftOutBlock],
        ),
    ] = Field(alias="content")
    """A text, or a list of blocks of text and images."""


def _read_source(value: Any) -> TextSource | ContentSource:
    """By hand, as all of this: the places of errors are then the body's."""
    return (TextSource if _is_of(value, "text") else ContentSource).model_validate(value)


class DocumentBlock(Block):
    """A document that can be read."""

    type: Literal["document"]
    source: Annotated[
        TextSource | ContentSource,
        PlainValidator(_read_source, json_schema_input_type=TextSource | ContentSource),
    ]
    title: Text = ""
    context: Text = ""
    """What a client says of the document."""
    citations: Any = None
    """Accepted, and without effect."""

    @property
    def text(self) -> str:
        """Title, context and the document's own text, each on lines of its own."""
        told = (self.title, self.context, *(block.text for block in self.source.blocks))
        return "\n".join(filter(None, told))

    @property
    def left_out(self) -> Iterator[LeftOutBlock]:
        """The images in it."""
        return (block for block in self.source.blocks if isinstance(block, LeftOutBlock))


def _is_readable(value: Any) -> bool:
    return _is_of(value, "document") and _is_of(value.get("source"), "text", "content")


ResultBlock = TextBlock | DocumentBlock | LeftOutBlock


def _read_result_block(value: Any) -> ResultBlock:
    if _is_readable(value):
        return DocumentBlock.model_validate(value)
    return LeftOutBlock.model_validate(value) if _is_of(value, "image", "document") else _read_text_block(value)


_RESULT_BLOCKS = TypeAdapter(list[Annotated[ResultBlock, PlainValidator(_read_result_block)]])


class ToolResultBlock(Block):
    """The result of a call."""

    type: Literal["tool_result"]
    tool_use_id: Name
    content: Annotated[
        tuple[ResultBlock, ...],
        PlainValidator(
            one_or_list(_text_block, _RESULT_BLOCKS.validate_python, "blocks of text"),
            json_schema_input_type=str | list[ResultBlock],
        ),
    ] = ()
    """A text, or a list of blocks, whose texts are joined by line breaks."""
    is_error: Any = None
    """Accepted, and without effect: the text says it."""

    @property
    def left_out(self) -> Iterator[LeftOutBlock]:
        """What the model cannot read."""
        for block in self.content:
            if isinstance(block, DocumentBlock):
                yield from block.left_out
            elif isinstance(block, LeftOutBlock):
                yield block


class OtherBlock(Block):
    """A block of another type, which is passed by."""

    type: Text


AnyBlock = TextBlock | DocumentBlock | ToolUseBlock | ToolResultBlock | OtherBlock


def _read_block(value: Any) -> AnyBlock:
    """By hand, since a union would report what is wrong once for each branch."""
    match value:
        case {"type": "text"}:
            return TextBlock.model_validate(value)
        case {"type": "tool_use"}:
            return ToolUseBlock.model_validate(value)
        case {"type": "tool_result"}:
            return ToolResultBlock.model_validate(value)
        case {"type": "document"} if _is_readable(value):
            return _without_images(DocumentBlock.model_validate(value))
        case {"type": "document"}:
            raise PydanticCustomError(
                "content", "must have a source of type `text` or `content`: the model reads and writes text alone"
            )
        case {"type": str(kind)} if kind in UNREADABLE:
            raise PydanticCustomError("content", "may not be of this type: the model reads and writes text alone")
        case {"type": str(kind)}:
            return OtherBlock.model_validate({"type": kind})
    raise PydanticCustomError("content", 'must be a block of the form {"type": "text", "text": "..."}')


def _without_images(document: DocumentBlock) -> DocumentBlock:
    if any(document.left_out):
        raise PydanticCustomError("content", "may hold no images: the model reads and writes text alone")
    return document


_BLOCKS = TypeAdapter(list[Annotated[AnyBlock, PlainValidator(_read_block)]])


class InputTurn(WireRequest):
    """A turn of the conversation."""

    role: Literal["user", "assistant", "system"]
    content: Annotated[
        tuple[AnyBlock, ...],
        PlainValidator(
            one_or_list(_text_block, _BLOCKS.validate_python, "blocks"), json_schema_input_type=str | list[AnyBlock]
        ),
    ]
    """A text, or a list of blocks: `text`, `document`, `tool_use` of the assistant, `tool_result` of the user."""
