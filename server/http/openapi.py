"""The API's description at /openapi.json: FastAPI's, corrected where it is wrong for these routes.

FastAPI describes a 422 for every route, knows none of the server's defaults, cannot describe a stream that depends on a
field of the body, and writes all bounds as floating-point numbers, which cannot represent the largest bounds of the
wire's integers exactly.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from engine import DiffusionParams, EngineInfo
from server.page.about import OPTIONS, about, unfit
from server.protocols.messages.schema import MessagesEvent
from server.protocols.responses.schema import ResponsesEvent
from server.schemas import ChatChunk, DiffusionRequest

STREAMED = (ChatChunk, MessagesEvent, ResponsesEvent)
"""Types that occur only in streams. FastAPI collects types from whole answers and would miss them."""

_REF = "#/components/schemas/{model}"
_BOUNDS = ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum")


class Api(FastAPI):
    """FastAPI without 422 in its description: here, invalid requests get 400 and OpenAI's error (`server.errors`)."""

    def __init__(self, *, diffusion: DiffusionParams, info: EngineInfo, **settings: Any) -> None:
        """`diffusion`: the server's own parameters, which the description tells as defaults. `info`: of the model."""
        super().__init__(**settings)
        self._diffusion = diffusion
        self._info = info

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
            properties = schemas[DiffusionRequest.__name__]["properties"]
            for name, value in asdict(self._diffusion).items():
                properties[name]["default"] = value
            _tell_options(properties, unfit(self._info))
            described["info"]["x-model"] = dict(about(self._info))
            _write_exactly(described)
        assert self.openapi_schema is not None
        return self.openapi_schema


def events_of(*kinds: type[BaseModel], name: str | None) -> dict[str, Any]:
    """The description of server-sent events whose data is one of `kinds` as JSON.

    `name`: that of those that have one, most have none; None if each has one.

    `itemSchema` is a keyword of OpenAPI 3.2, which FastAPI also uses in 3.1. Readers that do not know it see a string.
    """
    content = {"anyOf": [{"$ref": _REF.format(model=kind.__name__)} for kind in kinds]}
    data = {"type": "string", "contentMediaType": "application/json", "contentSchema": content}
    event = {"type": "string"} if name is None else {"type": "string", "const": name}
    required = ["event", "data"] if name is None else ["data"]
    return {
        "schema": {"type": "string"},
        "itemSchema": {"type": "object", "properties": {"event": event, "data": data}, "required": required},
    }


def _tell_options(properties: dict[str, Any], unfit: Mapping[str, list[str] | None]) -> None:
    """Adds what each named value does, and what this model always refuses, under the names of extensions."""
    for name, words in OPTIONS.items():
        properties[name]["x-enumDescriptions"] = dict(words)
    for name, values in unfit.items():
        properties[name]["x-unfit"] = True if values is None else values


def _write_exactly(described: Any) -> None:
    """Converts the bounds of integers to integers, in place."""
    if isinstance(described, dict):
        if described.get("type") == "integer":
            described.update({name: int(described[name]) for name in _BOUNDS if name in described})
        for inner in described.values():
            _write_exactly(inner)
    elif isinstance(described, list):
        for inner in described:
            _write_exactly(inner)
