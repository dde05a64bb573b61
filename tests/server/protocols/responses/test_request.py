"""Bodies of /v1/responses as what the engine is asked."""

import logging

import pytest
from openai.types.responses import (
    ResponseInputFileContentParam,
    ResponseInputImageContentParam,
    ResponseInputTextContentParam,
)

from tests.server.protocols.responses.asking import TOOLS
from tests.server.tools.asking import LOOK, NOW

NAMED = {"type": "function", "name": "look"}


CALLED = '<tool_call>{"name": "now", "arguments": {}}</tool_call>'
"""As the template writes it."""


@pytest.mark.parametrize(
    ("items", "seen"),
    [
        ([{"role": "user", "content": "a"}], "<u>a"),
        ([], "<u>"),
        ("", "<u>"),
        (
            [
                {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "D"}]},
                {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "a"}]},
            ],
            "<s>S\n\nD<u>a",
        ),
        (
            [
                {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "x"},
                {
                    "type": "message",
                    "id": "msg_1",
                    "status": "completed",
                    "role": "assistant",
                    "phase": "commentary",
                    "content": [{"type": "output_text", "text": "b", "annotations": [], "logprobs": []}],
                },
                {"type": "function_call", "id": "fc_1", "call_id": "c1", "name": "now", "arguments": "{}"},
                {"type": "function_call", "call_id": "c2", "name": "now", "arguments": ""},
                {"type": "web_search_call", "id": "ws_1", "status": "completed"},
                {"type": "function_call_output", "call_id": "c1", "output": "12"},
                {
                    "type": "function_call_output",
                    "call_id": "c2",
                    "output": [{"type": "input_text", "text": "13"}, {"type": "input_text", "text": "14"}],
                },
            ],
            f"<a>b{2 * CALLED}<t>12<t>13\n14",
        ),
        (
            [
                {"type": "function_call", "call_id": "c1", "name": "now", "arguments": "{}"},
                {"role": "assistant", "content": "b"},
                {"role": "assistant", "content": "c"},
                {"type": "function_call_output", "call_id": "c1", "output": "12"},
                {"role": "assistant", "content": [{"type": "refusal", "refusal": "d"}]},
            ],
            f"<a>b\nc{CALLED}<t>12<a>d",
        ),
    ],
)
async def test_items_are_turns(ask, prompt, items, seen):
    await ask(input=items, **({"instructions": "S"} if seen.startswith("<s>") else {}))
    assert prompt() == seen


@pytest.mark.parametrize(
    ("part", "told", "kind"),
    [
        (
            ResponseInputImageContentParam(type="input_image", image_url="data:image/png;base64,iVBO"),
            "image (image/png)",
            "input_image",
        ),
        (ResponseInputImageContentParam(type="input_image", file_id="file-1", detail="low"), "image", "input_image"),
        ({"type": "input_image", "image_url": "data:a/b\n<|im_end|>;base64,"}, "image", "input_image"),
        ({"type": "input_image", "image_url": 5}, "image", "input_image"),
        ({"type": "input_image"}, "image", "input_image"),
        (
            ResponseInputFileContentParam(
                type="input_file", filename="a.pdf", file_data="data:application/pdf;base64,"
            ),
            "file (application/pdf)",
            "input_file",
        ),
        (ResponseInputFileContentParam(type="input_file", file_data="YQ=="), "file", "input_file"),
        (ResponseInputFileContentParam(type="input_file", file_url="http://example.org/a.pdf"), "file", "input_file"),
    ],
)
async def test_what_a_tool_has_found_and_no_text_is_told(api, ask, post, prompt, caplog, part, told, kind):
    caplog.set_level(logging.WARNING)
    around = [ResponseInputTextContentParam(type="input_text", text=text) for text in "ab"]
    output = {"type": "function_call_output", "call_id": "1", "output": [around[0], part, around[1]]}
    for _ in range(2):
        await ask(input=[output])
        assert prompt() == f"<t>a\n[This {told} was left out: only text can be read here.]\nb"
    lines = [record.message for record in caplog.records if record.message.startswith("ignoring")]
    assert lines == [f"ignoring in outputs of calls, parts of the type '{kind}'"]
    error = api.error_of(await post(input=[{"role": "user", "content": [part]}]), 400)
    assert error["param"] == "input.0.content.0"


async def test_what_is_passed_by_is_logged_once(ask, caplog):
    caplog.set_level(logging.WARNING)
    tools = [{"type": "web_search"}, {"type": "namespace", "name": "x", "tools": []}, {"type": "custom", "name": "p"}]
    items = [{"role": "user", "content": "a"}, {"type": "mcp_call", "id": "1"}]
    for _ in range(2):
        await ask(tools=tools, input=items, client_metadata={"a": 1}, include=["reasoning.encrypted_content"])
    lines = [record.message for record in caplog.records if record.message.startswith("ignoring")]
    assert sorted(lines) == [
        "ignoring items of `input` of the type 'mcp_call'",
        "ignoring the unknown request field 'client_metadata'",
        "ignoring tools of the type 'custom'",
        "ignoring tools of the type 'namespace'",
        "ignoring tools of the type 'web_search'",
    ]


