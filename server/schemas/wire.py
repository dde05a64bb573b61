"""What all parts of a request's body have in common, and types and checks that several wire types use."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError

INT64 = 2**63


class WireRequest(BaseModel):
    """A part of a request's body. In every field but the required ones, null is the same as leaving it out."""

    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, data: Any) -> Any:
        return {name: value for name, value in data.items() if value is not None} if isinstance(data, dict) else data

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


def check_unicode(text: str) -> str:
    """JSON can spell lone surrogates, which no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise PydanticCustomError("unicode", "must be valid Unicode") from None
    return text


IdsIfAsked = Annotated[list[int] | None, Field(exclude_if=lambda ids: ids is None)]
"""Token ids of an answer, whose field is there only where they were asked for."""
