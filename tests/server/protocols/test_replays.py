"""What agents send is answered, where the context is long enough: 14,000 tokens, 20 tools, fields of next year."""

import json
import logging
from dataclasses import replace

import httpx
import pytest
from openai.types.responses import Response

from server.http.app import create_app
from server.settings.tree import build
from tests.replays import claude_code, codex
from tests.server import fake_engine

from .asking import events_of

LONG = 400_000
"""The tokenizer's tokens are bytes: about five for each of a real one's."""


@pytest.mark.parametrize("body", [codex(), claude_code()])
def test_bodies_are_as_long_as_agents_make_them(body):
    """The template of these tests shows of tools only their names, so that prompts are shorter."""
    assert len(json.dumps(body)) > 5 * 14_000
    assert len(body["tools"]) >= 20


@pytest.fixture
async def client(engine, tokenizer, constraints, monkeypatch):
    monkeypatch.setattr(fake_engine, "MAX_LEN", LONG)
    engine.info = replace(engine.info, spec=replace(engine.info.spec, max_model_len=LONG))
    app = create_app(engine, tokenizer, build({"served_model_name": ["demo"]}))
    object.__setattr__(app.state.service, "constraints", constraints)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        yield client


CALL = '<tool_call>\n{"name": "%s", "arguments": %s}\n</tool_call>'


async def test_codex(client, engine, says, accepts, caplog):
    caplog.set_level(logging.WARNING)
    call = CALL % ("exec_command", '{"cmd": "ls"}')
    says(f"I look again.\n{call}")
    response = await client.post("/v1/responses", json=codex())
    assert response.status_code == 200, response.text
    last = events_of(response.text)[-1]
    assert last["type"] == "response.completed"
    answer = Response.model_validate(last["response"])
    assert [item.type for item in answer.output] == ["message", "function_call"]
    assert (answer.output[1].name, answer.output[1].arguments) == ("exec_command", '{"cmd": "ls"}')
    assert len(answer.tools) == 17
    [submission] = engine.submissions
    assert len(submission.prompt_ids) > 30_000
    assert accepts(submission.sampling.constraint, call)
    assert not accepts(submission.sampling.constraint, CALL % ("exec_command", "{}"))
    prompt = bytes(submission.prompt_ids).decode()
    assert prompt.count("<s>") == 1
    assert prompt.count("<tool_call>") == 1
    whole = await client.post("/v1/responses", json=codex(stream=False))
    assert [item["type"] for item in whole.json()["output"]] == ["message", "function_call"]
    ignored = {record.message for record in caplog.records}
    assert "ignoring the unknown request field 'a_field_of_next_year'" in ignored


async def test_codex_asks_whether_the_model_is_there(client):
    response = await client.post("/v1/responses", json=codex(input=[], max_output_tokens=1, tools=[]))
    assert events_of(response.text)[-1]["type"] == "response.incomplete"


async def test_claude_code(client, engine, says, accepts):
    call = CALL % ("Read", '{"file_path": "src/a.py", "limit": 10}')
    says(f"I look again.\n{call}")
    headers = {
        "authorization": "Bearer none",
        "anthropic-version": "2023-06-01",
        "anthropic-beta": "claude-code-20250219,interleaved-thinking-2025-05-14,of-next-year-2027-01-01",
        "x-app": "cli",
    }
    response = await client.post("/v1/messages?beta=true", json=claude_code(), headers=headers)
    assert response.status_code == 200, response.text
    events = events_of(response.text)
    assert events[-1]["type"] == "message_stop"
    starts = [event["content_block"] for event in events if event["type"] == "content_block_start"]
    assert [block["type"] for block in starts] == ["text", "tool_use"]
    [submission] = engine.submissions
    assert len(submission.prompt_ids) > 30_000
    assert accepts(submission.sampling.constraint, call)
    assert not accepts(submission.sampling.constraint, CALL % ("Read", '{"limit": 10}'))
    prompt = bytes(submission.prompt_ids).decode()
    assert prompt.count("<tool_call>") == 2
    assert "The page at the top tells" not in prompt
    whole = (await client.post("/v1/messages", json=claude_code(stream=False))).json()
    assert whole["content"][1]["input"] == {"file_path": "src/a.py", "limit": 10}
    assert whole["stop_reason"] == "tool_use"
    counted = {name: value for name, value in claude_code().items() if name not in ("max_tokens", "stream")}
    count = await client.post("/v1/messages/count_tokens?beta=true", json=counted, headers=headers)
    assert count.json() == {"input_tokens": len(submission.prompt_ids)}