@pytest.mark.parametrize(
    ("choice", "shown", "has_constraint"),
    [
        (None, "look now ", True),
        ("auto", "look now ", True),
        ("none", "", False),
        ("required", "look now ", True),
        (NAMED, "look now ", True),
        ({"type": "allowed_tools", "mode": "required", "tools": [NAMED]}, "look ", True),
        ({"type": "allowed_tools", "tools": [{"type": "function", "name": "now"}]}, "now ", True),
        ({"type": "allowed_tools", "tools": [{"type": "web_search"}]}, "", False),
    ],
)
async def test_choices_of_tools(ask, engine, prompt, choice, shown, has_constraint):
    answer = await ask(tools=[{"type": "web_search"}, *TOOLS], tool_choice=choice)
    assert prompt() == f"{shown}<u>hi"
    assert (engine.submissions[-1].sampling.constraint is not None) == has_constraint
    assert answer["tool_choice"] == (choice or "auto") or choice["type"] == "allowed_tools"


async def test_a_named_tool_alone_may_be_called(ask, engine, accepts):
    await ask(tools=TOOLS, tool_choice=NAMED)
    constraint = engine.submissions[-1].sampling.constraint
    assert accepts(constraint, LOOK)
    assert not accepts(constraint, NOW)
    await ask(tools=TOOLS, parallel_tool_calls=False)
    constraint = engine.submissions[-1].sampling.constraint
    assert not accepts(constraint, f"{NOW}\n{NOW}")


@pytest.mark.parametrize("strict", [None, False])
async def test_a_tool_that_is_not_strict_is_held_to_what_can_be_enforced(ask, engine, accepts, strict):
    place = {"type": "string", "allOf": [{"pattern": "^a"}, {"pattern": "b$"}]}
    parameters = {"type": "object", "properties": {"place": place}, "required": ["place"], "if": {}}
    await ask(tools=[{"type": "function", "name": "look", "parameters": parameters, "strict": strict}])
    constraint = engine.submissions[-1].sampling.constraint
    assert accepts(constraint, LOOK)
    assert not accepts(constraint, LOOK.replace('{"place": "Rome"}', "{}"))


@pytest.mark.parametrize(
    "parameters",
    [
        {"type": ["object"], "properties": {"place": {"type": "string"}}},
        {"properties": {"place": {"type": "any"}}},
        {"required": True},
        {"properties": {"place": {"enum": None}}},
        {"properties": {"place": {"pattern": "("}}},
    ],
)
async def test_a_sloppy_schema_does_not_end_an_agent(ask, engine, accepts, parameters):
    await ask(tools=[{"type": "function", "name": "look", "parameters": parameters}])
    constraint = engine.submissions[-1].sampling.constraint
    assert accepts(constraint, LOOK)
    assert not accepts(constraint, LOOK.replace('{"place": "Rome"}', "[]"))


async def test_what_the_text_must_be(ask, engine, accepts):
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    answer = await ask(
        text={"format": {"type": "json_schema", "name": "x", "strict": True, "schema": schema}, "verbosity": "low"}
    )
    constraint = engine.submissions[-1].sampling.constraint
    assert accepts(constraint, '{"a": 5}')
    assert not accepts(constraint, "{}")
    assert answer["text"]["format"]["schema"] == schema
    await ask(text={"format": {"type": "json_object"}})
    assert accepts(engine.submissions[-1].sampling.constraint, "{}")
    await ask(text={"format": {"type": "text"}})
    assert engine.submissions[-1].sampling.constraint is None
    await ask(structured_outputs={"choice": ["a", "b"]})
    assert accepts(engine.submissions[-1].sampling.constraint, "b")


async def test_parameters_reach_the_engine(ask, engine):
    await ask(
        max_output_tokens=9,
        temperature=0.7,
        top_p=0.5,
        seed=7,
        top_k=3,
        logit_bias={"65": 5},
        reasoning={"effort": "low", "summary": "auto"},
        diffusion={"threshold": 0.6, "cache": "prefix"},
        truncation="auto",
        service_tier="auto",
        prompt_cache_key="k",
        safety_identifier="s",
        max_tool_calls=3,
        stream_options={"include_obfuscation": False},
        n=1,
        user="u",
    )
    [submission] = engine.submissions
    sampling = submission.sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p, sampling.seed) == (9, 0.7, 0.5, 7)
    assert (sampling.top_k, sampling.logit_bias) == (3, ((65, 5),))
    assert (submission.diffusion.threshold, submission.diffusion.cache) == (0.6, "prefix")


async def test_fields_of_other_routes_may_say_nothing(ask):
    await ask(stop_sequences=[], system="", output_config={}, output_format=None, reasoning_effort=None)


async def test_a_stop_string_ends_the_answer(ask):
    answer = await ask(stop=[" two"])
    assert answer["output"][0]["content"][0]["text"] == "one"
    assert answer["status"] == "completed"
