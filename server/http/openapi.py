"""The API's description at /openapi.json: FastAPI's, corrected where it is wrong for these routes.

FastAPI describes a 422 for every route, knows none of the server's defaults, cannot describe a stream that depends on a
field of the body, and writes all bounds as floating-point numbers, which cannot represent the largest bounds of the
wire's integers exactly.
"""

from collections.abc import Mapping
from dataclasses import asdict
from types import UnionType
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from engine import DiffusionParams, EngineInfo
from server.page.about import OPTIONS, about, unfit
from server.protocols.messages.schema import MessagesEvent
from server.protocols.response import END, STEP
from server.protocols.responses.output import ResponsesEvent
from server.schemas import ChatChunk, DiffusionRequest, ErrorResponse

STREAMED = (ChatChunk, MessagesEvent, ResponsesEvent)
"""Types that occur only in streams. FastAPI collects types from whole answers and would miss them."""

ERRORS = {
    400: "The request cannot be served as it is; `param` names the field at fault.",
    401: "The key is missing or wrong.",
    403: "The host is none that this server answers for.",
    404: "There is no such model.",
    408: "The body did not arrive in time.",
    413: "The body is too long.",
    415: "The content type is not application/json, or the body is compressed.",
    429: "There are no places left in the queue.",
    431: "The headers are too many or too long.",
    500: "The server failed.",
    503: "The server is starting, stopping or stuck.",
    504: "The answer took too long.",
}
"""What each status of an error means."""

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


def errors(*statuses: int, error: type[BaseModel] | UnionType = ErrorResponse) -> dict[int | str, dict[str, Any]]:
    """The description of errors of these statuses. `error`: their body."""
    return {status: {"model": error, "description": ERRORS[status]} for status in statuses}


ANYWHERE = errors(401, 403, 431, 500, 503, 504)
"""What any route may answer."""


def chunked(chunk: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """The description of an answer that may come as chunks, which have no name."""
    told = (
        "The answer: whole, or with `stream` as events. `data: [DONE]` is the last of these, and no JSON. "
        f"An event that tells a step is called `{STEP}`; the others have no name."
    )
    return _streamed(told, _events(chunk, ErrorResponse, name=STEP))


def named(*events: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """The description of an answer that may come as events with names."""
    told = "The answer: whole, or with `stream` as events. The name of each is its `type`."
    return _streamed(told, _events(*events, name=None))


def _streamed(told: str, events: dict[str, Any]) -> dict[int | str, dict[str, Any]]:
    return {200: {"description": told, "content": {"text/event-stream": events}}}


def _events(*kinds: type[BaseModel], name: str | None) -> dict[str, Any]:
    """The description of server-sent events whose data is one of `kinds` as JSON.

    `name`: that of those that have one; the others are messages, as SSE calls them, and end with one that is no JSON.
    None if each has one.

    `itemSchema` is a keyword of OpenAPI 3.2, which FastAPI also uses in 3.1. `schema` says nothing: readers that know
    the other take it for one of a list, and others for one of a text.
    """
    content = {"anyOf": [{"$ref": _REF.format(model=kind.__name__)} for kind in kinds]}
    data = {"type": "string", "contentMediaType": "application/json", "contentSchema": content}
    if name is None:
        item: dict[str, Any] = _event({"type": "string"}, data, "event", "data")
    else:
        told = _event({"type": "string", "enum": ["message", name]}, data, "data")
        item = {
            "anyOf": [
                told,
                _event({"type": "string", "const": "message"}, {"type": "string", "const": END}, "data"),
            ]
        }
    return {"schema": {}, "itemSchema": item}


def _event(event: dict[str, Any], data: dict[str, Any], *required: str) -> dict[str, Any]:
    return {"type": "object", "properties": {"event": event, "data": data}, "required": list(required)}


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
