"""The API's description of itself at /openapi.json: what FastAPI says of it, mended where no route here is so.

FastAPI describes a 422 for every route, knows no streams that a field of the body asks for, and writes all bounds as
floating-point numbers, in which those of the wire's integers have too many digits.
"""

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from server.schemas import ChatChunk

STREAMED = (ChatChunk,)
"""What streams alone are made of: no route's whole answer, from which FastAPI collects types."""

_REF = "#/components/schemas/{model}"
_BOUNDS = ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum")


class Api(FastAPI):
    """FastAPI answers invalid requests with 422; here they are a 400 with OpenAI's error object (`server.errors`)."""

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            described = super().openapi()
            schemas = described["components"]["schemas"]
            for path in described["paths"].values():
                for operation in path.values():
                    operation["responses"].pop("422", None)
            for name in ("HTTPValidationError", "ValidationError"):
                schemas.pop(name, None)
            _, added = models_json_schema([(model, "serialization") for model in STREAMED], ref_template=_REF)
            schemas.update(added["$defs"])
            _write_exactly(described)
        assert self.openapi_schema is not None
        return self.openapi_schema


def events_of(*kinds: type[BaseModel]) -> dict[str, Any]:
    """The description of server-sent events whose data is one of these as JSON.

    `itemSchema` is OpenAPI 3.2's word, which FastAPI too uses in 3.1; readers that do not know it see a text.
    """
    content = {"anyOf": [{"$ref": _REF.format(model=kind.__name__)} for kind in kinds]}
    data = {"type": "string", "contentMediaType": "application/json", "contentSchema": content}
    return {
        "schema": {"type": "string"},
        "itemSchema": {"type": "object", "properties": {"data": data}, "required": ["data"]},
    }


def _write_exactly(described: Any) -> None:
    """Writes the bounds of integers as such, in place."""
    if isinstance(described, dict):
        if described.get("type") == "integer":
            described.update({name: int(described[name]) for name in _BOUNDS if name in described})
        for inner in described.values():
            _write_exactly(inner)
    elif isinstance(described, list):
        for inner in described:
            _write_exactly(inner)
