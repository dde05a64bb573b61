"""The page on reliability says what the code does; and no error tells of the inside."""

import json
import re
from dataclasses import fields
from pathlib import Path

import pytest

from engine import EngineConfig, InvalidRequest, RequestFailed
from server import cli
from server.guards import body, limits
from server.http import lifecycle
from server.observe import request_ids
from server.replies.generation import MAX_LOGPROBS_OF_ANSWER
from server.settings.tree import ServerConfig, options

PAGE = (Path(__file__).parents[2] / "docs" / "reliability.md").read_text()
CONSTANTS = {
    name: getattr(module, name)
    for module in (body, limits, request_ids)
    for name in ("MAX_DEPTH", "MAX_NODES", "MAX_HEADERS", "MAX_HEADER_BYTES", "MAX_ID_LENGTH")
    if hasattr(module, name)
} | {"MAX_LOGPROBS_OF_ANSWER": MAX_LOGPROBS_OF_ANSWER}


def test_the_table_of_limits_is_what_the_settings_say():
    table = dict(re.findall(r"^\| `(\w+)` \| ([\d.]+) \|", PAGE, re.MULTILINE))
    defaults = {option.key: option.default for option in options().values()}
    numbers = {
        field.name
        for field in fields(ServerConfig)
        if field.name.startswith("max_") or field.name.endswith(("_timeout", "_after"))
    }
    assert table == {name: str((CONSTANTS | defaults)[name]) for name in (*table, *numbers, *CONSTANTS)}
    assert "max_queued_requests" in {field.name for field in fields(EngineConfig)} & set(table)


def test_exit_codes_are_those_of_the_code():
    codes = {int(code) for code in re.findall(r"^\| (\d+) \|", PAGE, re.MULTILINE)}
    assert codes == {0, lifecycle.FORCED, cli.USAGE_ERROR, lifecycle.ENGINE_DIED, cli.INTERRUPTED}


@pytest.mark.parametrize(
    "name", ["api_key", "api_key_file", "metrics_need_key", "allowed_hosts", "allowed_origins", "docs"]
)
def test_the_page_names_the_settings_that_guard(name):
    assert name in PAGE or f"--{name.replace('_', '-')}" in PAGE


INSIDE = re.compile(
    r"/work|/home|/usr|/models|\.py\b|Traceback|0x[0-9a-f]{6,}|site-packages|engine\.|<object|secret", re.I
)


@pytest.mark.parametrize(
    "failure",
    [
        RuntimeError("CUDA error at /usr/lib/x.so 0x7fffdeadbeef, secret"),
        KeyError("secret"),
        MemoryError(),
        RecursionError("secret"),
        RequestFailed("The engine failed while serving this request."),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_failure_tells_nothing_of_the_inside(api, engine, failure, stream):
    engine.script = lambda _: ["one ", failure]
    response = await api.complete(stream=stream)
    error = api.events_of(response.text)[-1]["error"] if stream else api.error_of(response, 500)
    assert response.headers["x-request-id"] in error["message"]
    assert not INSIDE.search(response.text.replace(response.headers["x-request-id"], ""))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b'{"prompt": }',
        b"[1, 2]",
        b'"text"',
        b"null",
        b"5",
        b'{"prompt": "a", "max_tokens": {"a": [1]}}',
        b'{"prompt": {"a": 1}}',
        b'{"prompt": "\xff"}',
        b"\xff\xfe{",
        b'{"prompt": "a", "seed": ' + b"1" * 5000 + b"}",
        b"[" * 100_000,
        json.dumps({"prompt": "a", "diffusion": {"cache": "x" * 1000}}).encode(),
        json.dumps({"prompt": "a", "diffusion": ["secret"]}).encode()[:-1],
    ],
)
@pytest.mark.parametrize("content_type", ["application/json", "application/vnd.api+json", "text/plain", "", "a/b/c;;="])
async def test_a_bad_body_is_the_clients_fault_and_tells_nothing(api, app, content, content_type):
    headers = {"content-type": content_type} if content_type else {}
    response = await api.client.post("/v1/completions", content=content, headers=headers)
    api.error_of(response, response.status_code)
    assert response.status_code in ({400, 413} if content_type == "application/json" else {400, 413, 415})
    assert not INSIDE.search(response.text)


async def test_one_clients_error_holds_nothing_of_anothers(api, engine):
    engine.script = lambda submission: 1 / 0 if bytes(submission.prompt_ids).startswith(b"bad") else ["fine"]
    await api.complete(prompt="private words")
    answers = [await api.complete(prompt="bad"), await api.complete(prompt="bad", max_tokens=10_000)]
    assert [answer.status_code for answer in answers] == [500, 400]
    assert not any("private" in answer.text for answer in answers)


async def test_an_engines_message_names_its_field(api, engine):
    def refuse(_):
        raise InvalidRequest("the prompt is odd", param="prompt")

    engine.prepare = refuse
    assert (await api.error(400))["param"] == "prompt"
