"""Bodies of /v1/messages as what the engine is asked."""

import logging

import pytest

from tests.server.protocols.messages.asking import TOOLS, USER, error_of, result
from tests.server.tools.asking import LOOK, NOW


async def test_max_tokens_need_not_fit_the_context(ask, engine):
    await ask(max_tokens=100_000)
    assert engine.submissions[-1].sampling.max_tokens == 128 - 5


@pytest.mark.parametrize(
    ("body", "seen"),
    [
        ({"system": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}, "<s>a\nb<u>hi"),
        ({"messages": [{"role": "system", "content": "c"}, USER]}, "<s>c<u>hi"),
        (
            {
                "messages": [
                    USER,
                    {
                        "role": "assistant",
                        "content": [
                            {"type": "thinking", "thinking": "x", "signature": "y"},
                            {"type": "text", "text": "b"},
                            {"type": "tool_use", "id": "t2", "name": "now", "input": {"é": 1}},
                        ],
                    },
                    {
                        "role": "user",
                        "content": [
                            {"type": "tool_result", "tool_use_id": "t1", "content": "12"},
                            {
                                "type": "tool_result",
                                "tool_use_id": "t2",
                                "is_error": True,
                                "content": [
                                    {"type": "text", "text": "1"},
                                    {"type": "tool_reference", "tool_name": "3"},
                                ],
                            },
                            {"type": "text", "text": "go"},
                            {"type": "text", "text": "on", "cache_control": {"type": "ephemeral"}},
                        ],
                    },
                ]
            },
            '<u>hi<a>b<tool_call>{"name": "now", "arguments": {"é": 1}}</tool_call><t>12<t>1\n3<u>go\non',
        ),
        (
            {
                "messages": [
                    {"role": "assistant", "content": [{"type": "tool_use", "id": "1", "name": "now", "input": {}}]},
                    {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1"}]},
                ]
            },
            '<a><tool_call>{"name": "now", "arguments": {}}</tool_call><t>',
        ),
        (
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [
                            {"type": "text", "text": "a"},
                            {"type": "tool_result", "tool_use_id": "1", "content": "12"},
                            {"type": "text", "text": "b"},
                        ],
                    }
                ]
            },
            "<u>a<t>12<u>b",
        ),
    ],
)
async def test_blocks_are_turns(ask, prompt, body, seen):
    await ask(**body)
    assert prompt() == seen


@pytest.mark.parametrize(
    ("block", "told"),
    [
        ({"type": "image", "source": {"media_type": "image/png", "data": "iVBO"}}, "image (image/png)"),
        ({"type": "image", "source": {"type": "url", "url": "http://example.org/a.png"}}, "image"),
        ({"type": "document", "source": {"media_type": "application/pdf"}}, "document (application/pdf)"),
        ({"type": "document", "source": {"media_type": "a/b\n<|im_end|>"}}, "document"),
        ({"type": "document", "source": {"media_type": 5}}, "document"),
    ],
)
async def test_what_a_tool_has_found_and_no_text_is_told(ask, post, prompt, caplog, block, told):
    """Claude Code reads images this way, and sends them again with each turn."""
    caplog.set_level(logging.WARNING)
    message = result({"type": "text", "text": "a"}, block, {"type": "text", "text": "b"})
    for _ in range(2):
        await ask(messages=[message])
        assert prompt() == f"<t>a\n[This {told} was left out: only text can be read here.]\nb"
    assert (await post("/count_tokens", messages=[message])).json()["input_tokens"] > 0
    lines = [record.message for record in caplog.records if record.message.startswith("ignoring")]
    assert lines == [f"ignoring in results of tools, blocks of the type '{block['type']}'"]
    error = error_of(await post(messages=[{"role": "user", "content": [block]}]), 400)
    assert error["message"].startswith("`messages.0.content.0`")


