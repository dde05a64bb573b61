"""What an answer must be: each field becomes a constraint, or a 400 that names it."""

import re
from contextlib import closing

import httpx
import pytest
from prometheus_client import generate_latest

from server.http.app import create_app
from server.settings.tree import build

from .fake_engine import FakeEngine

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}


@pytest.fixture(scope="module")
def constraints(tokenizer, make_engine):
    """One worker process for all tests that ask for it: each takes half a second to start."""
    with closing(create_app(make_engine(), tokenizer, build({})).state.service.constraints) as constraints:
        yield constraints


@pytest.fixture
def one_worker(app, constraints):
    """The app's constraints are compiled by that process."""
    object.__setattr__(app.state.service, "constraints", constraints)


def said(schema):
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}}


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
async def test_each_field_becomes_a_constraint(one_worker, ask, engine, body, yes, no, accepts):
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
async def test_what_it_cannot_be_combined_with(api, app, engine, body, param):
    assert (await api.error(400, guided_regex="a", **body))["param"] == param
    assert not engine.submissions
    shown = generate_latest(app.state.registry).decode()
    assert re.search(r"unmask_constraint_compile_seconds_count\{[^}]*\} 0.0", shown), "it was compiled for nothing"


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


async def test_spaces_in_json_are_the_servers_setting(tokenizer, accepts):
    engine = FakeEngine()
    app = create_app(engine, tokenizer, build({"json_whitespace": "spaced"}))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        await client.post("/v1/completions", json={"prompt": "a", **said(SCHEMA)})
    [submission] = engine.submissions
    assert accepts(submission.sampling.constraint, '{"a": 1}')
    assert not accepts(submission.sampling.constraint, '{"a":1}')
