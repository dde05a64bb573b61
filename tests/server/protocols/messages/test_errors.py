"""What is wrong with a body of /v1/messages, and the form in which that is told."""

import json

import pytest
from httpx import ASGITransport, AsyncClient

from engine import RequestFailed
from server.http.app import create_app
from server.settings.tree import build
from tests.server.protocols.asking import events_of
from tests.server.protocols.messages.asking import TOOLS, USER, error_of, result


def document(**source):
    return {"type": "document", "source": source}


@pytest.mark.parametrize(
    ("body", "path", "why"),
    [
        ({"max_tokens": None}, "max_tokens", "provide"),
        ({"max_tokens": 0}, "max_tokens", "greater"),
        ({"messages": None}, "messages", "provide"),
        ({"messages": []}, "messages", "at least 1"),
        ({"messages": [5]}, "messages.0", "dictionary"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "messages.0.role", "'user'"),
        ({"messages": [{"role": "user"}]}, "messages.0.content", "provide"),
        ({"messages": [{"role": "user", "content": {}}]}, "messages.0.content", "blocks"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "messages.0.content.0", "text alone"),
        ({"messages": [{"role": "user", "content": [{"text": "a"}]}]}, "messages.0.content.0", "form"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages.0.content.0.text", "provide"),
        (
            {"messages": [result({"type": "search_result", "source": "a", "title": "b", "content": []})]},
            "messages.0.content.0.content.0",
            "block of text",
        ),
        ({"messages": [result({"type": "image"})]}, "messages.0.content.0.content.0.source", "provide"),
        (
            {"messages": [result({"type": "document", "source": "a"})]},
            "messages.0.content.0.content.0.source",
            "dictionary",
        ),
        ({"messages": [result(5)]}, "messages.0.content.0.content.0", "dictionary"),
        ({"messages": [result(document(type="text"))]}, "messages.0.content.0.content.0.source.data", "provide"),
        (
            {"messages": [{"role": "user", "content": [document(type="text", data=5)]}]},
            "messages.0.content.0.source.data",
            "string",
        ),
        (
            {"messages": [{"role": "user", "content": [document(type="content", content=[document()])]}]},
            "messages.0.content.0.source.content.0",
            "block of text",
        ),
        (
            {"messages": [{"role": "user", "content": [{**document(type="text", data="a"), "title": 5}]}]},
            "messages.0.content.0.title",
            "string",
        ),
        *(
            ({"messages": [{"role": "user", "content": [document(type=kind)]}]}, "messages.0.content.0", "a source of")
            for kind in ("base64", "url", "file", None, [])
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1", "content": 5}]}]},
            "messages.0.content.0.content",
            "list of blocks",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "tool_use", "id": "1", "name": "f", "input": {}}]}]},
            "messages.0.content.0",
            "assistant",
        ),
        (
            {"messages": [{"role": "assistant", "content": [{"type": "tool_result", "tool_use_id": "1"}]}]},
            "messages.0.content.0",
            "of the user",
        ),
        (
            {"messages": [{"role": "assistant", "content": [{"type": "tool_use", "id": "1", "name": "f"}]}]},
            "messages.0.content.0.input",
            "provide",
        ),
        ({"system": 5}, "system", "blocks of text"),
        ({"tools": [{"name": "f"}]}, "tools.0.input_schema", "provide"),
        ({"tools": [{"name": "a b", "input_schema": {}}]}, "tools.0.name", "pattern"),
        (
            {
                "tools": [
                    {"type": "bash_20250124", "name": "b"},
                    {"name": "f", "input_schema": {"if": {}}, "strict": True},
                ]
            },
            "tools.1.input_schema",
            "#/if: the keyword `if`",
        ),
        ({"tools": [TOOLS[0], TOOLS[0]]}, "tools", "two functions of the name `look`"),
        ({"tool_choice": "any"}, "tool_choice", "dictionary"),
        ({"tool_choice": {"type": "any"}}, "tool_choice", "no `tools`"),
        ({"tool_choice": {"type": "tool"}, "tools": TOOLS}, "tool_choice", "`name`"),
        ({"tool_choice": {"type": "tool", "name": "f"}, "tools": TOOLS}, "tool_choice", "none of `tools`"),
        ({"temperature": 3}, "temperature", "less"),
        ({"stop_sequences": 5}, "stop_sequences", "list of strings"),
        ({"stop": ["a"]}, "stop", "`stop_sequences`"),
        ({"n": 2}, "n", "one answer"),
        ({"include_reasoning": False}, "include_reasoning", "not supported here"),
        ({"seed": "x"}, "seed", "integer"),
        ({"output_config": {"effort": "huge"}}, "output_config.effort", "'low'"),
        ({"output_config": {"format": {"type": "json_schema"}}}, "output_config.format.schema", "provide"),
        (
            {"output_config": {"format": {"type": "json_schema", "schema": {"if": {}}}}},
            "output_config.format.schema",
            "#/if",
        ),
        (
            {
                "output_config": {"format": {"type": "json_schema", "schema": {}}},
                "output_format": {"type": "json_schema", "schema": {}},
            },
            "output_format",
            "`output_config.format`",
        ),
        ({"messages": [{"role": "user", "content": "a" * 2100}]}, "messages", "prompt is too long: "),
        ({"parallel_tool_calls": False, "tools": TOOLS}, "parallel_tool_calls", "disable_parallel_tool_use"),
        ({"reasoning_effort": "low"}, "reasoning_effort", "`output_config.effort`"),
        ({"reasoning": {"effort": "low"}}, "reasoning", "`output_config.effort`"),
        ({"text": {"format": {"type": "json_object"}}}, "text", "`output_config.format`"),
        ({"instructions": "Be brief."}, "instructions", "`system`"),
        ({"input": "a"}, "input", "`messages`"),
        ({"previous_response_id": "resp_1"}, "previous_response_id", "nothing is stored"),
        ({"max_output_tokens": 5}, "max_output_tokens", "`max_tokens`"),
        ({"diffusion": {"x": 1}}, "diffusion.x", "known"),
        ({"diffusion": {"step_map": True}}, "diffusion.step_map", "`diffusion.trace`"),
    ],
)
async def test_a_bad_value_names_its_field(post, engine, body, path, why):
    error = error_of(await post(**body), 400)
    assert error["type"] == "invalid_request_error"
    assert f"`{path}`" in error["message"]
    assert why in error["message"]
    assert not engine.streams


