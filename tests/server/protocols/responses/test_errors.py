"""What is wrong with a body of /v1/responses, and how a stream tells that it failed."""

import json

import pytest

from engine import RequestFailed
from tests.server.protocols.asking import events_of
from tests.server.protocols.responses.asking import TOOLS


def output(said):
    return {"type": "function_call_output", "call_id": "1", "output": said}


@pytest.mark.parametrize(
    ("body", "param", "why"),
    [
        ({"input": None}, "input", "provide"),
        ({"input": 5}, "input", "list"),
        ({"input": [5]}, "input.0", "item"),
        ({"input": [{"role": "user"}]}, "input.0.content", "provide"),
        ({"input": [{"role": "robot", "content": "a"}]}, "input.0.role", "'user'"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input.0.content.0", "no images"),
        ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}, "input.0.content.0", "form"),
        ({"input": [{"role": "user", "content": {}}]}, "input.0.content", "parts of text"),
        ({"input": [output(5)]}, "input.0.output", "parts of text"),
        ({"input": [output([5])]}, "input.0.output.0", "form"),
        ({"input": [output([{"type": "input_text"}])]}, "input.0.output.0", "form"),
        ({"input": [output([{"type": "input_audio"}])]}, "input.0.output.0", "part of text"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input.0", "stored"),
        ({"input": [{"type": "function_call", "call_id": "1", "name": "f"}]}, "input.0.arguments", "provide"),
        (
            {
                "input": [
                    {"role": "user", "content": "a"},
                    {"type": "reasoning", "summary": []},
                    {"type": "function_call", "call_id": "1", "name": "f", "arguments": "[]"},
                ]
            },
            "input.2.arguments",
            "`input.2.arguments` must be the JSON text of an object",
        ),
        ({"tools": [{"type": "function"}]}, "tools.0.name", "provide"),
        ({"tools": [{}]}, "tools.0.type", "provide"),
        ({"tools": [5]}, "tools.0", "dictionary"),
        ({"tools": [{"type": "web_search"}, {"type": "function", "name": "a b"}]}, "tools.1.name", "pattern"),
        (
            {
                "tools": [
                    {"type": "web_search"},
                    {"type": "function", "name": "f", "parameters": {"if": {}}, "strict": True},
                ]
            },
            "tools.1.parameters",
            "`tools.1.parameters`: #/if: the keyword `if`",
        ),
        ({"tools": [TOOLS[1], TOOLS[1]]}, "tools", "two functions of the name `now`"),
        ({"tool_choice": "any"}, "tool_choice", "`none`, `auto`, `required`"),
        ({"tool_choice": "required"}, "tool_choice", "no `tools`"),
        ({"tool_choice": "required", "tools": [{"type": "web_search"}]}, "tool_choice", "no `tools`"),
        ({"tool_choice": {"type": "web_search"}, "tools": TOOLS}, "tool_choice", "`none`, `auto`, `required`"),
        ({"tool_choice": {"type": "function", "name": "f"}, "tools": TOOLS}, "tool_choice", "none of `tools`"),
        (
            {"tool_choice": {"type": "allowed_tools", "tools": [{"type": "function", "name": "f"}]}, "tools": TOOLS},
            "tool_choice",
            "none of `tools`",
        ),
        ({"text": {"format": {"type": "grammar"}}}, "text.format.type", "'json_schema'"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format", "`schema`"),
        (
            {"text": {"format": {"type": "json_schema", "name": "x", "schema": {"if": {}}}}},
            "text.format.schema",
            "`text.format.schema`: #/if",
        ),
        ({"max_output_tokens": 0}, "max_output_tokens", "greater"),
        ({"max_output_tokens": 1000}, "max_output_tokens", "context is 128"),
        ({"input": "a" * 200}, "input", "context is 128"),
        ({"top_logprobs": 21, "tools": TOOLS}, "top_logprobs", "less"),
        ({"temperature": 3}, "temperature", "less"),
        ({"seed": "x"}, "seed", "integer"),
        ({"allowed_token_ids": [999]}, "allowed_token_ids", "vocabulary"),
        ({"reasoning": {"effort": "huge"}}, "reasoning.effort", "'low'"),
        ({"metadata": {"a": 5}}, "metadata.a", "string"),
        ({"store": True}, "store", "nothing is stored"),
        ({"background": True}, "background", "only false"),
        ({"previous_response_id": "resp_1"}, "previous_response_id", "send the whole conversation"),
        ({"conversation": "c"}, "conversation", "nothing is stored"),
        ({"prompt": {"id": "p"}}, "prompt", "nothing is stored"),
        ({"max_tokens": 5}, "max_tokens", "`max_output_tokens`"),
        ({"n": 2}, "n", "one answer"),
        ({"include_reasoning": False}, "include_reasoning", "not supported here"),
        ({"response_format": {"type": "json_object"}}, "response_format", "`text.format`"),
        ({"messages": [{"role": "user", "content": "a"}]}, "messages", "`input`"),
        ({"reasoning_effort": "low"}, "reasoning_effort", "`reasoning.effort`"),
        ({"stop_sequences": ["a"]}, "stop_sequences", "`stop`"),
        ({"system": "Be brief."}, "system", "`instructions`"),
        ({"output_config": {"effort": "low"}}, "output_config", "`reasoning.effort`"),
        ({"output_format": {"type": "json_schema", "schema": {}}}, "output_format", "`text.format`"),
        ({"diffusion": {"x": 1}}, "diffusion.x", "known"),
        ({"diffusion": {"step_map": True}}, "diffusion.step_map", "`diffusion.trace`"),
        ({"diffusion": {"cache": "x"}}, "diffusion.cache", "x"),
    ],
)
async def test_a_bad_value_names_its_field(api, post, engine, body, param, why):
    error = api.error_of(await post(**body), 400)
    assert error["param"] == param
    assert why in error["message"]
    assert not engine.streams


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("text", {"verbosity": "\ud800"}),
        ("text", {"verbosity": {"\ud800": 1}}),
        ("text", {"format": {"type": "text", "x": ["\ud800"]}}),
        ("reasoning", {"summary": "\ud800"}),
        ("reasoning", {"x": "\ud800"}),
        ("tool_choice", {"type": "function", "name": "now", "x": "\ud800"}),
        ("tool_choice", {"type": "allowed_tools", "tools": [{"type": "function", "name": "now", "x": "\ud800"}]}),
    ],
)
async def test_what_comes_back_must_be_encodable(api, engine, field, value):
    """Or the answer could not be written."""
    body = json.dumps({"input": "hi", "tools": TOOLS, field: value})
    headers = {"content-type": "application/json"}
    error = api.error_of(await api.client.post("/v1/responses", content=body, headers=headers), 400)
    assert error["param"] == field
    assert "valid Unicode" in error["message"]
    assert not engine.streams


async def test_an_unknown_model_is_a_404(api, post):
    assert api.error_of(await post(model="gpt"), 404)["code"] == "model_not_found"


async def test_a_stream_that_fails_says_so(api, post, engine):
    engine.script = lambda _: ["one ", RequestFailed("secret")]
    response = await post(stream=True)
    *_, delta, error, failed = events_of(response.text)
    assert delta["type"] == "response.output_text.delta"
    assert error["type"] == "error"
    assert error["error"]["code"] == error["code"] == "internal_error"
    assert "secret" not in response.text
    assert failed["type"] == "response.failed"
    assert failed["response"]["status"] == "failed"
    assert failed["response"]["output"][0]["content"][0]["text"] == "one "
    assert failed["sequence_number"] == error["sequence_number"] + 1
    assert api.error_of(await post(), 500)["code"] == "internal_error"


async def test_a_full_queue_is_a_429(api, post, engine):
    engine.places = 0
    response = await post(stream=True)
    assert api.error_of(response, 429)["code"] == "rate_limit_exceeded"
    assert response.headers["retry-after"]
