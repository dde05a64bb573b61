"""What an answer must be: each field becomes a constraint, or a 400 that names it; each constraint is compiled once."""

import asyncio
import gc
import os
import re
import signal
import weakref
from contextlib import closing, suppress
from dataclasses import replace

import httpx
import numpy as np
import pytest
from prometheus_client import generate_latest
from tokenizers import Tokenizer as Backend
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from engine import EngineUnavailable, QueueFull
from server import constraints as kept
from server.constraints import Constraints
from server.http.app import create_app
from server.jobs.workers import Failed
from server.settings.tree import build
from server.structured import spec
from server.structured.refusals import Refused, TooLarge, Unsupported
from server.text.tokenizer import Tokenizer

from .fake_engine import EOS, FakeEngine

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
MODEL = FakeEngine().info.spec
HOSTILE = "(a|b)*a(a|b){14}(c|d)*c(c|d){14}"


def said(schema):
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}}


def accepts(constraint, text):
    state = constraint.advanced(0, np.frombuffer(text.encode(), np.uint8).astype(np.int64))
    return state < constraint.num_states and bool(constraint.accepts[state])


@pytest.mark.parametrize(
    ("body", "yes", "no"),
    [
        ({"response_format": {"type": "json_object"}}, '{"b": [1, null]}', "[1]"),
        (said(SCHEMA), '{"a": -3}', '{"a": "3"}'),
        (said({"enum": [None, 1]}), "null", "2"),
        ({"response_format": {"type": "json_schema", "schema": SCHEMA}}, '{"a": 3}', "{}"),
        ({"response_format": {"type": "json_object", "schema": SCHEMA}}, '{"a": 3}', "{}"),
        (said(True), '"x"', '"x'),
        ({"structured_outputs": {"json": SCHEMA}}, '{"a":3}', "{}"),
        ({"structured_outputs": {"json": '{"type": "integer"}'}}, "3", "x"),
        ({"structured_outputs": {"json": {}}}, "3", "x"),
        ({"structured_outputs": {"json_object": True}}, "{}", "3"),
        ({"structured_outputs": {"regex": "[0-9]{2}"}}, "37", "373"),
        ({"structured_outputs": {"choice": ["yes", "no"]}}, "no", "yesno"),
        ({"structured_outputs": {"grammar": 'root ::= "a" root | "b"'}}, "aab", "aa"),
        ({"structured_outputs": {"grammar": 'start: "a" start | "b"'}}, "aab", "aa"),
        ({"structured_outputs": {"json": SCHEMA, "disable_any_whitespace": True}}, '{"a":3}', '{"a": 3}'),
        ({**said(SCHEMA), "structured_outputs": {"disable_any_whitespace": True}}, '{"a":3}', '{"a": 3}'),
        ({"guided_json": SCHEMA, "structured_outputs": {"disable_any_whitespace": True}}, '{"a":3}', '{"a": 3}'),
        ({"structured_outputs": {"json": SCHEMA, "disable_additional_properties": True}}, '{"a":3}', '{"a": 3,"b":1}'),
        ({"guided_json": SCHEMA}, '{"a": 3}', "{}"),
        ({"guided_regex": "a+"}, "aa", "ab"),
        ({"guided_choice": ["é", "e"]}, "é", "\N{LATIN SMALL LETTER E}e"),
        ({"guided_grammar": 'root ::= "a"'}, "a", "aa"),
    ],
)
async def test_each_field_becomes_a_constraint(ask, engine, body, yes, no):
    response = await ask(max_tokens=40, **body)
    assert response.status_code == 200, response.text
    [submission] = engine.submissions
    assert accepts(submission.sampling.constraint, yes)
    assert not accepts(submission.sampling.constraint, no)
    cost = response.json()["usage"]["diffusion"]["constraint"]
    assert cost["states"] == submission.sampling.constraint.num_states
    assert cost["compile_ms"] > 0