async def test_what_a_tool_was_called_with_must_be_encodable(api, engine):
    call = {"type": "tool_use", "id": "1", "name": "now", "input": {"a": "\ud800"}}
    body = {"max_tokens": 5, "messages": [{"role": "assistant", "content": [call]}]}
    headers = {"content-type": "application/json"}
    error = error_of(await api.client.post("/v1/messages", content=json.dumps(body), headers=headers), 400)
    assert error["message"].startswith("`messages.0.content.0.input`: must hold finite numbers and valid Unicode")
    assert not engine.streams


async def test_errors_have_anthropics_form(api, engine, tokenizer, post):
    assert error_of(await post(model="gpt"), 404)["type"] == "not_found_error"
    assert error_of(await api.client.get("/v1/messages"), 405)["type"] == "invalid_request_error"
    assert error_of(await api.client.post("/v1/messages/batches", json={}), 404)["type"] == "not_found_error"
    assert error_of(await api.client.post("/v1/messages/", content="x"), 415)["type"] == "invalid_request_error"
    long = {"content": "x" * 5000, "headers": {"content-type": "application/json"}}
    assert error_of(await api.client.post("/v1/messages", **long), 413)["type"] == "request_too_large"
    api.error_of(await api.client.post("/v1/messagesx", json={}), 404)
    engine.places = 0
    response = await post()
    assert error_of(response, 429)["type"] == "rate_limit_error"
    assert response.headers["retry-after"]
    engine.places = 8
    engine.script = lambda _: ["one ", RequestFailed("secret")]
    error = error_of(await post(), 500)
    assert error["type"] == "api_error"
    assert "secret" not in error["message"]


async def test_a_thread_is_refused_so_that_clients_go_on_without(post):
    error = error_of(await post(thread={"type": "create"}), 400)
    assert error["details"] == {"error_code": "thread_unsupported_request"}
    assert "details" not in error_of(await post(max_tokens=0), 400)


async def test_a_stream_that_fails_says_so(post, engine):
    engine.script = lambda _: ["one ", RequestFailed("secret")]
    response = await post(stream=True)
    *_, last = events_of(response.text)
    assert last["error"]["type"] == "api_error"
    assert last["request_id"] == response.headers["request-id"]
    assert "secret" not in response.text


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"x-api-key": "sk-one"}, 200),
        ({"authorization": "Bearer sk-one"}, 200),
        ({"authorization": "Bearer none", "x-api-key": "sk-one"}, 200),
        ({"authorization": "Bearer sk-one", "x-api-key": "none"}, 200),
        ({"x-api-key": "none"}, 401),
        ({}, 401),
    ],
)
async def test_keys_come_in_either_header(api, engine, tokenizer, headers, status):
    app = create_app(engine, tokenizer, build({"api_key": ["sk-one"]}))
    async with AsyncClient(transport=ASGITransport(app), base_url="http://test") as client:
        response = await client.post("/v1/messages", json={"max_tokens": 5, "messages": [USER]}, headers=headers)
    if status == 200:
        assert response.status_code == 200
    else:
        assert error_of(response, status)["type"] == "authentication_error"
