"""Lines in the log: what they say, in which format, and what they keep to themselves."""

import asyncio
import json
import logging
import sys
from dataclasses import replace
from typing import cast

import httpx
import pytest

from engine import EngineLoop
from server.http.app import create_app
from server.observe import logs
from server.observe.observer import TokenCounts
from server.settings.tree import build


@pytest.fixture
def complete(engine, tokenizer):
    """Completes a prompt on a server with these settings."""

    async def one(prompt, **settings):
        app = create_app(cast(EngineLoop, engine), tokenizer, build({"served_model_name": ["fake"], **settings}))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            return await client.post("/v1/completions", json={"prompt": prompt, "stop": "wo"})

    return one


def lines(caplog, formatter):
    return [formatter.format(record) for record in caplog.records if record.name == "server.observe.logs"]


async def test_one_line_for_each_request(complete, caplog):
    caplog.set_level("INFO")
    answer = (await complete("secret")).json()
    [text] = lines(caplog, logs.TextFormatter())
    [line] = map(json.loads, lines(caplog, logs.JsonFormatter()))
    assert line["id"] == answer["id"] + "-0"
    assert line["model"] == "fake"
    assert (line["prompt_tokens"], line["completion_tokens"], line["forwards"]) == (6, 7, 4)
    assert line["finish_reason"] == "stop"
    assert 0 < line["first_block_seconds"] <= line["total_seconds"]
    assert line["queue_seconds"] is None
    assert (line["level"], line["logger"], line["message"]) == ("info", "server.observe.logs", "request")
    tokens = "prompt_tokens=6 cached_tokens=0 completion_tokens=7"
    assert f" id={answer['id']}-0 model=fake {tokens} forwards=4 queue_seconds=- " in text


async def test_every_line_of_a_request_tells_whose_it_is(engine, tokenizer, caplog, monkeypatch):
    """The lines of two that are served at once, in both formats; and none where nobody asks."""
    caplog.set_level("INFO")
    said = []
    monkeypatch.setattr(
        caplog.handler, "emit", lambda record: said.append((record, logs.JsonFormatter().format(record)))
    )
    app = create_app(cast(EngineLoop, engine), tokenizer, build({"served_model_name": ["fake"]}))
    clients = [
        httpx.AsyncClient(transport=httpx.ASGITransport(app, client=(host, 5)), base_url="http://test")
        for host in ("192.0.2.1", "2001:db8::2")
    ]
    answers = await asyncio.gather(
        *(
            client.post(
                "/v1/completions", json={"prompt": "ab", "stream": stream}, headers={"x-request-id": f"mine-{n}"}
            )
            for n, client in enumerate(clients)
            for stream in (False, True)
        )
    )
    assert [answer.headers["x-request-id"] for answer in answers] == ["mine-0", "mine-0", "mine-1", "mine-1"]
    told = [
        json.loads(line)
        for record, line in said
        if record.name in ("server.observe.logs", "server.observe.request_ids")
    ]
    whose = sorted((line["logger"], line["client"], line["request_id"]) for line in told)
    assert whose == sorted(
        (logger, host, f"mine-{n}")
        for logger in ("server.observe.logs", "server.observe.request_ids")
        for n, host in enumerate(("192.0.2.1", "2001:db8::2"))
        for _ in range(2)
    )
    assert all(line["id"].startswith("cmpl-") for line in told if line["logger"] == "server.observe.logs")
    nobodys = logging.LogRecord("server.observe.logs", logging.INFO, __file__, 1, "busy", (), None)
    assert "client" not in logs.TextFormatter().format(nobodys)


@pytest.mark.parametrize(("trusted", "client"), [(["127.0.0.1"], "192.0.2.1"), (["192.0.2.0/24"], "127.0.0.1")])
async def test_behind_a_proxy_that_is_trusted_the_client_is_whom_it_asks_for(
    engine, tokenizer, listening, caplog, trusted, client
):
    caplog.set_level("INFO")
    async with (
        listening(engine, tokenizer, trusted_proxies=trusted) as (url, _),
        httpx.AsyncClient(base_url=url, headers={"x-forwarded-for": "192.0.2.1"}) as http,
    ):
        seen = []
        caplog.handler.addFilter(lambda record: seen.append(logs.TextFormatter().format(record)) or True)
        await http.get("/v1/models")
    [line] = [line for line in seen if "GET '/v1/models' 200" in line]
    assert f" client={client} " in line


async def test_prompts_stay_out_of_it(complete, caplog):
    caplog.set_level("DEBUG")
    await complete("secret")
    assert "secret" not in "".join(logs.TextFormatter().format(record) for record in caplog.records)
    assert "secret" not in "".join(logs.JsonFormatter().format(record) for record in caplog.records)


async def test_prompts_that_were_asked_for_stay_on_their_line(complete, caplog):
    caplog.set_level("INFO")
    prompt = 'two\nlines "quoted" \x1b[31m'
    await complete(prompt, log_prompts=True)
    [text] = lines(caplog, logs.TextFormatter())
    assert text.isprintable()
    assert text.endswith(f" prompt={json.dumps(prompt)}")
    [line] = lines(caplog, logs.JsonFormatter())
    assert line.isprintable()
    assert json.loads(line)["prompt"] == prompt


def test_an_exception_is_part_of_its_json_line():
    try:
        raise ValueError("broken")
    except ValueError:
        record = logging.LogRecord("x", logging.ERROR, __file__, 1, "request %s failed", ("r1",), sys.exc_info())
    text = logs.JsonFormatter().format(record)
    assert "\n" not in text
    line = json.loads(text)
    assert line["message"] == "request r1 failed"
    assert line["exception"].endswith("ValueError: broken")


async def test_a_line_now_and_then_while_there_is_work(engine, caplog, monkeypatch):
    caplog.set_level("INFO")
    naps = []

    async def nap(seconds):
        naps.append(seconds)
        match len(naps):
            case 1:
                tokens.prompt, tokens.generation = 20, 517
                engine.stats = replace(
                    engine.stats,
                    forwards=170,
                    decoding=replace(engine.stats.decoding, denoising_steps=200, tokens_decoded=500),
                )
            case 2:
                engine.stats = replace(engine.stats, running=0, waiting=0)
            case 3:
                pass
            case _:
                done.set()
                await forever.wait()

    done, forever = asyncio.Event(), asyncio.Event()
    monkeypatch.setattr(logs.asyncio, "sleep", nap)
    tokens = TokenCounts(generation=17)
    async with logs.stats_lines(engine, tokens):
        await done.wait()
    assert set(naps) == {logs.STATS_SECONDS}
    [line] = map(json.loads, lines(caplog, logs.JsonFormatter()))
    assert (line["running"], line["waiting"], line["message"]) == (2, 3, "busy")
    assert line["forwards_per_second"] == 10.0
    assert line["generation_tokens_per_second"] == 50.0
    assert line["prompt_tokens_per_second"] == 2.0
    assert line["tokens_per_forward"] == 2.5


@pytest.mark.parametrize(("log_format", "kind"), [("text", logs.TextFormatter), ("json", logs.JsonFormatter)])
def test_the_format_is_a_setting(log_format, kind, monkeypatch):
    given = {}
    monkeypatch.setattr(logs.logging, "basicConfig", lambda **options: given.update(options))
    logs.set_up(build({"log_format": log_format, "log_level": "warning"}).server)
    assert given["level"] == "WARNING"
    assert [type(handler.formatter) for handler in given["handlers"]] == [kind]
