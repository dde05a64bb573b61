"""What all parts of a request's body have in common, and types and checks that several wire types use."""

import json
from collections.abc import Callable, Iterable
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, GetJsonSchemaHandler, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError

INT64 = 2**63
Value = TypeVar("Value")


def whole(value: Any) -> Any:
    """16 for 16.0: JSON knows one kind of number, and clients in some languages write all of them so."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def whole_numbers(values: Any) -> Any:
    """The same for each of a list, which may be long."""
    return list(map(whole, values)) if isinstance(values, list) and float in map(type, values) else values


def spelled_off(*spellings: object, as_: object = None) -> Callable[[Any], Any]:
    """A check that takes these values for `as_`, by default for an absent field."""

    def read(value: Any) -> Any:
        return as_ if any(value == other and type(value) is type(other) for other in spellings) else value

    return read


class WireRequest(BaseModel):
    """A part of a request's body. In every field but the required ones, null is the same as leaving it out.

    Unknown fields stay in `model_extra`, for whoever judges them (`server.protocols.unsupported`).
    """

    model_config = ConfigDict(
        strict=True, frozen=True, allow_inf_nan=False, use_attribute_docstrings=True, extra="allow"
    )

    nullable: ClassVar[frozenset[str]] = frozenset()
    """Fields to which null is a value of its own."""

    @model_validator(mode="before")
    @classmethod
    def _as_meant(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        return {name: whole(value) for name, value in data.items() if value is not None or name in cls.nullable}

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        described = handler(schema)
        body = handler.resolve_ref_schema(described)
        for name, field in body.get("properties", {}).items():
            if name not in body.get("required", ()) and {"type": "null"} not in field.get("anyOf", ()):
                outside = {key: field.pop(key) for key in ("title", "description", "default") if key in field}
                field["anyOf"] = [*field.pop("anyOf", [dict(field)]), {"type": "null"}]
                for key in set(field) - {"anyOf"}:
                    del field[key]
                field.update(outside)
        return described


class StreamOptions(WireRequest):
    """What a stream says beside its chunks."""

    include_usage: bool = False
    """Send one more chunk at the end, without choices, that holds `usage`."""
    continuous_usage_stats: bool = False
    """Running usage on every chunk, where `include_usage` is set too."""
    include_obfuscation: bool = False
    """Accepted; nothing is obfuscated."""

    @property
    def asks_for_anything(self) -> bool:
        return any(getattr(self, name) for name in type(self).model_fields)


def check_unicode(text: str) -> str:
    """JSON can spell lone surrogates, which no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise PydanticCustomError("unicode", "must be valid Unicode") from None
    return text


def check_json(value: dict[str, Any]) -> dict[str, Any]:
    """An object that is written as JSON again, for a template or a schema's compiler."""
    try:
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        raise PydanticCustomError("json", "must hold finite numbers and valid Unicode, not nested deeply") from None
    return value


def one_or_list(
    of_text: Callable[[str], Value], parts_of: Callable[[list[Any]], Iterable[Value]], of: str
) -> Callable[[Any], tuple[Value, ...]]:
    """A check that takes a text for the one part that it is, or a list of parts. `of`: what is listed, in words."""

    def read(value: Any) -> tuple[Value, ...]:
        if isinstance(value, str):
            return (of_text(check_unicode(value)),)
        if not isinstance(value, list):
            raise PydanticCustomError("content", f"must be a string or a list of {of}")
        return tuple(parts_of(value))

    return read


def text_or_list(texts_of: Callable[[list[Any]], Iterable[str]], of: str) -> Callable[[Any], str]:
    """A check that takes a text, or a list whose texts are joined by line breaks. `of`: what is listed, in words."""
    read = one_or_list(str, texts_of, of)
    return lambda value: "\n".join(read(value))


Text = Annotated[str, AfterValidator(check_unicode)]
"""A text that can be encoded."""
IfGiven = Annotated[Value | None, Field(exclude_if=lambda value: value is None)]
"""A field of an answer that is there only where the request has brought it about."""
IdsIfAsked = IfGiven[list[int]]
"""Token ids of an answer, whose field is there only where they were asked for."""