async def test_without_one_there_is_none(ask, engine):
    response = await ask()
    assert engine.submissions[0].sampling.constraint is None
    assert "constraint" not in response.json()["usage"]["diffusion"]


async def test_choices_and_prompts_share_it(api, engine):
    assert (await api.complete(prompt=["a", "b"], n=3, guided_regex="a")).status_code == 200
    assert len({id(submission.sampling.constraint) for submission in engine.submissions}) == 1


@pytest.mark.parametrize(
    ("body", "param", "why"),
    [
        (said({"if": {}}), "response_format.json_schema.schema", "#/if: the keyword `if` is not supported"),
        (said({"type": "x"}), "response_format.json_schema.schema", "#/type: `type` is one of"),
        (said({"enum": []}), "response_format.json_schema.schema", "no value fits"),
        (said({"const": "x" * 70000}), "response_format.json_schema.schema", "70,012 bytes, and 65,536 are allowed"),
        ({"response_format": {"type": "json_schema"}}, "response_format", "needs `json_schema`"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}, "schema", "must provide"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "'text', 'json_object' or 'json_schema'"),
        ({"response_format": "json"}, "response_format", "object"),
        ({"response_format": {"type": "text", "json_schema": {"schema": True}}}, "response_format", "only with"),
        ({"response_format": {"type": "text", "schema": True}}, "response_format", "no `schema`"),
        (
            {"response_format": {"type": "json_schema", "schema": True, "json_schema": {"schema": True}}},
            "response_format",
            "no other schema",
        ),
        ({"structured_outputs": {"jsn": SCHEMA}}, "structured_outputs.jsn", "not permitted"),
        ({"guided_json": "[" + "[],[]," * 30000 + "[]]"}, "guided_json", "65,536 are allowed"),
        ({"structured_outputs": {"json": "{"}}, "structured_outputs.json", "no JSON"),
        ({"structured_outputs": {"regex": "("}}, "structured_outputs.regex", "without its `)`"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs.choice", "no choice"),
        ({"structured_outputs": {"choice": [1]}}, "structured_outputs.choice.0", "string"),
        ({"structured_outputs": {"grammar": "x"}}, "structured_outputs.grammar", "cannot be read"),
        ({"structured_outputs": {"whitespace_pattern": " "}}, "structured_outputs.whitespace_pattern", "None"),
        ({"structured_outputs": {"structural_tag": "x"}}, "structured_outputs.structural_tag", "None"),
        ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs.choice", "leave one of them"),
        ({"guided_json": SCHEMA, "guided_regex": "a"}, "guided_regex", "`guided_json` and `guided_regex`"),
        ({"guided_regex": r"\bx"}, "guided_regex", "word boundary"),
        ({"guided_regex": "a", "response_format": {"type": "json_object"}}, "guided_regex", "leave one"),
    ],
)
async def test_what_cannot_be_enforced_is_a_400(tokenizer, body, param, why):
    app = create_app(FakeEngine(), tokenizer, build({}))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        answer = await client.post("/v1/completions", json={"prompt": "a", **body})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["param"].endswith(param)
    assert why in error["message"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"suffix": "x"}, "suffix"),
        ({"prompt": "a <|fill:3|> b"}, "prompt"),
        ({"echo": True, "logprobs": 1}, "echo"),
    ],
)
async def test_what_it_cannot_be_combined_with(api, engine, body, param):
    assert (await api.error(400, guided_regex="a", **body))["param"] == param
    assert not engine.submissions