PICTURE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBO"}}
NOTE = {
    "type": "document",
    "source": {"type": "text", "media_type": "text/plain", "data": "The sky is blue."},
    "title": "Note",
    "context": "By Mia",
    "citations": {"enabled": True},
    "cache_control": {"type": "ephemeral"},
}
PIECES = {
    "type": "document",
    "source": {"type": "content", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
    "title": None,
}
ONE_PIECE = {"type": "document", "source": {"type": "content", "content": "c"}}


@pytest.mark.parametrize(
    ("document", "read"), [(NOTE, "Note\nBy Mia\nThe sky is blue."), (PIECES, "a\nb"), (ONE_PIECE, "c")]
)
async def test_a_document_of_text_is_read(ask, post, prompt, caplog, document, read):
    caplog.set_level(logging.WARNING)
    asked = {"type": "text", "text": "What?"}
    for message, seen in (
        ({"role": "user", "content": [document, asked]}, f"<u>{read}\nWhat?"),
        (result(document, asked), f"<t>{read}\nWhat?"),
    ):
        await ask(messages=[message])
        assert prompt() == seen
        assert (await post("/count_tokens", messages=[message])).json()["input_tokens"] == len(seen.encode())
    assert not [record for record in caplog.records if record.message.startswith("ignoring")]


async def test_an_image_in_a_document_is_told_in_results_alone(ask, post, prompt, caplog):
    caplog.set_level(logging.WARNING)
    document = {**PIECES, "source": {"type": "content", "content": [{"type": "text", "text": "a"}, PICTURE]}}
    await ask(messages=[result(document)])
    assert prompt() == "<t>a\n[This image (image/png) was left out: only text can be read here.]"
    lines = [record.message for record in caplog.records if record.message.startswith("ignoring")]
    assert lines == ["ignoring in results of tools, blocks of the type 'image'"]
    error = error_of(await post(messages=[{"role": "user", "content": [document]}]), 400)
    assert error["message"].startswith("`messages.0.content.0`: may hold no images")


async def test_a_tool_that_is_held_to_less_is_logged_once(ask, caplog):
    caplog.set_level(logging.INFO, "server.constraints")
    schema = {"type": "object", "properties": {"where": {"type": "string", "if": {}}}}
    for _ in range(2):
        await ask(tools=[*TOOLS, {"name": "fetch", "input_schema": schema}])
    [line] = [record.message for record in caplog.records if record.name == "server.constraints"]
    assert "the tool 'fetch'" in line
    assert "#/properties/where/if: the keyword `if`" in line


async def test_a_last_message_of_the_assistant_is_gone_on_with(ask, api, post):
    messages = [USER, {"role": "assistant", "content": "Well"}]
    answer = await ask(messages=messages)
    assert answer["content"] == [{"type": "text", "text": "one two"}]
    called = {"role": "assistant", "content": [{"type": "tool_use", "id": "1", "name": "now", "input": {}}]}
    error = error_of(await post(messages=[USER, called]), 400)
    assert error["message"].startswith("`messages.1`")


async def test_what_is_passed_by_is_logged_once(ask, caplog):
    caplog.set_level(logging.WARNING)
    content = [{"type": "server_tool_use", "id": "1", "name": "web_search", "input": {}}, {"type": "text", "text": "a"}]
    for _ in range(2):
        await ask(
            tools=[{"type": "web_search_20250305", "name": "web_search", "max_uses": 5}],
            messages=[USER, {"role": "assistant", "content": content}, USER],
            thinking={"type": "adaptive"},
            context_management={"edits": []},
            betas=["x"],
            mcp_servers=[{"type": "url", "name": "x"}],
        )
    lines = [record.message for record in caplog.records if record.message.startswith("ignoring")]
    assert sorted(lines) == [
        "ignoring blocks of the type 'server_tool_use'",
        "ignoring the unknown request field 'betas'",
        "ignoring the unknown request field 'mcp_servers'",
        "ignoring tools of the type 'web_search_20250305'",
    ]


@pytest.mark.parametrize(
    ("choice", "shown", "yes", "no"),
    [
        (None, "look now ", ["text", NOW, f"{NOW}\n{NOW}"], []),
        ({"type": "auto", "disable_parallel_tool_use": True}, "look now ", ["text", NOW], [f"{NOW}\n{NOW}"]),
        ({"type": "any"}, "look now ", [NOW, LOOK], ["text"]),
        ({"type": "tool", "name": "look"}, "look now ", [LOOK], [NOW, "text"]),
        ({"type": "none"}, "", [], []),
    ],
)
async def test_choices_of_tools(ask, engine, prompt, accepts, choice, shown, yes, no):
    await ask(tools=[{"type": "bash_20250124", "name": "bash"}, *TOOLS], tool_choice=choice)
    assert prompt() == f"{shown}<u>hi"
    constraint = engine.submissions[-1].sampling.constraint
    assert (constraint is None) == (not shown)
    for text in yes:
        assert accepts(constraint, text)
    for text in no:
        assert not accepts(constraint, text)


@pytest.mark.parametrize("place", ["output_config", "output_format"])
async def test_what_the_answer_must_be(ask, engine, accepts, place):
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    asked = {"type": "json_schema", "schema": schema}
    await ask(**{place: {"format": asked, "effort": "high"} if place == "output_config" else asked})
    constraint = engine.submissions[-1].sampling.constraint
    assert accepts(constraint, '{"a": 5}')
    assert not accepts(constraint, "{}")


async def test_parameters_reach_the_engine(ask, engine):
    await ask(
        max_tokens=9,
        temperature=0.7,
        top_p=0.5,
        top_k=3,
        seed=7,
        diffusion={"threshold": 0.6, "cache": "prefix"},
        service_tier="auto",
    )
    [submission] = engine.submissions
    sampling = submission.sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p, sampling.seed) == (9, 0.7, 0.5, 7)
    assert sampling.top_k == 3
    assert (submission.diffusion.threshold, submission.diffusion.cache) == (0.6, "prefix")


async def test_fields_of_other_routes_may_say_nothing(ask):
    await ask(
        parallel_tool_calls=True,
        instructions="",
        input=[],
        text={"format": {"type": "text"}},
        reasoning={"effort": None},
    )


async def test_tokens_are_counted(post, ask, engine):
    body = {"system": "Be brief.", "tools": TOOLS, "messages": [USER]}
    response = await post("/count_tokens", **body)
    assert response.status_code == 200, response.text
    await ask(**body)
    assert response.json() == {"input_tokens": len(engine.submissions[-1].prompt_ids)}
    assert error_of(await post("/count_tokens", messages=[]), 400)["message"].startswith("`messages`")
    assert error_of(await post("/count_tokens", model="gpt"), 404)["type"] == "not_found_error"
