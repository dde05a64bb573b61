"""/openapi.json: what it says of streams and of numbers."""

import asyncio
import json

import httpx
import jsonschema
import pytest

from server.http.app import create_app
from server.protocols.response import END, STEP
from server.schemas.wire import INT64
from server.settings.tree import build


@pytest.fixture(scope="module")
def described(make_engine, tokenizer):
    """As clients get it, once: it takes most of a second to be made."""

    async def get():
        transport = httpx.ASGITransport(create_app(make_engine(), tokenizer, build({})))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return (await client.get("/openapi.json")).json()

    return asyncio.run(get())


def events_of(described, path):
    return described["paths"][path]["post"]["responses"]["200"]["content"]["text/event-stream"]["itemSchema"]


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
async def test_the_chunks_of_a_stream(api, described, path):
    data = events_of(described, path)["anyOf"][0]["properties"]["data"]
    assert data["contentMediaType"] == "application/json"
    schema = {**data["contentSchema"], "components": described["components"]}
    ask = api.complete if path == "/v1/completions" else api.chat
    body = {"stream": True, "n": 2, "stream_options": {"include_usage": True}, "return_token_ids": True}
    chunks = api.events_of((await ask(**body)).text)
    assert len(chunks) > 4
    for chunk in chunks:
        jsonschema.validate(chunk, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**chunks[0], "choices": None}, schema)
    jsonschema.validate({"error": {"message": "a", "type": "b", "param": None, "code": None}}, schema)


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
async def test_the_event_of_a_step_is_named(described, path):
    """Others have none, which SSE reads as `message`; the last of them is no JSON."""
    item = events_of(described, path)
    jsonschema.validate({"data": "{}"}, item)
    jsonschema.validate({"event": "message", "data": "{}"}, item)
    jsonschema.validate({"event": "message", "data": END}, item)
    jsonschema.validate({"event": STEP, "data": "{}"}, item)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"event": "step", "data": "{}"}, item)


async def test_bounds_of_integers_are_integers(described):
    properties = described["components"]["schemas"]["CompletionRequest"]["properties"]
    seed = properties["seed"]["anyOf"][0]
    assert (seed["minimum"], seed["exclusiveMaximum"]) == (-INT64, INT64)
    assert type(seed["minimum"]) is int
    text = json.dumps(described)
    assert "e+18" not in text


async def test_a_field_named_as_a_keyword_is_left_alone(described):
    """`type` is a field of messages' parts, too."""
    part = described["components"]["schemas"]["TextPart"]["properties"]["type"]
    assert part["const"] == "text"


def test_every_named_value_has_a_sentence(described):
    """And no other has one: a new policy is described where the page tells of it."""
    properties = described["components"]["schemas"]["DiffusionRequest"]["properties"]
    named = {
        name: {*kind["enum"]} for name, told in properties.items() for kind in told.get("anyOf", ()) if "enum" in kind
    }
    assert {name: {*told["x-enumDescriptions"]} for name, told in properties.items() if name in named} == named
    for told in properties.values():
        assert all("arXiv" not in words for words in told.get("x-enumDescriptions", {}).values())