async def test_it_is_compiled_once_and_kept(api, app):
    answers = [(await api.complete(guided_regex="[ab]c")).json() for _ in range(2)]
    assert [answer["usage"]["diffusion"]["constraint"]["cached"] for answer in answers] == [False, True]
    for _ in range(2):
        await api.error(400, **said({"properties": {"a": {"if": {}}}}))
    await api.error(400, guided_regex="(")
    shown = generate_latest(app.state.registry).decode()
    assert re.search(r"unmask_constraint_compile_seconds_count\{[^}]*\} 1.0", shown)
    assert re.search(r"unmask_constraint_cache_hits_total\{[^}]*\} 1.0", shown)
    assert re.search(r'unmask_constraint_refused_total\{keyword="if",[^}]*reason="unsupported"\} 2.0', shown)
    assert re.search(r'unmask_constraint_refused_total\{keyword="",[^}]*reason="malformed"\} 1.0', shown)


class Told:
    """A `CompileObserver` that counts."""

    def __init__(self):
        self.compiled = self.cached = self.refused = 0

    def on_compiled(self, seconds):
        self.compiled += 1

    def on_cached(self):
        self.cached += 1

    def on_refused(self, reason, keyword):
        self.refused += 1


@pytest.fixture
def told():
    return Told()


@pytest.fixture
def make(tokenizer, told):
    """Constraints of the byte tokenizer."""
    made = []

    def make(of=tokenizer, model=MODEL, **options):
        options = {"is_enabled": True, "cache_bytes": 2**20, **options}
        made.append(Constraints(of, model, told, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


async def test_those_who_ask_at_once_wait_for_one_compilation(make, told):
    constraints = make()
    asked = spec.of_regex("a{3}")
    made = await asyncio.gather(*(constraints.compiled(asked) for _ in range(5)))
    assert len({id(one.constraint) for one in made}) == 1
    assert sorted(one.is_cached for one in made) == [False, True, True, True, True]
    assert (told.compiled, told.cached) == (1, 4)


async def test_one_that_leaves_does_not_take_it_from_the_others(make):
    constraints = make()
    asked = spec.of_regex("a{3}")
    first = asyncio.create_task(constraints.compiled(asked))
    await asyncio.sleep(0)
    second = asyncio.create_task(constraints.compiled(asked))
    await asyncio.sleep(0)
    first.cancel()
    assert accepts((await second).constraint, "aaa")
    with suppress(asyncio.CancelledError):
        await first


async def test_what_was_used_last_is_kept(make, told):
    constraints = make(cache_bytes=15_000)
    specs = [spec.of_regex(f"a{{{count}}}") for count in range(1, 9)]
    for one in specs:
        await constraints.compiled(one)
        await constraints.compiled(specs[0])
    assert told.compiled == 8, "the first one was always used just before"
    assert not (await constraints.compiled(specs[1])).is_cached
    assert constraints._kept_bytes <= 15_000
    assert constraints._kept_bytes == sum(kept._size(*item) for item in constraints._kept.items())


async def test_a_refusal_is_kept(make, told):
    constraints = make()
    for _ in range(2):
        with pytest.raises(Unsupported, match="look-behind"):
            await constraints.compiled(spec.of_regex("(?<=a)"))
    assert told.refused == 2
    assert told.compiled == 0


async def test_one_that_takes_too_long_is_refused_and_the_next_one_compiled(make, monkeypatch):
    constraints = make()
    await constraints.compiled(spec.of_regex("b"))
    monkeypatch.setattr(kept, "SECONDS", 0.2)
    with pytest.raises(TooLarge, match=r"more than 0\.2 s"):
        await constraints.compiled(spec.of_regex(HOSTILE))
    assert accepts((await constraints.compiled(spec.of_regex("a"))).constraint, "a")
    assert ("", spec.of_regex(HOSTILE)) not in constraints._kept, "a less busy machine may be fast enough"


async def test_one_that_nobody_waits_for_is_not_begun(make, told):
    constraints = make()
    async with constraints._turn:
        asked = [asyncio.create_task(constraints.compiled(spec.of_regex("a"))) for _ in range(2)]
        await asyncio.sleep(0)
        asked[0].cancel()
        await asyncio.sleep(0.01)
        assert len(constraints._running) == 1
        asked[1].cancel()
        await asyncio.sleep(0.01)
        assert not constraints._running
    await asyncio.sleep(0.05)
    assert told.compiled == 0
    assert constraints._workers._process is None


async def test_no_more_than_so_many_wait(make, monkeypatch):
    monkeypatch.setattr(kept, "MAX_RUNNING", 1)
    constraints = make()
    first = asyncio.create_task(constraints.compiled(spec.of_regex("a")))
    await asyncio.sleep(0)
    with pytest.raises(QueueFull):
        await constraints.compiled(spec.of_regex("b"))
    await first
    await constraints.compiled(spec.of_regex("b"))


async def test_two_tenants_share_nothing(make, told):
    constraints = make()
    for tenant in ("one", "other"):
        assert not (await constraints.compiled(spec.of_regex("a"), tenant)).is_cached
        assert (await constraints.compiled(spec.of_regex("a"), tenant)).is_cached
    assert told.compiled == 2


async def test_a_refusal_keeps_nothing_of_its_request(make):
    class Body:
        pass

    async def ask():
        body = Body()
        with suppress(Refused):
            await constraints.compiled(spec.of_regex("(?<=a)"))
        return weakref.ref(body)

    constraints = make()
    bodies = [await ask() for _ in range(2)]
    gc.collect()
    assert [body() for body in bodies] == [None, None]
    assert constraints._kept


async def test_a_defect_of_the_compiler_is_not_the_clients_fault(make, monkeypatch):
    constraints = make()

    async def ask(*_, **__):
        raise Failed("has a defect")

    monkeypatch.setattr(constraints._workers, "ask", ask)
    with pytest.raises(Failed):
        await constraints.compiled(spec.of_regex("a"))
    assert not constraints._kept
    assert not constraints._running


async def test_after_its_end_no_process_is_started(make):
    constraints = make()
    constraints.close()
    with pytest.raises(EngineUnavailable):
        await constraints.compiled(spec.of_regex("a"))
    assert constraints._workers._process is None


async def test_a_process_that_died_is_a_503_and_replaced(make):
    constraints = make()
    await constraints.compiled(spec.of_regex("a"))
    os.killpg(constraints._workers._process.pid, signal.SIGKILL)
    with suppress(EngineUnavailable):  # unless its end is seen first
        await constraints.compiled(spec.of_regex("b"))
    assert accepts((await constraints.compiled(spec.of_regex("c"))).constraint, "c")


async def test_it_can_be_switched_off(make):
    with pytest.raises(Refused, match="`structured` is false"):
        await make(is_enabled=False).compiled(spec.of_regex("a"))


async def test_a_tokenizer_whose_tokens_have_no_bytes_of_their_own_is_refused(make):
    plain = PreTrainedTokenizerFast(tokenizer_object=Backend(WordLevel({"a": 0, "b": 1}, unk_token="a")))
    with closing(Tokenizer(plain)) as tokenizer, pytest.raises(Refused, match="byte-level tokenizer"):
        await make(tokenizer).compiled(spec.of_regex("a"))


async def test_the_mask_is_no_token_of_an_answer(make):
    """Even if the vocabulary spells it."""
    made = await make(model=replace(MODEL, mask_id=ord("m"))).compiled(spec.of_regex("[a-z]*"))
    assert accepts(made.constraint, "lan")
    assert not accepts(made.constraint, "man")
    assert made.constraint.classes[EOS] == made.constraint.num_classes - 1


async def test_spaces_in_json_are_the_servers_setting(tokenizer):
    engine = FakeEngine()
    app = create_app(engine, tokenizer, build({"json_whitespace": "spaced"}))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        await client.post("/v1/completions", json={"prompt": "a", **said(SCHEMA)})
    [submission] = engine.submissions
    assert accepts(submission.sampling.constraint, '{"a": 1}')
    assert not accepts(submission.sampling.constraint, '{"a":1}')
